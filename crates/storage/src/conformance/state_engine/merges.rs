//! Cases of merges: a replica goes on with the tables of two.

use super::{
    Bytes, Checkpoint, Choices, KeyRange, Model, ReplicaId, Storage, bytes, position,
    splits::{Part, restart},
};
use crate::{KeyRanges, StateEngine, merged_tables};

pub(super) fn run(storage: &mut Storage<'_>) {
    for (number, at) in ["50", "17", "505", "00", "99x"].into_iter().enumerate() {
        the_halves_of_a_split_are_merged(storage, 600 + 10 * number as u64, &bytes(at));
    }
    neighbours_that_were_never_one_are_merged(storage);
    a_fold_of_before_a_merge_is_not_used(storage);
    a_shard_is_split_and_merged_again_and_again(storage);
}

fn range_of(start: &Bytes, end: &Bytes) -> KeyRange {
    KeyRange { start: start.clone(), end: end.clone() }
}

fn users_end() -> Bytes {
    KeyRange::internal().start
}

/// Merges `right` into `left`, as a host does: both are checkpointed, and nothing is written to them any more.
fn merge(engine: &dyn StateEngine, left: &mut Part, mut right: Part, at: &Bytes) {
    left.flush(engine);
    right.flush(engine);
    let ranges = [range_of(&Bytes::new(), at), range_of(at, &users_end())];
    let tables = merged_tables((&left.durable.tables, &ranges[0]), (&right.durable.tables, &ranges[1]));
    let checkpoint = Checkpoint {
        position: position(left.id, left.index, 1),
        system: left.durable.system,
        tables: tables.expect("both checkpoints have manifests"),
    };
    let (before, after) = (left.durable.objects(), checkpoint.objects());
    let all: Vec<_> = before.chain(right.durable.objects()).collect();
    let named: Vec<_> = after.collect();
    assert!(named.iter().all(|object| all.contains(object)), "a merge makes no objects");
    engine.hold(flotilla_types::Holder::Checkpoint(left.id), &[all, named].concat());
    engine.destroy(right.id).expect("an open replica is destroyed");
    left.durable = checkpoint;
    let mut model = Model::default();
    for (part, range) in [&*left, &right].into_iter().zip(&ranges) {
        let records = part.model.range(range).into_iter().map(|(key, value)| (key, Some(value.into())));
        model.write(&records.collect());
    }
    (left.model, left.keys) = (model, KeyRanges::all());
    left.open(engine);
    left.assert_holds(engine);
}

fn the_halves_of_a_split_are_merged(storage: &mut Storage<'_>, id: u64, at: &Bytes) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(id);
    let mut left = Part::new(&*engine, storage.format, id);
    left.go_on(&*engine, &mut choices);
    let mut right = left.split(&*engine, &mut choices, at, id + 1);
    for part in [&mut left, &mut right] {
        if choices.below(3) > 0 {
            part.go_on(&*engine, &mut choices);
        }
    }
    merge(&*engine, &mut left, right, at);
    let parts = &mut [left];
    for _ in 0..2 {
        engine = restart(storage, engine, &mut choices, parts);
        parts[0].go_on(&*engine, &mut choices);
    }
}

fn neighbours_that_were_never_one_are_merged(storage: &mut Storage<'_>) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(5);
    let at = bytes("40");
    let [mut left, mut right] = [700, 701].map(|id| Part::new(&*engine, storage.format, id));
    // A split takes the other half of each away, so that both have checkpoints with manifests.
    left.write(&*engine, &mut choices);
    right.write(&*engine, &mut choices);
    let others = [left.split(&*engine, &mut choices, &at, 702), right.split(&*engine, &mut choices, &bytes("zz"), 703)];
    for part in [&mut left, &mut right] {
        part.go_on(&*engine, &mut choices);
    }
    merge(&*engine, &mut left, right, &at);
    let [of_left, of_right] = others;
    let mut parts = [left, of_left, of_right];
    engine = restart(storage, engine, &mut choices, &mut parts);
    parts[0].go_on(&*engine, &mut choices);
    parts.iter().for_each(|part| part.assert_holds(&*engine));
}

fn a_fold_of_before_a_merge_is_not_used(storage: &mut Storage<'_>) {
    let engine = (storage.open)();
    let mut choices = Choices::new(6);
    let at = bytes("50");
    let mut left = Part::new(&*engine, storage.format, 710);
    left.go_on(&*engine, &mut choices);
    let right = left.split(&*engine, &mut choices, &at, 711);
    left.write(&*engine, &mut choices);
    left.pin_fold(&*engine);
    left.write(&*engine, &mut choices);
    merge(&*engine, &mut left, right, &at);
    left.compact(&*engine, flotilla_types::Folding::Logged);
    left.flush(&*engine);
    left.assert_holds(&*engine);
    left.go_on(&*engine, &mut choices);
}

fn a_shard_is_split_and_merged_again_and_again(storage: &mut Storage<'_>) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(7);
    let mut parts = vec![Part::new(&*engine, storage.format, 720)];
    for (round, at) in ["30", "60", "30", "45", "80"].into_iter().enumerate() {
        parts[0].go_on(&*engine, &mut choices);
        let right = parts[0].split(&*engine, &mut choices, &bytes(at), 721 + round as u64);
        parts.push(right);
        for part in &mut parts {
            part.write(&*engine, &mut choices);
        }
        engine = restart(storage, engine, &mut choices, &mut parts);
        let right = parts.pop().expect("it was split");
        merge(&*engine, &mut parts[0], right, &bytes(at));
        assert_eq!(parts[0].id, ReplicaId(720));
    }
}
