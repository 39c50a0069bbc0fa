//! Gateways: nodes that serve clients like all others, and hold no replica whatever happens.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use flotilla_api::{ClusterStatus, DecisionList, NodeRole, ShardExplanation};
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::{NodeId, ShardId};
use serde::de::DeserializeOwned;

use flotilla_tests::support::{
    WITHIN, binary, client, eventually, log, start, status,
    values::{assert_serves, put},
    wait_replicated,
};

/// Runs a verb at a node that must succeed. Returns what it printed.
fn done<T: DeserializeOwned>(cluster: &Cluster, i: usize, arguments: &[&str]) -> T {
    let mut command = Command::new(binary());
    command.args(["-o", "json", "--addr", &cluster.http(i).expect("a node")]).args(arguments);
    let output = command.output().expect("a process");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const ROLE: (&str, &str) = ("FLOTILLA_ROLE", "gateway");
/// Exit code of a start whose flags do not fit the data.
const EXIT_USAGE: i32 = 2;

fn replicas_on(status: &ClusterStatus, node: NodeId) -> usize {
    status.shards.iter().filter(|shard| shard.replicas.iter().any(|held| held.node == node)).count()
}

#[tokio::test]
async fn a_gateway_serves_and_holds_no_replica_even_when_too_few_others_are_left() {
    let mut cluster = start(3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let first = client(&cluster, 1);
    first.put_setting("dead_node_grace_ms", 1_000).await.expect("a setting");
    put(&first, "before", b"1").await;
    cluster.add_node_with(&[ROLE]).await.expect("a gateway");
    let joined = Instant::now();
    cluster.wait_node(4).await.expect("a node that serves");
    assert_serves(&cluster, 4, "before", b"1").await;
    assert!(joined.elapsed() < Duration::from_secs(10), "it took {:?}", joined.elapsed());
    put(&client(&cluster, 4), "through", b"2").await;
    assert_serves(&cluster, 1, "through", b"2").await;

    let gateway = status(&cluster, 4).await.node;
    let shown = eventually("its role is known everywhere", async || {
        let nodes = status(&cluster, 1).await.nodes;
        nodes.into_iter().find(|node| node.id == gateway).ok_or_else(|| "it is unknown".to_owned())
    })
    .await;
    assert_eq!((shown.role, shown.weight, shown.replicas), (NodeRole::Gateway, 0, 0));

    // One of three storage nodes dies: its replicas have nowhere to go.
    let dead = (1..=3).find(|i| cluster.http(*i).is_ok() && *i != 1).expect("a node");
    cluster.kill(dead).expect("a node dies");
    let undecided = eventually("placement says that there are too few nodes", async || {
        let plan: DecisionList = done(&cluster, 4, &["shard", "rebalance", "--dry-run"]);
        let found = plan.decisions.iter().find(|entry| entry.reason == "no_node").cloned();
        found.ok_or_else(|| format!("{plan:?}"))
    })
    .await;
    assert!(undecided.detail.contains("no other node can take them"), "{undecided:?}");
    let shards = status(&cluster, 1).await.shards;
    let shard = shards.iter().find(|shard| shard.id != ShardId::META).expect("a shard").id.to_string();
    let explained: ShardExplanation = done(&cluster, 4, &["shard", "explain", &shard]);
    let why = explained.replicas.iter().flat_map(|held| &held.alternatives).find(|other| other.node == gateway);
    assert!(why.is_some_and(|why| why.detail.contains("gateway")), "{explained:?}");
    assert_eq!(replicas_on(&status(&cluster, 1).await, gateway), 0);
    assert_serves(&cluster, 4, "before", b"1").await;

    // It restarts as what it is, and a node with replicas as nothing that it cannot be.
    cluster.stop(4).await.expect("it stops");
    cluster.start_node(4).await.expect("it starts again");
    cluster.wait_node(4).await.expect("a node that serves");
    assert_serves(&cluster, 4, "through", b"2").await;
    assert_eq!(replicas_on(&status(&cluster, 4).await, gateway), 0);
    cluster.set_variable(dead, ROLE.0, ROLE.1).expect("a node");
    cluster.start_node(dead).await.expect("a process");
    let ended = cluster.wait_exit(dead, WITHIN).await.expect("it ends");
    assert_eq!(ended.code(), Some(EXIT_USAGE), "{}", log(&cluster, dead));
    assert!(log(&cluster, dead).contains("cannot be a gateway: it holds replicas"), "{}", log(&cluster, dead));
}

#[tokio::test]
async fn replicas_and_leaderships_are_proportional_to_weights() {
    let mut options = ClusterOptions::new(3, binary());
    options.arguments = ["--shards", "16"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    client(&cluster, 1).put_setting("balance_threshold", 0).await.expect("a setting");
    client(&cluster, 1).put_setting("balance_moves_max", 8).await.expect("a setting");
    cluster.add_node_with(&[("FLOTILLA_WEIGHT", "3")]).await.expect("a node");
    cluster.wait_node(4).await.expect("a node that serves");
    // Of 17 shards with three replicas each, a node of half of all weight gets as many as it can: one of each.
    let heavy = status(&cluster, 4).await.node;
    eventually("the heavy node has its share", async || {
        let status = status(&cluster, 1).await;
        let node = status.nodes.iter().find(|node| node.id == heavy).ok_or("it is unknown")?;
        let (weight, replicas, leaders) = (node.weight, node.replicas, node.leaders);
        let share = leaders.abs_diff(8) <= 1 && replicas >= 15;
        if weight == 3 && share {
            Ok(())
        } else {
            Err(format!("weight {weight}: {replicas} replicas, leads {leaders}"))
        }
    })
    .await;
}
