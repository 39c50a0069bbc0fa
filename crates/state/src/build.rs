//! Builds the objects of a checkpoint from a frozen memtable.
//!
//! A checkpoint is a base overlaid by runs. Each build adds a run; when the runs exceed a share of the base,
//! they and the frozen records are folded into a new base, which holds no deletions. Both stream: they hold
//! one piece of each source in memory.

use std::sync::Arc;

use flotilla_failpoints::{Place, io, reached};
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use crate::{
    Options, failure,
    memtable::Frozen,
    merge::{Merge, Record, Source},
    sorted::{Cut, Pinned, pieces, run_groups, write_pieces},
};

/// A checkpoint whose objects are durable, and pinned until it is installed or dropped.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) folded: bool,
    _pinned: Pinned,
}

/// Builds the checkpoint that adds frozen records to an earlier one.
pub(crate) fn build(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    before: &Checkpoint,
    frozen: &Frozen,
) -> Result<Built, EngineError> {
    let mut pinned = Pinned::none(objects);
    let groups = run_groups(objects, &before.runs)?;
    let folded = fold_is_due(objects, options, before, groups.len(), frozen);
    let (base, runs) = if folded {
        reached(Place::CheckpointBeforeFold);
        let mut sources: Vec<Source<'_>> = vec![Box::new(frozen.records().map(Ok))];
        sources.extend(checkpoint_sources(objects, replica, &before.base, groups));
        let live = Merge::new(sources).filter(is_live);
        let base = write_pieces(&mut pinned, Cut::Content, options.piece_bytes, live)?;
        reached(Place::CheckpointFolded);
        (base, Vec::new())
    } else {
        let records = frozen.records().map(Ok);
        let run = write_pieces(&mut pinned, Cut::Size, options.piece_bytes, records)?;
        (before.base.clone(), before.runs.iter().copied().chain(run).collect())
    };
    let system = if frozen.system.is_empty() { None } else { Some(pinned.put(&frozen.system)?) };
    io(Place::CheckpointRunWritten)?;
    objects.sync().map_err(failure::of_objects)?;
    let checkpoint = Checkpoint { position: frozen.position.clone(), system, base, runs };
    Ok(Built { checkpoint, folded, _pinned: pinned })
}

fn fold_is_due(objects: &ObjectStore, options: &Options, before: &Checkpoint, runs: usize, frozen: &Frozen) -> bool {
    if frozen.is_empty() {
        // A forced checkpoint only moves the position and should be fast.
        return false;
    }
    let runs_bytes = total_bytes(objects, before.runs.iter().copied()) + frozen.bytes() as u64;
    let base_share = total_bytes(objects, before.base.iter().copied()) / 100 * options.fold_percent;
    runs_bytes > options.fold_bytes_min.max(base_share) || runs + 1 > options.runs_max
}

/// Total size of the objects that are present.
pub(crate) fn total_bytes(objects: &ObjectStore, ids: impl Iterator<Item = ObjectId>) -> u64 {
    ids.filter_map(|id| objects.len_bytes(id)).sum()
}

/// The records of a checkpoint as merge sources: runs, newest first, then the base.
pub(crate) fn checkpoint_sources<'a>(
    objects: &'a ObjectStore,
    replica: ReplicaId,
    base: &[ObjectId],
    groups: Vec<Vec<ObjectId>>,
) -> Vec<Source<'a>> {
    let runs = groups.into_iter().rev().map(|group| pieces(objects, replica, Cut::Size, group));
    runs.chain([pieces(objects, replica, Cut::Content, base.to_vec())]).collect()
}

pub(crate) fn is_live(record: &Result<Record, EngineError>) -> bool {
    !matches!(record, Ok((_, None)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use flotilla_types::LogIndex;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{memtable::Memtable, tests::empty_checkpoint};

    fn records_of(objects: &ObjectStore, checkpoint: &Checkpoint) -> BTreeMap<Bytes, Bytes> {
        let groups = run_groups(objects, &checkpoint.runs).unwrap();
        let sources = checkpoint_sources(objects, ReplicaId(1), &checkpoint.base, groups);
        Merge::new(sources).map(Result::unwrap).filter_map(|(key, value)| Some((key, value?))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn checkpoints_equal_a_map_across_folds(
            flushes in vec(vec((0u8..60, proptest::option::of(vec(any::<u8>(), 0..40))), 0..40), 1..12)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let objects = Arc::new(ObjectStore::open(dir.path(), flotilla_objects::Options::default()).unwrap());
            let options = Options { piece_bytes: 256, fold_bytes_min: 2048, runs_max: 3, ..Options::default() };
            let mut model = BTreeMap::new();
            let mut checkpoint = empty_checkpoint(ReplicaId(1));
            for (index, writes) in flushes.into_iter().enumerate() {
                let mut memtable = Memtable::default();
                for (key, value) in writes {
                    let (key, value) = (Bytes::from(vec![key]), value.map(Bytes::from));
                    match value.clone() {
                        Some(value) => model.insert(key.clone(), value),
                        None => model.remove(&key),
                    };
                    memtable.write(vec![(key, value)], None);
                }
                let mut position = checkpoint.position.clone();
                position.index = LogIndex(index as u64 + 1);
                let frozen = Frozen::new(memtable, position, Bytes::from(vec![index as u8]));
                let built = build(&objects, &options, ReplicaId(1), &checkpoint, &frozen).unwrap();
                checkpoint = built.checkpoint.clone();
                prop_assert!(checkpoint.objects().all(|id| objects.contains(id)), "objects exist before a checkpoint names them");
                prop_assert!(run_groups(&objects, &checkpoint.runs).unwrap().len() <= options.runs_max);
                prop_assert_eq!(&records_of(&objects, &checkpoint), &model);
                if built.folded {
                    prop_assert!(checkpoint.runs.is_empty());
                }
            }
        }
    }

    #[test]
    fn an_empty_memtable_moves_the_position_and_keeps_the_objects() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Arc::new(ObjectStore::open(dir.path(), flotilla_objects::Options::default()).unwrap());
        let mut memtable = Memtable::default();
        memtable.write(vec![("a".into(), Some("1".into()))], None);
        let mut before = empty_checkpoint(ReplicaId(1));
        let frozen = Frozen::new(memtable, before.position.clone(), Bytes::new());
        before = build(&objects, &Options::default(), ReplicaId(1), &before, &frozen).unwrap().checkpoint.clone();
        let mut position = before.position.clone();
        position.index = LogIndex(9);
        let frozen = Frozen::new(Memtable::default(), position.clone(), Bytes::new());
        let after = build(&objects, &Options::default(), ReplicaId(1), &before, &frozen).unwrap();
        assert_eq!(after.checkpoint, Checkpoint { position, ..before });
    }
}
