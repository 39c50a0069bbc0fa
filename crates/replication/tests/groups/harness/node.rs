//! One simulated node: the steps of a host's threads as events.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_kv::{KvMachine, Limits};
use flotilla_replication::{
    Applied, Applier, ApplyTask, Background, Core, Count, Done, Effects, Fingerprints, Input, Load, Loaded, Notice,
    Outgoing, ReplicaStatus, Replicas, Returned, Slow, first_sequence, refs_of, work::PullRequest,
};
use flotilla_storage::{
    ApplyContext, EngineError, Log as _, LogBatch, LogEvidence, MachineError, Manifest, MemoryEngine, MemoryLog,
    PeerSequence, StateEngine as _,
    conformance::{Observed, Observer, Referring},
};
use flotilla_types::{
    Checkpoint, CheckpointFormat, Folding, Incarnation, LogIndex, NodeId, ObjectId, ReplicaId, WalSequence,
};
use rand::RngExt as _;

use super::{Event, Frame, WALL_MS, World, pulls};

/// Background jobs that run at a time, as in the host.
const WORKERS: usize = 2;

/// Records that are not in memory when they are read.
const MISSES_PERCENT: u32 = 10;

/// A copy of a node's data folder.
#[derive(Default)]
pub(crate) struct Backup {
    log: MemoryLog,
    engine: MemoryEngine,
}

pub(crate) struct Node {
    pub id: NodeId,
    pub log: MemoryLog,
    pub engine: MemoryEngine,
    pub running: Option<Box<Running>>,
    /// Counts starts and crashes, to recognise events from before.
    pub life: u64,
    incarnation: Incarnation,
    skew_ms: u64,
}

/// The volatile state of a running node.
pub(crate) struct Running {
    pub core: Core<u64>,
    /// The status of its replicas, published by updates.
    published: Replicas,
    applier: Applier<u64>,
    inbox: Vec<Input<u64>>,
    awake: bool,
    wal: Wal,
    tasks: VecDeque<Task>,
    /// Work of the pool, by number.
    slow: BTreeMap<u64, Slow<u64>>,
    slow_started: u64,
    jobs: VecDeque<Job>,
    working: usize,
    pub(super) pulls: BTreeMap<u64, pulls::Pulling>,
}

struct Wal {
    next: WalSequence,
    written: WalSequence,
    peer_sequences: BTreeMap<NodeId, WalSequence>,
    waiting: Vec<WalJob>,
    in_flight: Option<WriteInFlight>,
}

struct WalJob {
    writes: Vec<flotilla_replication::Write>,
    peer_sequences: Vec<(NodeId, WalSequence)>,
    floor: Option<WalSequence>,
    log_complete: bool,
}

struct WriteInFlight {
    batch: Option<LogBatch>,
    log_complete: bool,
    done: Vec<Done>,
    after: Vec<Outgoing>,
}

enum Task {
    Run(ApplyTask<u64>),
    Loaded(Load, Result<Loaded, MachineError>),
    Returned(Returned<u64>),
}

#[derive(Clone)]
pub(crate) enum Job {
    Build(ReplicaId, CheckpointFormat),
    InstallCheckpoint(ReplicaId, Checkpoint),
    Compact(ReplicaId, Folding),
    Load(Load),
    Destroy(ReplicaId),
    Expect(Vec<ObjectId>),
    Count(Count),
}

/// An event on a node.
pub(crate) enum NodeEvent {
    Tick,
    /// The raft thread processes its inbox.
    Wake,
    /// The fsync in flight is done.
    Synced,
    /// The apply thread completes its first task.
    Applied,
    /// A thread of the pool does this work.
    Slow(u64),
    /// A background job is done.
    Worked(Box<Job>),
    /// A pull sends what it may send, or ends.
    PullGoesOn(u64),
    /// A request of a pull reaches its source.
    PullAsked(u64, PullRequest),
    /// The answer arrives; `None` if the source cannot be reached.
    PullAnswered(u64, PullRequest, Option<Bytes>),
    Link {
        peer: NodeId,
        connected: bool,
    },
}

impl std::fmt::Debug for NodeEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::Wake => f.write_str("wake"),
            Self::Synced => f.write_str("synced"),
            Self::Applied => f.write_str("applied"),
            Self::Slow(number) => write!(f, "slow {number}"),
            Self::Worked(job) => match &**job {
                Job::Build(replica, _) => write!(f, "built {replica}"),
                Job::InstallCheckpoint(replica, checkpoint) => {
                    write!(f, "installed {replica} {}", checkpoint.position.index)
                }
                Job::Compact(replica, _) => write!(f, "compacted {replica}"),
                Job::Destroy(replica) => write!(f, "removed {replica}"),
                Job::Expect(objects) => write!(f, "expects {} objects", objects.len()),
                Job::Count(count) => write!(f, "counted {}", count.replica),
                Job::Load(load) => write!(f, "loaded {} {}", load.replica, load.checkpoint.position.index),
            },
            Self::PullGoesOn(pull) => write!(f, "pull {pull} goes on"),
            Self::PullAsked(pull, _) => write!(f, "pull {pull} asks"),
            Self::PullAnswered(pull, _, answer) => {
                write!(f, "pull {pull} is answered by {:?} bytes", answer.as_ref().map(Bytes::len))
            }
            Self::Link { peer, connected } => write!(f, "link to {peer} {connected}"),
        }
    }
}

impl Node {
    pub(crate) fn new(id: NodeId, skew_ms: u64) -> Self {
        let engine = MemoryEngine::default();
        engine.set_misses(MISSES_PERCENT);
        Self { id, log: MemoryLog::default(), engine, running: None, life: 0, incarnation: Incarnation(0), skew_ms }
    }

    /// What a replica here says of its state.
    pub(crate) fn fingerprints(&mut self, replica: ReplicaId) -> Option<Fingerprints> {
        self.running.as_mut()?.applier.fingerprints(replica)
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        self.running.as_ref().map(|running| running.core.status()).unwrap_or_default()
    }
}

impl World {
    /// Starts a node from its disk.
    pub(crate) fn start(&mut self, id: NodeId) {
        let seed = self.rng.random();
        let config = self.config.clone();
        let peers = self.nodes.keys().copied().filter(|peer| *peer != id).collect();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        assert!(node.running.is_none(), "{id} runs");
        node.life += 1;
        node.incarnation = node.incarnation.next();
        let (log, engine) = (Arc::new(node.log.clone()), Arc::new(node.engine.clone()));
        let mut effects = Effects::default();
        let core = Core::open(id, node.incarnation, config, log.clone(), seed, &mut effects).unwrap();
        let history = self.checks.descriptors.clone();
        let observer: Observer = Arc::new(move |context: &ApplyContext<'_>| {
            history.lock().holds_after(LogIndex(context.index.0 - 1), context.descriptor);
        });
        let kv = || Box::new(Referring::over(Box::new(KvMachine::new(Limits::default()))));
        let machines = Arc::new(move |_| Box::new(Observed::new(kv(), observer.clone())) as _);
        let next = first_sequence(node.incarnation).max(log.recovered()).next();
        node.running = Some(Box::new(Running {
            core,
            applier: Applier::new(engine, machines),
            published: Replicas::default(),
            inbox: Vec::new(),
            awake: false,
            wal: Wal {
                next,
                written: WalSequence(0),
                peer_sequences: BTreeMap::new(),
                waiting: Vec::new(),
                in_flight: None,
            },
            tasks: VecDeque::new(),
            slow: BTreeMap::new(),
            slow_started: 0,
            jobs: VecDeque::new(),
            working: 0,
            pulls: BTreeMap::new(),
        }));
        self.with(id, |world, node, running| {
            running.core.flush(world.now_ms(), &mut effects);
            world.perform(node, running, effects);
        });
        self.input(id, Input::Peers(peers));
        let tick_us = self.rng.random_range(0..self.config.tick_ms * 1_000);
        self.happen_soon(id, tick_us, NodeEvent::Tick);
        self.renew_links(id);
    }

    /// Crashes a node: it loses everything that is not durable. A write in flight may or may not have been
    /// made.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let written = self.rng.random_bool(0.5);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(running) = node.running.take() else { return };
        if let Some(batch) = running.wal.in_flight.and_then(|in_flight| in_flight.batch)
            && written
        {
            node.log.write(batch).unwrap();
        }
        node.life += 1;
        node.log = node.log.reopen();
        node.engine = node.engine.reopen();
        self.renew_links(id);
    }

    /// A copy of a node's durable state.
    pub(crate) fn backup(&self, id: NodeId) -> Backup {
        let node = &self.nodes[&id];
        Backup { log: node.log.reopen(), engine: node.engine.reopen() }
    }

    /// A stopped node loses all its objects but those of checkpoints, and keeps its log.
    pub(crate) fn lose_objects(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        assert!(node.running.is_none(), "{id} runs");
        let engine = MemoryEngine::default();
        for (_, log) in node.log.replicas().unwrap() {
            for object in log.checkpoint.objects() {
                let manifest = Manifest::decode(node.engine.object(object).unwrap()).unwrap_or_default();
                for id in manifest.children().into_iter().chain([object]) {
                    let children = if id == object { manifest.children() } else { Vec::new() };
                    engine.import(id, node.engine.object(id).unwrap(), &children).unwrap();
                }
            }
        }
        engine.sync().unwrap();
        node.engine = engine;
    }

    /// Restores a stopped node from a backup; an empty one wipes it.
    pub(crate) fn restore(&mut self, id: NodeId, backup: &Backup) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        assert!(node.running.is_none(), "{id} runs");
        node.log = backup.log.reopen_with(LogEvidence::Unknown);
        node.engine = backup.engine.reopen();
        node.engine.set_misses(MISSES_PERCENT);
        self.checks.forget(node.log.replicas().unwrap());
    }

    fn renew_links(&mut self, id: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.renew_link(id, other);
        }
    }

    pub(super) fn happen_soon(&mut self, id: NodeId, delay_us: u64, event: NodeEvent) {
        // A node that is borrowed at the moment uses `later` instead.
        if let Some(node) = self.nodes.get(&id) {
            let life = node.life;
            self.schedule(delay_us, Event::Node { node: id, life, event: Box::new(event) });
        }
    }

    pub(super) fn later(&mut self, node: &Node, delay_us: u64, event: NodeEvent) {
        self.schedule(delay_us, Event::Node { node: node.id, life: node.life, event: Box::new(event) });
    }

    /// Sends an input to the raft thread of a node.
    pub(crate) fn input(&mut self, id: NodeId, input: Input<u64>) {
        self.with(id, |world, node, running| world.take(node, running, input));
    }

    pub(super) fn take(&mut self, node: &Node, running: &mut Running, input: Input<u64>) {
        running.inbox.push(input);
        if !std::mem::replace(&mut running.awake, true) {
            let delay_us = self.rng.random_range(10..200);
            self.later(node, delay_us, NodeEvent::Wake);
        }
    }

    /// Takes a running node out of the world, so that both can be borrowed mutably.
    fn with(&mut self, id: NodeId, act: impl FnOnce(&mut Self, &mut Node, &mut Running)) {
        let Some(mut node) = self.nodes.remove(&id) else { return };
        if let Some(mut running) = node.running.take() {
            act(self, &mut node, &mut running);
            node.running = Some(running);
        }
        self.nodes.insert(id, node);
    }

    pub(super) fn happen(&mut self, id: NodeId, life: u64, event: NodeEvent) {
        if self.nodes.get(&id).is_none_or(|node| node.life != life) {
            return;
        }
        self.with(id, |world, node, running| match event {
            NodeEvent::Tick => {
                world.take(node, running, Input::Tick);
                world.later(node, world.config.tick_ms * 1_000, NodeEvent::Tick);
            }
            NodeEvent::Wake => world.wake(node, running),
            NodeEvent::Synced => world.synced(node, running),
            NodeEvent::Applied => world.applied(node, running),
            NodeEvent::Slow(number) => world.do_slow(node, running, number),
            NodeEvent::Worked(job) => world.worked(node, running, *job),
            NodeEvent::PullGoesOn(pull) => world.advance_pull(node, running, pull),
            NodeEvent::PullAsked(pull, request) => world.serve_pull(node, running, pull, request),
            NodeEvent::PullAnswered(pull, request, answer) => {
                world.pull_answered(node, running, pull, request, answer);
            }
            NodeEvent::Link { peer, connected } => {
                // The link may be down again.
                let connected = connected && world.network.is_up(node.id, peer);
                world.take(node, running, Input::Peer { node: peer, connected });
            }
        });
    }

    fn wake(&mut self, node: &mut Node, running: &mut Running) {
        running.awake = false;
        let mut effects = Effects::default();
        let wall_ms = WALL_MS + self.now_ms() + node.skew_ms;
        for input in std::mem::take(&mut running.inbox) {
            running.core.step(self.now_ms(), wall_ms, input, &mut effects);
        }
        running.core.flush(self.now_ms(), &mut effects);
        let status = running.core.status();
        let updates = running.core.status_updates(&running.published);
        updates.apply(&mut running.published);
        let all: Replicas = status.iter().cloned().collect();
        assert_eq!(running.published, all, "{}: the published status", node.id);
        self.checks.status(node.id, node.life, &status);
        self.checks.leases(node.id, &running.core.leases(self.now_ms()));
        for other in self.nodes.values() {
            if let Some(running) = &other.running {
                self.checks.leases(other.id, &running.core.leases(self.now_ms()));
            }
        }
        self.perform(node, running, effects);
    }

    fn perform(&mut self, node: &mut Node, running: &mut Running, effects: Effects<u64>) {
        let Effects {
            holds,
            sends,
            node_heartbeats,
            writes,
            sequence_floor,
            peer_sequences,
            log_complete,
            apply,
            background,
            replies,
            notices,
            fatal,
        } = effects;
        assert!(fatal.is_none(), "{}: {fatal:?}", node.id);
        for hold in holds {
            node.engine.hold(hold.holder, &hold.objects);
        }
        for outgoing in sends {
            self.transmit(node, running, outgoing);
        }
        for (to, heartbeat) in node_heartbeats {
            self.send(node.id, to, Frame::NodeHeartbeat(heartbeat));
        }
        if !writes.is_empty() || sequence_floor.is_some() || !peer_sequences.is_empty() || log_complete {
            running.wal.waiting.push(WalJob { writes, peer_sequences, floor: sequence_floor, log_complete });
            self.write(node, running);
        }
        for task in apply {
            self.checks.task(&task);
            running.tasks.push_back(Task::Run(task));
            self.apply(node, running);
        }
        for task in background {
            match task {
                Background::Build { replica, format } => self.work(node, running, Job::Build(replica, format)),
                Background::InstallCheckpoint { replica, checkpoint } => {
                    self.work(node, running, Job::InstallCheckpoint(replica, checkpoint))
                }
                Background::Compact { replica, folding } => self.work(node, running, Job::Compact(replica, folding)),
                Background::Expect { objects } => self.work(node, running, Job::Expect(objects)),
                Background::Count(count) => self.work(node, running, Job::Count(count)),
                Background::Gather(gather) => self.start_gather(node, running, gather),
                Background::Pull { replica, from, checkpoint } => {
                    self.start_pull(node, running, replica, from, checkpoint);
                }
            }
        }
        for (reply, answer) in replies {
            self.answered(reply, answer);
        }
        let kept = |notice: &Notice| matches!(notice, Notice::Lost { .. } | Notice::Destroyed { .. });
        self.notices.extend(notices.into_iter().filter(kept).map(|notice| (node.id, notice)));
    }

    /// As [`World::send`], for a node that is borrowed; reports failures as the host does.
    fn transmit(&mut self, node: &Node, running: &mut Running, outgoing: Outgoing) {
        let to = outgoing.node;
        let up = self.network.is_up(node.id, to) && self.nodes.get(&to).is_some_and(|node| node.running.is_some());
        let endpoints = (outgoing.message.from, outgoing.message.to);
        let is_snapshot = outgoing.message.snapshot.is_some();
        if up {
            self.checks.snapshots_sent += u64::from(is_snapshot);
            self.send(node.id, to, Frame::Raft(Box::new(outgoing)));
        } else if self.rng.random_bool(0.5) {
            let (replica, to_replica) = endpoints;
            if is_snapshot {
                self.take(node, running, Input::SnapshotSent { replica, to: to_replica, sent: false });
            }
            self.take(node, running, Input::Unreachable { node: to, replicas: vec![endpoints] });
        }
    }

    /// Starts the next batch, if none is in flight.
    fn write(&mut self, node: &Node, running: &mut Running) {
        let wal = &mut running.wal;
        if wal.in_flight.is_some() || wal.waiting.is_empty() {
            return;
        }
        let mut batch = LogBatch::default();
        let (mut done, mut after) = (Vec::new(), Vec::new());
        let mut log_complete = false;
        for job in std::mem::take(&mut wal.waiting) {
            log_complete |= job.log_complete;
            if let Some(floor) = job.floor {
                wal.next = wal.next.max(floor.next());
            }
            wal.peer_sequences.extend(job.peer_sequences);
            for write in job.writes {
                batch.replicas.extend(write.write);
                done.push(write.done);
                after.extend(write.after);
            }
        }
        let writes = !batch.replicas.is_empty();
        if writes {
            batch.sequence = wal.next;
            let peer_sequences = std::mem::take(&mut wal.peer_sequences);
            batch.peer_sequences =
                peer_sequences.into_iter().map(|(node, sequence)| PeerSequence { node, sequence }).collect();
            wal.next = wal.next.next();
        }
        wal.in_flight = Some(WriteInFlight { batch: writes.then_some(batch), log_complete, done, after });
        let delay_us = match self.rng.random_range(0..200) {
            _ if !writes => 0,
            0 => 40_000,
            _ => self.rng.random_range(100..self.disk_us_max),
        };
        self.later(node, delay_us, NodeEvent::Synced);
    }

    fn synced(&mut self, node: &mut Node, running: &mut Running) {
        let Some(WriteInFlight { batch, log_complete, done, after }) = running.wal.in_flight.take() else { return };
        if let Some(batch) = batch {
            running.wal.written = batch.sequence;
            for entry in batch.replicas.iter().flat_map(|write| &write.entries) {
                let objects: Vec<_> = refs_of(entry).ids().collect();
                let missing = node.engine.not_durable(&objects);
                assert!(missing.is_empty(), "{} writes {} without {missing:?}", node.id, entry.index);
                self.checks.referring += u64::from(!objects.is_empty());
            }
            if let Err(error) = node.log.write(batch.clone()) {
                panic!("{}: {error}: {batch:?}", node.id);
            }
            self.checks.durable(&node.log.replicas().unwrap());
        }
        if log_complete {
            node.log.set_complete().unwrap();
        }
        if !done.is_empty() {
            self.take(node, running, Input::Written { sequence: running.wal.written, done });
        }
        for mut outgoing in after {
            outgoing.synced = running.wal.written;
            self.transmit(node, running, outgoing);
        }
        self.write(node, running);
    }

    fn apply(&mut self, node: &Node, running: &mut Running) {
        // Adding the first task starts it; each later one starts when the one before is done.
        if running.tasks.len() == 1 {
            self.start_task(node, running);
        }
    }

    fn start_task(&mut self, node: &Node, running: &Running) {
        if !running.tasks.is_empty() {
            let delay_us =
                if self.rng.random_range(0..500) == 0 { 30_000 } else { self.rng.random_range(10..self.apply_us_max) };
            self.later(node, delay_us, NodeEvent::Applied);
        }
    }

    fn applied(&mut self, node: &mut Node, running: &mut Running) {
        let wall_ms = WALL_MS + self.now_ms() + node.skew_ms;
        let mut out = Applied::default();
        match running.tasks.pop_front() {
            Some(Task::Run(task)) => running.applier.run(wall_ms, task, &mut out),
            Some(Task::Loaded(load, result)) => running.applier.loaded(wall_ms, &load, result, &mut out),
            Some(Task::Returned(returned)) => running.applier.returned(wall_ms, returned, &mut out),
            None => return,
        }
        assert!(out.fatal.is_none(), "{}: {:?}", node.id, out.fatal);
        for load in out.loads {
            self.work(node, running, Job::Load(load));
        }
        for replica in out.destroyed {
            self.work(node, running, Job::Destroy(replica));
        }
        for slow in out.slow {
            running.slow_started += 1;
            running.slow.insert(running.slow_started, slow);
            let delay_us_max = if self.rng.random_bool(0.1) { 100_000 } else { 5_000 };
            let delay_us = self.rng.random_range(10..delay_us_max);
            self.later(node, delay_us, NodeEvent::Slow(running.slow_started));
        }
        for (reply, answer) in out.replies {
            self.answered(reply, answer);
        }
        for input in out.inputs {
            if let Input::Applied { replica, index, .. } = &input {
                self.checks.applied(*replica, node.life, *index);
            }
            self.take(node, running, input);
        }
        self.start_task(node, running);
    }

    fn do_slow(&mut self, node: &Node, running: &mut Running, number: u64) {
        let Some(slow) = running.slow.remove(&number) else { return };
        let done = slow.run(self.now_ms(), &node.engine);
        assert!(done.fatal.is_none(), "{}: {:?}", node.id, done.fatal);
        for (reply, answer) in done.replies {
            self.answered(reply, answer);
        }
        if let Some(returned) = done.returned {
            running.tasks.push_back(Task::Returned(returned));
            self.apply(node, running);
        }
    }

    fn work(&mut self, node: &Node, running: &mut Running, job: Job) {
        running.jobs.push_back(job);
        self.start_jobs(node, running);
    }

    fn start_jobs(&mut self, node: &Node, running: &mut Running) {
        while running.working < WORKERS {
            let Some(job) = running.jobs.pop_front() else { return };
            running.working += 1;
            let slow = self.rng.random_range(0..1_000) < self.work_slow_per_mille;
            let delay_us = self.rng.random_range(200..if slow { 1_500_000 } else { 20_000 });
            self.later(node, delay_us, NodeEvent::Worked(Box::new(job)));
        }
    }

    fn worked(&mut self, node: &mut Node, running: &mut Running, job: Job) {
        match job {
            Job::Build(replica, format) => match node.engine.build(replica, format) {
                Ok(checkpoint) => {
                    self.take(node, running, Input::Built { replica, checkpoint: Some(checkpoint), split: None })
                }
                Err(EngineError::NotOpen(_)) => {}
                Err(error) => panic!("{replica}: {error}"),
            },
            Job::InstallCheckpoint(replica, checkpoint) => {
                match node.engine.install_checkpoint(replica, &checkpoint) {
                    Ok(()) | Err(EngineError::NotOpen(_)) => {}
                    Err(error) => panic!("{replica}: {error}"),
                }
                let due = node.engine.compaction_due(replica);
                self.take(node, running, Input::CheckpointInstalled { replica, due });
            }
            Job::Compact(replica, folding) => {
                let done = node.engine.compact(replica, folding, &|| false).unwrap_or_default();
                self.take(node, running, Input::Compacted { replica, done });
            }
            Job::Count(Count { replica, at, counting, records }) => {
                // It may fail where the records were replaced.
                let _ = counting.run(&*records, &mut || ());
                self.take(node, running, Input::Counted { replica, at });
            }
            Job::Destroy(replica) => node.engine.destroy(replica).unwrap(),
            Job::Expect(objects) => {
                node.engine.expect(&objects);
                let damaged = node.engine.damaged();
                self.take(node, running, Input::Damaged(damaged));
            }
            Job::Load(load) => {
                let result = load.run(&node.engine);
                running.tasks.push_back(Task::Loaded(load, result));
                self.apply(node, running);
            }
        }
        running.working -= 1;
        self.start_jobs(node, running);
    }

    /// The status of all replicas as text.
    pub(crate) fn describe(&self) -> String {
        let mut lines = format!("at {} ms\n", self.now_ms());
        for node in self.nodes.values() {
            let up = if node.running.is_some() { "up" } else { "down" };
            lines += &format!("{} {up} {}\n", node.id, node.incarnation);
            for replica in node.status() {
                let group = replica.group.map(|group| {
                    let followers = group.followers.iter().map(|follower| {
                        format!(
                            "{}@{}{}",
                            follower.replica,
                            follower.matched,
                            if follower.in_snapshot { "s" } else { "" }
                        )
                    });
                    let followers: Vec<_> = followers.collect();
                    format!(
                        "{:?} {} of {} commit {} last {} truncated {} voters {:?}/{:?} learners {:?} {followers:?}",
                        group.role,
                        group.term,
                        group.leader,
                        group.commit,
                        group.last,
                        group.truncated,
                        group.conf.voters,
                        group.conf.voters_outgoing,
                        group.conf.learners,
                    )
                });
                lines += &format!(
                    "  {} applied {} checkpoint {} {}\n",
                    replica.replica,
                    replica.applied,
                    replica.checkpoint,
                    group.as_deref().unwrap_or("no group")
                );
            }
        }
        lines
    }

    /// The last applied entry of each replica that has a group.
    pub(crate) fn applied_by(&self) -> BTreeMap<ReplicaId, LogIndex> {
        let live = self.nodes.values().flat_map(Node::status).filter(|replica| replica.group.is_some());
        live.map(|replica| (replica.replica, replica.applied)).collect()
    }
}
