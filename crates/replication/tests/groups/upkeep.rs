//! Upkeep: records that expire in shards that no client writes to.

use bytes::Bytes;
use flotilla_kv::{Action, Command, Expiry, Operation, Otherwise, encode_command};
use flotilla_replication::Input;
use flotilla_storage::StateEngine as _;
use flotilla_types::{ClusterVersion, KeyRange, NodeId, ReplicaId};

use crate::harness::{WALL_MS, World, key, seeds, store};

/// Stores a few values that expire.
fn expiring(names: &[String], at_ms: u64) -> Bytes {
    let put = |name: &String| Operation {
        key: key(name),
        condition: None,
        otherwise: Otherwise::Refuse,
        action: Action::Put { value: "v".into(), expiry: Expiry::At(at_ms), return_old: false },
    };
    encode_command(&Command { operations: names.iter().map(put).collect(), ..Command::empty() })
}

fn apply(world: &mut World, command: Bytes) {
    let (leader, _) = world.leader().expect("a leader");
    let asked = world.request(leader, command, 1_000, None);
    world.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
    assert!(world.answers[&asked].is_ok());
}

/// How many records of users each replica has stored; `None` while it is not open.
fn stored(world: &World) -> Vec<Option<usize>> {
    stored_in(world, &KeyRange::of_users())
}

fn stored_in(world: &World, range: &KeyRange) -> Vec<Option<usize>> {
    let count = |replica: &ReplicaId| {
        let (node, _, _) = world.desired[replica];
        let reader = world.nodes[&node].engine.reader(*replica).ok()?;
        reader.scan(range, usize::MAX, usize::MAX).ok().map(|records| records.len())
    };
    world.desired.keys().map(count).collect()
}

/// Three replicas at this version with 40 records that expire in a while and one that stays.
fn with_expiring_records(seed: u64, version: ClusterVersion) -> World {
    let mut world = World::founded(seed, 3, 3);
    world.run_ms(500);
    for node in (1..=3).map(NodeId) {
        world.input(node, Input::ClusterVersion(version));
    }
    world.run_until(5_000, "all switch", |world| {
        let mut replicas = world.nodes.values().flat_map(|node| node.status());
        replicas.all(|replica| replica.version == Some(version))
    });
    let at_ms = WALL_MS + world.now_ms() + 2_000;
    let names: Vec<_> = (0..40).map(|number| format!("k{number:02}")).collect();
    for part in names.chunks(4) {
        apply(&mut world, expiring(part, at_ms));
    }
    apply(&mut world, store(9, 1, "stays", "1"));
    world.run_until(1_000, "all apply them", |world| stored(world) == [Some(41); 3]);
    world
}

#[test]
fn due_records_are_removed_although_nobody_writes_and_then_the_shard_rests() {
    for (seed, version) in seeds(4).zip([ClusterVersion::UPKEEP, ClusterVersion::EXPIRY_RECORDS].into_iter().cycle()) {
        let mut world = with_expiring_records(seed, version);
        world.run_until(6_000, "due records are removed", |world| stored(world) == [Some(1); 3]);
        world.run_ms(1_000);
        let last = |world: &World| world.leader().and_then(|(_, leader)| leader.group).expect("a leader").last;
        let before = last(&world);
        world.run_ms(10_000);
        assert_eq!(last(&world), before, "nothing is proposed while nothing is due");
        world.finish();
    }
}

#[test]
fn the_next_leader_removes_what_is_due() {
    for (seed, version) in seeds(4).zip([ClusterVersion::UPKEEP, ClusterVersion::EXPIRY_RECORDS].into_iter().cycle()) {
        let mut world = with_expiring_records(seed, version);
        let (old, _) = world.leader().expect("a leader");
        world.run_ms(1_900);
        world.crash(old);
        world.run_ms(3_000);
        world.start(old);
        world.run_until(8_000, "due records are removed", |world| stored(world) == [Some(1); 3]);
        world.finish();
    }
}

/// The switch comes while there are records that expire: idle replicas write down when they do, and one that
/// restarts knows it without reading them.
#[test]
fn a_shard_that_nobody_writes_to_notes_down_its_expiries_after_a_switch() {
    for seed in seeds(2) {
        let mut world = with_expiring_records(seed, ClusterVersion::CHECKPOINT_TABLES);
        let internal = |world: &World| stored_in(world, &KeyRange::internal());
        assert_eq!(internal(&world), [Some(0); 3]);
        for node in (1..=3).map(NodeId) {
            world.input(node, Input::ClusterVersion(ClusterVersion::EXPIRY_RECORDS));
        }
        world.run_until(1_500, "expiries are records", |world| internal(world) == [Some(40); 3]);
        let (leader, _) = world.leader().expect("a leader");
        world.crash(leader);
        world.run_ms(100);
        world.start(leader);
        world.run_until(8_000, "due records are removed", |world| stored(world) == [Some(1); 3]);
        assert_eq!(internal(&world), [Some(0); 3]);
        world.finish();
    }
}

#[test]
fn nothing_is_proposed_before_the_version_says_so() {
    let mut world = with_expiring_records(1, ClusterVersion::FIRST);
    world.run_ms(10_000);
    assert_eq!(stored(&world), [Some(41); 3]);
    world.finish();
}
