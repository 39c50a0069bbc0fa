//! Faults during membership changes, and mixed faults.

use std::time::Duration;

use anyhow::ensure;
use flotilla_api::{MergeShards, SplitShard};
use flotilla_local_cluster::{Link, WipeScope};
use flotilla_types::ShardId;
use tokio::time::{Instant, sleep};

use crate::scenario::Testbed;

/// How long replacing all replicas of a dead node may take.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until node `i` reports no shard with a replica on `dead`.
async fn wait_replaced(testbed: &Testbed, i: usize, dead: flotilla_types::NodeId) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let status = testbed.client(i)?.status().await?;
        let left =
            status.shards.iter().filter(|shard| shard.replicas.iter().any(|replica| replica.node == dead)).count();
        if left == 0 {
            return Ok(());
        }
        ensure!(start.elapsed() < REPLACED_WITHIN, "{left} shards still have a replica on {dead}");
        sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn replace_dead(testbed: &mut Testbed) -> anyhow::Result<()> {
    testbed.client(1)?.put_setting("dead_node_grace_ms", 2_000).await?;
    for i in [4, 2] {
        let id = testbed.client(i)?.status().await?.node;
        testbed.cluster.kill(i)?;
        testbed.wait_completed(100).await?;
        wait_replaced(testbed, 1, id).await?;
        testbed.wait_completed(100).await?;
        // It rejoins as a new node, which can take over replicas of the next dead one.
        testbed.cluster.wipe(i, WipeScope::All)?;
        testbed.restart(i).await?;
    }
    Ok(())
}

/// Splits that a run orders.
const SPLITS: usize = 12;
/// How long they may take in all.
const SPLIT_WITHIN: Duration = Duration::from_secs(60);

/// Orders a split of any data shard. `false` if none could be ordered now.
async fn split_any(testbed: &mut Testbed, through: usize) -> anyhow::Result<bool> {
    let client = testbed.client(through)?;
    let Ok(status) = client.status().await else { return Ok(false) };
    let shards: Vec<_> = status.shards.iter().map(|shard| shard.id).filter(|shard| *shard != ShardId::META).collect();
    ensure!(!shards.is_empty(), "no shard");
    let shard = shards[testbed.rng.below(shards.len() as u64) as usize];
    // Refused while an earlier split or a change of its replicas is under way.
    Ok(client.split_shard(shard, &SplitShard::default()).await.is_ok())
}

pub(super) async fn split_and_kill(testbed: &mut Testbed) -> anyhow::Result<()> {
    let before = testbed.client(1)?.status().await?.shards.len();
    let start = Instant::now();
    let mut ordered = 0;
    while ordered < SPLITS {
        ensure!(start.elapsed() < SPLIT_WITHIN, "only {ordered} splits were ordered");
        let victim = testbed.any_node();
        let through = testbed.others(victim)[0];
        if !split_any(testbed, through).await? {
            testbed.hold(Duration::from_millis(50)).await;
            continue;
        }
        ordered += 1;
        if ordered % 3 == 0 {
            // From before the split is proposed to after it is done.
            let delay_ms = testbed.rng.below(60);
            testbed.hold(Duration::from_millis(delay_ms)).await;
            testbed.cluster.kill(victim)?;
            testbed.hold(Duration::from_millis(500)).await;
            testbed.cluster.start_node(victim).await?;
        }
    }
    testbed.wait_recovered().await?;
    loop {
        let shards = testbed.client(1)?.status().await?.shards.len();
        if shards == before + ordered {
            testbed.note(format!("{ordered} splits"));
            return testbed.wait_completed(100).await;
        }
        ensure!(start.elapsed() < SPLIT_WITHIN, "{shards} shards after {ordered} splits of {before}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Splits and merges that a run orders.
const RESHAPES: usize = 20;
/// How long they may take in all.
const RESHAPE_WITHIN: Duration = Duration::from_secs(120);

/// Merges the last two shards of `parted` that a split has parted, or splits any other data shard. `false` if that could
/// not be ordered now.
async fn reshape(testbed: &mut Testbed, through: usize, parted: &mut Vec<(ShardId, ShardId)>) -> anyhow::Result<bool> {
    let client = testbed.client(through)?;
    if testbed.rng.below(2) == 0
        && let Some((left, right)) = parted.last().copied()
    {
        let shards = match client.status().await {
            Ok(status) => status.shards,
            Err(_) => return Ok(false),
        };
        if !shards.iter().any(|shard| shard.id == right) {
            // The split was not carried out yet, or an earlier order has merged them.
            parted.pop();
            return Ok(false);
        }
        // The next look says whether it came about: a kill may abort it.
        return Ok(client.merge_shards(left, MergeShards { right }).await.is_ok());
    }
    let Ok(status) = client.status().await else { return Ok(false) };
    let shards: Vec<_> = status.shards.iter().map(|shard| shard.id).filter(|shard| *shard != ShardId::META).collect();
    ensure!(!shards.is_empty(), "no shard");
    let shard = shards[testbed.rng.below(shards.len() as u64) as usize];
    let Ok(operation) = client.split_shard(shard, &SplitShard::default()).await else { return Ok(false) };
    parted.extend(operation.child.map(|child| (shard, child)));
    Ok(true)
}

pub(super) async fn merge_and_kill(testbed: &mut Testbed) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut ordered, mut parted) = (0, Vec::new());
    while ordered < RESHAPES {
        ensure!(start.elapsed() < RESHAPE_WITHIN, "only {ordered} changes were ordered");
        let victim = testbed.any_node();
        let through = testbed.others(victim)[0];
        if !reshape(testbed, through, &mut parted).await? {
            testbed.hold(Duration::from_millis(50)).await;
            continue;
        }
        ordered += 1;
        if ordered % 3 == 0 {
            // From before the first step is proposed to after the last one is done.
            let delay_ms = testbed.rng.below(400);
            testbed.hold(Duration::from_millis(delay_ms)).await;
            testbed.cluster.kill(victim)?;
            testbed.hold(Duration::from_millis(500)).await;
            testbed.cluster.start_node(victim).await?;
        }
    }
    testbed.wait_recovered().await?;
    loop {
        let operations = testbed.client(1)?.operations().await?.operations.len();
        if operations == 0 {
            let shards = testbed.client(1)?.status().await?.shards.len();
            testbed.note(format!("{ordered} splits and merges were ordered, {shards} shards in the end"));
            return testbed.wait_completed(100).await;
        }
        ensure!(start.elapsed() < RESHAPE_WITHIN, "{operations} operations have not ended");
        sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn join_over_bad_network(testbed: &mut Testbed) -> anyhow::Result<()> {
    let bad = Link { lost_permille: 30, duplicated_permille: 10, delay_ms_max: 30, ..Link::default() };
    testbed.cluster.proxy()?.set_all(bad);
    for from in 0..=3 {
        for to in (0..=3).filter(|to| *to != from) {
            testbed.cluster.proxy()?.set(from, to, bad);
        }
    }
    let i = testbed.cluster.add_node().await?;
    testbed.cluster.proxy()?.set_all(bad);
    testbed.cluster.wait_node(i).await?;
    testbed.wait_completed(200).await?;
    testbed.cluster.proxy()?.heal();
    testbed.wait_recovered().await
}

pub(super) async fn mix(testbed: &mut Testbed) -> anyhow::Result<()> {
    for _ in 0..15 {
        let i = testbed.any_node();
        let duration = Duration::from_millis(300 + testbed.rng.below(2_000));
        match testbed.rng.below(5) {
            0 => {
                testbed.cluster.kill(i)?;
                testbed.hold(duration).await;
                testbed.cluster.start_node(i).await?;
            }
            1 => {
                testbed.cluster.pause(i)?;
                testbed.hold(duration).await;
                testbed.cluster.resume(i)?;
            }
            2 => {
                for other in testbed.others(i) {
                    testbed.cluster.proxy()?.set(i, other, Link::CUT);
                    testbed.cluster.proxy()?.set(other, i, Link::CUT);
                }
                testbed.hold(duration).await;
            }
            3 => {
                let bad = Link { lost_permille: 100, delay_ms_max: 40, ..Link::default() };
                testbed.cluster.proxy()?.set_all(bad);
                testbed.hold(duration).await;
            }
            _ => {
                testbed.cluster.proxy()?.heal();
                testbed.hold(duration).await;
            }
        }
    }
    testbed.cluster.proxy()?.heal();
    testbed.wait_recovered().await?;
    testbed.wait_completed(100).await
}
