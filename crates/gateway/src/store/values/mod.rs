//! Large values: their objects go to this node's store while they arrive, and come from there, or from other nodes,
//! while they are sent.
//!
//! Invariants: what is written or read is held by an upload from the first object to the end of the call, so nothing
//! of it is collected meanwhile. Nothing that waits for a client takes part in [`IN_WORK_BYTES_MAX`], so no client can
//! keep others from the disk. A writer keeps one batch and what its cutter keeps, a reader a few chunks.

mod clients;
mod frames;
mod hold;
#[cfg(test)]
pub(crate) mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod verified;
mod writer;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_control::Workers;
use flotilla_storage::{EngineError, UploadError, ValueObjects};
use flotilla_types::{NodeId, ObjectId, Refs};
use flotilla_values::{Chunking, Need, ValueRef};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{RETRY_AFTER_MS, StoreError};

use clients::ClientUploads;
pub(crate) use frames::{Encoding, FramesError, frame_bytes};
pub(crate) use hold::{HOLD_TIME, Hold, UPLOAD_TIME};
pub(crate) use reader::ValueReader;
pub(crate) use verified::VerifiedRefs;
pub(crate) use writer::ValueWriter;

/// Bytes of objects that threads read or write at the same time, for all clients; others wait.
const IN_WORK_BYTES_MAX: usize = 16 << 20;
/// Each task counts as so many at least.
const TASK_BYTES_MIN: usize = 64 << 10;
/// Bytes of large values that are whole in memory, for all clients, until whoever asked for them drops them; others
/// wait until their deadline.
const WHOLE_BYTES_MAX: usize = 128 << 20;
/// Values that were fetched from other nodes and are kept for their next reader.
const KEPT_MAX: usize = 16;
/// How long a task waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// Objects could not be fetched: no node that was asked has them, or there was no time. What came is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("objects could not be fetched from other nodes")]
pub(crate) struct NotFetched;

/// Fetches objects from other nodes.
pub(crate) trait FetchObjects: Send + Sync + 'static {
    /// Brings to this node what it lacks of these objects and of all below them. The upload holds what comes.
    fn fetch(
        &self,
        upload: u64,
        objects: Refs,
        from: Vec<NodeId>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<(), NotFetched>>;
}

/// This node's objects of large values. Clones share it.
#[derive(Clone)]
pub(crate) struct Values {
    objects: Arc<dyn ValueObjects>,
    fetch: Arc<dyn FetchObjects>,
    workers: Workers,
    in_work: Arc<Semaphore>,
    whole: Arc<Semaphore>,
    verified: Arc<Mutex<VerifiedRefs>>,
    /// Uploads of values that were fetched and read, oldest first.
    kept: Arc<Mutex<VecDeque<u64>>>,
    clients: Arc<Mutex<ClientUploads>>,
}

impl Values {
    pub(crate) fn new(objects: Arc<dyn ValueObjects>, fetch: Arc<dyn FetchObjects>) -> Self {
        Self {
            objects,
            fetch,
            workers: Workers::start("values"),
            in_work: Arc::new(Semaphore::new(IN_WORK_BYTES_MAX)),
            whole: Arc::new(Semaphore::new(WHOLE_BYTES_MAX)),
            verified: Arc::default(),
            kept: Arc::default(),
            clients: Arc::default(),
        }
    }

    /// Does work that may wait for the disk, on a thread for that, when it is the turn of so many bytes.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&dyn ValueObjects) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let permits = bytes.clamp(TASK_BYTES_MIN, IN_WORK_BYTES_MAX) as u32;
        let turn = tokio::time::timeout(TURN_WITHIN, self.in_work.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(turn)) = turn else { return Err(BUSY) };
        let objects = self.objects.clone();
        let done = self.workers.run(move || {
            let done = work(&*objects);
            drop(turn);
            done
        });
        done.await.map_err(|_| StoreError::ObjectsUnavailable)
    }

    /// Room for so many bytes of whole values.
    ///
    /// # Errors
    /// There is none before the deadline, or will never be.
    pub(crate) async fn room(&self, bytes: u64, deadline: Instant) -> Result<OwnedSemaphorePermit, StoreError> {
        let permits = u32::try_from(bytes).ok().filter(|permits| *permits as usize <= WHOLE_BYTES_MAX);
        let permits = permits.ok_or(StoreError::ValueTooLarge { limit_bytes: WHOLE_BYTES_MAX as u64 })?;
        let room = tokio::time::timeout_at(deadline.into(), self.whole.clone().acquire_many_owned(permits)).await;
        room.ok().and_then(Result::ok).ok_or(BUSY)
    }

    /// Leaves what was fetched for a reader, who may ask for another part of the same value, until others came or its
    /// time is over.
    fn keep(&self, upload: u64) {
        let oldest = {
            let mut kept = self.kept.lock();
            kept.push_back(upload);
            if kept.len() > KEPT_MAX { kept.pop_front() } else { None }
        };
        oldest.into_iter().for_each(|upload| self.objects.end_upload(upload));
    }

    /// Whether content was cut like this before, and had this reference.
    pub(crate) fn is_verified(&self, value: &ValueRef, chunking: Chunking) -> bool {
        self.verified.lock().has(value, chunking)
    }

    /// Remembers that content that was cut like this has this reference.
    pub(crate) fn verified(&self, value: &ValueRef, chunking: Chunking) {
        self.verified.lock().add(value, chunking);
    }

    /// The bytes of an object, if it is here and intact.
    pub(crate) async fn object(&self, id: ObjectId, bytes: u64) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.work(usize::try_from(bytes).unwrap_or(usize::MAX), move |objects| objects.object(id)).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(EngineError::Object(_)) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// A bound of this node is reached.
pub(crate) const BUSY: StoreError = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };

/// The store of objects failed.
pub(crate) fn failed(error: &EngineError) -> StoreError {
    tracing::warn!(%error, "objects of a value cannot be read or stored");
    StoreError::ObjectsUnavailable
}

/// An object that is held was found damaged. [`Hold::restore`] fetches it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged(pub(crate) Need);

/// The bytes of an object that is held.
pub(crate) fn held_object(
    objects: &dyn ValueObjects,
    need: &Need,
) -> Result<Result<bytes::Bytes, Damaged>, StoreError> {
    match objects.object(need.id) {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(EngineError::Object(_)) => Ok(Err(Damaged(*need))),
        Err(error) => Err(failed(&error)),
    }
}

impl From<UploadError> for StoreError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Ended(_) => Self::UploadEnded,
            UploadError::Full => BUSY,
            UploadError::WrongBytes(_) => Self::Invalid("the bytes of an object do not have its id"),
            UploadError::Engine(error) => failed(&error),
        }
    }
}
