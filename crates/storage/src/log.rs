//! The interface of a node's durable Raft log: entries, hard state, replica lifecycle and checkpoint
//! pointers.

use std::{io, sync::Arc};

use flotilla_types::{Checkpoint, Entry, HardState, LogIndex, NodeId, ReplicaId, ShardId, Term, WalSequence};

/// The log failed. After an error from [`Log::write`] it is unknown what is durable: stop the node.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The disk failed or is full. After a write the state is unknown: stop the node.
    #[error("the log could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// Stored bytes are not what was written, or a write does not fit the log. The replica must be
    /// abandoned. Replica 0 when it is not known whose bytes they are.
    #[error("the log of replica {replica} is damaged: {reason}")]
    Corrupt {
        /// The replica.
        replica: ReplicaId,
        /// What is wrong.
        reason: &'static str,
    },
    /// The entries were truncated after a checkpoint. State is unchanged; a snapshot is needed instead.
    #[error("entries of {replica} up to {truncated} were truncated")]
    Compacted {
        /// The replica.
        replica: ReplicaId,
        /// The last truncated index.
        truncated: LogIndex,
    },
    /// The entries were never written. State is unchanged.
    #[error("{replica} has no entry {index}")]
    Missing {
        /// The replica.
        replica: ReplicaId,
        /// The first index that is not there.
        index: LogIndex,
    },
    /// The storage engine failed. Stop the node.
    #[error("the log engine failed: {0}")]
    Engine(Arc<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for LogError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// The log's state of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLog {
    /// The shard it belongs to.
    pub shard: ShardId,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The index and term of the last truncated entry; `(0, 0)` when nothing was truncated.
    pub truncated: (LogIndex, Term),
    /// The last entry in the log, or `truncated.0` when the log is empty.
    pub last: LogIndex,
    /// The durable checkpoint, from which the applied state is rebuilt.
    pub checkpoint: Checkpoint,
}

/// One replica's writes in a [`LogBatch`]. They take effect in the order of the fields, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaWrite {
    /// The replica.
    pub replica: ReplicaId,
    /// Create the replica in this shard. A new replica needs `checkpoint` and `truncate` as well.
    pub create: Option<ShardId>,
    /// Drop every entry, for a snapshot that replaces them. Needs `checkpoint` and `truncate` as well.
    pub clear: bool,
    /// Move the checkpoint pointer.
    pub checkpoint: Option<Checkpoint>,
    /// Truncate entries up to and including this index, whose term is given.
    pub truncate: Option<(LogIndex, Term)>,
    /// Entries to append; existing ones from the first one's index on are replaced.
    pub entries: Vec<Entry>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// Remove the replica and leave a tombstone: its id can never be created again.
    pub destroy: bool,
}

impl ReplicaWrite {
    /// An empty write.
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

/// The highest [`WalSequence`] that a peer has advertised as synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSequence {
    /// The peer.
    pub node: NodeId,
    /// Its sequence.
    pub sequence: WalSequence,
}

/// Whether a log still holds every batch that was synced to it, as far as that can be known when it is
/// opened.
///
/// The content of a restored copy does not show that it is old. An implementation may have other evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEvidence {
    /// Nothing that was synced is missing.
    Complete,
    /// Unknown. Peers must be asked.
    Unknown,
    /// Batches up to this sequence were synced, and the last ones are missing.
    WentBack {
        /// The last batch that was synced.
        synced: WalSequence,
    },
}

/// Writes of any number of replicas, written and fsynced together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The node-wide number of this batch, stored with it. Grows with every batch.
    pub sequence: WalSequence,
    /// The writes of each replica. A replica may appear more than once; its writes take effect in order.
    pub replicas: Vec<ReplicaWrite>,
    /// Sequences of peers, to detect later that a peer's log went backwards.
    pub peer_sequences: Vec<PeerSequence>,
}

/// A node's durable Raft log.
///
/// # Contract
/// - [`write`](Self::write) is atomic, and durable (fsynced) when it returns `Ok`. One caller at a time.
/// - Reads see every completed write, may run beside a write of *other* replicas, and never block for a disk
///   sync.
/// - After reopening, exactly the completed writes are there, except that a write in flight at the crash may
///   or may not be; [`recovered`](Self::recovered) returns the last sequence.
/// - A destroyed replica stays destroyed across restarts: [`is_tombstone`](Self::is_tombstone).
pub trait Log: Send + Sync + 'static {
    /// The sequence of the last batch found when the log was opened; zero for a new one.
    fn recovered(&self) -> WalSequence;

    /// Whether the log that was opened is complete. Without evidence it stays [`LogEvidence::Unknown`] at
    /// every later opening, until [`set_complete`](Self::set_complete).
    fn evidence(&self) -> LogEvidence;

    /// Declares, durably, that the node answers for everything in this log: peers verified it, or what it
    /// lost was destroyed.
    fn set_complete(&self) -> Result<(), LogError>;

    /// The last written sequence of each peer.
    fn peer_sequences(&self) -> Vec<PeerSequence>;

    /// Every live replica with its state, ordered by replica id.
    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError>;

    /// Whether the replica with this id was destroyed.
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

    /// Writes and fsyncs a batch.
    fn write(&self, batch: LogBatch) -> Result<(), LogError>;

    /// Reclaims disk space of truncated entries. Called every few seconds from a background thread; may do
    /// nothing. Returns replicas that hold back space and should truncate soon, after a checkpoint if need
    /// be.
    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError>;
}
