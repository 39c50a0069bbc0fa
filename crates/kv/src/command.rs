//! What a client may ask of a shard, and what it is told, as plain types.
//!
//! Keys are whole record keys everywhere; nothing here knows a byte format (see `codec`) or a limit (see
//! [`crate::Limits`]).

use bytes::Bytes;
use flotilla_types::{KeyRange, SessionId, Timestamp};

use crate::OUTCOME_BYTES_MAX;

/// Writes that take effect together or not at all, with what makes a retry harmless.
///
/// A retry carries the same session, sequence and `expires_at_ms` as the first attempt; only `acked_below` may have grown.
/// All operations of one command share one timestamp, which is the version of every record that the command writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Who asks. Outcomes are remembered per session. `SessionId(0)` is nobody: nothing is remembered for it, and a
    /// duplicate is applied again.
    pub session: SessionId,
    /// The session's number for this command: starts at 1, never reused for another command.
    pub sequence: u64,
    /// Unix milliseconds in hybrid time. The command is refused as [`Refusal::Expired`] when its entry is later than that.
    pub expires_at_ms: u64,
    /// The session has received every outcome below this number: they may be forgotten.
    pub acked_below: u64,
    /// Checked before anything is written; one that does not hold refuses the whole command.
    pub conditions: Vec<(Bytes, Condition)>,
    /// Applied in order. Empty is allowed: it only moves the shard's clock.
    pub operations: Vec<Operation>,
}

impl Command {
    /// An empty command outside any session that never expires: it only moves the shard's clock, which is what a read
    /// asks for by [`Answer::TimeNeeded`].
    #[must_use]
    pub fn time() -> Self {
        Self {
            session: SessionId(0),
            sequence: 0,
            expires_at_ms: u64::MAX,
            acked_below: 0,
            conditions: Vec::new(),
            operations: Vec::new(),
        }
    }
}

/// One write to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The whole record key (see [`flotilla_types::RecordKey`]).
    pub key: Bytes,
    /// What must hold of the record as earlier operations of the command left it.
    pub condition: Option<Condition>,
    /// What to do when it does not hold.
    pub otherwise: Otherwise,
    /// What to do.
    pub action: Action,
}

impl Operation {
    /// Bytes of its key and of what it writes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let written = match &self.action {
            Action::Put { value, .. } => value.len(),
            Action::Append { bytes } => bytes.len(),
            Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => 0,
        };
        self.key.len() + written
    }

    /// What its result takes in an encoded outcome, at most. One with an old value counts as more than is remembered.
    #[must_use]
    pub fn result_bytes_max(&self) -> usize {
        match &self.action {
            Action::Put { return_old: true, .. } | Action::Delete { return_old: true } => OUTCOME_BYTES_MAX,
            Action::Put { .. } if self.condition.is_none() => 6,
            Action::Put { .. } | Action::Delete { .. } => 15,
            Action::Add { .. } => 17,
            Action::Append { .. } => 11,
            Action::Expire { .. } => 8,
        }
    }
}

/// What must hold of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It exists with exactly this version.
    Version(Timestamp),
    /// It does not exist (or is expired).
    Absent,
    /// It exists.
    Present,
}

/// What a failed condition of an operation does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Otherwise {
    /// Refuses the whole command; nothing is written.
    #[default]
    Refuse,
    /// Skips this operation only; its result says so.
    Skip,
}

/// What to do with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store the value.
    Put {
        /// The new value.
        value: Bytes,
        /// What becomes of the expiry.
        expiry: Expiry,
        /// Whether the result carries the old value.
        return_old: bool,
    },
    /// Remove the record.
    Delete {
        /// Whether the result carries the old value.
        return_old: bool,
    },
    /// Read the value as a decimal 64-bit integer (absent = 0), add, store as decimal text; the expiry stays.
    Add {
        /// What to add; may be negative.
        delta: i64,
    },
    /// Add bytes at the end of the value (absent = empty); the expiry stays.
    Append {
        /// What to add.
        bytes: Bytes,
    },
    /// Change the expiry only; an absent record stays absent. The version moves.
    Expire {
        /// The new expiry.
        expiry: Expiry,
    },
}

/// When a record stops existing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// As it was before.
    Keep,
    /// At this hybrid time (Unix milliseconds). A time not after the entry's own removes the record at once.
    At(u64),
}

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationResult {
    /// Stored. For [`Action::Expire`]: the record existed.
    Written {
        /// The record's new version.
        version: Timestamp,
        /// The old value, when asked for and there was one.
        old: Option<Bytes>,
        /// Whether the record existed before.
        existed: bool,
        /// The value after [`Action::Add`]; the length after [`Action::Append`]; 1 after an [`Action::Expire`] of a
        /// record that had an expiry before; otherwise 0.
        number: i64,
    },
    /// Removed.
    Deleted {
        /// The version that was removed.
        version: Timestamp,
        /// The old value, when asked for.
        old: Option<Bytes>,
    },
    /// There was nothing to delete or to change.
    Absent,
    /// The condition did not hold and the operation said [`Otherwise::Skip`].
    Skipped {
        /// The version found, if the record exists.
        version: Option<Timestamp>,
        /// The value found, when `return_old` was asked for.
        old: Option<Bytes>,
    },
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A condition did not hold.
    #[error("the condition on operation {operation} does not hold")]
    ConditionFailed {
        /// Index of the condition (`conditions` first, then `operations`).
        operation: u32,
        /// The version found, if the record exists.
        found: Option<Timestamp>,
    },
    /// The value is not a decimal 64-bit integer.
    #[error("the value is not an integer or out of range")]
    NotAnInteger,
    /// The sum does not fit into 64 bits.
    #[error("increment or decrement would overflow")]
    Overflow,
    /// A key, a value, the result of an append, or all old values asked for together are over their limit.
    #[error("a key, value or result would be larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The command has too many conditions or too many operations. Split it.
    #[error("the command has more than {limit} operations")]
    TooManyOperations {
        /// The limit, for each of the two lists.
        limit: u32,
    },
    /// A key lies outside the shard's range. Route again with a newer shard map.
    #[error("the key is not in this shard")]
    WrongShard,
    /// The entry came later than the command allowed. Nothing was written by *this* attempt.
    #[error("the command expired before it was applied")]
    Expired {
        /// The shard's clock, Unix milliseconds in hybrid time: later commands must expire behind it.
        clock_ms: u64,
    },
    /// The command was applied before, and its outcome is no longer known.
    #[error("the command was applied before; its outcome was forgotten")]
    OutcomeForgotten,
    /// The session has too many outcomes outstanding, or the shard too many sessions. Nothing was written and nothing
    /// is remembered: the same command may be tried again later.
    #[error("the session has too many unacknowledged commands")]
    SessionFull,
    /// The command does not parse. Nothing was written.
    #[error("the command does not parse")]
    Malformed,
}

/// What a client is told about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Applied; one result for each operation.
    Done {
        /// In the order of the operations.
        results: Vec<OperationResult>,
        /// The timestamp at which the command applied.
        timestamp: Timestamp,
    },
    /// Nothing was written.
    Refused(Refusal),
}

/// A question about the applied records of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The records under these whole record keys.
    Get {
        /// Answered in this order.
        keys: Vec<Bytes>,
        /// Whether values are wanted, or only versions and expiries.
        values: bool,
    },
    /// Records of a range, in key order.
    Scan {
        /// Whole record keys. Must lie inside the shard's range.
        range: KeyRange,
        /// At most so many records; 0 is malformed. The shard's own limit applies too.
        items_max: u32,
        /// Stop once so many bytes are collected. The shard's own limit applies too.
        bytes_max: u32,
        /// Whether values are wanted.
        values: bool,
    },
    /// The number of live records in a range, and their bytes. Cheap when the range covers the whole shard; otherwise
    /// every record of it is read.
    Count {
        /// Whole record keys. Must lie inside the shard's range or cover it.
        range: KeyRange,
    },
}

/// A record as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The whole record key.
    pub key: Bytes,
    /// Empty when values were not asked for.
    pub value: Bytes,
    /// The version.
    pub version: Timestamp,
    /// Unix milliseconds, when the record expires.
    pub expires_at_ms: Option<u64>,
    /// Length of the value, also when it was not asked for.
    pub value_bytes: u64,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One for each key of [`Query::Get`].
    Records(Vec<Option<Record>>),
    /// For [`Query::Scan`].
    Page {
        /// In key order. May be empty although `next` is there, when many expired records had to be passed over.
        records: Vec<Record>,
        /// Where to go on; `None` when the range is exhausted.
        next: Option<Bytes>,
    },
    /// For [`Query::Count`].
    Count {
        /// Live records.
        records: u64,
        /// Bytes of their whole record keys and values.
        bytes: u64,
    },
    /// A record is due by the reader's clock but not yet by the log's: commit an empty command, then ask again.
    TimeNeeded,
    /// The answer would be larger, or take more reading, than the limits allow. Ask in parts.
    TooLarge,
    /// A key lies outside the shard's range.
    WrongShard,
    /// The query does not parse.
    Malformed,
}
