//! The objects of large values, which gateways store for uploads.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_storage::{EngineError, StateEngine, UploadError, ValueObjects};
use flotilla_types::ObjectId;

use crate::{Engine, failure};

impl ValueObjects for Engine {
    fn begin_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError> {
        self.objects.begin_upload(upload, Instant::now(), time).map_err(failure::of_upload)
    }

    fn renew_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError> {
        self.objects.renew_upload(upload, Instant::now(), time).map_err(failure::of_upload)
    }

    fn need(&self, upload: u64, objects: &[ObjectId]) -> Result<Vec<ObjectId>, UploadError> {
        self.objects.need(upload, Instant::now(), objects).map_err(failure::of_upload)
    }

    fn store(&self, upload: u64, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), UploadError> {
        let stored = self.objects.import_for_upload(upload, Instant::now(), object, &bytes, children);
        stored.map_err(failure::of_upload)?;
        self.count_stored(&bytes);
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        StateEngine::sync(self)
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.objects.get(object).map_err(failure::of_objects)
    }

    fn end_upload(&self, upload: u64) {
        self.objects.end_upload(upload);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_objects::{UploadBounds, UploadUsage};
    use flotilla_storage::conformance;

    use super::*;
    use crate::{
        Options,
        tests::{open, open_with_sled, small},
    };

    const MINUTE: Duration = Duration::from_secs(60);

    fn body(n: u32) -> (ObjectId, Bytes) {
        let bytes: Bytes = format!("{n:>5} of some text that is the same again and again. ").repeat(500).into();
        (ObjectId::of(&bytes), bytes)
    }

    #[test]
    fn the_engine_passes_the_suite_of_value_objects() {
        let dir = tempfile::tempdir().unwrap();
        conformance::value_objects(|| open(dir.path()));
        let dir = tempfile::tempdir().unwrap();
        conformance::value_objects(|| open_with_sled(dir.path()));
    }

    #[test]
    fn an_upload_without_room_stores_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // One upload may hold an eighth: two bodies.
        let uploads = UploadBounds { bytes_max: 8 * 60_000, ..UploadBounds::default() };
        let objects = flotilla_objects::Options { uploads, ..small().objects };
        let engine = Engine::open(dir.path(), Options { objects, ..small() }).unwrap();
        engine.begin_upload(1, MINUTE).unwrap();
        for n in 0..2 {
            let (id, bytes) = body(n);
            ValueObjects::store(&engine, 1, id, bytes, &[]).unwrap();
        }
        let before = engine.objects.usage();
        let (id, bytes) = body(2);
        assert!(matches!(engine.store(1, id, bytes, &[]), Err(UploadError::Full)));
        assert_eq!(engine.objects.usage(), before);
        let (id, bytes) = body(1);
        engine.store(1, id, bytes, &[]).unwrap();
        engine.begin_upload(2, MINUTE).unwrap();
        engine.store(2, id, body(1).1, &[]).unwrap();
    }

    #[test]
    fn what_is_uploaded_and_pulled_is_compressed_once_the_version_allows_it() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        engine.begin_upload(1, MINUTE).unwrap();
        let disk_bytes = |n: u32, part: &dyn Fn(ObjectId, Bytes)| {
            let before = engine.objects.usage().disk_bytes;
            let (id, bytes) = body(n);
            part(id, bytes);
            engine.objects.usage().disk_bytes - before
        };
        let upload = |id, bytes| engine.store(1, id, bytes, &[]).unwrap();
        let pull = |id, bytes| engine.import_part(id, bytes, &[]).unwrap();
        let piece = |id, bytes| engine.import(id, bytes, &[]).unwrap();
        let plain = body(0).1.len() as u64;
        assert!(disk_bytes(0, &upload) > plain && disk_bytes(1, &pull) > plain);
        engine.allow_compression();
        disk_bytes(2, &upload);
        assert!(disk_bytes(3, &upload) < plain / 4 && disk_bytes(4, &pull) < plain / 4);
        assert!(disk_bytes(5, &piece) > plain, "of a piece parts are read");
    }

    #[test]
    fn what_uploads_left_behind_is_collected_without_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Options { collection_bytes: 300 << 10, ..small() }).unwrap();
        for n in 0..400 {
            // Nobody ends them.
            engine.begin_upload(1, MINUTE).unwrap();
            let (id, bytes) = body(n);
            engine.store(1, id, bytes, &[]).unwrap();
            engine.renew_upload(1, Duration::ZERO).unwrap();
            ValueObjects::sync(&engine).unwrap();
        }
        let disk_bytes = engine.objects.usage().disk_bytes;
        assert!(disk_bytes < 600 << 10, "{disk_bytes} bytes");
        assert!(engine.objects.upload_usage().uploads <= 1);
        engine.collect().unwrap();
        assert_eq!(engine.objects.upload_usage(), UploadUsage::default());
    }
}
