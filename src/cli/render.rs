//! `torpor render`: the objects that the operator would apply, without a cluster.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{BotFleet, GROUP, Tenant, VERSION, WorkerPool};
use crate::domain::catalog::Catalog;
use crate::domain::names;
use crate::domain::stage::Stage;
use crate::plan::{self, Child, Parts, SECRET_KEYS, Settings};
use crate::validate::{
    self, Desired, FleetFacts, PoolFacts, Problem, ValidatedFleet, ValidatedTenant, allot, config_key,
};

/// Options of `torpor render`.
#[derive(Clone, Debug, clap::Args)]
pub struct RenderArgs {
    /// File with Tenants, and with BotFleets, WorkerPools and ConfigMaps that belong to them; `-` is standard input. May be given more than once.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Stage of sleep to render: Active, BotsStopped, ServicesStopped or DatabaseOnly. Default: Active, and DatabaseOnly for a suspended Tenant.
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<Stage>,
    /// Tier catalogue to use instead of the built-in one.
    #[arg(long, value_name = "FILE", env = "TORPOR_CATALOG")]
    pub catalog: Option<PathBuf>,
}

/// Why nothing was rendered: one line for each problem, with file, document, field and reason.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct RenderError(pub Vec<String>);

/// A file's name and text.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name for messages.
    pub name: String,
    /// YAML documents.
    pub text: String,
}

impl RenderArgs {
    /// Reads the files and renders them.
    ///
    /// # Errors
    /// [`RenderError`] when a file cannot be read or something in it cannot be rendered.
    pub fn run(&self, settings: &Settings) -> Result<String, RenderError> {
        let sources: Vec<Source> = self.files.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        let catalog = match &self.catalog {
            None => Catalog::default(),
            Some(path) => {
                let source = read(path)?;
                Catalog::parse(&source.name, &source.text).map_err(|error| RenderError(vec![error.to_string()]))?
            }
        };
        render(&sources, self.stage, &catalog, settings)
    }
}

fn read(path: &Path) -> Result<Source, RenderError> {
    let mut text = String::new();
    let (name, outcome) = if path.as_os_str() == "-" {
        ("standard input".to_owned(), std::io::stdin().read_to_string(&mut text))
    } else {
        let file = std::fs::File::open(path);
        (path.display().to_string(), file.and_then(|mut file| file.read_to_string(&mut text)))
    };
    outcome.map_err(|error| RenderError(vec![format!("{name}: {error}")]))?;
    Ok(Source { name, text })
}

/// Renders every Tenant of the sources: first its own objects, then those of each of its fleets, all
/// in the order in which they are applied.
///
/// # Errors
/// [`RenderError`] with every problem of every document.
pub fn render(
    sources: &[Source],
    stage: Option<Stage>,
    catalog: &Catalog,
    settings: &Settings,
) -> Result<String, RenderError> {
    let mut input = Input::default();
    for source in sources {
        input.add(source);
    }
    // A document that cannot be read would seem to be missing to those that refer to it.
    let stacks = if input.errors.is_empty() { input.stacks(catalog) } else { Vec::new() };
    if !input.errors.is_empty() {
        return Err(RenderError(input.errors));
    }
    if stacks.is_empty() {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        return Err(RenderError(vec![format!("{}: no Tenant found, nothing to render", names.join(", "))]));
    }
    Ok(stacks.iter().map(|stack| stack.print(stage, settings)).collect::<Vec<_>>().join("---\n"))
}

/// A document's resource, and where it stands.
struct Placed<T> {
    place: String,
    resource: T,
}

/// What the sources hold, and what is wrong with it.
#[derive(Default)]
struct Input {
    tenants: Vec<Placed<Tenant>>,
    fleets: Vec<Placed<BotFleet>>,
    pools: Vec<Placed<WorkerPool>>,
    /// By namespace and name.
    config_maps: BTreeMap<(String, String), BTreeMap<String, String>>,
    errors: Vec<String>,
}

impl Input {
    fn add(&mut self, source: &Source) {
        for (index, document) in serde_yaml::Deserializer::from_str(&source.text).enumerate() {
            let place = format!("{}: document {}", source.name, index + 1);
            let value = serde_yaml::Value::deserialize(document).and_then(|mut value| {
                // As kubectl reads it.
                value.apply_merge()?;
                Ok(value)
            });
            let value = value
                .map_err(|error| error.to_string())
                .and_then(|value| serde_json::to_value(value).map_err(|error| error.to_string()));
            match value {
                Ok(Value::Null) => {}
                Ok(value) => self.add_value(&place, &value),
                Err(error) => {
                    // The parser does not find the next document after an error.
                    self.errors.push(format!("{place}: not YAML of this form: {error}"));
                    return;
                }
            }
        }
    }

    fn add_value(&mut self, place: &str, value: &Value) {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        let place = match (kind, text("/metadata/name")) {
            ("" | "List", _) => place.to_owned(),
            (_, "") => format!("{place} ({kind})"),
            (_, name) => format!("{place} ({kind} {name})"),
        };
        let own = format!("{GROUP}/{VERSION}");
        match kind {
            "Tenant" if version == own => place_into(&mut self.tenants, &mut self.errors, place, value),
            "BotFleet" if version == own => place_into(&mut self.fleets, &mut self.errors, place, value),
            "WorkerPool" if version == own => place_into(&mut self.pools, &mut self.errors, place, value),
            "ConfigMap" if version == "v1" => self.add_config_map(&place, value),
            "List" if version == "v1" => {
                for item in value["items"].as_array().into_iter().flatten() {
                    self.add_value(&place, item);
                }
            }
            "" => self.errors.push(format!("{place}: apiVersion or kind is missing")),
            _ if version.split('/').next() == Some(GROUP) => {
                self.errors
                    .push(format!("{place}: {version} {kind} is unknown; {own} has Tenant, BotFleet and WorkerPool"));
            }
            // Other objects may stand beside, such as the Secret of a fleet; they are not rendered.
            _ => {}
        }
    }

    fn add_config_map(&mut self, place: &str, value: &Value) {
        match serde_json::from_value::<ConfigMap>(value.clone()) {
            Ok(map) => {
                let key = (map.namespace().unwrap_or_default(), map.name_any());
                self.config_maps.insert(key, map.data.unwrap_or_default());
            }
            Err(error) => self.errors.push(format!("{place}: {error}")),
        }
    }

    /// Every Tenant with its fleets, as far as they are without problems.
    fn stacks(&mut self, catalog: &Catalog) -> Vec<Stack> {
        let pools: Vec<PoolFacts> = self
            .pools
            .iter()
            .map(|pool| PoolFacts { name: pool.resource.name_any(), tiers: pool.resource.spec.tiers.clone() })
            .collect();
        let tenants = std::mem::take(&mut self.tenants);
        let mut fleets = std::mem::take(&mut self.fleets);
        let mut stacks = Vec::new();
        for tenant in tenants {
            let namespace = names::namespace(&tenant.resource.name_any());
            let (own, others): (Vec<_>, Vec<_>) =
                fleets.into_iter().partition(|fleet| fleet.resource.namespace().as_deref() == Some(&*namespace));
            fleets = others;
            match validate::tenant(&tenant.resource, catalog, &pools) {
                Ok(validated) => stacks.push(self.stack(&tenant, validated, own)),
                Err(problems) => self.report(&tenant.place, problems),
            }
        }
        for fleet in fleets {
            let namespace = fleet.resource.namespace().unwrap_or_default();
            let remedy = match names::tenant_of_namespace(&namespace) {
                Some(tenant) => format!("belongs to Tenant {tenant}, which is in none of the files"),
                None => "must be tenant-<name of its Tenant>".to_owned(),
            };
            self.errors.push(format!("{}: metadata.namespace: {namespace:?} {remedy}", fleet.place));
        }
        stacks
    }

    fn stack(
        &mut self,
        tenant: &Placed<Tenant>,
        validated: ValidatedTenant,
        mut fleets: Vec<Placed<BotFleet>>,
    ) -> Stack {
        // What a cluster gives back has each fleet of a Tenant twice.
        let made = |fleet: &Placed<BotFleet>| {
            let by_tenant = fleet.resource.owner_references().iter().any(|owner| owner.kind == "Tenant");
            by_tenant && validated.fleets.iter().any(|(name, _)| *name == fleet.resource.name_any())
        };
        fleets.retain(|fleet| !made(fleet));
        for (name, spec) in &validated.fleets {
            if let Some(twin) = fleets.iter().find(|fleet| fleet.resource.name_any() == *name) {
                let reason = format!("{}: metadata.name: the Tenant has a fleet of this name", twin.place);
                self.errors.push(reason);
            }
            let mut resource = BotFleet::new(name, spec.clone());
            resource.metadata.namespace = Some(validated.namespace.clone());
            fleets.push(Placed { place: format!("{}: spec.fleets[{name}]", tenant.place), resource });
        }
        let context = validated.fleet_context();
        let facts: Vec<FleetFacts> = fleets.iter().map(|fleet| FleetFacts::of(&fleet.resource, &context, 0)).collect();
        let shares = allot(context.max_bots, context.room(), &facts);
        let mut planned = Vec::new();
        for fleet in fleets {
            let name = fleet.resource.name_any();
            let desired = Desired { replicas: shares.get(&name).copied().unwrap_or_default().bots };
            let (config, note) = self.config(&fleet.resource, &validated.namespace);
            match validate::fleet(&fleet.resource, &context, desired, &config) {
                Ok(fleet) => planned.push((fleet, note)),
                Err(problems) => self.report(&fleet.place, problems),
            }
        }
        Stack { suspended: tenant.resource.spec.suspended, tenant: validated, fleets: planned }
    }

    /// Text of a fleet's configuration, or a stand-in with a note that says so.
    fn config(&self, fleet: &BotFleet, namespace: &str) -> (String, Option<String>) {
        let strategy = &fleet.spec.strategy;
        let Some(reference) = &strategy.config_map_ref else {
            return (strategy.config.clone().unwrap_or_default(), None);
        };
        let map = self.config_maps.get(&(namespace.to_owned(), reference.name.clone()));
        if let Some(text) = map.and_then(|data| data.get(&reference.key)) {
            return (text.clone(), None);
        }
        let origin = format!("ConfigMap {namespace}/{}, key {}", reference.name, reference.key);
        let stand_in = format!("{}: <from {origin}>\n", config_key(strategy.kind));
        (
            stand_in,
            Some(format!("# strategy.yml and the restart hash stand for {origin}, which is in none of the files.\n")),
        )
    }

    fn report(&mut self, place: &str, problems: Vec<Problem>) {
        self.errors.extend(problems.into_iter().map(|problem| format!("{place}: {problem}")));
    }
}

/// Reads a resource and keeps it, or what is wrong with it.
fn place_into<T>(resources: &mut Vec<Placed<T>>, errors: &mut Vec<String>, place: String, value: &Value)
where
    T: CustomResourceExt + Resource + DeserializeOwned + Serialize,
{
    match validate::document::<T>(value) {
        Ok(resource) => {
            let key = |resource: &T| (resource.namespace(), resource.name_any());
            if let Some(twin) = resources.iter().find(|other| key(&other.resource) == key(&resource)) {
                errors.push(format!("{place}: metadata.name: is that of {} already", twin.place));
            }
            resources.push(Placed { place, resource });
        }
        Err(problems) => errors.extend(problems.iter().map(|problem| format!("{place}: {problem}"))),
    }
}

/// A Tenant that can be planned, with its fleets and what is to be said about them.
struct Stack {
    suspended: bool,
    tenant: ValidatedTenant,
    fleets: Vec<(ValidatedFleet, Option<String>)>,
}

impl Stack {
    fn print(&self, stage: Option<Stage>, settings: &Settings) -> String {
        let stage = match (stage, self.suspended) {
            (Some(stage), _) => stage,
            (None, true) => Stage::DatabaseOnly,
            (None, false) => Stage::Active,
        };
        let parts = Parts::of(stage);
        let mut documents: Vec<String> = plan::tenant(&self.tenant, parts, settings).iter().map(print).collect();
        for (fleet, note) in &self.fleets {
            let note = note.as_deref().unwrap_or_default();
            let children = plan::fleet(fleet, parts, settings);
            documents.extend(children.iter().map(|child| format!("{note}{}", print(child))));
        }
        documents.join("---\n")
    }
}

/// The object as YAML. Passwords exist in a cluster only; here their places are shown.
fn print(child: &Child) -> String {
    let mut value = child.to_value();
    if matches!(child, Child::Secret(_)) {
        value["stringData"] = SECRET_KEYS.map(|key| (key.to_owned(), json!("<generated>"))).into_iter().collect();
    }
    // A value made of JSON is always YAML.
    serde_yaml::to_string(&value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str =
        "{apiVersion: torpor.dev/v1alpha1, kind: Tenant, metadata: {name: alice}, spec: {tier: basic}}\n";

    fn rendered(text: &str) -> Result<String, String> {
        let source = Source { name: "a.yaml".to_owned(), text: text.to_owned() };
        render(&[source], None, &Catalog::default(), &Settings::default()).map_err(|error| error.to_string())
    }

    fn fleet(strategy: &str) -> String {
        format!(
            "---\n{{apiVersion: torpor.dev/v1alpha1, kind: BotFleet, metadata: {{name: x, namespace: tenant-alice}}, spec: {{strategy: {strategy}}}}}\n"
        )
    }

    #[test]
    fn errors_name_file_document_field_and_reason() {
        for (text, expected) in [
            ("a: [", "a.yaml: document 1: not YAML of this form: "),
            ("a: 1\na: 2\n", "a.yaml: document 1: not YAML of this form: duplicate entry"),
            ("a: 1\n", "a.yaml: document 1: apiVersion or kind is missing"),
            ("", "a.yaml: no Tenant found, nothing to render"),
            (&TENANT.replace("basic", "gold"), "a.yaml: document 1 (Tenant alice): spec.tier: \"gold\" is not one of"),
            (
                &format!("{TENANT}---\n{TENANT}"),
                "a.yaml: document 2 (Tenant alice): metadata.name: is that of a.yaml: document 1 (Tenant alice) already",
            ),
            (&TENANT.replace("v1alpha1", "v2"), "a.yaml: document 1 (Tenant alice): torpor.dev/v2 Tenant is unknown"),
            (
                &fleet("{kind: v1, config: 'strategy: a'}"),
                "a.yaml: document 1 (BotFleet x): metadata.namespace: \"tenant-alice\" belongs to Tenant alice, which is in none of the files",
            ),
            (
                &format!("{TENANT}{}", fleet("{kind: v1, config: 'a: b'}")),
                "a.yaml: document 2 (BotFleet x): spec.strategy: the configuration has no key strategy",
            ),
        ] {
            let message = rendered(text).expect_err(text);
            assert!(message.starts_with(expected), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn config_maps_of_the_files_are_used_and_others_named() {
        let text = format!("{TENANT}{}", fleet("{kind: v1, configMapRef: {name: c}}"));
        let without = rendered(&text).expect("rendered");
        assert!(
            without.contains("# strategy.yml and the restart hash stand for ConfigMap tenant-alice/c, key config.yml")
        );
        let map = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: tenant-alice}, data: {config.yml: 'strategy: pmm'}}\n";
        let with = rendered(&format!("{text}{map}")).expect("rendered");
        assert!(with.contains("strategy.yml: 'strategy: pmm'") && !with.contains("stand for"), "{with}");
    }

    #[test]
    fn what_a_cluster_gives_back_is_rendered_once() {
        let fleets = "fleets: [{name: a, replicas: 1, strategy: {kind: v1, config: 'strategy: pmm'}}]";
        let tenant = TENANT.replace("tier: basic", &format!("tier: basic, {fleets}"));
        let owned = |owners: &str| {
            format!(
                "{tenant}---\n{{apiVersion: torpor.dev/v1alpha1, kind: BotFleet, metadata: {{name: a, namespace: tenant-alice, ownerReferences: [{owners}]}}, spec: {{replicas: 1, strategy: {{kind: v1, config: 'strategy: pmm'}}}}}}\n"
            )
        };
        let tenants = "{apiVersion: torpor.dev/v1alpha1, kind: Tenant, name: alice, uid: u, controller: true}";
        assert_eq!(rendered(&owned(tenants)), rendered(&tenant));
        let error = rendered(&owned("")).expect_err("twice");
        assert!(error.contains("the Tenant has a fleet of this name"), "{error}");
    }

    #[test]
    fn pools_of_the_files_place_the_pods() {
        assert!(rendered(TENANT).expect("rendered").contains("- worker-mid\n"));
        let pool = "---\n{apiVersion: torpor.dev/v1alpha1, kind: WorkerPool, metadata: {name: mine}, spec: {tiers: [basic], nodeSelector: {a: b}, priority: {class: torpor-medium, value: 1}}}\n";
        let text = rendered(&format!("{TENANT}{pool}")).expect("rendered");
        assert!(text.contains("- mine\n") && !text.contains("worker-mid"));
    }

    #[test]
    fn a_suspended_tenant_keeps_its_database_only() {
        let text = rendered(&TENANT.replace("tier: basic", "tier: basic, suspended: true")).expect("rendered");
        assert_eq!(text.matches("replicas: 1\n").count(), 1);
    }
}
