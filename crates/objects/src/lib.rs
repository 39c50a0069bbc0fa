//! A content-addressed object store: BLAKE3 ids, segment files, verification, pins, collection.
//!
//! An object is an immutable byte string named by its hash. Objects are appended to segment files and become
//! durable together, by [`ObjectStore::sync`]. Invariants: an object that [`ObjectStore::contains`] or
//! [`ObjectStore::pin`] reports is fsynced; a pinned, rooted or not yet durable object is never deleted.
//!
//! Bytes from disk are never trusted: every read is verified against the id, and damage is a typed error. The
//! store does not know what objects mean, does not fetch them from peers and does not persist pins or roots.

mod collect;
mod error;
#[cfg(test)]
mod hostile;
mod index;
mod segment;
mod store;
#[cfg(test)]
mod tests;

pub use collect::{Collected, Scope};
pub use error::ObjectError;
pub use store::{ObjectStore, Options, StoreUsage};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
