//! Settled tenants that nobody made: copies of one, put where the API server keeps its objects.
//!
//! The control plane of a machine with two processors takes forty minutes to make five thousand tenants, and none of that is
//! measured. A copy has names, uids, addresses and hashes of its own, and all else as it is; that nothing is missing is seen by the
//! operator that is started beside them, which has to find all of it as wanted.

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::try_join_all;
use serde_json::{Value, json};
use torpor_cluster::AuditEvent;

use crate::audit::agent;
use crate::requests::{APPLIED_HASH, Request, applied_hash};
use crate::world::{World, http_client};

const REGISTRY: &str = "/registry/";
const ADDRESSES: &str = "/registry/ipaddresses/";
const VOLUMES: &str = "/registry/persistentvolumes/";
const EVENTS: &str = "/registry/events/";
/// Operations that etcd takes in one transaction.
const AT_ONCE: usize = 128;
/// Copies that are written at the same time.
const BESIDE: usize = 8;
/// Where copies' Services have their addresses, one after the other: `10.200.0.0/16` is the range of the cluster.
const NETWORK: &str = "10.200";
const UID: usize = 36;

/// One tenant as etcd has it.
pub struct Template {
    name: String,
    /// Keys and objects.
    objects: Vec<(String, String)>,
    /// What the operator applied with a hash, as text.
    applied: Vec<(String, String)>,
    uids: Vec<String>,
    addresses: Vec<String>,
    /// Name, uids, addresses and hashes, in this order.
    patterns: AhoCorasick,
    taken: BTreeSet<String>,
    next_address: u16,
}

impl Template {
    /// Reads a settled tenant of a cluster that keeps its objects as JSON ([`World::start_readable`]). `events` are those of the time
    /// in which the operator made it, with what was sent.
    pub fn take(world: &World, tenant: &str, events: &[AuditEvent]) -> Result<Self> {
        let all = world.block_on(Etcd::of(world)?.read())?;
        let namespace = format!("tenant-{tenant}");
        let own = |key: &str, value: &str| {
            let place = key.contains(&format!("/{namespace}/")) || key.ends_with(&format!("/{namespace}"));
            let named = (key.starts_with(VOLUMES) || key.starts_with(ADDRESSES)) && value.contains(&namespace);
            !key.starts_with(EVENTS) && (place || named || key.ends_with(&format!("/tenants/{tenant}")))
        };
        let taken = all.iter().filter_map(|(key, _)| key.strip_prefix(ADDRESSES)).map(str::to_owned).collect();
        let objects: Vec<_> = all.into_iter().filter(|(key, value)| own(key, value)).collect();
        ensure!(!objects.is_empty(), "etcd knows nothing of {tenant}");
        ensure!(objects.len() <= AT_ONCE, "{tenant} has {} objects, more than etcd takes at once", objects.len());
        ensure!(objects.iter().all(|(_, value)| value.starts_with('{')), "what etcd has of {tenant} is not JSON");
        Self::of(tenant, objects, applied(events, &namespace)?, taken)
    }

    fn of(
        name: &str,
        objects: Vec<(String, String)>,
        applied: Vec<(String, String)>,
        taken: BTreeSet<String>,
    ) -> Result<Self> {
        let uids: BTreeSet<String> = objects.iter().flat_map(|(_, value)| uids_in(value)).collect();
        let uids = Vec::from_iter(uids);
        let addresses = objects.iter().filter_map(|(key, _)| key.strip_prefix(ADDRESSES));
        let addresses: Vec<String> = addresses.map(str::to_owned).collect();
        let own = uids.iter().chain(&addresses).map(String::as_str);
        let texts = std::iter::once(name).chain(own).chain(applied.iter().map(|(hash, _)| hash.as_str()));
        let patterns = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)?;
        Ok(Template { name: name.to_owned(), objects, applied, uids, addresses, patterns, taken, next_address: 0 })
    }

    /// Puts copies of these names beside it. They are there when this ends, though nobody may have heard of them.
    pub fn put(&mut self, world: &World, names: &[String]) -> Result<()> {
        let etcd = Etcd::of(world)?;
        let mut random = fastrand::Rng::new();
        ensure!(!names.contains(&self.name), "{} is the template", self.name);
        for some in names.chunks(BESIDE) {
            let copies: Vec<_> = some.iter().map(|name| self.copy(name, &mut random)).collect::<Result<_>>()?;
            // Each in one transaction: the garbage collector deletes what has no owner yet.
            world.block_on(try_join_all(copies.iter().map(|copy| etcd.write(copy))))?;
        }
        Ok(())
    }

    fn copy(&mut self, name: &str, random: &mut fastrand::Rng) -> Result<Vec<(String, String)>> {
        let mut texts = vec![name.to_owned()];
        texts.extend(self.uids.iter().map(|_| uid(random)));
        for _ in 0..self.addresses.len() {
            texts.push(self.address()?);
        }
        let known = texts.len();
        // What is hashed does not hold its own hash, nor anybody else's.
        texts.resize(known + self.applied.len(), String::new());
        for (index, (_, body)) in self.applied.iter().enumerate() {
            let body: Value = serde_json::from_str(&self.patterns.replace_all(body, &texts))?;
            texts[known + index] = applied_hash(&body);
        }
        let replaced = |text: &String| self.patterns.replace_all(text, &texts);
        Ok(self.objects.iter().map(|(key, value)| (replaced(key), replaced(value))).collect())
    }

    fn address(&mut self) -> Result<String> {
        loop {
            self.next_address = self.next_address.checked_add(1).context("no more addresses for Services")?;
            let [high, low] = self.next_address.to_be_bytes();
            let address = format!("{NETWORK}.{high}.{low}");
            if self.taken.insert(address.clone()) {
                return Ok(address);
            }
        }
    }
}

/// Hash and body of each object that was applied with one in a namespace, each hash once.
fn applied(events: &[AuditEvent], namespace: &str) -> Result<Vec<(String, String)>> {
    let here = |event: &&AuditEvent| {
        event.user_agent.starts_with(agent::OPERATOR) && (event.namespace == namespace || event.name == namespace)
    };
    let mut found = BTreeMap::new();
    for event in events.iter().filter(here) {
        let Some(request) = Request::of(event) else { continue };
        if let Some(hash) = request.body["metadata"]["annotations"][APPLIED_HASH].as_str() {
            request.check()?;
            found.insert(hash.to_owned(), request.body.to_string());
        }
    }
    Ok(found.into_iter().collect())
}

/// The texts of the form 8-4-4-4-12 hexadecimal digits.
fn uids_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let is_uid = |part: &[u8]| {
        part.iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
    };
    let found = text.as_bytes().windows(UID).enumerate().filter(move |(_, part)| is_uid(part));
    found.filter_map(|(start, _)| text.get(start..start + UID).map(str::to_owned))
}

fn uid(random: &mut fastrand::Rng) -> String {
    let digits: String = (0..32).map(|_| random.digit(16)).collect();
    format!("{}-{}-4{}-a{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..])
}

/// etcd's JSON gateway.
struct Etcd {
    http: reqwest::Client,
    url: String,
}

impl Etcd {
    fn of(world: &World) -> Result<Self> {
        let url = format!("http://127.0.0.1:{}/v3/kv", world.cluster.etcd_port()?);
        Ok(Self { http: http_client()?, url })
    }

    /// Everything that the API server keeps.
    async fn read(&self) -> Result<Vec<(String, String)>> {
        // The end of a prefix is the prefix with its last character one further.
        let range = json!({"key": STANDARD.encode(REGISTRY), "range_end": STANDARD.encode("/registry0")});
        let answer = self.ask("range", &range).await?;
        let found = answer["kvs"].as_array().context("etcd is empty")?;
        let text = |value: &Value| -> Result<String> {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default())?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        found.iter().map(|one| Ok((text(&one["key"])?, text(&one["value"])?))).collect()
    }

    async fn write(&self, objects: &[(String, String)]) -> Result<()> {
        let put = |(key, value): &(String, String)| json!({"requestPut": {"key": STANDARD.encode(key), "value": STANDARD.encode(value)}});
        let puts: Vec<Value> = objects.iter().map(put).collect();
        let answer = self.ask("txn", &json!({"success": puts})).await?;
        ensure!(answer["succeeded"] == true, "etcd refused copies: {answer}");
        Ok(())
    }

    async fn ask(&self, what: &str, body: &Value) -> Result<Value> {
        let answer = self.http.post(format!("{}/{what}", self.url)).body(body.to_string()).send().await?;
        Ok(serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        let owner = "0b9d1a52-7d0e-4b63-9e0b-0a5f4c1d2e3f";
        let mut body =
            json!({"kind": "Service", "metadata": {"namespace": "tenant-sample", "ownerReferences": [{"uid": owner}]}});
        let hash = applied_hash(&body);
        body["metadata"]["annotations"] = json!({APPLIED_HASH: hash});
        let stored = json!({
            "kind": "Service",
            "metadata": {"namespace": "tenant-sample", "annotations": {APPLIED_HASH: hash}, "ownerReferences": [{"uid": owner}]},
            "spec": {"clusterIP": "10.200.7.1"},
        });
        let objects = vec![
            ("/registry/services/specs/tenant-sample/redis".to_owned(), stored.to_string()),
            (format!("{ADDRESSES}10.200.7.1"), "{}".to_owned()),
        ];
        Template::of("sample", objects, vec![(hash, body.to_string())], ["10.200.0.1".to_owned()].into()).unwrap()
    }

    #[test]
    fn a_copy_has_a_name_and_hashes_of_its_own() {
        let copies = template().copy("other", &mut fastrand::Rng::with_seed(3)).unwrap();
        assert_eq!(copies[0].0, "/registry/services/specs/tenant-other/redis");
        assert_eq!(copies[1].0, format!("{ADDRESSES}10.200.0.2"), "10.200.0.1 is taken");
        let service: Value = serde_json::from_str(&copies[0].1).unwrap();
        assert_eq!(service["spec"]["clusterIP"], "10.200.0.2");
        let mut wanted = json!({"kind": "Service", "metadata": {"namespace": "tenant-other"}});
        wanted["metadata"]["ownerReferences"] = service["metadata"]["ownerReferences"].clone();
        assert_eq!(service["metadata"]["annotations"][APPLIED_HASH], applied_hash(&wanted));
        assert!(!copies[0].1.contains("0b9d1a52"), "a copy has an owner of its own");
    }

    #[test]
    fn uids_are_found_and_made() {
        let mut random = fastrand::Rng::with_seed(7);
        let (one, other) = (uid(&mut random), uid(&mut random));
        assert_ne!(one, other);
        let text = format!(r#"{{"uid":"{one}","name":"pvc-{other}","hash":"0123456789abcdef"}}"#);
        assert_eq!(uids_in(&text).collect::<Vec<_>>(), [one, other]);
    }
}
