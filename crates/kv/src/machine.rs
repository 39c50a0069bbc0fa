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
//! A shard can be split and merged: see `split` and `merge`.
//!
//! It knows nothing of Raft, networks or disks, and reads no clock.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{
    ApplyContext, CountAhead, DeferredRead, MachineError, Overlay, ReadContext, StateMachine, StateReader, Upcoming,
    WriteSet, switched_version,
};
use flotilla_types::{ClusterVersion, KeyRange, SessionId, Timestamp, VersionRange};

use crate::{
    Answer, Command, DecodeError, Limits, Outcome, Refusal,
    codec::{decode_command, decode_query_as_of, encode_answer, encode_outcome},
    expiries::{Expiries, NEXT_MAX},
    pages::Pages,
    place::Place,
    read::{Effort, Reading},
    record::StoredRecord,
    session::{Admission, Sessions},
    stats::{Counts, Footprint, RecordStats},
    system::System,
    transaction::{Abort, Scope, execute},
};

/// Due records that an entry removes, in addition to one per operation in it. An entry cannot write more
/// expiring records than it has operations, so removal keeps up with writes.
const REMOVALS_PER_ENTRY: usize = 16;

/// Due records that an entry without commands removes, from [`ClusterVersion::UPKEEP`] on. Other work of the
/// shard waits for it.
const REMOVALS_PER_UPKEEP: usize = 512;

/// Records that an entry without commands examines after a merge, to write their places. Few in tests, which have few
/// records.
const PLACED_PER_UPKEEP: usize = if cfg!(test) { 7 } else { 512 };

/// How long after its command's entry a session is remembered at most, in milliseconds, from
/// [`ClusterVersion::BOUNDED_SESSIONS`] on. A duplicate that arrives later is applied again, so senders stop
/// repeating a command long before: gateways after a minute.
const SESSION_MS_MAX: u64 = 3_600_000;

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
            stats: RecordStats::new(0, 0, Expiries::new(NEXT_MAX)),
        }
    }

    /// Timestamp of the last applied entry; records that expire at or before it are absent.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// As [`new`](Self::new), with another number of records in memory that expire next.
    #[cfg(test)]
    pub(crate) fn with_next_max(limits: Limits, next_max: usize) -> Self {
        Self { stats: RecordStats::new(0, 0, Expiries::new(next_max)), ..Self::new(limits) }
    }

    /// Applies one command and returns its encoded outcome.
    fn command(
        &mut self,
        context: &ApplyContext<'_>,
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
        let (range, refs) = (&context.descriptor.range, context.refs);
        let scope = Scope { limits: &self.limits, range, now_ms: self.clock.millis(), version, refs };
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
        if to >= ClusterVersion::EXPIRY_RECORDS {
            self.stats.expiries.begin_conversion();
        }
    }

    fn remove_due(&mut self, removals_max: usize, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        for _ in 0..removals_max {
            if !self.stats.remove_due(overlay)? {
                break;
            }
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
        self.stats.expiries.advance(self.clock.millis());
        let mut overlay = Overlay::new(records);
        let is_upkeep = commands.is_empty() && self.version >= ClusterVersion::UPKEEP;
        let removals_max = if is_upkeep { REMOVALS_PER_UPKEEP } else { REMOVALS_PER_ENTRY + operations };
        self.remove_due(removals_max, &mut overlay)?;
        self.stats.expiries.convert(removals_max, &mut overlay);
        if is_upkeep {
            self.stats.expiries.place(PLACED_PER_UPKEEP, &mut overlay)?;
        }
        let mut outcomes = Vec::with_capacity(commands.len());
        for (ordinal, command) in (0..).zip(commands) {
            let version = context.timestamp.plus(ordinal);
            outcomes.push(match command {
                Request::Command(command) => self.command(context, version, command, &mut overlay)?,
                Request::Switch(to) => {
                    self.switch(to);
                    encode_outcome(&Outcome::Done { results: Vec::new(), timestamp: version })
                }
                Request::Malformed => encode_outcome(&Outcome::Refused(Refusal::Malformed)),
            });
        }
        self.stats.expiries.forget_later();
        writes.extend(overlay.into_writes());
        Ok(outcomes)
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        let answer = match decode_query_as_of(Bytes::copy_from_slice(query)) {
            Ok((query, as_of_ms)) => {
                let (limits, clock_ms) = (&self.limits, self.clock.millis());
                let now_ms = due_by_ms(context, as_of_ms);
                let (counts, effort) = (&|| self.stats.counts(), Effort::Short);
                Reading { limits, context, records, counts, effort, clock_ms, now_ms }.answer(query)?
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

    fn scans(&self, entries: &Upcoming) -> bool {
        let Upcoming { entries, upkeeps, keys, until } = *entries;
        let due = entries * REMOVALS_PER_ENTRY + upkeeps * REMOVALS_PER_UPKEEP + keys;
        let until_ms = until.max(self.clock).millis();
        if upkeeps > 0 && self.stats.expiries.is_placing() {
            return true;
        }
        // Each operation may also overwrite a record that expires, or delete it.
        self.stats.expiries.may_read(until_ms, keys, due + keys)
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        let (clock_ms, counts) = (self.clock.millis(), self.stats.counts());
        Some(Arc::new(Deferred { limits: self.limits, clock_ms, counts }))
    }

    fn version(&self) -> Option<ClusterVersion> {
        Some(self.version)
    }

    fn meaning(&self) -> ClusterVersion {
        self.version
    }

    fn record_bytes(&self) -> Option<u64> {
        Some(self.stats.stored().1)
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        let expiries = &self.stats.expiries;
        let due_ms = if expiries.is_converting() || expiries.is_placing() { Some(0) } else { expiries.first_ms() };
        due_ms.filter(|_| self.version >= ClusterVersion::UPKEEP)
    }

    fn split(&mut self, right: &KeyRange, records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.split_off(right, records)
    }

    fn merge(&mut self, whole: &KeyRange, right: &[u8]) -> Result<(), MachineError> {
        self.take_over(whole, right)
    }

    fn count_ahead(&mut self, right: &KeyRange) -> Option<Arc<dyn CountAhead>> {
        Some(self.begin_count(right))
    }

    fn system(&self) -> Bytes {
        let (records, bytes) = self.stats.stored();
        let (version, clock, expiries) = (self.version, self.clock, self.stats.expiries.stored().clone());
        System { version, clock, records, bytes, expiries }.encode(&self.sessions)
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        let (system, sessions) = System::decode(system)?;
        let next_max = self.stats.expiries.next_max();
        let mut expiries = Expiries::restored(system.expiries, system.clock.millis(), next_max);
        find_expiring(&mut expiries, records)?;
        let stats = RecordStats::new(system.records, system.bytes, expiries);
        *self = Self { limits: self.limits, version: system.version, clock: system.clock, sessions, stats };
        Ok(())
    }
}

/// What queries need of a machine that has gone on since.
struct Deferred {
    limits: Limits,
    clock_ms: u64,
    counts: Counts,
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
                let (counts, effort) = (&|| self.counts.clone(), Effort::Long);
                Reading { limits, context, records, counts, effort, clock_ms, now_ms }.answer(query)?
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

/// Finds the places of the records that expire, if the checkpoint has none: reads records until all are found.
fn find_expiring(expiries: &mut Expiries, records: &dyn StateReader) -> Result<(), MachineError> {
    let mut all = Pages::new(expiries.stored().keys(), records);
    while expiries.must_be_found() {
        let Some((key, stored)) = all.next().transpose()? else {
            return Err(MachineError::Corrupt("fewer records expire than the system state says"));
        };
        let footprint = Footprint::of(&key, &StoredRecord::decode(stored)?);
        if let Some(at_ms) = footprint.expires_at_ms {
            expiries.find(Place::new(at_ms, key).unshared(), footprint.bytes);
        }
    }
    expiries.finish_finding()
}

mod merge;
mod split;

pub(crate) use split::Counting;
#[cfg(test)]
mod tests;
