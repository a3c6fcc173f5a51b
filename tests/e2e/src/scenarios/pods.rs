//! How locked up the containers are, seen from the node.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::rig::{BASIC, FREE, HOME, Rig, namespace, text};
use crate::node::Container;

pub fn run(rig: &Rig) -> Result<()> {
    let homes = [namespace(BASIC), namespace(FREE), HOME.to_owned()];
    for home in &homes {
        let level = rig.get(&["namespace", home])?["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].clone();
        ensure!(level == "restricted", "{home} enforces {level}");
        let events = rig.get(&["events", "-n", home])?;
        let refused = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|event| text(&event["message"]).contains("violates PodSecurity"));
        ensure!(refused.is_none(), "Pod Security refused something: {refused:?}");
    }
    let mut looked_at = 0;
    let mut separate = 0;
    for worker in rig.cluster.workers() {
        let containers = worker.containers()?;
        // The sandbox holds the pod's namespaces and runs nothing of the pod's.
        for container in containers.iter().filter(|one| homes.contains(&one.namespace) && !one.name.is_empty()) {
            let Some(pid) = container.pid else { continue };
            looked_at += 1;
            let of = |error: anyhow::Error| {
                error.context(format!("{}/{} {}", container.namespace, container.pod, container.name))
            };
            separate += usize::from(is_locked_up(container, pid).map_err(of)?);
        }
    }
    println!(
        "         {looked_at} containers without root and with a read-only root file system, {separate} in user namespaces of their own"
    );
    let tenants: usize = [BASIC, FREE]
        .map(|tenant| rig.list("pods", tenant).map(|pods| pods.len()))
        .into_iter()
        .sum::<Result<usize>>()?;
    ensure!(looked_at >= tenants, "only {looked_at} containers of at least {tenants}");
    ensure!(
        separate >= tenants,
        "only {separate} of {tenants} tenants' containers have a user namespace (hostUsers: false)"
    );
    Ok(())
}

/// Returns whether it has a user namespace of its own.
fn is_locked_up(container: &Container, pid: u32) -> Result<bool> {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("/proc/{pid}/{file}"));
    let map = read("uid_map")?;
    let numbers: Vec<u64> = map.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [inside, outside, count] = numbers[..] else { anyhow::bail!("uid_map of several ranges: {map}") };
    let separate = outside != 0 || count < u64::from(u32::MAX);
    let status = read("status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    for uid in field("Uid:").split_whitespace().filter_map(|uid| uid.parse::<u64>().ok()) {
        let uid = uid.checked_sub(outside).map(|offset| inside + offset).unwrap_or_default();
        ensure!(uid != 0, "runs as root");
    }
    for capabilities in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let mask = field(capabilities);
        ensure!(mask.trim_start_matches('0').is_empty(), "{capabilities} {mask}");
    }
    ensure!(field("NoNewPrivs:") == "1", "may gain privileges");
    ensure!(field("Seccomp:") == "2", "has no seccomp profile");
    let mounts = read("mountinfo")?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root file system")?;
    let options = root.split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "its root file system is mounted {options}");
    let token = mounts.lines().any(|line| line.contains("/var/run/secrets/kubernetes.io/serviceaccount"));
    ensure!(!token || container.namespace == HOME, "has a token of the API server");
    Ok(separate)
}
