//! Virtual time: the event queue and the one random number generator of a run.
//!
//! Invariant: the seed decides everything. Nothing here reads a clock, a thread's identity or the order of a
//! hash map.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use flotilla_control::ShardError;
use flotilla_meta::MetaReply;
use flotilla_replication::HostConfig;
use flotilla_types::NodeId;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    checks::Checks,
    faults::{FaultStep, Faults},
    network::{Frame, Network},
    node::{Node, NodeEvent},
    operator::Operator,
    plan::Plan,
    values::Values,
    workload::{ClientEvent, Workload},
};

/// An entry of the event queue.
pub(crate) enum Event {
    /// An event of a node's process; dropped when that process has ended meanwhile.
    Node { node: NodeId, life: u64, event: Box<NodeEvent> },
    /// A frame arrives.
    Deliver { from: NodeId, to: NodeId, frame: Frame },
    /// A client acts.
    Client { client: usize, event: ClientEvent },
    /// A fault begins or ends.
    Fault(FaultStep),
    /// The operator gives an order (no result), or an order was answered.
    Operator { order: u64, result: Option<Result<MetaReply, ShardError>> },
    /// The operator tries to raise the cluster version.
    Upgrade,
    /// Some node stores a large value, and it is proposed.
    Value,
    /// A node lets go of what it has stored for a value.
    UploadEnds { node: NodeId, number: u64 },
}

impl Event {
    /// Adds the event to the trace. Cheap, because it is called for every event.
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
            Self::Fault(step) => (3_u8, step).hash(hasher),
            Self::Operator { order, result } => (4_u8, order, result.is_some()).hash(hasher),
            Self::Upgrade => 5_u8.hash(hasher),
            Self::Value => 6_u8.hash(hasher),
            Self::UploadEnds { node, number } => (7_u8, node.0, number).hash(hasher),
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Node { node, event, .. } => format!("{node} {event:?}"),
            Self::Deliver { from, to, frame } => format!("{from}→{to} {}", crate::trace::describe(*from, frame)),
            Self::Client { client, event } => format!("client {client} {event:?}"),
            Self::Fault(step) => format!("{step:?}"),
            Self::Upgrade => "upgrade".to_owned(),
            Self::Value => "a value".to_owned(),
            Self::UploadEnds { node, number } => format!("upload {number} on {node} ends"),
            Self::Operator { order, result } => {
                format!("order {order} {}", if result.is_some() { "answered" } else { "given" })
            }
        }
    }
}

/// The whole state of a run.
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
    pub(crate) values: Values,
    pub(crate) checks: Checks,
    /// A summary of the run with times in microseconds: faults, starts, joins, losses.
    pub(crate) notes: Vec<(u64, String)>,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    events: u64,
    trace: DefaultHasher,
    /// Every event as text, if recording is on.
    event_log: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(plan: Plan, record_events: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        rng.set_stream(1);
        Self {
            now_us: 0,
            config: plan.host.clone(),
            rng,
            nodes: BTreeMap::new(),
            network: Network::new(plan.network.clone(), plan.object_bytes_per_ms),
            faults: Faults::default(),
            operator: Operator::default(),
            workload: Workload::default(),
            values: Values::default(),
            checks: Checks::default(),
            notes: Vec::new(),
            queue: BTreeMap::new(),
            scheduled: 0,
            events: 0,
            trace: DefaultHasher::new(),
            event_log: record_events.then(Vec::new),
            plan,
        }
    }

    /// Schedules an event `delay_us` from now. Events of equal time run in the order they were scheduled.
    pub(crate) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + delay_us, self.scheduled), event);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// Draws whether an event of this probability happens. Draws nothing when the probability is 0.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.random_range(0..1_000) < per_mille
    }

    /// Hash of all events so far.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Number of events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Adds a line to the summary of this run.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if let Some(event_log) = &mut self.event_log {
            event_log.push(format!("{:>10} ## {text}", self.now_us));
        }
        self.notes.push((self.now_us, text));
    }

    /// Every event so far; empty unless recording is on.
    pub(crate) fn event_log(&self) -> &[String] {
        self.event_log.as_deref().unwrap_or_default()
    }

    /// Takes the next event off the queue and handles it.
    fn advance(&mut self) {
        let Some(((at_us, _), event)) = self.queue.pop_first() else { return };
        self.now_us = at_us;
        self.events += 1;
        self.trace.write_u64(at_us);
        event.hash(&mut self.trace);
        if let Some(event_log) = &mut self.event_log {
            event_log.push(format!("{at_us:>10} {}", event.label()));
        }
        match event {
            Event::Node { node, life, event } => self.node_event(node, life, *event),
            Event::Deliver { from, to, frame } => self.deliver(from, to, frame),
            Event::Client { client, event } => self.client_event(client, event),
            Event::Value => self.write_value(),
            Event::UploadEnds { node, number } => self.end_upload(node, number),
            Event::Fault(step) => self.fault_step(step),
            Event::Upgrade => self.upgrade(),
            Event::Operator { order, result } => self.operator_event(order, result),
        }
    }

    /// Runs for `ms` of virtual time.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let until_us = self.now_us + ms * 1_000;
        while self.queue.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= until_us) {
            self.advance();
        }
        self.now_us = until_us;
    }

    /// Runs until `reached` returns true, at most for `limit_ms`. Returns whether it did.
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
