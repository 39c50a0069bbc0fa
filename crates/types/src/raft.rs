//! Plain Raft data without the types of any library. `consensus` converts them privately.

use bytes::Bytes;

use crate::{Checkpoint, LogIndex, ReplicaId, Term};

/// The kind of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Commands for the state machine, or nothing in the first entry of a leader's term.
    Normal,
    /// A change of the replica set.
    ConfChange,
    /// Another change of the shard, such as of its range; the change is the entry's context.
    Shard,
}

impl EntryKind {
    /// The kind of an entry that is no change of the replica set, by its payload and its tag.
    ///
    /// Logs and peers store no kind for them. An entry of kind [`Shard`](Self::Shard) has a payload that
    /// binaries which do not know this kind take for commands of a later version: they stop before it. All
    /// other entries mean the same to those binaries, whatever their tag.
    #[must_use]
    pub fn of_normal(data: &[u8], context: &[u8]) -> Self {
        if data == Entry::SHARD_DATA && !context.is_empty() { Self::Shard } else { Self::Normal }
    }
}

/// One log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: LogIndex,
    /// The term of the leader that proposed it.
    pub term: Term,
    /// Its kind.
    pub kind: EntryKind,
    /// The payload, in the format of the layer that proposed it.
    pub data: Bytes,
    /// A tag that the proposer attached. For changes of the replica set and of the shard: the change, in the
    /// encoding of `consensus`.
    pub context: Bytes,
}

impl Entry {
    /// The payload of every entry of kind [`EntryKind::Shard`]: the version that introduced it.
    pub const SHARD_DATA: &[u8] = &[3];

    /// The bytes that this entry counts for in bounds on logs and batches.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.len() + self.context.len() + 32
    }
}

/// The state that a replica must persist before it responds to any message (Raft §5.2, figure 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// The candidate voted for in that term, or [`ReplicaId::NONE`].
    pub vote: ReplicaId,
    /// The highest index known to be committed.
    pub commit: LogIndex,
}

/// A Raft configuration (joint consensus: Ongaro's dissertation, §4.3).
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

    /// Whether this is a joint configuration.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Every replica of the configuration, without duplicates, ascending.
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

/// The kinds of Raft messages between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Entries from the leader.
    Append,
    /// A follower's response to [`MessageKind::Append`].
    AppendResponse,
    /// A candidate requests a vote.
    RequestVote,
    /// The response to [`MessageKind::RequestVote`].
    RequestVoteResponse,
    /// A candidate asks whether it would get the vote (pre-vote, dissertation §9.6).
    RequestPreVote,
    /// The response to [`MessageKind::RequestPreVote`].
    RequestPreVoteResponse,
    /// The leader is alive; carries the contexts of read-index rounds (dissertation §6.4).
    Heartbeat,
    /// The response to [`MessageKind::Heartbeat`].
    HeartbeatResponse,
    /// A checkpoint in place of entries that the leader's log no longer has.
    Snapshot,
    /// The leader transfers leadership: a caught-up replica shall campaign at once (dissertation §3.10).
    TimeoutNow,
    /// A follower requests a read index from the leader.
    ReadIndex,
    /// The response to [`MessageKind::ReadIndex`].
    ReadIndexResponse,
    /// The leader's group is idle, and will send no heartbeats until something happens. `commit` is the last
    /// entry.
    Rest,
}

/// A message between two replicas of one group. Fields that a kind does not use are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The kind of the message.
    pub kind: MessageKind,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// Term of the entry at `index`.
    pub log_term: Term,
    /// The index that the entries follow, or that is acknowledged.
    pub index: LogIndex,
    /// Entries, for [`MessageKind::Append`].
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    pub commit: LogIndex,
    /// Term of the entry at `commit`.
    pub commit_term: Term,
    /// The checkpoint, for [`MessageKind::Snapshot`].
    pub snapshot: Option<Snapshot>,
    /// Whether the request was rejected.
    pub reject: bool,
    /// The index from which a rejecting follower suggests to continue.
    pub reject_hint: LogIndex,
    /// The context of a read-index round, or the kind of a campaign.
    pub context: Bytes,
    /// The priority of a candidate; zero here.
    pub priority: i64,
}

/// The payload of a snapshot message: the ids of the objects, never their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The checkpoint to install.
    pub checkpoint: Checkpoint,
}
