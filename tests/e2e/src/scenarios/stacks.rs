//! Whole stacks of real programs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::rig::{BASIC, FREE, Rig, eventually, namespace, text};

/// A line of one of the files that the plan wrote.
pub fn planned(rig: &Rig, tenant: &str, config_map: &str, file: &str, setting: &str) -> Result<String> {
    let object = rig.get(&["configmap", config_map, "-n", &namespace(tenant)])?;
    let lines = text(&object["data"][file]);
    let found = lines.lines().find_map(|line| line.strip_prefix(setting));
    let value = found.with_context(|| format!("{file} of {tenant} does not set {setting}"))?;
    Ok(value.trim_start_matches([' ', '=']).trim_matches('\'').to_owned())
}

/// The server runs with the memory that its file gives it.
pub fn shared_buffers_are_as_planned(rig: &Rig, tenant: &str) -> Result<String> {
    let wanted = planned(rig, tenant, "postgres", "postgresql.conf", "shared_buffers")?;
    let question = format!(
        "SELECT pg_size_bytes(current_setting('shared_buffers')) = pg_size_bytes('{wanted}'), current_setting('shared_buffers')"
    );
    let answer = rig.sql(tenant, &question)?;
    ensure!(answer.starts_with("t|"), "shared_buffers of {tenant}: {wanted} was planned, the server says {answer}");
    Ok(wanted)
}

/// The row that was written at the start.
pub fn row_is_there(rig: &Rig, tenant: &str) -> Result<()> {
    let found = rig.sql(tenant, "SELECT value FROM kept")?;
    ensure!(found == tenant, "the row of {tenant} is {found:?}");
    Ok(())
}

/// A bot's log is bounded by its size, and Hummingbot takes the file that says so: one that it cannot read ends it.
fn logs_are_bounded(rig: &Rig, tenant: &str) -> Result<()> {
    let pods = rig.list("pods", tenant)?;
    let pod = pods.iter().map(|pod| text(&pod["metadata"]["name"])).find(|name| name.starts_with("bots-"));
    let pod = pod.context("no bot")?;
    let look = "cd /home/hummingbot; grep -e Rotating -e maxBytes conf/hummingbot_logs.yml; ls logs";
    let found = rig.cluster.exec_in_pod(&namespace(tenant), &pod, Some("bot"), &["sh", "-c", look])?;
    let lines: Vec<&str> = found.lines().map(str::trim).collect();
    let logs = lines.iter().any(|line| line.starts_with("logs_"));
    let [handler, most, ..] = lines[..] else { bail!("{tenant}: {found:?}") };
    let bounded = handler == "class: logging.handlers.RotatingFileHandler" && most.starts_with("maxBytes: ");
    ensure!(bounded && logs, "logs of {pod} of {tenant}: {found:?}");
    Ok(())
}

/// A database whose first start was cut short, before its roles were made, is made anew with the next start.
fn a_first_start_may_be_cut_short(rig: &Rig, tenant: &str) -> Result<()> {
    let namespace = namespace(tenant);
    let inside = |command: &str| rig.cluster.exec_in_pod(&namespace, "postgres-0", None, &["sh", "-c", command]);
    // What a start leaves behind that does not get that far.
    inside(r#"touch /data/first-start; echo '"-c" "listen_addresses="' > /data/pgdata/postmaster.opts"#)?;
    rig.cluster.kubectl(["delete", "pod", "postgres-0", "-n", &namespace])?;
    eventually(Duration::from_secs(60), || {
        rig.sql(tenant, "SELECT 1")?;
        let files = inside("ls /data")?;
        let found: Vec<&str> = files.split_whitespace().filter(|name| *name != "lost+found").collect();
        ensure!(found == ["pgdata", "pgdata.cut-short"], "{tenant}: /data holds {found:?}");
        Ok(())
    })?;
    inside("rm -r /data/pgdata.cut-short")?;
    Ok(())
}

pub fn run(rig: &Rig) -> Result<()> {
    rig.await_awake(FREE)?;
    a_first_start_may_be_cut_short(rig, FREE)?;
    for tenant in [BASIC, FREE] {
        rig.await_awake(tenant)?;
        rig.sql(tenant, &format!("CREATE TABLE IF NOT EXISTS kept AS SELECT '{tenant}' AS value"))?;
        row_is_there(rig, tenant)?;
        let buffers = shared_buffers_are_as_planned(rig, tenant)?;

        let wanted = planned(rig, tenant, "redis", "redis.conf", "maxmemory ")?;
        let ask = r#"REDISCLI_AUTH="$(cat /run/secrets/torpor/redis-password)" exec redis-cli -h 127.0.0.1 config get maxmemory"#;
        let answer = rig.cluster.exec_in_pod(&namespace(tenant), "redis-0", None, &["sh", "-c", ask])?;
        let memory = answer.lines().nth(1).unwrap_or_default();
        ensure!(memory == wanted, "maxmemory of {tenant}: {wanted} was planned, Redis says {answer:?}");
        logs_are_bounded(rig, tenant)?;
        let version = rig.sql(tenant, "SHOW server_version")?;
        println!(
            "         {tenant}: PostgreSQL {version} with shared_buffers {buffers}, Redis with maxmemory {memory}"
        );
    }
    Ok(())
}
