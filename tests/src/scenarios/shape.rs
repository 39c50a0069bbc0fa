//! Faults during membership changes, and mixed faults.

use std::time::Duration;

use anyhow::ensure;
use flotilla_local_cluster::{Link, WipeScope};
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
