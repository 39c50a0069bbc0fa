//! Pure routing: which node to ask for a shard, when to try again, and which outcomes a session still waits for.
//!
//! Time comes in as milliseconds; nothing here waits, sends or draws random numbers.

mod attempts;
mod session;

pub use attempts::{Attempts, Failure, Step};
pub use session::{Sequence, ShardSession, WINDOW_MAX};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
