//! What happens in the cluster, as this node sees it.

use flotilla_membership::NodeState;
use flotilla_replication::LostReason;
use flotilla_types::{NodeId, ReplicaId, ShardId, Term};

/// Something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Membership sees a node in another state.
    Member {
        /// The node.
        node: NodeId,
        /// Before.
        old: NodeState,
        /// Now.
        new: NodeState,
    },
    /// A shard has a leader.
    Leader {
        /// The shard.
        shard: ShardId,
        /// Since this term.
        term: Term,
        /// The node.
        node: NodeId,
    },
    /// This node gave replicas up.
    Lost {
        /// The replicas.
        replicas: Vec<(ShardId, ReplicaId)>,
        /// Why.
        reason: LostReason,
    },
}
