//! Counts and times from the API server's audit log, which no program under measurement can colour.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use torpor_cluster::{AuditEvent, AuditLog, AuditMark, Cluster};

/// User agents of Torpor's programs, and of the replayer.
pub mod agent {
    /// The operator's.
    pub const OPERATOR: &str = "torpor-operator/";
    /// The hibernator's.
    pub const HIBERNATOR: &str = "torpor-hibernator/";
    /// The gateway's.
    pub const GATEWAY: &str = "torpor-gateway/";
    /// The replayer's.
    pub const REPLAY: &str = "torpor-replay/";
    /// Helm's, in lower case.
    pub const HELM: &str = "helm";
}

/// What has been written to the log since a moment, read piece by piece.
pub struct Tail {
    log: AuditLog,
    mark: AuditMark,
    keep_bodies: bool,
    /// Everything read so far: requests that were answered.
    pub events: Vec<AuditEvent>,
    ready: BTreeSet<(String, String)>,
}

impl Tail {
    /// From now on.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let log = cluster.audit().context("a cluster of our own is needed: unset TORPOR_KUBECONFIG")?;
        let mark = log.mark()?;
        Ok(Self { log, mark, keep_bodies: false, events: Vec::new(), ready: BTreeSet::new() })
    }

    /// The same, which also keeps what was sent.
    #[must_use]
    pub fn with_bodies(mut self) -> Self {
        self.keep_bodies = true;
        self
    }

    /// Reads what is new.
    pub fn pull(&mut self) -> Result<&[AuditEvent]> {
        let (events, mark) = self.log.read(self.mark)?;
        self.mark = mark;
        let known = self.events.len();
        for mut event in events {
            if event.stage != "ResponseComplete" {
                continue;
            }
            if !self.keep_bodies {
                event.body = None;
            }
            // kwok writes the status of a pod once, when it makes it Ready; see the stages of `pod/fast`.
            if event.user == "kwok" && event.resource == "pods" && event.verb == "patch" && event.code == 200 {
                self.ready.insert((event.namespace.clone(), event.name.clone()));
            }
            self.events.push(event);
        }
        Ok(&self.events[known..])
    }

    /// Pods that kwok has made Ready since the start.
    pub fn pods_ready(&self) -> usize {
        self.ready.len()
    }

    /// Waits until so many pods were made Ready.
    pub fn await_pods(&mut self, count: usize, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.pods_ready() < count {
            self.pull()?;
            if Instant::now() > end {
                bail!("{} of {count} pods are Ready after {} s", self.pods_ready(), limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(())
    }

    /// Waits until these programs have asked for nothing but their Leases for so long.
    pub fn await_silence(&mut self, agents: &[&str], quiet: Duration, limit: Duration) -> Result<()> {
        self.await_end(agents, |_| true, quiet, limit)
    }

    /// Waits until these programs have written nothing but their Leases for so long.
    pub fn await_no_writes(&mut self, agents: &[&str], quiet: Duration, limit: Duration) -> Result<()> {
        self.await_end(agents, is_write, quiet, limit)
    }

    fn await_end(
        &mut self,
        agents: &[&str],
        counts: fn(&AuditEvent) -> bool,
        quiet: Duration,
        limit: Duration,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        let mut since = Instant::now();
        while since.elapsed() < quiet {
            let busy = |event: &AuditEvent| {
                let by_one = agents.iter().any(|agent| event.user_agent.starts_with(agent));
                event.resource != "leases" && by_one && counts(event)
            };
            if let Some(event) = self.pull()?.iter().find(|event| busy(event)) {
                let what = format!("{} {}", event.verb, event.request_uri);
                since = Instant::now();
                if since > end {
                    bail!("still busy after {} s: {what}", limit.as_secs());
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// The requests of one program, its Lease's apart.
    pub fn of<'a>(&'a self, agent: &'a str) -> impl Iterator<Item = &'a AuditEvent> {
        self.events.iter().filter(move |event| event.user_agent.starts_with(agent) && event.resource != "leases")
    }
}

/// Requests of one program by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that did not exist before, Events apart.
    pub created: usize,
    /// Other writes to objects: changes, dry runs and refusals included.
    pub changed: usize,
    /// Deletions.
    pub deleted: usize,
    /// Writes of finalizers and other metadata of Torpor's own objects.
    pub finalizers: usize,
    /// Writes of the status of Tenants.
    pub tenant_status: usize,
    /// Writes of the status of BotFleets and WorkerPools.
    pub other_status: usize,
    /// Events.
    pub events: usize,
    /// Reads; watches are counted when they end, and so not among them.
    pub reads: usize,
    /// Writes that were refused, whatever they are for.
    pub refused: usize,
}

impl Counts {
    /// Counts these requests.
    pub fn of<'a>(events: impl Iterator<Item = &'a AuditEvent>) -> Self {
        let mut counts = Self::default();
        for event in events {
            counts.add(event);
        }
        counts
    }

    fn add(&mut self, event: &AuditEvent) {
        let own = event.group == "torpor.dev";
        let place = match event.verb.as_str() {
            "watch" => return,
            "get" | "list" => &mut self.reads,
            "delete" | "deletecollection" => &mut self.deleted,
            _ if event.resource == "events" => &mut self.events,
            _ if event.subresource == "status" && event.resource == "tenants" => &mut self.tenant_status,
            _ if event.subresource == "status" => &mut self.other_status,
            _ if is_creation(event) => &mut self.created,
            _ if own && is_metadata(event) => &mut self.finalizers,
            _ => &mut self.changed,
        };
        *place += 1;
        if event.code >= 400 && !matches!(event.verb.as_str(), "get" | "list") {
            self.refused += 1;
        }
    }

    /// Every write.
    pub fn writes(&self) -> usize {
        self.created
            + self.changed
            + self.deleted
            + self.finalizers
            + self.tenant_status
            + self.other_status
            + self.events
    }
}

/// A patch of one of Torpor's objects that says no field manager of an apply: its finalizer.
fn is_metadata(event: &AuditEvent) -> bool {
    event.verb == "patch" && event.subresource.is_empty() && !event.request_uri.contains("force=")
}

/// Whether a request made an object, Events apart.
pub fn is_creation(event: &AuditEvent) -> bool {
    event.code == 201
        && matches!(event.verb.as_str(), "create" | "patch")
        && event.resource != "events"
        && event.subresource.is_empty()
        && !event.request_uri.contains("dryRun=")
}

/// Whether a request can change something.
pub fn is_write(event: &AuditEvent) -> bool {
    !matches!(event.verb.as_str(), "get" | "list" | "watch")
}

/// When a request was answered.
pub fn answered(event: &AuditEvent) -> Option<Timestamp> {
    event.stage_timestamp.parse().ok()
}

/// Seconds from one moment to another.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// How a program used the time from one moment to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waiting {
    /// Share of the time in which at least one request was with the API server.
    pub share: f64,
    /// Requests that were with the API server at the same time, on average.
    pub at_once: f64,
}

/// From when requests came in and were answered. What a request spends on its way and in queues before the API server
/// reads it counts as the program's own time.
pub fn waiting<'a>(events: impl Iterator<Item = &'a AuditEvent>, from: Timestamp, to: Timestamp) -> Waiting {
    let whole = seconds(from, to);
    let mut spans: Vec<(f64, f64)> = events
        .filter(|event| event.verb != "watch")
        .filter_map(|event| {
            let received: Timestamp = event.received_timestamp.parse().ok()?;
            let span = (seconds(from, received).max(0.0), seconds(from, answered(event)?).min(whole));
            (span.0 < span.1).then_some(span)
        })
        .collect();
    spans.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut covered, mut until, mut sum) = (0.0, 0.0_f64, 0.0);
    for (start, end) in spans {
        sum += end - start;
        covered += (end - start.max(until)).max(0.0);
        until = until.max(end);
    }
    Waiting { share: covered / whole, at_once: sum / whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(verb: &str, resource: &str, code: u16) -> AuditEvent {
        AuditEvent { verb: verb.into(), resource: resource.into(), code, ..AuditEvent::default() }
    }

    #[test]
    fn requests_are_counted_by_what_they_are_for() {
        let mut status = event("patch", "tenants", 200);
        status.group = "torpor.dev".into();
        let finalizer = status.clone();
        status.subresource = "status".into();
        let events = [
            event("patch", "services", 201),
            event("patch", "services", 200),
            event("create", "events", 201),
            event("create", "secrets", 409),
            event("list", "pods", 200),
            event("watch", "pods", 200),
            status,
            finalizer,
        ];
        let counts = Counts::of(events.iter());
        assert_eq!((counts.created, counts.changed, counts.events, counts.reads), (1, 2, 1, 1));
        assert_eq!((counts.tenant_status, counts.finalizers, counts.refused), (1, 1, 1));
        assert_eq!(counts.writes(), 6);
    }

    #[test]
    fn waiting_counts_each_moment_once() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let span = |from: i64, to: i64| AuditEvent {
            received_timestamp: at(from).to_string(),
            stage_timestamp: at(to).to_string(),
            ..event("patch", "services", 201)
        };
        // The second lies within the first, the last reaches beyond the end.
        let events = [span(0, 4), span(1, 2), span(8, 12)];
        let found = waiting(events.iter(), at(0), at(10));
        assert!((found.share - 0.6).abs() < 1e-9 && (found.at_once - 0.7).abs() < 1e-9, "{found:?}");
    }
}
