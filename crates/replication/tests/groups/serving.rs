//! Elections, reads and writes, under crashes and network faults.

use flotilla_replication::{Freshness, Input, RequestError};
use flotilla_storage::Log as _;
use flotilla_types::{NodeId, ReplicaId};
use rand::RngExt as _;

use crate::harness::{SHARD, World, get, key, seeds, store};

#[test]
fn three_founders_elect_and_serve() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        world.run_ms(3_000);
        assert!(world.checks.writes > 100 && world.checks.reads > 50, "{}", world.checks.writes);
        world.finish();
    }
}

#[test]
fn a_single_founder_serves_at_once_and_again_after_a_crash() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 1, 1);
        world.add_clients(2);
        for _ in 0..3 {
            world.run_ms(700);
            world.crash(NodeId(1));
            world.start(NodeId(1));
        }
        assert!(world.checks.writes > 50);
        world.finish();
    }
}

#[test]
fn crash_of_any_node_keeps_every_acknowledged_write() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        for _ in 0..5 {
            let node = NodeId(world.rng.random_range(1..=3));
            world.run_some_ms(1_000);
            world.crash(node);
            world.run_some_ms(1_500);
            world.start(node);
        }
        world.finish();
    }
}

#[test]
fn crash_of_all_nodes_keeps_every_acknowledged_write() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        for _ in 0..3 {
            world.run_some_ms(1_500);
            for node in 1..=3 {
                world.crash(NodeId(node));
            }
            for node in 1..=3 {
                world.run_some_ms(300);
                world.start(NodeId(node));
            }
        }
        world.finish();
    }
}

#[test]
fn commands_are_applied_once_on_a_lossy_network() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.network.lost_per_mille = 100;
        world.network.slow_per_mille = 50;
        world.add_clients(3);
        for _ in 0..4 {
            let node = NodeId(world.rng.random_range(1..=3));
            world.run_some_ms(1_000);
            world.isolate(node);
            world.run_some_ms(1_500);
            for other in (1..=3).map(NodeId).filter(|other| *other != node) {
                world.set_link(node, other, false);
            }
        }
        world.finish();
    }
}

#[test]
fn duplicated_messages_do_no_harm() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.network.duplicated_per_mille = 500;
        world.network.slow_per_mille = 100;
        world.add_clients(3);
        world.run_ms(2_000);
        world.crash(NodeId(2));
        world.run_ms(500);
        world.start(NodeId(2));
        world.run_ms(1_000);
        world.finish();
    }
}

#[test]
fn slow_disks_and_state_machines_only_slow_clients_down() {
    for seed in seeds(3) {
        let mut world = World::founded(seed, 3, 3);
        world.disk_us_max = 60_000;
        world.apply_us_max = 60_000;
        world.add_clients(8);
        world.run_ms(3_000);
        let terms = world.leader().map(|(_, leader)| leader.group.unwrap().term);
        assert!(world.checks.writes > 20);
        world.crash(NodeId(1));
        world.run_ms(1_000);
        (world.disk_us_max, world.apply_us_max) = (2_000, 300);
        world.finish();
        assert!(terms.is_some(), "slowness does not depose the leader for long");
    }
}

#[test]
fn minority_cannot_commit() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(1_000);
        let (old, _) = world.leader().unwrap();
        world.isolate(old);
        let writes: Vec<_> =
            (1..=9).map(|sequence| world.request(old, store(7, sequence, "minority", "1"), 1_000, None)).collect();
        let read = world.request(old, get(key("minority")), 1_000, Some(Freshness::Strong));
        world.run_ms(1_200);
        for asked in writes.iter().chain([&read]) {
            let answer = world.answers.get(asked);
            let refused = matches!(
                answer,
                Some(Err(RequestError::Unknown
                    | RequestError::NotLeader { .. }
                    | RequestError::Deadline
                    | RequestError::Busy))
            );
            assert!(refused, "{answer:?}");
        }
        world.run_until(5_000, "another leader", |world| world.leader().is_some_and(|(node, _)| node != old));
        let (new, _) = world.leader().unwrap();
        let read = world.request(new, get(key("minority")), 1_000, Some(Freshness::Strong));
        world.run_until(1_000, "an answer", |world| world.answers.contains_key(&read));
        let answer = world.answers[&read].clone().unwrap().payload;
        assert_eq!(flotilla_kv::decode_answer(answer), Ok(flotilla_kv::Answer::Records(vec![None])));
        world.finish();
    }
}

#[test]
fn leadership_can_be_transferred() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        for _ in 0..3 {
            world.run_ms(500);
            let Some((old, _)) = world.leader() else { continue };
            let to = NodeId(old.0 % 3 + 1);
            world.input(old, Input::Transfer { shard: SHARD, to });
            world.run_until(1_000, "the new leader", |world| world.leader().is_some_and(|(node, _)| node == to));
        }
        let Some((old, _)) = world.leader() else { panic!("no leader") };
        world.input(old, Input::StepDown);
        world.run_until(2_000, "leadership elsewhere", |world| world.leader().is_some_and(|(node, _)| node != old));
        world.crash(old);
        world.finish();
    }
}

#[test]
fn lagging_follower_does_not_grow_without_bound() {
    for seed in seeds(3) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(500);
        let (leader, _) = world.leader().unwrap();
        let lagging = NodeId(leader.0 % 3 + 1);
        world.isolate(lagging);
        world.add_clients(4);
        let mut longest = 0;
        for _ in 0..20 {
            world.run_ms(200);
            for node in world.nodes.values() {
                for (_, log) in node.log.replicas().unwrap() {
                    longest = longest.max(log.last.0 - log.truncated.0.0);
                }
            }
        }
        assert!(world.checks.writes > 200);
        // The tail, and the entries of a memtable or two before the next checkpoint is durable.
        assert!(longest < 200, "{longest} entries in a log");
        world.finish();
        let replica = ReplicaId(lagging.0);
        assert!(world.checks.installed.contains(&replica), "the lagging replica caught up by a snapshot");
    }
}

#[test]
fn a_snapshot_waits_for_the_checkpoint_in_progress() {
    let mut installed = false;
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(4);
        world.work_slow_per_mille = 250;
        for round in 0..8 {
            let node = NodeId(1 + (seed + round) % 3);
            world.run_some_ms(300);
            world.isolate(node);
            world.run_ms(1_200);
            world.heal();
            world.run_some_ms(800);
            if round % 4 == 3 {
                world.crash(node);
                world.start(node);
            }
        }
        world.finish();
        installed |= !world.checks.installed.is_empty();
    }
    assert!(installed, "no replica ever needed a snapshot");
}

#[test]
fn same_seed_same_trace() {
    let run = |seed| {
        let mut world = World::founded(seed, 3, 3);
        world.network.lost_per_mille = 50;
        world.network.duplicated_per_mille = 50;
        world.add_clients(2);
        world.run_ms(1_500);
        world.crash(NodeId(1));
        world.run_ms(500);
        world.finish();
        world.trace()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
