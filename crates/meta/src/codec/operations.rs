//! The encoding of operations.

use bytes::Bytes;
use flotilla_placement::PlanReplica;
use flotilla_storage::VersionNeed;
use flotilla_types::ClusterVersion;

use super::{CodecError, decode_versioned, encode_at, number};
use crate::{OperationChange, OperationReason, OperationRecord, OperationState, OperationWork};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OperationPb {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    state: u32,
    #[prost(uint32, tag = "3")]
    reason: u32,
    #[prost(uint64, tag = "4")]
    started_ms: u64,
    #[prost(uint64, tag = "5")]
    since_ms: u64,
    #[prost(message, optional, tag = "6")]
    moved: Option<MovePb>,
    #[prost(uint64, tag = "7")]
    changes: u64,
    #[prost(message, optional, tag = "8")]
    split: Option<SplitPb>,
    #[prost(message, optional, tag = "9")]
    merge: Option<MergePb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct MovePb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    from_replica: u64,
    #[prost(uint64, tag = "3")]
    from_node: u64,
    #[prost(uint64, tag = "4")]
    to_replica: u64,
    #[prost(uint64, tag = "5")]
    to_node: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SplitPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(bytes = "bytes", tag = "2")]
    at: Bytes,
    #[prost(uint64, tag = "3")]
    child: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct MergePb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    right: u64,
}

/// Encodes a stored operation. Its version keeps older binaries from reading it.
pub(crate) fn encode_operation(operation: &OperationRecord) -> Bytes {
    let version = match operation.work {
        OperationWork::Move { .. } => ClusterVersion::OPERATIONS,
        OperationWork::Split { .. } => ClusterVersion::SPLITS,
        OperationWork::Merge { .. } => ClusterVersion::MERGES,
    };
    encode_at(VersionNeed::InForce(version.max(operation.reason.since())), &OperationPb::from(operation))
}

/// Decodes a stored operation.
pub(crate) fn decode_operation(bytes: &[u8]) -> Result<OperationRecord, CodecError> {
    decode_versioned::<OperationPb>(bytes)?.try_into()
}

impl From<&OperationRecord> for OperationPb {
    fn from(operation: &OperationRecord) -> Self {
        let shard = operation.shard.0;
        let (moved, split, merge) = match &operation.work {
            OperationWork::Move { from, to } => {
                let (from_replica, from_node) = (from.replica.0, from.node.0);
                let (to_replica, to_node) = (to.replica.0, to.node.0);
                (Some(MovePb { shard, from_replica, from_node, to_replica, to_node }), None, None)
            }
            OperationWork::Split { at, child } => (None, Some(SplitPb { shard, at: at.clone(), child: child.0 }), None),
            OperationWork::Merge { right } => (None, None, Some(MergePb { shard, right: right.0 })),
        };
        Self {
            id: operation.id.0,
            state: number_in(&STATES, operation.state),
            reason: reason_number(operation.reason),
            started_ms: operation.started_ms,
            since_ms: operation.since_ms,
            changes: operation.changes,
            moved,
            split,
            merge,
        }
    }
}

impl TryFrom<OperationPb> for OperationRecord {
    type Error = CodecError;

    fn try_from(pb: OperationPb) -> Result<Self, CodecError> {
        let (shard, work) = match (pb.moved, pb.split, pb.merge) {
            (Some(moved), None, None) => {
                let from = PlanReplica { replica: number(moved.from_replica)?, node: number(moved.from_node)? };
                let to = PlanReplica { replica: number(moved.to_replica)?, node: number(moved.to_node)? };
                (moved.shard, OperationWork::Move { from, to })
            }
            (None, Some(split), None) => {
                (split.shard, OperationWork::Split { at: split.at, child: number(split.child)? })
            }
            (None, None, Some(merge)) => (merge.shard, OperationWork::Merge { right: number(merge.right)? }),
            _ => return Err(CodecError::Malformed),
        };
        Ok(Self {
            id: number(pb.id)?,
            shard: number(shard)?,
            work,
            reason: reason(pb.reason)?,
            state: nth(&STATES, pb.state)?,
            changes: number(pb.changes)?,
            started_ms: pb.started_ms,
            since_ms: pb.since_ms,
        })
    }
}

/// The states in the order of their numbers, from 1.
const STATES: [OperationState; 5] = [
    OperationState::Running,
    OperationState::Paused,
    OperationState::Done,
    OperationState::Cancelled,
    OperationState::Superseded,
];

/// The reasons in the order of their numbers, from 1.
pub(super) const REASONS: [OperationReason; 8] = [
    OperationReason::Operator,
    OperationReason::NodeDead,
    OperationReason::NodeLeaving,
    OperationReason::NodeRemoved,
    OperationReason::Spread,
    OperationReason::Balance,
    OperationReason::Size,
    OperationReason::Unused,
];

/// The changes in the order of their numbers, from 1.
pub(super) const CHANGES: [OperationChange; 3] =
    [OperationChange::Pause, OperationChange::Resume, OperationChange::Cancel];

pub(super) fn reason_number(reason: OperationReason) -> u32 {
    number_in(&REASONS, reason)
}

pub(super) fn reason(number: u32) -> Result<OperationReason, CodecError> {
    nth(&REASONS, number)
}

pub(super) fn change_number(change: OperationChange) -> u32 {
    number_in(&CHANGES, change)
}

pub(super) fn change(number: u32) -> Result<OperationChange, CodecError> {
    nth(&CHANGES, number)
}

/// The number of a value; 0, which does not decode, for one that is not in the list.
fn number_in<T: PartialEq>(known: &[T], value: T) -> u32 {
    known.iter().position(|known| *known == value).map_or(0, |at| at as u32 + 1)
}

fn nth<T: Copy>(known: &[T], number: u32) -> Result<T, CodecError> {
    let at = number.checked_sub(1).ok_or(CodecError::Malformed)?;
    known.get(at as usize).copied().ok_or(CodecError::Malformed)
}
