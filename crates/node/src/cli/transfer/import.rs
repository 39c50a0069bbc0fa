//! `kv import`: from a folder or from JSON lines into a collection.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufReader, stdin},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use clap::Args;
use flotilla_api::SCAN_ITEMS_MAX;
use flotilla_client::{Client, ClientError, PutOptions, ScanOptions};
use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::{
    Content, Source, Step, folder, lines,
    patience::{has, patiently, put},
    report::{Report, progress},
};
use crate::cli::{
    failure::{Failure, describe},
    output::{Output, cell},
};

/// Keys of the collection that are held in memory to see what is there already. Beyond it, each record is asked for.
const KNOWN_KEYS_MAX: usize = 1_000_000;

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// A file of JSON lines {"key","value","encoding"?}; `-` for stdin
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    file: Option<PathBuf>,
    /// A folder: each file below it is a record, its relative path the key
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
    /// How many records are on their way at the same time
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

pub(crate) async fn import(arguments: ImportArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let steps = steps(&arguments)?;
    let known = Known::load(client, &arguments.collection).await?;
    let target = Target { client, collection: &arguments.collection, known };
    let report = target.store_all(steps, usize::from(arguments.jobs)).await;
    report.finish("stored", false, output)
}

fn steps(arguments: &ImportArguments) -> Result<Box<dyn Iterator<Item = Step>>, Failure> {
    match (&arguments.dir, &arguments.file) {
        (Some(dir), _) => {
            let metadata = dir.metadata().map_err(|error| Failure::io(dir.display(), &error))?;
            if !metadata.is_dir() {
                return Err(Failure::usage(format!("{} is not a folder", dir.display())));
            }
            Ok(Box::new(folder::steps(dir.clone())))
        }
        (None, Some(file)) if file.as_os_str() == "-" => Ok(Box::new(lines::steps(BufReader::new(stdin())))),
        (None, Some(file)) => {
            let source = File::open(file).map_err(|error| Failure::io(file.display(), &error))?;
            Ok(Box::new(lines::steps(BufReader::new(source))))
        }
        (None, None) => Err(Failure::usage("name a file or --dir")),
    }
}

/// What the collection held when the import began: keys and lengths of values.
#[derive(Debug, Default)]
struct Known {
    bytes: HashMap<Vec<u8>, u64>,
    /// Whether every key is in there.
    complete: bool,
}

impl Known {
    async fn load(client: &Client, collection: &str) -> Result<Self, ClientError> {
        let mut known = Self::default();
        let mut options = ScanOptions { limit: SCAN_ITEMS_MAX, values: false, ..ScanOptions::default() };
        while known.bytes.len() < KNOWN_KEYS_MAX {
            let page = patiently(async || client.scan(collection, &options).await).await?;
            known.bytes.extend(page.records.into_iter().map(|record| (record.key.to_vec(), record.value_bytes)));
            options.cursor = page.cursor;
            if options.cursor.is_none() {
                known.complete = true;
                break;
            }
        }
        Ok(known)
    }

    /// Whether a value of this length may be stored already.
    fn may_have(&self, key: &[u8], bytes: u64) -> bool {
        self.bytes.get(key).map_or(!self.complete, |known| *known == bytes)
    }
}

/// What became of one record.
enum Done {
    Stored(u64),
    Unchanged,
    Expired,
    Refused(String),
    /// The cluster stayed away for longer than a record is tried.
    GaveUp(String),
}

struct Target<'a> {
    client: &'a Client,
    collection: &'a str,
    known: Known,
}

impl Target<'_> {
    async fn store_all(&self, steps: impl Iterator<Item = Step>, jobs: usize) -> Report {
        let bar = progress();
        let mut report = Report::default();
        let mut running = FuturesUnordered::new();
        // A key is on its way once at a time: the last line with a key wins.
        let mut busy: HashSet<Vec<u8>> = HashSet::new();
        for step in steps {
            let source = match step {
                Step::Record(source) => source,
                Step::Link => {
                    report.links += 1;
                    continue;
                }
                Step::Refused { name, reason } => {
                    report.refuse(name, reason);
                    continue;
                }
            };
            while running.len() >= jobs || busy.contains(&source.key) {
                let next: Option<(Vec<u8>, Done)> = running.next().await;
                let Some((key, done)) = next else { break };
                busy.remove(&key);
                account(&mut report, &key, done);
                bar.inc(1);
            }
            if report.gave_up {
                break;
            }
            busy.insert(source.key.clone());
            running.push(self.store(source));
        }
        while let Some((key, done)) = running.next().await {
            account(&mut report, &key, done);
            bar.inc(1);
        }
        bar.finish_and_clear();
        report
    }

    async fn store(&self, source: Source) -> (Vec<u8>, Done) {
        let Source { key, value, expires_at_ms } = source;
        let done = match load(value).await {
            Err(reason) => Done::Refused(reason),
            Ok(value) => match self.store_value(&key, &value, expires_at_ms).await {
                Ok(done) => done,
                Err(error) if error.is_retryable() || error.is_outcome_unknown() => Done::GaveUp(describe(&error)),
                Err(error) => Done::Refused(describe(&error)),
            },
        };
        (key, done)
    }

    async fn store_value(&self, key: &[u8], value: &Bytes, expires_at_ms: Option<u64>) -> Result<Done, ClientError> {
        let Self { client, collection, known } = self;
        let mut options = PutOptions::default();
        if let Some(at) = expires_at_ms {
            match (SystemTime::UNIX_EPOCH + Duration::from_millis(at)).duration_since(SystemTime::now()) {
                Ok(ttl) if ttl >= Duration::from_millis(1) => options.ttl = Some(ttl),
                Ok(_) | Err(_) => return Ok(Done::Expired),
            }
        } else if known.may_have(key, value.len() as u64)
            && patiently(async || has(client, collection, key, value).await).await?
        {
            return Ok(Done::Unchanged);
        }
        put(client, collection, key, value, &options).await?;
        Ok(Done::Stored(value.len() as u64))
    }
}

async fn load(content: Content) -> Result<Bytes, String> {
    match content {
        Content::Here(value) => Ok(value),
        Content::File(path) => match tokio::task::spawn_blocking(move || folder::read(&path)).await {
            Ok(Ok(value)) => Ok(Bytes::from(value)),
            Ok(Err(error)) => Err(format!("cannot be read: {error}")),
            Err(error) => Err(format!("cannot be read: {error}")),
        },
    }
}

fn account(report: &mut Report, key: &[u8], done: Done) {
    match done {
        Done::Stored(bytes) => {
            report.done += 1;
            report.bytes += bytes;
        }
        Done::Unchanged => report.unchanged += 1,
        Done::Expired => report.expired += 1,
        Done::Refused(reason) => report.refuse(cell(key), reason),
        Done::GaveUp(reason) => {
            report.gave_up = true;
            report.refuse(cell(key), reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_compared_only_when_it_may_be_there() {
        let mut known = Known { bytes: [(b"k".to_vec(), 3)].into(), complete: true };
        assert!(known.may_have(b"k", 3));
        assert!(!known.may_have(b"k", 4), "another length is another value");
        assert!(!known.may_have(b"x", 3));
        known.complete = false;
        assert!(known.may_have(b"x", 3), "not every key was listed");
        assert!(!known.may_have(b"k", 4));
    }
}
