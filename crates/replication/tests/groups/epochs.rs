//! Requests that were routed by another descriptor than the replica's.

use flotilla_replication::{Answer, Freshness, RequestError};
use flotilla_types::{NodeId, Timestamp};

use crate::harness::{World, get, key, seeds, store};

/// The answers to a write and to a strong read that were routed by this range epoch.
fn ask(world: &mut World, node: NodeId, range_epoch: u64) -> [Answer; 2] {
    let sequence = world.attempts + 1;
    let requests = [(store(9, sequence, "key", "1"), None), (get(key("key")), Some(Freshness::Strong))];
    let asked = requests.map(|(payload, freshness)| {
        world.request_with(node, (Some(range_epoch), Timestamp::ZERO), payload, 1_000, freshness)
    });
    world.run_until(1_500, "answers", |world| asked.iter().all(|asked| world.answers.contains_key(asked)));
    asked.map(|asked| world.answers.remove(&asked).unwrap())
}

#[test]
fn an_outdated_route_is_refused_with_the_descriptor_that_holds_now() {
    let mut world = World::founded(1, 3, 3);
    world.run_ms(500);
    let (_, leader) = world.leader().unwrap();
    for node in (1..=3).map(NodeId) {
        for answer in ask(&mut world, node, 0) {
            let now = Box::new([leader.descriptor.clone()]);
            assert_eq!(answer, Err(RequestError::StaleEpoch { now }), "{node}");
        }
    }
    world.finish();
}

/// The sender may know a change of the range that this replica has not applied yet.
#[test]
fn a_route_that_is_newer_than_the_replica_is_not_outdated() {
    for seed in seeds(2) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(500);
        let (leader, _) = world.leader().unwrap();
        for node in (1..=3).map(NodeId) {
            for answer in ask(&mut world, node, 2) {
                match answer {
                    Ok(_) => assert_eq!(node, leader),
                    error => assert_eq!(error, Err(RequestError::NotLeader { leader: Some(leader) })),
                }
            }
        }
        world.finish();
    }
}
