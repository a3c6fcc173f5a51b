//! What an answer of the API server means for the work at hand.

use std::time::Duration;

use thiserror::Error;

/// The answer to a request, its body included, or that there was none within so long. What was asked for may be done all the same.
///
/// # Errors
/// That of the answer, and [`ClusterError::Transient`] where there is none.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    let late = || ClusterError::Transient { what: what.to_owned(), reason: format!("no answer in {limit:?}") };
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
}

/// Why a request did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClusterError {
    /// A retry cannot help until somebody changes something.
    #[error("{what}: the API server refuses it: {reason}")]
    Refused {
        /// The object, as `kind namespace/name`.
        what: String,
        /// The API server's words.
        reason: String,
    },
    /// The object belongs to somebody else and was not touched.
    #[error("{what} exists and is not managed by Torpor for this tenant; it was not touched")]
    NotOwned {
        /// The object, as `kind namespace/name`.
        what: String,
    },
    /// A `StatefulSet`'s claim templates differ from the wanted ones, which the API server never changes in place.
    #[error("{what}: its volumes have another size")]
    ClaimsDiffer {
        /// The object, as `kind namespace/name`.
        what: String,
    },
    /// Something is on its way and must finish first.
    #[error("{what}: {reason}")]
    Waiting {
        /// The object, as `kind namespace/name`.
        what: String,
        /// What is awaited.
        reason: String,
    },
    /// What the work began with is not what is known now, or not what there is.
    #[error("{what} has changed meanwhile")]
    Behind {
        /// The object, as `kind namespace/name`.
        what: String,
    },
    /// It failed for a reason of this object's own, such as a conflict or an admission webhook that does not answer. The next try may
    /// succeed, and others need not wait for it.
    #[error("{what}: {reason}")]
    Failed {
        /// The object, as `kind namespace/name`.
        what: String,
        /// What happened.
        reason: String,
    },
    /// The API server could not be reached, or was busy. The next try may succeed.
    #[error("{what}: {reason}")]
    Transient {
        /// The object, as `kind namespace/name`.
        what: String,
        /// What happened.
        reason: String,
    },
    /// This process may no longer write: it does not lead.
    #[error("this process does not lead any more")]
    NotLeading,
}

impl ClusterError {
    /// Classifies an error of the client.
    pub fn of(what: &str, error: &kube::Error) -> Self {
        let what = what.to_owned();
        match error {
            kube::Error::Api(status) => {
                let reason = status.message.clone();
                let ending = status.is_forbidden() && reason.contains("because it is being terminated");
                match status.code {
                    _ if ending => ClusterError::Waiting { what, reason: "its namespace is being deleted".to_owned() },
                    400 | 403 | 405 | 413 | 415 | 422 => ClusterError::Refused { what, reason },
                    // Webhooks that hang, one after the other, outlast the time that the API server gives a write.
                    404 | 409 | 504 => ClusterError::Failed { what, reason },
                    _ if reason.contains("webhook") => ClusterError::Failed { what, reason },
                    _ => ClusterError::Transient { what, reason },
                }
            }
            other => ClusterError::Transient { what, reason: other.to_string() },
        }
    }

    /// Whether the object was not there.
    pub fn is_not_found(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Api(status) if status.code == 404)
    }

    /// Whether what was to be made is there already. A quota that others change at the same moment answers 409, too, and nothing is there.
    pub fn is_there(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Api(status) if status.code == 409 && status.is_already_exists())
    }

    /// Whether the object was not the expected one, or others have written it at the same moment.
    pub fn is_conflict(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Api(status) if status.code == 409)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_quota_that_others_change_is_no_object_that_exists() {
        let answer = |reason: &str| kube::Error::Api(Status::failure("no", reason).with_code(409).boxed());
        assert!(ClusterError::is_there(&answer("AlreadyExists")));
        let quota = answer("Conflict");
        assert!(!ClusterError::is_there(&quota));
        assert!(matches!(ClusterError::of("it", &quota), ClusterError::Failed { .. }));
    }

    #[test]
    fn a_webhook_is_one_objects_own_and_a_sick_etcd_is_not() {
        let answer = |text: &str| kube::Error::Api(Status::failure(text, "InternalError").with_code(500).boxed());
        let webhook = answer("Internal error occurred: failed calling webhook \"a.b\": context deadline exceeded");
        assert!(matches!(ClusterError::of("it", &webhook), ClusterError::Failed { .. }));
        assert!(matches!(
            ClusterError::of("it", &answer("etcdserver: leader changed")),
            ClusterError::Transient { .. }
        ));
    }
}
