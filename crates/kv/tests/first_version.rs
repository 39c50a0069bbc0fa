//! A process that is limited to the first cluster version reads and writes exactly what the binaries did that
//! knew no other. All tests of this file share the limit.

use bytes::Bytes;
use flotilla_kv::{
    Command, DecodeError, KvMachine, Limits, Outcome, Refusal, decode_command, decode_outcome, encode_command,
};
use flotilla_storage::{ApplyContext, EngineError, MachineError, StateMachine, StateReader, switch_command};
use flotilla_types::{
    ClusterVersion, Epoch, KeyRange, LogIndex, Refs, ShardDescriptor, ShardId, Term, Timestamp, VersionRange,
    limit_supported,
};

/// No records.
struct Empty;

impl StateReader for Empty {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(None)
    }

    fn scan(&self, _: &KeyRange, _: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(Vec::new())
    }
}

fn machine() -> KvMachine {
    limit_supported(ClusterVersion::FIRST);
    assert_eq!(VersionRange::supported(), VersionRange::FIRST_ONLY);
    KvMachine::new(Limits::default())
}

fn apply(machine: &mut KvMachine, command: Bytes) -> Result<Outcome, MachineError> {
    let descriptor = ShardDescriptor {
        shard: ShardId(1),
        range: KeyRange::all(),
        epoch: Epoch { range: 1, config: 1 },
        replicas: Vec::new(),
    };
    let timestamp = Timestamp::from_millis(5);
    let context =
        ApplyContext { index: LogIndex(2), term: Term(1), timestamp, descriptor: &descriptor, refs: &Refs::NONE };
    let outcomes = machine.apply(&context, &[command], &Empty, &mut Vec::new())?;
    Ok(decode_outcome(outcomes[0].clone()).expect("an outcome"))
}

#[test]
fn commands_of_later_versions_stop_the_machine_and_bytes_of_none_are_refused() {
    let mut machine = machine();
    let before = machine.system();
    for (later, found) in
        [(switch_command(ClusterVersion(2)), 2), (Bytes::from_static(&[2, 8, 1]), 2), (Bytes::from_static(&[15]), 15)]
    {
        assert_eq!(decode_command(later.clone()), Err(DecodeError::Version { found, known: 1 }));
        let error = apply(&mut machine, later).expect_err("a later version");
        assert!(matches!(error, MachineError::Version { found: is, known: 1 } if is == found), "{error}");
        assert_eq!(machine.system(), before, "nothing is applied");
    }
    for none in [&[][..], &[0], &[16], &[0x82], &[1, 0xff]] {
        let refused = apply(&mut machine, Bytes::from_static(none)).expect("an outcome");
        assert_eq!(refused, Outcome::Refused(Refusal::Malformed), "{none:?}");
    }
}

#[test]
fn states_of_later_versions_are_not_restored_and_its_own_has_the_first() {
    let mut machine = machine();
    for later in [&[2][..], &[2, 8, 5, 48, 2]] {
        let error = machine.restore(later, &Empty).expect_err("a later version");
        assert!(matches!(error, MachineError::Version { found: 2, known: 1 }), "{error}");
    }
    assert!(matches!(apply(&mut machine, encode_command(&Command::empty())), Ok(Outcome::Done { .. })));
    let system = machine.system();
    assert_eq!((system[0], machine.version()), (1, Some(ClusterVersion::FIRST)));
    machine.restore(&system, &Empty).expect("its own state");
}
