//! Pulls objects, as tasks on the network's runtime: those of a snapshot, one for each replica that receives one;
//! and what entries and commands refer to (`gather`).
//!
//! The receiver sets the pace: a request waits until the node's budget has room for the bytes that it asks for.
//!
//! An order for a replica whose pull is running replaces that pull, in the same task: what two pulls hold
//! for one replica would replace each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flotilla_failpoints::{Place, reached};
use flotilla_storage::{ListRefs, StateEngine};
use flotilla_transport::{CallError, Class, Transport};
use flotilla_types::{Checkpoint, NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::{JoinError, JoinSet},
};

use super::{
    Inbox, fetch, gather,
    pace::Pace,
    traffic::Traffic,
    workers::{NotDone, Workers},
};
use crate::{
    Input, clock,
    work::{End, Pull, PullBounds, PullError, PullOrder, PullRequest, PullState, Stored, waiting_request},
};

/// Timeout of a call that fetches nothing.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Milliseconds that a pull waits for what it has requested when another one replaces it.
const CALLS_MS_MAX: u64 = 20_000;
/// The same when the other one is offered by another node.
const DRAIN_MS: u64 = 1_000;
/// Pulls that fetch at a time. Further pulls wait.
const PULLS_MAX: usize = 4;
/// Calls in flight at a time, of all pulls: no more than the transport's bound for one peer.
const CALLS_MAX: usize = 8;
/// How often a pull that waits tells its source so. Sooner than the source would offer the snapshot again.
const WAITING_EVERY: Duration = Duration::from_secs(2);
/// Milliseconds after which a pull looks again at what it may send, at the latest.
const LOOK_MS: u64 = 60_000;

/// What pulls need of their node.
pub(super) struct PullerParts {
    pub(super) node: NodeId,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) network: Arc<Transport>,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) inbox: Inbox,
    pub(super) lists: ListRefs,
    pub(super) pace: Pace,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

#[derive(Clone)]
pub(super) struct Puller {
    pub(super) node: NodeId,
    pub(super) runtime: tokio::runtime::Handle,
    network: Arc<Transport>,
    pub(super) engine: Arc<dyn StateEngine>,
    pub(super) inbox: Inbox,
    pub(super) lists: ListRefs,
    /// How fast the node receives.
    pub(super) pace: Pace,
    /// The replicas with a task.
    tasks: Tasks,
    /// Replicas whose snapshots are not fetched now.
    paused: Arc<Mutex<BTreeSet<ReplicaId>>>,
    pulls: Arc<Semaphore>,
    /// What entries and commands wait for.
    pub(super) gathers: gather::Gathers,
    pub(super) fetches: fetch::Fetches,
    pub(super) traffic: Traffic,
    pub(super) workers: Workers,
    calls: Arc<Semaphore>,
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The replicas with a task, and what it does.
pub(super) type Tasks = Arc<Mutex<BTreeMap<ReplicaId, Task>>>;

/// A snapshot that a replica here receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncomingSnapshot {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The node that it comes from.
    pub from: NodeId,
    /// When it was ordered or, once it is being fetched, when that began; Unix milliseconds.
    pub since_ms: u64,
    /// Whether it is being fetched. Otherwise it waits for other transfers.
    pub fetches: bool,
    /// Its objects that are here. Zero while it waits.
    pub objects: u64,
    /// All its objects, as far as they are known: a manifest tells of its pieces when it is here.
    pub objects_total: u64,
    /// Its objects that were fetched.
    pub objects_fetched: u64,
    /// Bytes of those.
    pub bytes: u64,
}

impl IncomingSnapshot {
    fn new(replica: ReplicaId, order: &Order) -> Self {
        Self {
            shard: order.checkpoint.position.descriptor.shard,
            replica,
            from: order.from,
            since_ms: clock::wall_ms(),
            fetches: false,
            objects: 0,
            objects_total: order.checkpoint.objects().count() as u64,
            objects_fetched: 0,
            bytes: 0,
        }
    }
}

/// A snapshot to fetch.
struct Order {
    from: NodeId,
    checkpoint: Checkpoint,
}

/// What a running task does, and does next.
pub(super) struct Task {
    pub(super) current: IncomingSnapshot,
    next: Option<Order>,
    has_next: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the call to the peer failed: {0}")]
    Call(#[from] CallError),
    #[error(transparent)]
    Answer(#[from] PullError),
    #[error("the peer does not hold all objects any more")]
    Gone,
    #[error("a newer snapshot is offered")]
    Replaced,
    #[error("the pull was cancelled")]
    Cancelled(#[from] JoinError),
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

impl Failure {
    pub(super) fn ends_node(&self) -> bool {
        matches!(self, Self::Answer(error) if error.ends_node())
    }
}

impl Puller {
    pub(super) fn new(parts: PullerParts) -> Self {
        let PullerParts { node, runtime, network, engine, inbox, lists, pace, fatal } = parts;
        let (pulls, calls) = (Arc::new(Semaphore::new(PULLS_MAX)), Arc::new(Semaphore::new(CALLS_MAX)));
        Self {
            node,
            runtime,
            network,
            engine,
            inbox,
            lists,
            pace,
            tasks: Arc::default(),
            paused: Arc::default(),
            pulls,
            gathers: gather::Gathers::default(),
            fetches: fetch::Fetches::default(),
            traffic: Traffic::default(),
            workers: Workers::start("objects"),
            calls,
            fatal,
        }
    }

    /// Fetches the missing objects of a checkpoint, makes them durable, and reports to the core.
    pub(super) fn pull(&self, replica: ReplicaId, from: NodeId, checkpoint: Checkpoint) {
        let order = Order { from, checkpoint };
        let mut tasks = self.tasks.lock();
        if let Some(task) = tasks.get_mut(&replica) {
            task.next = Some(order);
            task.has_next.notify_one();
            return;
        }
        let task = Task { current: IncomingSnapshot::new(replica, &order), next: None, has_next: Arc::default() };
        let has_next = task.has_next.clone();
        tasks.insert(replica, task);
        drop(tasks);
        let puller = self.clone();
        self.runtime.spawn(async move { puller.run(replica, order, &has_next).await });
    }

    /// Sets whose snapshots are not fetched. What was fetched of them is kept, and they are offered again.
    pub(super) fn pause(&self, replicas: BTreeSet<ReplicaId>) {
        let tasks = self.tasks.lock();
        for task in replicas.iter().filter_map(|replica| tasks.get(replica)) {
            task.has_next.notify_one();
        }
        *self.paused.lock() = replicas;
    }

    fn is_paused(&self, replica: ReplicaId) -> bool {
        self.paused.lock().contains(&replica)
    }

    async fn run(&self, replica: ReplicaId, mut order: Order, has_next: &Notify) {
        loop {
            reached(Place::SnapshotBeforePull);
            let Order { from, checkpoint } = order;
            let result = self.fetch_all(replica, from, checkpoint.clone(), has_next).await;
            match &result {
                Err(error) if error.ends_node() => (self.fatal)(&error.to_string()),
                Err(error) => tracing::info!(%replica, %from, %error, "a snapshot's objects were not all fetched"),
                Ok(()) => {}
            }
            reached(Place::SnapshotSynced);
            self.inbox.send(Input::Pulled { replica, checkpoint, complete: result.is_ok() });
            let mut tasks = self.tasks.lock();
            let Some(task) = tasks.get_mut(&replica) else { return };
            let Some(next) = task.next.take() else {
                tasks.remove(&replica);
                return;
            };
            task.current = IncomingSnapshot::new(replica, &next);
            order = next;
        }
    }

    /// Updates what is shown of a running task.
    fn show(&self, replica: ReplicaId, update: impl FnOnce(&mut IncomingSnapshot)) {
        if let Some(task) = self.tasks.lock().get_mut(&replica) {
            update(&mut task.current);
        }
    }

    /// The replicas with a task.
    pub(super) fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// The node of the order that replaces this one.
    fn next_source(&self, replica: ReplicaId) -> Option<NodeId> {
        self.tasks.lock().get(&replica).and_then(|task| task.next.as_ref()).map(|next| next.from)
    }

    async fn fetch_all(
        &self,
        replica: ReplicaId,
        from: NodeId,
        checkpoint: Checkpoint,
        has_next: &Notify,
    ) -> Result<(), Failure> {
        let _permit = self.wait_for_turn(replica, from).await;
        let (engine, bounds) = (self.engine.clone(), PullBounds::of_rate(self.pace.bytes_per_second()));
        let order = PullOrder::of_snapshot(self.node, replica, from, &checkpoint, self.lists);
        let pull = self.workers.run(move || Pull::start(&*engine, order, bounds)).await??;
        let (total, missing) = pull.progress();
        metrics::counter!("flotilla_objects_reused_total").increment((total - missing) as u64);
        self.show(replica, |current| (current.fetches, current.since_ms) = (true, clock::wall_ms()));
        self.drive(pull, &Watched { puller: self, replica, from, has_next }).await
    }

    /// Runs a pull to its end.
    pub(super) async fn drive(&self, mut pull: Pull, watch: &dyn Watch) -> Result<(), Failure> {
        watch.progress(&pull);
        let mut calls = JoinSet::new();
        let mut last = Failure::Gone;
        let mut drained_at_ms: Option<u64> = None;
        loop {
            if let Some(drain_ms) = watch.is_over() {
                pull.stop();
                let at_ms = clock::monotonic_ms() + drain_ms;
                drained_at_ms = Some(drained_at_ms.map_or(at_ms, |before_ms| before_ms.min(at_ms)));
            }
            while let Some(request) = pull.next_request(clock::monotonic_ms()) {
                calls.spawn(self.clone().fetch(request));
            }
            let now_ms = clock::monotonic_ms();
            let wakes_at_ms = pull.wakes_at_ms(now_ms);
            if calls.is_empty() && pull.state() == PullState::Fetched {
                let whole;
                (pull, whole) = self.finish(pull).await?;
                if whole {
                    return Ok(());
                }
                continue;
            }
            if calls.is_empty() && (pull.state() != PullState::Working || wakes_at_ms.is_none()) {
                return Err(if watch.is_over().is_some() { Failure::Replaced } else { last });
            }
            if drained_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                return Err(Failure::Replaced);
            }
            let looks_ms = Some(now_ms + LOOK_MS);
            let next_look_ms = [wakes_at_ms, drained_at_ms, watch.ends_at_ms(), looks_ms].into_iter().flatten().min();
            let pause_ms = next_look_ms.map_or(LOOK_MS, |at_ms| at_ms.saturating_sub(now_ms).max(1));
            let call = tokio::select! {
                Some(call) = calls.join_next() => call?,
                () = watch.changed().notified() => continue,
                () = tokio::time::sleep(Duration::from_millis(pause_ms)) => continue,
            };
            match call {
                Fetched { request, result: Ok((stored, took_ms)) } => {
                    count(&request, &stored);
                    if request.is_for_values() {
                        self.traffic.received(request.source(), &stored);
                        self.traffic.reused(stored.reuse);
                    }
                    watch.stored(&stored);
                    match &stored.end {
                        End::Failed(PullError::Engine(error)) => {
                            let error = PullError::Engine(error.clone());
                            if error.ends_node() {
                                return Err(error.into());
                            }
                            last = error.into();
                        }
                        End::Gone => last = Failure::Gone,
                        _ => {}
                    }
                    let syncs = pull.on_stored(clock::monotonic_ms(), took_ms, request, stored);
                    watch.progress(&pull);
                    if syncs {
                        pull = self.sync(pull).await?;
                    }
                }
                Fetched { request, result: Err(error) } => {
                    source_failed(&request, "call");
                    last = error;
                    pull.on_failure(clock::monotonic_ms(), request);
                }
            }
        }
    }

    async fn sync(&self, pull: Pull) -> Result<Pull, Failure> {
        let engine = self.engine.clone();
        let synced = self.workers.run(move || pull.sync(&*engine).map(|()| pull)).await?;
        Ok(synced?)
    }

    async fn finish(&self, mut pull: Pull) -> Result<(Pull, bool), Failure> {
        let engine = self.engine.clone();
        let finished = self.workers.run(move || pull.finish(&*engine).map(|whole| (pull, whole))).await?;
        Ok(finished?)
    }

    /// Waits until fewer pulls fetch and this one is not paused. Meanwhile the source learns that the snapshot need
    /// not be offered again.
    async fn wait_for_turn(&self, replica: ReplicaId, from: NodeId) -> Option<SemaphorePermit<'_>> {
        loop {
            if !self.is_paused(replica)
                && let Ok(permit) = self.pulls.try_acquire()
            {
                return Some(permit);
            }
            let _ = self.network.call(from, Class::Objects, waiting_request(replica), CALL_TIMEOUT).await;
            if self.is_paused(replica) {
                tokio::time::sleep(WAITING_EVERY).await;
                continue;
            }
            if let Ok(permit) = tokio::time::timeout(WAITING_EVERY, self.pulls.acquire()).await {
                // The semaphore is never closed; an error would only mean one pull too many.
                return permit.ok();
            }
        }
    }

    async fn fetch(self, request: PullRequest) -> Fetched {
        let result = self.call(&request).await;
        Fetched { request, result }
    }

    /// Sends a request and stores the answer. Returns how long the call took, milliseconds.
    async fn call(&self, request: &PullRequest) -> Result<(Stored, u64), Failure> {
        let _permit = self.calls.acquire().await;
        let expected = request.bytes_expected();
        self.pace.take(expected).await;
        let timeout = Duration::from_millis(request.timeout_ms());
        let sent_ms = clock::monotonic_ms();
        let answer = self.network.call(request.source(), Class::Objects, request.encode(), timeout).await;
        let received = answer.as_ref().map_or(0, Bytes::len) as u64;
        self.pace.correct(expected, received);
        let (answer, took_ms) = (answer?, clock::monotonic_ms() - sent_ms);
        reached(Place::SnapshotFetched);
        let (engine, storing) = (self.engine.clone(), request.clone());
        let stored = self.workers.run(move || storing.store(&*engine, answer)).await?;
        reached(Place::SnapshotImported);
        Ok((stored, took_ms))
    }
}

/// Who follows a pull, and may end it.
pub(super) trait Watch: Sync {
    /// Whether it is to end, within so many milliseconds.
    fn is_over(&self) -> Option<u64>;

    /// When that has to be asked again, at the latest.
    fn ends_at_ms(&self) -> Option<u64> {
        None
    }

    /// Notified when that may have changed.
    fn changed(&self) -> &Notify;

    /// How it stands.
    fn progress(&self, _pull: &Pull) {}

    /// What an answer brought.
    fn stored(&self, _stored: &Stored) {}
}

/// The pull of a snapshot.
struct Watched<'a> {
    puller: &'a Puller,
    replica: ReplicaId,
    from: NodeId,
    has_next: &'a Notify,
}

impl Watch for Watched<'_> {
    fn is_over(&self) -> Option<u64> {
        if self.puller.is_paused(self.replica) {
            return Some(DRAIN_MS);
        }
        let next = self.puller.next_source(self.replica)?;
        // Another node that offers one may do so because this one is gone.
        Some(if next == self.from { CALLS_MS_MAX } else { DRAIN_MS })
    }

    fn changed(&self) -> &Notify {
        self.has_next
    }

    fn progress(&self, pull: &Pull) {
        let (total, missing) = pull.progress();
        self.puller.show(self.replica, |current| {
            (current.objects, current.objects_total) = ((total - missing) as u64, total as u64);
        });
    }

    fn stored(&self, stored: &Stored) {
        self.puller.show(self.replica, |current| {
            current.objects_fetched += stored.objects as u64;
            current.bytes += stored.bytes as u64;
        });
    }
}

/// Counts what an answer brought.
fn count(request: &PullRequest, stored: &Stored) {
    let source = request.source().to_string();
    metrics::counter!("flotilla_objects_reused_total").increment(stored.reused as u64);
    metrics::counter!("flotilla_objects_pulled_total").increment(stored.objects as u64);
    metrics::counter!("flotilla_objects_pulled_bytes_total").increment(stored.bytes as u64);
    metrics::counter!("flotilla_transfer_source_objects_total", "source" => source.clone())
        .increment(stored.objects as u64);
    metrics::counter!("flotilla_transfer_source_bytes_total", "source" => source).increment(stored.bytes as u64);
    match &stored.end {
        End::Gone => source_failed(request, "gone"),
        End::Bad => source_failed(request, "bad_object"),
        End::Failed(PullError::Malformed(_) | PullError::Packed | PullError::Empty) => {
            source_failed(request, "bad_answer")
        }
        End::Served | End::Busy { .. } | End::Failed(PullError::Engine(_)) => {}
    }
}

/// A request, and what became of it.
struct Fetched {
    request: PullRequest,
    result: Result<(Stored, u64), Failure>,
}

fn source_failed(request: &PullRequest, reason: &'static str) {
    let source = request.source().to_string();
    metrics::counter!("flotilla_transfer_source_failures_total", "source" => source, "reason" => reason).increment(1);
}
