//! Commands, outcomes, queries and answers, as plain types.
//!
//! Keys are always whole record keys. Encodings are in `codec`, limits in [`crate::Limits`].

use bytes::Bytes;
use flotilla_types::{KeyRange, Refs, SessionId, Timestamp};

use crate::{OUTCOME_BYTES_MAX, Value};

/// A set of atomic writes, with the session data that makes retries idempotent.
///
/// A retry carries the same session, sequence and `expires_at_ms` as the first attempt; only `acked_below`
/// may have grown. All operations of one command share one timestamp, which is the version of every record
/// that the command writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The session of the sender, which remembers outcomes. `SessionId(0)` is no session: nothing is
    /// remembered, and a duplicate is applied again.
    pub session: SessionId,
    /// The number of the command in its session: starts at 1, never reused for another command, in whatever
    /// shard.
    pub sequence: u64,
    /// Unix milliseconds in hybrid time. The command is refused as [`Refusal::Expired`] if its entry is
    /// later.
    pub expires_at_ms: u64,
    /// The session has received every outcome below this sequence number, so they may be forgotten.
    pub acked_below: u64,
    /// Checked before anything is written; if one does not hold, the whole command is refused.
    pub conditions: Vec<(Bytes, Condition)>,
    /// Applied in order. May be empty: the command then only advances the shard's clock.
    pub operations: Vec<Operation>,
}

impl Command {
    /// An empty command without session or expiry, which only advances the shard's clock: the response to
    /// [`Answer::ClockAdvanceNeeded`].
    #[must_use]
    pub fn empty() -> Self {
        Self {
            session: SessionId(0),
            sequence: 0,
            expires_at_ms: u64::MAX,
            acked_below: 0,
            conditions: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// The objects of the values that it writes: what its entry refers to.
    #[must_use]
    pub fn refs(&self) -> Refs {
        let value = |operation: &Operation| match &operation.action {
            Action::Put { value, .. } => value.refs(),
            _ => Refs::NONE,
        };
        let refs: Vec<_> = self.operations.iter().map(value).filter(|refs| !refs.is_empty()).collect();
        refs.iter().flat_map(|refs| refs.iter().copied()).collect()
    }

    /// Whether it needs [`flotilla_types::ClusterVersion::VALUE_REFS`].
    #[must_use]
    pub fn is_extended(&self) -> bool {
        let is_extended = |action: &Action| matches!(action, Action::Put { value, .. } if value.is_extended());
        self.operations.iter().any(|operation| is_extended(&operation.action))
    }
}

/// One write to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The whole record key (see [`flotilla_types::RecordKey`]).
    pub key: Bytes,
    /// A condition on the record as earlier operations of the command left it.
    pub condition: Option<Condition>,
    /// The effect of a condition that does not hold.
    pub otherwise: Otherwise,
    /// The write.
    pub action: Action,
}

impl Operation {
    /// Bytes of its key and of the value that it writes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let written = match &self.action {
            Action::Put { value, .. } => value.stored_bytes(),
            Action::Append { bytes } => bytes.len(),
            Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => 0,
        };
        self.key.len() + written
    }

    /// Bytes of its result in an encoded outcome, at most. A result with an old value counts as too large to
    /// remember.
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

/// A condition on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It exists with exactly this version.
    Version(Timestamp),
    /// It does not exist, or has expired.
    Absent,
    /// It exists.
    Present,
}

/// The effect of a failed condition of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Otherwise {
    /// Refuses the whole command; nothing is written.
    #[default]
    Refuse,
    /// Skips this operation only; its result is [`OperationResult::Skipped`].
    Skip,
}

/// A write to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store the value.
    Put {
        /// The new value.
        value: Value,
        /// The new expiry.
        expiry: Expiry,
        /// Whether the result carries the old value.
        return_old: bool,
    },
    /// Remove the record.
    Delete {
        /// Whether the result carries the old value.
        return_old: bool,
    },
    /// Add to the value, a decimal 64-bit integer (0 if absent), and store the sum as text; expiry and
    /// media type stay.
    Add {
        /// The summand; may be negative.
        delta: i64,
    },
    /// Append bytes to the value (empty if absent); expiry and media type stay. [`Refusal::NeedsContent`] if it is
    /// large.
    Append {
        /// The bytes to append.
        bytes: Bytes,
    },
    /// Change only the expiry, and the version; an absent record stays absent.
    Expire {
        /// The new expiry.
        expiry: Expiry,
    },
}

/// The expiry that a write sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// Unchanged.
    Keep,
    /// At this hybrid time (Unix milliseconds). A time at or before the entry's own removes the record at
    /// once.
    At(u64),
}

/// The result of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationResult {
    /// Stored. For [`Action::Expire`]: the record existed.
    Written {
        /// The record's new version.
        version: Timestamp,
        /// The old value, if requested and present.
        old: Option<Value>,
        /// Whether the record existed before.
        existed: bool,
        /// The value after [`Action::Add`]; the length after [`Action::Append`]; 1 after an
        /// [`Action::Expire`] of a record that had an expiry before; otherwise 0.
        number: i64,
    },
    /// Removed.
    Deleted {
        /// The version that was removed.
        version: Timestamp,
        /// The old value, if requested.
        old: Option<Value>,
    },
    /// There was no record to delete or to change.
    Absent,
    /// The condition did not hold, and the operation has [`Otherwise::Skip`].
    Skipped {
        /// The version found, if the record exists.
        version: Option<Timestamp>,
        /// The value found, if `return_old` was set.
        old: Option<Value>,
    },
}

/// The reason why a command changed nothing.
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
    /// A key, a value, the result of an append, or the sum of all requested old values exceeds its limit.
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
    /// A key is outside the shard's range. Route again with a newer shard map.
    #[error("the key is not in this shard")]
    WrongShard,
    /// The command's entry is later than its expiry. *This* attempt wrote nothing.
    #[error("the command expired before it was applied")]
    Expired {
        /// The shard's clock, Unix milliseconds in hybrid time: later commands must expire after it.
        clock_ms: u64,
    },
    /// The command was applied before, and its outcome is no longer remembered.
    #[error("the command was applied before; its outcome was forgotten")]
    OutcomeForgotten,
    /// The session has too many unacknowledged outcomes, or the shard too many sessions or outcomes. Nothing
    /// was written or remembered: the same command may be retried later.
    #[error("the session has too many unacknowledged commands")]
    SessionFull,
    /// An append to a large value, whose bytes are not in the record. Read it, and put the whole new value under
    /// [`Condition::Version`].
    #[error("the value is large: read it, and put the whole new value")]
    NeedsContent,
    /// The command refers to objects that its entry does not name. Nothing was written.
    #[error("the entry does not name the objects of a value")]
    UnnamedObjects,
    /// The command does not parse. Nothing was written.
    #[error("the command does not parse")]
    Malformed,
}

impl Refusal {
    /// Whether the session remembers this refusal as the command's outcome, so that no attempt of the command
    /// was or will be applied. Any other refusal is about its own attempt only: an earlier one that got no
    /// answer may have been applied, or may still be.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        match self {
            Self::ConditionFailed { .. }
            | Self::NotAnInteger
            | Self::Overflow
            | Self::TooLarge { .. }
            | Self::TooManyOperations { .. }
            | Self::NeedsContent
            | Self::UnnamedObjects => true,
            // A command that does not parse is refused before its session is known.
            Self::WrongShard | Self::Expired { .. } | Self::OutcomeForgotten | Self::SessionFull | Self::Malformed => {
                false
            }
        }
    }
}

/// The outcome of a command.
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

/// A read of the applied records of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The records under these whole record keys.
    Get {
        /// The answer has this order.
        keys: Vec<Bytes>,
        /// Whether to return values, or only versions and expiries.
        values: bool,
    },
    /// Records of a range, in key order.
    Scan {
        /// Whole record keys. Must lie inside the shard's range.
        range: KeyRange,
        /// Records to return, at most; 0 is malformed. The shard's own limit applies too.
        items_max: u32,
        /// Bytes after which to stop. The shard's own limit applies too.
        bytes_max: u32,
        /// Whether to return values.
        values: bool,
    },
    /// The number of live records in a range, and their bytes. Cheap if the range is that of the whole shard;
    /// otherwise it reads every record of the range.
    Count {
        /// Whole record keys. Must lie inside the shard's range.
        range: KeyRange,
    },
}

/// A record in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The whole record key.
    pub key: Bytes,
    /// The value; empty if values were not requested.
    pub value: Value,
    /// The version.
    pub version: Timestamp,
    /// The expiry in Unix milliseconds, if there is one.
    pub expires_at_ms: Option<u64>,
    /// Length of the value, also if values were not requested.
    pub value_bytes: u64,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One for each key of [`Query::Get`].
    Records(Vec<Option<Record>>),
    /// For [`Query::Scan`].
    Page {
        /// In key order. May be empty although `next` is set, if the scan skipped many expired records.
        records: Vec<Record>,
        /// The start of the next page; `None` if the range is exhausted.
        next: Option<Bytes>,
    },
    /// For [`Query::Count`].
    Count {
        /// Live records.
        records: u64,
        /// Bytes of their whole record keys and values.
        bytes: u64,
        /// Those of them that have an expiry; 0 from a binary of an earlier release.
        expiring: u64,
        /// The mean of their expiries, in Unix milliseconds; 0 without one, or from a binary of an earlier
        /// release.
        mean_expiry_ms: u64,
    },
    /// A record has expired by the reader's clock but not yet by the shard's: commit
    /// [`Command::empty`], then retry.
    ClockAdvanceNeeded,
    /// The answer would exceed a limit on its size or on the records it reads. Split the query.
    TooLarge,
    /// A key is outside the shard's range.
    WrongShard,
    /// The query does not parse.
    Malformed,
}
