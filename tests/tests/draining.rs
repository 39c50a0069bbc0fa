//! Nodes that drain, come back, and leave, under load.

use std::time::Duration;

use flotilla_api::{ClusterStatus, CreateCollection, NodeState, NodeVerb, ProblemType, Sharding};
use flotilla_client::{Client, ClientError};
use flotilla_local_cluster::Cluster;
use flotilla_types::NodeId;

use flotilla_tests::support::{
    Mode, Workload, client, eventually, led_shards, start, start_in, status, wait_replicated,
};

/// How long the replicas of a node may take to move, on a busy machine.
const LEAVES_WITHIN: Duration = Duration::from_secs(90);
/// Exit code of a node that belongs to its cluster no more.
const REMOVED: i32 = 77;

/// Asks a node to change another one.
async fn change(client: &Client, node: NodeId, verb: NodeVerb) -> Result<(), ClientError> {
    client.change_node(node, verb, false, false).await.map(drop)
}

fn state_of(status: &ClusterStatus, node: NodeId) -> Option<NodeState> {
    status.nodes.iter().find(|found| found.id == node).map(|found| found.state)
}

/// Waits until each of these nodes shows `node` in this state.
async fn wait_state(cluster: &Cluster, at: &[usize], node: NodeId, state: NodeState) {
    for i in at {
        eventually(&format!("node {i} shows {node} as {state}"), async || {
            let status = client(cluster, *i).status().await.map_err(|error| error.to_string())?;
            match state_of(&status, node) {
                Some(found) if found == state => Ok(()),
                found => Err(format!("{found:?}, leads {}", led_shards(&status, node))),
            }
        })
        .await;
    }
}

async fn wait_leads(cluster: &Cluster, i: usize, node: NodeId) {
    eventually("the node leads shards", async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        if led_shards(&status, node) > 0 { Ok(()) } else { Err(format!("{node} leads none")) }
    })
    .await;
}

/// Whether the node tells load balancers to send clients to it.
async fn is_offered(cluster: &Cluster, i: usize) -> bool {
    client(cluster, i).is_ready().await
}

in_both_modes!(a_drained_node_leads_nothing_and_gets_nothing_until_it_is_taken_back);

async fn a_drained_node_leads_nothing_and_gets_nothing_until_it_is_taken_back(mode: Mode) {
    let mut cluster = start_in(mode, 4).await;
    let id = status(&cluster, 2).await.node;
    wait_leads(&cluster, 2, id).await;
    let load = Workload::start_warm(&cluster).await;
    let held = flotilla_tests::support::replicas_of(&cluster, 1, id).await;

    change(&client(&cluster, 3), id, NodeVerb::Drain).await.expect("a drain, asked of another node");
    wait_state(&cluster, &[1, 2, 3, 4], id, NodeState::Drained).await;
    assert!(!is_offered(&cluster, 2).await, "it is not ready");
    assert!(is_offered(&cluster, 1).await, "the others are");
    assert!(status(&cluster, 2).await.draining);
    let fresh = CreateCollection {
        name: "fresh".to_owned(),
        sharding: Sharding::Hash,
        buckets: Some(8),
        shards: Some(8),
        replicas: Some(3),
        objects_from: None,
        chunk: None,
        split_bytes: None,
    };
    client(&cluster, 1).create_collection(&fresh).await.expect("a collection");

    // A restart keeps it, and makes elections that it may win.
    assert_eq!(cluster.stop(2).await.expect("a stop").code(), Some(0));
    cluster.start_node(2).await.expect("a start on its data");
    eventually("the node answers", async || client(&cluster, 2).status().await.map_err(|error| error.to_string()))
        .await;
    cluster.kill(4).expect("a running node");
    cluster.start_node(4).await.expect("a start on its data");
    wait_state(&cluster, &[1, 2, 3, 4], id, NodeState::Drained).await;
    // It stays so while the others balance their leaderships.
    for _ in 0..5 {
        load.wait_acknowledged(100).await;
        assert_eq!(led_shards(&status(&cluster, 1).await, id), 0);
    }
    assert!(!is_offered(&cluster, 2).await);
    let now = status(&cluster, 1).await;
    let on_it = |collection: &str| {
        let shards = now.shards.iter().filter(|shard| shard.collection.as_deref() == Some(collection));
        shards.filter(|shard| shard.replicas.iter().any(|replica| replica.node == id)).count()
    };
    assert_eq!(on_it("fresh"), 0, "nothing new is placed on it");
    assert_eq!(flotilla_tests::support::replicas_of(&cluster, 1, id).await, held, "its replicas stay");

    change(&client(&cluster, 2), id, NodeVerb::Undrain).await.expect("an undrain, asked of the node itself");
    wait_state(&cluster, &[1, 2, 3, 4], id, NodeState::Active).await;
    wait_leads(&cluster, 1, id).await;
    eventually("load balancers take the node back", async || {
        if is_offered(&cluster, 2).await { Ok(()) } else { Err("not ready".to_owned()) }
    })
    .await;
    let history = load.finish().await;
    history.verify(&client(&cluster, 1)).await;
}

#[tokio::test]
async fn a_node_leaves_under_load_and_the_last_that_are_needed_may_not() {
    let mut cluster = start(4).await;
    wait_all_replicated(&cluster, 1).await;
    let id = status(&cluster, 1).await.node;
    // Its own port as well: what was read there must be answered before the process ends.
    let load = Workload::start_warm(&cluster).await;
    change(&client(&cluster, 1), id, NodeVerb::Leave).await.expect("a leave, asked of the node itself");
    let exited = cluster.wait_exit(1, LEAVES_WITHIN).await.expect("an end by itself");
    assert_eq!(exited.code(), Some(0), "{exited}");
    assert!(flotilla_tests::support::log(&cluster, 1).contains("has left the cluster"));
    for i in 2..=4 {
        eventually("the node is forgotten", async || {
            let status = client(&cluster, i).status().await.map_err(|error| error.to_string())?;
            state_of(&status, id).map_or(Ok(()), |state| Err(format!("node {i} shows {id} as {state}")))
        })
        .await;
    }
    wait_replicated(&cluster, &[2, 3, 4]).await;
    load.wait_acknowledged(100).await;
    cluster.start_node(1).await.expect("a process");
    let exited = cluster.wait_exit(1, LEAVES_WITHIN).await.expect("an end by itself");
    assert_eq!(exited.code(), Some(REMOVED), "whoever started it again must not try for ever");

    let second = status(&cluster, 2).await.node;
    let refused = change(&client(&cluster, 3), second, NodeVerb::Leave).await.expect_err("no other node can take over");
    let problem = refused.problem().expect("a reason");
    assert_eq!(problem.kind, ProblemType::Blocked);
    assert!(!problem.blockers.is_empty(), "{problem:?}");
    assert!(problem.detail.contains("add a node first"), "{}", problem.detail);
    assert_eq!(state_of(&status(&cluster, 3).await, second), Some(NodeState::Active), "nothing was done");
    let history = load.finish().await;
    history.verify(&client(&cluster, 2)).await;
}

async fn wait_all_replicated(cluster: &Cluster, i: usize) {
    eventually("fully replicated shards", async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        let complete = status.shards_total > 0 && status.replicated_shards == status.shards_total;
        if complete { Ok(()) } else { Err(status.redundancy()) }
    })
    .await;
}
