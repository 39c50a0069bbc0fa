//! How the records of checkpoints are found: in their own objects, or in sled, which is filled from them.

mod filter;
mod index;
mod levels;
mod sled;
mod trust;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{Checkpoint, KeyRange, ReplicaId};

use self::{
    levels::{Indexes, Levels},
    sled::SledView,
};
use crate::{ViewOptions, failure::ViewFailure, memtable::Frozen, merge::Source};

/// The view of a node: all replicas.
#[derive(Debug, Clone)]
pub(crate) enum View {
    Objects(Arc<Indexes>),
    Sled { view: Arc<SledView>, objects: Arc<ObjectStore> },
}

/// The records of one replica's checkpoint.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Objects(Arc<Levels>),
    /// What is in sled at the moment: between two checkpoints while the second is fed.
    Sled(Arc<SledView>),
}

impl View {
    /// Opens the view of an engine's folder.
    pub(crate) fn open(dir: &Path, options: &ViewOptions, objects: &Arc<ObjectStore>) -> Result<Self, EngineError> {
        match options {
            ViewOptions::Objects { index_bytes } => {
                // One that an earlier start used would only take space.
                SledView::remove(dir)?;
                Ok(Self::Objects(Arc::new(Indexes::new(objects.clone(), *index_bytes))))
            }
            ViewOptions::Sled { cache_bytes } => {
                let view = Arc::new(SledView::open(dir, *cache_bytes)?);
                Ok(Self::Sled { view, objects: objects.clone() })
            }
        }
    }

    /// Finds the records of a checkpoint whose objects are all here. Those that came from elsewhere are read through
    /// first: they match their ids, but whoever made them may have been mad.
    pub(crate) fn load(
        &self,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
        from_elsewhere: bool,
    ) -> Result<Found, EngineError> {
        match self {
            Self::Objects(indexes) => {
                let levels = Levels::open(indexes, replica, checkpoint, None)?;
                if from_elsewhere {
                    levels.confirm()?;
                }
                Ok(Found::Objects(Arc::new(levels)))
            }
            Self::Sled { view, objects } => {
                view.load(objects, replica, checkpoint)?;
                Ok(Found::Sled(view.clone()))
            }
        }
    }

    /// Goes on to a checkpoint that adds what was frozen to the one before. `fence` waits for scans under way.
    pub(crate) fn advance(
        &self,
        replica: ReplicaId,
        before: &Found,
        frozen: &Frozen,
        checkpoint: &Checkpoint,
        fence: impl FnOnce(),
    ) -> Result<Found, EngineError> {
        match self {
            Self::Objects(indexes) => {
                let before = if let Found::Objects(levels) = before { Some(&**levels) } else { None };
                let levels = Levels::open(indexes, replica, checkpoint, before)?;
                // Here and not when the first reader comes by: that would be the thread that applies.
                levels.confirm()?;
                Ok(Found::Objects(Arc::new(levels)))
            }
            Self::Sled { view, .. } => {
                fence();
                view.advance(replica, frozen, checkpoint)?;
                Ok(Found::Sled(view.clone()))
            }
        }
    }

    /// Forgets a replica.
    pub(crate) fn clear(&self, replica: ReplicaId) -> Result<(), EngineError> {
        match self {
            Self::Objects(_) => Ok(()),
            Self::Sled { view, .. } => view.clear(replica),
        }
    }

    /// The node stops in order.
    pub(crate) fn close(self) -> Result<(), EngineError> {
        match self {
            // Whoever still holds it is about to write: then it is not closed in order, and the next start sees that.
            Self::Objects(_) => Ok(()),
            Self::Sled { view, .. } => Arc::into_inner(view).ok_or(ViewFailure::InUse)?.close(),
        }
    }
}

impl Found {
    pub(crate) fn get(&self, replica: ReplicaId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self {
            Self::Objects(levels) => levels.get(key),
            Self::Sled(view) => view.get(replica, key),
        }
    }

    /// Records of a range that is not empty; deletions may be among them.
    pub(crate) fn records<'a>(&'a self, replica: ReplicaId, range: &'a KeyRange, items_max: usize) -> Source<'a> {
        match self {
            Self::Objects(levels) => levels.records(range),
            Self::Sled(view) => view.records(replica, range, items_max),
        }
    }
}
