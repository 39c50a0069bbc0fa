//! `kv import` and `kv export`: many records, some at a time, with an account of each that did not go.
//!
//! At most `--jobs` records are in memory. What is refused is counted and listed, and makes the exit code 1. An import
//! that is run again skips what is there already. When the cluster stays away, the transfer stops instead of failing
//! record by record.

mod export;
mod folder;
mod import;
mod lines;
mod patience;
mod report;

pub(crate) use export::ExportArguments;
pub(super) use export::export;
pub(crate) use import::ImportArguments;
pub(super) use import::import;

use std::path::PathBuf;

use bytes::Bytes;

/// One thing that a source has.
#[derive(Debug)]
enum Step {
    /// A record.
    Record(Source),
    /// A symbolic link, which is not followed.
    Link,
    /// Something that cannot be a record.
    Refused {
        /// What it is called.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// A record before it is sent.
#[derive(Debug)]
struct Source {
    key: Vec<u8>,
    value: Content,
    /// Unix milliseconds.
    expires_at_ms: Option<u64>,
}

/// Where the value is.
#[derive(Debug)]
enum Content {
    Here(Bytes),
    File(PathBuf),
}
