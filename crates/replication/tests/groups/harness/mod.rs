//! A deterministic cluster of shard hosts in one thread, driven by a seed. Cores and appliers are the real
//! ones, logs and engines the in-memory ones; clock, network, disk timing and threads are virtual.
//!
//! The steps of a host's threads (`host/*.rs`) are events in virtual time here, in the same order. Invariants
//! are checked while it runs (see `checks`). It does not model the wire format, a full inbox, or failing
//! disks.

mod checks;
mod clients;
mod network;
mod node;
mod pulls;
mod script;
mod values;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
};

use flotilla_replication::{Answer, HostConfig, Notice, RaftConfig};
use flotilla_types::{NodeId, ReplicaId, ShardDescriptor, ShardId};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

pub(crate) use checks::Checks;
pub(crate) use clients::{Client, ClientEvent, get, key, store};
pub(crate) use network::{Frame, Network};
pub(crate) use node::Node;
pub(crate) use script::descriptor;

/// The one shard of these tests.
pub(crate) const SHARD: ShardId = ShardId(1);
/// The wall clock at the start, Unix milliseconds.
pub(crate) const WALL_MS: u64 = 1_700_000_000_000;
/// Interval at which missing replicas are requested again, microseconds.
const RECONCILE_US: u64 = 100_000;

/// The seeds of a test: the first few, or a range from the environment, as in `FLOTILLA_SEEDS=100..200`.
pub(crate) fn seeds(few: u64) -> Range<u64> {
    let named = std::env::var("FLOTILLA_SEEDS").ok();
    let range = named.as_deref().and_then(|range| range.split_once(".."));
    range.map_or(0..few, |(from, to)| from.parse().expect("a number")..to.parse().expect("a number"))
}

/// A scheduled event.
pub(crate) enum Event {
    /// An event on a node; void if the node has crashed or restarted since.
    Node { node: NodeId, life: u64, event: Box<node::NodeEvent> },
    /// A frame arrives; void if the link has been cut since.
    Deliver { from: NodeId, to: NodeId, link: u64, frame: Frame },
    /// A client acts.
    Client { client: usize, event: ClientEvent },
    /// Missing replicas are requested again.
    Reconcile,
}

impl Event {
    fn label(&self) -> String {
        match self {
            Self::Node { node, event, .. } => format!("{node} {event:?}"),
            Self::Deliver { from, to, frame, .. } => format!("{from}→{to} {frame:?}"),
            Self::Client { client, event } => format!("client {client} {event:?}"),
            Self::Reconcile => String::new(),
        }
    }
}

/// The simulated cluster.
pub(crate) struct World {
    pub now_us: u64,
    pub config: HostConfig,
    pub rng: ChaCha8Rng,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    /// Duration of a log write, at most, apart from rare slow ones; microseconds.
    pub disk_us_max: u64,
    /// Duration of a state machine's task, at most, apart from rare slow ones; microseconds.
    pub apply_us_max: u64,
    /// Rate of background jobs that take up to a second and a half.
    pub work_slow_per_mille: u32,
    /// Rate at which, ten times a second, the log of a node cannot free space because of one of its replicas.
    pub log_release_per_mille: u32,
    pub clients: Vec<Client>,
    pub checks: Checks,
    /// Desired replicas: node, descriptor, and whether it is a founder.
    pub desired: BTreeMap<ReplicaId, (NodeId, ShardDescriptor, bool)>,
    /// Losses and destructions that nodes reported.
    pub notices: Vec<(NodeId, Notice)>,
    /// Answers to requests made by tests directly.
    pub answers: BTreeMap<u64, Answer>,
    pub attempts: u64,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    trace: DefaultHasher,
}

impl World {
    /// Nodes `1..=nodes`, running, without replicas.
    pub(crate) fn new(seed: u64, nodes: u64) -> Self {
        eprintln!("seed {seed}");
        let mut world = Self {
            now_us: 0,
            config: small_bounds(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            network: Network::default(),
            disk_us_max: 2_000,
            apply_us_max: 300,
            work_slow_per_mille: 2,
            log_release_per_mille: 100,
            clients: Vec::new(),
            checks: Checks::default(),
            desired: BTreeMap::new(),
            notices: Vec::new(),
            answers: BTreeMap::new(),
            attempts: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            trace: DefaultHasher::new(),
        };
        for id in (1..=nodes).map(NodeId) {
            let skew_ms = world.rng.random_range(0..100);
            world.nodes.insert(id, Node::new(id, skew_ms));
        }
        for id in (1..=nodes).map(NodeId) {
            world.start(id);
        }
        world.schedule(RECONCILE_US, Event::Reconcile);
        world
    }

    /// Schedules an event `delay_us` from now.
    pub(crate) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + delay_us, self.scheduled), event);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// A hash of all events so far.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Runs the next event.
    fn advance(&mut self) {
        let Some(((at_us, _), event)) = self.queue.pop_first() else { return };
        self.now_us = at_us;
        let label = event.label();
        (at_us, &label).hash(&mut self.trace);
        if std::env::var_os("FLOTILLA_TRACE").is_some() {
            eprintln!("{:>9} {label}", at_us);
        }
        match event {
            Event::Node { node, life, event } => self.happen(node, life, *event),
            Event::Deliver { from, to, link, frame } => self.deliver(from, to, link, frame),
            Event::Client { client, event } => self.act(client, event),
            Event::Reconcile => {
                self.reconcile();
                self.schedule(RECONCILE_US, Event::Reconcile);
            }
        }
    }

    /// Runs for this long.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        self.run_us(ms * 1_000);
    }

    /// Runs for this long.
    pub(crate) fn run_us(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while self.queue.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= until_us) {
            self.advance();
        }
        self.now_us = until_us;
    }

    /// Runs for a random time below `ms_max`.
    pub(crate) fn run_some_ms(&mut self, ms_max: u64) {
        let ms = self.rng.random_range(0..ms_max);
        self.run_ms(ms);
    }

    /// Runs until `reached`, and panics after `limit_ms`; `what` names the awaited condition.
    pub(crate) fn run_until(&mut self, limit_ms: u64, what: &str, reached: impl Fn(&Self) -> bool) {
        let until_us = self.now_us + limit_ms * 1_000;
        while !reached(self) {
            assert!(self.now_us < until_us, "{what}: not within {limit_ms} ms\n{}", self.describe());
            self.run_ms(10);
        }
    }

    /// A new id for a request.
    pub(crate) fn next_attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }
}

/// Bounds so small that checkpoints, snapshots and refusals are frequent.
pub(crate) fn small_bounds() -> HostConfig {
    HostConfig {
        raft: RaftConfig {
            append_bytes_max: 1 << 10,
            append_inflight_max: 8,
            uncommitted_bytes_max: 8 << 10,
            committed_bytes_max: 2 << 10,
            cache_bytes_max: 2 << 10,
            ..RaftConfig::default()
        },
        batch_commands_max: 4,
        batch_bytes_max: 512,
        entries_inflight_max: 8,
        pending_commands_max: 64,
        pending_bytes_max: 16 << 10,
        unapplied_bytes_max: 8 << 10,
        memtable_bytes_max: 2 << 10,
        memtables_bytes_max: 16 << 10,
        log_bytes_max: 16 << 10,
        log_tail_entries: 16,
        ..HostConfig::default()
    }
}
