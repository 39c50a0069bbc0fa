//! Uploads. Their time passes only when [`MemoryEngine::pass_time`] says so.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use flotilla_types::ObjectId;

use super::{MemoryEngine, store::Store};
use crate::{EngineError, UploadError, ValueObjects};

/// The longest time to the deadline of an upload.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Uploads at a time.
const UPLOADS_MAX: usize = 1_024;

/// What uploads hold.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    now: Duration,
    uploads: HashMap<u64, Upload>,
}

#[derive(Debug)]
struct Upload {
    deadline: Duration,
    held: BTreeSet<ObjectId>,
}

impl MemoryEngine {
    /// Lets time pass for uploads, and ends those whose deadline it reaches.
    pub fn pass_time(&self, time: Duration) {
        let mut store = self.store.lock();
        store.uploads.now += time;
        store.end_due_uploads();
    }
}

impl Store {
    fn end_due_uploads(&mut self) {
        let uploads = &self.uploads;
        let due = uploads.uploads.iter().filter(|(_, upload)| upload.deadline <= uploads.now);
        for upload in due.map(|(number, _)| *number).collect::<BTreeSet<_>>() {
            self.end_upload(upload);
        }
    }

    fn end_upload(&mut self, upload: u64) {
        let held = self.uploads.uploads.remove(&upload).map(|upload| upload.held).unwrap_or_default();
        held.into_iter().for_each(|id| self.release(id));
        self.release_unpinned();
    }

    fn upload(&mut self, number: u64) -> Result<&mut Upload, UploadError> {
        self.end_due_uploads();
        self.uploads.uploads.get_mut(&number).ok_or(UploadError::Ended(number))
    }

    fn hold_for_upload(&mut self, number: u64, id: ObjectId) -> Result<(), UploadError> {
        if self.upload(number)?.held.insert(id) {
            self.count(id);
        }
        Ok(())
    }
}

impl ValueObjects for MemoryEngine {
    fn begin_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError> {
        let mut store = self.store.lock();
        let deadline = store.uploads.now + time.min(TIME_MAX);
        if let Ok(known) = store.upload(upload) {
            known.deadline = deadline;
            return Ok(());
        }
        if store.uploads.uploads.len() >= UPLOADS_MAX {
            return Err(UploadError::Full);
        }
        store.uploads.uploads.insert(upload, Upload { deadline, held: BTreeSet::new() });
        Ok(())
    }

    fn renew_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError> {
        let mut store = self.store.lock();
        let deadline = store.uploads.now + time.min(TIME_MAX);
        store.upload(upload)?.deadline = deadline;
        Ok(())
    }

    fn need(&self, upload: u64, objects: &[ObjectId]) -> Result<Vec<ObjectId>, UploadError> {
        let mut store = self.store.lock();
        store.upload(upload)?;
        let missing = store.missing_or_damaged(objects);
        let here: Vec<_> = objects.iter().copied().filter(|id| store.has(*id)).collect();
        here.into_iter().try_for_each(|id| store.hold_for_upload(upload, id))?;
        Ok(missing)
    }

    fn store(&self, upload: u64, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), UploadError> {
        let mut store = self.store.lock();
        store.upload(upload)?;
        if ObjectId::of(&bytes) != object {
            return Err(UploadError::WrongBytes(object));
        }
        store.put(bytes, children, false);
        store.hold_for_upload(upload, object)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.store.lock().sync();
        Ok(())
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.store.lock().get(object)
    }

    fn end_upload(&self, upload: u64) {
        self.store.lock().end_upload(upload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_end_when_the_time_passes() {
        let engine = MemoryEngine::default();
        let (bytes, values): (_, &dyn ValueObjects) = (Bytes::from_static(b"chunk"), &engine);
        let id = ObjectId::of(&bytes);
        values.begin_upload(1, Duration::MAX).unwrap();
        values.store(1, id, bytes, &[]).unwrap();
        engine.pass_time(TIME_MAX - Duration::from_nanos(1));
        assert!(values.object(id).is_ok());
        values.renew_upload(1, Duration::from_secs(1)).unwrap();
        engine.pass_time(Duration::from_secs(1));
        assert!(values.object(id).is_err());
        assert!(matches!(values.need(1, &[]), Err(UploadError::Ended(1))));
    }
}
