//! Hostile frames: mutated messages of every kind must decode to an error or a message, within bounded
//! memory.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_hostile::{Proportion, at_every_cut, attack, extreme_u64, mutated};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, KeyRange, LogIndex, Message, MessageKind, NodeId, ObjectId,
    Position, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Snapshot, TableKind, TableRef,
    Tables, Term,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    WireError, checkpoint_from_wire, checkpoint_to_wire, decode, decode_frame, encode, envelope_from_wire,
    envelope_to_wire, peer,
};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..24).prop_map(Bytes::from)
}

fn replicas() -> impl Strategy<Value = Vec<ReplicaId>> {
    vec(extreme_u64().prop_map(ReplicaId), 0..4)
}

fn descriptor() -> impl Strategy<Value = ShardDescriptor> {
    let replica = (extreme_u64(), extreme_u64(), any::<bool>()).prop_map(|(replica, node, learner)| {
        let role = if learner { ReplicaRole::Learner } else { ReplicaRole::Voter };
        ReplicaDescriptor { replica: ReplicaId(replica), node: NodeId(node), role }
    });
    (extreme_u64(), bytes(), bytes(), extreme_u64(), extreme_u64(), vec(replica, 0..4)).prop_map(
        |(shard, start, end, range, config, replicas)| ShardDescriptor {
            shard: ShardId(shard),
            range: KeyRange { start, end },
            epoch: Epoch { range, config },
            replicas,
        },
    )
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let conf = (replicas(), replicas(), replicas(), replicas()).prop_map(
        |(voters, voters_outgoing, learners, learners_next)| ConfState {
            voters,
            voters_outgoing,
            learners,
            learners_next,
        },
    );
    let object = || any::<u8>().prop_map(|byte| ObjectId::of(&[byte]));
    let pieces = (vec(object(), 0..4), vec(object(), 0..4)).prop_map(|(base, runs)| Tables::Pieces { base, runs });
    let fold = option::of((1..=u64::MAX).prop_map(LogIndex));
    let table = (select(&[TableKind::Base, TableKind::Run][..]), bytes(), bytes(), object(), fold).prop_map(
        |(kind, start, end, manifest, fold)| TableRef { kind, clip: KeyRange { start, end }, manifest, fold },
    );
    let tables = prop_oneof![pieces, vec(table, 0..4).prop_map(Tables::Manifests)];
    (extreme_u64(), extreme_u64(), conf, descriptor(), option::of(object()), tables).prop_map(
        |(index, term, conf, descriptor, system, tables)| Checkpoint {
            position: Position {
                index: LogIndex(index),
                term: Term(term),
                conf: Arc::new(conf),
                descriptor: Arc::new(descriptor),
            },
            system,
            tables,
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    use MessageKind::{Append, AppendResponse, Heartbeat, ReadIndex, RequestVote, Snapshot as SnapshotKind};
    let kinds = select(&[Append, AppendResponse, Heartbeat, ReadIndex, RequestVote, SnapshotKind][..]);
    let ends = (1..9_u64, 1..9_u64, extreme_u64(), extreme_u64(), extreme_u64(), extreme_u64());
    let entries = vec((1..9_u64, any::<bool>(), bytes(), bytes()), 0..4);
    let rest = (extreme_u64(), any::<bool>(), extreme_u64(), bytes(), any::<i64>());
    (kinds, ends, entries, checkpoint(), rest).prop_map(|(kind, ends, entries, checkpoint, rest)| {
        let (from, to, term, log_term, index, commit) = ends;
        // Entry indexes must not wrap around: no log has an entry 0.
        let index = index.min(u64::MAX - 10);
        let (commit_term, reject, reject_hint, context, priority) = rest;
        let entry = |(at, (term, change, data, context)): (u64, (u64, bool, Bytes, Bytes))| Entry {
            index: LogIndex(index + at),
            term: Term(term),
            kind: if change { EntryKind::ConfChange } else { EntryKind::of_normal(&data, &context) },
            data,
            context,
        };
        Message {
            kind,
            from: ReplicaId(from),
            to: ReplicaId(to),
            term: Term(term),
            log_term: Term(log_term),
            index: LogIndex(index),
            entries: (1..).zip(entries).map(entry).collect(),
            commit: LogIndex(commit),
            commit_term: Term(commit_term),
            snapshot: (kind == SnapshotKind).then_some(Snapshot { checkpoint }),
            reject,
            reject_hint: LogIndex(reject_hint),
            context,
            priority,
        }
    })
}

fn frame() -> impl Strategy<Value = Bytes> {
    let leader = (extreme_u64(), extreme_u64(), 0..9_u64);
    let leader = leader.prop_map(|(shard, term, node)| peer::Leader { shard, term, node });
    let heartbeat = (extreme_u64(), extreme_u64(), any::<bool>(), vec(leader, 0..4)).prop_map(
        |(synced, wall_ms, recovery_complete, leaders)| peer::NodeHeartbeat {
            synced,
            wall_ms,
            recovery_complete,
            leaders,
            ..Default::default()
        },
    );
    (vec((extreme_u64(), message()), 0..4), option::of(heartbeat), extreme_u64()).prop_map(
        |(messages, heartbeat, synced)| {
            let raft = messages.into_iter().map(|(shard, message)| envelope_to_wire(ShardId(shard), message)).collect();
            encode(&peer::Frame { raft, heartbeat, synced })
        },
    )
}

/// A flood of empty parts, which cost the sender two bytes each, at nesting depths from one to three.
fn flood() -> impl Strategy<Value = Vec<u8>> {
    (vec(1..12_u8, 1..4), 0..4_096_usize).prop_map(|(fields, times)| {
        let mut fields = fields.into_iter().rev().map(|field| field << 3 | 2);
        let mut bytes = [fields.next().unwrap_or_default(), 0].repeat(times);
        for tag in fields {
            let mut part = vec![tag];
            prost::encoding::encode_varint(bytes.len() as u64, &mut part);
            part.extend(bytes);
            bytes = part;
        }
        bytes
    })
}

/// Decodes a frame as a host does.
fn read(frame: Bytes) -> Result<Vec<(ShardId, Message)>, WireError> {
    decode_frame(frame)?.raft.into_iter().map(envelope_from_wire).collect()
}

#[test]
fn extreme_messages_round_trip() {
    attack(128, (extreme_u64(), message()), |(shard, message)| {
        let raft = vec![envelope_to_wire(ShardId(shard), message.clone())];
        let frame = encode(&peer::Frame { raft, heartbeat: None, synced: 0 });
        assert_eq!(read(frame.clone()), Ok(vec![(ShardId(shard), message.clone())]));
        // A truncated frame gives an error or no messages, never other messages.
        at_every_cut(&frame, |cut| {
            assert!(read(Bytes::copy_from_slice(cut)).map_or(true, |read| read.is_empty()));
        });
    });
}

#[test]
fn hostile_frames_decode_within_proportional_memory() {
    attack(1_000, prop_oneof![4 => mutated(frame()), 1 => flood()], |bytes| {
        let bytes = Bytes::from(bytes);
        let _ = Proportion::DEFAULT.of(bytes.len(), || read(bytes));
    });
}

#[test]
fn hostile_checkpoints_decode_within_proportional_memory() {
    let valid = checkpoint().prop_map(|checkpoint| encode(&checkpoint_to_wire(&checkpoint)));
    attack(500, mutated(valid), |bytes| {
        let bytes = Bytes::from(bytes);
        let read = Proportion::DEFAULT.of(bytes.len(), || decode(bytes).and_then(checkpoint_from_wire));
        if let Ok(checkpoint) = read {
            assert_eq!(checkpoint_from_wire(checkpoint_to_wire(&checkpoint)), Ok(checkpoint));
        }
    });
}

#[test]
fn hostile_requests_and_responses_decode_within_proportional_memory() {
    use peer::{join_response, request, response};
    let valid = (0..7_u8, bytes(), extreme_u64(), vec(bytes(), 0..5), "[a-z0-9.:]{0,20}").prop_map(
        |(kind, payload, number, many, text)| match kind {
            0 => {
                let propose = peer::Propose { shard: number, command: payload, ..Default::default() };
                encode(&peer::Request { kind: Some(request::Kind::Propose(propose)) })
            }
            1 => {
                let feed = peer::Feed { version: number, wait_ms: 1 };
                encode(&peer::Request { kind: Some(request::Kind::Feed(feed)) })
            }
            2 => {
                let descriptor = peer::Descriptor { shard: number, range_start: payload, ..Default::default() };
                let now = vec![encode(&descriptor); 2];
                let failure = peer::Failure { code: 3, leader: number, now };
                encode(&peer::Response { kind: Some(response::Kind::Failure(failure)), clock: number })
            }
            3 => encode(&peer::ObjectsRequest { need: many.clone(), replica: 7, ask: many, reads_packed: true }),
            4 => {
                let (packed, packed_lengths) = (payload.clone(), vec![7; 3]);
                let (missing, retry_ms) = (3, 1);
                let held = payload;
                encode(&peer::ObjectsResponse { objects: many, missing, held, retry_ms, packed, packed_lengths })
            }
            5 => encode(&peer::JoinRequest { token: text.clone(), csr: payload, name: text, ..Default::default() }),
            _ => {
                let peers = vec![peer::Peer { node: number, quic: text }; 3];
                let joined = peer::Joined { node: number, cluster: payload, peers, ..Default::default() };
                encode(&peer::JoinResponse { kind: Some(join_response::Kind::Joined(joined)) })
            }
        },
    );
    attack(1_000, prop_oneof![4 => mutated(valid), 1 => flood()], |bytes| {
        let bytes = Bytes::from(bytes);
        Proportion::DEFAULT.of(bytes.len(), || {
            let _ = decode::<peer::Request>(bytes.clone());
            let _ = decode::<peer::Response>(bytes.clone());
            let _ = decode::<peer::ObjectsRequest>(bytes.clone());
            let _ = decode::<peer::ObjectsResponse>(bytes.clone());
            let _ = decode::<peer::JoinRequest>(bytes.clone());
            let _ = decode::<peer::JoinResponse>(bytes.clone());
        });
    });
}
