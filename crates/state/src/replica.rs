//! One replica's records: memtables over its checkpoint's records, and reading them while they move.
//!
//! # Why a scan sees each write set whole
//! Under one short lock a scan copies what it may need of the active memtable and takes handles on the frozen one and on the
//! records below, which never change. That is a snapshot. Only sled's records do change, but only while `settle` feeds it, and feeding
//! is fenced off: `settle` takes [`Replica::feeding`] exclusively for a moment before it feeds, a scan holds it shared from
//! its snapshot to its end. So any feeding that overlaps a scan began before the scan's snapshot, at which time the fed
//! memtable was still the frozen one and is in the snapshot, where it hides what is fed. Whatever is fed before the snapshot is
//! complete and older than it; whatever is frozen after it waits for the scan to end. So the scan's result is the state at
//! its snapshot.
//!
//! A get needs no such fence: it reads one key, and any value it finds was current at some moment during the call. What both must
//! not see is a view being cleared: replacing a replica's records first closes it and then waits for its readers.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{EngineError, StateReader, Usage, WriteSet};
use flotilla_types::{Checkpoint, KeyRange, Position, ReplicaId};
use parking_lot::{Mutex, RwLock};

use crate::{
    build::Built,
    memtable::{Frozen, Memtable},
    merge::{Merge, Source},
    view::Found,
};

/// A replica, open or not. Readers keep it; closing it takes its records away from them.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    tables: RwLock<Option<Tables>>,
    /// Held shared by every reader of the view, and exclusively, for a moment, before its records are replaced.
    access: RwLock<()>,
    /// Held shared by every scan, and exclusively, for a moment, before a frozen memtable is fed to the view.
    feeding: RwLock<()>,
    /// Serialises what changes the replica in the background, and keeps what was built until it is settled.
    pub(crate) work: Mutex<Option<Built>>,
}

#[derive(Debug)]
struct Tables {
    active: Memtable,
    frozen: Option<Arc<Frozen>>,
    found: Found,
    checkpoint: Arc<Checkpoint>,
    checkpoint_bytes: u64,
}

/// What building a checkpoint starts from.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) frozen: Option<Arc<Frozen>>,
    pub(crate) found: Found,
}

impl Replica {
    pub(crate) fn new(id: ReplicaId) -> Self {
        Self {
            id,
            tables: RwLock::new(None),
            access: RwLock::new(()),
            feeding: RwLock::new(()),
            work: Mutex::new(None),
        }
    }

    /// Starts serving the records of a checkpoint.
    pub(crate) fn attach(&self, found: Found, checkpoint: Checkpoint, checkpoint_bytes: u64) {
        let checkpoint = Arc::new(checkpoint);
        let tables = Tables { active: Memtable::default(), frozen: None, found, checkpoint, checkpoint_bytes };
        *self.tables.write() = Some(tables);
    }

    /// Stops serving, drops the memtables and waits until no reader uses the view on the replica's behalf.
    pub(crate) fn detach(&self) {
        let tables = self.tables.write().take();
        drop(self.access.write());
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

    pub(crate) fn material(&self) -> Result<Material, EngineError> {
        let tables = self.tables.read();
        let tables = tables.as_ref().ok_or(EngineError::NotOpen(self.id))?;
        Ok(Material {
            checkpoint: tables.checkpoint.clone(),
            frozen: tables.frozen.clone(),
            found: tables.found.clone(),
        })
    }

    /// Waits until every scan under way has ended; see the argument above.
    pub(crate) fn fence_scans(&self) {
        drop(self.feeding.write());
    }

    /// What was frozen is now found below.
    pub(crate) fn thaw(&self, found: Found, checkpoint: Checkpoint, checkpoint_bytes: u64) {
        let frozen = {
            let mut tables = self.tables.write();
            let Some(tables) = tables.as_mut() else { return };
            tables.found = found;
            tables.checkpoint = Arc::new(checkpoint);
            tables.checkpoint_bytes = checkpoint_bytes;
            tables.frozen.take()
        };
        // Freeing many records takes a while; no lock is held meanwhile.
        drop(frozen);
    }
}

/// A reader that outlives the replica's closing.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Arc<Replica>);

impl StateReader for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let replica = &self.0;
        let _access = replica.access.read();
        let found = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            let in_frozen = || tables.frozen.as_ref().and_then(|frozen| frozen.get(key));
            if let Some(value) = tables.active.get(key).or_else(in_frozen) {
                return Ok(value);
            }
            tables.found.clone()
        };
        found.get(replica.id, key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let replica = &self.0;
        let _access = replica.access.read();
        let _feeding = replica.feeding.read();
        let (captured, frozen, found) = {
            let tables = replica.tables.read();
            let tables = tables.as_ref().ok_or(EngineError::NotOpen(replica.id))?;
            if range.is_empty() {
                return Ok(Vec::new());
            }
            (tables.active.capture(range, items_max, bytes_max), tables.frozen.clone(), tables.found.clone())
        };
        let mut sources: Vec<Source<'_>> = vec![Box::new(captured.into_iter().map(Ok))];
        if let Some(frozen) = &frozen {
            sources.push(Box::new(frozen.range(range).map(Ok)));
        }
        sources.push(found.records(replica.id, range, items_max));
        let (mut items, mut bytes) = (Vec::new(), 0);
        for record in Merge::new(sources) {
            let (key, value) = record?;
            let Some(value) = value else { continue };
            bytes += key.len() + value.len();
            items.push((key, value));
            if items.len() >= items_max || bytes >= bytes_max {
                break;
            }
        }
        Ok(items)
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

    /// Runs `change` in a thread and says whether it waits for the lock while that is held shared.
    fn waits_for(lock: &RwLock<()>, change: impl FnOnce() + Send) -> bool {
        thread::scope(|threads| {
            let held = lock.read();
            let changing = threads.spawn(change);
            // A writer in wait shuts new readers out.
            while lock.try_read().is_some() && !changing.is_finished() {
                thread::yield_now();
            }
            let waits = !changing.is_finished();
            drop(held);
            waits
        })
    }

    #[test]
    fn sled_is_not_fed_while_a_scan_from_before_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let replica = engine.replica(ID).unwrap();
        let checkpoint = engine.build(ID).unwrap();
        assert!(waits_for(&replica.feeding, || engine.settle(ID, &checkpoint).unwrap()));
        assert_eq!(engine.usage(ID).frozen_bytes, 0);
    }

    #[test]
    fn records_are_not_cleared_under_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let replica = engine.replica(ID).unwrap();
        assert!(waits_for(&replica.access, || engine.install(ID, &empty_checkpoint(ID)).unwrap()));
        assert!(waits_for(&replica.access, || engine.destroy(ID).unwrap()));
    }
}
