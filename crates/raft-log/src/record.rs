//! The keys and versioned values that the engine stores besides entries.
//!
//! Format: every value is a version byte and its content, which is a protobuf message unless stated
//! otherwise. Fields may be added; the version increases when an older binary would misread a value. Decoding
//! never panics.
//!
//! | region | key | value |
//! |---|---|---|
//! | replica | `s` | [`Replica`]: shard, hard state, bounds of the log |
//! | replica | `c` | [`Checkpoint`]; version 2 if its tables have manifests |
//! | node | `sequence` | the folder's nonce and the batch's sequence, 8 bytes each, big-endian; in every batch |
//! | node | `m` ‖ node id (8 bytes, big-endian) | the highest sequence seen of that node, 8 bytes, big-endian |
//! | node | `t` ‖ replica id (8 bytes, big-endian) | empty: the replica was destroyed |

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::ReplicaBounds;
use flotilla_types::{
    Checkpoint, ConfState, Epoch, HardState, KeyRange, LogIndex, NodeId, ObjectId, Position, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId, TableKind, TableRef, Tables, Term, WalSequence,
};
use prost::Message;

/// The region of the node's own records. No replica may have this id.
pub(crate) const NODE_REGION: u64 = u64::MAX;

pub(crate) const REPLICA_KEY: &[u8] = b"s";
pub(crate) const CHECKPOINT_KEY: &[u8] = b"c";
pub(crate) const SEQUENCE_KEY: &[u8] = b"sequence";
const PEER_SEQUENCE_PREFIX: u8 = b'm';
const TOMBSTONE_PREFIX: u8 = b't';

const VERSION: u8 = 1;
/// The version of checkpoints whose tables have manifests.
const VERSION_MANIFESTS: u8 = 2;
const SEQUENCE_BYTES: usize = 1 + 8 + 8;

/// Why bytes did not decode.
pub(crate) type Reason = &'static str;

#[derive(Clone, PartialEq, Message)]
struct ReplicaRecord {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    vote: u64,
    #[prost(uint64, tag = "4")]
    commit: u64,
    #[prost(uint64, tag = "5")]
    truncated_index: u64,
    #[prost(uint64, tag = "6")]
    truncated_term: u64,
    /// The last index. After a purge the engine may bring back entries after it.
    #[prost(uint64, tag = "7")]
    last: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CheckpointRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(message, required, tag = "3")]
    conf: ConfRecord,
    #[prost(message, required, tag = "4")]
    descriptor: DescriptorRecord,
    #[prost(bytes = "vec", optional, tag = "5")]
    system: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    base: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    runs: Vec<Vec<u8>>,
    /// In place of `base` and `runs` in version 2.
    #[prost(message, repeated, tag = "8")]
    tables: Vec<TableRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct TableRecord {
    #[prost(bool, tag = "1")]
    run: bool,
    #[prost(bytes = "bytes", tag = "2")]
    clip_start: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    clip_end: Bytes,
    #[prost(bytes = "vec", tag = "4")]
    manifest: Vec<u8>,
    /// Zero if its log did not order it: no entry has that index.
    #[prost(uint64, tag = "5")]
    fold: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ConfRecord {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct DescriptorRecord {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(bytes = "bytes", tag = "2")]
    start: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    end: Bytes,
    #[prost(uint64, tag = "4")]
    epoch_range: u64,
    #[prost(uint64, tag = "5")]
    epoch_config: u64,
    #[prost(message, repeated, tag = "6")]
    replicas: Vec<MemberRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct MemberRecord {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    learner: bool,
}

fn with_version(version: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(version);
    message.encode_raw(&mut bytes);
    bytes
}

fn strip_version(bytes: &[u8]) -> Result<&[u8], Reason> {
    match bytes.split_first() {
        Some((&VERSION, content)) => Ok(content),
        Some((version, _)) if *version > VERSION => Err("a newer version of this program wrote the record"),
        _ => Err("a record has no version"),
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Reason> {
    M::decode(strip_version(bytes)?).map_err(|_| "a record does not parse")
}

pub(crate) fn encode_replica(bounds: &ReplicaBounds) -> Vec<u8> {
    with_version(
        VERSION,
        &ReplicaRecord {
            shard: bounds.shard.0,
            term: bounds.hard_state.term.0,
            vote: bounds.hard_state.vote.0,
            commit: bounds.hard_state.commit.0,
            truncated_index: bounds.truncated.0.0,
            truncated_term: bounds.truncated.1.0,
            last: bounds.last.0,
        },
    )
}

pub(crate) fn decode_replica(bytes: &[u8]) -> Result<ReplicaBounds, Reason> {
    let record: ReplicaRecord = decode(bytes)?;
    if record.last < record.truncated_index {
        return Err("the log ends before it starts");
    }
    if record.last == u64::MAX {
        return Err("no entry can follow the end of the log");
    }
    Ok(ReplicaBounds {
        shard: ShardId(record.shard),
        hard_state: HardState {
            term: Term(record.term),
            vote: ReplicaId(record.vote),
            commit: LogIndex(record.commit),
        },
        truncated: (LogIndex(record.truncated_index), Term(record.truncated_term)),
        last: LogIndex(record.last),
    })
}

pub(crate) fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    let Position { index, term, conf, descriptor } = &checkpoint.position;
    let ids = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
    let objects = |objects: &[ObjectId]| objects.iter().map(|object| object.as_bytes().to_vec()).collect();
    let (version, base, runs, tables) = match &checkpoint.tables {
        Tables::Pieces { base, runs } => (VERSION, objects(base), objects(runs), Vec::new()),
        Tables::Manifests(tables) => {
            (VERSION_MANIFESTS, Vec::new(), Vec::new(), tables.iter().map(table_record).collect())
        }
    };
    with_version(
        version,
        &CheckpointRecord {
            index: index.0,
            term: term.0,
            conf: ConfRecord {
                voters: ids(&conf.voters),
                voters_outgoing: ids(&conf.voters_outgoing),
                learners: ids(&conf.learners),
                learners_next: ids(&conf.learners_next),
            },
            descriptor: DescriptorRecord {
                shard: descriptor.shard.0,
                start: descriptor.range.start.clone(),
                end: descriptor.range.end.clone(),
                epoch_range: descriptor.epoch.range,
                epoch_config: descriptor.epoch.config,
                replicas: descriptor.replicas.iter().map(member_record).collect(),
            },
            system: checkpoint.system.map(|object| object.as_bytes().to_vec()),
            base,
            runs,
            tables,
        },
    )
}

fn table_record(table: &TableRef) -> TableRecord {
    TableRecord {
        run: table.kind == TableKind::Run,
        clip_start: table.clip.start.clone(),
        clip_end: table.clip.end.clone(),
        manifest: table.manifest.as_bytes().to_vec(),
        fold: table.fold.map_or(0, |fold| fold.0),
    }
}

fn member_record(member: &ReplicaDescriptor) -> MemberRecord {
    let learner = match member.role {
        ReplicaRole::Voter => false,
        ReplicaRole::Learner => true,
    };
    MemberRecord { replica: member.replica.0, node: member.node.0, learner }
}

pub(crate) fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, Reason> {
    let (has_manifests, content) = match bytes.split_first() {
        Some((&VERSION_MANIFESTS, content)) => (true, content),
        _ => (false, strip_version(bytes)?),
    };
    let record = CheckpointRecord::decode(content).map_err(|_| "a record does not parse")?;
    let ids = |ids: Vec<u64>| ids.into_iter().map(ReplicaId).collect();
    let object = |bytes: &Vec<u8>| ObjectId::from_slice(bytes).ok_or("an object id is not 32 bytes long");
    let objects = |objects: &[Vec<u8>]| objects.iter().map(object).collect::<Result<Vec<_>, _>>();
    let table = |table: TableRecord| {
        Ok(TableRef {
            kind: if table.run { TableKind::Run } else { TableKind::Base },
            clip: KeyRange { start: table.clip_start, end: table.clip_end },
            manifest: object(&table.manifest)?,
            fold: (table.fold > 0).then_some(LogIndex(table.fold)),
        })
    };
    let tables = if has_manifests {
        Tables::Manifests(record.tables.into_iter().map(table).collect::<Result<_, Reason>>()?)
    } else {
        Tables::Pieces { base: objects(&record.base)?, runs: objects(&record.runs)? }
    };
    let DescriptorRecord { shard, start, end, epoch_range, epoch_config, replicas } = record.descriptor;
    Ok(Checkpoint {
        position: Position {
            index: LogIndex(record.index),
            term: Term(record.term),
            conf: Arc::new(ConfState {
                voters: ids(record.conf.voters),
                voters_outgoing: ids(record.conf.voters_outgoing),
                learners: ids(record.conf.learners),
                learners_next: ids(record.conf.learners_next),
            }),
            descriptor: Arc::new(ShardDescriptor {
                shard: ShardId(shard),
                range: KeyRange { start, end },
                epoch: Epoch { range: epoch_range, config: epoch_config },
                replicas: replicas.into_iter().map(member).collect(),
            }),
        },
        system: record.system.as_ref().map(object).transpose()?,
        tables,
    })
}

fn member(record: MemberRecord) -> ReplicaDescriptor {
    let role = if record.learner { ReplicaRole::Learner } else { ReplicaRole::Voter };
    ReplicaDescriptor { replica: ReplicaId(record.replica), node: NodeId(record.node), role }
}

pub(crate) fn encode_sequence(nonce: u64, sequence: WalSequence) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEQUENCE_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(&nonce.to_be_bytes());
    bytes.extend_from_slice(&sequence.0.to_be_bytes());
    bytes
}

pub(crate) fn decode_sequence(bytes: &[u8]) -> Result<WalSequence, Reason> {
    let (_nonce, sequence) = strip_version(bytes)?.split_at_checked(8).ok_or("the sequence is too short")?;
    number(sequence).map(WalSequence).ok_or("the sequence is too short")
}

/// The sequences of all batches of this folder found in raw bytes, even in damaged batches.
pub(crate) fn sequences_in(bytes: &[u8], nonce: u64) -> impl Iterator<Item = u64> + '_ {
    // The engine's layout of a pair: key, length of the value (one byte), value.
    let mut pattern = SEQUENCE_KEY.to_vec();
    pattern.push(SEQUENCE_BYTES as u8);
    pattern.push(VERSION);
    pattern.extend_from_slice(&nonce.to_be_bytes());
    (0..bytes.len()).filter_map(move |at| {
        let found = bytes[at..].strip_prefix(&pattern[..])?;
        found.first_chunk::<8>().map(|sequence| u64::from_be_bytes(*sequence))
    })
}

pub(crate) fn peer_sequence_key(node: NodeId) -> Vec<u8> {
    key(PEER_SEQUENCE_PREFIX, node.0)
}

pub(crate) fn encode_peer_sequence(sequence: WalSequence) -> Vec<u8> {
    key(VERSION, sequence.0)
}

pub(crate) fn tombstone_key(replica: ReplicaId) -> Vec<u8> {
    key(TOMBSTONE_PREFIX, replica.0)
}

pub(crate) fn encode_tombstone() -> Vec<u8> {
    vec![VERSION]
}

/// One pair of the node's region.
pub(crate) enum NodePair {
    /// The highest sequence seen of a peer.
    PeerSequence(NodeId, WalSequence),
    /// A destroyed replica.
    Tombstone(ReplicaId),
    /// The sequence of the last batch.
    Sequence(WalSequence),
}

pub(crate) fn decode_node_pair(key: &[u8], value: &[u8]) -> Result<NodePair, Reason> {
    if key == SEQUENCE_KEY {
        return decode_sequence(value).map(NodePair::Sequence);
    }
    let (prefix, id) = key.split_first().ok_or("a key of the node is empty")?;
    let id = number(id).ok_or("a key of the node has a wrong length")?;
    let value = strip_version(value)?;
    match *prefix {
        PEER_SEQUENCE_PREFIX => {
            let sequence = number(value).ok_or("a peer's sequence has a wrong length")?;
            Ok(NodePair::PeerSequence(NodeId(id), WalSequence(sequence)))
        }
        TOMBSTONE_PREFIX => Ok(NodePair::Tombstone(ReplicaId(id))),
        _ => Err("a key of the node is unknown"),
    }
}

fn key(prefix: u8, id: u64) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_records_are_refused() {
        assert!(decode_replica(&[VERSION + 1]).unwrap_err().contains("newer"));
        assert!(decode_checkpoint(&[]).is_err());
    }

    #[test]
    fn sequences_are_found_in_raw_bytes_of_this_folder_only() {
        let mut bytes = Vec::new();
        for (nonce, sequence) in [(7, 1), (8, 2), (7, 3), (7, 3)] {
            bytes.extend_from_slice(b"..sequence\x11");
            bytes.extend(encode_sequence(nonce, WalSequence(sequence)));
        }
        assert_eq!(Vec::from_iter(sequences_in(&bytes, 7)), [1, 3, 3]);
        assert_eq!(Vec::from_iter(sequences_in(&bytes[..bytes.len() - 1], 7)), [1, 3], "one is truncated");
    }
}
