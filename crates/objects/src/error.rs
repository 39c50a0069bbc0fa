//! The errors of the store.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use flotilla_types::ObjectId;

/// An operation of the store failed. Unless a variant says otherwise, the store is unchanged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The disk failed or is full. A failed `put` or `import` stored nothing; retrying is safe.
    #[error("objects could not be written or read; check the disk: {0}")]
    Io(Arc<io::Error>),
    /// The store does not hold the object. Fetch it from a peer.
    #[error("object {0} is missing")]
    Missing(ObjectId),
    /// The object's bytes no longer match its id. It counts as missing from now on; fetch it from a peer.
    #[error("object {0} is damaged on disk")]
    Damaged(ObjectId),
    /// The bytes do not hash to the given id. Fetch them from another peer.
    #[error("the bytes given for object {0} do not match its id")]
    Mismatch(ObjectId),
    /// The object exceeds `Options::object_bytes_max`. Retrying does not help.
    #[error("an object of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLarge {
        /// Size of the refused object.
        bytes: u64,
        /// The configured limit.
        bytes_max: u64,
    },
    /// The object has more children than [`CHILDREN_MAX`](crate::CHILDREN_MAX). Retrying does not help.
    #[error("object {id} has {children} children, more than {}", crate::CHILDREN_MAX)]
    TooManyChildren {
        /// The refused object.
        id: ObjectId,
        /// Number of its children, without duplicates.
        children: usize,
    },
    /// A newer version wrote a segment. Upgrade the binary; nothing was changed.
    #[error("segment {segment:016x} has format version {found}, newer than {known}")]
    Version {
        /// Number of the segment.
        segment: u64,
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// An fsync failed, now or earlier, so what is durable is unknown. Every call fails until the store is
    /// reopened.
    #[error("an fsync of objects failed; the store refuses work until it is reopened: {0}")]
    Poisoned(Arc<io::Error>),
}

impl From<io::Error> for ObjectError {
    fn from(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// An I/O error and the file that it concerns.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
struct AtPath {
    path: PathBuf,
    source: io::Error,
}

/// Adds a path to an I/O error. The kind stays, and the operating system's error is its source.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<'_> {
    |source| io::Error::new(source.kind(), AtPath { path: path.to_owned(), source })
}
