//! `GET /v1/cluster/consistency`: what the leaders' comparisons of the replicas of their shards say.

use flotilla_types::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

use crate::Verdict;

/// Answer to `GET /v1/cluster/consistency`.
///
/// The nodes compare the replicas of the shards that they lead all the time, by digests of what each entry has
/// done, and read no records for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyReport {
    /// `different` if one shard is; `equal` if every shard is and every node answered.
    pub verdict: Verdict,
    /// Why it is not `equal`: one sentence each, at most ten.
    pub reasons: Vec<String>,
    /// Shards whose voters are equal.
    pub equal: u64,
    /// Shards of which two voters differ.
    pub different: u64,
    /// Shards whose voters could not be compared.
    pub inconclusive: u64,
    /// Shards with one voter: there is nothing to compare.
    pub single: u64,
    /// The shards, those that are not equal first, up to some thousands of each node.
    pub shards: Vec<ShardConsistency>,
    /// Nodes that did not report: they did not answer in time, or run a binary that does not compare.
    #[serde(default)]
    pub silent: Vec<NodeId>,
}

/// The last comparison of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardConsistency {
    /// The shard.
    pub shard: ShardId,
    /// The node that compares: the shard's leader.
    pub leader: NodeId,
    /// What the comparison says.
    pub verdict: Verdict,
    /// The entry up to which the voters are equal, or after which they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The entry that ordered the last fold whose result was compared: up to there all records are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<u64>,
    /// When they were compared; absent before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Since when comparisons have said so.
    pub since_ms: u64,
    /// Why it is not `equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
