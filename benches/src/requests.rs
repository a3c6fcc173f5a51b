//! What the operator sent for one tenant, taken from the audit log, and the same for any other tenant.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use torpor_cluster::AuditEvent;

use crate::audit::{agent, is_creation};

pub(crate) const APPLIED_HASH: &str = "torpor.dev/applied-hash";

/// One request that makes an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// `create` or `patch`, which is a server-side apply.
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// What is sent.
    pub body: Value,
}

/// Requests that follow one another; each waits for the answer of the one before, as the operator's do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Chain {
    /// In the operator's order.
    pub requests: Vec<Request>,
}

/// Everything that makes one tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recording {
    /// Name of the Tenant.
    pub tenant: String,
    /// The Tenant's uid, which its objects name as their owner.
    pub uid: String,
    /// What the pass over the Tenant sent.
    pub own: Chain,
    /// What the passes over its fleets sent, by the fleet's name.
    pub fleets: BTreeMap<String, Fleet>,
}

/// What the passes over one fleet sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fleet {
    /// The uid that the BotFleet had, which its objects name as their owner.
    pub uid: String,
    /// In the operator's order.
    pub chain: Chain,
}

impl Recording {
    /// From the audit log of a run in which the operator made this tenant. The bodies must be in it.
    pub fn find(events: &[AuditEvent], tenant: &str) -> Result<Self> {
        let namespace = format!("tenant-{tenant}");
        let mut recording = Recording { tenant: tenant.to_owned(), ..Self::default() };
        let ours = |event: &&AuditEvent| {
            let here = event.namespace == namespace || (event.resource == "namespaces" && event.name == namespace);
            event.user_agent.starts_with(agent::OPERATOR) && is_creation(event) && here
        };
        for event in events.iter().filter(ours) {
            let request = Request::of(event).with_context(|| format!("{} has no body", event.request_uri))?;
            request.check()?;
            let owner = &request.body["metadata"]["ownerReferences"][0];
            let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
            let uid = text("uid");
            match owner["kind"].as_str() {
                Some("BotFleet") => {
                    let fleet = recording.fleets.entry(text("name")).or_default();
                    fleet.uid = uid;
                    fleet.chain.requests.push(request);
                }
                Some(_) => {
                    recording.uid = uid;
                    recording.own.requests.push(request);
                }
                None => recording.own.requests.push(request),
            }
        }
        ensure!(!recording.uid.is_empty() && !recording.fleets.is_empty(), "nothing was recorded for {tenant}");
        Ok(recording)
    }

    /// The same for another tenant.
    pub fn for_tenant(&self, name: &str, uid: &str) -> Result<Self> {
        let change = |chain: &Chain| -> Result<Chain> {
            let chain = chain.replaced(&self.tenant, name)?;
            chain.replaced(&self.uid, uid)
        };
        let fleets = self
            .fleets
            .iter()
            .map(|(name, fleet)| Ok((name.clone(), Fleet { uid: fleet.uid.clone(), chain: change(&fleet.chain)? })));
        Ok(Recording {
            tenant: name.to_owned(),
            uid: uid.to_owned(),
            own: change(&self.own)?,
            fleets: fleets.collect::<Result<_>>()?,
        })
    }

    /// Number of objects.
    pub fn objects(&self) -> usize {
        self.own.requests.len() + self.fleets.values().map(|fleet| fleet.chain.requests.len()).sum::<usize>()
    }
}

impl Chain {
    /// The same with one text in place of another wherever it stands, and with the hashes that follow from that.
    pub fn replaced(&self, old: &str, new: &str) -> Result<Self> {
        let requests = self.requests.iter().map(|request| request.replaced(old, new));
        Ok(Chain { requests: requests.collect::<Result<_>>()? })
    }
}

impl Request {
    /// What was sent; `None` where the log does not have it.
    pub fn of(event: &AuditEvent) -> Option<Self> {
        let body = event.body.clone()?;
        let body = if event.verb == "create" { without_defaults(body) } else { body };
        Some(Request { verb: event.verb.clone(), uri: event.request_uri.clone(), body })
    }

    fn replaced(&self, old: &str, new: &str) -> Result<Self> {
        let mut body: Value = serde_json::from_str(&self.body.to_string().replace(old, new))?;
        if self.body["metadata"]["annotations"][APPLIED_HASH].is_string() {
            body["metadata"]["annotations"][APPLIED_HASH] = applied_hash(&body).into();
        }
        Ok(Request { verb: self.verb.clone(), uri: self.uri.replace(old, new), body })
    }

    /// A hash that comes out differently here would make the operator write every such object anew.
    pub fn check(&self) -> Result<()> {
        let Some(recorded) = self.body["metadata"]["annotations"][APPLIED_HASH].as_str() else { return Ok(()) };
        let computed = applied_hash(&self.body);
        ensure!(computed == recorded, "{}: hash {computed}, recorded {recorded}: {}", self.uri, self.body);
        Ok(())
    }
}

/// ARCHITECTURE.md, "How an unchanged object is recognised without a read".
pub(crate) fn applied_hash(body: &Value) -> String {
    let mut body = body.clone();
    if let Some(metadata) = body["metadata"].as_object_mut()
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(APPLIED_HASH);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let digest = Sha256::digest(body.to_string().as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The log shows objects that were created as the API server completed them; what nobody sent is taken out again.
fn without_defaults(mut body: Value) -> Value {
    if let Some(fields) = body.as_object_mut() {
        fields.remove("status");
        fields.retain(|_, value| !value.as_object().is_some_and(serde_json::Map::is_empty));
    }
    if let Some(metadata) = body["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("kubernetes.io/metadata.name");
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(verb: &str, name: &str, body: Value) -> AuditEvent {
        AuditEvent {
            user_agent: format!("{}0.1.0", agent::OPERATOR),
            verb: verb.into(),
            code: 201,
            resource: "things".into(),
            namespace: "tenant-sample".into(),
            request_uri: format!("/api/v1/namespaces/tenant-sample/things/{name}?force=true"),
            body: Some(body),
            ..AuditEvent::default()
        }
    }

    fn owned(kind: &str, uid: &str) -> Value {
        let mut body = json!({"metadata": {"namespace": "tenant-sample", "ownerReferences": [{"kind": kind, "name": "x", "uid": uid}]}});
        let hash = applied_hash(&body);
        body["metadata"]["annotations"][APPLIED_HASH] = hash.into();
        body
    }

    #[test]
    fn recordings_are_turned_into_those_of_others() {
        let events = [event("patch", "a", owned("Tenant", "u-1")), event("patch", "b", owned("BotFleet", "u-2"))];
        let other = Recording::find(&events, "sample").unwrap().for_tenant("t-7", "u-9").unwrap();
        assert_eq!((other.objects(), other.uid.as_str()), (2, "u-9"));
        let request = &other.own.requests[0];
        assert_eq!(request.uri, "/api/v1/namespaces/tenant-t-7/things/a?force=true");
        assert_eq!(request.body["metadata"]["ownerReferences"][0]["uid"], "u-9");
        request.check().unwrap();
        assert_eq!(other.fleets["x"].chain.requests[0].body["metadata"]["namespace"], "tenant-t-7");
    }

    #[test]
    fn hashes_that_differ_are_told() {
        let mut body = owned("Tenant", "u-1");
        body["data"] = "changed after it was hashed".into();
        assert!(Recording::find(&[event("patch", "a", body)], "sample").is_err());
    }
}
