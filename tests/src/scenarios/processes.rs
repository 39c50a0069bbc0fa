//! Process faults: kills, pauses and restarts.

use std::{
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use flotilla_api::ClusterStatus;
use flotilla_local_cluster::ClusterError;
use flotilla_types::ShardId;

use super::disks::ensure_nothing_given_up;
use crate::{load::fill, scenario::Testbed};

/// What a node may allocate before the kernel kills it: less than it takes for [`fill`].
const MEMORY_LEFT_BYTES: u64 = 4 << 20;
/// How long it may take until a bound is reached.
const REACHED_WITHIN: Duration = Duration::from_secs(60);
/// Interval between looks at a process that is expected to end.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// The signal by which the kernel ends a process for lack of memory.
const KILLED: i32 = 9;

pub(super) async fn kill_in_turn(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        testbed.cluster.kill(i)?;
        testbed.wait_completed(150).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_all(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..2 {
        for i in 1..=3 {
            testbed.cluster.kill(i)?;
        }
        for i in 1..=3 {
            testbed.cluster.start_node(i).await?;
        }
        testbed.wait_recovered().await?;
        testbed.wait_completed(200).await?;
    }
    Ok(())
}

pub(super) async fn kill_amid_checkpoints(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..6 {
        let i = testbed.any_node();
        let operations = 50 + testbed.rng.below(200);
        testbed.cluster.kill(i)?;
        testbed.wait_completed(operations).await?;
        testbed.truncate_logs_of_others(i).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(operations).await?;
    }
    Ok(())
}

pub(super) async fn stop_and_continue(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in [1, 2] {
        testbed.cluster.pause(i)?;
        testbed.wait_completed(150).await?;
        testbed.hold(Duration::from_secs(2)).await;
        testbed.cluster.resume(i)?;
        testbed.wait_completed(100).await?;
    }
    Ok(())
}

pub(super) async fn pause_often(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..30 {
        let i = testbed.any_node();
        let (paused_ms, running_ms) = (50 + testbed.rng.below(900), 50 + testbed.rng.below(300));
        testbed.cluster.pause(i)?;
        testbed.hold(Duration::from_millis(paused_ms)).await;
        testbed.cluster.resume(i)?;
        testbed.hold(Duration::from_millis(running_ms)).await;
    }
    Ok(())
}

pub(super) async fn rolling_restart(testbed: &mut Testbed) -> anyhow::Result<()> {
    for i in 1..=3 {
        let status = testbed.cluster.stop(i).await?;
        ensure!(status.success(), "n{i} stopped with {status}");
        testbed.wait_completed(100).await?;
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}

pub(super) async fn kill_while_starting(testbed: &mut Testbed) -> anyhow::Result<()> {
    for round in 0..8 {
        let i = round % 3 + 1;
        testbed.cluster.kill(i)?;
        for step in 0..4 {
            testbed.cluster.start_node(i).await?;
            let delay = Duration::from_millis(10 + 40 * step + testbed.rng.below(40));
            testbed.hold(delay).await;
            testbed.cluster.kill(i)?;
        }
        testbed.restart(i).await?;
        testbed.wait_completed(50).await?;
    }
    Ok(())
}

pub(super) async fn lack_of_memory(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    testbed.cluster.limit_memory(i, MEMORY_LEFT_BYTES)?;
    let others = testbed.others(i);
    let others: Vec<_> = others.into_iter().map(|other| testbed.cluster.http(other)).collect::<Result<_, _>>()?;
    let began = Instant::now();
    for round in 0.. {
        fill(&others, round).await;
        match testbed.cluster.wait_exit(i, POLL_EVERY).await {
            Ok(status) => {
                ensure!(status.signal() == Some(KILLED), "n{i} exited with {status}");
                testbed.note(format!("n{i} was killed during fill {round}"));
                break;
            }
            Err(ClusterError::TimedOut { .. }) => {}
            Err(error) => bail!(error),
        }
        ensure!(began.elapsed() < REACHED_WITHIN, "n{i} lives on {MEMORY_LEFT_BYTES} bytes after {round} fills");
    }
    testbed.wait_completed(100).await?;
    testbed.restart(i).await?;
    ensure_nothing_given_up(testbed, i)
}

/// A shard that one node follows and of which it takes no more entries: it has committed fewer than the
/// node that leads it, and as many as before.
fn held_back(victim: &ClusterStatus, earlier: &ClusterStatus, leaders: &[ClusterStatus]) -> Option<ShardId> {
    let commit = |status: &ClusterStatus, id| {
        status.shards.iter().find(|shard| shard.id == id)?.local.as_ref().map(|local| local.commit)
    };
    let mut shards = victim.shards.iter().map(|shard| shard.id).filter(|id| *id != ShardId::META);
    shards.find(|id| {
        let here = commit(victim, *id);
        let leads = leaders.iter().any(|status| commit(status, *id) > here.map(|here| here + 10));
        here.is_some() && here == commit(earlier, *id) && leads
    })
}

pub(super) async fn apply_stalls(testbed: &mut Testbed) -> anyhow::Result<()> {
    let i = testbed.any_node();
    // The first wait moves applying off the thread that drives Raft.
    testbed.cluster.set_failpoints(i, "apply::before=1*sleep(150)->pause")?;
    let others = testbed.others(i);
    let urls: Vec<_> = others.iter().map(|other| testbed.cluster.http(*other)).collect::<Result<_, _>>()?;
    let began = Instant::now();
    let mut earlier = testbed.client(i)?.status().await?;
    for round in 0.. {
        fill(&urls, round).await;
        let victim = testbed.client(i)?.status().await.context("a node that applies nothing answers")?;
        let mut leaders = Vec::new();
        for other in &others {
            leaders.push(testbed.client(*other)?.status().await?);
        }
        if let Some(shard) = held_back(&victim, &earlier, &leaders) {
            testbed.note(format!("n{i} took no more entries of {shard} after {round} fills"));
            break;
        }
        ensure!(began.elapsed() < REACHED_WITHIN, "n{i} applies nothing and takes all entries");
        earlier = victim;
    }
    ensure!(testbed.cluster.is_running(i)?, "n{i} exited");
    testbed.cluster.clear_failpoints(i)?;
    testbed.wait_recovered().await?;
    ensure_nothing_given_up(testbed, i)
}
