//! Large values: their objects go to this node's store while they arrive, and come from there, or from other nodes,
//! while they are sent.
//!
//! Invariants: what is written or read is held by an upload from the first object to the end of the call, so nothing
//! of it is collected meanwhile. Nothing that waits for a client takes part in [`IN_WORK_BYTES_MAX`], so no client can
//! keep others from the disk. A writer keeps one batch and what its cutter keeps; a reader keeps [`AHEAD_MAX`] chunks.

mod hold;
#[cfg(test)]
pub(crate) mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::{sync::Arc, time::Duration};

use flotilla_storage::{EngineError, UploadError, ValueObjects};
use flotilla_types::{NodeId, ObjectId, Refs};
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::{RETRY_AFTER_MS, StoreError};

pub(crate) use hold::Hold;
pub(crate) use reader::{AHEAD_MAX, ValueReader};
pub(crate) use writer::{BATCH_BYTES_MAX, ValueWriter};

/// Bytes of objects that threads read or write at the same time, for all clients; others wait.
const IN_WORK_BYTES_MAX: usize = 16 << 20;
/// Each task counts as so many at least, which bounds the threads: 32.
const TASK_BYTES_MIN: usize = 512 << 10;
/// How long a task waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// Objects could not be fetched: no node that was asked has them, or there was no time. What came is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("objects could not be fetched from other nodes")]
pub struct NotFetched;

/// Fetches objects from other nodes.
pub trait FetchObjects: Send + Sync + 'static {
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
    in_work: Arc<Semaphore>,
}

impl Values {
    pub(crate) fn new(objects: Arc<dyn ValueObjects>, fetch: Arc<dyn FetchObjects>) -> Self {
        Self { objects, fetch, in_work: Arc::new(Semaphore::new(IN_WORK_BYTES_MAX)) }
    }

    /// Does work that may wait for the disk, on a thread for that, when it is the turn of so many bytes.
    async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&dyn ValueObjects) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let permits = bytes.clamp(TASK_BYTES_MIN, IN_WORK_BYTES_MAX) as u32;
        let turn = tokio::time::timeout(TURN_WITHIN, self.in_work.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(turn)) = turn else { return Err(BUSY) };
        let objects = self.objects.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&*objects);
            drop(turn);
            done
        });
        // It has panicked, or the runtime ends.
        done.await.map_err(|_| StoreError::ObjectsUnavailable)
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

const BUSY: StoreError = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };

/// The store of objects failed.
fn failed(error: &EngineError) -> StoreError {
    tracing::warn!(%error, "objects of a value cannot be read or stored");
    StoreError::ObjectsUnavailable
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
