//! What kwok leaves undone. A kubelet tries again; kwok plays each part once, and again only when the object has changed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::request::text;

/// Longer than kwok takes for a part that it has not forgotten. Reminded of one that it is about to play, it would play it
/// twice, and what it ends it ends by name: the pod that has come in the meantime.
const EVERY: Duration = Duration::from_secs(3);

/// Reminds kwok of pods and claims that wait for it.
#[derive(Debug, Default)]
pub struct Reminder {
    looked: Option<Instant>,
    /// The uids of what waited then.
    waiting: BTreeSet<String>,
}

impl Reminder {
    /// Changes what has waited since the last look, and changes it back, if it is time. What fails is tried again the next time.
    pub async fn remind(&mut self, api: &Api) {
        if self.looked.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let before = std::mem::take(&mut self.waiting);
        for list in ["/api/v1/pods", "/api/v1/persistentvolumeclaims"] {
            for object in api.list(list).await.unwrap_or_default().iter().filter(|object| waits(object)) {
                let uid = text(&object["metadata"]["uid"]);
                if before.contains(&uid) {
                    touch(api, &path_of(list, object)).await;
                }
                self.waiting.insert(uid);
            }
        }
    }
}

async fn touch(api: &Api, path: &str) {
    for mark in [json!(""), Value::Null] {
        let change = json!({"metadata": {"annotations": {"chaos.torpor.dev/again": mark}}});
        // It may be gone by now.
        let _ = api.patch(path, &change).await;
    }
}

/// Pods that a node has to start or to end, claims without a volume.
fn waits(object: &Value) -> bool {
    let ends = !object["metadata"]["deletionTimestamp"].is_null();
    let begins =
        object["status"]["phase"] == "Pending" && (object["kind"] != "Pod" || object["spec"]["nodeName"].is_string());
    ends || begins
}

fn path_of(list: &str, object: &Value) -> String {
    let (plural, metadata) = (list.trim_start_matches("/api/v1/"), &object["metadata"]);
    format!("/api/v1/namespaces/{}/{plural}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}
