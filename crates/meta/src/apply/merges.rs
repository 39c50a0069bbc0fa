//! Rules for merges of shards.
//!
//! Invariants: a shard takes part in one planned change of a range at a time; a merge is planned for one epoch of either
//! shard, which the plan never changes; what the left shard's log decided shows in what it reports: with the keys of
//! both it has merged, with another epoch and without them it never will. A plan ends when it was merged, or when
//! neither shard can be changed by it any more, so that a shard that was frozen has its keys again. The right shard's
//! record goes in the entry in which the left one's grows, so that recorded ranges neither overlap nor leave a gap.

use flotilla_types::{Epoch, ReplicaId, ShardDescriptor, ShardId};

use super::{ApplyResult, operations::is_settled};
use crate::{
    MetaRefusal, MetaReply, MetaState, OperationReason, OperationState, OperationWork, PlannedMerge, ShardRecord,
};

impl MetaState {
    pub(super) fn merge_shards(
        &mut self,
        now_ms: u64,
        left: (ShardId, Epoch),
        right: (ShardId, Epoch),
        reason: OperationReason,
    ) -> ApplyResult {
        let ((left, left_epoch), (right, right_epoch)) = (left, right);
        let record = self.shard(left).ok_or(MetaRefusal::UnknownShard(left))?;
        let of_right = self.shard(right).ok_or(MetaRefusal::UnknownShard(right))?;
        let is_neighbour = record.descriptor.range.end == of_right.descriptor.range.start
            && record.collection == of_right.collection
            && self.collection_with_id(record.collection).is_some();
        if !is_neighbour {
            return Err(MetaRefusal::NotNeighbours { left, right });
        }
        for (shard, epoch) in [(record, left_epoch), (of_right, right_epoch)] {
            if let Some(split) = &shard.split {
                return Err(MetaRefusal::SplitPlanned(split.operation));
            }
            if let Some((_, planned)) = self.merge_with(shard.id) {
                return Err(MetaRefusal::MergePlanned(planned.operation));
            }
            let known = shard.descriptor.epoch;
            if epoch != known {
                return Err(MetaRefusal::StaleEpoch { known });
            }
            if !is_settled(shard) {
                return Err(MetaRefusal::ShardChanging(shard.id));
            }
        }
        let replicas = pairs(record, of_right)?;
        let right_range = of_right.descriptor.range.clone();
        let work = OperationWork::Merge { right };
        let operation = self.begin_operation(now_ms, left, work, reason);
        let (epoch, frozen, is_cancelled) = (left_epoch, Vec::new(), false);
        let merge = PlannedMerge { right, epoch, right_epoch, right_range, replicas, frozen, is_cancelled, operation };
        self.change_shard(left, |record| record.merge = Some(merge));
        self.merging.insert(right, left);
        Ok(MetaReply::Operation(operation))
    }

    /// A replica of the right shard has its durable checkpoint where the shard was frozen for this operation.
    pub(super) fn report_frozen(&mut self, left: ShardId, right_epoch: Epoch, replica: ReplicaId) -> ApplyResult {
        let record = self.shard(left).ok_or(MetaRefusal::UnknownShard(left))?;
        let planned = record.merge.as_ref().filter(|merge| merge.right_epoch == right_epoch);
        // One that is over needs no word of it.
        let Some(planned) = planned else { return Ok(MetaReply::Done) };
        if !planned.replicas.iter().any(|(_, right)| *right == replica) {
            return Err(MetaRefusal::UnknownReplica(replica));
        }
        if !planned.frozen.contains(&replica) {
            self.change_shard(left, |record| {
                if let Some(merge) = &mut record.merge {
                    merge.frozen.push(replica);
                    merge.frozen.sort_unstable();
                }
            });
        }
        Ok(MetaReply::Done)
    }

    /// An operator takes a merge back, unless it has been decided.
    pub(super) fn cancel_merge(&mut self, left: ShardId) {
        self.change_shard(left, |record| {
            if let Some(merge) = &mut record.merge {
                merge.is_cancelled = true;
            }
        });
    }

    /// Whether a report of the left shard says that it was merged as planned.
    pub(super) fn merged_by_report(record: &ShardRecord, reported: &ShardDescriptor) -> bool {
        let known = &record.descriptor;
        record.merge.as_ref().is_some_and(|merge| {
            reported.range.start == known.range.start
                && reported.range.end == merge.right_range.end
                && reported.epoch.range > known.epoch.range.max(merge.right_epoch.range)
        })
    }

    /// Drops the right shard, whose keys the left one has now.
    pub(super) fn complete_merge(&mut self, left: ShardId, now_ms: u64) {
        let merge = self.shard(left).and_then(|record| record.merge.clone());
        let Some(PlannedMerge { right, operation, .. }) = merge else { return };
        self.change_shard(left, |record| record.merge = None);
        self.merging.remove(&right);
        self.shards.remove(&right);
        self.set_operation_state(operation, OperationState::Done, now_ms);
        self.end_operations_of(right, now_ms);
    }

    /// A shard has reported another epoch. Ends the merge in which it takes part, if neither shard can be changed by it
    /// any more: the log of the left one has decided, and that of the right one takes no freeze for it.
    pub(super) fn end_merge_of(&mut self, shard: ShardId, now_ms: u64) {
        let Some((left, merge)) = self.merge_with(shard) else { return };
        let epoch_of = |shard| self.shard(shard).map(|record| record.descriptor.epoch);
        if epoch_of(left) == Some(merge.epoch) || epoch_of(merge.right) == Some(merge.right_epoch) {
            return;
        }
        let (right, operation) = (merge.right, merge.operation);
        let state = if merge.is_cancelled { OperationState::Cancelled } else { OperationState::Superseded };
        self.change_shard(left, |record| record.merge = None);
        self.merging.remove(&right);
        self.set_operation_state(operation, state, now_ms);
    }

    /// Forgets the merges of shards that do not exist any more.
    pub(super) fn forget_merges_of_dropped(&mut self) {
        let shards = &self.shards;
        self.merging.retain(|right, left| shards.contains_key(right) && shards.contains_key(left));
    }
}

/// Each voter of the left shard with that of the right one on its node, by the ids of the left ones.
fn pairs(left: &ShardRecord, right: &ShardRecord) -> Result<Vec<(ReplicaId, ReplicaId)>, MetaRefusal> {
    let on = |record: &ShardRecord, node| record.descriptor.replica_on(node).map(|held| held.replica);
    let apart = |shard: &ShardRecord, node| MetaRefusal::ReplicasApart { shard: shard.id, node };
    if let Some(held) = right.descriptor.replicas.iter().find(|held| on(left, held.node).is_none()) {
        return Err(apart(left, held.node));
    }
    let pair = |held: &flotilla_types::ReplicaDescriptor| {
        Ok((held.replica, on(right, held.node).ok_or_else(|| apart(right, held.node))?))
    };
    let mut pairs = left.descriptor.replicas.iter().map(pair).collect::<Result<Vec<_>, MetaRefusal>>()?;
    pairs.sort_unstable();
    Ok(pairs)
}
