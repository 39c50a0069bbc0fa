//! `kv export`: from a collection to a folder or to JSON lines.
//!
//! Each shard is exported as it was at one moment. The nodes keep that moment for a while; if it ends before the
//! export does, as when a shard's leader changes, the export begins again: a file is written anew, and files of a
//! folder are overwritten, where that of a record which was deleted in between remains. What was written to stdout
//! cannot be taken back, so there the export fails, and says so.

use std::{
    fs::{self, File},
    io::{BufWriter, Write, stdout},
    path::PathBuf,
};

use bytes::Bytes;
use clap::Args;
use flotilla_api::ProblemType;
use flotilla_client::{Client, ClientError, ScanOptions, ScannedRecord};

use super::{
    folder, lines,
    report::{Report, progress},
    retry::with_retries,
};
use crate::cli::{
    failure::Failure,
    output::{Output, cell},
};

/// Records per page: at most 256 MiB of values.
const PAGE_RECORDS: usize = 64;

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
}

/// Times that an export begins again after its snapshot has expired.
const RESTARTS_MAX: usize = 5;

impl ExportArguments {
    fn to_stdout(&self) -> bool {
        self.out.is_none() && self.dir.is_none()
    }
}

pub(crate) async fn export(arguments: ExportArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let mut restarts = 0;
    loop {
        match export_once(&arguments, client, output).await {
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

async fn export_once(arguments: &ExportArguments, client: &Client, output: Output) -> Result<(), Export> {
    let ExportArguments { out, dir, collection, prefix, live } = arguments;
    let to_stdout = arguments.to_stdout();
    let prefix = Bytes::from(prefix.clone());
    let mut options = ScanOptions { prefix, limit: PAGE_RECORDS, snapshot: !live, ..ScanOptions::default() };
    // The first page is fetched before a file is created, so that an unknown collection leaves no empty file.
    let mut page = with_retries(async || client.scan(collection, &options).await).await?;
    let mut sink = Sink::open(out.clone(), dir.clone())?;
    let mut report = Report::default();
    let bar = progress();
    loop {
        for record in &page.records {
            match sink.write(record)? {
                Ok(()) => {
                    report.done += 1;
                    report.bytes += record.value_bytes;
                }
                Err(reason) => report.refuse(cell(&record.key), reason),
            }
            bar.inc(1);
        }
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
        page = with_retries(async || client.scan(collection, &options).await).await?;
    }
    sink.close()?;
    bar.finish_and_clear();
    Ok(report.finish("exported", to_stdout, output)?)
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

    /// Writes a record. The inner error concerns only this record.
    fn write(&mut self, record: &ScannedRecord) -> Result<Result<(), String>, Failure> {
        match self {
            Self::Folder(root) => Ok(folder::write(root, &record.key, &record.value)),
            Self::Lines(lines) => match lines::write(&record.key, &record.value, record.expires_at_ms) {
                Ok(line) => writeln!(lines, "{line}").map(Ok).map_err(|error| Failure::stdout(&error)),
                Err(reason) => Ok(Err(reason)),
            },
        }
    }

    fn close(self) -> Result<(), Failure> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Lines(mut lines) => lines.flush().map_err(|error| Failure::stdout(&error)),
        }
    }
}
