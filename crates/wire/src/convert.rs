//! Conversions between wire messages and domain types. Decoding shares the frame's buffer and copies no
//! payload.

use std::{iter, sync::Arc};

use bytes::{Buf as _, Bytes};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, KeyRange, LogIndex, Message, MessageKind, NodeId, ObjectId,
    Position, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Snapshot, TableKind, TableRef,
    Tables, Term,
};

use crate::peer;

/// A frame is invalid. Nothing was changed; the connection may be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not protobuf, or not this message.
    #[error("the frame does not parse")]
    Malformed(#[from] prost::DecodeError),
    /// A required field is missing.
    #[error("the frame lacks `{0}`")]
    Missing(&'static str),
    /// A field has a value outside its range.
    #[error("the frame's `{0}` is out of range")]
    OutOfRange(&'static str),
}

/// Decodes a message; its payload fields share `bytes`.
pub fn decode<M: prost::Message + Default>(bytes: Bytes) -> Result<M, WireError> {
    Ok(M::decode(bytes)?)
}

/// Encodes a message.
pub fn encode<M: prost::Message>(message: &M) -> Bytes {
    message.encode_to_vec().into()
}

const KINDS: [MessageKind; 13] = [
    MessageKind::Append,
    MessageKind::AppendResponse,
    MessageKind::RequestVote,
    MessageKind::RequestVoteResponse,
    MessageKind::RequestPreVote,
    MessageKind::RequestPreVoteResponse,
    MessageKind::Heartbeat,
    MessageKind::HeartbeatResponse,
    MessageKind::Snapshot,
    MessageKind::TimeoutNow,
    MessageKind::ReadIndex,
    MessageKind::ReadIndexResponse,
    MessageKind::Rest,
];

/// Converts a Raft message of one shard to its wire form.
#[must_use]
pub fn envelope_to_wire(shard: ShardId, message: Message) -> peer::Envelope {
    let kind = KINDS.iter().position(|kind| *kind == message.kind).unwrap_or_default() as u32;
    peer::Envelope {
        shard: shard.0,
        kind,
        from: message.from.0,
        to: message.to.0,
        term: message.term.0,
        log_term: message.log_term.0,
        index: message.index.0,
        entries: message.entries.into_iter().map(entry_to_wire).collect(),
        commit: message.commit.0,
        commit_term: message.commit_term.0,
        snapshot: message.snapshot.map(|snapshot| checkpoint_to_wire(&snapshot.checkpoint)),
        reject: message.reject,
        reject_hint: message.reject_hint.0,
        context: message.context,
        priority: message.priority,
    }
}

/// Converts a Raft message from its wire form, and checks it.
pub fn envelope_from_wire(envelope: peer::Envelope) -> Result<(ShardId, Message), WireError> {
    let kind = *KINDS.get(envelope.kind as usize).ok_or(WireError::OutOfRange("kind"))?;
    if envelope.from == 0 || envelope.to == 0 {
        return Err(WireError::Missing("replica id"));
    }
    let entries = entries_from_wire(envelope.entries, envelope.index)?;
    let snapshot = match envelope.snapshot {
        Some(checkpoint) => Some(Snapshot { checkpoint: checkpoint_from_wire(checkpoint)? }),
        None if kind == MessageKind::Snapshot => return Err(WireError::Missing("snapshot")),
        None => None,
    };
    let message = Message {
        kind,
        from: ReplicaId(envelope.from),
        to: ReplicaId(envelope.to),
        term: Term(envelope.term),
        log_term: Term(envelope.log_term),
        index: LogIndex(envelope.index),
        entries,
        commit: LogIndex(envelope.commit),
        commit_term: Term(envelope.commit_term),
        snapshot,
        reject: envelope.reject,
        reject_hint: LogIndex(envelope.reject_hint),
        context: envelope.context,
        priority: envelope.priority,
    };
    Ok((ShardId(envelope.shard), message))
}

fn entry_to_wire(entry: Entry) -> peer::Entry {
    peer::Entry {
        index: entry.index.0,
        term: entry.term.0,
        conf_change: entry.kind == EntryKind::ConfChange,
        data: entry.data,
        context: entry.context,
    }
}

/// Converts entries, which must follow index `after` without a gap.
fn entries_from_wire(entries: Vec<peer::Entry>, after: u64) -> Result<Vec<Entry>, WireError> {
    let mut next = after.wrapping_add(1);
    let mut converted = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.index != next {
            return Err(WireError::OutOfRange("entry index"));
        }
        if entry.term == 0 {
            return Err(WireError::OutOfRange("entry term"));
        }
        next = next.wrapping_add(1);
        let kind = match entry.conf_change {
            true => EntryKind::ConfChange,
            false => EntryKind::of_normal(&entry.data, &entry.context),
        };
        converted.push(Entry {
            index: LogIndex(entry.index),
            term: Term(entry.term),
            kind,
            data: entry.data,
            context: entry.context,
        });
    }
    Ok(converted)
}

/// The number of the format of [`Tables::Manifests`].
const FORMAT_MANIFESTS: u32 = 2;
const TABLE_BASE: u8 = 0;
const TABLE_RUN: u8 = 1;

/// Converts a checkpoint to its wire form.
#[must_use]
pub fn checkpoint_to_wire(checkpoint: &Checkpoint) -> peer::Checkpoint {
    let id_bytes = |id: &ObjectId| Bytes::copy_from_slice(id.as_bytes());
    let ids = |objects: &[ObjectId]| objects.iter().map(id_bytes).collect();
    let (base, runs, format, tables, folds) = match &checkpoint.tables {
        Tables::Pieces { base, runs } => (ids(base), ids(runs), 0, Vec::new(), Vec::new()),
        Tables::Manifests(tables) => {
            let mut folds: Vec<_> = tables.iter().map(|table| table.fold.map_or(0, |fold| fold.0)).collect();
            if folds.iter().all(|fold| *fold == 0) {
                folds = Vec::new();
            }
            (Vec::new(), Vec::new(), FORMAT_MANIFESTS, tables.iter().map(table_to_wire).collect(), folds)
        }
    };
    peer::Checkpoint {
        index: checkpoint.position.index.0,
        term: checkpoint.position.term.0,
        conf: Some(conf_to_wire(&checkpoint.position.conf)),
        descriptor: Some(descriptor_to_wire(&checkpoint.position.descriptor)),
        system: checkpoint.system.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(id.as_bytes())),
        base,
        runs,
        format,
        tables,
        folds,
    }
}

/// Converts a checkpoint from its wire form.
pub fn checkpoint_from_wire(checkpoint: peer::Checkpoint) -> Result<Checkpoint, WireError> {
    let id = |bytes: &Bytes| ObjectId::from_slice(bytes).ok_or(WireError::OutOfRange("object id"));
    let ids = |objects: &[Bytes]| objects.iter().map(id).collect::<Result<_, _>>();
    let tables = match checkpoint.format {
        0 => Tables::Pieces { base: ids(&checkpoint.base)?, runs: ids(&checkpoint.runs)? },
        FORMAT_MANIFESTS => {
            let folds = checkpoint.folds.into_iter().chain(iter::repeat(0));
            let tables = checkpoint.tables.into_iter().zip(folds);
            Tables::Manifests(tables.map(|(table, fold)| table_from_wire(table, fold)).collect::<Result<_, _>>()?)
        }
        _ => return Err(WireError::OutOfRange("checkpoint format")),
    };
    Ok(Checkpoint {
        position: Position {
            index: LogIndex(checkpoint.index),
            term: Term(checkpoint.term),
            conf: Arc::new(conf_from_wire(checkpoint.conf.ok_or(WireError::Missing("conf"))?)),
            descriptor: Arc::new(descriptor_from_wire(checkpoint.descriptor.ok_or(WireError::Missing("descriptor"))?)),
        },
        system: if checkpoint.system.is_empty() { None } else { Some(id(&checkpoint.system)?) },
        tables,
    })
}

fn table_to_wire(table: &TableRef) -> Bytes {
    let KeyRange { start, end } = &table.clip;
    let kind = match table.kind {
        TableKind::Base => TABLE_BASE,
        TableKind::Run => TABLE_RUN,
    };
    let start_bytes = (start.len() as u32).to_le_bytes();
    [&[kind], &table.manifest.as_bytes()[..], &start_bytes, start, end].concat().into()
}

fn table_from_wire(mut table: Bytes, fold: u64) -> Result<TableRef, WireError> {
    const OUT_OF_RANGE: WireError = WireError::OutOfRange("table");
    let kind = match table.try_get_u8() {
        Ok(TABLE_BASE) => TableKind::Base,
        Ok(TABLE_RUN) => TableKind::Run,
        _ => return Err(OUT_OF_RANGE),
    };
    let mut manifest = [0; 32];
    table.try_copy_to_slice(&mut manifest).map_err(|_| OUT_OF_RANGE)?;
    let start_bytes = table.try_get_u32_le().map_err(|_| OUT_OF_RANGE)? as usize;
    if start_bytes > table.len() {
        return Err(OUT_OF_RANGE);
    }
    let start = table.split_to(start_bytes);
    let fold = (fold > 0).then_some(LogIndex(fold));
    Ok(TableRef { kind, clip: KeyRange { start, end: table }, manifest: ObjectId(manifest), fold })
}

fn conf_to_wire(conf: &ConfState) -> peer::ConfState {
    let ids = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
    peer::ConfState {
        voters: ids(&conf.voters),
        voters_outgoing: ids(&conf.voters_outgoing),
        learners: ids(&conf.learners),
        learners_next: ids(&conf.learners_next),
    }
}

fn conf_from_wire(conf: peer::ConfState) -> ConfState {
    let ids = |replicas: Vec<u64>| replicas.into_iter().map(ReplicaId).collect();
    ConfState {
        voters: ids(conf.voters),
        voters_outgoing: ids(conf.voters_outgoing),
        learners: ids(conf.learners),
        learners_next: ids(conf.learners_next),
    }
}

/// Converts a descriptor to its wire form.
#[must_use]
pub fn descriptor_to_wire(descriptor: &ShardDescriptor) -> peer::Descriptor {
    peer::Descriptor {
        shard: descriptor.shard.0,
        range_start: descriptor.range.start.clone(),
        range_end: descriptor.range.end.clone(),
        epoch_range: descriptor.epoch.range,
        epoch_config: descriptor.epoch.config,
        replicas: descriptor
            .replicas
            .iter()
            .map(|replica| peer::Replica {
                replica: replica.replica.0,
                node: replica.node.0,
                learner: replica.role == ReplicaRole::Learner,
            })
            .collect(),
    }
}

/// Converts a descriptor from its wire form.
#[must_use]
pub fn descriptor_from_wire(descriptor: peer::Descriptor) -> ShardDescriptor {
    ShardDescriptor {
        shard: ShardId(descriptor.shard),
        range: KeyRange { start: descriptor.range_start, end: descriptor.range_end },
        epoch: Epoch { range: descriptor.epoch_range, config: descriptor.epoch_config },
        replicas: descriptor
            .replicas
            .into_iter()
            .map(|replica| ReplicaDescriptor {
                replica: ReplicaId(replica.replica),
                node: NodeId(replica.node),
                role: if replica.learner { ReplicaRole::Learner } else { ReplicaRole::Voter },
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(entries: Vec<Entry>) -> Message {
        Message {
            kind: MessageKind::Append,
            from: ReplicaId(1),
            to: ReplicaId(2),
            term: Term(3),
            log_term: Term(2),
            index: LogIndex(7),
            entries,
            commit: LogIndex(6),
            commit_term: Term(2),
            snapshot: None,
            reject: false,
            reject_hint: LogIndex(0),
            context: Bytes::from_static(b"c"),
            priority: -1,
        }
    }

    fn entry(index: u64) -> Entry {
        let data = Bytes::from_static(b"payload");
        Entry { index: LogIndex(index), term: Term(3), kind: EntryKind::ConfChange, data, context: Bytes::new() }
    }

    #[test]
    fn messages_round_trip() {
        let shard_change = Entry {
            kind: EntryKind::Shard,
            data: Bytes::from_static(Entry::SHARD_DATA),
            context: Bytes::from_static(b"change"),
            ..entry(9)
        };
        let mut message = append(vec![entry(8), shard_change, Entry { kind: EntryKind::Normal, ..entry(10) }]);
        message.snapshot = Some(Snapshot {
            checkpoint: Checkpoint {
                position: Position {
                    index: LogIndex(5),
                    term: Term(2),
                    conf: Arc::new(ConfState { learners: vec![ReplicaId(9)], ..ConfState::of_voters([ReplicaId(1)]) }),
                    descriptor: Arc::new(ShardDescriptor {
                        shard: ShardId(4),
                        range: KeyRange::of_prefix(b"k"),
                        epoch: Epoch { range: 1, config: 2 },
                        replicas: vec![],
                    }),
                },
                system: Some(ObjectId::of(b"s")),
                tables: Tables::Pieces { base: vec![ObjectId::of(b"b")], runs: vec![] },
            },
        });
        let bytes = encode(&envelope_to_wire(ShardId(4), message.clone()));
        assert_eq!(envelope_from_wire(decode(bytes).unwrap()), Ok((ShardId(4), message)));
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let envelope = envelope_to_wire(ShardId(4), append(vec![entry(8), entry(10)]));
        assert_eq!(envelope_from_wire(envelope), Err(WireError::OutOfRange("entry index")));
    }
}
