//! Records a history while it happens, and validates its operations.
//!
//! The recorder has no clock: times come in as arguments.

use crate::operation::{Kind, Operation, Outcome};

/// An operation of a history is invalid. Nothing was checked; the recording is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It returned before it was invoked.
    #[error("operation {index} returns before it is invoked")]
    ReturnsBeforeCall {
        /// Its place in the history, from 0.
        index: usize,
    },
    /// It has an outcome but never returned.
    #[error("operation {index} has an outcome but no time of return")]
    OutcomeWithoutReturn {
        /// Its place in the history, from 0.
        index: usize,
    },
    /// No operation of its kind can have had that outcome.
    #[error("operation {index} has an outcome that does not fit its kind")]
    OutcomeOfAnotherKind {
        /// Its place in the history, from 0.
        index: usize,
    },
}

/// Checks that every operation is valid by itself.
pub(crate) fn validate(history: &[Operation]) -> Result<(), HistoryError> {
    for (index, operation) in history.iter().enumerate() {
        if operation.ret.is_some_and(|ret| ret < operation.call) {
            return Err(HistoryError::ReturnsBeforeCall { index });
        }
        if operation.ret.is_none() && operation.outcome != Outcome::Unknown {
            return Err(HistoryError::OutcomeWithoutReturn { index });
        }
        if !operation.kind.allows(&operation.outcome) {
            return Err(HistoryError::OutcomeOfAnotherKind { index });
        }
    }
    Ok(())
}

/// Identifies an operation of a [`Recorder`] between its invocation and its return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(usize);

/// Records a history while it happens.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    operations: Vec<Operation>,
}

impl Recorder {
    /// An empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an invocation at this time. Call it *before* the request is sent.
    pub fn invoke(&mut self, client: u64, now: u64, kind: Kind) -> OperationId {
        self.operations.push(Operation { client, call: now, ret: None, kind, outcome: Outcome::Unknown });
        OperationId(self.operations.len() - 1)
    }

    /// Records a result at this time, or that the client gave up ([`Outcome::Unknown`]). Call it *after* the
    /// answer has arrived.
    ///
    /// # Panics
    ///
    /// When the id is from another recorder with more operations.
    pub fn complete(&mut self, id: OperationId, now: u64, outcome: Outcome) {
        let operation = &mut self.operations[id.0];
        operation.ret = Some(now);
        operation.outcome = outcome;
    }

    /// The operations recorded so far, in the order of invocation. Those not completed have an unknown
    /// outcome.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The history.
    #[must_use]
    pub fn finish(self) -> Vec<Operation> {
        self.operations
    }
}
