//! Splits the shards that are led here once they have grown beyond what their collection allows.
//!
//! What a replica takes in memory and on the disk is known of all at no cost, and is more than the bytes of its
//! records. So only where that is beyond the bound are the records measured, one shard at a time.
//!
//! Invariants: one split at a time is planned by a node; a shard is not measured again before [`AGAIN_MS`]; a hash
//! collection is split only between two buckets, so that keys with one hash tag stay in one shard.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_meta::{MetaCommand, MetaState, NodeState, OperationReason, SPLIT_BYTES};
use flotilla_placement::{Collection, Sharding};
use flotilla_replication::{ReplicaContents, ReplicaStatus};
use flotilla_types::{Bucket, ClusterVersion, KeyRange, RecordKey, ReplicaId, ShardId};

use super::{Action, Outcome, Reconciler, View, last_look::LastLook};

/// Between two passes, in milliseconds.
const PASS_MS: u64 = 500;
/// Between two measurements of a shard, in milliseconds.
const AGAIN_MS: u64 = 10_000;

/// Splits shards that have grown.
#[derive(Debug, Default)]
pub struct SizeSplits {
    last_look: LastLook,
    /// The metadata of the last pass.
    meta: MetaState,
    /// Shards led here that take more than the bound, with the times from which on they may be measured.
    large: BTreeMap<ShardId, u64>,
    /// What was measured since the last pass.
    measured: Option<Measured>,
    /// The last shard that was split.
    splitting: Option<ShardId>,
}

/// The records of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The shard.
    pub shard: ShardId,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// A key in their middle, if they are more than was asked for.
    pub middle: Option<Bytes>,
}

/// Measures the records of a replica. Their middle, which takes longer, only if they have more bytes than `above`.
/// `None` if they cannot be read.
#[must_use]
pub fn measured(shard: ShardId, contents: &ReplicaContents, above: u64) -> Option<Measured> {
    let bytes = contents.record_bytes?;
    let range = contents.range.intersection(&KeyRange::of_users());
    let middle = if bytes > above { contents.records.middle(&range).ok()? } else { None };
    Some(Measured { shard, bytes, middle })
}

impl Reconciler for SizeSplits {
    fn interval_ms(&self) -> u64 {
        PASS_MS
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let is_large = |replica: &ReplicaStatus| replica.usage.bytes() > *SPLIT_BYTES.start();
        let mut shards = self.last_look.changes(view, |_, after| after.is_some_and(is_large));
        if !view.meta.has_collections_of(&self.meta) {
            shards.extend(view.led().map(|(replica, _)| replica.shard));
        }
        self.meta = view.meta.clone();
        let is_active = view.meta.node(view.me.node).is_some_and(|me| me.state == NodeState::Active);
        if view.meta.cluster_version() < ClusterVersion::SIZE_SPLITS || !is_active {
            self.large.clear();
            self.last_look = LastLook::default();
            return Vec::new();
        }
        let changed: BTreeSet<_> = shards.into_iter().chain(self.large.keys().copied()).collect();
        for shard in changed {
            if grown(view, shard).is_some() {
                self.large.entry(shard).or_insert(view.now_ms);
            } else {
                self.large.remove(&shard);
            }
        }
        if self.splitting.is_some_and(|shard| is_planned(view.meta, shard)) {
            return Vec::new();
        }
        if let Some(command) = self.measured.take().and_then(|measured| split(view, &measured)) {
            if let MetaCommand::SplitShard { shard, .. } = &command {
                self.splitting = Some(*shard);
            }
            return vec![Action::Propose(command)];
        }
        let due =
            self.large.iter_mut().filter(|(_, due_ms)| **due_ms <= view.now_ms).min_by_key(|(_, due_ms)| **due_ms);
        let Some((&shard, due_ms)) = due else { return Vec::new() };
        *due_ms = view.now_ms.saturating_add(AGAIN_MS);
        let measure = grown(view, shard).map(|(replica, above)| Action::Measure { shard, replica, above });
        measure.into_iter().collect()
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        if let Outcome::Measured(measured) = outcome {
            self.measured = Some(measured);
        }
    }
}

fn is_planned(meta: &MetaState, shard: ShardId) -> bool {
    meta.shard(shard).is_some_and(|record| record.split.is_some())
}

/// The replica here of a shard that it leads, with the bound of its records, if it takes more than that and nothing
/// else changes the shard.
fn grown(view: &View<'_>, shard: ShardId) -> Option<(ReplicaId, u64)> {
    let (replica, _) = view.leader_of(shard)?;
    let record = view.meta.shard(shard)?;
    let collection = view.meta.collection_with_id(record.collection)?;
    let above = Some(collection.split_bytes).filter(|bytes| *bytes > 0 && replica.usage.bytes() > *bytes)?;
    let is_settled = replica.descriptor == record.descriptor && view.meta.running_of(shard).next().is_none();
    let can_split =
        collection.sharding == Sharding::Range || buckets_begun(&replica.descriptor.range, collection).is_some();
    (is_settled && can_split).then_some((replica.replica, above))
}

/// The command that splits a shard that was measured, if it is too large.
fn split(view: &View<'_>, measured: &Measured) -> Option<MetaCommand> {
    let shard = measured.shard;
    let (_, above) = grown(view, shard)?;
    let record = view.meta.shard(shard)?;
    let middle = measured.middle.as_ref().filter(|_| measured.bytes > above)?;
    let at = boundary(&record.descriptor.range, view.meta.collection_with_id(record.collection)?, middle)?;
    Some(MetaCommand::SplitShard { shard, at, epoch: record.descriptor.epoch, reason: OperationReason::Size })
}

/// Where a shard is split, given a key in its middle.
fn boundary(range: &KeyRange, collection: &Collection, middle: &Bytes) -> Option<Bytes> {
    match collection.sharding {
        Sharding::Range => (range.contains(middle) && *middle != range.start).then(|| middle.clone()),
        Sharding::Hash => {
            let (first, last) = buckets_begun(range, collection)?;
            let bucket = RecordKey::from_bytes(middle.clone())?.bucket().clamp(first, last);
            Some(RecordKey::new(collection.id, bucket, b"").into_bytes())
        }
    }
}

/// The first and the last one of the buckets that begin inside a range, and not where it begins.
#[must_use]
pub fn buckets_begun(range: &KeyRange, collection: &Collection) -> Option<(Bucket, Bucket)> {
    let start = RecordKey::from_bytes(range.start.clone())?;
    let first = start.bucket().0.checked_add(1)?;
    // The first one that does not begin inside.
    let end = match RecordKey::from_bytes(range.end.clone()) {
        Some(end) if end.collection() == collection.id => end.bucket().0 + u16::from(!end.user_key().is_empty()),
        Some(_) | None => collection.buckets,
    };
    let end = end.min(collection.buckets);
    (first < end).then(|| (Bucket(first), Bucket(end - 1)))
}
