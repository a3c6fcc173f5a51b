//! What the process counts about itself, in Prometheus' terms.
//!
//! Label values are `&'static str`: their number is bounded by the source code, so a tenant's name can never become
//! one and a thousand tenants cost as many time series as one.

use std::{fmt::Write, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

/// The media type of what [`Metrics::encode`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All names start with this and an underscore.
const PREFIX: &str = "torpor";

/// Seconds: from a pass that only compares to one that is cut off by its timeout.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0, 60.0];

/// Seconds: from a turn before anything had stopped to a stack whose images are pulled anew.
const WAKE_BUCKETS: [f64; 12] = [1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// One metric as its reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The full name, as in a query.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// The labels, in the order in which they are written.
    pub labels: &'static [&'static str],
    /// What it means, without a full stop.
    pub help: &'static str,
}

impl Description {
    /// The name without what the library adds by itself: the prefix, and the suffix of its type.
    fn registered_name(&self) -> &'static str {
        let bare = self.name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_'));
        let bare = bare.unwrap_or(self.name);
        let suffix = match self.kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        bare.strip_suffix(suffix).unwrap_or(bare)
    }
}

const fn described(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Description {
    Description { name, kind, labels, help }
}

const RECONCILES: Description = described(
    "torpor_reconciles_total",
    "counter",
    &["kind", "outcome"],
    "Finished passes over one object, by kind of object and by how they ended",
);
const RECONCILE_DURATION: Description =
    described("torpor_reconcile_duration_seconds", "histogram", &["kind"], "How long a pass over one object took");
const API_WRITES: Description = described(
    "torpor_api_writes_total",
    "counter",
    &["verb", "kind"],
    "Writing requests sent to the API server; a settled cluster adds none",
);
const PUT_BACK: Description = described(
    "torpor_objects_put_back_total",
    "counter",
    &["kind"],
    "Objects that were put back as wanted because somebody had changed them; the log names each",
);
const WATCH_ERRORS: Description = described(
    "torpor_watch_errors_total",
    "counter",
    &["kind"],
    "Watches that ended with an error and were started anew",
);
const WATCH_UP: Description =
    described("torpor_watch_up", "gauge", &["kind"], "1 while the watch of this kind delivers, 0 while it is broken");
const TENANTS: Description = described(
    "torpor_tenants",
    "gauge",
    &["tier", "state"],
    "Tenants, by tier and by state: awake, asleep, working on something, or stalled until somebody acts; tier unknown for those that cannot be read",
);
const UNREADY: Description = described(
    "torpor_longest_unready_seconds",
    "gauge",
    &["reason"],
    "For how long the tenant, or for StopOverdue the fleet, that is not Ready for longest has not been, by the reason it has now; a wake counts from the login; 0 where none has the reason",
);
const BACKOFF: Description = described(
    "torpor_objects_in_backoff",
    "gauge",
    &["kind"],
    "Objects whose last pass failed and which wait for their next attempt",
);
const WAKES: Description = described(
    "torpor_wake_seconds",
    "histogram",
    &[],
    "Time from the activity that woke a sleeping tenant until everything of it was ready again",
);
const BUILD_INFO: Description =
    described("torpor_build_info", "info", &["version"], "Always 1; its label says what runs");
const LEADER: Description =
    described("torpor_leader", "gauge", &[], "1 while this process leads, 0 while it stands by");
const TASKS: Description = described(
    "torpor_tasks",
    "gauge",
    &[],
    "Asynchronous tasks that are alive; a settled process has as many as it started with",
);
const EVENTS: Description =
    described("torpor_events_published_total", "counter", &["reason"], "Kubernetes events published, by reason");
const EVENTS_LOST: Description = described(
    "torpor_events_lost_total",
    "counter",
    &["reason"],
    "Kubernetes events that were refused, or found too many waiting, by reason; status and log tell the same",
);

const BREAKER: Description = described(
    "torpor_breaker_open",
    "gauge",
    &["reason"],
    "1 while the breaker holds all sleep for this reason, 0 otherwise; the hibernator's",
);
const ROLLING: Description = described(
    "torpor_tenants_rolling",
    "gauge",
    &[],
    "Tenants whose pods are replaced for a new plan, a few tenants at a time, or wait for their turn",
);
const DUE: Description = described(
    "torpor_tenants_due",
    "gauge",
    &[],
    "Tenants that are idle for long enough to sleep deeper than was decided; the hibernator's",
);
const DECISIONS: Description = described(
    "torpor_decisions_total",
    "counter",
    &["stage"],
    "Decisions that changed a tenant's stage, by the new stage; the hibernator's",
);
const WARNINGS: Description = described(
    "torpor_warnings_total",
    "counter",
    &["result"],
    "Attempts to warn or ask a user, by result: delivered or failed; the hibernator's",
);

const REQUESTS: Description = described(
    "torpor_http_requests_total",
    "counter",
    &["route", "status"],
    "Answered requests, by kind of address (activity, wake, sleep, approve, progress, events, page, page events, healthz, openapi, other) and status code; the gateway's",
);
const REQUEST_DURATION: Description = described(
    "torpor_http_request_duration_seconds",
    "histogram",
    &["route"],
    "Time from a request to the beginning of its answer; the gateway's",
);
const ACTIVITY: Description = described(
    "torpor_activity_total",
    "counter",
    &["result"],
    "Reports of activity, by result: written or coalesced; the gateway's",
);

/// Every metric there is, in the order of the documentation.
pub fn describe() -> Vec<Description> {
    vec![
        RECONCILES,
        RECONCILE_DURATION,
        API_WRITES,
        PUT_BACK,
        WATCH_ERRORS,
        WATCH_UP,
        TENANTS,
        UNREADY,
        BACKOFF,
        EVENTS,
        EVENTS_LOST,
        BREAKER,
        ROLLING,
        DUE,
        DECISIONS,
        WARNINGS,
        REQUESTS,
        REQUEST_DURATION,
        ACTIVITY,
        WAKES,
        LEADER,
        TASKS,
        BUILD_INFO,
    ]
}

/// The text of `docs/metrics.md`.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from src/metrics.rs by `make generate`; do not edit. -->\n\n\
         Every Torpor process serves these on `/metrics` of its probe address, in the OpenMetrics text format. \
         A series appears with its first value.\nNo label carries the name of a tenant: the number of series \
         does not grow with the number of tenants.\n\n\
         | Name | Type | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for Description { name, kind, labels, help } in describe() {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    page
}

macro_rules! labels {
    ($($name:ident { $($label:ident),+ })+) => {$(
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct $name { $($label: &'static str),+ }
    )+};
}

labels! {
    ReconcileLabels { kind, outcome }
    KindLabels { kind }
    WriteLabels { verb, kind }
    TenantLabels { tier, state }
    ReasonLabels { reason }
    StageLabels { stage }
    ResultLabels { result }
    BuildLabels { version }
    RouteLabels { route }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

/// The metrics of this process; clones count into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<ReconcileLabels, Counter>,
    durations: Family<KindLabels, Histogram, fn() -> Histogram>,
    writes: Family<WriteLabels, Counter>,
    put_back: Family<KindLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    watch_up: Family<KindLabels, Gauge>,
    tenants: Family<TenantLabels, Gauge>,
    unready: Family<ReasonLabels, Gauge>,
    backoff: Family<KindLabels, Gauge>,
    leader: Gauge,
    tasks: Gauge,
    events: Family<ReasonLabels, Counter>,
    events_lost: Family<ReasonLabels, Counter>,
    breaker: Family<ReasonLabels, Gauge>,
    due: Gauge,
    rolling: Gauge,
    decisions: Family<StageLabels, Counter>,
    warnings: Family<ResultLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    request_durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    activity: Family<ResultLabels, Counter>,
    wakes: Histogram,
}

impl Metrics {
    /// Fresh metrics of a program of this version.
    pub fn new(version: &'static str) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new(BuildLabels { version });
        registry.register(BUILD_INFO.registered_name(), BUILD_INFO.help, build);
        let durations: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        Self {
            reconciles: register(&mut registry, RECONCILES, Family::default()),
            durations: register(&mut registry, RECONCILE_DURATION, Family::new_with_constructor(durations)),
            writes: register(&mut registry, API_WRITES, Family::default()),
            put_back: register(&mut registry, PUT_BACK, Family::default()),
            watch_errors: register(&mut registry, WATCH_ERRORS, Family::default()),
            watch_up: register(&mut registry, WATCH_UP, Family::default()),
            tenants: register(&mut registry, TENANTS, Family::default()),
            unready: register(&mut registry, UNREADY, Family::default()),
            backoff: register(&mut registry, BACKOFF, Family::default()),
            leader: register(&mut registry, LEADER, Gauge::default()),
            tasks: register(&mut registry, TASKS, Gauge::default()),
            events: register(&mut registry, EVENTS, Family::default()),
            events_lost: register(&mut registry, EVENTS_LOST, Family::default()),
            breaker: register(&mut registry, BREAKER, Family::default()),
            due: register(&mut registry, DUE, Gauge::default()),
            rolling: register(&mut registry, ROLLING, Gauge::default()),
            decisions: register(&mut registry, DECISIONS, Family::default()),
            warnings: register(&mut registry, WARNINGS, Family::default()),
            requests: register(&mut registry, REQUESTS, Family::default()),
            request_durations: register(&mut registry, REQUEST_DURATION, Family::new_with_constructor(durations)),
            activity: register(&mut registry, ACTIVITY, Family::default()),
            wakes: register(&mut registry, WAKES, Histogram::new(WAKE_BUCKETS)),
            registry: Arc::new(registry),
        }
    }

    /// Counts a finished pass over an object of `kind` that ended with `outcome` after `took`.
    pub fn reconciled(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { kind, outcome }).inc();
        self.durations.get_or_create(&KindLabels { kind }).observe(took.as_secs_f64());
    }

    /// Counts a writing request, such as `patch` of a `StatefulSet`.
    pub fn api_write(&self, verb: &'static str, kind: &'static str) {
        self.writes.get_or_create(&WriteLabels { verb, kind }).inc();
    }

    /// Counts an object that was put back as wanted because somebody had changed it.
    pub fn put_back(&self, kind: &'static str) {
        self.put_back.get_or_create(&KindLabels { kind }).inc();
    }

    /// The watch of `kind` broke: counts the error, and the watch is down until [`Metrics::watch_up`].
    pub fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabels { kind }).inc();
        self.watch_up.get_or_create(&KindLabels { kind }).set(0);
    }

    /// The watch of `kind` delivers.
    pub fn watch_up(&self, kind: &'static str) {
        self.watch_up.get_or_create(&KindLabels { kind }).set(1);
    }

    /// There are `count` tenants of this tier in this state. A pair that has none left must be set to 0 by the
    /// caller: a series keeps its last value.
    pub fn set_tenants(&self, tier: &'static str, state: &'static str, count: usize) {
        self.tenants.get_or_create(&TenantLabels { tier, state }).set(gauge_value(count));
    }

    /// Of the tenants that have this reason the one that is not Ready for longest has not been for so many seconds.
    pub fn set_longest_unready(&self, reason: &'static str, seconds: u64) {
        self.unready.get_or_create(&ReasonLabels { reason }).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// `count` objects of `kind` wait after a failed pass.
    pub fn set_in_backoff(&self, kind: &'static str, count: usize) {
        self.backoff.get_or_create(&KindLabels { kind }).set(gauge_value(count));
    }

    /// A tenant is awake again, so many seconds after it was asked for.
    pub fn woke(&self, took: Duration) {
        self.wakes.observe(took.as_secs_f64());
    }

    /// This process leads from now on. A process that loses the lead ends, so there is no way back.
    pub fn became_leader(&self) {
        self.leader.set(1);
    }

    /// Counts a published Kubernetes event.
    pub fn event_published(&self, reason: &'static str) {
        self.events.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// An Event was not published.
    pub fn event_lost(&self, reason: &'static str) {
        self.events_lost.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The breaker is open for this reason, or is not.
    pub fn set_breaker(&self, reason: &'static str, open: bool) {
        self.breaker.get_or_create(&ReasonLabels { reason }).set(i64::from(open));
    }

    /// `count` tenants have their pods replaced, or wait for that.
    pub fn set_rolling(&self, count: usize) {
        self.rolling.set(gauge_value(count));
    }

    /// `count` tenants are due for a deeper stage.
    pub fn set_due(&self, count: usize) {
        self.due.set(gauge_value(count));
    }

    /// Counts a decision for another stage.
    pub fn decided(&self, stage: &'static str) {
        self.decisions.get_or_create(&StageLabels { stage }).inc();
    }

    /// Counts an attempt to tell a user something: `delivered` or `failed`.
    pub fn warned(&self, result: &'static str) {
        self.warnings.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts an answer, and the time until it began.
    pub fn answered(&self, route: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
        self.request_durations.get_or_create(&RouteLabels { route }).observe(took.as_secs_f64());
    }

    /// Counts a report of activity, which was written or was no news.
    pub fn activity(&self, written: bool) {
        let result = if written { "written" } else { "coalesced" };
        self.activity.get_or_create(&ResultLabels { result }).inc();
    }

    /// All metrics in the `OpenMetrics` text format; see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut page = String::new();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.set(gauge_value(runtime.metrics().num_alive_tasks()));
        }
        // Writing to a String cannot fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn register<M: Metric + Clone>(registry: &mut Registry, description: Description, metric: M) -> M {
    registry.register(description.registered_name(), description.help, metric.clone());
    metric
}

#[cfg(test)]
mod tests;
