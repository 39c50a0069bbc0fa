//! `kv export`: from a collection to a folder or to JSON lines.
//!
//! Each shard is exported as it was at one moment. The nodes keep that moment for a while; if it ends before the
//! export does, as when a shard's leader changes, the export begins again: a file is written anew, and files of a
//! folder are overwritten, where that of a record which was deleted in between remains. What was written to stdout
//! cannot be taken back, so there the export fails, and says so.
//!
//! Values that a scan leaves out, as large ones, and with a cache all of them, are read by their keys. One that was
//! overwritten after that moment is exported as it is then, and counted; one that was removed is refused.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write, stdout},
    path::PathBuf,
};

use bytes::Bytes;
use clap::Args;
use flotilla_api::ProblemType;
use flotilla_client::{Client, ClientError, ScanOptions, ScannedRecord, Transfer, ValueCache, ValueSource};
use flotilla_types::Timestamp;
use futures_util::{StreamExt as _, stream};

use super::{
    CacheArguments, folder, lines,
    report::{Progress, Report},
    retry::with_retries,
};
use crate::cli::{
    failure::Failure,
    output::{Output, cell},
};

/// Records per page: at most 256 MiB of values.
const PAGE_RECORDS: usize = 64;
/// Records whose values are read by their keys at the same time.
const READS: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Write JSON lines to this file [default: stdout]
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "dir")]
    out: Option<PathBuf>,
    /// Write each value to a file below this folder, with the key as its path
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
    /// Only keys with this prefix
    #[arg(long, default_value = "")]
    prefix: String,
    /// Export each page as the records are when it is read, instead of each shard at one moment: for collections
    /// that take longer to export than the nodes keep a moment
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    cache: CacheArguments,
}

/// Times that an export begins again after its snapshot has expired.
const RESTARTS_MAX: usize = 5;

impl ExportArguments {
    fn to_stdout(&self) -> bool {
        self.out.is_none() && self.dir.is_none()
    }
}

pub(crate) async fn export(arguments: ExportArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let cache = arguments.cache.open()?;
    let mut restarts = 0;
    loop {
        match export_once(&arguments, cache.as_ref(), client, output).await {
            Err(Export::Expired) if !arguments.to_stdout() && restarts < RESTARTS_MAX => {
                restarts += 1;
                eprintln!("the nodes kept the snapshot no longer; the export begins again");
            }
            Err(Export::Expired) => return Err(Failure::failed(EXPIRED.to_owned())),
            Err(Export::Failed(failure)) => return Err(failure),
            Ok(()) => return Ok(()),
        }
    }
}

const EXPIRED: &str = "the nodes kept the snapshot no longer, so what was exported is not complete: \
    export again, by smaller prefixes, or with --live";

/// Why an export ended.
enum Export {
    Expired,
    Failed(Failure),
}

impl From<Failure> for Export {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ClientError> for Export {
    fn from(error: ClientError) -> Self {
        let has_expired = error.problem().is_some_and(|problem| problem.kind == ProblemType::SnapshotExpired);
        if has_expired { Self::Expired } else { Self::Failed(error.into()) }
    }
}

async fn export_once(
    arguments: &ExportArguments,
    cache: Option<&ValueCache>,
    client: &Client,
    output: Output,
) -> Result<(), Export> {
    let ExportArguments { out, dir, collection, prefix, live, .. } = arguments;
    let to_stdout = arguments.to_stdout();
    let prefix = Bytes::from(prefix.clone());
    // From the cache, values are read one by one.
    let (snapshot, values) = (!live, cache.is_none());
    let mut options = ScanOptions { prefix, limit: PAGE_RECORDS, snapshot, values, ..ScanOptions::default() };
    // The first page is fetched before a file is created, so that an unknown collection leaves no empty file.
    let mut page = with_retries(async || client.scan(collection, &options).await).await?;
    let mut sink = Sink::open(out.clone(), dir.clone())?;
    let mut report = Report::default();
    let progress = Progress::new();
    let value_of = ValueOf { client, collection, cache };
    loop {
        // In the order of the keys.
        let mut records = stream::iter(page.records).map(|record| value_of.read(record)).buffered(READS);
        while let Some((record, found)) = records.next().await {
            match found? {
                Some(found) => sink.put(&record, &found, &mut report)?,
                None if *live => {}
                None => report.refuse(cell(&record.key), "it was removed while it was exported".to_owned()),
            }
            progress.count(&report);
        }
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
        page = with_retries(async || client.scan(collection, &options).await).await?;
    }
    sink.close()?;
    progress.finish();
    Ok(report.finish("exported", to_stdout, output)?)
}

/// A value that is exported.
struct Found {
    value: ValueSource,
    version: Timestamp,
    expires_at_ms: Option<u64>,
    transfer: Transfer,
}

/// Where values are that a scan left out.
struct ValueOf<'a> {
    client: &'a Client,
    collection: &'a str,
    cache: Option<&'a ValueCache>,
}

impl ValueOf<'_> {
    /// The value of a record; `None` if it was removed.
    async fn read(&self, record: ScannedRecord) -> (ScannedRecord, Result<Option<Found>, ClientError>) {
        let ScannedRecord { ref value, version, value_bytes, expires_at_ms, .. } = record;
        if value.len() as u64 == value_bytes {
            let found = Found { value: value.clone().into(), version, expires_at_ms, transfer: Transfer::default() };
            return (record, Ok(Some(found)));
        }
        let read = async || {
            let Some(mut reader) = self.client.get_value(self.collection, &record.key, self.cache).await? else {
                return Ok(None);
            };
            let value = reader.read().await?;
            let (version, expires_at_ms, transfer) = (reader.version, reader.expires_at_ms, reader.transfer());
            Ok(Some(Found { value, version, expires_at_ms, transfer }))
        };
        let found = with_retries(read).await;
        (record, found)
    }
}

/// The destination of exported records.
enum Sink {
    Lines(BufWriter<Box<dyn Write>>),
    Folder(PathBuf),
}

impl Sink {
    fn open(out: Option<PathBuf>, dir: Option<PathBuf>) -> Result<Self, Failure> {
        match (out, dir) {
            (_, Some(dir)) => {
                fs::create_dir_all(&dir).map_err(|error| Failure::io(dir.display(), &error))?;
                Ok(Self::Folder(dir))
            }
            (Some(out), None) => {
                let file = File::create(&out).map_err(|error| Failure::io(out.display(), &error))?;
                Ok(Self::Lines(BufWriter::new(Box::new(file))))
            }
            (None, None) => Ok(Self::Lines(BufWriter::new(Box::new(stdout())))),
        }
    }

    /// Writes a record and counts it.
    fn put(&mut self, record: &ScannedRecord, found: &Found, report: &mut Report) -> Result<(), Failure> {
        match self.write(&record.key, found)? {
            Ok(()) => {
                report.done += 1;
                report.bytes += found.value.len();
                report.transfer += found.transfer.into();
                report.newer += u64::from(found.version != record.version);
            }
            Err(reason) => report.refuse(cell(&record.key), reason),
        }
        Ok(())
    }

    /// Writes a record. The inner error concerns only this record.
    fn write(&mut self, key: &[u8], found: &Found) -> Result<Result<(), String>, Failure> {
        let Found { value, expires_at_ms, .. } = found;
        match self {
            Self::Folder(root) => Ok(folder::write(root, key, value)),
            Self::Lines(lines) => {
                let mut whole = Vec::new();
                let read = value.reader().read_to_end(&mut whole);
                let read = read.map_err(|error| format!("cannot be read from a temporary file: {error}"));
                match read.and_then(|_| lines::write(key, &whole, *expires_at_ms)) {
                    Ok(line) => writeln!(lines, "{line}").map(Ok).map_err(|error| Failure::stdout(&error)),
                    Err(reason) => Ok(Err(reason)),
                }
            }
        }
    }

    fn close(self) -> Result<(), Failure> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Lines(mut lines) => lines.flush().map_err(|error| Failure::stdout(&error)),
        }
    }
}
