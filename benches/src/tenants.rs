//! The tenants that are made: the mix of tiers, and what their owners would write.

use serde_json::{Value, json};

/// A thousand tenants are 600, 250, 120 and 30 of the four tiers, with as many bots as each may have: 4,050.
const TIERS: [(&str, usize, usize); 4] = [("free", 600, 1), ("basic", 250, 3), ("pro", 120, 10), ("premium", 30, 50)];
/// Services of a tenant beside its bots: database, Redis, dashboard, exporter.
const SERVICES: usize = 4;

/// A tenant to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: &'static str,
    /// Its bots, in one fleet.
    pub bots: usize,
}

impl Tenant {
    /// Pods that it becomes.
    pub fn pods(&self) -> usize {
        SERVICES + self.bots
    }

    /// The object as its owner writes it.
    pub fn manifest(&self) -> Value {
        let strategy = json!({"kind": "script", "config": "script_file_name: simple_pmm_example.py\n"});
        json!({
            "apiVersion": "torpor.dev/v1alpha1",
            "kind": "Tenant",
            "metadata": {"name": self.name},
            "spec": {"tier": self.tier, "fleets": [{"name": "makers", "replicas": self.bots, "strategy": strategy}]},
        })
    }
}

/// One of each tier.
pub fn samples(prefix: &str) -> Vec<Tenant> {
    TIERS.iter().map(|(tier, _, bots)| Tenant { name: format!("{prefix}-{tier}"), tier, bots: *bots }).collect()
}

/// So many of one tier.
pub fn alike(prefix: &str, tier: &str, count: usize) -> Vec<Tenant> {
    let found = TIERS.iter().find(|known| known.0 == tier);
    let named = |(tier, _, bots): &(&'static str, usize, usize)| {
        (0..count).map(|number| Tenant { name: format!("{prefix}-{number}"), tier, bots: *bots }).collect()
    };
    found.map(named).unwrap_or_default()
}

/// The `index`th of equally large blocks. All blocks together have the mix of a thousand, as nearly as their number allows.
pub fn block(prefix: &str, size: usize, index: usize) -> Vec<Tenant> {
    let until = |of_thousand: usize, blocks: usize| blocks * size * of_thousand / 1_000;
    let mut tenants = Vec::new();
    // The rarest first; the most frequent tier takes what rounding leaves.
    for (tier, share, bots) in TIERS.iter().rev() {
        let count = match *tier {
            "free" => size.saturating_sub(tenants.len()),
            _ => until(*share, index + 1) - until(*share, index),
        };
        let number = tenants.len();
        tenants.extend((number..number + count).map(|number| Tenant {
            name: format!("{prefix}-{number}"),
            tier,
            bots: *bots,
        }));
    }
    // As they would come: no tier after the other.
    let mut random = fastrand::Rng::with_seed(index as u64);
    random.shuffle(&mut tenants);
    tenants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_add_up_to_the_mix() {
        let all: Vec<Tenant> = (0..20).flat_map(|index| block("t", 50, index)).collect();
        let of = |tier: &str| all.iter().filter(|tenant| tenant.tier == tier).count();
        assert_eq!((of("free"), of("basic"), of("pro"), of("premium")), (600, 250, 120, 30));
        assert_eq!(all.iter().map(|tenant| tenant.bots).sum::<usize>(), 4_050);
        assert!((0..20).all(|index| block("t", 50, index).len() == 50));
    }

    #[test]
    fn names_differ_within_a_block() {
        let names: std::collections::BTreeSet<_> = block("t", 30, 0).into_iter().map(|tenant| tenant.name).collect();
        assert_eq!(names.len(), 30);
    }
}
