//! `GET /v1/cluster/operations`: what changes shards now, in the whole cluster; moves of replicas, splits and merges of
//! shards.

use std::{fmt, str::FromStr};

use flotilla_types::{NodeId, OperationKind, OperationPhase, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

use crate::Encoding;

/// Body of `POST /v1/cluster/shards/{id}/move`. Answered by an [`OperationInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveShard {
    /// The node whose replica moves.
    pub from: NodeId,
    /// Where it moves.
    pub to: NodeId,
}

/// Body of `POST /v1/cluster/shards/{id}/split`; none is the same as an empty one. Answered by an [`OperationInfo`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitShard {
    /// The first key of the new shard; of a hash collection, of those in the key's bucket, with the buckets behind it.
    /// Without it, the middle of the shard: between two of its buckets, or else of the keys that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Encoding of `at`.
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    pub encoding: Encoding,
}

/// Body of `POST /v1/cluster/shards/{id}/merge`. Answered by an [`OperationInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeShards {
    /// The right neighbour of the shard, which becomes part of it.
    pub right: ShardId,
}

/// What can be done with an operation: the last segment of `POST /v1/cluster/operations/{id}/{verb}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationVerb {
    /// It stops until it is resumed. Merges do not.
    Pause,
    /// It goes on.
    Resume,
    /// It is taken back: the shard keeps the replicas that it had, or is not merged. Splits are not cancelled.
    Cancel,
}

impl OperationVerb {
    /// Every verb.
    pub const ALL: [Self; 3] = [Self::Pause, Self::Resume, Self::Cancel];

    /// Its name in paths and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }
}

impl fmt::Display for OperationVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the verbs are pause, resume and cancel")]
pub struct UnknownOperationVerb;

impl FromStr for OperationVerb {
    type Err = UnknownOperationVerb;

    fn from_str(text: &str) -> Result<Self, UnknownOperationVerb> {
        Self::ALL.into_iter().find(|verb| verb.name() == text).ok_or(UnknownOperationVerb)
    }
}

/// Answer to `GET /v1/cluster/operations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationList {
    /// In the order of shards.
    pub operations: Vec<OperationInfo>,
    /// The number of operations beyond the bound of a node's report.
    #[serde(default)]
    pub more: u64,
    /// Nodes that did not report: they did not answer in time, or run a binary that does not report
    /// operations.
    #[serde(default)]
    pub silent: Vec<NodeId>,
}

/// A change of a shard. It is listed until it is done; the latest moves, splits and merges that have ended can be shown
/// by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationInfo {
    /// Of a move, a split or a merge, such as `op7`; of others kind, shard and replica, such as `add_replica.s4.r17`.
    pub id: String,
    /// What is done.
    pub kind: OperationKind,
    /// How far it is.
    pub phase: OperationPhase,
    /// Why it is done, in words.
    pub reason: String,
    /// The shard.
    pub shard: ShardId,
    /// The replica that is added, removed, becomes the leader, or receives a snapshot. The leader itself
    /// while no other replica can take its leadership. A split has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// The node of that replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Of a move, the node whose replica goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// Of a split, the new shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<ShardId>,
    /// Of a split, the first key of the new shard; empty where that begins with a whole bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Encoding of `at`.
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    pub encoding: Encoding,
    /// Of a merge, the shard that becomes part of the other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<ShardId>,
    /// Of a split in a hash collection, the bucket of that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<u16>,
    /// The move that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// The node that reports it: the shard's leader, the receiver of a snapshot, or, of a move or a split, any node.
    pub reported_by: NodeId,
    /// When the phase began as that node saw it, in Unix milliseconds.
    pub since_ms: u64,
    /// How much of it is done.
    pub progress: OperationProgress,
    /// Whether it is done.
    pub done: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl OperationInfo {
    /// The id of an operation that is neither a move nor a split: theirs are those of their records.
    #[must_use]
    pub fn id_of(kind: OperationKind, shard: ShardId, replica: ReplicaId) -> String {
        format!("{kind}.{shard}.{replica}")
    }

    /// Phase and progress in words, the same in every place that shows them.
    #[must_use]
    pub fn state(&self) -> String {
        let mut state = self.phase.name().replace('_', " ");
        let OperationProgress { objects, objects_total, bytes, eta_ms, lag, .. } = self.progress;
        if let (Some(objects), Some(total)) = (objects, objects_total) {
            state.push_str(&format!(", {objects} of {total} objects"));
        }
        if let Some(bytes) = bytes {
            state.push_str(&format!(", {bytes} bytes fetched"));
        }
        if let Some(eta_ms) = eta_ms {
            state.push_str(&format!(", about {} s left", eta_ms.div_ceil(1_000)));
        }
        if let Some(lag) = lag.filter(|lag| *lag > 0) {
            state.push_str(&format!(", lacks {lag} entries"));
        }
        state
    }
}

/// How much of an operation is done. What is not known, or has no meaning for its kind, is `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationProgress {
    /// Objects of the snapshot that are at the receiver.
    pub objects: Option<u64>,
    /// All objects of the snapshot.
    pub objects_total: Option<u64>,
    /// Bytes that were fetched. Objects that the receiver had before are not among them.
    pub bytes: Option<u64>,
    /// Bytes to fetch in all. A snapshot names its objects without their sizes, so it is not known.
    pub bytes_total: Option<u64>,
    /// How long the rest will take at the rate so far, in milliseconds.
    pub eta_ms: Option<u64>,
    /// Committed entries that the replica is not known to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_the_published_shape() {
        let operation = OperationInfo {
            id: OperationInfo::id_of(OperationKind::ReceiveSnapshot, ShardId(4), ReplicaId(17)),
            kind: OperationKind::ReceiveSnapshot,
            phase: OperationPhase::Fetching,
            reason: "because".to_owned(),
            shard: ShardId(4),
            replica: Some(ReplicaId(17)),
            node: Some(NodeId(3)),
            from: None,
            child: None,
            right: None,
            at: None,
            encoding: Encoding::Utf8,
            bucket: None,
            part_of: None,
            reported_by: NodeId(3),
            since_ms: 5,
            progress: OperationProgress {
                objects: Some(3),
                objects_total: Some(9),
                bytes: Some(70),
                eta_ms: Some(1_001),
                ..OperationProgress::default()
            },
            done: false,
            error: None,
        };
        let json = serde_json::to_string(&operation).expect("JSON");
        let expected = r#"{"id":"receive_snapshot.s4.r17","kind":"receive_snapshot","phase":"fetching","reason":"because","shard":"s4","replica":"r17","node":"n3","reported_by":"n3","since_ms":5,"progress":{"objects":3,"objects_total":9,"bytes":70,"bytes_total":null,"eta_ms":1001},"done":false,"error":null}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<OperationInfo>(&json).expect("an operation"), operation);
        assert_eq!(operation.state(), "fetching, 3 of 9 objects, 70 bytes fetched, about 2 s left");
    }

    #[test]
    fn a_split_has_the_published_shape() {
        let json = r#"{"id":"op7","kind":"split_shard","phase":"splitting","reason":"because","shard":"s4","child":"s9","at":"/w==","encoding":"base64","bucket":3,"reported_by":"n3","since_ms":5,"progress":{"objects":null,"objects_total":null,"bytes":null,"bytes_total":null,"eta_ms":null},"done":false,"error":null}"#;
        let operation: OperationInfo = serde_json::from_str(json).expect("an operation");
        assert_eq!((operation.replica, operation.node, operation.child), (None, None, Some(ShardId(9))));
        assert_eq!(serde_json::to_string(&operation).expect("JSON"), json);
        let request: SplitShard = serde_json::from_str(r#"{"at":"k"}"#).expect("a request");
        assert_eq!(request, SplitShard { at: Some("k".to_owned()), encoding: Encoding::Utf8 });
        assert_eq!(serde_json::to_string(&SplitShard::default()).expect("JSON"), "{}");
        assert!(serde_json::from_str::<SplitShard>(r#"{"key":"k"}"#).is_err());
    }

    #[test]
    fn names_are_those_in_json_and_positions_those_of_the_lists() {
        for kind in OperationKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("JSON"), kind.name());
            assert_eq!(OperationKind::ALL[kind as usize], kind);
        }
        for phase in OperationPhase::ALL {
            assert_eq!(serde_json::to_value(phase).expect("JSON"), phase.name());
            assert_eq!(OperationPhase::ALL[phase as usize], phase);
        }
    }
}
