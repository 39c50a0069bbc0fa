//! Replicas give up log entries when the log cannot free space because of them.

use flotilla_replication::Input;
use flotilla_storage::{Log as _, ReplicaLog};
use flotilla_types::{NodeId, ReplicaId};

use crate::harness::{World, seeds};

fn logged(world: &World, node: u64) -> ReplicaLog {
    world.nodes[&NodeId(node)].log.replicas().unwrap().remove(0).1
}

/// Three replicas that were written to and have been at rest for a while.
fn at_rest(seed: u64) -> World {
    let mut world = World::founded(seed, 3, 3);
    world.log_release_per_mille = 0;
    world.add_clients(2);
    world.run_ms(3_000);
    for client in &mut world.clients {
        client.stopping = true;
    }
    world.run_ms(2_000);
    world
}

fn release(world: &mut World, node: u64) {
    world.input(NodeId(node), Input::ReleaseLog { replica: ReplicaId(node) });
    world.run_ms(500);
}

#[test]
fn a_replica_that_holds_back_log_space_truncates_what_its_checkpoint_covers() {
    for seed in seeds(4) {
        let mut world = at_rest(seed);
        let mut tails = 0;
        for node in 1..=3 {
            let before = logged(&world, node);
            if before.truncated.0 == before.checkpoint.position.index {
                // A leader whose followers had caught up keeps no tail.
                continue;
            }
            tails += 1;
            release(&mut world, node);
            let after = logged(&world, node);
            assert_eq!(after.checkpoint, before.checkpoint, "an old checkpoint is enough to truncate");
            assert_eq!(after.truncated.0, after.checkpoint.position.index);
        }
        assert!(tails >= 2, "those that may lead later keep a tail for slow followers");
        world.add_clients(1);
        world.finish();
    }
}

#[test]
fn a_replica_with_nothing_to_give_up_writes_nothing() {
    for seed in seeds(4) {
        let mut world = at_rest(seed);
        for node in 1..=3 {
            // The first call truncates, the second checkpoints what came later.
            (0..2).for_each(|_| release(&mut world, node));
            let before = logged(&world, node);
            assert_eq!(before.truncated.0, before.checkpoint.position.index);
            assert_eq!(before.checkpoint.position.index, world.nodes[&NodeId(node)].status()[0].applied);
            let batches = |world: &World| world.nodes[&NodeId(node)].log.reopen().recovered();
            let written = batches(&world);
            (0..3).for_each(|_| release(&mut world, node));
            assert_eq!((logged(&world, node), batches(&world)), (before, written));
        }
        world.add_clients(1);
        world.finish();
    }
}

#[test]
fn a_follower_that_responds_keeps_its_place_when_a_leader_gives_up_its_log() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.network.slow_per_mille = 300;
        world.add_clients(3);
        for _ in 0..40 {
            world.run_ms(100);
            for node in 1..=3 {
                world.input(NodeId(node), Input::ReleaseLog { replica: ReplicaId(node) });
            }
            let Some((_, leader)) = world.leader() else { continue };
            let followers = leader.group.map(|group| group.followers).unwrap_or_default();
            assert!(followers.iter().all(|follower| !follower.in_snapshot), "{}", world.describe());
        }
        assert!(world.checks.writes > 100, "{}", world.checks.writes);
        world.finish();
    }
}
