//! Cluster events as this node sees them.

use flotilla_membership::NodeState;
use flotilla_replication::LostReason;
use flotilla_types::{NodeId, ObjectId, ReplicaId, ShardId, Term};

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
    /// Objects of a replica on this node were found damaged.
    Damaged {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Some of the objects.
        objects: Vec<ObjectId>,
    },
    /// The objects of a damaged replica are here again, or another replica has taken its place.
    Repaired {
        /// The shard.
        shard: ShardId,
        /// The replica that was damaged.
        replica: ReplicaId,
    },
    /// This node gave up replicas.
    Lost {
        /// The replicas.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why.
        reason: LostReason,
    },
}
