//! A scenario: a cluster under load, one kind of fault, and what must hold afterwards.
//!
//! A run passes when the load had at least 100 operations a second before the fault (else it is void, which is a failure), the history is linearizable, nothing acknowledged is
//! lost, replica digests are equal within 30 s after healing, nobody ended unplanned, no log tells of a panic, and memory stayed within its bound. A
//! run that fails leaves its history, its logs and its data in a folder, and says where.

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
    Cluster, ClusterError, ClusterOptions, DISK_TOOLS, NAMESPACE_TOOLS, Network, POWER_TOOLS, missing_privilege,
};
use serde::Serialize;

use crate::{
    load::{Chance, Load, Recorder, Target, fill},
    support::binary,
    verdict,
    whole::wait_whole,
};

/// What a node with failpoints says when it starts.
const HAS_FAILPOINTS: &str = "this build has failpoints";
/// Answers that are waited for after the healing, before the load ends.
const AFTER: u64 = 200;
/// Fillings after which every shard has checkpointed.
const FILLINGS: u32 = 2;
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

/// What a scenario needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The proxy between nodes.
    Proxy,
    /// Root: a small disk for each node.
    Disk,
    /// Root: a disk for each node whose power can be cut.
    Power,
    /// Root: a network namespace for each node.
    Cable,
    /// A node that was built with failpoints.
    Failpoints,
}

/// A fault as it runs.
pub type Fault<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// One scenario.
pub struct Scenario {
    /// Its name, which is that of its test, too.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// Which runs it belongs to.
    pub set: Set,
    /// What it needs.
    pub needs: Needs,
    /// How many nodes it starts with.
    pub nodes: usize,
    /// More arguments of the nodes.
    pub arguments: &'static [&'static str],
    /// The most memory that a node may use, in MiB (VmHWM).
    pub memory_mib_max: u64,
    /// What the one panic names that is part of the fault: libraries that panic when the disk fails, which the node contains.
    pub panics: Option<&'static str>,
    /// Hurts the cluster and heals it again.
    pub fault: for<'a> fn(&'a mut Ground) -> Fault<'a>,
}

impl Scenario {
    /// What most scenarios are made of.
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

/// How a run went.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: &'static str,
    /// From which seed.
    pub seed: u64,
    /// What was left out, and why; nothing else counts then.
    pub skipped: Option<String>,
    /// Operations in the history.
    pub operations: usize,
    /// Those with a certain answer.
    pub certain: usize,
    /// Keys that were put once and looked for in the end.
    pub own_keys: usize,
    /// How long after the healing replicas were equal, in milliseconds.
    pub equal_after_ms: u64,
    /// The most memory that a node used, in MiB.
    pub memory_mib: u64,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// What was seen besides.
    pub notes: Vec<String>,
}

/// Where a fault takes place.
pub struct Ground {
    /// The cluster.
    pub cluster: Cluster,
    /// The load on it.
    pub load: Load,
    /// Chances of this run.
    pub chance: Chance,
    /// What was seen, for the report.
    pub notes: Vec<String>,
}

impl Ground {
    /// Notes what was seen.
    pub fn note(&mut self, seen: impl Into<String>) {
        self.notes.push(seen.into());
    }

    /// One of the nodes.
    pub fn any_node(&mut self) -> usize {
        usize::try_from(self.chance.below(self.cluster.len() as u64)).unwrap_or(0) + 1
    }

    /// The other nodes.
    #[must_use]
    pub fn others(&self, than: usize) -> Vec<usize> {
        (1..=self.cluster.len()).filter(|i| *i != than).collect()
    }

    /// A client of one node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn client(&self, i: usize) -> anyhow::Result<Client> {
        Ok(Client::new(ClientOptions::new([self.cluster.http(i)?]))?)
    }

    /// Waits for so many more answers.
    ///
    /// # Errors
    /// They do not come.
    pub async fn more(&self, answers: u64) -> anyhow::Result<()> {
        self.load.more(answers).await
    }

    /// Has the nodes but this one checkpoint and truncate, so that it needs a snapshot when it comes back. Takes small memtables.
    ///
    /// # Errors
    /// There is no other node.
    pub async fn leave_behind(&self, i: usize) -> anyhow::Result<()> {
        let others = self.others(i).into_iter().map(|other| self.cluster.http(other)).collect::<Result<Vec<_>, _>>()?;
        for round in 0..FILLINGS {
            fill(&others, round).await;
        }
        Ok(())
    }

    /// Lets the fault last, whatever comes of it.
    pub async fn last(&self, lasts: Duration) {
        tokio::time::sleep(lasts).await;
    }

    /// Starts a node again and waits until the cluster is whole.
    ///
    /// # Errors
    /// It does not become so.
    pub async fn restart(&mut self, i: usize) -> anyhow::Result<()> {
        self.cluster.start_node(i).await?;
        self.recovered().await
    }

    /// Waits until the cluster is whole.
    ///
    /// # Errors
    /// It does not become so.
    pub async fn recovered(&mut self) -> anyhow::Result<()> {
        wait_whole(&mut self.cluster).await
    }
}

/// Runs a scenario from a seed. The folder of a run that fails stays.
///
/// # Errors
/// It failed.
pub fn run(scenario: &Scenario, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report {
        scenario: scenario.name,
        seed,
        skipped: missing(scenario),
        operations: 0,
        certain: 0,
        own_keys: 0,
        equal_after_ms: 0,
        memory_mib: 0,
        took_ms: 0,
        notes: Vec::new(),
    };
    if let Some(reason) = &report.skipped {
        eprintln!("{} is left out: {reason}", scenario.name);
        return Ok(report);
    }
    let begun = Instant::now();
    let mut kept = Kept::new(scenario.name, seed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(attempt(scenario, seed, &mut kept, &mut report))
        .with_context(|| kept.dir.display().to_string())?;
    report.took_ms = millis(begun.elapsed());
    kept.done = true;
    Ok(report)
}

async fn attempt(scenario: &Scenario, seed: u64, kept: &mut Kept, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start(options(scenario, seed, &kept.dir)).await?;
    let targets: Vec<_> = (1..=cluster.len())
        .map(|i| Ok(Target { http: cluster.http(i)?, redis: cluster.redis(i)? }))
        .collect::<Result<_, ClusterError>>()?;
    if scenario.needs == Needs::Failpoints {
        let log = fs::read_to_string(cluster.log(1)?)?;
        ensure!(
            log.contains(HAS_FAILPOINTS),
            "the node was built without failpoints: `cargo xtask test` does it right"
        );
    }
    let load = Load::start(&targets, "", seed).await?;
    kept.recorder = Some(load.recorder());
    let mut ground = Ground { cluster, load, chance: Chance::new(seed), notes: Vec::new() };
    let hurt = (scenario.fault)(&mut ground).await;
    report.notes.clone_from(&ground.notes);
    hurt.context("the fault")?;

    let healed = Instant::now();
    ground.recovered().await.context("after healing")?;
    ground.more(AFTER).await.context("after healing")?;
    let Ground { mut cluster, load, .. } = ground;
    let ended = load.finish().await?;
    verdict::writes_are_served(&mut cluster, healed).await?;
    let equal_after = verdict::replicas_are_equal(&mut cluster, healed).await?;
    let running: Vec<usize> = (1..=cluster.len()).filter(|i| cluster.runs(*i).unwrap_or(false)).collect();
    for i in &running {
        ended.read_all(&cluster.http(*i)?, 1_000 + *i as u64).await?;
    }
    report.own_keys = verdict::own_keys_are_kept(&cluster.http(running[0])?, &ended).await?;
    (report.operations, report.certain) = ended.recorder.counts();
    report.equal_after_ms = millis(equal_after);

    let gone = cluster.ended()?;
    ensure!(gone.is_empty(), "ended unplanned: {gone:?}");
    for i in 1..=cluster.len() {
        report.memory_mib = report.memory_mib.max(cluster.peak_bytes(i)? >> 20);
        let log = fs::read(cluster.log(i)?)?;
        let log = String::from_utf8_lossy(&log);
        let panicked = log.lines().find(|line| {
            line.contains("panicked at ") && !scenario.panics.is_some_and(|expected| line.contains(expected))
        });
        ensure!(panicked.is_none(), "n{i}: {}", panicked.unwrap_or_default());
    }
    ensure!(
        report.memory_mib <= scenario.memory_mib_max,
        "a node used {} MiB of {}",
        report.memory_mib,
        scenario.memory_mib_max
    );
    crate::linearizable::check(&ended.recorder.operations())
}

fn options(scenario: &Scenario, seed: u64, dir: &Path) -> ClusterOptions {
    let mut options = ClusterOptions::new(scenario.nodes, binary());
    options.dir = Some(dir.to_owned());
    options.arguments = scenario.arguments.iter().map(|argument| (*argument).to_owned()).collect();
    match scenario.needs {
        Needs::Proxy => options.network = Network::Proxied { seed },
        Needs::Cable => options.network = Network::Namespaces,
        Needs::Disk | Needs::Power => options.disk_bytes = Some(DISK_BYTES),
        Needs::Nothing | Needs::Failpoints => {}
    }
    options
}

/// Why the machine cannot run a scenario.
fn missing(scenario: &Scenario) -> Option<String> {
    match scenario.needs {
        Needs::Disk => missing_privilege(DISK_TOOLS),
        Needs::Power => missing_privilege(POWER_TOOLS),
        Needs::Cable => missing_privilege(NAMESPACE_TOOLS),
        Needs::Nothing | Needs::Proxy | Needs::Failpoints => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The folder of a run: removed when it went well, otherwise completed by the history.
pub(crate) struct Kept {
    pub(crate) dir: PathBuf,
    pub(crate) recorder: Option<Arc<Recorder>>,
    pub(crate) done: bool,
}

impl Kept {
    /// A new folder in `$FLOTILLA_TORTURE_DIR`, or `torture` in the folder that this program was built into.
    pub(crate) fn new(name: &str, seed: u64) -> anyhow::Result<Self> {
        let built = || {
            let here = env::current_exe()?;
            let target = here.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
            Ok::<_, std::io::Error>(target.map_or_else(env::temp_dir, Path::to_owned).join("torture"))
        };
        let parent = env::var_os("FLOTILLA_TORTURE_DIR").map_or_else(built, |dir| Ok(dir.into()))?;
        let dir = parent.join(format!("{name}-{seed}-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir, recorder: None, done: false })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.done {
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
