//! Tests of plans on small clusters, by example and by property.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{Locality, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardId};
use proptest::{prelude::*, sample::Index};

use crate::{
    Change, Decision, Limits, NodeStatus, PLAN_CHANGES_MAX, Plan, PlanInput, PlanNode, PlanReplica, PlanShard,
    Planning, Reason, brings_closer, place, plan, planner::Planner,
};

pub(crate) fn node(id: u64, zone: &str) -> PlanNode {
    let locality: Locality =
        if zone.is_empty() { Locality::default() } else { format!("zone={zone}").parse().expect("zone") };
    PlanNode { id: NodeId(id), status: NodeStatus::Live, locality, weight: 100 }
}

/// A settled shard whose replica on node n has the id 100·shard + n.
pub(crate) fn shard(id: u64, desired: u8, nodes: &[u64]) -> PlanShard {
    let intent: Vec<_> =
        nodes.iter().map(|&node| PlanReplica { replica: ReplicaId(100 * id + node), node: NodeId(node) }).collect();
    let mut shard = PlanShard { id: ShardId(id), replicas_desired: desired, intent, actual: Vec::new() };
    settle(&mut shard);
    shard
}

pub(crate) fn settle(shard: &mut PlanShard) {
    shard.actual = shard
        .intent
        .iter()
        .map(|held| ReplicaDescriptor { replica: held.replica, node: held.node, role: ReplicaRole::Voter })
        .collect();
}

pub(crate) fn input(nodes: Vec<PlanNode>, shards: Vec<PlanShard>) -> PlanInput {
    PlanInput { nodes, shards, balance_threshold: 0, moves_max: 4 }
}

/// Applies a plan to the intent, as the metadata group does.
pub(crate) fn apply(input: &mut PlanInput, plan: &Plan, next_replica: &mut u64) {
    for change in plan.changes() {
        let shard = input.shards.iter_mut().find(|shard| shard.id == change.shard()).expect("planned shard exists");
        match change {
            Change::Assign { node, .. } => {
                *next_replica += 1;
                shard.intent.push(PlanReplica { replica: ReplicaId(*next_replica), node });
            }
            Change::Unassign { replica, .. } => {
                let before = shard.intent.len();
                shard.intent.retain(|held| held.replica != replica);
                assert_eq!(shard.intent.len() + 1, before, "unassigned replica was in the intent");
            }
        }
    }
}

pub(crate) fn nodes_of(shard: &PlanShard) -> BTreeSet<u64> {
    shard.intent.iter().map(|held| held.node.0).collect()
}

fn counts(input: &PlanInput) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<_, _> = input.nodes.iter().map(|node| (node.id, 0)).collect();
    for held in input.shards.iter().flat_map(|shard| &shard.intent) {
        *counts.entry(held.node).or_default() += 1;
    }
    counts
}

/// Plans and settles until there is nothing left to do.
pub(crate) fn converge(input: &mut PlanInput) -> usize {
    let mut next_replica = 1_000_000;
    for round in 0..1_000 {
        let plan = plan(input);
        if plan.is_empty() {
            return round;
        }
        apply(input, &plan, &mut next_replica);
        assert!(input.shards.iter().all(|shard| nodes_of(shard).len() == shard.intent.len()), "two replicas on a node");
        input.shards.iter_mut().for_each(settle);
    }
    panic!("plans do not converge: {:?}", plan(input));
}

#[test]
fn two_nodes_hold_one_replica_and_a_third_node_adds_two_at_once() {
    let mut input = input(vec![node(1, ""), node(2, "")], vec![shard(0, 3, &[1]), shard(1, 3, &[1])]);
    assert!(plan(&input).is_empty(), "a shard that waits for more nodes does not move");
    input.nodes.push(node(3, ""));
    let plan = plan(&input);
    assert_eq!(plan.changes().count(), 4);
    apply(&mut input, &plan, &mut 1_000);
    assert!(input.shards.iter().all(|shard| nodes_of(shard) == BTreeSet::from([1, 2, 3])));
}

#[test]
fn four_nodes_never_make_four_voters() {
    let mut input = input((1..=4).map(|id| node(id, "")).collect(), vec![shard(0, 5, &[1])]);
    converge(&mut input);
    assert_eq!(input.shards[0].intent.len(), 3);
    input.nodes.push(node(5, ""));
    converge(&mut input);
    assert_eq!(input.shards[0].intent.len(), 5);
}

#[test]
fn replica_on_a_dead_node_is_replaced_when_another_node_can_take_it() {
    let mut input =
        input((1..=4).map(|id| node(id, "")).collect(), vec![shard(0, 3, &[1, 2, 3]), shard(7, 3, &[1, 2, 3])]);
    input.nodes[1].status = NodeStatus::Dead;
    let plan = plan(&input);
    let expected: Vec<Change> = [0, 7]
        .into_iter()
        .flat_map(|id| {
            let shard = ShardId(id);
            let replica = ReplicaId(100 * id + 2);
            [
                Change::Assign { shard, node: NodeId(4), reason: Reason::NodeDead },
                Change::Unassign { shard, replica, reason: Reason::NodeDead },
            ]
        })
        .collect();
    assert_eq!(plan.changes().collect::<Vec<_>>(), expected);
}

#[test]
fn without_a_replacement_every_replica_is_kept() {
    use NodeStatus::{Dead, Draining, Leaving, Removed, Suspect};
    for status in [Suspect, Dead, Draining, Leaving, Removed] {
        let mut input = input((1..=3).map(|id| node(id, "")).collect(), vec![shard(1, 3, &[1, 2, 3])]);
        input.nodes[2].status = status;
        assert!(plan(&input).is_empty(), "{status:?}");
    }
}

#[test]
fn suspect_node_keeps_its_replicas_and_gets_no_new_ones() {
    let mut input = input((1..=4).map(|id| node(id, "")).collect(), vec![shard(1, 3, &[1, 2, 3]), shard(2, 3, &[1])]);
    input.nodes[2].status = NodeStatus::Suspect;
    let plan = plan(&input);
    apply(&mut input, &plan, &mut 1_000);
    assert_eq!(nodes_of(&input.shards[0]), BTreeSet::from([1, 2, 3]));
    assert_eq!(nodes_of(&input.shards[1]), BTreeSet::from([1, 2, 4]));
}

#[test]
fn draining_node_keeps_its_replicas_gets_no_new_ones_and_stops_no_balancing() {
    let shards = vec![shard(1, 3, &[1, 2, 3]), shard(2, 3, &[1]), shard(3, 1, &[1]), shard(4, 1, &[1])];
    let mut input = input((1..=4).map(|id| node(id, "")).collect(), shards);
    input.nodes[2].status = NodeStatus::Draining;
    converge(&mut input);
    let on_it: Vec<_> =
        input.shards.iter().filter(|shard| nodes_of(shard).contains(&3)).map(|shard| shard.id).collect();
    assert_eq!(on_it, [ShardId(1)]);
    assert_eq!(input.shards[1].intent.len(), 3);
    let counts = counts(&input);
    assert!(counts[&NodeId(1)] < 4, "the others are balanced: {counts:?}");
    let placed = place(&input.nodes, &input.shards, &[(ShardId(9), 5)]);
    assert_eq!(placed[0].len(), 3);
    assert!(!placed[0].contains(&NodeId(3)), "{placed:?}");
}

#[test]
fn only_replica_moves_off_a_leaving_node() {
    let mut input = input(vec![node(1, ""), node(2, "")], vec![shard(1, 3, &[1])]);
    input.nodes[0].status = NodeStatus::Leaving;
    let plan = plan(&input);
    apply(&mut input, &plan, &mut 1_000);
    assert_eq!(nodes_of(&input.shards[0]), BTreeSet::from([2]));
}

#[test]
fn surplus_replica_is_removed_from_the_failing_node_first() {
    let mut input = input((1..=5).map(|id| node(id, "")).collect(), vec![shard(1, 3, &[1, 2, 3, 4, 5])]);
    input.nodes[3].status = NodeStatus::Dead;
    let plan = plan(&input);
    let changes: Vec<_> = plan.changes().collect();
    assert_eq!(changes.len(), 2);
    assert!(changes.contains(&Change::Unassign {
        shard: ShardId(1),
        replica: ReplicaId(104),
        reason: Reason::Surplus
    }));
}

#[test]
fn zone_that_joins_later_gets_a_replica() {
    let nodes = vec![node(1, "a"), node(2, "a"), node(3, "b"), node(4, "c")];
    let mut input = input(nodes, vec![shard(0, 3, &[1, 2, 3])]);
    let plan = plan(&input);
    assert!(matches!(plan.decisions[0], Decision { to: Some(NodeId(4)), reason: Reason::Spread, .. }), "{plan:?}");
    apply(&mut input, &plan, &mut 1_000);
    assert!(nodes_of(&input.shards[0]).is_superset(&BTreeSet::from([3, 4])));
}

#[test]
fn spread_over_regions_precedes_spread_over_zones() {
    let mut nodes: Vec<_> = (1..=4).map(|id| node(id, "")).collect();
    for (node, locality) in
        nodes.iter_mut().zip(["region=eu,zone=a", "region=eu,zone=b", "region=us,zone=a", "region=eu,zone=c"])
    {
        node.locality = locality.parse().expect("locality");
    }
    let placed = place(&nodes, &[], &[(ShardId(1), 3), (ShardId(2), 3)]);
    assert!(placed.iter().all(|nodes| nodes.contains(&NodeId(3))), "{placed:?}");
}

#[test]
fn nothing_moves_for_balance_while_a_shard_is_catching_up() {
    let mut shards: Vec<_> = (1..=8).map(|id| shard(id, 1, &[1])).collect();
    let nodes = vec![node(1, ""), node(2, "")];
    assert_eq!(plan(&input(nodes.clone(), shards.clone())).decisions.len(), 4, "moves are bounded");
    shards[3].actual.clear();
    assert!(plan(&input(nodes.clone(), shards.clone())).is_empty());
    settle(&mut shards[3]);
    shards[3].actual[0].role = ReplicaRole::Learner;
    assert!(plan(&input(nodes, shards)).is_empty());
}

#[test]
fn imbalance_within_the_threshold_is_ignored() {
    let shards: Vec<_> = (1..=3).map(|id| shard(id, 1, &[1])).collect();
    let mut input = input(vec![node(1, ""), node(2, "")], shards);
    input.balance_threshold = 2;
    assert!(plan(&input).is_empty());
    input.balance_threshold = 1;
    assert!(!plan(&input).is_empty());
}

#[test]
fn replicas_are_proportional_to_weights() {
    let mut nodes: Vec<_> = (1..=4).map(|id| node(id, "")).collect();
    nodes[3].weight = 300;
    let new: Vec<_> = (1..=60).map(|id| (ShardId(id), 1)).collect();
    let placed = place(&nodes, &[], &new);
    let on_the_big_one = placed.iter().filter(|nodes| nodes.contains(&NodeId(4))).count();
    assert_eq!(on_the_big_one, 30);
}

#[test]
fn nothing_can_be_placed_without_a_live_node() {
    let mut lone = node(1, "");
    lone.status = NodeStatus::Draining;
    assert_eq!(place(&[lone], &[], &[(ShardId(1), 3)]), [Vec::new()]);
    assert_eq!(place(&[node(1, ""), node(2, "")], &[], &[(ShardId(1), 3)])[0].len(), 1);
}

pub(crate) fn any_status() -> impl Strategy<Value = NodeStatus> {
    prop_oneof![
        6 => Just(NodeStatus::Live),
        1 => Just(NodeStatus::Suspect),
        1 => Just(NodeStatus::Dead),
        1 => Just(NodeStatus::Draining),
        1 => Just(NodeStatus::Leaving),
        1 => Just(NodeStatus::Removed),
    ]
}

/// Up to eight nodes in up to four zones, up to 24 shards on some of them; some shards unsettled.
pub(crate) fn any_input() -> impl Strategy<Value = PlanInput> {
    let nodes = proptest::collection::vec((any_status(), 0_usize..4), 1..8);
    let shards = proptest::collection::vec(
        (prop_oneof![Just(1_u8), Just(3), Just(5)], any::<u64>(), 0_usize..6, any::<bool>()),
        0..24,
    );
    (nodes, shards).prop_map(|(nodes, shards)| {
        let nodes: Vec<PlanNode> = nodes
            .into_iter()
            .enumerate()
            .map(|(i, (status, zone))| PlanNode { status, ..node(i as u64 + 1, ["a", "b", "c", "d"][zone]) })
            .collect();
        let shards = shards
            .into_iter()
            .enumerate()
            .map(|(id, (desired, seed, held, settled))| {
                let mut order: Vec<u64> = nodes.iter().map(|node| node.id.0).collect();
                order.sort_by_key(|id| (id.wrapping_mul(seed | 1)) % 61);
                order.truncate(held);
                let mut shard = shard(id as u64, desired, &order);
                if !settled {
                    shard.actual.pop();
                }
                shard
            })
            .collect();
        input(nodes, shards)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn applied_plan_leaves_nothing_to_plan(input in any_input()) {
        let mut after = input.clone();
        let planned = plan(&input);
        prop_assert_eq!(&plan(&input), &planned, "deterministic");
        apply(&mut after, &planned, &mut 1_000_000);
        if !planned.is_empty() {
            prop_assert_eq!(plan(&after).decisions, Vec::new());
        }
    }

    #[test]
    fn plans_never_double_a_node_use_a_failing_one_or_shrink_a_shard(input in any_input()) {
        let mut after = input.clone();
        let planned = plan(&input);
        for change in planned.changes() {
            if let Change::Assign { node, .. } = change {
                let status = input.nodes.iter().find(|known| known.id == node).map(|known| known.status);
                prop_assert_eq!(status, Some(NodeStatus::Live));
            }
        }
        apply(&mut after, &planned, &mut 1_000_000);
        for (before, after) in input.shards.iter().zip(&after.shards) {
            prop_assert_eq!(nodes_of(after).len(), after.intent.len(), "one replica per node: {:?}", after);
            let floor = before.intent.len().min(usize::from(before.replicas_desired));
            prop_assert!(after.intent.len() >= floor, "{:?} became {:?}", before, after);
        }
    }

    #[test]
    fn healthy_clusters_converge_to_spread_and_complete_shards(mut input in any_input()) {
        for node in &mut input.nodes {
            node.status = NodeStatus::Live;
        }
        input.shards.iter_mut().for_each(settle);
        converge(&mut input);
        let zones: BTreeMap<NodeId, String> = input.nodes.iter().map(|node| (node.id, node.locality.to_string())).collect();
        let zones_total = zones.values().collect::<BTreeSet<_>>().len();
        for shard in &input.shards {
            let fits = (input.nodes.len() - 1) / 2 * 2 + 1;
            let expected = usize::from(shard.replicas_desired).min(fits);
            prop_assert!(shard.intent.len() >= expected, "{:?}", shard);
            let used: BTreeSet<_> = shard.intent.iter().map(|held| &zones[&held.node]).collect();
            prop_assert_eq!(used.len(), shard.intent.len().min(zones_total), "{:?}", shard);
        }
    }

    #[test]
    fn weighted_nodes_converge_to_their_shares_within_one_replica(
        weights in proptest::collection::vec(0_u32..5, 1..8),
        shards in 0_u64..30,
        start in any::<Index>(),
    ) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let nodes = (1..).zip(&weights).map(|(id, weight)| PlanNode { weight: *weight, ..node(id, "") }).collect();
        let start = start.index(weights.len()) as u64 + 1;
        let mut input = input(nodes, (1..=shards).map(|id| shard(id, 1, &[start])).collect());
        converge(&mut input);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        for (count, weight) in counts(&input).values().zip(&weights) {
            let (have, share) = (*count as u64 * total, shards * u64::from(*weight));
            prop_assert!(have.abs_diff(share) <= total, "{count} replicas with weight {weight} of {total}");
        }
    }

    #[test]
    fn equal_nodes_converge_within_one_replica(nodes in 1_u64..8, shards in 0_u64..30, start in 1_u64..8) {
        let all: Vec<_> = (1..=nodes).map(|id| node(id, "")).collect();
        // Two nodes hold one replica of each shard, which stays until a third node joins.
        let desired = if nodes == 2 { 1 } else { 3 };
        let shards = (1..=shards).map(|id| shard(id, desired, &[start.min(nodes)])).collect();
        let mut input = input(all, shards);
        converge(&mut input);
        let counts = counts(&input);
        let (most, least) = (counts.values().max().unwrap_or(&0), counts.values().min().unwrap_or(&0));
        prop_assert!(most - least <= 1, "{:?}", counts);
    }
}

/// The decisions of a plan by their definition, which visits everything.
fn decided_anew(input: &PlanInput) -> Vec<Decision> {
    let mut planner = Planner::new(&input.nodes, &input.shards);
    let mut shards: Vec<&PlanShard> = input.shards.iter().collect();
    shards.sort_by_key(|shard| shard.id);
    let (mut decisions, mut changes_len) = (Vec::new(), 0);
    for shard in &shards {
        let repairs = planner.repair(shard).decisions;
        changes_len += repairs.iter().map(Decision::changes_len).sum::<usize>();
        if changes_len > PLAN_CHANGES_MAX {
            return decisions;
        }
        decisions.extend(repairs);
    }
    if decisions.is_empty() && shards.iter().all(|shard| planner.is_settled(shard)) {
        let moves_max = input.moves_max.min(PLAN_CHANGES_MAX / 2);
        decisions = planner.moves(&shards, input.balance_threshold, moves_max).unwrap_or_default();
    }
    decisions
}

/// What happens between two plans.
#[derive(Debug, Clone)]
enum Step {
    Status(Index, NodeStatus),
    /// The last plan is accepted.
    Accept,
    /// A shard does what it should.
    Settle(Index),
    SettleAll,
    Found(u8, usize),
    Drop(Index),
    Limits(u32, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let desired = prop_oneof![Just(1_u8), Just(3), Just(5)];
    prop_oneof![
        2 => (any::<Index>(), any_status()).prop_map(|(node, status)| Step::Status(node, status)),
        6 => Just(Step::Accept),
        4 => any::<Index>().prop_map(Step::Settle),
        3 => Just(Step::SettleAll),
        2 => (desired, 1_usize..6).prop_map(|(desired, count)| Step::Found(desired, count)),
        1 => any::<Index>().prop_map(Step::Drop),
        1 => (0_u32..2, 0_usize..4).prop_map(|(threshold, moves)| Step::Limits(threshold, moves)),
    ]
}

fn take(step: &Step, input: &mut PlanInput, plan: &Plan, next_id: &mut u64) {
    let shards = &mut input.shards;
    match step {
        Step::Status(at, status) => at.get_mut(&mut input.nodes).status = *status,
        Step::Accept => apply(input, plan, next_id),
        Step::Settle(at) if !shards.is_empty() => settle(at.get_mut(shards)),
        Step::SettleAll => shards.iter_mut().for_each(settle),
        Step::Found(desired, count) => {
            *next_id += 1;
            let nodes: Vec<_> = input.nodes.iter().take(*count).map(|node| node.id.0).collect();
            shards.push(shard(*next_id, *desired, &nodes));
        }
        Step::Drop(at) if !shards.is_empty() => {
            shards.remove(at.index(shards.len()));
        }
        Step::Limits(threshold, moves) => (input.balance_threshold, input.moves_max) = (*threshold, *moves),
        _ => {}
    }
}

proptest! {
    #[test]
    fn plans_by_changes_equal_plans_that_visit_everything(
        mut input in any_input(),
        steps in proptest::collection::vec(any_step(), 1..60),
    ) {
        let (mut planning, mut next_id) = (Planning::default(), 1_000_000);
        for step in &steps {
            planning.set_nodes(input.nodes.clone());
            for shard in &input.shards {
                planning.set_shard(shard.id, Some(shard.clone()));
            }
            let planned = planning.plan(input.limits());
            prop_assert_eq!(&planned.decisions, &decided_anew(&input));
            prop_assert_eq!(&planned, &plan(&input));
            let before: Vec<_> = input.shards.iter().map(|shard| shard.id).collect();
            take(step, &mut input, &planned, &mut next_id);
            for gone in before.into_iter().filter(|id| input.shards.iter().all(|shard| shard.id != *id)) {
                planning.set_shard(gone, None);
            }
        }
    }
}

#[test]
fn a_pinned_shard_is_repaired_but_neither_moved_nor_waited_for() {
    const LIMITS: Limits = Limits { balance_threshold: 0, moves_max: 4, hold: None };
    let mut planning = Planning::default();
    let nodes = |dead: Option<u64>| {
        let status = |id| if Some(id) == dead { NodeStatus::Dead } else { NodeStatus::Live };
        (1..=2).map(|id| PlanNode { status: status(id), ..node(id, "") }).collect::<Vec<_>>()
    };
    planning.set_nodes(nodes(None));
    (1..=4).for_each(|id| planning.set_shard(ShardId(id), Some(shard(id, 1, &[1]))));
    let mut unsettled = shard(1, 1, &[1]);
    unsettled.actual[0].role = ReplicaRole::Learner;
    planning.set_shard(ShardId(1), Some(unsettled));
    assert!(planning.plan(LIMITS).is_empty(), "one shard is not settled");
    planning.set_pinned(BTreeSet::from([ShardId(1), ShardId(2)]));
    let moved: BTreeSet<_> = planning.plan(LIMITS).changes().map(|change| change.shard()).collect();
    assert_eq!(moved, BTreeSet::from([ShardId(3), ShardId(4)]));
    planning.set_nodes(nodes(Some(1)));
    let repaired: BTreeSet<_> = planning.plan(LIMITS).changes().map(|change| change.shard()).collect();
    assert_eq!(repaired, (1..=4).map(ShardId).collect());
}

#[test]
fn a_move_brings_replicas_closer_if_they_share_more_labels_afterwards() {
    let nodes = [node(1, "a"), node(2, "b"), node(3, "c"), node(4, "a"), node(5, "d")];
    let shard = shard(1, 3, &[1, 2, 3]);
    let moves = |from: u64, to: u64| brings_closer(&nodes, &shard, ReplicaId(100 + from), NodeId(to));
    assert!(moves(2, 4), "two would be in zone a");
    assert!(!moves(1, 4), "it stays in its zone");
    assert!(!moves(2, 5));
}
