//! Elections against an API server that is played by a router in this process.

mod server;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;

use self::server::{Mood, Server, Store};
use super::*;
use crate::clock::{FixedClock, SystemClock};

fn params(identity: &str, seconds: u64) -> LeaderParams {
    LeaderParams {
        namespace: "torpor-system".into(),
        name: "torpor".into(),
        identity: Identity { name: identity.into(), pod: None },
        duration: Duration::from_secs(seconds),
        grace: Duration::from_millis(400),
    }
}

/// A clock that stands still keeps a tenure valid however slow the machine is that runs the test.
fn still() -> Arc<FixedClock> {
    Arc::new(FixedClock::new(Timestamp::UNIX_EPOCH))
}

async fn lead(server: &Server, clock: Arc<dyn Clock>) -> Leadership {
    let acquired = acquire(server.client(), params("me", 1), clock);
    timeout(Duration::from_secs(20), acquired).await.expect("in time").expect("the lead")
}

async fn lost(leadership: &mut Leadership) -> Lost {
    timeout(Duration::from_secs(20), leadership.lost()).await.expect("lost in time")
}

/// Waits until what `count` counts has happened `more` times.
async fn happens(server: &Server, more: usize, count: fn(&mut Store) -> usize) {
    let target = server.with(count) + more;
    for _ in 0..2000 {
        if server.with(count) >= target {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the Lease is left alone");
}

async fn written(server: &Server, times: usize) {
    happens(server, times, |store| store.writes).await;
}

/// After the second look begins, the first has had its effect.
async fn looked_at(server: &Server) {
    happens(server, 2, |store| store.reads).await;
}

/// A Lease of a minute that another process renewed in that second of long ago.
fn held_by(holder: &str, renewed: u32) -> Value {
    json!({
        "holderIdentity": holder, "leaseDurationSeconds": 60, "leaseTransitions": 4,
        "renewTime": format!("1990-01-01T00:00:{renewed:02}.000000Z"),
    })
}

#[tokio::test]
async fn a_missing_lease_is_created_renewed_and_given_back() {
    let server = Server::default();
    let clock = still();
    let leadership = lead(&server, clock.clone()).await;
    let created = json!({
        "holderIdentity": "me", "leaseDurationSeconds": 1, "leaseTransitions": 0,
        "acquireTime": "1970-01-01T00:00:00.000000Z", "renewTime": "1970-01-01T00:00:00.000000Z",
    });
    assert_eq!(server.spec(), created);

    clock.advance(Duration::from_millis(500));
    written(&server, 2).await;
    assert_eq!(server.spec()["renewTime"], "1970-01-01T00:00:00.500000Z");
    assert_eq!(server.spec()["acquireTime"], created["acquireTime"]);

    let guard = leadership.guard();
    assert!(guard.is_valid());
    leadership.release().await.expect("a release");
    assert!(!guard.is_valid());
    assert_eq!(server.spec()["holderIdentity"], Value::Null);
}

#[tokio::test]
async fn a_holder_is_left_alone_until_it_was_silent_for_its_own_duration() {
    let server = Server::default();
    let clock = still();
    // By its own clock the holder died long ago. That says nothing.
    let spec = |renewed| held_by("other", renewed);
    server.put(spec(1));
    let acquired = tokio::spawn(acquire(server.client(), params("me", 1), clock.clone()));
    looked_at(&server).await;
    clock.advance(Duration::from_secs(59));
    looked_at(&server).await;
    server.put(spec(2));
    looked_at(&server).await;
    clock.advance(Duration::from_secs(59));
    looked_at(&server).await;
    assert!(!acquired.is_finished());
    assert_eq!(server.spec()["holderIdentity"], "other");

    clock.advance(Duration::from_secs(1));
    let acquired = timeout(Duration::from_secs(20), acquired).await.expect("in time");
    let leadership = acquired.expect("no panic").expect("the lead");
    assert_eq!(server.spec()["holderIdentity"], "me");
    assert_eq!(server.spec()["leaseTransitions"], 5);
    drop(leadership);
}

#[tokio::test]
async fn the_holder_of_a_lease_that_somebody_deleted_is_waited_for() {
    let server = Server::default();
    let clock = still();
    server.put(held_by("other", 1));
    let acquired = tokio::spawn(acquire(server.client(), params("me", 1), clock.clone()));
    looked_at(&server).await;
    clock.advance(Duration::from_secs(30));
    looked_at(&server).await;
    server.with(|store| store.lease = None);
    looked_at(&server).await;
    clock.advance(Duration::from_secs(59));
    looked_at(&server).await;
    assert!(!acquired.is_finished(), "it may have renewed it just before");
    clock.advance(Duration::from_secs(1));
    let acquired = timeout(Duration::from_secs(20), acquired).await.expect("in time");
    let leadership = acquired.expect("no panic").expect("the lead");
    assert_eq!(server.spec()["holderIdentity"], "me");
    drop(leadership);
}

#[tokio::test]
async fn a_predecessor_in_the_same_pod_is_waited_for_only_as_long_as_its_writes_may_be_under_way() {
    let server = Server::default();
    let clock = still();
    let spec = |renewed| held_by("torpor-0_9d3c_1_00", renewed);
    server.put(spec(1));
    let identity = Identity { name: "torpor-0_9d3c_1_01".into(), pod: Some("torpor-0_9d3c_".into()) };
    let params = LeaderParams { identity, ..params("me", 1) };
    assert_eq!(params.grace, Duration::from_millis(400));
    let almost = Duration::from_millis(399);
    let acquired = tokio::spawn(acquire(server.client(), params, clock.clone()));
    looked_at(&server).await;
    clock.advance(almost);
    looked_at(&server).await;
    // One that renews has not ended, whatever it is called.
    server.put(spec(2));
    looked_at(&server).await;
    clock.advance(almost);
    looked_at(&server).await;
    assert!(!acquired.is_finished());
    clock.advance(Duration::from_millis(1));
    let acquired = timeout(Duration::from_secs(20), acquired).await.expect("in time");
    let leadership = acquired.expect("no panic").expect("the lead");
    assert_eq!(server.spec()["holderIdentity"], "torpor-0_9d3c_1_01");
    drop(leadership);
}

#[tokio::test]
async fn of_many_one_leads_and_after_its_release_the_next() {
    let server = Server::default();
    server.put(json!({"holderIdentity": ""}));
    let (won, mut winners) = tokio::sync::mpsc::unbounded_channel();
    for contender in 0..8 {
        let (client, won) = (server.client(), won.clone());
        let params = params(&format!("contender-{contender}"), 4);
        tokio::spawn(async move {
            let leadership = acquire(client, params, still()).await.expect("the lead");
            // The receiver is gone when the test has ended.
            let _ = won.send(leadership);
        });
    }
    let first = winners.recv().await.expect("a leader");
    assert!(timeout(Duration::from_secs(3), winners.recv()).await.is_err(), "two leaders");
    first.release().await.expect("a release");
    let next = timeout(Duration::from_secs(20), winners.recv()).await.expect("in time");
    assert!(next.expect("a leader").guard().is_valid());
}

#[tokio::test]
async fn an_api_server_out_of_reach_ends_the_lead_in_time() {
    let server = Server::default();
    let mut leadership = lead(&server, Arc::new(SystemClock)).await;
    let guard = leadership.guard();
    server.with(|store| store.mood = Mood::Down);
    let lost = lost(&mut leadership).await;
    assert_eq!(lost, Lost::Unconfirmed { last_error: Some("500 etcd is away".into()) });
    assert!(!guard.is_valid());
    assert_eq!(leadership.lost().await, lost);
}

#[tokio::test]
async fn a_process_that_was_stopped_too_long_does_not_renew_even_where_it_could() {
    let server = Server::default();
    let clock = still();
    let mut leadership = lead(&server, clock.clone()).await;
    let (guard, writes) = (leadership.guard(), server.with(|store| store.writes));
    clock.advance(Duration::from_secs(5));
    assert!(!guard.is_valid(), "known before any task has run");
    assert_eq!(lost(&mut leadership).await, Lost::Unconfirmed { last_error: None });
    assert_eq!(server.with(|store| store.writes), writes);
    assert!(!guard.is_valid());
}

#[tokio::test]
async fn whoever_takes_or_removes_the_lease_ends_the_lead() {
    let server = Server::default();
    let mut leadership = lead(&server, still()).await;
    server.put(json!({"holderIdentity": "other", "leaseDurationSeconds": 60}));
    assert_eq!(lost(&mut leadership).await, Lost::Taken { holder: "other".into() });
    assert_eq!(server.spec()["holderIdentity"], "other");

    for removed in [None, Some(json!({"metadata": {"resourceVersion": "emptied"}, "spec": {}}))] {
        let server = Server::default();
        let mut leadership = lead(&server, still()).await;
        server.with(|store| store.lease = removed);
        assert_eq!(lost(&mut leadership).await, Lost::Gone);
    }
}

#[tokio::test]
async fn a_renewal_whose_answer_got_lost_is_recognised() {
    let server = Server::default();
    let mut leadership = lead(&server, still()).await;
    server.with(|store| store.mood = Mood::AnswerLost);
    written(&server, 4).await;
    assert!(timeout(Duration::from_millis(1), leadership.lost()).await.is_err());
    assert!(leadership.guard().is_valid());
    assert_eq!(server.spec()["leaseTransitions"], 0);
}

#[tokio::test]
async fn what_waiting_cannot_mend_is_one_clear_error() {
    let server = Server::default();
    let attempt = || acquire(server.client(), params("me", 1), still());
    server.with(|store| store.no_namespace = true);
    let error = attempt().await.expect_err("no namespace").to_string();
    assert_eq!(error, r#"leader election: the namespace "torpor-system" does not exist"#);

    server.with(|store| store.mood = Mood::Forbids);
    let error = attempt().await.expect_err("no Role").to_string();
    let refused = "leader election: the API server refuses to create the Lease torpor-system/torpor: no Role";
    assert_eq!(error, refused);
}

#[tokio::test]
async fn contradictory_parameters_are_refused() {
    let server = Server::default();
    let good = params("me", 1);
    for (wrong, reason) in [
        (LeaderParams { duration: Duration::ZERO, ..good.clone() }, "duration"),
        (LeaderParams { duration: Duration::from_millis(1500), ..good.clone() }, "duration"),
        (LeaderParams { duration: Duration::from_secs(3601), ..good.clone() }, "duration"),
        (LeaderParams { duration: Duration::MAX, ..good.clone() }, "duration"),
        (LeaderParams { grace: Duration::from_secs(1), ..good.clone() }, "grace"),
    ] {
        let error = acquire(server.client(), wrong, still()).await.expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn dropping_the_leadership_invalidates_its_guards() {
    let server = Server::default();
    let leadership = lead(&server, still()).await;
    let guard = leadership.guard();
    drop(leadership);
    assert!(!guard.is_valid());
    assert!(LeaderGuard::unelected().is_valid());
}

#[test]
fn identities_are_readable_and_never_the_same() {
    let (one, other) = (Identity::new("torpor-0\n", None), Identity::new("torpor-0", None));
    assert!(one.name().starts_with(&format!("torpor-0_{}_", std::process::id())), "{one}");
    assert_ne!(one, other);
    let in_pod = Identity::new("torpor-0", Some("9d3c\n"));
    assert!(in_pod.name().starts_with(&format!("torpor-0_9d3c_{}_", std::process::id())), "{in_pod}");
}

#[test]
fn only_who_ran_in_the_same_pod_before_is_a_predecessor() {
    let me = Identity::new("torpor-0", Some("9d3c"));
    assert!(me.follows(Identity::new("torpor-0", Some("9d3c")).name()));
    let others =
        [("torpor-0", Some("9d3c1")), ("torpor-0", Some("0000")), ("torpor-1", Some("9d3c")), ("torpor-0", None)];
    for (hostname, uid) in others {
        assert!(!me.follows(Identity::new(hostname, uid).name()), "{hostname} {uid:?}");
    }
    assert!(!me.follows(me.name()));
    let alone = Identity::new("torpor-0", None);
    assert!(!alone.follows(Identity::new("torpor-0", None).name()));
}
