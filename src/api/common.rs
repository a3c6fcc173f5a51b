//! Types that more than one resource uses.

use std::fmt;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Pattern of a duration: one number and one unit (`s`, `m`, `h`, `d`), so that CEL can compare two.
pub const DURATION_PATTERN: &str = "^[1-9][0-9]{0,5}[smhd]$";
/// Pattern of a Kubernetes quantity as far as Torpor needs it.
pub const QUANTITY_PATTERN: &str = r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";
/// Pattern of a DNS label, which names of fleets, Secrets and ConfigMaps follow.
pub const DNS_LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Pattern of a container image reference: no blanks, nothing a shell would expand.
pub const IMAGE_PATTERN: &str = r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$";

/// The CEL expression for the seconds that a duration field like `7d` stands for.
pub fn cel_seconds(field: &str) -> String {
    format!(
        "int({field}.substring(0, {field}.size() - 1)) * ({field}.endsWith('d') ? 86400 : \
         {field}.endsWith('h') ? 3600 : {field}.endsWith('m') ? 60 : 1)"
    )
}

/// The CEL transition rule of a storage size: a volume can grow and never shrink.
pub const CEL_STORAGE_KEEPS: &str = "quantity(self).compareTo(quantity(oldSelf)) >= 0";

/// Service tier: how many bots, how much CPU and memory, which pool, which hibernation policy.
#[derive(
    Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Smallest tier; always hibernates when idle.
    Free,
    /// Paid entry tier; hibernates when idle.
    Basic,
    /// Sleeps only when its user agrees.
    Pro,
    /// Never sleeps by itself; runs on dedicated nodes.
    Premium,
}

impl Tier {
    /// Every tier, from the smallest to the largest.
    pub const ALL: [Tier; 4] = [Tier::Free, Tier::Basic, Tier::Pro, Tier::Premium];

    /// The word users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Free => "free",
            Tier::Basic => "basic",
            Tier::Pro => "pro",
            Tier::Premium => "premium",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// CPU and memory of one container, as limits. The CPU request is half of the limit,
/// the memory request is the whole of it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU limit in cores or millicores, for example `200m`. Default: the tier's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = QUANTITY_PATTERN))]
    pub cpu: Option<String>,
    /// Memory limit in bytes, for example `512Mi`. Default: the tier's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = QUANTITY_PATTERN))]
    pub memory: Option<String>,
}
