//! One simulated node: what its process holds in memory, what its disk keeps, and how both come and go.

mod control;
mod gateway;
mod host;
mod rpc;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use flotilla_kv::{KvMachine, Limits};
use flotilla_membership::Timer;
use flotilla_meta::{MetaMachine, MetaState};
use flotilla_replication::{
    Applier, Core, Effects, Input, ReplicaStatus,
    work::{self, Job},
};
use flotilla_types::{Incarnation, NodeId, ShardId};
use parking_lot::Mutex;
use rand::RngExt as _;

use crate::{
    clock::Clock,
    disk::Disk,
    world::{Event, World},
};
pub(crate) use control::{Duty, new_node};
pub(crate) use gateway::{Asked, Who};

/// A node: its disk, its clock, and its process while that runs.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Where it listens; a node that lost its disk comes back at the same place as another node.
    pub(crate) port: u16,
    pub(crate) disk: Disk,
    pub(crate) folder: Folder,
    pub(crate) clock: Clock,
    /// How far its wall clock is ahead when nothing is wrong with it, milliseconds.
    pub(crate) honest_ahead_ms: i64,
    /// Until when the process does not run, by SIGSTOP or a stuck machine, true microseconds.
    pub(crate) paused_until_us: u64,
    /// The next fsync of the log fails.
    pub(crate) fsync_fails: bool,
    /// How long writes of the log take at most, microseconds.
    pub(crate) disk_us_max: u64,
    pub(crate) running: Option<Box<Running>>,
    /// Counts starts and ends, to tell events of an earlier life.
    pub(crate) life: u64,
    pub(crate) incarnation: Incarnation,
    /// Its disk is gone or beyond use: it will not start again.
    pub(crate) retired: bool,
}

/// The small files of a data folder; each is replaced as a whole.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    pub(crate) meta: MetaState,
    pub(crate) has_authority: bool,
    /// The node founds the cluster and has not finished.
    pub(crate) founding: bool,
}

/// The memory of a process.
pub(crate) struct Running {
    pub(crate) core: Core<u64>,
    pub(crate) applier: Applier<u64>,
    /// What the metadata machine published last.
    published: Arc<Mutex<Option<Arc<MetaState>>>>,
    inbox: Vec<Input<u64>>,
    awake: bool,
    wal: work::Wal,
    wal_waiting: Vec<work::WalJob>,
    wal_under_way: Option<work::Merged>,
    tasks: VecDeque<host::Task>,
    jobs: VecDeque<Job>,
    working: usize,
    pulls: BTreeMap<u64, host::Pulling>,
    /// Peers with a connection, and the life they were in when it was made.
    links: BTreeMap<NodeId, u64>,
    calls: BTreeMap<u64, rpc::Call>,
    /// Who waits for an answer of the host.
    waiters: BTreeMap<u64, rpc::Waiter>,
    /// Numbers for calls, pulls, waiters and questions.
    next: u64,
    pub(crate) gateway: gateway::Gateway,
    pub(crate) control: control::Control,
    /// Nodes that this one refuses: gone by its metadata.
    refused: BTreeSet<NodeId>,
}

impl Running {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Something on a node.
#[derive(Debug)]
pub(crate) enum Happening {
    /// The raft thread's tick.
    Tick,
    /// The raft thread takes its inbox.
    Wake,
    /// The fsync under way is done.
    Synced,
    /// The apply thread is done with its first task.
    Applied,
    /// A background job is done.
    Worked(Job),
    /// A background job is tried again.
    Again(Job),
    /// The link to a peer may have changed.
    Link { peer: NodeId },
    /// A call was not answered in time.
    CallTimedOut(u64),
    /// A pull asks again.
    PullAgain(u64),
    /// A question to a shard looks again.
    Ask { ask: u64, turn: u64 },
    /// A duty is due.
    Look(Duty),
    /// A follower of the feed that was kept waiting is answered.
    FeedDue { from: NodeId, call: u64 },
    /// A timer of the failure detector.
    Member(Timer),
}

impl Node {
    pub(crate) fn new(id: NodeId, port: u16, clock: Clock, honest_ahead_ms: i64) -> Self {
        Self {
            id,
            port,
            disk: Disk::default(),
            folder: Folder::default(),
            clock,
            honest_ahead_ms,
            paused_until_us: 0,
            fsync_fails: false,
            disk_us_max: 2_000,
            running: None,
            life: 0,
            incarnation: Incarnation(0),
            retired: false,
        }
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        self.running.as_ref().map(|running| running.core.status()).unwrap_or_default()
    }
}

impl World {
    /// Starts a node on what its disk holds. A damaged log is refused, as the real one does.
    pub(crate) fn start(&mut self, id: NodeId) {
        let seed: u64 = self.rng.random();
        let (config, now_us) = (self.config.clone(), self.now_us);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.retired || node.running.is_some() {
            return;
        }
        if node.disk.is_log_damaged() {
            self.lose(id, "does not start on a damaged log");
            return;
        }
        node.life += 1;
        // As the real folder does: two lives of one folder, put back or not, never share a number.
        node.incarnation = Incarnation((node.incarnation.0 + 1).max(now_us / 1_000 + 1));
        node.paused_until_us = 0;
        let disk = node.disk.clone();
        let mut effects = Effects::default();
        let core = match Core::open(id, node.incarnation, config, Arc::new(disk.clone()), seed, &mut effects) {
            Ok(core) => core,
            Err(error) => {
                self.lose(id, &format!("cannot open its log: {error}"));
                return;
            }
        };
        let published = Arc::new(Mutex::new(None));
        let (incarnation, wal) = (node.incarnation, work::Wal::new(&disk, node.incarnation));
        let control = control::Control::new(node, seed);
        node.running = Some(Box::new(Running {
            core,
            applier: Applier::new(Arc::new(disk), machines(published.clone())),
            published,
            inbox: Vec::new(),
            awake: false,
            wal,
            wal_waiting: Vec::new(),
            wal_under_way: None,
            tasks: VecDeque::new(),
            jobs: VecDeque::new(),
            working: 0,
            pulls: BTreeMap::new(),
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiters: BTreeMap::new(),
            next: 0,
            gateway: gateway::Gateway::new(seed),
            control,
            refused: BTreeSet::new(),
        }));
        self.note(format!("{id} starts, {incarnation}"));
        self.with(id, |world, node, running| {
            running.core.flush(node.clock.mono_ms(world.now_us), &mut effects);
            world.perform(node, running, effects);
            world.begin_control(node, running);
        });
        let tick_us = self.rng.random_range(0..self.config.tick_ms * 1_000);
        self.node_soon(id, tick_us, Happening::Tick);
        self.links_of(id);
    }

    /// The process ends at once and loses all that is not durable. A write under way may or may not have been made.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let written = self.rng.random_bool(0.5);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(mut running) = node.running.take() else { return };
        if let Some(merged) = running.wal_under_way.take()
            && written
        {
            // Nobody hears of it.
            let batch = merged.batch().cloned();
            if running.wal.write(&node.disk, merged).is_ok()
                && let Some(batch) = batch
            {
                self.checks.written(node, &batch);
            }
        }
        node.life += 1;
        node.fsync_fails = false;
        node.disk = node.disk.reopen();
        for ask in running.gateway.into_asked() {
            self.asked_in_vain(ask);
        }
        self.links_of(id);
    }

    /// The node's data is gone for good; its machine may come back as another node.
    pub(crate) fn lose(&mut self, id: NodeId, why: &str) {
        self.crash(id);
        self.note(format!("{id} {why}"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.retired = true;
            node.disk = Disk::default();
            node.folder = Folder::default();
        }
        self.rejoin_later(id);
    }

    fn links_of(&mut self, id: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.link_changed(id, other);
        }
    }

    pub(crate) fn node_soon(&mut self, id: NodeId, delay_us: u64, event: Happening) {
        if let Some(node) = self.nodes.get(&id) {
            let life = node.life;
            self.schedule(delay_us, Event::Node { node: id, life, event: Box::new(event) });
        }
    }

    /// Like [`World::node_soon`], for a node that is borrowed.
    fn later(&mut self, node: &Node, delay_us: u64, event: Happening) {
        self.schedule(delay_us, Event::Node { node: node.id, life: node.life, event: Box::new(event) });
    }

    /// Something for the raft thread of a node.
    pub(crate) fn input(&mut self, id: NodeId, input: Input<u64>) {
        self.with(id, |world, node, running| world.take(node, running, input));
    }

    /// Takes a running node out of the world, so that both can be changed.
    pub(crate) fn with(&mut self, id: NodeId, act: impl FnOnce(&mut Self, &mut Node, &mut Running)) {
        let Some(mut node) = self.nodes.remove(&id) else { return };
        let mut fatal = false;
        if let Some(mut running) = node.running.take() {
            act(self, &mut node, &mut running);
            self.learn(&mut node, &mut running);
            fatal = std::mem::take(&mut running.control.fatal);
            node.running = Some(running);
        }
        self.nodes.insert(id, node);
        if fatal {
            self.note(format!("{id} ends itself"));
            self.crash(id);
            self.restart_later(id);
        }
    }

    /// Whether an event must wait because the process does not run right now.
    fn is_paused(&self, id: NodeId) -> Option<u64> {
        self.nodes.get(&id).map(|node| node.paused_until_us).filter(|until_us| *until_us > self.now_us)
    }

    pub(crate) fn happen(&mut self, id: NodeId, life: u64, event: Happening) {
        if self.nodes.get(&id).is_none_or(|node| node.life != life) {
            return;
        }
        if let Some(until_us) = self.is_paused(id) {
            self.schedule(until_us - self.now_us, Event::Node { node: id, life, event: Box::new(event) });
            return;
        }
        self.with(id, |world, node, running| match event {
            Happening::Tick => {
                world.take(node, running, Input::Tick);
                let tick_us = node.clock.true_us(world.config.tick_ms);
                world.later(node, tick_us, Happening::Tick);
            }
            Happening::Wake => world.wake(node, running),
            Happening::Synced => world.synced(node, running),
            Happening::Applied => world.applied(node, running),
            Happening::Worked(job) => world.worked(node, running, job),
            Happening::Again(job) => world.work(node, running, job),
            Happening::Link { peer } => world.link(node, running, peer),
            Happening::CallTimedOut(call) => world.call_failed(node, running, call),
            Happening::PullAgain(pull) => world.pull_on(node, running, pull),
            Happening::Ask { ask, turn } => world.ask_on(node, running, ask, turn),
            Happening::Look(duty) => world.look(node, running, duty),
            Happening::FeedDue { from, call } => world.feed_due(node, running, from, call),
            Happening::Member(timer) => world.member_timer(node, running, timer),
        });
    }

    pub(crate) fn deliver(&mut self, from: NodeId, to: NodeId, frame: crate::network::Frame) {
        // What is on the wire when a link is cut is lost with it.
        if !self.network.passes(from, to) {
            return;
        }
        if let Some(until_us) = self.is_paused(to) {
            self.schedule(until_us - self.now_us, Event::Deliver { from, to, frame });
            return;
        }
        self.with(to, |world, node, running| world.arrive(node, running, from, frame));
    }
}

fn machines(published: Arc<Mutex<Option<Arc<MetaState>>>>) -> flotilla_replication::MachineFactory {
    Box::new(move |shard| {
        if shard == ShardId::META {
            let published = published.clone();
            Box::new(MetaMachine::new(Box::new(move |state| *published.lock() = Some(state))))
        } else {
            Box::new(KvMachine::new(Limits::default()))
        }
    })
}
