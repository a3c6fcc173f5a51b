//! Who a caller is and what it may do: asked of the API server, which knows every way of the cluster to tell.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{ClusterError, within};

/// Somebody waits for the answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who a token belongs to, as far as authorisation asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user's name, for example `system:serviceaccount:portal:backend`.
    pub user: String,
    /// The user's uid.
    pub uid: Option<String>,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What else the authenticator says of the user.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do to Tenants; names of verbs and resources are those of a `ClusterRole`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    /// The verb.
    pub verb: &'static str,
    /// The part after `tenants/`.
    pub subresource: &'static str,
}

/// Asks the API server about callers.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
}

impl Reviewer {
    /// A reviewer over this client.
    pub fn new(client: Client) -> Self {
        Reviewer { client }
    }

    /// Who a bearer token belongs to; `None` for one that is not valid here. Without audiences the token must be meant
    /// for the API server itself.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn identify(&self, token: &str, audiences: &[String]) -> Result<Option<Identity>, ClusterError> {
        let wanted = (!audiences.is_empty()).then(|| audiences.to_vec());
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: wanted };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = self.ask("TokenReview", &review).await?.status.unwrap_or_default();
        // An authenticator that knows nothing of audiences names none, and then nobody has checked them.
        let named = status.audiences.unwrap_or_default();
        let meant = audiences.is_empty() || audiences.iter().any(|audience| named.contains(audience));
        let user = status.user.filter(|_| meant && status.authenticated == Some(true));
        Ok(user.map(|user| Identity {
            user: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    /// Whether somebody may do that to a tenant, or to every tenant where none is named.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn permits(&self, who: &Identity, action: Action, tenant: Option<&str>) -> Result<bool, ClusterError> {
        let spec = SubjectAccessReviewSpec {
            user: Some(who.user.clone()),
            uid: who.uid.clone(),
            groups: Some(who.groups.clone()),
            extra: Some(who.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some("torpor.dev".to_owned()),
                resource: Some("tenants".to_owned()),
                subresource: Some(action.subresource.to_owned()),
                verb: Some(action.verb.to_owned()),
                name: tenant.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let what = "SubjectAccessReview";
        let status = self.ask(what, &review).await?.status.unwrap_or_default();
        let denied = status.denied == Some(true);
        if status.allowed || denied {
            return Ok(!denied);
        }
        match status.evaluation_error.filter(|reason| !reason.is_empty()) {
            // Somebody who was to be asked was not there, and may know better.
            Some(reason) => Err(ClusterError::Transient { what: what.to_owned(), reason }),
            None => Ok(false),
        }
    }

    async fn ask<K>(&self, what: &str, review: &K) -> Result<K, ClusterError>
    where
        K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let params = PostParams::default();
        within(PATIENCE, what, async {
            api.create(&params, review).await.map_err(|error| ClusterError::of(what, &error))
        })
        .await
    }
}
