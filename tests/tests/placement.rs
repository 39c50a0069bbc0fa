//! Why replicas are where they are, as the command line tells it.

use std::process::Command;

use flotilla_api::{
    DecisionList, NodeChange, NodeState, NodeVerb, PlacementAction, ProblemType, ShardExplanation, ShardTop,
};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ShardId};
use serde::de::DeserializeOwned;
use serde_json::Value;

use flotilla_tests::support::{
    binary, client, eventually, metrics, replicas_of, start, status, values::put_with_retries,
};

/// Runs a verb at a node. Returns its exit code and what it printed, as JSON.
fn flotilla<T: DeserializeOwned>(cluster: &Cluster, i: usize, arguments: &[&str]) -> (i32, Option<T>) {
    let mut command = Command::new(binary());
    command.args(["-o", "json", "--addr", &cluster.http(i).expect("a node")]).args(arguments);
    let output = command.output().expect("a process");
    (output.status.code().expect("an end by itself"), serde_json::from_slice(&output.stdout).ok())
}

/// As [`flotilla`], of a verb that must succeed.
fn done<T: DeserializeOwned>(cluster: &Cluster, i: usize, arguments: &[&str]) -> T {
    match flotilla(cluster, i, arguments) {
        (0, Some(printed)) => printed,
        (code, _) => panic!("{arguments:?} ended with {code}"),
    }
}

/// The shards of the default collection, once all shards are fully replicated.
async fn replicated_shards(cluster: &Cluster) -> Vec<ShardId> {
    eventually("fully replicated shards", async || {
        let status = client(cluster, 1).status().await.map_err(|error| error.to_string())?;
        let complete = status.shards_total > 0 && status.replicated_shards == status.shards_total;
        let shards = status.shards.iter().map(|shard| shard.id).filter(|shard| *shard != ShardId::META);
        if complete { Ok(shards.collect()) } else { Err(status.redundancy()) }
    })
    .await
}

async fn state_of(cluster: &Cluster, i: usize, node: NodeId) -> Option<NodeState> {
    status(cluster, i).await.nodes.iter().find(|found| found.id == node).map(|found| found.state)
}

#[tokio::test]
async fn the_placement_of_every_replica_is_explained_before_during_and_after_a_decommission() {
    let cluster = start(4).await;
    // Nothing moves by itself, so that every answer is the same until something is asked for.
    client(&cluster, 1).put_setting("balance_moves_max", 0).await.expect("a setting");
    let shards = replicated_shards(&cluster).await;
    eventually("settled shards", async || {
        let dry: DecisionList = done(&cluster, 3, &["shard", "rebalance", "--dry-run"]);
        let reasons: Vec<_> = dry.decisions.iter().map(|entry| entry.reason.as_str()).collect();
        // Perhaps one of the nodes has only just joined.
        let is_settled = dry.dry_run == Some(true) && matches!(reasons[..], ["off" | "recent_join"]);
        if is_settled { Ok(()) } else { Err(format!("{dry:?}")) }
    })
    .await;
    let leader = status(&cluster, 1).await.metadata_leader.expect("a leader");
    let mut ids = Vec::new();
    for i in 1..=4 {
        ids.push(status(&cluster, i).await.node);
    }

    let mut sorted = ids.clone();
    sorted.sort();

    // Every node passes the question to the one that decides.
    for i in 1..=4 {
        let found: ShardExplanation = done(&cluster, i, &["shard", "explain", &shards[0].to_string()]);
        assert_eq!((found.decided_by, found.replicas.len()), (leader, 3), "{found:?}");
        for replica in &found.replicas {
            let mut named: Vec<_> = replica.alternatives.iter().map(|other| other.node).collect();
            named.push(replica.node);
            named.sort();
            assert_eq!(named, sorted, "{replica:?}");
            let holds = replica.alternatives.iter().filter(|other| other.reason == "holds_replica").count();
            assert_eq!(holds, 2, "{replica:?}");
        }
    }
    assert_eq!(flotilla::<Value>(&cluster, 2, &["shard", "explain", "s99999"]).0, 3, "there is no such shard");

    // Two of four nodes cannot go together, and each can alone.
    let mut at = 0;
    while ids[at] == leader || replicas_of(&cluster, 1, ids[at]).await.is_empty() {
        at += 1;
    }
    let (node, name) = (ids[at], ids[at].to_string());
    let other = ids[(0..4).find(|i| *i != at && ids[*i] != leader).expect("one more")];
    let other_name = other.to_string();
    let asked = if at == 0 { 2 } else { 1 };
    for flags in [&["--dry-run"][..], &[]] {
        let arguments = [&["node", "decommission", &name, &other_name], flags].concat();
        let (code, printed) = flotilla::<Value>(&cluster, asked, &arguments);
        assert_eq!(code, 1, "{printed:?}");
        if let Some(plans) = printed {
            let blockers = plans["nodes"][0]["blockers"].as_array().expect("blockers");
            assert!(blockers.iter().all(|blocker| blocker["why"] == "no_node"), "{blockers:?}");
            assert!(!blockers.is_empty(), "{plans}");
        }
    }
    let api = client(&cluster, asked);
    let refused = api.change_node_with(node, &[other], NodeVerb::Decommission, false, false).await;
    let refused = refused.expect_err("no node can take over");
    let problem = refused.problem().expect("a reason");
    assert!(problem.kind == ProblemType::Blocked && !problem.blockers.is_empty(), "{problem:?}");
    assert_eq!(state_of(&cluster, asked, node).await, Some(NodeState::Active), "nothing was done");

    let (code, plans) = flotilla::<Value>(&cluster, asked, &["node", "decommission", &name, "--dry-run"]);
    let plan: NodeChange = serde_json::from_value(plans.expect("a plan")["nodes"][0].clone()).expect("a plan");
    assert_eq!((code, plan.refusal, plan.blockers_total), (0, None, 0));
    assert_eq!(plan.moves, Some(plan.replicas.into()), "all of its replicas move");
    assert_eq!(state_of(&cluster, asked, node).await, Some(NodeState::Active), "nothing was done");

    // What was planned is what is done.
    let before = replicas_of(&cluster, asked, node).await;
    let _: Value = done(&cluster, asked, &["node", "decommission", &name, "--wait"]);
    assert_eq!(replicas_of(&cluster, asked, node).await.len(), 0);
    let decided: DecisionList = done(&cluster, asked, &["shard", "decisions", "--limit", "1000"]);
    for (shard, replica) in before {
        let found = decided.decisions.iter().find(|entry| {
            (entry.action, entry.shard, entry.replica) == (PlacementAction::Move, Some(shard), Some(replica))
        });
        let found = found.unwrap_or_else(|| panic!("{shard} {replica} is not in {decided:?}"));
        assert!(found.from == Some(node) && found.reason == "node_leaving", "{found:?}");
        assert!(found.to.is_some() && found.alternatives.len() >= 2, "{found:?}");
    }
    let by = decided.decisions.iter().find(|entry| entry.reason == "node_leaving").expect("a move").decided_by;
    let leader_at = ids.iter().position(|id| *id == by).expect("a node") + 1;
    let shown = metrics(&cluster, leader_at).await.expect("metrics");
    assert!(shown.contains(r#"flotilla_placement_decisions_total{reason="node_leaving"}"#), "{shown}");

    // A rebalancing answers with what it has found; what is repeated is one entry.
    let now: DecisionList = done(&cluster, asked, &["shard", "rebalance"]);
    assert!(now.dry_run == Some(false) && !now.decisions.is_empty(), "{now:?}");
    eventually("a non-decision that lasts", async || {
        let decided: DecisionList = done(&cluster, asked, &["shard", "decisions"]);
        let is_same = |entry: &&flotilla_api::DecisionInfo| entry.action == PlacementAction::None && entry.count > 2;
        decided.decisions.iter().find(is_same).map(drop).ok_or_else(|| format!("{decided:?}"))
    })
    .await;
}

#[tokio::test]
async fn every_node_shows_the_shard_that_is_written_most_with_its_leader() {
    let cluster = start(3).await;
    replicated_shards(&cluster).await;
    let first = client(&cluster, 1);
    eventually("the shard that is written comes first", async || {
        for number in 0..20 {
            put_with_retries(&first, "hot", format!("{number}").as_bytes()).await;
        }
        let top: ShardTop = done(&cluster, 3, &["shard", "top", "--by", "writes", "--limit", "1"]);
        let shards = status(&cluster, 1).await.shards;
        let [hot] = &top.shards[..] else { return Err(format!("{top:?}")) };
        let leader = shards.iter().find(|shard| shard.id == hot.shard).and_then(|shard| shard.leader);
        let is_shown = hot.collection.as_deref() == Some("default") && hot.writes > 1.0 && hot.bytes > 0;
        let is_whole = top.nodes.len() == 3 && led_by(&top, hot.leader) > 0;
        if is_shown && is_whole && leader == Some(hot.leader) { Ok(()) } else { Err(format!("{top:?}")) }
    })
    .await;
    assert_eq!(flotilla::<Value>(&cluster, 2, &["shard", "top", "--by", "colour"]).0, 2);
}

/// The shards in use that a node leads.
fn led_by(top: &ShardTop, node: NodeId) -> usize {
    top.nodes.iter().find(|found| found.node == node).map_or(0, |found| found.shards)
}
