//! What replicas say of their states, and replicas that differ from a majority.

use std::collections::BTreeMap;

use flotilla_replication::{Fingerprints, Input, LostReason, Notice};
use flotilla_types::{ClusterVersion, NodeId, ReplicaId};

use crate::harness::{World, seeds};

fn raise(world: &mut World) {
    for node in world.nodes.keys().copied().collect::<Vec<_>>() {
        world.input(node, Input::ClusterVersion(ClusterVersion::CHAINS));
    }
}

/// What all replicas say that can say something.
fn fingerprints(world: &mut World) -> BTreeMap<ReplicaId, Fingerprints> {
    let said = world.nodes.values_mut().flat_map(|node| {
        let replicas: Vec<_> = node.status().iter().map(|held| held.replica).collect();
        replicas.into_iter().filter_map(|id| Some((id, node.fingerprints(id)?))).collect::<Vec<_>>()
    });
    said.collect()
}

/// Asserts that replicas which can be compared are equal. Returns the number of points that two have in common.
fn compare(said: &BTreeMap<ReplicaId, Fingerprints>) -> usize {
    let (mut samples, mut now, mut bases) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut common = 0;
    for (replica, said) in said {
        let Some(chain) = &said.chain else { continue };
        for (index, digest) in &chain.samples {
            let first = samples.insert((chain.begun, *index), *digest);
            common += usize::from(first.is_some());
            assert_eq!(first.unwrap_or(*digest), *digest, "{replica} differs at {index}");
        }
        if let Some(digest) = chain.now {
            let first = now.insert((chain.begun, said.applied), digest);
            common += usize::from(first.is_some());
            assert_eq!(first.unwrap_or(digest), digest, "{replica} differs after {}", said.applied);
        }
        for (fold, manifest) in &said.bases {
            assert_eq!(*bases.entry(*fold).or_insert(*manifest), *manifest, "{replica} has another base of {fold}");
        }
    }
    common
}

#[test]
fn replicas_say_the_same_of_the_same_state_however_often_they_start() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(4);
        world.run_ms(300);
        assert!(fingerprints(&mut world).values().all(|said| said.chain.is_none()), "not in force yet");
        let mut common = 0;
        for round in 0..9 {
            raise(&mut world);
            world.run_some_ms(2_000);
            common += compare(&fingerprints(&mut world));
            let node = NodeId(round % 3 + 1);
            world.crash(node);
            world.run_some_ms(1_000);
            world.start(node);
        }
        raise(&mut world);
        world.finish();
        let said = fingerprints(&mut world);
        common += compare(&said);
        assert!(common >= 10, "{common} points in common");
        // They began their shard's chain while they ran, and have taken no snapshot.
        assert!(said.values().all(|said| said.chain.is_some()), "{said:?}");
    }
}

#[test]
fn a_replica_that_starts_with_a_snapshot_says_that_it_is_a_copy() {
    let mut world = World::founded(1, 4, 3);
    raise(&mut world);
    world.add_clients(4);
    world.run_ms(2_000);
    world.add_learners(&[(ReplicaId(9), NodeId(4))]);
    world.run_ms(1_000);
    world.finish();
    let said = fingerprints(&mut world);
    compare(&said);
    let copied = |replica: u64| said[&ReplicaId(replica)].chain.as_ref().expect("a chain").copied;
    assert!(copied(9).is_some_and(|copied| copied <= said[&ReplicaId(9)].applied));
    assert_eq!([1, 2, 3].map(copied), [None; 3]);
}

fn lost(world: &World) -> Vec<ReplicaId> {
    let lost = world.notices.iter().filter_map(|(_, notice)| match notice {
        Notice::Lost { replicas, reason: LostReason::Diverged } => Some(replicas.iter().map(|(_, replica)| *replica)),
        _ => None,
    });
    lost.flatten().collect()
}

#[test]
fn a_replica_that_differs_is_given_up_and_its_group_goes_on() {
    for leads in [true, false] {
        let mut world = World::founded(3, 3, 3);
        world.add_clients(3);
        world.run_ms(1_000);
        let is_leader = |held: &flotilla_replication::ReplicaStatus| {
            held.group.as_ref().is_some_and(|group| group.role == flotilla_replication::Role::Leader)
        };
        let found = world.nodes.iter().find_map(|(node, state)| {
            let held = state.status().into_iter().find(|held| is_leader(held) == leads)?;
            Some((*node, held.replica))
        });
        let (node, replica) = found.expect("a replica");
        world.input(node, Input::Diverged { replica });
        world.run_ms(200);
        assert_eq!(lost(&world), [replica]);
        assert!(world.nodes[&node].status()[0].group.is_none(), "it votes no more");
        let before = world.checks.writes;
        world.run_until(10_000, "writes go on", |world| world.checks.writes > before + 20);
    }
}

#[test]
fn a_replica_that_its_shard_needs_stays() {
    for nodes in [1, 2] {
        let mut world = World::founded(3, nodes, nodes);
        world.add_clients(2);
        world.run_ms(1_000);
        world.input(NodeId(1), Input::Diverged { replica: ReplicaId(1) });
        world.run_ms(200);
        assert_eq!(lost(&world), []);
        assert!(world.nodes[&NodeId(1)].status()[0].group.is_some());
    }
}
