//! The suite for [`StateEngine`]: covers its whole contract. Each case has its own replicas.
//!
//! A crash is modelled by dropping the engine without [`StateEngine::close`].

mod merges;
mod splits;
mod tables;

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, KeyRange, LogIndex, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use super::{
    bytes, empty_checkpoint,
    model::{Choices, Model},
    position,
};
use crate::{EngineError, Manifest, PieceRef, ScanBounds, StateEngine, StateReader, WriteSet};

/// The storage of the engine under test.
struct Storage<'a> {
    open: &'a mut dyn FnMut() -> Box<dyn StateEngine>,
    /// The format of its checkpoints.
    format: CheckpointFormat,
}

/// Flushes in the longest case: enough for every implementation to fold several times.
const FLUSHES: u64 = 24;
/// Steps of each random walk.
const WALK_STEPS: u64 = 300;

/// Runs the suite with checkpoints of one format. Each call of `open` opens the same engine; its storage must
/// be empty at the first call.
///
/// # Panics
/// When the engine breaks its contract.
pub fn state_engine(format: CheckpointFormat, open: &mut dyn FnMut() -> Box<dyn StateEngine>) {
    let open = &mut Storage { open, format };
    a_new_replica_is_empty(open);
    writes_are_visible_at_once(open);
    a_flush_does_not_change_what_readers_see(open);
    only_one_memtable_is_frozen_at_a_time(open);
    an_empty_memtable_may_be_checkpointed(open);
    scans_merge_all_layers(open);
    scans_stop_at_their_bounds(open);
    pages_of_a_scan_are_bounded_by_what_they_examine(open);
    a_snapshot_of_the_records_sees_no_later_write(open);
    a_snapshot_knows_the_middle_of_its_records(open);
    a_snapshot_that_is_kept_sees_its_moment_over_checkpoints_and_compactions(open);
    reopening_and_replaying_equals_never_crashing(open);
    a_crash_before_or_after_the_pointer_write_loses_nothing(open);
    many_flushes_keep_every_record_and_object(open);
    compaction_bounds_the_tables_and_changes_no_record(open);
    a_compaction_that_is_stopped_or_overtaken_changes_nothing(open);
    a_snapshot_can_be_installed_on_other_replicas(open);
    a_destroyed_replica_is_closed_and_others_keep_their_objects(open);
    objects_are_verified_and_durable(open);
    objects_of_two_holders_stay_until_both_let_go(open);
    what_a_receiver_imports_is_kept_until_it_is_installed(open);
    objects_held_for_a_replica_not_yet_open_are_kept(open);
    a_missing_object_is_named_in_the_error(open);
    for seed in 1..=3 {
        random_walks_match_a_model(open, seed);
    }
    splits::run(open);
    merges::run(open);
    if format == CheckpointFormat::Manifests {
        tables::run(open);
    }
}

/// One replica of an engine under test.
struct Fixture<'a, 'b> {
    storage: &'a mut Storage<'b>,
    engine: Option<Box<dyn StateEngine>>,
    replica: ReplicaId,
    /// The durable checkpoint, as the host's log would hold it.
    durable: Checkpoint,
    index: u64,
}

impl<'a, 'b> Fixture<'a, 'b> {
    fn new(storage: &'a mut Storage<'b>, replica: u64) -> Self {
        let engine = (storage.open)();
        let replica = ReplicaId(replica);
        let durable = empty_checkpoint(replica, 0, 0);
        engine.open(replica, &durable).expect("a new replica opens");
        Self { storage, engine: Some(engine), replica, durable, index: 0 }
    }

    fn engine(&self) -> &dyn StateEngine {
        self.engine.as_deref().expect("the fixture always holds an engine between calls")
    }

    fn crash(&mut self) {
        self.engine = None;
        self.engine = Some((self.storage.open)());
        self.engine().open(self.replica, &self.durable).expect("a replica opens from its durable checkpoint");
    }

    fn stop_and_start(&mut self) {
        self.engine().close().expect("a healthy engine closes");
        self.crash();
    }

    fn write(&mut self, records: &[(&str, Option<&str>)]) {
        let records = records.iter().map(|(key, value)| (bytes(key), value.map(|value| bytes(value).into()))).collect();
        self.write_set(records);
    }

    fn write_set(&mut self, records: WriteSet) {
        self.index += 1;
        self.engine().write(self.replica, records, LogIndex(self.index)).expect("an open replica takes writes");
    }

    fn freeze(&self, system: &str) -> bool {
        let position = position(self.replica, self.index, 1);
        self.engine().freeze(self.replica, position, bytes(system)).expect("an open replica freezes")
    }

    fn build(&self) -> Checkpoint {
        self.engine().build(self.replica, self.storage.format).expect("a frozen memtable is built")
    }

    fn install(&mut self, checkpoint: Checkpoint) {
        self.durable = checkpoint;
        self.engine().install_checkpoint(self.replica, &self.durable).expect("a built checkpoint is installed");
    }

    fn flush(&mut self, system: &str) {
        assert!(self.freeze(system), "nothing else is frozen");
        let checkpoint = self.build();
        self.install(checkpoint);
        if self.needs_compaction() {
            self.compact();
        }
    }

    /// Whether there is something to compact for a replica that decides about its folds.
    fn needs_compaction(&self) -> bool {
        let due = self.engine().compaction_due(self.replica);
        due.compact || due.fold.is_some()
    }

    fn compact(&self) -> bool {
        self.compact_until(Folding::Local, &|| false)
    }

    fn compact_until(&self, folding: Folding, is_stopped: &dyn Fn() -> bool) -> bool {
        self.engine().compact(self.replica, folding, is_stopped).expect("an open replica is compacted")
    }

    fn get(&self, key: &str) -> Option<Bytes> {
        let reader = self.engine().reader(self.replica).expect("an open replica is readable");
        reader.get(key.as_bytes()).expect("an open replica is readable")
    }

    fn scan(&self, start: &str, end: &str, items_max: usize, bytes_max: usize) -> Vec<(Bytes, Bytes)> {
        let reader = self.engine().reader(self.replica).expect("an open replica is readable");
        let range = KeyRange { start: bytes(start), end: bytes(end) };
        reader.scan(&range, items_max, bytes_max).expect("an open replica is readable")
    }

    fn all(&self) -> Vec<(Bytes, Bytes)> {
        self.scan("", "", usize::MAX, usize::MAX)
    }

    fn keys(&self) -> String {
        self.all().iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
    }

    fn assert_matches(&self, model: &Model) {
        assert_eq!(self.all(), model.range(&KeyRange::all()));
    }

    fn assert_objects(&self) {
        for object in self.durable.objects() {
            let found = self.engine().object(object).expect("objects of a durable checkpoint are there");
            assert_eq!(ObjectId::of(&found), object);
        }
    }
}

fn a_new_replica_is_empty(open: &mut Storage<'_>) {
    let test = Fixture::new(open, 201);
    assert_eq!(test.get("a"), None);
    assert!(test.all().is_empty());
    assert!(test.engine().system(&test.durable).expect("no system state is no error").is_empty());
    let usage = test.engine().usage(test.replica);
    assert_eq!((usage.frozen_bytes, usage.checkpoint_bytes), (0, 0));
    let unknown = ReplicaId(299);
    assert!(matches!(test.engine().write(unknown, Vec::new(), LogIndex(1)), Err(EngineError::NotOpen(_))));
    assert!(test.engine().reader(unknown).is_err() && test.engine().build(unknown, test.storage.format).is_err());
    assert!(test.engine().freeze(unknown, position(unknown, 1, 1), Bytes::new()).is_err());
}

fn writes_are_visible_at_once(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 202);
    let reader = test.engine().reader(test.replica).expect("an open replica is readable");
    test.write(&[("a", Some("1")), ("b", Some("2")), ("c", Some(""))]);
    assert_eq!(reader.get(b"a").expect("readable"), Some(bytes("1")), "readers opened earlier see it");
    assert_eq!(test.get("c"), Some(Bytes::new()), "an empty value is a value");
    test.write(&[("a", None), ("b", Some("3")), ("b", Some("4")), ("d", Some("5")), ("d", None)]);
    assert_eq!((test.get("a"), test.get("b"), test.get("d")), (None, Some(bytes("4")), None), "later writes win");
    assert_eq!(test.keys(), "bc");
    assert!(test.engine().usage(test.replica).active_bytes > 0);
}

fn a_flush_does_not_change_what_readers_see(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 203);
    let reader = test.engine().reader(test.replica).expect("an open replica is readable");
    test.write(&[("a", Some("1")), ("b", Some("2"))]);
    assert!(test.freeze("system 1"));
    assert_eq!(test.keys(), "ab");
    let usage = test.engine().usage(test.replica);
    assert!(usage.frozen_bytes > 0, "the memtable is frozen");
    // A write after the freeze is visible, but not part of the checkpoint.
    test.write(&[("a", None), ("c", Some("3"))]);
    assert_eq!(test.keys(), "bc");
    let checkpoint = test.build();
    assert_eq!(test.keys(), "bc");
    assert_eq!(checkpoint.position, position(test.replica, 1, 1));
    assert_eq!(test.engine().system(&checkpoint).expect("just built"), bytes("system 1"));
    test.install(checkpoint);
    assert_eq!(test.keys(), "bc");
    assert_eq!(reader.get(b"c").expect("readable"), Some(bytes("3")), "readers opened earlier stay valid");
    let usage = test.engine().usage(test.replica);
    assert!(usage.frozen_bytes == 0 && usage.active_bytes > 0 && usage.checkpoint_bytes > 0, "{usage:?}");
    drop(reader);
    test.crash();
    assert_eq!(test.keys(), "ab", "the checkpoint contains the frozen records only");
}

fn a_snapshot_knows_the_middle_of_its_records(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 243);
    let middle = |test: &Fixture<'_, '_>, range: &KeyRange| {
        let snapshot = test.engine().snapshot(test.replica).expect("an open replica is readable");
        snapshot.middle(range).expect("readable").map(|key| String::from_utf8(key.to_vec()).expect("a key"))
    };
    assert_eq!(middle(&test, &KeyRange::all()), None);
    test.write(&[("k000", Some("value"))]);
    assert_eq!(middle(&test, &KeyRange::all()), None, "one record has no middle");
    let value = "v".repeat(1_000);
    for number in 1..400 {
        test.write(&[(&format!("k{number:03}"), Some(&value))]);
        if number == 390 {
            test.flush("");
        }
    }
    for key in (100..200).map(|number| format!("k{number:03}")) {
        test.write(&[(&key, None)]);
    }
    // 300 records of about the same length; engines may count what is deleted, and not what is in memory.
    let found = middle(&test, &KeyRange::all()).expect("many records");
    assert!(("k150".."k270").contains(&found.as_str()), "{found}");
    let upper = KeyRange { start: bytes("k300"), end: bytes("k400") };
    let found = middle(&test, &upper).expect("many records");
    assert!(("k330".."k370").contains(&found.as_str()), "{found}");
}

fn only_one_memtable_is_frozen_at_a_time(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 204);
    test.write(&[("a", Some("1"))]);
    assert!(test.freeze("first"));
    test.write(&[("b", Some("2"))]);
    assert!(!test.freeze("second"), "one is frozen already");
    let before = test.build();
    assert!(!test.freeze("second"), "one is being built");
    let again = test.build();
    assert_eq!(again.position, before.position, "build may be called again");
    test.install(again);
    assert_eq!(
        test.engine().system(&test.durable).expect("durable"),
        bytes("first"),
        "a refused freeze changes nothing"
    );
    assert!(test.freeze("second"), "the first one is installed");
    let checkpoint = test.build();
    test.install(checkpoint);
    test.stop_and_start();
    assert_eq!(test.keys(), "ab");
}

fn an_empty_memtable_may_be_checkpointed(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 205);
    test.write(&[("a", Some("1"))]);
    test.flush("one");
    test.index = 9;
    test.flush("nine");
    assert_eq!(test.durable.position.index, LogIndex(9));
    assert_eq!(test.engine().system(&test.durable).expect("durable"), bytes("nine"));
    assert_eq!(test.keys(), "a");
    test.crash();
    assert_eq!(test.keys(), "a");
    assert_eq!(test.engine().system(&test.durable).expect("durable"), bytes("nine"));
}

fn scans_merge_all_layers(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 206);
    test.write(&[
        ("a", Some("base")),
        ("b", Some("base")),
        ("c", Some("base")),
        ("d", Some("base")),
        ("e", Some("base")),
    ]);
    test.flush("");
    test.write(&[("b", Some("run")), ("c", None), ("f", Some("run"))]);
    test.flush("");
    test.write(&[("a", None), ("c", Some("frozen")), ("d", Some("frozen")), ("g", Some("frozen"))]);
    assert!(test.freeze(""));
    test.write(&[("d", None), ("g", None), ("a", Some("active")), ("h", Some("active"))]);
    let expected: Vec<_> =
        [("a", "active"), ("b", "run"), ("c", "frozen"), ("e", "base"), ("f", "run"), ("h", "active")]
            .map(|(key, value)| (bytes(key), bytes(value)))
            .into();
    assert_eq!(test.all(), expected);
    for (key, value) in &expected {
        let reader = test.engine().reader(test.replica).expect("an open replica is readable");
        assert_eq!(reader.get(key).expect("readable").as_ref(), Some(value));
    }
    assert_eq!((test.get("d"), test.get("g")), (None, None));
    assert_eq!(test.scan("b", "f", 10, 1_000), expected[1..4], "start included, end excluded");
    assert!(test.scan("i", "", 10, 1_000).is_empty());
    assert!(test.scan("c", "c", 10, 1_000).is_empty() && test.scan("f", "b", 10, 1_000).is_empty(), "empty ranges");
    let checkpoint = test.build();
    test.install(checkpoint);
    assert_eq!(test.all(), expected);
}

fn scans_stop_at_their_bounds(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 207);
    test.write(&[("a", Some("1111")), ("b", Some("1111"))]);
    test.flush("");
    test.write(&[("a", None), ("c", Some("1111")), ("d", Some("1111"))]);
    assert_eq!(test.scan("", "", 2, 1_000).len(), 2);
    assert_eq!(test.scan("", "", 10, 0).len(), 1, "at least one record");
    assert_eq!(test.scan("", "", 10, 0)[0].0, bytes("b"), "deleted records do not count");
    assert_eq!(test.scan("", "", 10, 6).len(), 2, "stops once the bytes are collected");
    assert_eq!(test.scan("", "", 10, 10).len(), 2);
    assert_eq!(test.scan("", "", 10, 11).len(), 3);
}

fn pages_of_a_scan_are_bounded_by_what_they_examine(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 240);
    let keys: Vec<String> = (10..70).map(|number| number.to_string()).collect();
    for (number, key) in keys.iter().enumerate() {
        test.write(&[(key, Some("1"))]);
        // Records and deletions end up in the base, in runs, frozen and in the memtable.
        if number % 20 == 19 {
            test.flush("");
            test.write(&keys[number - 15..number - 5].iter().map(|key| (&**key, None)).collect::<Vec<_>>());
        }
    }
    assert!(test.freeze(""));
    test.write(&[("15", Some("2")), ("30", None)]);
    let reader = test.engine().reader(test.replica).expect("an open replica is readable");
    for examined_max in [1, 2, 7, 1_000] {
        let (mut range, mut found, mut more) = (KeyRange { start: bytes("12"), end: bytes("68") }, Vec::new(), true);
        while more {
            let bounds = ScanBounds { items_max: 5, bytes_max: 1_000, examined_max };
            let page = reader.scan_page(&range, bounds).expect("an open replica is readable");
            assert!((page.items.len()..=examined_max).contains(&page.examined), "{page:?}");
            assert!(page.items.len() <= 5, "{page:?}");
            more = page.next.is_some();
            if let Some(next) = page.next {
                assert!(next > range.start && page.items.iter().all(|(key, _)| *key < next), "progress without gaps");
                range.start = next;
            }
            found.extend(page.items);
        }
        assert_eq!(found, test.scan("12", "68", usize::MAX, usize::MAX), "{examined_max}");
    }
}

fn reopening_and_replaying_equals_never_crashing(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 208);
    test.write(&[("a", Some("1")), ("b", Some("1"))]);
    test.flush("at 1");
    let later: &[(&str, Option<&str>)] = &[("a", None), ("c", Some("2"))];
    test.write(later);
    let before = test.all();
    for _ in 0..2 {
        test.crash();
        assert_eq!(test.keys(), "ab", "memtables do not survive");
        assert_eq!(test.engine().system(&test.durable).expect("durable"), bytes("at 1"));
        test.index = 1;
        test.write(later);
        assert_eq!(test.all(), before);
    }
    test.stop_and_start();
    test.index = 1;
    test.write(later);
    assert_eq!(test.all(), before, "after a clean stop too");
}

fn a_crash_before_or_after_the_pointer_write_loses_nothing(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 209);
    test.write(&[("a", Some("1"))]);
    test.flush("");
    let old = test.durable.clone();
    test.write(&[("b", Some("2")), ("a", None)]);
    assert!(test.freeze("new"));
    let new = test.build();
    // Built, but the pointer never became durable.
    test.crash();
    assert_eq!((test.keys().as_str(), &test.durable), ("a", &old));
    test.write(&[("b", Some("2")), ("a", None)]);
    assert!(test.freeze("new"));
    let new = Checkpoint { position: new.position, ..test.build() };
    // Durable, but never installed.
    test.durable = new;
    test.crash();
    assert_eq!(test.keys(), "b");
    test.assert_objects();
    test.write(&[("c", Some("3"))]);
    test.flush("");
    assert_eq!(test.keys(), "bc");
}

fn many_flushes_keep_every_record_and_object(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 210);
    let mut model = Model::default();
    let mut choices = Choices::new(7);
    for round in 0..FLUSHES {
        let records: WriteSet = (0..20)
            .map(|_| {
                let value = (choices.below(4) > 0).then(|| bytes(&format!("{round} {}", "v".repeat(30))));
                (bytes(&format!("key {:03}", choices.below(100))), value.map(Into::into))
            })
            .collect();
        model.write(&records);
        test.write_set(records);
        test.flush(&format!("round {round}"));
        test.assert_matches(&model);
        test.assert_objects();
    }
    test.crash();
    test.assert_matches(&model);
    test.stop_and_start();
    test.assert_matches(&model);
    test.assert_objects();
}

fn compaction_bounds_the_tables_and_changes_no_record(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 241);
    let mut model = Model::default();
    let (mut objects_max, mut compacted) = (0, 0);
    for round in 0..4 * FLUSHES {
        let key = |n: u64| bytes(&format!("key {:03}", (round * 7 + n) % 50));
        let records: WriteSet = (0..20).map(|n| (key(n), (n % 5 > 0).then(|| "v".repeat(30).into()))).collect();
        model.write(&records);
        test.write_set(records);
        assert!(test.freeze("system"), "nothing else is frozen");
        let checkpoint = test.build();
        // A compaction may end between a build and its installation.
        if round % 3 == 0 && test.needs_compaction() {
            compacted += u64::from(test.compact());
            test.assert_matches(&model);
        }
        test.install(checkpoint);
        if test.needs_compaction() {
            compacted += u64::from(test.compact());
        }
        test.assert_matches(&model);
        test.assert_objects();
        objects_max = objects_max.max(test.durable.objects().count());
    }
    assert!(compacted > 4, "{compacted} compactions");
    assert!(objects_max < 60, "{objects_max} objects of a shard of fifty records");
    test.crash();
    test.assert_matches(&model);
}

fn a_compaction_that_is_stopped_or_overtaken_changes_nothing(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 242);
    let mut model = Model::default();
    let mut index = 0;
    let mut write = |test: &mut Fixture<'_, '_>, model: &mut Model| {
        index += 1;
        let records: WriteSet = (0..60).map(|n| (bytes(&format!("{n:03}")), Some(index.to_string().into()))).collect();
        model.write(&records);
        test.write_set(records);
        assert!(test.freeze("system"), "nothing else is frozen");
        let checkpoint = test.build();
        test.install(checkpoint);
    };
    let other = test.durable.clone();
    while !test.needs_compaction() {
        write(&mut test, &mut model);
    }
    let stopped = test.compact_until(Folding::Local, &|| true);
    assert!(!stopped && test.needs_compaction());
    write(&mut test, &mut model);
    test.assert_matches(&model);
    assert!(test.compact() && !test.needs_compaction(), "it waits for the next checkpoint");
    // The records are replaced before there is one.
    test.engine().install_snapshot(test.replica, &other).expect("its objects are here");
    test.durable = other;
    test.index += 1;
    let mut model = Model::default();
    test.assert_matches(&model);
    write(&mut test, &mut model);
    test.assert_matches(&model);
    test.crash();
    test.assert_matches(&model);
}

fn a_snapshot_can_be_installed_on_other_replicas(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 211);
    test.write(&[("a", Some("1")), ("b", Some("2"))]);
    test.flush("source");
    let source = test.durable.clone();
    let objects: Vec<_> = source.objects().collect();
    assert!(test.engine().missing(&objects).is_empty(), "a node holds the objects of its own checkpoints");
    // On a replica with other records, part of them frozen.
    let target = ReplicaId(212);
    let engine = test.engine();
    engine.open(target, &empty_checkpoint(target, 0, 0)).expect("a new replica opens");
    let reader = engine.reader(target).expect("an open replica is readable");
    let write = |key: &str, index| {
        engine.write(target, vec![(bytes(key), Some("old".into()))], LogIndex(index)).expect("an open replica writes");
    };
    write("x", 1);
    assert!(engine.freeze(target, position(target, 1, 1), Bytes::new()).expect("an open replica freezes"));
    write("y", 2);
    let moved = Checkpoint { position: position(target, 50, 3), ..source.clone() };
    engine.install_snapshot(target, &moved).expect("all objects are here");
    let all = reader.scan(&KeyRange::all(), 10, 1_000).expect("an installed replica is readable");
    assert_eq!(all, test.all(), "readers opened earlier see the snapshot");
    assert_eq!(engine.system(&moved).expect("installed"), bytes("source"));
    let usage = engine.usage(target);
    assert_eq!(usage.frozen_bytes, 0);
    write("c", 51);
    assert!(engine.freeze(target, position(target, 51, 3), Bytes::new()).expect("nothing is frozen after an install"));
    let next = engine.build(target, test.storage.format).expect("a frozen memtable is built");
    engine.install_checkpoint(target, &next).expect("a built checkpoint is installed");
    // On a replica that was never open.
    let third = ReplicaId(213);
    engine.install_snapshot(third, &next).expect("all objects are here");
    let all = engine.reader(third).expect("installed").scan(&KeyRange::all(), 10, 1_000).expect("readable");
    assert_eq!(all.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), ["a", "b", "c"].map(bytes));
    test.assert_objects();
    drop(reader);
    test.crash();
    assert_eq!(test.keys(), "ab");
    test.engine().open(target, &next).expect("opens from its durable checkpoint");
    let reader = test.engine().reader(target).expect("an open replica is readable");
    assert_eq!(reader.scan(&KeyRange::all(), 10, 1_000).expect("readable").len(), 3);
}

fn a_snapshot_of_the_records_sees_no_later_write(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 230);
    let assert_sees = |snapshot: &dyn StateReader, model: &Model| {
        let all = snapshot.scan(&KeyRange::all(), usize::MAX, usize::MAX).expect("the replica is open");
        assert_eq!(all, model.range(&KeyRange::all()));
        for key in "abcdefgh".chars().map(|key| bytes(&key.to_string())) {
            assert_eq!(snapshot.get(&key).expect("the replica is open"), model.get(&key), "{key:?}");
        }
    };
    let mut model = Model::default();
    let mut open_snapshots = Vec::new();
    let mut choices = Choices::new(7);
    // Each write changes some keys; every few, the memtable is frozen, built or installed.
    for step in 0..60 {
        let snapshot = test.engine().snapshot(test.replica).expect("the replica is open");
        open_snapshots.push((snapshot, model.clone()));
        let value = choices.below(3).checked_sub(1).map(|_| format!("{step}"));
        let keys =
            [choices.below(8), choices.below(8)].map(|key| ["a", "b", "c", "d", "e", "f", "g", "h"][key as usize]);
        let records: WriteSet = keys.map(|key| (bytes(key), value.clone().map(Into::into))).into();
        model.write(&records);
        test.write_set(records);
        match step % 9 {
            3 => assert!(test.freeze("system"), "nothing else is frozen"),
            7 => {
                let checkpoint = test.build();
                // An install may wait for open snapshots.
                open_snapshots.clear();
                test.install(checkpoint);
            }
            _ => {}
        }
        for (snapshot, model) in &open_snapshots {
            assert_sees(&**snapshot, model);
        }
        if open_snapshots.len() > 5 {
            open_snapshots.remove(choices.below(5) as usize);
        }
    }
    let is_closed = |reader: &dyn StateReader| matches!(reader.get(b"a"), Err(EngineError::NotOpen(_)));
    let (before, _) = open_snapshots.pop().expect("some are open");
    test.engine().install_snapshot(test.replica, &test.durable).expect("all objects are here");
    assert!(is_closed(&*before), "its records were replaced");
    let before = test.engine().snapshot(test.replica).expect("the replica is open");
    test.engine().destroy(test.replica).expect("an open replica is destroyed");
    assert!(is_closed(&*before), "its replica was destroyed");
    assert!(matches!(test.engine().snapshot(test.replica), Err(EngineError::NotOpen(_))));
}

/// Readers of many pages keep a snapshot for long, where it delays nothing.
fn a_snapshot_that_is_kept_sees_its_moment_over_checkpoints_and_compactions(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 231);
    if test.engine().snapshots_delay_checkpoints() {
        return;
    }
    let range = KeyRange::all();
    let mut model = Model::default();
    let mut kept: Vec<(_, Model, KeyRange)> = Vec::new();
    for step in 0..12 {
        let records: WriteSet = (0..40)
            .map(|key| (bytes(&format!("k{key:02}")), (key % 7 != step % 7).then(|| format!("{step}").into())))
            .collect();
        model.write(&records);
        test.write_set(records);
        let snapshot = test.engine().snapshot(test.replica).expect("the replica is open");
        kept.push((snapshot, model.clone(), range.clone()));
        assert!(test.freeze("system"), "nothing else is frozen");
        let checkpoint = test.build();
        test.install(checkpoint);
        if test.needs_compaction() {
            test.compact();
        }
        // One page of each, as readers do that are slow.
        for (snapshot, model, rest) in &mut kept {
            let page = snapshot.scan(rest, 3, usize::MAX).expect("the snapshot is open");
            assert_eq!(page, model.range(rest).into_iter().take(3).collect::<Vec<_>>());
            if let Some((last, _)) = page.last() {
                rest.start = crate::successor(last);
            }
        }
    }
    for (snapshot, model, _) in kept {
        assert_eq!(snapshot.scan(&range, usize::MAX, usize::MAX).expect("the snapshot is open"), model.range(&range));
    }
}

fn a_destroyed_replica_is_closed_and_others_keep_their_objects(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 214);
    test.write(&[("a", Some("1"))]);
    test.flush("shared");
    let twin = ReplicaId(215);
    test.engine().install_snapshot(twin, &test.durable).expect("all objects are here");
    let reader = test.engine().reader(twin).expect("an installed replica is readable");
    test.engine().destroy(twin).expect("an open replica is destroyed");
    assert!(matches!(reader.get(b"a"), Err(EngineError::NotOpen(_))));
    assert!(matches!(reader.scan(&KeyRange::all(), 1, 1), Err(EngineError::NotOpen(_))));
    assert!(matches!(test.engine().write(twin, Vec::new(), LogIndex(1)), Err(EngineError::NotOpen(_))));
    test.engine().destroy(twin).expect("destroying again is harmless");
    test.assert_objects();
    test.crash();
    assert_eq!(test.keys(), "a");
}

fn objects_are_verified_and_durable(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 216);
    let content = bytes("an object from a peer");
    let object = ObjectId::of(&content);
    test.engine().hold(Holder::Receiver(ReplicaId(218)), &[object, ObjectId::of(b"never here")]);
    assert_eq!(test.engine().missing(&[object]), [object]);
    assert!(matches!(test.engine().object(object), Err(EngineError::Object(id)) if id == object));
    let wrong = test.engine().import(object, bytes("something else"), &[]);
    assert!(matches!(wrong, Err(EngineError::Mismatch(id)) if id == object));
    assert_eq!(test.engine().missing(&[object]), [object], "nothing was stored");
    test.engine().import(object, content.clone(), &[]).expect("the right bytes are stored");
    test.engine().import(object, content.clone(), &[]).expect("twice is harmless");
    test.engine().sync().expect("imports become durable");
    assert!(test.engine().missing(&[object]).is_empty());
    assert_eq!(test.engine().object(object).expect("stored"), content);
    test.crash();
    // A restart forgets holders, so the object may be gone; `missing` and `object` must agree.
    let held = test.engine().missing(&[object]).is_empty();
    assert_eq!(test.engine().object(object).ok(), held.then_some(content));
    test.engine().hold(Holder::Receiver(ReplicaId(218)), &[]);
}

fn objects_of_two_holders_stay_until_both_let_go(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 219);
    test.write(&[("a", Some("1"))]);
    test.flush("the same in two replicas");
    let shared = test.durable.clone();
    let objects: Vec<_> = shared.objects().collect();
    let (first, second) = (ReplicaId(220), ReplicaId(221));
    let engine = test.engine();
    let offer = |to| Holder::Offer { from: test.replica, to };
    engine.hold(offer(first), &objects);
    engine.hold(Holder::Receiver(second), &objects);
    engine.install_snapshot(first, &shared).expect("all objects are here");
    engine.hold(offer(first), &[]);
    // Only the second receiver needs them now.
    engine.destroy(first).expect("an open replica is destroyed");
    engine.destroy(test.replica).expect("an open replica is destroyed");
    assert!(engine.missing(&objects).is_empty());
    engine.install_snapshot(second, &shared).expect("all objects are still here");
    let reader = engine.reader(second).expect("an installed replica is readable");
    assert_eq!(reader.get(b"a").expect("readable"), Some(bytes("1")));
}

fn what_a_receiver_imports_is_kept_until_it_is_installed(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 224);
    let receiver = ReplicaId(225);
    let objects: Vec<_> = (0..3).map(|n| bytes(&format!("object {n} from a peer"))).collect();
    let ids: Vec<_> = objects.iter().map(|object| ObjectId::of(object)).collect();
    test.engine().hold(Holder::Receiver(receiver), &ids[..2]);
    test.engine().import(ids[0], objects[0].clone(), &[]).expect("the right bytes are stored");
    // A newer offer names others. What both name stays, before it is durable and after.
    test.engine().hold(Holder::Receiver(receiver), &ids);
    assert_eq!(test.engine().missing(&ids).len(), 2);
    // The replica itself may be opened meanwhile.
    test.engine().open(receiver, &empty_checkpoint(receiver, 0, 0)).expect("a new replica opens");
    test.engine().sync().expect("imports become durable");
    for round in 0..FLUSHES {
        test.write(&[("a", Some(&format!("{round}")))]);
        test.flush(&format!("round {round}"));
    }
    assert_eq!(test.engine().object(ids[0]).expect("held"), objects[0]);
    test.engine().destroy(receiver).expect("an open replica is destroyed");
    test.assert_objects();
}

fn objects_held_for_a_replica_not_yet_open_are_kept(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 222);
    test.write(&[("a", Some("1"))]);
    test.flush("the same in two replicas");
    let shared = test.durable.clone();
    let twin = ReplicaId(223);
    test.engine().install_snapshot(twin, &shared).expect("all objects are here");
    test.engine = None;
    // Both hold them after a restart, and one of them is destroyed before the other is open.
    let engine = (test.storage.open)();
    for replica in [test.replica, twin] {
        engine.hold(Holder::Checkpoint(replica), &shared.objects().collect::<Vec<_>>());
    }
    engine.open(test.replica, &shared).expect("an intact replica opens");
    engine.destroy(test.replica).expect("an open replica is destroyed");
    engine.open(twin, &shared).expect("its objects are still here");
}

fn a_missing_object_is_named_in_the_error(open: &mut Storage<'_>) {
    let mut test = Fixture::new(open, 217);
    test.write(&[("a", Some("1"))]);
    test.flush("here");
    let absent = ObjectId::of(b"absent");
    let replica = ReplicaId(218);
    let table = |kind| TableRef { kind, clip: KeyRange::all(), manifest: absent, fold: None };
    for tables in [
        Tables::Pieces { base: Vec::new(), runs: vec![absent] },
        Tables::Pieces { base: vec![absent], runs: Vec::new() },
        Tables::Manifests(vec![table(TableKind::Base)]),
        Tables::Manifests(vec![table(TableKind::Run)]),
    ] {
        let checkpoint = Checkpoint { tables, ..test.durable.clone() };
        let result = test.engine().open(replica, &checkpoint);
        assert!(matches!(result, Err(EngineError::Object(id)) if id == absent), "{result:?}");
        // An open replica keeps its records.
        let result = test.engine().install_snapshot(test.replica, &checkpoint);
        assert!(matches!(result, Err(EngineError::Object(id)) if id == absent), "{result:?}");
        assert_eq!(test.keys(), "a");
    }
    let system = Checkpoint { system: Some(absent), ..test.durable.clone() };
    assert!(matches!(test.engine().system(&system), Err(EngineError::Object(id)) if id == absent));
}

fn random_walks_match_a_model(open: &mut Storage<'_>, seed: u64) {
    let mut test = Fixture::new(open, 220 + seed);
    let mut choices = Choices::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut model = Model::default();
    // The write sets that the log would replay, those after the durable checkpoint, with their indexes.
    let mut replayed: Vec<(u64, WriteSet)> = Vec::new();
    let mut built: Option<Checkpoint> = None;
    let mut frozen = false;
    for _ in 0..WALK_STEPS {
        match choices.below(12) {
            0..6 => {
                let records: WriteSet = (0..=choices.below(4))
                    .map(|_| {
                        let value = (choices.below(3) > 0).then(|| bytes(&choices.below(1_000).to_string()));
                        (bytes(&format!("{:02}", choices.below(40))), value.map(Into::into))
                    })
                    .collect();
                model.write(&records);
                test.write_set(records.clone());
                replayed.push((test.index, records));
            }
            6 => frozen |= test.freeze("walk"),
            7 if frozen => built = Some(test.build()),
            8 | 9 if built.is_some() => {
                let checkpoint = built.take().expect("checked above");
                replayed.retain(|(index, _)| *index > checkpoint.position.index.0);
                test.install(checkpoint);
                frozen = false;
            }
            10 if choices.below(4) == 0 => {
                test.crash();
                (built, frozen) = (None, false);
                for (index, records) in &replayed {
                    test.index = index - 1;
                    test.write_set(records.clone());
                }
            }
            _ => {
                let key = bytes(&format!("{:02}", choices.below(40)));
                assert_eq!(test.get(&String::from_utf8_lossy(&key)), model.get(&key));
                let range = KeyRange { start: key, end: bytes("30") };
                let found = test.scan(&String::from_utf8_lossy(&range.start), "30", 5, usize::MAX);
                let expected = model.range(&range);
                assert_eq!(found, expected[..expected.len().min(5)]);
            }
        }
    }
    test.assert_matches(&model);
    test.assert_objects();
}
