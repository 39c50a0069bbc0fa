//! Waiting until a cluster has recovered, so that the next fault is one fault and not two.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::ensure;
use flotilla_api::{ClusterStatus, LocalRole};
use flotilla_client::{Client, ClientOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{NodeId, ReplicaRole};
use tokio::time::sleep;

/// How long recovering may take.
const WITHIN: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Voters of a shard once there are as many nodes.
const REPLICAS: usize = 3;

/// Waits until every node runs and is ready, and until every shard is led and has all its voters on these nodes, each of which stands by it.
///
/// # Errors
/// A node ended by itself, or it takes too long.
pub(crate) async fn wait_whole(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_ready().await?;
    let begun = Instant::now();
    loop {
        let missing = match look(cluster).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        let gone = cluster.ended()?;
        ensure!(gone.is_empty(), "ended while the others recover: {gone:?}");
        ensure!(begun.elapsed() < WITHIN, "not whole after {} s: {missing}", WITHIN.as_secs());
        sleep(LOOK_EVERY).await;
    }
}

/// What is missing, if anything.
async fn look(cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
    let mut statuses: BTreeMap<NodeId, ClusterStatus> = BTreeMap::new();
    for i in 1..=cluster.len() {
        if cluster.runs(i)? {
            let status = Client::new(ClientOptions::new([cluster.http(i)?]))?.status().await?;
            statuses.insert(status.node, status);
        }
    }
    let wanted = if statuses.len() < REPLICAS { 1 } else { REPLICAS };
    for (asked, status) in &statuses {
        for shard in &status.shards {
            let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
            let standing = voters.filter(|replica| stands(&statuses, replica.node, shard.id)).count();
            let led = shard.leader.is_some_and(|leader| statuses.contains_key(&leader));
            if !led || standing < wanted || shard.replicas.len() != standing {
                return Ok(Some(format!(
                    "{asked} sees {} led by {:?} with {:?}, of which {standing} stand",
                    shard.id, shard.leader, shard.replicas
                )));
            }
        }
    }
    Ok(None)
}

/// Whether the node itself has a replica of the shard that votes.
fn stands(statuses: &BTreeMap<NodeId, ClusterStatus>, node: NodeId, shard: flotilla_types::ShardId) -> bool {
    let shard = statuses.get(&node).and_then(|status| status.shards.iter().find(|known| known.id == shard));
    shard
        .and_then(|shard| shard.local.as_ref())
        .is_some_and(|local| matches!(local.role, LocalRole::Leader | LocalRole::Follower | LocalRole::Candidate))
}
