//! `kv import` and `kv export`: bulk transfers with a report of every refused record.
//!
//! Of large values only those parts travel that the other side lacks. An import has at most `--jobs` records under
//! way, of which it holds 1 MiB each in memory at most, and the batches that are being sent. Refused records are
//! counted and listed, and make the exit code 1. A repeated import skips records that exist already. If the cluster
//! stays unavailable, the transfer stops instead of failing record by record.

mod cache;
mod export;
mod folder;
mod import;
mod lines;
mod report;
mod retry;
mod unpack;

#[cfg(test)]
mod tests;

pub(crate) use cache::CacheArguments;
pub(crate) use export::ExportArguments;
pub(super) use export::export;
pub(crate) use import::ImportArguments;
pub(super) use import::import;
pub(super) use report::{Bar, Moved};

use std::path::PathBuf;

use flotilla_client::ValueSource;

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
    /// An archive that was taken apart: its members are entries before this one.
    Unpacked,
    /// An archive that is stored as it is, by the entry after this one.
    KeptWhole {
        /// Its name.
        name: String,
        /// Why it is not taken apart.
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
    Read(ValueSource),
    File(PathBuf),
}
