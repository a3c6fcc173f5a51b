//! What a request asks for, read from its method, path and body as the API server would.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request to the API server in RBAC's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete` or `deletecollection`.
    pub verb: String,
    /// API group, empty for the core group.
    pub group: String,
    /// Resource in the plural; the whole path for what is not about a resource.
    pub resource: String,
    /// Subresource, mostly empty.
    pub subresource: String,
    /// Namespace, empty for what is cluster-wide.
    pub namespace: String,
    /// Name of the object. For an Event, whose own name is made up, what it is about, and why when it is created; for a pod of
    /// a Deployment the Deployment's.
    pub name: String,
    /// Whether it was asked for without storing anything.
    pub dry_run: bool,
    /// The label selector of a list or watch, decoded.
    pub selector: String,
}

/// The Deployment whose pod has this name: behind the name are the hash of its template and five characters, of an alphabet
/// without vowels.
fn of_deployment(pod: &str) -> Option<String> {
    let made_up = |part: &str| part.chars().all(|letter| "bcdfghjklmnpqrstvwxz2456789".contains(letter));
    let (rest, last) = pod.rsplit_once('-')?;
    let (name, hash) = rest.rsplit_once('-')?;
    (last.len() == 5 && made_up(last) && (6..=10).contains(&hash.len()) && made_up(hash)).then(|| name.to_owned())
}

/// What distinguishes one kind of watch from all others.
pub type WatchKey = (String, String, String);

impl Request {
    /// Reads a request. `content_type` tells an apply from a patch; `body` names what is created.
    pub fn read(method: &str, path_and_query: &str, content_type: &str, body: &Value) -> Self {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let value = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| decode(value)).unwrap_or_default()
        };
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", _version, rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => ("", &[][..]),
        };
        let (namespace, rest) = match rest {
            // A namespace is itself an object; its own subresources are two.
            ["namespaces", _, "status" | "finalize"] | ["namespaces", _] | ["namespaces"] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let at = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        let watching = matches!(value("watch").as_str(), "true" | "1");
        let named = !at(1).is_empty();
        let verb = match method {
            "GET" | "HEAD" if watching => "watch",
            "GET" | "HEAD" if named || rest.is_empty() => "get",
            "GET" | "HEAD" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" if content_type.starts_with("application/apply-patch") => "apply",
            "PATCH" => "patch",
            "DELETE" if named => "delete",
            "DELETE" => "deletecollection",
            other => other,
        };
        let resource = if rest.is_empty() { path.to_owned() } else { at(0) };
        let name = if resource == "events" && verb == "create" {
            about(body)
        } else if resource == "events" {
            // The name that was made up is its last part.
            at(1).rsplit_once('.').map(|(about, _)| about.to_owned()).unwrap_or_default()
        } else if resource == "pods" {
            of_deployment(&at(1)).unwrap_or_else(|| at(1))
        } else if named {
            at(1)
        } else {
            text(&body["metadata"]["name"])
        };
        Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource,
            subresource: at(2),
            namespace: namespace.to_owned(),
            name,
            dry_run: !value("dryRun").is_empty(),
            selector: value("labelSelector"),
        }
    }

    /// Whether it can change what the API server stores.
    pub fn is_write(&self) -> bool {
        !self.dry_run && !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.is_review()
    }

    /// Reviews are created and never stored.
    fn is_review(&self) -> bool {
        self.resource.ends_with("reviews")
    }

    /// Whether it is about the Lease by which a process leads.
    pub fn is_lease(&self) -> bool {
        self.resource == "leases"
    }

    /// Which watch it is, or which watch its list belongs to.
    pub fn watch_key(&self) -> WatchKey {
        (self.group.clone(), self.resource.clone(), self.selector.clone())
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, subresource, namespace, name, .. } = self;
        write!(f, "{verb} {resource}")?;
        for (before, part) in [(".", group), ("/", subresource), (" ", namespace)] {
            if !part.is_empty() {
                write!(f, "{before}{part}")?;
            }
        }
        let before = if namespace.is_empty() { ' ' } else { '/' };
        if name.is_empty() { Ok(()) } else { write!(f, "{before}{name}") }
    }
}

fn about(event: &Value) -> String {
    let object = if event["regarding"].is_null() { &event["involvedObject"] } else { &event["regarding"] };
    format!("{} of {} {}", text(&event["reason"]), text(&object["kind"]), text(&object["name"]))
}

/// A string of JSON, empty where there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Percent-encoding undone; what is not encoded properly stays as it is.
fn decode(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        if let Some(decoded) = hex.filter(|_| byte == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            bytes.push(decoded);
            rest = &tail[2..];
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(method: &str, path: &str) -> String {
        Request::read(method, path, "", &Value::Null).to_string()
    }

    #[test]
    fn paths_are_read_as_the_api_server_reads_them() {
        assert_eq!(read("GET", "/api/v1/pods?limit=500"), "list pods");
        assert_eq!(read("GET", "/api/v1/pods?watch=true&resourceVersion=1"), "watch pods");
        assert_eq!(read("GET", "/api/v1/namespaces/a"), "get namespaces a");
        assert_eq!(read("GET", "/api/v1/namespaces"), "list namespaces");
        assert_eq!(read("PUT", "/api/v1/namespaces/a/finalize"), "update namespaces/finalize a");
        assert_eq!(read("GET", "/api/v1/namespaces/a/pods"), "list pods a");
        assert_eq!(read("DELETE", "/apis/apps/v1/namespaces/a/statefulsets/b"), "delete statefulsets.apps a/b");
        assert_eq!(read("DELETE", "/apis/apps/v1/namespaces/a/statefulsets"), "deletecollection statefulsets.apps a");
        assert_eq!(read("PATCH", "/apis/torpor.dev/v1alpha1/tenants/a/status"), "patch tenants.torpor.dev/status a");
        assert_eq!(read("DELETE", "/api/v1/namespaces/a/pods/dashboard-f68d5bc74-8gzkh"), "delete pods a/dashboard");
        assert_eq!(read("DELETE", "/api/v1/namespaces/a/pods/bots-makers-0"), "delete pods a/bots-makers-0");
        assert_eq!(read("GET", "/version"), "get /version");
    }

    #[test]
    fn applies_dry_runs_and_bodies_tell_more() {
        let apply =
            Request::read("PATCH", "/api/v1/namespaces/a/services/b", "application/apply-patch+yaml", &json!({}));
        assert_eq!(apply.verb, "apply");
        let body = json!({"metadata": {"name": "s"}});
        let create = Request::read("POST", "/api/v1/namespaces/a/secrets", "application/json", &body);
        assert_eq!((create.name.as_str(), create.is_write()), ("s", true));
        let dry = Request::read("POST", "/api/v1/namespaces/a/secrets?dryRun=All", "application/json", &body);
        assert!(!dry.is_write());
        let event =
            json!({"metadata": {"name": "x.1"}, "reason": "Ready", "regarding": {"kind": "Tenant", "name": "t"}});
        let event = Request::read("POST", "/apis/events.k8s.io/v1/namespaces/a/events", "", &event);
        assert_eq!(event.name, "Ready of Tenant t");
        let again = Request::read("PATCH", "/apis/events.k8s.io/v1/namespaces/a/events/t.18eb9465e5", "", &Value::Null);
        assert_eq!(again.name, "t");
        let watch = Request::read("GET", "/api/v1/pods?watch=1&labelSelector=a%2Fb%3Dc%21", "", &Value::Null);
        assert_eq!(watch.selector, "a/b=c!");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
