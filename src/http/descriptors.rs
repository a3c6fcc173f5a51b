//! File descriptors: each connection is one, and a process that has none left can neither answer nor ask the API server.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections of one server at a time, where descriptors allow it: each may hold a head of 32 KiB, and the gateway's container has
/// 256 MiB.
const MOST: usize = 4_096;
/// No process has more than two servers, and most requests make it ask the API server something: a third for each server leaves as many
/// for that.
const SHARE: u64 = 3;

/// Lets this process have as many at once as it may have at all. Many a container runtime starts its processes with 1,024, which is meant
/// for programs that cannot handle more.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::info!(from = ?current, to = ?maximum, "the limit of open files was raised"),
        Err(error) => tracing::warn!(%error, limit = ?current, "the limit of open files stays as it is"),
    }
}

/// How many this process may have at once, where there is a limit.
pub(super) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many connections a server may have at a time.
pub(super) fn connections(limit: Option<u64>) -> usize {
    let share = limit.and_then(|limit| usize::try_from(limit / SHARE).ok()).unwrap_or(MOST);
    share.clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(connections(None), MOST);
        assert_eq!(connections(Some(1_048_576)), MOST);
        assert_eq!(connections(Some(1_024)), 341);
        assert_eq!(connections(Some(0)), 1, "a server that takes nobody helps nobody");
    }

    #[test]
    fn a_process_may_have_all_that_it_is_allowed() {
        let before = getrlimit(Resource::Nofile);
        // One less harms no test that runs beside this one.
        let less = before.maximum.map(|maximum| maximum.saturating_sub(1)).or(before.current);
        setrlimit(Resource::Nofile, Rlimit { current: less, ..before }).expect("a lower limit");
        raise();
        assert_eq!(limit(), before.maximum);
    }
}
