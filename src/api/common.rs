//! Types that more than one resource uses.

use std::fmt;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

// Patterns are checked by CEL and not by the schema's `pattern`, because the API server answers
// with the rule's message instead of a regular expression, and the same rule runs without a cluster.

/// A duration: one number and one unit, so that CEL can compare two.
pub const CEL_DURATION: &str = "self.matches('^[1-9][0-9]{0,5}[smhd]$')";
/// Message of [`CEL_DURATION`].
pub const DURATION_MESSAGE: &str = "must be a duration of one number and one unit s, m, h or d, like 36h or 7d";
/// A DNS label, which names of fleets, Secrets, ConfigMaps and PriorityClasses follow.
pub const CEL_DNS_LABEL: &str = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')";
/// Message of [`CEL_DNS_LABEL`].
pub const DNS_LABEL_MESSAGE: &str =
    "must be a DNS label: lower case letters, digits and '-', with a letter or digit at both ends";
/// A container image reference: no blanks, nothing a shell would expand.
pub const CEL_IMAGE: &str = "self.matches('^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$')";
/// Message of [`CEL_IMAGE`].
pub const IMAGE_MESSAGE: &str = "must be an image reference like hummingbot/hummingbot:version-2.16.0";
/// A CPU limit. The comparison also catches `0`.
pub const CEL_CPU: &str = "self.matches('^[0-9]{1,6}(m|[.][0-9]{1,3})?$') && \
     quantity(self).compareTo(quantity('10m')) >= 0 && quantity(self).compareTo(quantity('256')) <= 0";
/// Message of [`CEL_CPU`].
pub const CPU_MESSAGE: &str = "must be CPU cores from 10m to 256, like 200m or 0.5";
/// A memory limit. The comparison also catches a forgotten unit.
pub const CEL_MEMORY: &str = "self.matches('^[0-9]{1,12}([.][0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') && \
     quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('4Ti')) <= 0";
/// Message of [`CEL_MEMORY`].
pub const MEMORY_MESSAGE: &str = "must be memory from 16Mi to 4Ti, like 512Mi or 2Gi";
/// Size of a volume. The comparison also catches a forgotten unit.
pub const CEL_STORAGE: &str = "self.matches('^[0-9]{1,12}([.][0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$') && \
     quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0";
/// Message of [`CEL_STORAGE`].
pub const STORAGE_MESSAGE: &str = "must be a size from 16Mi to 64Ti, like 500Mi or 5Gi";
/// The transition rule of a storage size: a volume can grow and never shrink.
pub const CEL_STORAGE_KEEPS: &str =
    "!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0";

/// The CEL rule that of two duration fields the second is not shorter. It holds when one is absent or no
/// duration, which [`CEL_DURATION`] reports.
pub fn cel_not_shorter(first: &str, second: &str) -> String {
    let legal = |field: &str| format!("{field}.matches('^[1-9][0-9]{{0,5}}[smhd]$')");
    let seconds = |field: &str| {
        format!(
            "int({field}.substring(0, {field}.size() - 1)) * ({field}.endsWith('d') ? 86400 : \
             {field}.endsWith('h') ? 3600 : {field}.endsWith('m') ? 60 : 1)"
        )
    };
    format!(
        "!has({first}) || !has({second}) || !{} || !{} || {} <= {}",
        legal(first),
        legal(second),
        seconds(first),
        seconds(second)
    )
}

/// Service tier: how many bots, how much CPU and memory, which pool, which hibernation policy.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// CPU and memory of one container, as limits. A service requests half of the CPU and all of the memory, a bot the tier
/// catalogue's share of both, which is half.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU limit in cores or millicores, for example `200m`. Default: the tier's share, and 200m for a bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_CPU).message(CPU_MESSAGE))]
    pub cpu: Option<String>,
    /// Memory limit in bytes, for example `512Mi`. Default: the tier's share, and 512Mi for a bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_MEMORY).message(MEMORY_MESSAGE))]
    pub memory: Option<String>,
}
