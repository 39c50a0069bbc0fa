//! [`EngineLog`] and its [`Log`] implementation.
//!
//! Invariants: a batch is validated as a whole before the engine sees it, so the engine never panics on gaps;
//! the state in memory changes only after the engine has synced the batch; after a failed write, every later
//! write is refused. The lock of the state in memory is never held during file I/O.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use flotilla_failpoints::{Place, io as failpoint, reached};
use flotilla_storage::{
    Log, LogBatch, LogError, LogEvidence, PeerSequence, ReplicaBounds, ReplicaLog, ReplicaWrite, sync_dir,
};
use flotilla_types::{Entry, LogIndex, ReplicaId, Term, WalSequence};
use parking_lot::{Mutex, RwLock};
use raft_engine::{Command, Engine};

use crate::{
    OpenError, Options,
    entry::{Stored, to_stored},
    error::{Panicked, Stopped, from_engine},
    evidence::{self, Doubt, Evidence, Findings},
    format::LockedFolder,
    reader::{Range, Reader},
    record::{self, CHECKPOINT_KEY, NODE_REGION, REPLICA_KEY, SEQUENCE_KEY},
    recovery::{Contents, Replica},
    tail,
    terms::Terms,
    witness::Witness,
    zero_fill::ZeroFillFileSystem,
};

/// A node's durable Raft log on raft-engine.
///
/// A thread of the log reads entries from disk (or the page cache); all other reads are from memory. A folder
/// belongs to one open log at a time.
pub struct EngineLog {
    // Declared first, so that its thread drops the engine before the engine closes.
    reader: Reader,
    engine: Arc<Engine<ZeroFillFileSystem>>,
    /// Held exclusively while the engine moves entries between files.
    relocation_lock: Arc<RwLock<()>>,
    purge_threshold_bytes: u64,
    /// Declared after the engine: the folder stays locked until the engine's files are closed.
    folder: LockedFolder,
    dir: PathBuf,
    recovered: WalSequence,
    evidence: Result<Evidence, Doubt>,
    contents: RwLock<Contents>,
    writer: Mutex<Writer>,
}

struct Writer {
    failed: bool,
    witness: Witness,
    /// Empty. The engine clears what it has written and keeps up to 8 MiB of its buffer, so that no batch has to
    /// fill fresh memory.
    batch: raft_engine::LogBatch,
}

/// A validated batch, and the resulting state of each replica that it touches (`None`: destroyed).
struct Staged {
    batch: raft_engine::LogBatch,
    replicas: BTreeMap<ReplicaId, Option<Replica>>,
}

impl EngineLog {
    /// Opens the log in its own folder, which is created if missing.
    ///
    /// Fails with an [`OpenError`] inside [`LogError::Engine`], with [`LogError::Io`], or with
    /// [`LogError::Corrupt`] for replica 0 if the node's own records do not parse. A replica with
    /// inconsistent records does not prevent opening; [`Log::replicas`] reports it.
    pub fn open(dir: &Path, options: Options) -> Result<Self, LogError> {
        options.validate()?;
        let path = dir.to_str().ok_or_else(|| OpenError::Path(dir.to_owned()))?;
        fs::create_dir_all(dir)?;
        let folder = LockedFolder::open(dir)?;
        let findings = Findings::gather(dir, folder.nonce(), Path::new(options.witness_dir))?;
        tail::check(dir, folder.nonce())?;
        tail::remove_file_without_header(dir)?;
        reached(Place::RaftLogOpen);
        let config = options.config(path.to_owned());
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let engine = Engine::open_with_file_system(config, Arc::new(ZeroFillFileSystem))?;
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
        // The engine syncs the folder after creating later files, but neither after the first one nor the
        // folder's parent.
        sync_dir(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let evidence = findings.judge(contents.sequence);
        if evidence.is_err() {
            evidence::set_doubt(dir, true)?;
        }
        let witness = findings.into_witness(contents.sequence);
        let writer = Writer { failed: false, witness, batch: raft_engine::LogBatch::default() };
        let relocation_lock = Arc::new(RwLock::new(()));
        Ok(Self {
            reader: Reader::start(engine.clone(), relocation_lock.clone())?,
            engine,
            relocation_lock,
            purge_threshold_bytes: options.purge_threshold_bytes,
            folder,
            dir: dir.to_owned(),
            recovered: contents.sequence,
            evidence,
            contents: RwLock::new(contents),
            writer: Mutex::new(writer),
        })
    }

    /// Why the log is trusted to be complete, or why not.
    pub fn evidence(&self) -> &Result<Evidence, Doubt> {
        &self.evidence
    }

    /// Closes the log and leaves a marker of the clean stop, which the next opening takes as evidence.
    ///
    /// # Errors
    /// Those of the file system. The next opening then has no such evidence.
    pub fn close(self) -> io::Result<()> {
        let Self { reader, engine, folder, dir, contents, writer, .. } = self;
        let failed = writer.into_inner().failed;
        drop((reader, engine));
        if !failed {
            evidence::mark_clean_stop(&dir, contents.into_inner().sequence)?;
        }
        drop(folder);
        Ok(())
    }

    /// Bytes of the log's files, in whole files.
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

    /// Validates a batch, and adds it to `empty`.
    fn stage(&self, batch: &LogBatch, empty: raft_engine::LogBatch) -> Result<Staged, LogError> {
        let mut staged = Staged { batch: empty, replicas: BTreeMap::new() };
        let sequence = record::encode_sequence(self.folder.nonce(), batch.sequence);
        staged.batch.put(NODE_REGION, SEQUENCE_KEY.to_vec(), sequence).map_err(from_engine)?;
        for peer in &batch.peer_sequences {
            let value = record::encode_peer_sequence(peer.sequence);
            staged.batch.put(NODE_REGION, record::peer_sequence_key(peer.node), value).map_err(from_engine)?;
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
        let result = match after {
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
        self.replicas.insert(id, result);
        Ok(())
    }

    /// Adds the items that turn `before` into `after` on disk. The engine applies the items of a batch in
    /// order.
    fn encode(
        &mut self,
        write: &ReplicaWrite,
        before: Option<ReplicaBounds>,
        after: &ReplicaBounds,
    ) -> raft_engine::Result<()> {
        let region = write.replica.0;
        if write.clear {
            // `Clean` rather than `Compact`: the engine keeps a clean across a purge, but may lose a region's
            // compaction.
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

    fn evidence(&self) -> LogEvidence {
        match &self.evidence {
            Ok(_) => LogEvidence::Complete,
            Err(Doubt::WentBack { synced, .. }) => LogEvidence::WentBack { synced: *synced },
            Err(_) => LogEvidence::Unknown,
        }
    }

    fn set_complete(&self) -> Result<(), LogError> {
        Ok(evidence::set_doubt(&self.dir, false)?)
    }

    fn peer_sequences(&self) -> Vec<PeerSequence> {
        self.contents.read().peer_sequences.iter().map(|(&node, &sequence)| PeerSequence { node, sequence }).collect()
    }

    /// Fails with [`LogError::Corrupt`] while there is a damaged replica, for which only destruction is still
    /// accepted.
    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        let contents = self.contents.read();
        if let Some((&replica, reason)) = contents.damaged.first_key_value() {
            return Err(LogError::Corrupt { replica, reason });
        }
        let summary = |(&id, replica): (&ReplicaId, &Replica)| {
            let checkpoint = self.engine.get(id.0, CHECKPOINT_KEY).ok_or("the checkpoint of the replica is missing");
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
        let (bounds, cached_term) = self.bounds(replica, index)?;
        if index == bounds.truncated.0 {
            return Ok(bounds.truncated.1);
        }
        bounds.check_index(replica, index)?;
        if let Some(term) = cached_term {
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
        let mut staged = self.stage(&batch, std::mem::take(&mut writer.batch))?;
        // The engine panics if a sync fails. What is durable is then unknown, as after any other failure
        // here.
        let written = catch_unwind(AssertUnwindSafe(|| {
            failpoint(Place::RaftLogBeforeSync)?;
            let written = self.engine.write(&mut staged.batch, true)?;
            failpoint(Place::RaftLogSynced)?;
            Ok::<_, raft_engine::Error>(written)
        }));
        writer.failed = !matches!(written, Ok(Ok(_)));
        if !writer.failed {
            writer.witness.record(batch.sequence);
        }
        match written {
            Ok(result) => result.map_err(from_engine)?,
            Err(_) => return Err(LogError::Engine(Arc::new(Panicked))),
        };
        writer.batch = staged.batch;
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
        contents.peer_sequences.extend(batch.peer_sequences.iter().map(|peer| (peer.node, peer.sequence)));
        contents.sequence = batch.sequence;
        Ok(())
    }

    /// Does nothing while the log is below its threshold. Above it, copies live data out of the oldest files,
    /// which may take seconds. Writes continue, and so do reads, until one meets an entry that is being
    /// moved; that read waits for the end.
    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        if self.size_bytes() <= self.purge_threshold_bytes {
            return Ok(Vec::new());
        }
        let _relocation = self.relocation_lock.write();
        // On a new thread, since the engine caches blocks per thread: see `reader`.
        let purged = thread::scope(|scope| -> io::Result<_> {
            let purge = || self.engine.purge_expired_files();
            Ok(thread::Builder::new().name("log-reclaim".into()).spawn_scoped(scope, purge)?.join())
        });
        let Ok(result) = purged? else {
            self.writer.lock().failed = true;
            return Err(LogError::Engine(Arc::new(Panicked)));
        };
        // An entry that is to be moved is damaged. The engine does not say whose it is.
        let regions = result.map_err(|error| match error {
            raft_engine::Error::Corruption(_) => LogError::Corrupt {
                replica: ReplicaId::NONE,
                reason: "entries to be moved do not match their checksum",
            },
            error => from_engine(error),
        })?;
        let contents = self.contents.read();
        Ok(regions.into_iter().map(ReplicaId).filter(|id| contents.replicas.contains_key(id)).collect())
    }
}
