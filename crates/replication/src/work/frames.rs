//! Raft messages and beats to frames and back: many messages to a node share one frame.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_transport::Class;
use flotilla_types::{Incarnation, Message, MessageKind, NodeId, ReplicaId, ShardId, Term, WalSequence};
use flotilla_wire::{FRAME_ENVELOPES_MAX, WireError, decode_frame, encode, envelope_from_wire, envelope_to_wire, peer};

use crate::{Beat, Input, Outgoing};

/// Entry bytes in one frame; a single larger message travels alone. Well below the transport's own bound.
const FRAME_BYTES_MAX: usize = 2 << 20;

/// One frame on its way to a node.
#[derive(Debug)]
pub struct Packed {
    /// To whom.
    pub node: NodeId,
    /// On which stream.
    pub class: Class,
    /// The frame.
    pub frame: Bytes,
    endpoints: Vec<(ReplicaId, ReplicaId)>,
    snapshots: Vec<(ReplicaId, ReplicaId)>,
}

impl Packed {
    /// What the core must hear when the network does not take the frame.
    pub fn refused<T>(self) -> impl Iterator<Item = Input<T>> {
        let unreachable = Input::Unreachable { node: self.node, replicas: self.endpoints };
        let snapshots = self.snapshots.into_iter();
        let unsent = snapshots.map(|(replica, to)| Input::SnapshotSent { replica, to, sent: false });
        std::iter::once(unreachable).chain(unsent)
    }
}

/// Packs messages, in order per node and class.
#[must_use]
pub fn pack(messages: Vec<Outgoing>) -> Vec<Packed> {
    let mut packed = Vec::new();
    let mut frames: BTreeMap<(NodeId, bool), Pending> = BTreeMap::new();
    for Outgoing { node, shard, message } in messages {
        let bulk = is_bulk(&message);
        let bytes: usize = message.entries.iter().map(flotilla_types::Entry::size_bytes).sum();
        let pending = frames.entry((node, bulk)).or_default();
        let full = pending.envelopes.len() == FRAME_ENVELOPES_MAX || pending.bytes + bytes > FRAME_BYTES_MAX;
        if full && !pending.envelopes.is_empty() {
            packed.push(std::mem::take(pending).close(node, bulk));
        }
        pending.bytes += bytes;
        pending.endpoints.push((message.from, message.to));
        if message.snapshot.is_some() {
            pending.snapshots.push((message.from, message.to));
        }
        pending.envelopes.push(envelope_to_wire(shard, message));
    }
    packed.extend(frames.into_iter().map(|((node, bulk), pending)| pending.close(node, bulk)));
    packed
}

fn is_bulk(message: &Message) -> bool {
    matches!(message.kind, MessageKind::Append | MessageKind::Snapshot)
}

/// A beat as an urgent frame.
#[must_use]
pub fn pack_beat(beat: &Beat) -> Bytes {
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
    encode(&peer::Frame { raft: Vec::new(), beat: Some(beat) })
}

#[derive(Default)]
struct Pending {
    envelopes: Vec<peer::Envelope>,
    endpoints: Vec<(ReplicaId, ReplicaId)>,
    snapshots: Vec<(ReplicaId, ReplicaId)>,
    bytes: usize,
}

impl Pending {
    fn close(self, node: NodeId, bulk: bool) -> Packed {
        Packed {
            node,
            class: if bulk { Class::Bulk } else { Class::Urgent },
            frame: encode(&peer::Frame { raft: self.envelopes, beat: None }),
            endpoints: self.endpoints,
            snapshots: self.snapshots,
        }
    }
}

/// What a frame from a peer says.
pub fn unpack<T>(from: NodeId, frame: Bytes) -> Result<Vec<Input<T>>, WireError> {
    let frame = decode_frame(frame)?;
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
