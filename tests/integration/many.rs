//! Thousands of Tenants in seconds. kubectl sends one object after the other, which takes twice as long.

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use torpor::api::Tenant;
use torpor_cluster::Cluster;

/// By then the API server is what is waited for.
const AT_ONCE: usize = 16;

/// Creates Tenants, and says how many. The first refusal ends it.
pub fn create_tenants(cluster: &Cluster, tenants: impl IntoIterator<Item = Value>) -> Result<usize, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let api: Api<DynamicObject> =
            Api::all_with(client(cluster.kubeconfig()).await?, &ApiResource::erase::<Tenant>(&()));
        let create = async |tenant: Value| {
            let tenant = serde_json::from_value(tenant).map_err(|error| error.to_string())?;
            api.create(&PostParams::default(), &tenant).await.map_err(|error| error.to_string())
        };
        let created = stream::iter(tenants).map(create).buffer_unordered(AT_ONCE);
        created.try_fold(0, async |count, _| Ok(count + 1)).await
    })
}

/// A client of whom a kubeconfig names.
pub async fn client(kubeconfig: &Path) -> Result<Client, String> {
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| error.to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    config.map_err(|error| error.to_string()).and_then(|config| Client::try_from(config).map_err(|e| e.to_string()))
}
