//! An in-memory log, for simulators and tests.
//!
//! A completed write counts as durable: [`MemoryLog::reopen`] returns the log as a restarted node would find
//! it. It models neither slow nor failing disks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use flotilla_types::{Checkpoint, Entry, LogIndex, NodeId, ReplicaId, Term, WalSequence};
use parking_lot::Mutex;

use crate::{Log, LogBatch, LogError, LogEvidence, PeerSequence, ReplicaBounds, ReplicaLog, ReplicaWrite};

/// An in-memory log. Clones share the contents.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    recovered: WalSequence,
    evidence: LogEvidence,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// Opened without evidence, and not declared complete since.
    in_doubt: bool,
    sequence: WalSequence,
    peer_sequences: BTreeMap<NodeId, WalSequence>,
    tombstones: BTreeSet<ReplicaId>,
    replicas: BTreeMap<ReplicaId, Replica>,
}

#[derive(Debug, Clone)]
struct Replica {
    bounds: ReplicaBounds,
    checkpoint: Checkpoint,
    /// The entries after `bounds.truncated`, without a gap.
    entries: VecDeque<Entry>,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self { recovered: WalSequence(0), evidence: LogEvidence::Complete, state: Arc::default() }
    }
}

impl MemoryLog {
    /// The log as a restarted node would find it: a copy, which later writes to `self` do not change.
    #[must_use]
    pub fn reopen(&self) -> Self {
        self.reopen_with(LogEvidence::Complete)
    }

    /// The log as found after a restart with other evidence, such as a copy that was restored.
    #[must_use]
    pub fn reopen_with(&self, evidence: LogEvidence) -> Self {
        let mut state = self.state.lock().clone();
        let evidence =
            if state.in_doubt && evidence == LogEvidence::Complete { LogEvidence::Unknown } else { evidence };
        state.in_doubt = evidence != LogEvidence::Complete;
        Self { recovered: state.sequence, evidence, state: Arc::new(Mutex::new(state)) }
    }
}

impl Log for MemoryLog {
    fn recovered(&self) -> WalSequence {
        self.recovered
    }

    fn evidence(&self) -> LogEvidence {
        self.evidence
    }

    fn set_complete(&self) -> Result<(), LogError> {
        self.state.lock().in_doubt = false;
        Ok(())
    }

    fn peer_sequences(&self) -> Vec<PeerSequence> {
        self.state.lock().peer_sequences.iter().map(|(&node, &sequence)| PeerSequence { node, sequence }).collect()
    }

    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        Ok(self.state.lock().replicas.iter().map(|(&id, replica)| (id, replica.summary())).collect())
    }

    fn is_tombstone(&self, replica: ReplicaId) -> bool {
        self.state.lock().tombstones.contains(&replica)
    }

    fn entries(
        &self,
        replica: ReplicaId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let state = self.state.lock();
        let Some(found) = state.replicas.get(&replica) else {
            return Err(LogError::Missing { replica, index: from });
        };
        found.bounds.check_range(replica, from, to)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let skip = from.0.saturating_sub(found.bounds.truncated.0.0.saturating_add(1)) as usize;
        for entry in found.entries.iter().skip(skip).take(to.0.saturating_sub(from.0) as usize) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        let state = self.state.lock();
        let Some(found) = state.replicas.get(&replica) else { return Err(LogError::Missing { replica, index }) };
        if index == found.bounds.truncated.0 {
            return Ok(found.bounds.truncated.1);
        }
        found.bounds.check_index(replica, index)?;
        let offset = (index.0 - found.bounds.truncated.0.0 - 1) as usize;
        found.entries.get(offset).map(|entry| entry.term).ok_or(LogError::Missing { replica, index })
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        let mut state = self.state.lock();
        // Validate the whole batch first, so that a refused one changes nothing.
        let mut bounds = BTreeMap::new();
        let mut validated = Vec::with_capacity(batch.replicas.len());
        for write in &batch.replicas {
            let id = write.replica;
            let stored = || (state.replicas.get(&id).map(|replica| replica.bounds), state.tombstones.contains(&id));
            let (current, tombstone) = bounds.get(&id).copied().unwrap_or_else(stored);
            let after = ReplicaBounds::after(current, tombstone, write)?;
            bounds.insert(id, (after, tombstone || after.is_none()));
            validated.push(after);
        }
        for (write, after) in batch.replicas.into_iter().zip(validated) {
            state.apply(write, after);
        }
        state.peer_sequences.extend(batch.peer_sequences.into_iter().map(|peer| (peer.node, peer.sequence)));
        state.sequence = batch.sequence;
        Ok(())
    }

    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        Ok(Vec::new())
    }
}

impl State {
    fn apply(&mut self, write: ReplicaWrite, after: Option<ReplicaBounds>) {
        let Some(bounds) = after else {
            self.replicas.remove(&write.replica);
            self.tombstones.insert(write.replica);
            return;
        };
        if let Some(replica) = self.replicas.get_mut(&write.replica) {
            replica.apply(write, bounds);
        } else if let Some(checkpoint) = write.checkpoint.clone() {
            let mut replica = Replica { bounds, checkpoint, entries: VecDeque::new() };
            let id = write.replica;
            replica.apply(write, bounds);
            self.replicas.insert(id, replica);
        }
    }
}

impl Replica {
    fn summary(&self) -> ReplicaLog {
        let ReplicaBounds { shard, hard_state, truncated, last } = self.bounds;
        ReplicaLog { shard, hard_state, truncated, last, checkpoint: self.checkpoint.clone() }
    }

    /// `bounds` is the state after the write, from [`ReplicaBounds::after`].
    fn apply(&mut self, write: ReplicaWrite, bounds: ReplicaBounds) {
        if write.clear {
            self.entries.clear();
        }
        if let Some(checkpoint) = write.checkpoint {
            self.checkpoint = checkpoint;
        }
        while self.entries.front().is_some_and(|entry| entry.index <= bounds.truncated.0) {
            self.entries.pop_front();
        }
        if let Some(first) = write.entries.first().map(|entry| entry.index) {
            while self.entries.back().is_some_and(|entry| entry.index >= first) {
                self.entries.pop_back();
            }
            self.entries.extend(write.entries);
        }
        self.bounds = bounds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_log_passes_the_conformance_suite() {
        let mut log = MemoryLog::default();
        crate::conformance::log(&mut || {
            log = log.reopen();
            Box::new(log.clone())
        });
    }

    #[test]
    fn a_reopened_log_is_a_copy() {
        let log = MemoryLog::default();
        let copy = log.reopen();
        log.write(LogBatch { sequence: WalSequence(3), ..LogBatch::default() }).unwrap();
        assert_eq!(copy.reopen().recovered(), WalSequence(0));
        assert_eq!(log.reopen().recovered(), WalSequence(3));
    }
}
