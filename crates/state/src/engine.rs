//! The engine: which replicas there are, and the contract of [`StateEngine`] over memtables, objects and the view.
//!
//! One process opens a folder at a time; a lock file sees to it. Objects that the process finds at its start are not
//! collected until no replica was opened for a while: the engine cannot know which replicas are still to come.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_failpoints::{Place, number};
use flotilla_objects::{ObjectStore, Scope};
use flotilla_storage::{EngineError, Pins, StateEngine, StateReader, Usage, WriteSet};
use flotilla_types::{Checkpoint, LogIndex, ObjectId, Position, ReplicaId};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock};

use crate::{
    Options, build,
    failure::{self, ViewFailure},
    replica::{Reader, Replica},
    view::View,
};

/// Looking for objects to collect costs a pass over their index: once in so many settled checkpoints, and after each fold.
const SETTLES_PER_COLLECTION: u32 = 16;

/// The state of every replica on a node, in one folder: objects in `objects`, the view in `view`.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    objects: Arc<ObjectStore>,
    /// `None` once closed.
    view: RwLock<Option<View>>,
    replicas: RwLock<HashMap<ReplicaId, Arc<Replica>>>,
    /// Objects pinned by `missing` and `import`.
    transfers: Mutex<Pins>,
    last_opened: Mutex<Instant>,
    settles: AtomicU32,
    _lock: File,
}

impl Engine {
    /// Opens the folder, creating it if need be. A view that cannot be trusted or does not open is replaced by an empty
    /// one, which replicas fill again as they are opened. Fails with [`EngineError::Io`] when another process has the
    /// folder open.
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
            view: RwLock::new(Some(view)),
            replicas: RwLock::default(),
            transfers: Mutex::default(),
            last_opened: Mutex::new(Instant::now()),
            settles: AtomicU32::new(0),
            _lock: lock,
        })
    }

    fn view(&self) -> Result<View, EngineError> {
        self.view.read().clone().ok_or(ViewFailure::Closed.into())
    }

    pub(crate) fn replica(&self, replica: ReplicaId) -> Result<Arc<Replica>, EngineError> {
        self.replicas.read().get(&replica).cloned().ok_or(EngineError::NotOpen(replica))
    }

    /// Gives a replica the records of a checkpoint in place of what it had. Readers it had stay valid.
    fn replace(&self, replica: ReplicaId, checkpoint: &Checkpoint, from_elsewhere: bool) -> Result<(), EngineError> {
        let view = self.view()?;
        *self.last_opened.lock() = Instant::now();
        if let Some(absent) = checkpoint.objects().find(|id| !self.objects.contains(*id)) {
            if !self.replica(replica).is_ok_and(|entry| entry.is_open()) {
                // What is here of the checkpoint need not travel when it is tried again.
                self.objects.set_roots(replica.0, checkpoint.objects());
            }
            return Err(EngineError::Object(absent));
        }
        self.objects.set_roots(replica.0, checkpoint.objects());
        let entry = self.replicas.write().entry(replica).or_insert_with(|| Arc::new(Replica::new(replica))).clone();
        let mut work = entry.work.lock();
        entry.detach();
        *work = None;
        let found = view.load(replica, checkpoint, from_elsewhere)?;
        entry.attach(found, checkpoint.clone(), build::total_bytes(&self.objects, checkpoint.objects()));
        Ok(())
    }

    /// Gives back disk space. A failure is no reason to stop: whatever is wrong with the disk shows at the next write.
    fn collect(&self) {
        let grace = number(Place::ObjectsGrace).map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let settled = self.last_opened.lock().elapsed() >= grace.unwrap_or(self.options.inherited_grace);
        let scope = if settled { Scope::All } else { Scope::Fresh };
        match self.objects.collect(scope) {
            Ok(done) if done.segments > 0 => tracing::debug!(?done, "collected objects"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "objects could not be collected"),
        }
    }

    fn detach_all(&self) {
        let replicas = std::mem::take(&mut *self.replicas.write());
        replicas.values().for_each(|replica| replica.detach());
    }
}

impl Drop for Engine {
    /// Readers may outlive the engine; the view must not, or the folder could not be opened again.
    fn drop(&mut self) {
        self.detach_all();
    }
}

impl StateEngine for Engine {
    fn claim(&self, replica: ReplicaId, checkpoint: &Checkpoint) {
        self.objects.set_roots(replica.0, checkpoint.objects());
    }

    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.replace(replica, checkpoint, false)
    }

    fn install(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.replace(replica, checkpoint, true)
    }

    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError> {
        let view = self.view()?;
        let entry = self.replicas.write().remove(&replica);
        if let Some(entry) = entry {
            let mut work = entry.work.lock();
            entry.detach();
            *work = None;
        }
        self.objects.set_roots(replica.0, []);
        view.clear(replica)
    }

    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        let replica = self.replica(replica)?;
        if !replica.is_open() {
            return Err(EngineError::NotOpen(replica.id));
        }
        Ok(Arc::new(Reader(replica)))
    }

    fn write(&self, replica: ReplicaId, records: WriteSet, _applied: LogIndex) -> Result<(), EngineError> {
        self.replica(replica)?.write(records)
    }

    fn usage(&self, replica: ReplicaId) -> Usage {
        self.replica(replica).map_or(Usage::default(), |replica| replica.usage())
    }

    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError> {
        self.replica(replica)?.freeze(position, system)
    }

    fn build(&self, replica: ReplicaId) -> Result<Checkpoint, EngineError> {
        let replica = self.replica(replica)?;
        let mut work = replica.work.lock();
        let material = replica.material()?;
        let Some(frozen) = &material.frozen else { return Ok(Checkpoint::clone(&material.checkpoint)) };
        let built = build::build(&self.objects, &self.options, replica.id, &material.checkpoint, frozen)?;
        let checkpoint = built.checkpoint.clone();
        *work = Some(built);
        Ok(checkpoint)
    }

    fn settle(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        let replica = self.replica(replica)?;
        let mut work = replica.work.lock();
        let material = replica.material()?;
        let (Some(built), Some(frozen)) = (work.as_ref(), &material.frozen) else {
            // Settled before, or nothing was frozen: fine when nothing changes by it.
            let reason = "a checkpoint that was not built cannot be settled";
            let unchanged = *material.checkpoint == *checkpoint;
            return if unchanged { Ok(()) } else { Err(EngineError::Corrupt { replica: replica.id, reason }) };
        };
        if built.checkpoint != *checkpoint {
            let reason = "the checkpoint to settle is not the one that was built";
            return Err(EngineError::Corrupt { replica: replica.id, reason });
        }
        let before = &material.checkpoint;
        let found = if (&before.base, &before.runs) == (&checkpoint.base, &checkpoint.runs) {
            material.found
        } else {
            let fence = || replica.fence_scans();
            self.view()?.advance(replica.id, &material.found, frozen, checkpoint, fence)?
        };
        let bytes = build::total_bytes(&self.objects, checkpoint.objects());
        replica.thaw(found, checkpoint.clone(), bytes);
        self.objects.set_roots(replica.id.0, checkpoint.objects());
        let folded = built.folded;
        *work = None;
        drop(work);
        if folded || self.settles.fetch_add(1, Ordering::Relaxed).is_multiple_of(SETTLES_PER_COLLECTION) {
            self.collect();
        }
        Ok(())
    }

    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError> {
        checkpoint.system.map_or(Ok(Bytes::new()), |id| self.object(id))
    }

    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let mut transfers = self.transfers.lock();
        let distinct: BTreeSet<_> = objects.iter().copied().collect();
        let absent = |id: &ObjectId| {
            let here = self.objects.pin(*id);
            if here {
                transfers.add(*id);
            }
            !here
        };
        distinct.into_iter().filter(absent).collect()
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.objects.get(object).map_err(failure::of_objects)
    }

    fn import(&self, object: ObjectId, bytes: Bytes) -> Result<(), EngineError> {
        self.objects.import(object, &bytes).map_err(failure::of_objects)?;
        self.transfers.lock().add(object);
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.objects.sync().map_err(failure::of_objects)
    }

    fn release(&self, objects: &[ObjectId]) {
        let mut transfers = self.transfers.lock();
        transfers.take(objects).into_iter().for_each(|id| self.objects.unpin(id));
    }

    fn close(&self) -> Result<(), EngineError> {
        self.detach_all();
        let Some(view) = self.view.write().take() else { return Ok(()) };
        view.close()
    }
}
