//! What a log keeps behind its checkpoint.

use flotilla_storage::Log as _;
use flotilla_types::{NodeId, ReplicaId};

use crate::harness::{World, seeds};

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
