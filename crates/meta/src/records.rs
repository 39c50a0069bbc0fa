//! The records of the metadata group.
//!
//! Invariants: plain data; all rules are in `apply`. Collections are [`flotilla_placement::Collection`].

use std::{collections::BTreeSet, fmt};

use bytes::Bytes;
use flotilla_placement::PlanReplica;
use flotilla_types::{
    ClusterVersion, CollectionId, Epoch, Incarnation, KeyRange, Locality, LogIndex, NodeId, OperationId, ReplicaId,
    Role, ShardDescriptor, ShardId, Term, VersionRange,
};

/// A node's addresses, each as `host:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The peers' QUIC endpoint.
    pub quic: String,
    /// The HTTP gateway; empty when there is none.
    pub http: String,
    /// The Redis gateway; empty when there is none.
    pub redis: String,
}

/// A node's administrative state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Takes replicas and leaderships.
    Active,
    /// Keeps its replicas, takes no new ones and no leaderships; may return to [`NodeState::Active`].
    Draining,
    /// Moves its replicas away, leads nothing, and stays; may return to [`NodeState::Active`].
    Decommissioning,
    /// As [`NodeState::Decommissioning`], and is removed when it has no replicas left.
    Leaving,
    /// Removed permanently. Its key is refused.
    Removed,
    /// Another node joined with a valid token at its address, so its folder is gone. Its key is refused.
    Lost,
}

impl NodeState {
    /// Whether the node can never return.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Removed | Self::Lost)
    }

    /// Whether its replicas are moved to other nodes.
    #[must_use]
    pub fn moves_replicas_away(self) -> bool {
        matches!(self, Self::Decommissioning | Self::Leaving)
    }

    /// The cluster version that introduced it: earlier binaries do not know its number.
    #[must_use]
    pub fn since(self) -> ClusterVersion {
        match self {
            Self::Active | Self::Decommissioning | Self::Removed | Self::Lost => ClusterVersion::FIRST,
            Self::Draining | Self::Leaving => ClusterVersion::DRAINING,
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Decommissioning => "decommissioning",
            Self::Leaving => "leaving",
            Self::Removed => "removed",
            Self::Lost => "lost",
        })
    }
}

/// What a node does for the cluster, by its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeRole {
    /// It holds replicas, and serves clients.
    Storage {
        /// Its share of replicas and leaderships, relative to those of other nodes: 0 to [`NodeRole::WEIGHT_MAX`]. A
        /// node of weight 0 gets no new ones, and balance moves its replicas to others.
        weight: u32,
    },
    /// It serves clients, and holds no replica.
    Gateway,
}

impl NodeRole {
    /// The greatest weight.
    pub const WEIGHT_MAX: u32 = 1_000;

    /// Its share of replicas and leaderships, relative to those of other nodes.
    #[must_use]
    pub fn weight(self) -> u32 {
        match self {
            Self::Storage { weight } => weight,
            Self::Gateway => 0,
        }
    }
}

impl Default for NodeRole {
    fn default() -> Self {
        Self::Storage { weight: 1 }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its id, which never changes.
    pub id: NodeId,
    /// The name its operator gave it; not necessarily unique.
    pub name: String,
    /// Where it listens.
    pub addresses: Addresses,
    /// Its locality labels.
    pub locality: Locality,
    /// Its administrative state.
    pub state: NodeState,
    /// The count of its starts as last reported; 0 before the first report.
    pub incarnation: Incarnation,
    /// Digest of its public key, which its certificate carries.
    pub key_digest: [u8; 32],
    /// When it joined, in Unix milliseconds of hybrid time.
    pub joined_at_ms: u64,
    /// The versions that its binary supports, as last announced; the first only before [`NODE_VERSIONS`] was
    /// in force.
    ///
    /// [`NODE_VERSIONS`]: flotilla_types::ClusterVersion::NODE_VERSIONS
    pub versions: VersionRange,
    /// Its last start that was reported; none before [`ClusterVersion::NODE_STARTS`] was in force.
    pub start: Option<NodeStart>,
    /// What it does; the default before [`ClusterVersion::NODE_ROLES`] was in force.
    pub role: NodeRole,
}

/// A start of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStart {
    /// The count of its starts.
    pub incarnation: Incarnation,
    /// The version of its software, such as `0.1.0`.
    pub build: String,
    /// When it was recorded, in Unix milliseconds of hybrid time.
    pub at_ms: u64,
}

/// A shard: its placement intent and its last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// Its id.
    pub id: ShardId,
    /// Its collection; [`CollectionId::SYSTEM`] for the metadata group itself.
    pub collection: CollectionId,
    /// The desired number of replicas, once there are enough nodes.
    pub replicas_desired: u8,
    /// The replicas that should exist.
    pub intent: Vec<PlanReplica>,
    /// Incremented with every change of `intent`.
    pub intent_version: u64,
    /// The replicas that the shard was created with. Only these start on their own, as voters, at
    /// [`ShardRecord::INITIAL_POSITION`]; every other replica starts empty and is added by the shard's
    /// leader. None for a shard that was split off: its first replicas come out of those of its parent.
    pub initial: ShardDescriptor,
    /// The descriptor with the highest epoch that the shard reported.
    pub descriptor: ShardDescriptor,
    /// The shard that it was split off, which may be gone.
    pub parent: Option<ShardId>,
    /// How it is to be split.
    pub split: Option<PlannedSplit>,
    /// How its right neighbour is to be merged into it.
    pub merge: Option<PlannedMerge>,
}

/// A split of a shard that the shard has not reported yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSplit {
    /// The first record key of the new shard.
    pub at: Bytes,
    /// The new shard, which has no record yet.
    pub child: ShardId,
    /// Each voter of the recorded descriptor, with the replica of the new shard that comes out of it. In the order of
    /// the voters' ids. It is for the configuration of that descriptor only.
    pub replicas: Vec<(ReplicaId, ReplicaId)>,
    /// The operation.
    pub operation: OperationId,
}

/// How a shard's right neighbour is to be merged into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMerge {
    /// The right neighbour.
    pub right: ShardId,
    /// The shard's epoch that it is for. With another one the shard's log has decided.
    pub epoch: Epoch,
    /// The right neighbour's epoch that it is for: the one in which it is frozen comes next.
    pub right_epoch: Epoch,
    /// The right neighbour's keys.
    pub right_range: KeyRange,
    /// Each voter with that of the right neighbour on its node. In the order of the voters' ids.
    pub replicas: Vec<(ReplicaId, ReplicaId)>,
    /// Those of the right neighbour that have a durable checkpoint where it was frozen, by id.
    pub frozen: Vec<ReplicaId>,
    /// An operator has taken it back.
    pub is_cancelled: bool,
    /// The operation.
    pub operation: OperationId,
}

impl PlannedMerge {
    /// Whether each replica of the right neighbour has what is to be merged, durable.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.replicas.iter().all(|(_, right)| self.frozen.contains(right))
    }
}

impl ShardRecord {
    /// Index and term after which the log of a new shard starts.
    pub const INITIAL_POSITION: (LogIndex, Term) = (LogIndex(1), Term(1));

    /// The replica of the intent on a node.
    #[must_use]
    pub fn desired_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.intent.iter().find(|held| held.node == node).map(|held| held.replica)
    }

    /// Whether this is one of the shard's initial replicas.
    #[must_use]
    pub fn is_initial(&self, replica: ReplicaId) -> bool {
        self.initial.node_of(replica).is_some()
    }
}

/// The id of a join token. Part of the token's text, not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u64);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// Hash of its secret.
    pub hash: [u8; 32],
    /// The time from which it is refused, in Unix milliseconds of hybrid time.
    pub expires_at_ms: u64,
    /// Remaining joins.
    pub uses_left: u32,
    /// Joins allowed in total.
    pub uses_max: u32,
    /// When it was created, in Unix milliseconds of hybrid time.
    pub created_at_ms: u64,
}

/// The id of a client key. Part of the key's text, not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The cluster's authority. Recorded from its first rotation on; before, there is only the one that each node
/// knows. Certificates are DER.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// How often the authority was replaced.
    pub serial: u64,
    /// The authority that issues certificates.
    pub certificate: Bytes,
    /// The same, signed by the authority before; kept after the rotation, for clients that trust that one.
    pub cross: Option<Bytes>,
    /// The authority before, while certificates that it issued are accepted.
    pub previous: Option<Bytes>,
    /// The authority that a rotation may put in force.
    pub prepared: Option<PreparedAuthority>,
    /// During a rotation, the nodes that have a certificate of the new authority.
    pub certified: BTreeSet<NodeId>,
}

impl AuthorityRecord {
    /// Whether certificates of two authorities are accepted.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.previous.is_some()
    }
}

/// An authority that is not in force yet. Certificates are DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedAuthority {
    /// Its certificate.
    pub certificate: Bytes,
    /// The same, signed by the authority in force.
    pub cross: Bytes,
}

/// A client key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its id.
    pub id: KeyId,
    /// Hash of its secret.
    pub hash: [u8; 32],
    /// What its holder may do.
    pub role: Role,
    /// The collections whose records it opens, by name, in order; empty for all.
    pub collections: Vec<String>,
    /// The time from which it is refused, in Unix milliseconds of hybrid time; 0 for never.
    pub expires_at_ms: u64,
    /// When it was created, in Unix milliseconds of hybrid time.
    pub created_at_ms: u64,
}

impl KeyRecord {
    /// Whether it is refused for its age.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms != 0 && now_ms >= self.expires_at_ms
    }
}
