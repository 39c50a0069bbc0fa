//! The suite for [`StateEngine::scrub`] and [`StateEngine::damaged`].

use bytes::Bytes;
use flotilla_types::{Checkpoint, CheckpointFormat, LogIndex, ObjectId, ReplicaId, Tables};

use super::{bytes, empty_checkpoint, position};
use crate::{DamagedReplica, EngineError, Manifest, Scrubbed, StateEngine};

const FIRST: ReplicaId = ReplicaId(61);
const SECOND: ReplicaId = ReplicaId(62);

/// Runs the suite on an engine with empty storage, with checkpoints of this format. `damage` changes the bytes of
/// a stored object behind the engine's back.
///
/// # Panics
/// When the engine breaks its contract.
pub fn scrub<E: StateEngine>(format: CheckpointFormat, engine: &E, damage: impl Fn(&E, ObjectId)) {
    assert_eq!(pass(engine, 1).objects, 0, "nothing is stored");
    let first = filled(engine, FIRST, format);
    let second = filled(engine, SECOND, format);
    let intact = pass(engine, 1);
    assert_eq!((&intact.damaged, &intact.unreadable), (&vec![], &vec![]));
    assert!(intact.objects >= 6 && intact.bytes >= 6, "{intact:?}");
    assert_eq!(engine.damaged(), []);

    let damaged = first[1];
    damage(engine, damaged);
    assert_eq!(engine.missing(&[damaged]), [], "nobody has read it");
    let found = pass(engine, 1 << 20);
    assert_eq!((found.damaged, found.objects), (vec![damaged], intact.objects));
    assert_eq!(engine.missing(&[damaged, first[0]]), [damaged]);
    assert!(matches!(engine.object(damaged), Err(EngineError::Object(id)) if id == damaged));
    assert_eq!(engine.damaged(), [DamagedReplica { replica: FIRST, objects: vec![damaged] }]);
    assert_eq!(pass(engine, 1).damaged, [], "what is missing is not found again");
    assert_eq!(engine.damaged().len(), 1, "it is still missing");

    // A read finds damage as well.
    let other = second[0];
    let copy = engine.object(other).expect("intact");
    damage(engine, other);
    assert!(engine.object(other).is_err());
    assert_eq!(engine.damaged().iter().map(|damaged| damaged.replica).collect::<Vec<_>>(), [FIRST, SECOND]);
    engine.import(other, copy, &[]).expect("its bytes");
    engine.sync().expect("a healthy disk");
    assert_eq!(engine.damaged().iter().map(|damaged| damaged.replica).collect::<Vec<_>>(), [FIRST]);

    engine.destroy(FIRST).expect("an open replica");
    assert_eq!(engine.damaged(), [], "nobody needs it any more");
}

/// A replica whose durable checkpoint has three runs; returns a piece of each.
fn filled(engine: &dyn StateEngine, replica: ReplicaId, format: CheckpointFormat) -> Vec<ObjectId> {
    engine.open(replica, &empty_checkpoint(replica, 0, 0)).expect("a new replica opens");
    let mut checkpoint = None;
    for index in 1..=3 {
        let value = Bytes::from(format!("{replica} {index}").repeat(50));
        engine.write(replica, vec![(bytes(&format!("k{index}")), Some(value.into()))], LogIndex(index)).expect("open");
        let frozen = engine.freeze(replica, position(replica, index, 1), Bytes::new());
        assert!(frozen.expect("an open replica"), "nothing else is frozen");
        let built = engine.build(replica, format).expect("a healthy disk");
        engine.install_checkpoint(replica, &built).expect("it was built");
        checkpoint = Some(built);
    }
    let pieces = pieces(engine, &checkpoint.expect("three were built"));
    assert_eq!(pieces.len(), 3);
    pieces
}

/// The first piece of each table of a checkpoint without a base.
fn pieces(engine: &dyn StateEngine, checkpoint: &Checkpoint) -> Vec<ObjectId> {
    match &checkpoint.tables {
        Tables::Pieces { runs, .. } => runs.clone(),
        Tables::Manifests(tables) => {
            let first = |manifest| Manifest::decode(engine.object(manifest).expect("intact")).expect("a manifest");
            tables.iter().map(|table| first(table.manifest).pieces[0].id).collect()
        }
    }
}

/// A whole pass in steps of this many bytes.
fn pass(engine: &dyn StateEngine, step_bytes: u64) -> Scrubbed {
    let mut all = Scrubbed::default();
    while !all.ended {
        let step = engine.scrub(step_bytes).expect("a healthy disk");
        assert!(step.ended || step.objects > 0, "every step gets on");
        assert!(step.progress_bytes.0 >= all.progress_bytes.0 && step.progress_bytes.0 <= step.progress_bytes.1);
        all.objects += step.objects;
        all.bytes += step.bytes;
        all.damaged.extend(step.damaged);
        all.unreadable.extend(step.unreadable);
        (all.progress_bytes, all.ended) = (step.progress_bytes, step.ended);
    }
    assert_eq!(all.progress_bytes.0, all.progress_bytes.1, "all is visited");
    all
}
