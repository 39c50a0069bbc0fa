//! The cost of commands in the key-value machine: an entry of puts, from encoded commands to a write set and
//! encoded outcomes.

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use flotilla_kv::{Action, Command, Expiry, KvMachine, Limits, Operation, Otherwise, encode_command};
use flotilla_storage::{ApplyContext, EngineError, StateMachine, StateReader, WriteSet, switch_command};
use flotilla_types::{
    Bucket, ClusterVersion, CollectionId, Epoch, KeyRange, LogIndex, RecordKey, Refs, SessionId, ShardDescriptor,
    ShardId, Term, Timestamp,
};

/// The time of the first entry, in Unix milliseconds.
const NOW_MS: u64 = 1_800_000_000_000;

fn main() {
    divan::main();
}

/// Puts of 256 bytes without a condition, of one session, in one entry.
#[divan::bench(args = [1, 64, 1_024])]
fn puts(bencher: Bencher, commands: u64) {
    run(bencher, commands, ClusterVersion::FIRST, Expiry::Never);
}

/// 64 such puts of records that expire, at a cluster version: from 4 on expiries are records.
#[divan::bench(args = [3, 4])]
fn expiring_puts(bencher: Bencher, version: u32) {
    run(bencher, 64, ClusterVersion(version), Expiry::At(NOW_MS * 2));
}

fn run(bencher: Bencher, commands: u64, version: ClusterVersion, expiry: Expiry) {
    let descriptor =
        ShardDescriptor { shard: ShardId(1), range: KeyRange::all(), epoch: Epoch::default(), replicas: Vec::new() };
    let (mut machine, mut round) = (KvMachine::new(Limits::default()), 0);
    if version > ClusterVersion::FIRST {
        let context = ApplyContext {
            index: LogIndex(1),
            term: Term(1),
            timestamp: Timestamp::ZERO,
            descriptor: &descriptor,
            refs: &Refs::NONE,
        };
        let switched = machine.apply(&context, &[switch_command(version)], &Empty, &mut WriteSet::new());
        assert!(switched.is_ok(), "a known version");
    }
    let mut entry = || {
        let first = 1 + round * commands;
        round += 1;
        (round, (first..first + commands).map(|sequence| put(sequence, first, expiry)).collect::<Vec<_>>())
    };
    let counted = bencher.counter(ItemsCount::new(commands));
    counted.with_inputs(&mut entry).bench_local_values(|(round, commands)| {
        let timestamp = Timestamp::from_millis(NOW_MS + round);
        let context = ApplyContext {
            index: LogIndex(round),
            term: Term(1),
            timestamp,
            descriptor: &descriptor,
            refs: &Refs::NONE,
        };
        let mut writes = WriteSet::new();
        let outcomes = machine.apply(&context, &commands, &Empty, &mut writes).expect("valid commands");
        assert!(outcomes.len() == commands.len() && !writes.is_empty(), "every command is applied");
        (outcomes, writes)
    });
}

fn put(sequence: u64, acked_below: u64, expiry: Expiry) -> Bytes {
    let key = if expiry == Expiry::Never { sequence % 100_000 } else { sequence };
    let key = format!("bench-{key:08}");
    let operation = Operation {
        key: RecordKey::new(CollectionId::DEFAULT, Bucket(0), key.as_bytes()).into_bytes(),
        condition: None,
        otherwise: Otherwise::Refuse,
        action: Action::Put { value: Bytes::from(vec![7; 256]).into(), expiry, return_old: false },
    };
    encode_command(&Command {
        session: SessionId(1),
        sequence,
        expires_at_ms: u64::MAX,
        acked_below,
        conditions: Vec::new(),
        operations: vec![operation],
    })
}

/// A shard without records.
struct Empty;

impl StateReader for Empty {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(None)
    }

    fn scan(&self, _: &KeyRange, _: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(Vec::new())
    }
}
