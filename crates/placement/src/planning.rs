//! Plans again and again for one cluster, at the cost of what has changed.
//!
//! Invariant: a plan is the same as one for the nodes and shards as they are now, made without any memory.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{NodeId, ShardId};

use crate::{
    plan::{PLAN_CHANGES_MAX, Plan, PlanNode, PlanShard},
    planner::Planner,
};

/// What plans are made for, and what is known to need none.
///
/// A plan visits the shards that have changed and those that need a repair; all of them after a node has
/// changed, and, to find moves, when all are settled and one has changed since nothing was found.
#[derive(Debug, Default)]
pub struct Planning {
    nodes: Vec<PlanNode>,
    shards: BTreeMap<ShardId, PlanShard>,
    /// Replicas in the intents, per node.
    counts: BTreeMap<NodeId, i64>,
    /// Shards that have changed, or needed a repair in the last plan.
    doubtful: BTreeSet<ShardId>,
    /// Of the others, those that are not settled.
    unsettled: BTreeSet<ShardId>,
    /// The limits with which nothing was found to move, if nothing has changed since.
    nothing_moves: Option<(u32, usize)>,
}

impl Planning {
    /// Sets all nodes. One that is not listed counts as removed.
    pub fn set_nodes(&mut self, nodes: Vec<PlanNode>) {
        if self.nodes != nodes {
            self.nodes = nodes;
            self.doubtful = self.shards.keys().copied().collect();
            self.nothing_moves = None;
        }
    }

    /// Sets a shard; `None` for one that is gone.
    pub fn set_shard(&mut self, id: ShardId, shard: Option<PlanShard>) {
        if self.shards.get(&id) == shard.as_ref() {
            return;
        }
        self.nothing_moves = None;
        self.unsettled.remove(&id);
        self.doubtful.remove(&id);
        if let Some(before) = self.shards.remove(&id) {
            self.count(&before, -1);
        }
        if let Some(shard) = shard {
            self.count(&shard, 1);
            self.doubtful.insert(id);
            self.shards.insert(id, shard);
        }
    }

    /// Plans the next changes, as [`crate::plan`] does.
    pub fn plan(&mut self, balance_threshold: u32, moves_max: usize) -> Plan {
        let mut planner = Planner::with_counts(&self.nodes, self.counts.clone());
        let mut changes = Vec::new();
        let mut doubtful = std::mem::take(&mut self.doubtful);
        while let Some(id) = doubtful.pop_first() {
            let Some(shard) = self.shards.get(&id) else { continue };
            let repairs = planner.repair(shard);
            if changes.len() + repairs.len() > PLAN_CHANGES_MAX {
                self.doubtful.insert(id);
                self.doubtful.append(&mut doubtful);
                return Plan { changes };
            }
            let settled = planner.is_settled(shard);
            if !repairs.is_empty() {
                self.doubtful.insert(id);
            } else if settled {
                self.unsettled.remove(&id);
            } else {
                self.unsettled.insert(id);
            }
            changes.extend(repairs);
        }
        let limits = (balance_threshold, moves_max);
        if changes.is_empty() && self.unsettled.is_empty() && self.nothing_moves != Some(limits) {
            let shards: Vec<_> = self.shards.values().collect();
            changes = planner.moves(&shards, balance_threshold, moves_max.min(PLAN_CHANGES_MAX / 2));
            self.nothing_moves = changes.is_empty().then_some(limits);
        }
        Plan { changes }
    }

    fn count(&mut self, shard: &PlanShard, change: i64) {
        for replica in &shard.intent {
            *self.counts.entry(replica.node).or_default() += change;
        }
    }
}
