//! Load whose every outcome is remembered: increments of counters, puts of keys of their own, and strong reads that are
//! checked while it runs.
//!
//! Writers ask one node each and never repeat a write. A refusal says that nothing was written, and that is checked, too.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_client::{Client, ClientError, PutOptions};
use tokio::{task::JoinSet, time::sleep};

use super::{History, client_at, eventually};

/// Enough counters for every shard to hold some.
const COUNTERS: usize = 48;
/// Writers for each node that is given.
const WRITERS: usize = 3;
/// Writes a second that make a history worth checking.
const RATE_MIN: f64 = 50.0;
/// Acknowledged writes before a fault.
const ACKED_MIN: u64 = 300;
/// Pause of a writer after a refusal.
const PAUSE: Duration = Duration::from_millis(20);

/// What a writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is written.
    Acknowledged,
    /// Nothing was written.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What an answer says about its write.
pub fn fate<T>(answer: &Result<T, ClientError>) -> Fate {
    match answer {
        Ok(_) => Fate::Acknowledged,
        // The write took place, but what the answer says of it is lost.
        Err(ClientError::Protocol { .. }) => Fate::Unknown,
        Err(error) if error.is_outcome_unknown() => Fate::Unknown,
        Err(_) => Fate::Refused,
    }
}

/// Tallies of one counter.
pub(super) struct Counter {
    pub key: String,
    pub begun: AtomicI64,
    pub acknowledged: AtomicI64,
    pub refused: AtomicI64,
    /// Of the last increment that was acknowledged: when it began and when it ended, from the beginning of the load.
    last: Mutex<(Duration, Duration)>,
}

/// One put of a key that is put once.
pub(super) struct Put {
    pub key: String,
    pub value: Bytes,
    pub fate: Fate,
}

/// What the tasks share.
pub(super) struct Record {
    begun: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    pub counters: Vec<Counter>,
    pub puts: Mutex<Vec<Put>>,
    /// What must never happen, in words.
    pub violations: Mutex<Vec<String>>,
    /// Errors with an unknown outcome, in words.
    pub unknown: Mutex<Vec<String>>,
}

/// Running load.
pub struct Workload {
    record: Arc<Record>,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Writes through each of these nodes, and reads through each.
    pub fn start(urls: &[String]) -> Self {
        let counter = |i| Counter {
            key: format!("counter/{i}"),
            begun: AtomicI64::new(0),
            acknowledged: AtomicI64::new(0),
            refused: AtomicI64::new(0),
            last: Mutex::default(),
        };
        let record = Arc::new(Record {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            counters: (0..COUNTERS).map(counter).collect(),
            puts: Mutex::default(),
            violations: Mutex::default(),
            unknown: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for (node, url) in urls.iter().enumerate() {
            for writer in 0..WRITERS {
                tasks.spawn(write(record.clone(), client_at(url), node * WRITERS + writer));
            }
            tasks.spawn(read(record.clone(), client_at(url)));
        }
        Self { record, tasks }
    }

    /// Starts load and waits until enough of it is acknowledged for what follows to mean something.
    pub async fn warm(urls: &[String]) -> Self {
        let load = Self::start(urls);
        load.more(ACKED_MIN).await;
        let rate = ACKED_MIN as f64 / load.record.begun.elapsed().as_secs_f64();
        assert!(rate >= RATE_MIN, "void: {rate:.0} writes/s before the fault are too few");
        eprintln!("{rate:.0} writes/s before the fault");
        load
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn more(&self, writes: u64) {
        let target = self.record.acknowledged.load(Relaxed) + writes;
        eventually("more acknowledged writes", async || {
            let now = self.record.acknowledged.load(Relaxed);
            if now >= target { Ok(()) } else { Err(format!("{now} of {target}")) }
        })
        .await;
    }

    /// The counters whose strong reads `node` serves, asked through `client`.
    pub async fn counters_led_by(&self, client: &Client, node: flotilla_types::NodeId) -> Vec<usize> {
        let mut led = Vec::new();
        for (i, counter) in self.record.counters.iter().enumerate() {
            let found = client.get("default", counter.key.as_bytes()).await.expect("a strong read");
            if found.is_some_and(|found| found.served_by == Some(node)) {
                led.push(i);
            }
        }
        led
    }

    /// Waits until each of these counters was incremented by a call that began after `moment`; returns how long that took
    /// from then, for the first and for the last of them.
    pub async fn served_after(&self, moment: Instant, counters: &[usize]) -> (Duration, Duration) {
        let moment = moment - self.record.begun;
        let mut served = vec![None; counters.len()];
        eventually("the counters are served again", async || {
            for (served, i) in served.iter_mut().zip(counters) {
                let (begun, ended) = *self.record.counters[*i].last.lock().expect("no panic");
                if served.is_none() && begun > moment {
                    *served = Some(ended - moment);
                }
            }
            let missing = served.iter().filter(|served| served.is_none()).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are not", counters.len())) }
        })
        .await;
        let times: Vec<_> = served.into_iter().flatten().collect();
        (times.iter().min().copied().unwrap_or_default(), times.iter().max().copied().unwrap_or_default())
    }

    /// Ends the load, and returns what it was told.
    pub async fn finish(mut self) -> History {
        self.record.stop.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a task of the load panicked");
        }
        History::new(self.record)
    }
}

impl Record {
    fn note(&self, answer: Fate, error: Option<&ClientError>) {
        match (answer, error) {
            (Fate::Acknowledged, _) => {
                self.acknowledged.fetch_add(1, Relaxed);
            }
            (Fate::Unknown, Some(error)) => self.unknown.lock().expect("no panic").push(describe(error)),
            (Fate::Refused, Some(error)) if !error.is_retryable() => {
                self.violate(format!("a plain write was refused for good: {}", describe(error)));
            }
            _ => {}
        }
    }

    fn violate(&self, what: String) {
        self.violations.lock().expect("no panic").push(what);
    }
}

/// An error with its cause.
fn describe(error: &ClientError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source:?}")).unwrap_or_default();
    format!("{error}{source}")
}

async fn write(record: Arc<Record>, client: Client, writer: usize) {
    let mut step = 0;
    while !record.stop.load(Relaxed) {
        let written = if step % 2 == 0 {
            // Each writer begins at another counter, and all come to all.
            increment(&record, &client, (writer * 11 + step / 2) % COUNTERS).await
        } else {
            put(&record, &client, writer, step).await
        };
        if written != Fate::Acknowledged {
            sleep(PAUSE).await;
        }
        step += 1;
    }
}

async fn increment(record: &Record, client: &Client, i: usize) -> Fate {
    let counter = &record.counters[i];
    counter.begun.fetch_add(1, Relaxed);
    let begun = record.begun.elapsed();
    let answer = client.add("default", counter.key.as_bytes(), 1).await;
    let fate = fate(&answer);
    match fate {
        Fate::Acknowledged => {
            counter.acknowledged.fetch_add(1, Relaxed);
            *counter.last.lock().expect("no panic") = (begun, record.begun.elapsed());
        }
        Fate::Refused => {
            counter.refused.fetch_add(1, Relaxed);
        }
        Fate::Unknown => {}
    }
    record.note(fate, answer.as_ref().err());
    fate
}

async fn put(record: &Record, client: &Client, writer: usize, step: usize) -> Fate {
    let key = format!("put/{writer}/{step}");
    let value = value_of(writer, step);
    let answer = client.put("default", key.as_bytes(), value.clone(), &PutOptions::default()).await;
    let fate = fate(&answer);
    record.puts.lock().expect("no panic").push(Put { key, value, fate });
    record.note(fate, answer.as_ref().err());
    fate
}

/// A strong read sees every increment that was acknowledged before it began, and none that was not begun when it ended.
async fn read(record: Arc<Record>, client: Client) {
    for counter in record.counters.iter().cycle() {
        if record.stop.load(Relaxed) {
            return;
        }
        let (least, refused) = (counter.acknowledged.load(Relaxed), counter.refused.load(Relaxed));
        let Ok(found) = client.get("default", counter.key.as_bytes()).await else {
            sleep(PAUSE).await;
            continue;
        };
        let most = counter.begun.load(Relaxed) - refused;
        match found.as_ref().map_or(Some(0), |found| std::str::from_utf8(&found.value).ok()?.parse().ok()) {
            Some(value) if (least..=most).contains(&value) => {}
            value => record.violate(format!(
                "a strong read of {} saw {value:?}, not {least} to {most} (served by {:?})",
                counter.key,
                found.and_then(|found| found.served_by),
            )),
        }
        // Reads are for checking; the load is writes.
        sleep(PAUSE / 4).await;
    }
}

/// Bytes of every kind and up to 2 KiB, the same for the same put.
fn value_of(writer: usize, step: usize) -> Bytes {
    let mut state = (writer as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ step as u64;
    let length = (step * 37) % 2_048;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}
