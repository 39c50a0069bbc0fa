//! The few questions that are asked over HTTP while a cluster comes up.

use std::time::Duration;

use flotilla_api::{ClusterStatus, ShardInfo, TokenReply, TokenRequest};
use flotilla_types::ReplicaRole;

use crate::error::ClusterError;

/// How long one answer may take. Nodes are on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long tokens from [`token`] are good for.
pub const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// Replicas of a shard once there are enough nodes.
const REPLICAS: usize = 3;

/// Whether the node at `http` (`http://…`) says that it is ready. No answer is a no.
pub async fn is_ready(http: &str) -> bool {
    let answer = async { client()?.get(format!("{http}/readyz")).send().await };
    answer.await.is_ok_and(|answer| answer.status().is_success())
}

/// Whether the node at `http` is ready and says that every shard, those of collections included, has a leader and as
/// many voters as `nodes` running nodes allow. No answer is a no.
pub async fn is_whole(http: &str, nodes: usize) -> bool {
    is_ready(http).await && status(http).await.is_ok_and(|status| has_all_replicas(&status.shards, nodes))
}

fn has_all_replicas(shards: &[ShardInfo], nodes: usize) -> bool {
    // Two voters survive no loss either, so shards stay at one until there are three nodes.
    let most = if nodes >= REPLICAS { nodes } else { 1 };
    let is_whole = |shard: &ShardInfo| {
        let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter).count();
        shard.leader.is_some() && voters >= most.min(shard.desired_replicas.into())
    };
    shards.iter().any(|shard| shard.collection.is_some()) && shards.iter().all(is_whole)
}

/// Asks the node at `http` how the cluster is.
///
/// # Errors
/// No answer, or not one that is understood.
pub async fn status(http: &str) -> Result<ClusterStatus, ClusterError> {
    let answer = client()?.get(format!("{http}/v1/cluster/status")).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

/// Asks the node at `http` for a token that `uses` nodes can join with, good for [`TOKEN_TTL`].
///
/// # Errors
/// No answer, or a refusal (no quorum, say).
pub async fn token(http: &str, uses: u32) -> Result<String, ClusterError> {
    let body = TokenRequest { ttl_ms: Some(TOKEN_TTL.as_millis() as u64), uses: Some(uses) };
    let answer = client()?.post(format!("{http}/v1/cluster/tokens")).json(&body).send().await?;
    let answer: TokenReply = answer.error_for_status()?.json().await?;
    Ok(answer.token)
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    // No connection is kept: the node may be another process the next time.
    reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).pool_max_idle_per_host(0).build()
}

#[cfg(test)]
mod tests {
    use flotilla_api::ReplicaInfo;
    use flotilla_types::{Epoch, NodeId, ReplicaId, ShardId};

    use super::*;

    fn shard(collection: Option<&str>, leader: Option<u64>, roles: &[ReplicaRole]) -> ShardInfo {
        let replica = |(i, role): (usize, &ReplicaRole)| {
            let number = i as u64 + 1;
            ReplicaInfo { replica: ReplicaId(number), node: NodeId(number), role: *role }
        };
        ShardInfo {
            id: ShardId(1),
            collection: collection.map(str::to_owned),
            range: String::new(),
            leader: leader.map(NodeId),
            replicas: roles.iter().enumerate().map(replica).collect(),
            epoch: Epoch::default(),
            desired_replicas: 3,
            healthy: true,
            local: None,
        }
    }

    #[test]
    fn a_cluster_is_whole_when_each_shard_is() {
        use ReplicaRole::{Learner, Voter};
        let three = [Voter, Voter, Voter];
        assert!(!has_all_replicas(&[], 3));
        assert!(!has_all_replicas(&[shard(None, Some(1), &three)], 3), "no collection yet");
        assert!(has_all_replicas(&[shard(Some("default"), Some(1), &three)], 5));
        assert!(!has_all_replicas(&[shard(Some("default"), None, &three)], 3), "no leader");
        let joining = [Voter, Voter, Learner];
        assert!(!has_all_replicas(&[shard(Some("default"), Some(1), &joining)], 3), "a learner does not count");
        assert!(has_all_replicas(&[shard(Some("default"), Some(1), &[Voter])], 2));
        let both = [shard(None, Some(1), &three), shard(Some("default"), Some(1), &[Voter])];
        assert!(!has_all_replicas(&both, 3), "one shard lacks replicas");
    }
}
