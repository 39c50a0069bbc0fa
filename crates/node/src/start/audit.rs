//! The audit log in the data folder: JSON lines, rotated by size.
//!
//! A thread of its own writes and syncs, so that no request waits for the disk. Refused tries without a valid
//! key are limited in number: sending wrong keys cannot push what others did out of the log.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
};

use flotilla_api::Event as ApiEvent;
use flotilla_gateway::AuditEntry;
use flotilla_replication::clock;
use flotilla_types::NodeId;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::events::Events;

const FILE: &str = "audit.log";
/// Size at which the file is rotated.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// Rotated files that are kept: `audit.log.1` is the latest.
const FILES_MAX: u32 = 5;
/// Entries that wait for the disk; more are counted and lost.
const QUEUE_MAX: usize = 1_024;
/// Refused tries without a valid key that are recorded per second.
const ANONYMOUS_PER_SECOND: u32 = 10;

/// The audit log of this node.
pub(crate) struct Audit {
    node: NodeId,
    events: Events,
    limit: Mutex<Limit>,
    writer: SyncSender<ApiEvent>,
}

/// Counts refused tries within one second.
#[derive(Debug, Default)]
struct Limit {
    second: u64,
    recorded: u32,
    /// Tries that were not recorded since the last that was.
    suppressed: u64,
}

impl Limit {
    /// Whether one more try may be recorded now, and how many were not before it.
    fn take(&mut self, now_s: u64) -> Option<u64> {
        if self.second != now_s {
            (self.second, self.recorded) = (now_s, 0);
        }
        if self.recorded == ANONYMOUS_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.recorded += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Audit {
    /// Opens the log in the data folder.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub(crate) fn open(dir: &Path, node: NodeId) -> io::Result<Self> {
        let (writer, entries) = sync_channel(QUEUE_MAX);
        let file = LogFile::open(dir.join(FILE))?;
        thread::Builder::new().name("audit".to_owned()).spawn(move || write_all(file, &entries))?;
        Ok(Self { node, events: Events::new(), limit: Mutex::default(), writer })
    }

    pub(crate) fn record(&self, entry: AuditEntry) {
        let suppressed = match entry.key {
            Some(_) => 0,
            None if entry.status < 400 => 0,
            None => match self.limit.lock().take(clock::wall_ms() / 1_000) {
                Some(suppressed) => suppressed,
                None => return,
            },
        };
        let mut detail = BTreeMap::from([
            ("node".to_owned(), self.node.to_string()),
            ("key".to_owned(), entry.key.map_or_else(|| "none".to_owned(), |key| format!("{key:016x}"))),
            ("action".to_owned(), entry.action),
            ("status".to_owned(), entry.status.to_string()),
        ]);
        detail.extend(entry.address.map(|address| ("address".to_owned(), address.to_string())));
        detail.extend(entry.detail.map(|text| ("detail".to_owned(), text)));
        if suppressed > 0 {
            detail.insert("suppressed".to_owned(), suppressed.to_string());
        }
        let event = self.events.push_named("audit", detail);
        match self.writer.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                metrics::counter!("flotilla_audit_entries_lost_total").increment(1);
            }
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ApiEvent> {
        self.events.subscribe()
    }

    pub(crate) fn recent(&self) -> Vec<ApiEvent> {
        self.events.recent()
    }
}

/// Writes entries as they come, and syncs once for all that wait. Ends with the last sender.
fn write_all(mut file: LogFile, entries: &Receiver<ApiEvent>) {
    while let Ok(first) = entries.recv() {
        let mut waiting = std::iter::once(first).chain(entries.try_iter().take(QUEUE_MAX));
        let written = waiting.try_for_each(|entry| file.append(&entry));
        if let Err(error) = written.and_then(|()| file.file.sync_data()) {
            tracing::error!(%error, file = %file.path.display(), "the audit log cannot be written");
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes })
    }

    fn append(&mut self, entry: &ApiEvent) -> io::Result<()> {
        let line = serde_json::to_string(entry)? + "\n";
        if self.bytes > 0 && self.bytes + line.len() as u64 > FILE_BYTES_MAX {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Numbers the file and its predecessors one higher; the last one goes.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            number => self.path.with_extension(format!("log.{number}")),
        };
        for number in (0..FILES_MAX).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = Self::open(self.path.clone())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64) -> ApiEvent {
        ApiEvent {
            id,
            time_ms: 0,
            kind: "audit".to_owned(),
            detail: BTreeMap::from([("action".to_owned(), "x".repeat(100))]),
        }
    }

    #[test]
    fn a_full_file_is_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut file = LogFile::open(path.clone()).unwrap();
        for id in 0..u64::from(FILES_MAX) + 3 {
            file.append(&event(id)).unwrap();
            file.bytes = FILE_BYTES_MAX;
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert!(read(&path).contains(&format!("\"id\":{}", FILES_MAX + 2)));
        assert!(read(&path.with_extension("log.1")).contains(&format!("\"id\":{}", FILES_MAX + 1)));
        assert!(path.with_extension(format!("log.{FILES_MAX}")).exists());
        assert!(!path.with_extension(format!("log.{}", FILES_MAX + 1)).exists());
        // Reopened, it goes on at its end.
        let mut file = LogFile::open(path.clone()).unwrap();
        file.append(&event(99)).unwrap();
        assert_eq!(read(&path).lines().count(), 2);
    }

    #[test]
    fn wrong_keys_are_limited_per_second_and_counted() {
        let mut limit = Limit::default();
        for _ in 0..ANONYMOUS_PER_SECOND {
            assert_eq!(limit.take(5), Some(0));
        }
        assert_eq!(limit.take(5), None);
        assert_eq!(limit.take(5), None);
        assert_eq!(limit.take(6), Some(2));
        assert_eq!(limit.take(6), Some(0));
    }
}
