//! Load whose whole history is recorded: reads, puts, conditional writes, increments, deletions and batches over HTTP, increments and reads
//! over the Redis protocol.
//!
//! Each client asks one node, one thing at a time, and never repeats a write. Values are written once, so that a version stands for a
//! value. Besides the shared keys each client puts keys of its own, which nobody changes: they must all be there in the end.

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

pub use filling::fill;
pub use history::{Ask, Recorded, Recorder, Told};

use crate::support::{Fate, fate};
use redis::{Redis, Reply};

/// Operations a second before the fault, or the run is void.
pub const RATE_MIN: f64 = 100.0;
/// Certain answers before the fault.
const WARM: u64 = 400;
/// Clients over HTTP for each node, besides one over the Redis protocol.
const CLIENTS: u64 = 4;
/// The keys that clients share: enough for every shard to hold some, few enough to be fought for.
const REGISTERS: u64 = 64;
const COUNTERS: u64 = 32;
const PAIRS: u64 = 24;
/// Between two operations of a client. Histories of tens of thousands of operations are checked in seconds.
const PACE: Duration = Duration::from_millis(16);
/// After an answer that is none. Unknown outcomes are what makes histories hard to check.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a node may take for one operation: short, so that clients of a cut-off node come back.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long anything may take that must happen.
const WITHIN: Duration = Duration::from_secs(90);

/// Where a node serves clients.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://…`
    pub http: String,
    /// The Redis protocol.
    pub redis: SocketAddr,
}

/// Running load.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    /// What all keys begin with.
    prefix: String,
    recorder: Arc<Recorder>,
    stop: AtomicBool,
    certain: AtomicU64,
    /// The last value of each register that somebody saw, with its version.
    seen: Mutex<BTreeMap<String, (String, Timestamp)>>,
    /// Keys that are put once, with what became of it.
    own: Mutex<Vec<(String, String, Fate)>>,
}

impl Load {
    /// Starts clients of these nodes, whose keys all begin with `prefix`, and waits until there is enough history for a fault to mean something.
    ///
    /// # Errors
    /// The run is void: fewer than [`RATE_MIN`] operations a second.
    pub async fn start(targets: &[Target], prefix: &str, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            prefix: prefix.to_owned(),
            recorder: Arc::default(),
            stop: AtomicBool::new(false),
            certain: AtomicU64::new(0),
            seen: Mutex::default(),
            own: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for (node, target) in targets.iter().enumerate() {
            for number in 0..CLIENTS {
                let id = node as u64 * (CLIENTS + 1) + number;
                let mut options = ClientOptions::new([target.http.as_str()]);
                options.timeout = TIMEOUT;
                let chance = Chance::new(seed ^ (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let writer = Writer { shared: shared.clone(), client: Client::new(options)?, id, chance, step: 0 };
                tasks.spawn(writer.run());
            }
            let id = node as u64 * (CLIENTS + 1) + CLIENTS;
            tasks.spawn(count_over_redis(shared.clone(), target.redis, id, Chance::new(seed ^ id)));
        }
        let load = Self { shared, tasks };
        let begun = Instant::now();
        load.more(WARM).await?;
        let rate = WARM as f64 / begun.elapsed().as_secs_f64();
        ensure!(rate >= RATE_MIN, "void: {rate:.0} operations a second before the fault are too few");
        Ok(load)
    }

    /// The history.
    #[must_use]
    pub fn recorder(&self) -> Arc<Recorder> {
        self.shared.recorder.clone()
    }

    /// How many operations had a certain answer so far.
    #[must_use]
    pub fn certain(&self) -> u64 {
        self.shared.certain.load(Relaxed)
    }

    /// Waits until so many more operations had a certain answer.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn more(&self, operations: u64) -> anyhow::Result<()> {
        let target = self.certain() + operations;
        let begun = Instant::now();
        while self.certain() < target {
            let missing = target - self.certain();
            ensure!(begun.elapsed() < WITHIN, "{missing} of {operations} more operations are not answered");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the clients, and returns what they put for themselves.
    ///
    /// # Errors
    /// A client panicked.
    pub async fn finish(mut self) -> anyhow::Result<Ended> {
        self.shared.stop.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")?;
        }
        let own = std::mem::take(&mut *self.shared.own.lock().expect("no panic"));
        Ok(Ended { prefix: self.shared.prefix.clone(), recorder: self.shared.recorder.clone(), own })
    }
}

/// A load that has ended.
pub struct Ended {
    /// What all keys begin with.
    pub prefix: String,
    /// The history.
    pub recorder: Arc<Recorder>,
    /// Keys that were put once: key, value, and what the client was told.
    pub own: Vec<(String, String, Fate)>,
}

impl Ended {
    /// Reads every shared key through this node, as part of the history.
    ///
    /// # Errors
    /// A read fails.
    pub async fn read_all(&self, http: &str, client: u64) -> anyhow::Result<()> {
        let asked = Client::new(ClientOptions::new([http]))?;
        let own = &self.prefix;
        let keys = (0..REGISTERS).map(|i| register(own, i)).chain((0..COUNTERS).map(|i| counter(own, i)));
        for key in keys.chain((0..PAIRS).flat_map(|pair| [pair_key(own, pair, 'a'), pair_key(own, pair, 'b')])) {
            let at = self.recorder.call(client, Ask::Get { key: key.clone() });
            let found =
                asked.get("default", key.as_bytes()).await.context("a strong read after everything is healed")?;
            self.recorder.told(at, Told::Value(found.map(|found| text(&found.value))));
        }
        Ok(())
    }
}

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// From this seed on.
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

/// The tag keeps both halves in one shard.
fn pair_key(prefix: &str, i: u64, half: char) -> String {
    format!("{prefix}{{pair{i}}}/{half}")
}

/// What keys that are put once begin with.
#[must_use]
pub fn own_keys(prefix: &str) -> String {
    format!("{prefix}own/")
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Writer {
    shared: Arc<Shared>,
    client: Client,
    id: u64,
    chance: Chance,
    step: u64,
}

impl Writer {
    async fn run(mut self) {
        while !self.shared.stop.load(Relaxed) {
            self.step += 1;
            let certain = match self.chance.below(100) {
                0..35 => self.get().await,
                35..50 => self.put().await,
                50..60 => self.put_if().await,
                60..68 => self.delete().await,
                68..80 => self.add().await,
                80..88 => self.batch().await,
                _ => self.put_own().await,
            };
            self.shared.certain.fetch_add(u64::from(certain), Relaxed);
            sleep(if certain { PACE } else { PAUSE }).await;
        }
    }

    /// A value that nobody else ever writes.
    fn value(&self) -> String {
        format!("{}-{}", self.id, self.step)
    }

    fn any_key(&mut self) -> String {
        let prefix = &self.shared.prefix;
        match self.chance.below(3) {
            0 => counter(prefix, self.chance.below(COUNTERS)),
            1 => pair_key(prefix, self.chance.below(PAIRS), if self.chance.below(2) == 0 { 'a' } else { 'b' }),
            _ => register(prefix, self.chance.below(REGISTERS)),
        }
    }

    /// Asks, and writes down what comes back. Returns whether that is certain.
    async fn record<T>(
        &self,
        ask: Ask,
        answer: impl Future<Output = Result<T, ClientError>>,
        told: impl FnOnce(T) -> Told,
    ) -> bool {
        let at = self.shared.recorder.call(self.id, ask);
        let answer = answer.await;
        let told = match (&fate(&answer), answer) {
            (_, Ok(answer)) => told(answer),
            (Fate::Unknown, Err(_)) => Told::Unknown,
            (_, Err(error)) if error.problem().is_some_and(|it| it.kind == ProblemType::ConditionFailed) => {
                Told::ConditionFailed
            }
            (_, Err(_)) => Told::Refused,
        };
        let certain = !matches!(told, Told::Unknown | Told::Refused);
        self.shared.recorder.told(at, told);
        certain
    }

    fn saw(&self, key: &str, value: String, version: Timestamp) {
        self.shared.seen.lock().expect("no panic").insert(key.to_owned(), (value, version));
    }

    async fn get(&mut self) -> bool {
        let key = self.any_key();
        let read = self.client.get("default", key.as_bytes());
        let told = |found: Option<flotilla_client::Record>| {
            if let Some(found) = &found {
                self.saw(&key, text(&found.value), found.version);
            }
            Told::Value(found.map(|found| text(&found.value)))
        };
        self.record(Ask::Get { key: key.clone() }, read, told).await
    }

    async fn put(&mut self) -> bool {
        let (key, value) = (register(&self.shared.prefix, self.chance.below(REGISTERS)), self.value());
        self.put_with(Ask::Put { key: key.clone(), value: value.clone() }, key, value, PutOptions::default()).await
    }

    async fn put_if(&mut self) -> bool {
        let (key, value) = (register(&self.shared.prefix, self.chance.below(REGISTERS)), self.value());
        let seen = self.shared.seen.lock().expect("no panic").get(&key).cloned();
        let (ask, options) = match seen {
            Some((expected, version)) if self.chance.below(4) > 0 => (
                Ask::PutIfEqual { key: key.clone(), expected, value: value.clone() },
                PutOptions { if_version: Some(version), ..PutOptions::default() },
            ),
            _ => (
                Ask::PutIfAbsent { key: key.clone(), value: value.clone() },
                PutOptions { if_absent: true, ..PutOptions::default() },
            ),
        };
        self.put_with(ask, key, value, options).await
    }

    async fn put_with(&self, ask: Ask, key: String, value: String, options: PutOptions) -> bool {
        let put = self.client.put("default", key.as_bytes(), value.clone().into(), &options);
        let told = |reply: flotilla_api::PutReply| {
            self.saw(&key, value.clone(), reply.version);
            Told::Done
        };
        self.record(ask, put, told).await
    }

    async fn delete(&mut self) -> bool {
        let key = register(&self.shared.prefix, self.chance.below(REGISTERS));
        let delete = self.client.delete("default", key.as_bytes(), None);
        self.record(Ask::Delete { key: key.clone() }, delete, |was| Told::Existed(was.is_some())).await
    }

    async fn add(&mut self) -> bool {
        let key = counter(&self.shared.prefix, self.chance.below(COUNTERS));
        let add = self.client.add("default", key.as_bytes(), 1);
        self.record(Ask::Add { key: key.clone(), delta: 1 }, add, Told::Number).await
    }

    async fn batch(&mut self) -> bool {
        let pair = self.chance.below(PAIRS);
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
        self.record(Ask::Batch { keys, value: value.clone() }, self.client.batch(&request), |_| Told::Done).await
    }

    /// Up to 2 KiB under a key of its own. Not in the history: what must become of it is plain.
    async fn put_own(&mut self) -> bool {
        let key = format!("{}{}/{}", own_keys(&self.shared.prefix), self.id, self.step);
        let length = usize::try_from(self.chance.below(2_048)).unwrap_or(0);
        let value: String = key.chars().cycle().take(length.max(1)).collect();
        let answer = self.client.put("default", key.as_bytes(), value.clone().into(), &PutOptions::default()).await;
        let fate = fate(&answer);
        self.shared.own.lock().expect("no panic").push((key, value, fate));
        fate == Fate::Acknowledged
    }
}

/// Increments and reads counters, as clients over HTTP do, too.
async fn count_over_redis(shared: Arc<Shared>, at: SocketAddr, id: u64, mut chance: Chance) {
    let mut redis = Redis::new(at);
    while !shared.stop.load(Relaxed) {
        let key = counter(&shared.prefix, chance.below(COUNTERS));
        let (ask, words) = if chance.below(2) == 0 {
            (Ask::Get { key: key.clone() }, ["GET", &key])
        } else {
            (Ask::Add { key: key.clone(), delta: 1 }, ["INCR", &key])
        };
        let place = shared.recorder.call(id, ask);
        let told = match redis.call(&words).await {
            Ok(Some(Reply::Number(sum))) => Told::Number(sum),
            Ok(Some(Reply::Value(value))) => Told::Value(value),
            Ok(Some(Reply::Error(error))) if error.starts_with("UNKNOWN") => Told::Unknown,
            Ok(Some(Reply::Error(_)) | None) => Told::Refused,
            Err(_) => Told::Unknown,
        };
        let certain = !matches!(told, Told::Unknown | Told::Refused);
        shared.recorder.told(place, told);
        shared.certain.fetch_add(u64::from(certain), Relaxed);
        sleep(if certain { PACE } else { PAUSE }).await;
    }
}
