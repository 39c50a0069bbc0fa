//! The operations of clients and their outcomes.
//!
//! Keys and values are opaque bytes. Outcomes that do not fit their operation are detected by the check, not
//! here.

use bytes::Bytes;

/// One operation of one client, from its invocation to its return.
///
/// Times are of any monotonic unit, the same for all operations of a history. One operation comes before
/// another only when it returned at a *smaller* time than the other was invoked at: with equal times the two
/// are concurrent. A clock that is too coarse thus hides errors, and invents none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The client. For display only: a client may have several operations in flight.
    pub client: u64,
    /// When it was invoked.
    pub call: u64,
    /// When it returned, or when the client gave up. Not before `call`. `None` requires [`Outcome::Unknown`].
    pub ret: Option<u64>,
    /// The kind of operation, with its arguments.
    pub kind: Kind,
    /// What the client knows of the result.
    pub outcome: Outcome,
}

/// An operation with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Read one key. Answered by [`Outcome::Value`].
    Get {
        /// The key.
        key: Bytes,
    },
    /// Read several keys at one moment. Answered by [`Outcome::Values`].
    Read {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Write one key. [`Write::Put`] is answered by [`Outcome::Done`], [`Write::Delete`] by that or
    /// [`Outcome::Existed`], [`Write::Add`] by it or [`Outcome::Number`] (the sum), [`Write::Append`] by it
    /// or [`Outcome::Number`] (the length in bytes).
    Write {
        /// The key.
        key: Bytes,
        /// The change of it.
        write: Write,
    },
    /// Write one key if a condition holds: [`Outcome::Done`] or [`Outcome::ConditionFailed`].
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// What must hold of it.
        expected: Condition,
        /// The new value; `None` deletes.
        new: Option<Bytes>,
    },
    /// Write several keys at one moment if all conditions hold: [`Outcome::Done`] or
    /// [`Outcome::ConditionFailed`].
    Batch {
        /// What must hold before the first write.
        conditions: Vec<(Bytes, Condition)>,
        /// Applied in order.
        writes: Vec<(Bytes, Write)>,
    },
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the value.
    Put(Bytes),
    /// Deletes the key.
    Delete,
    /// Adds to the value, read as a decimal number. Absent counts as 0. Cannot have succeeded on a value that
    /// is not the plain decimal text of an `i64`, or when the sum overflows.
    Add(i64),
    /// Appends bytes to the value. Absent counts as empty.
    Append(Bytes),
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
    /// It has this value.
    Equals(Bytes),
}

/// What a client knows of the result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing certain (a deadline, a lost connection, a crash). The operation may have taken effect, or may
    /// do so at *any* later time, or never; the time when the client gave up does not matter.
    Unknown,
    /// It was not and will not be executed. Constrains nothing.
    Refused,
    /// A condition did not hold, so nothing was written. An observation, like a read.
    ConditionFailed,
    /// It was executed.
    Done,
    /// A deletion was executed; whether the key existed.
    Existed(bool),
    /// The value that a get found.
    Value(Option<Bytes>),
    /// The values that a read found, in the order of its keys.
    Values(Vec<Option<Bytes>>),
    /// The number after an add, or the length after an append.
    Number(i64),
}

impl Kind {
    /// A get.
    #[must_use]
    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Get { key: key.into() }
    }

    /// A read of several keys at one moment.
    #[must_use]
    pub fn read<K: Into<Bytes>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self::Read { keys: keys.into_iter().map(Into::into).collect() }
    }

    /// A put.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Write { key: key.into(), write: Write::Put(value.into()) }
    }

    /// A deletion.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Write { key: key.into(), write: Write::Delete }
    }

    /// An addition.
    #[must_use]
    pub fn add(key: impl Into<Bytes>, delta: i64) -> Self {
        Self::Write { key: key.into(), write: Write::Add(delta) }
    }

    /// An append.
    #[must_use]
    pub fn append(key: impl Into<Bytes>, bytes: impl Into<Bytes>) -> Self {
        Self::Write { key: key.into(), write: Write::Append(bytes.into()) }
    }

    /// A compare-and-set; `new` of `None` deletes.
    #[must_use]
    pub fn compare_and_set(key: impl Into<Bytes>, expected: Condition, new: Option<Bytes>) -> Self {
        Self::CompareAndSet { key: key.into(), expected, new }
    }

    /// The keys that it names, possibly with repetitions.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many, conditions, writes) = match self {
            Self::Get { key } | Self::Write { key, .. } | Self::CompareAndSet { key, .. } => {
                (Some(key), &[][..], &[][..], &[][..])
            }
            Self::Read { keys } => (None, keys.as_slice(), &[][..], &[][..]),
            Self::Batch { conditions, writes } => (None, &[][..], conditions.as_slice(), writes.as_slice()),
        };
        let conditions = conditions.iter().map(|(key, _)| key);
        let writes = writes.iter().map(|(key, _)| key);
        one.into_iter().chain(many).chain(conditions).chain(writes)
    }

    /// Whether an operation of this kind can have this outcome.
    #[must_use]
    pub fn allows(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (_, Outcome::Unknown | Outcome::Refused) | (Self::Get { .. }, Outcome::Value(_)) => true,
            (Self::Read { keys }, Outcome::Values(values)) => keys.len() == values.len(),
            (Self::Write { write, .. }, outcome) => match outcome {
                Outcome::Done => true,
                Outcome::Existed(_) => *write == Write::Delete,
                Outcome::Number(_) => matches!(write, Write::Add(_) | Write::Append(_)),
                _ => false,
            },
            (Self::CompareAndSet { .. }, outcome) => matches!(outcome, Outcome::Done | Outcome::ConditionFailed),
            (Self::Batch { conditions, .. }, outcome) => match outcome {
                Outcome::Done => true,
                Outcome::ConditionFailed => !conditions.is_empty(),
                _ => false,
            },
            _ => false,
        }
    }
}
