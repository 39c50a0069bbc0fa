//! Virtual time: what happens next, on which node, and the one generator of chance.
//!
//! Invariant: everything is decided by the seed. Nothing here reads a clock, a thread's identity or the order of a hash map.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use bytes::Bytes;
use flotilla_control::ShardError;
use flotilla_replication::HostConfig;
use flotilla_types::NodeId;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    checks::Checks,
    faults::{Faults, Turn},
    network::{Frame, Network},
    node::{Happening, Node},
    operator::Operator,
    plan::Plan,
    workload::{ClientEvent, Workload},
};

/// What happens next.
pub(crate) enum Event {
    /// Something on a node; void when the node's life has ended meanwhile.
    Node { node: NodeId, life: u64, event: Box<Happening> },
    /// A frame arrives.
    Deliver { from: NodeId, to: NodeId, frame: Frame },
    /// A client acts.
    Client { client: usize, event: ClientEvent },
    /// Something goes wrong, or is put right.
    Fault(Turn),
    /// An order to the cluster is given, or was answered.
    Operator { order: u64, result: Option<Result<Bytes, ShardError>> },
}

impl Event {
    /// What the trace is made of; cheap, because every event passes through here.
    fn hash(&self, hasher: &mut DefaultHasher) {
        match self {
            Self::Node { node, life, event } => {
                (0_u8, node.0, life, std::mem::discriminant(&**event)).hash(hasher);
            }
            Self::Deliver { from, to, frame } => {
                let bytes = match frame {
                    Frame::Raft(bytes) | Frame::Member(bytes) => bytes,
                    Frame::Call { body, .. } | Frame::Answer { body, .. } => body,
                };
                (1_u8, from.0, to.0, bytes.len()).hash(hasher);
                hasher.write(bytes);
            }
            Self::Client { client, event } => (2_u8, client, std::mem::discriminant(event)).hash(hasher),
            Self::Fault(turn) => (3_u8, turn).hash(hasher),
            Self::Operator { order, result } => (4_u8, order, result.is_some()).hash(hasher),
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Node { node, event, .. } => format!("{node} {event:?}"),
            Self::Deliver { from, to, frame } => format!("{from}→{to} {}", crate::trace::describe(*from, frame)),
            Self::Client { client, event } => format!("client {client} {event:?}"),
            Self::Fault(turn) => format!("{turn:?}"),
            Self::Operator { order, result } => {
                format!("order {order} {}", if result.is_some() { "answered" } else { "given" })
            }
        }
    }
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) plan: Plan,
    pub(crate) config: HostConfig,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: Network,
    pub(crate) faults: Faults,
    pub(crate) operator: Operator,
    pub(crate) workload: Workload,
    pub(crate) checks: Checks,
    /// What an operator would tell of this run: faults, starts, joins, losses.
    pub(crate) notes: Vec<(u64, String)>,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    events: u64,
    trace: DefaultHasher,
    /// Every event as text, when somebody wants to read it.
    told: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(plan: Plan, tell: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        rng.set_stream(1);
        Self {
            now_us: 0,
            config: plan.host.clone(),
            rng,
            nodes: BTreeMap::new(),
            network: Network::new(plan.weather.clone()),
            faults: Faults::default(),
            operator: Operator::default(),
            workload: Workload::default(),
            checks: Checks::default(),
            notes: Vec::new(),
            queue: BTreeMap::new(),
            scheduled: 0,
            events: 0,
            trace: DefaultHasher::new(),
            told: tell.then(Vec::new),
            plan,
        }
    }

    /// Something happens `delay_us` from now.
    pub(crate) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + delay_us, self.scheduled), event);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// Whether something that is this likely happens.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.random_range(0..1_000) < per_mille
    }

    /// Everything that happened so far, as one number.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// How much happened so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Something that belongs in the story of this run.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if let Some(told) = &mut self.told {
            told.push(format!("{:>10} ## {text}", self.now_us));
        }
        self.notes.push((self.now_us, text));
    }

    /// Every event so far, if it was asked for.
    pub(crate) fn told(&self) -> &[String] {
        self.told.as_deref().unwrap_or_default()
    }

    /// Lets the next thing happen.
    fn advance(&mut self) {
        let Some(((at_us, _), event)) = self.queue.pop_first() else { return };
        self.now_us = at_us;
        self.events += 1;
        self.trace.write_u64(at_us);
        event.hash(&mut self.trace);
        if let Some(told) = &mut self.told {
            told.push(format!("{at_us:>10} {}", event.label()));
        }
        match event {
            Event::Node { node, life, event } => self.happen(node, life, *event),
            Event::Deliver { from, to, frame } => self.deliver(from, to, frame),
            Event::Client { client, event } => self.act(client, event),
            Event::Fault(turn) => self.turn(turn),
            Event::Operator { order, result } => self.operate(order, result),
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

    /// Runs until `reached`, at most so long. Returns whether it was.
    pub(crate) fn run_until(&mut self, limit_ms: u64, mut reached: impl FnMut(&mut Self) -> bool) -> bool {
        let until_us = self.now_us + limit_ms * 1_000;
        while !reached(self) {
            if self.now_us >= until_us {
                return false;
            }
            self.run_ms(50);
        }
        true
    }
}
