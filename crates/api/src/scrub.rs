//! `GET` and `POST /v1/cluster/scrub`: how the nodes read their stored objects again to find damage.

use flotilla_types::{NodeId, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

/// Answer to `GET` and `POST /v1/cluster/scrub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// In the order of nodes.
    pub nodes: Vec<NodeScrub>,
    /// Nodes that did not report: they did not answer in time, or run a binary without a scrub.
    #[serde(default)]
    pub silent: Vec<NodeId>,
}

/// The scrub of one node. Counts begin anew when the node starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeScrub {
    /// The node.
    pub node: NodeId,
    /// What it does now.
    pub state: ScrubState,
    /// Bytes that it reads per second.
    pub bytes_per_second: u64,
    /// Bytes that this pass has visited, or the last one.
    pub bytes: u64,
    /// Bytes to visit in that pass.
    pub bytes_total: u64,
    /// Passes that have ended.
    pub passes: u64,
    /// Objects read.
    pub objects: u64,
    /// Objects that the scrub found damaged.
    pub objects_damaged: u64,
    /// Objects that the disk failed to read.
    pub objects_unreadable: u64,
    /// When this pass began, or the last one.
    pub began_ms: Option<u64>,
    /// When the last pass ended.
    pub ended_ms: Option<u64>,
    /// When the next pass begins, if that is planned.
    pub next_ms: Option<u64>,
    /// Replicas here that need damaged objects now, found by the scrub or by reads; some, if there are many.
    #[serde(default)]
    pub damaged: Vec<DamagedReplica>,
}

/// What the scrub of a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// A pass is under way.
    Running,
    /// It waits for the next pass.
    Waiting,
    /// Passes begin only when they are asked for.
    OnDemand,
}

/// A replica that needs damaged objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedReplica {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// Whether it is replaced from its peers; there is no other copy otherwise.
    pub repairable: bool,
}

impl ScrubState {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::OnDemand => "on_demand",
        }
    }
}
