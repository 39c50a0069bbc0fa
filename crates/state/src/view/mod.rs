//! The view: reads the records of checkpoints, from their own objects or from sled, which is filled from
//! them.

mod levels;
mod sled;
mod trust;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, KeyRanges};
use flotilla_types::{Checkpoint, KeyRange, ReplicaId};

use self::{
    levels::{IndexCache, Levels},
    sled::SledView,
};
use crate::{ViewOptions, build::Built, failure::ViewFailure, memtable::Frozen, merge::Source, table::Table};

/// How far a read may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It may wait for the disk.
    Disk,
    /// It fails with [`EngineError::NotInMemory`] instead.
    Memory,
}

/// The view of a node: all replicas.
#[derive(Debug, Clone)]
pub(crate) enum View {
    Objects(Arc<IndexCache>),
    Sled { view: Arc<SledView>, objects: Arc<ObjectStore> },
}

/// The records of one replica's checkpoint.
#[derive(Debug, Clone)]
pub(crate) enum ReplicaView {
    Objects(Arc<Levels>),
    /// The current content of sled: between two checkpoints while the second one is written.
    Sled(Arc<SledView>),
}

impl View {
    /// Opens the view of an engine's folder.
    pub(crate) fn open(dir: &Path, options: &ViewOptions, objects: &Arc<ObjectStore>) -> Result<Self, EngineError> {
        match options {
            ViewOptions::Objects { index_bytes } => {
                // A sled folder of an earlier start would only take space.
                SledView::remove(dir)?;
                Ok(Self::Objects(Arc::new(IndexCache::new(objects.clone(), *index_bytes))))
            }
            ViewOptions::Sled { cache_bytes } => {
                let view = Arc::new(SledView::open(dir, *cache_bytes)?);
                Ok(Self::Sled { view, objects: objects.clone() })
            }
        }
    }

    /// Opens a checkpoint whose objects are all present. Objects from a peer are read completely first: they
    /// match their ids, but the peer may be faulty or malicious.
    pub(crate) fn load(
        &self,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
        tables: &[Arc<Table>],
        from_peer: bool,
    ) -> Result<ReplicaView, EngineError> {
        match self {
            Self::Objects(indexes) => {
                let levels = Levels::new(indexes, replica, tables);
                if from_peer {
                    levels.verify()?;
                }
                Ok(ReplicaView::Objects(Arc::new(levels)))
            }
            Self::Sled { view, objects } => {
                view.load(objects, replica, checkpoint, tables)?;
                Ok(ReplicaView::Sled(view.clone()))
            }
        }
    }

    /// Indexes a table that was just written, so that the first reads of its records need not wait for it.
    pub(crate) fn index(&self, replica: ReplicaId, table: &Table) -> Result<(), EngineError> {
        match self {
            Self::Objects(indexes) => indexes.index(replica, table),
            Self::Sled { .. } => Ok(()),
        }
    }

    /// Opens the checkpoint that was built from the previous one and the frozen records, of a replica with these
    /// keys. `wait_for_scans` waits for scans in progress.
    pub(crate) fn advance(
        &self,
        replica: ReplicaId,
        frozen: &Frozen,
        built: &Built,
        keys: &KeyRanges,
        wait_for_scans: impl FnOnce(),
    ) -> Result<ReplicaView, EngineError> {
        match self {
            Self::Objects(indexes) => Ok(ReplicaView::Objects(Arc::new(Levels::new(indexes, replica, &built.tables)))),
            Self::Sled { view, .. } => {
                wait_for_scans();
                view.advance(replica, frozen, &built.checkpoint, keys)?;
                Ok(ReplicaView::Sled(view.clone()))
            }
        }
    }

    /// Whether [`advance`](Self::advance) waits until snapshots are dropped.
    pub(crate) fn waits_for_snapshots(&self) -> bool {
        matches!(self, Self::Sled { .. })
    }

    /// Removes a replica.
    pub(crate) fn clear(&self, replica: ReplicaId) -> Result<(), EngineError> {
        match self {
            Self::Objects(_) => Ok(()),
            Self::Sled { view, .. } => view.clear(replica),
        }
    }

    /// Closes the view in an orderly shutdown.
    pub(crate) fn close(self) -> Result<(), EngineError> {
        match self {
            // A remaining holder may still write: then the close is not clean, and the next start notices.
            Self::Objects(_) => Ok(()),
            Self::Sled { view, .. } => Arc::into_inner(view).ok_or(ViewFailure::InUse)?.close(),
        }
    }
}

impl ReplicaView {
    pub(crate) fn get(&self, replica: ReplicaId, key: &[u8], reach: Reach) -> Result<Option<Bytes>, EngineError> {
        match self {
            Self::Objects(levels) => levels.get(key, reach),
            // sled does not say whether it would read a file.
            Self::Sled(_) if reach == Reach::Memory => Err(EngineError::NotInMemory),
            Self::Sled(view) => view.get(replica, key),
        }
    }

    /// Whether it surely holds no records.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Objects(levels) => levels.is_empty(),
            Self::Sled(_) => false,
        }
    }

    /// Whether it always holds the same records.
    pub(crate) fn is_immutable(&self) -> bool {
        matches!(self, Self::Objects(_))
    }

    /// Records of a non-empty range, possibly with deletions.
    pub(crate) fn records<'a>(&'a self, replica: ReplicaId, range: &'a KeyRange, items_max: usize) -> Source<'a> {
        match self {
            Self::Objects(levels) => levels.records(range),
            Self::Sled(view) => view.records(replica, range, items_max),
        }
    }
}
