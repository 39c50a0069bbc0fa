//! The objects of large values, as a gateway stores and reads them.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::ObjectId;

use crate::EngineError;

/// An upload cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// The upload is not known: its deadline has passed, or the process was started since it began. What it held
    /// may be gone: begin again, and ask for all of its objects again.
    #[error("upload {0} has ended; begin it again")]
    Ended(u64),
    /// There are as many uploads as may be, or they hold as much as they may. What this one held stays held; retry
    /// later.
    #[error("uploads hold as much as they may; retry later")]
    Full,
    /// The bytes of an object do not have its id. Nothing was stored.
    #[error("the bytes are not those of object {0}")]
    WrongBytes(ObjectId),
    /// The store refuses all work.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Stores and reads the objects of large values on this node.
///
/// An *upload* holds objects that no entry or record names yet: until it is ended, its deadline passes, or the
/// process ends. A reader holds what it reads in the same way. Numbers of uploads are drawn at random. All calls
/// but [`begin_upload`](Self::begin_upload), [`renew_upload`](Self::renew_upload) and
/// [`end_upload`](Self::end_upload) may read or write the disk.
pub trait ValueObjects: Send + Sync + 'static {
    /// Begins an upload, or renews it if it goes on already. It ends after `time`, ten minutes at most, unless it
    /// is renewed.
    fn begin_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError>;

    /// Moves the deadline of an upload to `time` from now.
    fn renew_upload(&self, upload: u64, time: Duration) -> Result<(), UploadError>;

    /// What is absent of `objects` and of all below those that are here. In the same step the upload holds those
    /// that are here, with all below them. Ask again for the others once they are stored.
    fn need(&self, upload: u64, objects: &[ObjectId]) -> Result<Vec<ObjectId>, UploadError>;

    /// Stores an object after verifying its hash, and holds it for the upload. `children` are the objects that it
    /// needs. Durable only after [`sync`](Self::sync).
    fn store(&self, upload: u64, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), UploadError>;

    /// Makes what was stored durable.
    fn sync(&self) -> Result<(), EngineError>;

    /// The bytes of an object, verified against its id.
    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError>;

    /// Ends an upload, before its deadline.
    fn end_upload(&self, upload: u64);
}
