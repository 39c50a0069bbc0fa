//! Replicas that need damaged objects.

use flotilla_replication::{Effects, Input, Notice};
use flotilla_storage::{DamagedReplica, Log as _};
use flotilla_types::{LogIndex, NodeId, ObjectId, ReplicaId, Timestamp};

use crate::{
    harness::{World, seeds},
    many::{Many, replica_of},
};

/// The replica on a node, its checkpoint's index and the last entry of its log.
fn replica_on(world: &World, node: NodeId) -> (ReplicaId, LogIndex, LogIndex) {
    let (id, log) = world.nodes[&node].log.replicas().unwrap().pop().expect("it has a replica");
    (id, log.checkpoint.position.index, log.last)
}

/// The first entry that the leader still has.
fn truncated(world: &World) -> LogIndex {
    let Some((leader, _)) = world.leader() else { return LogIndex(0) };
    world.nodes[&leader].log.replicas().unwrap()[0].1.truncated.0
}

/// The pull of a snapshot may bring back the very object for want of which the records could not be loaded.
/// They still are not.
#[test]
fn a_replica_whose_records_could_not_be_loaded_goes_on_with_a_snapshot() {
    for seed in seeds(3) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(4);
        let away = NodeId(world.leader().unwrap().0.0 % 3 + 1);
        world.run_until(20_000, "a checkpoint", |world| replica_on(world, away).1 > LogIndex(10));
        world.crash(away);
        let (replica, _, last) = replica_on(&world, away);
        let checkpoint = world.nodes[&away].log.replicas().unwrap()[0].1.checkpoint.clone();
        let engine = &world.nodes[&away].engine;
        checkpoint.objects().for_each(|object| engine.rot(object));
        world.run_until(20_000, "a log without its entries", |world| truncated(world) > last);
        world.start(away);
        world.run_until(20_000, "a snapshot", |world| world.applied_by().get(&replica) > Some(&last));
        world.finish();
    }
}

/// It has missed entries, so that it must be replaced even when its objects are back.
#[test]
fn a_halted_replica_is_whole_again_only_with_other_records() {
    let mut many = Many::leading(1);
    let replica = replica_of(1, 1);
    let damaged = DamagedReplica { replica, objects: vec![ObjectId::of(b"damaged")] };
    let repaired = |effects: &Effects<u64>| {
        effects.notices.iter().filter(|notice| matches!(notice, Notice::Repaired { .. })).count()
    };
    let opened =
        || Input::Opened { replica, index: LogIndex(1), clock: Timestamp::ZERO, version: None, upkeep_due_ms: None };
    many.input(opened());
    // What is damaged and halts nothing is whole when its objects are.
    many.input(Input::Damaged(vec![damaged.clone()]));
    assert_eq!(repaired(&many.input(Input::Damaged(Vec::new()))), 1);
    many.input(Input::Halted { replica });
    many.input(Input::Damaged(vec![damaged.clone()]));
    assert_eq!(repaired(&many.input(Input::Damaged(Vec::new()))), 0);
    assert_eq!(repaired(&many.input(opened())), 1);
    // Of the new records some may be damaged, too.
    many.input(Input::Halted { replica });
    many.input(Input::Damaged(vec![damaged]));
    assert_eq!(repaired(&many.input(opened())), 0);
    assert_eq!(repaired(&many.input(Input::Damaged(Vec::new()))), 1);
}
