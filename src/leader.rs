//! Leader election by a Lease, fail-stop: whoever cannot prove that it leads must end.
//!
//! Two promises make it safe, and neither compares the clocks of two machines:
//! - A standby takes a Lease over only after *it has seen* the Lease unchanged for the Lease's whole duration, and only
//!   by a request that names the version it saw. A holder that renewed in between makes that request fail.
//!   One holder is known to have ended: a predecessor in the same pod, for a kubelet starts a container anew only after
//!   the one before it has ended. Only what such a holder had on the wire is waited for: `grace`, just as unchanged.
//! - A leader counts its own time from the moment *before* it sent the last renewal that succeeded, and regards itself
//!   as deposed `grace` before that duration is over. [`LeaderGuard::is_valid`] says so without any request, so a
//!   process that was stopped for minutes knows before its next write. Time that was missed is never made up for:
//!   once the guard is invalid it stays so.
//!
//! What this cannot catch: a machine that was suspended as a whole, its monotonic clock included, and a write that
//! was already on the wire. `grace` has to cover the latter.
#![expect(clippy::disallowed_types, reason = "the election is a part of the cluster room: it holds a client")]

mod lock;
mod tenure;
#[cfg(test)]
mod tests;

use std::{
    fmt::{self, Display},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use tokio::{task::JoinHandle, time::sleep};
use tracing::{info, warn};

use self::{
    lock::{Attempt, Failed, Lock},
    tenure::Tenure,
};
use crate::clock::Clock;

pub use self::tenure::LeaderGuard;

/// A standby looks at least this often, so that a leader that leaves in good order is followed soon.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// Who wants to lead, and by which Lease.
#[derive(Clone, Debug)]
pub struct LeaderParams {
    /// The namespace of the Lease; it must exist.
    pub namespace: String,
    /// The name of the Lease; it is created where it is missing.
    pub name: String,
    /// What distinguishes this process from every other, earlier ones included.
    pub identity: Identity,
    /// How long others wait for a leader that has fallen silent: whole seconds, from 1 to 3600.
    pub duration: Duration,
    /// How long before the end of `duration` this process stops regarding itself as the leader: longer than a write
    /// that was sent may take to arrive, and shorter than `duration`.
    pub grace: Duration,
}

impl LeaderParams {
    fn seconds(&self) -> Result<i32, LeaderError> {
        let seconds = i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX);
        if self.duration.subsec_nanos() != 0 || !(1..=3600).contains(&seconds) {
            return Err(LeaderError::Params("the duration is not a whole number of seconds from 1 to 3600"));
        }
        if self.grace >= self.duration {
            return Err(LeaderError::Params("the grace is not shorter than the duration"));
        }
        Ok(seconds)
    }

    /// How long one confirmation lasts.
    fn window(&self) -> Duration {
        self.duration.saturating_sub(self.grace)
    }

    /// Between two renewals, and the longest time one request may take: two may fail and the third still be in time.
    fn period(&self) -> Duration {
        self.window() / 3
    }
}

/// A name for this process that people can read: where it runs, its process id, and a random part, because in a
/// restarted container the others are the same again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: String,
    /// What the names of all processes of this one's pod begin with.
    pod: Option<String>,
}

impl Identity {
    /// This process's. With the uid of its pod it recognises its predecessors there.
    pub fn new(hostname: &str, pod_uid: Option<&str>) -> Self {
        let random = RandomState::new().hash_one(std::process::id());
        let pod = pod_uid.map(|uid| format!("{}_{}_", hostname.trim(), uid.trim()));
        let place = pod.clone().unwrap_or_else(|| format!("{}_", hostname.trim()));
        Self { name: format!("{place}{}_{random:016x}", std::process::id()), pod }
    }

    /// As the Lease names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a process of that name ran before this one in the same pod, and has therefore ended. One that somebody
    /// starts beside it by hand does not come so far: the address of the probes is taken.
    fn follows(&self, name: &str) -> bool {
        name != self.name && self.pod.as_ref().is_some_and(|pod| name.starts_with(pod))
    }
}

impl Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why this process cannot take part in the election.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The parameters contradict themselves.
    #[error("leader election: {0}")]
    Params(&'static str),
    /// There is no such namespace, so there can be no Lease in it.
    #[error("leader election: the namespace {0:?} does not exist")]
    NoNamespace(String),
    /// The API server refuses, which waiting does not change.
    #[error("leader election: the API server refuses to {action} the Lease {lease}: {message}")]
    Refused {
        /// `read`, `create` or `update`.
        action: &'static str,
        /// Namespace and name.
        lease: String,
        /// What the API server says.
        message: String,
    },
    /// The Lease could not be given back; others wait until it expires.
    #[error("leader election: the Lease {lease} could not be released and expires by itself: {reason}")]
    NotReleased {
        /// Namespace and name.
        lease: String,
        /// What went wrong.
        reason: String,
    },
}

/// How this process ceased to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The last confirmation is too old: the API server was out of reach, or this process was stopped.
    Unconfirmed {
        /// What the last attempt to renew ran into, if there was one.
        last_error: Option<String>,
    },
    /// Another process holds the Lease.
    Taken {
        /// Its identity.
        holder: String,
    },
    /// Somebody deleted the Lease or took the holder out of it.
    Gone,
    /// The task that renews has ended unexpectedly.
    Broken,
}

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconfirmed { last_error: None } => {
                f.write_str("the lead could not be confirmed in time: this process was stopped or starved")
            }
            Self::Unconfirmed { last_error: Some(error) } => {
                write!(f, "the lead could not be confirmed in time: {error}")
            }
            Self::Taken { holder } => write!(f, "{holder} holds the Lease now"),
            Self::Gone => f.write_str("the Lease was deleted or emptied"),
            Self::Broken => f.write_str("the renewal of the Lease has broken down"),
        }
    }
}

/// Waits until this process leads; says once in the log for whom it waits.
///
/// While the API server is out of reach it goes on waiting.
///
/// # Errors
/// Contradictory parameters, a namespace that does not exist, and an API server that refuses.
pub async fn acquire(client: Client, params: LeaderParams, clock: Arc<dyn Clock>) -> Result<Leadership, LeaderError> {
    let lock = Lock::new(client, params, clock)?;
    let longest = LONGEST_LOOK.min(lock.params.duration / 4);
    let mut sighting = None;
    let mut trouble = String::new();
    loop {
        let look = match lock.try_to_take(&mut sighting).await {
            Ok(Attempt::Leads { lease, since }) => {
                info!(lease = %lock.id(), identity = %lock.params.identity, "this process leads");
                return Ok(Leadership::start(lock, *lease, since));
            }
            Ok(Attempt::Wait(left)) => left,
            Err(Failed::Stale | Failed::Missing) => Duration::ZERO,
            Err(Failed::Trouble(message)) => {
                if trouble != message {
                    warn!(lease = %lock.id(), error = %message, "still waiting to lead");
                    trouble = message;
                }
                longest
            }
            Err(Failed::Fatal(error)) => return Err(error),
        };
        // The lower bound keeps contenders that collide from spinning.
        sleep(look.clamp(longest / 10, longest)).await;
    }
}

/// This process leads, until [`Leadership::lost`] says otherwise; renewal goes on by itself in the background.
///
/// Dropping it ends the lead for this process at once, and for the others when the Lease expires.
#[derive(Debug)]
pub struct Leadership {
    lock: Arc<Lock>,
    tenure: Arc<Tenure>,
    keeper: JoinHandle<Lost>,
    lost: Option<Lost>,
}

impl Leadership {
    fn start(lock: Lock, lease: Lease, since: Instant) -> Self {
        let lock = Arc::new(lock);
        let tenure = Arc::new(Tenure::new(lock.clock.clone(), lock.params.window(), since));
        let keeper = tokio::spawn(keep(lock.clone(), lease, tenure.clone()));
        Self { lock, tenure, keeper, lost: None }
    }

    /// What every writer asks before every write.
    pub fn guard(&self) -> LeaderGuard {
        LeaderGuard::of(self.tenure.clone())
    }

    /// Resolves when this process no longer leads. The process must end then, without another write. It may be
    /// cancelled and called again.
    pub async fn lost(&mut self) -> Lost {
        if let Some(lost) = &self.lost {
            return lost.clone();
        }
        let lost = (&mut self.keeper).await.unwrap_or(Lost::Broken);
        self.tenure.end();
        self.lost.insert(lost).clone()
    }

    /// Gives the Lease back, so that the next leader need not wait for its end. From the first moment on no guard is
    /// valid any more: finish all writing before. It takes no longer than a third of what a confirmation lasts.
    ///
    /// # Errors
    /// [`LeaderError::NotReleased`] where the API server could not be told, which is no reason to stay.
    pub async fn release(self) -> Result<(), LeaderError> {
        self.tenure.end();
        self.keeper.abort();
        self.lock.give_back().await
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.tenure.end();
        self.keeper.abort();
    }
}

async fn keep(lock: Arc<Lock>, mut lease: Lease, tenure: Arc<Tenure>) -> Lost {
    loop {
        sleep(lock.params.period()).await;
        lease = match lock.renew(lease, &tenure).await {
            Ok(lease) => lease,
            Err(lost) => {
                tenure.end();
                return lost;
            }
        };
    }
}
