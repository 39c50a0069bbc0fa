//! What the metadata group keeps about each object.
//!
//! Invariants: plain data; every rule about it is in `apply`. Collections are [`flotilla_placement::Collection`].

use std::fmt;

use flotilla_placement::PlanReplica;
use flotilla_types::{
    CollectionId, Incarnation, Locality, LogIndex, NodeId, ReplicaId, ShardDescriptor, ShardId, Term,
};

/// Where a node is reached, each as `host:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The peers' QUIC endpoint.
    pub quic: String,
    /// The HTTP gateway; empty when there is none.
    pub http: String,
    /// The Redis gateway; empty when there is none.
    pub redis: String,
}

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Takes part.
    Active,
    /// Gives its replicas away and may come back to [`NodeState::Active`].
    Draining,
    /// Taken out for ever. Its key is refused.
    Removed,
    /// Another node with a valid token stands at its address: its folder is gone. Its key is refused.
    Lost,
}

impl NodeState {
    /// Whether the node is out for ever.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Removed | Self::Lost)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
            Self::Lost => "lost",
        })
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its id, for ever.
    pub id: NodeId,
    /// The name its operator gave it; not necessarily unique.
    pub name: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Where it stands.
    pub locality: Locality,
    /// Where it is in its life.
    pub state: NodeState,
    /// Its last known start; 0 until it first reported one.
    pub incarnation: Incarnation,
    /// Digest of its public key, which its certificate carries.
    pub key_digest: [u8; 32],
    /// When it joined, in Unix milliseconds of hybrid time.
    pub joined_at_ms: u64,
}

/// A shard: what placement wants and what the shard said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// Its id.
    pub id: ShardId,
    /// Its collection; [`CollectionId::SYSTEM`] for the metadata group itself.
    pub collection: CollectionId,
    /// Replicas wanted once there are nodes enough.
    pub replicas_desired: u8,
    /// The replicas that should exist.
    pub intent: Vec<PlanReplica>,
    /// Grows with every change of `intent`.
    pub intent_version: u64,
    /// The replicas that the shard was created with. Only these start by themselves, as voters, at
    /// [`ShardRecord::INITIAL_POSITION`]; every other one starts empty and is brought in by the shard's leader.
    pub initial: ShardDescriptor,
    /// The highest epoch that the shard reported.
    pub descriptor: ShardDescriptor,
}

impl ShardRecord {
    /// Index and term that the log of a new shard starts behind.
    pub const INITIAL_POSITION: (LogIndex, Term) = (LogIndex(1), Term(1));

    /// The replica that placement wants on a node.
    #[must_use]
    pub fn wanted_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.intent.iter().find(|held| held.node == node).map(|held| held.replica)
    }

    /// Whether the shard was created with this replica.
    #[must_use]
    pub fn is_initial(&self, replica: ReplicaId) -> bool {
        self.initial.node_of(replica).is_some()
    }
}

/// Names a join token. Part of the token's text, not a secret.
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
    /// The first moment at which it is refused, in Unix milliseconds of hybrid time.
    pub expires_at_ms: u64,
    /// Joins it still allows.
    pub uses_left: u32,
    /// Joins it allowed at first.
    pub uses_max: u32,
    /// When it was made, in Unix milliseconds of hybrid time.
    pub created_at_ms: u64,
}
