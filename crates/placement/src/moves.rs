//! Moves of healthy replicas: for spread over localities, then for balance.
//!
//! Invariant: a move is explained by the rules that choose it: whether a node lacks the shard, takes
//! replicas, keeps the spread, and has less by more than the threshold.

use std::{cmp::Reverse, collections::BTreeSet};

use flotilla_types::{NodeId, ShardId};

use crate::{
    Decision, NonDecision, Reason, Rejected, Rejection,
    plan::{PlanReplica, PlanShard},
    planner::{Choice, Planner, REPLICA_UNITS, at_most_odd, others},
    rendezvous_score,
};

/// By how much two nodes may differ before replicas move, in thousandths of a replica.
fn limit(threshold: u32) -> i64 {
    REPLICA_UNITS * (1 + i64::from(threshold))
}

impl Planner<'_> {
    /// Moves of healthy replicas, most useful first, or why there is none.
    pub(crate) fn moves(
        &mut self,
        shards: &[&PlanShard],
        threshold: u32,
        moves_max: usize,
    ) -> Result<Vec<Decision>, NonDecision> {
        if moves_max == 0 {
            return Err(NonDecision::Off);
        }
        let mut decisions = Vec::new();
        let mut moved = BTreeSet::new();
        for shard in shards {
            if moved.len() == moves_max {
                return Ok(decisions);
            }
            if let Some((replica, choice)) = self.spread_move(shard) {
                self.decide(shard.id, Some(replica), choice, Reason::Spread, &mut decisions);
                moved.insert(shard.id);
            }
        }
        while moved.len() < moves_max {
            let Some((shard, replica, choice)) = self.balancing_move(shards, &moved, threshold) else { break };
            self.decide(shard, Some(replica), choice, Reason::Balance, &mut decisions);
            moved.insert(shard);
        }
        if decisions.is_empty() { Err(self.nothing_moves(threshold)) } else { Ok(decisions) }
    }

    fn nothing_moves(&self, threshold: u32) -> NonDecision {
        let by_load = self.by_load();
        let range = by_load.first().zip(by_load.last());
        let (difference, limit) = (range.map_or(0, |(least, most)| most.0 - least.0), limit(threshold));
        if difference <= limit {
            NonDecision::Balanced { difference, limit }
        } else {
            NonDecision::NoMove { difference, limit }
        }
    }

    /// The live nodes by how far they are above their shares, the emptiest first.
    fn by_load(&self) -> Vec<(i64, NodeId)> {
        let mut by_load: Vec<(i64, NodeId)> =
            self.nodes.keys().filter(|node| self.is_live(**node)).map(|&node| (self.excess(node), node)).collect();
        by_load.sort_unstable();
        by_load
    }

    /// The best balancing move: from the most loaded node possible to the least loaded node that can take one
    /// of its replicas.
    fn balancing_move(
        &self,
        shards: &[&PlanShard],
        moved: &BTreeSet<ShardId>,
        threshold: u32,
    ) -> Option<(ShardId, PlanReplica, Choice)> {
        let by_load = self.by_load();
        let (least, most) = (by_load.first()?.0, by_load.last()?.0);
        narrows(most, least, threshold).ok()?;
        let movable: Vec<&PlanShard> =
            shards.iter().copied().filter(|shard| is_movable(shard).is_ok() && !moved.contains(&shard.id)).collect();
        for &(full, donor) in by_load.iter().rev() {
            let held: Vec<(&PlanShard, PlanReplica)> = movable
                .iter()
                .filter_map(|shard| Some((*shard, *shard.intent.iter().find(|replica| replica.node == donor)?)))
                .collect();
            for &(_, receiver) in by_load.iter().take_while(|(empty, _)| narrows(full, *empty, threshold).is_ok()) {
                if self.takes(receiver).is_err() {
                    continue;
                }
                let best = held
                    .iter()
                    .filter(|(shard, replica)| self.keeps_spread(shard, *replica, receiver).is_ok())
                    .max_by_key(|(shard, _)| (rendezvous_score(shard.id, receiver, 1), shard.id));
                if let Some((shard, replica)) = best {
                    let rejected = self.rejected_for_balance(shard, *replica, receiver, threshold);
                    return Some((shard.id, *replica, Choice { node: receiver, rejected }));
                }
            }
        }
        None
    }

    /// Why no other node than the receiver gets a replica that moves for balance.
    fn rejected_for_balance(
        &self,
        shard: &PlanShard,
        replica: PlanReplica,
        receiver: NodeId,
        threshold: u32,
    ) -> Vec<Rejected> {
        let others = self.nodes.keys().filter(|node| ![receiver, replica.node].contains(*node));
        let reject = |&node: &NodeId| {
            let why = match self.check_balance(shard, replica, node, threshold) {
                Err(why) => why,
                // Of nodes that could take it, the emptiest does.
                Ok(()) if self.excess(node) > self.excess(receiver) => Rejection::Fuller,
                Ok(()) => Rejection::Hash,
            };
            Rejected { node, why }
        };
        others.map(reject).collect()
    }

    /// Whether a replica may move to a node for balance.
    fn check_balance(
        &self,
        shard: &PlanShard,
        replica: PlanReplica,
        receiver: NodeId,
        threshold: u32,
    ) -> Result<(), Rejection> {
        self.keeps_spread(shard, replica, receiver)?;
        self.takes(receiver)?;
        is_movable(shard)?;
        narrows(self.excess(replica.node), self.excess(receiver), threshold)
    }

    /// Why a healthy replica is on its node and not on each of the others: what speaks against a move for
    /// spread, and against one for balance; `otherwise` is said of those against which nothing speaks.
    pub(crate) fn rejected_for_moves(
        &self,
        shard: &PlanShard,
        replica: PlanReplica,
        threshold: u32,
        otherwise: Rejection,
    ) -> Vec<Rejected> {
        let near = others(shard, replica);
        let check = |node: NodeId| -> Result<(), Rejection> {
            self.keeps_spread(shard, replica, node)?;
            self.takes(node)?;
            if self.closeness(node, &near) < self.closeness(replica.node, &near) {
                return Ok(());
            }
            self.check_balance(shard, replica, node, threshold)
        };
        let others = self.nodes.keys().filter(|node| **node != replica.node);
        others.map(|&node| Rejected { node, why: check(node).err().unwrap_or(otherwise) }).collect()
    }

    /// Whether the receiver has no replica of the shard, and the move would not bring its replicas closer
    /// together.
    fn keeps_spread(&self, shard: &PlanShard, replica: PlanReplica, receiver: NodeId) -> Result<(), Rejection> {
        if shard.intent.iter().any(|held| held.node == receiver) {
            return Err(Rejection::HoldsReplica);
        }
        if self.brings_closer(shard, replica, receiver) {
            return Err(self.closer(receiver, &others(shard, replica)));
        }
        Ok(())
    }

    /// Whether a move brings the replicas of a shard closer together.
    pub(crate) fn brings_closer(&self, shard: &PlanShard, replica: PlanReplica, receiver: NodeId) -> bool {
        let others = others(shard, replica);
        self.closeness(receiver, &others) > self.closeness(replica.node, &others)
    }

    /// The move that improves the spread of the shard most: the replica and its new node.
    fn spread_move(&self, shard: &PlanShard) -> Option<(PlanReplica, Choice)> {
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
                let choice = self.choose(shard, &others, &held)?;
                let gain = now.saturating_sub(self.closeness(choice.node, &others));
                (gain > 0).then_some((gain, Reverse(replica.replica), replica, choice))
            })
            .max_by_key(|(gain, order, ..)| (*gain, *order))
            .map(|(_, _, replica, choice)| (replica, choice))
    }
}

/// Whether a replica that moves between nodes with these excesses narrows their difference, which is above
/// the threshold.
fn narrows(full: i64, empty: i64, threshold: u32) -> Result<(), Rejection> {
    let (difference, limit) = (full - empty, limit(threshold));
    if difference > limit { Ok(()) } else { Err(Rejection::WithinThreshold { difference, limit }) }
}

/// Whether replicas of the shard move for balance. Those of the metadata group never do: the balance gained
/// is not worth another copy of the cluster's keys. Nor do those of a shard that waits for more nodes:
/// growing in place costs less than moving first.
fn is_movable(shard: &PlanShard) -> Result<(), Rejection> {
    if shard.id == ShardId::META {
        Err(Rejection::MetadataGroup)
    } else if shard.intent.len() == 1 && at_most_odd(usize::from(shard.replicas_desired)) > 1 {
        Err(Rejection::WaitsForNodes)
    } else {
        Ok(())
    }
}
