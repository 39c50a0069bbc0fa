//! The network between nodes: delay, loss, duplication, reordering, partitions in one or both directions.
//!
//! Frames travel encoded, as on a wire. A cut direction loses what is sent into it; both ends hear of a cut only after a
//! while, as with a connection that times out, and of a restored link when it is there again.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_types::NodeId;
use rand::RngExt as _;

use crate::world::{Event, World};

/// What travels.
#[derive(Clone)]
pub(crate) enum Frame {
    /// Raft messages and beats.
    Raft(Bytes),
    /// A datagram of the failure detector.
    Member(Bytes),
    /// A request of one of the two kinds; `call` is the asker's own number.
    Call { call: u64, kind: CallKind, body: Bytes },
    /// The answer to it.
    Answer { call: u64, body: Bytes },
}

/// Which server a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Rpc,
    Objects,
}

/// How links behave.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// Of a thousand Raft frames and datagrams so many are lost.
    pub lost_per_mille: u32,
    /// Of a thousand Raft frames so many arrive twice.
    pub doubled_per_mille: u32,
    /// Most frames take less than this, microseconds.
    pub delay_us_max: u64,
    /// Of a thousand frames so many take up to fifty times as long, overtaken by others.
    pub slow_per_mille: u32,
    /// Of a thousand answers with objects so many are not what was asked for.
    pub lies_per_mille: u32,
}

impl Weather {
    /// A good local network.
    pub(crate) fn fair() -> Self {
        Self { lost_per_mille: 0, doubled_per_mille: 0, delay_us_max: 2_000, slow_per_mille: 5, lies_per_mille: 0 }
    }
}

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Directions that are cut, with how many partitions cut them.
    cuts: BTreeMap<(NodeId, NodeId), u32>,
}

/// Directed links that a partition cuts.
pub(crate) type Cut = Vec<(NodeId, NodeId)>;

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { weather, cuts: BTreeMap::new() }
    }

    /// Whether frames pass in this direction.
    pub(crate) fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.contains_key(&(from, to))
    }

    /// Whether a connection between the two can live.
    pub(crate) fn is_up(&self, a: NodeId, b: NodeId) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }
}

impl World {
    /// Sends a frame; what cannot pass is lost without a word.
    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        if !self.network.passes(from, to) {
            return;
        }
        let may_double = matches!(frame, Frame::Raft(_) | Frame::Member(_));
        let weather = self.network.weather.clone();
        let copies = if may_double && self.chance(weather.doubled_per_mille) { 2 } else { 1 };
        for _ in 0..copies {
            if may_double && self.chance(weather.lost_per_mille) {
                continue;
            }
            let slow = if self.chance(weather.slow_per_mille) { 50 } else { 1 };
            let delay_us = self.rng.random_range(50..=slow * weather.delay_us_max);
            self.schedule(delay_us, Event::Deliver { from, to, frame: frame.clone() });
        }
    }

    /// Cuts these directions.
    pub(crate) fn cut(&mut self, cut: &Cut) {
        for direction in cut {
            *self.network.cuts.entry(*direction).or_default() += 1;
        }
        self.links_changed(cut);
    }

    /// Takes a cut back.
    pub(crate) fn mend(&mut self, cut: &Cut) {
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

    /// Both ends of a link hear, in their own time, that it is there or not. What they hear is looked up when they do.
    pub(crate) fn link_changed(&mut self, a: NodeId, b: NodeId) {
        for (node, peer) in [(a, b), (b, a)] {
            let wait_us = if self.network.is_up(a, b) { 300_000 } else { 4_000_000 };
            let delay_us = self.rng.random_range(1_000..wait_us);
            self.node_soon(node, delay_us, crate::node::Happening::Link { peer });
        }
    }
}
