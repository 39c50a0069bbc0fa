//! Rules for splits of shards.
//!
//! Invariants: a shard and the one that is split off it change their records in the same entry, so that recorded
//! ranges neither overlap nor leave a gap. The replicas of a planned split are for the voters of the recorded
//! descriptor: the log entry that splits a shard names the configuration that it is for, so that a plan that was made
//! for another one takes no effect. Whether a shard is split, its own log decides.

use bytes::Bytes;
use flotilla_placement::PlanReplica;
use flotilla_types::{
    ClusterVersion, Epoch, KeyRange, RecordKey, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
};

use super::{ApplyResult, SHARDS_MAX, SPLIT_KEY_BYTES_MAX, operations::is_settled};
use crate::{
    Field, Limit, MetaRefusal, MetaReply, MetaState, OperationReason, OperationWork, PlannedSplit, ShardRecord,
};

impl MetaState {
    pub(super) fn split_shard(
        &mut self,
        now_ms: u64,
        shard: ShardId,
        at: &Bytes,
        epoch: Epoch,
        reason: OperationReason,
    ) -> ApplyResult {
        let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
        if self.collection_with_id(record.collection).is_none() {
            return Err(MetaRefusal::NotSplittable(shard));
        }
        if let Some(split) = &record.split {
            return Err(MetaRefusal::SplitPlanned(split.operation));
        }
        if let Some((_, merge)) = self.merge_with(shard) {
            return Err(MetaRefusal::MergePlanned(merge.operation));
        }
        let known = record.descriptor.epoch;
        if epoch != known {
            return Err(MetaRefusal::StaleEpoch { known });
        }
        if !is_settled(record) {
            return Err(MetaRefusal::ShardChanging(shard));
        }
        if !divides(at, record) {
            return Err(MetaRefusal::Invalid(Field::SplitKey));
        }
        if self.shards_len() >= SHARDS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Shards));
        }
        let voters = voters(&record.descriptor);
        let child = self.header.next_shard;
        self.header.next_shard = child.next();
        let replicas = voters.into_iter().map(|voter| (voter, self.allocate_replica())).collect();
        let work = OperationWork::Split { at: at.clone(), child };
        let operation = self.begin_operation(now_ms, shard, work, reason);
        let split = PlannedSplit { at: at.clone(), child, replicas, operation };
        self.change_shard(shard, |record| record.split = Some(split));
        self.unborn.insert(child, shard);
        Ok(MetaReply::Operation(operation))
    }

    /// Shards, with those that are to be split off.
    pub(super) fn shards_len(&self) -> usize {
        self.shards.len() + self.unborn.len()
    }

    /// The record of the shard that was split off, if that is what a report of the recorded shard says. Refuses every
    /// other change of a range.
    pub(super) fn child_of_report(
        &self,
        record: &ShardRecord,
        reported: &ShardDescriptor,
    ) -> Result<Option<ShardRecord>, MetaRefusal> {
        let known = &record.descriptor;
        // Binaries that know no splits record whatever range is reported.
        if reported.range == known.range || self.cluster_version() < ClusterVersion::SPLITS {
            return Ok(None);
        }
        let planned = record.split.as_ref().filter(|split| {
            reported.range.start == known.range.start
                && reported.range.end == split.at
                && reported.epoch.range > known.epoch.range
        });
        let split = planned.ok_or(MetaRefusal::Invalid(Field::Descriptor))?;
        // The split applied to the recorded epoch only, whatever followed it.
        Ok(Some(split_off(record, split, known.epoch.range.saturating_add(1))))
    }

    /// Adds the shard that was split off its parent, and forgets the plan.
    pub(super) fn give_birth(&mut self, parent: ShardId, child: ShardRecord) {
        self.change_shard(parent, |record| record.split = None);
        self.unborn.remove(&child.id);
        self.record_shard(child);
    }

    /// Plans a shard's split for the voters that it has now. A voter that stays keeps the replica that comes out of it.
    pub(super) fn plan_split_again(&mut self, shard: ShardId) {
        let Some(record) = self.shard(shard) else { return };
        let Some(split) = &record.split else { return };
        let planned = split.replicas.clone();
        let of = |voter: ReplicaId| planned.iter().find(|(parent, _)| *parent == voter).map(|(_, child)| *child);
        let replicas = voters(&record.descriptor)
            .into_iter()
            .map(|voter| (voter, of(voter).unwrap_or_else(|| self.allocate_replica())))
            .collect();
        self.change_shard(shard, |record| {
            if let Some(split) = &mut record.split {
                split.replicas = replicas;
            }
        });
    }

    /// Forgets the shards that were to be split off shards that do not exist any more.
    pub(super) fn forget_plans_of_dropped(&mut self) {
        let shards = &self.shards;
        self.unborn.retain(|_, parent| shards.contains_key(parent));
    }
}

/// Whether a record key divides the keys of a shard in two parts, neither of which is empty.
fn divides(at: &Bytes, record: &ShardRecord) -> bool {
    let range = &record.descriptor.range;
    let is_of_collection = RecordKey::from_bytes(at.clone()).is_some_and(|key| key.collection() == record.collection);
    is_of_collection && at.len() <= SPLIT_KEY_BYTES_MAX && range.contains(at) && *at != range.start
}

/// The voters of a descriptor, by id.
fn voters(descriptor: &ShardDescriptor) -> Vec<ReplicaId> {
    let voters = descriptor.replicas.iter().filter(|held| held.role == ReplicaRole::Voter);
    voters.map(|held| held.replica).collect()
}

/// The shard that a split leaves behind the keys that the recorded shard keeps.
fn split_off(parent: &ShardRecord, split: &PlannedSplit, epoch_range: u64) -> ShardRecord {
    let before = &parent.descriptor;
    let of = |(parent, child): &(ReplicaId, ReplicaId)| {
        let node = before.node_of(*parent)?;
        Some(ReplicaDescriptor { replica: *child, node, role: ReplicaRole::Voter })
    };
    let mut replicas: Vec<_> = split.replicas.iter().filter_map(of).collect();
    replicas.sort_by_key(|held| held.replica);
    let range = KeyRange { start: split.at.clone(), end: before.range.end.clone() };
    let epoch = Epoch { range: epoch_range, config: 1 };
    let initial = ShardDescriptor { shard: split.child, range, epoch, replicas: Vec::new() };
    ShardRecord {
        id: split.child,
        collection: parent.collection,
        replicas_desired: parent.replicas_desired,
        intent: replicas.iter().map(|held| PlanReplica { replica: held.replica, node: held.node }).collect(),
        intent_version: 1,
        descriptor: ShardDescriptor { replicas, ..initial.clone() },
        initial,
        parent: Some(parent.id),
        split: None,
        merge: None,
    }
}
