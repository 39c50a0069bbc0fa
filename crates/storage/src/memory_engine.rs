//! An in-memory state engine, for simulators and tests.
//!
//! Objects stand for the disk: [`MemoryEngine::reopen`] keeps synced ones and loses everything else. The
//! formats of runs and chunks are private, so its checkpoints can be installed only in another
//! `MemoryEngine`.
//!
//! Invariants: a replica's records are its base overlaid by the frozen and then the active memtable; an
//! object is deleted when the last holder that named it lets go of it. It models neither a slow disk nor a
//! stale view; reads that must not wait for a disk fail as often as [`MemoryEngine::set_misses`] says.

mod compaction;
mod scrub;
mod split;
mod store;
mod uploads;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, KeyRange, LogIndex, ObjectId, ObjectRef, Position, ReplicaId,
};
use parking_lot::{Mutex, RwLock};

use self::{
    compaction::{Compacted, Named},
    split::GivenUp,
    store::{Pins, Store},
};
use crate::{
    CompactionDue, DamagedReplica, EngineError, Fold, FoldCounts, KeyRanges, ScanBounds, ScanPage, Scrubbed, SplitOff,
    StateEngine, StateReader, Usage, Value, WriteSet,
    records::{self, Memtable, Records},
};

/// An in-memory state engine. Clones share the contents.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngine {
    store: Arc<Mutex<Store>>,
    replicas: Arc<RwLock<HashMap<ReplicaId, Arc<Replica>>>>,
    misses: Arc<Misses>,
    folds: Arc<Mutex<FoldCounts>>,
}

/// Decides which reads miss. The same reads in the same order miss each time.
#[derive(Debug, Default)]
struct Misses {
    percent: AtomicU32,
    reads: AtomicU64,
}

impl Misses {
    fn draw(&self) -> Result<(), EngineError> {
        let percent = self.percent.load(Ordering::Relaxed);
        if percent == 0 {
            return Ok(());
        }
        // The finaliser of SplitMix64 (Steele et al., 2014) spreads the count.
        let mut mixed = self.reads.fetch_add(1, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (mixed ^ (mixed >> 31)) % 100 < u64::from(percent) { Err(EngineError::NotInMemory) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    state: RwLock<State>,
    misses: Arc<Misses>,
}

/// A replica's records at one time.
#[derive(Debug)]
struct Snapshot {
    records: Replica,
    /// The replica, and how often its records had been replaced.
    of: (Arc<Replica>, u64),
    _pins: Vec<Arc<Pins>>,
}

#[derive(Debug, Clone)]
struct State {
    open: bool,
    /// Counts replacements of all records.
    replaced: u64,
    checkpoint: Checkpoint,
    checkpoint_bytes: u64,
    /// The tables of the checkpoint.
    named: Named,
    /// The checkpoint that was built last, until it is installed.
    built: Option<Built>,
    base: Records,
    frozen: Option<Frozen>,
    active: Memtable,
    pinned: Option<Pinned>,
    /// What the records refer to, of the active memtable and of the frozen one; also those that were replaced.
    active_pins: Vec<Arc<Pins>>,
    frozen_pins: Vec<Arc<Pins>>,
    compacted: Option<Compacted>,
    /// The keys that splits have left to the replica since it was opened.
    keys: KeyRanges,
}

/// A fold, and the records as of its entry.
#[derive(Debug, Clone)]
struct Pinned {
    fold: Fold,
    records: Records,
    /// The keys that it had.
    keys: KeyRanges,
    _pins: Vec<Arc<Pins>>,
}

#[derive(Debug, Clone)]
struct Built {
    checkpoint: Checkpoint,
    named: Named,
    /// Whether it names what was compacted.
    uses_compacted: bool,
    /// The first checkpoint of the new replica, if this is one of a split.
    split: Option<Checkpoint>,
}

#[derive(Debug, Clone)]
struct Frozen {
    records: Memtable,
    position: Position,
    system: Bytes,
    split: Option<GivenUp>,
}

impl MemoryEngine {
    /// The engine after a crash: a copy with synced objects only and no open replica, which later changes to
    /// `self` do not affect.
    #[must_use]
    pub fn reopen(&self) -> Self {
        let store = self.store.lock().reopen();
        Self {
            store: Arc::new(Mutex::new(store)),
            replicas: Arc::default(),
            misses: self.misses.clone(),
            folds: Arc::default(),
        }
    }

    /// How many percent of the reads that must not wait for a disk fail; at first none.
    pub fn set_misses(&self, percent: u32) {
        self.misses.percent.store(percent, Ordering::Relaxed);
    }

    /// Who holds objects here.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let mut holders: Vec<_> = self.store.lock().held.keys().copied().collect();
        holders.sort_unstable();
        holders
    }

    fn replica(&self, id: ReplicaId) -> Result<Arc<Replica>, EngineError> {
        self.replicas.read().get(&id).cloned().ok_or(EngineError::NotOpen(id))
    }
}

impl StateEngine for MemoryEngine {
    fn open(&self, id: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        let state = {
            let mut store = self.store.lock();
            let state = State {
                open: true,
                replaced: 0,
                base: store.load(id, checkpoint)?,
                checkpoint_bytes: store.size_bytes(checkpoint),
                named: Named::of(checkpoint),
                checkpoint: checkpoint.clone(),
                built: None,
                frozen: None,
                active: Memtable::default(),
                pinned: None,
                active_pins: Vec::new(),
                frozen_pins: Vec::new(),
                compacted: None,
                keys: KeyRanges::all(),
            };
            store.hold(Holder::Checkpoint(id), checkpoint.objects().collect());
            state
        };
        let mut replicas = self.replicas.write();
        if let Some(replica) = replicas.get(&id) {
            let mut current = replica.state.write();
            *current = State { replaced: current.replaced + 1, ..state };
        } else {
            replicas.insert(id, Arc::new(Replica { id, state: RwLock::new(state), misses: self.misses.clone() }));
        }
        Ok(())
    }

    fn install_snapshot(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.open(replica, checkpoint)?;
        self.hold(Holder::Receiver(replica), &[]);
        Ok(())
    }

    fn destroy(&self, id: ReplicaId) -> Result<(), EngineError> {
        if let Some(replica) = self.replicas.write().remove(&id) {
            let mut state = replica.state.write();
            state.open = false;
            state.base.clear();
            state.frozen = None;
            state.active = Memtable::default();
            (state.pinned, state.active_pins, state.frozen_pins) = (None, Vec::new(), Vec::new());
        }
        let mut store = self.store.lock();
        store.hold(Holder::Checkpoint(id), BTreeSet::new());
        store.hold(Holder::Receiver(id), BTreeSet::new());
        Ok(())
    }

    fn reader(&self, id: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(self.replica(id)?)
    }

    fn snapshot(&self, id: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        let replica = self.replica(id)?;
        let state = replica.state.read().clone();
        let (replaced, pins) = (state.replaced, state.all_pins(&mut self.store.lock()));
        let records = Replica { id, state: RwLock::new(state), misses: self.misses.clone() };
        Ok(Arc::new(Snapshot { records, of: (replica, replaced), _pins: pins }))
    }

    fn write(&self, id: ReplicaId, records: WriteSet, _applied: LogIndex) -> Result<(), EngineError> {
        let replica = self.replica(id)?;
        let mut state = replica.state.write();
        let refs: Vec<_> =
            records.iter().filter_map(|(_, value)| value.as_ref()).flat_map(|value| value.refs().ids()).collect();
        if !refs.is_empty() {
            let pins = self.store.lock().pin(refs);
            state.active_pins.push(pins);
        }
        state.active.write(records);
        Ok(())
    }

    fn usage(&self, id: ReplicaId) -> Usage {
        let Ok(replica) = self.replica(id) else { return Usage::default() };
        let state = replica.state.read();
        Usage {
            active_bytes: state.active.size_bytes(),
            frozen_bytes: state.frozen.as_ref().map_or(0, |frozen| frozen.records.size_bytes()),
            checkpoint_bytes: state.checkpoint_bytes,
        }
    }

    fn freeze(&self, id: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError> {
        Ok(self.replica(id)?.state.write().freeze(position, system, None))
    }

    fn freeze_split(
        &self,
        id: ReplicaId,
        position: Position,
        system: Bytes,
        split: SplitOff,
    ) -> Result<bool, EngineError> {
        Ok(self.replica(id)?.state.write().freeze(position, system, Some(split)))
    }

    fn built_split(&self, id: ReplicaId) -> Option<Checkpoint> {
        self.replica(id).ok()?.state.read().built.as_ref()?.split.clone()
    }

    fn build(&self, id: ReplicaId, format: CheckpointFormat) -> Result<Checkpoint, EngineError> {
        let replica = self.replica(id)?;
        let mut state = replica.state.write();
        let Some(frozen) = &state.frozen else { return Ok(state.checkpoint.clone()) };
        let mut store = self.store.lock();
        let of_both = frozen.split.as_ref().map_or(&state.keys, |split| &split.of_both);
        let compacted = state.compacted.as_ref().filter(|compacted| compacted.is_usable_at(frozen.position.index));
        let compacted = compacted.and_then(|compacted| compacted.apply(&mut store, id, &state.named, of_both));
        let uses_compacted = compacted.is_some();
        let mut named = compacted.unwrap_or_else(|| state.named.clone());
        // Only those can refer to objects, and have clips.
        let needs_manifests = !frozen.records.refs().is_empty() || frozen.split.is_some();
        let format = if needs_manifests { CheckpointFormat::Manifests } else { format };
        if format > named.tables.format() {
            named.tables = store.with_manifests(id, &named.tables)?;
        }
        if !frozen.records.is_empty() {
            store.put_run(&mut named.tables, &frozen.records);
            named.run_ends.push(frozen.position.index);
        }
        let split = frozen.split.as_ref().map(|split| store.put_split(id, split, &named)).transpose()?;
        if split.is_some() {
            named = store.clipped(id, &named, &state.keys)?;
        }
        let system = store.put_system(&frozen.system);
        let checkpoint = Checkpoint { position: frozen.position.clone(), system, tables: named.tables.clone() };
        let split_objects = split.iter().flat_map(Checkpoint::objects);
        store.hold_too(Holder::Checkpoint(id), checkpoint.objects().chain(split_objects));
        state.built = Some(Built { checkpoint: checkpoint.clone(), named, uses_compacted, split });
        Ok(checkpoint)
    }

    fn install_checkpoint(&self, id: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        let replica = self.replica(id)?;
        let mut state = replica.state.write();
        if let Some(frozen) = state.frozen.take() {
            let State { base, keys, .. } = &mut *state;
            frozen.records.apply_to(base);
            if frozen.split.is_some() {
                base.retain(|key, _| keys.contains(key));
            }
        }
        state.frozen_pins.clear();
        let mut store = self.store.lock();
        state.checkpoint_bytes = store.size_bytes(checkpoint);
        state.checkpoint = checkpoint.clone();
        let built = state.built.take().filter(|built| built.checkpoint == *checkpoint);
        let uses_compacted = built.as_ref().is_some_and(|built| built.uses_compacted);
        state.named = built.map_or_else(|| Named::of(checkpoint), |built| built.named);
        // Used by this checkpoint, or overtaken.
        let named = state.named.clone();
        let keys = state.keys.clone();
        state.compacted.take_if(|made| uses_compacted || made.apply(&mut store, id, &named, &keys).is_none());
        store.hold_checkpoint(id, &state);
        Ok(())
    }

    fn pin_fold(&self, id: ReplicaId, fold: Fold) -> Result<(), EngineError> {
        let replica = self.replica(id)?;
        let mut state = replica.state.write();
        let (mut records, _pins) = (state.records(), state.all_pins(&mut self.store.lock()));
        let keys = state.keys.clone();
        if !keys.is_all() {
            records.retain(|key, _| keys.contains(key));
        }
        let before = state.pinned.replace(Pinned { fold, records, keys, _pins });
        self.folds.lock().skipped += u64::from(before.is_some());
        Ok(())
    }

    fn compaction_due(&self, id: ReplicaId) -> CompactionDue {
        let Ok(replica) = self.replica(id) else { return CompactionDue::default() };
        let state = replica.state.read();
        state.compaction_due(&self.store.lock())
    }

    fn compact(&self, id: ReplicaId, folding: Folding, is_stopped: &dyn Fn() -> bool) -> Result<bool, EngineError> {
        let replica = self.replica(id)?;
        let mut state = replica.state.write();
        if is_stopped() {
            return Ok(false);
        }
        let mut store = self.store.lock();
        let Some(compacted) = state.compact(&mut store, id, folding)? else { return Ok(false) };
        self.folds.lock().made += u64::from(matches!(compacted, Compacted::Folded { .. }));
        store.hold_too(Holder::Checkpoint(id), compacted.objects().into_iter());
        state.compacted = Some(compacted);
        state.built.iter_mut().for_each(|built| built.uses_compacted = false);
        Ok(true)
    }

    fn logged_base(&self, id: ReplicaId) -> Option<(LogIndex, ObjectId)> {
        self.replica(id).ok()?.state.read().checkpoint.logged_base()
    }

    fn fold_counts(&self) -> FoldCounts {
        *self.folds.lock()
    }

    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError> {
        checkpoint.system.map_or_else(|| Ok(Bytes::new()), |object| self.object(object))
    }

    fn hold(&self, holder: Holder, objects: &[ObjectId]) {
        self.store.lock().hold(holder, objects.iter().copied().collect());
    }

    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        self.store.lock().missing(objects)
    }

    fn missing_or_damaged(&self, objects: &[ObjectId]) -> Result<Vec<ObjectId>, EngineError> {
        Ok(self.store.lock().missing_or_damaged(objects))
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.store.lock().get(object)
    }

    fn object_bytes(&self, object: ObjectId) -> Option<u64> {
        let store = self.store.lock();
        store.objects.get(&object).filter(|_| store.has(object)).map(|object| object.bytes.len() as u64)
    }

    fn expect(&self, objects: &[ObjectId]) {
        self.store.lock().expect(objects);
    }

    fn piece_refs(&self, piece: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
        Ok(records::decode(piece)?.refs().to_vec())
    }

    fn import(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        if ObjectId::of(&bytes) != object {
            return Err(EngineError::Mismatch(object));
        }
        self.store.lock().put(bytes, children, false);
        Ok(())
    }

    fn scrub(&self, bytes_max: u64) -> Result<Scrubbed, EngineError> {
        Ok(self.store.lock().scrub(bytes_max))
    }

    fn damaged(&self) -> Vec<DamagedReplica> {
        self.store.lock().damaged()
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.store.lock().sync();
        Ok(())
    }

    fn close(&self) -> Result<(), EngineError> {
        self.sync()
    }
}

impl StateReader for Replica {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let state = self.state.read();
        if !state.open {
            return Err(EngineError::NotOpen(self.id));
        }
        let frozen = || state.frozen.as_ref().and_then(|frozen| frozen.records.get(key));
        let found = state.active.get(key).or_else(frozen);
        Ok(found.cloned().unwrap_or_else(|| state.base.get(key).cloned()).map(Value::into_bytes))
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let state = self.state.read();
        if !state.open {
            return Err(EngineError::NotOpen(self.id));
        }
        let memtables = [Some(&state.active), state.frozen.as_ref().map(|frozen| &frozen.records)];
        Ok(records::scan(memtables.into_iter().flatten(), &state.base, range, items_max, bytes_max))
    }

    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.misses.draw()?;
        self.get(key)
    }

    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.misses.draw()?;
        self.scan_page(range, bounds)
    }
}

impl Snapshot {
    fn check_open(&self) -> Result<(), EngineError> {
        let (replica, replaced) = &self.of;
        let state = replica.state.read();
        if state.open && state.replaced == *replaced { Ok(()) } else { Err(EngineError::NotOpen(replica.id)) }
    }
}

impl StateReader for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.check_open()?;
        self.records.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.check_open()?;
        self.records.scan(range, items_max, bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Epoch, ShardDescriptor, ShardId, Term};

    use super::*;
    use crate::Manifest;

    fn checkpoint() -> Checkpoint {
        let descriptor = ShardDescriptor {
            shard: ShardId(1),
            range: KeyRange::all(),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let position =
            Position { index: LogIndex(0), term: Term(0), conf: Arc::default(), descriptor: Arc::new(descriptor) };
        Checkpoint::empty(position)
    }

    fn flush(engine: &MemoryEngine, replica: ReplicaId, key: &'static str) -> Checkpoint {
        engine.write(replica, vec![(Bytes::from(key), Some(key.into()))], LogIndex(1)).unwrap();
        assert!(engine.freeze(replica, checkpoint().position, Bytes::from(key)).unwrap());
        let built = engine.build(replica, CheckpointFormat::Manifests).unwrap();
        engine.install_checkpoint(replica, &built).unwrap();
        engine.compact(replica, Folding::Local, &|| false).unwrap();
        built
    }

    #[test]
    fn memory_engine_passes_the_conformance_suite() {
        for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
            let mut engine = MemoryEngine::default();
            crate::conformance::state_engine(format, &mut || {
                engine = engine.reopen();
                Box::new(engine.clone())
            });
        }
    }

    #[test]
    fn memory_engine_passes_the_suite_of_references() {
        let mut engine = MemoryEngine::default();
        crate::conformance::references(&mut || {
            engine = engine.reopen();
            Box::new(engine.clone())
        });
    }

    #[test]
    fn memory_engine_passes_the_suite_of_value_objects() {
        let mut engine = MemoryEngine::default();
        crate::conformance::value_objects(|| {
            engine = engine.reopen();
            engine.clone()
        });
    }

    #[test]
    fn what_rotted_before_a_restart_counts_as_damaged_once_it_is_asked_for() {
        let engine = MemoryEngine::default();
        let parts = [&b"one"[..], b"another"].map(|part| (ObjectId::of(part), Bytes::from_static(part)));
        let ids = parts.each_ref().map(|(id, _)| *id);
        for (id, bytes) in parts {
            engine.import_part(id, bytes, &[]).unwrap();
        }
        StateEngine::sync(&engine).unwrap();
        let engine = engine.reopen();
        engine.rot(ids[0]);
        assert_eq!(engine.missing(&ids), []);
        assert_eq!(engine.missing_or_damaged(&ids).unwrap(), [ids[0]]);
        assert_eq!(engine.missing(&ids), [ids[0]]);
        engine.rot(ids[1]);
        assert_eq!(engine.missing_or_damaged(&ids).unwrap(), [ids[0]], "it was read since the start");
    }

    #[test]
    fn memory_engine_passes_the_suite_of_folds() {
        let (mut first, mut second) = (MemoryEngine::default(), MemoryEngine::default());
        let reopen = |engine: &mut MemoryEngine| -> Box<dyn StateEngine> {
            *engine = engine.reopen();
            Box::new(engine.clone())
        };
        crate::conformance::folds(&mut || reopen(&mut first), &mut || reopen(&mut second));
    }

    #[test]
    fn memory_engine_passes_the_suite_of_the_scrub() {
        for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
            crate::conformance::scrub(format, &MemoryEngine::default(), MemoryEngine::rot);
        }
    }

    #[test]
    fn reads_that_must_not_wait_miss_as_often_as_set() {
        let engine = MemoryEngine::default();
        engine.open(ReplicaId(1), &checkpoint()).unwrap();
        let reader = engine.reader(ReplicaId(1)).unwrap();
        let misses = |percent| {
            engine.set_misses(percent);
            (0..1_000).filter(|_| matches!(reader.get_in_memory(b"a"), Err(EngineError::NotInMemory))).count()
        };
        assert_eq!((misses(0), misses(100)), (0, 1_000));
        assert!((150..350).contains(&misses(25)));
    }

    /// Of an object of a checkpoint whose records refer to nothing.
    fn children(engine: &MemoryEngine, object: ObjectId) -> Vec<ObjectId> {
        let manifest = Manifest::decode(engine.object(object).unwrap());
        manifest.map(|manifest| manifest.children()).unwrap_or_default()
    }

    #[test]
    fn checkpoints_can_be_installed_in_another_engine() {
        let (source, target) = (MemoryEngine::default(), MemoryEngine::default());
        source.open(ReplicaId(1), &checkpoint()).unwrap();
        let mut built = flush(&source, ReplicaId(1), "a");
        for key in ["b", "c", "d", "e", "f", "g"] {
            built = flush(&source, ReplicaId(1), key);
        }
        let (base, runs) = store::base_and_runs(&built.tables);
        assert!(!base.is_empty() && !runs.is_empty(), "both kinds of table are transferred");
        let objects: Vec<_> = built.objects().collect();
        // First the manifests, then the pieces.
        for _ in 0..2 {
            assert!(target.install_snapshot(ReplicaId(2), &built).is_err());
            for object in target.missing(&objects) {
                target.import(object, source.object(object).unwrap(), &children(&source, object)).unwrap();
            }
        }
        target.install_snapshot(ReplicaId(2), &built).unwrap();
        let all = |engine: &MemoryEngine, id| engine.reader(id).unwrap().scan(&KeyRange::all(), 99, 9_999).unwrap();
        assert_eq!(all(&source, ReplicaId(1)), all(&target, ReplicaId(2)));
        assert_eq!(target.system(&built).unwrap(), "g");
    }

    #[test]
    fn unsynced_imports_do_not_survive_a_crash() {
        let engine = MemoryEngine::default();
        let objects = [ObjectId::of(b"synced"), ObjectId::of(b"unsynced")];
        engine.import(objects[0], Bytes::from_static(b"synced"), &[]).unwrap();
        engine.sync().unwrap();
        engine.import(objects[1], Bytes::from_static(b"unsynced"), &[]).unwrap();
        assert_eq!(engine.missing(&objects), []);
        assert_eq!(engine.reopen().missing(&objects), [objects[1]]);
    }

    #[test]
    fn unreferenced_objects_are_deleted() {
        let engine = MemoryEngine::default();
        engine.open(ReplicaId(1), &checkpoint()).unwrap();
        let first = flush(&engine, ReplicaId(1), "a");
        let held = ObjectId::of(b"b");
        flush(&engine, ReplicaId(1), "b");
        assert!(engine.object(first.system.unwrap()).is_err(), "the next checkpoint has its own");
        for object in first.tables.objects() {
            assert!(engine.object(object).is_ok(), "the next checkpoint names it as well");
        }
        let offer = Holder::Offer { from: ReplicaId(1), to: ReplicaId(2) };
        engine.hold(offer, &[held]);
        flush(&engine, ReplicaId(1), "c");
        assert!(engine.object(held).is_ok(), "while it is held");
        engine.hold(offer, &[]);
        assert!(engine.object(held).is_err());
    }
}
