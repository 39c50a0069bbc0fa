//! SWIM membership on foca, as a pure core. Packets and timers go in, effects come out.
//!
//! Invariants: a state change is reported exactly once and never for a no-op; invalid input from a peer is a
//! typed error and changes nothing; the same seed and inputs give the same effects.
//!
//! Deliberately absent: a clock, sockets, threads, and authority: detection takes seconds and can be wrong,
//! so nothing here may ever move a quorum, elect, delete or change a Raft configuration. It only reports and
//! hints.

mod codec;
mod config;
mod error;
#[cfg(test)]
mod hostile;
mod identity;
mod membership;
mod state;
#[cfg(test)]
mod tests;

pub use codec::PacketError;
pub use config::{Config, ConfigError};
pub use error::StepError;
pub use identity::Member;
pub use membership::{Effect, Input, MEMBERS_MAX, Membership, SEEDS_MAX, Timer};
pub use state::{NodeState, SUBSCRIBERS_MAX, Subscriber};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
