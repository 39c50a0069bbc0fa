//! One replica's records: memtables over its checkpoint's records, and reads while both change.
//!
//! # Why a scan sees each write set as a whole
//! Under one short lock a scan copies what it may need of the active memtable and takes handles on the frozen
//! one and on the checkpoint's view. Memtable copies, frozen memtables and objects never change, so that this
//! is a snapshot.
//!
//! Only sled's records do change, while `install_checkpoint` feeds it, and a gate separates feeding from
//! scans: a scan passes [`Replica::gate`] before its snapshot and leaves at its end; `install_checkpoint`
//! waits for earlier passes before it feeds. So any feeding that overlaps a scan began before the scan's
//! snapshot. At that time the fed memtable was still the frozen one, so it is in the snapshot and hides what
//! is fed. Whatever was fed completely before the snapshot is older than it; whatever is frozen after it is
//! fed only when the scan has ended. So the scan's result is the state at its snapshot.
//!
//! A get needs no such lock: it reads one key, and any value it finds was current at some moment during the
//! call. Neither may read a view that is being cleared: replacing a replica's records first closes it and
//! then waits for its readers.

//!
//! # Why a snapshot sees no later write
//! A snapshot keeps handles on the frozen memtable and on the view, as a scan does, and the version of the
//! active memtable. While it is registered in [`Tables::snapshots`], writes keep what they replace. When that
//! memtable is frozen, the snapshot gets a handle on it under the lock that its reads take. With sled it
//! holds a pass of the gate, so nothing is fed that it does not know.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::{
    EngineError, Fold, KeyRanges, ScanBounds, ScanPage, SplitOff, StateReader, Usage, Value, WriteSet, successor,
};
use flotilla_types::{Checkpoint, KeyRange, Position, ReplicaId};
use parking_lot::{Mutex, RwLock};

use crate::{
    build::Built,
    compact::Compacted,
    fold::FoldView,
    gate::{Gate, Pass},
    memtable::{Capture, Frozen, GivenUp, Memtable, Version},
    merge::{Merge, Source},
    middle, sorted,
    table::Table,
    view::{Reach, ReplicaView},
};

/// A replica, open or not. Readers hold it; after it is closed their reads fail.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    tables: RwLock<Option<Tables>>,
    /// Held shared by every read, and exclusively for a moment before the replica's records are replaced.
    view_lock: RwLock<()>,
    /// Passed by every scan and snapshot, and waited at before a frozen memtable is fed to sled.
    gate: Arc<Gate>,
    /// Serialises background changes of the replica, and holds the checkpoint that was built until it is
    /// installed.
    pub(crate) work: Mutex<Option<Built>>,
    /// What a compaction has made, until a build uses it.
    pub(crate) compacted: Mutex<Option<Compacted>>,
    /// The fold that waits for its turn.
    fold: Mutex<Option<Arc<FoldView>>>,
    /// Whether the base of a fold is being made.
    pub(crate) is_folding: AtomicBool,
    /// Counts how often the replica was opened, or its records replaced.
    attached: AtomicU64,
}

#[derive(Debug)]
struct Tables {
    /// The value of [`Replica::attached`] when they were made.
    number: u64,
    active: Memtable,
    frozen: Option<Arc<Frozen>>,
    view: ReplicaView,
    attached: Arc<Attached>,
    /// The keys that splits have left to the replica since then. Until the checkpoint of a split is installed, what is
    /// read may have others.
    keys: KeyRanges,
    /// Snapshots of the active memtable in the order of their versions. Those of the ends are open.
    snapshots: VecDeque<Weak<Pinned>>,
}

/// A checkpoint, opened.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) checkpoint: Checkpoint,
    /// Oldest first.
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) bytes: u64,
}

/// The active memtable as a snapshot sees it.
#[derive(Debug)]
pub(crate) struct Pinned {
    version: Version,
    /// Set when the memtable is frozen.
    frozen: OnceLock<Arc<Frozen>>,
}

impl Pinned {
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The memtable, once it is frozen.
    pub(crate) fn frozen(&self) -> Option<&Arc<Frozen>> {
        self.frozen.get()
    }
}

/// The input for building a checkpoint, or for compacting one.
#[derive(Debug)]
pub(crate) struct BuildInput {
    /// The value of [`Replica::attached`] when they were made.
    pub(crate) number: u64,
    pub(crate) attached: Arc<Attached>,
    pub(crate) frozen: Option<Arc<Frozen>>,
    pub(crate) view: ReplicaView,
    /// The keys of the replica after the frozen memtable.
    pub(crate) keys: KeyRanges,
}

impl Replica {
    pub(crate) fn new(id: ReplicaId) -> Self {
        Self {
            id,
            tables: RwLock::new(None),
            view_lock: RwLock::new(()),
            gate: Arc::default(),
            work: Mutex::new(None),
            compacted: Mutex::new(None),
            fold: Mutex::new(None),
            is_folding: AtomicBool::new(false),
            attached: AtomicU64::new(0),
        }
    }

    /// Starts serving the records of a checkpoint.
    pub(crate) fn attach(&self, attached: Attached, view: ReplicaView) {
        let tables = Tables {
            number: self.attached.fetch_add(1, Ordering::Relaxed),
            active: Memtable::default(),
            frozen: None,
            view,
            attached: Arc::new(attached),
            keys: KeyRanges::all(),
            snapshots: VecDeque::new(),
        };
        *self.tables.write() = Some(tables);
    }

    /// Stops serving, waits until no reader uses the view, and drops the memtables.
    pub(crate) fn detach(&self) {
        let tables = self.tables.write().take();
        *self.fold.lock() = None;
        drop(self.view_lock.write());
        drop(tables);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.tables.read().is_some()
    }

    /// Whether its records have not been replaced since.
    pub(crate) fn is_attached_as(&self, tables: u64) -> bool {
        self.tables.read().as_ref().is_some_and(|now| now.number == tables)
    }

    pub(crate) fn write(&self, objects: &Arc<ObjectStore>, records: WriteSet) -> Result<(), EngineError> {
        let values = records.iter().filter_map(|(_, value)| value.as_ref());
        let refs: Vec<_> = values.flat_map(|value| value.refs().ids()).collect();
        let refs = (!refs.is_empty()).then(|| sorted::Pinned::all(objects, refs));
        let mut tables = self.tables.write();
        let tables = tables.as_mut().ok_or(EngineError::NotOpen(self.id))?;
        let snapshots = tables.open_snapshots();
        refs.into_iter().for_each(|refs| tables.active.keep_refs(refs));
        tables.active.write(records, snapshots);
        Ok(())
    }

    /// The records as they are now.
    pub(crate) fn snapshot(self: Arc<Self>) -> Result<Snapshot, EngineError> {
        // Before the snapshot is taken, as in a scan.
        let pass = self.gate.enter();
        let mut tables = self.tables.write();
        let tables = tables.as_mut().ok_or(EngineError::NotOpen(self.id))?;
        Ok(Snapshot {
            tables: tables.number,
            pinned: tables.pin(),
            frozen: tables.frozen.clone(),
            view: tables.view.is_immutable().then(|| tables.view.clone()),
            replica: self.clone(),
            _pass: pass,
        })
    }

    /// Keeps a view of the records as they are now for a fold. Returns whether another one waited, which is let
    /// go.
    pub(crate) fn pin_fold(&self, fold: Fold) -> Result<bool, EngineError> {
        let view = {
            let mut tables = self.tables.write();
            let tables = tables.as_mut().ok_or(EngineError::NotOpen(self.id))?;
            let pinned = tables.pin();
            let keys = tables.keys.clone();
            FoldView::new(fold, tables.attached.clone(), keys, pinned, tables.frozen.clone())
        };
        let before = self.fold.lock().replace(Arc::new(view));
        Ok(before.is_some())
    }

    /// The fold that waits.
    pub(crate) fn waiting_fold(&self) -> Option<Arc<FoldView>> {
        self.fold.lock().clone()
    }

    /// Ends the wait of a fold: it begins, or is given up. `false` if it does not wait any more.
    pub(crate) fn take_fold(&self, view: &Arc<FoldView>) -> bool {
        self.fold.lock().take_if(|waiting| Arc::ptr_eq(waiting, view)).is_some()
    }

    /// Lets a fold that could not be made wait again, unless a newer one does.
    pub(crate) fn put_back_fold(&self, view: Arc<FoldView>) {
        self.fold.lock().get_or_insert(view);
    }

    pub(crate) fn usage(&self) -> Usage {
        self.tables.read().as_ref().map_or(Usage::default(), |tables| Usage {
            active_bytes: tables.active.bytes(),
            frozen_bytes: tables.frozen.as_ref().map_or(0, |frozen| frozen.bytes()),
            checkpoint_bytes: tables.attached.bytes,
        })
    }

    pub(crate) fn freeze(
        &self,
        position: Position,
        system: Bytes,
        split: Option<SplitOff>,
    ) -> Result<bool, EngineError> {
        let mut tables = self.tables.write();
        let tables = tables.as_mut().ok_or(EngineError::NotOpen(self.id))?;
        if tables.frozen.is_some() {
            return Ok(false);
        }
        let memtable = std::mem::take(&mut tables.active);
        let mut frozen = Frozen::new(memtable, position, system);
        if let Some(SplitOff { at, position, system }) = split {
            let (left, keys) = tables.keys.split_at(&at);
            let of_both = std::mem::replace(&mut tables.keys, left);
            frozen.split = Some(GivenUp { keys, of_both, position, system });
        }
        let frozen = Arc::new(frozen);
        for snapshot in tables.snapshots.drain(..).filter_map(|snapshot| snapshot.upgrade()) {
            snapshot.frozen.get_or_init(|| frozen.clone());
        }
        tables.frozen = Some(frozen);
        Ok(true)
    }

    pub(crate) fn build_input(&self) -> Result<BuildInput, EngineError> {
        let tables = self.tables.read();
        let tables = tables.as_ref().ok_or(EngineError::NotOpen(self.id))?;
        Ok(BuildInput {
            number: tables.number,
            attached: tables.attached.clone(),
            frozen: tables.frozen.clone(),
            view: tables.view.clone(),
            keys: tables.keys.clone(),
        })
    }

    /// Waits until every scan in progress and every open snapshot has ended; see the argument above.
    pub(crate) fn wait_for_scans(&self) {
        self.gate.wait_for_earlier();
    }

    /// Replaces the frozen memtable by the checkpoint that includes it, and returns it. To be dropped without a
    /// lock: freeing many records takes long.
    pub(crate) fn install_checkpoint(&self, attached: Attached, view: ReplicaView) -> Option<Arc<Frozen>> {
        let mut tables = self.tables.write();
        let tables = tables.as_mut()?;
        tables.view = view;
        tables.attached = Arc::new(attached);
        tables.frozen.take()
    }
}

impl Tables {
    /// The versions of the oldest and of the newest open snapshot of the active memtable.
    fn open_snapshots(&mut self) -> Option<(Version, Version)> {
        let snapshots = &mut self.snapshots;
        let oldest = loop {
            match snapshots.front()?.upgrade() {
                Some(open) => break open.version,
                None => snapshots.pop_front(),
            };
        };
        let newest = loop {
            match snapshots.back()?.upgrade() {
                Some(open) => break open.version,
                None => snapshots.pop_back(),
            };
        };
        Some((oldest, newest))
    }

    /// Pins the active memtable as it is now.
    fn pin(&mut self) -> Arc<Pinned> {
        let pinned = Arc::new(Pinned { version: self.active.version(), frozen: OnceLock::new() });
        self.open_snapshots();
        self.snapshots.push_back(Arc::downgrade(&pinned));
        pinned
    }

    /// What a read sees now.
    fn layers(&self) -> Layers<'_> {
        let Self { active, frozen, view, .. } = self;
        Layers { active, version: Version::LATEST, frozen: frozen.as_ref(), view }
    }
}

/// The layers of records that a read searches, newest first.
struct Layers<'a> {
    active: &'a Memtable,
    version: Version,
    frozen: Option<&'a Arc<Frozen>>,
    view: &'a ReplicaView,
}

impl Layers<'_> {
    /// What the memtables have under a key.
    fn find(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let in_frozen = || self.frozen.and_then(|frozen| frozen.get(key));
        let found = self.active.get_at(self.version, key).or_else(in_frozen)?;
        Some(found.map(Value::into_bytes))
    }

    /// Copies and takes handles on what a page needs.
    fn capture(&self, range: &KeyRange, bounds: ScanBounds) -> Captured {
        let active = self.active.capture(self.version, range, bounds);
        Captured { active, frozen: self.frozen.cloned(), view: self.view.clone() }
    }
}

/// The layers of a page, which do not change any more.
struct Captured {
    active: Capture,
    frozen: Option<Arc<Frozen>>,
    view: ReplicaView,
}

impl Captured {
    fn page(self, replica: ReplicaId, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let Self { active: Capture { records, end }, frozen, view } = self;
        let mut sources: Vec<Source<'_>> = vec![Box::new(records.into_iter().map(Ok))];
        if let Some(frozen) = &frozen {
            sources.push(Box::new(frozen.range(range).map(Ok)));
        }
        sources.push(view.records(replica, range, bounds.items_max));
        let (mut page, mut bytes) = (ScanPage::default(), 0);
        for record in Merge::new(sources) {
            let (key, value) = record?;
            if end.as_ref().is_some_and(|end| key >= *end) {
                page.next = end;
                return Ok(page);
            }
            page.examined += 1;
            let next = successor(&key);
            if let Some(value) = value {
                bytes += key.len() + value.len();
                page.items.push((key, value.into_bytes()));
            }
            let is_full = !page.items.is_empty() && (page.items.len() >= bounds.items_max || bytes >= bounds.bytes_max);
            if is_full || page.examined >= bounds.examined_max {
                page.next = Some(next);
                return Ok(page);
            }
        }
        page.next = end;
        Ok(page)
    }
}

fn all_items(items_max: usize, bytes_max: usize) -> ScanBounds {
    ScanBounds { items_max, bytes_max, examined_max: usize::MAX }
}

/// A reader; it may outlive the open replica.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Arc<Replica>);

impl Reader {
    fn find(&self, key: &[u8], reach: Reach) -> Result<Option<Bytes>, EngineError> {
        let replica = &self.0;
        let _view_lock = replica.view_lock.read();
        let view = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            if let Some(value) = tables.layers().find(key) {
                return Ok(value);
            }
            tables.view.clone()
        };
        view.get(replica.id, key, reach)
    }
}

impl StateReader for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.find(key, Reach::Disk)
    }

    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.find(key, Reach::Memory)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(self.scan_page(range, all_items(items_max, bytes_max))?.items)
    }

    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let replica = &self.0;
        let _view_lock = replica.view_lock.read();
        let _pass = replica.gate.enter();
        let captured = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            if range.is_empty() {
                return Ok(ScanPage::default());
            }
            tables.layers().capture(range, bounds)
        };
        captured.page(replica.id, range, bounds)
    }

    /// Reads the active memtable only: a frozen one may have to be sorted first, and a page of a checkpoint
    /// may need many blocks.
    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let is_in_memory = |tables: &Tables| tables.frozen.is_none() && tables.view.is_empty();
        if self.0.tables.read().as_ref().is_some_and(|tables| !is_in_memory(tables)) {
            return Err(EngineError::NotInMemory);
        }
        self.scan_page(range, bounds)
    }
}

/// The records of a replica at one time; it may outlive the open replica.
#[derive(Debug)]
pub(crate) struct Snapshot {
    replica: Arc<Replica>,
    /// The tables that it is of.
    tables: u64,
    pinned: Arc<Pinned>,
    /// The memtable that was frozen at that time.
    frozen: Option<Arc<Frozen>>,
    /// `None` for the current view, with sled: readers must not keep its folder open.
    view: Option<ReplicaView>,
    _pass: Pass,
}

impl Snapshot {
    /// Reads the layers under the lock of the tables.
    fn with_layers<T>(&self, read: impl FnOnce(&Layers<'_>) -> T) -> Result<T, EngineError> {
        let tables = self.replica.tables.read();
        let tables = tables.as_ref().filter(|tables| tables.number == self.tables);
        let tables = tables.ok_or(EngineError::NotOpen(self.replica.id))?;
        let active = self.pinned.frozen.get().map_or(&tables.active, |frozen| frozen.memtable());
        let view = self.view.as_ref().unwrap_or(&tables.view);
        Ok(read(&Layers { active, version: self.pinned.version, frozen: self.frozen.as_ref(), view }))
    }
}

impl StateReader for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let _view_lock = self.replica.view_lock.read();
        let found = self.with_layers(|layers| layers.find(key).ok_or_else(|| layers.view.clone()))?;
        found.or_else(|view| view.get(self.replica.id, key, Reach::Disk))
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(self.scan_page(range, all_items(items_max, bytes_max))?.items)
    }

    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let _view_lock = self.replica.view_lock.read();
        if range.is_empty() {
            return self.with_layers(|_| ScanPage::default());
        }
        self.with_layers(|layers| layers.capture(range, bounds))?.page(self.replica.id, range, bounds)
    }

    /// Reads nothing where the replica has many pieces.
    fn middle(&self, range: &KeyRange) -> Result<Option<Bytes>, EngineError> {
        let attached = self.replica.tables.read().as_ref().map(|tables| tables.attached.clone());
        match attached.and_then(|attached| middle::of_pieces(&attached.tables, range)) {
            Some(key) => Ok(Some(key)),
            None => flotilla_storage::middle_of_records(self, range),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use flotilla_storage::StateEngine;
    use flotilla_types::{CheckpointFormat, LogIndex};

    use super::*;
    use crate::{
        Engine,
        tests::{empty_checkpoint, open_with_sled},
    };

    const ID: ReplicaId = ReplicaId(1);

    fn engine(dir: &std::path::Path) -> Engine {
        let engine = open_with_sled(dir);
        engine.open(ID, &empty_checkpoint(ID)).unwrap();
        engine.write(ID, vec![("a".into(), Some("1".into()))], LogIndex(1)).unwrap();
        assert!(engine.freeze(ID, empty_checkpoint(ID).position, Bytes::new()).unwrap());
        engine
    }

    #[test]
    fn sled_is_not_fed_while_an_earlier_snapshot_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let checkpoint = engine.build(ID, CheckpointFormat::Pieces).unwrap();
        let snapshot = engine.snapshot(ID).unwrap();
        engine.write(ID, vec![("a".into(), Some("2".into()))], LogIndex(2)).unwrap();
        thread::scope(|threads| {
            let installing = threads.spawn(|| engine.install_checkpoint(ID, &checkpoint).unwrap());
            for _ in 0..1_000 {
                assert_eq!(snapshot.get(b"a").unwrap(), Some("1".into()));
                assert!(!installing.is_finished());
                thread::yield_now();
            }
            drop(snapshot);
        });
        assert_eq!(engine.usage(ID).frozen_bytes, 0);
    }

    /// Runs `change` in a thread and returns whether it waits for the lock while the lock is held shared.
    fn waits_for(lock: &RwLock<()>, change: impl FnOnce() + Send) -> bool {
        thread::scope(|threads| {
            let held = lock.read();
            let changing = threads.spawn(change);
            // A waiting writer blocks new readers.
            while lock.try_read().is_some() && !changing.is_finished() {
                thread::yield_now();
            }
            let waits = !changing.is_finished();
            drop(held);
            waits
        })
    }

    #[test]
    fn records_are_cleared_only_after_readers_are_done() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let replica = engine.replica(ID).unwrap();
        assert!(waits_for(&replica.view_lock, || engine.install_snapshot(ID, &empty_checkpoint(ID)).unwrap()));
        assert!(waits_for(&replica.view_lock, || engine.destroy(ID).unwrap()));
    }
}
