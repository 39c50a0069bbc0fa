//! Digests of replicas, and what the digests of several nodes say together.

use flotilla_types::{NodeId, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

/// Answer to `GET /v1/cluster/digests`: digests of the answering node's replicas.
///
/// Two replicas of a shard with the same last applied entry must have the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestList {
    /// The node that answers.
    pub node: NodeId,
    /// Its replicas, in the order of their shards.
    pub replicas: Vec<ReplicaDigest>,
}

/// Digest of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaDigest {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The digest; absent if it could not be computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<RecordsDigest>,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A digest over all records of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsDigest {
    /// Last entry applied.
    pub applied: u64,
    /// Number of records.
    pub records: u64,
    /// BLAKE3 over the records in key order, as 64 hexadecimal digits.
    pub digest: String,
}

/// What the digests of a shard's replicas say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every voter was read at one applied entry, and all have the same digest.
    Equal,
    /// Too little was read to say that the replicas are equal. Not a pass.
    #[default]
    Inconclusive,
    /// Two replicas had applied the same entries and have different digests.
    Different,
}

/// Output of `flotilla digests`: the digests of several nodes, compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestReport {
    /// `different` if one shard is; `equal` if every shard is and every node answered.
    pub verdict: Verdict,
    /// Why it is not `equal`: one sentence each. Bounded: the shards below have their own reasons.
    pub reasons: Vec<String>,
    /// A verdict on each shard, in the order of their ids.
    pub shards: Vec<ShardVerdict>,
    /// The last digest of each replica, in the order of the nodes.
    pub nodes: Vec<DigestList>,
}

/// The verdict on one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardVerdict {
    /// The shard.
    pub shard: ShardId,
    /// The verdict.
    pub verdict: Verdict,
    /// The applied entry at which the replicas were compared; absent when inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// Why it is not `equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
