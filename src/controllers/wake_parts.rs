//! How far each part of a stack is during a wake-up, for people who wait for it. Pure.

use super::fleet_views::{FleetState, FleetView};
use super::steps::{Seen, State};
use crate::api::tenant::{PartState, WakePart};
use crate::domain::names;

/// The schema takes no more.
const MESSAGE_LENGTH: usize = 1_000;

/// The parts in the order in which they come up. `unready` tells why a workload is not as wanted.
pub fn of(seen: Seen, fleets: &[FleetView], unready: impl Fn(&str) -> Option<String>) -> Vec<WakePart> {
    let before = [(names::DATABASE, seen.database), (names::REDIS, seen.redis)];
    let part = |name: &str, state: State, stands_on: usize| {
        let awaited = before.iter().take(stands_on).find(|(_, state)| !state.ready());
        let message = match state {
            State::Missing | State::Gone => awaited.map(|(name, _)| format!("waits for {name}")),
            State::Stopping => Some("stops first".to_owned()),
            State::Starting => unready(name),
            State::Ready => None,
        };
        wake_part(name, progress(state), message)
    };
    let mut parts = vec![
        part(names::DATABASE, seen.database, 0),
        part(names::REDIS, seen.redis, 1),
        part(names::MONITORING, seen.exporter, 1),
        part(names::DASHBOARD, seen.dashboard, 2),
    ];
    if !fleets.is_empty() {
        let waits = part(names::BOTS, seen.bots, 2);
        parts.push(if waits.state == PartState::Starting { bots(fleets) } else { waits });
    }
    parts
}

const fn progress(state: State) -> PartState {
    match state {
        State::Missing | State::Gone => PartState::Waiting,
        State::Stopping => PartState::Stopping,
        State::Starting => PartState::Starting,
        State::Ready => PartState::Ready,
    }
}

/// Whether bots that are up are ready is for their fleets to say.
fn bots(fleets: &[FleetView]) -> WakePart {
    let message = fleets.iter().find_map(|fleet| match &fleet.state {
        FleetState::Ready => None,
        FleetState::Working(reason) => Some(format!("fleet {}: {reason}", fleet.name)),
        FleetState::Stalled(condition) => Some(format!("fleet {}: {}", fleet.name, condition.message)),
    });
    let state = if message.is_none() { PartState::Ready } else { PartState::Starting };
    wake_part(names::BOTS, state, message)
}

fn wake_part(name: &str, state: PartState, message: Option<String>) -> WakePart {
    let message = message.map(|message| message.chars().take(MESSAGE_LENGTH).collect());
    WakePart { name: name.to_owned(), state, message }
}

#[cfg(test)]
mod tests {
    use super::super::steps::Shrunk;
    use super::*;

    fn seen(database: State, redis: State, dashboard: State, bots: State) -> Seen {
        Seen { database, shrunk: Shrunk::No, exporter: State::Gone, redis, dashboard, bots }
    }

    fn told(seen: Seen, fleets: &[FleetView]) -> Vec<String> {
        let parts = of(seen, fleets, |name| Some(format!("{name} 0/1 ready")));
        let one = |part: WakePart| format!("{} {:?} {}", part.name, part.state, part.message.unwrap_or_default());
        parts.into_iter().map(one).collect()
    }

    #[test]
    fn each_part_tells_what_it_waits_for() {
        let fleet = |state| FleetView { name: "makers".to_owned(), state };
        let working = [fleet(FleetState::Working("1/3 bots ready".to_owned()))];
        let early = told(seen(State::Starting, State::Gone, State::Gone, State::Stopping), &working);
        assert_eq!(
            early,
            [
                "postgres Starting postgres 0/1 ready",
                "redis Waiting waits for postgres",
                "monitoring Waiting waits for postgres",
                "dashboard Waiting waits for postgres",
                "bots Stopping stops first",
            ]
        );
        let late = told(seen(State::Ready, State::Starting, State::Gone, State::Gone), &working);
        assert_eq!(late[3..], ["dashboard Waiting waits for redis", "bots Waiting waits for redis"]);
        let up = seen(State::Ready, State::Ready, State::Ready, State::Starting);
        assert_eq!(told(up, &working)[4], "bots Starting fleet makers: 1/3 bots ready");
        assert_eq!(told(up, &[fleet(FleetState::Ready)])[4], "bots Ready ");
        assert_eq!(told(up, &[]).len(), 4, "nobody waits for bots that nobody asked for");
    }
}
