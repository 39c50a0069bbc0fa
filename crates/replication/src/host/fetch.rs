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
use tokio::sync::{Notify, Semaphore};

use super::pull::{Failure, Puller, Watch};
use crate::{
    clock,
    work::{Pull, PullBounds, PullError, PullOrder, Stored, other_nodes},
};

/// Fetches at a time. Further ones wait, within their deadline.
const FETCHES_MAX: usize = 32;
/// Milliseconds that a fetch whose deadline has passed waits for what it has requested.
const DRAIN_MS: u64 = 200;
/// What was fetched for entries to come and is held for them, at a time: further ones come without.
const PREFETCHED_MAX: usize = 256;
/// How long it is held: an entry comes at once, or not at all.
const PREFETCHED_KEPT: Duration = Duration::from_secs(2);

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
    prefetched: Arc<Semaphore>,
    last: Arc<AtomicU64>,
}

impl Default for Fetches {
    fn default() -> Self {
        let (turns, prefetched) = (Semaphore::new(FETCHES_MAX), Semaphore::new(PREFETCHED_MAX));
        Self { turns: Arc::new(turns), prefetched: Arc::new(prefetched), last: Arc::default() }
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
        self.need(values, upload, Vec::new()).await?;
        let held = self.holder_of_fetch();
        let pulled = self.fetch_held(&held, refs, other_nodes(self.node, sources), timeout).await;
        let missing = self.need(values, upload, ids).await?;
        let fetched = pulled?;
        if missing.is_empty() { Ok(fetched) } else { Err(FetchError::Missing) }
    }

    /// Fetches what an entry will refer to that is about to come, and holds it for a short while.
    pub(super) async fn prefetch(&self, refs: &Refs, from: NodeId, timeout: Duration) -> Result<(), FetchError> {
        let Ok(room) = self.fetches.prefetched.clone().try_acquire_owned() else { return Err(FetchError::Deadline) };
        let held = self.holder_of_fetch();
        self.fetch_held(&held, refs, vec![from], timeout).await?;
        self.runtime.spawn(async move {
            tokio::time::sleep(PREFETCHED_KEPT).await;
            drop((held, room));
        });
        Ok(())
    }

    fn holder_of_fetch(&self) -> Held {
        let holder = Holder::Fetch(self.fetches.last.fetch_add(1, Ordering::Relaxed));
        Held { engine: self.engine.clone(), holder }
    }

    async fn fetch_held(
        &self,
        held: &Held,
        refs: &Refs,
        sources: Vec<NodeId>,
        timeout: Duration,
    ) -> Result<Fetched, FetchError> {
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let turn = tokio::time::timeout(timeout, self.fetches.turns.acquire()).await;
        // The semaphore is never closed; an error would only mean one fetch too many.
        let Ok(_turn) = turn else { return Err(FetchError::Deadline) };
        let order = PullOrder::of_refs(sources, refs, self.lists).held_by(held.holder);
        let (objects, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let watch = Fetching { deadline_ms, changed: Notify::new(), objects, bytes };
        self.run_fetch(order, &watch).await.map_err(|failure| self.fetch_error(failure))?;
        Ok(Fetched { objects: watch.objects.into_inner(), bytes: watch.bytes.into_inner() })
    }

    async fn run_fetch(&self, order: PullOrder, watch: &Fetching) -> Result<(), Failure> {
        let (engine, bounds) = (self.engine.clone(), PullBounds::of_rate(self.pace.bytes_per_second()));
        let pull = self.workers.run(move || Pull::start(&*engine, order, bounds)).await??;
        self.traffic.reused(pull.reuse());
        self.drive(pull, watch).await
    }

    fn fetch_error(&self, failure: Failure) -> FetchError {
        if failure.ends_node() {
            (self.fatal)(&failure.to_string());
        }
        match failure {
            Failure::Replaced => FetchError::Deadline,
            Failure::Answer(PullError::Engine(error)) => UploadError::Engine(error).into(),
            Failure::Call(_) | Failure::Answer(_) | Failure::Gone | Failure::Cancelled(_) | Failure::NotDone(_) => {
                FetchError::Missing
            }
        }
    }

    /// Asks what is missing, on a thread that may wait for the disk.
    async fn need(
        &self,
        values: &Arc<dyn ValueObjects>,
        upload: u64,
        ids: Vec<ObjectId>,
    ) -> Result<Vec<ObjectId>, UploadError> {
        let values = values.clone();
        let asked = self.workers.run(move || values.need(upload, &ids)).await;
        // The runtime stops.
        asked.unwrap_or_else(|stopped| Err(EngineError::from(std::io::Error::other(stopped)).into()))
    }
}
