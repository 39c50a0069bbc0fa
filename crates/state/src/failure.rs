//! Converts failures of the view and of the object store into the engine's errors.

use std::{io, sync::Arc};

use flotilla_objects::{ObjectError, ObjectStore};
use flotilla_storage::{EngineError, UploadError};
use flotilla_types::ObjectId;

/// A failure of the view that is not an error from sled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewFailure {
    /// sled's state is unknown; the view is rebuilt at the next start.
    #[error("sled panicked")]
    Panicked,
    /// `close` was called.
    #[error("the engine is closed")]
    Closed,
    /// This process still uses the folder.
    #[error("the folder of the view is still in use")]
    InUse,
}

impl From<ViewFailure> for EngineError {
    fn from(failure: ViewFailure) -> Self {
        Self::View(Arc::new(failure))
    }
}

/// The error for an object that the store does not find. A store that refuses all work after a failed fsync
/// finds none, and that says nothing about the object.
pub(crate) fn absent(objects: &ObjectStore, id: ObjectId) -> EngineError {
    of_absent(id, objects.check_healthy())
}

fn of_absent(id: ObjectId, health: Result<(), ObjectError>) -> EngineError {
    health.map_or_else(of_objects, |()| EngineError::Object(id))
}

/// Converts a failure of the object store.
pub(crate) fn of_objects(error: ObjectError) -> EngineError {
    match error {
        ObjectError::Io(source) => EngineError::Io(source),
        ObjectError::Missing(id) | ObjectError::Damaged(id) => EngineError::Object(id),
        ObjectError::Mismatch(id) => EngineError::Mismatch(id),
        ObjectError::TooLarge { .. } | ObjectError::TooManyChildren { .. } => {
            io::Error::new(io::ErrorKind::FileTooLarge, error).into()
        }
        ObjectError::Version { .. } => io::Error::new(io::ErrorKind::Unsupported, error).into(),
        ObjectError::Poisoned(source) => EngineError::Unsynced(source),
    }
}

/// Converts a failure of an upload.
pub(crate) fn of_upload(error: flotilla_objects::UploadError) -> UploadError {
    match error {
        flotilla_objects::UploadError::Ended(upload) => UploadError::Ended(upload),
        flotilla_objects::UploadError::TooManyUploads(_) | flotilla_objects::UploadError::Full { .. } => {
            UploadError::Full
        }
        flotilla_objects::UploadError::Store(ObjectError::Mismatch(id)) => UploadError::WrongBytes(id),
        flotilla_objects::UploadError::Store(error) => of_objects(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::{Remedy, remedy};

    use super::*;

    #[test]
    fn what_a_poisoned_store_does_not_find_is_not_lost() {
        let id = ObjectId::of(b"x");
        let poisoned = || ObjectError::Poisoned(Arc::new(io::ErrorKind::StorageFull.into()));
        assert_eq!(remedy(&of_absent(id, Err(poisoned()))), Remedy::EndNode);
        assert_eq!(remedy(&of_objects(poisoned())), Remedy::EndNode);
        assert_eq!(remedy(&of_absent(id, Ok(()))), Remedy::AbandonReplica);
    }

    #[test]
    fn damage_costs_a_replica_and_what_the_disk_refuses_does_not() {
        let id = ObjectId::of(b"x");
        for (error, expected) in [
            (ObjectError::Missing(id), Remedy::AbandonReplica),
            (ObjectError::Damaged(id), Remedy::AbandonReplica),
            (ObjectError::Mismatch(id), Remedy::AbandonReplica),
            (ObjectError::TooLarge { bytes: 2, bytes_max: 1 }, Remedy::Retry),
            (ObjectError::from(io::Error::from(io::ErrorKind::StorageFull)), Remedy::Retry),
            (ObjectError::from(io::Error::from(rustix::io::Errno::IO)), Remedy::EndNode),
            (ObjectError::Version { segment: 1, found: 2, known: 1 }, Remedy::EndNode),
        ] {
            let message = error.to_string();
            assert_eq!(remedy(&of_objects(error)), expected, "{message}");
        }
    }
}
