//! Several operators by mistake: one works, the others wait, and who cannot prove that it leads ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use torpor_cluster::{Cluster, Options};

use crate::alone::{is_write, none};
use crate::harness::{bare, eventually};
use crate::process::{Process, program};
use crate::rights::HOME;

const LEASE: Duration = Duration::from_secs(9);
/// A standby looks at least every two seconds; the rest is for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(9 + 2 + 20);
const START: Duration = Duration::from_secs(90);

/// A leader that is killed is followed within the lease. One that was stopped for longer ends when it goes on, and
/// sends no write any more; so does one whose Lease is deleted or taken.
pub fn only_one_operator_writes() -> Result<(), String> {
    let cluster = bare(Options::default())?;
    let mut first = start(&cluster, "op-a")?;
    first.await_ready(START)?;
    kubectl(&cluster, &["apply", "-f", "examples/pools.yaml", "-f", "examples/tenant-free.yaml"])?;
    kubectl(&cluster, &["wait", "--for=condition=Ready", "tenant/free-bird", "--timeout=60s"])?;
    let mut second = start(&cluster, "op-b")?;
    let waits = |process: &Process| match process.http("/readyz")? {
        (200, text) if text == "standing by for leadership\n" => Ok(()),
        (code, text) => Err(format!("{code}: {text}")),
    };
    eventually(START, || waits(&second))?;

    let began = Instant::now();
    first.kill();
    eventually(TAKEOVER, || leads(&cluster, &second))?;
    println!(
        "leader: followed {:.1} s after kill -9, the lease is {} s",
        began.elapsed().as_secs_f64(),
        LEASE.as_secs()
    );
    second.await_ready(START)?;

    // Stopped past its lease, then going on with work in its queues.
    let third = start(&cluster, "op-c")?;
    eventually(START, || waits(&third))?;
    second.signal("STOP")?;
    kubectl(&cluster, &["patch", "tenant/free-bird", "--type=merge", "-p", r#"{"spec":{"displayName":"Stopped"}}"#])?;
    kubectl(&cluster, &["delete", "service", "redis", "-n", "tenant-free-bird"])?;
    eventually(TAKEOVER, || leads(&cluster, &third))?;
    third.await_ready(START)?;
    let audit = cluster.audit().ok_or("this test reads the audit log of a cluster of its own")?;
    let start_of_end = audit.mark().map_err(|error| error.to_string())?;
    second.signal("CONT")?;
    ended(&mut second, "was stopped past its lease")?;
    std::thread::sleep(Duration::from_secs(1));
    let events = audit.since(start_of_end).map_err(|error| error.to_string())?;
    // Its attempt to renew the Lease names an old version, which the API server refuses.
    let written: Vec<_> =
        events.into_iter().filter(|event| event.user == "op-b" && is_write(event) && event.code != 409).collect();
    none("an operator that was stopped past its lease wrote", &written)?;
    kubectl(&cluster, &["get", "service", "redis", "-n", "tenant-free-bird"])?;

    let mut third = third;
    let mut fourth = start(&cluster, "op-d")?;
    eventually(START, || waits(&fourth))?;
    kubectl(&cluster, &["delete", "lease", "torpor-operator", "-n", HOME])?;
    ended(&mut third, "lost its Lease")?;
    eventually(TAKEOVER, || leads(&cluster, &fourth))?;
    fourth.await_ready(START)?;

    let steal = r#"{"spec":{"holderIdentity":"somebody-else"}}"#;
    kubectl(&cluster, &["patch", "lease", "torpor-operator", "-n", HOME, "--type=merge", "-p", steal])?;
    ended(&mut fourth, "had its Lease taken")?;

    // In good order nobody waits for the end of the lease: the next one finds it free.
    kubectl(&cluster, &["delete", "lease", "torpor-operator", "-n", HOME])?;
    let mut fifth = start(&cluster, "op-e")?;
    fifth.await_ready(START)?;
    let sixth = start(&cluster, "op-f")?;
    eventually(START, || waits(&sixth))?;
    let began = Instant::now();
    let code = fifth.terminate()?;
    if code != Some(0) {
        return Err(format!("asked to stop, the leader ended with {code:?}"));
    }
    eventually(TAKEOVER, || leads(&cluster, &sixth))?;
    println!("leader: followed {:.1} s after it was asked to stop", began.elapsed().as_secs_f64());
    drop(sixth);
    restarted_in_its_pod(&cluster)
}

/// A container that is started again in its pod waits for the writes of the one before it, which has ended, and not for
/// its whole Lease.
fn restarted_in_its_pod(cluster: &Cluster) -> Result<(), String> {
    const LONG: Duration = Duration::from_secs(60);
    const SOONER: Duration = Duration::from_secs(50);
    kubectl(cluster, &["delete", "lease", "torpor-operator", "-n", HOME])?;
    let seconds = LONG.as_secs().to_string();
    let container = || {
        let program = program(cluster, "operator").arguments(&["--lease-seconds", &seconds]);
        program.environment("HOSTNAME", "torpor-operator-0").environment("TORPOR_POD_UID", "5d1c").start()
    };
    let mut before = container()?;
    before.await_ready(START)?;
    let began = Instant::now();
    before.kill();
    let after = container()?;
    eventually(SOONER, || leads(cluster, &after))?;
    println!("leader: followed {:.1} s after kill -9 in the same pod", began.elapsed().as_secs_f64());
    Ok(())
}

/// An operator as a user of its own, whom the audit log can tell from others.
fn start(cluster: &Cluster, user: &str) -> Result<Process, String> {
    let kubeconfig: PathBuf =
        cluster.kubeconfig_for(user, &["system:masters"]).map_err(|error| format!("{error:#}"))?;
    let seconds = LEASE.as_secs().to_string();
    program(cluster, "operator").kubeconfig(&kubeconfig).arguments(&["--lease-seconds", &seconds]).start()
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String, String> {
    cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))
}

/// Whether this process holds the Lease: its identity ends with its process id and a random part.
fn leads(cluster: &Cluster, process: &Process) -> Result<(), String> {
    let path = "jsonpath={.spec.holderIdentity}";
    let holder = kubectl(cluster, &["get", "lease", "torpor-operator", "-n", HOME, "-o", path])?;
    if holder.contains(&format!("_{}_", process.pid())) { Ok(()) } else { Err(format!("{holder:?} holds the Lease")) }
}

/// Waits for the end of a process that may not write any more.
fn ended(process: &mut Process, why: &str) -> Result<(), String> {
    let began = Instant::now();
    let code = process.exit_code(LEASE).map_err(|error| format!("{why}: {error}"))?;
    let log = process.log_text();
    let last = log.lines().last().unwrap_or_default();
    println!("leader: {why}, ended after {:.1} s with {code:?}: {last}", began.elapsed().as_secs_f64());
    if code == Some(1) && last.contains("only one torpor-operator writes") && !log.contains("panicked") {
        Ok(())
    } else {
        Err(format!("{why}, ended with {code:?}: {log}"))
    }
}
