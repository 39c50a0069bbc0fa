//! The replicated key-value state machine: commands, conditions, sessions, expiry, scans.
//!
//! Deterministic: no clock, no randomness, and no I/O except through the [`flotilla_storage::StateReader`] it
//! is given. Equal logs give equal records, outcomes and system state on every replica.

mod codec;
mod command;
mod expiries;
#[cfg(test)]
mod hostile;
mod limits;
mod machine;
mod pages;
mod place;
mod read;
mod record;
mod session;
mod stats;
mod system;
mod transaction;
mod value;
mod verify;

#[cfg(test)]
mod model;
#[cfg(test)]
mod testing;

pub use codec::{
    DecodeError, ELEMENTS_MAX, FORMAT_VERSION, decode_answer, decode_command, decode_outcome, decode_query,
    encode_answer, encode_command, encode_outcome, encode_query, encode_query_as_of,
};
pub use command::{
    Action, Answer, Command, Condition, Expiry, Operation, OperationResult, Otherwise, Outcome, Query, Record, Refusal,
};
pub use limits::{Limits, LimitsError};
pub use machine::KvMachine;
pub use session::{OUTCOME_BYTES_MAX, OUTCOME_FRAME_BYTES};
pub use transaction::parse_integer;
pub use value::{Content, MEDIA_TYPE_BYTES_MAX, Value};
pub use verify::{Verified, verify};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
