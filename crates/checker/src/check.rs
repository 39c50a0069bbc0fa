//! The verdict on a history.

use crate::{
    decide::{Decision, decide},
    history::{HistoryError, validate},
    model::Budget,
    operation::Operation,
    registers::Start,
    shrink::shrink,
    witness::Witness,
};

/// The verdict on a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Some order of the operations explains every result.
    Linearizable,
    /// No order does.
    NotLinearizable(Witness),
    /// The budget was used up before a verdict was reached. *Not* a pass.
    Unknown,
}

impl Verdict {
    /// Whether an order was found.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        *self == Self::Linearizable
    }

    /// The witness, if the history is not linearizable.
    #[must_use]
    pub fn witness(&self) -> Option<&Witness> {
        match self {
            Self::NotLinearizable(witness) => Some(witness),
            Self::Linearizable | Self::Unknown => None,
        }
    }
}

/// Checks a history, whose operations may be in any order. At the start no key exists.
///
/// The budget is for the verdict; finding a small witness may cost as much again.
///
/// # Errors
///
/// When an operation is invalid by itself; then nothing was checked.
pub fn check(history: &[Operation], budget: &Budget) -> Result<Verdict, HistoryError> {
    validate(history)?;
    Ok(match decide(history, Start::Nothing, &mut budget.clone()) {
        Decision::Linearizable => Verdict::Linearizable,
        Decision::Unknown => Verdict::Unknown,
        Decision::Fails { partition, stuck } => Verdict::NotLinearizable(shrink(history, partition, stuck, *budget)),
    })
}
