//! A content-addressed object store: BLAKE3 ids, segment files, verification, holders, collection.
//!
//! An object is an immutable byte string named by its hash. Objects are appended to segment files and become
//! durable together, by [`ObjectStore::sync`]. An object may need others, its *children*, which are named
//! when it is stored; whoever holds it holds everything that is reachable from it. Invariants: an object that
//! [`ObjectStore::contains`] or [`ObjectStore::pin`] reports is fsynced; an object that is reachable from a
//! pin or a holder, or not yet durable, is never deleted.
//!
//! Bytes from disk are never trusted: every read is verified against the id, and damage is a typed error. The
//! store does not know what objects mean, does not fetch them from peers and does not persist pins or
//! holders.

#[cfg(test)]
mod audit;
mod collect;
mod compression;
mod error;
mod footer;
mod holds;
#[cfg(test)]
mod hostile;
mod index;
mod load;
mod node;
mod read;
mod scrub;
mod segment;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod uploads;

pub use collect::{Collected, Scope};
pub use error::ObjectError;
pub use scrub::{ScrubPass, Scrubbed};
pub use store::{ObjectStore, Options, StoreUsage};
pub use uploads::{MISSING_MAX, UPLOAD_TIME_MAX, UploadBounds, UploadError, UploadUsage};

/// Children of an object. A longer list needs a tree; this one takes 2 MiB on disk.
pub const CHILDREN_MAX: usize = 65_536;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
