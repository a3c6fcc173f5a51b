//! The CustomResourceDefinitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt;

use super::{BotFleet, Tenant, WorkerPool};

/// Every CustomResourceDefinition, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    [Tenant::crd(), BotFleet::crd(), WorkerPool::crd()].into_iter().map(finish).collect()
}

/// A new object shows `observedGeneration: -1`, so that no tool takes it for handled before the operator saw it.
fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let unseen = serde_json::json!(-1);
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut());
        let Some(status) = schema.and_then(|s| property(s, "status")) else { continue };
        if let Some(generation) = property(status, "observedGeneration") {
            generation.default = Some(JSON(unseen.clone()));
        }
        status.nullable = None;
        status.default = Some(JSON(serde_json::json!({ "observedGeneration": unseen })));
    }
    crd
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}
