//! What a plan decided, what it left, and why: typed reasons of the planner's own rules.
//!
//! Invariant: a reason is what the code that decides has found; nothing here decides.

use std::collections::BTreeSet;

use flotilla_types::{NodeId, ShardId};

use crate::plan::{Change, NodeStatus, PlanReplica};

/// Shards that a [`Shards`] names.
pub const SHARDS_NAMED_MAX: usize = 10;

/// Why a change is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The shard has fewer replicas than desired, and there are nodes that can take more.
    UnderReplicated,
    /// The replica's node is dead.
    NodeDead,
    /// The replica's node is leaving.
    NodeLeaving,
    /// The replica's node was removed.
    NodeRemoved,
    /// The shard has more replicas than desired.
    Surplus,
    /// Two replicas share more locality labels than necessary.
    Spread,
    /// The replica's node holds more than its share.
    Balance,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::UnderReplicated,
        Self::NodeDead,
        Self::NodeLeaving,
        Self::NodeRemoved,
        Self::Surplus,
        Self::Spread,
        Self::Balance,
    ];

    /// Its name, the same in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnderReplicated => "under_replicated",
            Self::NodeDead => "node_dead",
            Self::NodeLeaving => "node_leaving",
            Self::NodeRemoved => "node_removed",
            Self::Surplus => "surplus",
            Self::Spread => "spread",
            Self::Balance => "balance",
        }
    }
}

/// Why a node was not chosen for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// It holds a replica of the shard.
    HoldsReplica,
    /// It takes no replicas, because of its status.
    Status(NodeStatus),
    /// Its weight is zero.
    NoWeight,
    /// An old replica of the shard is still on it, and another node has none.
    OldReplica,
    /// It shares more locality labels with the nodes of the other replicas, most with this one.
    Closer {
        /// The node of another replica.
        with: NodeId,
    },
    /// It holds more replicas for its weight than the chosen node.
    Fuller,
    /// It suits as well, and the hash of shard and node prefers the chosen one.
    Hash,
    /// The two nodes differ by no more than the threshold of balancing.
    WithinThreshold {
        /// How much more the replica's node has, in thousandths of a replica.
        difference: i64,
        /// How much it may have, in the same unit.
        limit: i64,
    },
    /// The metadata group is not moved for balance.
    MetadataGroup,
    /// The shard will get more replicas once there are more nodes, and is not moved before.
    WaitsForNodes,
    /// An operator placed the shard a while ago, or has paused a move of it.
    PlacedByOperator,
    /// Nothing speaks against it: other moves come first, or none are made now.
    Later,
}

impl Rejection {
    /// Its name, the same in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HoldsReplica => "holds_replica",
            Self::Status(_) => "status",
            Self::NoWeight => "no_weight",
            Self::OldReplica => "old_replica",
            Self::Closer { .. } => "closer",
            Self::Fuller => "fuller",
            Self::Hash => "hash",
            Self::WithinThreshold { .. } => "within_threshold",
            Self::MetadataGroup => "metadata_group",
            Self::WaitsForNodes => "waits_for_nodes",
            Self::PlacedByOperator => "placed_by_operator",
            Self::Later => "later",
        }
    }
}

/// A node that was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub why: Rejection,
}

/// A change of where the replicas of a shard are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The shard.
    pub shard: ShardId,
    /// The replica that goes; `None` if the shard only gets another one.
    pub from: Option<PlanReplica>,
    /// The node that gets a replica; `None` if the shard only loses one.
    pub to: Option<NodeId>,
    /// Why.
    pub reason: Reason,
    /// The other nodes, in their order; none if no node was to be chosen.
    pub rejected: Vec<Rejected>,
}

impl Decision {
    /// The changes of the intent that it consists of: the assignment first.
    pub fn changes(&self) -> impl Iterator<Item = Change> + use<> {
        let (shard, reason) = (self.shard, self.reason);
        let assign = self.to.map(|node| Change::Assign { shard, node, reason });
        let unassign = self.from.map(|held| Change::Unassign { shard, replica: held.replica, reason });
        assign.into_iter().chain(unassign)
    }

    /// How many changes these are.
    #[must_use]
    pub fn changes_len(&self) -> usize {
        usize::from(self.to.is_some()) + usize::from(self.from.is_some())
    }
}

/// Why healthy replicas are not to move now, whatever there is to gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// A node has joined a moment ago, and others may follow.
    RecentJoin,
    /// The node that plans is busy.
    Cpu {
        /// The share of its CPUs that it uses, in thousandths.
        used_milli: u32,
    },
}

/// The limits of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`crate::PlanInput::balance_threshold`].
    pub balance_threshold: u32,
    /// See [`crate::PlanInput::moves_max`].
    pub moves_max: usize,
    /// Why no healthy replica is to move, if so.
    pub hold: Option<Hold>,
}

/// Some of a set of shards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shards {
    /// The first, at most [`SHARDS_NAMED_MAX`].
    pub first: Vec<ShardId>,
    /// How many there are.
    pub total: usize,
}

impl Shards {
    pub(crate) fn of(shards: &BTreeSet<ShardId>) -> Self {
        Self { first: shards.iter().take(SHARDS_NAMED_MAX).copied().collect(), total: shards.len() }
    }
}

/// What a plan leaves as it is though something might be done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NonDecision {
    /// Replicas should go from a node, and no other node can take them.
    Stuck {
        /// The node.
        node: NodeId,
        /// Why they should go.
        reason: Reason,
        /// The shards.
        shards: Shards,
    },
    /// Shards have fewer replicas than desired, and no node can take another one.
    Short {
        /// The shards.
        shards: Shards,
    },
    /// No healthy replica moves while shards still have to do what was decided before, or have a replica on a
    /// node that does not answer.
    Unsettled {
        /// The shards.
        shards: Shards,
    },
    /// No healthy replica moves, because moves are turned off.
    Off,
    /// No healthy replica moves now.
    Held(Hold),
    /// The fullest and the emptiest node differ by no more than the threshold.
    Balanced {
        /// By how much they differ, in thousandths of a replica.
        difference: i64,
        /// By how much they may, in the same unit.
        limit: i64,
    },
    /// They differ by more, and no replica can move to a node that has less.
    NoMove {
        /// By how much they differ, in thousandths of a replica.
        difference: i64,
        /// By how much they may, in the same unit.
        limit: i64,
    },
}

impl NonDecision {
    /// Its name, the same in JSON and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stuck { .. } => "no_node",
            Self::Short { .. } => "too_few_nodes",
            Self::Unsettled { .. } => "unsettled",
            Self::Off => "off",
            Self::Held(Hold::RecentJoin) => "recent_join",
            Self::Held(Hold::Cpu { .. }) => "cpu",
            Self::Balanced { .. } => "balanced",
            Self::NoMove { .. } => "no_move",
        }
    }
}
