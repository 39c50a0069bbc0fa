//! Builds the objects of a checkpoint from a frozen memtable.
//!
//! A checkpoint is a base overlaid by runs. Each build adds a run, and puts in place what a
//! [compaction](crate::compact) has made meanwhile. Building streams: it holds one piece of each source in
//! memory.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use flotilla_failpoints::{Place, io};
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use crate::{
    Options,
    compact::{Compacted, run_sources},
    failure,
    memtable::Frozen,
    merge::{Merge, Source},
    sorted::{Cut, Pinned, run_groups, write_pieces},
};

/// A checkpoint whose objects are durable, and pinned until it is installed or dropped.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) checkpoint: Checkpoint,
    /// The first keys of its pieces that were written since the last checkpoint.
    pub(crate) first_keys: HashMap<ObjectId, Bytes>,
    /// The pieces of its newest run.
    pub(crate) run: Vec<ObjectId>,
    /// Whether tables of the last checkpoint are not in it.
    pub(crate) drops_tables: bool,
    _pinned: Pinned,
    _compacted: Option<Compacted>,
}

/// Builds the checkpoint that adds frozen records to an earlier one, with tables replaced that were compacted.
pub(crate) fn build(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    before: &Checkpoint,
    frozen: &Frozen,
    mut compacted: Option<Compacted>,
) -> Result<Built, EngineError> {
    let mut pinned = Pinned::none(objects);
    let applied = compacted.as_ref().and_then(|compacted| compacted.apply(before));
    let mut drops_tables = applied.is_some();
    let (base, mut runs) = applied.unwrap_or_else(|| (before.base.clone(), before.runs.clone()));
    let mut first_keys = match &mut compacted {
        Some(compacted) if drops_tables => std::mem::take(&mut compacted.written).first_keys(),
        _ => HashMap::new(),
    };
    let groups = run_groups(objects, &runs)?;
    let mut newest: Vec<Source<'_>> = vec![Box::new(frozen.records().map(Ok))];
    if groups.len() >= options.runs_max && !frozen.is_empty() {
        // Compaction is late. Every run costs each read and a piece in memory, so there is a bound.
        newest.extend(run_sources(objects, replica, groups));
        runs.clear();
        drops_tables = true;
    }
    let run = write_pieces(&mut pinned, Cut::Size, options.piece_bytes, Merge::new(newest))?;
    let newest = run.ids();
    runs.extend(&newest);
    first_keys.extend(run.first_keys());
    let system = if frozen.system.is_empty() { None } else { Some(pinned.put(&frozen.system)?) };
    io(Place::CheckpointRunWritten)?;
    objects.sync().map_err(failure::of_objects)?;
    let checkpoint = Checkpoint { position: frozen.position.clone(), system, base, runs };
    Ok(Built { checkpoint, first_keys, run: newest, drops_tables, _pinned: pinned, _compacted: compacted })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use flotilla_types::LogIndex;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        compact::{compact, plan_for, sources},
        memtable::Memtable,
        tests::empty_checkpoint,
    };

    fn records_of(objects: &ObjectStore, checkpoint: &Checkpoint) -> BTreeMap<Bytes, Bytes> {
        let groups = run_groups(objects, &checkpoint.runs).unwrap();
        Merge::new(sources(objects, ReplicaId(1), &checkpoint.base, groups))
            .map(Result::unwrap)
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn checkpoints_equal_a_map_across_compactions(
            flushes in vec((vec((0u8..60, proptest::option::of(vec(any::<u8>(), 0..40))), 0..40), 0..3), 1..24)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let objects = Arc::new(ObjectStore::open(dir.path(), flotilla_objects::Options::default()).unwrap());
            let options = Options {
                piece_bytes: 256,
                fold_bytes_min: 2_048,
                tier_bytes_min: 512,
                runs_max: 9,
                ..Options::default()
            };
            // What is made from one checkpoint and used some checkpoints later.
            let (mut compacted, mut uses_in) = (None, 0);
            let mut model = BTreeMap::new();
            let mut checkpoint = empty_checkpoint(ReplicaId(1));
            for (index, (writes, delay)) in flushes.into_iter().enumerate() {
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
                let used = if uses_in == 0 { compacted.take() } else { None };
                uses_in = uses_in.max(1) - 1;
                let built = build(&objects, &options, ReplicaId(1), &checkpoint, &frozen, used).unwrap();
                checkpoint = built.checkpoint.clone();
                prop_assert!(checkpoint.objects().all(|id| objects.contains(id)), "objects exist before a checkpoint names them");
                prop_assert!(run_groups(&objects, &checkpoint.runs).unwrap().len() <= options.runs_max);
                prop_assert_eq!(&records_of(&objects, &checkpoint), &model);
                if compacted.is_none() {
                    compacted = compact(&objects, &options, ReplicaId(1), &checkpoint, &|| false).unwrap();
                    let runs = run_groups(&objects, &checkpoint.runs).unwrap();
                    let plan = plan_for(&objects, &options, &checkpoint, &runs);
                    prop_assert_eq!(compacted.is_some(), plan.is_some());
                    uses_in = delay;
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
        before = build(&objects, &Options::default(), ReplicaId(1), &before, &frozen, None).unwrap().checkpoint.clone();
        let mut position = before.position.clone();
        position.index = LogIndex(9);
        let frozen = Frozen::new(Memtable::default(), position.clone(), Bytes::new());
        let after = build(&objects, &Options::default(), ReplicaId(1), &before, &frozen, None).unwrap();
        assert_eq!(after.checkpoint, Checkpoint { position, ..before });
    }
}
