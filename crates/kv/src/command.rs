//! What a client may ask of a shard, and what it is told, as plain types.

use bytes::Bytes;
use flotilla_types::{KeyRange, SessionId, Timestamp};

/// Writes that take effect together or not at all, with what makes a retry harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Who asks. Outcomes are remembered per session.
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
        /// The value after [`Action::Add`]; the length after [`Action::Append`]; otherwise 0.
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
    /// A key, a value or the result of an append is over its limit.
    #[error("the value would be larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// A key lies outside the shard's range. Route again with a newer shard map.
    #[error("the key is not in this shard")]
    WrongShard,
    /// The entry came later than the command allowed. Nothing was written by *this* attempt.
    #[error("the command expired before it was applied")]
    Expired,
    /// The command was applied before, and its outcome is no longer known.
    #[error("the command was applied before; its outcome was forgotten")]
    OutcomeForgotten,
    /// The session has too many outcomes outstanding. Nothing was written.
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
        /// At most so many records.
        items_max: u32,
        /// Stop once so many bytes are collected.
        bytes_max: u32,
        /// Whether values are wanted.
        values: bool,
    },
    /// The number of live records in the shard, and their bytes.
    Count {
        /// Whole record keys.
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
        /// In key order.
        records: Vec<Record>,
        /// Where to go on; `None` when the range is exhausted.
        next: Option<Bytes>,
    },
    /// For [`Query::Count`].
    Count {
        /// Live records.
        records: u64,
        /// Bytes of their keys and values.
        bytes: u64,
    },
    /// A record is due by the reader's clock but not yet by the log's: commit an empty command, then ask again.
    TimeNeeded,
    /// A key lies outside the shard's range.
    WrongShard,
    /// The query does not parse.
    Malformed,
}
