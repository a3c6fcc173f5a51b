//! Whether the cluster is what scenarios take it for: each part shown with real pods, both verdicts of each policy with
//! real packets.

mod faults;
mod lab;
mod pods;
mod policies;

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::node::{Cluster, Options};
use lab::Lab;

/// Shows one thing, or says what is not as it should be.
type Check = fn(&Lab) -> Result<()>;

/// What is shown, in this order; later ones use the pods of the first.
const CHECKS: [(&str, Check); 15] = [
    ("volumes and user namespaces under the restricted standard", pods::volume),
    ("Services and names, on both nodes", pods::services),
    ("worlds are reached, and know by whom", pods::worlds),
    ("what has no place on the machine is dropped by the guard", pods::guard),
    ("memory limits kill their own container only", pods::memory),
    ("a new pod says nothing before its policies are in force", policies::new_pod),
    ("default-deny ingress, probes go on", policies::deny_ingress),
    ("allowed peers, named ports, labels that change", policies::allow_ingress),
    ("egress by address, with exceptions", policies::egress_blocks),
    ("egress by port range, and the name server", policies::egress_ports),
    ("established connections outlive a policy", policies::established),
    ("a kubelet's restart leaves containers alone", faults::kubelet_restart),
    ("a node that is cut off is found out, and its pods go on", faults::partition),
    ("the API server can be away", faults::control_plane),
    ("draining a node moves its pods", faults::drain),
];

/// The names that the self-test's worlds are known by inside of the cluster.
pub fn options(mut options: Options) -> Options {
    options.names.push((lab::EXCHANGE.into(), lab::INTERNET));
    options
}

/// Runs all checks, prints a line for each, and fails if one does.
pub fn run(cluster: &Cluster) -> Result<()> {
    let lab = Lab::set_up(cluster).context("the pods of the self-test don't start")?;
    let mut failed = 0;
    for (name, check) in CHECKS {
        let started = Instant::now();
        let outcome = check(&lab).and_then(|()| cluster.check());
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("ok      {name} ({seconds:.1} s)"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
    println!("{} passed, {failed} failed", CHECKS.len() - failed);
    if failed > 0 {
        bail!("{failed} checks of the nodes failed");
    }
    Ok(())
}
