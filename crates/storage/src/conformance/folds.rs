//! The suite for folds that the log of a shard orders: two engines, with options and histories of their own,
//! apply the same log.

use std::{collections::BTreeMap, thread};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, KeyRange, LogIndex, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use super::{
    bytes, empty_checkpoint,
    model::{Choices, Model},
    position,
};
use crate::{Fold, StateEngine, WriteSet};

/// Opens the storage of one engine again.
type Open<'a> = &'a mut dyn FnMut() -> Box<dyn StateEngine>;

/// Entries of each log.
const ENTRIES: usize = 500;

enum Entry {
    Write(WriteSet),
    Fold { piece_bytes: u32 },
}

/// A log, what a map holds after each of its entries, and the bases that replicas of it have named.
struct Shard {
    entries: Vec<Entry>,
    /// The records after so many entries.
    models: Vec<Model>,
    bases: BTreeMap<LogIndex, (ObjectId, Vec<ReplicaId>)>,
}

impl Shard {
    fn random(choices: &mut Choices) -> Self {
        let (mut entries, mut models) = (Vec::new(), vec![Model::default()]);
        for _ in 0..ENTRIES {
            let mut model = models.last().cloned().unwrap_or_default();
            if choices.below(40) == 0 {
                entries.push(Entry::Fold { piece_bytes: 64 << choices.below(3) });
            } else {
                let records: WriteSet = (0..=choices.below(6))
                    .map(|_| {
                        let value = (choices.below(3) > 0).then(|| bytes(&choices.below(1_000).to_string()));
                        (bytes(&format!("{:03}", choices.below(120))), value.map(Into::into))
                    })
                    .collect();
                model.write(&records);
                entries.push(Entry::Write(records));
            }
            models.push(model);
        }
        Self { entries, models, bases: BTreeMap::new() }
    }

    /// All replicas that name a base of a fold name the same one, and it has the records as of its entry.
    fn named(&mut self, engine: &dyn StateEngine, replica: ReplicaId, checkpoint: &Checkpoint) {
        let Tables::Manifests(tables) = &checkpoint.tables else { return };
        for table in tables {
            let Some(fold) = table.fold else { continue };
            assert!(fold <= checkpoint.position.index, "a checkpoint does not reach the fold that it names");
            assert_eq!(table.kind, TableKind::Base);
            let (first, named_by) = self.bases.entry(fold).or_insert_with(|| (table.manifest, Vec::new()));
            assert_eq!(*first, table.manifest, "{replica} has another base at {fold}");
            if !named_by.contains(&replica) {
                named_by.push(replica);
                let records = records_of(engine, ReplicaId(replica.0 + 1_000), table);
                assert_eq!(records, self.models[fold.0 as usize].range(&KeyRange::all()), "the base at {fold}");
            }
        }
    }
}

/// The records of a table, by way of another replica.
fn records_of(engine: &dyn StateEngine, other: ReplicaId, table: &TableRef) -> Vec<(Bytes, Bytes)> {
    let alone = Checkpoint { tables: Tables::Manifests(vec![table.clone()]), ..empty_checkpoint(other, 1, 1) };
    engine.install_snapshot(other, &alone).expect("its objects are here");
    let reader = engine.reader(other).expect("an open replica is readable");
    let records = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).expect("an open replica is readable");
    engine.destroy(other).expect("an open replica is destroyed");
    records
}

/// A replica that applies a log in steps of its own.
struct Replica<'a> {
    open: Open<'a>,
    engine: Option<Box<dyn StateEngine>>,
    id: ReplicaId,
    durable: Checkpoint,
    applied: u64,
    is_frozen: bool,
    built: Option<Checkpoint>,
}

impl<'a> Replica<'a> {
    fn new(open: Open<'a>, id: u64) -> Self {
        let (id, engine) = (ReplicaId(id), open());
        let durable = empty_checkpoint(id, 0, 0);
        engine.open(id, &durable).expect("a new replica opens");
        Self { open, engine: Some(engine), id, durable, applied: 0, is_frozen: false, built: None }
    }

    fn engine(&self) -> &dyn StateEngine {
        self.engine.as_deref().expect("the replica always holds an engine between calls")
    }

    fn apply(&mut self, shard: &Shard) {
        let Some(entry) = shard.entries.get(self.applied as usize) else { return };
        self.applied += 1;
        let index = LogIndex(self.applied);
        match entry {
            Entry::Write(records) => {
                self.engine().write(self.id, records.clone(), index).expect("an open replica takes writes");
            }
            Entry::Fold { piece_bytes } => {
                let fold = Fold { index, piece_bytes: *piece_bytes };
                self.engine().pin_fold(self.id, fold).expect("an open replica pins its records");
            }
        }
    }

    fn freeze(&mut self) {
        let position = position(self.id, self.applied, 1);
        self.is_frozen |= self.engine().freeze(self.id, position, bytes("system")).expect("an open replica freezes");
    }

    fn build(&mut self) {
        if self.is_frozen {
            let built = self.engine().build(self.id, CheckpointFormat::Manifests);
            self.built = Some(built.expect("a frozen memtable is built"));
        }
    }

    fn install(&mut self, shard: &mut Shard) {
        let Some(checkpoint) = self.built.take() else { return };
        self.durable = checkpoint;
        self.is_frozen = false;
        self.engine().install_checkpoint(self.id, &self.durable).expect("a built checkpoint is installed");
        shard.named(self.engine(), self.id, &self.durable);
    }

    fn flush(&mut self, shard: &mut Shard) {
        self.freeze();
        self.build();
        self.install(shard);
    }

    fn compact(&self) -> bool {
        self.engine().compact(self.id, Folding::Logged, &|| false).expect("an open replica is compacted")
    }

    /// Ends without warning and starts again; the log repeats what the durable checkpoint does not have.
    fn crash(&mut self, shard: &Shard) {
        self.engine = None;
        let engine = (self.open)();
        engine.open(self.id, &self.durable).expect("a replica opens from its durable checkpoint");
        self.engine = Some(engine);
        (self.applied, self.is_frozen, self.built) = (self.durable.position.index.0, false, None);
        self.assert_matches(shard);
    }

    fn assert_matches(&self, shard: &Shard) {
        let reader = self.engine().reader(self.id).expect("an open replica is readable");
        let records = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).expect("an open replica is readable");
        assert_eq!(records, shard.models[self.applied as usize].range(&KeyRange::all()), "at {}", self.applied);
    }

    /// Applies the rest of the log, and makes the last checkpoint.
    fn finish(&mut self, shard: &mut Shard) {
        while (self.applied as usize) < shard.entries.len() {
            self.apply(shard);
        }
        for _ in 0..3 {
            self.flush(shard);
            self.compact();
        }
        self.flush(shard);
        self.assert_matches(shard);
        self.crash(shard);
    }
}

/// Runs the suite. Each closure opens one engine again; its storage must be empty at the first call. The more
/// the options of the two differ, the better.
///
/// # Panics
/// When an engine breaks its contract.
pub fn folds(first: Open<'_>, second: Open<'_>) {
    let by_both: usize =
        (1..=3).map(|seed| replicas_with_other_histories_make_the_same_bases(first, second, seed)).sum();
    assert!(by_both >= 5, "both replicas have named {by_both} bases");
    a_run_that_spans_the_fold_stays_above_its_base(first);
    a_fold_of_no_records_has_no_base(first);
    a_fold_that_is_stopped_or_overtaken_is_skipped(first);
    a_fold_ends_with_the_records_that_it_is_of(first);
    a_fold_beside_writes_equals_a_map(first);
    a_checkpoint_before_the_fold_does_not_name_its_base(first);
}

fn replicas_with_other_histories_make_the_same_bases(first: Open<'_>, second: Open<'_>, seed: u64) -> usize {
    let mut choices = Choices::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut shard = Shard::random(&mut choices);
    let mut replicas = [Replica::new(first, 300 + seed), Replica::new(second, 400 + seed)];
    // One of them starts anew now and then, the other one seldom.
    for (which, crashes_per) in [(0, 40), (1, 400)] {
        let replica = &mut replicas[which];
        while (replica.applied as usize) < shard.entries.len() {
            match choices.below(12) {
                0..5 => replica.apply(&shard),
                5 | 6 => replica.freeze(),
                7 => replica.build(),
                8 => replica.install(&mut shard),
                _ if choices.below(crashes_per) == 0 => replica.crash(&shard),
                9 => replica.assert_matches(&shard),
                _ => drop(replica.compact()),
            }
        }
        replica.finish(&mut shard);
    }
    shard.bases.values().filter(|(_, named_by)| named_by.len() == 2).count()
}

fn write(records: &[(&str, Option<&str>)]) -> Entry {
    Entry::Write(records.iter().map(|(key, value)| (bytes(key), value.map(|value| bytes(value).into()))).collect())
}

fn shard_of(entries: Vec<Entry>) -> Shard {
    let mut models = vec![Model::default()];
    for entry in &entries {
        let mut model = models.last().cloned().unwrap_or_default();
        if let Entry::Write(records) = entry {
            model.write(records);
        }
        models.push(model);
    }
    Shard { entries, models, bases: BTreeMap::new() }
}

const FOLD: Entry = Entry::Fold { piece_bytes: 64 };

fn kinds(checkpoint: &Checkpoint) -> Vec<(TableKind, Option<u64>)> {
    let Tables::Manifests(tables) = &checkpoint.tables else { panic!("the tables have manifests") };
    tables.iter().map(|table| (table.kind, table.fold.map(|fold| fold.0))).collect()
}

fn a_run_that_spans_the_fold_stays_above_its_base(open: Open<'_>) {
    let before = [("a", Some("1")), ("b", Some("1")), ("c", Some("1"))];
    let mut shard = shard_of(vec![
        write(&before),
        write(&[("b", None), ("d", Some("2"))]),
        FOLD,
        // Deletes what the base has, and brings back what it has not.
        write(&[("a", None), ("b", Some("3")), ("e", Some("3"))]),
        write(&[("f", Some("4"))]),
    ]);
    let mut replica = Replica::new(open, 310);
    replica.apply(&shard);
    replica.flush(&mut shard);
    for _ in 0..3 {
        replica.apply(&shard);
    }
    // This run has records from before the fold and from after it.
    replica.flush(&mut shard);
    assert!(replica.engine().compaction_due(replica.id).compact);
    assert!(replica.compact());
    assert!(replica.engine().compaction_due(replica.id).made);
    replica.apply(&shard);
    replica.flush(&mut shard);
    let run = (TableKind::Run, None);
    assert_eq!(kinds(&replica.durable), [(TableKind::Base, Some(3)), run, run]);
    assert!(!replica.engine().compaction_due(replica.id).compact);
    replica.assert_matches(&shard);
    replica.crash(&shard);
}

fn a_fold_of_no_records_has_no_base(open: Open<'_>) {
    let mut shard = shard_of(vec![write(&[("a", Some("1"))]), write(&[("a", None)]), FOLD, write(&[("b", Some("2"))])]);
    let mut replica = Replica::new(open, 311);
    for _ in 0..3 {
        replica.apply(&shard);
        replica.flush(&mut shard);
    }
    replica.compact();
    replica.apply(&shard);
    replica.flush(&mut shard);
    assert_eq!(kinds(&replica.durable), [(TableKind::Run, None)]);
    replica.assert_matches(&shard);
    replica.crash(&shard);
}

fn a_fold_that_is_stopped_or_overtaken_is_skipped(open: Open<'_>) {
    let mut shard = shard_of(vec![write(&[("a", Some("1"))]), FOLD, write(&[("b", Some("2"))]), FOLD]);
    let mut replica = Replica::new(open, 312);
    let before = replica.engine().fold_counts();
    for _ in 0..4 {
        replica.apply(&shard);
    }
    replica.flush(&mut shard);
    replica.compact();
    replica.flush(&mut shard);
    assert_eq!(kinds(&replica.durable)[0], (TableKind::Base, Some(4)));
    let after = replica.engine().fold_counts();
    assert_eq!((after.made - before.made, after.skipped - before.skipped), (1, 1));
    let stopped = replica.engine().compact(replica.id, Folding::Logged, &|| true).expect("an open replica");
    assert!(!stopped);
    replica.crash(&shard);
}

/// A snapshot replaces the records, or the replica is destroyed.
fn a_fold_ends_with_the_records_that_it_is_of(open: Open<'_>) {
    let mut shard = shard_of(vec![write(&[("a", Some("1"))]), FOLD]);
    let mut replica = Replica::new(open, 313);
    replica.apply(&shard);
    replica.apply(&shard);
    replica.flush(&mut shard);
    let snapshot = empty_checkpoint(replica.id, 9, 1);
    replica.engine().install_snapshot(replica.id, &snapshot).expect("it has no objects");
    assert!(!replica.compact());
    assert_eq!(replica.engine().compaction_due(replica.id), crate::CompactionDue::default());
    let fold = Fold { index: LogIndex(10), piece_bytes: 64 };
    replica.engine().pin_fold(replica.id, fold).expect("an open replica pins its records");
    replica.engine().destroy(replica.id).expect("an open replica is destroyed");
    assert!(replica.engine().pin_fold(replica.id, fold).is_err());
}

fn a_fold_beside_writes_equals_a_map(open: Open<'_>) {
    let rounds = 60;
    let round = |number: u64| {
        let records = (0..40).map(|key| {
            let value = (!(number + key).is_multiple_of(5)).then(|| bytes(&format!("{number} {key}")));
            (bytes(&format!("{:03}", (key * 7 + number) % 90)), value.map(Into::into))
        });
        Entry::Write(records.collect())
    };
    let fold_at = 20;
    let mut shard = shard_of((0..rounds).map(|number| if number == fold_at { FOLD } else { round(number) }).collect());
    let mut replica = Replica::new(open, 314);
    while replica.applied < rounds / 2 {
        replica.apply(&shard);
        if replica.applied.is_multiple_of(6) {
            replica.flush(&mut shard);
        }
    }
    replica.flush(&mut shard);
    let engine = replica.engine.take().expect("the replica holds an engine");
    let (id, mut applied) = (replica.id, replica.applied);
    let durable = thread::scope(|threads| {
        let folding = threads.spawn(|| engine.compact(id, Folding::Logged, &|| false));
        let mut durable = None;
        while applied < rounds {
            let Entry::Write(records) = &shard.entries[applied as usize] else { panic!("only one entry is a fold") };
            applied += 1;
            engine.write(id, records.clone(), LogIndex(applied)).expect("an open replica takes writes");
            if applied.is_multiple_of(4) && engine.freeze(id, position(id, applied, 1), Bytes::new()).expect("open") {
                let built = engine.build(id, CheckpointFormat::Manifests).expect("a frozen memtable is built");
                engine.install_checkpoint(id, &built).expect("a built checkpoint is installed");
                durable = Some(built);
            }
        }
        assert!(folding.join().expect("the fold does not panic").expect("an open replica is compacted"));
        durable.expect("there were checkpoints")
    });
    (replica.engine, replica.applied, replica.durable) = (Some(engine), applied, durable);
    replica.assert_matches(&shard);
    replica.flush(&mut shard);
    assert_eq!(kinds(&replica.durable)[0], (TableKind::Base, Some(fold_at + 1)));
    replica.crash(&shard);
}

/// The memtable was frozen before the fold, and its checkpoint is built after.
fn a_checkpoint_before_the_fold_does_not_name_its_base(open: Open<'_>) {
    let mut shard = shard_of(vec![write(&[("a", Some("1"))]), write(&[("b", Some("2"))]), FOLD]);
    let mut replica = Replica::new(open, 315);
    replica.apply(&shard);
    replica.freeze();
    replica.apply(&shard);
    replica.apply(&shard);
    replica.compact();
    replica.build();
    replica.compact();
    replica.install(&mut shard);
    assert_eq!(replica.durable.position.index, LogIndex(1));
    assert_eq!(kinds(&replica.durable), [(TableKind::Run, None)]);
    for _ in 0..2 {
        replica.flush(&mut shard);
        replica.compact();
    }
    replica.flush(&mut shard);
    assert_eq!(kinds(&replica.durable)[0], (TableKind::Base, Some(3)));
    replica.crash(&shard);
}
