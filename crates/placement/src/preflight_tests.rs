//! Tests of preflights: their verdicts are those of the plans that follow.

use std::collections::BTreeSet;

use flotilla_types::{NodeId, ReplicaId, ShardId};
use proptest::{prelude::*, sample::subsequence};

use crate::{
    Blocker, Disk, Disks, NodeStatus, Obstacle, PlanInput, PlanReplica, Preflight, plan,
    plan_tests::{any_input, apply, input, node, settle, shard},
    preflight,
};

fn of(input: &PlanInput, leaving: &[u64]) -> Preflight {
    preflight(input, &leaving.iter().copied().map(NodeId).collect(), &Disks::default())
}

fn blocker(shard: u64, node: u64, why: Obstacle) -> Blocker {
    let held = PlanReplica { replica: ReplicaId(100 * shard + node), node: NodeId(node) };
    Blocker { shard: ShardId(shard), held, why }
}

#[test]
fn a_replica_that_no_other_node_can_take_blocks() {
    let shards = vec![shard(1, 3, &[1, 2, 3]), shard(2, 1, &[3]), shard(3, 1, &[1]), shard(4, 5, &[3])];
    let mut input = input((1..=3).map(|id| node(id, "")).collect(), shards);
    let stuck = blocker(1, 3, Obstacle::NoNode);
    assert_eq!(
        of(&input, &[3]),
        Preflight { moves: [(NodeId(3), 2)].into(), bytes: [(NodeId(3), 0)].into(), blockers: vec![stuck] }
    );
    input.nodes.push(node(4, ""));
    assert_eq!((&of(&input, &[3]).moves, of(&input, &[3]).blockers), (&[(NodeId(3), 3)].into(), vec![]));
    input.nodes[3].status = NodeStatus::Draining;
    assert_eq!(of(&input, &[3]).blockers, [stuck], "a draining node takes nothing");
    assert_eq!(of(&input, &[9]), Preflight::default(), "an unknown node holds nothing");
}

#[test]
fn nodes_that_leave_together_take_nothing_from_each_other() {
    let input = input((1..=4).map(|id| node(id, "")).collect(), vec![shard(1, 3, &[1, 2, 3])]);
    assert_eq!(of(&input, &[1]).blockers, []);
    assert_eq!(of(&input, &[4]).blockers, []);
    let together = of(&input, &[1, 4]);
    assert_eq!(together.blockers, [blocker(1, 1, Obstacle::NoNode)]);
}

#[test]
fn a_shard_without_a_quorum_blocks_and_one_that_only_changes_does_not() {
    let mut input = input((1..=5).map(|id| node(id, "")).collect(), vec![shard(1, 3, &[1, 2, 3])]);
    input.shards[0].intent[1] = PlanReplica { replica: ReplicaId(9), node: NodeId(4) };
    assert_eq!(of(&input, &[1]).blockers, [], "what changes now ends by itself");
    input.nodes[1].status = NodeStatus::Suspect;
    assert_eq!(of(&input, &[1]).blockers, [], "two of three voters answer");
    input.nodes[2].status = NodeStatus::Suspect;
    assert_eq!(of(&input, &[1]).blockers, [blocker(1, 1, Obstacle::Unsettled)]);
    assert_eq!(of(&input, &[5]).blockers, [], "it holds no replica of it");
}

#[test]
fn a_node_that_is_the_last_of_its_zone_blocks() {
    let nodes = vec![node(1, "a"), node(2, "b"), node(3, "c"), node(4, "a"), node(5, "c")];
    let mut input = input(nodes, vec![shard(1, 3, &[1, 2, 3])]);
    assert_eq!(of(&input, &[3]).blockers, [], "node 5 is in the same zone");
    let why = Obstacle::Zone { to: NodeId(4), with: NodeId(1) };
    assert_eq!(of(&input, &[2, 5]).blockers, [blocker(1, 2, why)]);
    input.shards[0].replicas_desired = 1;
    assert_eq!(of(&input, &[2, 5]).blockers, [], "the shard shrinks");
}

#[test]
fn a_node_with_too_little_disk_for_all_that_it_would_take_blocks() {
    let shards = vec![shard(1, 1, &[1]), shard(2, 1, &[1]), shard(3, 1, &[1])];
    let input = input(vec![node(1, ""), node(2, "")], shards);
    // Of 1,000 bytes 150 must stay free.
    let disk = |free_bytes| Disk { bytes: 1_000, free_bytes };
    let of = |free_bytes| {
        let disks = Disks {
            nodes: [(NodeId(2), disk(free_bytes))].into(),
            shards: [(ShardId(1), 40), (ShardId(2), 60)].into(),
        };
        preflight(&input, &[NodeId(1)].into(), &disks)
    };
    assert_eq!((of(250).blockers, of(250).bytes), (vec![], [(NodeId(1), 100)].into()));
    let why = |free_bytes| Obstacle::Disk { to: NodeId(2), needs_bytes: 100, free_bytes };
    assert_eq!(of(249).blockers, [blocker(1, 1, why(99)), blocker(2, 1, why(99))], "shard 3 takes no room");
    assert_eq!(of(0).blockers[0].why, why(0));
}

/// Whether repeated plans, each carried out at once, leave a replica on one of these nodes.
fn plans_leave(mut input: PlanInput, leaving: &BTreeSet<NodeId>) -> bool {
    for node in input.nodes.iter_mut().filter(|node| leaving.contains(&node.id)) {
        if !matches!(node.status, NodeStatus::Dead | NodeStatus::Removed) {
            node.status = NodeStatus::Leaving;
        }
    }
    let mut next_replica = 1_000_000;
    for _ in 0..1_000 {
        let plan = plan(&input);
        if plan.is_empty() {
            return input.shards.iter().flat_map(|shard| &shard.intent).any(|held| leaving.contains(&held.node));
        }
        apply(&mut input, &plan, &mut next_replica);
        input.shards.iter_mut().for_each(settle);
    }
    panic!("plans do not converge");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_verdict_is_what_repeated_plans_then_do(
        input in any_input(),
        leaving in subsequence((1..8).collect::<Vec<u64>>(), 1..4),
    ) {
        let leaving: BTreeSet<_> = leaving.into_iter().map(NodeId).collect();
        let verdict = preflight(&input, &leaving, &Disks::default());
        // Nothing moves where nothing can change, which plans do not know.
        let unsettled: BTreeSet<_> = verdict.blockers.iter()
            .filter(|blocker| blocker.why == Obstacle::Unsettled)
            .map(|blocker| blocker.shard)
            .collect();
        let mut followed = input.clone();
        followed.shards.retain(|shard| !unsettled.contains(&shard.id));
        let stays = verdict.blockers.iter().any(|blocker| blocker.why == Obstacle::NoNode);
        prop_assert_eq!(stays, plans_leave(followed, &leaving), "{:?}", verdict);
    }
}
