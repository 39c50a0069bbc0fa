//! The durable Raft log of a node: entries, hard state, replica lifecycle and the checkpoint pointer.

use std::{io, sync::Arc};

use flotilla_types::{Checkpoint, Entry, HardState, LogIndex, NodeId, ReplicaId, ShardId, Term, WalSequence};

/// The log failed. After an error from [`Log::write`] nothing may be assumed about what is durable: the node stops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The disk failed or is full. State is unknown; stop the node.
    #[error("the log could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// Stored bytes are not what was written. The replica must be quarantined.
    #[error("the log of replica {replica} is damaged: {reason}")]
    Corrupt {
        /// Whose log.
        replica: ReplicaId,
        /// What does not fit.
        reason: &'static str,
    },
    /// The entries were truncated behind a checkpoint. State is unchanged; a snapshot is needed instead.
    #[error("entries of {replica} up to {truncated} are behind its checkpoint")]
    Compacted {
        /// Whose log.
        replica: ReplicaId,
        /// The last truncated index.
        truncated: LogIndex,
    },
    /// The entries were never written. State is unchanged.
    #[error("{replica} has no entry {index}")]
    Missing {
        /// Whose log.
        replica: ReplicaId,
        /// The first index that is not there.
        index: LogIndex,
    },
    /// The engine refused for a reason of its own. Stop the node.
    #[error("the log engine failed: {0}")]
    Engine(Arc<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for LogError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// What the log knows of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLog {
    /// The shard it belongs to.
    pub shard: ShardId,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The last entry that is no longer in the log: its index and term. `(0, 0)` when nothing was truncated.
    pub truncated: (LogIndex, Term),
    /// The last entry in the log, or `truncated.0` when the log is empty.
    pub last: LogIndex,
    /// What the applied state rests on.
    pub checkpoint: Checkpoint,
}

/// One replica's share of a [`LogBatch`]. The parts take effect in the order of the fields, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaWrite {
    /// Whose log.
    pub replica: ReplicaId,
    /// Create the replica: it belongs to this shard. Must come with `checkpoint` and `truncate` when the replica is new.
    pub create: Option<ShardId>,
    /// Drop every entry, for a snapshot that replaces them. The batch then carries `checkpoint` and `truncate`.
    pub clear: bool,
    /// Move the checkpoint pointer.
    pub checkpoint: Option<Checkpoint>,
    /// Forget entries up to this index (included), whose term is given.
    pub truncate: Option<(LogIndex, Term)>,
    /// Entries to append; those at or behind the first one's index are replaced.
    pub entries: Vec<Entry>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// Remove the replica and leave a tombstone: its id can never be created again.
    pub destroy: bool,
}

impl ReplicaWrite {
    /// A write that does nothing yet.
    #[must_use]
    pub fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            create: None,
            clear: false,
            checkpoint: None,
            truncate: None,
            entries: Vec::new(),
            hard_state: None,
            destroy: false,
        }
    }
}

/// The highest [`WalSequence`] that a node was heard to have synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeMark {
    /// The node that said so.
    pub node: NodeId,
    /// What it said.
    pub sequence: WalSequence,
}

/// Work of any number of replicas, written and fsynced together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The node-wide number of this batch; stored with it. Grows with every batch.
    pub sequence: WalSequence,
    /// Each replica's share. A replica may appear more than once; shares take effect in order.
    pub replicas: Vec<ReplicaWrite>,
    /// What peers said of themselves, remembered for the day they come back with less.
    pub marks: Vec<NodeMark>,
}

/// A node's durable Raft log.
///
/// # Contract
/// - [`write`](Self::write) is atomic, and durable (fsynced) when it returns `Ok`. One caller at a time.
/// - Reads see every completed write, may run beside a write of *other* replicas, and never block for a disk sync.
/// - After reopening, exactly the completed writes are there, except that a write under way at the crash may or may
///   not be; [`recovered`](Self::recovered) says how far.
/// - A destroyed replica stays destroyed across restarts: [`is_tombstone`](Self::is_tombstone).
pub trait Log: Send + Sync + 'static {
    /// The sequence of the last batch found when the log was opened; zero for a new one.
    fn recovered(&self) -> WalSequence;

    /// What peers had said of themselves, as last written.
    fn marks(&self) -> Vec<NodeMark>;

    /// Every live replica with what the log knows of it, ordered by replica id.
    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError>;

    /// Whether this id belonged to a replica that was destroyed.
    fn is_tombstone(&self, replica: ReplicaId) -> bool;

    /// Entries `from..to`, as many as fit in `bytes_max` (sum of [`Entry::size_bytes`]) but at least one.
    fn entries(
        &self,
        replica: ReplicaId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError>;

    /// The term of an entry in the log, or of the last truncated one.
    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError>;

    /// Writes and fsyncs.
    fn write(&self, batch: LogBatch) -> Result<(), LogError>;

    /// Gives disk space of truncated entries back. Called every few seconds from a background thread; may do nothing.
    /// Returns replicas that hold back space and should checkpoint and truncate soon.
    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError>;
}
