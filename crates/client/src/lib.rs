//! An async client over Flotilla's HTTP interface.
//!
//! It has a list of endpoints and prefers the one that answered last. It tries the next one only when that is
//! harmless: when nothing was sent, when the node said that nothing was written, or when the call only reads.
//! A write that may have reached a node is never resent: it fails with [`ClientError::OutcomeUnknown`], and
//! the caller decides what to do.
//!
//! Deliberately absent: retries with backoff (the caller knows how long it can wait), TLS, and any knowledge
//! of shards.

mod admin;
mod call;
mod error;
mod events;
mod options;
mod records;
mod url;

pub use call::Client;
pub use error::ClientError;
pub use events::EventStream;
pub use options::{ClientOptions, PutOptions, ScanOptions};
pub use records::{Record, ScannedPage, ScannedRecord};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
