//! A replica at a glance, in plain data.

use flotilla_types::{ConfState, LogIndex, ReplicaId, Term};
use raft::StateRole;

/// What a replica does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows, or learns.
    Follower,
    /// Campaigns or asks whether it could.
    Candidate,
    /// Leads.
    Leader,
}

/// A follower as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// The follower.
    pub replica: ReplicaId,
    /// The last entry it is known to hold.
    pub matched: LogIndex,
    /// Whether it answered within the last election timeout.
    pub recently_active: bool,
    /// Whether it waits for a snapshot.
    pub in_snapshot: bool,
}

/// A replica at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// What it does.
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
    /// The configuration it runs under.
    pub conf: ConfState,
    /// Followers, when it leads.
    pub followers: Vec<Follower>,
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
