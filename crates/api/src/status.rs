//! `GET /v1/cluster/status`: the cluster as one node knows it, without asking other nodes.

use std::fmt;

use flotilla_types::{ClusterId, Epoch, Locality, NodeId, ReplicaId, ReplicaRole, ShardId};
use serde::{Deserialize, Serialize};

use crate::{Collection, OperationInfo};

/// The cluster as one node sees it. Without a quorum it is the last state known to that node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster: 32 hexadecimal digits.
    #[serde(with = "cluster_id")]
    pub cluster_id: ClusterId,
    /// The node that answers.
    pub node: NodeId,
    /// Its software version.
    pub version: String,
    /// The cluster version in force (see [`crate::UpgradeStatus`]); 0 from nodes that do not report it.
    #[serde(default)]
    pub cluster_version: u32,
    /// When it started, in Unix milliseconds.
    pub started_ms: u64,
    /// Whether it drains, leaves, is decommissioned or stops: new clients should use another node.
    pub draining: bool,
    /// The node that leads the metadata group, as far as is known.
    pub metadata_leader: Option<NodeId>,
    /// Whether the metadata group is available: it has a leader that a quorum supports.
    pub quorum: bool,
    /// Whether there are problems, and which.
    pub health: Health,
    /// Number of shards that are available (see [`ShardInfo::available`]).
    #[serde(default)]
    pub available_shards: u32,
    /// Number of shards that are fully replicated (see [`ShardInfo::fully_replicated`]).
    #[serde(default)]
    pub replicated_shards: u32,
    /// Number of all shards, the metadata group among them. Zero from a node that does not report these
    /// counts.
    #[serde(default)]
    pub shards_total: u32,
    /// How many more nodes, whichever they are, can fail without a shard losing its quorum.
    #[serde(default)]
    pub failures_survivable: u32,
    /// All nodes that were not removed, in the order of their ids.
    pub nodes: Vec<NodeInfo>,
    /// All collections, in the order of their names.
    pub collections: Vec<Collection>,
    /// All shards, in the order of their ids; the metadata group is shard 0.
    pub shards: Vec<ShardInfo>,
    /// Connections of this node to others.
    pub peers: Vec<PeerInfo>,
    /// What this node found at its start and an operator should know, such as a rebuilt view or a quarantine.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What large values have cost this node's network; absent from nodes that do not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueTraffic>,
}

/// What large values have cost the network of a node since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueTraffic {
    /// Bytes of the references in commands that leaders here were asked to propose.
    pub reference_bytes: u64,
    /// Objects that replicas and readers here needed, and that were here already.
    pub needed_here: u64,
    /// Objects that they needed, and that came from other nodes.
    pub needed_fetched: u64,
    /// Bytes of the chunks that were here already: what was not sent again.
    pub saved_bytes: u64,
    /// By other node.
    pub links: Vec<LinkTraffic>,
}

impl ValueTraffic {
    /// How many percent of the needed objects were here already; nothing before any was needed.
    #[must_use]
    pub fn hit_percent(&self) -> Option<u64> {
        let needed = self.needed_here.saturating_add(self.needed_fetched);
        self.needed_here.saturating_mul(100).checked_div(needed)
    }
}

/// Objects of values that went over the link between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkTraffic {
    /// The other node.
    pub node: NodeId,
    /// Objects that came from it.
    pub received_objects: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Objects that it was sent.
    pub sent_objects: u64,
    /// Their bytes.
    pub sent_bytes: u64,
}

/// Answer to `cluster.replication_stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStats {
    /// In the order of their ids.
    pub nodes: Vec<NodeTraffic>,
}

/// What large values have cost the network of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTraffic {
    /// The node.
    pub node: NodeId,
    /// Absent if it did not answer in time, or does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueTraffic>,
}

impl ClusterStatus {
    /// Availability and redundancy in one sentence, the same in every place that shows them.
    #[must_use]
    pub fn redundancy(&self) -> String {
        let (total, available, replicated) = (self.shards_total, self.available_shards, self.replicated_shards);
        if total == 0 && !self.shards.is_empty() {
            return format!("{} shards; this node does not report how many are available", self.shards.len());
        }
        let failures = match self.failures_survivable {
            0 => "no more node failure".to_owned(),
            1 => "1 more node failure".to_owned(),
            more => format!("{more} more node failures"),
        };
        format!(
            "{available} of {total} available, {replicated} of {total} fully replicated; {failures} can be survived"
        )
    }
}

/// Health of the cluster, with the problems found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether there is nothing to report. A small cluster that cannot hold all desired replicas is as it can
    /// be; `replicated_shards` and `failures_survivable` say what it survives.
    pub ok: bool,
    /// Problems: one sentence each, the worst first.
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
    /// Its location.
    #[serde(default)]
    pub locality: Locality,
    /// What it does.
    #[serde(default)]
    pub role: NodeRole,
    /// Its share of replicas and leaderships, relative to those of other nodes; 0 for a gateway.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Its state in the metadata.
    pub state: NodeState,
    /// Its liveness according to membership.
    pub liveness: Liveness,
    /// Whether it is the node that answers.
    pub is_self: bool,
    /// Its role in the metadata group.
    pub metadata_role: MetadataRole,
    /// Number of replicas that it holds.
    pub replicas: u32,
    /// Number of shards that it leads, as far as is known.
    pub leaders: u32,
    /// The cluster versions that its binary supports, if the answering node has seen it since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// The version of its software, since its last start that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it last started, in Unix milliseconds, as recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
}

/// A range of cluster versions that a binary supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

/// The weight of nodes of versions that do not report any.
const fn default_weight() -> u32 {
    1
}

/// What a node does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// It holds replicas and serves clients.
    #[default]
    Storage,
    /// It serves clients.
    Gateway,
}

/// State of a node in the metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It is a regular member.
    #[default]
    Active,
    /// It keeps its replicas, gets no new ones, and hands its leaderships over.
    Draining,
    /// As `draining`, and it leads nothing any more: it can be stopped.
    Drained,
    /// Its replicas are moving away; it stays a member.
    Decommissioning,
    /// Its replicas are moving away; then it is removed and its process ends.
    Leaving,
    /// It was down for longer than the grace period; its replicas are being replaced.
    Lost,
    /// It was removed permanently.
    Removed,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Decommissioning => "decommissioning",
            Self::Leaving => "leaving",
            Self::Lost => "lost",
            Self::Removed => "removed",
        })
    }
}

/// Liveness of a node according to membership.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It responds.
    Alive,
    /// It did not respond recently.
    Suspect,
    /// It does not respond.
    Down,
    /// It announced that it leaves.
    Left,
    /// No message about it has arrived since this node started.
    #[default]
    Unknown,
}

/// Role of a node in the metadata group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataRole {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It receives the log and does not vote.
    Learner,
    /// It is not in the group and only follows the metadata feed.
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
    /// Its keys in human-readable form, such as `buckets 0–3`.
    pub range: String,
    /// The node that leads it, as far as is known.
    pub leader: Option<NodeId>,
    /// Its replicas, as last reported.
    pub replicas: Vec<ReplicaInfo>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Desired number of replicas.
    pub desired_replicas: u8,
    /// Whether it is available and fully replicated.
    pub healthy: bool,
    /// Whether it has a leader that a quorum of its own voters supports: it takes reads and writes.
    #[serde(default)]
    pub available: bool,
    /// Whether it has its desired number of replicas, and each of its own voters is on a live node that is
    /// neither leaving nor decommissioned nor lost nor removed.
    #[serde(default)]
    pub fully_replicated: bool,
    /// How many more nodes can fail before it loses its quorum.
    #[serde(default)]
    pub failures_survivable: u32,
    /// What changes it now. `/v1/cluster/shards` has the reports of all nodes, other answers have those of the
    /// node that answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationInfo>,
    /// This node's replica, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalReplica>,
}

impl ShardInfo {
    /// Puts operations with the shards that they change, in place of what was there.
    pub fn attach_operations(shards: &mut [Self], operations: Vec<OperationInfo>) {
        shards.iter_mut().for_each(|shard| shard.operations.clear());
        for operation in operations {
            if let Ok(at) = shards.binary_search_by_key(&operation.shard, |shard| shard.id) {
                shards[at].operations.push(operation);
            }
        }
    }
}

/// One replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Its id, never reused.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Its role.
    pub role: ReplicaRole,
}

/// State of the answering node's own replica.
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
    /// Bytes of its log after the checkpoint, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Bytes in its memtable.
    pub memtable_bytes: u64,
    /// If it leads: how far the other replicas are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<FollowerInfo>,
}

/// Another replica of a shard, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowerInfo {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Committed entries that it is not known to have.
    pub lag: u64,
    /// Whether it answered recently.
    pub active: bool,
    /// Whether it is being sent a snapshot.
    pub in_snapshot: bool,
}

/// Current role of a replica in its Raft group.
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
    /// It must not vote, because it may have lost log entries or votes.
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
    /// State of the connection.
    pub state: PeerState,
    /// Round-trip time in microseconds, when connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// State of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// It is established.
    Connected,
    /// It is being established.
    #[default]
    Connecting,
    /// The last attempt failed; the next one waits.
    Backoff,
}

mod cluster_id {
    //! Serializes a cluster id as its text.

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
    fn ids_are_texts() {
        let status = ClusterStatus {
            cluster_id: ClusterId([0xab; 16]),
            node: NodeId(7),
            version: "0.1.0".to_owned(),
            cluster_version: 2,
            started_ms: 1,
            draining: false,
            metadata_leader: None,
            quorum: false,
            health: Health::default(),
            available_shards: 1,
            replicated_shards: 2,
            shards_total: 3,
            failures_survivable: 4,
            nodes: Vec::new(),
            collections: Vec::new(),
            shards: Vec::new(),
            peers: Vec::new(),
            notes: Vec::new(),
            values: None,
        };
        let text = serde_json::to_string(&status).expect("JSON");
        assert!(text.contains(&format!(r#""cluster_id":"{}","node":"n7""#, "ab".repeat(16))), "{text}");
        assert_eq!(serde_json::from_str::<ClusterStatus>(&text).expect("a status"), status);
        let counts = r#""available_shards":1,"replicated_shards":2,"shards_total":3,"failures_survivable":4"#;
        assert!(text.contains(counts), "{text}");
        let sentence = "1 of 3 available, 2 of 3 fully replicated; 4 more node failures can be survived";
        assert_eq!(status.redundancy(), sentence);
    }
}
