//! The HTTP calls needed while a cluster starts: readiness, status, join tokens.

use std::{fs, io, path::PathBuf, time::Duration};

use flotilla_api::{ClusterStatus, ShardInfo, TokenRequest};
use flotilla_client::{Client, ClientOptions};
use flotilla_types::ReplicaRole;

use crate::error::ClusterError;

/// Timeout of a request. Nodes run on this machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Lifetime of tokens from [`token`].
pub const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// Voters of a shard once there are enough nodes.
const REPLICAS: usize = 3;

/// How to authenticate at the nodes of a local cluster: by the first admin key, which lies in the data folder of
/// the node that founded it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    founder: Option<PathBuf>,
}

impl Credentials {
    /// Of the cluster that the node with this data folder founded; `None` for one that serves anybody.
    #[must_use]
    pub fn new(founder: Option<PathBuf>) -> Self {
        Self { founder }
    }

    /// Where the authority's certificate lies.
    #[must_use]
    pub fn ca(&self) -> Option<PathBuf> {
        self.founder.as_ref().map(|folder| folder.join("ca.pem"))
    }

    /// The admin key, once the cluster is founded.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn admin_key(&self) -> io::Result<Option<String>> {
        let path = self.founder.as_ref().map(|folder| folder.join("admin.key"));
        Ok(path.map(fs::read_to_string).transpose()?.map(|key| key.trim().to_owned()))
    }

    /// The options of a client of one node.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn client_options(&self, http: &str) -> io::Result<ClientOptions> {
        let mut options = ClientOptions::new([http]);
        options.key = self.admin_key()?;
        options.authority = self.ca().map(fs::read).transpose()?;
        Ok(options)
    }

    /// A client of one node. It is used for one call: by the next one the node may be another process.
    fn client(&self, http: &str) -> Result<Client, ClusterError> {
        let mut options = self.client_options(http)?;
        options.timeout = REQUEST_TIMEOUT;
        Ok(Client::new(options)?)
    }
}

/// Whether the node at `http` (`http://…`) reports that it is ready. False if it does not respond.
pub async fn is_ready(http: &str, credentials: &Credentials) -> bool {
    match credentials.client(http) {
        Ok(client) => client.is_ready().await,
        Err(_) => false,
    }
}

/// Whether the node at `http` is ready and reports every shard as available, with as many voters as `nodes`
/// running nodes allow: fewer than desired in a small cluster, which then is not fully replicated. False if
/// it does not respond, or while no collection has a shard.
pub async fn has_possible_replicas(http: &str, credentials: &Credentials, nodes: usize) -> bool {
    is_ready(http, credentials).await
        && status(http, credentials).await.is_ok_and(|status| has_voters(&status.shards, nodes))
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
pub async fn status(http: &str, credentials: &Credentials) -> Result<ClusterStatus, ClusterError> {
    Ok(credentials.client(http)?.status().await?)
}

/// Creates a join token for `uses` nodes at the node at `http`, valid for [`TOKEN_TTL`].
///
/// # Errors
/// The request failed or was refused, for example without a quorum.
pub async fn token(http: &str, credentials: &Credentials, uses: u32) -> Result<String, ClusterError> {
    let request = TokenRequest { ttl_ms: Some(TOKEN_TTL.as_millis() as u64), uses: Some(uses) };
    Ok(credentials.client(http)?.create_token(&request).await?.token)
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
            operations: Vec::new(),
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
