//! What is kept for followers: a tail of the log behind each checkpoint, and what a snapshot that was offered
//! needs until its receiver has caught up.

use flotilla_replication::{Input, Role};
use flotilla_storage::Log as _;
use flotilla_types::{NodeId, ReplicaId};
use rand::RngExt as _;

use crate::harness::{SHARD, World, seeds, store};

/// The new replica of these tests, and its node.
const LEARNER: (ReplicaId, NodeId) = (ReplicaId(4), NodeId(4));
/// Bytes of objects that pass to a node in a millisecond.
const RATE: u64 = 20;

/// Restarts every node, with the settings as they are now.
fn restart(world: &mut World) {
    let ids: Vec<_> = world.nodes.keys().copied().collect();
    ids.iter().for_each(|id| world.crash(*id));
    ids.iter().for_each(|id| world.start(*id));
    world.run_until(5_000, "a leader", |world| world.leader().is_some());
}

/// Bytes of the entries that a replica's checkpoint covers and its log still has.
fn tails(world: &World) -> Vec<(ReplicaId, u64)> {
    let mut tails = Vec::new();
    for node in world.nodes.values() {
        for (id, state) in node.log.replicas().unwrap() {
            let (from, to) = (state.truncated.0.next(), state.checkpoint.position.index.next());
            let entries = if from < to { node.log.entries(id, from, to, usize::MAX).unwrap() } else { Vec::new() };
            tails.push((id, entries.iter().map(|entry| entry.size_bytes() as u64).sum()));
        }
    }
    tails
}

/// Runs for some time and returns the longest tail that there was.
fn longest_tail(world: &mut World) -> u64 {
    let mut longest = 0;
    for _ in 0..40 {
        world.run_ms(50);
        longest = longest.max(tails(world).into_iter().map(|(_, bytes)| bytes).max().unwrap_or(0));
    }
    longest
}

#[test]
fn the_tail_behind_a_checkpoint_is_bounded_in_bytes() {
    for seed in seeds(3) {
        let mut world = World::founded(seed, 3, 3);
        world.log_release_per_mille = 0;
        world.config.log_tail_entries = 1_024;
        let bytes_max = world.config.log_tail_bytes_max();
        restart(&mut world);
        world.add_clients(4);
        let longest = longest_tail(&mut world);
        assert!((bytes_max / 2..=bytes_max).contains(&longest), "{longest} of {bytes_max} bytes for a new leader");
        // Nor does a follower that is away keep more in its leader's log.
        let (leader, _) = world.leader().unwrap();
        world.isolate(NodeId(leader.0 % 3 + 1));
        let longest = longest_tail(&mut world);
        assert!((bytes_max / 2..=bytes_max).contains(&longest), "{longest} of {bytes_max} bytes for an absent one");
        // A restart knows no sizes of what was truncated up to before.
        world.heal();
        restart(&mut world);
        let longest = longest_tail(&mut world);
        assert!(longest <= bytes_max, "{longest} of {bytes_max} bytes after a restart");
        world.finish();
    }
}

/// Three voters with a shard that takes seconds to transfer, and a log that may hold what is written meanwhile.
fn large_shard(seed: u64) -> World {
    let mut world = World::founded(seed, 4, 3);
    world.log_release_per_mille = 0;
    world.config.log_bytes_max = 256 << 10;
    world.config.memtable_bytes_max = 400;
    restart(&mut world);
    for number in 1..=120 {
        let (name, value) = (format!("large {number}"), "x".repeat(500));
        let mut done = false;
        while !done {
            let Some((leader, _)) = world.leader() else { panic!("no leader") };
            let asked = world.request(leader, store(1, number, &name, &value), 5_000, None);
            world.run_until(6_000, "an answer", |world| world.answers.contains_key(&asked));
            done = world.answers.remove(&asked).is_some_and(|answer| answer.is_ok());
        }
    }
    world.run_ms(3_000);
    world.network.object_bytes_per_ms = Some(RATE);
    world
}

/// Begins to add the learner, and returns how long its objects take, milliseconds.
fn begin_to_add(world: &mut World) -> u64 {
    let (replica, node) = LEARNER;
    world.add_learner(replica, node);
    world.run_until(5_000, "the first object", |world| world.checks.pulled_bytes > 0);
    let (_, leader) = world.leader().unwrap();
    assert!(leader.usage.checkpoint_bytes > 50_000, "{:?}", leader.usage);
    leader.usage.checkpoint_bytes / RATE
}

fn is_caught_up(world: &World) -> bool {
    let group = world.leader().and_then(|(_, leader)| leader.group);
    group.is_some_and(|group| {
        let near = |matched: u64| matched + 32 >= group.commit.0;
        group.followers.iter().any(|follower| follower.replica == LEARNER.0 && near(follower.matched.0))
    })
}

fn lead_elsewhere(world: &mut World) {
    let (leader, _) = world.leader().unwrap();
    let to = NodeId(leader.0 % 3 + 1);
    world.input(leader, Input::Transfer { shard: SHARD, to });
    world.run_until(5_000, "another leader", |world| {
        world
            .leader()
            .is_some_and(|(node, leader)| node == to && leader.group.is_some_and(|group| group.role == Role::Leader))
    });
}

#[test]
fn a_learner_of_a_large_shard_catches_up_under_load() {
    for seed in seeds(6) {
        let mut world = large_shard(seed);
        world.add_clients(6);
        world.run_ms(500);
        let (checkpoint, sent) = (world.leader().unwrap().1.checkpoint, world.checks.snapshots_sent);
        let takes_ms = begin_to_add(&mut world);
        let started_ms = world.now_ms();
        world.run_until(3 * takes_ms, "the learner catches up", is_caught_up);
        let took_ms = world.now_ms() - started_ms;
        let (_, leader) = world.leader().unwrap();
        let moved = leader.checkpoint.0 - checkpoint.0;
        assert!(moved > 4 * world.config.log_tail_entries, "the checkpoint moved by {moved} only");
        assert!(took_ms * 2 <= takes_ms * 3, "{took_ms} ms for what takes {takes_ms} ms");
        assert_eq!(world.checks.objects_gone, 0);
        let sent = world.checks.snapshots_sent - sent;
        assert!(sent <= 5, "the list of objects was sent {sent} times");
        let tails_bounded =
            |world: &World| tails(world).into_iter().all(|(_, bytes)| bytes <= world.config.log_tail_bytes_max());
        world.run_until(10_000, "nothing is kept for it any more", tails_bounded);
        world.finish();
    }
}

#[test]
fn a_pull_that_is_interrupted_fetches_little_twice() {
    for seed in seeds(6) {
        let mut world = large_shard(seed);
        world.add_clients(4);
        let takes_ms = begin_to_add(&mut world);
        for _ in 0..3 {
            world.run_ms(takes_ms / 6);
            match world.rng.random_range(0..2) {
                0 => {
                    world.crash(LEARNER.1);
                    world.start(LEARNER.1);
                }
                _ => {
                    world.isolate(LEARNER.1);
                    world.run_ms(2_500);
                    world.heal();
                }
            }
        }
        world.run_until(60_000, "the learner catches up", is_caught_up);
        let (_, leader) = world.leader().unwrap();
        let (needed, fetched) = (leader.usage.checkpoint_bytes, world.checks.pulled_bytes as u64);
        assert!(fetched * 3 <= needed * 4, "{fetched} bytes were fetched of {needed}");
        world.finish();
    }
}

#[test]
fn another_leader_offers_its_own_snapshot_in_place_of_the_first() {
    for seed in seeds(6) {
        let mut world = large_shard(seed);
        world.add_clients(3);
        let takes_ms = begin_to_add(&mut world);
        world.run_ms(takes_ms / 3);
        lead_elsewhere(&mut world);
        let started_ms = world.now_ms();
        world.run_until(3 * takes_ms, "the learner catches up", is_caught_up);
        let took_ms = world.now_ms() - started_ms;
        // What came first is what only the first leader held, so that little of it is of use.
        assert!(took_ms * 4 <= takes_ms * 7, "{took_ms} ms for what takes {takes_ms} ms");
        world.finish();
    }
}

#[test]
fn what_is_kept_for_a_learner_that_does_not_get_on_is_bounded() {
    for seed in seeds(3) {
        let mut world = large_shard(seed);
        world.config.log_bytes_max = 8 << 10;
        restart(&mut world);
        world.add_clients(6);
        let bytes_max = world.config.offer_log_bytes_max();
        begin_to_add(&mut world);
        world.network.object_bytes_per_ms = Some(RATE / 4);
        let mut longest = 0;
        for _ in 0..100 {
            world.run_ms(100);
            longest = longest.max(tails(&world).into_iter().map(|(_, bytes)| bytes).max().unwrap_or(0));
        }
        assert!((bytes_max / 2..=bytes_max + (4 << 10)).contains(&longest), "{longest} of {bytes_max} bytes");
        world.network.object_bytes_per_ms = None;
        world.finish();
    }
}
