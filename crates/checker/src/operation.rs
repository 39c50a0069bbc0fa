//! What clients asked and what they were told: the alphabet of a history.
//!
//! Keys and values are opaque bytes. Nothing here judges; an outcome that does not fit its kind is found by the check.

use bytes::Bytes;

/// One operation of one client, from its invocation to its return.
///
/// Times are of any monotonic unit, the same for all operations of a history. One operation comes before another only
/// when it returned at a *smaller* time than the other was invoked at: with equal times the two are concurrent. A clock
/// that is too coarse thus hides errors, and invents none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked. Only for people: a client may have several operations under way.
    pub client: u64,
    /// When it was invoked.
    pub call: u64,
    /// When the client was told the outcome, or gave up. Not before `call`. `None` asks for [`Outcome::Unknown`].
    pub ret: Option<u64>,
    /// What was asked.
    pub kind: Kind,
    /// What the client was told.
    pub outcome: Outcome,
}

/// What a client asked.
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
    /// [`Outcome::Existed`], [`Write::Add`] by it or [`Outcome::Number`] (the sum), [`Write::Append`] by it or
    /// [`Outcome::Number`] (the length in bytes).
    Write {
        /// The key.
        key: Bytes,
        /// What becomes of it.
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
    /// Write several keys at one moment if all conditions hold: [`Outcome::Done`] or [`Outcome::ConditionFailed`].
    Batch {
        /// What must hold before the first write.
        conditions: Vec<(Bytes, Condition)>,
        /// Applied in order.
        writes: Vec<(Bytes, Write)>,
    },
}

/// What becomes of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// It has this value.
    Put(Bytes),
    /// It is gone.
    Delete,
    /// Its value, read as a decimal number, grows by this. Absent counts as 0. A value that is not the plain decimal
    /// text of an `i64`, or a sum beyond one, cannot have been added to.
    Add(i64),
    /// These bytes are added at the end of its value. Absent counts as empty.
    Append(Bytes),
}

/// What must hold of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
    /// It has this value.
    Equals(Bytes),
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, or nothing certain (a deadline, a lost connection, a crash). The operation may have taken effect, or may
    /// do so at *any* later time, or never; when the client gave up says nothing.
    Unknown,
    /// It was certainly not executed. Constrains nothing.
    Refused,
    /// A condition did not hold, so nothing was written: an observation like a read.
    ConditionFailed,
    /// It was executed.
    Done,
    /// A deletion was executed, and there was something to delete, or not.
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

    /// The keys that it names, one after the other, perhaps repeatedly.
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

    /// Whether an operation of this kind can have been told this.
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
