//! A cluster of shard hosts in one thread, decided by a seed: cores, appliers, logs and engines are the real ones; clock,
//! network, disk timing and threads are virtual.
//!
//! What a host's threads do one after the other happens here as events in virtual time, in the same order: see
//! `host/*.rs`. Invariants are checked while it runs (see `checks`). It does not model the wire format, a full inbox,
//! or a disk that fails.

mod checks;
mod clients;
mod network;
mod node;
mod script;

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
/// The wall clock when the world begins, Unix milliseconds.
pub(crate) const WALL_MS: u64 = 1_700_000_000_000;
/// How often creations that were asked for are asked for again, microseconds.
const RECONCILE_US: u64 = 100_000;

/// The seeds of a test: the first few, or those that the environment names, as in `FLOTILLA_SEEDS=100..200`.
pub(crate) fn seeds(few: u64) -> Range<u64> {
    let named = std::env::var("FLOTILLA_SEEDS").ok();
    let range = named.as_deref().and_then(|range| range.split_once(".."));
    range.map_or(0..few, |(from, to)| from.parse().expect("a number")..to.parse().expect("a number"))
}

/// What happens next.
pub(crate) enum Event {
    /// Something on a node; void when the node's life has ended meanwhile.
    Node { node: NodeId, life: u64, event: Box<node::Happening> },
    /// A frame arrives; void when the link was cut meanwhile.
    Deliver { from: NodeId, to: NodeId, link: u64, frame: Frame },
    /// A client acts.
    Client { client: usize, event: ClientEvent },
    /// Creations are asked for again.
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

/// Everything there is.
pub(crate) struct World {
    pub now_us: u64,
    pub config: HostConfig,
    pub rng: ChaCha8Rng,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    /// Most writes of a log take less, microseconds.
    pub disk_us_max: u64,
    /// Most tasks of a state machine take less, microseconds.
    pub apply_us_max: u64,
    /// Of a thousand background jobs so many take up to a second and a half.
    pub work_slow_per_mille: u32,
    pub clients: Vec<Client>,
    pub checks: Checks,
    /// Replicas that somebody wants to exist: where, as what, and whether as a founder.
    pub wanted: BTreeMap<ReplicaId, (NodeId, ShardDescriptor, bool)>,
    /// Losses and destructions that nodes reported.
    pub notices: Vec<(NodeId, Notice)>,
    /// Answers to requests that no client made.
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
            clients: Vec::new(),
            checks: Checks::default(),
            wanted: BTreeMap::new(),
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

    /// Something happens `delay_us` from now.
    pub(crate) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + delay_us, self.scheduled), event);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// Everything that happened so far, as one number.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Lets the next thing happen.
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

    /// Runs for so long.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let until_us = self.now_us + ms * 1_000;
        while self.queue.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= until_us) {
            self.advance();
        }
        self.now_us = until_us;
    }

    /// Runs for less than so long.
    pub(crate) fn run_some_ms(&mut self, ms_max: u64) {
        let ms = self.rng.random_range(0..ms_max);
        self.run_ms(ms);
    }

    /// Runs until `reached`, at most so long; `what` says what never came.
    pub(crate) fn run_until(&mut self, limit_ms: u64, what: &str, reached: impl Fn(&Self) -> bool) {
        let until_us = self.now_us + limit_ms * 1_000;
        while !reached(self) {
            assert!(self.now_us < until_us, "{what}: not within {limit_ms} ms\n{}", self.describe());
            self.run_ms(10);
        }
    }

    /// A number for somebody who waits for an answer.
    pub(crate) fn attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }
}

/// Bounds so small that checkpoints, snapshots and refusals happen all the time.
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
