//! Faults of files: flipped bits, deleted and rolled-back folders.
//!
//! After a flip a node may come up and heal itself, or refuse to start; then its folder is wiped and it joins anew. Both are right. Serving what it
//! should not is what the history would show.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_local_cluster::{ClusterError, What, flip_bit};

use super::disks::CANNOT_GO_ON;
use crate::scenario::Ground;

/// How long a node may take to come up, or to end.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may serve from a damaged view before that is taken for good.
const SERVES_FOR: Duration = Duration::from_secs(5);
/// Files of a data folder that hold neither log nor state.
const SMALL_FILES: &[&str] =
    &["identity.json", "authority.json", "incarnation", "metadata", "seeds.json", "log/FORMAT", "state/view.trust"];

/// Lines of a log that may have to do with a fault, and how many of them are shown.
const ALARMS: [&str; 3] = ["WARN", "ERROR", "error:"];
const SHOWN: usize = 4;

/// Bits that are flipped in each segment, so that live objects are hit.
const FLIPS: usize = 24;
/// Rounds of fillings after which every shard has folded its runs.
const FOLDS: usize = 12;
/// Longer than a node tries to build a checkpoint.
const GIVES_UP_AFTER: Duration = Duration::from_secs(75);

/// All files below a folder, in order, that are not empty.
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

/// Kills a node, flips a bit in each of these files of its folder, and has it back one way or the other.
async fn flip(
    ground: &mut Ground,
    i: usize,
    files: impl Fn(&Path) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<()> {
    ground.cluster.kill(i)?;
    let data = ground.cluster.node(i)?.data_dir.clone();
    let files = files(&data)?;
    let mut flipped = Vec::new();
    for file in &files {
        let (at, bit) = (ground.chance.below(1_000_000), ground.chance.below(8));
        let at = flip_bit(file, u32::try_from(at)?, u32::try_from(bit)?)?;
        flipped.push(format!("{} at {at}", file.strip_prefix(&data)?.display()));
    }
    ground.more(50).await?;
    let log = ground.cluster.log(i)?.to_owned();
    let said_before = fs::metadata(&log)?.len();
    let outcome = come_back(ground, i).await?;
    ground.more(50).await?;
    let said = fs::read(&log)?.split_off(usize::try_from(said_before)?);
    let said = String::from_utf8_lossy(&said);
    let alarms: Vec<_> =
        said.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm))).take(SHOWN).collect();
    ground.note(format!("n{i}: {} → {outcome}; {alarms:#?}", flipped.join(", ")));
    Ok(())
}

/// Starts a node, and lets it join anew when it does not come up.
async fn come_back(ground: &mut Ground, i: usize) -> anyhow::Result<&'static str> {
    ground.cluster.start_node(i).await?;
    let begun = Instant::now();
    loop {
        match ground.cluster.wait_ready().await {
            Ok(()) => {
                ground.recovered().await?;
                return Ok("it came up");
            }
            Err(ClusterError::Ended { .. }) => break,
            Err(error) if begun.elapsed() > UP_WITHIN => bail!(error),
            Err(_) => {}
        }
    }
    let status = ground.cluster.wait_exit(i, UP_WITHIN).await?;
    ensure!(status.code().is_some(), "n{i} ended with {status}");
    ground.cluster.wipe(i, What::All)?;
    ground.restart(i).await?;
    Ok("it refused, and joined anew")
}

/// One node only: damage may stay unnoticed until somebody reads it, and the same damage on two nodes is one fault too many.
pub(super) async fn flip_in_log(ground: &mut Ground) -> anyhow::Result<()> {
    let (i, chance) = (ground.any_node(), ground.chance.below(1_000));
    let one = |data: &Path| {
        let logs: Vec<_> = files_below(&data.join("log"))?
            .into_iter()
            .filter(|file| file.extension().is_some_and(|it| it == "raftlog"))
            .collect();
        ensure!(!logs.is_empty(), "no log files in {}", data.display());
        Ok(vec![logs[usize::try_from(chance)? % logs.len()].clone()])
    };
    flip(ground, i, one).await
}

fn segments(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let segments = files_below(&data.join("state/objects"))?;
    ensure!(!segments.is_empty(), "no segments in {}", data.display());
    Ok(segments)
}

pub(super) async fn flip_in_objects(ground: &mut Ground) -> anyhow::Result<()> {
    let i = ground.any_node();
    ground.leave_behind(i).await?;
    flip(ground, i, segments).await
}

/// Damage may stay unnoticed until the objects are read to be folded.
pub(super) async fn fold_damaged_objects(ground: &mut Ground) -> anyhow::Result<()> {
    let i = ground.any_node();
    ground.leave_behind(i).await?;
    flip(ground, i, |data| Ok(segments(data)?.into_iter().flat_map(|file| vec![file; FLIPS]).collect())).await?;
    for _ in 0..FOLDS {
        ground.leave_behind(i).await?;
    }
    ground.last(GIVES_UP_AFTER).await;
    ensure!(ground.cluster.runs(i)?, "n{i} ended over a damaged object that its peers have");
    ground.recovered().await
}

pub(super) async fn flip_in_view(ground: &mut Ground) -> anyhow::Result<()> {
    for i in [1, 2] {
        ground.leave_behind(3).await?;
        flip(ground, i, |data| {
            let files = files_below(&data.join("state/view"))?;
            ensure!(!files.is_empty(), "no view in {}", data.display());
            Ok(files)
        })
        .await?;
    }
    // A view may open and fail later. Then the node ends itself, and rebuilds it at its next start.
    for i in [1, 2] {
        let Ok(status) = ground.cluster.wait_exit(i, SERVES_FOR).await else { continue };
        ensure!(status.code() == Some(CANNOT_GO_ON), "n{i} ended with {status}");
        ground.note(format!("n{i} ended by itself"));
        come_back(ground, i).await?;
    }
    ground.recovered().await
}

pub(super) async fn flip_in_small_files(ground: &mut Ground) -> anyhow::Result<()> {
    for (round, name) in SMALL_FILES.iter().enumerate() {
        let i = round % 2 + 2;
        let file = ground.cluster.node(i)?.data_dir.join(name);
        if !file.metadata().is_ok_and(|it| it.len() > 0) {
            ground.note(format!("n{i} has no {name}"));
            continue;
        }
        flip(ground, i, |data| Ok(vec![data.join(name)])).await?;
    }
    Ok(())
}

pub(super) async fn wipe(ground: &mut Ground) -> anyhow::Result<()> {
    for i in [3, 1] {
        ground.cluster.kill(i)?;
        ground.cluster.wipe(i, What::All)?;
        ground.more(100).await?;
        ground.restart(i).await?;
        ground.more(100).await?;
    }
    Ok(())
}

pub(super) async fn roll_back(ground: &mut Ground) -> anyhow::Result<()> {
    for i in [2, 3] {
        ground.cluster.kill(i)?;
        ground.cluster.backup(i)?;
        ground.restart(i).await?;
        ground.more(200).await?;
        ground.leave_behind(1).await?;
        // A beat, so that its peers know how far it was.
        ground.last(Duration::from_millis(600)).await;
        ground.cluster.kill(i)?;
        ground.cluster.restore(i)?;
        ground.restart(i).await?;
        ground.more(100).await?;
    }
    Ok(())
}

pub(super) async fn wipe_view(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        ground.leave_behind(i).await?;
        ground.cluster.kill(i)?;
        ground.cluster.wipe(i, What::View)?;
        ground.more(50).await?;
        ground.restart(i).await?;
    }
    Ok(())
}

pub(super) async fn exchange_views(ground: &mut Ground) -> anyhow::Result<()> {
    for view in ["sled", "objects", "sled"] {
        for i in 1..=3 {
            ground.leave_behind(i).await?;
            ground.cluster.kill(i)?;
            ground.cluster.set_variable(i, "FLOTILLA_VIEW", view)?;
            ground.more(50).await?;
            ground.restart(i).await?;
        }
    }
    Ok(())
}
