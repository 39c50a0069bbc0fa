//! Why replicas are where they are: decisions of placement, what was left undecided, and explanations.

use flotilla_types::{NodeId, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

/// Entries that `GET /v1/cluster/decisions` gives unless asked for another number.
pub const DECISIONS_DEFAULT: usize = 100;
/// The highest number that can be asked for, which is how many are remembered.
pub const DECISIONS_MAX: usize = 1_000;

/// Body of `POST /v1/cluster/rebalance`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `POST /v1/cluster/rebalance` and `GET /v1/cluster/decisions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionList {
    /// Whether nothing was done: of a rebalancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// Of the log of decisions the newest first; of a rebalancing in the order of urgency.
    pub decisions: Vec<DecisionInfo>,
    /// Nodes that did not report what they decided while they led the metadata group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<NodeId>,
}

/// A change that was decided, or something that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionInfo {
    /// When it was found first and last, in Unix milliseconds. What is found again and again is one entry.
    pub at_ms: u64,
    /// See `at_ms`.
    pub last_ms: u64,
    /// How often it was found.
    pub count: u64,
    /// The node that decided it, which led the metadata group. It remembers it until it ends.
    pub decided_by: NodeId,
    /// What is done.
    pub action: PlacementAction,
    /// The shard; absent if it is about several, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardId>,
    /// The replica that goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// The node that gets a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
    /// Why: a stable name.
    pub reason: String,
    /// The same in words.
    pub detail: String,
    /// The first of the shards that it is about, of several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardId>,
    /// How many these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards_total: Option<u64>,
    /// Other nodes that might have got the replica, and why they did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// What placement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementAction {
    /// A shard gets another replica.
    Add,
    /// A replica is replaced by one on another node.
    Move,
    /// A shard loses a replica.
    Remove,
    /// Nothing.
    None,
}

/// A node that does not get a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The node.
    pub node: NodeId,
    /// Why: a stable name.
    pub reason: String,
    /// The same in words.
    pub detail: String,
}

/// Answer to `GET /v1/cluster/shards/{id}/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardExplanation {
    /// The shard.
    pub shard: ShardId,
    /// The node that decides: the leader of the metadata group.
    pub decided_by: NodeId,
    /// The desired number of replicas.
    pub desired_replicas: u32,
    /// Whether there are fewer, and no node for another one.
    #[serde(default)]
    pub too_few_nodes: bool,
    /// Its replicas: those that it should have, then those that it still has besides.
    pub replicas: Vec<ReplicaExplanation>,
    /// Replicas that are added now.
    pub additions: Vec<DecisionInfo>,
    /// What placement leaves as it is now, in the whole cluster.
    pub undecided: Vec<DecisionInfo>,
}

/// Why a replica is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaExplanation {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// How placement sees the node: `live`, `suspect`, `dead`, `draining`, `leaving` or `removed`.
    pub node_status: String,
    /// Replicas of all shards that are meant for the node.
    pub node_replicas: u64,
    /// How many would be its share by its weight.
    pub node_share: f64,
    /// `in_place`, `arriving` or `departing`.
    pub phase: String,
    /// What becomes of it.
    pub verdict: ReplicaVerdict,
    /// The node that takes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
    /// Why it goes, or should go: a stable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What becomes of it and why, in words.
    pub detail: String,
    /// The other nodes, and why they do not get it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// What becomes of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaVerdict {
    /// It stays.
    Stays,
    /// It goes.
    Goes,
    /// It should go, and no node can take it.
    Stuck,
}

/// A replica that speaks against a node's leaving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Why: `no_node`, `disk`, `unsettled` or `zone`.
    pub why: String,
    /// The same in words.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_has_the_published_shape() {
        let decision = DecisionInfo {
            at_ms: 5,
            last_ms: 6,
            count: 2,
            decided_by: NodeId(9),
            action: PlacementAction::Move,
            shard: Some(ShardId(4)),
            replica: Some(ReplicaId(17)),
            from: Some(NodeId(1)),
            to: Some(NodeId(3)),
            reason: "balance".to_owned(),
            detail: "because".to_owned(),
            shards: Vec::new(),
            shards_total: None,
            alternatives: vec![Alternative { node: NodeId(2), reason: "fuller".to_owned(), detail: "d".to_owned() }],
        };
        let json = serde_json::to_string(&decision).expect("JSON");
        let expected = r#"{"at_ms":5,"last_ms":6,"count":2,"decided_by":"n9","action":"move","shard":"s4","replica":"r17","from":"n1","to":"n3","reason":"balance","detail":"because","alternatives":[{"node":"n2","reason":"fuller","detail":"d"}]}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<DecisionInfo>(&json).expect("a decision"), decision);
    }

    #[test]
    fn a_request_says_nothing_or_whether_it_is_a_dry_run() {
        let parse = |text| serde_json::from_str::<RebalanceRequest>(text).map(|request| request.dry_run).ok();
        assert_eq!((parse("{}"), parse(r#"{"dry_run":true}"#)), (Some(false), Some(true)));
        assert_eq!(parse(r#"{"dryrun":true}"#), None);
    }
}
