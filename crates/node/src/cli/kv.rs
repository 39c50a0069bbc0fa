//! `kv put|get|del|scan`. Import and export are in [`super::transfer`].

use std::{ffi::OsString, io, os::unix::ffi::OsStringExt as _, path::PathBuf, pin::pin, time::Duration};

use bytes::Bytes;
use clap::{Args, Subcommand};
use flotilla_api::{Encoding, PutReply, SCAN_ITEMS_DEFAULT};
use flotilla_client::{
    Client, ClientError, LocalValue, PutOptions, ScanOptions, ScannedRecord, StoredValue, ValueSource,
};
use flotilla_types::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    output::{Output, cell, table},
    transfer::{self, Bar, CacheArguments, Moved},
    values,
};

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Store a value, of which only those parts are sent that the cluster lacks
    Put(PutArguments),
    /// Print a value unchanged, or write it to a file
    Get(GetArguments),
    /// Remove a record
    Del {
        #[command(flatten)]
        key: KeyArguments,
        /// Only if the record has this version
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// List records in key order
    Scan(ScanArguments),
    /// Store the files of a folder or a file of JSON lines; records that exist already are skipped
    Import(transfer::ImportArguments),
    /// Write all records to a folder or as JSON lines
    Export(transfer::ExportArguments),
}

#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    /// The key
    key: OsString,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
}

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    #[command(flatten)]
    key: KeyArguments,
    /// Write the value to this file [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArguments,
}

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    #[command(flatten)]
    key: KeyArguments,
    /// The value; read from stdin if absent
    #[arg(conflicts_with = "file")]
    value: Option<OsString>,
    /// Read the value from this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// Only if the record has this version
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Only if the record does not exist
    #[arg(long)]
    if_absent: bool,
    /// Time until the record expires
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Media type, which a GET over HTTP answers as Content-Type
    #[arg(long, value_name = "TYPE")]
    media_type: Option<String>,
}

/// Answer to a put, and what it took.
#[derive(Serialize)]
struct Stored<'a> {
    #[serde(flatten)]
    reply: &'a PutReply,
    transfer: Moved,
}

#[derive(Debug, Args)]
pub(crate) struct ScanArguments {
    /// Only keys with this prefix
    #[arg(default_value = "")]
    prefix: OsString,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
    /// First key (inclusive)
    #[arg(long, default_value = "")]
    start: OsString,
    /// End of the keys (exclusive)
    #[arg(long, default_value = "")]
    end: OsString,
    /// Maximum number of records [default: all]
    #[arg(long)]
    limit: Option<usize>,
    /// Print keys without values
    #[arg(long)]
    keys_only: bool,
    /// Show each page as the records are when it is read, instead of each shard at one moment
    #[arg(long)]
    live: bool,
}

pub(super) async fn run(command: KvCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        KvCommand::Put(arguments) => put(arguments, client, output).await,
        KvCommand::Get(arguments) => get(arguments, client, output).await,
        KvCommand::Del { key, if_version } => delete(key, if_version.map(Timestamp), client, output).await,
        KvCommand::Scan(arguments) => scan(arguments, client, output).await,
        KvCommand::Import(arguments) => transfer::import(arguments, client, output).await,
        KvCommand::Export(arguments) => transfer::export(arguments, client, output).await,
    }
}

async fn put(arguments: PutArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let PutArguments { key, value, file, if_version, if_absent, ttl, media_type } = arguments;
    let KeyArguments { key, collection } = key;
    let source = match (value, file) {
        (Some(value), _) => value.into_vec().into(),
        (None, Some(path)) => ValueSource::open(&path).await.map_err(|error| Failure::io(path.display(), &error))?,
        (None, None) => ValueSource::read_sync(io::stdin().lock()).map_err(|error| Failure::io("stdin", &error))?,
    };
    let options = PutOptions { if_version: if_version.map(Timestamp), if_absent, ttl, media_type };
    let value = client.prepare(&collection, source).await?;
    let stored = put_with_bar(client, &collection, &key.into_vec(), &value, &options).await;
    let StoredValue { reply, transfer } = stored?;
    output.show(&Stored { reply: &reply, transfer: transfer.into() }, |stored| stored.reply.version.to_string())
}

/// Stores a value, and shows on a terminal how far it has come.
async fn put_with_bar(
    client: &Client,
    collection: &str,
    key: &[u8],
    value: &LocalValue,
    options: &PutOptions,
) -> Result<StoredValue, ClientError> {
    const SHOWN_EVERY: Duration = Duration::from_millis(100);
    let bar = Bar::new(Some(value.bytes()));
    let mut put = pin!(client.put_value(collection, key, value, options));
    loop {
        match tokio::time::timeout(SHOWN_EVERY, &mut put).await {
            Ok(stored) => {
                bar.finish();
                return stored;
            }
            Err(_) => bar.set(value.bytes_there()),
        }
    }
}

async fn get(arguments: GetArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let GetArguments { key: KeyArguments { key, collection }, out, cache } = arguments;
    let key = key.into_vec();
    let cache = cache.open()?;
    let found = match &out {
        Some(path) => values::to_file(client, &collection, &key, cache.as_ref(), path, output).await?,
        None if output.is_json() => {
            let mut reader = client.get_value(&collection, &key, cache.as_ref()).await?;
            let mut value = Vec::new();
            if let Some(reader) = &mut reader {
                reader.copy_to(&mut value).await?;
                let mut shown = record_json(&key, Some(&value.into()), reader.version, reader.expires_at_ms)?;
                shown["served_by"] = json!(reader.served_by);
                output.json(&shown)?;
            }
            reader.is_some()
        }
        None => values::to_stdout(client, &collection, &key, cache.as_ref(), output).await?,
    };
    if found { Ok(()) } else { Err(no_key(&key, &collection)) }
}

async fn delete(
    key: KeyArguments,
    if_version: Option<Timestamp>,
    client: &Client,
    output: Output,
) -> Result<(), Failure> {
    let KeyArguments { key, collection } = key;
    let key = key.into_vec();
    let reply = client.delete(&collection, &key, if_version).await?.ok_or_else(|| no_key(&key, &collection))?;
    output.show(&reply, |reply| reply.version.to_string())
}

async fn scan(arguments: ScanArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let ScanArguments { prefix, collection, start, end, limit, keys_only, live } = arguments;
    let mut remaining = limit.unwrap_or(usize::MAX);
    let [prefix, start, end] = [prefix, start, end].map(|bound| Bytes::from(bound.into_vec()));
    // One page is of one moment anyway.
    let snapshot = !live && remaining > SCAN_ITEMS_DEFAULT;
    let mut options = ScanOptions { prefix, start, end, limit: 0, cursor: None, snapshot, values: !keys_only };
    while remaining > 0 {
        options.limit = remaining.min(SCAN_ITEMS_DEFAULT);
        let page = client.scan(&collection, &options).await?;
        remaining = remaining.saturating_sub(page.records.len());
        print_page(&page.records, !keys_only, output)?;
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
    }
    Ok(())
}

/// Prints one JSON object per line, or one table per page, because a single table would need the whole scan
/// in memory.
fn print_page(records: &[ScannedRecord], values: bool, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return records.iter().try_for_each(|record| {
            // Long values are not in a scan.
            let value = Some(&record.value).filter(|value| values && value.len() as u64 == record.value_bytes);
            output.json_line(&record_json(&record.key, value, record.version, record.expires_at_ms)?)
        });
    }
    if records.is_empty() {
        return Ok(());
    }
    let rows = records.iter().map(|record| {
        let is_left_out = values && record.value.len() as u64 != record.value_bytes;
        let value = if is_left_out { "…".to_owned() } else { cell(&record.value) };
        [cell(&record.key), record.version.to_string(), record.value_bytes.to_string(), value]
    });
    output.line(&table(["KEY", "VERSION", "BYTES", "VALUE"], rows))
}

/// A record as JSON. If key or value is not UTF-8, both are base64 and the field `encoding` says so.
fn record_json(key: &[u8], value: Option<&Bytes>, version: Timestamp, expires: Option<u64>) -> Result<Value, Failure> {
    let encoding = Encoding::for_all(&[key, value.map_or(&[][..], |value| &value[..])]);
    let text = |bytes: &[u8]| encoding.encode(bytes).map_err(|error| Failure::failed(error.to_string()));
    let mut shown = json!({ "key": text(key)?, "version": version });
    if let Some(value) = value {
        shown["value"] = json!(text(value)?);
    }
    if let Some(expires) = expires {
        shown["expires_at_ms"] = json!(expires);
    }
    if encoding == Encoding::Base64 {
        shown["encoding"] = json!(encoding);
    }
    Ok(shown)
}

fn no_key(key: &[u8], collection: &str) -> Failure {
    Failure::not_found(format!("there is no key `{}` in the collection `{collection}`", cell(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_records_state_their_encoding() {
        let plain = record_json(b"k", Some(&Bytes::from_static(b"v")), Timestamp(1), None).expect("JSON");
        assert_eq!(plain, json!({ "key": "k", "value": "v", "version": 1 }));
        let binary = record_json(b"k", Some(&Bytes::from_static(b"\xff")), Timestamp(1), Some(5)).expect("JSON");
        assert_eq!(binary["encoding"], "base64");
        assert_eq!((&binary["key"], &binary["value"]), (&json!("aw=="), &json!("/w==")));
    }
}
