//! One simulated node: the memory of its process, its disk, and how both start, crash and are lost.

mod control;
mod fetches;
mod gateway;
mod host;
mod rpc;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use flotilla_kv::{KvMachine, Limits};
use flotilla_membership::Timer;
use flotilla_meta::{MetaMachine, MetaState, NodeRole};
use flotilla_replication::{
    Applier, Contents, Core, Effects, Input, ReplicaStatus, Slow,
    work::{self, Job},
};
use flotilla_storage::{
    EngineError, LogEvidence, Remedy, StateMachine,
    conformance::{Observed, Observer},
    remedy,
};
use flotilla_types::{Incarnation, NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
use rand::RngExt as _;

use crate::{
    clock::Clock,
    convergence::LAG_MAX,
    disk::Disk,
    flaws::{Flawed, Flaws},
    world::{Event, World},
};
pub(crate) use control::{ControlTask, new_node};
pub(crate) use gateway::{Caller, Completion};

/// A node: its disk, its clock, and its process while it runs.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// The port it listens on. A node that lost its disk comes back at the same port under a new id.
    pub(crate) port: u16,
    pub(crate) disk: Disk,
    pub(crate) folder: Folder,
    pub(crate) clock: Clock,
    /// The offset of its wall clock when the clock is undisturbed, milliseconds.
    pub(crate) wall_offset_ms: i64,
    /// The process is suspended until this true time, microseconds.
    pub(crate) paused_until_us: u64,
    /// The next fsync of the log fails.
    pub(crate) fsync_fails: bool,
    /// Upper end of the usual duration of a log write, microseconds.
    pub(crate) disk_us_max: u64,
    pub(crate) running: Option<Box<Running>>,
    /// Counts starts and ends of the process, to drop events of an earlier one.
    pub(crate) life: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) role: NodeRole,
    /// Its disk is lost or unusable: it never starts again.
    pub(crate) retired: bool,
}

/// The small files of a data folder; each is replaced atomically.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    pub(crate) meta: MetaState,
    pub(crate) has_authority: bool,
    /// The node is to found the cluster and has not finished.
    pub(crate) founding: bool,
}

/// The memory of a process.
pub(crate) struct Running {
    pub(crate) core: Core<u64>,
    pub(crate) applier: Applier<u64>,
    /// The metadata that the state machine published since the last look.
    published: Arc<Mutex<Option<Arc<MetaState>>>>,
    inbox: Vec<Input<u64>>,
    wake_scheduled: bool,
    wal: work::Wal,
    wal_pending: Vec<work::WalJob>,
    wal_in_flight: Option<work::Merged>,
    tasks: VecDeque<host::ApplyJob>,
    /// Work of the pool, by number.
    slow: BTreeMap<u64, Slow<u64>>,
    jobs: VecDeque<Job>,
    jobs_running: usize,
    pulls: BTreeMap<u64, host::Pulling>,
    fetches: fetches::Fetches,
    scrubber: work::Scrubber,
    /// Connected peers, with their `life` when the connection was made.
    links: BTreeMap<NodeId, u64>,
    calls: BTreeMap<u64, rpc::Call>,
    /// Receivers of answers of the host.
    waiters: BTreeMap<u64, rpc::Waiter>,
    /// The last id given to a call, pull, waiter or request. Ids of two lives never meet.
    last_id: u64,
    pub(crate) gateway: gateway::Gateway,
    pub(crate) control: control::Control,
    /// Peers whose connections this node refuses, because its metadata has them removed.
    refused: BTreeSet<NodeId>,
}

impl Running {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The gateway here could not store something.
    pub(crate) fn store_failed(&mut self, error: &EngineError) {
        self.control.fatal |= remedy(error) == Remedy::EndNode;
    }

    /// A new id for a large value that is proposed here.
    pub(crate) fn value_waiter(&mut self, number: u64) -> u64 {
        let reply = self.next_id();
        self.waiters.insert(reply, rpc::Waiter::Value(number));
        reply
    }
}

/// An event of a node's process.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// The raft thread's tick.
    Tick,
    /// The raft thread processes its inbox.
    Wake,
    /// The log write in flight is done.
    Synced,
    /// The apply thread has finished its first task.
    Applied,
    /// A thread of the pool does this work.
    Slow(u64),
    /// A background job is done.
    JobDone(Job),
    /// A background job is retried.
    JobRetry(Job),
    /// The link to a peer may have changed.
    Link { peer: NodeId },
    /// A call was not answered in time.
    CallTimedOut(u64),
    /// A pull sends its next request.
    PullRetry(u64),
    /// The scrub does what is due.
    Scrub,
    /// A request's pause or its attempt's timeout is over.
    RequestDue { request: u64, attempt: u64 },
    /// A control task is due.
    Reconcile(ControlTask),
    /// A long poll of the feed times out and is answered.
    FeedDue { from: NodeId, call: u64 },
    /// A timer of the failure detector.
    MemberTimer(Timer),
}

impl Node {
    pub(crate) fn new(id: NodeId, port: u16, role: NodeRole, clock: Clock, wall_offset_ms: i64) -> Self {
        Self {
            id,
            port,
            disk: Disk::default(),
            folder: Folder::default(),
            clock,
            wall_offset_ms,
            paused_until_us: 0,
            fsync_fails: false,
            disk_us_max: 2_000,
            running: None,
            life: 0,
            incarnation: Incarnation(0),
            role,
            retired: false,
        }
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        self.running.as_ref().map(|running| running.core.status()).unwrap_or_default()
    }

    /// Whether a replica here has its records, and is neither loading them nor broken.
    pub(crate) fn has_loaded(&self, replica: ReplicaId) -> bool {
        let contents = self.running.as_ref().map(|running| running.applier.contents(replica));
        matches!(contents, Some(Contents::AtRest(_) | Contents::Moving))
    }
}

impl World {
    /// Starts a node on its disk. Like the real node, it does not start on a damaged log.
    pub(crate) fn start(&mut self, id: NodeId) {
        let seed: u64 = self.rng.random();
        let (config, now_us) = (self.config.clone(), self.now_us);
        let scrub = config.scrub;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.retired || node.running.is_some() {
            return;
        }
        if node.disk.is_log_damaged() {
            self.retire(id, "does not start on a damaged log");
            return;
        }
        node.life += 1;
        // As in the real folder: no two starts share an incarnation, even after a roll-back.
        node.incarnation = Incarnation((node.incarnation.0 + 1).max(now_us / 1_000 + 1));
        node.paused_until_us = 0;
        node.disk.set_misses(self.plan.misses_percent);
        let disk = node.disk.clone();
        let mut effects = Effects::default();
        let core = match Core::open(id, node.incarnation, config, Arc::new(disk.clone()), seed, &mut effects) {
            Ok(core) => core,
            Err(error) => {
                self.retire(id, &format!("cannot open its log: {error}"));
                return;
            }
        };
        let published = Arc::new(Mutex::new(None));
        let flaws = disk.flaws.clone();
        let (life, incarnation, wal) = (node.life, node.incarnation, work::Wal::new(&disk, node.incarnation));
        let control = control::Control::new(node, seed);
        let (now_ms, wall_ms) = (node.clock.mono_ms(now_us), node.clock.wall_ms(now_us));
        let scrubber = work::Scrubber::new(scrub, now_ms, wall_ms, seed);
        node.running = Some(Box::new(Running {
            core,
            applier: Applier::new(
                Arc::new(disk),
                machines(published.clone(), self.plan.kv, self.checks.observer(), flaws),
            ),
            published,
            inbox: Vec::new(),
            wake_scheduled: false,
            wal,
            wal_pending: Vec::new(),
            wal_in_flight: None,
            tasks: VecDeque::new(),
            slow: BTreeMap::new(),
            jobs: VecDeque::new(),
            jobs_running: 0,
            pulls: BTreeMap::new(),
            fetches: fetches::Fetches::default(),
            scrubber,
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiters: BTreeMap::new(),
            // Answers to calls of an earlier life may still arrive, although their connection is gone.
            last_id: life << 32,
            gateway: gateway::Gateway::new(seed),
            control,
            refused: BTreeSet::new(),
        }));
        self.note(format!("{id} starts, {incarnation}"));
        self.with_node(id, |world, node, running| {
            running.core.flush(node.clock.mono_ms(world.now_us), &mut effects);
            world.perform(node, running, effects);
            world.start_control(node, running);
        });
        let tick_us = self.rng.random_range(0..self.config.tick_ms * 1_000);
        self.schedule_for(id, tick_us, NodeEvent::Tick);
        self.schedule_for(id, 0, NodeEvent::Scrub);
        self.refresh_links(id);
    }

    /// Kills the process. A write in flight happens or not, by chance.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let written = self.rng.random_bool(0.5);
        // The machine may have restarted on a file system that keeps no evidence. A replica then needs both
        // others of three, so none of them may be lost for good.
        let may_doubt = self.rng.random_bool(0.25) && !self.is_losing_data() && self.unconverged(LAG_MAX).is_none();
        let evidence = if may_doubt { LogEvidence::Unknown } else { LogEvidence::Complete };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(mut running) = node.running.take() else { return };
        if let Some(merged) = running.wal_in_flight.take()
            && written
        {
            // The write is durable, but no completion is delivered.
            let batch = merged.batch().cloned();
            if running.wal.write(&node.disk, merged).is_ok()
                && let Some(batch) = batch
            {
                self.checks.log_batch(node, &batch);
            }
        }
        node.life += 1;
        node.fsync_fails = false;
        node.disk = node.disk.reopen_with(evidence);
        for completion in running.gateway.into_unfinished() {
            self.complete(completion);
        }
        self.refresh_links(id);
    }

    /// The node's data is lost permanently; its machine joins again as another node.
    pub(crate) fn retire(&mut self, id: NodeId, why: &str) {
        self.crash(id);
        self.note(format!("{id} {why}"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.retired = true;
            node.disk = Disk::default();
            node.folder = Folder::default();
        }
        self.rejoin_later(id);
    }

    fn refresh_links(&mut self, id: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.link_changed(id, other);
        }
    }

    pub(crate) fn schedule_for(&mut self, id: NodeId, delay_us: u64, event: NodeEvent) {
        if let Some(node) = self.nodes.get(&id) {
            let life = node.life;
            self.schedule(delay_us, Event::Node { node: id, life, event: Box::new(event) });
        }
    }

    /// Like [`World::schedule_for`], for a node that is taken out of the world.
    fn schedule_on(&mut self, node: &Node, delay_us: u64, event: NodeEvent) {
        self.schedule(delay_us, Event::Node { node: node.id, life: node.life, event: Box::new(event) });
    }

    /// Puts an input into the inbox of a node's raft thread.
    pub(crate) fn send_input(&mut self, id: NodeId, input: Input<u64>) {
        self.with_node(id, |world, node, running| world.enqueue(node, running, input));
    }

    /// Takes a running node out of the world, so that both can be changed.
    pub(crate) fn with_node(&mut self, id: NodeId, act: impl FnOnce(&mut Self, &mut Node, &mut Running)) {
        let Some(mut node) = self.nodes.remove(&id) else { return };
        let mut fatal = false;
        if let Some(mut running) = node.running.take() {
            act(self, &mut node, &mut running);
            self.deliver_outcomes(&mut node, &mut running);
            fatal = std::mem::take(&mut running.control.fatal);
            assert!(fatal || !node.disk.met_io_error(), "{id} goes on although its disk failed");
            node.running = Some(running);
        }
        self.nodes.insert(id, node);
        if fatal {
            self.note(format!("{id} exits after a fatal error"));
            self.crash(id);
            self.restart_later(id);
        }
    }

    /// The end of the node's pause, if it is paused now.
    fn paused_until_us(&self, id: NodeId) -> Option<u64> {
        self.nodes.get(&id).map(|node| node.paused_until_us).filter(|until_us| *until_us > self.now_us)
    }

    pub(crate) fn node_event(&mut self, id: NodeId, life: u64, event: NodeEvent) {
        if self.nodes.get(&id).is_none_or(|node| node.life != life) {
            return;
        }
        if let Some(until_us) = self.paused_until_us(id) {
            self.schedule(until_us - self.now_us, Event::Node { node: id, life, event: Box::new(event) });
            return;
        }
        self.with_node(id, |world, node, running| match event {
            NodeEvent::Tick => {
                world.enqueue(node, running, Input::Tick);
                world.release_some_log(node, running);
                let tick_us = node.clock.true_us(world.config.tick_ms);
                world.schedule_on(node, tick_us, NodeEvent::Tick);
            }
            NodeEvent::Wake => world.wake(node, running),
            NodeEvent::Synced => world.synced(node, running),
            NodeEvent::Applied => world.applied(node, running),
            NodeEvent::Slow(number) => world.do_slow(node, running, number),
            NodeEvent::JobDone(job) => world.worked(node, running, job),
            NodeEvent::JobRetry(job) => world.work(node, running, job),
            NodeEvent::Link { peer } => world.link(node, running, peer),
            NodeEvent::CallTimedOut(call) => world.call_failed(node, running, call),
            NodeEvent::PullRetry(pull) => world.advance_pull(node, running, pull),
            NodeEvent::Scrub => world.scrub(node, running),
            NodeEvent::RequestDue { request, attempt } => world.advance_request(node, running, request, attempt),
            NodeEvent::Reconcile(task) => world.reconcile(node, running, task),
            NodeEvent::FeedDue { from, call } => world.feed_due(node, running, from, call),
            NodeEvent::MemberTimer(timer) => world.member_timer(node, running, timer),
        });
    }

    pub(crate) fn deliver(&mut self, from: NodeId, to: NodeId, frame: crate::network::Frame) {
        // Frames in flight are lost when their link is cut.
        if !self.network.passes(from, to) {
            return;
        }
        if let Some(until_us) = self.paused_until_us(to) {
            self.schedule(until_us - self.now_us, Event::Deliver { from, to, frame });
            return;
        }
        self.with_node(to, |world, node, running| world.receive_frame(node, running, from, frame));
    }
}

fn machines(
    published: Arc<Mutex<Option<Arc<MetaState>>>>,
    limits: Limits,
    observer: Observer,
    flaws: Flaws,
) -> flotilla_replication::MachineFactory {
    Arc::new(move |shard| {
        let machine: Box<dyn StateMachine> = if shard == ShardId::META {
            let published = published.clone();
            Box::new(MetaMachine::new(Box::new(move |state| *published.lock() = Some(state))))
        } else {
            let machine = Box::new(KvMachine::new(limits));
            Box::new(Flawed { machine, shard, flaws: flaws.clone() })
        };
        Box::new(Observed::new(machine, observer.clone()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn an_answer_to_an_earlier_life_is_no_answer_to_the_next() {
        let mut world = World::new(Plan { faults: Vec::new(), ..Plan::draw(1) }, false);
        let me = NodeId(1);
        let next_id = |world: &mut World| {
            let mut id = 0;
            world.with_node(me, |_, _, running| id = running.next_id());
            id
        };
        world.found_cluster();
        world.run_ms(500);
        let last = next_id(&mut world);
        world.crash(me);
        world.start(me);
        assert!(next_id(&mut world) > last);
    }
}
