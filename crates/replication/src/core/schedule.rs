//! Which replicas the next tick must visit, kept up to date as inputs arrive, and what several replicas
//! share.
//!
//! Invariants: a replica with a request or a read round that may expire is in `waiting`; one that has
//! offered snapshots is in `offers`; one whose checkpoint is due and not running is in
//! `checkpoints`. Sets may also hold replicas that need no visit any more: the visit finds out and removes
//! them. Ordered, because a visit has effects.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::ReplicaId;

use super::{announced::Announced, upkeep::UpkeepQueue};

/// The replicas that need a visit, by reason, and the counters that decide about checkpoints.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Writes, reads or read rounds wait, and have deadlines.
    pub(super) waiting: BTreeSet<ReplicaId>,
    /// These have offered snapshots to followers.
    pub(super) offers: BTreeSet<ReplicaId>,
    /// A checkpoint is due and could not start yet.
    pub(super) checkpoints: BTreeSet<ReplicaId>,
    /// A checkpoint is being made: bounded by `checkpoints_parallel_max`.
    pub(super) checkpointing: BTreeSet<ReplicaId>,
    pub(super) memtables: Memtables,
    /// Checkpoints with tables to merge, which wait for their turn.
    pub(super) compactions: BTreeSet<ReplicaId>,
    /// The replica that is being compacted.
    pub(super) compacting: Option<ReplicaId>,
    /// Replicas that lead and are to propose a fold.
    pub(super) folds: BTreeSet<ReplicaId>,
    /// The last one that had its turn.
    pub(super) last_fold: Option<ReplicaId>,
    /// Replicas whose status may have changed since it was last published, beside those that were drained.
    pub(super) changed: BTreeSet<ReplicaId>,
    /// Replicas that lead a group of several voters, as of the last publication.
    pub(super) transferable: BTreeSet<ReplicaId>,
    pub(super) upkeep: UpkeepQueue,
    /// Leaders that the next round of node heartbeats names.
    pub(super) announced: Announced,
    /// Replicas that ticks and publications have visited.
    pub(super) visits: u64,
}

impl Schedule {
    /// Forgets a replica that is not used any more.
    pub(super) fn remove(&mut self, replica: ReplicaId) {
        self.waiting.remove(&replica);
        self.offers.remove(&replica);
        self.checkpoints.remove(&replica);
        self.checkpointing.remove(&replica);
        self.compactions.remove(&replica);
        self.folds.remove(&replica);
        self.announced.new.remove(&replica);
        self.upkeep.set(replica, None);
        self.changed.insert(replica);
    }
}

/// The sizes of all active memtables.
#[derive(Debug, Default)]
pub(super) struct Memtables {
    bytes: BTreeMap<ReplicaId, usize>,
    by_bytes: BTreeSet<(usize, ReplicaId)>,
    total: usize,
}

impl Memtables {
    /// Records the size of a replica's active memtable.
    pub(super) fn set(&mut self, replica: ReplicaId, bytes: usize) {
        let before = if bytes == 0 { self.bytes.remove(&replica) } else { self.bytes.insert(replica, bytes) };
        if before == Some(bytes) {
            return;
        }
        if let Some(before) = before {
            self.by_bytes.remove(&(before, replica));
            self.total -= before;
        }
        if bytes > 0 {
            self.by_bytes.insert((bytes, replica));
            self.total += bytes;
        }
    }

    /// Bytes of all together.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The replicas with a memtable, largest first.
    pub(super) fn largest_first(&self) -> impl Iterator<Item = ReplicaId> {
        self.by_bytes.iter().rev().map(|(_, replica)| *replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memtables_are_summed_and_ordered_by_size() {
        let mut memtables = Memtables::default();
        for (replica, bytes) in [(1, 10), (2, 30), (3, 20), (2, 5), (4, 20), (1, 10), (5, 0)] {
            memtables.set(ReplicaId(replica), bytes);
        }
        assert_eq!(memtables.total(), 55);
        assert_eq!(memtables.largest_first().map(|replica| replica.0).collect::<Vec<_>>(), [4, 3, 1, 2]);
        for replica in 1..=4 {
            memtables.set(ReplicaId(replica), 0);
        }
        assert_eq!((memtables.total(), memtables.largest_first().count()), (0, 0));
    }
}
