//! One kind of write is refused for as long as a workflow takes, as by somebody's admission policy: the bots stop, sleep and run all
//! the same, the conditions say what is refused, and once it is not refused any more everything is as if it had never been.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::canonical::{self, Objects, SUBJECT};
use crate::oracle;
use crate::plan::{Action, Match, Plan, Rule};
use crate::request::{Request, text};
use crate::rig::Rig;
use crate::trial::{self, Course};
use crate::workflow::{self, Pods, Workflow};

/// Bots are where they are to be by then, and what is refused is told.
const LIMIT: Duration = Duration::from_secs(60);
/// More often is a loop. It is tried at once, ever more seldom after a failure, and whenever a watch tells of the object: some four times a
/// second while the bots of a tenant are replaced one by one, which takes twenty.
const OFTEN: usize = 150;
/// Afterwards: a started process does all that is left.
const HEALED: Duration = Duration::from_secs(60);
/// One process in so many is not started again, and finds by itself that nothing is refused any more.
const PATIENT: u64 = 8;
/// It tries again each minute.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a bot's start has to do with what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No bot of the tenant may start without it: its place, its passwords, its rights, and what keeps others away from it.
    Never,
    /// Some start, others do not: configuration and volumes, what they connect to at its full size, and the promise to stop them one day.
    Depends,
    /// They start all the same.
    Nothing,
}

fn need(refused: &Request) -> Need {
    match (refused.resource.as_str(), refused.subresource.as_str()) {
        ("namespaces" | "secrets" | "serviceaccounts", _) => Need::Never,
        ("networkpolicies", _) if refused.name == "default" => Need::Never,
        // Who cannot be told that it sleeps does not fall asleep.
        ("tenants", "" | "status")
        | ("configmaps" | "statefulsets" | "botfleets" | "persistentvolumeclaims" | "pods", "") => Need::Depends,
        _ => Need::Nothing,
    }
}

/// The request of an undisturbed run, as it is for this subject.
fn of_subject(request: &Request, subject: &str) -> Request {
    Request {
        name: request.name.replace(SUBJECT, subject),
        namespace: request.namespace.replace(SUBJECT, subject),
        ..request.clone()
    }
}

/// How many pods of bots live, by fleet.
fn bots<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for object in objects.filter(|object| object["kind"] == "Pod" && object["metadata"]["deletionTimestamp"].is_null())
    {
        let labels = &object["metadata"]["labels"];
        if labels["app.kubernetes.io/component"] == "bot" {
            *found.entry(text(&labels["torpor.dev/fleet"])).or_default() += 1;
        }
    }
    found
}

/// Whether as many bots live as are to: where starting needs what is refused, or running ones are to change, as before will do.
fn right(workflow: &Workflow, refused: &Request, before: &Objects, wanted: &Objects, found: &[Value]) -> bool {
    let (before, wanted, found) = (bots(before.values()), bots(wanted.values()), bots(found.iter()));
    let need = need(refused);
    // What was there already is not needed anew.
    let starting = before.values().sum::<usize>() == 0;
    let status = (refused.resource.as_str(), refused.subresource.as_str()) == ("tenants", "status");
    let count = |of: &BTreeMap<String, usize>, fleet: &String| of.get(fleet).copied().unwrap_or_default();
    before.keys().chain(wanted.keys()).chain(found.keys()).all(|fleet| {
        let (old, new, now) = (count(&before, fleet), count(&wanted, fleet), count(&found, fleet));
        match workflow.pods {
            Pods::Stop => now == new || status && now == old,
            Pods::Start if starting && need == Need::Never => now == old,
            Pods::Start | Pods::Any => now == new || need != Need::Nothing && now == old,
        }
    })
}

/// Whether a condition says that this is refused.
fn is_told(objects: &[Value], refused: &Request) -> bool {
    let own = |object: &&Value| matches!(object["kind"].as_str(), Some("Tenant" | "BotFleet" | "WorkerPool"));
    let conditions =
        objects.iter().filter(own).flat_map(|own| own["status"]["conditions"].as_array().into_iter().flatten());
    conditions
        .filter(|condition| condition["reason"] == "Refused")
        .any(|condition| text(&condition["message"]).contains(&refused.name))
}

/// A NetworkPolicy that may not be deleted keeps no Tenant from going, and stays for its successor.
fn may_stay(refused: &Request, difference: &str) -> bool {
    let policy = format!("/{} is too many", refused.name);
    refused.verb == "delete"
        && refused.resource == "networkpolicies"
        && difference.starts_with("NetworkPolicy ")
        && difference.ends_with(&policy)
}

/// What of this cannot be told: the status itself, and Events, which only tell.
fn is_telling(refused: &Request) -> bool {
    refused.subresource == "status" || refused.resource == "events"
}

/// Runs a workflow for a subject that is where it begins, with every request like this one refused until all is settled. Returns
/// what is wrong, and whether the request came.
pub async fn run(
    rig: &mut Rig,
    workflow: &Workflow,
    subject: &str,
    refused: &Request,
    expected: &Course,
) -> Result<(Vec<String>, bool)> {
    let refused = of_subject(refused, subject);
    let number = rig.proxy.count();
    let namespace = workflow::namespace(subject);
    let seen = rig.observer.mark(&namespace);
    let before = Box::pin(workflow::objects(&rig.api, workflow, subject)).await?;
    let answer = Action::Answer { code: 403, reason: "Forbidden".to_owned(), retry_after: None };
    rig.proxy.set(Plan::new(vec![Rule { of: Match::like(&refused), nth: None, every: None, action: answer }]));
    rig.ask(workflow.step, subject).await?;

    let mut wrong = Vec::new();
    let was = canonical::objects(before.clone(), subject);
    let end = Instant::now() + LIMIT;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if let Some(code) = rig.restart_if_ended().await? {
            wrong.push(format!("the operator ended by itself with {code}"));
            break;
        }
        let found = Box::pin(workflow::objects(&rig.api, workflow, subject)).await?;
        let reached = workflow.goal.is_reached(&rig.api, subject).await?;
        let quiet = rig.proxy.quiet(number, |request| trial::is_about(request, workflow, subject)) > Some(trial::QUIET);
        let told = reached || is_telling(&refused) || is_told(&found, &refused);
        let right = right(workflow, &refused, &was, &expected.objects, &found);
        if told && right && quiet {
            break;
        }
        if Instant::now() > end {
            if !told {
                wrong.push("no condition says that it is refused".to_owned());
            }
            if !right {
                wrong.push(format!("{:?} bots run while it is refused", bots(found.iter())));
            }
            break;
        }
    }
    let tries = rig.proxy.met();
    if tries > OFTEN {
        wrong.push(format!("it is tried {tries} times"));
    }

    // A status that is refused is tried ever more seldom, at last after five minutes.
    let patient = !is_telling(&refused)
        && torpor_cluster::hash(&[&refused.resource, &refused.verb, workflow.name]).is_multiple_of(PATIENT);
    if patient {
        rig.proxy.set(Plan::default());
    } else {
        rig.restart(Plan::default()).await?;
    }
    // A wake that ends with something refused is told of nowhere.
    let lasting = |objects: canonical::Objects| canonical::without(objects, &[("status", "wake")]);
    let expected = lasting(expected.objects.clone());
    let end = Instant::now() + if patient { PATIENCE } else { HEALED };
    let found = loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let found = Box::pin(workflow::objects(&rig.api, workflow, subject)).await?;
        let mut differences = canonical::differences(&expected, &lasting(canonical::objects(found.clone(), subject)));
        differences.retain(|difference| !may_stay(&refused, difference));
        if differences.is_empty() || Instant::now() > end {
            wrong.extend(differences);
            break found;
        }
    };
    let mut records = rig.proxy.since(number);
    records.retain(|record| trial::is_about(&record.request, workflow, subject));
    wrong.extend(oracle::requests(&records, workflow));
    wrong.extend(oracle::order(&records));
    wrong.extend(oracle::pods(&rig.observer.seen(&namespace), seen, workflow));
    wrong.extend(oracle::data_lost(&oracle::data(&before), &oracle::data(&found), workflow));
    Ok((wrong, tries > 0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> Value {
        let labels = json!({"app.kubernetes.io/component": "bot", "torpor.dev/fleet": "a"});
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": "tenant-c-1", "labels": labels}})
    }

    fn named(name: &str) -> &'static Workflow {
        workflow::ALL.iter().find(|workflow| workflow.name == name).expect("a workflow")
    }

    #[test]
    fn bots_that_run_on_are_wrong_where_they_are_to_stop() {
        let refused = |resource: &str| Request { resource: resource.into(), ..Request::default() };
        let running = vec![pod("bots-a-0")];
        let objects = canonical::objects(running.clone(), "c-1");
        let none = Objects::new();
        assert!(!right(named("sleep"), &refused("statefulsets"), &objects, &none, &running));
        assert!(right(named("sleep"), &refused("statefulsets"), &objects, &none, &[]));
        assert!(!right(named("wake"), &refused("services"), &none, &objects, &[]));
        assert!(right(named("wake"), &refused("secrets"), &none, &objects, &[]));
        assert!(!right(named("create"), &refused("secrets"), &none, &objects, &running), "without passwords");
        assert!(right(named("create"), &refused("statefulsets"), &none, &objects, &[]));
        assert!(!right(named("change-spec"), &refused("configmaps"), &objects, &objects, &[]));
    }

    #[test]
    fn only_what_names_the_object_tells_of_it() {
        let refused = Request { name: "redis".into(), ..Request::default() };
        let tenant = |reason: &str, message: &str| {
            vec![json!({"kind": "Tenant", "status": {"conditions": [{"reason": reason, "message": message}]}})]
        };
        assert!(is_told(&tenant("Refused", "Service a/redis: no"), &refused));
        assert!(!is_told(&tenant("Refused", "Service a/dashboard: no"), &refused));
        assert!(!is_told(&tenant("Progressing", "Service a/redis"), &refused));
    }
}
