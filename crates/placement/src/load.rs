//! Steps that balance the work of nodes: leaderships first, because handing one over copies nothing, then replicas.
//!
//! A node's work is the sum of its shards', so that a step counts at once, long before anything measures it. Nodes are
//! compared by their work for their weights. A step goes from a node that is well above the mean to the one it relieves
//! most, and must be worth it:
//!
//! 1. it lowers the higher of the two by a fifth of their difference; or by a share of the mean
//!    ([`TRANSFER_GAIN_MILLI_MIN`], [`MOVE_GAIN_MILLI_MIN`]) that leaves the other one not well above it, because a
//!    node that has many small shards has no step that is a fifth. Whatever the shard's work is within [`NOISE_MILLI`]
//!    of what was measured;
//! 2. its reverse would not pass these rules if what was measured of the two nodes was wrong by [`NODE_NOISE_MILLI`].
//!
//! Invariants: integers only, and every order ends with an id; no step touches a shard that is not free; each step
//! lowers the sum of squares of work for weights, so that a plan ends.
//!
//! Deliberately absent: how long a shard is left alone after a step, and what is measured ([`LoadShard::is_free`] and
//! [`ShardLoad`] are the caller's).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_types::{NodeId, ShardId};

use crate::{
    plan::{NodeStatus, PlanNode, PlanReplica, PlanShard},
    planner::Planner,
};

/// By how much a node must be above the mean before it gives something away, in thousandths of the mean.
pub const EXCESS_MILLI_MIN: u64 = 100;
/// The same in absolute terms: microseconds of CPU time per second, for a weight of one.
pub const EXCESS_US_MIN: u64 = 50_000;
/// What the move of a replica gains at least, in thousandths of the mean.
pub const MOVE_GAIN_MILLI_MIN: u64 = 20;
/// What the transfer of a leadership gains at least, which copies nothing.
pub const TRANSFER_GAIN_MILLI_MIN: u64 = 2;
/// What a step gains at least instead, in thousandths of the difference of the two nodes.
pub const GAIN_MILLI_OF_DIFFERENCE: u64 = 200;
/// By how much the work of a shard may differ from what was measured, in thousandths.
pub const NOISE_MILLI: u64 = 150;
/// The same of a node. Less, because it is the sum of many.
pub const NODE_NOISE_MILLI: u64 = 50;
/// Replicas that move to a node, or from it, at a time.
pub const MOVES_PER_NODE_MAX: usize = 2;
/// Work is compared in thousandths of a microsecond per second, because it is divided by weights.
const WORK_UNITS: u64 = 1_000;

/// The work that a shard makes, in microseconds of CPU time per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardLoad {
    /// On the node that leads it.
    pub lead_us: u64,
    /// On each node with another replica; not more.
    pub follow_us: u64,
}

/// A shard and its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadShard {
    /// The shard.
    pub shard: PlanShard,
    /// The node that leads it, or is to lead it by an earlier step.
    pub leader: NodeId,
    /// Its work.
    pub load: ShardLoad,
    /// Whether a step may concern it now.
    pub is_free: bool,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadStep {
    /// The shard.
    pub shard: ShardId,
    /// The node that is relieved.
    pub from: NodeId,
    /// The node that takes it over.
    pub to: NodeId,
    /// The replica that moves; `None` if only the leadership does.
    pub replica: Option<PlanReplica>,
    /// By how much the higher of the two nodes falls, in microseconds per second for a weight of one.
    pub gain_us: u64,
}

/// Why there is no further step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadRest {
    /// No node is so far above the mean.
    Balanced {
        /// The work of the busiest node for its weight, in microseconds per second.
        most_us: u64,
        /// The mean.
        mean_us: u64,
    },
    /// A node is, and no step would be worth it.
    NoStep {
        /// The node.
        node: NodeId,
        /// Its work for its weight, in microseconds per second.
        most_us: u64,
        /// The mean.
        mean_us: u64,
    },
    /// As many steps are made at a time as may be.
    Enough,
}

/// How many steps a plan may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Leaderships.
    pub transfers_max: usize,
    /// Replicas.
    pub moves_max: usize,
}

/// Plans the next steps. `silent` are the nodes that have not told what they do: they neither give nor take. `moving`
/// counts the replicas that move already, at each of their two nodes.
#[must_use]
pub fn plan_by_load(
    nodes: &[PlanNode],
    shards: &[LoadShard],
    silent: &BTreeSet<NodeId>,
    moving: &BTreeMap<NodeId, usize>,
    limits: LoadLimits,
) -> (Vec<LoadStep>, LoadRest) {
    let mut work = Work::new(nodes, shards, silent, moving);
    let mut steps = Vec::new();
    let mut left = limits;
    loop {
        match work.next(left) {
            Ok(step) => {
                let budget = if step.replica.is_some() { &mut left.moves_max } else { &mut left.transfers_max };
                *budget -= 1;
                work.take(step);
                steps.push(step);
            }
            Err(rest) => return (steps, rest),
        }
    }
}

/// What a shard adds to the node that takes something of it over, and takes from the one that gives it.
#[derive(Clone, Copy)]
struct Shift {
    off: u64,
    on: u64,
}

impl Shift {
    fn scaled(self, milli: u64) -> Self {
        Self { off: self.off * milli / 1_000, on: self.on * milli / 1_000 }
    }

    fn reversed(self) -> Self {
        Self { off: self.on, on: self.off }
    }
}

/// The work of two nodes.
#[derive(Clone, Copy)]
struct Pair {
    giver: u64,
    taker: u64,
    giver_weight: u64,
    taker_weight: u64,
}

impl Pair {
    fn relative(self) -> (u64, u64) {
        (self.giver * WORK_UNITS / self.giver_weight, self.taker * WORK_UNITS / self.taker_weight)
    }

    fn after(self, shift: Shift) -> Self {
        Self { giver: self.giver.saturating_sub(shift.off), taker: self.taker + shift.on, ..self }
    }

    /// The other way around, if the work of the two is more different than it seems.
    fn reversed_by_noise(self) -> Self {
        let Self { giver, taker, giver_weight, taker_weight } = self;
        let (more, less) = (1_000 + NODE_NOISE_MILLI, 1_000 - NODE_NOISE_MILLI);
        Self {
            giver: taker * more / 1_000,
            taker: giver * less / 1_000,
            giver_weight: taker_weight,
            taker_weight: giver_weight,
        }
    }

    /// By how much the higher of the two falls.
    fn gain(self, shift: Shift) -> u64 {
        let ((giver, taker), (giver_after, taker_after)) = (self.relative(), self.after(shift).relative());
        giver.max(taker).saturating_sub(giver_after.max(taker_after))
    }
}

struct Work<'a> {
    planner: Planner<'a>,
    shards: Vec<LoadShard>,
    /// Where each shard is in `shards`.
    at: BTreeMap<ShardId, usize>,
    /// The weights of the nodes that give and take.
    weights: BTreeMap<NodeId, u64>,
    /// The work of each of them.
    work: BTreeMap<NodeId, u64>,
    /// The shards with a replica on each of them.
    held: BTreeMap<NodeId, BTreeSet<usize>>,
    moving: BTreeMap<NodeId, usize>,
    /// The mean work for a weight of one, in [`WORK_UNITS`]; it stays while work moves.
    mean: u64,
}

impl<'a> Work<'a> {
    fn new(
        nodes: &'a [PlanNode],
        shards: &[LoadShard],
        silent: &BTreeSet<NodeId>,
        moving: &BTreeMap<NodeId, usize>,
    ) -> Self {
        let takes = |node: &&PlanNode| node.status == NodeStatus::Live && node.weight > 0 && !silent.contains(&node.id);
        let weights: BTreeMap<_, _> =
            nodes.iter().filter(takes).map(|node| (node.id, u64::from(node.weight))).collect();
        let mut work: BTreeMap<NodeId, u64> = weights.keys().map(|node| (*node, 0)).collect();
        let mut held: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
        for (at, shard) in shards.iter().enumerate() {
            for replica in &shard.shard.intent {
                let share = if replica.node == shard.leader { shard.load.lead_us } else { shard.load.follow_us };
                if let Some(work) = work.get_mut(&replica.node) {
                    *work += share;
                    held.entry(replica.node).or_default().insert(at);
                }
            }
        }
        let mean = work.values().sum::<u64>() * WORK_UNITS / weights.values().sum::<u64>().max(1);
        let planner = Planner::with_counts(nodes, BTreeMap::new());
        let at = shards.iter().enumerate().map(|(at, shard)| (shard.shard.id, at)).collect();
        Self { planner, shards: shards.to_vec(), at, weights, work, held, moving: moving.clone(), mean }
    }

    fn relative(&self, node: NodeId) -> u64 {
        self.work[&node] * WORK_UNITS / self.weights[&node]
    }

    fn pair(&self, giver: NodeId, taker: NodeId) -> Pair {
        Pair {
            giver: self.work[&giver],
            taker: self.work[&taker],
            giver_weight: self.weights[&giver],
            taker_weight: self.weights[&taker],
        }
    }

    /// Whether so much work for a weight is well above the mean.
    fn is_excessive(&self, relative: u64) -> bool {
        let excess = relative.saturating_sub(self.mean);
        excess * 1_000 > self.mean * EXCESS_MILLI_MIN && excess > EXCESS_US_MIN * WORK_UNITS
    }

    /// What a step gains, if it is worth it.
    fn worth(&self, pair: Pair, shift: Shift, gain_milli_min: u64) -> Option<u64> {
        let (low, high) = (shift.scaled(1_000 - NOISE_MILLI), shift.scaled(1_000 + NOISE_MILLI));
        let is_undone = |shift: Shift| {
            let reverse = pair.after(shift).reversed_by_noise();
            self.is_excessive(reverse.relative().0) && self.is_gain(reverse, shift.reversed(), gain_milli_min)
        };
        let is_worth = self.is_gain(pair, low, gain_milli_min)
            && self.is_gain(pair, high, gain_milli_min)
            && !is_undone(low)
            && !is_undone(high);
        is_worth.then(|| pair.gain(shift))
    }

    fn is_gain(&self, pair: Pair, shift: Shift, gain_milli_min: u64) -> bool {
        let ((giver, taker), (_, taken)) = (pair.relative(), pair.after(shift).relative());
        let (gain, difference) = (pair.gain(shift), giver.saturating_sub(taker));
        let is_large = gain * 1_000 >= difference * GAIN_MILLI_OF_DIFFERENCE;
        // A small step that makes another node give something away in turn gains nothing.
        let is_useful = gain * 1_000 >= self.mean * gain_milli_min && !self.is_excessive(taken);
        gain > 0 && (is_large || is_useful)
    }

    /// The best step of the busiest node that has one.
    fn next(&self, left: LoadLimits) -> Result<LoadStep, LoadRest> {
        let mut busiest: Vec<NodeId> = self.work.keys().copied().collect();
        busiest.sort_by_key(|&node| (Reverse(self.relative(node)), node));
        let mut is_held_back = false;
        for &node in busiest.iter().take_while(|node| self.is_excessive(self.relative(**node))) {
            let transfer = self.best_transfer(node);
            if transfer.is_some() && left.transfers_max == 0 {
                is_held_back = true;
                continue;
            }
            if let Some(step) = transfer {
                return Ok(step);
            }
            let may_move = left.moves_max > 0 && self.has_room(node);
            match self.best_move(node, &busiest) {
                Some(step) if may_move => return Ok(step),
                found => is_held_back |= found.is_some(),
            }
        }
        let us = |relative: u64| relative / WORK_UNITS;
        let mean_us = us(self.mean);
        Err(match busiest.first() {
            _ if is_held_back => LoadRest::Enough,
            Some(&node) if self.is_excessive(self.relative(node)) => {
                LoadRest::NoStep { node, most_us: us(self.relative(node)), mean_us }
            }
            first => LoadRest::Balanced { most_us: first.map_or(0, |node| us(self.relative(*node))), mean_us },
        })
    }

    /// The shards with a replica on a node that steps may concern. Never the metadata group: it is no work to speak of.
    fn free_shards(&self, node: NodeId) -> impl Iterator<Item = &LoadShard> {
        let held = self.held.get(&node).into_iter().flatten().filter_map(|at| self.shards.get(*at));
        held.filter(|shard| shard.is_free && shard.shard.id != ShardId::META)
    }

    fn best_transfer(&self, from: NodeId) -> Option<LoadStep> {
        let led = self.free_shards(from).filter(|shard| shard.leader == from);
        let targets = led.flat_map(|shard| shard.shard.intent.iter().map(move |held| (shard, held.node)));
        let steps = targets.filter(|(_, to)| *to != from && self.weights.contains_key(to)).filter_map(|(shard, to)| {
            let moved = shard.load.lead_us.saturating_sub(shard.load.follow_us);
            let gain = self.worth(self.pair(from, to), Shift { off: moved, on: moved }, TRANSFER_GAIN_MILLI_MIN)?;
            Some((gain, Reverse((shard.shard.id, to))))
        });
        let (gain, Reverse((shard, to))) = steps.max()?;
        Some(LoadStep { shard, from, to, replica: None, gain_us: gain / WORK_UNITS })
    }

    /// The leadership goes with the replica of the leader.
    fn best_move(&self, from: NodeId, busiest: &[NodeId]) -> Option<LoadStep> {
        let mut best: Option<(u64, Reverse<(ShardId, NodeId)>, PlanReplica)> = None;
        for shard in self.free_shards(from) {
            let Some(&held) = shard.shard.intent.iter().find(|held| held.node == from) else { continue };
            let work = if shard.leader == from { shard.load.lead_us } else { shard.load.follow_us };
            // No node gains more by the step than the one with the least work.
            for &to in busiest.iter().rev() {
                let bound = self.pair(from, to).gain(Shift { off: work, on: work });
                if best.as_ref().is_some_and(|(gain, ..)| *gain >= bound) {
                    break;
                }
                if !self.has_room(to) || self.planner.keeps_spread(&shard.shard, held, to).is_err() {
                    continue;
                }
                if let Some(gain) = self.worth(self.pair(from, to), Shift { off: work, on: work }, MOVE_GAIN_MILLI_MIN)
                {
                    best = best.max(Some((gain, Reverse((shard.shard.id, to)), held)));
                }
                break;
            }
        }
        let (gain, Reverse((shard, to)), held) = best?;
        Some(LoadStep { shard, from, to, replica: Some(held), gain_us: gain / WORK_UNITS })
    }

    fn has_room(&self, node: NodeId) -> bool {
        self.moving.get(&node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX
    }

    /// Counts a step that was chosen.
    fn take(&mut self, step: LoadStep) {
        let Some(shard) = self.at.get(&step.shard).and_then(|at| self.shards.get_mut(*at)) else { return };
        let (lead, follow) = (shard.load.lead_us, shard.load.follow_us);
        let led = shard.leader == step.from;
        let shift = match step.replica {
            None => lead.saturating_sub(follow),
            Some(_) if led => lead,
            Some(_) => follow,
        };
        shard.is_free = false;
        if led {
            shard.leader = step.to;
        }
        if let Some(moved) = step.replica {
            shard.shard.intent.retain(|held| *held != moved);
            for node in [step.from, step.to] {
                *self.moving.entry(node).or_default() += 1;
            }
        }
        if let Some(work) = self.work.get_mut(&step.from) {
            *work = work.saturating_sub(shift);
        }
        *self.work.entry(step.to).or_default() += shift;
    }
}
