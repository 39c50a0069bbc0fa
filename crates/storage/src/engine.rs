//! The applied records of every replica on a node, and the checkpoints they rest on.

use std::{io, sync::Arc};

use bytes::Bytes;
use flotilla_types::{Checkpoint, KeyRange, LogIndex, ObjectId, Position, ReplicaId};

/// The state engine failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The disk failed or is full. Applied state in memory is intact; the caller decides whether to stop.
    #[error("the state could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// An object that the checkpoint names is not there or does not match its hash. The replica needs it from a peer.
    #[error("object {0} is missing or damaged")]
    Object(ObjectId),
    /// Bytes offered as an object do not hash to its id. Nothing was stored; fetch it elsewhere.
    #[error("the bytes offered for object {0} are not that object")]
    Mismatch(ObjectId),
    /// The replica is not open. State is unchanged.
    #[error("replica {0} is not open")]
    NotOpen(ReplicaId),
    /// Stored bytes do not parse. The replica must be rebuilt from a peer.
    #[error("the state of replica {replica} is damaged: {reason}")]
    Corrupt {
        /// Whose state.
        replica: ReplicaId,
        /// What does not fit.
        reason: &'static str,
    },
    /// The engine's view of the checkpoints failed for a reason of its own; it can be rebuilt at the next start.
    #[error("the view failed: {0}")]
    View(Arc<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for EngineError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// Records to write; `None` deletes. Later writes of a key win.
pub type WriteSet = Vec<(Bytes, Option<Bytes>)>;

/// Memory and disk that one replica's records take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in the memtable that takes writes.
    pub active_bytes: usize,
    /// Bytes in the memtable that is being flushed.
    pub frozen_bytes: usize,
    /// Bytes in the objects of the current checkpoint.
    pub checkpoint_bytes: u64,
}

/// Applied records of one replica, readable from any thread while writes go on.
pub trait StateReader: Send + Sync {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Records of a range in key order, from its start. Stops after `items_max` items or once `bytes_max` bytes
    /// (keys and values) are collected, whichever is first, but returns at least one record if there is one.
    /// Sees each write set whole or not at all.
    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError>;
}

/// The applied records of every replica on a node.
///
/// # The life of a record
/// [`write`](Self::write) puts it into the replica's memtable, in memory only. When the host decides to checkpoint, the
/// apply thread calls [`freeze`](Self::freeze); a background thread calls [`build`](Self::build), which writes the frozen
/// records as a run object (fsynced, pinned) and may fold runs into base chunks; the host makes the returned
/// [`Checkpoint`] durable in the log; then the background thread calls [`settle`](Self::settle), after which readers find
/// the records in the checkpoint, drops the frozen memtable and lets go of objects that no checkpoint names any more.
///
/// # Contract
/// - All calls are safe from any thread; calls that change one replica are made by one thread at a time, except that
///   `build` and `settle` run beside `write` and reads.
/// - Objects that the durable checkpoint of an open replica names are never deleted. Neither are objects imported or
///   built since, until the next `settle`, `install`, `release` or restart.
/// - After a crash the host calls [`claim`](Self::claim) with the durable checkpoint of every replica before it works on any of
///   them: replicas share objects, and opening takes its time.
/// - After a crash the host calls [`open`](Self::open) with the durable checkpoint and then writes everything behind it
///   again; the result equals a replica that never crashed.
pub trait StateEngine: Send + Sync + 'static {
    /// The objects that a replica's durable checkpoint names are kept from now on; [`open`](Self::open) will follow. Memory only.
    fn claim(&self, replica: ReplicaId, checkpoint: &Checkpoint);

    /// Opens a replica with the records of its durable checkpoint.
    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// Replaces everything an open (or new) replica holds by a checkpoint whose objects are all present and that is
    /// already durable in the log.
    fn install(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// Forgets a replica: its memtable, its part of a view, its claim on objects.
    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError>;

    /// A reader of the replica's records. It stays valid, and fails with [`EngineError::NotOpen`] after `destroy`.
    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError>;

    /// Applies records at once for every reader. Memory only: bytes that nobody else holds are kept as they are, others may be
    /// copied. `applied` is the entry they come from.
    fn write(&self, replica: ReplicaId, records: WriteSet, applied: LogIndex) -> Result<(), EngineError>;

    /// What the replica takes at the moment.
    fn usage(&self, replica: ReplicaId) -> Usage;

    /// Closes the memtable at `position` and starts a new one. `system` is the state machine's own state at that position.
    /// Returns `false`, changing nothing, while an earlier frozen memtable is not settled. An empty memtable may be frozen
    /// too: a forced checkpoint moves the position.
    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError>;

    /// Writes what was frozen as objects and returns the checkpoint that names them. Slow: reads and writes disk.
    /// After an error the frozen memtable is still there and `build` may be called again.
    fn build(&self, replica: ReplicaId) -> Result<Checkpoint, EngineError>;

    /// The checkpoint returned by `build` is durable in the log: readers find its records there from now on, and what is no
    /// longer needed is dropped.
    fn settle(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// The state machine's own state that a checkpoint holds; empty when the checkpoint has none.
    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError>;

    /// The objects among these that this node does not hold. Each of those it holds gets a pin more, until `release`.
    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId>;

    /// The bytes of an object, verified against its id.
    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError>;

    /// Stores an object from a peer after verifying its hash, with a pin more until `release`. Durable only after
    /// [`sync`](Self::sync).
    fn import(&self, object: ObjectId, bytes: Bytes) -> Result<(), EngineError>;

    /// Makes imported objects durable.
    fn sync(&self) -> Result<(), EngineError>;

    /// Takes back one pin that `missing` or `import` set on each of these objects. Pins count: replicas share objects, and what
    /// one pull lets go of may be all that another one waits for.
    fn release(&self, objects: &[ObjectId]);

    /// The node stops cleanly: leaves a view, if there is one, in a state that the next start may trust.
    fn close(&self) -> Result<(), EngineError>;
}
