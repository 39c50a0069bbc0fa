//! The computations of a plan: loads, closeness of nodes, and the choice of a node.
//!
//! Invariants: loads count the intent with the plan's changes so far, so that later decisions see earlier
//! ones. Every ordering ends with an id, so that ties are decided the same everywhere.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_types::{Locality, NodeId, ReplicaRole, ShardId};

use crate::{
    plan::{Change, NodeStatus, PlanNode, PlanReplica, PlanShard, Reason},
    rendezvous_score,
};

/// Loads are compared in thousandths of a replica, because a weighted share is rarely a whole number.
const REPLICA_UNITS: i64 = 1_000;

pub(crate) struct Planner<'a> {
    nodes: BTreeMap<NodeId, &'a PlanNode>,
    /// Replicas in the intent, per node.
    counts: BTreeMap<NodeId, i64>,
    /// Sum of `counts` over live nodes.
    count_total: i64,
    /// Sum of the weights of live nodes.
    weight_total: i64,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(nodes: &'a [PlanNode], shards: &[PlanShard]) -> Self {
        let mut counts = BTreeMap::new();
        for replica in shards.iter().flat_map(|shard| &shard.intent) {
            *counts.entry(replica.node).or_default() += 1;
        }
        Self::with_counts(nodes, counts)
    }

    /// For intents that have so many replicas on each node.
    pub(crate) fn with_counts(nodes: &'a [PlanNode], counts: BTreeMap<NodeId, i64>) -> Self {
        let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (node.id, node)).collect();
        let live = || nodes.values().filter(|node| node.status == NodeStatus::Live);
        let weight_total = live().map(|node| i64::from(node.weight)).sum();
        let count_total = live().filter_map(|node| counts.get(&node.id)).sum();
        Self { nodes, counts, count_total, weight_total }
    }

    /// Brings a shard to its desired number of replicas, on nodes that can hold them.
    pub(crate) fn repair(&mut self, shard: &PlanShard) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut held: BTreeSet<NodeId> = shard.intent.iter().map(|replica| replica.node).collect();
        let mut kept: Vec<PlanReplica> = Vec::new();
        let mut failing: Vec<(PlanReplica, Reason)> = Vec::new();
        for &replica in &shard.intent {
            match self.failure_reason(replica.node) {
                Some(reason) => failing.push((replica, reason)),
                None => kept.push(replica),
            }
        }
        let desired = at_most_odd(usize::from(shard.replicas_desired));
        let mut surplus = shard.intent.len().saturating_sub(desired);

        // Surplus replicas are first removed from failing nodes, so that nothing is copied needlessly.
        for (replica, _) in failing.split_off(failing.len() - surplus.min(failing.len())) {
            surplus -= 1;
            self.unassign(shard.id, replica, Reason::Surplus, &mut changes);
            held.remove(&replica.node);
        }
        for _ in 0..surplus {
            let Some(worst) = self.most_dispensable(shard.id, &kept) else { break };
            let replica = kept.remove(worst);
            self.unassign(shard.id, replica, Reason::Surplus, &mut changes);
            held.remove(&replica.node);
        }

        let mut placed: Vec<NodeId> = kept.iter().map(|replica| replica.node).collect();
        let reachable = placed.len() + self.candidates(&held).count();
        let target = replicas_possible(desired, reachable);
        let mut count = kept.len() + failing.len();
        for (replica, reason) in failing {
            let Some(node) = self.choose(shard, &placed, &held) else { break };
            self.assign(shard.id, node, reason, &mut changes);
            self.unassign(shard.id, replica, reason, &mut changes);
            placed.push(node);
            held.insert(node);
        }
        while count < target {
            let Some(node) = self.choose(shard, &placed, &held) else { break };
            self.assign(shard.id, node, Reason::UnderReplicated, &mut changes);
            placed.push(node);
            held.insert(node);
            count += 1;
        }
        changes
    }

    /// Whether the shard matches its intent exactly, with all replicas voters on nodes that serve.
    pub(crate) fn is_settled(&self, shard: &PlanShard) -> bool {
        let intended: BTreeSet<_> = shard.intent.iter().map(|replica| (replica.replica, replica.node)).collect();
        let found: BTreeSet<_> = shard.actual.iter().map(|replica| (replica.replica, replica.node)).collect();
        intended == found
            && shard.actual.iter().all(|replica| replica.role == ReplicaRole::Voter)
            && intended.iter().all(|(_, node)| self.serves(*node))
    }

    /// Moves of healthy replicas, most useful first.
    pub(crate) fn moves(&mut self, shards: &[&PlanShard], threshold: u32, moves_max: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut moved = BTreeSet::new();
        for shard in shards {
            if moved.len() == moves_max {
                return changes;
            }
            if let Some((replica, node)) = self.spread_move(shard) {
                self.assign(shard.id, node, Reason::Spread, &mut changes);
                self.unassign(shard.id, replica, Reason::Spread, &mut changes);
                moved.insert(shard.id);
            }
        }
        while moved.len() < moves_max {
            let Some((shard, replica, node)) = self.balancing_move(shards, &moved, threshold) else { break };
            self.assign(shard, node, Reason::Balance, &mut changes);
            self.unassign(shard, replica, Reason::Balance, &mut changes);
            moved.insert(shard);
        }
        changes
    }

    /// Chooses the nodes of a new shard.
    pub(crate) fn place(&mut self, shard: ShardId, replicas_desired: u8) -> Vec<NodeId> {
        let shard = PlanShard { id: shard, replicas_desired, intent: Vec::new(), actual: Vec::new() };
        self.repair(&shard)
            .into_iter()
            .filter_map(|change| match change {
                Change::Assign { node, .. } => Some(node),
                Change::Unassign { .. } => None,
            })
            .collect()
    }

    /// The best balancing move: from the most loaded node possible to the least loaded node that can take one
    /// of its replicas.
    fn balancing_move(
        &self,
        shards: &[&PlanShard],
        moved: &BTreeSet<ShardId>,
        threshold: u32,
    ) -> Option<(ShardId, PlanReplica, NodeId)> {
        let limit = REPLICA_UNITS * (1 + i64::from(threshold));
        let mut by_load: Vec<(i64, NodeId)> =
            self.nodes.keys().filter(|node| self.is_live(**node)).map(|&node| (self.excess(node), node)).collect();
        by_load.sort_unstable();
        let (least, most) = (by_load.first()?.0, by_load.last()?.0);
        if most - least <= limit {
            return None;
        }
        // The metadata group is never moved: the balance gained is not worth another copy of the cluster's
        // keys. Nor is a shard that waits_for_nodes for more nodes: growing in place costs less than moving
        // first.
        let waits_for_nodes =
            |shard: &PlanShard| shard.intent.len() == 1 && at_most_odd(usize::from(shard.replicas_desired)) > 1;
        let movable: Vec<&PlanShard> = shards
            .iter()
            .copied()
            .filter(|shard| shard.id != ShardId::META && !waits_for_nodes(shard) && !moved.contains(&shard.id))
            .collect();
        for &(full, donor) in by_load.iter().rev() {
            let held: Vec<(&PlanShard, PlanReplica)> = movable
                .iter()
                .filter_map(|shard| Some((*shard, *shard.intent.iter().find(|replica| replica.node == donor)?)))
                .collect();
            for &(_, receiver) in by_load.iter().take_while(|(empty, _)| full - empty > limit) {
                if !self.may_take(receiver) {
                    continue;
                }
                let best = held
                    .iter()
                    .filter(|(shard, replica)| self.may_move(shard, *replica, receiver))
                    .max_by_key(|(shard, _)| (rendezvous_score(shard.id, receiver, 1), shard.id));
                if let Some((shard, replica)) = best {
                    return Some((shard.id, *replica, receiver));
                }
            }
        }
        None
    }

    /// Whether the receiver has no replica of the shard, and the move would not bring its replicas closer
    /// together.
    fn may_move(&self, shard: &PlanShard, replica: PlanReplica, receiver: NodeId) -> bool {
        let others = others(shard, replica);
        let holds = shard.intent.iter().any(|held| held.node == receiver);
        !holds && self.closeness(receiver, &others) <= self.closeness(replica.node, &others)
    }

    /// The move that improves the spread of the shard most: the replica and its new node.
    fn spread_move(&self, shard: &PlanShard) -> Option<(PlanReplica, NodeId)> {
        let held: BTreeSet<NodeId> = shard.intent.iter().map(|replica| replica.node).collect();
        shard
            .intent
            .iter()
            .filter_map(|&replica| {
                let others = others(shard, replica);
                let now = self.closeness(replica.node, &others);
                // Choosing is expensive, and most replicas already share no label.
                if now == 0 {
                    return None;
                }
                let node = self.choose(shard, &others, &held)?;
                let gain = now.saturating_sub(self.closeness(node, &others));
                (gain > 0).then_some((gain, Reverse(replica.replica), replica, node))
            })
            .max_by_key(|(gain, order, ..)| (*gain, *order))
            .map(|(_, _, replica, node)| (replica, node))
    }

    /// The index of the replica to remove first: closest to the others, then on the most loaded node, then
    /// with the lowest score.
    fn most_dispensable(&self, shard: ShardId, replicas: &[PlanReplica]) -> Option<usize> {
        (0..replicas.len()).max_by_key(|&i| {
            let node = replicas[i].node;
            let others: Vec<NodeId> =
                replicas.iter().map(|replica| replica.node).filter(|other| *other != node).collect();
            let score = Reverse(rendezvous_score(shard, node, self.weight(node)));
            (self.closeness(node, &others), self.excess(node), score, replicas[i].replica)
        })
    }

    /// The best node for one more replica besides those on `placed`; none of `held`.
    fn choose(&self, shard: &PlanShard, placed: &[NodeId], held: &BTreeSet<NodeId>) -> Option<NodeId> {
        self.candidates(held).min_by_key(|&node| {
            // A node that still has an old replica of this shard comes last.
            let has_old_replica = shard.actual.iter().any(|replica| replica.node == node);
            let score = Reverse(rendezvous_score(shard.id, node, self.weight(node)));
            (has_old_replica, self.closeness(node, placed), self.excess(node), score, node)
        })
    }

    fn candidates(&self, held: &BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied().filter(|node| self.may_take(*node) && !held.contains(node))
    }

    /// How much of its locality a node shares with others: each deeper shared label counts more than all
    /// outer ones of a shard's other replicas together.
    fn closeness(&self, node: NodeId, others: &[NodeId]) -> u64 {
        let Some(node) = self.nodes.get(&node) else { return 0 };
        others
            .iter()
            .filter_map(|other| self.nodes.get(other))
            .map(|other| match shared_labels(&node.locality, &other.locality) {
                0 => 0,
                depth => 1_u64 << (3 * (depth - 1)).min(48),
            })
            .sum()
    }

    /// How far a node is above its weighted share, in thousandths of a replica.
    fn excess(&self, node: NodeId) -> i64 {
        let share = self.count_total * REPLICA_UNITS * i64::from(self.weight(node)) / self.weight_total.max(1);
        self.counts.get(&node).copied().unwrap_or(0) * REPLICA_UNITS - share
    }

    fn failure_reason(&self, node: NodeId) -> Option<Reason> {
        match self.nodes.get(&node).map_or(NodeStatus::Removed, |node| node.status) {
            NodeStatus::Live | NodeStatus::Suspect | NodeStatus::Draining => None,
            NodeStatus::Dead => Some(Reason::NodeDead),
            NodeStatus::Leaving => Some(Reason::NodeLeaving),
            NodeStatus::Removed => Some(Reason::NodeRemoved),
        }
    }

    fn is_live(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.status == NodeStatus::Live)
    }

    fn serves(&self, node: NodeId) -> bool {
        let status = self.nodes.get(&node).map(|node| node.status);
        matches!(status, Some(NodeStatus::Live | NodeStatus::Draining))
    }

    fn may_take(&self, node: NodeId) -> bool {
        self.is_live(node) && self.weight(node) > 0
    }

    fn weight(&self, node: NodeId) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.weight)
    }

    fn assign(&mut self, shard: ShardId, node: NodeId, reason: Reason, changes: &mut Vec<Change>) {
        self.count(node, 1);
        changes.push(Change::Assign { shard, node, reason });
    }

    fn unassign(&mut self, shard: ShardId, replica: PlanReplica, reason: Reason, changes: &mut Vec<Change>) {
        self.count(replica.node, -1);
        changes.push(Change::Unassign { shard, replica: replica.replica, reason });
    }

    fn count(&mut self, node: NodeId, change: i64) {
        *self.counts.entry(node).or_default() += change;
        if self.is_live(node) {
            self.count_total += change;
        }
    }
}

/// How many replicas a shard can have on so many nodes, when this number of them is desired: two replicas
/// survive no failure more than one does.
#[must_use]
pub fn replicas_possible(desired: usize, nodes: usize) -> usize {
    at_most_odd(desired.min(nodes))
}

/// The largest odd number that is at most `count`, but at least one.
fn at_most_odd(count: usize) -> usize {
    count.saturating_sub(1) / 2 * 2 + 1
}

fn others(shard: &PlanShard, replica: PlanReplica) -> Vec<NodeId> {
    shard.intent.iter().filter(|other| other.replica != replica.replica).map(|other| other.node).collect()
}

/// The number of equal labels, counted from the outermost inwards.
fn shared_labels(a: &Locality, b: &Locality) -> usize {
    a.0.iter().zip(&b.0).take_while(|(a, b)| a == b).count()
}
