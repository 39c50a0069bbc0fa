//! Property tests of the machine against a naive model, and against a restored copy of itself.
//!
//! The model keeps every outcome and every record with its expiry in plain maps, and never drops outcomes. It
//! clones the whole state for each command, and has no index, no staging area and no codec.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use flotilla_storage::{EngineError, StateMachine, StateReader, Upcoming};
use flotilla_types::{KeyRange, SessionId, Timestamp};
use proptest::prelude::*;

use crate::{
    Action, Answer, Command, Condition, Content, Expiry, Operation, OperationResult, Otherwise, Outcome, Query,
    Refusal, decode_answer, encode_command, encode_outcome, encode_query,
    testing::{self, Replica, command, key, put_expiring},
};

#[derive(Debug, Clone)]
struct ModelRecord {
    version: Timestamp,
    expires: Option<u64>,
    value: crate::Value,
}

#[derive(Debug, Default)]
struct Model {
    now_ms: u64,
    records: HashMap<Bytes, ModelRecord>,
    /// Every command ever applied in a session, with its outcome.
    applied: HashMap<(SessionId, u64), Outcome>,
    /// The acknowledged sequence of a session, and the latest expiry of its commands, after which the session
    /// is new again.
    acked_below: HashMap<SessionId, (u64, u64)>,
    /// The same commands, to assert that none is applied twice.
    remembered: BTreeSet<(SessionId, u64)>,
}

type Records = HashMap<Bytes, ModelRecord>;

impl Model {
    fn command(&mut self, version: Timestamp, command: &Command) -> Outcome {
        if self.now_ms > command.expires_at_ms {
            return Outcome::Refused(Refusal::Expired { clock_ms: self.now_ms });
        }
        let id = (command.session, command.sequence);
        let in_session = command.session != SessionId(0);
        if in_session {
            let (acked, _) = self.acked_below.entry(command.session).or_default();
            *acked = command.acked_below.max(*acked);
            if command.sequence < *acked {
                return Outcome::Refused(Refusal::OutcomeForgotten);
            }
            if let Some(outcome) = self.applied.get(&id) {
                let large = encode_outcome(outcome).len() > crate::OUTCOME_BYTES_MAX;
                return if large { Outcome::Refused(Refusal::OutcomeForgotten) } else { outcome.clone() };
            }
        }
        let now_ms = self.now_ms;
        let mut records = self.records.clone();
        records.retain(|_, held| held.expires.is_none_or(|at_ms| at_ms > now_ms));
        let outcome = match Self::attempt(&mut records, now_ms, version, command) {
            Ok(results) => {
                self.records = records;
                Outcome::Done { results, timestamp: version }
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        if in_session {
            assert!(self.remembered.insert(id), "{id:?} was applied twice");
            self.applied.insert(id, outcome.clone());
            let (_, keep_until_ms) = self.acked_below.entry(command.session).or_default();
            *keep_until_ms = command.expires_at_ms.max(*keep_until_ms);
        }
        outcome
    }

    fn attempt(
        records: &mut Records,
        now_ms: u64,
        version: Timestamp,
        command: &Command,
    ) -> Result<Vec<OperationResult>, Refusal> {
        let mut number = 0;
        for (key, condition) in &command.conditions {
            let found = records.get(key).map(|held| held.version);
            if !Self::holds(*condition, found) {
                return Err(Refusal::ConditionFailed { operation: number, found });
            }
            number += 1;
        }
        let mut results = Vec::new();
        for operation in &command.operations {
            results.push(Self::operation(records, version, number, operation)?);
            records.retain(|_, held| held.expires.is_none_or(|at_ms| at_ms > now_ms));
            number += 1;
        }
        Ok(results)
    }

    fn holds(condition: Condition, found: Option<Timestamp>) -> bool {
        match condition {
            Condition::Absent => found.is_none(),
            Condition::Present => found.is_some(),
            Condition::Version(version) => found == Some(version),
        }
    }

    fn operation(
        records: &mut Records,
        version: Timestamp,
        number: u32,
        operation: &Operation,
    ) -> Result<OperationResult, Refusal> {
        let held = records.get(&operation.key).cloned();
        let found = held.as_ref().map(|held| held.version);
        let old = |wanted: bool| held.clone().filter(|_| wanted).map(|held| held.value);
        if operation.condition.is_some_and(|condition| !Self::holds(condition, found)) {
            let wanted = match operation.action {
                Action::Put { return_old, .. } | Action::Delete { return_old } => return_old,
                _ => false,
            };
            return match operation.otherwise {
                Otherwise::Refuse => Err(Refusal::ConditionFailed { operation: number, found }),
                Otherwise::Skip => Ok(OperationResult::Skipped { version: found, old: old(wanted) }),
            };
        }
        let kept = held.as_ref().and_then(|held| held.expires);
        let expires = |expiry| match expiry {
            Expiry::Never => None,
            Expiry::Keep => kept,
            Expiry::At(at_ms) => Some(at_ms),
        };
        let before = held.as_ref().map(|held| held.value.clone()).unwrap_or_default();
        let same_type = |bytes: Vec<u8>| crate::Value { content: Content::Inline(bytes.into()), ..before.clone() };
        let (value, expires, old, result) = match &operation.action {
            Action::Put { value, expiry, return_old } => (value.clone(), expires(*expiry), old(*return_old), 0),
            Action::Delete { return_old } => {
                return Ok(match records.remove(&operation.key) {
                    Some(held) => OperationResult::Deleted { version: held.version, old: old(*return_old) },
                    None => OperationResult::Absent,
                });
            }
            Action::Add { delta } => {
                let bytes = before.inline().ok_or(Refusal::NotAnInteger)?.to_vec();
                let text = String::from_utf8(bytes).map_err(|_| Refusal::NotAnInteger)?;
                let number = if held.is_none() { 0 } else { text.parse::<i64>().map_err(|_| Refusal::NotAnInteger)? };
                if held.is_some() && number.to_string() != text {
                    return Err(Refusal::NotAnInteger);
                }
                let sum = number.checked_add(*delta).ok_or(Refusal::Overflow)?;
                (same_type(sum.to_string().into_bytes()), kept, None, sum)
            }
            Action::Append { bytes } => {
                let value = [before.inline().ok_or(Refusal::NeedsContent)?.to_vec(), bytes.to_vec()].concat();
                let length = value.len() as i64;
                (same_type(value), kept, None, length)
            }
            Action::Expire { .. } if held.is_none() => return Ok(OperationResult::Absent),
            Action::Expire { expiry } => (before, expires(*expiry), None, kept.is_some().into()),
        };
        records.insert(operation.key.clone(), ModelRecord { version, expires, value });
        Ok(OperationResult::Written { version, old, existed: held.is_some(), number: result })
    }
}

/// Entries: the milliseconds before each, and its commands.
fn log() -> impl Strategy<Value = Vec<(u64, Vec<Command>)>> {
    proptest::collection::vec((0..4u64, proptest::collection::vec(command(), 0..4)), 0..25)
}

/// Entries that store many records which expire soon, and then others.
fn log_after_many() -> impl Strategy<Value = Vec<(u64, Vec<Command>)>> {
    let many = proptest::collection::btree_map("p[0-6][0-9]", 0..60u64, 0..60);
    (many, log()).prop_map(|(many, log)| {
        let puts = many.iter().map(|(name, at_ms)| put_expiring(name, "v", *at_ms));
        let puts: Vec<_> = puts.collect();
        puts.chunks(8).map(|part| (0, part.to_vec())).chain(log).collect()
    })
}

/// What happens to a replica before one of its entries.
#[derive(Debug, Clone)]
enum Event {
    /// All replicas switch to this version.
    Switch(u32),
    /// The replica restarts, and then keeps so many of the records in memory that expire next.
    Restart(usize),
}

/// Events before some entries.
fn events() -> impl Strategy<Value = BTreeMap<usize, Event>> {
    let switches = (0..20usize, prop_oneof![Just(2u32), Just(4)], 0..6usize);
    let restarts = proptest::collection::btree_map(
        0..40usize,
        prop_oneof![1..9usize, 16..60usize].prop_map(Event::Restart),
        0..12,
    );
    (switches, restarts).prop_map(|((at, version, later), mut events)| {
        events.insert(at, Event::Switch(version));
        events.insert(at + later + 1, Event::Switch(4));
        events
    })
}

/// Makes random commands consistent: one with a known sequence number becomes a retry with the content and
/// expiry of the first attempt.
fn with_consistent_retries(log: Vec<(u64, Vec<Command>)>) -> Vec<(u64, Vec<Command>)> {
    let mut firsts: HashMap<(SessionId, u64), Command> = HashMap::new();
    let repeat = |mut command: Command, firsts: &mut HashMap<_, Command>| {
        if command.session != SessionId(0) {
            let first = firsts.entry((command.session, command.sequence)).or_insert_with(|| command.clone()).clone();
            command = Command { acked_below: command.acked_below, ..first };
        }
        command
    };
    log.into_iter()
        .map(|(wait, commands)| (wait, commands.into_iter().map(|one| repeat(one, &mut firsts)).collect()))
        .collect()
}

/// Records of which only some may be read.
struct Named {
    records: testing::Records,
    named: Vec<Bytes>,
    may_scan: bool,
}

impl StateReader for Named {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        assert!(self.named.iter().any(|named| *named == key), "{key:?} was not named");
        self.records.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        assert!(self.may_scan, "an entry scans {range:?}");
        self.records.scan(range, items_max, bytes_max)
    }
}

proptest! {
    #[test]
    fn machine_and_model_agree(log in log_after_many().prop_map(with_consistent_retries), events in events()) {
        let mut replica = Replica::default();
        let mut model = Model::default();
        for (n, (wait_ms, commands)) in log.into_iter().enumerate() {
            match events.get(&n) {
                Some(Event::Switch(version)) => drop(replica.switch(model.now_ms, *version).unwrap()),
                Some(Event::Restart(next_max)) => replica.restart(*next_max),
                None => {}
            }
            replica.assert_places();
            model.now_ms += wait_ms;
            model.acked_below.retain(|_, (_, keep_until_ms)| *keep_until_ms >= model.now_ms);
            let entry = Timestamp::from_millis(model.now_ms);
            let outcomes = replica.apply(model.now_ms, &commands);
            let expected: Vec<_> =
                (0..).zip(&commands).map(|(n, command)| model.command(entry.plus(n), command)).collect();
            prop_assert_eq!(outcomes, expected);
            let live = model.records.iter().filter(|(_, held)| held.expires.is_none_or(|at_ms| at_ms > model.now_ms));
            let mut live: Vec<_> = live.map(|(key, held)| (key.clone(), held.version, held.expires, held.value.clone())).collect();
            live.sort_by(|(one, ..), (other, ..)| one.cmp(other));
            let Answer::Page { records, next: None } = replica.scan(model.now_ms) else { panic!("no page") };
            let bytes = live.iter().map(|(key, _, _, value)| key.len() as u64 + value.bytes()).sum::<u64>();
            let expiries: Vec<_> = live.iter().filter_map(|(_, _, expires, _)| *expires).collect();
            let expiring = expiries.len() as u64;
            let mean_expiry_ms = expiries.iter().sum::<u64>().checked_div(expiring).unwrap_or(0);
            prop_assert_eq!(
                replica.count(model.now_ms),
                Answer::Count { records: live.len() as u64, bytes, expiring, mean_expiry_ms }
            );
            let records: Vec<_> = records
                .into_iter()
                .map(|record| (record.key, record.version, record.expires_at_ms, record.value))
                .collect();
            prop_assert_eq!(records, live);
        }
    }

    #[test]
    fn commands_read_no_other_records_than_those_they_name(log in log_after_many(), events in events(), task in 1..4usize) {
        let mut replica = Replica::default();
        let (mut now_ms, mut may_scan) = (0, false);
        for (n, (wait_ms, commands)) in log.iter().enumerate() {
            now_ms += wait_ms;
            match events.get(&n) {
                Some(Event::Switch(version)) => drop(replica.switch(now_ms, *version).unwrap()),
                Some(Event::Restart(next_max)) => replica.restart(*next_max),
                None => {}
            }
            let encode = |commands: &[Command]| commands.iter().map(encode_command).collect::<Vec<_>>();
            if n % task == 0 || events.contains_key(&n) {
                // The host asks for several entries at once.
                let (mut upcoming, mut named, mut until_ms) = (Upcoming::default(), Vec::new(), now_ms);
                for (m, (wait_ms, commands)) in log[n..].iter().take(task - n % task).enumerate() {
                    until_ms += if m == 0 { 0 } else { *wait_ms };
                    replica.machine.keys_read(&encode(commands), &mut named);
                    *(if commands.is_empty() { &mut upcoming.upkeeps } else { &mut upcoming.entries }) += 1;
                }
                upcoming.keys = named.len();
                upcoming.until = Timestamp::from_millis(until_ms);
                may_scan = replica.machine.scans(&upcoming);
            }
            let (mut named, encoded) = (Vec::new(), encode(commands));
            replica.machine.keys_read(&encoded, &mut named);
            let read = Named { records: replica.records.clone(), named, may_scan };
            replica.apply_reading(now_ms, &encoded, &read);
        }
    }

    #[test]
    fn a_deferred_read_answers_from_the_state_that_it_was_taken_of(log in log(), at in any::<prop::sample::Index>()) {
        prop_assume!(!log.is_empty());
        let defer_at = at.index(log.len());
        let mut replica = Replica::default();
        let (mut now_ms, mut deferred) = (0, None);
        let range = replica.descriptor.range.clone();
        let part = KeyRange { start: key("b"), end: key("c") };
        let queries = [
            Query::Get { keys: ["a", "b", "c", "d"].map(key).into(), values: true },
            Query::Scan { range, items_max: 2, bytes_max: 1 << 20, values: true },
            Query::Count { range: part },
            Query::Count { range: KeyRange::all() },
        ];
        for (n, (wait_ms, commands)) in log.iter().enumerate() {
            now_ms += wait_ms;
            replica.apply(now_ms, commands);
            if n == defer_at {
                let answers = queries.each_ref().map(|query| replica.read(now_ms, query));
                deferred = Some((replica.machine.deferred().unwrap(), replica.records.clone(), now_ms, answers));
            }
        }
        let (deferred, records, at_ms, expected) = deferred.unwrap();
        let answer = |query| deferred.read(&replica.read_context(at_ms), &encode_query(query), &records).unwrap();
        let answers = queries.each_ref().map(|query| decode_answer(answer(query)).unwrap());
        prop_assert_eq!(answers, expected);
    }

    #[test]
    fn replicas_with_other_restarts_stay_equal(log in log_after_many(), events in events(), others in events()) {
        let (mut one, mut other) = (Replica::default(), Replica::default());
        let mut now_ms = 0;
        for (n, (wait_ms, commands)) in log.iter().enumerate() {
            now_ms += wait_ms;
            match events.get(&n) {
                Some(Event::Restart(next_max)) => one.restart(*next_max),
                Some(Event::Switch(version)) => {
                    prop_assert_eq!(one.switch(now_ms, *version).unwrap(), other.switch(now_ms, *version).unwrap());
                }
                None => {}
            }
            if let Some(Event::Restart(next_max)) = others.get(&n) {
                other.restart(*next_max);
            }
            prop_assert_eq!(one.apply(now_ms, commands), other.apply(now_ms, commands));
            prop_assert_eq!(one.machine.system(), other.machine.system());
            prop_assert_eq!(&one.records, &other.records);
            prop_assert_eq!(one.count(now_ms + 3), other.count(now_ms + 3));
        }
    }

    #[test]
    fn records_of_expiries_change_nothing_that_users_see(log in log_after_many(), events in events()) {
        let (mut switched, mut before) = (Replica::default(), Replica::default());
        let mut now_ms = 0;
        for replica in [&mut switched, &mut before] {
            replica.switch(0, 3).unwrap();
        }
        for (n, (wait_ms, commands)) in log.iter().enumerate() {
            now_ms += wait_ms;
            match events.get(&n) {
                Some(Event::Restart(next_max)) => switched.restart(*next_max),
                Some(Event::Switch(4)) => {
                    switched.switch(now_ms, 4).unwrap();
                    before.switch(now_ms, 3).unwrap();
                }
                Some(Event::Switch(_)) | None => {}
            }
            prop_assert_eq!(switched.apply(now_ms, commands), before.apply(now_ms, commands));
            prop_assert_eq!(switched.user_records(), before.user_records());
            for read in [Replica::count, Replica::scan] {
                prop_assert_eq!(read(&switched, now_ms), read(&before, now_ms));
                prop_assert_eq!(read(&switched, now_ms + 2), read(&before, now_ms + 2));
            }
        }
    }
}
