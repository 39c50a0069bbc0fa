//! Shared by the tests of several modules: a replica over a plain map, and random commands.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::{
    ApplyContext, EngineError, MachineError, ReadContext, StateMachine, StateReader, WriteSet, switch_command,
};
use flotilla_types::{
    Bucket, ClusterVersion, CollectionId, Epoch, KeyRange, LogIndex, RecordKey, Refs, SessionId, ShardDescriptor,
    ShardId, Term, Timestamp,
};
use flotilla_values::{Chunking, ValueRef, cut};
use proptest::prelude::*;

use crate::{
    Action, Answer, Command, Condition, Content, Expiry, KvMachine, Limits, Operation, OperationResult, Otherwise,
    Outcome, Query, decode_answer, decode_command, decode_outcome, encode_command, encode_query, verify,
};

/// Records in a map.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Records(pub(crate) BTreeMap<Bytes, Bytes>);

impl Records {
    pub(crate) fn write(&mut self, writes: WriteSet) {
        for (key, value) in writes {
            match value {
                Some(value) => self.0.insert(key, value.into_bytes()),
                None => self.0.remove(&key),
            };
        }
    }
}

impl StateReader for Records {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for (key, value) in self.0.range(range.start.clone()..).take_while(|(key, _)| range.contains(key)) {
            if !page.is_empty() && (page.len() >= items_max || bytes >= bytes_max) {
                break;
            }
            bytes += key.len() + value.len();
            page.push((key.clone(), value.clone()));
        }
        Ok(page)
    }
}

/// A machine and its records.
pub(crate) struct Replica {
    pub(crate) machine: KvMachine,
    pub(crate) records: Records,
    pub(crate) descriptor: ShardDescriptor,
    index: u64,
}

impl Default for Replica {
    fn default() -> Self {
        Self::with_limits(Limits::default())
    }
}

impl Replica {
    pub(crate) fn with_limits(limits: Limits) -> Self {
        let descriptor = ShardDescriptor {
            shard: ShardId(1),
            range: KeyRange::of_buckets(CollectionId::DEFAULT, Bucket(0), Bucket(0)),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        Self { machine: KvMachine::new(limits), records: Records::default(), descriptor, index: 0 }
    }

    pub(crate) fn context<'a>(
        descriptor: &'a ShardDescriptor,
        index: u64,
        at_ms: u64,
        refs: &'a Refs,
    ) -> ApplyContext<'a> {
        let timestamp = Timestamp::from_millis(at_ms);
        ApplyContext { index: LogIndex(index), term: Term(1), timestamp, descriptor, refs }
    }

    pub(crate) fn read_context(&self, now_ms: u64) -> ReadContext<'_> {
        ReadContext { descriptor: &self.descriptor, now: Timestamp::from_millis(now_ms) }
    }

    /// Applies one entry.
    pub(crate) fn apply(&mut self, at_ms: u64, commands: &[Command]) -> Vec<Outcome> {
        let commands: Vec<_> = commands.iter().map(encode_command).collect();
        self.apply_reading(at_ms, &commands, &self.records.clone())
    }

    /// Applies one entry of encoded commands, which reads through this reader. The entry names what they refer to.
    pub(crate) fn apply_reading(&mut self, at_ms: u64, commands: &[Bytes], reader: &dyn StateReader) -> Vec<Outcome> {
        let refs = commands.iter().filter_map(|command| Some(decode_command(command.clone()).ok()?.refs()));
        let refs = refs.collect::<Vec<_>>().iter().flat_map(|refs| refs.iter().copied()).collect();
        self.apply_naming(at_ms, commands, reader, &refs)
    }

    /// Applies one entry that names these objects.
    pub(crate) fn apply_naming(
        &mut self,
        at_ms: u64,
        commands: &[Bytes],
        reader: &dyn StateReader,
        refs: &Refs,
    ) -> Vec<Outcome> {
        let mut writes = WriteSet::new();
        self.index += 1;
        let context = Self::context(&self.descriptor, self.index, at_ms, refs);
        let outcomes = self.machine.apply(&context, commands, reader, &mut writes).unwrap();
        self.records.write(writes);
        outcomes.into_iter().map(|outcome| decode_outcome(outcome).unwrap()).collect()
    }

    /// Applies an entry that switches to a version.
    pub(crate) fn switch(&mut self, at_ms: u64, version: u32) -> Result<Outcome, MachineError> {
        self.index += 1;
        let context = Self::context(&self.descriptor, self.index, at_ms, &Refs::NONE);
        let (command, mut writes) = (switch_command(ClusterVersion(version)), WriteSet::new());
        let outcomes = self.machine.apply(&context, &[command], &self.records, &mut writes)?;
        self.records.write(writes);
        Ok(decode_outcome(outcomes[0].clone()).unwrap())
    }

    /// Restarts the machine from its system state and records.
    pub(crate) fn restart(&mut self, next_max: usize) {
        let system = self.machine.system();
        self.machine = KvMachine::with_next_max(Limits::default(), next_max);
        self.machine.restore(&system, &self.records).unwrap();
    }

    /// Splits the shard at a key and returns a replica of the right half. This one keeps the records that it gave up
    /// until [`clip`](Self::clip).
    pub(crate) fn split(&mut self, at: &Bytes) -> Self {
        let end = self.descriptor.range.end.clone();
        let right = KeyRange { start: at.clone(), end };
        let system = self.machine.split(&right, &self.records).unwrap();
        self.descriptor.range.end = at.clone();
        let mut other = Self { records: self.records.clone(), index: self.index, ..Self::default() };
        other.descriptor = ShardDescriptor { shard: ShardId(2), range: right, ..self.descriptor.clone() };
        other.clip();
        other.machine.restore(&system, &other.records).unwrap();
        other
    }

    /// Merges the shard with its right neighbour.
    pub(crate) fn merge(&mut self, right: Self) {
        let end = right.descriptor.range.end.clone();
        let whole = KeyRange { end, ..self.descriptor.range.clone() };
        self.machine.merge(&whole, &right.machine.system()).unwrap();
        let range = KeyRange::of_users().intersection(&self.descriptor.range);
        self.records.0.retain(|key, _| range.contains(key));
        let range = KeyRange::of_users().intersection(&right.descriptor.range);
        self.records.0.extend(right.records.0.into_iter().filter(|(key, _)| range.contains(key)));
        self.descriptor.range = whole;
    }

    /// Drops the records that a split gave to another shard, as the checkpoint after it does.
    pub(crate) fn clip(&mut self) {
        let (range, internal) = (&self.descriptor.range, KeyRange::internal());
        self.records.0.retain(|key, _| range.contains(key) || internal.contains(key));
    }

    /// The records of users.
    pub(crate) fn user_records(&self) -> Vec<(Bytes, Bytes)> {
        let (all, users) = (self.records.0.iter(), KeyRange::of_users());
        all.filter(|(key, _)| users.contains(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Asserts that counts, records and the records which say when others expire agree.
    pub(crate) fn assert_places(&self) {
        verify(&self.machine.system(), &self.records).unwrap();
    }

    /// Applies an entry of one command.
    pub(crate) fn run(&mut self, at_ms: u64, command: Command) -> Outcome {
        self.apply(at_ms, &[command]).remove(0)
    }

    pub(crate) fn read(&self, now_ms: u64, query: &Query) -> Answer {
        let answer = self.machine.read(&self.read_context(now_ms), &encode_query(query), &self.records).unwrap();
        decode_answer(answer).unwrap()
    }

    pub(crate) fn count(&self, now_ms: u64) -> Answer {
        self.read(now_ms, &Query::Count { range: self.descriptor.range.clone() })
    }

    pub(crate) fn scan(&self, now_ms: u64) -> Answer {
        let range = self.descriptor.range.clone();
        self.read(now_ms, &Query::Scan { range, items_max: 1_000, bytes_max: 1 << 20, values: true })
    }

    /// The value of a record at the shard's clock.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let query = Query::Get { keys: vec![key(name)], values: true };
        let Answer::Records(mut found) = self.read(0, &query) else { panic!("no records") };
        found.remove(0).map(|record| String::from_utf8(record.value.inline().unwrap().to_vec()).unwrap())
    }
}

/// A whole record key.
pub(crate) fn key(name: &str) -> Bytes {
    RecordKey::new(CollectionId::DEFAULT, Bucket(0), name.as_bytes()).into_bytes()
}

/// An operation without a condition.
pub(crate) fn operation(name: &str, action: Action) -> Operation {
    Operation { key: key(name), condition: None, otherwise: Otherwise::Refuse, action }
}

/// A command that stores one value.
pub(crate) fn put(name: &str, value: &str) -> Command {
    put_with(name, value, Expiry::Never)
}

/// A command that stores one value with an expiry.
pub(crate) fn put_expiring(name: &str, value: &str, at_ms: u64) -> Command {
    put_with(name, value, Expiry::At(at_ms))
}

fn put_with(name: &str, value: &str, expiry: Expiry) -> Command {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let action = Action::Put { value: value.into(), expiry, return_old: false };
    Command { operations: vec![operation(name, action)], ..Command::empty() }
}

/// The version that the first operation wrote.
pub(crate) fn written(outcome: &Outcome) -> Timestamp {
    match outcome {
        Outcome::Done { results, .. } => match results[0] {
            OperationResult::Written { version, .. } => version,
            _ => panic!("{outcome:?}"),
        },
        Outcome::Refused(_) => panic!("{outcome:?}"),
    }
}

fn some_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![6 => "[a-d]", 1 => "p[0-6][0-9]"].prop_map(|name| key(&name))
}

fn some_value() -> impl Strategy<Value = Bytes> {
    prop_oneof!["[0-9]{1,3}", "[a-z]{0,80}"].prop_map(|text| Bytes::from(text.into_bytes()))
}

/// The reference of a large value of so many KB: of chunks, or of lists of them from 200 on.
pub(crate) fn large(chunks: usize) -> ValueRef {
    let chunking = Chunking::new(1 << 10, 2 << 10, 4 << 10).unwrap();
    let bytes: Vec<u8> = (0..chunks as u32 * 250).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    cut(&bytes, chunking).unwrap().value
}

/// Any value.
pub(crate) fn value() -> impl Strategy<Value = crate::Value> {
    let large = prop_oneof![Just(1), Just(9), Just(200)].prop_map(|chunks| Content::Large(large(chunks)));
    let content = prop_oneof![4 => some_value().prop_map(Content::Inline), 1 => large];
    let media_type = prop_oneof![3 => Just(""), 1 => Just("text/plain"), 1 => Just("image/png")];
    (content, media_type).prop_map(|(content, media_type)| crate::Value {
        content,
        media_type: Bytes::from_static(media_type.as_bytes()),
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Absent),
        Just(Condition::Present),
        (0..30u64, 0..3u64).prop_map(|(ms, n)| Condition::Version(Timestamp::from_millis(ms).plus(n))),
    ]
}

fn expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![2 => Just(Expiry::Never), 1 => Just(Expiry::Keep), 2 => (0..60u64).prop_map(Expiry::At)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (value(), expiry(), any::<bool>())
            .prop_map(|(value, expiry, return_old)| Action::Put { value, expiry, return_old }),
        1 => any::<bool>().prop_map(|return_old| Action::Delete { return_old }),
        1 => prop_oneof![-5..5i64, Just(i64::MAX)].prop_map(|delta| Action::Add { delta }),
        1 => some_value().prop_map(|bytes| Action::Append { bytes }),
        1 => expiry().prop_map(|expiry| Action::Expire { expiry }),
    ]
}

fn some_operation() -> impl Strategy<Value = Operation> {
    let otherwise = prop_oneof![Just(Otherwise::Refuse), Just(Otherwise::Skip)];
    (some_key(), proptest::option::weighted(0.3, condition()), otherwise, action())
        .prop_map(|(key, condition, otherwise, action)| Operation { key, condition, otherwise, action })
}

/// Any valid command over a handful of keys, two sessions and a few sequences.
pub(crate) fn command() -> impl Strategy<Value = Command> {
    (
        (0..3u64, 1..12u64, 0..60u64, 0..4u64),
        proptest::collection::vec((some_key(), condition()), 0..2),
        proptest::collection::vec(some_operation(), 0..4),
    )
        .prop_map(|((session, sequence, expires_at_ms, acked), conditions, operations)| Command {
            session: SessionId(session),
            sequence,
            expires_at_ms,
            acked_below: acked.min(sequence),
            conditions,
            operations,
        })
}
