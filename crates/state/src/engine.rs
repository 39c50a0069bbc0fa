//! The engine: the set of open replicas, and [`StateEngine`] implemented over memtables, objects and the
//! view.
//!
//! Invariant: one process opens a folder at a time, which a lock file ensures. Objects that the process finds
//! at its start are not garbage-collected until no replica was opened for a while: the engine cannot know
//! which replicas will be opened.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_failpoints::{Place, number};
use flotilla_objects::{ObjectStore, Scope, ScrubPass};
use flotilla_storage::{
    CompactionDue, DamagedReplica, EngineError, Fold, FoldCounts, Remedy, Scrubbed, SplitOff, StateEngine, StateReader,
    Usage, WriteSet, remedy,
};
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, LogIndex, ObjectId, ObjectRef, Position, ReplicaId,
};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock};

use crate::{
    Options, build,
    compact::{self, Compacted, Plan},
    failure::{self, ViewFailure},
    fold::{self, FOLD_TIME_MAX, FoldView},
    memtable::Frozen,
    piece,
    replica::{Attached, BuildInput, Reader, Replica},
    scrub,
    table::{Table, open_tables, total_bytes},
    view::View,
};

/// Checkpoints installed between two garbage collections: a checkpoint that only adds a run leaves little
/// garbage. A compaction triggers one too, and so do the values that were stored.
const INSTALLS_PER_COLLECTION: u32 = 16;

/// The state of every replica on a node, in one folder: objects in `objects`, the view in `view`.
#[derive(Debug)]
pub struct Engine {
    pub(crate) options: Options,
    pub(crate) objects: Arc<ObjectStore>,
    /// Bytes of values that were stored since the last collection.
    stored_bytes: AtomicU64,
    /// `None` after `close`.
    view: RwLock<Option<View>>,
    replicas: RwLock<HashMap<ReplicaId, Arc<Replica>>>,
    last_opened: Mutex<Instant>,
    installs: AtomicU32,
    folds: Mutex<FoldCounts>,
    /// Bytes of memtables that only folds need.
    pub(crate) fold_memory: Arc<AtomicUsize>,
    /// The pass of the scrub that is under way.
    pass: Mutex<Option<ScrubPass>>,
    _lock: File,
}

impl Engine {
    /// Opens the folder, creating it if it does not exist. A view that cannot be trusted or does not open is
    /// replaced by an empty one, which is filled again as replicas are opened. Fails with [`EngineError::Io`]
    /// when another process has the folder open.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, EngineError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir)?;
        if let Some(parent) = dir.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(std::io::Error::from)?;
        let objects = ObjectStore::open(dir.join("objects"), options.objects.clone()).map_err(failure::of_objects)?;
        let objects = Arc::new(objects);
        let view = View::open(dir, &options.view, &objects)?;
        Ok(Self {
            options,
            objects,
            stored_bytes: AtomicU64::new(0),
            view: RwLock::new(Some(view)),
            replicas: RwLock::default(),
            last_opened: Mutex::new(Instant::now()),
            installs: AtomicU32::new(0),
            folds: Mutex::default(),
            fold_memory: Arc::default(),
            pass: Mutex::default(),
            _lock: lock,
        })
    }

    fn view(&self) -> Result<View, EngineError> {
        self.view.read().clone().ok_or(ViewFailure::Closed.into())
    }

    pub(crate) fn replica(&self, replica: ReplicaId) -> Result<Arc<Replica>, EngineError> {
        self.replicas.read().get(&replica).cloned().ok_or(EngineError::NotOpen(replica))
    }

    /// Replaces a replica's records by those of a checkpoint. Existing readers stay valid.
    fn replace(&self, replica: ReplicaId, checkpoint: &Checkpoint, from_peer: bool) -> Result<(), EngineError> {
        let view = self.view()?;
        *self.last_opened.lock() = Instant::now();
        if let Some(absent) = self.first_absent(checkpoint, from_peer) {
            if !self.replica(replica).is_ok_and(|entry| entry.is_open()) {
                // Keeps the objects that are present, so that a retry need not fetch them again.
                self.objects.hold(Holder::Checkpoint(replica), checkpoint.objects());
            }
            return Err(failure::absent(&self.objects, absent));
        }
        self.objects.hold(Holder::Checkpoint(replica), checkpoint.objects());
        let entry = self.replicas.write().entry(replica).or_insert_with(|| Arc::new(Replica::new(replica))).clone();
        let mut work = entry.work.lock();
        entry.detach();
        *work = None;
        *entry.compacted.lock() = None;
        let tables = open_tables(&self.objects, replica, checkpoint)?;
        let loaded = view.load(replica, checkpoint, &tables, from_peer)?;
        entry.attach(
            Attached { checkpoint: checkpoint.clone(), bytes: self.bytes_of(checkpoint, &tables), tables },
            loaded,
        );
        Ok(())
    }

    /// The first object that a checkpoint needs and that is not durable here. What its records refer to counts for
    /// a snapshot only: the records of a replica's own checkpoint are of use without.
    fn first_absent(&self, checkpoint: &Checkpoint, from_peer: bool) -> Option<ObjectId> {
        let is_absent = |id: &ObjectId| !self.objects.contains(*id);
        if from_peer {
            return self.reachable(checkpoint.objects()).into_iter().find(is_absent);
        }
        let with_children = checkpoint.objects().flat_map(|id| [id].into_iter().chain(self.objects.children(id)));
        with_children.into_iter().find(is_absent)
    }

    /// Objects and all that is below them, each once.
    fn reachable(&self, objects: impl Iterator<Item = ObjectId>) -> BTreeSet<ObjectId> {
        let (mut queue, mut found): (Vec<_>, _) = (objects.collect(), BTreeSet::new());
        while let Some(id) = queue.pop() {
            if found.insert(id) {
                queue.extend(self.objects.children(id));
            }
        }
        found
    }

    /// Bytes of a checkpoint's tables and system state.
    fn bytes_of(&self, checkpoint: &Checkpoint, tables: &[Arc<Table>]) -> u64 {
        total_bytes(tables) + checkpoint.system.and_then(|id| self.objects.len_bytes(id)).unwrap_or(0)
    }

    /// Frees disk space. Fails if the disk did: any other failure is logged, and met again by the next
    /// collection.
    pub(crate) fn collect(&self) -> Result<(), EngineError> {
        self.objects.end_due_uploads(Instant::now());
        self.stored_bytes.store(0, Ordering::Relaxed);
        let grace = number(Place::ObjectsGrace).map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let settled = self.last_opened.lock().elapsed() >= grace.unwrap_or(self.options.inherited_grace);
        let scope = if settled { Scope::All } else { Scope::SinceOpen };
        match self.objects.collect(scope).map_err(failure::of_objects) {
            Ok(done) if done.segments > 0 => tracing::debug!(?done, "garbage-collected objects"),
            Ok(_) => {}
            Err(error) if remedy(&error) == Remedy::EndNode => return Err(error),
            Err(error) => tracing::warn!(%error, "garbage collection of objects failed"),
        }
        Ok(())
    }

    /// An object of a value was stored.
    pub(crate) fn count_stored(&self, bytes: &[u8]) {
        self.stored_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn is_collection_due(&self) -> bool {
        self.stored_bytes.load(Ordering::Relaxed) >= self.options.collection_bytes
    }

    fn skip_fold(&self) {
        self.folds.lock().skipped += 1;
    }

    /// The fold of a replica that waits, unless it has waited too long.
    fn waiting_fold(&self, replica: &Replica) -> Option<Arc<FoldView>> {
        let view = replica.waiting_fold()?;
        if view.age() <= self.options.fold_wait_max {
            return Some(view);
        }
        if replica.take_fold(&view) {
            tracing::debug!(replica = %replica.id, fold = %view.fold.index, "a fold has waited too long");
            self.skip_fold();
        }
        None
    }

    /// A memtable is installed. The fold that waits may still need it; together they must not hold too much.
    fn bound_fold_memory(&self, replica: &Replica, installed: Option<&Arc<Frozen>>) {
        let (Some(view), Some(installed)) = (replica.waiting_fold(), installed) else { return };
        let bytes_max = self.options.fold_memory_bytes_max;
        if !view.hold_alone(installed, &self.fold_memory, bytes_max) && replica.take_fold(&view) {
            tracing::debug!(replica = %replica.id, fold = %view.fold.index, "folds that wait hold too much memory");
            self.skip_fold();
        }
    }

    /// Makes the base of a fold that waits.
    fn fold(
        &self,
        replica: &Replica,
        view: &Arc<FoldView>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Option<Compacted>, EngineError> {
        if !replica.take_fold(view) {
            return Ok(None);
        }
        let began = Instant::now();
        let is_stopped = || is_stopped() || began.elapsed() > FOLD_TIME_MAX;
        replica.is_folding.store(true, Ordering::Relaxed);
        let done = fold::fold(&self.objects, &self.options, replica.id, view, &is_stopped);
        replica.is_folding.store(false, Ordering::Relaxed);
        match done {
            Ok(Some(_)) => self.folds.lock().made += 1,
            Ok(None) => self.skip_fold(),
            Err(EngineError::Object(id)) => {
                self.skip_fold();
                let BuildInput { attached, .. } = replica.build_input()?;
                if !attached.tables.iter().any(|table| table.needs(id)) {
                    // Only the view needs it.
                    return Ok(None);
                }
            }
            Err(_) => replica.put_back_fold(view.clone()),
        }
        done
    }

    fn detach_all(&self) {
        let replicas = std::mem::take(&mut *self.replicas.write());
        replicas.values().for_each(|replica| replica.detach());
    }
}

impl Drop for Engine {
    /// Readers may outlive the engine, but must not keep the view: otherwise the folder could not be opened
    /// again.
    fn drop(&mut self) {
        self.detach_all();
    }
}

impl StateEngine for Engine {
    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.replace(replica, checkpoint, false)?;
        self.expect(&checkpoint.objects().collect::<Vec<_>>());
        Ok(())
    }

    fn install_snapshot(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.replace(replica, checkpoint, true)?;
        self.objects.let_go(Holder::Receiver(replica));
        Ok(())
    }

    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError> {
        let view = self.view()?;
        let entry = self.replicas.write().remove(&replica);
        if let Some(entry) = entry {
            let mut work = entry.work.lock();
            entry.detach();
            *work = None;
            *entry.compacted.lock() = None;
        }
        self.objects.let_go(Holder::Checkpoint(replica));
        self.objects.let_go(Holder::Receiver(replica));
        view.clear(replica)
    }

    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        let replica = self.replica(replica)?;
        if !replica.is_open() {
            return Err(EngineError::NotOpen(replica.id));
        }
        Ok(Arc::new(Reader(replica)))
    }

    fn snapshot(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(Arc::new(self.replica(replica)?.snapshot()?))
    }

    fn snapshots_delay_checkpoints(&self) -> bool {
        self.view().is_ok_and(|view| view.waits_for_snapshots())
    }

    fn write(&self, replica: ReplicaId, records: WriteSet, _applied: LogIndex) -> Result<(), EngineError> {
        self.replica(replica)?.write(&self.objects, records)
    }

    fn usage(&self, replica: ReplicaId) -> Usage {
        self.replica(replica).map_or(Usage::default(), |replica| replica.usage())
    }

    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError> {
        self.replica(replica)?.freeze(position, system, None)
    }

    fn freeze_split(
        &self,
        replica: ReplicaId,
        position: Position,
        system: Bytes,
        split: SplitOff,
    ) -> Result<bool, EngineError> {
        self.replica(replica)?.freeze(position, system, Some(split))
    }

    fn built_split(&self, replica: ReplicaId) -> Option<Checkpoint> {
        let replica = self.replica(replica).ok()?;
        let work = replica.work.lock();
        work.as_ref()?.split.as_ref().map(|split| split.checkpoint.clone())
    }

    fn build(&self, replica: ReplicaId, format: CheckpointFormat) -> Result<Checkpoint, EngineError> {
        let replica = self.replica(replica)?;
        let mut work = replica.work.lock();
        let BuildInput { attached, frozen, keys, .. } = replica.build_input()?;
        let Some(frozen) = frozen else { return Ok(attached.checkpoint.clone()) };
        let is_usable = |compacted: &mut Compacted| compacted.is_usable_at(frozen.position.index);
        let compacted = replica.compacted.lock().take_if(is_usable);
        let format = format.max(attached.checkpoint.tables.format());
        let (id, before) = (replica.id, &attached.tables);
        let built = build::build(&self.objects, &self.options, id, format, before, &keys, &frozen, compacted.as_ref());
        let built = built.inspect_err(|_| {
            if let Some(compacted) = compacted {
                replica.compacted.lock().get_or_insert(compacted);
            }
        })?;
        if let Some(run) = &built.run {
            self.view()?.index(id, run)?;
        }
        let checkpoint = built.checkpoint.clone();
        *work = Some(built);
        Ok(checkpoint)
    }

    fn install_checkpoint(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        let replica = self.replica(replica)?;
        let mut work = replica.work.lock();
        let BuildInput { attached, frozen, view, keys, .. } = replica.build_input()?;
        let (Some(built), Some(frozen)) = (work.as_ref(), &frozen) else {
            // Installed before, or nothing was frozen: accepted when it changes nothing.
            let reason = "the checkpoint to install was not built";
            let unchanged = attached.checkpoint == *checkpoint;
            return if unchanged { Ok(()) } else { Err(EngineError::Corrupt { replica: replica.id, reason }) };
        };
        if built.checkpoint != *checkpoint {
            let reason = "the checkpoint to install is not the one that was built";
            return Err(EngineError::Corrupt { replica: replica.id, reason });
        }
        let view = if attached.checkpoint.tables == checkpoint.tables {
            view
        } else {
            self.view()?.advance(replica.id, frozen, built, &keys, || replica.wait_for_scans())?
        };
        let tables = built.tables.clone();
        let bytes = self.bytes_of(checkpoint, &tables);
        let attached = Attached { checkpoint: checkpoint.clone(), tables, bytes };
        let installed = replica.install_checkpoint(attached, view);
        self.bound_fold_memory(&replica, installed.as_ref());
        self.objects.hold(Holder::Checkpoint(replica.id), checkpoint.objects());
        let drops_tables = built.drops_tables;
        *work = None;
        drop(work);
        let is_turn = self.installs.fetch_add(1, Ordering::Relaxed).is_multiple_of(INSTALLS_PER_COLLECTION);
        if drops_tables || is_turn || self.is_collection_due() {
            self.collect()?;
        }
        Ok(())
    }

    fn pin_fold(&self, replica: ReplicaId, fold: Fold) -> Result<(), EngineError> {
        if self.replica(replica)?.pin_fold(fold)? {
            self.skip_fold();
        }
        Ok(())
    }

    fn compaction_due(&self, replica: ReplicaId) -> CompactionDue {
        let Ok(replica) = self.replica(replica) else { return CompactionDue::default() };
        let Ok(BuildInput { attached, .. }) = replica.build_input() else { return CompactionDue::default() };
        let (options, tables) = (&self.options, &attached.tables);
        let made = replica.compacted.lock().is_some();
        let view = self.waiting_fold(&replica);
        let is_folding = view.is_some() || replica.is_folding.load(Ordering::Relaxed);
        let fold = !made && !is_folding && compact::is_fold_due_for(options, tables);
        CompactionDue {
            compact: view.is_some_and(|view| view.is_ready())
                || (!made && compact::plan_for(options, tables, Folding::Logged).is_some()),
            fold: fold.then(|| u32::try_from(options.piece_bytes).unwrap_or(u32::MAX)),
            made,
        }
    }

    fn compact(
        &self,
        replica: ReplicaId,
        folding: Folding,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, EngineError> {
        let replica = self.replica(replica)?;
        let BuildInput { number, attached, .. } = replica.build_input()?;
        let is_stopped = || is_stopped() || !replica.is_attached_as(number);
        let view = self.waiting_fold(&replica);
        let done = match view.as_ref().filter(|view| view.is_ready()) {
            Some(view) => self.fold(&replica, view, &is_stopped)?,
            None if replica.compacted.lock().is_some() => return Ok(true),
            None => {
                let (format, tables) = (attached.checkpoint.tables.format(), &attached.tables);
                // A base that is made here may be later than the fold that waits.
                let folds = compact::plan_for(&self.options, tables, folding) == Some(Plan::Fold);
                if view.is_some() && folds {
                    return Ok(false);
                }
                compact::compact(&self.objects, &self.options, replica.id, format, tables, folding, &is_stopped)?
            }
        };
        let Some(compacted) = done else { return Ok(false) };
        // Here, so that the build that uses it has little to sync.
        self.objects.sync().map_err(failure::of_objects)?;
        if let Some(table) = compacted.table().filter(|_| !is_stopped()) {
            self.view()?.index(replica.id, table)?;
        }
        let mut waiting = replica.compacted.lock();
        let is_of_use = !is_stopped();
        *waiting = is_of_use.then_some(compacted);
        Ok(is_of_use)
    }

    fn logged_base(&self, replica: ReplicaId) -> Option<(LogIndex, ObjectId)> {
        self.replica(replica).ok()?.build_input().ok()?.attached.checkpoint.logged_base()
    }

    fn fold_counts(&self) -> FoldCounts {
        *self.folds.lock()
    }

    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError> {
        checkpoint.system.map_or(Ok(Bytes::new()), |id| self.object(id))
    }

    fn hold(&self, holder: Holder, objects: &[ObjectId]) {
        self.objects.hold(holder, objects.iter().copied());
    }

    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let healthy = self.objects.check_healthy().is_ok();
        self.reachable(objects.iter().copied())
            .into_iter()
            .filter(|id| !healthy || self.objects.len_bytes(*id).is_none())
            .collect()
    }

    fn missing_or_damaged(&self, objects: &[ObjectId]) -> Result<Vec<ObjectId>, EngineError> {
        Ok(self.objects.missing(objects).map_err(failure::of_objects)?.into_iter().collect())
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.objects.get(object).map_err(failure::of_objects)
    }

    fn object_bytes(&self, object: ObjectId) -> Option<u64> {
        self.objects.len_bytes(object)
    }

    fn expect(&self, objects: &[ObjectId]) {
        self.missing(objects).into_iter().for_each(|id| self.objects.expect(id));
    }

    fn piece_refs(&self, piece: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
        piece::refs_of(piece.clone())
    }

    fn import(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        self.objects.import(object, &bytes, children).map_err(failure::of_objects)?;
        self.objects.unpin(object);
        Ok(())
    }

    fn import_part(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        self.objects.import_compressible(object, &bytes, children).map_err(failure::of_objects)?;
        self.objects.unpin(object);
        self.count_stored(&bytes);
        Ok(())
    }

    fn allow_compression(&self) {
        self.objects.allow_compression();
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.objects.sync().map_err(failure::of_objects)?;
        if self.is_collection_due() { self.collect() } else { Ok(()) }
    }

    fn scrub(&self, bytes_max: u64) -> Result<Scrubbed, EngineError> {
        scrub::step(&self.objects, &mut self.pass.lock(), bytes_max)
    }

    fn damaged(&self) -> Vec<DamagedReplica> {
        scrub::damaged(&self.objects)
    }

    fn close(&self) -> Result<(), EngineError> {
        self.detach_all();
        let Some(view) = self.view.write().take() else { return Ok(()) };
        view.close()
    }
}
