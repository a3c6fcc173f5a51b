//! The release goes and comes back; tenants run on.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    copies::pods,
    rig::{BASIC, FREE, HOME, Rig, eventually},
    sleep::copies,
    stacks::row_is_there,
};

pub fn run(rig: &Rig) -> Result<()> {
    for tenant in [BASIC, FREE] {
        rig.await_awake(tenant)?;
    }
    let look = |rig: &Rig| -> Result<Vec<_>> { [BASIC, FREE].iter().map(|tenant| pods(rig, tenant)).collect() };
    let (before, bots) = (look(rig)?, copies(rig, BASIC)?.len());
    rig.cluster.helm(["uninstall", "torpor", "--namespace", HOME, "--wait", "--timeout", "120s"])?;
    eventually(Duration::from_secs(60), || {
        let left = rig.get(&["pods", "-n", HOME])?["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} pods of Torpor are left");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(10));
    same("after helm uninstall", &look(rig)?, &before)?;
    for tenant in [BASIC, FREE] {
        rig.get(&["tenant", tenant])?;
        row_is_there(rig, tenant)?;
    }
    rig.install(None)?;
    // A new generation of the spec is noticed by an operator that works.
    for tenant in [BASIC, FREE] {
        rig.cluster.kubectl([
            "patch",
            "tenant",
            tenant,
            "--type=merge",
            "-p",
            r#"{"spec":{"displayName":"again"}}"#,
        ])?;
        rig.await_awake(tenant)?;
        row_is_there(rig, tenant)?;
    }
    same("after it was installed again", &look(rig)?, &before)?;
    let told = rig.cluster.helm(["test", "torpor", "--namespace", HOME, "--timeout", "60s"])?;
    ensure!(told.contains("Succeeded"), "helm test says {told}");
    ensure!(copies(rig, BASIC)?.len() == bots, "a bot was started anew");
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(when: &str, found: &T, wanted: &T) -> Result<()> {
    ensure!(found == wanted, "{when} the pods changed from {wanted:?} to {found:?}");
    Ok(())
}
