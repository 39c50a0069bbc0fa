//! Faults of disks.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::scenario::Ground;

/// How long a node may take to notice that it must end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// The exit code of a node that cannot go on.
pub(super) const CANNOT_GO_ON: i32 = 70;
/// How long a node is left with a disk that is full or slow.
const LASTS: Duration = Duration::from_secs(5);

pub(super) async fn power_cut(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        ground.cluster.cut_power(i)?;
        ground.more(100).await?;
        ground.cluster.restore_power(i)?;
        ground.restart(i).await?;
        ground.more(100).await?;
    }
    Ok(())
}

pub(super) async fn power_cut_of_all(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..3 {
        for i in 1..=3 {
            ground.cluster.cut_power(i)?;
        }
        for i in 1..=3 {
            ground.cluster.restore_power(i)?;
            ground.cluster.start_node(i).await?;
        }
        ground.recovered().await?;
        ground.more(200).await?;
    }
    Ok(())
}

pub(super) async fn full(ground: &mut Ground) -> anyhow::Result<()> {
    let i = ground.any_node();
    ground.cluster.fill_disk(i)?;
    // It may go on for as long as it needs no space; it must not acknowledge what it could not write.
    ground.more(150).await?;
    // More than the log has allocated ahead.
    for _ in 0..4 {
        ground.leave_behind(i).await?;
    }
    let ended = ground.cluster.wait_exit(i, LASTS).await;
    if let Ok(status) = &ended {
        ensure!(status.code() == Some(CANNOT_GO_ON), "n{i} ended with {status}");
    }
    ground.note(format!("n{i} {}", if ended.is_ok() { "ended by itself" } else { "went on" }));
    ground.cluster.drain_disk(i)?;
    if !ground.cluster.runs(i)? {
        ground.cluster.start_node(i).await?;
    }
    ground.recovered().await
}

/// Sets a failpoint that must end a node, waits for that, and starts it again.
async fn fatal(ground: &mut Ground, i: usize, settings: &str) -> anyhow::Result<()> {
    ground.cluster.set_failpoints(i, settings)?;
    let status = ground.cluster.wait_exit(i, ENDS_WITHIN).await.with_context(|| format!("n{i} with {settings}"))?;
    ensure!(status.code() == Some(CANNOT_GO_ON), "n{i} ended with {status}");
    ground.cluster.clear_failpoints(i)?;
    ground.more(100).await?;
    ground.restart(i).await?;
    ground.more(50).await
}

pub(super) async fn log_without_space(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        fatal(ground, i, "log_fd::write::no_space_err=return").await?;
    }
    Ok(())
}

pub(super) async fn objects_without_space(ground: &mut Ground) -> anyhow::Result<()> {
    let i = ground.any_node();
    ground.cluster.set_failpoints(i, "objects::before_append=return(enospc)")?;
    ground.leave_behind(i).await?;
    ground.last(LASTS * 2).await;
    ground.cluster.clear_failpoints(i)?;
    ensure!(ground.cluster.runs(i)?, "n{i} ended over a disk that was full for {} s", (LASTS * 2).as_secs());
    ground.leave_behind(i).await?;
    ground.recovered().await
}

pub(super) async fn log_sync_fails(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        fatal(ground, i, "log_fd::sync::err=return").await?;
    }
    Ok(())
}

pub(super) async fn written_but_failed(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        fatal(ground, i, "raft_log::synced=return(error)").await?;
        fatal(ground, i, "wal::written=return(error)").await?;
    }
    Ok(())
}

pub(super) async fn object_sync_fails(ground: &mut Ground) -> anyhow::Result<()> {
    let i = ground.any_node();
    ground.cluster.set_failpoints(i, "objects::before_sync=1*return(error)")?;
    // From then on no checkpoint can be built; the node serves for a while, and gives up in the end.
    ground.more(300).await?;
    let ended = ground.cluster.wait_exit(i, Duration::from_secs(90)).await;
    ground.note(format!("n{i}: {ended:?}"));
    ground.cluster.clear_failpoints(i)?;
    if ended.is_err() {
        ground.cluster.kill(i)?;
    }
    ground.restart(i).await
}

pub(super) async fn slow(ground: &mut Ground) -> anyhow::Result<()> {
    for i in 1..=3 {
        ground.cluster.set_failpoints(i, "raft_log::before_sync=sleep(100)")?;
        ground.last(LASTS).await;
        ground.more(100).await?;
        ground.cluster.clear_failpoints(i)?;
    }
    Ok(())
}
