//! An ordered map whose copies share what they have in common.
//!
//! Invariants: a [`Map`] behaves as a `BTreeMap`; changing one copy never changes another. A copy costs a
//! pointer; a change costs the nodes from the root to it, O(log n); comparing two copies costs what differs
//! between them times O(log n), however large they are.
//!
//! Deliberately absent: whatever no user needs (entries, ranges by two bounds, mutable iteration). The crates
//! with such maps have other licences (`imbl`), or cannot compare copies by what they share (`rpds`).

mod changes;
mod map;

pub use changes::{Change, Changes};
pub use map::{Iter, Map};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
