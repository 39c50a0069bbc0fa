//! Formats and switches: what stops a replica, what a checkpoint must agree with, what a switch changes.

use flotilla_types::Refs;

use super::*;

#[test]
fn malformed_commands_are_refused_and_newer_ones_stop_the_replica() {
    let mut replica = Replica::default();
    let good = encode_command(&put("a", "1"));
    let mut writes = WriteSet::new();
    let descriptor = replica.descriptor.clone();
    let context = Replica::context(&descriptor, 1, 1, &Refs::NONE);
    let commands = [Bytes::from_static(b"\x01\xff\xff"), good.clone(), Bytes::new()];
    let outcomes = replica.machine.apply(&context, &commands, &replica.records, &mut writes).unwrap();
    let outcomes: Vec<_> = outcomes.into_iter().map(|bytes| crate::decode_outcome(bytes).unwrap()).collect();
    assert_eq!((&outcomes[0], &outcomes[2]), (&refused(Refusal::Malformed), &refused(Refusal::Malformed)));
    assert!(matches!(outcomes[1], Outcome::Done { .. }));
    let before = replica.machine.system();
    let newer = [good, Bytes::from_static(b"\x0b")];
    let error = replica.machine.apply(&context, &newer, &replica.records, &mut writes).unwrap_err();
    assert!(matches!(error, MachineError::Version { found: 11, known: 10 }));
    assert_eq!(replica.machine.system(), before);
}

#[test]
fn a_checkpoint_that_disagrees_with_its_records_is_refused() {
    let mut replica = Replica::default();
    replica.run(1, put_expiring("a", "1", 5));
    let system = replica.machine.system();
    let mut other = Replica::default();
    assert!(matches!(other.machine.restore(&system, &other.records), Err(MachineError::Corrupt(_))));
    assert!(other.machine.restore(&system, &replica.records).is_ok());
    assert_eq!(other.machine.system(), system);
    assert!(other.machine.restore(b"", &replica.records).is_ok());
    assert_eq!(other.machine.system(), KvMachine::new(Limits::default()).system());
}

/// What a gateway sends, once for each of its starts, to advance the clock of a shard.
fn clock_command(session: u64) -> Command {
    let mut command = in_session(Command::empty(), 1, 1, u64::MAX >> 16);
    command.session = SessionId(session);
    command
}

const START_MS: u64 = 1_700_000_000_000;

/// A shard whose session table is full of sessions that never end.
fn full_of_endless_sessions() -> Replica {
    let mut replica = Replica::with_limits(Limits { sessions_max: 8, ..Limits::default() });
    for session in 1..=8 {
        assert!(matches!(replica.run(START_MS + session, clock_command(100 + session)), Outcome::Done { .. }));
    }
    replica
}

/// When a command was applied, milliseconds.
fn written_at(outcome: &Outcome) -> u64 {
    let Outcome::Done { timestamp, .. } = outcome else { panic!("{outcome:?}") };
    timestamp.millis()
}

fn new_gateway_writes(replica: &mut Replica, now_ms: u64) -> Outcome {
    replica.run(now_ms, in_session(put("k", "v"), 1, 1, now_ms + 6_000))
}

#[test]
fn a_switch_lets_sessions_that_never_end_end_within_an_hour() {
    let mut replica = full_of_endless_sessions();
    let later_ms = START_MS + 10 * 365 * 86_400_000;
    let restored = || {
        let mut restored = full_of_endless_sessions();
        let system = restored.machine.system();
        restored.machine.restore(&system, &restored.records).unwrap();
        restored
    };
    for mut replica in [full_of_endless_sessions(), restored()] {
        assert_eq!(new_gateway_writes(&mut replica, later_ms), refused(Refusal::SessionFull), "not before the switch");
    }
    assert!(matches!(replica.switch(later_ms, 2), Ok(Outcome::Done { .. })));
    assert_eq!(new_gateway_writes(&mut replica, later_ms), refused(Refusal::SessionFull));
    // A duplicate is recognized as before.
    assert_eq!(written_at(&replica.run(later_ms, clock_command(103))), START_MS + 3);
    let healed_ms = later_ms + SESSION_MS_MAX + 1;
    assert!(matches!(new_gateway_writes(&mut replica, healed_ms), Outcome::Done { .. }));
    let full_ms = healed_ms + 10_000;
    for session in 1..=8 {
        assert!(matches!(replica.run(full_ms, clock_command(200 + session)), Outcome::Done { .. }));
    }
    assert_eq!(new_gateway_writes(&mut replica, full_ms), refused(Refusal::SessionFull));
    let again_ms = full_ms + SESSION_MS_MAX + 1;
    assert!(matches!(new_gateway_writes(&mut replica, again_ms), Outcome::Done { .. }), "new ones end too");
}

#[test]
fn a_switch_moves_forward_only_and_survives_a_checkpoint() {
    let mut replica = full_of_endless_sessions();
    assert_eq!(replica.machine.version(), Some(ClusterVersion::FIRST));
    let before = replica.machine.system();
    assert_eq!(before[0], 1, "binaries of the first version read it");
    let ClusterVersion(known) = VersionRange::supported().max;
    let newer = replica.switch(START_MS, known + 1);
    assert!(matches!(newer, Err(MachineError::Version { found, known: is }) if (found, is) == (known + 1, known)));
    assert_eq!(replica.machine.system(), before, "the replica stops before the entry");
    replica.switch(START_MS, 2).unwrap();
    let system = replica.machine.system();
    assert_eq!((system[0], replica.machine.version()), (2, Some(ClusterVersion(2))));
    replica.switch(START_MS, 2).unwrap();
    assert_eq!(replica.machine.system(), system);
    let mut restored = Replica::with_limits(Limits { sessions_max: 8, ..Limits::default() });
    restored.machine.restore(&system, &restored.records).unwrap();
    assert_eq!((restored.machine.version(), restored.machine.system()), (Some(ClusterVersion(2)), system));
}
