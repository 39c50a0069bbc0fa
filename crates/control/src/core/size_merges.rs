//! Merges small neighbouring shards that came of splits and have not been used for long.
//!
//! The leader of the left shard decides. A replica of the right one is on its node, else they cannot be merged, so it
//! knows at no cost what both take, and whether both rest.
//!
//! Invariants: a node plans one merge at a time; only what came of a split is merged into its neighbour, so a
//! collection keeps the shards that it was created with; what is merged is far from being split again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_meta::{MetaCommand, MetaState, NodeState, OperationReason, Setting, ShardRecord};
use flotilla_replication::ReplicaStatus;
use flotilla_types::{ClusterVersion, ShardId};

use super::{Action, Outcome, Reconciler, View, last_look::LastLook};

/// What two shards may take together, on the disk and in memory, to be merged.
const MERGE_BYTES: u64 = 20 << 20;
/// By how much less than what a split begins at.
const SPLIT_TO_MERGE: u64 = 3;
/// Between two passes, in milliseconds.
const PASS_MS: u64 = 1_000;
/// Between two attempts to merge a shard, in milliseconds.
const AGAIN_MS: u64 = 60_000;

/// Merges shards that are small and not used.
#[derive(Debug, Default)]
pub struct SizeMerges {
    last_look: LastLook,
    /// Where each shard begins of which a replica is here, and by that place.
    starts: BTreeMap<ShardId, Bytes>,
    by_start: BTreeMap<Bytes, ShardId>,
    /// Since when shards led here have had a right neighbour to merge, and by that time.
    since: BTreeMap<ShardId, u64>,
    by_time: BTreeSet<(u64, ShardId)>,
    /// The last shard into which one was merged.
    merging: Option<ShardId>,
}

impl Reconciler for SizeMerges {
    fn interval_ms(&self) -> u64 {
        PASS_MS
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let after_ms = view.meta.setting(Setting::ShardMergeAfterS) * 1_000;
        let is_active = view.meta.node(view.me.node).is_some_and(|me| me.state == NodeState::Active);
        let is_on = view.meta.cluster_version() >= ClusterVersion::MERGES
            && view.meta.setting(Setting::ShardMerges) == 1
            && after_ms > 0
            && is_active;
        if !is_on {
            *self = Self::default();
            return Vec::new();
        }
        for shard in self.last_look.changes(view, |_, _| true) {
            let before = self.left_of(shard);
            self.note_start(view, shard);
            for left in [before, self.left_of(shard), Some(shard)].into_iter().flatten() {
                self.look_at(view, left);
            }
        }
        if self.merging.is_some_and(|left| view.meta.merge_with(left).is_some()) {
            return Vec::new();
        }
        let Some((since_ms, left)) = self.by_time.first().copied() else { return Vec::new() };
        if since_ms.saturating_add(after_ms) > view.now_ms {
            return Vec::new();
        }
        self.forget(left);
        let Some((record, right)) = self.right_of(view, left) else { return Vec::new() };
        // If it is refused, or does not come about.
        self.remember(left, view.now_ms.saturating_add(AGAIN_MS).saturating_sub(after_ms));
        self.merging = Some(left);
        let of = |record: &ShardRecord| (record.id, record.descriptor.epoch);
        let reason = OperationReason::Unused;
        vec![Action::Propose(MetaCommand::MergeShards { left: of(record), right: of(right), reason })]
    }

    fn on_outcome(&mut self, _: Outcome) {}
}

impl SizeMerges {
    fn note_start(&mut self, view: &View<'_>, shard: ShardId) {
        if let Some(start) = self.starts.remove(&shard)
            && self.by_start.get(&start) == Some(&shard)
        {
            self.by_start.remove(&start);
        }
        if let Some(record) = view.meta.shard(shard).filter(|_| view.replicas.of_shard(shard).next().is_some()) {
            let start = record.descriptor.range.start.clone();
            self.by_start.insert(start.clone(), shard);
            self.starts.insert(shard, start);
        }
    }

    /// The shard before one, of those that are here.
    fn left_of(&self, shard: ShardId) -> Option<ShardId> {
        let start = self.starts.get(&shard)?;
        self.by_start.range(..start.clone()).next_back().map(|(_, left)| *left)
    }

    fn look_at(&mut self, view: &View<'_>, left: ShardId) {
        if self.right_of(view, left).is_none() {
            self.forget(left);
        } else if !self.since.contains_key(&left) {
            self.remember(left, view.now_ms);
        }
    }

    fn remember(&mut self, left: ShardId, since_ms: u64) {
        self.since.insert(left, since_ms);
        self.by_time.insert((since_ms, left));
    }

    fn forget(&mut self, left: ShardId) {
        if let Some(since_ms) = self.since.remove(&left) {
            self.by_time.remove(&(since_ms, left));
        }
    }

    /// A shard that is led here, with the neighbour that is to be merged into it.
    fn right_of<'a>(&self, view: &View<'a>, left: ShardId) -> Option<(&'a ShardRecord, &'a ShardRecord)> {
        let record = view.meta.shard(left)?;
        let right = view.meta.shard(*self.by_start.get(&record.descriptor.range.end)?)?;
        let collection = view.meta.collection_with_id(record.collection)?;
        let bound = match collection.split_bytes {
            0 => MERGE_BYTES,
            bytes => MERGE_BYTES.min(bytes / SPLIT_TO_MERGE),
        };
        let (led, _) = view.leader_of(left)?;
        let beside = view.replicas.of_shard(right.id).find(|replica| resting(replica))?;
        let may_merge = right.collection == record.collection
            && is_split_off(right)
            && is_settled(view.meta, record, led)
            && is_settled(view.meta, right, beside)
            && resting(led)
            && led.usage.bytes().saturating_add(beside.usage.bytes()) <= bound;
        may_merge.then_some((record, right))
    }
}

/// Whether a shard came of a split: its collection was not created with it.
fn is_split_off(record: &ShardRecord) -> bool {
    record.initial.replicas.is_empty()
}

fn resting(replica: &ReplicaStatus) -> bool {
    replica.group.as_ref().is_some_and(|group| group.rests)
}

/// Whether nothing changes a shard.
fn is_settled(meta: &MetaState, record: &ShardRecord, here: &ReplicaStatus) -> bool {
    here.descriptor == record.descriptor
        && record.split.is_none()
        && meta.merge_with(record.id).is_none()
        && meta.running_of(record.id).next().is_none()
}

#[cfg(test)]
mod tests {
    use flotilla_meta::CollectionSettings;
    use flotilla_storage::Usage;
    use flotilla_types::Epoch;

    use super::*;
    use crate::core::testing::{Meta, World, leads};

    const AFTER_MS: u64 = 100_000;

    /// Node 1 leads a shard and what was split off it, which rest, and rest alone.
    struct Fixture {
        world: World,
        left: ShardId,
        right: ShardId,
        merges: SizeMerges,
    }

    impl Fixture {
        fn new() -> Self {
            let mut meta = Meta::of_nodes(3);
            let left = meta.collection(&[&[1, 2, 3], &[1, 2, 3]])[0];
            let right = meta.plan_split(left);
            meta.report_split(left);
            (ClusterVersion::SPLITS.0 + 1..=ClusterVersion::MERGES.0)
                .for_each(|version| meta.raise_to(ClusterVersion(version)));
            let after = (AFTER_MS / 1_000).to_string();
            meta.apply(&MetaCommand::PutSetting { key: Setting::ShardMergeAfterS.key().to_owned(), value: after });
            let mut fixture = Self { world: World::new(1, meta), left, right, merges: SizeMerges::default() };
            fixture.set(true, 1_000);
            fixture
        }

        /// What every shard is at node 1.
        fn set(&mut self, rests: bool, bytes: u64) {
            let meta = self.world.meta.state();
            let shards = meta.shards().filter(|record| record.id != ShardId::META);
            let of = |record: &ShardRecord| {
                let held: Vec<_> =
                    record.descriptor.replicas.iter().map(|held| (held.node.0, held.replica.0)).collect();
                let mut leader = leads(record.id.0, &held, &[]);
                leader.descriptor = record.descriptor.clone();
                leader.usage = Usage { checkpoint_bytes: bytes, ..Usage::default() };
                leader.group.as_mut().expect("a leader").rests = rests;
                leader
            };
            self.world.replicas = shards.map(of).collect();
        }

        fn change(&mut self, shard: ShardId, change: impl Fn(&mut ReplicaStatus)) {
            self.world.replicas.iter_mut().filter(|replica| replica.shard == shard).for_each(change);
        }

        fn pass(&mut self, later_ms: u64) -> Vec<Action> {
            self.world.now_ms += later_ms;
            self.world.reconcile(&mut self.merges)
        }

        fn merge(&self) -> Vec<Action> {
            let meta = self.world.meta.state();
            let of = |shard| (shard, meta.shard(shard).expect("a shard").descriptor.epoch);
            let (left, right, reason) = (of(self.left), of(self.right), OperationReason::Unused);
            vec![Action::Propose(MetaCommand::MergeShards { left, right, reason })]
        }
    }

    #[test]
    fn what_was_split_off_is_merged_again_once_both_have_rested_for_long() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.pass(0), []);
        assert_eq!(fixture.pass(AFTER_MS - 1), []);
        let merge = fixture.merge();
        assert_eq!(fixture.pass(1), merge);
        assert_eq!(fixture.pass(AGAIN_MS - 1), [], "it may have been refused");
        assert_eq!(fixture.pass(1), merge);
        let [Action::Propose(command)] = &merge[..] else { panic!("a proposal") };
        fixture.world.meta.apply(command);
        assert_eq!(fixture.pass(AFTER_MS + AGAIN_MS), [], "it is planned");
    }

    #[test]
    fn the_time_begins_anew_when_either_is_used() {
        for which in 0..2 {
            let mut fixture = Fixture::new();
            let used = [fixture.left, fixture.right][which];
            assert_eq!(fixture.pass(0), []);
            fixture.change(used, |replica| replica.group.as_mut().expect("a leader").rests = false);
            assert_eq!(fixture.pass(AFTER_MS), [], "{which}");
            fixture.change(used, |replica| replica.group.as_mut().expect("a leader").rests = true);
            assert_eq!(fixture.pass(1), []);
            assert_eq!(fixture.pass(AFTER_MS - 1), []);
            assert_eq!(fixture.pass(1), fixture.merge());
        }
    }

    #[test]
    fn large_shards_are_left_alone() {
        let mut fixture = Fixture::new();
        for (bytes, split_bytes, is_merged) in [
            (MERGE_BYTES / 2, MERGE_BYTES * SPLIT_TO_MERGE, true),
            (MERGE_BYTES / 2, 0, true),
            (MERGE_BYTES / 2 + 1, MERGE_BYTES * SPLIT_TO_MERGE, false),
            (2_000, 12_000, true),
            (2_001, 12_001, false),
        ] {
            fixture.merges = SizeMerges::default();
            fixture.set(true, bytes);
            let collection = fixture.world.meta.state().shard(fixture.left).expect("a shard").collection;
            let settings = CollectionSettings { split_bytes: Some(split_bytes), ..CollectionSettings::NONE };
            fixture.world.meta.apply(&MetaCommand::ChangeCollection { collection, settings });
            assert_eq!(fixture.pass(0), []);
            assert_eq!(fixture.pass(AFTER_MS).len(), usize::from(is_merged), "{bytes} {split_bytes}");
        }
    }

    #[test]
    fn shards_of_a_new_collection_stay_and_so_does_what_is_elsewhere_or_changes() {
        let mut fixture = Fixture::new();
        let all = fixture.world.replicas.clone();
        let merged = |fixture: &mut Fixture| {
            fixture.merges = SizeMerges::default();
            assert_eq!(fixture.pass(0), []);
            fixture.pass(AFTER_MS)
        };
        assert_eq!(merged(&mut fixture), fixture.merge(), "and not the second shard, with which it was created");
        let right = fixture.right;
        fixture.world.replicas.retain(|replica| replica.shard != right);
        assert_eq!(merged(&mut fixture), [], "the right one is elsewhere");
        fixture.world.replicas = all.clone();
        fixture.change(right, |replica| replica.descriptor.epoch = Epoch { range: 9, config: 9 });
        assert_eq!(merged(&mut fixture), [], "the metadata does not know its state");
        fixture.world.replicas = all.clone();
        let left = fixture.left;
        fixture.change(left, |replica| {
            replica.group.as_mut().expect("a leader").role = flotilla_replication::Role::Follower
        });
        assert_eq!(merged(&mut fixture), [], "another node leads");
        fixture.world.replicas = all;
        for (key, value) in [(Setting::ShardMerges, "0"), (Setting::ShardMergeAfterS, "0")] {
            fixture.world.meta.apply(&MetaCommand::PutSetting { key: key.key().to_owned(), value: value.to_owned() });
            assert_eq!(merged(&mut fixture), []);
            let default = key.default_value().to_string();
            fixture.world.meta.apply(&MetaCommand::PutSetting { key: key.key().to_owned(), value: default });
        }
        fixture.world.meta.set_state(1, NodeState::Draining);
        assert_eq!(merged(&mut fixture), []);
    }

    #[test]
    fn a_candidate_costs_nothing_until_it_changes_or_is_due() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.pass(0), []);
        assert_eq!((fixture.merges.since.len(), fixture.merges.by_time.len()), (1, 1));
        fixture.set(false, 1_000);
        assert_eq!(fixture.pass(0), []);
        assert_eq!((fixture.merges.since.len(), fixture.merges.by_time.len()), (0, 0));
        fixture.world.replicas.clear();
        assert_eq!(fixture.pass(0), []);
        assert_eq!((fixture.merges.starts.len(), fixture.merges.by_start.len()), (0, 0));
    }
}
