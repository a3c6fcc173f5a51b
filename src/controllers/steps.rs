//! The order in which parts go down and come up: a pure function from the wanted stage and what is seen to the
//! parts to plan for now.
//!
//! Down: bots, then Redis and dashboard, then the exporter, then the database to its least size; each only when
//! everything before it has gone. Up: the database at full size, then Redis and exporter, then the dashboard, then
//! bots; each only when what it stands on is ready, and only during a wake. Bots come last, but they do not stand on
//! the dashboard: one that is slow or broken keeps nobody from trading. A part that runs is never stopped because of
//! another one.

use crate::domain::names;
use crate::domain::stage::Stage;
use crate::plan::{DatabaseSize, Parts};

/// How far one part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Its workload does not exist, and no pod of it.
    Missing,
    /// Its workload asks for no pod, and none is left.
    Gone,
    /// Its workload asks for no pod; some are left.
    Stopping,
    /// It is up, and not all of it is as wanted.
    Starting,
    /// It is up and as wanted.
    Ready,
}

impl State {
    /// Every state.
    pub const ALL: [State; 5] = [State::Missing, State::Gone, State::Stopping, State::Starting, State::Ready];

    /// Nothing of it is left.
    pub const fn gone(self) -> bool {
        matches!(self, State::Missing | State::Gone)
    }

    /// It is meant to be up.
    pub const fn runs(self) -> bool {
        matches!(self, State::Starting | State::Ready)
    }

    /// It is up and as wanted.
    pub const fn ready(self) -> bool {
        matches!(self, State::Ready)
    }
}

/// Whether the database has its least size, as far as that is wanted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shrunk {
    /// It has another size.
    No,
    /// Its workload has the least size; its pod is not the one it should be.
    Written,
    /// It runs at its least size.
    Ready,
}

/// What is seen of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The database, compared with its full size.
    pub database: State,
    /// The database, compared with its least size.
    pub shrunk: Shrunk,
    /// The metrics exporter.
    pub exporter: State,
    /// Redis.
    pub redis: State,
    /// The dashboard.
    pub dashboard: State,
    /// Bots: of all fleets in a Tenant's pass, of one fleet in that fleet's.
    pub bots: State,
}

impl Seen {
    const fn services_gone(self) -> bool {
        self.redis.gone() && self.dashboard.gone()
    }

    const fn all_gone(self) -> bool {
        self.bots.gone() && self.services_gone() && self.exporter.gone()
    }
}

/// The parts to plan for now. `waking` tells that parts come up again after sleep, in which case they wait for
/// each other; a new tenant's start at once.
pub fn next(wanted: Stage, seen: Seen, waking: bool) -> Parts {
    let target = Parts::of(wanted);
    let step = |up: bool, state: State, before: bool, may_go: bool| {
        if up { state.runs() || before || !waking } else { state.runs() && !may_go }
    };
    let database = seen.database.ready();
    let services = database && seen.redis.ready();
    Parts {
        database: match target.database {
            DatabaseSize::Full => DatabaseSize::Full,
            DatabaseSize::Least if seen.all_gone() || seen.shrunk != Shrunk::No || seen.database == State::Missing => {
                DatabaseSize::Least
            }
            DatabaseSize::Least => DatabaseSize::Full,
        },
        exporter: step(target.exporter, seen.exporter, database, seen.bots.gone() && seen.services_gone()),
        redis: step(target.redis, seen.redis, database, seen.bots.gone()),
        dashboard: step(target.dashboard, seen.dashboard, services, seen.bots.gone()),
        bots: step(target.bots, seen.bots, services && seen.dashboard.runs(), true),
    }
}

/// What is still to go down for a stage, by the names of workloads.
pub fn left(wanted: Stage, seen: Seen) -> Vec<&'static str> {
    let target = Parts::of(wanted);
    let parts = [
        (names::BOTS, target.bots || seen.bots.gone()),
        (names::REDIS, target.redis || seen.redis.gone()),
        (names::DASHBOARD, target.dashboard || seen.dashboard.gone()),
        (names::MONITORING, target.exporter || seen.exporter.gone()),
        (names::DATABASE, target.database == DatabaseSize::Full || seen.shrunk == Shrunk::Ready),
    ];
    parts.into_iter().filter(|(_, done)| !done).map(|(name, _)| name).collect()
}

/// The first part that is held back on the way up, and what it waits for.
pub fn held(wanted: Stage, parts: Parts, seen: Seen) -> Option<(&'static str, &'static str)> {
    let target = Parts::of(wanted);
    let waits = [
        (names::REDIS, target.redis && !parts.redis),
        (names::MONITORING, target.exporter && !parts.exporter),
        (names::DASHBOARD, target.dashboard && !parts.dashboard),
        (names::BOTS, target.bots && !parts.bots),
    ];
    let (waiting, _) = waits.into_iter().find(|(_, waits)| *waits)?;
    let awaited = match (seen.database.ready(), seen.redis.ready()) {
        (false, _) => names::DATABASE,
        (true, false) => names::REDIS,
        (true, true) => names::DASHBOARD,
    };
    Some((waiting, awaited))
}

/// The stage that is reached on the way from the one reached before. `complete` tells that everything is as it
/// should be at stage Active, which parts alone do not tell: fleets have a say in it.
pub fn reached(before: Stage, wanted: Stage, seen: Seen, complete: bool) -> Stage {
    let is_down = |stage: &Stage| left(*stage, seen).is_empty();
    let is_up = |stage: &Stage| {
        let parts = Parts::of(*stage);
        let up = |wanted: bool, state: State| !wanted || state.ready();
        (parts.database == DatabaseSize::Least || seen.database.ready())
            && up(parts.exporter, seen.exporter)
            && up(parts.redis, seen.redis)
            && up(parts.dashboard, seen.dashboard)
            && (!parts.bots || complete)
    };
    let between = |stage: &Stage| (before.min(wanted)..=before.max(wanted)).contains(stage) && *stage != before;
    let found = if wanted > before {
        Stage::ALL.into_iter().rev().filter(between).find(is_down)
    } else {
        Stage::ALL.into_iter().filter(between).find(is_up)
    };
    found.unwrap_or(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_sight() -> impl Iterator<Item = Seen> {
        let states = || State::ALL.into_iter();
        let shrunk = [Shrunk::No, Shrunk::Written, Shrunk::Ready];
        states().flat_map(move |database| {
            shrunk.into_iter().flat_map(move |shrunk| {
                states().flat_map(move |exporter| {
                    states().flat_map(move |redis| {
                        states().flat_map(move |dashboard| {
                            states().map(move |bots| Seen { database, shrunk, exporter, redis, dashboard, bots })
                        })
                    })
                })
            })
        })
    }

    fn every_case() -> impl Iterator<Item = (Stage, Seen, bool)> {
        every_sight()
            .flat_map(|seen| Stage::ALL.into_iter().flat_map(move |stage| [(stage, seen, true), (stage, seen, false)]))
    }

    const AWAKE: Seen = Seen {
        database: State::Ready,
        shrunk: Shrunk::No,
        exporter: State::Ready,
        redis: State::Ready,
        dashboard: State::Ready,
        bots: State::Ready,
    };
    const ASLEEP: Seen = Seen {
        database: State::Starting,
        shrunk: Shrunk::Ready,
        exporter: State::Gone,
        redis: State::Gone,
        dashboard: State::Gone,
        bots: State::Gone,
    };

    /// What one more step leads to, with every part arriving at once.
    fn after(parts: Parts) -> Seen {
        let moved = |up: bool| if up { State::Ready } else { State::Gone };
        let small = parts.database == DatabaseSize::Least;
        Seen {
            database: if small { State::Starting } else { State::Ready },
            shrunk: if small { Shrunk::Ready } else { Shrunk::No },
            exporter: moved(parts.exporter),
            redis: moved(parts.redis),
            dashboard: moved(parts.dashboard),
            bots: moved(parts.bots),
        }
    }

    #[test]
    fn nothing_goes_down_before_what_stands_on_it_has_gone() {
        for (wanted, seen, waking) in every_case() {
            let parts = next(wanted, seen, waking);
            let case = format!("{wanted} {seen:?} {waking} {parts:?}");
            assert!(parts.redis || !seen.redis.runs() || seen.bots.gone(), "{case}");
            assert!(parts.dashboard || !seen.dashboard.runs() || seen.bots.gone(), "{case}");
            let services = seen.bots.gone() && seen.redis.gone() && seen.dashboard.gone();
            assert!(parts.exporter || !seen.exporter.runs() || services, "{case}");
            let shrinks = parts.database == DatabaseSize::Least && seen.shrunk == Shrunk::No;
            let clear = services && seen.exporter.gone() || seen.database == State::Missing;
            assert!(!shrinks || clear, "{case}");
        }
    }

    #[test]
    fn nothing_that_runs_is_stopped_unless_the_stage_says_so() {
        for (wanted, seen, waking) in every_case() {
            let (target, parts) = (Parts::of(wanted), next(wanted, seen, waking));
            let case = format!("{wanted} {seen:?} {waking} {parts:?}");
            for (up, state, planned) in [
                (target.exporter, seen.exporter, parts.exporter),
                (target.redis, seen.redis, parts.redis),
                (target.dashboard, seen.dashboard, parts.dashboard),
                (target.bots, seen.bots, parts.bots),
            ] {
                assert!(planned || !up || !state.runs(), "a running part of the stage stays up: {case}");
                assert!(!planned || up || state.runs(), "a part that is not of the stage is not started: {case}");
            }
            assert!(target.database == DatabaseSize::Least || parts.database == DatabaseSize::Full, "{case}");
        }
    }

    #[test]
    fn an_awake_tenant_runs_whatever_is_broken() {
        for seen in every_sight() {
            assert_eq!(next(Stage::Active, seen, false), Parts::of(Stage::Active), "{seen:?}");
        }
    }

    #[test]
    fn on_the_way_up_each_part_waits_for_the_one_before() {
        for (wanted, seen, _) in every_case() {
            let parts = next(wanted, seen, true);
            let case = format!("{wanted} {seen:?} {parts:?}");
            let ready = |state: State| state == State::Ready;
            assert!(!parts.redis || seen.redis.runs() || ready(seen.database), "{case}");
            assert!(!parts.exporter || seen.exporter.runs() || ready(seen.database), "{case}");
            let services = ready(seen.database) && ready(seen.redis);
            assert!(!parts.dashboard || seen.dashboard.runs() || services, "{case}");
            assert!(!parts.bots || seen.bots.runs() || services && seen.dashboard.runs(), "{case}");
            let target = Parts::of(wanted);
            let waits = (target.redis && !parts.redis)
                || (target.exporter && !parts.exporter)
                || (target.dashboard && !parts.dashboard)
                || (target.bots && !parts.bots);
            assert_eq!(held(wanted, parts, seen).is_some(), waits, "{case}");
        }
    }

    #[test]
    fn from_any_sight_every_stage_is_arrived_at() {
        for (wanted, start, waking) in every_case() {
            let mut seen = start;
            let mut parts = next(wanted, seen, waking);
            for _ in 0..6 {
                seen = after(parts);
                parts = next(wanted, seen, waking);
            }
            assert_eq!(parts, Parts::of(wanted), "{wanted} {start:?} {waking}");
            assert!(left(wanted, seen).is_empty() && held(wanted, parts, seen).is_none());
            for before in Stage::ALL {
                assert_eq!(reached(before, wanted, seen, true), wanted, "{before} {start:?}");
            }
        }
    }

    /// The parts planned and the stages told on the way, both without repetitions.
    fn way(from: Seen, stage: Stage, wanted: Stage) -> (Vec<String>, Vec<Stage>) {
        let (mut seen, mut told) = (from, stage);
        let (mut planned, mut stages) = (Vec::<String>::new(), Vec::new());
        for _ in 0..8 {
            let parts = next(wanted, seen, true);
            let up = [
                ("db", parts.database == DatabaseSize::Full),
                ("exporter", parts.exporter),
                ("redis", parts.redis),
                ("dashboard", parts.dashboard),
                ("bots", parts.bots),
            ];
            let up: Vec<&str> = up.into_iter().filter(|(_, up)| *up).map(|(name, _)| name).collect();
            planned.push(up.join(" "));
            seen = after(parts);
            told = reached(told, wanted, seen, seen == AWAKE);
            stages.push(told);
        }
        planned.dedup();
        stages.dedup();
        (planned, stages)
    }

    #[test]
    fn the_ways_down_and_up() {
        let down = ["db exporter redis dashboard", "db exporter", "db", ""].map(str::to_owned).to_vec();
        let stages = vec![Stage::BotsStopped, Stage::ServicesStopped, Stage::DatabaseOnly];
        let (planned, told) = way(AWAKE, Stage::Active, Stage::DatabaseOnly);
        // The exporter goes between two stages.
        assert_eq!((planned, told), (down, stages));
        let up = ["db", "db exporter redis", "db exporter redis dashboard", "db exporter redis dashboard bots"];
        let (planned, told) = way(ASLEEP, Stage::DatabaseOnly, Stage::Active);
        assert_eq!(planned, up);
        assert_eq!(told, [Stage::DatabaseOnly, Stage::ServicesStopped, Stage::BotsStopped, Stage::Active]);
        let (planned, told) = way(ASLEEP, Stage::DatabaseOnly, Stage::BotsStopped);
        assert_eq!(planned, &up[..3]);
        assert_eq!(told, [Stage::DatabaseOnly, Stage::ServicesStopped, Stage::BotsStopped]);
    }

    #[test]
    fn a_wait_names_what_is_awaited() {
        let wait = |seen: Seen| held(Stage::Active, next(Stage::Active, seen, true), seen);
        assert_eq!(wait(ASLEEP), Some(("redis", "postgres")));
        let up = Seen { database: State::Ready, shrunk: Shrunk::No, exporter: State::Ready, ..ASLEEP };
        assert_eq!(wait(Seen { redis: State::Starting, ..up }), Some(("dashboard", "redis")));
        let up = Seen { redis: State::Ready, ..up };
        assert_eq!(wait(up), Some(("bots", "dashboard")));
        assert_eq!(wait(Seen { dashboard: State::Starting, ..up }), None);
        assert_eq!(wait(AWAKE), None);
    }

    #[test]
    fn a_turn_half_way_keeps_what_runs() {
        // Bots stop while all else runs: the login brings the bots back and touches nothing else.
        let stopping = Seen { bots: State::Stopping, ..AWAKE };
        assert_eq!(next(Stage::Active, stopping, true), Parts::of(Stage::Active));
        // The database was told to shrink and its pod not yet replaced: it is full again at once.
        let shrinking = Seen { shrunk: Shrunk::Written, ..ASLEEP };
        let parts = next(Stage::Active, shrinking, true);
        assert_eq!(parts, Parts { database: DatabaseSize::Full, ..Parts::of(Stage::DatabaseOnly) });
        // A broken database stops nobody.
        let broken = Seen { database: State::Starting, bots: State::Starting, ..AWAKE };
        assert_eq!(next(Stage::Active, broken, true), Parts::of(Stage::Active));
    }
}
