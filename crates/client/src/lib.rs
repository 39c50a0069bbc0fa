//! An async client over Flotilla's HTTP interface.
//!
//! It has a list of endpoints and prefers the one that answered last. It tries the next one only when that is
//! harmless: when nothing was sent, when the node said that nothing was written, or when the call only reads.
//! A write that may have reached a node is never resent: it fails with [`ClientError::OutcomeUnknown`], and
//! the caller decides what to do.
//!
//! Large values are cut into objects as the cluster does it, and only those that a node lacks are sent or
//! fetched. That takes several calls; those that change no record are retried with backoff, until a deadline.
//!
//! Deliberately absent: retries of other calls (the caller knows how long it can wait), and any knowledge of
//! shards.

mod admin;
mod call;
mod error;
mod events;
mod options;
mod records;
mod url;
mod values;

pub use call::Client;
pub use error::ClientError;
pub use events::EventStream;
pub use options::{ClientOptions, PutOptions, ScanOptions};
pub use records::{Record, ScannedPage, ScannedRecord};
pub use values::{
    LARGE_VALUE_BYTES_MAX, LocalValue, StoredValue, Transfer, ValueCache, ValueReader, ValueSource, ValueSourceReader,
};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
