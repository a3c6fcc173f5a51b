//! What the user sees: progress, the four tenants, their sleep, one of them awake again, and how to look further.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use torpor_cluster::{KUBECONFIG_ENV, Tools};

use super::{
    BadInput, Example, POOLS, TENANTS,
    kubectl::Kubectl,
    parts::{Parts, condition},
    say,
    state::{Follow, Running, State},
    tail, tree,
};
use crate::signals;

/// The tenant that is drawn and woken, and its tier.
const SHOWN: (&str, &str) = ("alice", "basic");
/// How often a line tells what is awaited.
const NEWS: Duration = Duration::from_secs(5);

/// Starts the demo, tells of it, and leaves it running.
pub fn run() -> Result<()> {
    let state = State::open()?;
    if state.try_lock()?.is_none() {
        match state.running() {
            Some(running) => {
                say("A demo runs already, with the operator that it was started with.");
                further(&running)?;
            }
            None => say("A demo is being started already. Stop it: make demo-stop"),
        }
        return Ok(());
    }
    let tools = Tools::ensure()?;
    let begun = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::new(AtomicBool::new(false));
    let (has_begun, is_interrupted) = (Arc::clone(&begun), Arc::clone(&interrupted));
    signals::on_signal(move |signal| {
        is_interrupted.store(true, Ordering::SeqCst);
        if has_begun.load(Ordering::SeqCst) {
            let stopped = State::open().and_then(|state| state.stop(|| {}));
            eprintln!("{}", stopped.map_or_else(|error| format!("{error:#}"), |_| "stopped".to_owned()));
        }
        std::process::exit(128 + signal);
    })?;
    let follow = Follow::from_start(&state.log());
    let mut demo = Demo { started: Instant::now(), serve: None, state, follow, kubectl: None };
    let result = demo.serve(&tools, &begun).and_then(|running| demo.show(&running));
    if result.is_err() {
        while interrupted.load(Ordering::SeqCst) {
            // The signal's thread ends the process when all is stopped; that something failed then is no news.
            thread::park();
        }
        // Nothing may be left behind a failure.
        let _ = demo.state.stop(|| {});
    }
    result
}

pub(super) struct Demo {
    started: Instant,
    serve: Option<Child>,
    state: State,
    follow: Follow,
    kubectl: Option<Kubectl>,
}

impl Demo {
    pub(super) fn progress(&self, line: impl std::fmt::Display) {
        say(format!("[{:5.1} s] {line}", self.started.elapsed().as_secs_f32()));
    }

    /// Starts the background process and relays what it says until its cluster and operator are ready.
    fn serve(&mut self, tools: &Tools, begun: &AtomicBool) -> Result<Running> {
        self.state.clear()?;
        File::create(self.state.log())?;
        let log = File::options().append(true).open(self.state.log())?;
        let mut command = Command::new(env::current_exe()?);
        command.arg("serve").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        for name in [KUBECONFIG_ENV, "TORPOR_CATALOG"] {
            if let Some(path) = env::var_os(name).filter(|path| !path.is_empty()) {
                command.env(name, std::path::absolute(path)?);
            }
        }
        begun.store(true, Ordering::SeqCst);
        self.serve = Some(command.spawn()?);
        loop {
            self.check()?;
            if let Some(running) = self.state.running() {
                // What it said meanwhile.
                self.check()?;
                self.kubectl = Some(Kubectl {
                    program: tools.bin("kubectl"),
                    kubeconfig: running.kubeconfig.clone(),
                    cache: running.data.join("kube-cache"),
                });
                return Ok(running);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Relays what the background process says; an error when it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let lines = self.follow.lines();
        lines.iter().for_each(|line| self.progress(line));
        let Some(status) = self.serve.as_mut().map(Child::try_wait).transpose()?.flatten() else { return Ok(()) };
        let reason = fs::read_to_string(self.state.error()).unwrap_or_default();
        match (reason.trim(), status.code()) {
            ("", Some(0)) => bail!("the demo was stopped"),
            ("", _) => bail!("the demo's background process ended ({status}): {}", tail(&self.state.log())),
            (reason, Some(2)) => Err(BadInput(reason.to_owned()).into()),
            (reason, _) => bail!("{reason}"),
        }
    }

    pub(super) fn kubectl(&self) -> Result<&Kubectl> {
        self.kubectl.as_ref().context("the cluster is not ready")
    }

    fn show(&mut self, running: &Running) -> Result<()> {
        let shown = self.tell(running);
        if let Err(error) = shown {
            // The background process knows better why a request failed: it may be on its way out.
            for _ in 0..20 {
                self.check()?;
                thread::sleep(Duration::from_millis(100));
            }
            bail!("{error:#}\nthe end of the operator's log:\n{}", tail(&running.operator_log));
        }
        further(running)
    }

    fn tell(&mut self, running: &Running) -> Result<()> {
        self.apply(&POOLS)?;
        for (_, example) in &TENANTS {
            self.apply(example)?;
        }
        // Images must be pulled on a cluster with real nodes.
        self.await_tenants(Duration::from_secs(if running.own_cluster { 240 } else { 1200 }))?;
        self.print(&["get", "tenants,botfleets,workerpools", "-A"])?;
        let (tenant, tier) = SHOWN;
        say(format!("\nWhat {} has become:\n", TENANTS[1].1.path));
        for line in tree::lines(self.kubectl()?, tenant, tier)? {
            say(line);
        }
        say("");
        self.fall_asleep()?;
        let awake = |parts: &Parts| !parts.hibernated && parts.ready && parts.bots_ready == 3;
        self.change("An annotation wakes alice", "torpor.dev/last-activity", awake)?;
        self.log_in(&running.gateway)
    }

    fn apply(&self, example: &Example) -> Result<()> {
        self.kubectl()?.with_input(&["apply", "-f", "-"], example.yaml)?;
        self.progress(format!("kubectl apply -f {}", example.path));
        Ok(())
    }

    pub(super) fn print(&self, args: &[&str]) -> Result<()> {
        say(format!("\n$ kubectl {}", args.join(" ")));
        say(self.kubectl()?.run(args)?.trim_end());
        Ok(())
    }

    fn await_tenants(&mut self, limit: Duration) -> Result<()> {
        let applied = Instant::now();
        let mut missing: Vec<&str> = TENANTS.iter().map(|(name, _)| *name).collect();
        let mut told = Instant::now();
        loop {
            self.check()?;
            let found = self.kubectl()?.get(&["tenants"])?;
            let tenant = |name: &str| {
                found["items"].as_array().and_then(|items| items.iter().find(|item| item["metadata"]["name"] == name))
            };
            missing.retain(|name| {
                let ready = tenant(name).filter(|tenant| condition(tenant, "Ready")["status"] == "True");
                if let Some(tenant) = ready {
                    let bots = tenant["status"]["bots"]["ready"].as_i64().unwrap_or_default();
                    let tier = tenant["spec"]["tier"].as_str().unwrap_or_default();
                    self.progress(format!("{name} ({tier}) is Ready; bots: {bots}"));
                }
                ready.is_none()
            });
            if missing.is_empty() {
                return Ok(());
            }
            let reason = |name: &str| {
                let ready = tenant(name).map(|tenant| condition(tenant, "Ready").clone()).unwrap_or_default();
                format!("{name}: {}", ready["message"].as_str().unwrap_or("not seen by the operator yet"))
            };
            let stalled = |name: &&&str| tenant(name).is_some_and(|t| condition(t, "Stalled")["status"] == "True");
            if let Some(name) = missing.iter().find(stalled) {
                bail!("Tenant {} is Stalled", reason(name));
            }
            if applied.elapsed() > limit {
                let reasons: Vec<String> = missing.iter().map(|name| reason(name)).collect();
                bail!("not Ready after {} s: {}", limit.as_secs(), reasons.join("; "));
            }
            if told.elapsed() > NEWS {
                told = Instant::now();
                missing.iter().for_each(|name| self.progress(format!("waiting for {}", shortened(&reason(name)))));
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Sets an annotation to the present time and tells of every step until `done`.
    fn change(&mut self, what: &str, annotation: &str, done: impl Fn(&Parts) -> bool) -> Result<()> {
        let tenant = SHOWN.0;
        let value = format!("{annotation}={}", now()?);
        say(format!("{what}:\n\n$ kubectl annotate tenant {tenant} {annotation}=$(date -u +%Y-%m-%dT%H:%M:%SZ)"));
        let started = Instant::now();
        self.kubectl()?.run(&["annotate", "--overwrite", "tenant", tenant, &value])?;
        let mut before = String::new();
        loop {
            self.check()?;
            let parts = Parts::read(self.kubectl()?, tenant)?;
            let line = parts.line();
            if line != before {
                self.progress(&line);
                before = line;
            }
            if done(&parts) {
                self.progress(format!("done after {:.1} s", started.elapsed().as_secs_f32()));
                say("");
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(90) {
                bail!("the Tenant {tenant} is not where it should be after 90 s: {}", parts.message);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The present time as annotations want it.
pub(super) fn now() -> Result<String> {
    let now = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().context("cannot run date")?;
    Ok(String::from_utf8(now.stdout)?.trim().to_owned())
}

/// The gist of a Tenant's message. What stands in brackets are the words of scheduler and kubelet about one pod, which
/// matter only when it does not go on.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    let parts: Vec<&str> = text.split("; ").map(|part| part.split(" (").next().unwrap_or(part)).collect();
    let text = parts.join("; ");
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// How to look at what runs, and how to stop it.
fn further(running: &Running) -> Result<()> {
    say("Cluster, operator, hibernator and gateway keep running; who is idle falls asleep again. To look further:\n");
    say(format!("  export KUBECONFIG={}", quoted(running.kubeconfig.as_os_str())));
    say(format!("  export PATH={}:\"$PATH\"", quoted(Tools::dir()?.as_os_str())));
    say("  kubectl get tenants --watch");
    say("  kubectl annotate tenant pro-trader torpor.dev/hibernate=approved");
    say("  kubectl describe tenant alice");
    say("  kubectl explain tenant.spec.fleets");
    say(
        "  kubectl delete deployment dashboard -n tenant-premium-desk; kubectl get pods -n tenant-premium-desk --watch\n",
    );
    say(format!("  operator's log:    {}", running.operator_log.display()));
    say(format!("  hibernator's log:  {}", running.hibernator_log.display()));
    say(format!("  gateway's log:     {}", running.gateway_log.display()));
    say(format!("  gateway:           http://{}/openapi.json", running.gateway));
    say(format!("  metrics:           curl http://{}/metrics", running.probes));
    say("  stop everything:   make demo-stop");
    Ok(())
}

/// A word for the shell, in quotes only where it needs them.
fn quoted(text: &OsStr) -> String {
    let text = Path::new(text).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
