//! `kv import`: from a folder or from JSON lines into a collection.
//!
//! A thread reads the source and takes archives apart; entries wait for the network, not the network for them.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufReader, stdin},
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use clap::Args;
use flotilla_api::SCAN_ITEMS_MAX;
use flotilla_client::{Client, ClientError, PutOptions, ScanOptions, ValueSource};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    Content, Entry, Source, folder, lines,
    report::{Moved, Progress, Report},
    retry::{put, with_retries},
    unpack,
};
use crate::cli::{
    failure::{Failure, describe},
    output::{Output, cell},
};

/// Most keys of the collection that are held in memory to recognise existing records. With more keys, a
/// record that is not among them is looked up in the collection.
const EXISTING_KEYS_MAX: usize = 1_000_000;
/// Entries that were read and wait to be stored.
const ENTRIES_AHEAD: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// File of JSON lines {"key","value","encoding"?}; `-` for stdin
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    file: Option<PathBuf>,
    /// Folder; each file below it is a record with its relative path as the key
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
    /// Number of records stored concurrently
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    #[command(flatten)]
    unpack: unpack::UnpackArguments,
}

pub(crate) async fn import(arguments: ImportArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let entries = entries(&arguments)?;
    let existing = ExistingRecords::load(client, &arguments.collection).await?;
    let target = Target { client, collection: &arguments.collection, existing };
    let entries = read_ahead(entries, arguments.unpack.unpack);
    let report = target.store_all(entries, usize::from(arguments.jobs)).await;
    report.finish("stored", false, output)
}

/// Reads entries in a thread of its own. It ends with them, or when nobody takes them any more.
fn read_ahead(entries: Box<dyn Iterator<Item = Entry> + Send>, unpack: bool) -> mpsc::Receiver<Entry> {
    let (sender, receiver) = mpsc::channel(ENTRIES_AHEAD);
    thread::spawn(move || {
        let mut send = |entry| sender.blocking_send(entry).is_ok();
        for entry in entries {
            let wanted = match entry {
                Entry::Record(source) if unpack => unpack::take_apart(source, &mut send),
                entry => send(entry),
            };
            if !wanted {
                break;
            }
        }
    });
    receiver
}

fn entries(arguments: &ImportArguments) -> Result<Box<dyn Iterator<Item = Entry> + Send>, Failure> {
    match (&arguments.dir, &arguments.file) {
        (Some(dir), _) => {
            let metadata = dir.metadata().map_err(|error| Failure::io(dir.display(), &error))?;
            if !metadata.is_dir() {
                return Err(Failure::usage(format!("{} is not a folder", dir.display())));
            }
            Ok(Box::new(folder::entries(dir.clone())))
        }
        (None, Some(file)) if file.as_os_str() == "-" => Ok(Box::new(lines::entries(BufReader::new(stdin())))),
        (None, Some(file)) => {
            let source = File::open(file).map_err(|error| Failure::io(file.display(), &error))?;
            Ok(Box::new(lines::entries(BufReader::new(source))))
        }
        (None, None) => Err(Failure::usage("give a file or --dir")),
    }
}

/// The keys and value lengths in the collection when the import began.
#[derive(Debug, Default)]
struct ExistingRecords {
    bytes: HashMap<Vec<u8>, u64>,
    /// Whether `bytes` contains every key.
    complete: bool,
}

impl ExistingRecords {
    async fn load(client: &Client, collection: &str) -> Result<Self, ClientError> {
        let mut existing = Self::default();
        let mut options = ScanOptions { limit: SCAN_ITEMS_MAX, values: false, ..ScanOptions::default() };
        while existing.bytes.len() < EXISTING_KEYS_MAX {
            let page = with_retries(async || client.scan(collection, &options).await).await?;
            existing.bytes.extend(page.records.into_iter().map(|record| (record.key.to_vec(), record.value_bytes)));
            options.cursor = page.cursor;
            if options.cursor.is_none() {
                existing.complete = true;
                break;
            }
        }
        Ok(existing)
    }

    /// Whether the collection may already hold a value of this length under the key.
    fn may_have(&self, key: &[u8], bytes: u64) -> bool {
        self.bytes.get(key).map_or(!self.complete, |existing| *existing == bytes)
    }
}

/// The outcome of one record.
enum Outcome {
    Stored(Moved, u64),
    Unchanged,
    Expired,
    Refused(String),
    /// The cluster stayed unavailable longer than a call is retried.
    GaveUp(String),
}

struct Target<'a> {
    client: &'a Client,
    collection: &'a str,
    existing: ExistingRecords,
}

impl Target<'_> {
    async fn store_all(&self, mut entries: mpsc::Receiver<Entry>, jobs: usize) -> Report {
        let progress = Progress::new();
        let mut report = Report::default();
        let mut running = FuturesUnordered::new();
        // At most one write per key is in flight, so that the last entry with a key wins.
        let mut busy: HashSet<Vec<u8>> = HashSet::new();
        let mut next: Option<Source> = None;
        let mut ended = false;
        loop {
            if let Some(source) = next.take_if(|source| running.len() < jobs && !busy.contains(&source.key)) {
                busy.insert(source.key.clone());
                running.push(self.store(source));
            }
            tokio::select! {
                Some((key, done)) = running.next() => {
                    busy.remove(&key);
                    count_outcome(&mut report, &key, done);
                    progress.count(&report);
                    if report.gave_up {
                        next = None;
                        ended = true;
                    }
                }
                entry = entries.recv(), if next.is_none() && !ended => match entry {
                    Some(Entry::Record(source)) => next = Some(source),
                    Some(entry) => count_entry(&mut report, entry, &progress),
                    None => ended = true,
                },
                else => break,
            }
        }
        progress.finish();
        report
    }

    async fn store(&self, source: Source) -> (Vec<u8>, Outcome) {
        let Source { key, value, expires_at_ms } = source;
        let done = match load(value).await {
            Err(reason) => Outcome::Refused(reason),
            Ok(value) => match self.store_value(&key, value, expires_at_ms).await {
                Ok(done) => done,
                Err(error) if error.is_retryable() || error.is_outcome_unknown() => Outcome::GaveUp(describe(&error)),
                Err(error) => Outcome::Refused(describe(&error)),
            },
        };
        (key, done)
    }

    async fn store_value(
        &self,
        key: &[u8],
        source: ValueSource,
        expires_at_ms: Option<u64>,
    ) -> Result<Outcome, ClientError> {
        let Self { client, collection, existing } = self;
        let mut options = PutOptions::default();
        if let Some(at) = expires_at_ms {
            match (SystemTime::UNIX_EPOCH + Duration::from_millis(at)).duration_since(SystemTime::now()) {
                Ok(ttl) if ttl >= Duration::from_millis(1) => options.ttl = Some(ttl),
                Ok(_) | Err(_) => return Ok(Outcome::Expired),
            }
        }
        let value = with_retries(async || client.prepare(collection, source.clone()).await).await?;
        if expires_at_ms.is_none()
            && existing.may_have(key, value.bytes())
            && with_retries(async || client.has_value(collection, key, &value).await).await?
        {
            return Ok(Outcome::Unchanged);
        }
        let transfer = put(client, collection, key, &value, &options).await?;
        Ok(Outcome::Stored(transfer.into(), value.bytes()))
    }
}

async fn load(content: Content) -> Result<ValueSource, String> {
    match content {
        Content::Read(value) => Ok(value),
        Content::File(path) => ValueSource::open(path).await.map_err(|error| format!("cannot be read: {error}")),
    }
}

/// Counts an entry that is no record.
fn count_entry(report: &mut Report, entry: Entry, progress: &Progress) {
    match entry {
        Entry::Record(_) => {}
        Entry::Link => report.links += 1,
        Entry::Unpacked => report.unpacked += 1,
        Entry::KeptWhole { name, reason } => {
            report.kept_whole += 1;
            progress.note(&format!("stored as it is: {name}: {reason}"));
        }
        Entry::Refused { name, reason } => report.refuse(name, reason),
    }
}

fn count_outcome(report: &mut Report, key: &[u8], done: Outcome) {
    match done {
        Outcome::Stored(moved, bytes) => {
            report.done += 1;
            report.bytes += bytes;
            report.transfer += moved;
        }
        Outcome::Unchanged => report.unchanged += 1,
        Outcome::Expired => report.expired += 1,
        Outcome::Refused(reason) => report.refuse(cell(key), reason),
        Outcome::GaveUp(reason) => {
            report.gave_up = true;
            report.refuse(cell(key), reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_compared_only_if_it_may_exist() {
        let mut existing = ExistingRecords { bytes: [(b"k".to_vec(), 3)].into(), complete: true };
        assert!(existing.may_have(b"k", 3));
        assert!(!existing.may_have(b"k", 4), "another length is another value");
        assert!(!existing.may_have(b"x", 3));
        existing.complete = false;
        assert!(existing.may_have(b"x", 3), "not every key was listed");
        assert!(!existing.may_have(b"k", 4));
    }
}
