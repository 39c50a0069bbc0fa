//! `kv import` and `kv export`: bulk transfers with a report of every refused record.
//!
//! An import holds at most `--jobs` records in memory. Refused records are counted and listed, and make the
//! exit code 1. A repeated import skips records that exist already. If the cluster stays unavailable, the
//! transfer stops instead of failing record by record.

mod export;
mod folder;
mod import;
mod lines;
mod report;
mod retry;

pub(crate) use export::ExportArguments;
pub(super) use export::export;
pub(crate) use import::ImportArguments;
pub(super) use import::import;

use std::path::PathBuf;

use bytes::Bytes;

/// One entry of a source.
#[derive(Debug)]
enum Entry {
    /// A record.
    Record(Source),
    /// A symbolic link, which is not followed.
    Link,
    /// An entry that cannot be a record.
    Refused {
        /// The entry's name.
        name: String,
        /// Why it is refused.
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

/// The value of a record, or the file that contains it.
#[derive(Debug)]
enum Content {
    Inline(Bytes),
    File(PathBuf),
}
