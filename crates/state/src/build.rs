//! Builds the objects of a checkpoint from a frozen memtable.
//!
//! A checkpoint is a base overlaid by runs. Each build adds a run, and puts in place what a
//! [compaction](crate::compact) has made meanwhile. Building streams: it holds one piece of each source in
//! memory.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_failpoints::{Place, io};
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, KeyRanges};
use flotilla_types::{Checkpoint, CheckpointFormat, ReplicaId};

use crate::{
    Options,
    clip::{clipped, count_whole},
    compact::Compacted,
    failure,
    memtable::{Frozen, GivenUp},
    merge::{Merge, Source},
    sorted::{Cut, Pinned, write_table},
    table::{Table, name_tables, sources},
};

/// A checkpoint whose objects are durable, and stay until it is installed or dropped.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) checkpoint: Checkpoint,
    /// Its tables, oldest first.
    pub(crate) tables: Vec<Arc<Table>>,
    /// The run of the frozen records.
    pub(crate) run: Option<Arc<Table>>,
    /// Whether tables of the last checkpoint are not in it.
    pub(crate) drops_tables: bool,
    /// The first checkpoint of the new replica, if this is one of a split.
    pub(crate) split: Option<BuiltSplit>,
    _pinned: Pinned,
}

#[derive(Debug)]
pub(crate) struct BuiltSplit {
    pub(crate) checkpoint: Checkpoint,
    /// Stay as long as this.
    _tables: Vec<Arc<Table>>,
}

/// Builds the checkpoint that adds frozen records to the tables of an earlier one, with tables replaced that
/// were compacted. The replica has these keys.
#[expect(clippy::too_many_arguments, reason = "the parts of a checkpoint")]
pub(crate) fn build(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    format: CheckpointFormat,
    before: &[Arc<Table>],
    keys: &KeyRanges,
    frozen: &Frozen,
    compacted: Option<&Compacted>,
) -> Result<Built, EngineError> {
    // Only those can refer to objects, and have clips. All nodes read them by then.
    let needs_manifests = frozen.has_refs() || frozen.split.is_some();
    let format = if needs_manifests { format.max(CheckpointFormat::Manifests) } else { format };
    let of_both = frozen.split.as_ref().map_or(keys, |split| &split.of_both);
    let applied = compacted.and_then(|compacted| compacted.apply(objects, before, of_both));
    let mut drops_tables = applied.is_some();
    let mut tables = applied.unwrap_or_else(|| before.to_vec());
    let first_run = tables.iter().take_while(|table| table.cut == Cut::Content).count();
    let mut late = Vec::new();
    if count_whole(&tables[first_run..]) >= options.runs_max && !frozen.is_empty() {
        // Compaction is late. Every run costs each read and a piece in memory, so there is a bound.
        late = tables.split_off(first_run);
        drops_tables = true;
    }
    let (piece_bytes, last) = (options.piece_bytes, frozen.position.index);
    let run = if late.is_empty() {
        write_table(objects, Cut::Size, format, piece_bytes, last, frozen.borrowed_records().map(Ok))?
    } else {
        let newest: Vec<Source<'_>> = vec![Box::new(frozen.records().map(Ok))];
        let newest = newest.into_iter().chain(sources(objects, replica, &late));
        write_table(objects, Cut::Size, format, piece_bytes, last, Merge::new(newest))?
    };
    let run = run.map(Arc::new);
    tables.extend(run.clone());
    let (mut named, mut tables) = name_tables(objects, format, tables)?;
    let mut pinned = Pinned::none(objects);
    let mut put = |system: &Bytes| (!system.is_empty()).then(|| pinned.put(system, &[])).transpose();
    let system = put(&frozen.system)?;
    let mut split = None;
    if let Some(GivenUp { keys: given_up, position, system, .. }) = &frozen.split {
        // The log of the new replica orders no fold of before.
        let theirs = clipped(objects, &tables, given_up).iter().map(|table| Arc::new(table.of_no_fold())).collect();
        let (named_theirs, theirs) = name_tables(objects, format, theirs)?;
        let checkpoint = Checkpoint { position: position.clone(), system: put(system)?, tables: named_theirs };
        split = Some(BuiltSplit { checkpoint, _tables: theirs });
        (named, tables) = name_tables(objects, format, clipped(objects, &tables, keys))?;
    }
    io(Place::CheckpointRunWritten)?;
    objects.sync().map_err(failure::of_objects)?;
    let checkpoint = Checkpoint { position: frozen.position.clone(), system, tables: named };
    Ok(Built { checkpoint, tables, run, drops_tables, split, _pinned: pinned })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flotilla_types::{Folding, LogIndex, Position};
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        compact::{compact, plan_for},
        memtable::Memtable,
        table::open_tables,
        tests::empty_checkpoint,
    };

    /// The records of a checkpoint that is opened anew.
    fn records_of(objects: &Arc<ObjectStore>, checkpoint: &Checkpoint) -> BTreeMap<Bytes, Bytes> {
        let tables = open_tables(objects, ReplicaId(1), checkpoint).unwrap();
        Merge::new(sources(objects, ReplicaId(1), &tables))
            .map(Result::unwrap)
            .filter_map(|(key, value)| Some((key, value?.into_bytes())))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn checkpoints_equal_a_map_across_compactions(
            flushes in vec((vec((0u8..60, proptest::option::of(vec(any::<u8>(), 0..40))), 0..40), 0..3), 1..24),
            // From this flush on checkpoints have manifests.
            raised_at in 0..24_usize,
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
            let mut tables = Vec::new();
            for (index, (writes, delay)) in flushes.into_iter().enumerate() {
                let mut memtable = Memtable::default();
                for (key, value) in writes {
                    let (key, value) = (Bytes::from(vec![key]), value.map(Bytes::from));
                    match value.clone() {
                        Some(value) => model.insert(key.clone(), value),
                        None => model.remove(&key),
                    };
                    memtable.write(vec![(key, value.map(Into::into))], None);
                }
                let mut position = checkpoint.position.clone();
                position.index = LogIndex(index as u64 + 1);
                let frozen = Frozen::new(memtable, position, Bytes::from(vec![index as u8]));
                let used = if uses_in == 0 { compacted.take() } else { None };
                uses_in = uses_in.max(1) - 1;
                let format =
                    if index < raised_at { CheckpointFormat::Pieces } else { CheckpointFormat::Manifests };
                let (id, keys) = (ReplicaId(1), KeyRanges::all());
                let built = build(&objects, &options, id, format, &tables, &keys, &frozen, used.as_ref()).unwrap();
                (checkpoint, tables) = (built.checkpoint.clone(), built.tables.clone());
                prop_assert_eq!(checkpoint.tables.format(), format);
                let pieces = tables.iter().flat_map(|table| table.ids());
                let mut named = checkpoint.objects().chain(pieces);
                prop_assert!(named.all(|id| objects.contains(id)), "objects exist before a checkpoint names them");
                prop_assert!(tables.iter().filter(|table| table.cut == Cut::Size).count() <= options.runs_max);
                prop_assert_eq!(&records_of(&objects, &checkpoint), &model);
                if compacted.is_none() {
                    let folding = Folding::Local;
                    compacted = compact(&objects, &options, ReplicaId(1), format, &tables, folding, &|| false).unwrap();
                    prop_assert_eq!(compacted.is_some(), plan_for(&options, &tables, Folding::Local).is_some());
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
        let position = empty_checkpoint(ReplicaId(1)).position;
        let frozen = Frozen::new(memtable, position.clone(), Bytes::new());
        for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
            let build = |tables: &[Arc<Table>], frozen: &Frozen| {
                let (id, keys) = (ReplicaId(1), KeyRanges::all());
                build(&objects, &Options::default(), id, format, tables, &keys, frozen, None).unwrap()
            };
            let before = build(&[], &frozen);
            let position = Position { index: LogIndex(9), ..position.clone() };
            let empty = Frozen::new(Memtable::default(), position.clone(), Bytes::new());
            let after = build(&before.tables, &empty);
            assert_eq!(after.checkpoint, Checkpoint { position, ..before.checkpoint });
        }
    }
}
