//! Waiting until a cluster has recovered from a fault, so that the next fault does not add to it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::ensure;
use flotilla_api::{ClusterStatus, LocalRole};
use flotilla_client::{Client, ClientOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaRole, ShardId};
use tokio::time::sleep;

/// How long recovery may take.
const WITHIN: Duration = Duration::from_secs(90);
/// Interval between polls.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Voters of a shard once there are enough nodes.
const REPLICAS: usize = 3;

/// Waits until every node is running and ready, and every shard has a leader and all its voters on these
/// nodes, each of which reports an active replica itself.
///
/// # Errors
/// A node exited by itself, or it takes too long.
pub(crate) async fn wait_recovered(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_ready().await?;
    let start = Instant::now();
    loop {
        let missing = match find_missing(cluster).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        let exited = cluster.unexpected_exits()?;
        ensure!(exited.is_empty(), "exited during recovery: {exited:?}");
        ensure!(start.elapsed() < WITHIN, "not recovered after {} s: {missing}", WITHIN.as_secs());
        sleep(POLL_EVERY).await;
    }
}

/// The first shard that has not recovered, if any.
async fn find_missing(cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
    let mut statuses: BTreeMap<NodeId, ClusterStatus> = BTreeMap::new();
    for i in 1..=cluster.len() {
        if cluster.is_running(i)? {
            let status = Client::new(ClientOptions::new([cluster.http(i)?]))?.status().await?;
            statuses.insert(status.node, status);
        }
    }
    let desired = if statuses.len() < REPLICAS { 1 } else { REPLICAS };
    for (node, status) in &statuses {
        for shard in &status.shards {
            let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
            let active = voters.filter(|replica| has_active_voter(&statuses, replica.node, shard.id)).count();
            let led = shard.leader.is_some_and(|leader| statuses.contains_key(&leader));
            if !led || active < desired || shard.replicas.len() != active {
                return Ok(Some(format!(
                    "{node} reports {} with leader {:?} and replicas {:?}, of which {active} are active",
                    shard.id, shard.leader, shard.replicas
                )));
            }
        }
    }
    Ok(None)
}

/// Whether the node itself reports a voting replica of the shard.
fn has_active_voter(statuses: &BTreeMap<NodeId, ClusterStatus>, node: NodeId, id: ShardId) -> bool {
    let shard = statuses.get(&node).and_then(|status| status.shards.iter().find(|shard| shard.id == id));
    shard
        .and_then(|shard| shard.local.as_ref())
        .is_some_and(|local| matches!(local.role, LocalRole::Leader | LocalRole::Follower | LocalRole::Candidate))
}
