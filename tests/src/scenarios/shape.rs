//! Faults while the shape of the cluster changes, and faults of all kinds at once.

use std::time::Duration;

use anyhow::ensure;
use flotilla_local_cluster::{Link, What};
use tokio::time::{Instant, sleep};

use crate::scenario::Ground;

/// How long replacing everything on a dead node may take.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until no shard has a replica on the node that this number had.
async fn wait_replaced(ground: &Ground, asked: usize, gone: flotilla_types::NodeId) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let status = ground.client(asked)?.status().await?;
        let left =
            status.shards.iter().filter(|shard| shard.replicas.iter().any(|replica| replica.node == gone)).count();
        if left == 0 {
            return Ok(());
        }
        ensure!(begun.elapsed() < REPLACED_WITHIN, "{left} shards still have a replica on {gone}");
        sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn replace_dead(ground: &mut Ground) -> anyhow::Result<()> {
    ground.client(1)?.put_setting("dead_node_grace_ms", 2_000).await?;
    for i in [4, 2] {
        let id = ground.client(i)?.status().await?.node;
        ground.cluster.kill(i)?;
        ground.more(100).await?;
        wait_replaced(ground, 1, id).await?;
        ground.more(100).await?;
        // What comes back is a new node, and room for the next one.
        ground.cluster.wipe(i, What::All)?;
        ground.restart(i).await?;
    }
    Ok(())
}

pub(super) async fn join_over_bad_network(ground: &mut Ground) -> anyhow::Result<()> {
    let bad = Link { lost_permille: 30, doubled_permille: 10, delay_ms: (0, 30), ..Link::default() };
    ground.cluster.proxy()?.set_all(bad);
    for from in 0..=3 {
        for to in (0..=3).filter(|to| *to != from) {
            ground.cluster.proxy()?.set(from, to, bad);
        }
    }
    let i = ground.cluster.add_node().await?;
    ground.cluster.proxy()?.set_all(bad);
    ground.cluster.wait_node(i).await?;
    ground.more(200).await?;
    ground.cluster.proxy()?.heal();
    ground.recovered().await
}

pub(super) async fn mix(ground: &mut Ground) -> anyhow::Result<()> {
    for _ in 0..15 {
        let i = ground.any_node();
        let lasts = Duration::from_millis(300 + ground.chance.below(2_000));
        match ground.chance.below(5) {
            0 => {
                ground.cluster.kill(i)?;
                ground.last(lasts).await;
                ground.cluster.start_node(i).await?;
            }
            1 => {
                ground.cluster.pause(i)?;
                ground.last(lasts).await;
                ground.cluster.resume(i)?;
            }
            2 => {
                for other in ground.others(i) {
                    ground.cluster.proxy()?.set(i, other, Link::CUT);
                    ground.cluster.proxy()?.set(other, i, Link::CUT);
                }
                ground.last(lasts).await;
            }
            3 => {
                let bad = Link { lost_permille: 100, delay_ms: (0, 40), ..Link::default() };
                ground.cluster.proxy()?.set_all(bad);
                ground.last(lasts).await;
            }
            _ => {
                ground.cluster.proxy()?.heal();
                ground.last(lasts).await;
            }
        }
    }
    ground.cluster.proxy()?.heal();
    ground.recovered().await?;
    ground.more(100).await
}
