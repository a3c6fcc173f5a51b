//! What a process costs, as the kernel counts it: resident memory and processor time.

use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use torpor_cluster::torpor::Process;

const KIB_PER_MIB: f64 = 1024.0;

/// Resident memory of a process in MiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rss {
    /// The most since the start or the last [`forget_peak`].
    pub peak: f64,
    /// Now.
    pub now: f64,
    /// Of that, pages of the program's file, which the kernel can drop and read again.
    pub file: f64,
}

/// Resident memory of one of Torpor's programs.
pub fn rss(process: &Process) -> Result<Rss> {
    of_pid(process.pid())
}

/// Resident memory of any process.
pub fn of_pid(pid: u32) -> Result<Rss> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("{path}: has the process ended?"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map(|kib| kib / KIB_PER_MIB).with_context(|| format!("no {name} in {path}"))
    };
    Ok(Rss { peak: field("VmHWM:")?, now: field("VmRSS:")?, file: field("RssFile:")? })
}

/// Lets the peak begin anew at what is resident now.
pub fn forget_peak(process: &Process) -> Result<()> {
    let path = format!("/proc/{}/clear_refs", process.pid());
    // proc(5): 5 resets the peak of the resident set.
    std::fs::write(&path, "5").with_context(|| path.clone())
}

/// Milliseconds of processor time since the start of the process.
pub fn cpu_ms(process: &Process) -> Result<f64> {
    process.cpu_seconds().map(|seconds| seconds * 1_000.0).map_err(anyhow::Error::msg)
}

/// Waits for the end of a process and tells the most resident memory that was seen, in MiB. Looks every few
/// milliseconds, so what is there for less than that is missed.
pub fn peak_until_end(child: &mut Child) -> Result<(ExitStatus, f64)> {
    let mut peak = 0.0_f64;
    loop {
        if let Ok(rss) = of_pid(child.id()) {
            peak = peak.max(rss.peak);
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status, peak));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
