//! Converts failures of the view and of the object store into the engine's errors.

use std::{io, sync::Arc};

use flotilla_objects::ObjectError;
use flotilla_storage::EngineError;

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

/// Converts a failure of the object store.
pub(crate) fn of_objects(error: ObjectError) -> EngineError {
    match error {
        ObjectError::Io(source) => EngineError::Io(source),
        ObjectError::Missing(id) | ObjectError::Damaged(id) => EngineError::Object(id),
        ObjectError::Mismatch(id) => EngineError::Mismatch(id),
        ObjectError::TooLarge { .. } => io::Error::new(io::ErrorKind::FileTooLarge, error).into(),
        ObjectError::Version { .. } => io::Error::new(io::ErrorKind::Unsupported, error).into(),
        ObjectError::Poisoned => io::Error::other(error).into(),
    }
}
