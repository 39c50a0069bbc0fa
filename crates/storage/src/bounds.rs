//! Validation of log writes, shared by every implementation of [`Log`](crate::Log).
//!
//! Invariants: a log has no gaps, never writes truncated entries again, and a destroyed replica stays
//! destroyed. This module holds neither entries nor checkpoints and writes nothing: implementations validate
//! first, then write.

use flotilla_types::{HardState, LogIndex, ReplicaId, ShardId, Term};

use crate::{LogError, ReplicaWrite};

/// The state of a replica's log without entries and checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaBounds {
    /// The shard the replica belongs to.
    pub shard: ShardId,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// Index and term of the last truncated entry.
    pub truncated: (LogIndex, Term),
    /// The last entry in the log, or `truncated.0` when it is empty.
    pub last: LogIndex,
}

impl ReplicaBounds {
    /// The state of a replica after `write`; `None` when it is destroyed. Fails with [`LogError::Corrupt`]
    /// when the write would leave a gap, touch truncated entries, or violate the replica's lifecycle; then
    /// nothing may be written.
    pub fn after(current: Option<Self>, tombstone: bool, write: &ReplicaWrite) -> Result<Option<Self>, LogError> {
        let refuse = |reason| LogError::Corrupt { replica: write.replica, reason };
        if write.replica == ReplicaId::NONE {
            return Err(refuse("replica id 0 is not a valid id"));
        }
        if write.destroy {
            return Ok(None);
        }
        if tombstone {
            return Err(refuse("the replica was destroyed"));
        }
        let rebased = write.checkpoint.is_some() && write.truncate.is_some();
        let mut bounds = match (current, write.create) {
            (Some(bounds), Some(shard)) if bounds.shard != shard => {
                return Err(refuse("the replica belongs to another shard"));
            }
            (Some(bounds), _) => bounds,
            (None, Some(shard)) if rebased => {
                let (last, _) = write.truncate.unwrap_or_default();
                Self { shard, hard_state: HardState::default(), truncated: write.truncate.unwrap_or_default(), last }
            }
            (None, Some(_)) => return Err(refuse("a new replica needs a checkpoint and a start of its log")),
            (None, None) => return Err(refuse("the replica was never created")),
        };
        if write.clear {
            if !rebased {
                return Err(refuse("a cleared log needs a checkpoint and a new start"));
            }
            bounds.truncated = write.truncate.unwrap_or_default();
            bounds.last = bounds.truncated.0;
        }
        if let Some(truncate) = write.truncate.filter(|(index, _)| *index > bounds.truncated.0) {
            if truncate.0 > bounds.last {
                return Err(refuse("truncation beyond the end of the log"));
            }
            bounds.truncated = truncate;
        }
        bounds.append(write)?;
        bounds.hard_state = write.hard_state.unwrap_or(bounds.hard_state);
        Ok(Some(bounds))
    }

    fn append(&mut self, write: &ReplicaWrite) -> Result<(), LogError> {
        let refuse = |reason| LogError::Corrupt { replica: write.replica, reason };
        let Some(first) = write.entries.first() else { return Ok(()) };
        if first.index <= self.truncated.0 {
            return Err(refuse("entries in the truncated part of the log"));
        }
        if first.index.0 > self.last.0.saturating_add(1) {
            return Err(refuse("entries would leave a gap in the log"));
        }
        if write.entries.windows(2).any(|pair| pair[1].index.0 != pair[0].index.0.wrapping_add(1)) {
            return Err(refuse("entries are not consecutive"));
        }
        self.last = write.entries.last().map_or(self.last, |entry| entry.index);
        Ok(())
    }

    /// Whether `from..to` can be read; errors as [`Log::entries`](crate::Log::entries).
    pub fn check_range(&self, replica: ReplicaId, from: LogIndex, to: LogIndex) -> Result<(), LogError> {
        if from >= to {
            return Ok(());
        }
        self.check_index(replica, from)?;
        self.check_index(replica, LogIndex(to.0 - 1))
    }

    /// Whether the log holds this entry; errors as [`Log::entries`](crate::Log::entries).
    pub fn check_index(&self, replica: ReplicaId, index: LogIndex) -> Result<(), LogError> {
        if index <= self.truncated.0 {
            return Err(LogError::Compacted { replica, truncated: self.truncated.0 });
        }
        if index > self.last {
            return Err(LogError::Missing { replica, index: LogIndex(self.last.0 + 1) });
        }
        Ok(())
    }
}
