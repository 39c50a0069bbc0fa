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
    /// Replicas of a shard that this node leads have different states.
    Different {
        /// The shard.
        shard: ShardId,
        /// The one that is given up, with its node; `None` if no majority agrees.
        odd: Option<(ReplicaId, NodeId)>,
        /// How they differ.
        reason: String,
    },
    /// Replicas of a shard that this node leads could not be compared for long.
    NotCompared {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// The replicas of a shard are equal, after one of the two above.
    EqualAgain {
        /// The shard.
        shard: ShardId,
    },
    /// This node gave up replicas.
    Lost {
        /// The replicas.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why.
        reason: LostReason,
    },
}
