//! The cluster version: what leaders refuse to propose, and how shards switch.

use bytes::Bytes;
use flotilla_replication::{Input, RequestError};
use flotilla_storage::{Log as _, VersionNeed, switch_command, version_byte};
use flotilla_types::{ClusterVersion, NodeId};

use crate::harness::{SHARD, World, seeds, store};

const NEXT: ClusterVersion = ClusterVersion(2);

/// The versions of all state machines.
fn versions(world: &World) -> Vec<Option<ClusterVersion>> {
    world.nodes.values().flat_map(|node| node.status()).map(|replica| replica.version).collect()
}

#[test]
fn command_above_the_version_in_force_is_refused_before_it_is_proposed() {
    let mut world = World::founded(1, 3, 3);
    world.run_ms(500);
    let (leader, before) = world.leader().unwrap();
    let raise = Bytes::copy_from_slice(&[version_byte(VersionNeed::Raises(NEXT))]);
    for command in [switch_command(NEXT), Bytes::from_static(&[9, 1]), Bytes::from_static(&[0xff]), raise] {
        let asked = world.request(leader, command.clone(), 1_000, None);
        world.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
        assert_eq!(world.answers[&asked], Err(RequestError::VersionNotInForce), "{command:?}");
    }
    let (_, after) = world.leader().unwrap();
    assert_eq!(before.group.unwrap().last, after.group.unwrap().last, "nothing was added to the log");
    world.finish();
}

#[test]
fn shards_switch_by_their_own_log_once_a_version_is_in_force() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        world.run_ms(500);
        assert_eq!(versions(&world), [Some(ClusterVersion::FIRST); 3]);
        // The leader learns it last, after a crash of another node in between.
        let (leader, _) = world.leader().unwrap();
        for node in (1..=3).map(NodeId).filter(|node| *node != leader) {
            world.input(node, Input::ClusterVersion(NEXT));
        }
        world.run_ms(1_000);
        world.input(leader, Input::ClusterVersion(NEXT));
        world.run_until(5_000, "all switch", |world| versions(world) == [Some(NEXT); 3]);
        world.input(leader, Input::ClusterVersion(ClusterVersion::FIRST));
        let asked = world.request(leader, store(9, 1, "key", "1"), 1_000, None);
        world.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
        // A restarted replica is at the version of its checkpoint and log, whatever its node knows by then.
        world.crash(NodeId(1));
        world.start(NodeId(1));
        world.run_until(5_000, "the version is restored", |world| versions(world) == [Some(NEXT); 3]);
        world.finish();
    }
}

#[test]
fn a_switch_that_was_lost_with_a_leadership_is_proposed_in_the_next() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(500);
        let (old, _) = world.leader().unwrap();
        world.isolate(old);
        // Only this node knows that the version is in force. Its entry is replaced by another leader's.
        world.input(old, Input::ClusterVersion(NEXT));
        world.run_until(5_000, "another leader", |world| world.leader().is_some_and(|(node, _)| node != old));
        world.heal();
        world.run_ms(1_000);
        assert_eq!(versions(&world), [Some(ClusterVersion::FIRST); 3]);
        let (new, _) = world.leader().unwrap();
        world.input(new, Input::Transfer { shard: SHARD, to: old });
        world.run_until(5_000, "all switch", |world| versions(world) == [Some(NEXT); 3]);
        world.finish();
    }
}

/// The shard is written to, and then left alone.
#[test]
fn checkpoints_get_the_format_in_force_also_where_nobody_writes() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        let formats = |world: &World| {
            let checkpoints = world.nodes.values().map(|node| node.log.replicas().unwrap().remove(0).1.checkpoint);
            checkpoints.filter(|checkpoint| checkpoint.tables.objects().next().is_some()).fold(
                [0, 0],
                |mut of, checkpoint| {
                    of[checkpoint.tables.format() as usize] += 1;
                    of
                },
            )
        };
        world.run_until(20_000, "checkpoints with tables", |world| formats(world) == [3, 0]);
        world.clients.iter_mut().for_each(|client| client.stopping = true);
        world.run_ms(3_000);
        for node in (1..=3).map(NodeId) {
            world.input(node, Input::ClusterVersion(NEXT));
        }
        world.run_ms(2_000);
        assert_eq!(formats(&world), [3, 0], "this version has the format before");
        for node in (1..=3).map(NodeId) {
            world.input(node, Input::ClusterVersion(ClusterVersion::CHECKPOINT_TABLES));
        }
        world.run_until(5_000, "checkpoints with manifests", |world| formats(world) == [0, 3]);
        world.add_clients(1);
        world.finish();
    }
}
