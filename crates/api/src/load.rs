//! How much work shards are.

use std::str::FromStr;

use flotilla_types::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

/// Shards that `GET /v1/cluster/shards/top` gives unless asked for another number.
pub const SHARD_TOP_DEFAULT: usize = 20;
/// The highest number that can be asked for.
pub const SHARD_TOP_MAX: usize = 1_000;

/// By what shards are ordered, the most first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardOrder {
    /// CPU time of the leader.
    #[default]
    Cpu,
    /// Reads.
    Reads,
    /// Commands.
    Writes,
    /// Bytes written.
    Bytes,
}

impl ShardOrder {
    /// Every order.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Reads, Self::Writes, Self::Bytes];

    /// Its name in queries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Bytes => "bytes",
        }
    }
}

/// The text names no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the order must be cpu, reads, writes or bytes")]
pub struct UnknownShardOrder;

impl FromStr for ShardOrder {
    type Err = UnknownShardOrder;

    fn from_str(text: &str) -> Result<Self, UnknownShardOrder> {
        Self::ALL.into_iter().find(|order| order.name() == text).ok_or(UnknownShardOrder)
    }
}

/// Answer to `GET /v1/cluster/shards/top`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardTop {
    /// The shards, the most first. Those that nobody has used for minutes are not listed.
    pub shards: Vec<ShardLoad>,
    /// The nodes that report.
    pub nodes: Vec<NodeLoad>,
    /// Nodes that do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<NodeId>,
}

/// The work of a shard at its leader, of the last ten seconds unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardLoad {
    /// The shard.
    pub shard: ShardId,
    /// Its collection; absent for the metadata group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// The node that leads it.
    pub leader: NodeId,
    /// The share of one CPU, as measured for the node and divided by what was asked of its shards.
    pub cpu: f64,
    /// The same of the last minute.
    pub cpu_minute: f64,
    /// The highest such minute of the last five.
    pub cpu_peak: f64,
    /// Reads per second.
    pub reads: f64,
    /// Commands per second; one may write many records.
    pub writes: f64,
    /// Bytes written to the log per second.
    pub bytes: u64,
}

/// The work of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// The node.
    pub node: NodeId,
    /// The share of its CPUs that it uses, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// The shards that it leads and that somebody uses.
    pub shards: usize,
}
