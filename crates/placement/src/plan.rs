//! Plans changes of replica placement.
//!
//! Invariants: no plan puts two replicas of a shard on one node; a plan reduces the replicas of a shard only
//! when it has more than desired; healthy replicas move only while all shards are settled, and then few at a
//! time. After a plan has been applied to the intent, planning again finds nothing to do until the shards
//! have caught up.
//!
//! Deliberately absent: the execution of a change (learner, joint consensus, removal) and the order in which
//! shards execute.

use flotilla_types::{Locality, NodeId, ReplicaDescriptor, ReplicaId, ShardId};

use crate::{Decision, Limits, NonDecision, Planning, Reason, planner::Planner};

/// Limit on the changes of one plan; the next plan has the rest.
pub const PLAN_CHANGES_MAX: usize = 512;

/// A node's status for placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeStatus {
    /// Healthy: may take replicas.
    Live,
    /// Temporarily unreachable: keeps its replicas, gets no new ones.
    Suspect,
    /// Unreachable for longer than the grace period: its replicas are replaced.
    Dead,
    /// Keeps its replicas, also as a healthy node would, and gets no new ones.
    Draining,
    /// Its replicas are moved away.
    Leaving,
    /// Never returns.
    Removed,
}

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanNode {
    /// The node.
    pub id: NodeId,
    /// Its status.
    pub status: NodeStatus,
    /// Its locality labels. Replicas of a shard go to nodes that share as few outer labels as possible.
    pub locality: Locality,
    /// Its share of replicas, relative to the other nodes. Zero: gets no new replicas and loses some by
    /// balancing.
    pub weight: u32,
}

/// A replica of an intent and its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlanReplica {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
}

/// A shard as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanShard {
    /// The shard.
    pub id: ShardId,
    /// The desired number of replicas, once there are enough nodes; an even number counts as the odd one
    /// below it.
    pub replicas_desired: u8,
    /// The replicas on which placement has decided.
    pub intent: Vec<PlanReplica>,
    /// The replicas that the shard itself reports.
    pub actual: Vec<ReplicaDescriptor>,
}

/// The input of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInput {
    /// Every node. A node that is not listed counts as removed.
    pub nodes: Vec<PlanNode>,
    /// Every shard, including the metadata group.
    pub shards: Vec<PlanShard>,
    /// Balancing starts when two nodes differ by more than one replica plus this many. 0 balances most
    /// strictly; a higher value saves copying.
    pub balance_threshold: u32,
    /// Limit on replicas that one plan moves for balance or spread. 0 turns both off.
    pub moves_max: usize,
}

impl PlanInput {
    /// The limits, with nothing that holds moves back.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { balance_threshold: self.balance_threshold, moves_max: self.moves_max, hold: None }
    }
}

/// One change of a shard's intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Add a replica of the shard on a node.
    Assign {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
        /// Why.
        reason: Reason,
    },
    /// Remove a replica of the shard.
    Unassign {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Why.
        reason: Reason,
    },
}

impl Change {
    /// The shard to change.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Assign { shard, .. } | Self::Unassign { shard, .. } => *shard,
        }
    }
}

/// What to change in the intent. The decisions about one shard are adjacent and must be applied all or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Repairs in order of shards; moves in order of urgency.
    pub decisions: Vec<Decision>,
    /// Why no more is done.
    pub undecided: Vec<NonDecision>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty()
    }

    /// The changes in order. An assignment precedes the removal of the replica it replaces.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.decisions.iter().flat_map(Decision::changes)
    }
}

/// Plans the next changes.
///
/// A shard gets the desired number of replicas or, while there are fewer nodes, the largest odd number that
/// fits; it grows in one step and does not shrink when nodes leave. Nodes are chosen first by spread over
/// localities, then by the fewest replicas for their weight, then by rendezvous hash.
#[must_use]
pub fn plan(input: &PlanInput) -> Plan {
    let mut planning = Planning::default();
    planning.set_nodes(input.nodes.clone());
    for shard in &input.shards {
        planning.set_shard(shard.id, Some(shard.clone()));
    }
    planning.plan(input.limits())
}

/// Whether the replicas of a shard would share more locality labels if one of them was on another node.
#[must_use]
pub fn brings_closer(nodes: &[PlanNode], shard: &PlanShard, replica: ReplicaId, to: NodeId) -> bool {
    let planner = Planner::new(nodes, std::slice::from_ref(shard));
    let moved = shard.intent.iter().find(|held| held.replica == replica);
    moved.is_some_and(|moved| planner.brings_closer(shard, *moved, to))
}

/// Chooses nodes for shards that do not exist yet: one list for each of `new`, the shards and their desired
/// replicas. A list has an odd length, or is empty when no node can take a replica.
#[must_use]
pub fn place(nodes: &[PlanNode], existing: &[PlanShard], new: &[(ShardId, u8)]) -> Vec<Vec<NodeId>> {
    let mut planner = Planner::new(nodes, existing);
    new.iter().map(|&(shard, replicas_desired)| planner.place(shard, replicas_desired)).collect()
}
