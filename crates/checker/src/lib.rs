//! Checks recorded histories for linearizability: one order of all operations must explain the result of
//! each.
//!
//! Pure: a history in, a [`Verdict`] out. Nothing here runs clients, reads clocks or draws random numbers.
//! The algorithm is Wing and Gong's (1993) with Lowe's memoization (2017), per key; `search` describes how
//! the search is pruned.
//!
//! Deliberately absent: weaker models (sequential, causal, serializable), expiry, and versions of records.

mod cells;
mod check;
mod compile;
mod decide;
mod display;
mod history;
mod json;
mod list;
mod model;
mod operation;
mod registers;
mod search;
mod seen;
mod shrink;
mod timeline;
mod witness;

pub use check::{Verdict, check};
pub use history::{HistoryError, OperationId, Recorder};
pub use json::{LINE_BYTES_MAX, Problem, ReadError, read_json_lines, write_json_lines};
pub use model::{Budget, Model, Timed};
pub use operation::{Condition, Kind, Operation, Outcome, Write};
pub use search::{Answer, search};
pub use timeline::Timeline;
pub use witness::Witness;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
