//! The part of a history that has no order, and how it is told to people.

use std::fmt::{self, Display, Formatter};

use bytes::Bytes;

use crate::{
    display::{found, name},
    operation::Operation,
    registers::Start,
    timeline::Timeline,
};

/// A part of a history that no order explains, as small as was found.
///
/// Displayed as a timeline and a sentence. What is not in it does not matter: with the rest of the history there is no
/// order either.
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
    /// The operations, in the order in which the history has them.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Their places in the history, from 0.
    #[must_use]
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// The one whose return made it impossible: everything up to then, without it, has an order.
    #[must_use]
    pub fn culprit(&self) -> &Operation {
        &self.operations[self.culprit]
    }

    /// What the culprit's key can have been when it returned, if it has but one key and this could be told: absent
    /// (`None`) or a value.
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
            Start::Nothing => "Nothing was there at first",
            Start::Anything => "Whatever was there before",
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
                write!(f, " It can have found {} to be {} or {last} only.", name(key), values.join(", "))
            }
            [only, ..] => write!(f, " It can have found {} to be {only} only.", name(key)),
        }
    }
}
