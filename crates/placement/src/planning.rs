//! Plans again and again for one cluster, at the cost of what has changed.
//!
//! Invariant: a plan is the same as one for the nodes and shards as they are now, made without any memory.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{NodeId, ShardId};

use crate::{
    Decision, Limits, NonDecision, Reason,
    plan::{PLAN_CHANGES_MAX, Plan, PlanNode, PlanShard},
    planner::{Planner, Repair},
    reasons::Shards,
};

/// What plans are made for, and what is known to need none.
///
/// A plan visits the shards that have changed and those that need a repair; all of them after a node has
/// changed, and, to find moves, when all are settled and one has changed since nothing was found.
#[derive(Debug, Clone, Default)]
pub struct Planning {
    pub(crate) nodes: Vec<PlanNode>,
    pub(crate) shards: BTreeMap<ShardId, PlanShard>,
    /// Replicas in the intents, per node.
    pub(crate) counts: BTreeMap<NodeId, i64>,
    /// Shards that have changed, or needed a repair in the last plan.
    doubtful: BTreeSet<ShardId>,
    /// Of the others, those that are not settled.
    unsettled: BTreeSet<ShardId>,
    /// Shards that are not moved for balance or spread, and do not keep others from it.
    pub(crate) pinned: BTreeSet<ShardId>,
    /// What could not be repaired when it was visited last.
    unrepaired: Unrepaired,
    /// The limits with which nothing was found to move, and why, if nothing has changed since.
    nothing_moves: Option<(Limits, NonDecision)>,
}

/// Shards that need a repair for which there is no node.
#[derive(Debug, Clone, Default)]
struct Unrepaired {
    /// Those with a replica that should go, by its node.
    stuck: BTreeMap<(NodeId, Reason), BTreeSet<ShardId>>,
    /// Where each of these shards is in `stuck`.
    stuck_at: BTreeMap<ShardId, Vec<(NodeId, Reason)>>,
    /// Those with fewer replicas than desired.
    short: BTreeSet<ShardId>,
}

impl Unrepaired {
    fn remove(&mut self, shard: ShardId) {
        self.short.remove(&shard);
        for at in self.stuck_at.remove(&shard).unwrap_or_default() {
            if let Some(shards) = self.stuck.get_mut(&at) {
                shards.remove(&shard);
                if shards.is_empty() {
                    self.stuck.remove(&at);
                }
            }
        }
    }

    fn set(&mut self, shard: ShardId, repair: &Repair) {
        self.remove(shard);
        if repair.is_short {
            self.short.insert(shard);
        }
        for (replica, reason) in &repair.stuck {
            let at = (replica.node, *reason);
            self.stuck.entry(at).or_default().insert(shard);
            self.stuck_at.entry(shard).or_default().push(at);
        }
    }

    fn reasons(&self) -> impl Iterator<Item = NonDecision> {
        let stuck = self.stuck.iter();
        let stuck = stuck.map(|((node, reason), shards)| NonDecision::Stuck {
            node: *node,
            reason: *reason,
            shards: Shards::of(shards),
        });
        let short = (!self.short.is_empty()).then(|| NonDecision::Short { shards: Shards::of(&self.short) });
        stuck.chain(short)
    }
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
        self.unrepaired.remove(id);
        if let Some(before) = self.shards.remove(&id) {
            self.count(&before, -1);
        }
        if let Some(shard) = shard {
            self.count(&shard, 1);
            self.doubtful.insert(id);
            self.shards.insert(id, shard);
        }
    }

    /// Sets the shards that an operator has placed: plans repair them, do not move them for balance or spread, and do
    /// not wait until they are settled.
    pub fn set_pinned(&mut self, pinned: BTreeSet<ShardId>) {
        if self.pinned != pinned {
            self.pinned = pinned;
            self.nothing_moves = None;
        }
    }

    /// Plans the next changes, as [`crate::plan`] does.
    pub fn plan(&mut self, limits: Limits) -> Plan {
        let mut planner = Planner::with_counts(&self.nodes, self.counts.clone());
        let (mut decisions, mut changes_len) = (Vec::new(), 0);
        let mut doubtful = std::mem::take(&mut self.doubtful);
        while let Some(id) = doubtful.pop_first() {
            let Some(shard) = self.shards.get(&id) else { continue };
            let mut repair = planner.repair(shard);
            changes_len += repair.decisions.iter().map(Decision::changes_len).sum::<usize>();
            if changes_len > PLAN_CHANGES_MAX {
                self.doubtful.insert(id);
                self.doubtful.append(&mut doubtful);
                return Plan { decisions, undecided: Vec::new() };
            }
            if !repair.decisions.is_empty() {
                self.doubtful.insert(id);
            } else if planner.is_settled(shard) {
                self.unsettled.remove(&id);
            } else {
                self.unsettled.insert(id);
            }
            self.unrepaired.set(id, &repair);
            decisions.append(&mut repair.decisions);
        }
        let mut undecided: Vec<_> = self.unrepaired.reasons().collect();
        // Repairs come first.
        if decisions.is_empty() {
            let moves_max = limits.moves_max.min(PLAN_CHANGES_MAX / 2);
            let found = match (&self.nothing_moves, limits.hold) {
                _ if !self.unsettled.is_subset(&self.pinned) => {
                    Err(NonDecision::Unsettled { shards: Shards::of(&(&self.unsettled - &self.pinned)) })
                }
                (_, Some(hold)) => Err(NonDecision::Held(hold)),
                (Some((same, why)), None) if *same == limits => Err(why.clone()),
                _ => {
                    let is_free = |shard: &&PlanShard| !self.pinned.contains(&shard.id);
                    let shards: Vec<_> = self.shards.values().filter(is_free).collect();
                    let found = planner.moves(&shards, limits.balance_threshold, moves_max);
                    self.nothing_moves = found.as_ref().err().map(|why| (limits, why.clone()));
                    found
                }
            };
            match found {
                Ok(moves) => decisions = moves,
                Err(why) => undecided.push(why),
            }
        }
        Plan { decisions, undecided }
    }

    fn count(&mut self, shard: &PlanShard, change: i64) {
        for replica in &shard.intent {
            *self.counts.entry(replica.node).or_default() += change;
        }
    }
}
