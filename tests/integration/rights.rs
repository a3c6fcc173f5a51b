//! Every program of the suite runs under the account, the rights and the admission policy that the chart gives it. What they
//! asked the API server for is held against what they were given: no more was needed, and nothing was given for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
pub use torpor_cluster::torpor::{COMPONENTS, HOME, account};
use torpor_cluster::{AuditEvent, Cluster, torpor};

use crate::tenants::{documents, text};

const CHART: &str = "charts/torpor";

/// One right, or one use of it. Namespace and name are empty where any is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    component: String,
    verb: String,
    resource: String,
    namespace: String,
    name: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Right { component, verb, resource, namespace, name } = self;
        write!(f, "{component}: {verb} {resource}")?;
        for (word, value) in [("named", name), ("in", namespace)] {
            if !value.is_empty() {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Record {
    used: BTreeSet<Right>,
    /// For want of a right.
    forbidden: BTreeMap<Right, String>,
    /// By the chart's own admission policies.
    denied: BTreeSet<String>,
}

static RECORD: Mutex<Record> =
    Mutex::new(Record { used: BTreeSet::new(), forbidden: BTreeMap::new(), denied: BTreeSet::new() });

/// Gives a cluster the accounts, rights and policies of the chart, and records what is done with them.
pub fn install(cluster: &Cluster) -> Result<(), String> {
    torpor::install_accounts(cluster, Path::new(CHART))?;
    if let Some(audit) = cluster.audit() {
        std::thread::spawn(move || {
            let mut mark = audit.mark();
            // The log goes with its cluster.
            while let Ok((events, next)) = mark.and_then(|mark| audit.read(mark)) {
                let mut record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
                for event in &events {
                    record.take(event);
                }
                drop(record);
                mark = Ok(next);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
    }
    Ok(())
}

/// Every right of the chart's roles, one by one.
fn granted(chart: &str) -> Result<BTreeSet<Right>, String> {
    let mut rights = BTreeSet::new();
    for role in documents(chart)?.iter().filter(|role| role["kind"] == "ClusterRole" || role["kind"] == "Role") {
        let component = text(&role["metadata"]["labels"]["app.kubernetes.io/component"]);
        let texts = |list: &Value| list.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        // The role of portals is for accounts of others.
        if !text(&role["metadata"]["name"]).starts_with(&format!("torpor-{component}")) {
            continue;
        }
        for rule in role["rules"].as_array().into_iter().flatten() {
            let names = texts(&rule["resourceNames"]);
            let names = if names.is_empty() { vec![String::new()] } else { names };
            for (group, resource) in texts(&rule["apiGroups"])
                .iter()
                .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |resource| (group.clone(), resource)))
            {
                let resource = if group.is_empty() { resource } else { format!("{group}/{resource}") };
                for verb in texts(&rule["verbs"]) {
                    rights.extend(names.iter().map(|name| Right {
                        component: component.clone(),
                        verb: verb.clone(),
                        resource: resource.clone(),
                        namespace: text(&role["metadata"]["namespace"]),
                        name: name.clone(),
                    }));
                }
            }
        }
    }
    Ok(rights)
}

impl Record {
    fn take(&mut self, event: &AuditEvent) {
        let Some(component) = event.user.strip_prefix(&format!("system:serviceaccount:{HOME}:torpor-")) else { return };
        // Tests that try what a stolen token can do use other programs.
        if !COMPONENTS.contains(&component) || !event.user_agent.starts_with("torpor") || event.resource.is_empty() {
            return;
        }
        let group = if event.group.is_empty() { String::new() } else { format!("{}/", event.group) };
        let sub = if event.subresource.is_empty() { String::new() } else { format!("/{}", event.subresource) };
        let right = |verb: &str| Right {
            component: component.to_owned(),
            verb: verb.to_owned(),
            resource: format!("{group}{}{sub}", event.resource),
            namespace: event.namespace.clone(),
            name: event.name.clone(),
        };
        let what = || format!("torpor-{component}: {} {}: {}", event.verb, event.request_uri, event.message);
        if event.forbidden {
            self.forbidden.insert(right(&event.verb), what());
            return;
        }
        // Tests bring policies of their own.
        if event.message.contains("ValidatingAdmissionPolicy 'torpor-") {
            self.denied.insert(what());
        }
        self.used.insert(right(&event.verb));
        // A server-side apply of what does not exist needs the right to create.
        if event.verb == "patch" && event.code == 201 {
            self.used.insert(right("create"));
        }
    }
}

/// Whether all that was given was used, and all that was asked for was given. Meaningful after the whole suite only.
pub fn balance() -> Result<(), String> {
    let tools = torpor_cluster::Tools::ensure().map_err(|error| format!("{error:#}"))?;
    let granted = granted(&torpor::rights_of_chart(&tools.bin("helm"), Path::new(CHART))?)?;
    let record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    let covers = |right: &Right, use_: &Right| {
        (&use_.component, &use_.verb, &use_.resource) == (&right.component, &right.verb, &right.resource)
            && (right.name.is_empty() || right.name == use_.name)
            && (right.namespace.is_empty() || right.namespace == use_.namespace)
    };
    let used = |right: &&Right| record.used.iter().any(|use_| covers(right, use_));
    // An API server that has just started does not know roles yet, and a release that is uninstalled has none left.
    let missing: Vec<&String> = record
        .forbidden
        .iter()
        .filter(|(use_, _)| !granted.iter().any(|right| covers(right, use_)))
        .map(|(_, what)| what)
        .chain(&record.denied)
        .take(20)
        .collect();
    let idle: Vec<String> = granted.iter().filter(|right| !used(right)).map(Right::to_string).collect();
    println!("rights: {} of {} that were given were used", granted.len() - idle.len(), granted.len());
    if granted.is_empty() || !idle.is_empty() || !missing.is_empty() {
        return Err(format!("given and never used: {idle:#?}; asked for and refused: {missing:#?}"));
    }
    Ok(())
}
