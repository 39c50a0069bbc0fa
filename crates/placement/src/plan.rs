//! What should change about where replicas live.
//!
//! Invariants: no plan puts two replicas of a shard on one node; a plan never lowers a shard below the replicas it has
//! unless more were assigned than are wanted; replicas that are fine move only while everything is healthy, and then few at a time.
//! Once a plan has been taken into the intent, planning again finds nothing to do until the shards have caught up.
//!
//! Deliberately absent: how a change is carried out (learner, joint consensus, removal) and in which order shards get their turn.

use flotilla_types::{Locality, NodeId, ReplicaDescriptor, ReplicaId, ShardId};

use crate::planner::Planner;

/// A plan holds at most this many changes; what is left comes with the next plan.
pub const PLAN_CHANGES_MAX: usize = 512;

/// What can be expected of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeStatus {
    /// Healthy: may take replicas.
    Live,
    /// Not heard of lately: keeps what it has, gets nothing new.
    Suspect,
    /// Not heard of for longer than the grace period: its replicas are replaced.
    Dead,
    /// Asked to give its replicas away.
    Draining,
    /// Will never come back.
    Removed,
}

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanNode {
    /// The node.
    pub id: NodeId,
    /// What can be expected of it.
    pub status: NodeStatus,
    /// Where it stands. Replicas of a shard go to nodes that share as few outer labels as possible.
    pub locality: Locality,
    /// Its share of replicas, relative to the other nodes. Zero: gets nothing new and gives away when balancing.
    pub weight: u32,
}

/// A replica that placement wants, and where.
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
    /// How many replicas are wanted, once there are nodes enough; an even number counts as the odd one below it.
    pub replicas_desired: u8,
    /// The replicas placement decided on so far.
    pub intent: Vec<PlanReplica>,
    /// The replicas the shard itself reports.
    pub actual: Vec<ReplicaDescriptor>,
}

/// Everything a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInput {
    /// Every node. A replica on a node that is not listed counts as on a removed one.
    pub nodes: Vec<PlanNode>,
    /// Every shard, the metadata group included.
    pub shards: Vec<PlanShard>,
    /// Balancing starts when two nodes differ by more than one replica plus this many. 0 balances most strictly;
    /// more saves copying.
    pub balance_threshold: u32,
    /// At most so many replicas move per plan for balance or spread. 0 turns both off.
    pub moves_max: usize,
}

/// Why a change is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The shard has fewer replicas than wanted, and nodes that could take them.
    UnderReplicated,
    /// The replica's node is dead for longer than the grace period.
    NodeDead,
    /// The replica's node is draining.
    NodeDraining,
    /// The replica's node was removed.
    NodeRemoved,
    /// The shard has more replicas than wanted.
    Surplus,
    /// Two replicas stand closer together than they need to.
    Spread,
    /// The replica's node holds more than its share.
    Balance,
}

/// One change of a shard's intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Give the node a new replica of the shard.
    Assign {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
        /// Why.
        reason: Reason,
    },
    /// Take a replica away.
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
    /// The shard it is about.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Assign { shard, .. } | Self::Unassign { shard, .. } => *shard,
        }
    }
}

/// Changes to take into the intent. Those of one shard stand together and belong together: all or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order of shards for repairs; moves in order of urgency. Assignments of a shard precede what they replace.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Decides what should change.
///
/// A shard is given as many replicas as wanted or, while there are fewer nodes, the largest odd number that fits; it
/// grows in one step and does not shrink when nodes go away. Nodes are chosen by spread over localities first, then by the
/// fewest replicas for their weight, then by rendezvous hash.
#[must_use]
pub fn plan(input: &PlanInput) -> Plan {
    let mut planner = Planner::new(&input.nodes, &input.shards);
    let mut shards: Vec<&PlanShard> = input.shards.iter().collect();
    shards.sort_by_key(|shard| shard.id);

    let mut changes = Vec::new();
    for shard in &shards {
        let repairs = planner.repair(shard);
        if changes.len() + repairs.len() > PLAN_CHANGES_MAX {
            return Plan { changes };
        }
        changes.extend(repairs);
    }
    let healthy = changes.is_empty() && shards.iter().all(|shard| planner.is_settled(shard));
    if healthy {
        changes = planner.moves(&shards, input.balance_threshold, input.moves_max.min(PLAN_CHANGES_MAX / 2));
    }
    Plan { changes }
}

/// Chooses nodes for shards that do not exist yet: one list for each of `new`, which names the shards and the replicas
/// wanted. A list has an odd length, or is empty when no node can take a replica.
#[must_use]
pub fn place(nodes: &[PlanNode], existing: &[PlanShard], new: &[(ShardId, u8)]) -> Vec<Vec<NodeId>> {
    let mut planner = Planner::new(nodes, existing);
    new.iter().map(|&(shard, replicas_desired)| planner.place(shard, replicas_desired)).collect()
}
