//! The requests behind an election, each bounded in time.

use std::{
    fmt::{self, Debug},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::{LeaderError, LeaderParams, Lost, tenure::Tenure};
use crate::clock::Clock;

/// The Lease as this process saw it, since when it has looked like this, and since when it is not there.
pub(super) struct Sighting {
    spec: LeaseSpec,
    since: Instant,
    gone: Option<Instant>,
}

pub(super) enum Attempt {
    /// The request that won was sent at `since`.
    Leads { lease: Box<Lease>, since: Instant },
    /// Another process holds the Lease, for this long if it stays silent.
    Wait(Duration),
}

pub(super) enum Failed {
    /// The Lease is not what it was when it was read.
    Stale,
    /// What was asked for does not exist.
    Missing,
    /// Waiting may help.
    Trouble(String),
    /// Waiting does not help.
    Fatal(LeaderError),
}

impl Failed {
    fn message(self) -> String {
        match self {
            Self::Stale => "others keep changing the Lease".into(),
            Self::Missing => "the Lease does not exist".into(),
            Self::Trouble(message) => message,
            Self::Fatal(error) => error.to_string(),
        }
    }
}

pub(super) struct Lock {
    pub(super) params: LeaderParams,
    pub(super) clock: Arc<dyn Clock>,
    api: Api<Lease>,
    seconds: i32,
}

impl Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({} for {})", self.id(), self.params.identity)
    }
}

impl Lock {
    pub(super) fn new(client: Client, params: LeaderParams, clock: Arc<dyn Clock>) -> Result<Self, LeaderError> {
        let seconds = params.seconds()?;
        Ok(Self { api: Api::namespaced(client, &params.namespace), params, clock, seconds })
    }

    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.params.namespace, self.params.name)
    }

    /// Takes the Lease if it is free, or if its holder has been silent for its whole duration before our eyes.
    pub(super) async fn try_to_take(&self, sighting: &mut Option<Sighting>) -> Result<Attempt, Failed> {
        let Some(lease) = self.read().await? else {
            // Whoever deleted it has not ended its holder, which may have renewed it after our last look, and writes until it
            // asks again.
            let now = self.clock.monotonic();
            let left = sighting.as_mut().map_or(Duration::ZERO, |seen| {
                let gone = *seen.gone.get_or_insert(now);
                self.left_of(&seen.spec, gone, now)
            });
            if !left.is_zero() {
                return Ok(Attempt::Wait(left));
            }
            let since = self.clock.monotonic();
            let lease = Box::new(self.create().await?);
            return Ok(Attempt::Leads { lease, since });
        };
        // Measured after the answer has come: the holder must have written before this.
        let now = self.clock.monotonic();
        let spec = lease.spec.clone().unwrap_or_default();
        if let Some(holder) = holder(&lease).filter(|holder| *holder != self.params.identity.name()) {
            let left = self.left(sighting, spec, holder, now);
            if !left.is_zero() {
                return Ok(Attempt::Wait(left));
            }
            info!(lease = %self.id(), holder, "the leader has fallen silent; taking its Lease over");
        }
        let since = self.clock.monotonic();
        let lease = Box::new(self.replace(&self.held(lease)).await?);
        Ok(Attempt::Leads { lease, since })
    }

    /// How long the holder may still be silent. What it wrote about the time is not looked at: its clock is not ours.
    fn left(&self, sighting: &mut Option<Sighting>, spec: LeaseSpec, holder: &str, now: Instant) -> Duration {
        let last_holder = sighting.as_ref().and_then(|seen| seen.spec.holder_identity.as_deref());
        if last_holder != Some(holder) {
            info!(lease = %self.id(), holder, "waiting to lead; another process holds the Lease");
        }
        let since = match sighting {
            Some(seen) if seen.spec == spec => seen.since,
            _ => now,
        };
        let seen = sighting.insert(Sighting { spec, since, gone: None });
        self.left_of(&seen.spec, since, now)
    }

    /// The same of a holder that has been silent since then.
    fn left_of(&self, spec: &LeaseSpec, since: Instant, now: Instant) -> Duration {
        let Some(holder) = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty()) else {
            return Duration::ZERO;
        };
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = if self.params.identity.follows(holder) {
            self.params.grace
        } else {
            seconds.map_or(self.params.duration, Duration::from_secs)
        };
        duration.saturating_sub(now.saturating_duration_since(since))
    }

    /// Confirms the lead, as often as it takes within the tenure.
    pub(super) async fn renew(&self, mut lease: Lease, tenure: &Tenure) -> Result<Lease, Lost> {
        let mut last_error = None;
        loop {
            let left = tenure.left();
            if left.is_zero() {
                return Err(Lost::Unconfirmed { last_error });
            }
            let sent = self.clock.monotonic();
            let answer = timeout(left, self.replace(&self.held(lease.clone()))).await;
            match answer {
                Err(_) => continue,
                Ok(Ok(renewed)) if tenure.confirm(sent) => return Ok(renewed),
                Ok(Ok(_)) => continue,
                Ok(Err(Failed::Missing)) => return Err(Lost::Gone),
                // It may have been an earlier request of our own whose answer was lost.
                Ok(Err(Failed::Stale)) => match self.read_again().await? {
                    Ok(current) => lease = current,
                    Err(message) => last_error = Some(message),
                },
                Ok(Err(failed)) => last_error = Some(failed.message()),
            }
            sleep(tenure.left().min(self.params.period() / 4)).await;
        }
    }

    /// The present Lease, if this process still holds it.
    async fn read_again(&self) -> Result<Result<Lease, String>, Lost> {
        match self.read().await {
            Ok(Some(lease)) => match holder(&lease) {
                Some(holder) if holder == self.params.identity.name() => Ok(Ok(lease)),
                Some(holder) => Err(Lost::Taken { holder: holder.to_owned() }),
                None => Err(Lost::Gone),
            },
            Ok(None) => Err(Lost::Gone),
            Err(failed) => Ok(Err(failed.message())),
        }
    }

    /// Takes this process out of the Lease, unless another one holds it already.
    pub(super) async fn give_back(&self) -> Result<(), LeaderError> {
        let not_released = |reason| LeaderError::NotReleased { lease: self.id(), reason };
        let result = timeout(self.params.period(), async {
            loop {
                let Some(mut lease) = self.read().await? else {
                    return Ok(());
                };
                if holder(&lease) != Some(self.params.identity.name()) {
                    return Ok(());
                }
                lease.spec.get_or_insert_default().holder_identity = None;
                match self.replace(&lease).await {
                    // Such as a renewal that was under way and has arrived in between.
                    Err(Failed::Stale | Failed::Missing) => sleep(self.params.period() / 20).await,
                    result => return result.map(drop),
                }
            }
        });
        match result.await {
            Ok(Ok(())) => {
                info!(lease = %self.id(), "the Lease is released");
                Ok(())
            }
            Ok(Err(failed)) => Err(not_released(failed.message())),
            Err(_) => Err(not_released("the API server did not answer in time".into())),
        }
    }

    async fn read(&self) -> Result<Option<Lease>, Failed> {
        match self.ask("read", self.api.get(&self.params.name)).await {
            Err(Failed::Missing) => Ok(None),
            result => result.map(Some),
        }
    }

    async fn create(&self) -> Result<Lease, Failed> {
        let metadata = ObjectMeta { name: Some(self.params.name.clone()), ..Default::default() };
        let lease = self.held(Lease { metadata, spec: None });
        match self.ask("create", self.api.create(&PostParams::default(), &lease)).await {
            Err(Failed::Missing) => Err(Failed::Fatal(LeaderError::NoNamespace(self.params.namespace.clone()))),
            result => result,
        }
    }

    /// Fails as [`Failed::Stale`] where anybody has changed the Lease since it was read.
    async fn replace(&self, lease: &Lease) -> Result<Lease, Failed> {
        let options = PostParams::default();
        self.ask("update", self.api.replace(&self.params.name, &options, lease)).await
    }

    /// The Lease with this process as its holder, renewed now.
    fn held(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(self.clock.now());
        let spec = lease.spec.get_or_insert_default();
        let name = self.params.identity.name();
        if spec.holder_identity.as_deref() != Some(name) {
            spec.holder_identity = Some(name.to_owned());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
        }
        spec.lease_duration_seconds = Some(self.seconds);
        spec.renew_time = Some(now);
        lease
    }

    async fn ask<T>(&self, action: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
        let limit = self.params.period();
        let Ok(answer) = timeout(limit, request).await else {
            return Err(Failed::Trouble(format!("no answer within {limit:?}")));
        };
        answer.map_err(|error| match error {
            kube::Error::Api(status) => match status.code {
                404 => Failed::Missing,
                409 => Failed::Stale,
                400 | 403 | 422 => {
                    Failed::Fatal(LeaderError::Refused { action, lease: self.id(), message: status.message.clone() })
                }
                _ => Failed::Trouble(format!("{} {}", status.code, status.message)),
            },
            error => Failed::Trouble(error.to_string()),
        })
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    holder.filter(|holder| !holder.is_empty())
}
