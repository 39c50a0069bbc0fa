//! What a workload was told, against what the cluster holds.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use flotilla_client::{Client, ScanOptions};

use super::workload::{Fate, Record};

/// Puts that are also read one by one.
const READ_ONE_BY_ONE: usize = 200;
/// Records of one page.
const PAGE: usize = 500;
/// What is listed of a long list.
const SHOWN: usize = 5;

/// A workload that has ended.
pub struct History {
    record: Arc<Record>,
}

impl History {
    pub(super) fn new(record: Arc<Record>) -> Self {
        Self { record }
    }

    /// Writes whose outcome nobody knows, in words.
    pub fn unknown(&self) -> Vec<String> {
        self.record.unknown.lock().expect("no panic").clone()
    }

    /// Fails unless everything acknowledged is there once, nothing refused is, and no read was wrong. Asks through
    /// `client`.
    pub async fn verify(&self, client: &Client) {
        let wrong = self.wrong(client).await;
        let shown: Vec<_> = wrong.iter().take(SHOWN).collect();
        assert!(wrong.is_empty(), "{} things are wrong: {shown:#?}", wrong.len());
    }

    /// Everything that is not as it was acknowledged, in words.
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
            let [begun, acknowledged, refused] =
                [&counter.begun, &counter.acknowledged, &counter.refused].map(|tally| tally.load(Relaxed));
            let found = client.get("default", counter.key.as_bytes()).await.expect("a strong read");
            let text = found.map_or_else(|| Bytes::from_static(b"0"), |found| found.value);
            let value = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<i64>().ok());
            if !value.is_some_and(|value| (acknowledged..=begun - refused).contains(&value)) {
                let most = begun - refused;
                wrong.push(format!("{} is {text:?}, not {acknowledged} to {most}", counter.key));
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
                wrong.push(format!("{key} is not read back"));
            }
        }
        acknowledged.len()
    }

    /// Compares with a scan; returns what was acknowledged.
    fn compare_puts(&self, mut stored: HashMap<Bytes, Bytes>, wrong: &mut Vec<String>) -> Vec<(String, Bytes)> {
        let mut acknowledged = Vec::new();
        for put in self.record.puts.lock().expect("no panic").iter() {
            let found = stored.remove(put.key.as_bytes());
            let fits = match put.fate {
                Fate::Acknowledged => {
                    acknowledged.push((put.key.clone(), put.value.clone()));
                    found.as_ref() == Some(&put.value)
                }
                Fate::Refused => found.is_none(),
                Fate::Unknown => found.is_none() || found.as_ref() == Some(&put.value),
            };
            if !fits {
                let found = found.map(|value| value.len());
                wrong.push(format!(
                    "{} ({:?}) is there with {found:?} bytes of {}",
                    put.key,
                    put.fate,
                    put.value.len()
                ));
            }
        }
        wrong.extend(stored.keys().map(|key| format!("nobody put {key:?}")));
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
