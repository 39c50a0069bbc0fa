//! Says why each replica of a shard is where it is, and what the next plan does with it.
//!
//! Invariant: what goes is what a plan made now decides; what stays is judged by the rules of that plan.
//! Costs as much as a plan that visits everything: it is for questions of operators.

use std::collections::BTreeSet;

use flotilla_types::{NodeId, ReplicaDescriptor, ReplicaRole, ShardId};

use crate::{
    Decision, Limits, NonDecision, Planning, Reason, Rejected, Rejection,
    plan::{NodeStatus, Plan, PlanReplica, PlanShard},
    planner::Planner,
};

/// Why the replicas of a shard are where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The shard.
    pub shard: ShardId,
    /// The desired number of replicas.
    pub replicas_desired: u8,
    /// The replicas of the intent, then those that the shard still has besides.
    pub replicas: Vec<ReplicaExplanation>,
    /// Replicas that the next plan adds, besides those that take the place of another one.
    pub additions: Vec<Decision>,
    /// Whether there are fewer replicas than desired, and no node for another one.
    pub is_short: bool,
    /// What the next plan leaves as it is, in the whole cluster.
    pub undecided: Vec<NonDecision>,
}

/// Why a replica is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaExplanation {
    /// The replica and its node.
    pub held: PlanReplica,
    /// The status of the node.
    pub status: NodeStatus,
    /// Replicas of all shards that are meant for the node.
    pub count: u64,
    /// How many would be its share by its weight, in thousandths of a replica.
    pub share_milli: u64,
    /// How far the shard is with it.
    pub phase: ReplicaPhase,
    /// What becomes of it.
    pub fate: Fate,
    /// The other nodes, and why none of them gets it. None for a replica that is being removed.
    pub rejected: Vec<Rejected>,
}

/// How far a shard is with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaPhase {
    /// It votes.
    InPlace,
    /// It was decided on, and does not vote yet.
    Arriving,
    /// It was decided against, and the shard still has it.
    Departing,
}

/// What becomes of a replica by the next plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It stays.
    Stays,
    /// It goes, and another one on `to` takes its place, if there is to be one.
    Goes {
        /// The other node.
        to: Option<NodeId>,
        /// Why.
        reason: Reason,
    },
    /// It should go, and no node can take it.
    Stuck {
        /// Why it should go.
        reason: Reason,
    },
    /// It was decided against before.
    Departs,
}

impl Planning {
    /// What the next plan would be. Changes nothing.
    #[must_use]
    pub fn preview(&self, limits: Limits) -> Plan {
        self.clone().plan(limits)
    }

    /// Why the replicas of a shard are where they are; `None` if there is no such shard.
    #[must_use]
    pub fn explain(&self, shard: ShardId, limits: Limits) -> Option<Explanation> {
        let shard = self.shards.get(&shard)?;
        let mut plan = self.preview(limits);
        let planner = Planner::with_counts(&self.nodes, self.counts.clone());
        let mut repair = Planner::with_counts(&self.nodes, self.counts.clone()).repair(shard);
        let mut decisions: Vec<_> = plan.decisions.extract_if(.., |decision| decision.shard == shard.id).collect();
        if decisions.is_empty() {
            // The plan may be full with repairs of other shards.
            decisions.append(&mut repair.decisions);
        }
        let mut held: BTreeSet<_> = shard.intent.iter().map(|held| held.node).collect();
        held.extend(decisions.iter().filter_map(|decision| decision.to));
        let is_pinned = self.pinned.contains(&shard.id);
        let otherwise = if is_pinned { Rejection::PlacedByOperator } else { Rejection::Later };
        let explain = |replica: PlanReplica| {
            let decision = decisions.iter().find(|decision| decision.from == Some(replica));
            let stuck = repair.stuck.iter().find(|(stuck, _)| *stuck == replica);
            let (fate, rejected) = match (decision, stuck) {
                (Some(Decision { to, reason, rejected, .. }), _) => {
                    (Fate::Goes { to: *to, reason: *reason }, rejected.clone())
                }
                (None, Some((_, reason))) => (Fate::Stuck { reason: *reason }, planner.none_admitted(&held, replica)),
                (None, None) => {
                    (Fate::Stays, planner.rejected_for_moves(shard, replica, limits.balance_threshold, otherwise))
                }
            };
            let phase = if votes(shard, replica) { ReplicaPhase::InPlace } else { ReplicaPhase::Arriving };
            planner.describe(replica, phase, fate, rejected)
        };
        let is_meant = |found: &ReplicaDescriptor| shard.intent.iter().any(|held| held.replica == found.replica);
        let departing = shard.actual.iter().filter(|found| !is_meant(found)).map(|found| {
            let held = PlanReplica { replica: found.replica, node: found.node };
            planner.describe(held, ReplicaPhase::Departing, Fate::Departs, Vec::new())
        });
        let replicas = shard.intent.iter().copied().map(explain).chain(departing).collect();
        Some(Explanation {
            shard: shard.id,
            replicas_desired: shard.replicas_desired,
            replicas,
            additions: decisions.into_iter().filter(|decision| decision.from.is_none()).collect(),
            is_short: repair.is_short,
            undecided: plan.undecided,
        })
    }
}

fn votes(shard: &PlanShard, held: PlanReplica) -> bool {
    shard.actual.iter().any(|found| found.replica == held.replica && found.role == ReplicaRole::Voter)
}

impl Planner<'_> {
    /// Why no node takes a replica of a shard that has replicas on `held`.
    fn none_admitted(&self, held: &BTreeSet<NodeId>, replica: PlanReplica) -> Vec<Rejected> {
        let others = self.nodes.keys().filter(|node| **node != replica.node);
        others.filter_map(|&node| Some(Rejected { node, why: self.admit(node, held).err()? })).collect()
    }

    fn describe(
        &self,
        held: PlanReplica,
        phase: ReplicaPhase,
        fate: Fate,
        rejected: Vec<Rejected>,
    ) -> ReplicaExplanation {
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        ReplicaExplanation {
            held,
            status: self.status(held.node),
            count: unsigned(self.replicas(held.node)),
            share_milli: unsigned(self.share(held.node)),
            phase,
            fate,
            rejected,
        }
    }
}
