//! The steps of planned merges, each found by looking at the metadata and at the replicas here.
//!
//! ```text
//! leader of the right shard:  freeze it
//! every node:                 report that its replica of the right shard is frozen, durable
//! leader of the left shard:   merge, once all have reported; or abort
//! leader of the right shard:  thaw it, once the left one has reported that it will not merge
//! ```
//!
//! Invariants: passes remember only since when a merge is known, so a new leader goes on where another one stopped; a
//! merge is proposed only by metadata in which every replica of the right shard has reported, and a thaw only by
//! metadata in which the left shard's epoch is over and the plan is not: the first cannot happen any more then.

use std::collections::{BTreeMap, btree_map::Entry};

use flotilla_meta::{MetaCommand, MetaState, PlannedMerge, ShardRecord};
use flotilla_replication::{Freeze, Merge, ReplicaStatus, Replicas, ShardChange, Thaw};
use flotilla_types::{NodeId, OperationId, ReplicaId, ShardId};

use super::{Action, View};

/// How long a merge may take from when a leader has seen it, in milliseconds: the keys of the right shard are not
/// served for most of that time.
const MERGE_MS_MAX: u64 = 5_000;
/// Interval of passes while a merge waits for a step of this node, in milliseconds: clients wait for it.
pub(super) const PASS_MS: u64 = 2;

/// Since when planned merges are known here, by this node's monotonic clock.
#[derive(Debug, Default)]
pub(super) struct SeenMerges(BTreeMap<OperationId, u64>);

impl SeenMerges {
    /// Takes note of the merges that are planned now. Visits those alone. Returns what prepares replicas here for new
    /// ones.
    pub(super) fn observe(&mut self, view: &View<'_>) -> Vec<Action> {
        let has_ended = |id: &OperationId| view.meta.operation(*id).is_none_or(|operation| operation.state.has_ended());
        self.0.retain(|operation, _| !has_ended(operation));
        let mut actions = Vec::new();
        for (left, merge) in view.meta.merges() {
            if let Entry::Vacant(entry) = self.0.entry(merge.operation) {
                entry.insert(view.now_ms);
                let both = [(left, merge.epoch), (merge.right, merge.right_epoch)];
                let here = both.into_iter().filter(|(shard, _)| view.replicas.of_shard(*shard).next().is_some());
                actions.extend(here.map(|(shard, epoch)| Action::PrepareMerge { shard, epoch }));
            }
        }
        actions
    }

    fn is_late(&self, merge: &PlannedMerge, now_ms: u64) -> bool {
        self.0.get(&merge.operation).is_some_and(|since_ms| now_ms > since_ms.saturating_add(MERGE_MS_MAX))
    }

    /// Whether a merge may be waiting for a step of this node as the leader of one of its shards.
    pub(super) fn wait_for_leader(&self, view: &View<'_>) -> bool {
        let is_led = |shard| view.leader_of(shard).is_some();
        let waits = |(left, merge): (ShardId, &PlannedMerge)| {
            !self.is_late(merge, view.now_ms) && (is_led(left) || is_led(merge.right))
        };
        view.meta.merges().any(waits)
    }

    /// Whether a merge waits for this node's report of its replica of the right shard.
    pub(super) fn wait_for_report(&self, view: &View<'_>) -> bool {
        let waits = |(left, merge): (ShardId, &PlannedMerge)| {
            let here = view.replicas.of_shard(merge.right).any(|replica| !merge.frozen.contains(&replica.replica));
            let is_decided = view.meta.shard(left).is_none_or(|record| record.descriptor.epoch != merge.epoch);
            here && !is_decided && !self.is_late(merge, view.now_ms)
        };
        view.meta.merges().any(waits)
    }
}

/// The next step of the merge in which a shard led here takes part.
pub(super) fn next_change(
    meta: &MetaState,
    leader: &ReplicaStatus,
    seen: &SeenMerges,
    now_ms: u64,
) -> Option<ShardChange> {
    let (left, merge) = meta.merge_with(leader.shard)?;
    let is_late = seen.is_late(merge, now_ms);
    let change = if left == leader.shard {
        change_of_left(meta, left, merge, is_late)?
    } else {
        change_of_right(meta, left, merge, is_late)?
    };
    // Otherwise it has happened, or cannot.
    change.after(&leader.descriptor).is_ok().then_some(change)
}

fn change_of_left(meta: &MetaState, left: ShardId, merge: &PlannedMerge, is_late: bool) -> Option<ShardChange> {
    let epoch = merge.epoch;
    if must_abort(meta, left, merge, is_late) {
        return Some(ShardChange::Abort { epoch });
    }
    let merged = || Merge {
        epoch,
        source: merge.right,
        source_epoch: Freeze::epoch_after(merge.right_epoch),
        source_range: merge.right_range.clone(),
        replicas: merge.replicas.clone(),
    };
    merge.is_ready().then(|| ShardChange::Merge(merged()))
}

fn change_of_right(meta: &MetaState, left: ShardId, merge: &PlannedMerge, is_late: bool) -> Option<ShardChange> {
    let epoch = merge.right_epoch;
    if meta.shard(left)?.descriptor.epoch != merge.epoch {
        // It was not merged, or its record would be gone.
        return Some(ShardChange::Thaw(Thaw { epoch, range: merge.right_range.clone() }));
    }
    (!must_abort(meta, left, merge, is_late)).then_some(ShardChange::Freeze(Freeze { epoch }))
}

/// Whether a merge that is not decided must not come about: it was cancelled, has taken too long, or one of the shards
/// has changed since it was planned.
fn must_abort(meta: &MetaState, left: ShardId, merge: &PlannedMerge, is_late: bool) -> bool {
    let epoch_of = |shard| meta.shard(shard).map(|record| record.descriptor.epoch);
    let is_planned_for = (epoch_of(left), epoch_of(merge.right)) == (Some(merge.epoch), Some(merge.right_epoch));
    merge.is_cancelled || is_late || !is_planned_for
}

/// The reports of replicas here that are frozen, durable, and not known to be.
pub(super) fn reports(meta: &MetaState, me: NodeId, here: &Replicas) -> Vec<Action> {
    let of_plan = |(left, merge): (ShardId, &PlannedMerge)| {
        let frozen = Some(Freeze::epoch_after(merge.right_epoch));
        let is_new = |replica: &&ReplicaStatus| {
            replica.frozen == frozen
                && replica.descriptor.is_frozen()
                && !merge.frozen.contains(&replica.replica)
                && merge.replicas.iter().any(|(_, right)| *right == replica.replica)
        };
        let replica = here.of_shard(merge.right).find(is_new)?.replica;
        let right_epoch = merge.right_epoch;
        Some(Action::Propose(MetaCommand::ReportFrozen { left, right_epoch, replica }))
    };
    let is_here = |left: &ShardId| meta.shard(*left).is_some_and(|record| record.descriptor.replica_on(me).is_some());
    meta.merges().filter(|(left, _)| is_here(left)).filter_map(of_plan).collect()
}

/// Whether a replica of the right shard of a merge may have been merged: it was reported, and the left shard's log has
/// decided nothing that the metadata knows of. One that was not reported is not merged, and its shard may need it to
/// have a leader, without whom the merge does not end.
pub(super) fn may_be_merged(meta: &MetaState, shard: ShardId, replica: ReplicaId) -> bool {
    meta.merge_with(shard).is_some_and(|(left, merge)| {
        let is_undecided = meta.shard(left).is_some_and(|record| record.descriptor.epoch == merge.epoch);
        left != shard && is_undecided && merge.frozen.contains(&replica)
    })
}

/// Whether a replica of a shard that was merged is still needed: the one that it is to be merged into may not have
/// come to that entry, or a split may be about to create it. Visits every shard, for the moment in which such a replica
/// is here.
pub(super) fn is_needed(meta: &MetaState, me: NodeId, here: &Replicas, replica: &ReplicaStatus) -> bool {
    let start = &replica.descriptor.range.start;
    let is_behind = |other: &ReplicaStatus| {
        let known = meta.shard(other.shard).map(|record| record.descriptor.epoch.range);
        other.descriptor.range.end == *start && known.is_some_and(|known| other.descriptor.epoch.range < known)
    };
    let is_to_come = || {
        let has_start = |record: &&ShardRecord| record.id != ShardId::META && record.descriptor.range.contains(start);
        let now = meta.shards().find(has_start);
        let held = now.and_then(|record| Some((record.id, record.descriptor.replica_on(me)?.replica)));
        held.is_some_and(|(shard, left)| here.of_shard(shard).all(|replica| replica.replica != left))
    };
    replica.descriptor.is_frozen() && (here.iter().any(is_behind) || is_to_come())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        Lifecycle, ShardsLed,
        testing::{Meta, World, leads, replica},
    };
    use flotilla_meta::OperationChange;
    use flotilla_types::Epoch;

    const LATE_MS: u64 = MERGE_MS_MAX + 1;

    /// Three nodes with two shards, which are to be merged. Node 1 leads both.
    fn world() -> (World, ShardId, ShardId) {
        let mut meta = Meta::of_nodes(3);
        let shards = meta.collection(&[&[1, 2, 3], &[1, 2, 3]]);
        let (left, right) = (shards[0], shards[1]);
        meta.plan_merge(left, right);
        let mut world = World::new(1, meta);
        world.replicas = [left, right].map(|shard| led(&world, shard)).into();
        (world, left, right)
    }

    fn led(world: &World, shard: ShardId) -> ReplicaStatus {
        let descriptor = world.meta.state().shard(shard).expect("a shard").descriptor.clone();
        let held: Vec<_> = descriptor.replicas.iter().map(|held| (held.node.0, held.replica.0)).collect();
        let mut leader = leads(shard.0, &held, &[]);
        leader.descriptor = descriptor;
        leader
    }

    fn plan(world: &World, left: ShardId) -> PlannedMerge {
        world.meta.state().shard(left).and_then(|record| record.merge.clone()).expect("a plan")
    }

    fn changes(world: &World) -> Vec<(ShardId, ShardChange)> {
        changes_by(world, &mut ShardsLed::default())
    }

    fn changes_by(world: &World, led: &mut ShardsLed) -> Vec<(ShardId, ShardChange)> {
        let of = |action| match action {
            Action::ChangeShard { shard, change } => Some((shard, change)),
            _ => None,
        };
        world.reconcile(led).into_iter().filter_map(of).collect()
    }

    /// The changes of a leader that has known the merge for too long.
    fn late_changes(world: &mut World) -> Vec<(ShardId, ShardChange)> {
        let mut led = ShardsLed::default();
        changes_by(world, &mut led);
        world.now_ms += LATE_MS;
        changes_by(world, &mut led)
    }

    /// What the node proposes of its own replicas.
    fn proposals(world: &World) -> Vec<Action> {
        let actions = world.reconcile(&mut Lifecycle::default());
        actions.into_iter().filter(|action| matches!(action, Action::Propose(_))).collect()
    }

    fn apply(world: &mut World, shard: ShardId, change: &ShardChange) {
        let of_shard = world.replicas.iter_mut().filter(|replica| replica.shard == shard);
        of_shard.for_each(|replica| replica.descriptor = change.after(&replica.descriptor).expect("it applies"));
    }

    fn report(world: &mut World, shard: ShardId) {
        let descriptor = world.replicas.iter().find(|replica| replica.shard == shard).expect("here").descriptor.clone();
        world.meta.apply(&MetaCommand::ReportShard { descriptor });
    }

    fn freeze(world: &mut World, right: ShardId) {
        let found = changes(world);
        assert!(matches!(&found[..], [(shard, ShardChange::Freeze(_))] if *shard == right), "{found:?}");
        apply(world, right, &found[0].1);
    }

    #[test]
    fn a_right_shard_is_looked_at_although_nothing_of_it_has_changed() {
        let mut meta = Meta::of_nodes(3);
        let shards = meta.collection(&[&[1, 2, 3], &[1, 2, 3]]);
        let mut world = World::new(1, meta);
        // Another node leads the left one.
        world.replicas = vec![led(&world, shards[1])];
        let mut reconciler = ShardsLed::default();
        assert_eq!(changes_by(&world, &mut reconciler), []);
        world.meta.plan_merge(shards[0], shards[1]);
        let found = changes_by(&world, &mut reconciler);
        assert!(matches!(&found[..], [(shard, ShardChange::Freeze(_))] if *shard == shards[1]), "{found:?}");
    }

    #[test]
    fn a_merge_waits_for_every_replica_of_the_right_shard() {
        let (mut world, left, right) = world();
        freeze(&mut world, right);
        assert_eq!(changes(&world), []);
        let led = world.reconcile(&mut ShardsLed::default());
        let prepares = |action: &Action| matches!(action, Action::PrepareMerge { .. });
        assert!(led.len() == 2 && led.iter().all(prepares), "a frozen shard is not reported: {led:?}");
        assert_eq!(proposals(&world), [], "its checkpoint is not durable");
        world.replicas[1].frozen = Some(world.replicas[1].descriptor.epoch);
        let own = proposals(&world);
        let planned = plan(&world, left);
        let reports = planned.replicas.iter().map(|(_, replica)| MetaCommand::ReportFrozen {
            left,
            right_epoch: planned.right_epoch,
            replica: *replica,
        });
        let reports: Vec<_> = reports.collect();
        assert_eq!(own, [Action::Propose(reports[0].clone())]);
        for report in &reports {
            assert_eq!(changes(&world), []);
            world.meta.apply(report);
        }
        assert_eq!(proposals(&world), [], "it is known");
        let found = changes(&world);
        assert!(matches!(&found[..], [(shard, ShardChange::Merge(_))] if *shard == left), "{found:?}");
        apply(&mut world, left, &found[0].1);
        report(&mut world, left);
        assert!(world.meta.state().shard(right).is_none());
    }

    #[test]
    fn a_merge_that_is_cancelled_late_or_overtaken_is_aborted_and_the_right_shard_thawed() {
        for reason in 0..3 {
            let (mut world, left, right) = world();
            freeze(&mut world, right);
            match reason {
                0 => {
                    let (operation, change) = (plan(&world, left).operation, OperationChange::Cancel);
                    world.meta.apply(&MetaCommand::ChangeOperation { operation, changes: 0, change });
                }
                1 => {}
                _ => apply(&mut world, left, &ShardChange::Bump),
            }
            if reason < 2 {
                let found = if reason == 1 { late_changes(&mut world) } else { changes(&world) };
                let abort = ShardChange::Abort { epoch: plan(&world, left).epoch };
                assert_eq!(found, [(left, abort)]);
                apply(&mut world, left, &found[0].1);
            }
            assert_eq!(changes(&world), [], "the metadata does not know of it");
            report(&mut world, left);
            let found = changes(&world);
            assert!(matches!(&found[..], [(shard, ShardChange::Thaw(_))] if *shard == right), "{found:?}");
            apply(&mut world, right, &found[0].1);
            report(&mut world, right);
            assert_eq!(world.meta.state().merges().count(), 0);
            assert_eq!(changes(&world), []);
        }
    }

    #[test]
    fn a_right_shard_that_was_never_frozen_is_kept_from_freezing_late() {
        let (mut world, left, right) = world();
        let found = late_changes(&mut world);
        assert!(matches!(&found[..], [(_, ShardChange::Abort { .. })]), "{found:?}");
        apply(&mut world, left, &found[0].1);
        report(&mut world, left);
        let found = changes(&world);
        assert!(matches!(&found[..], [(shard, ShardChange::Thaw(_))] if *shard == right), "{found:?}");
        apply(&mut world, right, &found[0].1);
        report(&mut world, right);
        assert_eq!(world.meta.state().merges().count(), 0);
    }

    #[test]
    fn a_replica_that_may_have_been_merged_is_not_created_and_any_other_is() {
        let (mut world, left, right) = world();
        let right_replica = world.replicas.pop().expect("a replica").replica;
        let creates = |world: &World| {
            let actions = world.reconcile(&mut Lifecycle::default());
            actions.iter().any(|action| matches!(action, Action::Create { replica, .. } if *replica == right_replica))
        };
        assert!(creates(&world), "nobody has reported it");
        let right_epoch = plan(&world, left).right_epoch;
        world.meta.apply(&MetaCommand::ReportFrozen { left, right_epoch, replica: right_replica });
        assert!(!creates(&world));
        let abort = ShardChange::Abort { epoch: plan(&world, left).epoch };
        apply(&mut world, left, &abort);
        report(&mut world, left);
        assert!(world.meta.state().merge_with(right).is_some(), "the right shard waits for its keys");
        assert!(creates(&world));
    }

    #[test]
    fn a_frozen_replica_stays_until_the_left_one_beside_it_has_come_to_the_merge() {
        let (mut world, left, right) = world();
        freeze(&mut world, right);
        let before = world.replicas.clone();
        let planned = plan(&world, left);
        for (_, replica) in planned.replicas {
            let right_epoch = planned.right_epoch;
            world.meta.apply(&MetaCommand::ReportFrozen { left, right_epoch, replica });
        }
        let found = changes(&world);
        apply(&mut world, left, &found[0].1);
        report(&mut world, left);
        let after = world.replicas.clone();
        let is_destroyed = |world: &World| {
            let actions = world.reconcile(&mut Lifecycle::default());
            actions.contains(&Action::Destroy { replica: before[1].replica })
        };
        world.replicas = before.clone();
        assert!(!is_destroyed(&world));
        // A split from which the left one comes may not have been applied here.
        world.replicas = before[1..].to_vec();
        assert!(!is_destroyed(&world));
        world.replicas = after;
        assert!(is_destroyed(&world));
        // One that was rolled back to before the freeze is of no use.
        world.replicas = vec![before[0].clone(), replica(right.0, before[1].replica.0)];
        world.replicas[1].descriptor.epoch = Epoch { range: 1, config: 1 };
        world.replicas[1].descriptor.range = planned.right_range;
        assert!(is_destroyed(&world));
        assert_ne!(before[1].replica, ReplicaId::NONE);
    }
}
