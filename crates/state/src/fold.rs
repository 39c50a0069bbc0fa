//! Folds that the log of a shard orders: the view that one is made from, and how it is made.
//!
//! Invariants: the base of a fold follows from the live records as of the entry that orders it and from the
//! size of its pieces, and from nothing else; a view holds no memtable while its base is made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, reached};
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, Fold, KeyRanges};
use flotilla_types::{CheckpointFormat, ReplicaId};
use parking_lot::Mutex;

use crate::{
    Options,
    compact::{Compacted, Paced, is_live},
    memtable::Frozen,
    merge::{Merge, Record, Source},
    replica::{Attached, Pinned},
    sorted::{Cut, write_table},
    table::{Table, sources},
};

/// A base that takes longer than this is given up, so that the tables of its view are not kept for ever.
pub(crate) const FOLD_TIME_MAX: Duration = Duration::from_secs(6 * 3_600);

/// The records of a replica as of the entry that orders a fold.
#[derive(Debug)]
pub(crate) struct FoldView {
    pub(crate) fold: Fold,
    pinned_at: Instant,
    attached: Arc<Attached>,
    /// The keys of the replica. Other records are left out.
    keys: KeyRanges,
    newest: Mutex<Newest>,
}

/// The records of a view that are newer than its tables.
#[derive(Debug)]
enum Newest {
    Memtables {
        pinned: Arc<Pinned>,
        /// The memtable that was frozen before.
        frozen: Option<Arc<Frozen>>,
        /// For those that nothing else needs any more.
        held: Vec<HeldBytes>,
    },
    /// They are written.
    Run(Option<Arc<Table>>),
}

/// Bytes of memtables that only views need, of all replicas.
#[derive(Debug)]
struct HeldBytes(Arc<AtomicUsize>, usize);

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl FoldView {
    pub(crate) fn new(
        fold: Fold,
        attached: Arc<Attached>,
        keys: KeyRanges,
        pinned: Arc<Pinned>,
        frozen: Option<Arc<Frozen>>,
    ) -> Self {
        let newest = Newest::Memtables { pinned, frozen, held: Vec::new() };
        Self { fold, pinned_at: Instant::now(), attached, keys, newest: Mutex::new(newest) }
    }

    pub(crate) fn age(&self) -> Duration {
        self.pinned_at.elapsed()
    }

    /// Whether the memtable of its entry was frozen since: then it can be read beside writes.
    pub(crate) fn is_ready(&self) -> bool {
        match &*self.newest.lock() {
            Newest::Memtables { pinned, .. } => pinned.frozen().is_some(),
            Newest::Run(_) => true,
        }
    }

    /// A memtable is installed, and only this view may still need it. `false` if views then hold too much.
    pub(crate) fn hold_alone(&self, memtable: &Arc<Frozen>, total: &Arc<AtomicUsize>, bytes_max: usize) -> bool {
        let Newest::Memtables { pinned, frozen, held } = &mut *self.newest.lock() else { return true };
        let needed = [frozen.as_ref(), pinned.frozen()];
        if !needed.into_iter().flatten().any(|needed| Arc::ptr_eq(needed, memtable)) {
            return true;
        }
        let bytes = memtable.bytes();
        let before = total.fetch_add(bytes, Ordering::Relaxed);
        held.push(HeldBytes(total.clone(), bytes));
        before.saturating_add(bytes) <= bytes_max
    }

    /// Writes the records of its memtables as a run, once, and lets them go. `None` before it is ready.
    fn write_newest(
        &self,
        objects: &Arc<ObjectStore>,
        options: &Options,
    ) -> Result<Option<Option<Arc<Table>>>, EngineError> {
        let newest = &mut *self.newest.lock();
        let run = match newest {
            Newest::Run(run) => return Ok(Some(run.clone())),
            Newest::Memtables { pinned, frozen, .. } => {
                let Some(memtable) = pinned.frozen() else { return Ok(None) };
                let mut layers: Vec<Source<'_>> = vec![Box::new(memtable.records_at(pinned.version()).map(Ok))];
                layers.extend(frozen.iter().map(|frozen| Box::new(frozen.records().map(Ok)) as Source<'_>));
                let (format, last) = (CheckpointFormat::Manifests, self.fold.index);
                write_table(objects, Cut::Size, format, options.piece_bytes, last, Merge::new(layers))?.map(Arc::new)
            }
        };
        *newest = Newest::Run(run.clone());
        Ok(Some(run))
    }
}

/// Makes the base of a view. `None` if it is not ready, or was stopped.
pub(crate) fn fold(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    view: &FoldView,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Option<Compacted>, EngineError> {
    let Some(run) = view.write_newest(objects, options)? else { return Ok(None) };
    reached(Place::CheckpointBeforeFold);
    let Fold { index, piece_bytes } = view.fold;
    let newest = run.iter().map(|run| run.records(objects, replica));
    let live = Merge::new(newest.chain(sources(objects, replica, &view.attached.tables))).filter(is_live);
    // What a split has given up may still be in the tables, if the checkpoint without was not installed yet.
    let is_own =
        |record: &Result<Record, EngineError>| record.as_ref().map_or(true, |(key, _)| view.keys.contains(key));
    let mut paced = Paced::new(is_stopped, false);
    let format = CheckpointFormat::Manifests;
    let base =
        write_table(objects, Cut::Content, format, piece_bytes as usize, index, paced.pace(live.filter(is_own)))?;
    if is_stopped() {
        return Ok(None);
    }
    reached(Place::CheckpointFolded);
    let base = base.map(|base| Arc::new(base.of_fold(index)));
    Ok(Some(Compacted::Folded { index, base, keys: view.keys.clone() }))
}
