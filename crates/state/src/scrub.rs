//! The scrub of the engine's objects.

use flotilla_objects::{ObjectStore, ScrubPass};
use flotilla_storage::{DAMAGED_NAMED_MAX, DamagedReplica, EngineError, Scrubbed};
use flotilla_types::Holder;

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

/// The replicas whose durable checkpoints need damaged objects.
pub(crate) fn damaged(objects: &ObjectStore) -> Vec<DamagedReplica> {
    let of = |(holder, objects)| match holder {
        Holder::Checkpoint(replica) => Some(DamagedReplica { replica, objects }),
        // What was fetched, or offered, and is damaged is fetched, or offered, again.
        Holder::Receiver(_) | Holder::Offer { .. } | Holder::Upload(_) => None,
    };
    objects.damaged(DAMAGED_NAMED_MAX).into_iter().filter_map(of).collect()
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
