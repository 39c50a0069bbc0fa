//! Compactions: one at a time, each replica in turn, and a checkpoint that names what was made.

use flotilla_replication::{ApplyTask, Background, Effects, Input};
use flotilla_storage::CompactionDue;
use flotilla_types::{LogIndex, ReplicaId, Timestamp};

use crate::many::{Many, replica_of};

fn installed(many: &mut Many, replica: ReplicaId) -> Effects<u64> {
    let due = CompactionDue { compact: true, ..CompactionDue::default() };
    many.input(Input::CheckpointInstalled { replica, due })
}

fn compacted(many: &mut Many, replica: ReplicaId, done: bool) -> Effects<u64> {
    many.input(Input::Compacted { replica, done })
}

fn started(effects: &Effects<u64>) -> Vec<ReplicaId> {
    let compactions = effects.background.iter().filter_map(|job| match job {
        Background::Compact { replica, .. } => Some(*replica),
        _ => None,
    });
    compactions.collect()
}

#[test]
fn replicas_are_compacted_one_after_the_other_each_in_turn() {
    let mut many = Many::leading(4);
    let [first, second, third] = [1, 2, 3].map(|shard| replica_of(shard, 1));
    assert_eq!(started(&installed(&mut many, second)), [second]);
    for waits in [first, third, second] {
        assert_eq!(started(&installed(&mut many, waits)), []);
    }
    assert_eq!(started(&compacted(&mut many, second, false)), [third]);
    assert_eq!(started(&installed(&mut many, second)), []);
    assert_eq!(started(&compacted(&mut many, third, false)), [first], "it goes round");
    assert_eq!(started(&compacted(&mut many, first, false)), [second]);
    assert_eq!(started(&compacted(&mut many, second, false)), []);
}

#[test]
fn a_damaged_replica_holds_back_no_other() {
    let mut many = Many::leading(2);
    let [damaged, other] = [1, 2].map(|shard| replica_of(shard, 1));
    assert_eq!(started(&installed(&mut many, damaged)), [damaged]);
    assert_eq!(started(&installed(&mut many, other)), []);
    assert_eq!(started(&many.input(Input::Broken { replica: damaged })), [other]);
}

#[test]
fn what_was_compacted_gets_a_checkpoint_also_when_nobody_writes() {
    let mut many = Many::leading(1);
    let replica = replica_of(1, 1);
    let clock = Timestamp::ZERO;
    many.input(Input::Opened { replica, index: LogIndex(1), clock, version: None, upkeep_due_ms: None });
    installed(&mut many, replica);
    let freezes = |effects: &Effects<u64>| effects.apply.iter().any(|task| matches!(task, ApplyTask::Freeze { .. }));
    assert!(!freezes(&many.next_tick()));
    assert!(freezes(&compacted(&mut many, replica, true)));
}
