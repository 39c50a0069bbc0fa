//! The suite of references: what a record refers to stays as long as something has the record, and no longer.
//!
//! An engine deletes what nobody needs whenever it likes. So the suite makes enough garbage for a collection, and
//! asks which of the objects are still here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Holder, KeyRange, LogIndex, ObjectId, ObjectRef, ReplicaId, Term,
};

use super::{bytes, empty_checkpoint, model::Choices, position};
use crate::{Fold, StateEngine, Value};

type Open<'a> = &'a mut dyn FnMut() -> Box<dyn StateEngine>;

pub(super) const REPLICA: ReplicaId = ReplicaId(700);
const GARBAGE: Holder = Holder::Upload(1 << 20);
/// Bytes of an object that nobody needs: it fills a segment.
const GARBAGE_BYTES: usize = 96 << 10;

/// Runs the suite. `open` opens the same storage again; objects of at least 96 KiB fill a segment of
/// it, and nothing that was here before keeps it from collecting.
pub fn references(open: Open<'_>) {
    what_a_record_refers_to_lives_as_long_as_the_record(open);
    what_only_a_snapshot_or_a_fold_sees_stays_for_it(open);
    an_object_that_should_be_here_is_damage_of_its_holders(open);
    children_are_what_the_caller_says(open);
    for seed in 1..=3 {
        random_histories_keep_what_is_reachable(open, seed);
    }
}

/// A value of two chunks and a list of them.
struct Stored {
    root: ObjectId,
    all: Vec<ObjectId>,
}

impl Stored {
    /// Stores the objects of a value for an upload.
    fn new(engine: &dyn StateEngine, name: &str) -> Self {
        let chunks = ["first", "second"].map(|part| Bytes::from(format!("{part} chunk of {name}").repeat(40)));
        let ids = [&chunks[0], &chunks[1]].map(|chunk| ObjectId::of(chunk));
        let list = bytes(&format!("list of {name}"));
        let root = ObjectId::of(&list);
        engine.hold(upload(root), &[root]);
        engine.import(root, list, &ids).expect("the right bytes are stored");
        for (id, chunk) in ids.iter().zip(chunks) {
            engine.import(*id, chunk, &[]).expect("the right bytes are stored");
        }
        engine.sync().expect("a healthy disk");
        Self { root, all: vec![root, ids[0], ids[1]] }
    }

    fn value(&self) -> Value {
        let refs = [ObjectRef { id: self.root, height: 1, bytes: 7 }];
        Value::new(self.root.as_bytes().to_vec(), refs.into_iter().collect())
    }

    /// Ends the upload.
    fn let_go(&self, engine: &dyn StateEngine) {
        engine.hold(upload(self.root), &[]);
    }

    fn is_whole(&self, engine: &dyn StateEngine) -> bool {
        engine.missing(&self.all).is_empty()
    }

    fn is_gone(&self, engine: &dyn StateEngine) -> bool {
        engine.missing(&self.all).len() == self.all.len()
    }
}

fn upload(root: ObjectId) -> Holder {
    Holder::Upload(u64::from(root.0[0]) << 8 | u64::from(root.0[1]))
}

fn entry(index: u64) -> Holder {
    Holder::Log { replica: REPLICA, index: LogIndex(index), term: Term(1) }
}

fn flush(engine: &dyn StateEngine, index: u64) -> Checkpoint {
    assert!(engine.freeze(REPLICA, position(REPLICA, index, 1), Bytes::new()).expect("an open replica freezes"));
    // A node that does not know the version in force yet builds in the first format.
    let built = engine.build(REPLICA, CheckpointFormat::Pieces).expect("a frozen memtable is built");
    engine.install_checkpoint(REPLICA, &built).expect("a built checkpoint is installed");
    built
}

/// Makes garbage, and the engine collect it.
pub(super) fn collect(engine: &dyn StateEngine, index: &mut u64) -> Checkpoint {
    let mut newest = None;
    for _ in 0..34 {
        *index += 1;
        let garbage = Bytes::from(format!("{index} ").repeat(GARBAGE_BYTES / 2));
        let id = ObjectId::of(&garbage);
        engine.hold(GARBAGE, &[id]);
        engine.import(id, garbage, &[]).expect("the right bytes are stored");
        engine.sync().expect("a healthy disk");
        newest = Some(flush(engine, *index));
    }
    engine.hold(GARBAGE, &[]);
    *index += 1;
    newest.replace(flush(engine, *index));
    newest.expect("there were some")
}

fn fold(engine: &dyn StateEngine, index: u64) {
    engine.pin_fold(REPLICA, Fold { index: LogIndex(index), piece_bytes: 256 }).expect("an open replica");
    flush(engine, index);
    engine.compact(REPLICA, Folding::Logged, &|| false).expect("an open replica is compacted");
    flush(engine, index + 1);
}

fn what_a_record_refers_to_lives_as_long_as_the_record(open: Open<'_>) {
    let engine = open();
    let engine = &*engine;
    engine.open(REPLICA, &empty_checkpoint(REPLICA, 0, 0)).expect("a new replica opens");
    let (kept, replaced, deleted) =
        (Stored::new(engine, "kept"), Stored::new(engine, "replaced"), Stored::new(engine, "deleted"));
    let records = [("a", &kept), ("b", &replaced), ("c", &deleted)];
    engine.hold(entry(1), &records.map(|(_, stored)| stored.root));
    let write = |records: Vec<(&str, Option<Value>)>, index| {
        let records = records.into_iter().map(|(key, value)| (bytes(key), value)).collect();
        engine.write(REPLICA, records, LogIndex(index)).expect("an open replica takes writes");
    };
    write(records.map(|(key, stored)| (key, Some(stored.value()))).into(), 1);
    records.iter().for_each(|(_, stored)| stored.let_go(engine));
    let mut index = 1;
    let built = flush(engine, index);
    // The log is truncated: the run holds them.
    engine.hold(entry(1), &[]);
    collect(engine, &mut index);
    assert!(records.iter().all(|(_, stored)| stored.is_whole(engine)), "the run refers to them");
    let lists = built.objects().flat_map(|id| piece_refs(engine, id)).collect::<BTreeSet<_>>();
    assert_eq!(lists, records.iter().map(|(_, stored)| stored.root).collect(), "a piece says what it refers to");

    index += 1;
    write(vec![("b", Some("small".into())), ("c", None)], index);
    flush(engine, index);
    assert!(records.iter().all(|(_, stored)| stored.is_whole(engine)), "a run below has the records");
    fold(engine, index + 1);
    index += 2;
    let durable = collect(engine, &mut index);
    assert!(kept.is_whole(engine));
    assert!(replaced.is_gone(engine) && deleted.is_gone(engine), "the fold has dropped them");
    let reader = engine.reader(REPLICA).expect("an open replica");
    let found = reader.scan(&KeyRange::all(), 9, 9_999).expect("an open replica");
    assert_eq!(found, [(bytes("a"), kept.value().into_bytes()), (bytes("b"), bytes("small"))]);

    // A rename: the entry does not name what the record refers to.
    index += 1;
    write(vec![("a", None), ("z", Some(kept.value()))], index);
    collect(engine, &mut index);
    assert!(kept.is_whole(engine));
    drop(reader);
    engine.destroy(REPLICA).expect("an open replica");
    engine.open(REPLICA, &empty_checkpoint(REPLICA, 0, 0)).expect("a new replica opens");
    assert_ne!(durable, collect(engine, &mut index));
    assert!(kept.is_gone(engine), "nobody has the record");
    engine.destroy(REPLICA).expect("an open replica");
}

/// What the pieces of a manifest refer to; nothing for other objects.
fn piece_refs(engine: &dyn StateEngine, manifest: ObjectId) -> Vec<ObjectId> {
    let manifest = crate::Manifest::decode(engine.object(manifest).expect("it is here")).unwrap_or_default();
    let refs = |piece: ObjectId| engine.piece_refs(&engine.object(piece).expect("it is here")).expect("a piece");
    manifest.children().into_iter().flat_map(refs).map(|reference| reference.id).collect()
}

fn what_only_a_snapshot_or_a_fold_sees_stays_for_it(open: Open<'_>) {
    let engine = open();
    let engine = &*engine;
    if engine.snapshots_delay_checkpoints() {
        return;
    }
    engine.open(REPLICA, &empty_checkpoint(REPLICA, 0, 0)).expect("a new replica opens");
    let (seen, folded) = (Stored::new(engine, "seen"), Stored::new(engine, "folded"));
    let write = |key: &str, value: Option<Value>, index| {
        engine.write(REPLICA, vec![(bytes(key), value)], LogIndex(index)).expect("an open replica takes writes");
    };
    write("a", Some(seen.value()), 1);
    let snapshot = engine.snapshot(REPLICA).expect("an open replica");
    write("a", None, 2);
    write("b", Some(folded.value()), 3);
    engine.pin_fold(REPLICA, Fold { index: LogIndex(3), piece_bytes: 256 }).expect("an open replica");
    write("b", None, 4);
    [&seen, &folded].into_iter().for_each(|stored| stored.let_go(engine));
    let mut index = 4;
    collect(engine, &mut index);
    assert!(seen.is_whole(engine), "a snapshot sees the record");
    assert_eq!(snapshot.get(b"a").expect("it is open"), Some(seen.value().into_bytes()));
    assert!(folded.is_whole(engine), "a fold will write the record");
    drop(snapshot);
    assert!(engine.compact(REPLICA, Folding::Logged, &|| false).expect("an open replica is compacted"));
    let checkpoint = collect(engine, &mut index);
    assert!(seen.is_gone(engine), "nobody sees the record any more");
    assert!(
        engine.missing(&checkpoint.objects().collect::<Vec<_>>()).is_empty(),
        "all that the base refers to is here"
    );
    engine.destroy(REPLICA).expect("an open replica");
}

fn an_object_that_should_be_here_is_damage_of_its_holders(open: Open<'_>) {
    let engine = open();
    let engine = &*engine;
    let absent = ObjectId::of(b"absent");
    engine.open(REPLICA, &empty_checkpoint(REPLICA, 0, 0)).expect("a new replica opens");
    engine.hold(Holder::Parked(REPLICA), &[absent]);
    engine.expect(&[absent]);
    assert_eq!(engine.damaged(), [], "it is still to be fetched");
    engine.hold(entry(5), &[absent]);
    engine.expect(&[absent]);
    let damaged = engine.damaged();
    assert_eq!(
        damaged.iter().map(|damaged| (damaged.replica, &damaged.objects[..])).collect::<Vec<_>>(),
        [(REPLICA, &[absent][..])]
    );
    engine.import(absent, Bytes::from_static(b"absent"), &[]).expect("the right bytes are stored");
    assert_eq!(engine.damaged(), []);
    engine.hold(entry(5), &[]);
    engine.hold(Holder::Parked(REPLICA), &[]);
    engine.destroy(REPLICA).expect("an open replica");
}

fn children_are_what_the_caller_says(open: Open<'_>) {
    let engine = open();
    let child = ObjectId::of(b"child");
    // A chunk with the bytes of a manifest, as any client can make one.
    let manifest = crate::Manifest {
        pieces: vec![crate::PieceRef {
            id: child,
            first_key: Bytes::new(),
            bytes: 1,
            records: 1,
            footer_bytes: 0,
            footer_crc: 0,
        }],
    };
    let chunk = manifest.encode();
    let id = ObjectId::of(&chunk);
    engine.hold(upload(id), &[id]);
    engine.import(id, chunk.clone(), &[]).expect("the right bytes are stored");
    assert_eq!(engine.missing(&[id]), [], "it is a chunk");
    engine.import(id, chunk, &[child]).expect("the right bytes are stored");
    assert_eq!(engine.missing(&[id]), [child], "and something else in another place");
    engine.hold(upload(id), &[]);
}

/// An entry, its key, and the value with the object that it refers to.
type Logged = (u64, Bytes, Option<(Value, ObjectId)>);

/// Writes, deletions, flushes, compactions, folds, truncations and crashes in any order.
fn random_histories_keep_what_is_reachable(open: Open<'_>, seed: u64) {
    let mut engine = open();
    let mut choices = Choices::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut durable = empty_checkpoint(REPLICA, 0, 0);
    engine.open(REPLICA, &durable).expect("a new replica opens");
    let mut values: BTreeMap<Bytes, Stored> = BTreeMap::new();
    // The log since the checkpoint: what a crash repeats.
    let mut log: VecDeque<Logged> = VecDeque::new();
    let mut index = 0;
    for step in 0..150 {
        let e = &*engine;
        match choices.below(12) {
            0..6 => {
                index += 1;
                let key = bytes(&choices.below(8).to_string());
                let stored = (choices.below(3) > 0).then(|| Stored::new(e, &format!("{seed} {step}")));
                let value = stored.as_ref().map(Stored::value);
                e.hold(entry(index), &stored.iter().map(|stored| stored.root).collect::<Vec<_>>());
                stored.iter().for_each(|stored| stored.let_go(e));
                e.write(REPLICA, vec![(key.clone(), value.clone())], LogIndex(index)).expect("an open replica");
                log.push_back((index, key.clone(), value.zip(stored.as_ref().map(|stored| stored.root))));
                match stored {
                    Some(stored) => values.insert(key, stored),
                    None => values.remove(&key),
                };
            }
            6..9 => {
                durable = flush(e, index);
                while let Some((first, ..)) = log.pop_front() {
                    e.hold(entry(first), &[]);
                }
            }
            9 => {
                let _ = e.compact(REPLICA, Folding::Logged, &|| false).expect("an open replica is compacted");
            }
            10 => {
                index += 1;
                e.pin_fold(REPLICA, Fold { index: LogIndex(index), piece_bytes: 64 }).expect("an open replica");
            }
            _ if choices.below(3) == 0 => {
                drop(engine);
                engine = open();
                engine.hold(Holder::Checkpoint(REPLICA), &durable.objects().collect::<Vec<_>>());
                for (index, _, value) in &log {
                    engine.hold(entry(*index), &value.iter().map(|(_, root)| *root).collect::<Vec<_>>());
                }
                engine.open(REPLICA, &durable).expect("a replica opens from its durable checkpoint");
                for (index, key, value) in &log {
                    let value = value.clone().map(|(value, _)| value);
                    engine.write(REPLICA, vec![(key.clone(), value)], LogIndex(*index)).expect("an open replica");
                }
            }
            _ => {}
        }
        assert!(values.values().all(|stored| stored.is_whole(&*engine)), "step {step} of seed {seed}");
        assert_eq!(engine.damaged(), []);
    }
    let engine = &*engine;
    // When all is quiet, nothing else is left.
    index += 1;
    for key in values.keys() {
        engine.write(REPLICA, vec![(key.clone(), None)], LogIndex(index)).expect("an open replica");
    }
    fold(engine, index + 1);
    for (index, ..) in log {
        engine.hold(entry(index), &[]);
    }
    index += 2;
    collect(engine, &mut index);
    assert!(values.values().all(|stored| stored.is_gone(engine)), "seed {seed}");
    engine.destroy(REPLICA).expect("an open replica");
}

#[cfg(test)]
mod tests {
    use flotilla_types::Refs;

    use super::*;

    #[test]
    fn a_stored_value_has_a_list_and_two_chunks() {
        let engine = crate::MemoryEngine::default();
        let stored = Stored::new(&engine, "any");
        assert!(stored.is_whole(&engine) && !stored.is_gone(&engine));
        assert_eq!(stored.value().refs(), &Refs::from_iter([ObjectRef { id: stored.root, height: 1, bytes: 7 }]));
        stored.let_go(&engine);
        assert!(stored.is_gone(&engine));
    }
}
