//! `GET /v1/cluster/status`: what one node knows of the cluster, without asking anybody.

use flotilla_types::{ClusterId, Epoch, Locality, NodeId, ReplicaId, ReplicaRole, ShardId};
use serde::{Deserialize, Serialize};

use crate::Collection;

/// The cluster as one node sees it. Without a quorum it is the last that the node heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster: 32 hexadecimal digits.
    #[serde(with = "cluster_id")]
    pub cluster_id: ClusterId,
    /// The node that answers.
    pub node: NodeId,
    /// Its software version.
    pub version: String,
    /// When it started, in Unix milliseconds.
    pub started_ms: u64,
    /// Whether it is draining.
    pub draining: bool,
    /// The node that leads the metadata group, as far as is known.
    pub metadata_leader: Option<NodeId>,
    /// Whether the metadata group has a leader that this node hears from.
    pub quorum: bool,
    /// Whether all is well, and what is not.
    pub health: Health,
    /// All nodes that were not removed, in the order of their ids.
    pub nodes: Vec<NodeInfo>,
    /// All collections, in the order of their names.
    pub collections: Vec<Collection>,
    /// All shards, in the order of their ids; the metadata group is shard 0.
    pub shards: Vec<ShardInfo>,
    /// Connections of this node to others.
    pub peers: Vec<PeerInfo>,
    /// What this node found at its start that an operator should know: a rebuilt view, a quarantine, for example.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A verdict with its reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether there is nothing to report.
    pub ok: bool,
    /// What is wrong: one sentence each, the worst first.
    pub reasons: Vec<String>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id, never reused.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Address of its peer endpoint, `host:port`.
    pub quic: String,
    /// Address of its HTTP endpoint, `host:port`; empty when there is none.
    pub http: String,
    /// Address of its Redis endpoint, `host:port`; empty when there is none.
    pub redis: String,
    /// Where it stands.
    #[serde(default)]
    pub locality: Locality,
    /// What the metadata group says of it.
    pub state: NodeState,
    /// What membership believes of it.
    pub liveness: Liveness,
    /// Whether it is the node that answers.
    pub is_self: bool,
    /// Its part in the metadata group.
    pub metadata_role: MetadataRole,
    /// Replicas that it holds.
    pub replicas: u32,
    /// Shards that it leads, as far as is known.
    pub leaders: u32,
}

/// What the metadata group says of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It takes part.
    #[default]
    Active,
    /// Its replicas are moving away.
    Draining,
    /// It was away for longer than the grace period; its replicas are being replaced.
    Lost,
    /// It is out for ever.
    Removed,
}

/// What membership believes of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It did not answer lately.
    Suspect,
    /// It does not answer.
    Down,
    /// It said goodbye.
    Left,
    /// Nothing was heard of it since this node started.
    #[default]
    Unknown,
}

/// A node's part in the metadata group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataRole {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It catches up.
    Learner,
    /// It only follows the feed.
    #[default]
    None,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// Its id.
    pub id: ShardId,
    /// Name of its collection; `None` for the metadata group.
    pub collection: Option<String>,
    /// Its keys, for people: `buckets 0–3`, for example.
    pub range: String,
    /// The node that leads it, as far as is known.
    pub leader: Option<NodeId>,
    /// Its replicas, as last reported.
    pub replicas: Vec<ReplicaInfo>,
    /// Its version.
    pub epoch: Epoch,
    /// Replicas wanted.
    pub desired_replicas: u8,
    /// Whether it has a leader, and as many live voters as are wanted.
    pub healthy: bool,
    /// This node's replica, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalReplica>,
}

/// One replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Its id, never reused.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// What it does.
    pub role: ReplicaRole,
}

/// How the answering node's own replica is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// Its role in the group now.
    pub role: LocalRole,
    /// Its Raft term.
    pub term: u64,
    /// Last entry known to be committed.
    pub commit: u64,
    /// Last entry applied.
    pub applied: u64,
    /// Entry that its checkpoint covers.
    pub checkpoint: u64,
    /// Bytes of its log behind the checkpoint, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Bytes in its memtable.
    pub memtable_bytes: u64,
}

/// Answer to `GET /v1/cluster/digests`: what the replicas of the answering node hold. Two replicas of a shard that applied the same
/// entry must have the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestList {
    /// The node that answers.
    pub node: NodeId,
    /// Its replicas, in the order of their shards.
    pub replicas: Vec<ReplicaDigest>,
}

/// What one replica holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaDigest {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The digest; absent when there is none now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All records of a replica as one number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Last entry applied.
    pub applied: u64,
    /// How many records.
    pub records: u64,
    /// BLAKE3 over them in key order, as 64 hexadecimal digits.
    pub digest: String,
}

/// Role of a replica in its Raft group at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalRole {
    /// It leads.
    Leader,
    /// It follows.
    #[default]
    Follower,
    /// It asks for votes.
    Candidate,
    /// It receives the log and does not vote.
    Learner,
    /// It is kept from voting, because it may have forgotten something.
    Quarantined,
    /// It stopped on an error.
    Stopped,
}

/// One connection to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The other node.
    pub node: NodeId,
    /// Its address, `host:port`.
    pub addr: String,
    /// What the connection is doing.
    pub state: PeerState,
    /// Round-trip time in microseconds, when connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// It is up.
    Connected,
    /// It is being made.
    #[default]
    Connecting,
    /// It failed and waits before the next attempt.
    Backoff,
}

mod cluster_id {
    //! A cluster id as its text.

    use flotilla_types::ClusterId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &ClusterId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ClusterId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_and_the_cluster_id_is_text() {
        let status = ClusterStatus {
            cluster_id: ClusterId([0xab; 16]),
            node: NodeId(7),
            version: "0.1.0".to_owned(),
            started_ms: 1,
            draining: false,
            metadata_leader: None,
            quorum: false,
            health: Health::default(),
            nodes: Vec::new(),
            collections: Vec::new(),
            shards: Vec::new(),
            peers: Vec::new(),
            notes: Vec::new(),
        };
        let text = serde_json::to_string(&status).expect("JSON");
        assert!(text.contains(&format!(r#""cluster_id":"{}","node":7"#, "ab".repeat(16))), "{text}");
        assert_eq!(serde_json::from_str::<ClusterStatus>(&text).expect("a status"), status);
    }
}
