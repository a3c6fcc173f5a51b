//! What the API server was asked, by whom: its audit log, read from a mark on.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

/// The audit log of a cluster of our own. The API server writes an event when it has answered, so one may appear
/// a moment after the client saw the answer.
#[derive(Clone, Debug)]
pub struct AuditLog {
    file: PathBuf,
}

/// A position in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(u64);

/// One request that the API server has handled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditEvent {
    /// The client's User-Agent header.
    pub user_agent: String,
    /// The authenticated user.
    pub user: String,
    /// The verb as RBAC names it, e.g. `patch`.
    pub verb: String,
    /// `ResponseComplete`, or `ResponseStarted` for the beginning of a watch.
    pub stage: String,
    /// API group, empty for the core group and for requests that aren't about resources.
    pub group: String,
    /// Resource in the plural, e.g. `pods`.
    pub resource: String,
    /// Subresource, e.g. `status`.
    pub subresource: String,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: String,
    /// Name of the object, empty for lists and watches.
    pub name: String,
    /// HTTP status code.
    pub code: u16,
    /// What the answer says, where it is an error.
    pub message: String,
    /// Whether it was refused for want of a right.
    pub forbidden: bool,
    /// When the request came in, RFC 3339 with microseconds.
    pub received_timestamp: String,
    /// When the stage was reached, RFC 3339 with microseconds.
    pub stage_timestamp: String,
    /// Path and query.
    pub request_uri: String,
    /// What was sent, where [`Options::log_bodies_of`](crate::Options::log_bodies_of) asks for it.
    pub body: Option<Value>,
}

impl AuditLog {
    /// The log in that file, which must exist.
    pub fn new(file: &Path) -> Self {
        Self { file: file.into() }
    }

    /// The log file itself, one JSON object a line.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// The present end of the log.
    pub fn mark(&self) -> Result<AuditMark> {
        let length =
            std::fs::metadata(&self.file).with_context(|| format!("no audit log {}", self.file.display()))?.len();
        Ok(AuditMark(length))
    }

    /// All events since the mark.
    pub fn since(&self, mark: AuditMark) -> Result<Vec<AuditEvent>> {
        Ok(self.read(mark)?.0)
    }

    /// All events since the mark, and the mark to go on from: no event is seen twice or lost.
    pub fn read(&self, mark: AuditMark) -> Result<(Vec<AuditEvent>, AuditMark)> {
        let mut file = File::open(&self.file)?;
        // A mark that was set while a line was being written stands in the middle of it: the line is older.
        let before = mark.0.saturating_sub(1);
        file.seek(SeekFrom::Start(before))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let begun =
            if mark.0 == 0 { 0 } else { bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1) };
        let mark = AuditMark(before + begun as u64);
        let bytes = &bytes[begun..];
        // The last line may still be on its way.
        let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let events = bytes[..complete]
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(parse)
            .collect::<Result<_>>()?;
        Ok((events, AuditMark(mark.0 + complete as u64)))
    }
}

fn parse(line: &[u8]) -> Result<AuditEvent> {
    let mut event: Value =
        serde_json::from_slice(line).with_context(|| format!("audit log line {:?}", String::from_utf8_lossy(line)))?;
    let body = event.get_mut("requestObject").map(Value::take);
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(AuditEvent {
        user_agent: text("/userAgent"),
        user: text("/user/username"),
        verb: text("/verb"),
        stage: text("/stage"),
        group: text("/objectRef/apiGroup"),
        resource: text("/objectRef/resource"),
        subresource: text("/objectRef/subresource"),
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        code: event
            .pointer("/responseStatus/code")
            .and_then(Value::as_u64)
            .and_then(|code| code.try_into().ok())
            .unwrap_or_default(),
        message: text("/responseStatus/message"),
        forbidden: text("/annotations/authorization.k8s.io~1decision") == "forbid",
        received_timestamp: text("/requestReceivedTimestamp"),
        stage_timestamp: text("/stageTimestamp"),
        request_uri: text("/requestURI"),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","level":"Metadata","stage":"ResponseComplete","requestURI":"/apis/apps/v1/namespaces/a/deployments/b/status?fieldManager=t","verb":"patch","user":{"username":"system:serviceaccount:s:t","groups":["g"]},"userAgent":"torpor/0.1","objectRef":{"resource":"deployments","namespace":"a","name":"b","apiGroup":"apps","apiVersion":"v1","subresource":"status"},"responseStatus":{"metadata":{},"code":200},"stageTimestamp":"2026-01-01T00:00:00.000001Z"}"#;

    #[test]
    fn a_mark_in_the_middle_of_a_line_is_before_the_next_one() {
        let file = std::env::temp_dir().join(format!("torpor-audit-{}.log", std::process::id()));
        std::fs::write(&file, format!("{LINE}\n{LINE}\n")).unwrap();
        let log = AuditLog::new(&file);
        let line = LINE.len() as u64 + 1;
        let count = |mark| {
            let (events, next) = log.read(AuditMark(mark)).unwrap();
            (events.len(), next.0)
        };
        let found = [0, 1, line - 1, line, line + 1, 2 * line].map(count);
        std::fs::remove_file(&file).unwrap();
        let end = 2 * line;
        assert_eq!(found, [(2, end), (1, end), (1, end), (1, end), (0, end), (0, end)]);
    }

    #[test]
    fn events_carry_what_tests_ask_for() {
        let event = parse(LINE.as_bytes()).unwrap();
        assert_eq!(event.user_agent, "torpor/0.1");
        assert_eq!(event.user, "system:serviceaccount:s:t");
        assert_eq!(
            (event.group.as_str(), event.resource.as_str(), event.subresource.as_str()),
            ("apps", "deployments", "status")
        );
        assert_eq!((event.namespace.as_str(), event.name.as_str()), ("a", "b"));
        assert_eq!(event.code, 200);
    }

    #[test]
    fn half_a_line_waits_for_its_rest() {
        let file = std::env::temp_dir().join(format!("torpor-audit-{}", std::process::id()));
        std::fs::write(&file, format!("{LINE}\n{}", &LINE[..40])).unwrap();
        let log = AuditLog::new(&file);
        let (events, next) = log.read(AuditMark(0)).unwrap();
        assert_eq!(events.len(), 1);
        std::fs::write(&file, format!("{LINE}\n{LINE}\n")).unwrap();
        assert_eq!(log.since(next).unwrap().len(), 1);
        std::fs::remove_file(file).unwrap();
    }
}
