//! A data folder from before some acknowledged writes is put back.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_client::{Client, ClientOptions, PutOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaId, ShardId};

use flotilla_tests::support::{Fate, Workload, client, eventually, fate, start, status, wait_caught_up, wait_whole};

/// Deadline of a write that cannot succeed.
const SHORT_MS: u64 = 1_500;

#[tokio::test]
async fn a_rolled_back_folder_is_noticed_and_loses_nothing() {
    let mut cluster = start(3).await;
    let load = Workload::warm(&cluster.http_all()).await;
    copy_and_go_on(&mut cluster, 2).await;
    load.more(400).await;
    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(2).expect("a running node");
    load.more(100).await;
    cluster.restore(2).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old data");

    wait_noticed(&cluster, 2).await;
    wait_replaced(&cluster, 1, id, &before).await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    load.more(100).await;
    let history = load.finish().await;
    wait_caught_up(&cluster, 2, 1).await;
    history.verify(&client(&cluster, 2)).await;
}

/// Writes are acknowledged by nodes 1 and 2 while node 3 is stopped; then node 1 is down and node 2 has forgotten them. If
/// node 2 voted, nodes 2 and 3 would go on without these writes.
#[tokio::test]
async fn a_rolled_back_node_does_not_vote_away_what_it_acknowledged() {
    let mut cluster = start(3).await;
    copy_and_go_on(&mut cluster, 2).await;
    // Node 3 hears how far node 2 is before it stops.
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
    put_patiently(&client(&cluster, 1), "two").await;

    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(1).expect("a running node");
    cluster.kill(2).expect("a running node");
    cluster.restore(2).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old data");
    cluster.resume(3).expect("a stopped node");
    wait_noticed(&cluster, 2).await;
    for i in [2, 3] {
        let mut options = ClientOptions::new([cluster.http(i).expect("a node")]);
        options.timeout = std::time::Duration::from_millis(SHORT_MS);
        let client = Client::new(options).expect("a client");
        let answer = client.put("default", b"vote", "x".into(), &PutOptions::default()).await;
        assert_ne!(fate(&answer), Fate::Acknowledged, "node 2 has voted");
        assert!(client.get("default", b"two/0").await.is_err(), "a strong read without a quorum");
    }

    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_node(1).await.expect("a ready node");
    wait_replaced(&cluster, 1, id, &before).await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    for prefix in ["both", "two"] {
        for number in 0..KEYS {
            let key = format!("{prefix}/{number}");
            let found = client(&cluster, 2).get("default", key.as_bytes()).await.expect("a read");
            assert!(found.is_some_and(|found| found.value == key), "{key} is lost");
        }
    }
}

/// Enough keys for every shard to hold some.
const KEYS: usize = 64;

async fn put_all(client: &Client, prefix: &str) {
    for number in 0..KEYS {
        let key = format!("{prefix}/{number}");
        client.put("default", key.as_bytes(), Bytes::from(key.clone()), &PutOptions::default()).await.expect("a put");
    }
}

/// The same while leaders change: a put of the same value may be repeated.
async fn put_patiently(client: &Client, prefix: &str) {
    for number in 0..KEYS {
        let key = format!("{prefix}/{number}");
        eventually("a put", async || {
            let put = client.put("default", key.as_bytes(), Bytes::from(key.clone()), &PutOptions::default()).await;
            put.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

/// Copies the folder of node `i` while it is down, and has it back in the cluster.
async fn copy_and_go_on(cluster: &mut Cluster, i: usize) {
    cluster.kill(i).expect("a running node");
    cluster.backup(i).expect("data");
    cluster.start_node(i).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(cluster, i, i % 3 + 1).await;
}

/// The replicas on `node`, as node `i` sees them.
async fn replicas_of(cluster: &Cluster, i: usize, node: NodeId) -> BTreeSet<(ShardId, ReplicaId)> {
    let status = status(cluster, i).await;
    let held = status.shards.iter().flat_map(|shard| shard.replicas.iter().map(|replica| (shard.id, replica)));
    held.filter(|(_, replica)| replica.node == node).map(|(shard, replica)| (shard, replica.replica)).collect()
}

/// Waits until node `i` reports that its log went backwards.
async fn wait_noticed(cluster: &Cluster, i: usize) {
    eventually("the roll-back is noticed", async || {
        let events = client(cluster, i).recent_events().await.map_err(|error| error.to_string())?;
        match events.iter().find(|event| event.kind == "log_went_backwards") {
            Some(_) => Ok(()),
            None => Err("no such event".to_owned()),
        }
    })
    .await;
}

/// Waits until none of these replicas is left, and as many others are there instead.
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
