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
use flotilla_replication::{ReplicaStatus, Size};
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
    measured: Option<(ShardId, Size)>,
    /// The last shard that was split.
    splitting: Option<ShardId>,
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
        if let Some(command) = self.measured.take().and_then(|(shard, size)| split(view, shard, &size)) {
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
        if let Outcome::Measured(shard, size) = outcome {
            self.measured = Some((shard, size));
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
fn split(view: &View<'_>, shard: ShardId, size: &Size) -> Option<MetaCommand> {
    let (_, above) = grown(view, shard)?;
    let record = view.meta.shard(shard)?;
    let middle = size.middle.as_ref().filter(|_| size.bytes > above)?;
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

#[cfg(test)]
mod tests {
    use flotilla_meta::CollectionSettings;
    use flotilla_storage::Usage;
    use flotilla_types::CollectionId;

    use super::*;
    use crate::core::testing::{Meta, World, leads};

    const BOUND: u64 = 1 << 20;

    /// Node 1 leads the only shard of a collection, which takes so many bytes there.
    struct Fixture {
        world: World,
        shard: ShardId,
        splits: SizeSplits,
    }

    impl Fixture {
        fn new(sharding: Sharding, buckets: u16) -> Self {
            let mut meta = Meta::of_nodes(3);
            let command = MetaCommand::CreateCollection {
                name: "c".to_owned(),
                sharding,
                buckets,
                replicas: 1,
                initial_nodes: vec![vec![flotilla_types::NodeId(1)]],
                settings: CollectionSettings { split_bytes: Some(BOUND), ..CollectionSettings::NONE },
            };
            (2..=ClusterVersion::SIZE_SPLITS.0).for_each(|version| meta.raise_to(ClusterVersion(version)));
            meta.apply(&command);
            let shard = meta.state().shards().map(|shard| shard.id).max().expect("a shard");
            let mut fixture = Self { world: World::new(1, meta), shard, splits: SizeSplits::default() };
            fixture.takes(0);
            fixture
        }

        fn descriptor(&self) -> flotilla_types::ShardDescriptor {
            self.world.meta.state().shard(self.shard).expect("a shard").descriptor.clone()
        }

        fn collection(&self) -> CollectionId {
            self.world.meta.state().shard(self.shard).expect("a shard").collection
        }

        fn takes(&mut self, bytes: u64) {
            let descriptor = self.descriptor();
            let mut leader = leads(self.shard.0, &[(1, descriptor.replicas[0].replica.0)], &[]);
            leader.descriptor = descriptor;
            leader.usage = Usage { checkpoint_bytes: bytes, ..Usage::default() };
            self.world.replicas = vec![leader];
        }

        fn pass(&mut self) -> Vec<Action> {
            self.world.reconcile(&mut self.splits)
        }

        fn key(&self, bucket: u16, key: &[u8]) -> Bytes {
            RecordKey::new(self.collection(), Bucket(bucket), key).into_bytes()
        }

        fn measures(&self) -> Vec<Action> {
            vec![Action::Measure { shard: self.shard, replica: self.descriptor().replicas[0].replica, above: BOUND }]
        }

        fn measured(&mut self, bytes: u64, middle: Option<Bytes>) {
            self.splits.on_outcome(Outcome::Measured(self.shard, Size { bytes, middle }));
        }

        fn splits_at(&self, at: Bytes) -> Vec<Action> {
            let (shard, epoch, reason) = (self.shard, self.descriptor().epoch, OperationReason::Size);
            vec![Action::Propose(MetaCommand::SplitShard { shard, at, epoch, reason })]
        }
    }

    #[test]
    fn a_shard_that_takes_more_than_its_bound_is_measured_and_split_if_its_records_do() {
        let mut fixture = Fixture::new(Sharding::Range, 1);
        assert_eq!(fixture.pass(), []);
        fixture.takes(BOUND);
        assert_eq!(fixture.pass(), [], "not more");
        fixture.takes(BOUND + 1);
        assert_eq!(fixture.pass(), fixture.measures());
        assert_eq!(fixture.pass(), [], "it is being measured");
        fixture.measured(BOUND, Some(fixture.key(0, b"m")));
        assert_eq!(fixture.pass(), [], "deleted records count in what it takes, and not in the bound");
        fixture.world.now_ms += AGAIN_MS - 1;
        assert_eq!(fixture.pass(), []);
        fixture.world.now_ms += 1;
        assert_eq!(fixture.pass(), fixture.measures());
        let at = fixture.key(0, b"m");
        fixture.measured(BOUND + 1, Some(at.clone()));
        let split = fixture.splits_at(at);
        assert_eq!(fixture.pass(), split);
        let [Action::Propose(command)] = &split[..] else { panic!("a proposal") };
        fixture.world.meta.apply(command);
        fixture.world.now_ms += AGAIN_MS;
        assert_eq!(fixture.pass(), [], "it is planned");
        let after = fixture.world.meta.report_split(fixture.shard);
        fixture.takes(BOUND + 1);
        assert_eq!(fixture.pass(), fixture.measures(), "a half may be too large, too: {after:?}");
    }

    #[test]
    fn a_hash_collection_is_split_between_two_buckets_and_never_inside_one() {
        let mut fixture = Fixture::new(Sharding::Hash, 4);
        fixture.takes(BOUND + 1);
        for (middle, bucket) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
            fixture.world.now_ms += AGAIN_MS;
            assert_eq!(fixture.pass(), fixture.measures());
            fixture.measured(BOUND + 1, Some(fixture.key(middle, b"m")));
            assert_eq!(fixture.pass(), fixture.splits_at(fixture.key(bucket, b"")), "{middle}");
        }
        let mut lone = Fixture::new(Sharding::Hash, 1);
        lone.takes(BOUND + 1);
        assert_eq!(lone.pass(), []);
    }

    #[test]
    fn a_bound_that_is_lowered_counts_at_once_and_none_ends_it() {
        let mut fixture = Fixture::new(Sharding::Range, 1);
        fixture.takes(BOUND);
        assert_eq!(fixture.pass(), []);
        let collection = fixture.collection();
        let change = |bytes| MetaCommand::ChangeCollection {
            collection,
            settings: CollectionSettings { split_bytes: Some(bytes), ..CollectionSettings::NONE },
        };
        fixture.world.meta.apply(&change(BOUND - 1));
        assert!(matches!(fixture.pass()[..], [Action::Measure { .. }]));
        fixture.world.meta.apply(&change(0));
        fixture.world.now_ms += AGAIN_MS;
        assert_eq!(fixture.pass(), []);
        fixture.measured(BOUND, Some(fixture.key(0, b"m")));
        assert_eq!(fixture.pass(), [], "what was measured meanwhile is of no use");
    }

    #[test]
    fn nothing_is_split_where_something_else_changes_the_shard_or_the_node_drains() {
        let mut fixture = Fixture::new(Sharding::Range, 1);
        fixture.takes(BOUND + 1);
        let epoch = fixture.world.replicas[0].descriptor.epoch;
        fixture.world.replicas[0].descriptor.epoch.config += 1;
        assert_eq!(fixture.pass(), [], "the metadata does not know its configuration");
        fixture.world.replicas[0].descriptor.epoch = epoch;
        assert_eq!(fixture.pass(), fixture.measures());
        fixture.world.now_ms += AGAIN_MS;
        fixture.world.meta.set_state(1, NodeState::Draining);
        assert_eq!(fixture.pass(), []);
        fixture.world.meta.set_state(1, NodeState::Active);
        assert_eq!(fixture.pass(), fixture.measures());
        fixture.world.now_ms += AGAIN_MS;
        fixture.world.replicas[0].group = None;
        assert_eq!(fixture.pass(), [], "another one leads");
    }
}
