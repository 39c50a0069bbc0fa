//! An operator moves a replica with `flotilla shard move`, pauses and resumes the move, cancels one, and is told why
//! one cannot be.

use std::{
    process::{Command, Output},
    time::Duration,
};

use flotilla_api::{OperationInfo, ShardInfo};
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::{NodeId, OperationPhase, ShardId};

use flotilla_tests::support::{
    binary, client, eventually, status,
    values::{assert_serves, content, counter, put},
    wait_replicated,
};

/// Records of the shard, each of so many bytes.
const RECORDS: u64 = 48;
const RECORD_BYTES: usize = 256 << 10;
/// Bytes per second at which the records take long enough to be caught on their way.
const SLOW: u64 = 1 << 20;

/// Three nodes with one shard, and a fourth that holds nothing.
async fn cluster() -> Cluster {
    let mut options = ClusterOptions::new(3, binary());
    options.arguments = ["--shards", "1"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let first = client(&cluster, 1);
    // Nothing but the operator moves anything.
    first.put_setting("balance_moves_max", 0).await.expect("a setting");
    cluster.add_node().await.expect("a fourth node");
    cluster.wait_node(4).await.expect("a node that serves");
    for number in 0..RECORDS {
        put(&first, &format!("k{number}"), &content(number, RECORD_BYTES)).await;
    }
    cluster
}

/// Runs the command line tool against node `i`.
async fn flotilla(cluster: &Cluster, i: usize, arguments: &[&str]) -> Output {
    let at = cluster.http(i).expect("a node");
    let mut command = Command::new(binary());
    command.args(["--addr", &at, "-o", "json", "--timeout", "30s"]).args(arguments);
    tokio::task::spawn_blocking(move || command.output()).await.expect("a task").expect("the tool runs")
}

/// The same of a verb that succeeds and prints an operation.
async fn operation(cluster: &Cluster, i: usize, arguments: &[&str]) -> OperationInfo {
    let output = flotilla(cluster, i, arguments).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("an operation")
}

async fn shard(cluster: &Cluster) -> ShardInfo {
    let is_data = |shard: &ShardInfo| shard.id != ShardId::META;
    status(cluster, 1).await.shards.into_iter().find(is_data).expect("a shard")
}

async fn nodes(cluster: &Cluster) -> Vec<NodeId> {
    let mut nodes: Vec<_> = shard(cluster).await.replicas.iter().map(|replica| replica.node).collect();
    nodes.sort_unstable();
    nodes
}

/// Waits until an operation is as it should be.
async fn wait_for(cluster: &Cluster, id: &str, what: &str, is: impl Fn(&OperationInfo) -> bool) -> OperationInfo {
    eventually(what, async || {
        let found = client(cluster, 2).operation(id).await.map_err(|error| error.to_string())?;
        if is(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn fetches(operation: &OperationInfo) -> bool {
    operation.progress.bytes.is_some_and(|bytes| bytes > 0)
}

#[tokio::test]
async fn a_replica_moves_to_the_node_that_an_operator_names() {
    let cluster = cluster().await;
    let shard = shard(&cluster).await;
    // The leader's, which hands over first.
    let from = shard.leader.expect("a leader");
    let (id, from_text) = (shard.id.to_string(), from.to_string());
    let moves = ["shard", "move", &id, "--from", &from_text, "--to", "n4", "--wait"];
    let moved = operation(&cluster, 2, &moves).await;
    let (to, from_node) = (Some(NodeId(4)), Some(from));
    assert_eq!((moved.phase, moved.done, moved.node, moved.from), (OperationPhase::Done, true, to, from_node));
    let mut expected: Vec<_> = (1..=4).map(NodeId).filter(|node| *node != from).collect();
    expected.sort_unstable();
    assert_eq!(nodes(&cluster).await, expected);
    for number in 0..RECORDS {
        assert_serves(&cluster, 4, &format!("k{number}"), &content(number, RECORD_BYTES)).await;
    }
    // Its outcome can be asked for, everywhere, and it is not listed any more.
    assert_eq!(operation(&cluster, 3, &["operation", "show", &moved.id]).await.phase, OperationPhase::Done);
    assert_eq!(client(&cluster, 1).operations().await.expect("a list").operations, []);

    let refused = flotilla(&cluster, 1, &moves).await;
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("has no replica"), "{reason}");
    let unknown = flotilla(&cluster, 1, &["shard", "move", "s99", "--from", "n1", "--to", "n4"]).await;
    assert_eq!(unknown.status.code(), Some(3));
}

#[tokio::test]
async fn a_move_stops_while_it_is_paused_and_leaves_nothing_when_it_is_cancelled() {
    let cluster = cluster().await;
    let first = client(&cluster, 1);
    first.put_setting("transfer_bytes_per_second", SLOW).await.expect("a setting");
    let shard = shard(&cluster).await;
    let before = nodes(&cluster).await;
    let from = before.iter().copied().find(|node| Some(*node) != shard.leader).expect("a follower");
    let (id, from) = (shard.id.to_string(), from.to_string());
    let moves = ["shard", "move", &id, "--from", &from, "--to", "n4"];
    let moved = operation(&cluster, 1, &moves).await;
    wait_for(&cluster, &moved.id, "objects arrive", fetches).await;
    let leader = shard.leader.expect("a leader").to_string();
    let second = flotilla(&cluster, 3, &["shard", "move", &id, "--from", &leader, "--to", "n4"]).await;
    let reason = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(reason.contains(&format!("{} moves a replica", moved.id)), "{reason}");

    assert_eq!(operation(&cluster, 2, &["operation", "pause", &moved.id]).await.phase, OperationPhase::Paused);
    // What was asked for may still come.
    let received = async || counter(&cluster, 4, "flotilla_objects_pulled_bytes_total").await.expect("metrics");
    eventually("nothing arrives for two seconds", async || {
        let before = received().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = received().await;
        if before > 0 && before == after { Ok(()) } else { Err(format!("{before} and then {after}")) }
    })
    .await;
    assert_eq!(nodes(&cluster).await.iter().filter(|node| before.contains(node)).count(), 3);
    assert_eq!(operation(&cluster, 2, &["operation", "resume", &moved.id]).await.error, None);
    wait_for(&cluster, &moved.id, "objects arrive again", fetches).await;

    let cancelled = operation(&cluster, 3, &["operation", "cancel", &moved.id]).await;
    assert_eq!((cancelled.phase, cancelled.done), (OperationPhase::Cancelled, true));
    eventually("the shard has the replicas that it had", async || {
        let now = nodes(&cluster).await;
        let there = status(&cluster, 4).await.shards;
        let rest =
            there.iter().any(|found| found.id == shard.id && found.replicas.iter().any(|held| held.node == NodeId(4)));
        if now == before && !rest { Ok(()) } else { Err(format!("{now:?}, {rest}")) }
    })
    .await;

    first.put_setting("transfer_bytes_per_second", 0).await.expect("a setting");
    let again = operation(&cluster, 1, &[&moves[..], &["--wait"]].concat()).await;
    assert_eq!(again.phase, OperationPhase::Done);
    let late = flotilla(&cluster, 1, &["operation", "cancel", &again.id]).await;
    assert!(String::from_utf8_lossy(&late.stderr).contains("has ended"), "it is done");
}
