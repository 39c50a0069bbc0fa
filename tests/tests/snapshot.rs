//! Catching up by snapshot, after the other nodes have truncated their logs.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_api::ClusterStatus;
use flotilla_client::PutOptions;
use flotilla_local_cluster::Cluster;
use flotilla_types::ShardId;

use flotilla_tests::support::{
    SMALL_LIMITS, WITHIN, Workload, applied, checkpoints, client, eventually, start_with, status, wait_caught_up,
    wait_replicated,
};

/// Entries that stay in the log below a checkpoint.
const TAIL: u64 = 8;
/// Bytes of a value.
const VALUE_BYTES: usize = 8 << 10;
/// Puts in flight.
const PARALLEL: usize = 8;
/// Fills at most.
const ROUNDS_MAX: usize = 60;

#[tokio::test]
async fn a_restarted_node_catches_up_by_snapshot_after_truncation() {
    let mut cluster = start_with(3, &SMALL_LIMITS).await;
    let load = Workload::start_warm(&cluster).await;
    let history = load.finish().await;
    cluster.kill(3).expect("a running node");
    // Node 3 may have applied more than it reported, so node 1 is asked, when the load has stopped.
    let reached = applied(&status(&cluster, 1).await);

    let mut filled = 0;
    while !is_truncated(&status(&cluster, 1).await, &reached) || !is_truncated(&status(&cluster, 2).await, &reached) {
        assert!(filled < ROUNDS_MAX, "logs are not truncated after {filled} rounds");
        fill(&cluster, filled).await;
        filled += 1;
    }
    eprintln!("logs are truncated after {filled} rounds");

    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 3, 1).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    history.verify(&client(&cluster, 3)).await;
    read_filled_from(&cluster, filled, 3).await;
}

/// Whether every log of the node starts after `reached`.
fn is_truncated(status: &ClusterStatus, reached: &BTreeMap<ShardId, u64>) -> bool {
    checkpoints(status).iter().all(|(id, checkpoint)| *checkpoint > reached.get(id).copied().unwrap_or_default() + TAIL)
}

fn filling(round: usize, number: usize) -> (String, Bytes) {
    let key = format!("fill/{round}/{number}");
    let value = key.bytes().cycle().take(VALUE_BYTES).collect();
    (key, value)
}

/// Puts 64 values, [`PARALLEL`] at a time.
async fn fill(cluster: &Cluster, round: usize) {
    let mut puts = tokio::task::JoinSet::new();
    for task in 0..PARALLEL {
        let client = client(cluster, 1 + task % 2);
        puts.spawn(async move {
            for number in (task..64).step_by(PARALLEL) {
                let (key, value) = filling(round, number);
                let start = Instant::now();
                // With memtables this small, a leader may refuse writes for a while.
                while let Err(error) =
                    client.put("default", key.as_bytes(), value.clone(), &PutOptions::default()).await
                {
                    assert!(start.elapsed() < WITHIN, "{key} is not put: {error}");
                }
            }
        });
    }
    while let Some(put) = puts.join_next().await {
        put.expect("a put");
    }
}

/// Reads all filled records, until node `i` serves some of them as a leader.
async fn read_filled_from(cluster: &Cluster, rounds: usize, i: usize) {
    let id = status(cluster, i).await.node;
    eventually("the restarted node leads shards again", async || {
        let client = client(cluster, i);
        let mut served = 0;
        for round in 0..rounds {
            for number in 0..64 {
                let (key, value) = filling(round, number);
                let found = client.get("default", key.as_bytes()).await.expect("a read").expect("a record");
                assert_eq!(found.value, value, "{key}, served by {:?}", found.served_by);
                served += usize::from(found.served_by == Some(id));
            }
        }
        if served > 0 { Ok(()) } else { Err("it serves no record".to_owned()) }
    })
    .await;
}
