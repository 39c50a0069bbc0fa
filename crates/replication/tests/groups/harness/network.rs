//! Links between nodes: delay, loss, duplication, reordering, partitions.
//!
//! Cutting a link drops the frames in flight, as a closed connection does. Both ends are notified when it
//! goes down or comes up.

use std::collections::BTreeMap;

use flotilla_replication::{Input, NodeHeartbeat, Outgoing};
use flotilla_types::{MessageKind, NodeId, WalSequence};
use rand::RngExt as _;

use super::{Event, World, node::NodeEvent};

/// A frame between nodes.
#[derive(Clone)]
pub(crate) enum Frame {
    Raft(Box<Outgoing>),
    NodeHeartbeat(NodeHeartbeat),
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Raft(outgoing) => {
                let message = &outgoing.message;
                write!(
                    f,
                    "{:?} {}→{} {} at {} commit {} entries {} reject {}",
                    message.kind,
                    message.from,
                    message.to,
                    message.term,
                    message.index,
                    message.commit,
                    message.entries.len(),
                    message.reject,
                )
            }
            Self::NodeHeartbeat(heartbeat) => write!(
                f,
                "heartbeat {} recovered {} synced {} recovery_complete {} you {} lost {:?}",
                heartbeat.incarnation,
                heartbeat.recovered,
                heartbeat.synced,
                heartbeat.recovery_complete,
                heartbeat.your_incarnation,
                heartbeat.you_lost_up_to
            ),
        }
    }
}

/// The links and their fault rates.
pub(crate) struct Network {
    /// Rate of lost frames.
    pub lost_per_mille: u32,
    /// Rate of duplicated frames.
    pub duplicated_per_mille: u32,
    /// Delay of a frame, at most, apart from slow ones; microseconds.
    pub delay_us_max: u64,
    /// Rate of slow frames, which take up to fifty times as long and are overtaken by others.
    pub slow_per_mille: u32,
    /// Bytes of objects that pass to one node in a millisecond; `None` for no bound.
    pub object_bytes_per_ms: Option<u64>,
    /// When the answers that are on their way to a node will have arrived, microseconds.
    pub objects_until_us: BTreeMap<NodeId, u64>,
    /// Whether all node heartbeats are lost.
    pub node_heartbeats_lost: bool,
    /// A node for which all entries are lost.
    pub entries_lost_to: Option<NodeId>,
    links: BTreeMap<(NodeId, NodeId), Link>,
}

#[derive(Default)]
struct Link {
    cut: bool,
    /// Incremented whenever the link is cut or restored.
    number: u64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            lost_per_mille: 0,
            duplicated_per_mille: 0,
            delay_us_max: 2_000,
            slow_per_mille: 5,
            object_bytes_per_ms: None,
            objects_until_us: BTreeMap::new(),
            node_heartbeats_lost: false,
            entries_lost_to: None,
            links: BTreeMap::new(),
        }
    }
}

impl Network {
    fn link(&mut self, a: NodeId, b: NodeId) -> &mut Link {
        self.links.entry((a.min(b), a.max(b))).or_default()
    }

    /// Whether frames can be sent.
    pub(crate) fn is_up(&mut self, a: NodeId, b: NodeId) -> bool {
        !self.link(a, b).cut
    }
}

impl World {
    /// Sends a frame; it is lost if the link or the receiver is down.
    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        let up = self.network.is_up(from, to) && self.nodes.get(&to).is_none_or(|node| node.running.is_some());
        let lost = match &frame {
            Frame::NodeHeartbeat(_) => self.network.node_heartbeats_lost,
            Frame::Raft(outgoing) => {
                self.network.entries_lost_to == Some(to) && outgoing.message.kind == MessageKind::Append
            }
        };
        if !up || lost {
            return;
        }
        let copies = if self.rng.random_range(0..1_000) < self.network.duplicated_per_mille { 2 } else { 1 };
        for _ in 0..copies {
            if self.rng.random_range(0..1_000) < self.network.lost_per_mille {
                continue;
            }
            let slow = if self.rng.random_range(0..1_000) < self.network.slow_per_mille { 50 } else { 1 };
            let delay_us = self.rng.random_range(100..=slow * self.network.delay_us_max);
            let link = self.network.link(from, to).number;
            self.schedule(delay_us, Event::Deliver { from, to, link, frame: frame.clone() });
        }
    }

    pub(super) fn deliver(&mut self, from: NodeId, to: NodeId, link: u64, frame: Frame) {
        if self.network.link(from, to).number != link {
            return;
        }
        match frame {
            Frame::Raft(outgoing) => {
                if outgoing.synced > WalSequence(0) {
                    self.input(to, Input::PeerSynced { from, sequence: outgoing.synced });
                }
                self.input(to, Input::Raft { from, shard: outgoing.shard, message: outgoing.message });
            }
            Frame::NodeHeartbeat(heartbeat) => self.input(to, Input::NodeHeartbeat { from, heartbeat }),
        }
    }

    /// Cuts or restores a link.
    pub(crate) fn set_link(&mut self, a: NodeId, b: NodeId, cut: bool) {
        if self.network.link(a, b).cut != cut {
            self.network.link(a, b).cut = cut;
            self.renew_link(a, b);
        }
    }

    /// Closes the connection, and opens another if both ends are up.
    pub(crate) fn renew_link(&mut self, a: NodeId, b: NodeId) {
        let link = self.network.link(a, b);
        link.number += 1;
        let up = !link.cut && [a, b].iter().all(|node| self.nodes[node].running.is_some());
        for (node, peer) in [(a, b), (b, a)] {
            for connected in [false, true] {
                if connected && !up {
                    continue;
                }
                let delay_us = if connected { 5_000 } else { 1_000 };
                self.happen_soon(node, delay_us, NodeEvent::Link { peer, connected });
            }
        }
    }

    /// Cuts all links of a node.
    pub(crate) fn isolate(&mut self, node: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.set_link(node, other, true);
        }
    }

    /// Restores all links and stops all faults.
    pub(crate) fn heal(&mut self) {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for (at, a) in ids.iter().enumerate() {
            for b in &ids[at + 1..] {
                self.set_link(*a, *b, false);
            }
        }
        self.network.lost_per_mille = 0;
        self.network.duplicated_per_mille = 0;
        self.network.node_heartbeats_lost = false;
    }
}
