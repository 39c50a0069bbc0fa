//! The shell of the shard host: threads, disk and network around [`Core`] and [`Applier`].
//!
//! | thread | does |
//! |---|---|
//! | raft | owns the core: processes inputs, sends messages, and runs jobs inline or passes them on (`inline`) |
//! | wal | one fsync for the waiting writes of all groups, then sends their messages |
//! | apply | applies entries and answers queries, as far as memory suffices |
//! | read (`read_threads`) | entries and queries that may wait for the disk |
//! | background (2) | builds and installs checkpoints, loads records, reclaims log space |
//! | compact | merges tables of checkpoints |
//! | scrub | reads stored objects, at a slow pace, to find damage |
//!
//! Pulls run as tasks on the network's runtime. A panic in any of the threads stops the node.

mod apply;
mod background;
mod digest;
mod fetch;
mod frames;
mod gather;
mod inline;
mod pace;
mod pool;
mod pull;
mod raft;
mod scrub;
mod traffic;
mod wal;
mod workers;

use std::{
    collections::BTreeSet,
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use flotilla_consensus::{ConfChange, ShardChange};
use flotilla_failpoints::{Place, reached};
use flotilla_storage::{EngineError, ListRefs, Log, LogError, Remedy, StateEngine, ValueObjects, remedy};
use flotilla_types::{
    ClusterVersion, Epoch, Incarnation, NodeId, Refs, ReplicaId, ShardDescriptor, ShardId, Timestamp,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use digest::{Digest, DigestError};
pub use fetch::{FetchError, Fetched};
use inline::InlineExecutor;
use pace::Pace;
pub use pull::IncomingSnapshot;
pub use traffic::{LinkTraffic, ValueTraffic};
pub use workers::{NotDone, Workers};

use crate::{
    Answer, Applier, CommandRefs, Core, Demands, Effects, Fingerprints, Freshness, HostConfig, Input, MachineFactory,
    Notice, ReplicaContents, Replicas, Request, RequestError, Size, clock,
    config::TRANSFER_RATE_MIN,
    work::{self, ScrubStatus},
};

/// Requests and peers' inputs that may wait for the raft thread. Beyond it, requests are refused and frames
/// dropped.
pub const INBOX_MAX: usize = 65_536;

/// Milliseconds that a peer's request for objects waits until they may be sent. Beyond it, the peer is told to
/// ask later.
const SEND_WAIT_MS_MAX: u64 = 2_000;

/// The caller that waits for an answer.
pub(crate) type Reply = oneshot::Sender<Answer>;

/// The parts that a host is built from.
pub struct HostParts {
    /// This node.
    pub node: NodeId,
    /// How often this node has started.
    pub incarnation: Incarnation,
    /// Bounds and timing.
    pub config: HostConfig,
    /// The durable log.
    pub log: Arc<dyn Log>,
    /// Records and checkpoints.
    pub engine: Arc<dyn StateEngine>,
    /// The objects of large values, in the same engine.
    pub values: Arc<dyn ValueObjects>,
    /// Makes the state machine of a shard.
    pub machines: MachineFactory,
    /// What the lists need that entries and records refer to.
    pub lists: ListRefs,
    /// A random number, different at every start.
    pub seed: u64,
    /// Called on the raft thread with each notice; must not block.
    pub notices: Box<dyn Fn(Notice) + Send>,
    /// Called when the node cannot continue (the disk failed, a thread panicked); must end the process.
    pub fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

pub(crate) enum Event {
    Input(Input<Reply>),
    /// Counts against [`INBOX_MAX`].
    Bounded(Input<Reply>),
    Stop,
}

/// Sends events to the raft thread, from any thread.
#[derive(Clone)]
pub(crate) struct Inbox {
    events: mpsc::Sender<Event>,
    waiting: Arc<AtomicUsize>,
}

impl Inbox {
    pub(crate) fn send(&self, input: Input<Reply>) {
        let _ = self.events.send(Event::Input(input));
    }

    /// Sends an input unless the inbox is full; returns whether it was sent.
    fn try_send(&self, input: Input<Reply>) -> bool {
        let has_room = self.waiting.load(Ordering::Relaxed) < INBOX_MAX;
        if has_room {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let _ = self.events.send(Event::Bounded(input));
        }
        has_room
    }
}

/// A running shard host.
pub struct Host {
    handle: Handle,
    threads: Vec<thread::JoinHandle<()>>,
    apply: Arc<InlineExecutor<apply::Apply>>,
    pool: Arc<pool::Pool>,
    background: mpsc::Sender<background::Order>,
    compaction: mpsc::Sender<background::Order>,
    scrub: scrub::Orders,
    stopped: Arc<AtomicBool>,
    engine: Arc<dyn StateEngine>,
}

/// A handle to a running shard host. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Handle {
    inbox: Inbox,
    status: Arc<RwLock<Replicas>>,
    engine: Arc<dyn StateEngine>,
    apply: Arc<InlineExecutor<apply::Apply>>,
    transferable_leaderships: Arc<AtomicUsize>,
    /// What was asked of the shards led here since that was last taken.
    demands: Arc<Mutex<Demands>>,
    puller: pull::Puller,
    values: Arc<dyn ValueObjects>,
    /// How fast the node receives and sends objects.
    receiving: Pace,
    sending: Pace,
    scrub: scrub::Orders,
    scrub_status: scrub::Published,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Host {
    /// Opens every replica in the log and starts the threads. `network` must reach the peers; pulls run on
    /// `runtime`.
    pub fn start(
        parts: HostParts,
        network: Arc<flotilla_transport::Transport>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, LogError> {
        let (events, inbox_rx) = mpsc::channel();
        let (background_tx, background_rx) = mpsc::channel();
        let (compaction_tx, compaction_rx) = mpsc::channel();
        let stopped = Arc::new(AtomicBool::new(false));
        let inbox = Inbox { events, waiting: Arc::new(AtomicUsize::new(0)) };
        let status = Arc::new(RwLock::new(Replicas::default()));
        let transferable_leaderships = Arc::new(AtomicUsize::new(0));
        let demands = Arc::default();

        let mut effects = Effects::default();
        let core = Core::open(
            parts.node,
            parts.incarnation,
            parts.config.clone(),
            parts.log.clone(),
            parts.seed,
            &mut effects,
        )?;
        let (scrub, scrub_orders) = scrub::orders();
        let scrubber =
            scrub::Scrub::new(parts.config.scrub, parts.seed, scrub_orders, &parts.engine, &inbox, &parts.fatal);
        let scrub_status = scrubber.published();
        let sender = frames::Sender::new(network.clone(), inbox.clone());
        let rate = parts.config.transfer_bytes_per_second;
        let (receiving, sending) = (Pace::new(rate), Pace::new(rate));
        let puller = pull::Puller::new(pull::PullerParts {
            node: parts.node,
            runtime,
            network,
            engine: parts.engine.clone(),
            inbox: inbox.clone(),
            lists: parts.lists,
            pace: receiving.clone(),
            fatal: parts.fatal.clone(),
        });
        let wal = wal::Wal {
            wal: work::Wal::new(&*parts.log, parts.incarnation),
            log: parts.log.clone(),
            sender: sender.clone(),
            inbox: inbox.clone(),
            fatal: parts.fatal.clone(),
        };
        let wal = Arc::new(InlineExecutor::new(wal));
        let applier = Applier::new(parts.engine.clone(), parts.machines);
        let pool = Arc::new(pool::Pool::new(parts.config.read_threads));
        let open_pins = applier.open_pins();
        let apply = apply::Apply {
            applier,
            inbox: inbox.clone(),
            background: background_tx.clone(),
            pool: pool.clone(),
            fatal: parts.fatal.clone(),
        };
        let apply = Arc::new(InlineExecutor::new(apply));
        let raft = raft::Raft {
            core,
            config: parts.config,
            inbox: inbox_rx,
            waiting: inbox.waiting.clone(),
            sender,
            wal: wal.clone(),
            apply: apply.clone(),
            background: background_tx.clone(),
            compaction: compaction_tx.clone(),
            puller: puller.clone(),
            open_pins,
            pins_expire_ms: 0,
            engine: parts.engine.clone(),
            notices: parts.notices,
            fatal: parts.fatal.clone(),
            status: status.clone(),
            transferable_leaderships: transferable_leaderships.clone(),
            demands: Arc::clone(&demands),
        };
        let workers = |orders, delayed, reclaim| background::Workers {
            orders,
            delayed,
            engine: parts.engine.clone(),
            log: parts.log.clone(),
            inbox: inbox.clone(),
            apply: apply.clone(),
            fatal: parts.fatal.clone(),
            stopped: stopped.clone(),
            reclaim,
        };
        let compactor = workers(compaction_rx, compaction_tx.clone(), false).share();
        let workers = workers(background_rx, background_tx.clone(), true);

        let fatal = &parts.fatal;
        let applying = apply.clone();
        let mut threads = vec![
            spawn("raft", fatal, move || raft.run(effects))?,
            spawn("wal", fatal, move || wal.run())?,
            spawn("apply", fatal, move || applying.run())?,
            spawn("compact", fatal, move || compactor.run())?,
            spawn("scrub", fatal, move || scrubber.run())?,
        ];
        let workers = Arc::new(workers.share());
        for _ in 0..background::THREADS {
            let workers = workers.clone();
            threads.push(spawn("background", fatal, move || workers.run())?);
        }
        for _ in 0..pool.threads() {
            let (pool, engine, apply) = (pool.clone(), parts.engine.clone(), apply.clone());
            let failed = fatal.clone();
            threads.push(spawn("read", fatal, move || pool.run(&*engine, &apply, &failed))?);
        }
        let handle = Handle {
            inbox,
            status,
            engine: parts.engine.clone(),
            apply: apply.clone(),
            transferable_leaderships,
            demands,
            puller,
            values: parts.values,
            receiving,
            sending,
            scrub: scrub.clone(),
            scrub_status,
            fatal: parts.fatal,
        };
        let (background, compaction) = (background_tx, compaction_tx);
        Ok(Self { handle, threads, apply, pool, background, compaction, scrub, stopped, engine: parts.engine })
    }

    /// A handle to this host.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops the threads and closes the engine cleanly, so that the next start can trust the view.
    pub fn stop(self) {
        let Self { handle, threads, apply, pool, background, compaction, scrub, stopped, engine } = self;
        stopped.store(true, Ordering::Relaxed);
        let _ = handle.inbox.events.send(Event::Stop);
        apply.close();
        pool.close();
        for _ in 0..background::THREADS {
            let _ = background.send(background::Order::Stop);
        }
        let _ = compaction.send(background::Order::Stop);
        scrub.stop();
        drop((apply, background, compaction));
        for thread in threads {
            let _ = thread.join();
        }
        if let Err(error) = engine.close() {
            tracing::warn!(%error, "the view could not be closed; the next start rebuilds it");
        }
    }
}

/// Starts a thread whose panic stops the node: without one of its threads, a node would look alive and be
/// dead.
fn spawn(
    name: &'static str,
    fatal: &Arc<dyn Fn(&str) + Send + Sync>,
    run: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, LogError> {
    let fatal = fatal.clone();
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            fatal(&format!("the {name} thread panicked"));
        }
    };
    thread::Builder::new().name(format!("flotilla-{name}")).spawn(guarded).map_err(|error: io::Error| error.into())
}

impl Handle {
    /// Proposes a command to a shard that this node leads. Its time will be later than `after`.
    pub async fn propose(
        &self,
        shard: ShardId,
        range_epoch: Option<u64>,
        after: Timestamp,
        command: Bytes,
        timeout: Duration,
    ) -> Answer {
        self.propose_referring(shard, range_epoch, after, command, CommandRefs::default(), timeout).await
    }

    /// Proposes a command that refers to objects, which the shard's replicas fetch before they take it.
    pub async fn propose_referring(
        &self,
        shard: ShardId,
        range_epoch: Option<u64>,
        after: Timestamp,
        command: Bytes,
        refs: CommandRefs,
        timeout: Duration,
    ) -> Answer {
        if !refs.refs.is_empty() {
            self.puller.traffic.referred(refs.refs.encoded_bytes());
        }
        self.request((shard, range_epoch, after), command, refs, timeout, Input::Propose, RequestError::Unknown).await
    }

    /// Queries a shard that this node leads, or any replica here with [`Freshness::Local`].
    pub async fn query(
        &self,
        shard: ShardId,
        range_epoch: Option<u64>,
        query: Bytes,
        freshness: Freshness,
        timeout: Duration,
    ) -> Answer {
        let read = |request| Input::Read(request, freshness);
        let refs = CommandRefs::default();
        self.request((shard, range_epoch, Timestamp::ZERO), query, refs, timeout, read, RequestError::Deadline).await
    }

    async fn request(
        &self,
        (shard, range_epoch, after): (ShardId, Option<u64>, Timestamp),
        payload: Bytes,
        refs: CommandRefs,
        timeout: Duration,
        input: impl FnOnce(Request<Reply>) -> Input<Reply>,
        on_timeout: RequestError,
    ) -> Answer {
        let (reply, answer) = oneshot::channel();
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let request = Request { shard, range_epoch, after, payload, refs, deadline_ms, reply };
        if !self.inbox.try_send(input(request)) {
            return Err(RequestError::Busy);
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_stopped)) => Err(on_timeout),
            Err(_elapsed) => Err(on_timeout),
        }
    }

    /// The objects of large values on this node.
    #[must_use]
    pub fn values(&self) -> Arc<dyn ValueObjects> {
        self.values.clone()
    }

    /// Fetches what is missing here of these objects, and of all that they need, from other nodes: the first one is
    /// said to have everything. What is here is read, unless that was done since the start. The upload holds what is
    /// here and what comes, also if the rest does not; it must go on until then.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(
        &self,
        upload: u64,
        refs: &Refs,
        sources: Vec<NodeId>,
        timeout: Duration,
    ) -> Result<Fetched, FetchError> {
        self.puller.fetch_for(&self.values, upload, refs, sources, timeout).await
    }

    /// Fetches what is missing here of these objects, and of all that they need, from a node that has all of it,
    /// because an entry that refers to them is about to come. They are held for a short while.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn prefetch(&self, refs: &Refs, from: NodeId, timeout: Duration) -> Result<(), FetchError> {
        self.puller.prefetch(refs, from, timeout).await
    }

    /// Creates a replica, by an operation of the metadata group.
    pub fn create(&self, replica: ReplicaId, descriptor: ShardDescriptor, founding: bool) {
        self.inbox.send(Input::Create { replica, descriptor, founding });
    }

    /// Destroys a replica; its id can never be created here again.
    pub fn destroy(&self, replica: ReplicaId) {
        self.inbox.send(Input::Destroy { replica });
    }

    /// Trusts the data folder again after a roll-back: every replica that it forgot has been destroyed.
    pub fn trust_folder(&self) {
        self.inbox.send(Input::TrustFolder);
    }

    /// Proposes a configuration change to a shard led here. A refusal is not reported; the caller must
    /// reconcile again.
    pub fn change(&self, shard: ShardId, change: ConfChange) {
        self.inbox.send(Input::Change { shard, change });
    }

    /// Transfers the leadership of a shard led here to a node.
    pub fn transfer(&self, shard: ShardId, to: NodeId) {
        self.inbox.send(Input::Transfer { shard, to });
    }

    /// Transfers every leadership to other nodes, repeatedly until the node stops.
    pub fn step_down(&self) {
        self.inbox.send(Input::StepDown);
    }

    /// Sets the cluster version in force; a lower one than before is ignored.
    pub fn set_cluster_version(&self, version: ClusterVersion) {
        if version >= ClusterVersion::VALUE_REFS {
            self.engine.allow_compression();
        }
        self.inbox.send(Input::ClusterVersion(version));
    }

    /// Sets the peers to send node heartbeats to.
    pub fn set_peers(&self, peers: Vec<NodeId>) {
        self.inbox.send(Input::Peers(peers));
    }

    /// Reports that a connection came up or went down.
    pub fn peer_changed(&self, node: NodeId, connected: bool) {
        self.inbox.send(Input::Peer { node, connected });
    }

    /// Receives a frame from a peer. It is dropped if it does not parse or the inbox is full; networks drop
    /// frames too.
    pub fn frame(&self, from: NodeId, frame: Bytes) {
        match work::unpack(from, frame) {
            Ok(inputs) => {
                for input in inputs {
                    if !self.inbox.try_send(input) {
                        metrics::counter!("flotilla_host_frames_dropped_total").increment(1);
                        return;
                    }
                }
            }
            Err(error) => {
                metrics::counter!("flotilla_host_frames_malformed_total").increment(1);
                tracing::warn!(%from, %error, "a frame does not parse");
            }
        }
    }

    /// Answers a peer's request for objects: once the node may send them, or soon with the answer to ask later.
    pub async fn objects(&self, from: NodeId, request: Bytes) -> Bytes {
        let backlog_ms = self.sending.backlog_ms();
        let later = if backlog_ms > SEND_WAIT_MS_MAX { work::serve_later(request.clone(), backlog_ms) } else { None };
        let served = match later {
            Some(later) => later,
            None => {
                let engine = self.engine.clone();
                let serve = move || {
                    reached(Place::SnapshotServe);
                    work::serve(&*engine, request, work::PullBounds::default())
                };
                let Ok(served) = self.puller.workers.run(serve).await else { return Bytes::new() };
                served
            }
        };
        if served.replica.is_none() {
            self.puller.traffic.sent(from, served.objects, served.bytes);
        }
        if let Some(to) = served.replica {
            // One that is dropped only means that the list of objects is sent again.
            self.inbox.try_send(Input::ObjectsServed { node: from, to, complete: served.complete });
        }
        self.end_if_disk_failed(served.failure.as_ref());
        metrics::counter!("flotilla_objects_served_total").increment(served.objects as u64);
        metrics::counter!("flotilla_objects_served_bytes_total").increment(served.bytes as u64);
        self.sending.take(served.bytes as u64).await;
        served.response
    }

    /// Changes [`HostConfig::transfer_bytes_per_second`], also for the transfers that are running. A rate below
    /// [`TRANSFER_RATE_MIN`] is raised to it.
    pub fn set_transfer_rate(&self, bytes_per_second: Option<NonZero<u64>>) {
        let rate = bytes_per_second.and_then(|rate| NonZero::new(rate.get().max(TRANSFER_RATE_MIN)));
        self.receiving.set_bytes_per_second(rate);
        self.sending.set_bytes_per_second(rate);
    }

    /// Sets the replicas here whose snapshots are not fetched for now.
    pub fn pause_snapshots(&self, replicas: BTreeSet<ReplicaId>) {
        self.puller.pause(replicas);
    }

    /// What a replica here says of its state, to be compared with others. `None` while it cannot say.
    pub async fn fingerprints(&self, replica: ReplicaId) -> Option<Fingerprints> {
        let (reply, answer) = oneshot::channel();
        self.apply.enqueue(apply::Job::Fingerprints(replica, reply));
        answer.await.ok().flatten()
    }

    /// The contents of a replica here: its records are a snapshot, until the replica is destroyed.
    ///
    /// # Errors
    /// See [`DigestError`].
    pub async fn contents(&self, replica: ReplicaId) -> Result<ReplicaContents, DigestError> {
        digest::contents(&self.apply, replica).await
    }

    /// A replica here differs from a majority of its shard: it is used no more, unless its shard needs it.
    pub fn diverged(&self, replica: ReplicaId) {
        self.inbox.send(Input::Diverged { replica });
    }

    /// Proposes a change of a shard led here. A refusal is not reported.
    pub fn change_shard(&self, shard: ShardId, change: ShardChange) {
        self.inbox.send(Input::ChangeShard { shard, change });
    }

    /// A split of a shard is planned: its replica here counts ahead what that gives up. May be repeated.
    pub fn prepare_split(&self, shard: ShardId, at: Bytes) {
        self.inbox.send(Input::PrepareSplit { shard, at });
    }

    /// A merge of a shard is planned for this epoch: its replica here checkpoints beforehand. May be repeated.
    pub fn prepare_merge(&self, shard: ShardId, epoch: Epoch) {
        self.inbox.send(Input::PrepareMerge { shard, epoch });
    }

    /// The digest of a replica here. Reads all its records, without holding up writes.
    ///
    /// # Errors
    /// See [`DigestError`].
    pub async fn digest(&self, replica: ReplicaId) -> Result<Digest, DigestError> {
        let status = self.status();
        let found = status.get(replica).ok_or(DigestError::NotServing)?;
        let digest = digest::of(&self.apply, replica, found.descriptor.range.clone()).await;
        if let Err(DigestError::Engine(error)) = &digest {
            self.end_if_disk_failed(Some(error));
        }
        digest
    }

    /// The size of the records of a replica here, see [`ReplicaContents::size`]. `None` if it does not serve, or they
    /// cannot be read.
    pub async fn size(&self, replica: ReplicaId, above: u64) -> Option<Size> {
        let contents = self.contents(replica).await.ok()?;
        let size = tokio::task::spawn_blocking(move || contents.size(above)).await.ok()?;
        self.end_if_disk_failed(size.as_ref().err());
        size.ok().flatten()
    }

    /// Ends the node for a reason outside of its replicas. Everything that was acknowledged is durable.
    pub fn end_node(&self, reason: &str) {
        (self.fatal)(reason);
    }

    fn end_if_disk_failed(&self, error: Option<&EngineError>) {
        if let Some(error) = error.filter(|error| remedy(*error) == Remedy::EndNode) {
            (self.fatal)(&error.to_string());
        }
    }

    /// The status of every replica, at most a few ticks old.
    #[must_use]
    pub fn status(&self) -> Replicas {
        self.status.read().clone()
    }

    /// What was asked of the shards led here since the last call. For one caller: it takes what it is told.
    #[must_use]
    pub fn take_demands(&self) -> Demands {
        std::mem::take(&mut self.demands.lock())
    }

    /// The snapshots that replicas here receive.
    #[must_use]
    pub fn incoming_snapshots(&self) -> Vec<IncomingSnapshot> {
        self.puller.tasks().lock().values().map(|task| task.current).collect()
    }

    /// What values have cost the network since the start of this node.
    #[must_use]
    pub fn value_traffic(&self) -> ValueTraffic {
        self.puller.traffic.now()
    }

    /// How the scrub stands, a step ago at most.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.scrub_status.lock().clone()
    }

    /// Begins a pass of the scrub over all objects: right after the one that is under way, if there is one.
    pub fn scrub_now(&self) {
        self.scrub.start();
    }

    /// The number of shards with several voters that this node leads.
    #[must_use]
    pub fn transferable_leaderships(&self) -> usize {
        self.transferable_leaderships.load(Ordering::Relaxed)
    }
}
