//! What changes a shard: the kinds of operations and their phases.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an operation does to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// The shard gets another replica.
    AddReplica,
    /// The shard loses a replica.
    RemoveReplica,
    /// Another replica becomes the leader.
    TransferLeader,
    /// A replica fetches the objects of a snapshot.
    ReceiveSnapshot,
    /// A replica moves to another node: there it is added, and the old one is removed. Recorded by the metadata.
    MoveReplica,
    /// A shard is split in two. Recorded by the metadata.
    SplitShard,
    /// A shard's right neighbour is merged into it. Recorded by the metadata.
    MergeShards,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::AddReplica,
        Self::RemoveReplica,
        Self::TransferLeader,
        Self::ReceiveSnapshot,
        Self::MoveReplica,
        Self::SplitShard,
        Self::MergeShards,
    ];

    /// Whether the metadata records it, so that it has an id of its own and can be changed.
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        matches!(self, Self::MoveReplica | Self::SplitShard | Self::MergeShards)
    }

    /// Its name, the same in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddReplica => "add_replica",
            Self::RemoveReplica => "remove_replica",
            Self::TransferLeader => "transfer_leader",
            Self::ReceiveSnapshot => "receive_snapshot",
            Self::MoveReplica => "move_replica",
            Self::SplitShard => "split_shard",
            Self::MergeShards => "merge_shards",
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationPhase {
    /// It waits: a replica to be added for its turn, one to be removed for those that replace it, a
    /// leadership for a replica that can take it, a snapshot for other transfers of the node.
    Waiting,
    /// The replica receives a snapshot, and does not vote.
    ReceivingSnapshot,
    /// The replica receives the log after its snapshot, and does not vote.
    CatchingUp,
    /// The replica has caught up, and waits for the change that makes it a voter.
    CaughtUp,
    /// The replica becomes a voter: the configuration is joint.
    Promoting,
    /// The replica stops voting: the configuration is joint.
    Demoting,
    /// The replica does not vote any more, and is being removed.
    Removing,
    /// The leader has asked its successor to campaign.
    Transferring,
    /// Objects are being fetched.
    Fetching,
    /// An operator has paused the operation.
    Paused,
    /// The operation has done what it was for.
    Done,
    /// An operator has cancelled the operation: the shard keeps the replicas that it had.
    Cancelled,
    /// Another decision has taken the place of the operation.
    Superseded,
    /// The shard's leader is to write the split into the shard's log, or has done so and is to report it.
    Splitting,
    /// The right shard is to give its keys up, or has done so, and the left one is to take them over.
    Merging,
    /// The shards are not merged: the right one is to get its keys back, if it had given them up.
    Aborting,
}

impl OperationPhase {
    /// Every phase.
    pub const ALL: [Self; 16] = [
        Self::Waiting,
        Self::ReceivingSnapshot,
        Self::CatchingUp,
        Self::CaughtUp,
        Self::Promoting,
        Self::Demoting,
        Self::Removing,
        Self::Transferring,
        Self::Fetching,
        Self::Paused,
        Self::Done,
        Self::Cancelled,
        Self::Superseded,
        Self::Splitting,
        Self::Merging,
        Self::Aborting,
    ];

    /// Its name, the same in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::ReceivingSnapshot => "receiving_snapshot",
            Self::CatchingUp => "catching_up",
            Self::CaughtUp => "caught_up",
            Self::Promoting => "promoting",
            Self::Demoting => "demoting",
            Self::Removing => "removing",
            Self::Transferring => "transferring",
            Self::Fetching => "fetching",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Splitting => "splitting",
            Self::Merging => "merging",
            Self::Aborting => "aborting",
        }
    }
}

impl fmt::Display for OperationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
