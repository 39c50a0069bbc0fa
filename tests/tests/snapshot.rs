//! A node that was away for longer than the log reaches back.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_api::ClusterStatus;
use flotilla_client::PutOptions;
use flotilla_local_cluster::Cluster;
use flotilla_types::ShardId;

use flotilla_tests::support::{
    SMALL, WITHIN, Workload, applied, checkpoints, client, eventually, start_with, status, wait_caught_up, wait_whole,
};

/// Entries that stay in the log.
const TAIL: u64 = 8;
/// Bytes of a value.
const VALUE_BYTES: usize = 8 << 10;
/// Puts on their way at the same time.
const PARALLEL: usize = 8;
/// More than enough rounds.
const ROUNDS_MAX: usize = 60;

#[tokio::test]
async fn a_restarted_node_catches_up_by_snapshot_after_truncation() {
    let mut cluster = start_with(3, &SMALL).await;
    let load = Workload::warm(&cluster.http_all()).await;
    let history = load.finish().await;
    cluster.kill(3).expect("a running node");
    // Node 3 may have applied a little more than it said, so it is asked of those that are left, once nothing happens.
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
    wait_whole(&cluster, &[1, 2, 3]).await;
    history.verify(&client(&cluster, 3)).await;
    read_filled_from(&cluster, filled, 3).await;
}

/// Whether every log of the node begins after `reached`.
fn is_truncated(status: &ClusterStatus, reached: &BTreeMap<ShardId, u64>) -> bool {
    checkpoints(status).iter().all(|(id, checkpoint)| *checkpoint > reached.get(id).copied().unwrap_or_default() + TAIL)
}

fn filling(round: usize, number: usize) -> (String, Bytes) {
    let key = format!("fill/{round}/{number}");
    let value = key.bytes().cycle().take(VALUE_BYTES).collect();
    (key, value)
}

/// Puts 64 values, a few at a time.
async fn fill(cluster: &Cluster, round: usize) {
    let mut puts = tokio::task::JoinSet::new();
    for lane in 0..PARALLEL {
        let client = client(cluster, 1 + lane % 2);
        puts.spawn(async move {
            for number in (lane..64).step_by(PARALLEL) {
                let (key, value) = filling(round, number);
                let begun = Instant::now();
                // With memtables as small as these, a leader may be too busy for a while.
                while let Err(error) =
                    client.put("default", key.as_bytes(), value.clone(), &PutOptions::default()).await
                {
                    assert!(begun.elapsed() < WITHIN, "{key} is not put: {error}");
                }
            }
        });
    }
    while let Some(put) = puts.join_next().await {
        put.expect("a put");
    }
}

/// Waits until node `i` leads some of the filled records, and reads all of them.
async fn read_filled_from(cluster: &Cluster, rounds: usize, i: usize) {
    let id = status(cluster, i).await.node;
    eventually("the node that was away leads shards again", async || {
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
