//! The witness: the part of a history that is not linearizable, and its display.

use std::fmt::{self, Display, Formatter};

use bytes::Bytes;

use crate::{
    display::{found, name},
    operation::Operation,
    registers::Start,
    timeline::Timeline,
};

/// A small part of a history that no order explains.
///
/// Displayed as a timeline and a sentence. The rest of the history does not matter: with it there is no order
/// either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    pub(crate) places: Vec<usize>,
    pub(crate) operations: Vec<Operation>,
    /// Index into both.
    pub(crate) culprit: usize,
    pub(crate) until: u64,
    pub(crate) start: Start,
    pub(crate) possible: Option<Vec<Option<Bytes>>>,
}

impl Witness {
    /// The operations, in the order of the history.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Their indexes in the history.
    #[must_use]
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// The operation whose return made an order impossible: the history up to that return, without it, has
    /// one.
    #[must_use]
    pub fn culprit(&self) -> &Operation {
        &self.operations[self.culprit]
    }

    /// The possible values of the culprit's key at its return (`None`: absent), if it has one key and they
    /// could be determined.
    #[must_use]
    pub fn possible(&self) -> Option<&[Option<Bytes>]> {
        self.possible.as_deref()
    }
}

impl Display for Witness {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let culprit = self.culprit();
        writeln!(f, "{}", Timeline::new(&self.operations).until(self.until))?;
        let before = match self.start {
            Start::Nothing => "From an empty store",
            Start::Anything => "From any state",
        };
        write!(
            f,
            "{before}: no order explains \"{culprit}\" of client {}, invoked at {} and returned at {}.",
            culprit.client, culprit.call, self.until
        )?;
        let (Some(possible), Some(key)) = (&self.possible, culprit.kind.keys().next()) else { return Ok(()) };
        let values: Vec<String> = possible.iter().map(|value| found(value.as_ref())).collect();
        match values.as_slice() {
            [] => Ok(()),
            [values @ .., last] if !values.is_empty() => {
                write!(f, " The only possible values of {} are {} or {last}.", name(key), values.join(", "))
            }
            [only, ..] => write!(f, " The only possible value of {} is {only}.", name(key)),
        }
    }
}
