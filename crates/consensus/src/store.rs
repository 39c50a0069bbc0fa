//! The storage that raft-rs reads: recent entries from memory, older ones from the log, the checkpoint as the
//! snapshot.
//!
//! It writes nothing: the caller performs writes as effects.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use flotilla_storage::{Log, LogError};
use flotilla_types::{Checkpoint, HardState, LogIndex, ReplicaId, Term};
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};

use crate::convert;

/// The [`Storage`] of one replica.
pub(crate) struct Store {
    replica: ReplicaId,
    log: Arc<dyn Log>,
    hard_state: HardState,
    /// The latest entries without a gap: at least those that the log may not have written yet.
    cache: VecDeque<eraftpb::Entry>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    truncated: (LogIndex, Term),
    last: LogIndex,
    checkpoint: Checkpoint,
    /// Whether a follower needs a snapshot that the checkpoint cannot serve. A cell, because
    /// [`Storage::snapshot`] takes `&self`.
    wants_checkpoint: Cell<bool>,
    /// The snapshot that each follower was sent. It is sent the same one again, however often the checkpoint
    /// moves meanwhile, until the caller ends the offer.
    offers: RefCell<BTreeMap<ReplicaId, Checkpoint>>,
    /// The checkpoints of this round's snapshot messages, by index.
    offered: RefCell<BTreeMap<u64, Checkpoint>>,
    /// Why the log could not be read. raft-rs gets a harmless error, and the group fails right after the
    /// call.
    failure: RefCell<Option<LogError>>,
}

impl Store {
    pub(crate) fn new(
        replica: ReplicaId,
        log: Arc<dyn Log>,
        state: &flotilla_storage::ReplicaLog,
        cache_bytes_max: usize,
    ) -> Self {
        Self {
            replica,
            log,
            hard_state: state.hard_state,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            truncated: state.truncated,
            last: state.last,
            checkpoint: state.checkpoint.clone(),
            wants_checkpoint: Cell::new(false),
            offers: RefCell::default(),
            offered: RefCell::default(),
            failure: RefCell::new(None),
        }
    }

    /// Adds the entries of a `Ready`: raft-rs must be able to read them before they are durable.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        while self.cache.back().is_some_and(|last| last.index >= first.index) {
            if let Some(dropped) = self.cache.pop_back() {
                self.cache_bytes -= size(&dropped);
            }
        }
        for entry in entries {
            self.cache_bytes += size(entry);
            self.cache.push_back(entry.clone());
        }
        if let Some(last) = entries.last() {
            self.last = LogIndex(last.index);
        }
    }

    /// Evicts cached entries that are durable and applied, oldest first, until the cache is within its bound.
    pub(crate) fn evict(&mut self, durable_and_applied: LogIndex) {
        self.evict_to(self.cache_bytes_max, durable_and_applied);
    }

    /// Evicts all that are durable and applied, and gives back their room.
    pub(crate) fn release(&mut self, durable_and_applied: LogIndex) {
        self.evict_to(0, durable_and_applied);
        self.cache.shrink_to_fit();
    }

    fn evict_to(&mut self, bytes_max: usize, durable_and_applied: LogIndex) {
        while self.cache_bytes > bytes_max {
            match self.cache.front() {
                Some(first) if first.index <= durable_and_applied.0 => {}
                _ => return,
            }
            if let Some(dropped) = self.cache.pop_front() {
                self.cache_bytes -= size(&dropped);
            }
        }
    }

    pub(crate) fn install(&mut self, checkpoint: Checkpoint) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.truncated = (checkpoint.position.index, checkpoint.position.term);
        self.last = checkpoint.position.index;
        self.checkpoint = checkpoint;
    }

    pub(crate) fn set_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    pub(crate) fn truncate(&mut self, to: (LogIndex, Term)) {
        if to.0 <= self.truncated.0 {
            return;
        }
        self.truncated = to;
        while self.cache.front().is_some_and(|first| first.index <= to.0.0) {
            if let Some(dropped) = self.cache.pop_front() {
                self.cache_bytes -= size(&dropped);
            }
        }
    }

    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub(crate) fn truncated(&self) -> (LogIndex, Term) {
        self.truncated
    }

    pub(crate) fn end_offer(&mut self, to: ReplicaId) {
        self.offers.get_mut().remove(&to);
    }

    pub(crate) fn end_offers(&mut self) {
        self.offers.get_mut().clear();
    }

    pub(crate) fn take_offered(&self) -> BTreeMap<u64, Checkpoint> {
        self.offered.take()
    }

    pub(crate) fn take_wants_checkpoint(&self) -> bool {
        self.wants_checkpoint.replace(false)
    }

    pub(crate) fn take_failure(&self) -> Option<LogError> {
        self.failure.borrow_mut().take()
    }

    fn fail(&self, error: LogError) -> raft::Error {
        let raft = match &error {
            LogError::Compacted { .. } => StorageError::Compacted,
            _ => StorageError::Unavailable,
        };
        if !matches!(error, LogError::Compacted { .. }) {
            *self.failure.borrow_mut() = Some(error);
        }
        raft::Error::Store(raft)
    }
}

fn size(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + 64
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = eraftpb::HardState::default();
        hard_state.term = self.hard_state.term.0;
        hard_state.vote = self.hard_state.vote.0;
        // The commit index is not always persisted, but everything applied was committed.
        hard_state.commit = self.hard_state.commit.max(self.checkpoint.position.index).0;
        Ok(RaftState::new(hard_state, convert::conf_to_raft(&self.checkpoint.position.conf)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.truncated.0.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let cached_from = self.cache.front().map_or(u64::MAX, |first| first.index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        if low < cached_from {
            let to = LogIndex(high.min(cached_from));
            let read =
                self.log.entries(self.replica, LogIndex(low), to, bytes_max).map_err(|error| self.fail(error))?;
            for entry in read {
                bytes += entry.size_bytes();
                entries.push(convert::entry_to_raft(entry));
            }
            // The bound was reached before the cache begins.
            if low + (entries.len() as u64) < to.0 {
                return Ok(entries);
            }
        }
        let skip = usize::try_from(low.max(cached_from).saturating_sub(cached_from)).unwrap_or(usize::MAX);
        for entry in self.cache.iter().skip(skip).take_while(|entry| entry.index < high) {
            bytes += size(entry);
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0.0 {
            return Ok(self.truncated.1.0);
        }
        if index < self.truncated.0.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        // When a write completes, raft-rs asks for its entries even if they were replaced meanwhile.
        if index > self.last.0 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if let Some(first) = self.cache.front()
            && index >= first.index
        {
            let at = usize::try_from(index - first.index).unwrap_or(usize::MAX);
            return self.cache.get(at).map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable));
        }
        self.log.term(self.replica, LogIndex(index)).map(|term| term.0).map_err(|error| self.fail(error))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        let to = ReplicaId(to);
        let usable = |checkpoint: &&Checkpoint| {
            let position = &checkpoint.position;
            position.index.0 >= request_index.max(self.truncated.0.0) && position.conf.contains(to)
        };
        let mut offers = self.offers.borrow_mut();
        let Some(checkpoint) = offers.get(&to).filter(usable).or(Some(&self.checkpoint).filter(usable)).cloned() else {
            self.wants_checkpoint.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let snapshot = convert::snapshot_to_raft(&checkpoint);
        self.offered.borrow_mut().insert(checkpoint.position.index.0, checkpoint.clone());
        offers.insert(to, checkpoint);
        Ok(snapshot)
    }
}
