//! The disk of the audit log is full: every event of the API server's fails to be written.

use anyhow::{Result, ensure};
use torpor_cluster::Options;

use super::{Told, forbidden, make};
use crate::matrix::Settings;
use crate::rig::Rig;
use crate::workflow::{ASLEEP, MADE, WOKEN};

pub(super) async fn run(settings: &Settings, told: &mut Told) -> Result<()> {
    // Whatever is written there is answered with ENOSPC.
    let options = Options { audit_log: Some("/dev/full".into()), ..Rig::options() };
    let rig = Rig::start_on(options, &settings.torpor, &settings.root, &[]).await?;
    let from = rig.proxy.count();
    told.tried("three tenants are made, put to sleep and woken");
    let course: &[_] = &[MADE, ASLEEP, WOKEN];
    make(&rig, &[("d-0", course), ("d-1", course), ("d-2", course)]).await?;
    let log = std::fs::read_to_string(rig.cluster.data_dir().join("kube-apiserver.log"))?;
    ensure!(log.contains("no space left on device"), "the API server has not noticed that the disk is full");
    for what in forbidden(&rig, from) {
        told.found("disk full", what);
    }
    Ok(())
}
