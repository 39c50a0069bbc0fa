//! The log: [`EngineLog`] and its [`Log`] implementation.
//!
//! Invariants: a batch is judged as a whole before the engine sees it, so the engine's own panics on holes never happen;
//! what is kept in memory changes only after the engine has synced the batch; after a failed write nothing is written any
//! more. Locks are held for memory work only, never over a write or a read of a file.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    thread,
};

use flotilla_failpoints::{Place, io as failpoint, reached};
use flotilla_storage::{Log, LogBatch, LogError, NodeMark, ReplicaBounds, ReplicaLog, ReplicaWrite};
use flotilla_types::{Entry, LogIndex, ReplicaId, Term, WalSequence};
use parking_lot::{Mutex, RwLock};
use raft_engine::{Command, Engine};

use crate::{
    OpenError, Options,
    entry::{Stored, to_stored},
    error::{Panicked, Stopped, from_engine},
    files::LogFiles,
    format::{Folder, sync_dir},
    reader::{Range, Reader},
    record::{self, CHECKPOINT_KEY, NODE_REGION, REPLICA_KEY, SEQUENCE_KEY},
    recovery::{Contents, Replica},
    tail,
    terms::Terms,
};

/// A node's durable Raft log on raft-engine.
///
/// Reads of entries go to the disk (or the system's cache of it) on a thread of the log; everything else that is read is in
/// memory. A folder belongs to one open log at a time.
pub struct EngineLog {
    // Declared first, so that its thread lets go of the engine before the engine closes.
    reader: Reader,
    engine: Arc<Engine<LogFiles>>,
    /// Held exclusively while the engine moves entries between files.
    moving: Arc<RwLock<()>>,
    purge_threshold_bytes: u64,
    /// Declared behind the engine: the folder stays locked until its files are closed.
    folder: Folder,
    recovered: WalSequence,
    contents: RwLock<Contents>,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Writer {
    failed: bool,
}

/// A batch that was judged, and what it leaves of each replica that it touches.
struct Staged {
    batch: raft_engine::LogBatch,
    replicas: BTreeMap<ReplicaId, Option<Replica>>,
}

impl EngineLog {
    /// Opens the log in a folder of its own, which is created when it is missing.
    ///
    /// Fails with an [`OpenError`] inside [`LogError::Engine`], with [`LogError::Io`], or with [`LogError::Corrupt`] for
    /// replica 0 when the node's own records do not parse. A replica whose records do not fit together does not keep
    /// the log from opening; [`Log::replicas`] names it.
    pub fn open(dir: &Path, options: Options) -> Result<Self, LogError> {
        options.validate()?;
        let path = dir.to_str().ok_or_else(|| OpenError::Path(dir.to_owned()))?;
        fs::create_dir_all(dir)?;
        let folder = Folder::open(dir)?;
        tail::check(dir, folder.nonce())?;
        tail::remove_unbegun(dir)?;
        reached(Place::RaftLogOpen);
        let config = options.config(path.to_owned());
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let engine = Engine::open_with_file_system(config, Arc::new(LogFiles))?;
            let contents = Contents::recover(&engine);
            Ok((engine, contents))
        }));
        let (engine, contents) = match opened {
            Ok(Ok((engine, contents))) => (Arc::new(engine), contents?),
            Ok(Err(raft_engine::Error::Io(source))) => return Err(source.into()),
            Ok(Err(raft_engine::Error::Other(source))) => return Err(OpenError::Engine(source).into()),
            Ok(Err(error)) => {
                return Err(tail::find_damage(dir)?.unwrap_or_else(|| OpenError::Engine(Box::new(error))).into());
            }
            Err(_) => return Err(tail::find_damage(dir)?.unwrap_or(OpenError::Panicked).into()),
        };
        // The engine syncs the names of later files itself, but neither of the first one nor of the folder.
        sync_dir(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let moving = Arc::new(RwLock::new(()));
        Ok(Self {
            reader: Reader::start(engine.clone(), moving.clone())?,
            engine,
            moving,
            purge_threshold_bytes: options.purge_threshold_bytes,
            folder,
            recovered: contents.sequence,
            contents: RwLock::new(contents),
            writer: Mutex::default(),
        })
    }

    /// Bytes that the log's files take, counted in whole files.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }

    fn bounds(&self, replica: ReplicaId, index: LogIndex) -> Result<(ReplicaBounds, Option<Term>), LogError> {
        let contents = self.contents.read();
        if let Some(reason) = contents.damaged.get(&replica) {
            return Err(LogError::Corrupt { replica, reason });
        }
        let found = contents.replicas.get(&replica).ok_or(LogError::Missing { replica, index })?;
        Ok((found.bounds, found.terms.get(index)))
    }

    fn stage(&self, batch: &LogBatch) -> Result<Staged, LogError> {
        let mut staged = Staged { batch: raft_engine::LogBatch::default(), replicas: BTreeMap::new() };
        let sequence = record::encode_sequence(self.folder.nonce(), batch.sequence);
        staged.batch.put(NODE_REGION, SEQUENCE_KEY.to_vec(), sequence).map_err(from_engine)?;
        for mark in &batch.marks {
            let value = record::encode_mark(mark.sequence);
            staged.batch.put(NODE_REGION, record::mark_key(mark.node), value).map_err(from_engine)?;
        }
        let contents = self.contents.read();
        for write in &batch.replicas {
            staged.add(&contents, write)?;
        }
        Ok(staged)
    }
}

impl Staged {
    fn add(&mut self, contents: &Contents, write: &ReplicaWrite) -> Result<(), LogError> {
        let id = write.replica;
        let corrupt = |reason| LogError::Corrupt { replica: id, reason };
        if id.0 == NODE_REGION {
            return Err(corrupt("this replica id is reserved"));
        }
        let damaged = contents.damaged.get(&id);
        if let Some(reason) = damaged.filter(|_| !write.destroy) {
            return Err(corrupt(reason));
        }
        let staged = self.replicas.remove(&id);
        let tombstone = contents.tombstones.contains(&id) || matches!(staged, Some(None));
        let current = staged.unwrap_or_else(|| contents.replicas.get(&id).cloned());
        let before = current.as_ref().map(|replica| replica.bounds);
        let after = ReplicaBounds::after(before, tombstone, write)?;
        let left = match after {
            Some(bounds) => {
                self.encode(write, before, &bounds).map_err(from_engine)?;
                let mut terms = current.map_or_else(Terms::default, |replica| replica.terms);
                if write.clear {
                    terms.clear();
                }
                terms.append(&write.entries);
                Some(Replica { bounds, terms })
            }
            None => {
                if before.is_some() || damaged.is_some() {
                    self.batch.add_command(id.0, Command::Clean);
                }
                let value = record::encode_tombstone();
                self.batch.put(NODE_REGION, record::tombstone_key(id), value).map_err(from_engine)?;
                None
            }
        };
        self.replicas.insert(id, left);
        Ok(())
    }

    /// Adds what makes `after` of `before` on disk. The engine applies the items of a batch in order.
    fn encode(
        &mut self,
        write: &ReplicaWrite,
        before: Option<ReplicaBounds>,
        after: &ReplicaBounds,
    ) -> raft_engine::Result<()> {
        let region = write.replica.0;
        if write.clear {
            // Not compacted: the engine carries a clean over a purge, and may forget how far a region was compacted.
            self.batch.add_command(region, Command::Clean);
        }
        if let Some(checkpoint) = &write.checkpoint {
            self.batch.put(region, CHECKPOINT_KEY.to_vec(), record::encode_checkpoint(checkpoint))?;
        }
        if before.is_some_and(|before| before.truncated != after.truncated) && !write.clear {
            self.batch.add_command(region, Command::Compact { index: after.truncated.0.0.saturating_add(1) });
        }
        let entries: Vec<_> = write.entries.iter().map(to_stored).collect();
        self.batch.add_entries::<Stored>(region, &entries)?;
        if write.clear || before.as_ref() != Some(after) {
            self.batch.put(region, REPLICA_KEY.to_vec(), record::encode_replica(after))?;
        }
        Ok(())
    }
}

impl Log for EngineLog {
    fn recovered(&self) -> WalSequence {
        self.recovered
    }

    fn marks(&self) -> Vec<NodeMark> {
        self.contents.read().marks.iter().map(|(&node, &sequence)| NodeMark { node, sequence }).collect()
    }

    /// Fails with [`LogError::Corrupt`] while a damaged replica is there; destroying it is the one write it still takes.
    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        let contents = self.contents.read();
        if let Some((&replica, reason)) = contents.damaged.first_key_value() {
            return Err(LogError::Corrupt { replica, reason });
        }
        let summary = |(&id, replica): (&ReplicaId, &Replica)| {
            let checkpoint = self.engine.get(id.0, CHECKPOINT_KEY).ok_or("the checkpoint of the replica is gone");
            let checkpoint = checkpoint
                .and_then(|bytes| record::decode_checkpoint(&bytes))
                .map_err(|reason| LogError::Corrupt { replica: id, reason })?;
            let ReplicaBounds { shard, hard_state, truncated, last } = replica.bounds;
            Ok((id, ReplicaLog { shard, hard_state, truncated, last, checkpoint }))
        };
        contents.replicas.iter().map(summary).collect()
    }

    fn is_tombstone(&self, replica: ReplicaId) -> bool {
        self.contents.read().tombstones.contains(&replica)
    }

    /// Returns at most 1 GiB, whatever `bytes_max` says.
    fn entries(
        &self,
        replica: ReplicaId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let (bounds, _) = self.bounds(replica, from)?;
        bounds.check_range(replica, from, to)?;
        if from >= to { Ok(Vec::new()) } else { self.reader.read(Range { replica, from, to, bytes_max }) }
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        let (bounds, known) = self.bounds(replica, index)?;
        if index == bounds.truncated.0 {
            return Ok(bounds.truncated.1);
        }
        bounds.check_index(replica, index)?;
        if let Some(term) = known {
            return Ok(term);
        }
        let to = LogIndex(index.0.saturating_add(1));
        let entries = self.reader.read(Range { replica, from: index, to, bytes_max: 0 })?;
        entries.first().map(|entry| entry.term).ok_or(LogError::Missing { replica, index })
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        if writer.failed {
            return Err(LogError::Engine(Arc::new(Stopped)));
        }
        let mut staged = self.stage(&batch)?;
        // The engine panics when a sync fails. What is durable is then unknown, as after any other failure here.
        let written = catch_unwind(AssertUnwindSafe(|| {
            failpoint(Place::RaftLogBeforeSync)?;
            let written = self.engine.write(&mut staged.batch, true)?;
            failpoint(Place::RaftLogSynced)?;
            Ok::<_, raft_engine::Error>(written)
        }));
        writer.failed = !matches!(written, Ok(Ok(_)));
        match written {
            Ok(result) => result.map_err(from_engine)?,
            Err(_) => return Err(LogError::Engine(Arc::new(Panicked))),
        };
        let mut contents = self.contents.write();
        for (id, replica) in staged.replicas {
            if let Some(replica) = replica {
                contents.replicas.insert(id, replica);
            } else {
                contents.replicas.remove(&id);
                contents.damaged.remove(&id);
                contents.tombstones.insert(id);
            }
        }
        contents.marks.extend(batch.marks.iter().map(|mark| (mark.node, mark.sequence)));
        contents.sequence = batch.sequence;
        Ok(())
    }

    /// Does nothing while the log is below its threshold. Above it, copies what is still needed out of the oldest files, which
    /// may take seconds. Writes go on, and so do reads until one meets an entry that moves; that one waits for the end.
    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        if self.size_bytes() <= self.purge_threshold_bytes {
            return Ok(Vec::new());
        }
        let _moving = self.moving.write();
        // On a fresh thread, since the engine reads blocks here too: see `reader`.
        let purged = thread::scope(|scope| -> io::Result<_> {
            let purge = || self.engine.purge_expired_files();
            Ok(thread::Builder::new().name("log-reclaim".into()).spawn_scoped(scope, purge)?.join())
        });
        let Ok(result) = purged? else {
            self.writer.lock().failed = true;
            return Err(LogError::Engine(Arc::new(Panicked)));
        };
        let regions = result.map_err(from_engine)?;
        let contents = self.contents.read();
        Ok(regions.into_iter().map(ReplicaId).filter(|id| contents.replicas.contains_key(id)).collect())
    }
}
