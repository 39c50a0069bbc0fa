//! What can go wrong with objects.

use std::{io, sync::Arc};

use flotilla_types::ObjectId;

/// An operation on the store failed. Unless a variant says otherwise the store is unchanged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The disk failed or is full. The object of a failed `put` or `import` is not there; trying again is safe.
    #[error("objects could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// The object is not here. Fetch it from a peer.
    #[error("object {0} is not here")]
    Missing(ObjectId),
    /// The object was here but its bytes do not match its id any more. It now counts as missing; fetch it from a peer.
    #[error("object {0} is damaged on disk")]
    Damaged(ObjectId),
    /// Bytes offered for an id do not hash to it. Fetch them elsewhere.
    #[error("the bytes offered for object {0} are not that object")]
    Mismatch(ObjectId),
    /// The object exceeds `Options::object_bytes_max`. Retrying does not help.
    #[error("an object of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLarge {
        /// Size of the refused object.
        bytes: u64,
        /// The configured limit.
        bytes_max: u64,
    },
    /// A segment was written by a newer version. Upgrade the binary; nothing was touched.
    #[error("segment {segment:016x} has format version {found}, newer than {known}")]
    Version {
        /// Number of the segment.
        segment: u64,
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// An earlier fsync failed, so what is durable is unknown. Every call fails until the store is opened again.
    #[error("an earlier fsync failed; the store refuses work until it is opened again")]
    Poisoned,
}

impl From<io::Error> for ObjectError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}
