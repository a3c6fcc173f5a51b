//! The wall clock of one process jumps by a month, forth or back, while the cluster's stands where it was.
//!
//! A library between the process and the kernel (libfaketime) adds what a file says, so nothing in Torpor knows of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use serde_json::{Value, json};
use torpor_cluster::torpor::Program;

use super::{Told, forbidden, make, objects_of};
use crate::canonical::{self, Objects};
use crate::door::Door;
use crate::matrix::Settings;
use crate::plan::Plan;
use crate::rig::Rig;
use crate::workflow::{self, ASLEEP, Goal, MADE};

/// Longer than the longest stage is away.
const JUMPS: [&str; 2] = ["+31d", "-31d"];
/// The hibernator compares its clocks every few seconds, and asks for the API server's.
const NOTICED: Duration = Duration::from_secs(15);
const PROGRAMS: [&str; 3] = ["operator", "hibernator", "gateway"];

pub(super) async fn run(settings: &Settings, told: &mut Told) -> Result<()> {
    let library = match library() {
        Ok(library) => library,
        Err(error) => {
            told.say(format_args!("left out: {error:#}"));
            told.row.not_begun = true;
            return Ok(());
        }
    };
    let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
    let clocks = PROGRAMS.map(|program| rig.cluster.data_dir().join(format!("{program}.clock")));
    for clock in &clocks {
        set(clock, "+0")?;
    }
    rig.program = faked(rig.program.clone(), &library, &clocks[0]);
    rig.restart(Plan::default()).await?;
    let hibernator = Program::new(&settings.torpor, &rig.cluster, "hibernator");
    let hibernator = faked(hibernator, &library, &clocks[1]).start().map_err(Error::msg)?;
    let gateway = Program::new(&settings.torpor, &rig.cluster, "gateway");
    let (door, gateway) = Door::open(&rig, settings, faked(gateway, &library, &clocks[2])).await?;
    let asleep: &[_] = &[MADE, ASLEEP];
    let still = ["c-awake", "c-asleep"];
    let sleepers: Vec<String> = (0..PROGRAMS.len() * JUMPS.len()).map(|number| format!("c-wake-{number}")).collect();
    let mut all = vec![("c-awake", &asleep[..1]), ("c-asleep", asleep)];
    all.extend(sleepers.iter().map(|subject| (subject.as_str(), asleep)));
    make(&rig, &all).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let from = rig.proxy.count();
    let before = what_runs(&rig, &still).await?;
    let mut next = sleepers.iter();
    for (program, clock) in PROGRAMS.into_iter().zip(&clocks) {
        for jump in JUMPS {
            let case = format!("the {program}'s clock, {jump}");
            told.tried(&case);
            set(clock, jump)?;
            // Who is settled is not looked at unasked, whatever time it is.
            for subject in still {
                let touch = json!({"metadata": {"labels": {"chaos": format!("touched-{}", told.row.trials)}}});
                rig.api.patch(&workflow::tenant_path(subject), &touch).await?;
            }
            tokio::time::sleep(NOTICED).await;
            unchanged(&rig, told, &case, &still, &before).await?;
            undecided(&rig, told, &case, still[0]).await?;
            let subject = next.next().context("a sleeper for each")?;
            let asked = Instant::now();
            door.post(subject, "activity").await?;
            told.goals(&mut rig, &case, asked, &[(subject.clone(), Goal::Ready)]).await?;
            set(clock, "+0")?;
            tokio::time::sleep(NOTICED).await;
            unchanged(&rig, told, &format!("{case}, and back"), &still, &before).await?;
        }
    }
    for process in [&rig.operator, &hibernator, &gateway] {
        let log = process.log_text();
        for line in log.lines().filter(|line| line.contains("panicked")) {
            told.found("clocks", line.to_owned());
        }
    }
    for what in forbidden(&rig, from) {
        told.found("clocks", what);
    }
    Ok(())
}

/// What users would notice: all objects but those that say how things are.
async fn what_runs(rig: &Rig, subjects: &[&str]) -> Result<Vec<Objects>> {
    let mut runs = Vec::new();
    for subject in subjects {
        let mut objects = canonical::objects(objects_of(rig, subject).await?, subject);
        objects.retain(|_, object: &mut Value| object["kind"] != "Tenant" && object["kind"] != "BotFleet");
        runs.push(objects);
    }
    Ok(runs)
}

async fn unchanged(rig: &Rig, told: &mut Told, case: &str, subjects: &[&str], before: &[Objects]) -> Result<()> {
    for ((subject, expected), found) in subjects.iter().zip(before).zip(what_runs(rig, subjects).await?) {
        for what in canonical::differences(expected, &found) {
            told.found(case, format!("{subject}: {what}"));
        }
    }
    Ok(())
}

/// A tenant that was made just now is neither put to sleep nor warned that it will be.
async fn undecided(rig: &Rig, told: &mut Told, case: &str, subject: &str) -> Result<()> {
    let tenant = rig.api.get(&workflow::tenant_path(subject)).await?.context("the tenant has gone")?;
    let decision = &tenant["status"]["hibernation"]["decision"];
    let stays = decision.is_null() || decision["stage"] == "Active";
    if !stays || ["warnedFor", "warnedStage", "askedFor"].iter().any(|field| !decision[field].is_null()) {
        told.found(case, format!("{subject} is decided on: {decision}"));
    }
    Ok(())
}

/// A program whose wall clock is off by what that file says; its monotonic clock is not.
fn faked(program: Program, library: &Path, clock: &Path) -> Program {
    program
        .environment("LD_PRELOAD", &library.display().to_string())
        .environment("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

fn set(clock: &Path, offset: &str) -> Result<()> {
    // Replaced in one step: a half-written file would be another time.
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{offset}\n"))?;
    Ok(std::fs::rename(new, clock)?)
}

/// Debian's and Ubuntu's place of it.
fn library() -> Result<PathBuf> {
    let places = std::fs::read_dir("/usr/lib")?.filter_map(Result::ok);
    let mut found = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1")).filter(|file| file.is_file());
    found.next().context("libfaketime is not installed: apt-get install faketime")
}
