//! Checkpoints from a malicious peer, whose objects match their ids but have arbitrary content, and damaged
//! trust files.

use std::{cell::RefCell, path::Path};

use bytes::Bytes;
use flotilla_hostile::{attack, mutated};
use flotilla_storage::{EngineError, StateEngine};
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Engine,
    tests::{all, empty_checkpoint, open_replica, open_replica_with_sled, two_flushes, two_flushes_with_sled},
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
    let objects: Vec<_> = sound.objects().map(|id| engine.object(id).unwrap()).collect();
    let offered = || vec(mutated(select(objects.clone())), 0..4);
    let offer = (offered(), offered(), any::<bool>());
    let engine = RefCell::new(engine);
    attack(60, offer, |(base, runs, whole)| {
        let engine = engine.borrow_mut();
        let import = |objects: Vec<Vec<u8>>| -> Vec<ObjectId> {
            let import = |object: Vec<u8>| {
                let id = ObjectId::of(&object);
                engine.import(id, object.into()).unwrap();
                id
            };
            objects.into_iter().map(import).collect()
        };
        let (mut base, runs) = (import(base), import(runs));
        if whole {
            base.splice(..0, sound.base.iter().copied());
        }
        let system = runs.first().copied();
        let checkpoint = Checkpoint { base, runs, system, ..empty_checkpoint(VICTIM) };
        engine.sync().unwrap();
        match engine.install_snapshot(VICTIM, &checkpoint) {
            Ok(()) => {
                let reader = engine.reader(VICTIM).unwrap();
                let found = reader.scan(&flotilla_types::KeyRange::all(), usize::MAX, usize::MAX).unwrap();
                assert!(found.is_sorted_by(|left, right| left.0 < right.0));
            }
            Err(EngineError::Corrupt { replica, .. }) => assert_eq!(replica, VICTIM),
            Err(error) => panic!("an invalid checkpoint must be reported as corruption of its replica: {error:?}"),
        }
        engine.destroy(VICTIM).unwrap();
        assert_eq!(all(&engine), records);
    });
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
