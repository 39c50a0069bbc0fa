//! A thread that reads entries from the engine's files.
//!
//! The engine remembers the last block it read per thread, by its place in a file and not by the engine it came from. Two
//! logs in one process (tests, simulators, a log opened again) would read each other's blocks if callers read themselves.
//! So every log reads on a thread of its own, which ends with it.
//!
//! The engine may move entries to another file between finding and reading them. A read that fails is therefore tried once
//! more while nothing moves; only then it counts. Panics of the engine become errors.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use flotilla_storage::LogError;
use flotilla_types::{Entry, LogIndex, ReplicaId};
use parking_lot::RwLock;
use raft_engine::Engine;

use crate::{
    entry::{Stored, from_stored},
    error::Stopped,
    files::LogFiles,
};

/// Requests that wait for the thread; callers behind them wait too.
const REQUESTS_MAX: usize = 64;
/// The most that one read returns, in bytes, whatever was asked for.
const READ_BYTES_MAX: usize = 1 << 30;

/// Reads entries on a thread of its own.
pub(crate) struct Reader {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    range: Range,
    reply: SyncSender<Result<Vec<Entry>, LogError>>,
}

/// Entries `from..to`, known to be in the log and at least one.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) replica: ReplicaId,
    pub(crate) from: LogIndex,
    pub(crate) to: LogIndex,
    pub(crate) bytes_max: usize,
}

impl Reader {
    /// Starts the thread. `moving` is held exclusively while the engine moves entries between files.
    pub(crate) fn start(engine: Arc<Engine<LogFiles>>, moving: Arc<RwLock<()>>) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        let thread = thread::Builder::new().name("log-read".into()).spawn(move || run(&engine, &moving, &inbox))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    pub(crate) fn read(&self, range: Range) -> Result<Vec<Entry>, LogError> {
        let stopped = || LogError::Engine(Arc::new(Stopped));
        let (reply, answer) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(Request { range, reply }).map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The thread ends when its inbox does, and with it the last use of the engine outside of the log.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &Engine<LogFiles>, moving: &RwLock<()>, inbox: &Receiver<Request>) {
    for Request { range, reply } in inbox {
        let result = fetch(engine, range).or_else(|_| {
            let _still = moving.read();
            fetch(engine, range)
        });
        // The caller waits for the answer; if it is gone, so is the need for one.
        let _ = reply.send(result);
    }
}

fn fetch(engine: &Engine<LogFiles>, range: Range) -> Result<Vec<Entry>, LogError> {
    let Range { replica, from, to, bytes_max } = range;
    let corrupt = |reason| LogError::Corrupt { replica, reason };
    let bytes_max = bytes_max.min(READ_BYTES_MAX);
    // The engine counts encoded bytes, which exceed `size_bytes` by at most four; `size_bytes` is at least 32.
    let encoded_bytes_max = bytes_max + bytes_max / 8;
    let mut stored = Vec::new();
    let read = catch_unwind(AssertUnwindSafe(|| {
        engine.fetch_entries_to::<Stored>(replica.0, from.0, to.0, Some(encoded_bytes_max), &mut stored)
    }));
    match read {
        Ok(Ok(_)) => {}
        Ok(Err(raft_engine::Error::Io(source))) => return Err(source.into()),
        Ok(Err(_)) => return Err(corrupt("entries do not match their checksum or are gone")),
        Err(_) => return Err(corrupt("entries do not match their index")),
    }
    let mut entries = Vec::with_capacity(stored.len());
    let mut bytes = 0;
    for (expected, stored) in (from.0..).zip(stored) {
        let entry = from_stored(stored);
        if entry.index.0 != expected {
            return Err(corrupt("an entry has another index than asked for"));
        }
        bytes += entry.size_bytes();
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(entry);
    }
    if entries.is_empty() { Err(corrupt("entries are gone")) } else { Ok(entries) }
}
