//! One replica's records: memtables over its checkpoint's records, and reads while both change.
//!
//! # Why a scan sees each write set as a whole
//! Under one short lock a scan copies what it may need of the active memtable and takes handles on the frozen
//! one and on the checkpoint's view. Memtable copies, frozen memtables and objects never change, so that this
//! is a snapshot.
//!
//! Only sled's records do change, while `install_checkpoint` feeds it, and a lock separates feeding from
//! scans: `install_checkpoint` takes [`Replica::feed_lock`] exclusively for a moment before it feeds; a scan
//! holds it shared from its snapshot to its end. So any feeding that overlaps a scan began before the scan's
//! snapshot. At that time the fed memtable was still the frozen one, so it is in the snapshot and hides what
//! is fed. Whatever was fed completely before the snapshot is older than it; whatever is frozen after it is
//! fed only when the scan has ended. So the scan's result is the state at its snapshot.
//!
//! A get needs no such lock: it reads one key, and any value it finds was current at some moment during the
//! call. Neither may read a view that is being cleared: replacing a replica's records first closes it and
//! then waits for its readers.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{EngineError, ScanBounds, ScanPage, StateReader, Usage, WriteSet, successor};
use flotilla_types::{Checkpoint, KeyRange, Position, ReplicaId};
use parking_lot::{Mutex, RwLock};

use crate::{
    build::Built,
    memtable::{Capture, Frozen, Memtable},
    merge::{Merge, Source},
    view::ReplicaView,
};

/// A replica, open or not. Readers hold it; after it is closed their reads fail.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    tables: RwLock<Option<Tables>>,
    /// Held shared by every read, and exclusively for a moment before the replica's records are replaced.
    view_lock: RwLock<()>,
    /// Held shared by every scan, and exclusively for a moment before a frozen memtable is fed to sled.
    feed_lock: RwLock<()>,
    /// Serialises background changes of the replica, and holds the checkpoint that was built until it is
    /// installed.
    pub(crate) work: Mutex<Option<Built>>,
}

#[derive(Debug)]
struct Tables {
    active: Memtable,
    frozen: Option<Arc<Frozen>>,
    view: ReplicaView,
    checkpoint: Arc<Checkpoint>,
    checkpoint_bytes: u64,
}

/// The input for building a checkpoint.
#[derive(Debug)]
pub(crate) struct BuildInput {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) frozen: Option<Arc<Frozen>>,
    pub(crate) view: ReplicaView,
}

impl Replica {
    pub(crate) fn new(id: ReplicaId) -> Self {
        Self {
            id,
            tables: RwLock::new(None),
            view_lock: RwLock::new(()),
            feed_lock: RwLock::new(()),
            work: Mutex::new(None),
        }
    }

    /// Starts serving the records of a checkpoint.
    pub(crate) fn attach(&self, view: ReplicaView, checkpoint: Checkpoint, checkpoint_bytes: u64) {
        let checkpoint = Arc::new(checkpoint);
        let tables = Tables { active: Memtable::default(), frozen: None, view, checkpoint, checkpoint_bytes };
        *self.tables.write() = Some(tables);
    }

    /// Stops serving, waits until no reader uses the view, and drops the memtables.
    pub(crate) fn detach(&self) {
        let tables = self.tables.write().take();
        drop(self.view_lock.write());
        drop(tables);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.tables.read().is_some()
    }

    pub(crate) fn write(&self, records: WriteSet) -> Result<(), EngineError> {
        self.tables.write().as_mut().ok_or(EngineError::NotOpen(self.id))?.active.write(records);
        Ok(())
    }

    pub(crate) fn usage(&self) -> Usage {
        self.tables.read().as_ref().map_or(Usage::default(), |tables| Usage {
            active_bytes: tables.active.bytes(),
            frozen_bytes: tables.frozen.as_ref().map_or(0, |frozen| frozen.bytes()),
            checkpoint_bytes: tables.checkpoint_bytes,
        })
    }

    pub(crate) fn freeze(&self, position: Position, system: Bytes) -> Result<bool, EngineError> {
        let mut tables = self.tables.write();
        let tables = tables.as_mut().ok_or(EngineError::NotOpen(self.id))?;
        if tables.frozen.is_some() {
            return Ok(false);
        }
        let memtable = std::mem::take(&mut tables.active);
        tables.frozen = Some(Arc::new(Frozen::new(memtable, position, system)));
        Ok(true)
    }

    pub(crate) fn build_input(&self) -> Result<BuildInput, EngineError> {
        let tables = self.tables.read();
        let tables = tables.as_ref().ok_or(EngineError::NotOpen(self.id))?;
        Ok(BuildInput {
            checkpoint: tables.checkpoint.clone(),
            frozen: tables.frozen.clone(),
            view: tables.view.clone(),
        })
    }

    /// Waits until every scan in progress has ended; see the argument above.
    pub(crate) fn wait_for_scans(&self) {
        drop(self.feed_lock.write());
    }

    /// Replaces the frozen memtable by the checkpoint that includes it.
    pub(crate) fn install_checkpoint(&self, view: ReplicaView, checkpoint: Checkpoint, checkpoint_bytes: u64) {
        let frozen = {
            let mut tables = self.tables.write();
            let Some(tables) = tables.as_mut() else { return };
            tables.view = view;
            tables.checkpoint = Arc::new(checkpoint);
            tables.checkpoint_bytes = checkpoint_bytes;
            tables.frozen.take()
        };
        // Dropped without a lock: freeing many records takes long.
        drop(frozen);
    }
}

/// A reader; it may outlive the open replica.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Arc<Replica>);

impl StateReader for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let replica = &self.0;
        let _view_lock = replica.view_lock.read();
        let view = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            let in_frozen = || tables.frozen.as_ref().and_then(|frozen| frozen.get(key));
            if let Some(value) = tables.active.get(key).or_else(in_frozen) {
                return Ok(value);
            }
            tables.view.clone()
        };
        view.get(replica.id, key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(self.scan_page(range, ScanBounds { items_max, bytes_max, examined_max: usize::MAX })?.items)
    }

    fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        let replica = &self.0;
        let _view_lock = replica.view_lock.read();
        let _feed_lock = replica.feed_lock.read();
        let (Capture { records: captured, end }, frozen, view) = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            if range.is_empty() {
                return Ok(ScanPage::default());
            }
            (tables.active.capture(range, bounds), tables.frozen.clone(), tables.view.clone())
        };
        let mut sources: Vec<Source<'_>> = vec![Box::new(captured.into_iter().map(Ok))];
        if let Some(frozen) = &frozen {
            sources.push(Box::new(frozen.range(range).map(Ok)));
        }
        sources.push(view.records(replica.id, range, bounds.items_max));
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
                page.items.push((key, value));
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

#[cfg(test)]
mod tests {
    use std::thread;

    use flotilla_storage::StateEngine;
    use flotilla_types::LogIndex;

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
    fn sled_is_not_fed_while_an_earlier_scan_runs() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let replica = engine.replica(ID).unwrap();
        let checkpoint = engine.build(ID).unwrap();
        assert!(waits_for(&replica.feed_lock, || engine.install_checkpoint(ID, &checkpoint).unwrap()));
        assert_eq!(engine.usage(ID).frozen_bytes, 0);
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
