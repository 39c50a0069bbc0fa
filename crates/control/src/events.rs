//! Cluster events as this node sees them.

use flotilla_membership::NodeState;
use flotilla_replication::LostReason;
use flotilla_types::{NodeId, ReplicaId, ShardId, Term};

/// An event of interest to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node's membership state changed.
    Member {
        /// The node.
        node: NodeId,
        /// Before.
        old: NodeState,
        /// Now.
        new: NodeState,
    },
    /// A shard has a new leader.
    Leader {
        /// The shard.
        shard: ShardId,
        /// The leader's term.
        term: Term,
        /// The node.
        node: NodeId,
    },
    /// This node gave up replicas.
    Lost {
        /// The replicas.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why.
        reason: LostReason,
    },
}
