//! Bulk writes that make every shard checkpoint and truncate its log.

use anyhow::Result;
use bytes::Bytes;
use flotilla_client::{Client, ClientOptions, PutOptions};
use flotilla_local_cluster::Cluster;
use tokio::task::JoinSet;

/// Records per fill, always the same keys: enough for each shard to hold some.
const RECORDS: usize = 64;
/// Bytes of each record.
const RECORD_BYTES: usize = 8 << 10;
/// Puts in flight: with memtables as small as these tests use, more are refused.
const PARALLEL: usize = 8;
/// Fills after which every shard has checkpointed and truncated its log.
const FILLS_TO_TRUNCATE: u32 = 2;

/// Makes all nodes but `i` checkpoint and truncate their logs, so that `i` needs a snapshot to catch up.
/// Requires small memtables.
///
/// # Errors
/// There is no other node.
pub async fn truncate_logs_of_others(cluster: &Cluster, i: usize) -> Result<()> {
    let others = (1..=cluster.len()).filter(|other| *other != i);
    let others: Vec<_> = others.map(|other| cluster.http(other)).collect::<Result<_, _>>()?;
    for round in 0..FILLS_TO_TRUNCATE {
        fill(&others, round).await;
    }
    Ok(())
}

/// Puts half a MiB through these nodes, best effort: the outcomes are ignored, and the records are never
/// read.
pub async fn fill(nodes: &[String], round: u32) {
    let mut puts = JoinSet::new();
    for task in 0..PARALLEL {
        let endpoint = nodes[task % nodes.len()].clone();
        puts.spawn(async move {
            let Ok(client) = Client::new(ClientOptions::new([endpoint])) else { return };
            for number in (task..RECORDS).step_by(PARALLEL) {
                let key = format!("filling/{number}");
                let value: Bytes = format!("{round}/{key}/").bytes().cycle().take(RECORD_BYTES).collect();
                // A refused put does not matter: another fill follows.
                let _ = client.put("default", key.as_bytes(), value, &PutOptions::default()).await;
            }
        });
    }
    while puts.join_next().await.is_some() {}
}
