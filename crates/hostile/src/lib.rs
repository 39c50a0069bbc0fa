//! Hostile input for the tests of parsers: what to send, how long, and how much memory reading it may take.
//!
//! [`mutated`] bends valid encodings, [`any_bytes`] ignores them; [`attack`] runs a property over many of them and
//! [`Proportion`] bounds what a parser allocates for them. Deliberately absent: coverage feedback (that wants a nightly
//! toolchain, and the pinned one is stable), and any knowledge of Flotilla's formats.

mod attack;
mod bytes;
mod proportion;

pub use attack::attack;
pub use bytes::{any_bytes, at_every_cut, extreme_u64, mutated};
pub use proportion::Proportion;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
