//! Verification of a workload: compares the outcomes its clients saw with what the cluster stores.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use flotilla_client::{Client, ScanOptions};

use super::workload::{Record, WriteOutcome};

/// Puts that are also read individually, at least.
const READ_ONE_BY_ONE: usize = 200;
/// Records per page of a scan.
const PAGE: usize = 500;
/// Problems listed at most.
const SHOWN: usize = 5;

/// The outcomes of a finished workload.
pub struct History {
    record: Arc<Record>,
}

impl History {
    pub(super) fn new(record: Arc<Record>) -> Self {
        Self { record }
    }

    /// Descriptions of writes of unknown outcome.
    pub fn unknown(&self) -> Vec<String> {
        self.record.unknown.lock().expect("no panic").clone()
    }

    /// Panics unless every acknowledged write was applied exactly once, no refused one was, and no read was
    /// wrong. Reads through `client`.
    pub async fn verify(&self, client: &Client) {
        let wrong = self.wrong(client).await;
        let shown: Vec<_> = wrong.iter().take(SHOWN).collect();
        assert!(wrong.is_empty(), "{} problems: {shown:#?}", wrong.len());
    }

    /// Descriptions of everything that contradicts the outcomes.
    pub async fn wrong(&self, client: &Client) -> Vec<String> {
        let mut wrong = self.record.violations.lock().expect("no panic").clone();
        let increments = self.check_counters(client, &mut wrong).await;
        let puts = self.check_puts(client, &mut wrong).await;
        let unknown = self.unknown();
        eprintln!("checked {increments} increments and {puts} puts; {} of unknown outcome", unknown.len());
        if let Some(error) = unknown.first() {
            eprintln!("  for example {error}");
        }
        wrong
    }

    async fn check_counters(&self, client: &Client, wrong: &mut Vec<String>) -> i64 {
        let mut sum = 0;
        for counter in &self.record.counters {
            let [started, acknowledged, refused] =
                [&counter.started, &counter.acknowledged, &counter.refused].map(|count| count.load(Relaxed));
            let found = client.get("default", counter.key.as_bytes()).await.expect("a strong read");
            let text = found.map_or_else(|| Bytes::from_static(b"0"), |found| found.value);
            let value = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<i64>().ok());
            if !value.is_some_and(|value| (acknowledged..=started - refused).contains(&value)) {
                let most = started - refused;
                wrong.push(format!("{} is {text:?}, expected {acknowledged} to {most}", counter.key));
            }
            sum += acknowledged;
        }
        sum
    }

    async fn check_puts(&self, client: &Client, wrong: &mut Vec<String>) -> usize {
        let stored = scan_all(client, "put/").await;
        let acknowledged = self.compare_puts(stored, wrong);
        let every = acknowledged.len().div_ceil(READ_ONE_BY_ONE).max(1);
        for (key, value) in acknowledged.iter().step_by(every) {
            let found = client.get("default", key.as_bytes()).await.expect("a strong read");
            if found.is_none_or(|found| found.value != *value) {
                wrong.push(format!("a read of {key} does not return its value"));
            }
        }
        acknowledged.len()
    }

    /// Compares puts with a scan; returns the acknowledged ones.
    fn compare_puts(&self, mut stored: HashMap<Bytes, Bytes>, wrong: &mut Vec<String>) -> Vec<(String, Bytes)> {
        let mut acknowledged = Vec::new();
        for put in self.record.puts.lock().expect("no panic").iter() {
            let found = stored.remove(put.key.as_bytes());
            let is_expected = match put.outcome {
                WriteOutcome::Acknowledged => {
                    acknowledged.push((put.key.clone(), put.value.clone()));
                    found.as_ref() == Some(&put.value)
                }
                WriteOutcome::Refused => found.is_none(),
                WriteOutcome::Unknown => found.is_none() || found.as_ref() == Some(&put.value),
            };
            if !is_expected {
                let found = found.map(|value| value.len());
                wrong.push(format!(
                    "{} ({:?}) has {found:?} bytes instead of {}",
                    put.key,
                    put.outcome,
                    put.value.len()
                ));
            }
        }
        wrong.extend(stored.keys().map(|key| format!("{key:?} was never put")));
        acknowledged
    }
}

/// All records whose key starts with `prefix`.
pub(super) async fn scan_all(client: &Client, prefix: &'static str) -> HashMap<Bytes, Bytes> {
    let mut stored = HashMap::new();
    let mut options = ScanOptions { prefix: Bytes::from(prefix), limit: PAGE, ..ScanOptions::default() };
    loop {
        let page = client.scan("default", &options).await.expect("a page of a scan");
        stored.extend(page.records.into_iter().map(|record| (record.key, record.value)));
        options.cursor = page.cursor;
        if options.cursor.is_none() {
            return stored;
        }
    }
}
