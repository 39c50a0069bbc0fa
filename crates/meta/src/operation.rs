//! Operations that the metadata records: moves of replicas, splits and merges of shards, with their reasons and how they
//! stand.
//!
//! Invariants: plain data; the rules are in `apply`. How far a running operation is, only the nodes know: that
//! changes too often for a log.

use bytes::Bytes;
use flotilla_placement::{PlanReplica, Reason};
use flotilla_types::{ClusterVersion, OperationId, ShardId};

/// A change of a shard that goes on until it is done, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// The shard.
    pub shard: ShardId,
    /// What is done.
    pub work: OperationWork,
    /// Why.
    pub reason: OperationReason,
    /// How it stands.
    pub state: OperationState,
    /// How often an operator has changed it.
    pub changes: u64,
    /// When it was decided, in Unix milliseconds of hybrid time.
    pub started_ms: u64,
    /// When it came to its state, in Unix milliseconds of hybrid time.
    pub since_ms: u64,
}

impl OperationRecord {
    /// The replica that is to go and the one that takes its place; `None` for what is no move.
    #[must_use]
    pub fn moved(&self) -> Option<(PlanReplica, PlanReplica)> {
        match self.work {
            OperationWork::Move { from, to } => Some((from, to)),
            OperationWork::Split { .. } | OperationWork::Merge { .. } => None,
        }
    }
}

/// What an operation does to its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationWork {
    /// Moves a replica to another node.
    Move {
        /// The replica that is to go.
        from: PlanReplica,
        /// The replica that takes its place. Another id if it had to be built again.
        to: PlanReplica,
    },
    /// Splits the shard in two.
    Split {
        /// The first record key of the new shard.
        at: Bytes,
        /// The new shard.
        child: ShardId,
    },
    /// Merges the right neighbour into the shard.
    Merge {
        /// The right neighbour.
        right: ShardId,
    },
}

/// Why an operation was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationReason {
    /// An operator asked for it.
    Operator,
    /// The replica's node is dead.
    NodeDead,
    /// The replica's node is leaving.
    NodeLeaving,
    /// The replica's node was removed.
    NodeRemoved,
    /// Replicas shared more locality labels than necessary.
    Spread,
    /// The replica's node held more than its share.
    Balance,
    /// The shard grew beyond what its collection allows.
    Size,
    /// Nobody used the shard and its neighbour, which are small.
    Unused,
}

impl OperationReason {
    /// The cluster version that introduced it: earlier binaries do not know its number.
    #[must_use]
    pub fn since(self) -> ClusterVersion {
        match self {
            Self::Operator | Self::NodeDead | Self::NodeLeaving | Self::NodeRemoved | Self::Spread | Self::Balance => {
                ClusterVersion::OPERATIONS
            }
            Self::Size => ClusterVersion::SIZE_SPLITS,
            Self::Unused => ClusterVersion::MERGES,
        }
    }

    /// The reason of a planned move; `None` for changes that are no moves.
    #[must_use]
    pub fn of_plan(reason: Reason) -> Option<Self> {
        match reason {
            Reason::NodeDead => Some(Self::NodeDead),
            Reason::NodeLeaving => Some(Self::NodeLeaving),
            Reason::NodeRemoved => Some(Self::NodeRemoved),
            Reason::Spread => Some(Self::Spread),
            Reason::Balance => Some(Self::Balance),
            Reason::UnderReplicated | Reason::Surplus => None,
        }
    }
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationState {
    /// Its shard's leader works on it.
    Running,
    /// It waits for an operator.
    Paused,
    /// The shard has the new replica, and not the old one; or it was split, or merged.
    Done,
    /// An operator has taken it back.
    Cancelled,
    /// A later decision has taken its place, or its shard was dropped; or its shards could not be merged.
    Superseded,
}

impl OperationState {
    /// Whether nothing more happens.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Superseded)
    }
}

/// What an operator may do with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationChange {
    /// Stop until it is resumed. Configurations that are half changed are completed first. Merges do not pause.
    Pause,
    /// Go on.
    Resume,
    /// Keep the old replica instead of the new one. Splits are not cancelled.
    Cancel,
}
