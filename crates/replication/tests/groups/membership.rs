//! Replicas that are added, moved and removed under load.

use flotilla_replication::{ConfChange, Input};
use flotilla_types::{NodeId, ReplicaId};
use rand::RngExt as _;

use crate::harness::{SHARD, World, seeds};

#[test]
fn a_new_learner_catches_up_by_snapshot_after_truncation() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 2, 1);
        world.add_clients(3);
        world.run_until(10_000, "a truncated log", |world| {
            world.leader().is_some_and(|(_, leader)| leader.group.is_some_and(|group| group.truncated.0 > 10))
        });
        world.add_learners(&[(ReplicaId(2), NodeId(2))]);
        world.run_until(5_000, "a snapshot", |world| world.checks.installed.contains(&ReplicaId(2)));
        world.run_ms(500);
        world.finish();
        assert_eq!(world.applied_by().len(), 2);
    }
}

/// Placement may move a replica away from a node, and another one of the shard to it before the first has left.
#[test]
fn a_leader_serves_and_is_replaced_while_another_replica_of_the_shard_is_on_its_node() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(2);
        world.run_some_ms(800);
        let (node, leader) = world.leader().unwrap();
        let (old, new) = (leader.replica, ReplicaId(9));
        // It cannot catch up from a leader on its own node.
        world.add_learner(new, node);
        let writes = world.checks.writes;
        world.run_until(5_000, "writes go on", |world| world.checks.writes > writes + 10);
        let other = (1..=3).map(NodeId).find(|other| *other != node).unwrap();
        world.input(node, Input::Transfer { shard: SHARD, to: other });
        world.run_until(5_000, "another leader", |world| world.leader().is_some_and(|(leads, _)| leads != node));
        world.add_learners(&[(new, node)]);
        world.swap(&[new], &[old]);
        // The new one may lead while the old one is still there.
        let (leads, _) = world.leader().unwrap();
        world.input(leads, Input::Transfer { shard: SHARD, to: node });
        world.run_until(5_000, "the new replica leads", |world| {
            world.leader().is_some_and(|(_, leader)| leader.replica == new)
        });
        let writes = world.checks.writes;
        world.run_until(5_000, "the new replica serves", |world| world.checks.writes > writes + 10);
        world.remove(old, node);
        world.finish();
    }
}

#[test]
fn growing_from_one_to_three_voters() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 1);
        world.add_clients(3);
        world.run_some_ms(1_000);
        world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
        world.swap(&[ReplicaId(2), ReplicaId(3)], &[]);
        world.run_some_ms(1_000);
        world.crash(NodeId(1));
        let writes = world.checks.writes;
        world.run_until(5_000, "writes without the founder", |world| world.checks.writes > writes + 10);
        world.finish();
        assert_eq!(world.conf().voters.len(), 3);
    }
}

#[test]
fn growing_to_three_voters_survives_crashes() {
    for seed in seeds(8) {
        let mut world = World::founded(seed, 3, 1);
        world.add_clients(2);
        world.run_some_ms(500);
        let learners = [(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))];
        for (replica, node) in learners {
            world.add_learner(replica, node);
            world.crash_and_start_one();
        }
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        world.change(&swap, |conf| conf.voters.len() == 3);
        world.crash_and_start_one();
        world.change(&ConfChange::LeaveJoint, |conf| conf.voters.len() == 3 && !conf.is_joint());
        world.crash_and_start_one();
        world.finish();
        assert_eq!(world.conf().voters.len(), 3);
    }
}

#[test]
fn moving_a_replica_to_a_fourth_node() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 4, 3);
        world.add_clients(3);
        world.run_some_ms(1_500);
        // With every second seed, the leader itself moves.
        let (leader, _) = world.leader().unwrap();
        let from = if seed % 2 == 0 { leader } else { NodeId(leader.0 % 3 + 1) };
        world.add_learners(&[(ReplicaId(4), NodeId(4))]);
        world.swap(&[ReplicaId(4)], &[ReplicaId(from.0)]);
        world.remove(ReplicaId(from.0), from);
        world.run_ms(500);
        world.finish();
        assert!(world.conf().voters.contains(&ReplicaId(4)) && world.conf().voters.len() == 3);
        assert!(world.nodes[&from].status().is_empty(), "the old replica is gone");
    }
}

#[test]
fn moves_complete_despite_crashes_and_message_loss() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 5, 3);
        world.network.lost_per_mille = 30;
        world.network.duplicated_per_mille = 30;
        world.add_clients(3);
        for new in (10..13).map(ReplicaId) {
            let free: Vec<_> = (1..=5).map(NodeId).filter(|node| world.voter_on(*node).is_none()).collect();
            let taken: Vec<_> = (1..=5).map(NodeId).filter(|node| !free.contains(node)).collect();
            let (to, from) =
                (free[world.rng.random_range(0..free.len())], taken[world.rng.random_range(0..taken.len())]);
            let Some(old) = world.voter_on(from) else { continue };
            world.add_learner(new, to);
            world.crash_and_start_one();
            world.add_learners(&[(new, to)]);
            world.crash_and_start_one();
            world.swap(&[new], &[old]);
            world.crash_and_start_one();
            world.remove(old, from);
        }
        world.finish();
        assert_eq!(world.conf().voters.len(), 3);
    }
}

#[test]
fn a_replica_can_be_destroyed_at_any_moment() {
    for seed in seeds(8) {
        let mut world = World::founded(seed, 3, 2);
        world.add_clients(3);
        for replica in (10..14).map(ReplicaId) {
            world.run_some_ms(300);
            world.add_learner(replica, NodeId(3));
            let pause_ms = world.rng.random_range(0..60);
            world.run_ms(pause_ms);
            world.input(NodeId(3), Input::Destroy { replica });
            world.remove(replica, NodeId(3));
        }
        world.run_ms(200);
        world.finish();
        assert!(world.nodes[&NodeId(3)].status().is_empty());
    }
}

#[test]
fn an_invalid_change_is_refused() {
    let mut world = World::founded(3, 3, 3);
    let (leader, before) = world.leader().unwrap();
    let follower = ReplicaId(leader.0 % 3 + 1);
    for change in [
        ConfChange::AddLearner { replica: follower, node: NodeId(follower.0) },
        ConfChange::RemoveLearner { replica: follower },
        ConfChange::Swap { promote: vec![ReplicaId(9)], demote: vec![] },
        ConfChange::Swap { promote: vec![], demote: vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)] },
        ConfChange::LeaveJoint,
    ] {
        world.input(leader, Input::Change { shard: SHARD, change });
        world.run_ms(100);
    }
    let (_, after) = world.leader().unwrap();
    assert_eq!(before.descriptor, after.descriptor);
}
