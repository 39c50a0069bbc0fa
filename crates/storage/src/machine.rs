//! The interface of a replicated state machine.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_types::{ClusterVersion, KeyRange, LogIndex, Refs, ShardDescriptor, Term, Timestamp};

use crate::{EngineError, StateReader, WriteSet};

/// A state machine failed. [`remedy`](crate::remedy) says what follows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MachineError {
    /// The records could not be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A stored record or the system state does not parse.
    #[error("the applied state does not parse: {0}")]
    Corrupt(&'static str),
    /// A committed command or the stored state has a version that this binary does not know.
    #[error(
        "a replica has commands or state of version {found} and this binary supports {known}: \
         install a binary that supports version {found} and start the node again"
    )]
    Version {
        /// Version in the command or the state.
        found: u32,
        /// Newest known version.
        known: u32,
    },
}

/// Set in the first byte of a command that raises the version in force; the other bits are the new version.
const RAISES: u8 = 0x80;
/// After the version byte: the command switches its machine to that version. No protobuf message begins so.
const SWITCH: u8 = 0;

/// What a command needs of the cluster version in force before a leader may propose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionNeed {
    /// This version must be in force: a replica on an older binary could not decode the command, or would
    /// give it another meaning.
    InForce(ClusterVersion),
    /// The command puts this version in force, which must be the next one. The proposer has seen that every
    /// node supports it, or old replicas would stop at the command.
    Raises(ClusterVersion),
}

/// What a command needs, by its first byte, which every machine's commands begin with: the version of its
/// format, that is, the lowest cluster version that has it.
#[must_use]
pub fn version_need(command: &[u8]) -> VersionNeed {
    let byte = command.first().copied().unwrap_or_default();
    let version = ClusterVersion(u32::from(byte & !RAISES));
    if byte & RAISES == 0 { VersionNeed::InForce(version) } else { VersionNeed::Raises(version) }
}

/// The first byte of a command.
///
/// # Panics
/// The version is above [`ClusterVersion::LAST`].
#[must_use]
pub fn version_byte(need: VersionNeed) -> u8 {
    let (version, flag) = match need {
        VersionNeed::InForce(version) => (version, 0),
        VersionNeed::Raises(version) => (version, RAISES),
    };
    assert!(version <= ClusterVersion::LAST, "version {version} does not fit into a command");
    u8::try_from(version.0).unwrap_or_default() | flag
}

/// The command that switches a machine with a version of its own to `version`.
#[must_use]
pub fn switch_command(version: ClusterVersion) -> Bytes {
    Bytes::copy_from_slice(&[version_byte(VersionNeed::InForce(version)), SWITCH])
}

/// The version to which a command switches its machine; `None` for every other command.
#[must_use]
pub fn switched_version(command: &[u8]) -> Option<ClusterVersion> {
    match (command, version_need(command)) {
        ([_, SWITCH], VersionNeed::InForce(version)) if version > ClusterVersion::FIRST => Some(version),
        _ => None,
    }
}

/// The log position and time at which commands apply; equal on every replica.
#[derive(Debug, Clone, Copy)]
pub struct ApplyContext<'a> {
    /// The entry's index.
    pub index: LogIndex,
    /// The entry's term.
    pub term: Term,
    /// Hybrid time of the entry's first command; command *n* has `timestamp.plus(n)`.
    pub timestamp: Timestamp,
    /// The shard as of this entry.
    pub descriptor: &'a ShardDescriptor,
    /// The objects that the entry names: all that the records need which it writes, unless others need them already.
    pub refs: &'a Refs,
}

/// Entries that are about to be applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upcoming {
    /// How many have commands.
    pub entries: usize,
    /// How many have none.
    pub upkeeps: usize,
    /// The keys that [`StateMachine::keys_read`] names for them.
    pub keys: usize,
    /// The time of the latest one.
    pub until: Timestamp,
}

/// The context of a read, beside the records.
#[derive(Debug, Clone, Copy)]
pub struct ReadContext<'a> {
    /// The shard as of the applied entry that the read sees.
    pub descriptor: &'a ShardDescriptor,
    /// Hybrid time of the read: the wall clock of the node, but never below the last applied entry.
    pub now: Timestamp,
}

/// Answers queries on a state that a machine had. See [`StateMachine::deferred`].
pub trait DeferredRead: Send + Sync {
    /// As [`StateMachine::read`]; `context` and `records` are of the same state.
    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError>;
}

/// Counts what a split would give up. See [`StateMachine::count_ahead`].
pub trait CountAhead: Send + Sync {
    /// Counts these records, of the state in which it was begun. May take long; calls `pause` now and then.
    ///
    /// # Errors
    /// The records could not be read. Then nothing was counted.
    fn run(&self, records: &dyn StateReader, pause: &mut dyn FnMut()) -> Result<(), MachineError>;
}

/// A deterministic state machine, one per replica.
///
/// # Contract
/// - `apply` and `restore` are deterministic: the same calls give the same state and outcomes on every
///   replica. No clock, no randomness, no iteration over unordered maps that reaches the state.
/// - A command that does not parse or is refused yields an outcome that says so; it never fails `apply`. An
///   error stops the replica and is reserved for damaged state.
/// - The first byte of a command is its version; see [`version_need`].
/// - State lives in records (through `records` and `writes`) and in the machine's own fields; `system`
///   returns the latter and `restore` restores them.
pub trait StateMachine: Send + 'static {
    /// Applies the commands of one entry in order and returns one outcome for each. `records` shows the state
    /// before the entry; the machine pushes changes to `writes`, where a later command must see the changes
    /// of an earlier one. An entry without commands is upkeep: see [`upkeep_due_ms`](Self::upkeep_due_ms).
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError>;

    /// Answers a query on the applied state. The format of query and answer is the machine's own; a query
    /// that does not parse yields an answer that says so.
    ///
    /// `records` may fail with [`EngineError::NotInMemory`], which `read` passes on: the host then repeats
    /// the query on [`deferred`](Self::deferred).
    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError>;

    /// The keys of the records that `apply` of these commands reads, pushed to `keys`. The host brings them
    /// into memory before, because an entry that waits for the disk holds up the entries of other replicas.
    /// A key that is not named here is read by `apply` itself.
    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>);

    /// Whether `apply` of these entries may scan records. The host then calls it where it may wait for the disk.
    fn scans(&self, _entries: &Upcoming) -> bool {
        false
    }

    /// What queries need of the machine's own state as it is now, to answer them while later entries are
    /// applied. `None` if `read` uses no records.
    fn deferred(&self) -> Option<Arc<dyn DeferredRead>>;

    /// The version of the formats and meanings by which this machine applies commands, if it has one of its
    /// own: it then starts at [`ClusterVersion::FIRST`] and obeys [`switch_command`], so that all replicas
    /// change the meaning of their commands at the same entry.
    fn version(&self) -> Option<ClusterVersion>;

    /// The version by which it gives entries their meaning now, also if it follows from its state rather than from
    /// a [`switch_command`]. All replicas have the same one after the same entry.
    fn meaning(&self) -> ClusterVersion;

    /// Bytes of the keys and values of its records, if it counts them.
    fn record_bytes(&self) -> Option<u64> {
        None
    }

    /// When upkeep is due, in Unix milliseconds of hybrid time; `None` if there is nothing to do. A while later
    /// the leader proposes an entry without commands, so that work which depends on time is done also in a
    /// shard that no client writes to.
    fn upkeep_due_ms(&self) -> Option<u64> {
        None
    }

    /// Gives up the keys of `right`, the upper end of the shard's range, to a new shard, and returns the own state of
    /// that shard's machine, for its first checkpoint. Called in the log's order, on every replica at the same entry;
    /// `records` has the records of both halves as of that entry, and loses those of `right` after the call, but for
    /// the machine's own ([`KeyRange::internal`]): both shards have all of these.
    ///
    /// It may read every record of `right`, so the host calls it where it may wait for the disk.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply). A machine whose shard is never split keeps this default.
    fn split(&mut self, _right: &KeyRange, _records: &dyn StateReader) -> Result<Bytes, MachineError> {
        Err(MachineError::Corrupt("a shard was split whose state machine cannot be"))
    }

    /// Takes over the keys of the shard's right neighbour, whose machine had this own state when it was frozen; `whole`
    /// is the range of both. Called in the log's order, on every replica at the same entry. After the call the records
    /// are those of both machines, but for the machines' own ([`KeyRange::internal`]): both lose all of these, and this
    /// machine makes anew what it needs of them.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply). A machine whose shard is never merged keeps this default.
    fn merge(&mut self, _whole: &KeyRange, _right: &[u8]) -> Result<(), MachineError> {
        Err(MachineError::Corrupt("a shard was merged whose state machine cannot be"))
    }

    /// Begins to count ahead what [`split`](Self::split) at this range would give up, in place of an earlier count that
    /// was begun. Returns what does it, on a snapshot of the records as they are now; the machine takes into account
    /// what it applies meanwhile. A matter of this replica alone: a split gives the same result without, later. `None`
    /// if a split has nothing to count.
    fn count_ahead(&mut self, _right: &KeyRange) -> Option<Arc<dyn CountAhead>> {
        None
    }

    /// The machine's own state, for a checkpoint. Equal states give equal bytes.
    fn system(&self) -> Bytes;

    /// Restores the state that `system` returned (empty for a new replica), with the records of the same
    /// checkpoint.
    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells_what_a_command_needs() {
        let two = ClusterVersion(2);
        assert_eq!(version_need(b""), VersionNeed::InForce(ClusterVersion(0)));
        for need in [VersionNeed::InForce(two), VersionNeed::Raises(two), VersionNeed::Raises(ClusterVersion::LAST)] {
            assert_eq!(version_need(&[version_byte(need), 7]), need);
        }
        assert_eq!(switched_version(&switch_command(two)), Some(two));
        assert_eq!(version_need(&switch_command(two)), VersionNeed::InForce(two));
        for other in [&[1, SWITCH][..], &[2], &[2, SWITCH, 1], &[2 | RAISES, SWITCH]] {
            assert_eq!(switched_version(other), None);
        }
    }
}
