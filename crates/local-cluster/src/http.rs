//! The HTTP calls needed while a cluster starts: readiness, status, join tokens.

use std::time::Duration;

use flotilla_api::{ClusterStatus, ShardInfo, TokenReply, TokenRequest};
use flotilla_types::ReplicaRole;

use crate::error::ClusterError;

/// Timeout of a request. Nodes run on this machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Lifetime of tokens from [`token`].
pub const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// Voters of a shard once there are enough nodes.
const REPLICAS: usize = 3;

/// Whether the node at `http` (`http://…`) reports that it is ready. False if it does not respond.
pub async fn is_ready(http: &str) -> bool {
    let answer = async { client()?.get(format!("{http}/readyz")).send().await };
    answer.await.is_ok_and(|answer| answer.status().is_success())
}

/// Whether the node at `http` is ready and reports every shard as available, with as many voters as `nodes`
/// running nodes allow: fewer than desired in a small cluster, which then is not fully replicated. False if
/// it does not respond, or while no collection has a shard.
pub async fn has_possible_replicas(http: &str, nodes: usize) -> bool {
    is_ready(http).await && status(http).await.is_ok_and(|status| has_voters(&status.shards, nodes))
}

fn has_voters(shards: &[ShardInfo], nodes: usize) -> bool {
    // Two voters do not survive a failure any more than one does, so shards keep one voter until there are
    // three nodes.
    let voters_max = if nodes >= REPLICAS { nodes } else { 1 };
    let is_grown = |shard: &ShardInfo| {
        let voters = shard.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter).count();
        // Earlier releases report only `healthy`, which says more.
        (shard.available || shard.healthy) && voters >= voters_max.min(shard.desired_replicas.into())
    };
    shards.iter().any(|shard| shard.collection.is_some()) && shards.iter().all(is_grown)
}

/// The cluster's status as the node at `http` reports it.
///
/// # Errors
/// The request failed, or its response could not be decoded.
pub async fn status(http: &str) -> Result<ClusterStatus, ClusterError> {
    let answer = client()?.get(format!("{http}/v1/cluster/status")).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

/// Creates a join token for `uses` nodes at the node at `http`, valid for [`TOKEN_TTL`].
///
/// # Errors
/// The request failed or was refused, for example without a quorum.
pub async fn token(http: &str, uses: u32) -> Result<String, ClusterError> {
    let body = TokenRequest { ttl_ms: Some(TOKEN_TTL.as_millis() as u64), uses: Some(uses) };
    let answer = client()?.post(format!("{http}/v1/cluster/tokens")).json(&body).send().await?;
    let answer: TokenReply = answer.error_for_status()?.json().await?;
    Ok(answer.token)
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    // No connection is pooled: by the next request the node may be another process.
    reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(0).build()
}

#[cfg(test)]
mod tests {
    use flotilla_api::ReplicaInfo;
    use flotilla_types::{Epoch, NodeId, ReplicaId, ShardId};

    use super::*;

    fn shard(collection: Option<&str>, available: bool, roles: &[ReplicaRole]) -> ShardInfo {
        let replica = |(i, role): (usize, &ReplicaRole)| {
            let number = i as u64 + 1;
            ReplicaInfo { replica: ReplicaId(number), node: NodeId(number), role: *role }
        };
        ShardInfo {
            id: ShardId(1),
            collection: collection.map(str::to_owned),
            range: String::new(),
            leader: Some(NodeId(1)),
            replicas: roles.iter().enumerate().map(replica).collect(),
            epoch: Epoch::default(),
            desired_replicas: 3,
            healthy: available,
            available,
            fully_replicated: true,
            failures_survivable: 1,
            local: None,
        }
    }

    #[test]
    fn every_shard_must_be_available_and_have_all_its_voters() {
        use ReplicaRole::{Learner, Voter};
        let three = [Voter, Voter, Voter];
        assert!(!has_voters(&[], 3));
        assert!(!has_voters(&[shard(None, true, &three)], 3), "no collection yet");
        assert!(has_voters(&[shard(Some("default"), true, &three)], 5));
        assert!(!has_voters(&[shard(Some("default"), false, &three)], 3), "not available");
        let joining = [Voter, Voter, Learner];
        assert!(!has_voters(&[shard(Some("default"), true, &joining)], 3), "a learner does not count");
        assert!(has_voters(&[shard(Some("default"), true, &[Voter])], 2));
        let both = [shard(None, true, &three), shard(Some("default"), true, &[Voter])];
        assert!(!has_voters(&both, 3), "one shard lacks replicas");
    }
}
