//! Fetches objects of values for a reader or an uploader here, by the same pulls as what entries refer to.
//!
//! A holder of its own keeps what comes until the upload holds it, so that nothing is collected in between, and ends
//! with the call, also if that is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flotilla_storage::{EngineError, StateEngine, UploadError, ValueObjects};
use flotilla_types::{Holder, NodeId, ObjectId, Refs};
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
};

use super::pull::{Failure, Puller, Watch};
use crate::{
    clock,
    work::{Pull, PullBounds, PullError, PullOrder, Stored, other_nodes},
};

/// Fetches at a time. Further ones wait, within their deadline.
const FETCHES_MAX: usize = 32;
/// Milliseconds that a fetch whose deadline has passed waits for what it has requested.
const DRAIN_MS: u64 = 200;

/// Objects were not all fetched. What came is held by the upload, unless that has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// No source has them all, or they are not what is said of them.
    #[error("no node has the objects")]
    Missing,
    /// The time is over.
    #[error("the objects were not fetched in time")]
    Deadline,
    /// The upload has ended or is full, or the disk failed here.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// What a fetch has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Objects that came from other nodes.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The fetches of a node.
#[derive(Clone)]
pub(super) struct Fetches {
    turns: Arc<Semaphore>,
    last: Arc<AtomicU64>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(FETCHES_MAX)), last: Arc::default() }
    }
}

/// The hold of a fetch, until this is dropped.
struct Held {
    engine: Arc<dyn StateEngine>,
    holder: Holder,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.engine.hold(self.holder, &[]);
    }
}

struct Fetching {
    deadline_ms: u64,
    changed: Notify,
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Watch for Fetching {
    fn is_over(&self) -> Option<u64> {
        (clock::monotonic_ms() >= self.deadline_ms).then_some(DRAIN_MS)
    }

    fn ends_at_ms(&self) -> Option<u64> {
        Some(self.deadline_ms)
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn stored(&self, stored: &Stored) {
        self.objects.fetch_add(stored.objects as u64, Ordering::Relaxed);
        self.bytes.fetch_add(stored.bytes as u64, Ordering::Relaxed);
    }
}

impl Puller {
    pub(super) async fn fetch_for(
        &self,
        values: &Arc<dyn ValueObjects>,
        upload: u64,
        refs: &Refs,
        sources: Vec<NodeId>,
        timeout: Duration,
    ) -> Result<Fetched, FetchError> {
        let ids: Vec<_> = refs.ids().collect();
        need(values, upload, Vec::new()).await?;
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let turn = tokio::time::timeout(timeout, self.fetches.turns.acquire()).await;
        // The semaphore is never closed; an error would only mean one fetch too many.
        let Ok(_turn) = turn else { return Err(FetchError::Deadline) };
        let holder = Holder::Fetch(self.fetches.last.fetch_add(1, Ordering::Relaxed));
        let _held = Held { engine: self.engine.clone(), holder };
        let order = PullOrder::of_refs(other_nodes(self.node, sources), refs, self.lists).held_by(holder);
        let (objects, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let watch = Fetching { deadline_ms, changed: Notify::new(), objects, bytes };
        let pulled = self.run_fetch(order, &watch).await;
        let missing = need(values, upload, ids).await?;
        match pulled {
            Ok(()) if missing.is_empty() => {
                Ok(Fetched { objects: watch.objects.into_inner(), bytes: watch.bytes.into_inner() })
            }
            Ok(()) => Err(FetchError::Missing),
            Err(failure) => Err(self.fetch_error(failure)),
        }
    }

    async fn run_fetch(&self, order: PullOrder, watch: &Fetching) -> Result<(), Failure> {
        let (engine, bounds) = (self.engine.clone(), PullBounds::of_rate(self.pace.bytes_per_second()));
        let pull = spawn_blocking(move || Pull::start(&*engine, order, bounds)).await??;
        self.drive(pull, watch).await
    }

    fn fetch_error(&self, failure: Failure) -> FetchError {
        if failure.ends_node() {
            (self.fatal)(&failure.to_string());
        }
        match failure {
            Failure::Replaced => FetchError::Deadline,
            Failure::Answer(PullError::Engine(error)) => UploadError::Engine(error).into(),
            Failure::Call(_) | Failure::Answer(_) | Failure::Gone | Failure::Cancelled(_) => FetchError::Missing,
        }
    }
}

/// Asks what is missing, on a thread that may wait for the disk.
async fn need(values: &Arc<dyn ValueObjects>, upload: u64, ids: Vec<ObjectId>) -> Result<Vec<ObjectId>, UploadError> {
    let values = values.clone();
    let asked = spawn_blocking(move || values.need(upload, &ids)).await;
    // The runtime stops.
    asked.unwrap_or_else(|stopped| Err(EngineError::from(std::io::Error::other(stopped)).into()))
}
