//! The interface of the state engine: the applied records of every replica on a node, and their checkpoints.

use std::{io, sync::Arc};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, KeyRange, LogIndex, ObjectId, ObjectRef, Position, ReplicaId,
};

use crate::{Value, middle};

/// The state engine failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The disk failed or is full. Applied state in memory is intact; [`remedy`](crate::remedy) says what
    /// follows.
    #[error("the state could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// An fsync failed, now or earlier, so what is durable is unknown. The engine refuses all work: end the
    /// node.
    #[error("an fsync of the state failed, so what is durable is unknown; check the disk: {0}")]
    Unsynced(Arc<io::Error>),
    /// An object that a checkpoint names is missing or does not match its hash. The replica must fetch it
    /// from a peer.
    #[error("object {0} is missing or damaged")]
    Object(ObjectId),
    /// Bytes offered as an object do not match its hash. Nothing was stored; fetch it from another peer.
    #[error("the bytes offered for object {0} do not match its hash")]
    Mismatch(ObjectId),
    /// The replica is not open. State is unchanged.
    #[error("replica {0} is not open")]
    NotOpen(ReplicaId),
    /// Stored bytes do not parse. The replica must be rebuilt from a peer.
    #[error("the state of replica {replica} is damaged: {reason}")]
    Corrupt {
        /// The replica.
        replica: ReplicaId,
        /// What is wrong.
        reason: &'static str,
    },
    /// The engine's view, its index of the checkpoints' records, failed; the next start can rebuild it.
    #[error("the view failed: {0}")]
    View(Arc<dyn std::error::Error + Send + Sync>),
    /// The record is not in memory. Only reads that must not wait for the disk fail so: repeat them where
    /// waiting is allowed.
    #[error("the record is not in memory")]
    NotInMemory,
}

impl From<io::Error> for EngineError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// Records to write; `None` deletes. Later writes of a key win. The objects that a value refers to are kept as
/// long as something has the record.
pub type WriteSet = Vec<(Bytes, Option<Value>)>;

/// Says which objects an object needs that a reference of at least one level names. Fails unless the object is what
/// the reference says.
pub type ListRefs = fn(&ObjectRef, &Bytes) -> Result<Vec<ObjectRef>, &'static str>;

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

impl Usage {
    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.checkpoint_bytes.saturating_add((self.active_bytes + self.frozen_bytes) as u64)
    }
}

/// A fold that the log of a shard orders: the base becomes the live records as of one entry, so all replicas
/// make the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fold {
    /// That entry: the one that orders the fold.
    pub index: LogIndex,
    /// Average size of the pieces of the base, in bytes.
    pub piece_bytes: u32,
}

/// What is to be done with the tables of a replica's checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionDue {
    /// [`StateEngine::compact`] has something to do, whoever decides about folds.
    pub compact: bool,
    /// The runs are large enough to be folded into the base, or clips hide much of the tables; and no fold is pinned
    /// or made. Its pieces would have this average size, in bytes.
    pub fold: Option<u32>,
    /// Tables were made that no checkpoint names yet.
    pub made: bool,
}

/// What a replica gives up when its shard is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitOff {
    /// The first key that it gives up. It keeps those of [`KeyRange::internal`], which the new replica gets as well.
    pub at: Bytes,
    /// The position of the new replica's first checkpoint.
    pub position: Position,
    /// The own state of the new replica's state machine.
    pub system: Bytes,
}

/// Folds that the logs of shards have ordered, since the engine was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoldCounts {
    /// Folds whose base was made.
    pub made: u64,
    /// Folds that were given up, because a newer one came first, or their view held too much for too long.
    pub skipped: u64,
}

/// Where a page of a scan ends. Each bound is at least 1.
#[derive(Debug, Clone, Copy)]
pub struct ScanBounds {
    /// Records in the page.
    pub items_max: usize,
    /// Bytes of keys and values, besides the last record.
    pub bytes_max: usize,
    /// Records to examine, deleted ones included: what the page costs.
    pub examined_max: usize,
}

/// A page of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Records in key order.
    pub items: Vec<(Bytes, Bytes)>,
    /// Where the next page starts; `None` at the end of the range. A page without records may have one.
    pub next: Option<Bytes>,
    /// Records that were examined, deleted ones included.
    pub examined: usize,
}

/// The applied records of one replica, readable from any thread during writes.
pub trait StateReader: Send + Sync {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Records of a range in key order, from its start. Stops after `items_max` records or once `bytes_max`
    /// bytes (keys and values) are collected, whichever is first, but returns at least one record if there is
    /// one. Sees each write set completely or not at all.
    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// As [`scan`](Self::scan), but also ends after so many records, deleted ones included: a page costs no
    /// more however many records of the range were deleted. This implementation is for readers that keep
    /// nothing of deleted records.
    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let items = self.scan(range, bounds.items_max.min(bounds.examined_max), bounds.bytes_max)?;
        let next = items.last().map(|(last, _)| successor(last));
        Ok(ScanPage { examined: items.len(), items, next })
    }

    /// As [`get`](Self::get), but never waits for a disk: fails with [`EngineError::NotInMemory`] instead.
    /// This implementation is for readers that keep every record in memory.
    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.get(key)
    }

    /// As [`scan_page`](Self::scan_page), but never waits for a disk: fails with
    /// [`EngineError::NotInMemory`] instead. This implementation is for readers that keep every record in
    /// memory.
    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.scan_page(range, bounds)
    }

    /// A key of a range, not the first one that has a record, with about half of the bytes of the range's records
    /// before it; `None` if there are fewer than two. This implementation reads them all.
    fn middle(&self, range: &KeyRange) -> Result<Option<Bytes>, EngineError> {
        middle::of_records(self, range)
    }
}

/// A reader that never waits for a disk: its reads fail with [`EngineError::NotInMemory`] instead.
pub struct InMemory<'a>(pub &'a dyn StateReader);

impl StateReader for InMemory<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get_in_memory(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(self.scan_page(range, ScanBounds { items_max, bytes_max, examined_max: usize::MAX })?.items)
    }

    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.0.scan_page_in_memory(range, bounds)
    }
}

/// What a call of [`StateEngine::scrub`] has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that were found damaged: they count as missing from now on.
    pub damaged: Vec<ObjectId>,
    /// Objects that the disk failed to read: they stay as they are.
    pub unreadable: Vec<ObjectId>,
    /// Bytes that this pass has visited, and bytes to visit in all. Both include what needs no reading.
    pub progress_bytes: (u64, u64),
    /// Whether this was the last step of the pass.
    pub ended: bool,
}

/// A replica that needs objects which are damaged. It goes on from its memtable and its other objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedReplica {
    /// The replica.
    pub replica: ReplicaId,
    /// Some of the objects, at most [`DAMAGED_NAMED_MAX`].
    pub objects: Vec<ObjectId>,
}

/// Objects that a [`DamagedReplica`] names.
pub const DAMAGED_NAMED_MAX: usize = 16;

/// The first key after this one.
#[must_use]
pub fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The applied records of every replica on a node.
///
/// # The life of a record
/// A checkpoint names tables: a *base* (the compacted level) and *runs* (more recent writes). A compaction
/// merges runs, or *folds* them into the base.
///
/// 1. [`write`](Self::write) puts the record into the replica's memtable, in memory only.
/// 2. When the host decides to checkpoint, the apply thread calls [`freeze`](Self::freeze).
/// 3. A background thread calls [`build`](Self::build), which writes the frozen records as a run object
///    (fsynced, pinned).
/// 4. The host makes the returned [`Checkpoint`] durable in the log.
/// 5. The background thread calls [`install_checkpoint`](Self::install_checkpoint): readers now find the
///    records in the checkpoint, the frozen memtable is dropped, and objects that no checkpoint names any
///    more are released.
/// 6. When [`compaction_due`](Self::compaction_due) says so, a background thread calls
///    [`compact`](Self::compact). The next checkpoint that is built names the merged tables.
///
/// # Folds that the log orders
/// [`pin_fold`](Self::pin_fold) keeps a view of the records as of the entry that orders the fold; writes and
/// checkpoints go on. Once a later memtable is installed, `compact` makes the base of that view. A checkpoint
/// at that entry or a later one names it, in place of every table whose records are all from before; a run that
/// has later records too stays above it, and has the newest version of each of its keys. A replica that is
/// opened from an earlier checkpoint meets the entry again; one whose records are replaced, or that is opened
/// from a later checkpoint, skips the fold. So the base, if there is one, is a function of the log alone.
///
/// # Splits
/// [`freeze_split`](Self::freeze_split) freezes the memtable where the log splits the shard. The checkpoint that is
/// built of it and the first one of the new replica name the same tables, each with clips of its own, so that no
/// record is copied. A fold that was pinned before is clipped when a checkpoint names its base; one pinned after has
/// the records of the replica alone, so its base is still a function of the log. A replica that is opened from an
/// earlier checkpoint meets the entry again. What clips hide takes space until both replicas have folded it away;
/// [`compaction_due`](Self::compaction_due) asks for that fold.
///
/// # Contract
/// - All calls are safe from any thread; calls that change one replica are made by one thread at a time,
///   except that `build` and `install_checkpoint` run beside `write` and reads, and `compact` beside all.
/// - Objects that the durable checkpoint of an open replica names are never deleted. Neither are objects built
///   since, until the next `install_checkpoint`, or objects that a holder named by [`hold`](Self::hold).
///   Holders are kept in memory only.
/// - After a crash the host first calls [`hold`](Self::hold) with the objects of the durable checkpoint of every
///   replica, for [`Holder::Checkpoint`]: replicas share objects, and opening is slow.
/// - After a crash the host calls [`open`](Self::open) with the durable checkpoint and then repeats all later
///   writes; the result equals a replica that never crashed.
pub trait StateEngine: Send + Sync + 'static {
    /// Opens a replica with the records of its durable checkpoint.
    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// Replaces the contents of an open (or new) replica by a snapshot's checkpoint, whose objects are all
    /// present and which is already durable in the log. Ends the hold of [`Holder::Receiver`].
    fn install_snapshot(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// Removes a replica: its memtable, its records in the view, its claim on objects, its hold as a receiver.
    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError>;

    /// A reader of the replica's records. It stays valid, and fails with [`EngineError::NotOpen`] after
    /// `destroy`.
    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError>;

    /// A reader of the replica's records as they are now: it sees no later write. It does not copy them, so
    /// it is quick. It keeps the memtables and the objects of this moment, however many checkpoints follow. Where
    /// [`snapshots_delay_checkpoints`](Self::snapshots_delay_checkpoints), keep it for the time of a read only. It
    /// fails with [`EngineError::NotOpen`] once the replica is destroyed or its records are replaced.
    fn snapshot(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError>;

    /// Whether [`install_checkpoint`](Self::install_checkpoint) waits until open snapshots are dropped.
    fn snapshots_delay_checkpoints(&self) -> bool {
        false
    }

    /// Applies records, visible to every reader at once. Memory only: bytes that are not shared are kept as
    /// they are, others may be copied. `applied` is the entry they come from.
    fn write(&self, replica: ReplicaId, records: WriteSet, applied: LogIndex) -> Result<(), EngineError>;

    /// Memory and disk that the replica takes now.
    fn usage(&self, replica: ReplicaId) -> Usage;

    /// Freezes the memtable at `position` and starts a new one. `system` is the state machine's own state at
    /// that position. Returns `false`, changing nothing, until the checkpoint of an earlier frozen memtable
    /// is installed. An empty memtable may be frozen too: a forced checkpoint moves the position.
    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError>;

    /// As [`freeze`](Self::freeze), where the shard is split: from now on the replica's records are those below
    /// `split.at` and those of [`KeyRange::internal`]. The host writes no others. Folds pinned from now on leave the
    /// others out; reads may still find them, until they are left out of the checkpoint that `build` makes. Copies no
    /// record.
    fn freeze_split(
        &self,
        replica: ReplicaId,
        position: Position,
        system: Bytes,
        split: SplitOff,
    ) -> Result<bool, EngineError>;

    /// The first checkpoint of the new replica, after [`build`](Self::build) has returned the one of the memtable that
    /// [`freeze_split`](Self::freeze_split) has frozen: the same tables, clipped to what the other gave up. `None`
    /// if that memtable was frozen otherwise. Its objects stay until the other's checkpoint is installed; hold them
    /// before.
    fn built_split(&self, replica: ReplicaId) -> Option<Checkpoint>;

    /// Writes the frozen memtable as objects and returns the checkpoint that names them, in this format or a
    /// later one that the replica's checkpoint has already. Slow: reads and writes disk. After an error the
    /// frozen memtable is still there, and `build` may be called again.
    fn build(&self, replica: ReplicaId, format: CheckpointFormat) -> Result<Checkpoint, EngineError>;

    /// Installs the checkpoint that `build` returned and that is now durable in the log: readers find its
    /// records there, and the frozen memtable and unneeded objects are dropped.
    fn install_checkpoint(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError>;

    /// Keeps a view of the records as of now for a fold, whose entry is the last one that was applied, in place
    /// of a fold that was pinned and has not begun. Memory only, and never waits. What views hold is bounded:
    /// one that is too old or too large is let go, and that fold is skipped.
    fn pin_fold(&self, replica: ReplicaId, fold: Fold) -> Result<(), EngineError>;

    /// What is to be done with the tables of the replica's checkpoint.
    fn compaction_due(&self, replica: ReplicaId) -> CompactionDue;

    /// Makes the base of a pinned fold, or else merges tables of the replica's checkpoint, for the next one that
    /// is built. With [`Folding::Local`] that may be a fold that no log has ordered. Very slow: reads and writes
    /// disk, and leaves time to others. Ends early once `is_stopped`, or when the records are replaced.
    /// Returns whether there is something for the next checkpoint.
    fn compact(&self, replica: ReplicaId, folding: Folding, is_stopped: &dyn Fn() -> bool)
    -> Result<bool, EngineError>;

    /// The base of the replica's checkpoint, if the log ordered it ([`Checkpoint::logged_base`]). Memory only.
    fn logged_base(&self, replica: ReplicaId) -> Option<(LogIndex, ObjectId)>;

    /// Folds so far.
    fn fold_counts(&self) -> FoldCounts;

    /// The state machine's own state in a checkpoint; empty when the checkpoint has none.
    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError>;

    /// Keeps these objects, and all that is below them, for a holder from now on, in place of those that it named
    /// before; none ends the hold. They need not be here yet: whatever of them is imported later is kept too.
    /// Memory only.
    fn hold(&self, holder: Holder, objects: &[ObjectId]);

    /// The objects that are not here, of these and of all below those that are. Others may not be durable before
    /// the next [`sync`](Self::sync). Memory only; takes time for each object.
    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId>;

    /// As [`missing`](Self::missing), but names those too that are damaged: reads what nobody has read since the
    /// engine was opened.
    fn missing_or_damaged(&self, objects: &[ObjectId]) -> Result<Vec<ObjectId>, EngineError>;

    /// These objects, and all that is below them, were here before a restart. Those that are absent count as
    /// [damaged](Self::damaged) for their holders until they are stored again. Memory only; takes time for each
    /// object.
    fn expect(&self, objects: &[ObjectId]);

    /// The references of the records in an object that is a piece of a table, ascending, each once. Fails unless
    /// it is one.
    fn piece_refs(&self, piece: &Bytes) -> Result<Vec<ObjectRef>, &'static str>;

    /// The bytes of an object, verified against its id.
    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError>;

    /// The length of an object that is here. Cheap: memory only where that suffices.
    fn object_bytes(&self, object: ObjectId) -> Option<u64> {
        self.object(object).ok().map(|bytes| bytes.len() as u64)
    }

    /// Stores an object from elsewhere after verifying its hash. `children` are the objects that it needs: they
    /// follow from its bytes and from what it is, which the caller knows. If it is here already, children that
    /// were not known are added. It may be deleted again unless a holder names it. Durable only after
    /// [`sync`](Self::sync).
    fn import(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError>;

    /// As [`import`](Self::import), for an object that an entry, a record or a list refers to: it is not read in
    /// part, and may be stored compressed.
    fn import_part(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        self.import(object, bytes, children)
    }

    /// The cluster's version says that no binary is in use any more that cannot read compressed objects. Memory only,
    /// and cheap.
    fn allow_compression(&self) {}

    /// Makes imported objects durable.
    fn sync(&self) -> Result<(), EngineError>;

    /// Reads the next stored objects, and verifies each against its id: at least one, and no more once
    /// `bytes_max` are read. The first call, and the first after a pass has ended, begins a pass over all. Reads
    /// the disk. After an error that is not final the call may be repeated.
    fn scrub(&self, bytes_max: u64) -> Result<Scrubbed, EngineError>;

    /// The replicas that need objects which were found damaged, by a scrub or by a read. Memory only, and
    /// cheap if there is none.
    fn damaged(&self) -> Vec<DamagedReplica>;

    /// Closes the engine cleanly: leaves its view, if it has one, in a state that the next start can trust.
    fn close(&self) -> Result<(), EngineError>;
}
