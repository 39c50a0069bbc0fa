//! A thread that reads entries from the engine's files.
//!
//! The engine caches the last block read in a thread-local, keyed by its place in a file and not by the
//! engine. Two logs in one process (tests, simulators, a reopened log) would read each other's blocks if they
//! shared a thread. Therefore every log reads on its own thread, which ends with the log.
//!
//! The engine may move entries to another file between locating and reading them. A failed read is therefore
//! retried once while nothing moves; only then it is an error. Panics of the engine become errors.

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
    zero_fill::ZeroFillFileSystem,
};

/// Queued requests; further callers block.
const REQUESTS_MAX: usize = 64;
/// Bytes that one read returns, at most, whatever was requested.
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

/// A non-empty range of entries, `from..to`, that the log contains.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) replica: ReplicaId,
    pub(crate) from: LogIndex,
    pub(crate) to: LogIndex,
    pub(crate) bytes_max: usize,
}

impl Reader {
    /// Starts the thread. `relocation_lock` is held exclusively while the engine moves entries between files.
    pub(crate) fn start(
        engine: Arc<Engine<ZeroFillFileSystem>>,
        relocation_lock: Arc<RwLock<()>>,
    ) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        let thread =
            thread::Builder::new().name("log-read".into()).spawn(move || run(&engine, &relocation_lock, &inbox))?;
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
        // Closing the channel ends the thread, which drops its reference to the engine.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &Engine<ZeroFillFileSystem>, relocation_lock: &RwLock<()>, inbox: &Receiver<Request>) {
    for Request { range, reply } in inbox {
        let result = fetch(engine, range).or_else(|_| {
            let _guard = relocation_lock.read();
            fetch(engine, range)
        });
        // Fails only if the caller is gone.
        let _ = reply.send(result);
    }
}

fn fetch(engine: &Engine<ZeroFillFileSystem>, range: Range) -> Result<Vec<Entry>, LogError> {
    let Range { replica, from, to, bytes_max } = range;
    let corrupt = |reason| LogError::Corrupt { replica, reason };
    let bytes_max = bytes_max.min(READ_BYTES_MAX);
    // The engine counts encoded bytes, which exceed `size_bytes` by at most four; `size_bytes` is at least
    // 32.
    let encoded_bytes_max = bytes_max + bytes_max / 8;
    let mut stored = Vec::new();
    let read = catch_unwind(AssertUnwindSafe(|| {
        engine.fetch_entries_to::<Stored>(replica.0, from.0, to.0, Some(encoded_bytes_max), &mut stored)
    }));
    match read {
        Ok(Ok(_)) => {}
        Ok(Err(raft_engine::Error::Io(source))) => return Err(source.into()),
        Ok(Err(_)) => return Err(corrupt("entries do not match their checksum or are missing")),
        Err(_) => return Err(corrupt("entries do not match their index")),
    }
    let mut entries = Vec::with_capacity(stored.len());
    let mut bytes = 0;
    for (expected, stored) in (from.0..).zip(stored) {
        let entry = from_stored(stored);
        if entry.index.0 != expected {
            return Err(corrupt("an entry has an unexpected index"));
        }
        bytes += entry.size_bytes();
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(entry);
    }
    if entries.is_empty() { Err(corrupt("entries are missing")) } else { Ok(entries) }
}
