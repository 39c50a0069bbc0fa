//! The state machine of a key-value shard.
//!
//! For each entry: advance the shard's clock, drop expired outcomes, remove some due records, then apply the
//! commands in order. For each command: refuse it if it has expired; look it up in its session; apply it;
//! remember its outcome. Expiry therefore takes effect only through the log, at the same entry on every
//! replica.
//!
//! What a command means depends on the machine's version, which a command of its own log raises: so all
//! replicas change the meaning at the same entry, whatever binaries their nodes run.
//!
//! It knows nothing of Raft, networks or disks, and reads no clock.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{
    ApplyContext, DeferredRead, MachineError, Overlay, ReadContext, StateMachine, StateReader, WriteSet,
    switched_version,
};
use flotilla_types::{ClusterVersion, KeyRange, SessionId, Timestamp, VersionRange};

use crate::{
    Answer, Command, DecodeError, Limits, Outcome, Refusal,
    codec::{decode_command, decode_query_as_of, encode_answer, encode_outcome},
    read::Reading,
    record::StoredRecord,
    session::{Admission, Sessions},
    stats::{Footprint, RecordStats},
    system::System,
    transaction::{Abort, Scope, execute},
};

/// Due records that an entry removes, in addition to one per operation in it. An entry cannot write more
/// expiring records than it has operations, so removal keeps up with writes.
const REMOVALS_PER_ENTRY: usize = 16;

/// Due records that an entry without commands removes, from [`ClusterVersion::UPKEEP`] on. Other work of the
/// shard waits for it.
const REMOVALS_PER_UPKEEP: usize = 512;

/// How long after its command's entry a session is remembered at most, in milliseconds, from
/// [`ClusterVersion::BOUNDED_SESSIONS`] on. A duplicate that arrives later is applied again, so senders stop
/// repeating a command long before: gateways after a minute.
const SESSION_MS_MAX: u64 = 3_600_000;

/// Records read at once when the index of expiring records is rebuilt.
const REBUILD_BATCH_ITEMS: usize = 4_096;
/// Bytes read at once when the index of expiring records is rebuilt.
const REBUILD_BATCH_BYTES: usize = 8 << 20;

/// The replicated key-value store of one shard replica. See [`StateMachine`] for how it is driven.
///
/// Commands, outcomes, queries and answers travel as the bytes of [`crate::encode_command`] and its siblings.
#[derive(Debug)]
pub struct KvMachine {
    limits: Limits,
    /// The version that its log has switched to.
    version: ClusterVersion,
    /// Timestamp of the last applied entry.
    clock: Timestamp,
    sessions: Sessions,
    stats: RecordStats,
}

impl KvMachine {
    /// A machine for a new replica. `limits` must be valid, and the same on every node of the cluster.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            version: ClusterVersion::FIRST,
            clock: Timestamp::ZERO,
            sessions: Sessions::default(),
            stats: RecordStats::default(),
        }
    }

    /// Timestamp of the last applied entry; records that expire at or before it are absent.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// Applies one command and returns its encoded outcome.
    fn command(
        &mut self,
        range: &KeyRange,
        version: Timestamp,
        command: Command,
        overlay: &mut Overlay<'_>,
    ) -> Result<Bytes, MachineError> {
        let refuse = |refusal| Ok(encode_outcome(&Outcome::Refused(refusal)));
        let Command { session, sequence, expires_at_ms, acked_below, .. } = command;
        // Checked first, because the session may have dropped the outcome of an expired command.
        if self.clock.millis() > expires_at_ms {
            return refuse(Refusal::Expired { clock_ms: self.clock.millis() });
        }
        let in_session = session != SessionId(0);
        if in_session {
            if sequence == 0 || sequence < acked_below {
                return refuse(Refusal::Malformed);
            }
            match self.sessions.admit(&self.limits, session, sequence, acked_below) {
                Admission::Apply => {}
                Admission::Duplicate(outcome) => return Ok(outcome),
                Admission::Refuse(refusal) => return refuse(refusal),
            }
        }
        let scope = Scope { limits: &self.limits, range, now_ms: self.clock.millis(), version };
        let outcome = match execute(scope, command, overlay, &mut self.stats) {
            Ok(results) => Outcome::Done { results, timestamp: version },
            // Not remembered: the sender routes again, and a merge may bring the key into this shard in the
            // meantime.
            Err(Abort::Refused(Refusal::WrongShard)) => return refuse(Refusal::WrongShard),
            Err(Abort::Refused(refusal)) => Outcome::Refused(refusal),
            Err(Abort::Failed(error)) => return Err(error),
        };
        let outcome = encode_outcome(&outcome);
        if in_session {
            let keep_until_ms = expires_at_ms.min(self.session_end_ms_max());
            self.sessions.remember(session, sequence, acked_below, keep_until_ms, &outcome);
        }
        Ok(outcome)
    }

    /// The latest time at which a session that is used now may end.
    fn session_end_ms_max(&self) -> u64 {
        let bounded = self.version >= ClusterVersion::BOUNDED_SESSIONS;
        if bounded { self.clock.millis().saturating_add(SESSION_MS_MAX) } else { u64::MAX }
    }

    /// Switches to a version; one that is not higher changes nothing.
    fn switch(&mut self, to: ClusterVersion) {
        if to <= self.version {
            return;
        }
        self.version = to;
        // Earlier commands may have left sessions that never end, which fill the table.
        self.sessions.end_by(self.session_end_ms_max());
    }

    fn remove_due(&mut self, removals_max: usize, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        for _ in 0..removals_max {
            let Some(key) = self.stats.take_due()? else { break };
            overlay.delete(key);
        }
        Ok(())
    }
}

impl StateMachine for KvMachine {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        // All are decoded before anything changes: a newer format must stop the replica before this entry.
        let commands = commands.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        let count = |request: &Request| match request {
            Request::Command(command) => command.operations.len(),
            Request::Switch(_) | Request::Malformed => 0,
        };
        let operations = commands.iter().map(count).sum::<usize>();
        self.clock = self.clock.max(context.timestamp);
        self.sessions.expire(self.clock.millis());
        self.stats.advance(self.clock.millis());
        let mut overlay = Overlay::new(records);
        let is_upkeep = commands.is_empty() && self.version >= ClusterVersion::UPKEEP;
        let removals_max = if is_upkeep { REMOVALS_PER_UPKEEP } else { REMOVALS_PER_ENTRY + operations };
        self.remove_due(removals_max, &mut overlay)?;
        let mut outcomes = Vec::with_capacity(commands.len());
        for (ordinal, command) in (0..).zip(commands) {
            let version = context.timestamp.plus(ordinal);
            outcomes.push(match command {
                Request::Command(command) => self.command(&context.descriptor.range, version, command, &mut overlay)?,
                Request::Switch(to) => {
                    self.switch(to);
                    encode_outcome(&Outcome::Done { results: Vec::new(), timestamp: version })
                }
                Request::Malformed => encode_outcome(&Outcome::Refused(Refusal::Malformed)),
            });
        }
        writes.extend(overlay.into_writes());
        Ok(outcomes)
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        let answer = match decode_query_as_of(Bytes::copy_from_slice(query)) {
            Ok((query, as_of_ms)) => {
                let (limits, stats, clock_ms) = (&self.limits, Some(&self.stats), self.clock.millis());
                let now_ms = due_by_ms(context, as_of_ms);
                Reading { limits, context, records, stats, clock_ms, now_ms }.answer(query)?
            }
            Err(_) => Answer::Malformed,
        };
        Ok(encode_answer(&answer))
    }

    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>) {
        for command in commands {
            if let Ok(Request::Command(command)) = decode(command) {
                keys.extend(command.conditions.into_iter().map(|(key, _)| key));
                keys.extend(command.operations.into_iter().map(|operation| operation.key));
            }
        }
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        Some(Arc::new(Deferred { limits: self.limits, clock_ms: self.clock.millis() }))
    }

    fn version(&self) -> Option<ClusterVersion> {
        Some(self.version)
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        self.stats.first_expiry_ms().filter(|_| self.version >= ClusterVersion::UPKEEP)
    }

    fn system(&self) -> Bytes {
        let (records, bytes) = self.stats.stored();
        let (version, clock, expiring) = (self.version, self.clock, self.stats.expiring());
        System { version, clock, records, bytes, expiring }.encode(&self.sessions)
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        let (system, sessions) = System::decode(system)?;
        let mut stats = RecordStats::of_counts(system.records, system.bytes);
        index_expiring(&mut stats, system.expiring, records)?;
        stats.advance(system.clock.millis());
        *self = Self { limits: self.limits, version: system.version, clock: system.clock, sessions, stats };
        Ok(())
    }
}

/// What queries need of a machine that has gone on since.
struct Deferred {
    limits: Limits,
    clock_ms: u64,
}

/// The wall clock time by which a read judges what is due: the time that it names, if that was reached, so
/// that it is not asked again for what became due since.
fn due_by_ms(context: &ReadContext<'_>, as_of_ms: Option<u64>) -> u64 {
    context.now.millis().min(as_of_ms.unwrap_or(u64::MAX))
}

impl DeferredRead for Deferred {
    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        let answer = match decode_query_as_of(Bytes::copy_from_slice(query)) {
            Ok((query, as_of_ms)) => {
                let (limits, clock_ms) = (&self.limits, self.clock_ms);
                let now_ms = due_by_ms(context, as_of_ms);
                Reading { limits, context, records, stats: None, clock_ms, now_ms }.answer(query)?
            }
            Err(_) => Answer::Malformed,
        };
        Ok(encode_answer(&answer))
    }
}

/// One command of an entry.
enum Request {
    Command(Command),
    /// Switch to this version.
    Switch(ClusterVersion),
    /// Bytes that no version decodes.
    Malformed,
}

fn decode(bytes: &Bytes) -> Result<Request, MachineError> {
    if let Some(version) = switched_version(bytes).filter(|version| *version <= VersionRange::supported().max) {
        return Ok(Request::Switch(version));
    }
    match decode_command(bytes.clone()) {
        Ok(command) => Ok(Request::Command(command)),
        Err(DecodeError::Version { found, known }) => Err(MachineError::Version { found, known }),
        Err(DecodeError::Malformed(_) | DecodeError::TooManyElements { .. }) => Ok(Request::Malformed),
    }
}

/// Rebuilds the index of expiring records; reads records until all `expiring` ones are found, so none if it
/// is 0.
fn index_expiring(stats: &mut RecordStats, expiring: u64, records: &dyn StateReader) -> Result<(), MachineError> {
    let mut range = KeyRange::all();
    while stats.expiring() < expiring {
        let batch = records.scan(&range, REBUILD_BATCH_ITEMS, REBUILD_BATCH_BYTES)?;
        let Some((last, _)) = batch.last() else {
            return Err(MachineError::Corrupt("fewer records expire than the system state says"));
        };
        range.start = [last.as_ref(), &[0]].concat().into();
        for (key, stored) in batch {
            let footprint = Footprint::of(&key, &StoredRecord::decode(stored)?);
            if let Some(at_ms) = footprint.expires_at_ms {
                stats.insert_expiring(&key, at_ms, footprint.bytes);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Action, Condition, Expiry, OUTCOME_BYTES_MAX, Operation, OperationResult, Otherwise, Query, encode_command,
        encode_query_as_of,
        testing::{Replica, key, operation, put, put_expiring, written},
    };

    fn delete(name: &str, return_old: bool) -> Operation {
        operation(name, Action::Delete { return_old })
    }

    fn of(operations: Vec<Operation>) -> Command {
        Command { operations, ..Command::empty() }
    }

    fn add(name: &str, delta: i64) -> Command {
        of(vec![operation(name, Action::Add { delta })])
    }

    fn refused(refusal: Refusal) -> Outcome {
        Outcome::Refused(refusal)
    }

    fn in_session(mut command: Command, sequence: u64, acked_below: u64, expires_at_ms: u64) -> Command {
        command.session = SessionId(7);
        (command.sequence, command.acked_below, command.expires_at_ms) = (sequence, acked_below, expires_at_ms);
        command
    }

    #[test]
    fn a_command_applies_whole_or_not_at_all() {
        let mut replica = Replica::default();
        replica.run(1, put("a", "1"));
        let mut failing = of(vec![
            operation("b", Action::Append { bytes: Bytes::from_static(b"x") }),
            delete("a", false),
            operation("a", Action::Add { delta: 1 }),
        ]);
        failing.operations[2].condition = Some(Condition::Present);
        let outcome = replica.run(2, failing);
        assert_eq!(outcome, refused(Refusal::ConditionFailed { operation: 2, found: None }));
        assert_eq!((replica.value("a").as_deref(), replica.value("b")), (Some("1"), None));
        assert_eq!(
            replica.count(2),
            Answer::Count { records: 1, bytes: key("a").len() as u64 + 1, expiring: 0, mean_expiry_ms: 0 }
        );
    }

    #[test]
    fn conditions_are_numbered_before_operations_and_name_what_was_found() {
        let mut replica = Replica::default();
        let version = written(&replica.run(1, put("a", "1")));
        let mut command = put("b", "2");
        command.conditions = vec![(key("a"), Condition::Version(version)), (key("a"), Condition::Absent)];
        let outcome = replica.run(2, command.clone());
        assert_eq!(outcome, refused(Refusal::ConditionFailed { operation: 1, found: Some(version) }));
        command.conditions.pop();
        assert!(matches!(replica.run(3, command), Outcome::Done { .. }));
    }

    #[test]
    fn a_skipped_operation_leaves_the_others_alone() {
        let mut replica = Replica::default();
        let version = written(&replica.run(1, put("a", "old")));
        let mut command = put("a", "new");
        let Action::Put { return_old, .. } = &mut command.operations[0].action else { unreachable!() };
        *return_old = true;
        command.operations[0].condition = Some(Condition::Absent);
        command.operations[0].otherwise = Otherwise::Skip;
        command.operations.push(put("b", "2").operations.remove(0));
        let Outcome::Done { results, .. } = replica.run(2, command) else { panic!("refused") };
        let old = Some(Bytes::from_static(b"old"));
        assert_eq!(results[0], OperationResult::Skipped { version: Some(version), old });
        assert_eq!((replica.value("a").as_deref(), replica.value("b").as_deref()), (Some("old"), Some("2")));
    }

    #[test]
    fn commands_of_one_entry_have_growing_versions_and_see_each_other() {
        let mut replica = Replica::default();
        let outcomes = replica.apply(5, &[add("n", 1), add("n", 1), add("n", 1)]);
        let versions: Vec<_> = outcomes.iter().map(written).collect();
        assert_eq!(versions, (0..3).map(|n| Timestamp::from_millis(5).plus(n)).collect::<Vec<_>>());
        assert_eq!(replica.value("n").as_deref(), Some("3"));
    }

    #[test]
    fn counters_refuse_other_values_and_overflow() {
        let mut replica = Replica::default();
        replica.run(1, put("text", "1.5"));
        assert_eq!(replica.run(2, add("text", 1)), refused(Refusal::NotAnInteger));
        replica.run(3, add("n", i64::MAX));
        assert_eq!(replica.run(4, add("n", 1)), refused(Refusal::Overflow));
        assert_eq!(replica.value("n"), Some(i64::MAX.to_string()));
    }

    #[test]
    fn limits_and_the_range_are_checked_before_anything_is_written() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 8, operations_max: 2, ..Limits::default() };
        let mut replica = Replica::with_limits(limits);
        assert_eq!(replica.run(1, put("12345", "")), refused(Refusal::TooLarge { limit_bytes: 4 }));
        assert_eq!(replica.run(2, put("k", "123456789")), refused(Refusal::TooLarge { limit_bytes: 8 }));
        replica.run(3, put("k", "12345678"));
        let append = of(vec![operation("k", Action::Append { bytes: Bytes::from_static(b"9") })]);
        assert_eq!(replica.run(4, append), refused(Refusal::TooLarge { limit_bytes: 8 }));
        let many = of(vec![delete("a", false), delete("b", false), delete("c", false)]);
        assert_eq!(replica.run(5, many), refused(Refusal::TooManyOperations { limit: 2 }));
        let mut elsewhere = put("k", "");
        elsewhere.operations[0].key = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff");
        assert_eq!(replica.run(6, elsewhere.clone()), refused(Refusal::WrongShard));
        elsewhere.operations[0].key = Bytes::from_static(b"short");
        assert_eq!(replica.run(7, elsewhere), refused(Refusal::Malformed));
    }

    #[test]
    fn old_values_are_returned_within_a_limit() {
        let limits = Limits { value_bytes_max: 8, answer_bytes_max: 12, ..Limits::default() };
        let mut replica = Replica::with_limits(limits);
        replica.apply(1, &[put("a", "12345678"), put("b", "12345678")]);
        let both = of(vec![delete("a", true), delete("b", true)]);
        assert_eq!(replica.run(2, both), refused(Refusal::TooLarge { limit_bytes: 12 }));
        let Outcome::Done { results, .. } = replica.run(3, of(vec![delete("a", true)])) else { panic!("refused") };
        assert!(matches!(&results[0], OperationResult::Deleted { old: Some(old), .. } if old == "12345678"));
    }

    #[test]
    fn a_duplicate_gets_its_outcome_and_is_not_applied() {
        let mut replica = Replica::default();
        let command = in_session(add("n", 1), 1, 0, 1_000);
        let first = replica.run(1, command.clone());
        assert_eq!(replica.run(2, command.clone()), first);
        assert_eq!(replica.apply(3, &[command.clone(), command]), vec![first.clone(), first]);
        assert_eq!(replica.value("n").as_deref(), Some("1"));
    }

    #[test]
    fn a_command_without_a_session_takes_no_place_in_the_table() {
        let mut replica = Replica::with_limits(Limits { sessions_max: 1, ..Limits::default() });
        for at_ms in 1..20 {
            replica.run(at_ms, Command { expires_at_ms: at_ms + 5_000, ..Command::empty() });
        }
        assert!(matches!(replica.run(20, in_session(put("a", "1"), 1, 0, 1_000)), Outcome::Done { .. }));
    }

    /// What each kind of refusal promises about later attempts of the same command.
    #[test]
    fn only_remembered_refusals_hold_for_every_attempt() {
        let limits = Limits { value_bytes_max: 20, operations_max: 2, sessions_max: 1, ..Limits::default() };
        let conditional = {
            let mut command = put("a", "1");
            command.operations[0].condition = Some(Condition::Present);
            command
        };
        let elsewhere = {
            let mut command = put("a", "1");
            command.operations[0].key = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff");
            command
        };
        let mut refusals = Vec::new();
        for (command, expires_at_ms) in [
            (conditional, 1_000),
            (add("text", 1), 1_000),
            (add("max", 1), 1_000),
            (put("a", "123456789_123456789_1"), 1_000),
            (of(vec![delete("b", false), delete("c", false), delete("d", false)]), 1_000),
            (elsewhere, 1_000),
            (put("a", "1"), 5),
            // Another session holds the only place.
            (put("a", "1"), 999),
        ] {
            let mut replica = Replica::with_limits(limits);
            replica.run(1, put("text", "x"));
            replica.run(2, put("max", &i64::MAX.to_string()));
            if expires_at_ms == 999 {
                let other = Command { session: SessionId(8), ..in_session(put("z", "1"), 1, 0, 100) };
                replica.run(3, other);
            }
            let command = in_session(command, 1, 0, expires_at_ms);
            let Outcome::Refused(refusal) = replica.run(10, command.clone()) else { panic!("{command:?} applied") };
            // Now everything that stood in the way is gone, except the session's memory.
            replica.run(200, of(vec![delete("text", false), delete("max", false)]));
            replica.run(201, put("a", "0"));
            let again = replica.run(202, command);
            assert!(!refusal.is_remembered() || again == refused(refusal.clone()), "{refusal}: then {again:?}");
            refusals.push((refusal, matches!(again, Outcome::Done { .. })));
        }
        let forgotten = |refusal| refusals.iter().any(|(other, applied)| *other == refusal && *applied);
        assert!(forgotten(Refusal::SessionFull), "a later attempt applied: {refusals:?}");
        assert_eq!(refusals.iter().filter(|(refusal, _)| refusal.is_remembered()).count(), 5);
    }

    #[test]
    fn a_refusal_stays_a_refusal_for_duplicates() {
        let mut replica = Replica::default();
        let mut command = in_session(put("a", "1"), 1, 0, 1_000);
        command.operations[0].condition = Some(Condition::Present);
        let first = replica.run(1, command.clone());
        replica.run(2, put("a", "0"));
        assert_eq!(replica.run(3, command), first);
        assert_eq!(replica.value("a").as_deref(), Some("0"));
    }

    #[test]
    fn an_expired_command_is_refused_even_if_its_outcome_was_dropped() {
        let mut replica = Replica::default();
        let command = in_session(add("n", 1), 1, 0, 100);
        replica.run(100, command.clone());
        assert_eq!(replica.run(101, command), refused(Refusal::Expired { clock_ms: 101 }));
        assert_eq!(replica.value("n").as_deref(), Some("1"));
        assert_eq!(
            replica.run(102, Command { expires_at_ms: 101, ..add("n", 1) }),
            refused(Refusal::Expired { clock_ms: 102 })
        );
    }

    #[test]
    fn a_large_outcome_is_forgotten_and_not_applied_again() {
        let mut replica = Replica::default();
        replica.run(1, put("a", &"x".repeat(OUTCOME_BYTES_MAX)));
        let command = in_session(of(vec![delete("a", true)]), 1, 0, 1_000);
        assert!(matches!(replica.run(2, command.clone()), Outcome::Done { .. }));
        replica.run(3, put("a", "again"));
        assert_eq!(replica.run(4, command), refused(Refusal::OutcomeForgotten));
        assert_eq!(replica.value("a").as_deref(), Some("again"));
    }

    #[test]
    fn inconsistent_sequences_are_malformed() {
        let mut replica = Replica::default();
        assert_eq!(replica.run(1, in_session(add("n", 1), 0, 0, 1_000)), refused(Refusal::Malformed));
        assert_eq!(replica.run(2, in_session(add("n", 1), 1, 2, 1_000)), refused(Refusal::Malformed));
    }

    #[test]
    fn a_refusal_for_the_wrong_shard_is_not_remembered() {
        let mut replica = Replica::default();
        let command = in_session(put("a", "1"), 1, 0, 1_000);
        let range = std::mem::replace(&mut replica.descriptor.range, KeyRange::of_prefix(b"elsewhere"));
        assert_eq!(replica.run(1, command.clone()), refused(Refusal::WrongShard));
        replica.descriptor.range = range;
        assert!(matches!(replica.run(2, command), Outcome::Done { .. }));
    }

    /// A sender whose attempt is in doubt asks again after the range has changed.
    #[test]
    fn a_duplicate_gets_its_outcome_whatever_the_range_is_by_then() {
        let mut replica = Replica::default();
        let command = in_session(add("n", 1), 1, 0, 1_000);
        let outcome = replica.run(1, command.clone());
        assert!(matches!(outcome, Outcome::Done { .. }));
        replica.descriptor.range = KeyRange::of_prefix(b"elsewhere");
        assert_eq!(replica.run(2, command), outcome);
    }

    #[test]
    fn a_count_of_more_than_the_shard_holds_is_refused() {
        let mut replica = Replica::default();
        replica.apply(1, &[put("a", "1"), put("b", "1")]);
        let before = replica.descriptor.range.clone();
        replica.descriptor.range.end = key("b");
        assert_eq!(replica.read(1, &Query::Count { range: before }), Answer::WrongShard);
        assert!(matches!(replica.count(1), Answer::Count { .. }));
    }

    #[test]
    fn expiry_takes_effect_only_through_the_log() {
        let mut replica = Replica::default();
        replica.run(10, put_expiring("a", "1", 20));
        let query = Query::Get { keys: vec![key("a")], values: true };
        assert!(matches!(&replica.read(19, &query), Answer::Records(found) if found[0].is_some()));
        assert_eq!(replica.read(20, &query), Answer::ClockAdvanceNeeded);
        assert_eq!(replica.count(20), Answer::ClockAdvanceNeeded);
        assert_eq!(replica.scan(20), Answer::ClockAdvanceNeeded);
        replica.run(20, Command::empty());
        assert_eq!(replica.read(20, &query), Answer::Records(vec![None]));
        assert_eq!(replica.count(20), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
        assert!(replica.records.0.is_empty(), "the due record was removed");
    }

    #[test]
    fn a_due_record_is_absent_before_it_is_removed() {
        let mut replica = Replica::default();
        let many = REMOVALS_PER_ENTRY * 3;
        for n in 0..many {
            replica.run(1, put_expiring(&format!("k{n:03}"), "v", 5));
        }
        let mut late = put(&format!("k{:03}", many - 1), "new");
        late.operations[0].condition = Some(Condition::Absent);
        assert!(matches!(replica.run(5, late), Outcome::Done { .. }));
        assert_eq!(replica.records.0.len(), many - REMOVALS_PER_ENTRY - 1, "some due records are still stored");
        assert!(matches!(replica.count(5), Answer::Count { records: 1, .. }));
        let Answer::Page { records, next: None } = replica.scan(5) else { panic!("no page") };
        assert_eq!(records.len(), 1);
        assert!(
            matches!(replica.run(5, of(vec![delete("k040", false)])), Outcome::Done { results, .. } if results == [OperationResult::Absent])
        );
        replica.apply(6, &[]);
        replica.apply(7, &[]);
        assert_eq!(replica.records.0.len(), 1);
    }

    /// A shard at version 2 with this many records that expire at 5 ms.
    fn with_due_records(many: usize) -> Replica {
        let mut replica = Replica::default();
        replica.switch(1, 2).unwrap();
        let puts = |part: &[usize]| {
            of(part.iter().flat_map(|n| put_expiring(&format!("k{n:06}"), "v", 5).operations).collect())
        };
        for part in (0..many).collect::<Vec<_>>().chunks(1_000) {
            assert!(matches!(replica.run(1, puts(part)), Outcome::Done { .. }));
        }
        replica
    }

    #[test]
    fn upkeep_removes_due_records_in_bounded_steps_once_the_version_says_so() {
        let many = REMOVALS_PER_UPKEEP * 2 + 10;
        let mut replica = with_due_records(many);
        assert_eq!(replica.machine.upkeep_due_ms(), Some(5));
        replica.apply(4, &[]);
        assert_eq!(replica.records.0.len(), many, "nothing is due yet");
        for left in [many - REMOVALS_PER_UPKEEP, 10, 0] {
            assert_eq!(replica.machine.upkeep_due_ms(), Some(5));
            replica.apply(6, &[]);
            assert_eq!(replica.records.0.len(), left);
            assert_eq!(replica.count(6), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
        }
        assert_eq!(replica.machine.upkeep_due_ms(), None, "nothing is left to do");

        let mut first = Replica::default();
        (0..100).for_each(|n| drop(first.run(1, put_expiring(&format!("k{n}"), "v", 5))));
        assert_eq!(first.machine.upkeep_due_ms(), None, "binaries of the first version would not follow");
        first.apply(6, &[]);
        assert_eq!(first.records.0.len(), 100 - REMOVALS_PER_ENTRY);
    }

    #[test]
    fn upkeep_is_due_as_before_after_a_restart() {
        let mut replica = with_due_records(REMOVALS_PER_UPKEEP + 10);
        replica.apply(6, &[]);
        let system = replica.machine.system();
        let mut restored = Replica::default();
        restored.machine.restore(&system, &replica.records).unwrap();
        restored.records = replica.records.clone();
        assert_eq!(restored.machine.upkeep_due_ms(), Some(5));
        assert_eq!(restored.count(6), Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
        restored.apply(7, &[]);
        assert!(restored.records.0.is_empty());
    }

    #[test]
    fn reads_that_advanced_the_clock_end_although_records_become_due_all_the_time() {
        let mut replica = Replica::default();
        for n in 0..100 {
            replica.run(1, put_expiring(&format!("k{n:02}"), "v", 100 + n));
        }
        let range = replica.descriptor.range.clone();
        let scan = Query::Scan { range: range.clone(), items_max: 1_000, bytes_max: 1 << 20, values: false };
        let get = Query::Get { keys: vec![key("k50")], values: false };
        let as_of = |replica: &Replica, query: &Query, now_ms, as_of_ms| {
            let query = encode_query_as_of(query, as_of_ms);
            let answer = replica.machine.read(&replica.read_context(now_ms), &query, &replica.records).unwrap();
            crate::decode_answer(answer).unwrap()
        };
        let count = Query::Count { range };
        for query in [&scan, &get, &count] {
            assert_eq!(as_of(&replica, query, 150, None), Answer::ClockAdvanceNeeded);
        }
        replica.run(150, Command::empty());
        // More records are due by the time at which the reads come again.
        assert!(matches!(replica.count(160), Answer::ClockAdvanceNeeded));
        assert!(matches!(as_of(&replica, &count, 160, Some(150)), Answer::Count { records: 49, .. }));
        assert_eq!(as_of(&replica, &get, 160, Some(150)), Answer::Records(vec![None]));
        let Answer::Page { records, next: None } = as_of(&replica, &scan, 160, Some(150)) else { panic!("no page") };
        assert_eq!(records.len(), 49);
        // Without it, a page still gets as far as it can.
        let Answer::Page { records, next: Some(next) } = as_of(&replica, &scan, 160, None) else { panic!("no page") };
        assert_eq!((records.len(), next), (0, key("k51")));
        assert!(matches!(as_of(&replica, &get, 160, Some(140)), Answer::Records(found) if found == [None]));
    }

    #[test]
    fn a_page_passes_over_a_bounded_number_of_due_records() {
        let mut replica = with_due_records(10_000);
        replica.run(1, put("z", "live"));
        replica.run(6, Command::empty());
        let mut range = replica.descriptor.range.clone();
        let (mut pages, mut found) = (0, 0);
        loop {
            let query = Query::Scan { range: range.clone(), items_max: 10, bytes_max: 1 << 20, values: true };
            let Answer::Page { records, next } = replica.read(6, &query) else { panic!("no page") };
            (pages, found) = (pages + 1, found + records.len());
            let Some(next) = next else { break };
            range.start = next;
        }
        assert_eq!((pages, found), (3, 1));
    }

    #[test]
    fn expire_changes_only_the_expiry_and_tells_whether_there_was_one() {
        let mut replica = Replica::default();
        let expire = |expiry| of(vec![operation("a", Action::Expire { expiry })]);
        let number = |outcome: Outcome| match outcome {
            Outcome::Done { results, .. } => match results[0] {
                OperationResult::Written { number, .. } => Some(number),
                _ => None,
            },
            Outcome::Refused(refusal) => panic!("{refusal}"),
        };
        assert_eq!(number(replica.run(1, expire(Expiry::Never))), None);
        replica.run(2, put("a", "1"));
        assert_eq!(number(replica.run(3, expire(Expiry::At(10)))), Some(0));
        replica.run(4, add("a", 1));
        assert_eq!(number(replica.run(5, expire(Expiry::Never))), Some(1));
        replica.run(20, Command::empty());
        assert_eq!(replica.value("a").as_deref(), Some("2"));
        assert_eq!(number(replica.run(21, expire(Expiry::At(21)))), Some(0));
        assert_eq!(replica.value("a"), None, "an expiry that is due removes the record");
    }

    #[test]
    fn scans_continue_where_they_stopped() {
        let mut replica = Replica::default();
        for n in 0..10 {
            replica.run(1, put(&format!("k{n}"), "value"));
        }
        let range = replica.descriptor.range.clone();
        let mut from = range.start.clone();
        let mut found = Vec::new();
        for page in [4, 4, 2] {
            let range = KeyRange { start: from, end: range.end.clone() };
            let query = Query::Scan { range, items_max: 4, bytes_max: u32::MAX, values: false };
            let Answer::Page { records, next } = replica.read(1, &query) else { panic!("no page") };
            assert_eq!((records.len(), next.is_some()), (page, page == 4));
            assert!(records.iter().all(|record| record.value.is_empty() && record.value_bytes == 5));
            found.extend(records.into_iter().map(|record| record.key));
            from = next.unwrap_or_default();
        }
        assert_eq!(found, (0..10).map(|n| key(&format!("k{n}"))).collect::<Vec<_>>());
        let tiny = Query::Scan { range: range.clone(), items_max: 9, bytes_max: 0, values: true };
        assert!(matches!(replica.read(1, &tiny), Answer::Page { records, next: Some(_) } if records.len() == 1));
        let part = Query::Count { range: KeyRange { start: key("k7"), end: range.end } };
        assert!(matches!(replica.read(1, &part), Answer::Count { records: 3, .. }));
    }

    #[test]
    fn reads_outside_the_shard_and_beyond_limits_are_refused() {
        let limits = Limits { query_keys_max: 1, answer_bytes_max: 4, scan_examined_max: 2, ..Limits::default() };
        let mut replica = Replica::with_limits(limits);
        replica.apply(1, &[put("a", "12345"), put("b", "1"), put("c", "1"), put("d", "1")]);
        let get = |keys: &[Bytes]| Query::Get { keys: keys.to_vec(), values: true };
        assert_eq!(replica.read(1, &get(&[key("a"), key("b")])), Answer::TooLarge);
        assert_eq!(replica.read(1, &get(&[key("a")])), Answer::TooLarge);
        assert_eq!(replica.read(1, &get(&[Bytes::from_static(b"short")])), Answer::Malformed);
        assert_eq!(replica.read(1, &get(&[Bytes::from_static(b"\xff\xff\xff\xff\0\0")])), Answer::WrongShard);
        let scan = Query::Scan { range: KeyRange::all(), items_max: 1, bytes_max: 1, values: true };
        assert_eq!(replica.read(1, &scan), Answer::WrongShard);
        assert!(matches!(replica.scan(1), Answer::Page { records, next: Some(_) } if records.len() <= 2));
        let part = Query::Count { range: KeyRange::of_prefix(&key("")[..6]) };
        assert!(matches!(replica.read(1, &part), Answer::Count { records: 4, .. } | Answer::TooLarge));
        let part = KeyRange { start: key("a"), end: replica.descriptor.range.end.clone() };
        assert_eq!(replica.read(1, &Query::Count { range: part }), Answer::TooLarge);
        let answer = replica.machine.read(&replica.read_context(1), b"\x01\xff", &replica.records).unwrap();
        assert_eq!(crate::decode_answer(answer), Ok(Answer::Malformed));
    }

    #[test]
    fn malformed_commands_are_refused_and_newer_ones_stop_the_replica() {
        let mut replica = Replica::default();
        let good = encode_command(&put("a", "1"));
        let mut writes = WriteSet::new();
        let descriptor = replica.descriptor.clone();
        let context = Replica::context(&descriptor, 1, 1);
        let commands = [Bytes::from_static(b"\x01\xff\xff"), good.clone(), Bytes::new()];
        let outcomes = replica.machine.apply(&context, &commands, &replica.records, &mut writes).unwrap();
        let outcomes: Vec<_> = outcomes.into_iter().map(|bytes| crate::decode_outcome(bytes).unwrap()).collect();
        assert_eq!((&outcomes[0], &outcomes[2]), (&refused(Refusal::Malformed), &refused(Refusal::Malformed)));
        assert!(matches!(outcomes[1], Outcome::Done { .. }));
        let before = replica.machine.system();
        let newer = [good, Bytes::from_static(b"\x05")];
        let error = replica.machine.apply(&context, &newer, &replica.records, &mut writes).unwrap_err();
        assert!(matches!(error, MachineError::Version { found: 5, known: 4 }));
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
            assert_eq!(
                new_gateway_writes(&mut replica, later_ms),
                refused(Refusal::SessionFull),
                "not before the switch"
            );
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
}
