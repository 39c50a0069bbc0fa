//! Folds that the log of a shard orders. The harness checks continuously that replicas name the same base for
//! the same fold.

use flotilla_replication::{Effects, Input, ShardChange};
use flotilla_storage::{CompactionDue, Usage};
use flotilla_types::{ClusterVersion, EntryKind, LogIndex, NodeId, ReplicaId, Timestamp};

use crate::{
    harness::{World, seeds},
    many::{Many, replica_of},
};

fn raise(world: &mut World, version: ClusterVersion) {
    for node in world.nodes.keys().copied().collect::<Vec<_>>() {
        world.input(node, Input::ClusterVersion(version));
    }
}

#[test]
fn replicas_fold_by_themselves_below_the_version_and_by_the_log_from_it_on() {
    for seed in seeds(3) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(4);
        world.run_ms(500);
        raise(&mut world, ClusterVersion(ClusterVersion::LOGGED_FOLDS.0 - 1));
        world.run_until(60_000, "folds of each replica", |world| world.checks.local_bases.len() == 3);
        assert!(world.checks.folds.is_empty() && world.checks.bases.is_empty());
        raise(&mut world, ClusterVersion::LOGGED_FOLDS);
        world.run_until(60_000, "folds by the log", |world| world.checks.bases_compared >= 4);
        assert!(world.checks.bases.keys().all(|(_, fold)| world.checks.folds.contains(fold)));
        world.finish();
    }
}

/// A replica meets the fold again in its log, is ahead of it, or gets the base with a snapshot.
#[test]
fn replicas_that_start_anew_name_the_same_bases_or_none() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(4);
        world.run_ms(500);
        raise(&mut world, ClusterVersion::LOGGED_FOLDS);
        for round in 0..12 {
            let node = NodeId(round % 3 + 1);
            world.crash(node);
            world.run_some_ms(2_000);
            world.start(node);
            raise(&mut world, ClusterVersion::LOGGED_FOLDS);
            world.run_some_ms(2_000);
        }
        world.run_until(60_000, "folds by the log", |world| world.checks.bases_compared >= 4);
        world.finish();
    }
}

const DUE: CompactionDue = CompactionDue { compact: false, fold: Some(4_096), made: false };

fn installed(many: &mut Many, replica: ReplicaId, due: CompactionDue) {
    let effects = many.input(Input::CheckpointInstalled { replica, due });
    many.answer(effects);
}

/// The node leads, and has applied the first entries of its terms.
fn leading(count: u64) -> Many {
    let mut many = Many::leading(count);
    many.input(Input::ClusterVersion(ClusterVersion::LOGGED_FOLDS));
    for shard in 1..=count {
        applied(&mut many, replica_of(shard, 1), 2);
    }
    many
}

fn applied(many: &mut Many, replica: ReplicaId, index: u64) {
    let (index, clock, usage) = (LogIndex(index), Timestamp::ZERO, Usage::default());
    many.input(Input::Applied { replica, index, clock, version: None, upkeep_due_ms: None, bytes: 0, usage });
}

/// The replicas that propose a fold.
fn folds(effects: &Effects<u64>) -> Vec<ReplicaId> {
    let writes = effects.writes.iter().filter_map(|write| write.write.as_ref());
    let fold = ShardChange::Fold { piece_bytes: 4_096 }.encode();
    let proposes = |write: &&flotilla_storage::ReplicaWrite| {
        write.entries.iter().any(|entry| entry.kind == EntryKind::Shard && entry.context == fold)
    };
    writes.filter(proposes).map(|write| write.replica).collect()
}

/// The folds of the next ticks, whose entries the peers store.
fn folds_of_ticks(many: &mut Many, ticks: usize) -> Vec<ReplicaId> {
    let tick = |_| {
        let effects = many.next_tick();
        let found = folds(&effects);
        assert!(found.len() <= 1, "{found:?} at one tick");
        many.answer(effects);
        found
    };
    (0..ticks).flat_map(tick).collect()
}

#[test]
fn a_leader_proposes_the_folds_that_are_due_one_at_a_time() {
    let mut many = leading(4);
    let replicas = [1, 2, 3].map(|shard| replica_of(shard, 1));
    for replica in replicas {
        installed(&mut many, replica, DUE);
    }
    assert_eq!(folds_of_ticks(&mut many, 10), replicas);
    // It is not applied yet, so the same one is still due.
    installed(&mut many, replicas[0], DUE);
    assert_eq!(folds_of_ticks(&mut many, 5), []);
    applied(&mut many, replicas[0], 3);
    many.input(Input::FoldPinned { replica: replicas[0] });
    assert_eq!(folds_of_ticks(&mut many, 5), []);
    installed(&mut many, replicas[0], DUE);
    assert_eq!(folds_of_ticks(&mut many, 5), [replicas[0]]);
}

#[test]
fn no_fold_is_proposed_while_many_compactions_wait() {
    let mut many = leading(8);
    let busy = CompactionDue { compact: true, ..CompactionDue::default() };
    for shard in 2..=6 {
        installed(&mut many, replica_of(shard, 1), busy);
    }
    let due = replica_of(8, 1);
    installed(&mut many, due, DUE);
    assert_eq!(folds_of_ticks(&mut many, 5), []);
    many.input(Input::Compacted { replica: replica_of(2, 1), done: false });
    assert_eq!(folds_of_ticks(&mut many, 5), [due]);
}

#[test]
fn a_fold_is_not_proposed_below_its_version_or_by_a_follower() {
    let mut many = Many::leading(1);
    applied(&mut many, replica_of(1, 1), 2);
    many.input(Input::ClusterVersion(ClusterVersion(ClusterVersion::LOGGED_FOLDS.0 - 1)));
    installed(&mut many, replica_of(1, 1), DUE);
    assert_eq!(folds_of_ticks(&mut many, 5), []);
    many.input(Input::ClusterVersion(ClusterVersion::LOGGED_FOLDS));
    assert_eq!(folds_of_ticks(&mut many, 5), [replica_of(1, 1)]);
    let mut follows = Many::verified(1);
    follows.input(Input::ClusterVersion(ClusterVersion::LOGGED_FOLDS));
    installed(&mut follows, replica_of(1, 1), DUE);
    assert_eq!(folds_of_ticks(&mut follows, 2), []);
}
