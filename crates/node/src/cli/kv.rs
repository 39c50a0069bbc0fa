//! `kv put|get|del|scan`; import and export are in [`super::transfer`].

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use flotilla_api::{Encoding, SCAN_ITEMS_DEFAULT, VALUE_BYTES_MAX};
use flotilla_client::{Client, PutOptions, ScanOptions, ScannedRecord};
use flotilla_types::Timestamp;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    output::{Output, cell, table},
    transfer,
};

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Store a value
    Put(PutArguments),
    /// Print a value as it is
    Get(KeyArguments),
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
    /// Store a folder or a file of JSON lines; what is there already is skipped
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
pub(crate) struct PutArguments {
    #[command(flatten)]
    key: KeyArguments,
    /// The value; without it, stdin
    #[arg(conflicts_with = "file")]
    value: Option<OsString>,
    /// Take the value from this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// Only if the record has this version
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Only if there is no such record
    #[arg(long)]
    if_absent: bool,
    /// When the record expires, from now
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct ScanArguments {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: OsString,
    /// The collection
    #[arg(short, long, default_value = "default")]
    collection: String,
    /// First key
    #[arg(long, default_value = "")]
    start: OsString,
    /// First key behind
    #[arg(long, default_value = "")]
    end: OsString,
    /// Most records; all when absent
    #[arg(long)]
    limit: Option<usize>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
}

pub(super) async fn run(command: KvCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        KvCommand::Put(arguments) => put(arguments, client, output).await,
        KvCommand::Get(key) => get(key, client, output).await,
        KvCommand::Del { key, if_version } => delete(key, if_version.map(Timestamp), client, output).await,
        KvCommand::Scan(arguments) => scan(arguments, client, output).await,
        KvCommand::Import(arguments) => transfer::import(arguments, client, output).await,
        KvCommand::Export(arguments) => transfer::export(arguments, client, output).await,
    }
}

async fn put(arguments: PutArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let PutArguments { key: KeyArguments { key, collection }, value, file, if_version, if_absent, ttl } = arguments;
    let value = match (value, file) {
        (Some(value), _) => value.into_vec(),
        (None, Some(path)) => {
            let file = File::open(&path).map_err(|error| Failure::io(path.display(), &error))?;
            bounded(file).map_err(|error| Failure::io(path.display(), &error))?
        }
        (None, None) => bounded(io::stdin().lock()).map_err(|error| Failure::io("stdin", &error))?,
    };
    let options = PutOptions { if_version: if_version.map(Timestamp), if_absent, ttl };
    let reply = client.put(&collection, &key.into_vec(), Bytes::from(value), &options).await?;
    output.show(&reply, |reply| reply.version.to_string())
}

/// Reads a value, and one byte more when it is too long, so that the node refuses it by its own words.
fn bounded(source: impl Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    source.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
    Ok(value)
}

async fn get(key: KeyArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let KeyArguments { key, collection } = key;
    let key = key.into_vec();
    let record = client.get(&collection, &key).await?.ok_or_else(|| no_key(&key, &collection))?;
    if output.is_json() {
        let mut shown = shape(&key, Some(&record.value), record.version, record.expires_at_ms)?;
        shown["served_by"] = json!(record.served_by);
        return output.json(&shown);
    }
    output.bytes(&record.value)?;
    // A prompt right behind the value is hard to read; a program wants the value and nothing else.
    if output.is_terminal() && !record.value.ends_with(b"\n") { output.line("") } else { Ok(()) }
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
    let ScanArguments { prefix, collection, start, end, limit, keys_only } = arguments;
    let mut left = limit.unwrap_or(usize::MAX);
    let [prefix, start, end] = [prefix, start, end].map(|bound| Bytes::from(bound.into_vec()));
    let mut options = ScanOptions { prefix, start, end, limit: 0, cursor: None, values: !keys_only };
    while left > 0 {
        options.limit = left.min(SCAN_ITEMS_DEFAULT);
        let page = client.scan(&collection, &options).await?;
        left = left.saturating_sub(page.records.len());
        print_page(&page.records, !keys_only, output)?;
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            break;
        }
    }
    Ok(())
}

/// One JSON object a line, or a table for each page: a scan has no end that a single table could wait for.
fn print_page(records: &[ScannedRecord], values: bool, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return records.iter().try_for_each(|record| {
            let value = values.then_some(&record.value);
            output.json_line(&shape(&record.key, value, record.version, record.expires_at_ms)?)
        });
    }
    if records.is_empty() {
        return Ok(());
    }
    let rows = records.iter().map(|record| {
        [cell(&record.key), record.version.to_string(), record.value_bytes.to_string(), cell(&record.value)]
    });
    output.line(&table(["KEY", "VERSION", "BYTES", "VALUE"], rows))
}

/// A record as JSON; base64 when key or value is not text, and then it says so.
fn shape(key: &[u8], value: Option<&Bytes>, version: Timestamp, expires: Option<u64>) -> Result<Value, Failure> {
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
    fn records_that_are_no_text_say_their_encoding() {
        let plain = shape(b"k", Some(&Bytes::from_static(b"v")), Timestamp(1), None).expect("JSON");
        assert_eq!(plain, json!({ "key": "k", "value": "v", "version": 1 }));
        let binary = shape(b"k", Some(&Bytes::from_static(b"\xff")), Timestamp(1), Some(5)).expect("JSON");
        assert_eq!(binary["encoding"], "base64");
        assert_eq!((&binary["key"], &binary["value"]), (&json!("aw=="), &json!("/w==")));
    }

    #[test]
    fn a_value_is_never_read_beyond_its_limit() {
        assert_eq!(bounded(io::repeat(0)).expect("bytes").len(), VALUE_BYTES_MAX + 1);
    }
}
