//! Tests of what a plan says about itself.

use std::collections::BTreeSet;

use flotilla_types::{NodeId, ReplicaId, ShardId};
use proptest::prelude::*;

use crate::{
    Explanation, Fate, Hold, Limits, NodeStatus, NonDecision, PlanInput, PlanReplica, Planning, Reason, Rejection,
    ReplicaPhase, Shards, plan,
    plan_tests::{any_input, input, node, shard},
};

fn planning(input: &PlanInput) -> Planning {
    let mut planning = Planning::default();
    planning.set_nodes(input.nodes.clone());
    for shard in &input.shards {
        planning.set_shard(shard.id, Some(shard.clone()));
    }
    planning
}

fn explain(input: &PlanInput, id: u64) -> Explanation {
    planning(input).explain(ShardId(id), input.limits()).expect("a shard")
}

/// The reasons by which a node was rejected for the replica on another one.
fn why(explanation: &Explanation, on: u64, node: u64) -> Option<Rejection> {
    let replica = explanation.replicas.iter().find(|replica| replica.held.node == NodeId(on)).expect("a replica");
    replica.rejected.iter().find(|rejected| rejected.node == NodeId(node)).map(|rejected| rejected.why)
}

#[test]
fn a_shard_that_an_operator_placed_says_so_of_nodes_that_could_take_it() {
    let nodes = vec![node(1, "a"), node(2, "b"), node(3, "c"), node(4, "d")];
    let input = input(nodes, (1..=6).map(|id| shard(id, 3, &[1, 2, 3])).collect());
    let mut planning = planning(&input);
    let limits = Limits { moves_max: 0, ..input.limits() };
    let on_1 = |planning: &Planning, node| why(&planning.explain(ShardId(2), limits).expect("a shard"), 1, node);
    assert_eq!(on_1(&planning, 4), Some(Rejection::Later));
    planning.set_pinned(BTreeSet::from([ShardId(2)]));
    assert_eq!(on_1(&planning, 4), Some(Rejection::PlacedByOperator));
    assert_eq!(on_1(&planning, 2), Some(Rejection::HoldsReplica));
}

fn some(ids: &[u64], total: usize) -> Shards {
    Shards { first: ids.iter().copied().map(ShardId).collect(), total }
}

#[test]
fn a_replica_that_stays_names_what_speaks_against_each_other_node() {
    let nodes = vec![node(1, "a"), node(2, "b"), node(3, "c"), node(4, "a"), node(5, "d"), node(6, "e")];
    let mut input = input(nodes, vec![shard(7, 3, &[1, 2, 3]), shard(8, 3, &[1, 2, 3])]);
    input.balance_threshold = 9;
    input.nodes[4].status = NodeStatus::Draining;
    input.nodes[5].weight = 0;
    let explanation = explain(&input, 7);
    let on_2 = |node| why(&explanation, 2, node);
    assert_eq!(on_2(1), Some(Rejection::HoldsReplica));
    assert_eq!(on_2(2), None, "it is there");
    assert_eq!(on_2(4), Some(Rejection::Closer { with: NodeId(1) }));
    assert_eq!(on_2(5), Some(Rejection::Status(NodeStatus::Draining)));
    assert_eq!(on_2(6), Some(Rejection::NoWeight));
    let Some(Rejection::WithinThreshold { difference, limit: 10_000 }) = why(&explanation, 1, 4) else {
        panic!("{explanation:?}");
    };
    assert_eq!(difference, 2_000);
    let replica = &explanation.replicas[0];
    assert_eq!((replica.fate, replica.phase, replica.count), (Fate::Stays, ReplicaPhase::InPlace, 2));
    assert_eq!(replica.share_milli, 1_500, "of 6 replicas on 4 live nodes with a weight");
    assert!(matches!(explanation.undecided[..], [NonDecision::Balanced { difference: 2_000, limit: 10_000 }]));
}

#[test]
fn a_replica_that_goes_names_its_new_node_and_why_not_the_others() {
    let mut input = input((1..=5).map(|id| node(id, "")).collect(), vec![shard(7, 3, &[1, 2, 3]), shard(8, 1, &[5])]);
    input.nodes[0].status = NodeStatus::Leaving;
    let explanation = explain(&input, 7);
    let reason = Reason::NodeLeaving;
    assert_eq!(explanation.replicas[0].fate, Fate::Goes { to: Some(NodeId(4)), reason });
    assert_eq!(why(&explanation, 1, 5), Some(Rejection::Fuller));
    assert_eq!(why(&explanation, 1, 2), Some(Rejection::HoldsReplica));
    assert_eq!(explanation.replicas[1].fate, Fate::Stays);
    input.nodes[3].status = NodeStatus::Suspect;
    input.nodes[4].status = NodeStatus::Dead;
    let explanation = explain(&input, 7);
    assert_eq!(explanation.replicas[0].fate, Fate::Stuck { reason });
    assert_eq!(why(&explanation, 1, 4), Some(Rejection::Status(NodeStatus::Suspect)));
    let stuck = |node, reason, id| NonDecision::Stuck { node: NodeId(node), reason, shards: some(&[id], 1) };
    // The replica on node 5 finds a node, so that nothing else is looked at.
    assert_eq!(explanation.undecided, [stuck(1, reason, 7)]);
}

#[test]
fn replicas_that_come_and_go_are_told_apart_and_hold_moves_back() {
    let mut held = shard(7, 3, &[1, 2, 3]);
    held.intent[0] = PlanReplica { replica: ReplicaId(9), node: NodeId(4) };
    let input = input((1..=4).map(|id| node(id, "")).collect(), vec![held, shard(8, 1, &[4])]);
    let explanation = explain(&input, 7);
    let phases: Vec<_> = explanation.replicas.iter().map(|replica| (replica.held.node.0, replica.phase)).collect();
    use ReplicaPhase::{Arriving, Departing, InPlace};
    assert_eq!(phases, [(4, Arriving), (2, InPlace), (3, InPlace), (1, Departing)]);
    assert_eq!(explanation.replicas[3].fate, Fate::Departs);
    assert_eq!(explanation.undecided, [NonDecision::Unsettled { shards: some(&[7], 1) }]);
}

#[test]
fn what_holds_moves_back_is_said_and_repairs_go_on() {
    let mut input = input((1..=3).map(|id| node(id, "")).collect(), (1..=4).map(|id| shard(id, 1, &[1])).collect());
    let limits = input.limits();
    let held = |hold| Limits { hold: Some(hold), ..limits };
    let mut planning = planning(&input);
    for hold in [Hold::RecentJoin, Hold::Cpu { used_milli: 900 }, Hold::Cpu { used_milli: 901 }] {
        let plan = planning.plan(held(hold));
        assert_eq!((plan.decisions.len(), plan.undecided), (0, vec![NonDecision::Held(hold)]));
    }
    assert_eq!(planning.plan(Limits { moves_max: 0, ..input.limits() }).undecided, [NonDecision::Off]);
    assert_ne!(planning.plan(input.limits()).decisions, []);
    input.nodes[0].status = NodeStatus::Dead;
    planning.set_nodes(input.nodes.clone());
    assert_eq!(planning.plan(held(Hold::RecentJoin)).decisions.len(), 4);
}

#[test]
fn shards_that_lack_replicas_are_counted_and_the_first_are_named() {
    let mut input = input(vec![node(1, ""), node(2, "")], (1..=12).map(|id| shard(id, 3, &[1])).collect());
    let named: Vec<u64> = (1..=10).collect();
    let mut planning = planning(&input);
    let undecided = planning.plan(input.limits()).undecided;
    let too_few = NonDecision::NoMove { difference: 12_000, limit: 1_000 };
    assert_eq!(undecided, [NonDecision::Short { shards: some(&named, 12) }, too_few]);
    planning.set_shard(ShardId(1), None);
    planning.set_shard(ShardId(2), Some(shard(2, 1, &[1])));
    let undecided = planning.plan(input.limits()).undecided;
    let named: Vec<u64> = (3..=12).collect();
    assert_eq!(undecided.first(), Some(&NonDecision::Short { shards: some(&named, 10) }));
    input.nodes.push(node(3, ""));
    planning.set_nodes(input.nodes.clone());
    assert_eq!(planning.plan(input.limits()).undecided, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_explanation_agrees_with_the_plan_and_judges_every_other_node(input in any_input()) {
        let planning = planning(&input);
        let planned = plan(&input);
        prop_assert_eq!(planning.preview(input.limits()), planned.clone());
        for shard in &input.shards {
            let explanation = planning.explain(shard.id, input.limits()).expect("a shard");
            let goes: BTreeSet<_> = explanation
                .replicas
                .iter()
                .filter_map(|replica| match replica.fate {
                    Fate::Goes { to, reason } => Some((replica.held, to, reason)),
                    _ => None,
                })
                .collect();
            let decided: BTreeSet<_> = planned
                .decisions
                .iter()
                .filter(|decision| decision.shard == shard.id)
                .filter_map(|decision| Some((decision.from?, decision.to, decision.reason)))
                .collect();
            prop_assert_eq!(goes, decided);
            for replica in &explanation.replicas {
                // Every node is where it is, where it goes, or rejected.
                let to = match replica.fate {
                    Fate::Goes { to: Some(to), .. } => Some(to),
                    Fate::Goes { to: None, .. } | Fate::Departs => continue,
                    _ => None,
                };
                let mut named: BTreeSet<_> = replica.rejected.iter().map(|rejected| rejected.node).collect();
                prop_assert_eq!(named.len(), replica.rejected.len());
                named.extend(to);
                named.insert(replica.held.node);
                prop_assert_eq!(named, input.nodes.iter().map(|node| node.id).collect::<BTreeSet<_>>());
            }
        }
    }
}
