//! File faults: flipped bits, deleted and rolled-back folders.
//!
//! After a bit flip a node may start and repair itself, or refuse to start; then its folder is wiped and it
//! joins again as a new node. Both are correct. If it served wrong data, the history would show it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_local_cluster::{ClusterError, WipeScope, flip_bit};

use super::disks::FATAL_EXIT_CODE;
use crate::scenario::Testbed;

/// How long a node may take to become ready, or to exit.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may serve from a damaged view before it counts as working.
const SERVES_FOR: Duration = Duration::from_secs(5);
/// Files of a data folder that are neither log nor state.
const SMALL_FILES: &[&str] =
    &["identity.json", "authority.json", "incarnation", "metadata", "seeds.json", "log/FORMAT", "state/view.trust"];

/// Markers of log lines that may report a fault, and how many such lines are shown.
const ALARMS: [&str; 3] = ["WARN", "ERROR", "error:"];
const SHOWN: usize = 4;

/// Bits flipped in each segment: enough to hit live objects.
const FLIPS: usize = 24;
/// Fills after which every shard has folded its runs.
const FILLS_TO_FOLD: usize = 12;
/// Longer than a node keeps trying to build a checkpoint.
const CHECKPOINT_GIVES_UP_AFTER: Duration = Duration::from_secs(75);

/// All non-empty files below a folder, sorted.
fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else if entry.metadata()?.len() > 0 {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Kills a node, flips a bit in each of these files of its folder, and restarts it, wiped if necessary.
async fn flip(
    testbed: &mut Testbed,
    i: usize,
    files: impl Fn(&Path) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<()> {
    testbed.cluster.kill(i)?;
    let data = testbed.cluster.node(i)?.data_dir.clone();
    let files = files(&data)?;
    let mut flipped = Vec::new();
    for file in &files {
        let (at, bit) = (testbed.rng.below(1_000_000), testbed.rng.below(8));
        let at = flip_bit(file, u32::try_from(at)?, u32::try_from(bit)?)?;
        flipped.push(format!("{} at {at}", file.strip_prefix(&data)?.display()));
    }
    testbed.wait_completed(50).await?;
    let log = testbed.cluster.log(i)?.to_owned();
    let log_bytes_before = fs::metadata(&log)?.len();
    let outcome = start_or_rejoin(testbed, i).await?;
    testbed.wait_completed(50).await?;
    let logged = fs::read(&log)?.split_off(usize::try_from(log_bytes_before)?);
    let logged = String::from_utf8_lossy(&logged);
    let alarms: Vec<_> =
        logged.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm))).take(SHOWN).collect();
    testbed.note(format!("n{i}: {} → {outcome}; {alarms:#?}", flipped.join(", ")));
    Ok(())
}

/// Starts a node; if it refuses, wipes it and lets it join as a new node.
async fn start_or_rejoin(testbed: &mut Testbed, i: usize) -> anyhow::Result<&'static str> {
    testbed.cluster.start_node(i).await?;
    let start = Instant::now();
    loop {
        match testbed.cluster.wait_ready().await {
            Ok(()) => {
                testbed.wait_recovered().await?;
                return Ok("it started");
            }
            Err(ClusterError::Exited { .. }) => break,
            Err(error) if start.elapsed() > UP_WITHIN => bail!(error),
            Err(_) => {}
        }
    }
    let status = testbed.cluster.wait_exit(i, UP_WITHIN).await?;
    ensure!(status.code().is_some(), "n{i} exited with {status}");
    testbed.cluster.wipe(i, WipeScope::All)?;
    testbed.restart(i).await?;
    Ok("it refused to start, and rejoined as a new node")
}

/// One node only: damage may stay unnoticed until it is read, and the same damage on two nodes would exceed
/// what three replicas tolerate.
pub(super) async fn flip_in_log(testbed: &mut Testbed) -> anyhow::Result<()> {
    let (i, random) = (testbed.any_node(), testbed.rng.below(1_000));
    let one = |data: &Path| {
        let logs: Vec<_> = files_below(&data.join("log"))?
            .into_iter()
            .filter(|file| file.extension().is_some_and(|it| it == "raftlog"))
            .collect();
        ensure!(!logs.is_empty(), "no log files in {}", data.display());
        Ok(vec![logs[usize::try_from(random)? % logs.len()].clone()])
    };
    flip(testbed, i, one).await
}

fn segments(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let segments = files_below(&data.join("state/objects"))?;
    ensure!(!segments.is_empty(), "no segments in {}", data.display());
    Ok(segments)
}

pub(super) async fn flip_in_objects(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    testbed.truncate_logs_of_others(i).await?;
    flip(testbed, i, segments).await
}

/// Damage may stay unnoticed until a fold reads the objects.
pub(super) async fn fold_damaged_objects(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    testbed.truncate_logs_of_others(i).await?;
    flip(testbed, i, |data| Ok(segments(data)?.into_iter().flat_map(|file| vec![file; FLIPS]).collect())).await?;
    for _ in 0..FILLS_TO_FOLD {
        testbed.truncate_logs_of_others(i).await?;
    }
    testbed.hold(CHECKPOINT_GIVES_UP_AFTER).await;
    ensure!(testbed.cluster.is_running(i)?, "n{i} exited because of a damaged object that its peers have");
    testbed.wait_recovered().await
}

pub(super) async fn flip_in_view(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [1, 2] {
        testbed.truncate_logs_of_others(3).await?;
        flip(testbed, i, |data| {
            let files = files_below(&data.join("state/view"))?;
            ensure!(!files.is_empty(), "no view in {}", data.display());
            Ok(files)
        })
        .await?;
    }
    // A view may open and fail later. Then the node exits, and rebuilds it at its next start.
    for i in [1, 2] {
        let Ok(status) = testbed.cluster.wait_exit(i, SERVES_FOR).await else { continue };
        ensure!(status.code() == Some(FATAL_EXIT_CODE), "n{i} exited with {status}");
        testbed.note(format!("n{i} exited by itself"));
        start_or_rejoin(testbed, i).await?;
    }
    testbed.wait_recovered().await
}

pub(super) async fn flip_in_small_files(testbed: &mut Testbed) -> anyhow::Result<()> {
    for (round, name) in SMALL_FILES.iter().enumerate() {
        let i = round % 2 + 2;
        let file = testbed.cluster.node(i)?.data_dir.join(name);
        if !file.metadata().is_ok_and(|it| it.len() > 0) {
            testbed.note(format!("n{i} has no {name}"));
            continue;
        }
        flip(testbed, i, |data| Ok(vec![data.join(name)])).await?;
    }
    Ok(())
}

pub(super) async fn wipe(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [3, 1] {
        testbed.cluster.kill(i)?;
        testbed.cluster.wipe(i, WipeScope::All)?;
        testbed.wait_completed(100).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn roll_back(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [2, 3] {
        testbed.cluster.kill(i)?;
        testbed.cluster.backup(i)?;
        testbed.restart(i).await?;
        testbed.wait_completed(200).await?;
        testbed.truncate_logs_of_others(1).await?;
        // Longer than a heartbeat interval, so that its peers learn how far its log reached.
        testbed.hold(Duration::from_millis(600)).await;
        testbed.cluster.kill(i)?;
        testbed.cluster.restore(i)?;
        testbed.restart(i).await?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn wipe_view(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.truncate_logs_of_others(i).await?;
        testbed.cluster.kill(i)?;
        testbed.cluster.wipe(i, WipeScope::View)?;
        testbed.wait_completed(50).await?;
        testbed.restart(i).await?;
    }
    Ok(())
}

pub(super) async fn switch_views(testbed: &mut Testbed) -> anyhow::Result<()> {
    for view in ["sled", "objects", "sled"] {
        for i in 1..=3 {
            testbed.truncate_logs_of_others(i).await?;
            testbed.cluster.kill(i)?;
            testbed.cluster.set_variable(i, "FLOTILLA_VIEW", view)?;
            testbed.wait_completed(50).await?;
            testbed.restart(i).await?;
        }
    }
    Ok(())
}
