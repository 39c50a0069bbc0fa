//! The computations of a plan: loads, closeness of nodes, the choice of a node, and repairs.
//!
//! Invariants: loads count the intent with the plan's changes so far, so that later decisions see earlier
//! ones. Every ordering ends with an id, so that ties are decided the same everywhere. The rules that choose
//! a node are those that say why another one was not chosen.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_types::{Locality, NodeId, ReplicaRole, ShardId};

use crate::{
    Decision, Reason, Rejected, Rejection,
    plan::{NodeStatus, PlanNode, PlanReplica, PlanShard},
    rendezvous_score,
};

/// Loads are compared in thousandths of a replica, because a weighted share is rarely a whole number.
pub(crate) const REPLICA_UNITS: i64 = 1_000;

/// What a repair of a shard does and what it cannot do.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    pub(crate) decisions: Vec<Decision>,
    /// Replicas that should go and stay, because no node can take them.
    pub(crate) stuck: Vec<(PlanReplica, Reason)>,
    /// Whether the shard has fewer replicas than desired, also after this.
    pub(crate) is_short: bool,
}

/// A node for a replica, and why no other one.
pub(crate) struct Choice {
    pub(crate) node: NodeId,
    pub(crate) rejected: Vec<Rejected>,
}

/// How well a node suits a replica; the lowest suits best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// A node that still has an old replica of the shard comes last.
    has_old_replica: bool,
    closeness: u64,
    excess: i64,
    score: Reverse<u64>,
    node: NodeId,
}

pub(crate) struct Planner<'a> {
    pub(crate) nodes: BTreeMap<NodeId, &'a PlanNode>,
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
    pub(crate) fn repair(&mut self, shard: &PlanShard) -> Repair {
        let mut repair = Repair::default();
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
            self.remove(shard.id, replica, &mut repair.decisions);
            held.remove(&replica.node);
        }
        for _ in 0..surplus {
            let Some(worst) = self.most_dispensable(shard.id, &kept) else { break };
            let replica = kept.remove(worst);
            self.remove(shard.id, replica, &mut repair.decisions);
            held.remove(&replica.node);
        }

        let mut placed: Vec<NodeId> = kept.iter().map(|replica| replica.node).collect();
        let reachable = placed.len() + self.candidates(&held).count();
        let target = replicas_possible(desired, reachable);
        let mut count = kept.len() + failing.len();
        for (replica, reason) in failing {
            // Where one replica finds no node, none of the others does.
            let Some(choice) = self.choose(shard, &placed, &held) else {
                repair.stuck.push((replica, reason));
                continue;
            };
            let node = choice.node;
            self.decide(shard.id, Some(replica), choice, reason, &mut repair.decisions);
            placed.push(node);
            held.insert(node);
        }
        while count < target {
            let Some(choice) = self.choose(shard, &placed, &held) else { break };
            let node = choice.node;
            self.decide(shard.id, None, choice, Reason::UnderReplicated, &mut repair.decisions);
            placed.push(node);
            held.insert(node);
            count += 1;
        }
        repair.is_short = count < desired;
        repair
    }

    /// Whether the shard matches its intent exactly, with all replicas voters on nodes that serve.
    pub(crate) fn is_settled(&self, shard: &PlanShard) -> bool {
        let intended: BTreeSet<_> = shard.intent.iter().map(|replica| (replica.replica, replica.node)).collect();
        let found: BTreeSet<_> = shard.actual.iter().map(|replica| (replica.replica, replica.node)).collect();
        intended == found
            && shard.actual.iter().all(|replica| replica.role == ReplicaRole::Voter)
            && intended.iter().all(|(_, node)| self.serves(*node))
    }

    /// Chooses the nodes of a new shard.
    pub(crate) fn place(&mut self, shard: ShardId, replicas_desired: u8) -> Vec<NodeId> {
        let shard = PlanShard { id: shard, replicas_desired, intent: Vec::new(), actual: Vec::new() };
        self.repair(&shard).decisions.into_iter().filter_map(|decision| decision.to).collect()
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
    pub(crate) fn choose(&self, shard: &PlanShard, placed: &[NodeId], held: &BTreeSet<NodeId>) -> Option<Choice> {
        let mut ranks = Vec::new();
        let mut rejected = Vec::new();
        for &node in self.nodes.keys() {
            match self.admit(node, held) {
                Ok(()) => ranks.push(self.rank(shard, node, placed)),
                Err(why) => rejected.push(Rejected { node, why }),
            }
        }
        let best = *ranks.iter().min()?;
        let outranked = ranks.iter().filter(|rank| rank.node != best.node);
        rejected.extend(outranked.map(|rank| Rejected { node: rank.node, why: self.outranked(rank, &best, placed) }));
        rejected.sort_by_key(|rejected| rejected.node);
        Some(Choice { node: best.node, rejected })
    }

    fn rank(&self, shard: &PlanShard, node: NodeId, placed: &[NodeId]) -> Rank {
        Rank {
            has_old_replica: shard.actual.iter().any(|replica| replica.node == node),
            closeness: self.closeness(node, placed),
            excess: self.excess(node),
            score: Reverse(rendezvous_score(shard.id, node, self.weight(node))),
            node,
        }
    }

    /// By what a node suits less than the best one.
    fn outranked(&self, rank: &Rank, best: &Rank, placed: &[NodeId]) -> Rejection {
        if rank.has_old_replica != best.has_old_replica {
            Rejection::OldReplica
        } else if rank.closeness != best.closeness {
            self.closer(rank.node, placed)
        } else if rank.excess != best.excess {
            Rejection::Fuller
        } else {
            Rejection::Hash
        }
    }

    /// The rejection of a node that is too close to these.
    pub(crate) fn closer(&self, node: NodeId, others: &[NodeId]) -> Rejection {
        Rejection::Closer { with: self.closest(node, others).unwrap_or(node) }
    }

    /// The one of these that shares the most labels with a node.
    pub(crate) fn closest(&self, node: NodeId, others: &[NodeId]) -> Option<NodeId> {
        others.iter().copied().max_by_key(|other| (self.closeness(node, &[*other]), Reverse(*other)))
    }

    fn candidates(&self, held: &BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied().filter(|node| self.admit(*node, held).is_ok())
    }

    /// Whether a node can take a replica of a shard that has replicas on `held`.
    pub(crate) fn admit(&self, node: NodeId, held: &BTreeSet<NodeId>) -> Result<(), Rejection> {
        if held.contains(&node) { Err(Rejection::HoldsReplica) } else { self.takes(node) }
    }

    /// Whether a node takes replicas at all.
    pub(crate) fn takes(&self, node: NodeId) -> Result<(), Rejection> {
        if !self.is_live(node) {
            return Err(Rejection::Status(self.status(node)));
        }
        if self.weight(node) == 0 { Err(Rejection::NoWeight) } else { Ok(()) }
    }

    /// How much of its locality a node shares with others: each deeper shared label counts more than all
    /// outer ones of a shard's other replicas together.
    pub(crate) fn closeness(&self, node: NodeId, others: &[NodeId]) -> u64 {
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
    pub(crate) fn excess(&self, node: NodeId) -> i64 {
        self.replicas(node) * REPLICA_UNITS - self.share(node)
    }

    /// Replicas in the intents on a node.
    pub(crate) fn replicas(&self, node: NodeId) -> i64 {
        self.counts.get(&node).copied().unwrap_or(0)
    }

    /// A node's weighted share of the replicas, in thousandths of a replica.
    pub(crate) fn share(&self, node: NodeId) -> i64 {
        self.count_total * REPLICA_UNITS * i64::from(self.weight(node)) / self.weight_total.max(1)
    }

    /// A node's status; one that is not listed was removed.
    pub(crate) fn status(&self, node: NodeId) -> NodeStatus {
        self.nodes.get(&node).map_or(NodeStatus::Removed, |node| node.status)
    }

    pub(crate) fn failure_reason(&self, node: NodeId) -> Option<Reason> {
        match self.status(node) {
            NodeStatus::Live | NodeStatus::Suspect | NodeStatus::Draining => None,
            NodeStatus::Dead => Some(Reason::NodeDead),
            NodeStatus::Leaving => Some(Reason::NodeLeaving),
            NodeStatus::Removed => Some(Reason::NodeRemoved),
        }
    }

    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        self.status(node) == NodeStatus::Live
    }

    fn serves(&self, node: NodeId) -> bool {
        matches!(self.status(node), NodeStatus::Live | NodeStatus::Draining)
    }

    fn weight(&self, node: NodeId) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.weight)
    }

    /// Decides on another replica, which may take the place of one.
    pub(crate) fn decide(
        &mut self,
        shard: ShardId,
        from: Option<PlanReplica>,
        to: Choice,
        reason: Reason,
        decisions: &mut Vec<Decision>,
    ) {
        self.count(to.node, 1);
        if let Some(from) = from {
            self.count(from.node, -1);
        }
        decisions.push(Decision { shard, from, to: Some(to.node), reason, rejected: to.rejected });
    }

    /// Decides that a replica is one too many.
    fn remove(&mut self, shard: ShardId, replica: PlanReplica, decisions: &mut Vec<Decision>) {
        self.count(replica.node, -1);
        let (from, reason) = (Some(replica), Reason::Surplus);
        decisions.push(Decision { shard, from, to: None, reason, rejected: Vec::new() });
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
pub(crate) fn at_most_odd(count: usize) -> usize {
    count.saturating_sub(1) / 2 * 2 + 1
}

pub(crate) fn others(shard: &PlanShard, replica: PlanReplica) -> Vec<NodeId> {
    shard.intent.iter().filter(|other| other.replica != replica.replica).map(|other| other.node).collect()
}

/// The number of equal labels, counted from the outermost inwards.
fn shared_labels(a: &Locality, b: &Locality) -> usize {
    a.0.iter().zip(&b.0).take_while(|(a, b)| a == b).count()
}
