//! Changes of the shard by its own log. The harness checks continuously that all replicas judge each entry by
//! the same descriptor, and by the one after all changes before it.

use flotilla_replication::{Answer, ConfChange, Freshness, Input, RequestError, ShardChange};
use flotilla_types::{ClusterVersion, NodeId, ReplicaId, Timestamp};
use rand::RngExt as _;

use crate::harness::{SHARD, World, get, key, seeds, store};

/// A world whose nodes all know that shards may change.
fn founded(seed: u64, nodes: u64, founders: u64) -> World {
    let mut world = World::founded(seed, nodes, founders);
    allow(&mut world);
    world.run_ms(500);
    world
}

fn allow(world: &mut World) {
    for node in world.nodes.keys().copied().collect::<Vec<_>>() {
        world.input(node, Input::ClusterVersion(ClusterVersion::SHARD_ENTRIES));
    }
}

fn bump(world: &mut World, node: NodeId) {
    world.input(node, Input::ChangeShard { shard: SHARD, change: ShardChange::Bump });
}

/// The range epochs of all replicas that are not alone in their past: of those with a group.
fn epochs(world: &World) -> Vec<u64> {
    let held = world.nodes.values().flat_map(|node| node.status()).filter(|replica| replica.group.is_some());
    held.map(|replica| replica.descriptor.epoch.range).collect()
}

/// Bumps the range epoch, by any leader, until so many changes are committed.
fn bump_until(world: &mut World, changes: usize) {
    let until_ms = world.now_ms() + 20_000;
    while world.checks.shard_changes.len() < changes {
        assert!(world.now_ms() < until_ms, "no change is committed\n{}", world.describe());
        if let Some((leader, _)) = world.leader() {
            bump(world, leader);
        }
        world.run_ms(20);
    }
}

/// Ends the run. Every replica must be at the range epoch that the committed changes make.
fn finish(mut world: World) -> usize {
    world.finish();
    let changes = world.checks.shard_changes.len();
    let epochs = epochs(&world);
    assert!(epochs.len() >= world.conf().voters.len());
    assert!(epochs.iter().all(|epoch| *epoch == 1 + changes as u64), "{epochs:?} after {changes} changes");
    changes
}

#[test]
fn a_change_below_its_cluster_version_is_not_proposed() {
    let mut world = World::founded(1, 3, 3);
    world.run_ms(500);
    let (leader, before) = world.leader().unwrap();
    world.input(leader, Input::ClusterVersion(ClusterVersion(2)));
    world.run_ms(500);
    let last = |world: &World| world.leader().unwrap().1.group.unwrap().last;
    let switched = last(&world);
    bump(&mut world, leader);
    world.run_ms(500);
    assert_eq!((last(&world), world.leader().unwrap().1.descriptor), (switched, before.descriptor));
    allow(&mut world);
    bump(&mut world, leader);
    world.run_until(5_000, "the change", |world| epochs(world) == [2; 3]);
    assert_eq!(finish(world), 1);
}

/// The follower that was down gets commands, changes and more commands as one, and has to cut them.
#[test]
fn replicas_that_catch_up_judge_each_entry_by_the_range_of_its_place() {
    for seed in seeds(6) {
        let mut world = founded(seed, 3, 3);
        world.add_clients(4);
        let (leader, _) = world.leader().unwrap();
        let late = NodeId(leader.0 % 3 + 1);
        world.crash(late);
        for _ in 0..5 {
            world.run_some_ms(60);
            bump(&mut world, leader);
        }
        world.run_ms(200);
        world.start(late);
        assert!(finish(world) >= 4);
    }
}

#[test]
fn a_change_survives_or_is_lost_as_a_whole_when_its_leader_fails() {
    let mut lost = 0;
    for seed in seeds(12) {
        let mut world = founded(seed, 3, 3);
        world.add_clients(3);
        let mut proposed = 0;
        for _ in 0..3 {
            world.run_until(20_000, "a leader", |world| world.leader().is_some());
            let (leader, _) = world.leader().unwrap();
            bump(&mut world, leader);
            proposed += 1;
            let pause_us = world.rng.random_range(0..6_000);
            world.run_us(pause_us);
            if world.rng.random_bool(0.5) {
                world.isolate(leader);
                world.run_ms(1_500);
                world.heal();
            } else {
                world.crash(leader);
                world.run_some_ms(1_000);
                world.start(leader);
            }
            allow(&mut world);
        }
        lost += proposed - finish(world);
    }
    assert!(lost > 0, "each change was committed");
}

#[test]
fn a_restart_applies_the_changes_in_the_log_again() {
    for seed in seeds(6) {
        let mut world = founded(seed, 3, 3);
        world.log_release_per_mille = 0;
        world.add_clients(2);
        bump_until(&mut world, 2);
        world.run_some_ms(100);
        for node in (1..=3).map(NodeId) {
            world.crash(node);
        }
        for node in (1..=3).map(NodeId) {
            world.start(node);
        }
        allow(&mut world);
        assert!(finish(world) >= 2);
    }
}

#[test]
fn a_snapshot_brings_the_descriptor_of_its_index() {
    for seed in seeds(4) {
        let mut world = founded(seed, 3, 3);
        world.add_clients(3);
        let (leader, _) = world.leader().unwrap();
        let late = NodeId(leader.0 % 3 + 1);
        world.isolate(late);
        bump_until(&mut world, 1);
        let change = *world.checks.shard_changes.first().unwrap();
        world.run_until(20_000, "a truncated log", |world| {
            world.leader().is_some_and(|(_, leader)| leader.group.is_some_and(|group| group.truncated > change))
        });
        world.heal();
        world.run_until(10_000, "a snapshot", |world| world.checks.installed.contains(&ReplicaId(late.0)));
        bump_until(&mut world, 2);
        assert!(finish(world) >= 2);
    }
}

#[test]
fn changes_of_the_shard_and_of_its_replicas_are_made_side_by_side() {
    for seed in seeds(6) {
        let mut world = founded(seed, 3, 1);
        world.add_clients(2);
        let learners = [(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))];
        for (replica, node) in learners {
            let (leader, _) = world.leader().unwrap();
            world.request_replica(replica, node, crate::harness::descriptor(&[]), false);
            let add = ConfChange::AddLearner { replica, node };
            world.input(leader, Input::Change { shard: SHARD, change: add.clone() });
            bump(&mut world, leader);
            world.change(&add, |conf| conf.contains(replica));
        }
        world.add_learners(&learners);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        world.change(&swap, |conf| conf.voters.len() == 3);
        bump_until(&mut world, 3);
        world.change(&ConfChange::LeaveJoint, |conf| conf.voters.len() == 3 && !conf.is_joint());
        let config = world.leader().unwrap().1.descriptor.epoch.config;
        assert_eq!(config, 5, "two learners, the swap and its end");
        assert!(finish(world) >= 3);
    }
}

/// A write and a strong read of one key, routed by the first range epoch.
fn ask(world: &mut World, node: NodeId) -> [u64; 2] {
    let requests = [(store(9, 1, "key", "1"), None), (get(key("key")), Some(Freshness::Strong))];
    requests.map(|(payload, freshness)| world.request_with(node, (Some(1), Timestamp::ZERO), payload, 5_000, freshness))
}

/// A new leader admits them before it has applied the change, which it does before it proposes or reads.
#[test]
fn requests_that_waited_over_a_change_of_the_range_are_routed_again() {
    let mut waited = 0;
    for seed in seeds(10) {
        let mut world = founded(seed, 3, 3);
        let (old, _) = world.leader().unwrap();
        bump(&mut world, old);
        // Followers learn only later that it is committed.
        world.run_until(1_000, "the change", |world| world.nodes[&old].status()[0].descriptor.epoch.range == 2);
        world.crash(old);
        while world.leader().is_none_or(|(node, _)| node == old) {
            world.run_us(100);
        }
        let (new, status) = world.leader().unwrap();
        waited += u64::from(status.descriptor.epoch.range == 1);
        let asked = ask(&mut world, new);
        world.run_until(2_000, "answers", |world| asked.iter().all(|asked| world.answers.contains_key(asked)));
        let (_, leader) = world.leader().unwrap();
        assert_eq!(leader.descriptor.epoch.range, 2);
        for asked in asked {
            let stale: Answer = Err(RequestError::StaleEpoch { now: Box::new([leader.descriptor.clone()]) });
            assert_eq!(world.answers[&asked], stale, "seed {seed}");
        }
        finish(world);
    }
    assert!(waited > 0, "each change was known when the requests came");
}
