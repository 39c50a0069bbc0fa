//! Entries that refer to objects: every replica has the objects, durable, before it takes the entry, and nobody else
//! waits for them. The harness checks the first with every write to a log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_replication::{CommandRefs, Core, Effects, GatherEnd, Input, RequestError, refs_of};
use flotilla_storage::{Log as _, conformance::Referring};
use flotilla_types::{ClusterVersion, Holder, Incarnation, NodeId, ObjectRef, Refs};
use flotilla_values::ValueRef;
use rand::RngExt as _;

use crate::harness::{World, seeds};

const TIMEOUT_MS: u64 = 4_000;

fn content(world: &mut World, len: usize) -> Vec<u8> {
    (0..len).map(|_| world.rng.random()).collect()
}

fn referring(value: &ValueRef, held_by: NodeId) -> CommandRefs {
    CommandRefs::new(value.refs(), held_by)
}

/// A cluster at the version that has references.
fn at_version(seed: u64) -> World {
    let mut world = World::founded(seed, 3, 3);
    world.run_until(20_000, "a leader", |world| world.leader().is_some());
    world.raise(ClusterVersion::VALUE_REFS);
    world
}

fn leader(world: &mut World) -> NodeId {
    world.run_until(30_000, "a leader", |world| world.leader().is_some());
    world.leader().expect("there is one").0
}

/// Writes a value that some node has received, until it is written. Returns how often that was tried.
fn write(world: &mut World, gateway: NodeId, key: &[u8], content: &[u8]) -> u32 {
    for tries in 1..20 {
        if world.nodes[&gateway].running.is_none() {
            world.start(gateway);
        }
        let value = world.upload(gateway, content);
        world.raise(ClusterVersion::VALUE_REFS);
        let leader = leader(world);
        let command = Referring::put(key, &value.encode(), &value.refs());
        let request = world.propose(leader, command, referring(&value, gateway), TIMEOUT_MS);
        let until_ms = world.now_ms() + 2 * TIMEOUT_MS;
        while !world.answers.contains_key(&request) && world.now_ms() < until_ms {
            world.run_ms(10);
        }
        let answer = world.answers.remove(&request);
        world.end_upload(gateway, &value);
        if matches!(answer, Some(Ok(_))) {
            return tries;
        }
        // It may be busy.
        world.run_ms(200);
    }
    panic!("the value is not written\n{}", world.describe());
}

fn assert_values(world: &mut World, expected: &BTreeMap<Bytes, Vec<u8>>) {
    world.finish();
    for node in [1, 2, 3].map(NodeId) {
        assert_eq!(world.values_on(node), *expected, "values on {node}");
    }
}

/// Uploads at any node, values of no chunk to many lists, small writes beside them, checkpoints and truncations.
#[test]
fn values_are_on_every_replica_wherever_they_were_stored() {
    for seed in seeds(6) {
        let mut world = at_version(seed);
        world.add_clients(3);
        let mut expected = BTreeMap::new();
        for round in 0..25_u64 {
            let gateway = NodeId(round % 3 + 1);
            let len = [0, 1, 200, 9_000, 150_000][world.rng.random_range(0..5)];
            let content = content(&mut world, len);
            let key = [b'k', (round % 10) as u8];
            write(&mut world, gateway, &key, &content);
            expected.insert(Referring::record_key(&key), content);
        }
        assert!(world.checks.referring >= 3 * 15, "{} entries", world.checks.referring);
        assert_values(&mut world, &expected);
    }
}

#[test]
fn values_survive_crashes_of_any_node_at_any_time() {
    for seed in seeds(10) {
        let mut world = at_version(seed);
        world.add_clients(2);
        // Slow enough that nodes crash while they fetch.
        world.network.object_bytes_per_ms = Some(40);
        let mut expected = BTreeMap::new();
        for round in 0..12_u64 {
            let gateway = NodeId(world.rng.random_range(1..=3));
            let len = world.rng.random_range(500..20_000);
            let content = content(&mut world, len);
            let key = [b'k', (round % 5) as u8];
            if world.rng.random_bool(0.6) {
                world.crash_and_start_one();
                world.raise(ClusterVersion::VALUE_REFS);
            }
            write(&mut world, gateway, &key, &content);
            expected.insert(Referring::record_key(&key), content);
            if world.rng.random_bool(0.5) {
                let node = NodeId(world.rng.random_range(1..=3));
                world.crash(node);
                world.run_some_ms(300);
                world.start(node);
                world.raise(ClusterVersion::VALUE_REFS);
            }
        }
        assert_values(&mut world, &expected);
    }
}

/// A follower that was away gets a snapshot, and what its records refer to with it.
#[test]
fn a_learner_gets_what_the_records_of_a_snapshot_refer_to() {
    for seed in seeds(4) {
        let mut world = at_version(seed);
        world.add_clients(3);
        let mut expected = BTreeMap::new();
        world.crash(NodeId(3));
        for round in 0..12_u8 {
            let content = content(&mut world, 2_000 * usize::from(round) + 7);
            write(&mut world, NodeId(1 + u64::from(round % 2)), &[round], &content);
            expected.insert(Referring::record_key(&[round]), content);
        }
        let installed = world.checks.installed.len();
        world.run_ms(3_000);
        world.start(NodeId(3));
        world.raise(ClusterVersion::VALUE_REFS);
        assert_values(&mut world, &expected);
        assert!(world.checks.installed.len() > installed, "by a snapshot");
    }
}

/// Whoever fetches slowly is late with this entry and those behind it, and with nothing else.
#[test]
fn a_parked_tail_delays_no_heartbeat_and_no_other_replica() {
    for seed in seeds(4) {
        let mut world = at_version(seed);
        let leader = leader(&mut world);
        let slow = NodeId(leader.0 % 3 + 1);
        let term = world.leader().and_then(|(_, replica)| replica.group).expect("it leads").term;
        let content = content(&mut world, 40_000);
        // The other follower stores it, so that two of three have it at once.
        let fast = NodeId((1..=3).find(|id| ![leader.0, slow.0].contains(id)).expect("there are three"));
        let value = world.upload(fast, &content);
        // What that node receives of objects takes so long.
        let until_us = world.now_us + 8_000_000;
        world.network.objects_until_us.insert(slow, until_us);
        let request = world.propose(
            leader,
            Referring::put(b"k", &value.encode(), &value.refs()),
            referring(&value, fast),
            20_000,
        );
        assert!(world.wait_for(request).is_ok());
        // Small writes behind it.
        for number in 0..30_u8 {
            let small = world.propose(leader, Referring::delete(&[b'd', number]), CommandRefs::default(), 1_000);
            let asked_ms = world.now_ms();
            assert!(world.wait_for(small).is_ok());
            assert!(world.now_ms() - asked_ms < 300, "two of three replicas write at once");
        }
        // A pull that ends without the rest: the tail is dropped, and sent again.
        for status in world.nodes[&slow].status() {
            for number in 0..9 {
                let holder = Holder::Parked(status.replica);
                world.input(slow, Input::Gathered { holder, number, end: GatherEnd::Incomplete });
            }
        }
        world.run_ms(1_000);
        assert!(world.now_us < until_us, "all of that while the objects are on their way");
        let (_, now) = world.leader().expect("it still leads");
        let group = now.group.expect("it leads");
        assert_eq!(group.term, term, "no election");
        let behind = group.followers.iter().filter(|follower| follower.matched < group.commit).count();
        assert_eq!(behind, 1, "one follower is late: {}", world.describe());
        assert!(group.followers.iter().all(|follower| follower.recently_active));
        world.end_upload(fast, &value);
        assert_values(&mut world, &BTreeMap::from([(Referring::record_key(b"k"), content)]));
    }
}

#[test]
fn a_command_whose_objects_cannot_be_had_changes_nothing() {
    let mut world = at_version(1);
    let leader = leader(&mut world);
    let gateway = NodeId(leader.0 % 3 + 1);
    let content = content(&mut world, 9_000);
    let value = world.upload(gateway, &content);
    let (encoded, refs) = (value.encode(), value.refs());
    let attempt = |world: &mut World, refs: &Refs| {
        let request = world.propose(
            leader,
            Referring::put(b"k", &encoded, refs),
            CommandRefs::new(refs.clone(), gateway),
            20_000,
        );
        world.wait_for(request).map(|_| ())
    };
    // Other lengths and levels than those of the objects.
    for change in [
        |one: ObjectRef| ObjectRef { bytes: one.bytes + 1, ..one },
        |one: ObjectRef| ObjectRef { height: (one.height + 1) % 3, ..one },
    ] {
        let wrong: Refs = refs.iter().copied().map(change).collect();
        assert_eq!(attempt(&mut world, &wrong), Err(RequestError::ObjectsMissing));
    }
    world.end_upload(gateway, &value);
    let other = world.upload(gateway, b"other");
    world.end_upload(gateway, &other);
    assert_eq!(attempt(&mut world, &other.refs()), Err(RequestError::ObjectsMissing));
    let held = world.nodes[&leader].engine.holders();
    assert!(held.iter().all(|holder| !matches!(holder, Holder::Request { .. })), "{held:?}");
    assert!(world.values_on(leader).is_empty());
    let value = world.upload(gateway, &content);
    assert_eq!(attempt(&mut world, &value.refs()), Ok(()), "stored again, and sent again");
    world.finish();
}

/// The disk of a leader is full, and those of the others are not.
#[test]
fn a_leader_that_cannot_store_what_commands_refer_to_gives_its_leadership_away() {
    for seed in seeds(4) {
        let mut world = at_version(seed);
        let full = leader(&mut world);
        let gateway = NodeId(full.0 % 3 + 1);
        let content = content(&mut world, 40_000);
        let value = world.upload(gateway, &content);
        // Its pull has not ended when the disk refuses.
        let until_us = world.now_us + 8_000_000;
        world.network.objects_until_us.insert(full, until_us);
        let command = Referring::put(b"k", &value.encode(), &value.refs());
        let request = world.propose(full, command, referring(&value, gateway), 20_000);
        world.run_ms(100);
        for status in world.nodes[&full].status() {
            for number in 0..9 {
                let holder = Holder::Request { replica: status.replica, number };
                world.input(full, Input::Gathered { holder, number, end: GatherEnd::NotStored });
            }
        }
        assert_eq!(world.wait_for(request).map(|_| ()), Err(RequestError::Busy));
        world.run_until(3_000, "another leader", |world| world.leader().is_some_and(|(node, _)| node != full));
        world.end_upload(gateway, &value);
        assert!(world.now_us < until_us, "soon");
        write(&mut world, gateway, b"k", &content);
        assert_values(&mut world, &BTreeMap::from([(Referring::record_key(b"k"), content)]));
    }
}

#[test]
fn nothing_refers_to_objects_below_the_version() {
    let mut world = World::founded(1, 3, 3);
    let leader = leader(&mut world);
    world.raise(ClusterVersion(ClusterVersion::VALUE_REFS.0 - 1));
    let value = world.upload(leader, b"content");
    // The command itself would be admitted.
    let command = crate::harness::store(7, 1, "key", "value");
    let request = world.propose(leader, command, referring(&value, leader), 5_000);
    assert_eq!(world.wait_for(request), Err(RequestError::VersionNotInForce));
    world.finish();
    assert_eq!(world.checks.referring, 0);
}

/// Only a restored folder shows a log without its objects. The replica is damaged, and says so.
#[test]
fn a_log_whose_objects_are_gone_is_damage() {
    for seed in seeds(2) {
        let mut world = at_version(seed);
        let leader = leader(&mut world);
        let node = NodeId(leader.0 % 3 + 1);
        let content = content(&mut world, 5_000);
        write(&mut world, leader, b"k", &content);
        world.run_until(20_000, "all have it", |world| {
            [1, 2, 3].map(NodeId).iter().all(|node| world.values_on(*node).len() == 1)
        });
        world.crash(node);
        world.lose_objects(node);
        world.start(node);
        world.run_until(20_000, "it is damaged", |world| {
            world.nodes[&node].status().iter().any(|replica| replica.damaged)
        });
        assert_eq!(world.values_on(leader).len(), 1);
    }
}

/// When nothing refers to them, objects are gone from every node: uploads, logs, memtables and tables let go.
#[test]
fn what_nothing_refers_to_goes() {
    for seed in seeds(4) {
        let mut world = at_version(seed);
        world.add_clients(3);
        let mut objects = Vec::new();
        for round in 0..10_u8 {
            let content = content(&mut world, 4_000);
            let gateway = NodeId(u64::from(round % 3) + 1);
            let value = world.upload(gateway, &content);
            objects.extend(value.refs().ids());
            world.end_upload(gateway, &value);
            write(&mut world, gateway, &[round % 4], &content);
        }
        for key in 0..4_u8 {
            let leader = leader(&mut world);
            let request = world.propose(leader, Referring::delete(&[key]), CommandRefs::default(), 10_000);
            assert!(world.wait_for(request).is_ok());
        }
        // The clients write on: checkpoints, truncations and folds.
        let is_clean = |world: &World| {
            world.nodes.values().all(|node| {
                let all = node.engine.all_objects();
                objects.iter().all(|object| !all.contains(object))
            })
        };
        world.run_until(240_000, "no object is left", is_clean);
        world.finish();
    }
}

/// What a restarted node holds at once, before anything of it runs: else the first collection takes it.
#[test]
fn a_start_holds_what_checkpoints_and_the_entries_of_the_log_refer_to() {
    for seed in seeds(3) {
        let mut world = at_version(seed);
        for round in 0..6_u8 {
            let content = content(&mut world, 300);
            write(&mut world, NodeId(1), &[round], &content);
        }
        let mut found = 0;
        for node in [1, 2, 3].map(NodeId) {
            let log = world.nodes[&node].log.reopen();
            let mut expected = BTreeMap::new();
            for (replica, state) in log.replicas().unwrap() {
                expected.insert(Holder::Checkpoint(replica), state.checkpoint.objects().collect());
                let entries = log.entries(replica, state.truncated.0.next(), state.last.next(), usize::MAX).unwrap();
                for entry in entries.iter().filter(|entry| !refs_of(entry).is_empty()) {
                    let objects: BTreeSet<_> = refs_of(entry).ids().collect();
                    expected.insert(Holder::Log { replica, index: entry.index, term: entry.term }, objects);
                    found += 1;
                }
            }
            let mut effects = Effects::<u64>::default();
            let config = world.config.clone();
            Core::open(node, Incarnation(1_000), config, Arc::new(log), seed, &mut effects).unwrap();
            let held: BTreeMap<_, _> =
                effects.holds.into_iter().map(|hold| (hold.holder, hold.objects.into_iter().collect())).collect();
            assert_eq!(held, expected, "holds of {node}");
        }
        assert!(found > 0, "some logs have such entries");
    }
}
