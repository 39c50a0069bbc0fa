//! Cases of checkpoints whose tables have manifests: clips, sharing, transfer, and the change from the format
//! without.

use super::{
    Bytes, Checkpoint, CheckpointFormat, Choices, FLUSHES, Fixture, Folding, Holder, KeyRange, LogIndex, Manifest,
    Model, ObjectId, PieceRef, ReplicaId, Storage, Tables, WriteSet, bytes, empty_checkpoint, position,
};
use crate::StateEngine;

pub(super) fn run(storage: &mut Storage<'_>) {
    clipped_tables_are_a_map_restricted_to_the_clip(storage);
    shards_share_tables(storage);
    tables_of_pieces_get_manifests(storage);
    what_a_manifest_lists_is_missing_until_it_is_here(storage);
}

/// The tables with a clip.
fn clipped(tables: &Tables, range: &KeyRange) -> Tables {
    let Tables::Manifests(tables) = tables else { panic!("the tables have manifests") };
    let clip = |table: &super::TableRef| super::TableRef { clip: table.clip.intersection(range), ..table.clone() };
    Tables::Manifests(tables.iter().map(clip).collect())
}

/// Writes, flushes and compacts until a replica has a base and runs.
fn fill(test: &mut Fixture<'_, '_>, model: &mut Model, choices: &mut Choices) {
    for round in 0..FLUSHES {
        let records: WriteSet = (0..20)
            .map(|_| {
                let value = (choices.below(4) > 0).then(|| bytes(&format!("{round} {}", "v".repeat(30))));
                (bytes(&format!("{:02}", choices.below(100))), value.map(Into::into))
            })
            .collect();
        model.write(&records);
        test.write_set(records);
        test.flush("system");
    }
}

fn assert_holds(engine: &dyn StateEngine, replica: ReplicaId, expected: &[(Bytes, Bytes)]) {
    let reader = engine.reader(replica).expect("an open replica is readable");
    let scan = |range: &KeyRange| reader.scan(range, usize::MAX, usize::MAX).expect("an open replica is readable");
    assert_eq!(scan(&KeyRange::all()), expected);
    for number in 0..100 {
        let key = bytes(&format!("{number:02}"));
        let value = expected.iter().find(|(held, _)| *held == key).map(|(_, value)| value.clone());
        assert_eq!(reader.get(&key).expect("an open replica is readable"), value, "{key:?}");
    }
    let range = KeyRange { start: bytes("25"), end: bytes("75") };
    let within: Vec<_> = expected.iter().filter(|(key, _)| range.contains(key)).cloned().collect();
    assert_eq!(scan(&range), within);
}

fn clipped_tables_are_a_map_restricted_to_the_clip(storage: &mut Storage<'_>) {
    let mut test = Fixture::new(storage, 250);
    let (mut model, mut choices) = (Model::default(), Choices::new(3));
    fill(&mut test, &mut model, &mut choices);
    let target = ReplicaId(251);
    for (start, end) in [("", "50"), ("50", ""), ("33", "66"), ("40", "41"), ("400", "401"), ("", "")] {
        let clip = KeyRange { start: bytes(start), end: bytes(end) };
        let tables = clipped(&test.durable.tables, &clip);
        let mut part = Checkpoint { tables, ..empty_checkpoint(target, 1, 1) };
        let mut expected = Model::default();
        expected
            .write(&model.range(&clip).into_iter().map(|(key, value)| (key, Some(value.into()))).collect::<WriteSet>());
        let engine = test.engine();
        engine.install_snapshot(target, &part).expect("its objects are here");
        assert_holds(engine, target, &expected.range(&KeyRange::all()));
        // It goes on from there; what lies outside the clip does not come back.
        for round in 2..2 + FLUSHES {
            let keys = (0..8).map(|_| choices.below(100)).map(|number| bytes(&format!("{number:02}")));
            let records: WriteSet = keys
                .filter(|key| clip.contains(key))
                .map(|key| (key, Some(bytes(&round.to_string()).into())))
                .collect();
            expected.write(&records);
            engine.write(target, records, LogIndex(round)).expect("an open replica takes writes");
            assert!(engine.freeze(target, position(target, round, 1), Bytes::new()).expect("an open replica freezes"));
            part = engine.build(target, CheckpointFormat::Manifests).expect("a frozen memtable is built");
            engine.install_checkpoint(target, &part).expect("a built checkpoint is installed");
            let due = engine.compaction_due(target);
            if due.compact || due.fold.is_some() {
                assert!(engine.compact(target, Folding::Local, &|| false).expect("an open replica is compacted"));
            }
        }
        assert_holds(engine, target, &expected.range(&KeyRange::all()));
        test.crash();
        test.engine().open(target, &part).expect("a replica opens from its durable checkpoint");
        assert_holds(test.engine(), target, &expected.range(&KeyRange::all()));
        assert_holds(test.engine(), test.replica, &model.range(&KeyRange::all()));
    }
}

fn shards_share_tables(storage: &mut Storage<'_>) {
    let mut test = Fixture::new(storage, 252);
    let (mut model, mut choices) = (Model::default(), Choices::new(5));
    fill(&mut test, &mut model, &mut choices);
    let halves = [(ReplicaId(253), "", "50"), (ReplicaId(254), "50", "")];
    let mut parts = Vec::new();
    for (replica, start, end) in halves {
        let clip = KeyRange { start: bytes(start), end: bytes(end) };
        let part = Checkpoint { tables: clipped(&test.durable.tables, &clip), ..empty_checkpoint(replica, 1, 1) };
        let before: Vec<_> = test.durable.tables.objects().collect();
        assert_eq!(part.tables.objects().collect::<Vec<_>>(), before, "nothing is written");
        test.engine().install_snapshot(replica, &part).expect("its objects are here");
        parts.push((replica, part, model.range(&clip)));
    }
    test.engine().destroy(test.replica).expect("an open replica is destroyed");
    let (left, ..) = parts.remove(0);
    test.engine().destroy(left).expect("an open replica is destroyed");
    let (right, part, records) = parts.remove(0);
    assert_holds(test.engine(), right, &records);
    let objects: Vec<_> = part.objects().collect();
    assert!(test.engine().missing(&objects).is_empty());
    for object in objects {
        test.engine().object(object).expect("the other half needs it");
    }
}

fn tables_of_pieces_get_manifests(storage: &mut Storage<'_>) {
    let mut test = Fixture::new(storage, 255);
    let (mut model, mut choices) = (Model::default(), Choices::new(9));
    let mut formats = Vec::new();
    // The version rises, and is not known to be risen for a while.
    for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests, CheckpointFormat::Pieces] {
        test.storage.format = format;
        fill(&mut test, &mut model, &mut choices);
        test.assert_matches(&model);
        test.assert_objects();
        formats.push(test.durable.tables.format());
        test.crash();
        test.assert_matches(&model);
    }
    test.storage.format = CheckpointFormat::Manifests;
    let expected = [CheckpointFormat::Pieces, CheckpointFormat::Manifests, CheckpointFormat::Manifests];
    assert_eq!(formats, expected, "the format does not go back");
}

fn what_a_manifest_lists_is_missing_until_it_is_here(storage: &mut Storage<'_>) {
    let mut test = Fixture::new(storage, 256);
    let pieces = ["first", "second"].map(|name| bytes(&format!("the {name} piece of a table")));
    let ids = [&pieces[0], &pieces[1]].map(|piece| ObjectId::of(piece));
    let listed = |index: usize| PieceRef {
        id: ids[index],
        first_key: bytes(&index.to_string()),
        bytes: pieces[index].len() as u32,
        records: 1,
        footer_bytes: 0,
        footer_crc: 0,
    };
    let manifest = Manifest { pieces: vec![listed(0), listed(1)] }.encode();
    let root = ObjectId::of(&manifest);
    let engine = test.engine();
    engine.hold(Holder::Receiver(ReplicaId(257)), &[root]);
    assert_eq!(engine.missing(&[root]), [root]);
    engine.import(ids[1], pieces[1].clone(), &[]).expect("the right bytes are stored");
    engine.import(root, manifest.clone(), &ids).expect("the right bytes are stored");
    assert_eq!(engine.missing(&[root]), [ids[0]]);
    engine.import(ids[0], pieces[0].clone(), &[]).expect("the right bytes are stored");
    assert!(engine.missing(&[root]).is_empty());
    engine.sync().expect("imports become durable");
    for round in 0..FLUSHES {
        test.write(&[("a", Some(&format!("{round}")))]);
        test.flush(&format!("round {round}"));
    }
    assert_eq!(test.engine().object(ids[0]).expect("held by way of the manifest"), pieces[0]);
    test.engine().hold(Holder::Receiver(ReplicaId(257)), &[]);
}
