//! The scrub of the engine's objects.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_objects::{ObjectStore, ScrubPass};
use flotilla_storage::{DAMAGED_NAMED_MAX, DamagedReplica, EngineError, Scrubbed};

use crate::failure;

/// Goes on with a pass, or begins one.
pub(crate) fn step(
    objects: &ObjectStore,
    pass: &mut Option<ScrubPass>,
    bytes_max: u64,
) -> Result<Scrubbed, EngineError> {
    let current = pass.get_or_insert_with(|| objects.begin_scrub());
    let read = objects.scrub(current, bytes_max).map_err(failure::of_objects)?;
    let progress_bytes = current.progress_bytes();
    pass.take_if(|_| read.ended);
    let flotilla_objects::Scrubbed { objects, bytes, damaged, unreadable, ended } = read;
    Ok(Scrubbed { objects, bytes, damaged, unreadable, progress_bytes, ended })
}

/// The replicas whose durable checkpoints or logs need damaged objects.
pub(crate) fn damaged(objects: &ObjectStore) -> Vec<DamagedReplica> {
    let mut damaged: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (holder, objects) in objects.damaged(DAMAGED_NAMED_MAX) {
        if let Some(replica) = holder.damages() {
            damaged.entry(replica).or_default().extend(objects);
        }
    }
    let of = |(replica, objects): (_, BTreeSet<_>)| DamagedReplica {
        replica,
        objects: objects.into_iter().take(DAMAGED_NAMED_MAX).collect(),
    };
    damaged.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use flotilla_storage::{StateEngine, conformance};
    use flotilla_types::{CheckpointFormat, ObjectId};

    use crate::{
        Engine,
        tests::{open, open_with_sled},
    };

    /// Flips a bit of an object in its segment file.
    fn damage(dir: &Path, engine: &Engine, object: ObjectId) {
        let payload = engine.object(object).unwrap();
        for file in fs::read_dir(dir.join("objects")).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(payload.len()).position(|window| window == payload) {
                bytes[at + payload.len() / 2] ^= 1;
                // In place: the store has the file open.
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
                    .unwrap();
                return;
            }
        }
        panic!("{object} is in no file");
    }

    #[test]
    fn what_was_damaged_before_a_restart_is_missing_once_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let ids = ["the first part", "the second part"].map(|part| {
            let id = ObjectId::of(part.as_bytes());
            engine.import_part(id, part.into(), &[]).unwrap();
            id
        });
        let list = ObjectId::of(b"list");
        engine.import_part(list, "list".into(), &ids).unwrap();
        engine.sync().unwrap();
        damage(dir.path(), &engine, ids[1]);
        drop(engine);
        let engine = open(dir.path());
        assert_eq!(engine.missing(&[list]), [], "nobody has read it");
        assert_eq!(engine.missing_or_damaged(&[list]).unwrap(), [ids[1]]);
        let absent = ObjectId::of(b"absent");
        let mut both = vec![ids[1], absent];
        both.sort_unstable();
        assert_eq!(engine.missing_or_damaged(&[list, absent, absent]).unwrap(), both);
    }

    #[test]
    fn the_engine_passes_the_suite_of_the_scrub() {
        for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
            let dir = tempfile::tempdir().unwrap();
            conformance::scrub(format, &open(dir.path()), |engine, object| damage(dir.path(), engine, object));
            let dir = tempfile::tempdir().unwrap();
            conformance::scrub(format, &open_with_sled(dir.path()), |engine, object| {
                damage(dir.path(), engine, object)
            });
        }
    }
}
