//! A scenario: a cluster under load, one kind of fault, and what must hold afterwards.
//!
//! A run passes if the load reached 100 operations per second before the fault (otherwise it is void, which
//! is a failure), the history is linearizable, no acknowledged write is lost, replica digests are equal
//! within 30 s after healing, no node exited unexpectedly, no log shows a panic, and memory stayed within its
//! bound. A failed run keeps its history, logs and data in a folder, and names it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use flotilla_client::{Client, ClientOptions};
use flotilla_local_cluster::{
    Cluster, ClusterError, ClusterOptions, DISK_TOOLS, NAMESPACE_TOOLS, Network, POWER_TOOLS, missing_memory_limit,
    missing_privilege,
};
use serde::Serialize;

use crate::{
    checks,
    load::{Load, Recorder, Rng, Target, truncate_logs_of_others},
    recovery::wait_recovered,
    support::binary,
};

/// Logged by a node with failpoints when it starts.
const HAS_FAILPOINTS: &str = "this build has failpoints";
/// Operations that must complete after healing, before the load ends.
const OPERATIONS_AFTER: u64 = 200;
/// Bytes of a node's own disk, for scenarios that need one.
const DISK_BYTES: u64 = 192 << 20;

/// Which runs a scenario belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// `cargo xtask test`, and the long set as well.
    Short,
    /// `cargo xtask torture` only.
    Long,
}

/// What a scenario requires of the machine and the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The proxy between nodes.
    Proxy,
    /// Root: a small disk for each node.
    SmallDisk,
    /// Root: a disk for each node whose power can be cut.
    PowerCut,
    /// Root: a network namespace for each node.
    Namespaces,
    /// A node built with failpoints.
    Failpoints,
    /// Root: a limit on the memory of a process.
    MemoryLimit,
}

/// A running fault.
pub type Fault<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// One scenario.
pub struct Scenario {
    /// Its name, also the name of its test.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// Which runs it belongs to.
    pub set: Set,
    /// What it requires.
    pub needs: Needs,
    /// Number of nodes at the start.
    pub nodes: usize,
    /// Additional arguments of the nodes.
    pub arguments: &'static [&'static str],
    /// Peak memory that a node may use, in MiB (VmHWM).
    pub memory_mib_max: u64,
    /// Part of the location of panics that the fault is expected to cause: some libraries panic when the disk
    /// fails, and the node contains that.
    pub panics: Option<&'static str>,
    /// Injects the fault and heals the cluster.
    pub fault: for<'a> fn(&'a mut Testbed) -> Fault<'a>,
}

impl Scenario {
    /// The defaults of a scenario.
    pub const DEFAULT: Self = Self {
        name: "",
        about: "",
        set: Set::Long,
        needs: Needs::Nothing,
        nodes: 3,
        arguments: &[],
        memory_mib_max: 256,
        panics: None,
        fault: |_| Box::pin(async { Ok(()) }),
    };
}

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// Why the run was skipped; if so, no other field counts.
    pub skipped: Option<String>,
    /// Operations in the history.
    pub operations: usize,
    /// Operations that completed: neither refused nor of unknown outcome.
    pub completed: usize,
    /// Write-once keys that were checked in the end.
    pub write_once_keys: usize,
    /// Time from healing until replicas were equal, in milliseconds.
    pub equal_after_ms: u64,
    /// Peak memory of any node, in MiB.
    pub memory_mib: u64,
    /// Duration of the run, in milliseconds.
    pub took_ms: u64,
    /// Observations of the fault.
    pub notes: Vec<String>,
}

/// The cluster and load that a fault is injected into.
pub struct Testbed {
    /// The cluster.
    pub cluster: Cluster,
    /// The load on it.
    pub load: Load,
    /// Random decisions of this run.
    pub rng: Rng,
    /// Observations, for the report.
    pub notes: Vec<String>,
}

impl Testbed {
    /// Adds an observation to the report.
    pub fn note(&mut self, observation: impl Into<String>) {
        self.notes.push(observation.into());
    }

    /// A random node.
    pub fn any_node(&mut self) -> usize {
        usize::try_from(self.rng.below(self.cluster.len() as u64)).unwrap_or(0) + 1
    }

    /// All nodes but `i`.
    #[must_use]
    pub fn others(&self, i: usize) -> Vec<usize> {
        (1..=self.cluster.len()).filter(|other| *other != i).collect()
    }

    /// A client of one node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn client(&self, i: usize) -> anyhow::Result<Client> {
        Ok(Client::new(ClientOptions::new([self.cluster.http(i)?]))?)
    }

    /// Waits until `operations` more operations have completed.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn wait_completed(&self, operations: u64) -> anyhow::Result<()> {
        self.load.wait_completed(operations).await
    }

    /// See [`crate::load::truncate_logs_of_others`].
    ///
    /// # Errors
    /// There is no other node.
    pub async fn truncate_logs_of_others(&self, i: usize) -> anyhow::Result<()> {
        truncate_logs_of_others(&self.cluster, i).await
    }

    /// Keeps the fault in place for this long.
    pub async fn hold(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Starts a node again and waits until the cluster has recovered.
    ///
    /// # Errors
    /// It does not start, or the cluster does not recover in time.
    pub async fn restart(&mut self, i: usize) -> anyhow::Result<()> {
        self.cluster.start_node(i).await?;
        self.wait_recovered().await
    }

    /// Waits until the cluster has recovered: all nodes run, and every shard is led and fully replicated.
    ///
    /// # Errors
    /// It does not recover in time.
    pub async fn wait_recovered(&mut self) -> anyhow::Result<()> {
        wait_recovered(&mut self.cluster).await
    }
}

/// Runs a scenario with a seed. The folder of a failed run is kept.
///
/// # Errors
/// The run failed.
pub fn run(scenario: &Scenario, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report {
        scenario: scenario.name,
        seed,
        skipped: missing_requirement(scenario),
        operations: 0,
        completed: 0,
        write_once_keys: 0,
        equal_after_ms: 0,
        memory_mib: 0,
        took_ms: 0,
        notes: Vec::new(),
    };
    if let Some(reason) = &report.skipped {
        eprintln!("{} is skipped: {reason}", scenario.name);
        return Ok(report);
    }
    let start = Instant::now();
    let mut folder = RunFolder::new(scenario.name, seed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(run_in(&mut folder, scenario, seed, &mut report))
        .with_context(|| folder.dir.display().to_string())?;
    report.took_ms = millis(start.elapsed());
    folder.passed = true;
    Ok(report)
}

async fn run_in(folder: &mut RunFolder, scenario: &Scenario, seed: u64, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start(options(scenario, seed, &folder.dir)).await?;
    let targets: Vec<_> = (1..=cluster.len())
        .map(|i| Ok(Target { http: cluster.http(i)?, redis: cluster.redis(i)? }))
        .collect::<Result<_, ClusterError>>()?;
    if scenario.needs == Needs::Failpoints {
        let log = fs::read_to_string(cluster.log(1)?)?;
        ensure!(
            log.contains(HAS_FAILPOINTS),
            "the node was built without failpoints; `cargo xtask test` builds it with them"
        );
    }
    let load = Load::start(&targets, "", seed).await?;
    folder.recorder = Some(load.recorder());
    let mut testbed = Testbed { cluster, load, rng: Rng::new(seed), notes: Vec::new() };
    let injected = (scenario.fault)(&mut testbed).await;
    report.notes.clone_from(&testbed.notes);
    injected.context("the fault")?;

    let healed = Instant::now();
    testbed.wait_recovered().await.context("after healing")?;
    testbed.wait_completed(OPERATIONS_AFTER).await.context("after healing")?;
    let Testbed { mut cluster, load, .. } = testbed;
    let finished = load.finish().await?;
    checks::wait_writable(&mut cluster, healed).await?;
    let equal_after = checks::wait_replicas_equal(&mut cluster, healed).await?;
    let running: Vec<usize> = (1..=cluster.len()).filter(|i| cluster.is_running(*i).unwrap_or(false)).collect();
    for i in &running {
        finished.read_all(&cluster.http(*i)?, 1_000 + *i as u64).await?;
    }
    report.write_once_keys = checks::check_write_once_keys(&cluster.http(running[0])?, &finished).await?;
    (report.operations, report.completed) = finished.recorder.counts();
    report.equal_after_ms = millis(equal_after);
    check_processes(&mut cluster, scenario, report)?;
    crate::linearizable::check_and_keep(&finished.recorder.operations(), &folder.dir)
}

/// Checks that no node exited unexpectedly, panicked or used too much memory.
fn check_processes(cluster: &mut Cluster, scenario: &Scenario, report: &mut Report) -> anyhow::Result<()> {
    let exited = cluster.unexpected_exits()?;
    ensure!(exited.is_empty(), "unexpected exits: {exited:?}");
    for i in 1..=cluster.len() {
        report.memory_mib = report.memory_mib.max(cluster.peak_memory_bytes(i)? >> 20);
        let log = fs::read(cluster.log(i)?)?;
        let log = String::from_utf8_lossy(&log);
        let panicked = log.lines().find(|line| {
            line.contains("panicked at ") && !scenario.panics.is_some_and(|expected| line.contains(expected))
        });
        ensure!(panicked.is_none(), "n{i}: {}", panicked.unwrap_or_default());
    }
    ensure!(
        report.memory_mib <= scenario.memory_mib_max,
        "a node used {} MiB, more than {}",
        report.memory_mib,
        scenario.memory_mib_max
    );
    Ok(())
}

fn options(scenario: &Scenario, seed: u64, dir: &Path) -> ClusterOptions {
    let mut options = ClusterOptions::new(scenario.nodes, binary());
    options.dir = Some(dir.to_owned());
    options.arguments = scenario.arguments.iter().map(|argument| (*argument).to_owned()).collect();
    match scenario.needs {
        Needs::Proxy => options.network = Network::Proxied { seed },
        Needs::Namespaces => options.network = Network::Namespaces,
        Needs::SmallDisk | Needs::PowerCut => options.disk_bytes = Some(DISK_BYTES),
        Needs::Nothing | Needs::Failpoints | Needs::MemoryLimit => {}
    }
    options
}

/// Why the machine cannot run a scenario, if so.
fn missing_requirement(scenario: &Scenario) -> Option<String> {
    match scenario.needs {
        Needs::SmallDisk => missing_privilege(DISK_TOOLS),
        Needs::PowerCut => missing_privilege(POWER_TOOLS),
        Needs::Namespaces => missing_privilege(NAMESPACE_TOOLS),
        Needs::MemoryLimit => missing_memory_limit(),
        Needs::Nothing | Needs::Proxy | Needs::Failpoints => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The folder of a run: deleted on drop if the run passed, otherwise kept together with the history.
pub(crate) struct RunFolder {
    pub(crate) dir: PathBuf,
    pub(crate) recorder: Option<Arc<Recorder>>,
    pub(crate) passed: bool,
}

impl RunFolder {
    /// A new folder in `$FLOTILLA_TORTURE_DIR`, or in `torture` below cargo's target folder.
    pub(crate) fn new(name: &str, seed: u64) -> anyhow::Result<Self> {
        let built = || {
            let here = env::current_exe()?;
            let target = here.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
            Ok::<_, std::io::Error>(target.map_or_else(env::temp_dir, Path::to_owned).join("torture"))
        };
        let parent = env::var_os("FLOTILLA_TORTURE_DIR").map_or_else(built, |dir| Ok(dir.into()))?;
        let dir = parent.join(format!("{name}-{seed}-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir, recorder: None, passed: false })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.passed {
            let _ = fs::remove_dir_all(&self.dir);
            return;
        }
        if let Some(recorder) = &self.recorder
            && let Err(error) = recorder.save(&self.dir.join("history.jsonl"))
        {
            eprintln!("the history cannot be saved: {error}");
        }
        eprintln!("history, logs and data are in {}", self.dir.display());
    }
}
