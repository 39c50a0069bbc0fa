//! Load that records the outcome of every write: increments of counters, puts of write-once keys, and strong
//! reads that are checked while it runs.
//!
//! Each writer sends to one node and never repeats a write. A refusal means that nothing was written, which
//! is checked as well.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_client::{Client, ClientError, PutOptions};
use flotilla_local_cluster::Cluster;
use tokio::{task::JoinSet, time::sleep};

use super::{History, client, eventually};

/// Enough counters for every shard to hold some.
const COUNTERS: usize = 48;
/// Writers per node.
const WRITERS: usize = 3;
/// Writes per second before the fault; a history with fewer is void.
const RATE_MIN: f64 = 50.0;
/// Acknowledged writes before the fault.
const WARM_UP_WRITES: u64 = 300;
/// Pause after a write that was not acknowledged.
const PAUSE: Duration = Duration::from_millis(20);

/// The outcome of a write as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is written.
    Acknowledged,
    /// Nothing was written.
    Refused,
    /// It may or may not be written.
    Unknown,
}

/// The outcome of a write, from its result.
pub fn write_outcome<T>(answer: &Result<T, ClientError>) -> WriteOutcome {
    match answer {
        Ok(_) => WriteOutcome::Acknowledged,
        // The node responded, but the response could not be decoded.
        Err(ClientError::Protocol { .. }) => WriteOutcome::Unknown,
        Err(error) if error.is_outcome_unknown() => WriteOutcome::Unknown,
        Err(_) => WriteOutcome::Refused,
    }
}

/// A counter with the number of its increments by outcome.
pub(super) struct Counter {
    pub key: String,
    pub started: AtomicI64,
    pub acknowledged: AtomicI64,
    pub refused: AtomicI64,
    /// Start and end of the last acknowledged increment, since the start of the load.
    last_acknowledged: Mutex<(Duration, Duration)>,
}

/// A put of a write-once key.
pub(super) struct Put {
    pub key: String,
    pub value: Bytes,
    pub outcome: WriteOutcome,
}

/// State shared by the tasks of a workload.
pub(super) struct Record {
    start: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    pub counters: Vec<Counter>,
    pub puts: Mutex<Vec<Put>>,
    /// Descriptions of violations found while running.
    pub violations: Mutex<Vec<String>>,
    /// Descriptions of errors with an unknown outcome.
    pub unknown: Mutex<Vec<String>>,
}

/// Running load.
pub struct Workload {
    record: Arc<Record>,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Starts writers and a reader for each node.
    pub fn start(cluster: &Cluster) -> Self {
        let counter = |i| Counter {
            key: format!("counter/{i}"),
            started: AtomicI64::new(0),
            acknowledged: AtomicI64::new(0),
            refused: AtomicI64::new(0),
            last_acknowledged: Mutex::default(),
        };
        let record = Arc::new(Record {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            counters: (0..COUNTERS).map(counter).collect(),
            puts: Mutex::default(),
            violations: Mutex::default(),
            unknown: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for node in 0..cluster.len() {
            for writer in 0..WRITERS {
                tasks.spawn(write(record.clone(), client(cluster, node + 1), node * WRITERS + writer));
            }
            tasks.spawn(read(record.clone(), client(cluster, node + 1)));
        }
        Self { record, tasks }
    }

    /// Starts load and waits until enough writes are acknowledged for a fault to be meaningful.
    pub async fn start_warm(cluster: &Cluster) -> Self {
        let load = Self::start(cluster);
        load.wait_acknowledged(WARM_UP_WRITES).await;
        let rate = WARM_UP_WRITES as f64 / load.record.start.elapsed().as_secs_f64();
        assert!(rate >= RATE_MIN, "void: {rate:.0} writes/s before the fault is too few");
        eprintln!("{rate:.0} writes/s before the fault");
        load
    }

    /// Waits until `writes` more writes are acknowledged.
    pub async fn wait_acknowledged(&self, writes: u64) {
        let target = self.record.acknowledged.load(Relaxed) + writes;
        eventually("more acknowledged writes", async || {
            let now = self.record.acknowledged.load(Relaxed);
            if now >= target { Ok(()) } else { Err(format!("{now} of {target}")) }
        })
        .await;
    }

    /// The counters whose strong reads through `client` are served by `node`.
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

    /// Waits until each of these counters was incremented by a call that started after `moment`. Returns the
    /// time from `moment` until the first and until the last of them.
    pub async fn served_after(&self, moment: Instant, counters: &[usize]) -> (Duration, Duration) {
        let moment = moment - self.record.start;
        let mut served = vec![None; counters.len()];
        eventually("the counters are served again", async || {
            for (served, i) in served.iter_mut().zip(counters) {
                let (started, ended) = *self.record.counters[*i].last_acknowledged.lock().expect("no panic");
                if served.is_none() && started > moment {
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

    /// Stops the load, and returns its outcomes.
    pub async fn finish(mut self) -> History {
        self.record.stop.store(true, Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.expect("a task of the load panicked");
        }
        History::new(self.record)
    }
}

impl Record {
    fn note(&self, answer: WriteOutcome, error: Option<&ClientError>) {
        match (answer, error) {
            (WriteOutcome::Acknowledged, _) => {
                self.acknowledged.fetch_add(1, Relaxed);
            }
            (WriteOutcome::Unknown, Some(error)) => self.unknown.lock().expect("no panic").push(describe(error)),
            (WriteOutcome::Refused, Some(error)) if !error.is_retryable() => {
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
            // Each writer starts at a different counter and visits all of them.
            increment(&record, &client, (writer * 11 + step / 2) % COUNTERS).await
        } else {
            put(&record, &client, writer, step).await
        };
        if written != WriteOutcome::Acknowledged {
            sleep(PAUSE).await;
        }
        step += 1;
    }
}

async fn increment(record: &Record, client: &Client, i: usize) -> WriteOutcome {
    let counter = &record.counters[i];
    counter.started.fetch_add(1, Relaxed);
    let started = record.start.elapsed();
    let answer = client.add("default", counter.key.as_bytes(), 1).await;
    let outcome = write_outcome(&answer);
    match outcome {
        WriteOutcome::Acknowledged => {
            counter.acknowledged.fetch_add(1, Relaxed);
            *counter.last_acknowledged.lock().expect("no panic") = (started, record.start.elapsed());
        }
        WriteOutcome::Refused => {
            counter.refused.fetch_add(1, Relaxed);
        }
        WriteOutcome::Unknown => {}
    }
    record.note(outcome, answer.as_ref().err());
    outcome
}

async fn put(record: &Record, client: &Client, writer: usize, step: usize) -> WriteOutcome {
    let key = format!("put/{writer}/{step}");
    let value = value_of(writer, step);
    let answer = client.put("default", key.as_bytes(), value.clone(), &PutOptions::default()).await;
    let outcome = write_outcome(&answer);
    record.puts.lock().expect("no panic").push(Put { key, value, outcome });
    record.note(outcome, answer.as_ref().err());
    outcome
}

/// Reads counters and checks them: a strong read sees every increment that was acknowledged before the read
/// started, and none that started after it ended.
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
        let most = counter.started.load(Relaxed) - refused;
        match found.as_ref().map_or(Some(0), |found| std::str::from_utf8(&found.value).ok()?.parse().ok()) {
            Some(value) if (least..=most).contains(&value) => {}
            value => record.violate(format!(
                "a strong read of {} returned {value:?}, expected {least} to {most} (served by {:?})",
                counter.key,
                found.and_then(|found| found.served_by),
            )),
        }
        // Reads only check; the load consists of writes.
        sleep(PAUSE / 4).await;
    }
}

/// Up to 2 KiB of pseudo-random bytes, a function of the put.
fn value_of(writer: usize, step: usize) -> Bytes {
    let mut state = (writer as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ step as u64;
    let length = (step * 37) % 2_048;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}
