//! Merges: the left shard's replica takes over the tables of the right one's beside it.
//!
//! Invariants: the right replica is destroyed in the batch that makes the left one's checkpoint at the merge durable,
//! so that a node has either both or meets the entry again; entries and reads behind a merge wait until the records of
//! both are there; what is taken over is a durable checkpoint of the right replica while it was frozen, and whichever it
//! is, it has the same state.

use flotilla_consensus::{self as consensus, Freeze, Merge, ShardChange};
use flotilla_storage::merged_tables;
use flotilla_types::{Checkpoint, ClusterVersion, Epoch, Holder, KeyRange, LogIndex, ReplicaId, ShardId, Term};

use super::{
    ApplyTask, Core, Effects, Hold, LostReason,
    replica::{Checkpointing, Replica},
    split::FLUSH_BYTES_MIN,
};

/// Replicas that were merged into others here, and are remembered.
const MERGED_MAX: usize = 256;

impl<T> Replica<T> {
    /// A checkpoint of the replica is durable.
    pub(super) fn note_checkpoint(&mut self, checkpoint: &Checkpoint) {
        let is_frozen = checkpoint.position.descriptor.is_frozen();
        self.frozen = is_frozen.then(|| Box::new(checkpoint.clone()));
    }

    /// The merge at which a checkpoint is being made.
    fn merging(&self) -> Option<&Merge> {
        self.splitting.as_ref()?.merging.as_ref()
    }
}

impl<T> Core<T> {
    /// Proposes a step of a merge of a shard led here. Whoever wants it looks at the descriptor, and asks again.
    pub(super) fn propose_merge_step(&mut self, id: ReplicaId, change: &ShardChange, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id).filter(|replica| replica.may_propose()) else { return };
        let (term, applied) = (replica.term, replica.applied);
        let is_outstanding = |(of, index): (Term, LogIndex)| of == term && applied < index;
        if *change != ShardChange::Bump && replica.splitting().proposed.is_some_and(is_outstanding) {
            return;
        }
        if let ShardChange::Freeze(Freeze { epoch }) | ShardChange::Merge(Merge { epoch, .. }) = change {
            // All commands of its log that follow have their meaning by this version or a later one.
            if replica.version.is_some_and(|version| version < ClusterVersion::MERGES) || replica.shard == ShardId::META
            {
                return;
            }
            let is_idle = matches!(replica.checkpointing, Checkpointing::Idle | Checkpointing::Truncating);
            if self.flush_before_merge(id, *epoch, effects) || !is_idle {
                return;
            }
        }
        let proposed = self.raft.propose_shard_change(id, change, &mut self.raft_effects);
        if let (Ok(index), Some(replica)) = (proposed, self.replicas.get_mut(&id)) {
            tracing::info!(shard = %replica.shard, %index, ?change, "a change of a shard is proposed");
            replica.splitting().proposed = Some((term, index));
        }
    }

    /// A merge is planned: what this replica has in memory is written while its keys are still served.
    pub(super) fn prepare_merge(&mut self, shard: ShardId, epoch: Epoch, effects: &mut Effects<T>) {
        if let Some(id) = self.serving.get(&shard).copied() {
            self.flush_before_merge(id, epoch, effects);
        }
    }

    /// Checkpoints a replica with much in memory, once before the merge that is planned for this epoch. Returns whether
    /// it does.
    fn flush_before_merge(&mut self, id: ReplicaId, epoch: Epoch, effects: &mut Effects<T>) -> bool {
        let Some(replica) = self.replicas.get_mut(&id) else { return false };
        let is_full = replica.usage.active_bytes >= FLUSH_BYTES_MIN && replica.may_checkpoint();
        let flushes = is_full && replica.splitting().flushed_at.replace(epoch) != Some(epoch);
        if flushes {
            self.want_checkpoint(id, effects);
        }
        flushes
    }

    /// Hands the entry of a merge to the state machine. What follows waits until the records of both are loaded.
    pub(super) fn hand_over_merge(&mut self, id: ReplicaId, mut task: ApplyTask<T>, effects: &mut Effects<T>) {
        if let ApplyTask::Apply { shard_change: Some(ShardChange::Merge(merge)), source, .. } = &mut task {
            *source = self.source_of(id, merge).cloned().map(Box::new);
            // The right replica may make another checkpoint before this one is read.
            if let Some(source) = source {
                let (holder, objects) = (Holder::Merge(id), source.objects().collect());
                effects.holds.push(Hold { holder, objects });
            }
        }
        effects.apply.push(task);
    }

    /// The durable checkpoint that a merge takes over, if the replica that it names is here and frozen for it.
    fn source_of(&self, id: ReplicaId, merge: &Merge) -> Option<&Checkpoint> {
        let source = self.replicas.get(&merge.source_of(id)?)?;
        let frozen = source.frozen.as_deref()?;
        let descriptor = &frozen.position.descriptor;
        (descriptor.shard == merge.source && descriptor.epoch == merge.source_epoch).then_some(frozen)
    }

    /// The merge of a replica here is committed, and waits for its turn.
    pub(super) fn expect_merge(&mut self, id: ReplicaId, merge: &Merge) {
        if let Some(merged) = merge.source_of(id).and_then(|source| self.replicas.get_mut(&source)) {
            merged.merges_into = Some(id);
        }
    }

    /// Whether a replica here is being merged into another one, or about to be: it must not go before.
    pub(super) fn is_being_merged(&self, id: ReplicaId) -> bool {
        let Some(target) = self.replicas.get(&id).and_then(|replica| replica.merges_into) else { return false };
        let splitting = self.replicas.get(&target).and_then(|replica| replica.splitting.as_deref());
        splitting.is_some_and(|splitting| splitting.merges().any(|merge| merge.source_of(target) == Some(id)))
    }

    /// Whether a replica was merged into another one here. Who does not know yet that its shard is gone may want it.
    pub(super) fn was_merged(&self, id: ReplicaId) -> bool {
        self.merged.contains(&id)
    }

    /// The checkpoint at a merge, with the tables of both replicas; any other one as it is. `None` if the right replica
    /// is gone: then this one is given up.
    pub(super) fn with_merged_tables(
        &mut self,
        id: ReplicaId,
        checkpoint: Checkpoint,
        effects: &mut Effects<T>,
    ) -> Option<Checkpoint> {
        let Some(merge) = self.replicas.get(&id).and_then(|replica| replica.merging()) else { return Some(checkpoint) };
        let end = merge.source_range.start.clone();
        let own = KeyRange { end, ..checkpoint.position.descriptor.range.clone() };
        let of_source = self.source_of(id, merge).map(|source| (&source.tables, &merge.source_range));
        let tables = of_source.and_then(|of_source| merged_tables((&checkpoint.tables, &own), of_source));
        let Some(tables) = tables else {
            tracing::error!(replica = %id, source = %merge.source, "the replica to be merged into this one is not here");
            self.abandon(id, LostReason::Broken, effects);
            return None;
        };
        let merged = Checkpoint { tables, ..checkpoint };
        // Until the merged one is durable, a restart opens the one before.
        let before = self.raft.group(id).map(|group| group.checkpoint().clone());
        let objects = before.iter().flat_map(Checkpoint::objects).chain(merged.objects()).collect();
        effects.holds.push(Hold { holder: Holder::Checkpoint(id), objects });
        effects.holds.push(Hold::end(Holder::Merge(id)));
        Some(merged)
    }

    /// The checkpoint at a merge is being written: destroys the right replica in the same batch.
    pub(super) fn destroy_merged(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let source = self.replicas.get(&id).and_then(|replica| replica.merging()).and_then(|merge| merge.source_of(id));
        if let Some(source) = source {
            if self.merged.len() >= MERGED_MAX {
                self.merged.pop_front();
            }
            self.merged.push_back(source);
            self.destroy(source, effects);
        }
    }

    /// A checkpoint is durable. If it is the one at a merge, the records of both replicas are loaded, before all that
    /// waits. Returns whether it is.
    pub(super) fn open_merged(
        &mut self,
        id: ReplicaId,
        checkpoint: &Checkpoint,
        truncate: (LogIndex, Term),
        effects: &mut Effects<T>,
    ) -> bool {
        let Some(replica) = self.replicas.get_mut(&id) else { return false };
        let merging = replica.splitting.as_mut().and_then(|splitting| splitting.merging.take());
        if merging.is_none() {
            return false;
        }
        replica.checkpointing = Checkpointing::Idle;
        replica.loading = true;
        replica.usage.frozen_bytes = 0;
        let shard = replica.shard;
        self.schedule.checkpointing.remove(&id);
        let checkpoint = checkpoint.clone();
        effects.apply.push(ApplyTask::Open { replica: id, shard, checkpoint: checkpoint.clone(), replaces: false });
        let input = consensus::Input::Checkpointed { replica: id, checkpoint, truncate: Some(truncate) };
        self.raft.step(input, &mut self.raft_effects);
        self.resume_split(id, effects);
        true
    }
}
