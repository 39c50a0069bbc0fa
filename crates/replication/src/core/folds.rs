//! Folds by the log: the leader of a shard proposes one when its runs are large enough.
//!
//! Invariants: at most one fold of a shard is proposed and not applied; a node proposes one in a tick, and none
//! while many of its own checkpoints wait to be compacted: so folds of many shards do not begin at once.

use std::ops::Bound;

use flotilla_consensus::ShardChange;
use flotilla_types::{Folding, ReplicaId};

use super::{Core, Effects};

/// Checkpoints that may wait to be compacted here when a fold is proposed.
const COMPACTIONS_WAITING_MAX: usize = 4;

impl<T> Core<T> {
    /// The engine said whether the runs of a checkpoint are to be folded, with pieces of which size.
    pub(super) fn on_fold_due(&mut self, id: ReplicaId, piece_bytes: Option<u32>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.fold_due = piece_bytes;
        if piece_bytes.is_some() && replica.leads() {
            self.schedule.folds.insert(id);
        } else {
            self.schedule.folds.remove(&id);
        }
    }

    /// A fold was applied. A checkpoint behind it freezes the memtable that its view is of.
    pub(super) fn on_fold_pinned(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        self.on_fold_due(id, None);
        self.want_checkpoint(id, effects);
    }

    /// Proposes the next fold that is due, each replica in turn.
    pub(super) fn propose_due_folds(&mut self) {
        let may_propose = Folding::of(self.cluster_version) == Folding::Logged
            && self.schedule.compactions.len() < COMPACTIONS_WAITING_MAX;
        if !may_propose {
            return;
        }
        let folds = &self.schedule.folds;
        let after = (self.schedule.last_fold.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let Some(id) = folds.range(after).next().or_else(|| folds.first()).copied() else { return };
        self.schedule.visits += 1;
        self.schedule.last_fold = Some(id);
        if self.propose_fold(id) {
            self.schedule.folds.remove(&id);
        }
    }

    /// `false` if it must be tried again.
    fn propose_fold(&mut self, id: ReplicaId) -> bool {
        let Some(replica) = self.replicas.get_mut(&id).filter(|replica| replica.leads()) else { return true };
        let Some(piece_bytes) = replica.fold_due else { return true };
        let is_outstanding = |(term, index): (_, _)| term == replica.term && replica.applied < index;
        if replica.fold_proposed.is_some_and(is_outstanding) {
            return true;
        }
        if !replica.may_propose() || replica.is_backlogged(&self.config) {
            return false;
        }
        let piece_bytes = piece_bytes.clamp(*ShardChange::PIECE_BYTES.start(), *ShardChange::PIECE_BYTES.end());
        let change = ShardChange::Fold { piece_bytes };
        let Ok(index) = self.raft.propose_shard_change(id, &change, &mut self.raft_effects) else { return false };
        replica.fold_proposed = Some((replica.term, index));
        true
    }
}
