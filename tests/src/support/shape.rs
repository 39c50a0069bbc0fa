//! Reading nodes and replicas from a status, and waiting for their states.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{ClusterStatus, Liveness, LocalRole};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaId, ReplicaRole, ShardId};

use super::{client, eventually, status};

/// Voters of each shard once there are enough nodes.
const REPLICAS: usize = 3;

/// Number of data shards that `node` leads.
pub fn led_shards(status: &ClusterStatus, node: NodeId) -> usize {
    status.shards.iter().filter(|shard| shard.id != ShardId::META && shard.leader == Some(node)).count()
}

/// The applied index of each shard on the reporting node.
pub fn applied(status: &ClusterStatus) -> BTreeMap<ShardId, u64> {
    let local = status.shards.iter().filter_map(|shard| Some((shard.id, shard.local.as_ref()?)));
    local.filter(|(_, local)| local.role != LocalRole::Quarantined).map(|(id, local)| (id, local.applied)).collect()
}

/// Checks that every shard is led by one of `live` and has exactly three replicas, all of them voters on
/// `live`, and that the node says so too.
fn check_replicated(status: &ClusterStatus, live: &BTreeSet<NodeId>) -> Result<(), String> {
    if status.shards.is_empty() {
        return Err("no shards".to_owned());
    }
    for shard in &status.shards {
        let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        let nodes: BTreeSet<_> = voters.map(|replica| replica.node).collect();
        let led = shard.leader.is_some_and(|leader| live.contains(&leader));
        if !led || shard.replicas.len() != REPLICAS || nodes.len() != REPLICAS || !nodes.is_subset(live) {
            return Err(format!("{}: leader {:?}, replicas {:?}", shard.id, shard.leader, shard.replicas));
        }
    }
    let counts = (status.available_shards, status.replicated_shards, status.failures_survivable);
    let total = status.shards.len() as u32;
    if status.shards_total != total || counts != (total, total, 1) { Err(status.redundancy()) } else { Ok(()) }
}

/// Waits until each of these nodes reports that every shard has a leader and three voters, all on these
/// nodes.
pub async fn wait_replicated(cluster: &Cluster, nodes: &[usize]) {
    let mut live = BTreeSet::new();
    for i in nodes {
        live.insert(status(cluster, *i).await.node);
    }
    eventually("fully replicated shards", async || {
        for i in nodes {
            let status = client(cluster, *i).status().await.map_err(|error| error.to_string())?;
            check_replicated(&status, &live).map_err(|missing| format!("node {i} reports: {missing}"))?;
        }
        Ok(())
    })
    .await;
}

/// Waits until node `i` reports this liveness of `node`.
pub async fn wait_liveness(cluster: &Cluster, i: usize, node: NodeId, expected: Liveness) {
    eventually(&format!("node {i} reports {node} as {expected:?}"), async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        match status.nodes.iter().find(|found| found.id == node) {
            Some(found) if found.liveness == expected => Ok(()),
            found => Err(format!("{:?}", found.map(|found| found.liveness))),
        }
    })
    .await;
}

/// The replicas on `node`, as node `i` reports them.
pub async fn replicas_of(cluster: &Cluster, i: usize, node: NodeId) -> BTreeSet<(ShardId, ReplicaId)> {
    let status = status(cluster, i).await;
    let held = status.shards.iter().flat_map(|shard| shard.replicas.iter().map(|replica| (shard.id, replica)));
    held.filter(|(_, replica)| replica.node == node).map(|(shard, replica)| (shard, replica.replica)).collect()
}

/// Checks that a node has applied every shard in `target` at least that far.
fn check_caught_up(now: &BTreeMap<ShardId, u64>, target: &BTreeMap<ShardId, u64>) -> Result<(), String> {
    for (shard, target) in target {
        match now.get(shard) {
            Some(applied) if applied >= target => {}
            applied => return Err(format!("{shard}: applied {applied:?} of {target}")),
        }
    }
    Ok(())
}

/// Waits until node `i` has applied everything that node `of` has applied by now.
pub async fn wait_caught_up(cluster: &Cluster, i: usize, of: usize) {
    let target = applied(&status(cluster, of).await);
    assert!(!target.is_empty(), "node {of} holds no replica");
    eventually(&format!("node {i} catches up"), async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        check_caught_up(&applied(&status), &target)
    })
    .await;
}

/// The checkpoint index of each data shard on the reporting node.
pub fn checkpoints(status: &ClusterStatus) -> BTreeMap<ShardId, u64> {
    let local = status.shards.iter().filter_map(|shard| Some((shard.id, shard.local.as_ref()?)));
    local.filter(|(id, _)| *id != ShardId::META).map(|(id, local)| (id, local.checkpoint)).collect()
}

/// Waits until node `i` has made a new checkpoint of every data shard. Requires load.
pub async fn wait_checkpoints(cluster: &Cluster, i: usize) {
    let before = checkpoints(&status(cluster, i).await);
    eventually("new checkpoints", async || {
        let now = checkpoints(&status(cluster, i).await);
        let same: Vec<_> =
            before.iter().filter(|(id, reached)| now.get(id).is_none_or(|now| now <= *reached)).collect();
        if same.is_empty() && !before.is_empty() { Ok(()) } else { Err(format!("unchanged: {same:?}")) }
    })
    .await;
}
