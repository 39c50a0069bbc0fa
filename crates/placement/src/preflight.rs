//! Whether nodes can give up all their replicas: the planner itself, run to its end on a copy.
//!
//! Invariant: a replica is said to stay if and only if repeated plans, each carried out at once, leave it.
//!
//! Deliberately absent: shards that change now and have a quorum. They finish first, and block nothing.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardId};

use crate::{
    Decision, Limits, Planning,
    plan::{NodeStatus, PlanInput, PlanNode, PlanReplica, PlanShard},
    planner::{Planner, others},
};

/// What happens when nodes give up their replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preflight {
    /// Replicas of each of these nodes that other nodes take.
    pub moves: BTreeMap<NodeId, usize>,
    /// Bytes of these replicas, as far as they are known.
    pub bytes: BTreeMap<NodeId, u64>,
    /// What speaks against it, in the order of shards.
    pub blockers: Vec<Blocker>,
}

/// A replica that speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocker {
    /// The shard.
    pub shard: ShardId,
    /// The replica and its node.
    pub held: PlanReplica,
    /// Why.
    pub why: Obstacle,
}

/// Why a replica cannot, or should not, leave its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// No other node can take it: it stays for as long as that is so.
    NoNode,
    /// The node that would take it has too little disk for all that it would take.
    Disk {
        /// The node that would take it.
        to: NodeId,
        /// Bytes of all replicas that it would take.
        needs_bytes: u64,
        /// Bytes that it may take: what is free beyond [`FREE_MILLI_MIN`].
        free_bytes: u64,
    },
    /// The shard has no quorum on nodes that answer, so it cannot change.
    Unsettled,
    /// The node that would take it is closer to the others by its labels: the shard would survive less.
    Zone {
        /// The node that would take it.
        to: NodeId,
        /// The node of the replica that it would be closest to.
        with: NodeId,
    },
}

/// Share of its disk that must stay free on a node that takes replicas, in thousandths.
pub const FREE_MILLI_MIN: u64 = 150;

/// The disk of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub bytes: u64,
    /// What is free, for a process without privileges.
    pub free_bytes: u64,
}

impl Disk {
    /// Bytes that replicas may take.
    fn usable_bytes(self) -> u64 {
        let kept = u128::from(self.bytes) * u128::from(FREE_MILLI_MIN) / 1_000;
        self.free_bytes.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX))
    }
}

/// What is known of disks. A node that is not listed takes whatever it is to take, and a shard that is not
/// listed takes no room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disks {
    /// The disks of nodes.
    pub nodes: BTreeMap<NodeId, Disk>,
    /// Bytes of a replica of each shard.
    pub shards: BTreeMap<ShardId, u64>,
}

/// Plans until nothing is left to repair, as if these nodes were leaving and every change were carried out at
/// once.
#[must_use]
pub fn preflight(input: &PlanInput, leaving: &BTreeSet<NodeId>, disks: &Disks) -> Preflight {
    let mut run = Run::new(input, leaving);
    let mut preflight = Preflight::default();
    let answers = answering(input);
    let mut moved: BTreeMap<ShardId, Vec<(PlanReplica, NodeId)>> = BTreeMap::new();
    let bytes_of = |shard| disks.shards.get(&shard).copied().unwrap_or(0);
    let mut arriving: BTreeMap<NodeId, u64> = BTreeMap::new();
    while let Some(decisions) = run.step() {
        for decision in decisions {
            if let Some(to) = decision.to {
                let bytes = arriving.entry(to).or_default();
                *bytes = bytes.saturating_add(bytes_of(decision.shard));
            }
            let Some(held) = decision.from.filter(|held| leaving.contains(&held.node)) else { continue };
            // Replicas that are one too many only go.
            let Some(to) = decision.to else { continue };
            moved.entry(decision.shard).or_default().push((held, to));
            *preflight.moves.entry(held.node).or_default() += 1;
            let bytes = preflight.bytes.entry(held.node).or_default();
            *bytes = bytes.saturating_add(bytes_of(decision.shard));
        }
    }
    let planner = Planner::with_counts(&run.planning.nodes, run.planning.counts.clone());
    for before in &input.shards {
        let Some(after) = run.planning.shards.get(&before.id) else { continue };
        let on_leaving = || before.intent.iter().filter(|held| leaving.contains(&held.node));
        if on_leaving().next().is_none() {
            continue;
        }
        let blocked = |held: &PlanReplica, why| Blocker { shard: before.id, held: *held, why };
        let stays = |held: &&PlanReplica| after.intent.contains(held);
        if has_quorum(before, &answers) {
            preflight.blockers.extend(on_leaving().filter(stays).map(|held| blocked(held, Obstacle::NoNode)));
        } else {
            preflight.blockers.extend(on_leaving().map(|held| blocked(held, Obstacle::Unsettled)));
            continue;
        }
        let moved = moved.get(&before.id).map_or(&[][..], Vec::as_slice);
        for (held, to) in moved {
            let Some(disk) = disks.nodes.get(to) else { continue };
            let (needs_bytes, free_bytes) = (arriving.get(to).copied().unwrap_or(0), disk.usable_bytes());
            // A replica that takes no room is not what fills the disk.
            if needs_bytes > free_bytes && bytes_of(before.id) > 0 {
                preflight.blockers.push(blocked(held, Obstacle::Disk { to: *to, needs_bytes, free_bytes }));
            }
        }
        if !moved.is_empty() && before.intent.len() == after.intent.len() && planner.is_closer(after, before) {
            let too_close = moved.iter().filter_map(|(held, to)| {
                let with = planner.closest_in(after, *to)?;
                Some(blocked(held, Obstacle::Zone { to: *to, with }))
            });
            preflight.blockers.extend(too_close);
        }
    }
    preflight
}

/// The nodes that answer, before any of them leaves.
fn answering(input: &PlanInput) -> BTreeSet<NodeId> {
    use NodeStatus::{Draining, Leaving, Live};
    let answers = |node: &&PlanNode| matches!(node.status, Live | Draining | Leaving);
    input.nodes.iter().filter(answers).map(|node| node.id).collect()
}

/// Whether the shard can change its replicas. One that has reported nothing yet has nothing to move.
fn has_quorum(shard: &PlanShard, answers: &BTreeSet<NodeId>) -> bool {
    let voters = || shard.actual.iter().filter(|found| found.role == ReplicaRole::Voter);
    let answering = voters().filter(|voter| answers.contains(&voter.node)).count();
    voters().count() == 0 || 2 * answering > voters().count()
}

/// Plans that are carried out at once.
struct Run {
    planning: Planning,
    limits: Limits,
    next_replica: ReplicaId,
}

impl Run {
    fn new(input: &PlanInput, leaving: &BTreeSet<NodeId>) -> Self {
        let nodes = input.nodes.iter().map(|node| {
            // A dead node that is to leave is repaired after all the same.
            let leaves = leaving.contains(&node.id) && !matches!(node.status, NodeStatus::Dead | NodeStatus::Removed);
            PlanNode { status: if leaves { NodeStatus::Leaving } else { node.status }, ..node.clone() }
        });
        let mut planning = Planning::default();
        planning.set_nodes(nodes.collect());
        for shard in &input.shards {
            planning.set_shard(shard.id, Some(shard.clone()));
        }
        let replicas = input.shards.iter().flat_map(|shard| &shard.intent).map(|held| held.replica);
        let next_replica = ReplicaId(replicas.max().map_or(0, |last| last.0.saturating_add(1)));
        // Healthy replicas that move change nothing of what can be repaired: a node can take a replica of a
        // shard or not, however full it is.
        Self { planning, limits: Limits { moves_max: 0, ..input.limits() }, next_replica }
    }

    /// Carries out one plan; `None` when there is nothing left to repair.
    fn step(&mut self) -> Option<Vec<Decision>> {
        let decisions = self.planning.plan(self.limits).decisions;
        for of_shard in decisions.chunk_by(|a, b| a.shard == b.shard) {
            let id = of_shard[0].shard;
            let Some(mut shard) = self.planning.shards.get(&id).cloned() else { continue };
            for decision in of_shard {
                shard.intent.retain(|held| Some(*held) != decision.from);
                if let Some(node) = decision.to {
                    shard.intent.push(PlanReplica { replica: self.next_replica, node });
                    self.next_replica = ReplicaId(self.next_replica.0.saturating_add(1));
                }
            }
            shard.actual = shard.intent.iter().map(voter).collect();
            self.planning.set_shard(id, Some(shard));
        }
        (!decisions.is_empty()).then_some(decisions)
    }
}

fn voter(held: &PlanReplica) -> ReplicaDescriptor {
    ReplicaDescriptor { replica: held.replica, node: held.node, role: ReplicaRole::Voter }
}

impl Planner<'_> {
    /// Whether the replicas of a shard are closer together than they were.
    fn is_closer(&self, after: &PlanShard, before: &PlanShard) -> bool {
        let closeness = |shard: &PlanShard| -> u64 {
            let of = |held: &PlanReplica| self.closeness(held.node, &others(shard, *held));
            shard.intent.iter().map(of).sum()
        };
        closeness(after) > closeness(before)
    }

    /// The node of another replica that a node of the shard is closest to, if they share any label.
    fn closest_in(&self, shard: &PlanShard, node: NodeId) -> Option<NodeId> {
        let others: Vec<_> = shard.intent.iter().map(|held| held.node).filter(|other| *other != node).collect();
        self.closest(node, &others).filter(|with| self.closeness(node, &[*with]) > 0)
    }
}
