//! The status of a replica, as plain data.

use flotilla_types::{ConfState, LogIndex, ReplicaId, Term};
use raft::StateRole;

/// The current role of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader or waits for one; learners too.
    Follower,
    /// Campaigns, or runs a pre-vote.
    Candidate,
    /// Leads its group.
    Leader,
}

/// The replication progress of a follower, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// The follower.
    pub replica: ReplicaId,
    /// The last entry it is known to hold durably (raft-rs's `matched`).
    pub matched: LogIndex,
    /// Whether it responded within the last election timeout.
    pub recently_active: bool,
    /// Whether it waits for a snapshot.
    pub in_snapshot: bool,
}

/// The status of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows, or [`ReplicaId::NONE`].
    pub leader: ReplicaId,
    /// The last index known to be committed.
    pub commit: LogIndex,
    /// The last index in its log.
    pub last: LogIndex,
    /// The last index that is no longer in its log.
    pub truncated: LogIndex,
    /// Its current configuration.
    pub conf: ConfState,
    /// Its followers, if it leads; otherwise empty.
    pub followers: Vec<Follower>,
    /// The replica that it is transferring its leadership to.
    pub transfers_to: Option<ReplicaId>,
    /// Whether it rests: nobody has used its shard for a while.
    pub rests: bool,
}

impl Role {
    pub(crate) fn of(state: StateRole) -> Self {
        match state {
            StateRole::Leader => Self::Leader,
            StateRole::Follower => Self::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Self::Candidate,
        }
    }
}

impl Follower {
    pub(crate) fn of(id: u64, progress: &raft::Progress) -> Self {
        Self {
            replica: ReplicaId(id),
            matched: LogIndex(progress.matched),
            recently_active: progress.recent_active,
            in_snapshot: progress.state == raft::ProgressState::Snapshot,
        }
    }
}
