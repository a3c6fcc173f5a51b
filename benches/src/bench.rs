//! One run: its size, its figures so far, and the settled fleet that several measurements share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::audit::Tail;
use crate::report::{Progress, Row};
use crate::tenants::{Tenant, block};
use crate::world::{LONG, World};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// What it is called.
    pub name: &'static str,
    /// What a run of everything has no time for, or could tell nothing of.
    pub by_name_only: &'static [&'static str],
    /// Tenants of one block of creation.
    pub block: usize,
    /// Pairs of such blocks: one by the operator, one by the replayer.
    pub pairs: usize,
    /// Restarts of the operator.
    pub restarts: usize,
    /// Rounds of starts of the operator and of its twins.
    pub twin_rounds: usize,
    /// Tenants that are woken one after the other.
    pub wakes: usize,
    /// Tenants that are woken at once.
    pub burst: usize,
    /// Tenants that become due at once, or as many as may sleep by themselves.
    pub due: usize,
    /// Numbers of tenants at which the cost of a further one is taken.
    pub curve: &'static [usize],
    /// Tenants whose processor time is one sample of it.
    pub curve_sample: usize,
    /// Tenants beside which memory is taken once more, without the cost of a further one.
    pub most: usize,
    /// Tenants of one block of the comparison with Helm.
    pub helm_block: usize,
    /// Pairs of such blocks: one by the operator, one by Helm.
    pub helm_pairs: usize,
    /// Tenants beside which the hibernator is measured alone.
    pub members: usize,
    /// How long it is watched while it is idle.
    pub idle: Duration,
    /// How long the gateway is asked a thousand times a second.
    pub logins: Duration,
}

/// Minutes.
pub const QUICK: Size = Size {
    name: "quick",
    // A further tenant beside a hundred costs what chance makes of it.
    by_name_only: &["twin", "cost", "hibernator", "logins"],
    block: 6,
    pairs: 2,
    restarts: 3,
    twin_rounds: 1,
    wakes: 10,
    burst: 20,
    due: 8,
    curve: &[20, 100],
    curve_sample: 10,
    most: 150,
    helm_block: 4,
    helm_pairs: 1,
    members: 1_000,
    idle: Duration::from_secs(10),
    logins: Duration::from_secs(10),
};

/// A thousand tenants and more.
pub const FULL: Size = Size {
    name: "full",
    by_name_only: &["twin", "hibernator", "logins"],
    block: 50,
    pairs: 10,
    restarts: 6,
    twin_rounds: 4,
    wakes: 100,
    burst: 300,
    due: 300,
    curve: &[250, 1_000, 4_000],
    curve_sample: 50,
    most: 5_000,
    helm_block: 25,
    helm_pairs: 2,
    members: 10_000,
    idle: Duration::from_secs(60),
    logins: Duration::from_secs(60),
};

/// A cluster with settled tenants and a running operator.
pub struct Fleet {
    /// The cluster.
    pub world: World,
    /// Its tenants, all of them Ready.
    pub tenants: Vec<Tenant>,
}

impl Fleet {
    /// The tenants' names.
    pub fn names(&self) -> Vec<String> {
        self.tenants.iter().map(|tenant| tenant.name.clone()).collect()
    }
}

/// One run.
pub struct Bench {
    /// How much.
    pub size: Size,
    /// The binary under test.
    pub binary: PathBuf,
    /// The replayer.
    pub replayer: PathBuf,
    /// Where to say how far it is.
    pub progress: Progress,
    /// Figures so far.
    pub rows: Vec<Row>,
    fleet: Option<Fleet>,
}

impl Bench {
    /// Nothing is measured yet.
    pub fn new(size: Size, binary: PathBuf, replayer: PathBuf) -> Self {
        Bench { size, binary, replayer, progress: Progress::default(), rows: Vec::new(), fleet: None }
    }

    /// Keeps a fleet for the measurements to come.
    pub fn keep(&mut self, fleet: Fleet) {
        self.fleet = Some(fleet);
    }

    /// Takes the fleet, or makes one: as many tenants as the measurement of creation makes. Give it back with [`Bench::keep`].
    pub fn fleet(&mut self) -> Result<Fleet> {
        let mut fleet = match self.fleet.take() {
            Some(fleet) => fleet,
            None => self.new_fleet()?,
        };
        fleet.world.start_operator(&[])?;
        fleet.world.await_settled()?;
        Ok(fleet)
    }

    /// Ends the fleet, so that the next measurement has the machine for itself.
    pub fn forget_fleet(&mut self) {
        self.fleet = None;
    }

    fn new_fleet(&self) -> Result<Fleet> {
        let mut world = World::start(&self.binary, &self.progress)?;
        world.start_operator(&[])?;
        let mut tenants = Vec::new();
        for index in 0..2 * self.size.pairs {
            self.progress.say(format_args!("making the fleet: block {} of {}", index + 1, 2 * self.size.pairs));
            let part = block(&format!("t{index}"), self.size.block, index / 2);
            let mut tail = Tail::start(&world.cluster)?;
            world.create(&part)?;
            tail.await_pods(part.iter().map(Tenant::pods).sum(), LONG).context("making the fleet")?;
            tenants.extend(part);
        }
        let fleet = Fleet { world, tenants };
        fleet.world.await_condition(&fleet.names(), "Ready", "True")?;
        Ok(fleet)
    }
}
