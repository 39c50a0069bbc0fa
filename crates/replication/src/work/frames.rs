//! Encodes Raft messages and node heartbeats as frames, and decodes them: many messages to a node share one
//! frame.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_transport::Class;
use flotilla_types::{Incarnation, Message, MessageKind, NodeId, ReplicaId, ShardId, Term, VersionRange, WalSequence};
use flotilla_wire::{FRAME_ENVELOPES_MAX, WireError, decode_frame, encode, envelope_from_wire, envelope_to_wire, peer};

use crate::{Input, NodeHeartbeat, Outgoing};

/// Bytes of entries and of lists of objects in one frame; a single larger message gets its own. Well below
/// the transport's bound.
const FRAME_BYTES_MAX: usize = 2 << 20;
/// An object's id in a list, with its field and length.
const OBJECT_ID_BYTES: usize = 34;

/// One frame for a node.
#[derive(Debug)]
pub struct PackedFrame {
    /// The receiving node.
    pub node: NodeId,
    /// The stream to send it on.
    pub class: Class,
    /// The encoded frame.
    pub frame: Bytes,
    endpoints: Vec<(ReplicaId, ReplicaId)>,
    snapshots: Vec<(ReplicaId, ReplicaId)>,
}

impl PackedFrame {
    /// The inputs that tell the core that the network did not take the frame.
    pub fn into_failures<T>(self) -> impl Iterator<Item = Input<T>> {
        let unreachable = Input::Unreachable { node: self.node, replicas: self.endpoints };
        let snapshots = self.snapshots.into_iter();
        let unsent = snapshots.map(|(replica, to)| Input::SnapshotSent { replica, to, sent: false });
        std::iter::once(unreachable).chain(unsent)
    }
}

/// Packs messages, in order per node and class.
#[must_use]
pub fn pack(messages: Vec<Outgoing>) -> Vec<PackedFrame> {
    let mut packed = Vec::new();
    let mut frames: BTreeMap<(NodeId, bool), Pending> = BTreeMap::new();
    for Outgoing { node, shard, message, synced } in messages {
        let bulk = is_bulk(&message);
        let entries: usize = message.entries.iter().map(flotilla_types::Entry::size_bytes).sum();
        let objects = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.checkpoint.objects().count());
        let bytes = entries + objects * OBJECT_ID_BYTES;
        let pending = frames.entry((node, bulk)).or_default();
        let full = pending.envelopes.len() == FRAME_ENVELOPES_MAX || pending.bytes + bytes > FRAME_BYTES_MAX;
        if full && !pending.envelopes.is_empty() {
            packed.push(std::mem::take(pending).close(node, bulk));
        }
        pending.bytes += bytes;
        pending.synced = pending.synced.max(synced);
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

/// Encodes a node heartbeat as an urgent frame.
#[must_use]
pub fn pack_node_heartbeat(heartbeat: &NodeHeartbeat) -> Bytes {
    let leaders =
        heartbeat.leaders.iter().map(|(shard, term)| peer::Leader { shard: shard.0, term: term.0, node: 0 }).collect();
    let heartbeat = peer::NodeHeartbeat {
        incarnation: heartbeat.incarnation.0,
        recovered: heartbeat.recovered.0,
        synced: heartbeat.synced.0,
        wall_ms: heartbeat.wall_ms,
        your_incarnation: heartbeat.your_incarnation.0,
        you_lost_up_to: heartbeat.you_lost_up_to.map_or(0, |sequence| sequence.0),
        leaders,
        recovery_complete: heartbeat.recovery_complete,
        version_min: heartbeat.versions.min.0,
        version_max: heartbeat.versions.max.0,
        not_led: heartbeat.not_led.iter().map(|shard| shard.0).collect(),
    };
    encode(&peer::Frame { raft: Vec::new(), heartbeat: Some(heartbeat), synced: 0 })
}

#[derive(Default)]
struct Pending {
    envelopes: Vec<peer::Envelope>,
    endpoints: Vec<(ReplicaId, ReplicaId)>,
    snapshots: Vec<(ReplicaId, ReplicaId)>,
    bytes: usize,
    synced: WalSequence,
}

impl Pending {
    fn close(self, node: NodeId, bulk: bool) -> PackedFrame {
        PackedFrame {
            node,
            class: if bulk { Class::Bulk } else { Class::Urgent },
            frame: encode(&peer::Frame { raft: self.envelopes, heartbeat: None, synced: self.synced.0 }),
            endpoints: self.endpoints,
            snapshots: self.snapshots,
        }
    }
}

/// Decodes a peer's frame into inputs for the core.
pub fn unpack<T>(from: NodeId, frame: Bytes) -> Result<Vec<Input<T>>, WireError> {
    let frame = decode_frame(frame)?;
    let mut inputs = Vec::with_capacity(frame.raft.len() + 2);
    if let Some(heartbeat) = frame.heartbeat {
        let leaders = heartbeat.leaders.iter().map(|leader| (ShardId(leader.shard), Term(leader.term))).collect();
        let heartbeat = NodeHeartbeat {
            incarnation: Incarnation(heartbeat.incarnation),
            recovered: WalSequence(heartbeat.recovered),
            synced: WalSequence(heartbeat.synced),
            wall_ms: heartbeat.wall_ms,
            recovery_complete: heartbeat.recovery_complete,
            your_incarnation: Incarnation(heartbeat.your_incarnation),
            you_lost_up_to: (heartbeat.you_lost_up_to != 0).then_some(WalSequence(heartbeat.you_lost_up_to)),
            leaders,
            not_led: heartbeat.not_led.into_iter().map(ShardId).collect(),
            versions: VersionRange::announced(heartbeat.version_min, heartbeat.version_max),
        };
        inputs.push(Input::NodeHeartbeat { from, heartbeat });
    }
    if frame.synced != 0 {
        inputs.push(Input::PeerSynced { from, sequence: WalSequence(frame.synced) });
    }
    for envelope in frame.raft {
        let (shard, message) = envelope_from_wire(envelope)?;
        inputs.push(Input::Raft { from, shard, message });
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_types::{
        Checkpoint, Epoch, KeyRange, LogIndex, ObjectId, Position, ShardDescriptor, Snapshot, Tables,
    };

    use super::*;

    fn snapshot(to: u64, objects: u32) -> Outgoing {
        let descriptor = ShardDescriptor {
            shard: ShardId(to),
            range: KeyRange::all(),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let position =
            Position { index: LogIndex(9), term: Term(1), conf: Arc::default(), descriptor: Arc::new(descriptor) };
        let base = (0..objects).map(|n| ObjectId::of(&n.to_be_bytes())).collect();
        let checkpoint = Checkpoint { position, system: None, tables: Tables::Pieces { base, runs: Vec::new() } };
        let message = Message {
            kind: MessageKind::Snapshot,
            from: ReplicaId(1),
            to: ReplicaId(to),
            term: Term(1),
            log_term: Term(0),
            index: LogIndex(0),
            entries: Vec::new(),
            commit: LogIndex(0),
            commit_term: Term(0),
            snapshot: Some(Snapshot { checkpoint }),
            reject: false,
            reject_hint: LogIndex(0),
            context: Bytes::new(),
            priority: 0,
        };
        Outgoing { node: NodeId(2), shard: ShardId(to), message, synced: WalSequence(0) }
    }

    #[test]
    fn several_snapshots_of_one_flush_do_not_exceed_the_bound_of_a_frame() {
        let bytes_max = flotilla_transport::Config::new(([127, 0, 0, 1], 0).into()).frame_bytes_max;
        // Together 30 MiB; the last ones share a frame.
        let sizes = [200_000, 200_000, 200_000, 200_000, 100_000, 10_000, 10_000, 10];
        let frames = pack((1..).zip(sizes).map(|(to, objects)| snapshot(to, objects)).collect());
        assert!(frames.len() < sizes.len());
        for packed in &frames {
            assert!(packed.frame.len() <= bytes_max, "{} of {bytes_max} bytes", packed.frame.len());
        }
        let received: usize =
            frames.into_iter().map(|packed| unpack::<()>(NodeId(1), packed.frame).unwrap().len()).sum();
        assert_eq!(received, sizes.len());
    }
}
