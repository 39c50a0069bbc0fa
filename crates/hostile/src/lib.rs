//! Hostile input for the tests of parsers: which bytes, for how long, and how much memory parsing them may
//! take.
//!
//! [`mutated`] mutates valid encodings and [`any_bytes`] makes arbitrary ones; [`attack`] runs a property
//! over many inputs, and [`Proportion`] limits what a parser allocates for one. Deliberately absent: coverage
//! feedback (it needs a nightly toolchain, and the pinned one is stable), and any knowledge of Flotilla's
//! formats.

mod attack;
mod bytes;
mod proportion;

pub use attack::attack;
pub use bytes::{any_bytes, at_every_cut, extreme_u64, mutated};
pub use proportion::Proportion;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
