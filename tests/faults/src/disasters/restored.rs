//! etcd is set back to an older snapshot while Torpor runs on: versions go back, and what was done since is undone.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{HEALED, Kubelet, Told, create, forbidden, make, objects_of};
use crate::canonical::{self, Objects};
use crate::matrix::Settings;
use crate::oracle;
use crate::rig::{Others, Rig};
use crate::workflow::{self, ASLEEP, Goal, MADE, Step};

const AFTER: [(&str, Step, Goal); 6] = [
    ("r-still", Step::ChangeSpec, Goal::Ready),
    ("r-change", Step::ChangeSpec, Goal::Ready),
    ("r-fleets", Step::ChangeFleets, Goal::Ready),
    ("r-sleep", Step::RequestSleep, Goal::Asleep("DatabaseOnly")),
    ("r-wake", Step::Wake, Goal::Ready),
    ("r-asleep", Step::Wake, Goal::Ready),
];

pub(super) async fn run(settings: &Settings, told: &mut Told) -> Result<()> {
    let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
    let awake: &[_] = &[MADE];
    let asleep: &[_] = &[MADE, ASLEEP];
    let subjects = [
        ("r-still", awake),
        ("r-change", awake),
        ("r-fleets", awake),
        ("r-sleep", awake),
        ("r-delete", awake),
        ("r-wake", asleep),
        ("r-asleep", asleep),
    ];
    make(&rig, &subjects).await?;
    let mut others = rig.start_others(&settings.torpor)?;
    // Until nothing is told late any more, and watches have been told by a bookmark how far the cluster is.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let folder = rig.cluster.data_dir().to_owned();
    let mut before: Vec<(&str, Objects, _)> = Vec::new();
    for (subject, _) in subjects {
        let found = objects_of(&rig, subject).await?;
        before.push((subject, canonical::objects(found.clone(), subject), oracle::data(&found)));
    }
    told.say("the snapshot is taken");
    down(&rig)?;
    copy(&folder.join("etcd"), &folder.join("snapshot"))?;
    up(&mut rig).await?;

    ready_again(&rig, told, &others).await;

    // All but r-still and r-asleep go on from there.
    for (subject, step, goal) in AFTER.into_iter().filter(|(subject, ..)| !matches!(*subject, "r-still" | "r-asleep")) {
        make(&rig, &[(subject, &[(step, goal)])]).await?;
    }
    make(&rig, &[("r-delete", &[(Step::Delete, Goal::Gone)]), ("r-new", awake)]).await?;

    told.tried("etcd is set back to the snapshot");
    let from = rig.proxy.count();
    down(&rig)?;
    std::fs::remove_dir_all(folder.join("etcd"))?;
    copy(&folder.join("snapshot"), &folder.join("etcd"))?;
    up(&mut rig).await?;
    let healed = Instant::now();
    let mut kubelet = Kubelet::default();
    loop {
        kubelet.look(&mut rig)?;
        let mut differences = Vec::new();
        for (subject, expected, _) in &before {
            let found = canonical::objects(objects_of(&rig, subject).await?, subject);
            differences.extend(canonical::differences(expected, &found));
        }
        if differences.is_empty() {
            told.say(format_args!("all is as at the snapshot after {:.1} s", healed.elapsed().as_secs_f64()));
            break;
        }
        if healed.elapsed() > HEALED {
            differences.truncate(5);
            told.found("set back", format!("not as at the snapshot after {HEALED:?}: {differences:?}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (subject, _, data) in &before {
        for lost in oracle::data_lost(data, &oracle::data(&objects_of(&rig, subject).await?), create()) {
            told.found("set back", format!("{subject}: {lost}"));
        }
    }
    ended(told, &mut others, healed).await;
    let gone = rig.api.get(&format!("/api/v1/namespaces/{}", workflow::namespace("r-new"))).await?;
    if gone.is_some() {
        told.found("set back", "what was made after the snapshot was made again without a Tenant".to_owned());
    }

    told.tried("everybody asks for something");
    let asked = Instant::now();
    for (subject, step, _) in AFTER {
        step.ask(&rig.api, subject).await?;
    }
    Step::Delete.ask(&rig.api, "r-delete").await?;
    create().step.ask(&rig.api, "r-new").await?;
    let mut goals: Vec<(String, Goal)> = AFTER.map(|(subject, _, goal)| (subject.to_owned(), goal)).into();
    goals.extend([("r-delete".to_owned(), Goal::Gone), ("r-new".to_owned(), Goal::Ready)]);
    told.goals(&mut rig, "after the restore", asked, &goals).await?;
    for what in forbidden(&rig, from) {
        told.found("set back", what);
    }
    Ok(())
}

/// A control plane that started anew without going back is no reason to end.
async fn ready_again(rig: &Rig, told: &mut Told, others: &Others) {
    let back = Instant::now();
    for (name, process) in others {
        while !rig.probes.is_ready(process).await {
            if back.elapsed() > HEALED {
                let what = format!("the {name} is not ready: {}", process.log_text());
                told.found("the control plane has started anew", what);
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Each ends by itself and says why.
async fn ended(told: &mut Told, others: &mut Others, healed: Instant) {
    for (name, process) in others {
        while process.runs() && healed.elapsed() < HEALED {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if process.ended() != Some(1) || !process.log_text().contains("went back from version") {
            told.found("set back", format!("the {name} did not end for it: {}", process.log_text()));
        }
    }
}

fn down(rig: &Rig) -> Result<()> {
    for component in ["kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"] {
        rig.cluster.kill_component(component)?;
    }
    Ok(())
}

/// The cluster's own programs start anew, as the procedure of every distribution says; Torpor does not.
async fn up(rig: &mut Rig) -> Result<()> {
    rig.cluster.restart_component("etcd")?;
    rig.cluster.restart_component("kube-apiserver")?;
    // Who was killed holds them for up to 40 s, and kwok never plays what was deleted before it holds a node.
    for namespace in ["kube-system", "kube-node-lease"] {
        rig.cluster.kubectl(["delete", "leases", "--all", "-n", namespace])?;
    }
    for component in ["kube-controller-manager", "kube-scheduler", "kwok"] {
        rig.cluster.restart_component(component)?;
    }
    let mut kubelet = Kubelet::default();
    let began = Instant::now();
    while !rig.is_ready().await {
        ensure!(began.elapsed() < super::NEVER, "the operator is never ready again");
        kubelet.look(rig)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "cp -a {} {}: {status}", from.display(), to.display());
    Ok(())
}
