//! Decides where replicas should be, on the metadata group's leader, and removes nodes that left without a
//! word.
//!
//! Invariants: no node counts as dead before this node has led, and watched, for a whole grace period itself;
//! healthy replicas stay where they are until no node has joined for a while, and while this node is busy.

use std::collections::BTreeSet;

use flotilla_membership::NodeState;
use flotilla_meta::{
    Liveness, MetaCommand, MetaState, NodeState as AdminState, OperationReason, OperationRecord, OperationState,
    Setting,
};
use flotilla_placement::{Hold, Limits, Plan, Planning};
use flotilla_types::{NodeId, ShardId};

use super::{
    Action, PlacementQuestion, PlacementReport, Reconciler, View,
    journal::{self, Journal, Verdict},
};

/// Time since the last join before healthy replicas are moved for balance, in milliseconds.
const SETTLE_MS: u64 = 20_000;
/// Share of its CPUs that this node may use while healthy replicas move, in thousandths.
const CPU_MILLI_MAX: u32 = 800;

/// How long placement leaves a shard alone after an operator has moved one of its replicas, in milliseconds.
const OPERATOR_KEEPS_MS: u64 = 600_000;

/// Plans while this node leads the metadata group.
#[derive(Debug, Default)]
pub struct Placement {
    leading: Option<Leading>,
    /// What was decided here, also before another node led.
    journal: Journal,
    /// The share of its CPUs that this node uses, in thousandths, as far as it is measured.
    cpu_milli: Option<u32>,
}

#[derive(Debug)]
struct Leading {
    since_ms: u64,
    planning: Planning,
    /// The metadata that plans know, and that of the last pass.
    meta: MetaState,
    planned_for: MetaState,
    /// The last plan.
    last: Plan,
    /// The shards with a move that an operator has paused.
    paused: BTreeSet<ShardId>,
}

impl Placement {
    /// Takes the share of its CPUs that this node uses, in thousandths.
    pub fn observe_cpu(&mut self, used_milli: Option<u32>) {
        self.cpu_milli = used_milli;
    }

    /// Whether the next pass is due at once, because nodes have joined, drain, leave or are gone since the last.
    #[must_use]
    pub fn is_woken_by(&self, meta: &MetaState) -> bool {
        self.leading.as_ref().is_some_and(|leading| !leading.planned_for.has_nodes_of(meta))
    }

    /// Answers an operator. `None` if this node does not lead the metadata group, unless the question is about its
    /// journal. Of a rebalancing it reports the last pass, which is to be made before.
    pub fn answer(&mut self, question: &PlacementQuestion, view: &View<'_>) -> Option<PlacementReport> {
        if let PlacementQuestion::Journal { limit } = *question {
            return Some(PlacementReport { entries: self.journal.newest(limit), explanation: None });
        }
        let limits = self.limits(view);
        let leading = self.leading(view)?;
        leading.follow(view, view.meta.setting(Setting::DeadNodeGraceMs));
        let mut report = PlacementReport::default();
        match *question {
            PlacementQuestion::Explain(shard) => report.explanation = leading.planning.explain(shard, limits),
            PlacementQuestion::Preview => {
                report.entries = journal::entries(&leading.planning.preview(limits), view.wall_ms);
            }
            PlacementQuestion::Rebalance | PlacementQuestion::Journal { .. } => {
                report.entries = journal::entries(&leading.last, view.wall_ms);
            }
        }
        Some(report)
    }

    /// What the last pass found and the one before had not.
    #[must_use]
    pub fn fresh_verdicts(&self) -> &[Verdict] {
        self.journal.fresh()
    }

    /// What is known while this node leads the metadata group; it is forgotten when it does no more.
    fn leading(&mut self, view: &View<'_>) -> Option<&mut Leading> {
        if view.leader_of(ShardId::META).is_none() {
            self.leading = None;
            return None;
        }
        Some(self.leading.get_or_insert_with(|| Leading::since(view.now_ms)))
    }

    fn limits(&self, view: &View<'_>) -> Limits {
        let (balance_threshold, moves_max) = view.meta.plan_limits();
        let youngest_ms = view.meta.nodes().map(|node| node.joined_at_ms).max().unwrap_or(0);
        let hold = match self.cpu_milli {
            _ if view.wall_ms < youngest_ms + SETTLE_MS => Some(Hold::RecentJoin),
            Some(used_milli) if used_milli > CPU_MILLI_MAX => Some(Hold::Cpu { used_milli }),
            _ => None,
        };
        Limits { balance_threshold, moves_max, hold }
    }

    /// Makes the next pass plan without any memory.
    #[cfg(test)]
    pub(super) fn look_anew(&mut self) {
        self.leading = self.leading.take().map(|leading| Leading::since(leading.since_ms));
    }
}

impl Leading {
    fn since(now_ms: u64) -> Self {
        Self {
            since_ms: now_ms,
            planning: Planning::default(),
            meta: MetaState::default(),
            planned_for: MetaState::default(),
            last: Plan::default(),
            paused: BTreeSet::new(),
        }
    }

    /// Tells the plans what has changed.
    fn follow(&mut self, view: &View<'_>, grace_ms: u64) {
        let nodes = view.meta.plan_nodes(|node| {
            let (state, since_ms) = view.members.liveness(node);
            liveness(state, since_ms, self.since_ms, view.now_ms, grace_ms)
        });
        self.planning.set_nodes(nodes);
        // How many replicas the metadata group should have is a setting.
        let changed = view.meta.shard_changes(&self.meta).map(|(shard, ..)| shard).chain([ShardId::META]);
        for shard in changed {
            let now = view.meta.shard(shard).map(|record| view.meta.plan_shard(record));
            self.planning.set_shard(shard, now);
        }
        if !view.meta.has_operations_of(&self.meta) {
            self.paused = view.meta.paused().map(|operation| operation.shard).collect();
        }
        let splitting = view.meta.splitting().map(|(shard, _)| shard);
        let splitting = splitting.chain(view.meta.merges().flat_map(|(left, merge)| [left, merge.right]));
        self.planning
            .set_pinned(splitting.chain(placed_by_operator(view)).chain(self.paused.iter().copied()).collect());
        self.meta = view.meta.clone();
    }
}

impl Reconciler for Placement {
    fn interval_ms(&self) -> u64 {
        500
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let limits = self.limits(view);
        let Some(leading) = self.leading(view) else {
            self.journal.record(&Plan::default(), view.wall_ms);
            return Vec::new();
        };
        leading.follow(view, view.meta.setting(Setting::DeadNodeGraceMs));
        leading.planned_for = leading.meta.clone();
        leading.last = leading.planning.plan(limits);
        for change in leading.last.changes() {
            tracing::info!(?change, "placement");
        }
        let mut commands = view.meta.commands_for(&leading.last);
        if let Some(leading) = &self.leading {
            self.journal.record(&leading.last, view.wall_ms);
        }
        commands.extend(departed(view));
        commands.into_iter().map(Action::Propose).collect()
    }
}

/// The shards of which an operator has moved a replica a short while ago.
fn placed_by_operator(view: &View<'_>) -> BTreeSet<ShardId> {
    let is_young = |since_ms: u64| view.wall_ms < since_ms.saturating_add(OPERATOR_KEEPS_MS);
    let moved = |operation: &&OperationRecord| {
        (operation.reason, operation.state) == (OperationReason::Operator, OperationState::Done)
            && operation.moved().is_some()
            && is_young(operation.since_ms)
    };
    view.meta.ended().filter(moved).map(|operation| operation.shard).collect()
}

/// Removes nodes that ended before they could say that they have left. A node that serves does it itself,
/// after it has answered its clients.
fn departed(view: &View<'_>) -> impl Iterator<Item = MetaCommand> {
    let is_absent = |node: NodeId| matches!(view.members.liveness(node).0, NodeState::Down | NodeState::Left);
    view.meta
        .nodes()
        .filter(move |node| node.state == AdminState::Leaving && is_absent(node.id))
        .filter(|node| !view.meta.is_named_by_a_shard(node.id))
        .map(|node| MetaCommand::CompleteLeave { node: node.id })
}

/// The liveness, for placement, of a node that membership has seen in `state` since `since_ms`. No node is
/// dead before this node has watched for a whole grace period itself (since `watching_since_ms`). All times
/// on one monotonic clock.
#[must_use]
pub fn liveness(state: NodeState, since_ms: u64, watching_since_ms: u64, now_ms: u64, grace_ms: u64) -> Liveness {
    match state {
        NodeState::Alive => Liveness::Live,
        NodeState::Suspect => Liveness::Suspect,
        NodeState::Unknown | NodeState::Down | NodeState::Left => {
            if now_ms.saturating_sub(since_ms.max(watching_since_ms)) >= grace_ms {
                Liveness::Dead
            } else {
                Liveness::Suspect
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::OperationChange;
    use flotilla_placement::NonDecision;
    use flotilla_types::{ClusterVersion, ReplicaDescriptor, ReplicaRole};

    use super::*;
    use crate::core::testing::{Meta, World, leads, node};

    #[test]
    fn down_node_is_dead_only_after_the_grace_period() {
        assert_eq!(liveness(NodeState::Down, 1_000, 0, 30_999, 30_000), Liveness::Suspect);
        assert_eq!(liveness(NodeState::Down, 1_000, 0, 31_000, 30_000), Liveness::Dead);
    }

    #[test]
    fn grace_period_of_an_unknown_node_starts_with_the_watch() {
        assert_eq!(liveness(NodeState::Unknown, 0, 5_000, 34_999, 30_000), Liveness::Suspect);
        assert_eq!(liveness(NodeState::Unknown, 0, 5_000, 35_000, 30_000), Liveness::Dead);
    }

    /// Node 1 leads the metadata group alone, of four nodes, with a shard on 2, 3 and 4.
    fn world() -> World {
        let mut meta = Meta::of_nodes(4);
        meta.collection(&[&[2, 3, 4]]);
        meta.setting(Setting::MetaReplicas, 1);
        let mut world = World::new(1, meta);
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        (2..=4).for_each(|id| world.hears(id, NodeState::Alive));
        world.wall_ms = 1_000_000;
        world
    }

    #[test]
    fn only_the_metadata_leader_plans_and_only_after_its_own_grace_period() {
        let mut world = world();
        let mut placement = Placement::default();
        world.hears(4, NodeState::Down);
        let led = std::mem::replace(&mut world.replicas, vec![leads(1, &[(1, 9)], &[])]);
        world.now_ms += 100_000;
        assert_eq!(world.reconcile(&mut placement), [], "another node plans");
        world.now_ms += 30_000;
        world.replicas = led.clone();
        assert_eq!(world.reconcile(&mut placement), []);
        world.now_ms += 29_999;
        assert_eq!(world.reconcile(&mut placement), []);
        world.replicas.clear();
        assert_eq!(world.reconcile(&mut placement), []);
        world.replicas = led;
        world.now_ms += 1;
        assert_eq!(world.reconcile(&mut placement), [], "the watch started again");
        world.now_ms += 30_000;
        let [Action::Propose(MetaCommand::Batch(commands))] = &world.reconcile(&mut placement)[..] else {
            panic!("one shard is planned for");
        };
        assert!(
            matches!(&commands[..], [MetaCommand::AssignReplica { node, .. }, MetaCommand::UnassignReplica { .. }]
                if *node == crate::core::testing::node(1)),
            "{commands:?}"
        );
    }

    #[test]
    fn nothing_moves_for_balance_until_no_node_has_joined_for_a_while() {
        let mut world = unbalanced();
        let joined_ms = world.meta.state().node(node(2)).expect("a node").joined_at_ms;
        world.wall_ms = joined_ms + SETTLE_MS - 1;
        assert_eq!(world.reconcile(&mut Placement::default()), []);
        world.wall_ms += 1;
        assert_ne!(world.reconcile(&mut Placement::default()), []);
    }

    /// Node 1 leads the metadata group, and holds all four shards alone beside node 2, long after both joined.
    fn unbalanced() -> World {
        let mut meta = Meta::of_nodes(2);
        meta.collection(&[&[1], &[1], &[1], &[1]]);
        meta.setting(Setting::MetaReplicas, 1);
        let mut world = World::new(1, meta);
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        world.hears(2, NodeState::Alive);
        world.wall_ms = 1_000_000;
        world
    }

    fn entries(world: &World, placement: &mut Placement, question: PlacementQuestion) -> Vec<Verdict> {
        let report = world.observe(|view| placement.answer(&question, view)).expect("this node leads");
        report.entries.into_iter().map(|entry| entry.verdict).collect()
    }

    #[test]
    fn while_this_node_is_busy_healthy_replicas_stay_and_others_are_replaced() {
        let mut world = unbalanced();
        let mut placement = Placement::default();
        placement.observe_cpu(Some(CPU_MILLI_MAX + 1));
        assert_eq!(world.reconcile(&mut placement), []);
        let used_milli = CPU_MILLI_MAX + 1;
        let busy = Verdict::Undecided(NonDecision::Held(Hold::Cpu { used_milli }));
        assert_eq!(entries(&world, &mut placement, PlacementQuestion::Rebalance), std::slice::from_ref(&busy));
        assert_eq!(entries(&world, &mut placement, PlacementQuestion::Preview), [busy]);
        world.meta.set_state(1, AdminState::Decommissioning);
        assert_ne!(world.reconcile(&mut placement), [], "repairs do not wait");
        let mut world = unbalanced();
        placement.observe_cpu(Some(CPU_MILLI_MAX));
        assert_ne!(world.reconcile(&mut placement), []);
        world.meta.join(3);
        world.wall_ms = 1_000;
        assert_eq!(world.reconcile(&mut Placement::default()), []);
    }

    #[test]
    fn a_question_decides_nothing_and_another_node_has_no_answer() {
        let mut world = unbalanced();
        let mut placement = Placement::default();
        let questions = [
            PlacementQuestion::Preview,
            PlacementQuestion::Explain(ShardId(1)),
            PlacementQuestion::Journal { limit: 9 },
            PlacementQuestion::Rebalance,
        ];
        for question in questions {
            world.observe(|view| placement.answer(&question, view)).expect("an answer");
        }
        let decided = world.reconcile(&mut Placement::default());
        assert_eq!(world.reconcile(&mut placement), decided);
        let previewed = entries(&world, &mut placement, PlacementQuestion::Rebalance);
        assert_eq!(entries(&world, &mut placement, PlacementQuestion::Preview), previewed);
        assert_eq!(entries(&world, &mut placement, PlacementQuestion::Journal { limit: 9 }).len(), previewed.len());
        assert_eq!(placement.fresh_verdicts().len(), previewed.len());
        let unknown = world.observe(|view| placement.answer(&PlacementQuestion::Explain(ShardId(99)), view));
        assert_eq!(unknown.map(|report| report.explanation), Some(None));
        world.replicas = vec![leads(1, &[(1, 9)], &[])];
        world.reconcile(&mut placement);
        assert_eq!(placement.fresh_verdicts(), []);
        for question in questions {
            let answer = world.observe(|view| placement.answer(&question, view));
            let is_journal = matches!(question, PlacementQuestion::Journal { .. });
            // What it decided before is worth knowing.
            assert_eq!(
                answer.map(|report| report.entries.len()),
                is_journal.then_some(previewed.len()),
                "{question:?}"
            );
        }
    }

    #[test]
    fn changes_of_nodes_wake_it_and_others_do_not() {
        let mut world = unbalanced();
        let mut placement = Placement::default();
        assert!(!placement.is_woken_by(&world.meta.state()), "it does not lead");
        world.reconcile(&mut placement);
        world.meta.setting(Setting::BalanceMovesMax, 1);
        world.meta.assign(ShardId(1), 2);
        assert!(!placement.is_woken_by(&world.meta.state()));
        for change in [AdminState::Decommissioning, AdminState::Active] {
            world.meta.set_state(2, change);
            // A question in between sees the change, too.
            world.observe(|view| placement.answer(&PlacementQuestion::Preview, view));
            assert!(placement.is_woken_by(&world.meta.state()), "{change:?}");
            world.reconcile(&mut placement);
            assert!(!placement.is_woken_by(&world.meta.state()));
        }
        world.meta.join(3);
        assert!(placement.is_woken_by(&world.meta.state()));
    }

    #[test]
    fn a_node_that_leaves_and_ended_is_removed_once_no_shard_names_it() {
        let mut meta = Meta::of_nodes(4);
        let shard = meta.collection(&[&[2, 3, 4]])[0];
        meta.setting(Setting::MetaReplicas, 1);
        meta.raise();
        meta.set_state(4, AdminState::Leaving);
        let mut world = World::new(1, meta);
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        (2..=4).for_each(|id| world.hears(id, NodeState::Alive));
        let mut placement = Placement::default();
        let moves = world.reconcile(&mut placement);
        assert!(matches!(&moves[..], [Action::Propose(MetaCommand::Batch(_))]), "{moves:?}");
        world.meta.assign(shard, 1);
        world.meta.unassign(shard, 4);
        world.hears(4, NodeState::Left);
        assert_eq!(world.reconcile(&mut placement), [], "the shard has not reported its change");
        let mut descriptor = world.meta.state().shard(shard).expect("a shard").descriptor.clone();
        descriptor.replicas.retain(|held| held.node != node(4));
        world.meta.report(descriptor);
        let complete = MetaCommand::CompleteLeave { node: node(4) };
        assert_eq!(world.reconcile(&mut placement), [Action::Propose(complete.clone())]);
        world.hears(4, NodeState::Alive);
        assert_eq!(world.reconcile(&mut placement), [], "it says so itself");
        world.meta.apply(&complete);
        world.hears(4, NodeState::Left);
        assert_eq!(world.reconcile(&mut placement), []);
    }

    /// The shards of which a first pass moves replicas.
    fn moved(world: &World) -> Vec<ShardId> {
        let mut shards = Vec::new();
        for action in world.reconcile(&mut Placement::default()) {
            let Action::Propose(MetaCommand::Batch(parts)) = action else { panic!("{action:?}") };
            shards.extend(parts.iter().filter_map(|part| match part {
                MetaCommand::MoveReplica { shard, .. } => Some(*shard),
                _ => None,
            }));
        }
        shards
    }

    /// Four shards on node 1 of two.
    #[test]
    fn a_shard_that_is_to_be_split_is_not_moved_for_balance_and_holds_up_no_other() {
        let mut world = unbalanced();
        (2..=ClusterVersion::SPLITS.0).for_each(|version| world.meta.raise_to(ClusterVersion(version)));
        world.wall_ms = world.meta.state().node(node(2)).expect("a node").joined_at_ms + SETTLE_MS;
        let chosen: BTreeSet<_> = moved(&world).into_iter().collect();
        assert_eq!(chosen.len(), 2);
        for shard in &chosen {
            let descriptor = world.meta.state().shard(*shard).expect("a shard").descriptor.clone();
            let mut at = descriptor.range.start.to_vec();
            at.push(b'k');
            let command = MetaCommand::SplitShard {
                shard: *shard,
                at: at.into(),
                epoch: descriptor.epoch,
                reason: OperationReason::Operator,
            };
            world.meta.apply(&command);
        }
        let others: BTreeSet<_> = moved(&world).into_iter().collect();
        assert!(!others.is_empty() && others.is_disjoint(&chosen), "{others:?}");
    }

    /// Four shards on node 1 of two. An operator has moved a replica of the first to node 2.
    #[test]
    fn what_an_operator_has_placed_stays_for_a_while() {
        let mut world = unbalanced();
        (2..=ClusterVersion::OPERATIONS.0).for_each(|version| world.meta.raise_to(ClusterVersion(version)));
        let shards: Vec<_> = world.meta.state().shards().map(|shard| shard.id).skip(1).collect();
        world.wall_ms = world.meta.state().node(node(2)).expect("a node").joined_at_ms + SETTLE_MS;
        assert_eq!(moved(&world).len(), 2);
        let begin = |world: &mut World, shard: ShardId| {
            let record = world.meta.state().shard(shard).expect("a shard").clone();
            let command = MetaCommand::MoveReplica {
                shard,
                replica: record.intent[0].replica,
                to: node(2),
                intent_version: record.intent_version,
                reason: OperationReason::Operator,
            };
            world.meta.apply(&command);
            world.meta.state().running_of(shard).next().expect("an operation").clone()
        };
        let first = begin(&mut world, shards[0]);
        assert_eq!(moved(&world), [], "it waits for the move");
        world.meta.apply(&MetaCommand::ChangeOperation {
            operation: first.id,
            changes: 0,
            change: OperationChange::Pause,
        });
        assert_eq!(moved(&world).len(), 1, "it does not wait for one that is paused");
        assert!(!moved(&world).contains(&shards[0]));
        world.meta.apply(&MetaCommand::ChangeOperation {
            operation: first.id,
            changes: 1,
            change: OperationChange::Resume,
        });
        let mut descriptor = world.meta.state().shard(shards[0]).expect("a shard").descriptor.clone();
        descriptor.epoch.config += 1;
        descriptor.replicas[0] = ReplicaDescriptor {
            replica: first.moved().expect("a move").1.replica,
            node: node(2),
            role: ReplicaRole::Voter,
        };
        world.meta.report(descriptor);
        // Node 2 is to lose no replica that it got this way, however few it should have.
        world.meta.setting(Setting::BalanceThreshold, 0);
        let others: Vec<_> = moved(&world);
        assert!(!others.is_empty() && !others.contains(&shards[0]), "{others:?}");
    }
}
