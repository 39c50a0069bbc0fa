//! Pure routing: which node to send a shard's request to, when to retry and to route again, which time a
//! command must follow, and which outcomes a session still awaits.
//!
//! Time comes in as milliseconds; nothing here waits, sends or draws random numbers.

mod attempts;
mod causality;
mod refusals;
mod session;

pub use attempts::{Attempts, Failure, Step};
pub use causality::{AHEAD_MS_MAX, Heard};
pub use refusals::{Route, RouteRefusals};
pub use session::{GatewayStart, Sequence, ShardSession, WINDOW_MAX};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
