//! Raft messages and beats to frames and back: many messages to a node share one frame.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_failpoints::{Place, reached};
use flotilla_transport::{Class, Transport};
use flotilla_types::{Incarnation, NodeId, ReplicaId, ShardId, Term, WalSequence};
use flotilla_wire::{WireError, decode as decode_message, encode, envelope_from_wire, envelope_to_wire, peer};

use super::{Inbox, Reply, class_of};
use crate::{Beat, Input, Outgoing};

/// Entry bytes in one frame; a single larger message travels alone. Well below the transport's own bound.
const FRAME_BYTES_MAX: usize = 2 << 20;

#[derive(Clone)]
pub(super) struct Sender {
    network: Arc<Transport>,
    inbox: Inbox,
}

impl Sender {
    pub(super) fn new(network: Arc<Transport>, inbox: Inbox) -> Self {
        Self { network, inbox }
    }

    /// Sends messages, in order per node and class. What the network does not take is reported unreachable once.
    pub(super) fn send(&self, messages: Vec<Outgoing>) {
        let mut frames: BTreeMap<(NodeId, bool), Pending> = BTreeMap::new();
        for Outgoing { node, shard, message } in messages {
            let bulk = class_of(&message) == Class::Bulk;
            let bytes: usize = message.entries.iter().map(flotilla_types::Entry::size_bytes).sum();
            let pending = frames.entry((node, bulk)).or_default();
            if pending.bytes + bytes > FRAME_BYTES_MAX && !pending.envelopes.is_empty() {
                self.transmit(node, bulk, std::mem::take(pending));
            }
            pending.bytes += bytes;
            pending.endpoints.push((message.from, message.to));
            if message.snapshot.is_some() {
                reached(Place::FramesSnapshot);
                pending.snapshots.push((message.from, message.to));
            }
            pending.envelopes.push(envelope_to_wire(shard, message));
        }
        for ((node, bulk), pending) in frames {
            self.transmit(node, bulk, pending);
        }
    }

    fn transmit(&self, node: NodeId, bulk: bool, pending: Pending) {
        let frame = encode(&peer::Frame { raft: pending.envelopes, beat: None });
        let class = if bulk { Class::Bulk } else { Class::Urgent };
        if self.network.send(node, class, frame).is_err() {
            self.inbox.send(Input::Unreachable { node, replicas: pending.endpoints });
            for (replica, to) in pending.snapshots {
                self.inbox.send(Input::SnapshotSent { replica, to, sent: false });
            }
        }
    }

    /// A beat that the network does not take is lost; there will be another.
    pub(super) fn beat(&self, node: NodeId, beat: &Beat) {
        let leaders =
            beat.leaders.iter().map(|(shard, term)| peer::Leader { shard: shard.0, term: term.0, node: 0 }).collect();
        let beat = peer::Beat {
            incarnation: beat.incarnation.0,
            recovered: beat.recovered.0,
            synced: beat.synced.0,
            wall_ms: beat.wall_ms,
            your_incarnation: beat.your_incarnation.0,
            you_lost_up_to: beat.you_lost_up_to.map_or(0, |sequence| sequence.0),
            leaders,
            settled: beat.settled,
        };
        let _ = self.network.send(node, Class::Urgent, encode(&peer::Frame { raft: Vec::new(), beat: Some(beat) }));
    }
}

#[derive(Default)]
struct Pending {
    envelopes: Vec<peer::Envelope>,
    endpoints: Vec<(ReplicaId, ReplicaId)>,
    snapshots: Vec<(ReplicaId, ReplicaId)>,
    bytes: usize,
}

/// What a frame from a peer says.
pub(super) fn decode(from: NodeId, frame: Bytes) -> Result<Vec<Input<Reply>>, WireError> {
    let frame: peer::Frame = decode_message(frame)?;
    let mut inputs = Vec::with_capacity(frame.raft.len() + 1);
    if let Some(beat) = frame.beat {
        let leaders = beat.leaders.iter().map(|leader| (ShardId(leader.shard), Term(leader.term))).collect();
        let beat = Beat {
            incarnation: Incarnation(beat.incarnation),
            recovered: WalSequence(beat.recovered),
            synced: WalSequence(beat.synced),
            wall_ms: beat.wall_ms,
            settled: beat.settled,
            your_incarnation: Incarnation(beat.your_incarnation),
            you_lost_up_to: (beat.you_lost_up_to != 0).then_some(WalSequence(beat.you_lost_up_to)),
            leaders,
        };
        inputs.push(Input::Beat { from, beat });
    }
    for envelope in frame.raft {
        let (shard, message) = envelope_from_wire(envelope)?;
        inputs.push(Input::Raft { from, shard, message });
    }
    Ok(inputs)
}
