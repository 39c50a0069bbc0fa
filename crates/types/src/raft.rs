//! Plain Raft data, free of any library's types. `consensus` converts to and from its library privately.

use bytes::Bytes;

use crate::{Checkpoint, LogIndex, ReplicaId, Term};

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Commands for the state machine, or nothing when a new leader starts its term.
    Normal,
    /// A change of the replica set.
    ConfChange,
}

/// One log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: LogIndex,
    /// The term of the leader that made it.
    pub term: Term,
    /// What it carries.
    pub kind: EntryKind,
    /// The payload; the layer that proposed it knows the format.
    pub data: Bytes,
    /// A tag the proposer attached; for conf changes, the descriptor change in the host's format.
    pub context: Bytes,
}

impl Entry {
    /// Bytes this entry counts for in bounds on logs and batches.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.len() + self.context.len() + 32
    }
}

/// What a replica must not forget before it answers anyone (Raft §5.2, figure 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// The candidate voted for in that term, or [`ReplicaId::NONE`].
    pub vote: ReplicaId,
    /// The highest index known to be committed.
    pub commit: LogIndex,
}

/// The replica set that decides (joint consensus: Ongaro's dissertation, §4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Voters of the incoming (or only) configuration.
    pub voters: Vec<ReplicaId>,
    /// Voters of the outgoing configuration; empty unless the change is joint.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Replicas that receive the log and do not vote.
    pub learners: Vec<ReplicaId>,
    /// Voters that become learners when the joint configuration is left.
    pub learners_next: Vec<ReplicaId>,
}

impl ConfState {
    /// A configuration of voters only.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether the configuration names this replica in any role.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        [&self.voters, &self.voters_outgoing, &self.learners, &self.learners_next]
            .iter()
            .any(|set| set.contains(&replica))
    }

    /// Whether this replica has a vote, in either half of a joint configuration.
    #[must_use]
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// Whether a change is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Every replica named, once, in order.
    #[must_use]
    pub fn all(&self) -> Vec<ReplicaId> {
        let mut all: Vec<_> = [&self.voters, &self.voters_outgoing, &self.learners, &self.learners_next]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Kinds of Raft message that travel between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Entries from the leader.
    Append,
    /// A follower's answer to [`MessageKind::Append`].
    AppendResponse,
    /// A candidate asks for a vote.
    RequestVote,
    /// The answer to [`MessageKind::RequestVote`].
    RequestVoteResponse,
    /// A candidate asks whether it would get a vote (dissertation §9.6).
    RequestPreVote,
    /// The answer to [`MessageKind::RequestPreVote`].
    RequestPreVoteResponse,
    /// The leader is alive; carries read contexts (dissertation §6.4).
    Heartbeat,
    /// The answer to [`MessageKind::Heartbeat`].
    HeartbeatResponse,
    /// A checkpoint in place of entries the leader no longer has.
    Snapshot,
    /// The leader asks a caught-up replica to campaign at once (dissertation §3.10).
    TimeoutNow,
    /// A follower asks the leader for a read index.
    ReadIndex,
    /// The answer to [`MessageKind::ReadIndex`].
    ReadIndexResponse,
}

/// One message from replica to replica of one group. Fields that a kind does not use are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What kind of message this is.
    pub kind: MessageKind,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// Term of the entry at `index`.
    pub log_term: Term,
    /// The position that the entries follow, or that is acknowledged.
    pub index: LogIndex,
    /// Entries, for [`MessageKind::Append`].
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    pub commit: LogIndex,
    /// Term of the entry at `commit`.
    pub commit_term: Term,
    /// The checkpoint, for [`MessageKind::Snapshot`].
    pub snapshot: Option<Snapshot>,
    /// Whether the request was refused.
    pub reject: bool,
    /// Where a refusing follower suggests to go on.
    pub reject_hint: LogIndex,
    /// Read contexts, or the kind of a campaign.
    pub context: Bytes,
    /// Priority of a candidate.
    pub priority: i64,
}

/// What a snapshot message carries: the names of the objects, never their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The checkpoint to install.
    pub checkpoint: Checkpoint,
}
