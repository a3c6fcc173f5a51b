//! Whether the cluster still goes forward.
//!
//! Versions of Kubernetes grow for as long as etcd lives. When etcd is set back to an older snapshot they begin again at
//! that snapshot's, and a watch that goes on from a version of the lost future is told nothing until that version comes
//! again: it is blind, and looks well. Everything that was remembered is newer than what there is. So a process that
//! notices it ends, and the next one reads everything anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Uri;
use tokio::sync::watch;

/// The versions that watches were asked to go on from, and whether the cluster is at an older one.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By the path of the collection: some clusters keep one kind in an etcd of its own.
    asked: Mutex<HashMap<String, u64>>,
    set_back: watch::Sender<Option<String>>,
}

impl History {
    fn asked(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        // Every change under this lock is a single insert, so a panic elsewhere leaves it whole.
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request: a watch says from where it goes on.
    pub fn note(&self, uri: &Uri) {
        let mut pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        if !pairs.clone().any(|pair| pair == ("watch", "true")) {
            return;
        }
        let version: Option<u64> =
            pairs.find(|(key, _)| *key == "resourceVersion").and_then(|(_, value)| value.parse().ok());
        if let Some(version) = version {
            let mut asked = self.asked();
            let newest = asked.entry(uri.path().to_owned()).or_default();
            *newest = version.max(*newest);
        }
    }

    /// The newest version from which a watch of this collection was to go on; 0 before there was one.
    pub fn newest(&self, path: &str) -> u64 {
        self.asked().get(path).copied().unwrap_or_default()
    }

    /// Whether the cluster, which is at this version of the collection by a list that had to be up to date, is where watches were
    /// before it was asked. Where it is not, whoever waits for [`History::set_back`] is told.
    pub fn goes_on(&self, path: &str, newest: u64, version: u64) -> bool {
        if version >= newest {
            return true;
        }
        let text =
            format!("{path} went back from version {newest} to {version}: an older state of the cluster was restored");
        self.0.set_back.send_if_modified(|told| told.is_none() && told.replace(text).is_none());
        false
    }

    /// Resolves once the cluster has been set back, with how that was seen.
    pub async fn set_back(&self) -> String {
        let mut told = self.0.set_back.subscribe();
        loop {
            if let Some(text) = told.borrow_and_update().clone() {
                return text;
            }
            // The sender lives as long as this history.
            let _ = told.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn note(history: &History, uri: &str) {
        history.note(&uri.parse().expect("a URI"));
    }

    #[test]
    fn older_than_a_watch_has_been_is_set_back() {
        let history = History::default();
        note(&history, "/api/v1/pods?watch=true&resourceVersion=70&allowWatchBookmarks=true");
        note(&history, "/api/v1/pods?resourceVersion=70&watch=true&labelSelector=a");
        note(&history, "/api/v1/pods?watch=true&resourceVersion=60");
        note(&history, "/api/v1/pods?limit=50&resourceVersion=90");
        let at = |path: &str, version: u64| history.goes_on(path, history.newest(path), version);
        assert!(at("/api/v1/nodes", 1), "another kind may be kept elsewhere");
        assert!(at("/api/v1/pods", 70));
        let before = history.newest("/api/v1/pods");
        note(&history, "/api/v1/pods?watch=true&resourceVersion=80");
        assert!(history.goes_on("/api/v1/pods", before, 75), "a watch that opened while the cluster was asked");
        assert!(history.set_back().now_or_never().is_none());
        assert!(!at("/api/v1/pods", 79));
        assert!(!at("/api/v1/pods", 78));
        let told = history.set_back().now_or_never().expect("told");
        assert!(told.starts_with("/api/v1/pods went back from version 80 to 79"), "{told}");
    }
}
