//! The replicated key-value state machine: commands, conditions, sessions, expiry, scans.
//!
//! Pure: no clock, no randomness, no I/O beside the [`flotilla_storage::StateReader`] it is given.

mod command;

pub use command::{
    Action, Answer, Command, Condition, Expiry, Operation, OperationResult, Otherwise, Outcome, Query, Record, Refusal,
};
