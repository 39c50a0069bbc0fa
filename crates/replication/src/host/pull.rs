//! Pulls the objects of snapshots, as tasks on the network's runtime: one for each replica that receives one.
//!
//! An order for a replica whose pull is running replaces that pull, in the same task: what two pulls hold
//! for one replica would replace each other.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_failpoints::{Place, reached};
use flotilla_storage::StateEngine;
use flotilla_transport::{CallError, Class, Transport};
use flotilla_types::{Checkpoint, NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::{JoinError, JoinSet, spawn_blocking},
};

use super::Inbox;
use crate::{
    Input, clock,
    work::{Pull, PullBounds, PullError, PullRequest, PullState, Stored, waiting_request},
};

/// Timeout of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Pulls that fetch at a time. Further pulls wait.
const PULLS_MAX: usize = 4;
/// Calls in flight at a time, of all pulls: no more than the transport's bound for one peer.
const CALLS_MAX: usize = 8;
/// How often a pull that waits tells its source so. Sooner than the source would offer the snapshot again.
const WAITING_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Puller {
    runtime: tokio::runtime::Handle,
    network: Arc<Transport>,
    engine: Arc<dyn StateEngine>,
    inbox: Inbox,
    /// The replicas with a task.
    tasks: Tasks,
    pulls: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
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
    /// All its objects.
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
enum Failure {
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
}

impl Failure {
    fn ends_node(&self) -> bool {
        matches!(self, Self::Answer(error) if error.ends_node())
    }
}

impl Puller {
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        network: Arc<Transport>,
        engine: Arc<dyn StateEngine>,
        inbox: Inbox,
        fatal: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let (pulls, calls) = (Arc::new(Semaphore::new(PULLS_MAX)), Arc::new(Semaphore::new(CALLS_MAX)));
        Self { runtime, network, engine, inbox, tasks: Arc::default(), pulls, calls, fatal }
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
        let engine = self.engine.clone();
        let start = move || Pull::start(&*engine, replica, checkpoint, PullBounds::default());
        let mut pull = spawn_blocking(start).await?;
        let (total, missing) = pull.progress();
        metrics::counter!("flotilla_objects_reused_total").increment((total - missing) as u64);
        self.show(replica, |current| {
            (current.fetches, current.since_ms) = (true, clock::wall_ms());
            current.objects = (total - missing) as u64;
        });
        let mut calls = JoinSet::new();
        let mut last = Failure::Gone;
        loop {
            match self.next_source(replica) {
                Some(next) if next != from => return Err(Failure::Replaced),
                Some(_) => pull.stop(),
                None => {}
            }
            while let Some(request) = pull.next_request() {
                let puller = self.clone();
                calls.spawn(async move {
                    let stored = puller.fetch(from, request.clone()).await;
                    (request, stored)
                });
            }
            let call = tokio::select! {
                call = calls.join_next() => call,
                () = has_next.notified() => continue,
            };
            let Some(call) = call else { break };
            match call? {
                (request, Ok(stored)) => {
                    metrics::counter!("flotilla_objects_reused_total").increment(stored.reused as u64);
                    self.show(replica, |current| {
                        current.objects += (stored.objects + stored.reused) as u64;
                        current.objects_fetched += stored.objects as u64;
                        current.bytes += stored.bytes as u64;
                    });
                    if pull.on_stored(request, stored) {
                        pull = self.sync(pull).await?;
                    }
                }
                (_, Err(error)) if error.ends_node() => return Err(error),
                (request, Err(error)) => {
                    last = error;
                    tokio::time::sleep(Duration::from_millis(pull.on_failure(request))).await;
                }
            }
        }
        if pull.state() != PullState::Fetched {
            return Err(if self.next_source(replica).is_some() { Failure::Replaced } else { last });
        }
        self.sync(pull).await?;
        Ok(())
    }

    async fn sync(&self, pull: Pull) -> Result<Pull, Failure> {
        let engine = self.engine.clone();
        let synced = spawn_blocking(move || pull.sync(&*engine).map(|()| pull)).await?;
        Ok(synced?)
    }

    /// Waits until fewer pulls fetch. Meanwhile the source learns that the snapshot need not be offered again.
    async fn wait_for_turn(&self, replica: ReplicaId, from: NodeId) -> Option<SemaphorePermit<'_>> {
        loop {
            if let Ok(permit) = self.pulls.try_acquire() {
                return Some(permit);
            }
            let _ = self.network.call(from, Class::Objects, waiting_request(replica), CALL_TIMEOUT).await;
            if let Ok(permit) = tokio::time::timeout(WAITING_EVERY, self.pulls.acquire()).await {
                // The semaphore is never closed; an error would only mean one pull too many.
                return permit.ok();
            }
        }
    }

    async fn fetch(&self, from: NodeId, request: PullRequest) -> Result<Stored, Failure> {
        let _permit = self.calls.acquire().await;
        let answer: Bytes = self.network.call(from, Class::Objects, request.encode(), CALL_TIMEOUT).await?;
        reached(Place::SnapshotFetched);
        let engine = self.engine.clone();
        let stored = spawn_blocking(move || request.store(&*engine, answer)).await??;
        reached(Place::SnapshotImported);
        metrics::counter!("flotilla_objects_pulled_total").increment(stored.objects as u64);
        metrics::counter!("flotilla_objects_pulled_bytes_total").increment(stored.bytes as u64);
        Ok(stored)
    }
}
