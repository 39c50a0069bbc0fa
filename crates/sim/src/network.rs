//! The network between nodes: delay, loss, duplication, reordering, partitions in one or both directions.
//!
//! Frames travel encoded, as on a wire. A cut direction drops what is sent into it. Both ends notice a cut
//! only after a delay, as with a connection that times out, and a restored link after a shorter one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_types::NodeId;
use rand::RngExt as _;

use crate::world::{Event, World};

/// A message on a link.
#[derive(Clone)]
pub(crate) enum Frame {
    /// Raft messages and node heartbeats.
    Raft(Bytes),
    /// A datagram of the failure detector.
    Member(Bytes),
    /// A request; `call` is the caller's own number for it.
    Call { call: u64, kind: CallKind, body: Bytes },
    /// The answer to a call.
    Answer { call: u64, body: Bytes },
}

/// The service that a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Rpc,
    Objects,
}

/// Rates of faults and delays on all links.
#[derive(Debug, Clone)]
pub(crate) struct NetworkFaults {
    /// Raft frames and datagrams per thousand that are lost.
    pub lost_per_mille: u32,
    /// Raft frames and datagrams per thousand that arrive twice.
    pub duplicated_per_mille: u32,
    /// Upper end of the usual delay, microseconds.
    pub delay_us_max: u64,
    /// Frames per thousand that take up to fifty times the usual delay, so that others overtake them.
    pub slow_per_mille: u32,
    /// Answers to object pulls per thousand that are corrupted.
    pub corrupt_pulls_per_mille: u32,
}

impl NetworkFaults {
    /// A good local network.
    pub(crate) fn healthy() -> Self {
        Self {
            lost_per_mille: 0,
            duplicated_per_mille: 0,
            delay_us_max: 2_000,
            slow_per_mille: 5,
            corrupt_pulls_per_mille: 0,
        }
    }
}

/// Objects pass through a healed link at this rate at least: faster than clients write, so that a transfer
/// can end.
const HEALED_BYTES_PER_MS: u64 = 20;

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) faults: NetworkFaults,
    /// Directions that are cut, with the number of partitions that cut them.
    cuts: BTreeMap<(NodeId, NodeId), u32>,
    /// Bytes of objects that pass through a link in a millisecond; `None` for no bound.
    object_bytes_per_ms: Option<u64>,
    /// Nodes that send objects late.
    pub(crate) slow_sources: BTreeSet<NodeId>,
    /// When the objects on their way through a link will have passed, microseconds.
    objects_until_us: BTreeMap<(NodeId, NodeId), u64>,
}

/// Directed links that a partition cuts.
pub(crate) type Cut = Vec<(NodeId, NodeId)>;

impl Network {
    pub(crate) fn new(faults: NetworkFaults, object_bytes_per_ms: Option<u64>) -> Self {
        Self {
            faults,
            cuts: BTreeMap::new(),
            object_bytes_per_ms,
            objects_until_us: BTreeMap::new(),
            slow_sources: BTreeSet::new(),
        }
    }

    /// Ends all faults but partitions, which end by themselves. What a slow link still had to carry does not hold
    /// up what follows.
    pub(crate) fn heal(&mut self) {
        self.faults = NetworkFaults::healthy();
        self.slow_sources.clear();
        self.object_bytes_per_ms = self.object_bytes_per_ms.map(|rate| rate.max(HEALED_BYTES_PER_MS));
        self.objects_until_us.clear();
    }

    /// Whether frames pass in this direction.
    pub(crate) fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.contains_key(&(from, to))
    }

    /// Whether a connection between the two can exist.
    pub(crate) fn is_up(&self, a: NodeId, b: NodeId) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }
}

impl World {
    /// Sends a frame. A frame into a cut direction is dropped silently.
    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        if !self.network.passes(from, to) {
            return;
        }
        // Calls and answers run over streams, which neither lose nor duplicate.
        let is_datagram = matches!(frame, Frame::Raft(_) | Frame::Member(_));
        let faults = self.network.faults.clone();
        let copies = if is_datagram && self.chance(faults.duplicated_per_mille) { 2 } else { 1 };
        for _ in 0..copies {
            if is_datagram && self.chance(faults.lost_per_mille) {
                continue;
            }
            let slow = if self.chance(faults.slow_per_mille) { 50 } else { 1 };
            let delay_us = self.rng.random_range(50..=slow * faults.delay_us_max);
            self.schedule(delay_us, Event::Deliver { from, to, frame: frame.clone() });
        }
    }

    /// Sends a frame with objects, which takes as long as the link's rate says.
    pub(crate) fn send_objects(&mut self, from: NodeId, to: NodeId, frame: Frame, bytes: usize) {
        if self.network.slow_sources.contains(&from) {
            let delay_us = self.rng.random_range(1_000_000..8_000_000);
            if self.network.passes(from, to) {
                self.schedule(delay_us, Event::Deliver { from, to, frame });
            }
            return;
        }
        let Some(rate) = self.network.object_bytes_per_ms else { return self.send(from, to, frame) };
        let until_us = self.network.objects_until_us.entry((from, to)).or_default();
        *until_us = (*until_us).max(self.now_us) + bytes as u64 * 1_000 / rate;
        let delay_us = *until_us - self.now_us;
        if self.network.passes(from, to) {
            self.schedule(delay_us, Event::Deliver { from, to, frame });
        }
    }

    /// Cuts these directions.
    pub(crate) fn cut(&mut self, cut: &Cut) {
        for direction in cut {
            *self.network.cuts.entry(*direction).or_default() += 1;
        }
        self.links_changed(cut);
    }

    /// Undoes [`World::cut`].
    pub(crate) fn restore(&mut self, cut: &Cut) {
        for direction in cut {
            if let Some(count) = self.network.cuts.get_mut(direction) {
                *count -= 1;
                if *count == 0 {
                    self.network.cuts.remove(direction);
                }
            }
        }
        self.links_changed(cut);
    }

    fn links_changed(&mut self, cut: &Cut) {
        for (a, b) in cut {
            self.link_changed(*a, *b);
        }
    }

    /// Both ends of a link check it after a random delay. They look up its state at that moment, not now.
    pub(crate) fn link_changed(&mut self, a: NodeId, b: NodeId) {
        for (node, peer) in [(a, b), (b, a)] {
            let wait_us = if self.network.is_up(a, b) { 300_000 } else { 4_000_000 };
            let delay_us = self.rng.random_range(1_000..wait_us);
            self.schedule_for(node, delay_us, crate::node::NodeEvent::Link { peer });
        }
    }
}
