//! Pods and workloads at every moment, as a watch past the proxy tells them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::request::text;
use crate::watches::Lines;

/// What a watch told of one object at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub change: String,
    /// `Pod`, `StatefulSet` or `Deployment`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// uid.
    pub uid: String,
    /// Value of `app.kubernetes.io/component`.
    pub component: String,
    /// Fleet and ordinal of a bot.
    pub bot: Option<(String, String)>,
    /// Wanted replicas of a workload.
    pub replicas: i64,
    /// Whether the pod has ended.
    pub ended: bool,
    /// The grace that a pod was given once it was asked to stop.
    pub grace: Option<i64>,
}

/// What was seen, by namespace.
type History = Arc<Mutex<BTreeMap<String, Vec<Seen>>>>;

/// Watches until it is dropped.
pub struct Observer {
    history: History,
    watching: Vec<JoinHandle<()>>,
}

impl Observer {
    /// Starts watching.
    pub fn start(api: &Api) -> Self {
        let history = History::default();
        let paths = ["/api/v1/pods", "/apis/apps/v1/statefulsets", "/apis/apps/v1/deployments"];
        let watching = paths.map(|path| tokio::spawn(watch(api.clone(), path, history.clone())));
        Self { history, watching: watching.into() }
    }

    /// How much was seen in a namespace.
    pub fn mark(&self, namespace: &str) -> usize {
        self.lock().get(namespace).map_or(0, Vec::len)
    }

    /// What was seen in a namespace, all of it.
    pub fn seen(&self, namespace: &str) -> Vec<Seen> {
        self.lock().get(namespace).cloned().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Seen>>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.watching.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(api: Api, path: &str, history: History) {
    let mut version = String::new();
    loop {
        let from = if version.is_empty() { String::new() } else { format!("&resourceVersion={version}") };
        let question = format!("{path}?watch=true&allowWatchBookmarks=true{from}");
        if let Ok(mut answer) = api.watch(&question).await {
            let mut lines = Lines::default();
            while let Ok(Some(chunk)) = answer.chunk().await {
                for line in lines.push(&chunk) {
                    let Ok(frame) = serde_json::from_slice::<Value>(&line) else { continue };
                    version = text(&frame["object"]["metadata"]["resourceVersion"]);
                    if let Some((namespace, seen)) = read(&frame) {
                        let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
                        history.entry(namespace).or_default().push(seen);
                    }
                }
            }
        } else {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn read(frame: &Value) -> Option<(String, Seen)> {
    let change = text(&frame["type"]);
    let (object, metadata) = (&frame["object"], &frame["object"]["metadata"]);
    if !matches!(change.as_str(), "ADDED" | "MODIFIED" | "DELETED") {
        return None;
    }
    let name = text(&metadata["name"]);
    let labels = &metadata["labels"];
    let ordinal = name.rsplit('-').next().unwrap_or_default().to_owned();
    let component = text(&labels["app.kubernetes.io/component"]);
    let bot = (component == "bot").then(|| (text(&labels["torpor.dev/fleet"]), ordinal));
    let seen = Seen {
        change,
        kind: text(&object["kind"]),
        uid: text(&metadata["uid"]),
        component,
        bot,
        replicas: object["spec"]["replicas"].as_i64().unwrap_or_default(),
        ended: matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")),
        grace: metadata["deletionGracePeriodSeconds"].as_i64(),
        name,
    };
    Some((text(&metadata["namespace"]), seen))
}

/// Bots of which two pods lived at once, in one namespace. Two of one name are one after the other: there is never more than one at a
/// time, and a watch that begins anew has not told of the end of the first.
pub fn doubled(history: &[Seen]) -> Vec<String> {
    let mut alive: BTreeMap<(String, String), BTreeMap<String, String>> = BTreeMap::new();
    let mut found = Vec::new();
    for seen in history.iter().filter(|seen| seen.kind == "Pod") {
        let Some(bot) = &seen.bot else { continue };
        let pods = alive.entry(bot.clone()).or_default();
        if seen.change != "DELETED" && !seen.ended {
            pods.insert(seen.name.clone(), seen.uid.clone());
        } else if pods.get(&seen.name) == Some(&seen.uid) {
            pods.remove(&seen.name);
        }
        if pods.len() > 1 {
            found.push(format!("two pods of bot {}-{} at once: {pods:?}", bot.0, bot.1));
        }
    }
    found.dedup();
    found
}

/// Changes of how many pods a workload is to have: its name, before and after.
pub fn scalings(history: &[Seen], from: usize) -> Vec<(String, i64, i64)> {
    let mut now: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    let mut found = Vec::new();
    for (at, seen) in history.iter().enumerate() {
        if seen.kind == "Pod" || seen.change == "DELETED" {
            continue;
        }
        // One that is made anew around its pods goes on where the old one was.
        let before = now.insert(&seen.name, (seen.replicas, &seen.uid)).map_or(0, |(replicas, _)| replicas);
        if at >= from && before != seen.replicas {
            found.push((seen.name.clone(), before, seen.replicas));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame(change: &str, kind: &str, name: &str, uid: &str, replicas: i64) -> Seen {
        let labels = json!({"app.kubernetes.io/component": "bot", "torpor.dev/fleet": "a"});
        let metadata = json!({"namespace": "n", "name": name, "uid": uid, "labels": labels});
        let object = json!({"kind": kind, "metadata": metadata, "spec": {"replicas": replicas}});
        read(&json!({"type": change, "object": object})).expect("a frame").1
    }

    #[test]
    fn a_pod_that_comes_before_the_other_has_gone_is_one_too_many() {
        let pod = |change, name, uid| frame(change, "Pod", name, uid, 0);
        let after = [pod("ADDED", "bots-a-0", "1"), pod("DELETED", "bots-a-0", "1"), pod("ADDED", "bots-a-0", "2")];
        assert!(doubled(&after).is_empty());
        let untold = [pod("ADDED", "bots-a-0", "1"), pod("ADDED", "bots-a-0", "2"), pod("DELETED", "bots-a-0", "1")];
        assert!(doubled(&untold).is_empty(), "the watch began anew in between");
        let beside = [pod("ADDED", "bots-a-0", "1"), pod("ADDED", "other-a-0", "2"), pod("DELETED", "bots-a-0", "1")];
        assert_eq!(doubled(&beside).len(), 1);
    }

    #[test]
    fn scalings_are_told_from_a_moment_on() {
        let set = |change, replicas| frame(change, "StatefulSet", "bots-a", "1", replicas);
        let history = [set("ADDED", 2), set("MODIFIED", 2), set("MODIFIED", 0), set("MODIFIED", 1)];
        assert_eq!(scalings(&history, 1), vec![("bots-a".to_owned(), 2, 0), ("bots-a".to_owned(), 0, 1)]);
    }
}
