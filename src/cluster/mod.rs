//! The only room with a kube Client: applying, watching, deleting, and writing status and events.

pub mod apply;
pub mod breaker;
pub mod client;
pub mod error;
pub mod events;
pub mod history;
pub mod index;
pub mod listed;
pub mod nodes;
pub mod ownership;
mod pods;
pub mod read;
pub mod reviews;
pub mod status;
pub mod watch;

use std::fmt::Debug;
use std::sync::Arc;

use kube::{Api, Client, Resource};

use self::client::Connection;
use self::history::History;
use crate::http::probes::Health;
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;

/// Everything that the operator does with the API server.
pub struct Cluster {
    client: Client,
    history: History,
    metrics: Metrics,
    /// What is known of children.
    pub index: Arc<index::ChildIndex>,
    /// What is wanted, as far as a list alone tells of it.
    pub listed: Arc<listed::Listed>,
    /// Nodes and `PriorityClasses`.
    pub nodes: nodes::Nodes,
    /// Writes children.
    pub applier: apply::Applier,
    /// Writes status and finalizers.
    pub status: status::StatusWriter,
    /// Publishes Events.
    pub events: events::Events,
    /// Reads what a spec refers to.
    pub reader: read::Reader,
}

impl Cluster {
    /// The cluster behind the connection of a component, whose name is its field manager; every write asks `leader` first.
    pub fn new(component: &'static str, connection: Connection, metrics: &Metrics, leader: &LeaderGuard) -> Self {
        let Connection { client, history } = connection;
        let index = Arc::new(index::ChildIndex::default());
        let listed = Arc::new(listed::Listed::new(client.clone()));
        Cluster {
            metrics: metrics.clone(),
            nodes: nodes::Nodes::new(client.clone(), metrics.clone(), leader.clone()),
            applier: apply::Applier::new(
                client.clone(),
                index.clone(),
                listed.clone(),
                metrics.clone(),
                leader.clone(),
            ),
            status: status::StatusWriter::new(component, client.clone(), metrics.clone(), leader.clone()),
            events: events::Events::new(component, client.clone(), metrics.clone(), leader.clone()),
            reader: read::Reader::new(client.clone()),
            index,
            listed,
            client,
            history,
        }
    }

    /// Asks who callers are and what they may do.
    pub fn reviewer(&self) -> reviews::Reviewer {
        reviews::Reviewer::new(self.client.clone())
    }

    /// Watches over this cluster.
    pub fn watches(&self, health: Health) -> watch::Watches {
        watch::Watches::new(self.client.clone(), self.history.clone(), health, self.metrics.clone())
    }

    /// Where the breaker of this namespace is kept.
    pub fn breaker(&self, namespace: &str) -> breaker::BreakerStore {
        breaker::BreakerStore::new(self.client.clone(), namespace)
    }

    /// All objects of a kind, over all namespaces.
    pub fn all<K: Resource<DynamicType = ()> + Debug>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }
}
