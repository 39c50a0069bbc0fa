//! Data folders that went backwards.

use flotilla_replication::{ConfChange, Input, LostReason, Notice};
use flotilla_storage::Log as _;
use flotilla_types::{NodeId, ReplicaId};

use crate::harness::{SHARD, World, descriptor, seeds};

fn lost(world: &World, node: NodeId) -> Option<Vec<ReplicaId>> {
    world.notices.iter().find_map(|(from, notice)| match notice {
        Notice::Lost { replicas, reason: LostReason::RolledBack } if *from == node => {
            Some(replicas.iter().map(|(_, replica)| *replica).collect())
        }
        _ => None,
    })
}

#[test]
fn a_rolled_back_node_gives_up_its_replicas_and_nothing_is_lost() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        world.run_some_ms(1_000);
        let (node, replica) = (NodeId(1 + seed % 3), ReplicaId(1 + seed % 3));
        let backup = world.backup(node);
        if seed % 2 == 0 {
            world.run_ms(1_000);
            world.crash(node);
            world.start(node);
        }
        world.run_ms(1_500);
        world.crash(node);
        world.restore(node, &backup);
        world.start(node);
        world.run_until(3_000, "the node learns that it lost something", |world| lost(world, node).is_some());
        assert_eq!(lost(&world, node), Some(vec![replica]));
        // It may have forgotten others altogether, and must find out which, also when it ends before it could.
        let new = ReplicaId(9);
        world.wanted.remove(&replica);
        let create = || Input::Create { replica: new, descriptor: descriptor(&[1, 2, 3]), founding: false };
        world.run_ms(500);
        for _ in 0..2 {
            world.input(node, create());
            world.run_ms(200);
            assert!(world.nodes[&node].status().is_empty(), "nothing is created by a folder that forgets");
            world.notices.clear();
            world.crash(node);
            world.start(node);
            world.run_ms(1_000);
            assert_eq!(lost(&world, node), Some(vec![]), "the next life knows of it");
        }
        // It comes back under a new id, as a learner.
        world.input(node, Input::TrustFolder);
        world.add_learners(&[(new, node)]);
        world.swap(&[new], &[replica]);
        world.remove(replica, node);
        world.run_ms(500);
        world.finish();
        assert_eq!(world.conf().voters.len(), 3);
    }
}

#[test]
fn a_rolled_back_node_helps_nobody_to_lead_before_it_was_judged() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(1_000);
        let (leader, _) = world.leader().unwrap();
        let (rolled, behind) = (NodeId(leader.0 % 3 + 1), NodeId((leader.0 + 1) % 3 + 1));
        let backup = world.backup(rolled);
        // The third node hears of the one that will be rolled back, and gets no entries.
        world.set_link(leader, behind, true);
        world.add_clients(3);
        world.run_ms(1_500);
        assert!(world.checks.writes > 20);
        world.crash(leader);
        world.crash(rolled);
        world.restore(rolled, &backup);
        world.network.beats_lost = true;
        world.start(rolled);
        world.run_ms(3_000);
        assert!(world.leader().is_none(), "those two have forgotten what was acknowledged\n{}", world.describe());
        world.network.beats_lost = false;
        world.run_until(1_000, "the node learns that it lost something", |world| lost(world, rolled).is_some());
        world.heal();
        world.start(leader);
        world.input(rolled, Input::TrustFolder);
        let (old, new) = (ReplicaId(rolled.0), ReplicaId(9));
        world.wanted.remove(&old);
        world.add_learners(&[(new, rolled)]);
        world.swap(&[new], &[old]);
        world.remove(old, rolled);
        world.finish();
    }
}

#[test]
fn a_rolled_back_node_that_was_alone_once_does_not_fork_its_group() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 1);
        world.add_clients(3);
        world.run_some_ms(500);
        world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
        world.swap(&[ReplicaId(2), ReplicaId(3)], &[]);
        let backup = world.backup(NodeId(1));
        world.run_ms(1_000);
        world.crash(NodeId(1));
        world.run_ms(1_500);
        world.restore(NodeId(1), &backup);
        world.start(NodeId(1));
        world.run_until(3_000, "the node learns that it lost something", |world| lost(world, NodeId(1)).is_some());
        assert_eq!(lost(&world, NodeId(1)), Some(vec![ReplicaId(1)]));
        world.input(NodeId(1), Input::TrustFolder);
        world.wanted.remove(&ReplicaId(1));
        world.add_learners(&[(ReplicaId(9), NodeId(1))]);
        world.swap(&[ReplicaId(9)], &[ReplicaId(1)]);
        world.remove(ReplicaId(1), NodeId(1));
        world.finish();
    }
}

/// Who voted when a replica was last checkpointed may be gone for ever; who votes at the end of its log knows as much.
#[test]
fn a_restarted_replica_is_greeted_by_those_who_vote_now() {
    let mut behind = 0;
    for seed in seeds(12) {
        let mut world = World::founded(seed, 3, 1);
        world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        world.change(&swap, |conf| conf.voters.contains(&ReplicaId(2)));
        world.input(NodeId(1), Input::Change { shard: SHARD, change: ConfChange::LeaveJoint });
        let log = |world: &World| world.nodes[&NodeId(2)].log.replicas().unwrap().remove(0).1;
        let swapped = log(&world).last;
        world.run_until(500, "the end of the joint configuration arrives", |world| log(world).last > swapped);
        behind += usize::from(
            log(&world).checkpoint.position.conf.is_voter(ReplicaId(1))
                && log(&world).checkpoint.position.index <= swapped,
        );
        world.crash(NodeId(2));
        world.run_ms(500);
        world.crash(NodeId(1));
        world.start(NodeId(2));
        world.run_until(5_000, "two of three elect a leader", |world| {
            world.leader().is_some_and(|(node, _)| node != NodeId(1))
        });
    }
    assert!(behind > 0, "no checkpoint was behind the configuration");
}

#[test]
fn a_wiped_node_creates_nothing_before_it_is_cleared() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(2);
        world.run_ms(1_500);
        let node = NodeId(1 + seed % 3);
        world.wipe(node);
        world.isolate(node);
        world.start(node);
        // Its old replica, by an operation that is long outdated.
        let create = |world: &mut World, replica| {
            let input =
                Input::Create { replica: ReplicaId(replica), descriptor: descriptor(&[1, 2, 3]), founding: false };
            world.input(node, input);
        };
        world.wanted.remove(&ReplicaId(node.0));
        for _ in 0..20 {
            create(&mut world, node.0);
            world.run_ms(50);
        }
        assert!(world.nodes[&node].status().is_empty(), "nothing is created while nobody speaks for the node");
        world.heal();
        world.run_until(3_000, "the node learns that it lost something", |world| lost(world, node).is_some());
        assert!(world.nodes[&node].status().is_empty());
        world.input(node, Input::TrustFolder);
        world.run_ms(1_000);
        let new = ReplicaId(9);
        world.add_learners(&[(new, node)]);
        world.swap(&[new], &[ReplicaId(node.0)]);
        world.remove(ReplicaId(node.0), node);
        world.finish();
    }
}

#[test]
fn a_node_that_lost_nothing_is_never_told_so() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.network.slow_per_mille = 200;
        world.network.doubled_per_mille = 100;
        world.add_clients(2);
        for _ in 0..6 {
            world.crash_and_start_one();
        }
        world.finish();
        let told = world.notices.iter().any(|(_, notice)| matches!(notice, Notice::Lost { .. }));
        assert!(!told, "{:?}", world.notices);
    }
}
