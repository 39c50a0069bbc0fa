//! Load whose complete history is recorded: reads, puts, conditional writes, increments, deletions and
//! batches over HTTP, increments and reads over the Redis protocol.
//!
//! Each client sends to one node, one operation at a time, and never repeats a write. Every value is written
//! only once, so that a version identifies a value. Besides the shared keys, each client puts write-once keys
//! of its own: they must all exist in the end.

mod filling;
mod history;
mod redis;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use flotilla_api::{BatchOperation, BatchRequest, BatchVerb, ProblemType};
use flotilla_client::{Client, ClientError, ClientOptions, PutOptions};
use flotilla_types::Timestamp;
use tokio::{task::JoinSet, time::sleep};

pub use filling::{fill, truncate_logs_of_others};
pub use history::{RecordedOperation, Recorder, Request, Response};

use crate::support::{WriteOutcome, write_outcome};
use redis::{Redis, Reply};

/// Operations per second before the fault; a run with fewer is void.
pub const RATE_MIN: f64 = 100.0;
/// Completed operations before the fault.
const WARM_UP_OPERATIONS: u64 = 400;
/// HTTP clients per node, besides one that speaks the Redis protocol.
const CLIENTS: u64 = 4;
/// The keys that clients share: enough for every shard to hold some, few enough for contention.
const REGISTERS: u64 = 64;
const COUNTERS: u64 = 32;
const PAIRS: u64 = 24;
/// Pause between two operations of a client, so that histories have tens of thousands of operations and are
/// checked in seconds.
const PACE: Duration = Duration::from_millis(16);
/// Pause after an operation that did not complete. Unknown outcomes make histories hard to check.
const PAUSE: Duration = Duration::from_millis(250);
/// Timeout of one operation: short, so that clients of a partitioned node do not stall.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of anything that must happen.
const WITHIN: Duration = Duration::from_secs(90);

/// Client addresses of a node.
#[derive(Debug, Clone)]
pub struct Target {
    /// HTTP base URL: `http://…`.
    pub http: String,
    /// Address of the Redis protocol.
    pub redis: SocketAddr,
}

/// Running load.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    /// Prefix of all keys.
    prefix: String,
    recorder: Arc<Recorder>,
    stop: AtomicBool,
    completed: AtomicU64,
    /// The last value of each register that a client saw, with its version.
    seen: Mutex<BTreeMap<String, (String, Timestamp)>>,
    /// Write-once keys with their values and outcomes.
    write_once: Mutex<Vec<(String, String, WriteOutcome)>>,
}

impl Load {
    /// Starts clients of these nodes, all of whose keys start with `prefix`, and waits until the history is
    /// long enough for a fault to be meaningful.
    ///
    /// # Errors
    /// The run is void: fewer than [`RATE_MIN`] operations per second.
    pub async fn start(targets: &[Target], prefix: &str, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            prefix: prefix.to_owned(),
            recorder: Arc::default(),
            stop: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            seen: Mutex::default(),
            write_once: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for (node, target) in targets.iter().enumerate() {
            for number in 0..CLIENTS {
                let id = node as u64 * (CLIENTS + 1) + number;
                let mut options = ClientOptions::new([target.http.as_str()]);
                options.timeout = TIMEOUT;
                let rng = Rng::new(seed ^ (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let writer = Writer { shared: shared.clone(), client: Client::new(options)?, id, rng, step: 0 };
                tasks.spawn(writer.run());
            }
            let id = node as u64 * (CLIENTS + 1) + CLIENTS;
            tasks.spawn(count_over_redis(shared.clone(), target.redis, id, Rng::new(seed ^ id)));
        }
        let load = Self { shared, tasks };
        let start = Instant::now();
        load.wait_completed(WARM_UP_OPERATIONS).await?;
        let rate = WARM_UP_OPERATIONS as f64 / start.elapsed().as_secs_f64();
        ensure!(rate >= RATE_MIN, "void: {rate:.0} operations per second before the fault are too few");
        Ok(load)
    }

    /// The recorder of the history.
    #[must_use]
    pub fn recorder(&self) -> Arc<Recorder> {
        self.shared.recorder.clone()
    }

    /// Number of completed operations: neither refused nor of unknown outcome.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Relaxed)
    }

    /// Waits until `operations` more operations have completed.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn wait_completed(&self, operations: u64) -> anyhow::Result<()> {
        let target = self.completed() + operations;
        let start = Instant::now();
        while self.completed() < target {
            let missing = target - self.completed();
            ensure!(start.elapsed() < WITHIN, "{missing} of {operations} more operations did not complete");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops the clients, and returns what is needed to check the outcome.
    ///
    /// # Errors
    /// A client panicked.
    pub async fn finish(mut self) -> anyhow::Result<FinishedLoad> {
        self.shared.stop.store(true, Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.context("a client panicked")?;
        }
        let write_once = std::mem::take(&mut *self.shared.write_once.lock().expect("no panic"));
        Ok(FinishedLoad { prefix: self.shared.prefix.clone(), recorder: self.shared.recorder.clone(), write_once })
    }
}

/// A load whose clients have stopped.
pub struct FinishedLoad {
    /// Prefix of all keys.
    pub prefix: String,
    /// The history.
    pub recorder: Arc<Recorder>,
    /// Write-once keys: key, value, and the outcome that the client saw.
    pub write_once: Vec<(String, String, WriteOutcome)>,
}

impl FinishedLoad {
    /// Reads every shared key through this node, as part of the history.
    ///
    /// # Errors
    /// A read fails.
    pub async fn read_all(&self, http: &str, client: u64) -> anyhow::Result<()> {
        let node = Client::new(ClientOptions::new([http]))?;
        let prefix = &self.prefix;
        let registers = (0..REGISTERS).map(|i| register(prefix, i));
        let counters = (0..COUNTERS).map(|i| counter(prefix, i));
        let pairs = (0..PAIRS).flat_map(|pair| [pair_key(prefix, pair, 'a'), pair_key(prefix, pair, 'b')]);
        for key in registers.chain(counters).chain(pairs) {
            let at = self.recorder.invoke(client, Request::Get { key: key.clone() });
            let found = node.get("default", key.as_bytes()).await.context("a strong read after healing")?;
            self.recorder.complete(at, Response::Value(found.map(|found| text(&found.value))));
        }
        Ok(())
    }
}

/// A pseudo-random number generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

fn register(prefix: &str, i: u64) -> String {
    format!("{prefix}register/{i}")
}

fn counter(prefix: &str, i: u64) -> String {
    format!("{prefix}counter/{i}")
}

/// The `{tag}` keeps both keys of a pair in one shard.
fn pair_key(prefix: &str, i: u64, half: char) -> String {
    format!("{prefix}{{pair{i}}}/{half}")
}

/// Prefix of all write-once keys.
#[must_use]
pub fn write_once_prefix(prefix: &str) -> String {
    format!("{prefix}own/")
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Writer {
    shared: Arc<Shared>,
    client: Client,
    id: u64,
    rng: Rng,
    step: u64,
}

impl Writer {
    async fn run(mut self) {
        while !self.shared.stop.load(Relaxed) {
            self.step += 1;
            let completed = match self.rng.below(100) {
                0..35 => self.get().await,
                35..50 => self.put().await,
                50..60 => self.put_if().await,
                60..68 => self.delete().await,
                68..80 => self.add().await,
                80..88 => self.batch().await,
                _ => self.put_write_once().await,
            };
            self.shared.completed.fetch_add(u64::from(completed), Relaxed);
            sleep(if completed { PACE } else { PAUSE }).await;
        }
    }

    /// A value that is never written again.
    fn value(&self) -> String {
        format!("{}-{}", self.id, self.step)
    }

    fn any_key(&mut self) -> String {
        let prefix = &self.shared.prefix;
        match self.rng.below(3) {
            0 => counter(prefix, self.rng.below(COUNTERS)),
            1 => pair_key(prefix, self.rng.below(PAIRS), if self.rng.below(2) == 0 { 'a' } else { 'b' }),
            _ => register(prefix, self.rng.below(REGISTERS)),
        }
    }

    /// Executes an operation and records it. Returns whether it completed.
    async fn record<T>(
        &self,
        request: Request,
        result: impl Future<Output = Result<T, ClientError>>,
        response: impl FnOnce(T) -> Response,
    ) -> bool {
        let at = self.shared.recorder.invoke(self.id, request);
        let result = result.await;
        let response = match (&write_outcome(&result), result) {
            (_, Ok(reply)) => response(reply),
            (WriteOutcome::Unknown, Err(_)) => Response::Unknown,
            (_, Err(error)) if error.problem().is_some_and(|it| it.kind == ProblemType::ConditionFailed) => {
                Response::ConditionFailed
            }
            (_, Err(_)) => Response::Refused,
        };
        let completed = response.is_completed();
        self.shared.recorder.complete(at, response);
        completed
    }

    fn saw(&self, key: &str, value: String, version: Timestamp) {
        self.shared.seen.lock().expect("no panic").insert(key.to_owned(), (value, version));
    }

    async fn get(&mut self) -> bool {
        let key = self.any_key();
        let read = self.client.get("default", key.as_bytes());
        let response = |found: Option<flotilla_client::Record>| {
            if let Some(found) = &found {
                self.saw(&key, text(&found.value), found.version);
            }
            Response::Value(found.map(|found| text(&found.value)))
        };
        self.record(Request::Get { key: key.clone() }, read, response).await
    }

    async fn put(&mut self) -> bool {
        let (key, value) = (register(&self.shared.prefix, self.rng.below(REGISTERS)), self.value());
        self.put_with(Request::Put { key: key.clone(), value: value.clone() }, key, value, PutOptions::default()).await
    }

    async fn put_if(&mut self) -> bool {
        let (key, value) = (register(&self.shared.prefix, self.rng.below(REGISTERS)), self.value());
        let seen = self.shared.seen.lock().expect("no panic").get(&key).cloned();
        let (request, options) = match seen {
            Some((expected, version)) if self.rng.below(4) > 0 => (
                Request::PutIfEqual { key: key.clone(), expected, value: value.clone() },
                PutOptions { if_version: Some(version), ..PutOptions::default() },
            ),
            _ => (
                Request::PutIfAbsent { key: key.clone(), value: value.clone() },
                PutOptions { if_absent: true, ..PutOptions::default() },
            ),
        };
        self.put_with(request, key, value, options).await
    }

    async fn put_with(&self, request: Request, key: String, value: String, options: PutOptions) -> bool {
        let put = self.client.put("default", key.as_bytes(), value.clone().into(), &options);
        let response = |reply: flotilla_api::PutReply| {
            self.saw(&key, value.clone(), reply.version);
            Response::Done
        };
        self.record(request, put, response).await
    }

    async fn delete(&mut self) -> bool {
        let key = register(&self.shared.prefix, self.rng.below(REGISTERS));
        let delete = self.client.delete("default", key.as_bytes(), None);
        self.record(Request::Delete { key: key.clone() }, delete, |old| Response::Existed(old.is_some())).await
    }

    async fn add(&mut self) -> bool {
        let key = counter(&self.shared.prefix, self.rng.below(COUNTERS));
        let add = self.client.add("default", key.as_bytes(), 1);
        self.record(Request::Add { key: key.clone(), delta: 1 }, add, Response::Number).await
    }

    async fn batch(&mut self) -> bool {
        let pair = self.rng.below(PAIRS);
        let (keys, value) =
            (vec![pair_key(&self.shared.prefix, pair, 'a'), pair_key(&self.shared.prefix, pair, 'b')], self.value());
        let put = |key: &String| BatchOperation {
            op: BatchVerb::Put,
            key: key.clone(),
            value: Some(value.clone()),
            ..BatchOperation::default()
        };
        let operations = keys.iter().map(put).collect();
        let request = BatchRequest { collection: "default".to_owned(), conditions: Vec::new(), operations };
        self.record(Request::Batch { keys, value: value.clone() }, self.client.batch(&request), |_| Response::Done)
            .await
    }

    /// Puts up to 2 KiB under a write-once key. Not part of the history, because the outcome is checked by a
    /// scan.
    async fn put_write_once(&mut self) -> bool {
        let key = format!("{}{}/{}", write_once_prefix(&self.shared.prefix), self.id, self.step);
        let length = usize::try_from(self.rng.below(2_048)).unwrap_or(0);
        let value: String = key.chars().cycle().take(length.max(1)).collect();
        let answer = self.client.put("default", key.as_bytes(), value.clone().into(), &PutOptions::default()).await;
        let outcome = write_outcome(&answer);
        self.shared.write_once.lock().expect("no panic").push((key, value, outcome));
        outcome == WriteOutcome::Acknowledged
    }
}

/// Increments and reads the same counters as the HTTP clients, over the Redis protocol.
async fn count_over_redis(shared: Arc<Shared>, at: SocketAddr, id: u64, mut rng: Rng) {
    let mut redis = Redis::new(at);
    while !shared.stop.load(Relaxed) {
        let key = counter(&shared.prefix, rng.below(COUNTERS));
        let (request, words) = if rng.below(2) == 0 {
            (Request::Get { key: key.clone() }, ["GET", &key])
        } else {
            (Request::Add { key: key.clone(), delta: 1 }, ["INCR", &key])
        };
        let index = shared.recorder.invoke(id, request);
        let response = match redis.call(&words).await {
            Ok(Some(Reply::Number(sum))) => Response::Number(sum),
            Ok(Some(Reply::Value(value))) => Response::Value(value),
            Ok(Some(Reply::Error(error))) if error.starts_with("UNKNOWN") => Response::Unknown,
            Ok(Some(Reply::Error(_)) | None) => Response::Refused,
            Err(_) => Response::Unknown,
        };
        let completed = response.is_completed();
        shared.recorder.complete(index, response);
        shared.completed.fetch_add(u64::from(completed), Relaxed);
        sleep(if completed { PACE } else { PAUSE }).await;
    }
}
