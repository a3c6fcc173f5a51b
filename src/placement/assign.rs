//! From the selectors of all pools and the labels of all nodes to members, disputes and marks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::domain::names::label;

/// A taint as far as pools care.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When Kubernetes put it there, which it notes of its own; those of others are written back as they are.
    pub time_added: Option<Timestamp>,
}

impl Taint {
    /// Whether both say the same to the scheduler.
    fn says(&self, other: &Taint) -> bool {
        (&self.key, &self.value, &self.effect) == (&other.key, &other.value, &other.effect)
    }
}

/// What the operator itself put on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The pool label has this value by the operator's hand.
    pub label: Option<String>,
    /// The pool taint has this value by the operator's hand.
    pub taint: Option<String>,
}

impl Marks {
    /// Reads the annotation's form, `label=<pool>,taint=<pool>`.
    pub fn parse(text: &str) -> Self {
        let mut marks = Marks::default();
        for (key, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            match key {
                "label" => marks.label = Some(value.to_owned()),
                "taint" => marks.taint = Some(value.to_owned()),
                // Written by a later version; it is that version's to remove.
                _ => {}
            }
        }
        marks
    }

    /// The annotation's form; `None` when there is nothing to remember.
    pub fn format(&self) -> Option<String> {
        let label = self.label.iter().map(|pool| format!("label={pool}"));
        let taint = self.taint.iter().map(|pool| format!("taint={pool}"));
        let parts: Vec<String> = label.chain(taint).collect();
        if parts.is_empty() { None } else { Some(parts.join(",")) }
    }
}

/// A node as far as pools care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its resource version, for writes that must not overwrite others'.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// What the operator put there.
    pub marks: Marks,
    /// Whether it is ready for pods.
    pub ready: bool,
    /// Allocatable CPU in millicores.
    pub cpu: i64,
    /// Allocatable memory in bytes.
    pub memory: i64,
    /// Allocatable pods.
    pub pods: i64,
    /// Whether its runtime says that it supports user namespaces; `None` when it says nothing.
    pub user_namespaces: Option<bool>,
}

/// A pool as far as nodes care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Labels that find its nodes.
    pub selector: BTreeMap<String, String>,
    /// Whether its nodes get a taint.
    pub dedicated: bool,
}

/// A change to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The node.
    pub node: String,
    /// The version of the node that the change was computed from.
    pub version: String,
    /// The pool label: `Some(None)` removes it, `None` leaves it alone.
    pub label: Option<Option<String>>,
    /// The value of the pool label that the node loses.
    pub loses: Option<String>,
    /// All taints of the node, where they change.
    pub taints: Option<Vec<Taint>>,
    /// What is to be remembered.
    pub marks: Marks,
}

/// Who has which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Nodes of each pool.
    pub members: BTreeMap<String, BTreeSet<String>>,
    /// For each pool, the nodes it wants and cannot have, with the reason.
    pub disputes: BTreeMap<String, Vec<String>>,
    /// What must be written.
    pub edits: Vec<Edit>,
}

/// The taint's effect: running pods of others stay, new ones go elsewhere.
const EFFECT: &str = "NoSchedule";

/// Distributes nodes over pools. A node that two pools claim is left as it is and reported to both; one that is marked for a pool
/// that cannot be read (`unread`) is left as it is.
pub fn assign(pools: &[Pool], unread: &BTreeSet<String>, nodes: &[Node]) -> Assignment {
    let mut result = Assignment::default();
    for pool in pools {
        result.members.entry(pool.name.clone()).or_default();
    }
    let of_unread =
        |node: &Node| [&node.marks.label, &node.marks.taint].into_iter().flatten().any(|pool| unread.contains(pool));
    for node in nodes {
        let claims: Vec<&Pool> = pools.iter().filter(|pool| matches(pool, node)).collect();
        if of_unread(node) {
            for pool in claims {
                dispute(&mut result, pool, format!("node {} is marked for a pool that cannot be read", node.name));
            }
            continue;
        }
        match claims.as_slice() {
            [] => result.edits.extend(edit(node, None)),
            [pool] => match foreign_label(pool, node) {
                None => {
                    result.members.entry(pool.name.clone()).or_default().insert(node.name.clone());
                    result.edits.extend(edit(node, Some(pool)));
                }
                Some(value) => dispute(
                    &mut result,
                    pool,
                    format!("node {} carries {}={value}, set by somebody else", node.name, label::POOL),
                ),
            },
            several => {
                let names: Vec<&str> = several.iter().map(|pool| pool.name.as_str()).collect();
                for pool in several {
                    let message = format!("node {} is claimed by {}", node.name, names.join(" and "));
                    dispute(&mut result, pool, message);
                }
            }
        }
    }
    result
}

fn dispute(result: &mut Assignment, pool: &Pool, message: String) {
    result.disputes.entry(pool.name.clone()).or_default().push(message);
}

fn matches(pool: &Pool, node: &Node) -> bool {
    pool.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
}

/// A pool label with another value that the operator did not put there.
fn foreign_label<'a>(pool: &Pool, node: &'a Node) -> Option<&'a str> {
    let value = node.labels.get(label::POOL).filter(|value| **value != pool.name)?;
    (node.marks.label.as_ref() != Some(value)).then_some(value.as_str())
}

fn edit(node: &Node, pool: Option<&Pool>) -> Option<Edit> {
    let present = node.labels.get(label::POOL);
    let mut marks = node.marks.clone();
    let mut new_label = None;
    match pool {
        Some(pool) if present != Some(&pool.name) => {
            new_label = Some(Some(pool.name.clone()));
            marks.label = Some(pool.name.clone());
        }
        Some(_) => {}
        None => {
            if marks.label.is_some() && marks.label.as_ref() == present {
                new_label = Some(None);
            }
            marks.label = None;
        }
    }
    let wanted = pool.filter(|pool| pool.dedicated).map(|pool| Taint {
        key: label::POOL.to_owned(),
        value: pool.name.clone(),
        effect: EFFECT.to_owned(),
        time_added: None,
    });
    let kept = |taint: &Taint| wanted.as_ref().is_some_and(|wanted| wanted.says(taint));
    let ours = |taint: &Taint| {
        taint.key == label::POOL && taint.effect == EFFECT && marks.taint.as_ref() == Some(&taint.value)
    };
    let mut taints: Vec<Taint> = node.taints.iter().filter(|taint| !ours(taint) || kept(taint)).cloned().collect();
    match wanted {
        Some(taint) if !taints.iter().any(|present| present.says(&taint)) => {
            marks.taint = Some(taint.value.clone());
            taints.push(taint);
        }
        Some(_) => {}
        None => marks.taint = None,
    }
    let new_taints = (taints != node.taints).then_some(taints);
    if new_label.is_none() && new_taints.is_none() && marks == node.marks {
        return None;
    }
    let loses = present.filter(|_| new_label.is_some()).cloned();
    let (node, version) = (node.name.clone(), node.version.clone());
    Some(Edit { node, version, label: new_label, loses, taints: new_taints, marks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(pools: &[Pool], nodes: &[Node]) -> Assignment {
        super::assign(pools, &BTreeSet::new(), nodes)
    }

    fn pool(name: &str, selector: &[(&str, &str)], dedicated: bool) -> Pool {
        let selector = selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Pool { name: name.to_owned(), selector, dedicated }
    }

    fn node(name: &str, labels: &[(&str, &str)]) -> Node {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Node { name: name.to_owned(), labels, ..Node::default() }
    }

    fn taint(key: &str, value: &str, time_added: Option<Timestamp>) -> Taint {
        Taint { key: key.to_owned(), value: value.to_owned(), effect: EFFECT.to_owned(), time_added }
    }

    /// The node after an edit.
    fn written(node: &Node, edit: &Edit) -> Node {
        let mut node = node.clone();
        match &edit.label {
            Some(Some(value)) => {
                node.labels.insert(label::POOL.to_owned(), value.clone());
            }
            Some(None) => {
                node.labels.remove(label::POOL);
            }
            None => {}
        }
        if let Some(taints) = &edit.taints {
            node.taints.clone_from(taints);
        }
        node.marks = Marks::parse(&edit.marks.format().unwrap_or_default());
        node
    }

    #[test]
    fn labelled_nodes_are_adopted_without_a_write() {
        let pools = [pool("worker-low", &[(label::POOL, "worker-low")], false)];
        let result = assign(&pools, &[node("n1", &[(label::POOL, "worker-low")]), node("n2", &[])]);
        assert_eq!(result.members["worker-low"].len(), 1);
        assert!(result.edits.is_empty() && result.disputes.is_empty());
    }

    #[test]
    fn marks_are_put_and_taken_away_again() {
        let pools = [pool("big", &[("node.kind", "big")], true)];
        let mut other = node("n1", &[("node.kind", "big")]);
        other.taints.push(taint("spot", "", Some(Timestamp::UNIX_EPOCH)));
        other.taints.push(Taint { effect: "NoExecute".to_owned(), ..taint(label::POOL, "big", None) });
        let put = assign(&pools, std::slice::from_ref(&other));
        let marked = written(&other, &put.edits[0]);
        assert_eq!(marked.labels[label::POOL], "big");
        assert_eq!(put.edits[0].loses, None);
        assert_eq!(marked.taints.len(), 3);
        assert!(assign(&pools, std::slice::from_ref(&marked)).edits.is_empty(), "settled after one write");
        let undedicated = [pool("big", &[("node.kind", "big")], false)];
        let freed = written(&marked, &assign(&undedicated, std::slice::from_ref(&marked)).edits[0]);
        assert_eq!((freed.taints.len(), freed.labels.contains_key(label::POOL)), (2, true));
        let renamed = [pool("large", &[("node.kind", "big")], true)];
        assert_eq!(assign(&renamed, std::slice::from_ref(&marked)).edits[0].loses.as_deref(), Some("big"));
        let end = assign(&[], std::slice::from_ref(&marked));
        assert_eq!(end.edits[0].loses.as_deref(), Some("big"));
        let clean = written(&marked, &end.edits[0]);
        assert_eq!(clean, other, "nothing of ours is left, and nothing of others is gone");
    }

    #[test]
    fn nodes_of_a_pool_that_cannot_be_read_stay_its() {
        let big = [pool("big", &[("node.kind", "big")], true)];
        let bare = node("n1", &[("node.kind", "big")]);
        let marked = written(&bare, &assign(&big, std::slice::from_ref(&bare)).edits[0]);
        let rival = [pool("rival", &[("node.kind", "big")], true)];
        for others in [&[][..], &rival] {
            let left = super::assign(others, &["big".to_owned()].into(), std::slice::from_ref(&marked));
            assert!(left.edits.is_empty() && left.members.values().all(BTreeSet::is_empty), "{left:?}");
            assert_eq!(left.disputes.len(), others.len(), "who claims it is told");
        }
    }

    #[test]
    fn labels_and_taints_of_others_stay() {
        let mut theirs = node("n1", &[(label::POOL, "x")]);
        theirs.taints.push(taint(label::POOL, "x", None));
        assert!(assign(&[], std::slice::from_ref(&theirs)).edits.is_empty());
        let pools = [pool("big", &[("node.kind", "big")], false)];
        theirs.labels.insert("node.kind".to_owned(), "big".to_owned());
        let result = assign(&pools, std::slice::from_ref(&theirs));
        assert!(result.edits.is_empty());
        assert!(result.disputes["big"][0].contains("set by somebody else"));
    }

    #[test]
    fn a_disputed_node_is_left_alone_and_explained_to_both() {
        let pools = [pool("a", &[("k", "v")], true), pool("b", &[("l", "w")], false)];
        let result = assign(&pools, &[node("n1", &[("k", "v"), ("l", "w")])]);
        assert!(result.edits.is_empty());
        assert_eq!(result.disputes["a"], ["node n1 is claimed by a and b"]);
        assert_eq!(result.disputes["b"], result.disputes["a"]);
    }
}
