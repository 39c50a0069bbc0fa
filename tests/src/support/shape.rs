//! What a status says about nodes and replicas, and waiting for it to say so.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{ClusterStatus, Liveness, LocalRole};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaRole, ShardId};

use super::{client, eventually, status};

/// Voters of each shard once there are enough nodes.
const REPLICAS: usize = 3;

/// How many data shards `node` leads.
pub fn leads_of(status: &ClusterStatus, node: NodeId) -> usize {
    status.shards.iter().filter(|shard| shard.id != ShardId::META && shard.leader == Some(node)).count()
}

/// What node `i` itself has applied of each shard.
pub fn applied(status: &ClusterStatus) -> BTreeMap<ShardId, u64> {
    let local = status.shards.iter().filter_map(|shard| Some((shard.id, shard.local.as_ref()?)));
    local.filter(|(_, local)| local.role != LocalRole::Quarantined).map(|(id, local)| (id, local.applied)).collect()
}

/// Why a shard is not led by one of `live`, or not held by three voters on them and by nobody else.
fn whole(status: &ClusterStatus, live: &BTreeSet<NodeId>) -> Result<(), String> {
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
    Ok(())
}

/// Waits until each of these nodes says that every shard is led and held by three voters, all of them on these nodes.
pub async fn wait_whole(cluster: &Cluster, nodes: &[usize]) {
    let mut live = BTreeSet::new();
    for i in nodes {
        live.insert(status(cluster, *i).await.node);
    }
    eventually("whole shards", async || {
        for i in nodes {
            let status = client(cluster, *i).status().await.map_err(|error| error.to_string())?;
            whole(&status, &live).map_err(|missing| format!("node {i} says: {missing}"))?;
        }
        Ok(())
    })
    .await;
}

/// Waits until node `i` believes this of `node`.
pub async fn wait_alive(cluster: &Cluster, i: usize, node: NodeId, wanted: Liveness) {
    eventually(&format!("node {i} believes that {node} is {wanted:?}"), async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        match status.nodes.iter().find(|found| found.id == node) {
            Some(found) if found.liveness == wanted => Ok(()),
            found => Err(format!("{:?}", found.map(|found| found.liveness))),
        }
    })
    .await;
}

/// Whether a node has applied what `target` says, of every shard in it.
fn caught_up(now: &BTreeMap<ShardId, u64>, target: &BTreeMap<ShardId, u64>) -> Result<(), String> {
    for (shard, wanted) in target {
        match now.get(shard) {
            Some(applied) if applied >= wanted => {}
            applied => return Err(format!("{shard}: applied {applied:?} of {wanted}")),
        }
    }
    Ok(())
}

/// Waits until node `i` has applied everything that `of` has applied now.
pub async fn wait_caught_up(cluster: &Cluster, i: usize, of: usize) {
    let target = applied(&status(cluster, of).await);
    assert!(!target.is_empty(), "node {of} holds no replica");
    eventually(&format!("node {i} catches up"), async || {
        let status = client(cluster, i).status().await.map_err(|error| error.to_string())?;
        caught_up(&applied(&status), &target)
    })
    .await;
}

/// How far the checkpoints of a node's data shards reach.
pub fn checkpoints(status: &ClusterStatus) -> BTreeMap<ShardId, u64> {
    let local = status.shards.iter().filter_map(|shard| Some((shard.id, shard.local.as_ref()?)));
    local.filter(|(id, _)| *id != ShardId::META).map(|(id, local)| (id, local.checkpoint)).collect()
}

/// Waits until node `i` has made a new checkpoint of every data shard. There must be load.
pub async fn wait_checkpoints(cluster: &Cluster, i: usize) {
    let before = checkpoints(&status(cluster, i).await);
    eventually("new checkpoints", async || {
        let now = checkpoints(&status(cluster, i).await);
        let same: Vec<_> =
            before.iter().filter(|(id, reached)| now.get(id).is_none_or(|now| now <= *reached)).collect();
        if same.is_empty() && !before.is_empty() { Ok(()) } else { Err(format!("still the same: {same:?}")) }
    })
    .await;
}
