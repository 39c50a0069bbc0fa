//! The interface of a replicated state machine.

use bytes::Bytes;
use flotilla_types::{LogIndex, ShardDescriptor, Term, Timestamp};

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
    /// A committed command has a version that this binary does not know. Upgrade the binary.
    #[error("a committed command has format version {found}, newer than {known}")]
    Version {
        /// Version in the command.
        found: u32,
        /// Newest known version.
        known: u32,
    },
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
}

/// The context of a read, beside the records.
#[derive(Debug, Clone, Copy)]
pub struct ReadContext<'a> {
    /// The shard as of the applied entry that the read sees.
    pub descriptor: &'a ShardDescriptor,
    /// Hybrid time of the read: the wall clock of the node, but never below the last applied entry.
    pub now: Timestamp,
}

/// A deterministic state machine, one per replica.
///
/// # Contract
/// - `apply` and `restore` are deterministic: the same calls give the same state and outcomes on every
///   replica. No clock, no randomness, no iteration over unordered maps that reaches the state.
/// - A command that does not parse or is refused yields an outcome that says so; it never fails `apply`. An
///   error stops the replica and is reserved for damaged state.
/// - State lives in records (through `records` and `writes`) and in the machine's own fields; `system`
///   returns the latter and `restore` restores them.
pub trait StateMachine: Send + 'static {
    /// Applies the commands of one entry in order and returns one outcome for each. `records` shows the state
    /// before the entry; the machine pushes changes to `writes`, where a later command must see the changes
    /// of an earlier one.
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError>;

    /// Answers a query on the applied state. The format of query and answer is the machine's own; a query
    /// that does not parse yields an answer that says so.
    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError>;

    /// The machine's own state, for a checkpoint. Equal states give equal bytes.
    fn system(&self) -> Bytes;

    /// Restores the state that `system` returned (empty for a new replica), with the records of the same
    /// checkpoint.
    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError>;
}
