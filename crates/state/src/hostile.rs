//! Checkpoints from a malicious peer, whose objects match their ids but have arbitrary content, and damaged
//! trust files.

use std::{cell::RefCell, path::Path};

use bytes::Bytes;
use flotilla_hostile::{attack, mutated};
use flotilla_storage::{EngineError, Manifest, StateEngine, Value};
use flotilla_types::{Checkpoint, KeyRange, ObjectId, ReplicaId, TableKind, TableRef, Tables};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Engine,
    piece::{PieceKind, PieceVersion, PieceWriter, footer},
    tests::{all, empty_checkpoint, open, open_replica, open_replica_with_sled, two_flushes, two_flushes_with_sled},
};

/// The replica that installs the peer's checkpoints.
const VICTIM: ReplicaId = ReplicaId(8);

#[test]
fn hostile_checkpoints_are_rejected_or_readable_and_harm_no_other_replica() {
    rejected_or_readable(open_replica);
}

#[test]
fn hostile_checkpoints_are_rejected_or_readable_and_harm_no_other_replica_in_sled() {
    rejected_or_readable(open_replica_with_sled);
}

fn rejected_or_readable(open: fn(&Path, &Checkpoint) -> Engine) {
    let source = tempfile::tempdir().unwrap();
    let (sound, records) = two_flushes(source.path());
    let engine = open(source.path(), &sound);
    let mut objects: Vec<_> = sound.objects().map(|id| engine.object(id).unwrap()).collect();
    let pieces: Vec<_> = objects.iter().flat_map(children).map(|id| engine.object(id).unwrap()).collect();
    objects.extend(pieces);
    objects.extend([PieceKind::Chunk, PieceKind::Run].map(|kind| with_footer(kind, &records)));
    let offered = || vec(mutated(select(objects.clone())), 0..4);
    let offer = (offered(), offered(), any::<bool>(), any::<bool>());
    let engine = RefCell::new(engine);
    attack(120, offer, |(base, runs, whole, has_manifests)| {
        let engine = engine.borrow_mut();
        let import = |objects: Vec<Vec<u8>>| -> Vec<ObjectId> {
            let import = |object: Vec<u8>| {
                let id = ObjectId::of(&object);
                let object = Bytes::from(object);
                engine.import(id, object.clone(), &children(&object)).unwrap();
                id
            };
            objects.into_iter().map(import).collect()
        };
        let (base, runs) = (import(base), import(runs));
        let system = runs.first().copied();
        let Tables::Manifests(sound) = &sound.tables else { panic!("its tables have manifests") };
        let tables = if has_manifests {
            let all = |kind| {
                move |manifest: &ObjectId| TableRef { kind, clip: KeyRange::all(), manifest: *manifest, fold: None }
            };
            let sound = sound.iter().filter(|_| whole).cloned();
            let base = base.iter().map(all(TableKind::Base));
            Tables::Manifests(sound.chain(base).chain(runs.iter().map(all(TableKind::Run))).collect())
        } else {
            Tables::Pieces { base, runs }
        };
        let checkpoint = Checkpoint { tables, system, ..empty_checkpoint(VICTIM) };
        engine.sync().unwrap();
        match engine.install_snapshot(VICTIM, &checkpoint) {
            Ok(()) => {
                let reader = engine.reader(VICTIM).unwrap();
                let found = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).unwrap();
                assert!(found.is_sorted_by(|left, right| left.0 < right.0));
            }
            Err(EngineError::Corrupt { replica, .. }) => assert_eq!(replica, VICTIM),
            // What a false manifest names is not there.
            Err(EngineError::Object(_)) => {}
            Err(error) => panic!("an invalid checkpoint must be reported as corruption of its replica: {error:?}"),
        }
        engine.destroy(VICTIM).unwrap();
        assert_eq!(all(&engine), records);
    });
}

/// The pieces of a manifest; none of another object.
fn children(object: &Bytes) -> Vec<ObjectId> {
    Manifest::decode(object.clone()).unwrap_or_default().children()
}

/// The records as a piece of version 2.
fn with_footer(kind: PieceKind, records: &[(Bytes, Bytes)]) -> Bytes {
    let mut writer = PieceWriter::new(PieceVersion::V2, 0);
    records.iter().for_each(|(key, value)| writer.push(key, Some(&Value::from(value.clone()))));
    writer.finish(kind).bytes
}

#[test]
fn a_checkpoint_whose_pieces_have_false_footers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, records) = two_flushes(dir.path());
    let engine = open(dir.path());
    let piece = with_footer(PieceKind::Chunk, &records);
    let footer_at = footer::start(&piece).unwrap() as usize;
    let install = |piece: Bytes| {
        let id = ObjectId::of(&piece);
        engine.import(id, piece, &[]).unwrap();
        engine.sync().unwrap();
        let tables = Tables::Pieces { base: vec![id], runs: Vec::new() };
        let checkpoint = Checkpoint { tables, ..empty_checkpoint(VICTIM) };
        engine.install_snapshot(VICTIM, &checkpoint)?;
        let reader = engine.reader(VICTIM)?;
        reader.scan(&KeyRange::all(), usize::MAX, usize::MAX)
    };
    assert_eq!(install(piece.clone()).unwrap(), records);
    for at in [footer_at, footer_at + 4, piece.len() - 100, piece.len() - 20] {
        let mut bytes = piece.to_vec();
        bytes[at] ^= 1;
        assert!(matches!(install(bytes.into()), Err(EngineError::Corrupt { replica: VICTIM, .. })), "byte {at}");
    }
}

#[test]
fn hostile_trust_files_lose_the_view_but_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, records) = two_flushes_with_sled(dir.path());
    let path = dir.path().join("view.trust");
    let written = std::fs::read(&path).unwrap();
    attack(8, mutated(Just(written)), |bytes| {
        std::fs::write(&path, Bytes::from(bytes)).unwrap();
        assert_eq!(all(&open_replica_with_sled(dir.path(), &checkpoint)), records);
    });
}
