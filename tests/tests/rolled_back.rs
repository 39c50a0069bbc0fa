//! A node whose data folder is replaced by an older copy, without some acknowledged writes.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_client::{Client, ClientOptions, PutOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaId, ShardId};

use flotilla_tests::support::{
    Workload, WriteOutcome, client, eventually, replicas_of, start, status, wait_caught_up, wait_replicated,
    write_outcome,
};

/// Deadline of a write that cannot succeed.
const SHORT_MS: u64 = 1_500;

#[tokio::test]
async fn a_rolled_back_folder_is_detected_and_loses_no_write() {
    let mut cluster = start(3).await;
    let load = Workload::start_warm(&cluster).await;
    back_up_and_restart(&mut cluster, 2).await;
    load.wait_acknowledged(400).await;
    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(2).expect("a running node");
    load.wait_acknowledged(100).await;
    cluster.restore(2).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old data");

    wait_detected(&cluster, 2).await;
    wait_replaced(&cluster, 1, id, &before).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_caught_up(&cluster, 2, 1).await;
    history.verify(&client(&cluster, 2)).await;
}

/// Nodes 1 and 2 acknowledge writes while node 3 is paused; then node 1 is down and node 2 has forgotten
/// them. If node 2 voted, nodes 2 and 3 would continue without these writes.
#[tokio::test]
async fn a_rolled_back_node_does_not_vote_away_what_it_acknowledged() {
    let mut cluster = start(3).await;
    back_up_and_restart(&mut cluster, 2).await;
    // Node 3 learns how far the log of node 2 reaches before it is paused.
    put_all(&client(&cluster, 1), "both").await;
    wait_caught_up(&cluster, 3, 1).await;
    put_all(&client(&cluster, 2), "both").await;
    wait_caught_up(&cluster, 3, 2).await;
    cluster.pause(3).expect("a running node");
    eventually("writes without node 3", async || {
        let put = client(&cluster, 1).put("default", b"probe", "x".into(), &PutOptions::default()).await;
        put.map(drop).map_err(|error| error.to_string())
    })
    .await;
    put_all_with_retries(&client(&cluster, 1), "two").await;

    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(1).expect("a running node");
    cluster.kill(2).expect("a running node");
    cluster.restore(2).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old data");
    cluster.resume(3).expect("a stopped node");
    wait_detected(&cluster, 2).await;
    for i in [2, 3] {
        let answer = put_within(&cluster, i, SHORT_MS).await;
        assert_ne!(write_outcome(&answer), WriteOutcome::Acknowledged, "node 2 has voted");
        let mut options = ClientOptions::new([cluster.http(i).expect("a node")]);
        options.timeout = std::time::Duration::from_millis(SHORT_MS);
        let client = Client::new(options).expect("a client");
        assert!(client.get("default", b"two/0").await.is_err(), "a strong read without a quorum");
    }

    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_node(1).await.expect("a ready node");
    wait_replaced(&cluster, 1, id, &before).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for prefix in ["both", "two"] {
        for number in 0..KEYS {
            let key = format!("{prefix}/{number}");
            let found = client(&cluster, 2).get("default", key.as_bytes()).await.expect("a read");
            assert!(found.is_some_and(|found| found.value == key), "{key} is lost");
        }
    }
}

/// Node 3 is down while nodes 1 and 2 acknowledge writes; then node 1 is down and node 2 has forgotten them,
/// on a machine that remembers nothing of it. Nodes 2 and 3 are a majority, and must not serve.
#[tokio::test]
async fn a_node_that_was_down_cannot_verify_a_rolled_back_one() {
    let mut cluster = start(3).await;
    back_up_and_restart(&mut cluster, 2).await;
    put_all(&client(&cluster, 1), "both").await;
    cluster.kill(3).expect("a running node");
    put_all_with_retries(&client(&cluster, 1), "two").await;

    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(1).expect("a running node");
    cluster.kill(2).expect("a running node");
    cluster.restore(2).expect("a copy");
    cluster.forget_witness(2).expect("a log");
    for i in [2, 3] {
        cluster.start_node(i).await.expect("a start on its data");
    }
    for _ in 0..3 {
        for i in [2, 3] {
            let answer = put_within(&cluster, i, SHORT_MS).await;
            assert_ne!(write_outcome(&answer), WriteOutcome::Acknowledged, "nodes 2 and 3 serve");
        }
    }

    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_node(1).await.expect("a ready node");
    wait_detected(&cluster, 2).await;
    wait_replaced(&cluster, 1, id, &before).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for number in 0..KEYS {
        let key = format!("two/{number}");
        let found = client(&cluster, 2).get("default", key.as_bytes()).await.expect("a read");
        assert!(found.is_some_and(|found| found.value == key), "{key} is lost");
    }
}

/// The machine itself remembers what was synced since it booted: no peer is needed to detect an old copy.
#[tokio::test]
async fn a_rolled_back_folder_is_detected_without_any_peer() {
    let mut cluster = start(3).await;
    back_up_and_restart(&mut cluster, 2).await;
    put_all(&client(&cluster, 1), "all").await;
    for i in 1..=3 {
        cluster.kill(i).expect("a running node");
    }
    cluster.restore(2).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old data");
    wait_detected(&cluster, 2).await;
}

/// A write through node `i`, with a deadline.
async fn put_within(
    cluster: &Cluster,
    i: usize,
    timeout_ms: u64,
) -> Result<flotilla_api::PutReply, flotilla_client::ClientError> {
    let mut options = ClientOptions::new([cluster.http(i).expect("a node")]);
    options.timeout = std::time::Duration::from_millis(timeout_ms);
    let client = Client::new(options).expect("a client");
    client.put("default", b"vote", "x".into(), &PutOptions::default()).await
}

/// Enough keys for every shard to hold some.
const KEYS: usize = 64;

async fn put_all(client: &Client, prefix: &str) {
    for number in 0..KEYS {
        let key = format!("{prefix}/{number}");
        client.put("default", key.as_bytes(), Bytes::from(key.clone()), &PutOptions::default()).await.expect("a put");
    }
}

/// Like [`put_all`], while leaders change: a put of the same value may be repeated.
async fn put_all_with_retries(client: &Client, prefix: &str) {
    for number in 0..KEYS {
        let key = format!("{prefix}/{number}");
        eventually("a put", async || {
            let put = client.put("default", key.as_bytes(), Bytes::from(key.clone()), &PutOptions::default()).await;
            put.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

/// Backs up the folder of node `i` while it is stopped, and restarts it.
async fn back_up_and_restart(cluster: &mut Cluster, i: usize) {
    cluster.kill(i).expect("a running node");
    cluster.backup(i).expect("data");
    cluster.start_node(i).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(cluster, i, i % 3 + 1).await;
}

/// Waits until node `i` reports that its log went backwards.
async fn wait_detected(cluster: &Cluster, i: usize) {
    eventually("the rollback is detected", async || {
        let events = client(cluster, i).recent_events().await.map_err(|error| error.to_string())?;
        match events.iter().find(|event| event.kind == "log_went_backwards") {
            Some(_) => Ok(()),
            None => Err("no such event".to_owned()),
        }
    })
    .await;
}

/// Waits until all of these replicas have been replaced by new ones.
async fn wait_replaced(cluster: &Cluster, i: usize, node: NodeId, old: &BTreeSet<(ShardId, ReplicaId)>) {
    eventually("new replicas in place of the old ones", async || {
        let now = replicas_of(cluster, i, node).await;
        let kept: Vec<_> = now.intersection(old).collect();
        if !kept.is_empty() {
            return Err(format!("still there: {kept:?}"));
        }
        if now.len() == old.len() { Ok(()) } else { Err(format!("{} of {}", now.len(), old.len())) }
    })
    .await;
}
