//! A simulated disk: log and objects in memory, with injected failures.
//!
//! Completed writes are durable. A write in flight at a crash happens as a whole or not at all: on a real
//! disk the log's checksums ensure that, and its conformance tests check it. Damage is what a checksum
//! detects: reads of damaged entries and objects fail with the typed error of the real stores.

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;
use flotilla_storage::{
    CompactionDue, DamagedReplica, EngineError, Fold, FoldCounts, Log, LogBatch, LogError, LogEvidence, MemoryEngine,
    MemoryLog, PeerSequence, ReplicaLog, ScanBounds, ScanPage, Scrubbed, SplitOff, StateEngine, StateReader, Usage,
    WriteSet,
};
use flotilla_types::{
    Checkpoint, CheckpointFormat, Entry, Folding, Holder, KeyRange, LogIndex, ObjectId, ObjectRef, Position, ReplicaId,
    Term, WalSequence,
};
use parking_lot::Mutex;

use crate::flaws::Flaws;

/// The injected failures of a disk.
#[derive(Debug, Clone, Default)]
struct Damage {
    /// Entries that no longer match their checksum: first and last, both included.
    entries: BTreeMap<ReplicaId, (LogIndex, LogIndex)>,
    /// Checkpoints cannot be written.
    full: bool,
    /// Objects can be neither read nor written, and log entries cannot be read.
    broken: bool,
    /// An operation has failed because the disk is broken.
    met_io_error: bool,
}

/// A node's disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    /// Changes of what was written that nothing explains.
    pub(crate) flaws: Flaws,
    log: MemoryLog,
    engine: MemoryEngine,
    damage: Arc<Mutex<Damage>>,
}

impl Disk {
    /// The disk as found after a crash, or a copy of it at this moment.
    pub(crate) fn reopen(&self) -> Self {
        self.reopen_with(LogEvidence::Complete)
    }

    /// The same, with other evidence about the log.
    pub(crate) fn reopen_with(&self, evidence: LogEvidence) -> Self {
        let damage = Damage { met_io_error: false, ..self.damage.lock().clone() };
        let (log, engine) = (self.log.reopen_with(evidence), self.engine.reopen());
        Self { flaws: self.flaws.clone(), log, engine, damage: Arc::new(Mutex::new(damage)) }
    }

    /// Whether the node finds damage when it opens its log.
    pub(crate) fn is_log_damaged(&self) -> bool {
        let damage = self.damage.lock();
        let still_there = |(replica, (_, to)): (&ReplicaId, &(LogIndex, LogIndex))| {
            self.log.replicas().is_ok_and(|all| all.iter().any(|(id, log)| id == replica && log.truncated.0 < *to))
        };
        damage.entries.iter().any(still_there)
    }

    /// How many percent of the reads miss memory.
    pub(crate) fn set_misses(&self, percent: u32) {
        self.engine.set_misses(percent);
    }

    /// Damages entries of a replica, both ends included.
    pub(crate) fn damage_entries(&self, replica: ReplicaId, from: LogIndex, to: LogIndex) {
        self.damage.lock().entries.insert(replica, (from, to));
    }

    /// Reads records although the disk is broken.
    pub(crate) fn records(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        self.engine.reader(replica)
    }

    /// Damages an object. Nobody knows before something reads it.
    pub(crate) fn damage_object(&self, object: ObjectId) {
        self.engine.rot(object);
    }

    /// The objects that a checkpoint needs.
    pub(crate) fn needed_by(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        self.engine.needed(checkpoint)
    }

    /// Objects that a checkpoint needs and that are damaged, found or not.
    pub(crate) fn rotten_in(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        self.engine.rotten_in(checkpoint)
    }

    /// Those of these objects, and of all below them, that are not here or not durable.
    pub(crate) fn not_durable(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        self.engine.not_durable(objects)
    }

    /// Who holds objects here.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        self.engine.holders()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.damage.lock().full
    }

    /// Whether checkpoints and pulled objects fail for lack of space.
    pub(crate) fn set_full(&self, full: bool) {
        self.damage.lock().full = full;
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.damage.lock().broken
    }

    /// Whether every operation on objects and every read of log entries fails with an I/O error.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.damage.lock().broken = broken;
    }

    /// Whether an operation on objects has failed with an I/O error since the disk was opened.
    pub(crate) fn met_io_error(&self) -> bool {
        self.damage.lock().met_io_error
    }

    /// Objects that a checkpoint names and the disk does not have, damaged or not.
    pub(crate) fn missing_from(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        self.engine.absent(checkpoint)
    }

    fn check_io(&self) -> Result<(), EngineError> {
        let mut damage = self.damage.lock();
        damage.met_io_error |= damage.broken;
        if damage.broken { Err(io::Error::other("a simulated I/O error").into()) } else { Ok(()) }
    }

    fn check_space(&self) -> Result<(), EngineError> {
        if self.is_full() { Err(io::Error::from(io::ErrorKind::StorageFull).into()) } else { Ok(()) }
    }
}

impl Log for Disk {
    fn recovered(&self) -> WalSequence {
        self.log.recovered()
    }

    fn evidence(&self) -> LogEvidence {
        self.log.evidence()
    }

    fn set_complete(&self) -> Result<(), LogError> {
        self.log.set_complete()
    }

    fn peer_sequences(&self) -> Vec<PeerSequence> {
        self.log.peer_sequences()
    }

    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        self.log.replicas()
    }

    fn is_tombstone(&self, replica: ReplicaId) -> bool {
        self.log.is_tombstone(replica)
    }

    fn entries(
        &self,
        replica: ReplicaId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        if self.is_broken() {
            // Not every reader of the log acts on an error at once, as the recovery handshake of a start does
            // not.
            return Err(io::Error::other("a simulated I/O error").into());
        }
        let entries = self.log.entries(replica, from, to, bytes_max)?;
        let damaged = self.damage.lock().entries.get(&replica).copied();
        match damaged {
            Some((first, last)) if entries.iter().any(|entry| first <= entry.index && entry.index <= last) => {
                Err(LogError::Corrupt { replica, reason: "a simulated bit flip" })
            }
            _ => Ok(entries),
        }
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        self.log.term(replica, index)
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        self.log.write(batch)
    }

    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        self.log.reclaim()
    }
}

impl StateEngine for Disk {
    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.check_io()?;
        self.engine.open(replica, checkpoint)
    }

    fn install_snapshot(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.check_io()?;
        self.engine.install_snapshot(replica, checkpoint)
    }

    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError> {
        self.engine.destroy(replica)
    }

    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(Arc::new(Reader { disk: self.clone(), records: self.engine.reader(replica)? }))
    }

    fn snapshot(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(Arc::new(Reader { disk: self.clone(), records: self.engine.snapshot(replica)? }))
    }

    fn write(&self, replica: ReplicaId, mut records: WriteSet, applied: LogIndex) -> Result<(), EngineError> {
        self.flaws.apply_to(replica, &self.log, &mut records);
        StateEngine::write(&self.engine, replica, records, applied)
    }

    fn usage(&self, replica: ReplicaId) -> Usage {
        self.engine.usage(replica)
    }

    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError> {
        self.engine.freeze(replica, position, system)
    }

    fn freeze_split(
        &self,
        replica: ReplicaId,
        position: Position,
        system: Bytes,
        split: SplitOff,
    ) -> Result<bool, EngineError> {
        self.engine.freeze_split(replica, position, system, split)
    }

    fn built_split(&self, replica: ReplicaId) -> Option<Checkpoint> {
        self.engine.built_split(replica)
    }

    fn build(&self, replica: ReplicaId, format: CheckpointFormat) -> Result<Checkpoint, EngineError> {
        self.check_io()?;
        self.check_space()?;
        self.engine.build(replica, format)
    }

    fn install_checkpoint(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.check_io()?;
        self.engine.install_checkpoint(replica, checkpoint)
    }

    fn pin_fold(&self, replica: ReplicaId, fold: Fold) -> Result<(), EngineError> {
        self.engine.pin_fold(replica, fold)
    }

    fn compaction_due(&self, replica: ReplicaId) -> CompactionDue {
        self.engine.compaction_due(replica)
    }

    fn logged_base(&self, replica: ReplicaId) -> Option<(LogIndex, ObjectId)> {
        self.engine.logged_base(replica)
    }

    fn fold_counts(&self) -> FoldCounts {
        self.engine.fold_counts()
    }

    fn compact(
        &self,
        replica: ReplicaId,
        folding: Folding,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, EngineError> {
        self.check_io()?;
        self.check_space()?;
        self.engine.compact(replica, folding, is_stopped)
    }

    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError> {
        self.check_io()?;
        self.engine.system(checkpoint)
    }

    fn hold(&self, holder: Holder, objects: &[ObjectId]) {
        self.engine.hold(holder, objects);
    }

    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        self.engine.missing(objects)
    }

    fn missing_or_damaged(&self, objects: &[ObjectId]) -> Result<Vec<ObjectId>, EngineError> {
        self.check_io()?;
        self.engine.missing_or_damaged(objects)
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.check_io()?;
        self.engine.object(object)
    }

    fn expect(&self, objects: &[ObjectId]) {
        self.engine.expect(objects);
    }

    fn piece_refs(&self, piece: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
        self.engine.piece_refs(piece)
    }

    fn import(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        self.check_io()?;
        self.check_space()?;
        self.engine.import(object, bytes, children)
    }

    fn scrub(&self, bytes_max: u64) -> Result<Scrubbed, EngineError> {
        self.check_io()?;
        self.engine.scrub(bytes_max)
    }

    fn damaged(&self) -> Vec<DamagedReplica> {
        self.engine.damaged()
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.check_io()?;
        self.engine.sync()
    }

    fn close(&self) -> Result<(), EngineError> {
        self.engine.close()
    }
}

/// Reads records from a disk that may break.
struct Reader {
    disk: Disk,
    records: Arc<dyn StateReader>,
}

impl StateReader for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.disk.check_io()?;
        self.records.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.disk.check_io()?;
        self.records.scan(range, items_max, bytes_max)
    }

    // A broken disk does not harm what is in memory.
    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.records.get_in_memory(key)
    }

    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.records.scan_page_in_memory(range, bounds)
    }
}
