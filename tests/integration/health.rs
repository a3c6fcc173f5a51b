//! GitOps on a real API server: what tools say of every version of an object through all its states, and manifests in the
//! schemas of the tools that they are for.

#[path = "../health/states.rs"]
mod states;

mod manifests;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::kstatus::Judge;

use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{Watch, ensure};

pub use manifests::manifests_fit_their_tools;
use states::{STATES, check, recorded, rules, state};

/// The slowest state needs half of it on an idle machine.
const LIMIT: Duration = Duration::from_secs(150);

/// Watches of the three kinds from before the first object.
struct Witness([Watch; 3]);

impl Witness {
    fn start(ctx: &Ctx) -> Result<Self, String> {
        let watch = |kind| Watch::start(ctx, &[kind, "-A"]);
        Ok(Witness([watch("tenants")?, watch("botfleets")?, watch("workerpools")?]))
    }

    /// Every version that was there, in order within its kind.
    fn versions(&self) -> Vec<Value> {
        let events = self.0.iter().flat_map(Watch::events);
        events.filter(|(_, event)| event["type"] != "DELETED").map(|(_, event)| event["object"].clone()).collect()
    }

    /// Waits until every state of a kind or tenant that starts like this was seen.
    fn await_states(&self, missing: impl Fn(&BTreeSet<String>) -> Vec<String>) -> Result<(), String> {
        eventually(LIMIT, || {
            let seen: BTreeSet<String> = self.versions().iter().map(state).collect();
            let missing = missing(&seen);
            ensure(missing.is_empty(), || format!("not seen: {missing:?}"))
        })
    }

    fn await_all(&self) -> Result<(), String> {
        self.await_states(|seen| {
            STATES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| !seen.contains(name)).collect()
        })
    }
}

/// Objects pass through every state that there is; Argo CD's scripts, kstatus and Flux agree on each version, and
/// what they say is what the list of states wants. With `TORPOR_RECORD_HEALTH` set the first version of each state is stored.
pub fn tools_agree_on_every_version() -> Result<(), String> {
    let (ctx, _hibernator) = scenario::start()?;
    let witness = Witness::start(&ctx)?;
    scenario::run(&ctx, &witness)?;
    let versions = witness.versions();
    let mut judge = Judge::start(&rules()).map_err(|error| format!("{error:#}"))?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut first: BTreeMap<String, &Value> = BTreeMap::new();
    let mut failures = Vec::new();
    for version in &versions {
        let verdict = judge.judge(version).map_err(|error| format!("{error:#}"))?;
        failures.extend(check(version, &verdict).err());
        *counts.entry(state(version)).or_default() += 1;
        first.entry(state(version)).or_insert(version);
    }
    let unlisted: Vec<&String> =
        counts.keys().filter(|name| !STATES.iter().any(|(listed, _)| listed == name)).collect();
    println!(
        "health: {} versions in {} states; unlisted, judged by conditions: {unlisted:?}",
        versions.len(),
        counts.len()
    );
    ensure(failures.is_empty(), || failures.join("\n"))?;
    if std::env::var_os("TORPOR_RECORD_HEALTH").is_some() {
        for (name, _) in STATES {
            let version = minimal(first[*name]);
            let text = serde_json::to_string_pretty(&version).map_err(|error| error.to_string())?;
            std::fs::write(recorded().join(format!("{name}.json")), text + "\n").map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// What tools look at, without what changes from run to run.
fn minimal(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "generation", "deletionTimestamp", "finalizers"] {
        if !object["metadata"][field].is_null() {
            metadata[field] = object["metadata"][field].clone();
        }
    }
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata,
        "spec": object["spec"], "status": object["status"],
    })
}
