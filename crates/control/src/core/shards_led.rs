//! Moves each shard that is led here one step towards its intent, and reports its new configuration.
//!
//! Invariants: no node votes in the metadata group before it holds the cluster's authority, because any voter
//! may have to admit a node. A shard changes only by metadata that has recorded its current configuration:
//! older metadata, which a leader that was cut off or has just started may hold, may still want a replica
//! that newer metadata had removed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_membership::NodeState;
use flotilla_meta::{
    MetaCommand, MetaState, NodeState as AdminState, OperationRecord, OperationState, PlannedSplit, ShardRecord,
};
use flotilla_replication::{ConfChange, ReplicaStatus, ShardChange, Split};
use flotilla_types::{NodeId, ReplicaId, ShardId};

use super::{
    Action, Operations, Outcome, Reconciler, ShardStep, View, last_look::LastLook, merges, merges::SeenMerges,
    next_shard_step, operations::Tracker,
};

/// Interval after a pass with actions, in milliseconds.
const BUSY_MS: u64 = 50;
/// Interval after a pass without actions, in milliseconds.
const IDLE_MS: u64 = 200;

/// Drives the shards that are led here.
#[derive(Debug, Default)]
pub struct ShardsLed {
    busy: bool,
    /// Whether a merge waits for the next pass.
    merging: bool,
    merges: SeenMerges,
    /// Whose nodes have confirmed the cluster's authority since this node started: replicas and serial
    /// numbers of authorities. A node deletes the key when its replica is gone.
    has_authority: BTreeSet<(ReplicaId, u64)>,
    /// What nodes were last asked to confirm.
    asked: BTreeMap<NodeId, (ReplicaId, u64)>,
    operations: Tracker,
    last_look: LastLook,
    /// Shards that do not match their intent, or whose descriptor is to be reported.
    unsettled: BTreeSet<ShardId>,
    /// Whether this node was to lead nothing, at the last look.
    gave_up: bool,
}

impl ShardsLed {
    /// What changes the shards that are led here, as of the last pass.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        self.operations.shown()
    }

    /// Makes the next pass look at every shard.
    #[cfg(test)]
    pub(super) fn look_anew(&mut self) {
        self.last_look = LastLook::default();
    }

    /// The nodes that need the authority before a change.
    fn lacks_authority(&mut self, serial: u64, replica: &ReplicaStatus, change: &ConfChange) -> Vec<Action> {
        let ConfChange::Swap { promote, .. } = change else { return Vec::new() };
        if replica.shard != ShardId::META {
            return Vec::new();
        }
        let lacking = promote.iter().filter(|promoted| !self.has_authority.contains(&(**promoted, serial)));
        let nodes = lacking.filter_map(|promoted| Some((replica.descriptor.node_of(*promoted)?, (*promoted, serial))));
        let asked: Vec<_> = nodes.collect();
        self.asked.extend(asked.iter().copied());
        asked.into_iter().map(|(to, _)| Action::GiveAuthority { to }).collect()
    }
}

impl Reconciler for ShardsLed {
    fn interval_ms(&self) -> u64 {
        match (self.merging, self.busy) {
            (true, _) => merges::PASS_MS,
            (false, true) => BUSY_MS,
            (false, false) => IDLE_MS,
        }
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let mut actions = self.merges.observe(view);
        let mut reports = Vec::new();
        let gives_up = view.meta.node(view.me.node).is_some_and(|me| me.state != AdminState::Active);
        let mut shards = self.last_look.changes(view, |_, _| true);
        shards.append(&mut self.unsettled);
        // The plan of a merge is in the record of the left shard, and changes that alone.
        shards.extend(view.meta.merges().map(|(_, merge)| merge.right));
        if std::mem::replace(&mut self.gave_up, gives_up) != gives_up {
            shards.extend(view.led().map(|(replica, _)| replica.shard));
        }
        for shard in shards {
            let led =
                view.leader_of(shard).and_then(|(replica, group)| Some((replica, group, view.meta.shard(shard)?)));
            let Some((replica, group, record)) = led else {
                self.operations.forget(shard);
                if let Some(at) = planned_beside(view, shard) {
                    actions.push(Action::PrepareSplit { shard, at });
                    self.unsettled.insert(shard);
                }
                continue;
            };
            let changes = self.operations.observe(replica, group, &record.intent, gives_up, view.wall_ms);
            // The keys of a shard that is frozen are nobody's until it is merged or has them again.
            let is_frozen = replica.descriptor.is_frozen();
            let unreported = replica.descriptor.epoch > record.descriptor.epoch && !is_frozen;
            let may_lead = |node| {
                let is_active = view.meta.node(node).is_some_and(|node| node.state == AdminState::Active);
                // A suspect counts: a step names only replicas that answer the leader.
                is_active && matches!(view.members.liveness(node).0, NodeState::Alive | NodeState::Suspect)
            };
            let paused = paused_replicas(view.meta, shard);
            let next = next_shard_step(replica.replica, view.me.node, group, &record.intent, &paused, may_lead);
            let must_wait = is_frozen || unreported && next != ShardStep::Change(ConfChange::LeaveJoint);
            let is_planned = record.split.is_some() || view.meta.merge_with(shard).is_some();
            if changes || unreported || next != ShardStep::Nothing || is_planned {
                self.unsettled.insert(shard);
            }
            if next == ShardStep::Nothing && !unreported {
                let split = planned_split(view.meta, replica, record);
                actions.extend(split.map(|change| Action::ChangeShard { shard, change }));
            }
            if !unreported {
                let merge = merges::next_change(view.meta, replica, &self.merges, view.now_ms);
                actions.extend(merge.map(|change| Action::ChangeShard { shard, change }));
            }
            match next {
                _ if must_wait => {}
                ShardStep::Nothing => {}
                ShardStep::TransferLeadership(successor) => {
                    let to = replica.descriptor.node_of(successor);
                    actions.extend(to.map(|to| Action::Transfer { shard: replica.shard, to }));
                }
                ShardStep::Change(change) => {
                    let serial = view.meta.authority().map_or(0, |authority| authority.serial);
                    let lacking = self.lacks_authority(serial, replica, &change);
                    if lacking.is_empty() {
                        actions.push(Action::Change { shard: replica.shard, change });
                    } else {
                        actions.extend(lacking);
                    }
                }
            }
            if unreported {
                let report = MetaCommand::ReportShard { descriptor: replica.descriptor.clone() };
                reports.push(Action::Propose(report));
            }
        }
        self.operations.finish();
        actions.append(&mut reports);
        self.busy = !actions.is_empty();
        self.merging = self.merges.wait_for_leader(view);
        actions
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        if let Outcome::AuthorityTaken(node) = outcome {
            self.has_authority.extend(self.asked.remove(&node));
        }
    }
}

/// Whether nobody has paused a planned split.
fn goes_on(meta: &MetaState, planned: &PlannedSplit) -> bool {
    meta.operation(planned.operation).is_some_and(|operation| operation.state != OperationState::Paused)
}

/// The key at which a shard is to be split of which a follower is here.
fn planned_beside(view: &View<'_>, shard: ShardId) -> Option<Bytes> {
    let planned = view.meta.shard(shard)?.split.as_ref().filter(|planned| goes_on(view.meta, planned))?;
    let is_before = |replica: &ReplicaStatus| replica.group.is_some() && replica.descriptor.range.contains(&planned.at);
    view.replicas.of_shard(shard).any(is_before).then(|| planned.at.clone())
}

/// The split that an operator has ordered, led by the new shard's replica here, unless it is paused.
fn planned_split(meta: &MetaState, leader: &ReplicaStatus, record: &ShardRecord) -> Option<ShardChange> {
    let planned = record.split.as_ref().filter(|planned| goes_on(meta, planned))?;
    let mut replicas = planned.replicas.clone();
    replicas.sort_unstable();
    let (_, heir) = *replicas.iter().find(|(parent, _)| *parent == leader.replica)?;
    let (at, child, epoch) = (planned.at.clone(), planned.child, record.descriptor.epoch);
    let split = Split { at, child, epoch, replicas, heir };
    split.halves(&leader.descriptor).is_ok().then_some(ShardChange::Split(split))
}

/// The replicas, old and new, of a shard's moves that an operator has paused.
fn paused_replicas(meta: &MetaState, shard: ShardId) -> BTreeSet<ReplicaId> {
    let paused = meta.running_of(shard).filter(|operation| operation.state == OperationState::Paused);
    paused.filter_map(OperationRecord::moved).flat_map(|(from, to)| [from.replica, to.replica]).collect()
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use flotilla_types::ClusterVersion;

    use super::*;
    use crate::core::testing::{Meta, World, leads, node};

    #[test]
    fn metadata_group_grows_to_its_intent_and_voters_get_the_authority_first() {
        let mut meta = Meta::of_nodes(3);
        meta.assign(ShardId::META, 2);
        meta.assign(ShardId::META, 3);
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        let add = |id| ConfChange::AddLearner { replica: ReplicaId(id), node: node(id) };
        let change = |change| [Action::Change { shard: ShardId::META, change }];
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        assert_eq!(world.reconcile(&mut led), change(add(2)));
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 2)])];
        assert_eq!(world.reconcile(&mut led), change(add(3)));
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 2), (3, 3)])];
        let give = |id| Action::GiveAuthority { to: node(id) };
        assert_eq!(world.reconcile(&mut led), [give(2), give(3)]);
        led.on_outcome(Outcome::AuthorityTaken(node(2)));
        assert_eq!(world.reconcile(&mut led), [give(3)], "node 3 did not confirm it");
        led.on_outcome(Outcome::AuthorityTaken(node(3)));
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        assert_eq!(world.reconcile(&mut led), change(swap));
    }

    #[test]
    fn a_node_that_votes_again_gets_the_authority_again() {
        let mut meta = Meta::of_nodes(2);
        meta.assign(ShardId::META, 2);
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        let give = [Action::GiveAuthority { to: node(2) }];
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 2)])];
        assert_eq!(world.reconcile(&mut led), give);
        led.on_outcome(Outcome::AuthorityTaken(node(2)));
        assert!(matches!(world.reconcile(&mut led)[..], [Action::Change { .. }]));
        // Its replica was replaced by another one, and the node may have deleted the key in between.
        world.meta.unassign(ShardId::META, 2);
        world.meta.assign(ShardId::META, 2);
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 3)])];
        assert_eq!(world.reconcile(&mut led), give);
    }

    #[test]
    fn changed_shards_are_reported_after_all_steps() {
        let mut meta = Meta::of_nodes(2);
        meta.assign(ShardId::META, 2);
        let shards = meta.collection(&[&[1], &[2]]);
        let mut world = World::new(1, meta);
        let mut moved = leads(shards[0].0, &[(1, 3)], &[]);
        moved.descriptor.epoch.config += 1;
        world.replicas = vec![moved.clone(), leads(0, &[(1, 1)], &[]), leads(shards[1].0, &[(2, 4)], &[])];
        world.replicas[2].group = None;
        let add = ConfChange::AddLearner { replica: ReplicaId(2), node: node(2) };
        let report = MetaCommand::ReportShard { descriptor: moved.descriptor };
        assert_eq!(
            world.reconcile(&mut ShardsLed::default()),
            [Action::Change { shard: ShardId::META, change: add }, Action::Propose(report)]
        );
    }

    #[test]
    fn unreported_configuration_allows_only_leaving_a_joint_one() {
        let mut meta = Meta::of_nodes(2);
        meta.assign(ShardId::META, 2);
        let mut world = World::new(1, meta);
        let mut ahead = leads(0, &[(1, 1)], &[]);
        ahead.descriptor.epoch.config += 1;
        let report = Action::Propose(MetaCommand::ReportShard { descriptor: ahead.descriptor.clone() });
        world.replicas = vec![ahead.clone()];
        assert_eq!(
            world.reconcile(&mut ShardsLed::default()),
            std::slice::from_ref(&report),
            "the wanted replica may have been removed since"
        );
        ahead.group.as_mut().expect("a leader").conf.voters_outgoing = vec![ReplicaId(1)];
        world.replicas = vec![ahead];
        let leave = Action::Change { shard: ShardId::META, change: ConfChange::LeaveJoint };
        assert_eq!(world.reconcile(&mut ShardsLed::default()), [leave, report]);
    }

    #[test]
    fn a_planned_split_is_proposed_with_the_leaders_own_heir_unless_it_is_paused() {
        let mut meta = Meta::of_nodes(3);
        let shard = meta.collection(&[&[1, 2, 3]])[0];
        let child = meta.plan_split(shard);
        let mut world = World::new(2, meta);
        let mut leader = leads(shard.0, &[(2, 3), (1, 2), (3, 4)], &[]);
        leader.descriptor = world.meta.state().shard(shard).expect("a shard").descriptor.clone();
        world.replicas = vec![leader.clone()];
        let planned = world.meta.state().shard(shard).and_then(|record| record.split.clone()).expect("a plan");
        let heir = planned.replicas.iter().find(|(parent, _)| *parent == ReplicaId(3)).expect("one for each").1;
        let split = Split {
            at: planned.at.clone(),
            child,
            epoch: leader.descriptor.epoch,
            replicas: planned.replicas.clone(),
            heir,
        };
        let propose = [Action::ChangeShard { shard, change: ShardChange::Split(split) }];
        let mut led = ShardsLed::default();
        assert_eq!(world.reconcile(&mut led), propose);
        assert_eq!(world.reconcile(&mut led), propose, "it may have been refused");
        let mut ahead = leader.clone();
        ahead.descriptor.epoch.config += 1;
        world.replicas = vec![ahead];
        let actions = world.reconcile(&mut ShardsLed::default());
        assert!(matches!(actions[..], [Action::Propose(MetaCommand::ReportShard { .. })]), "{actions:?}");
        world.replicas = vec![leader];
        let operation = planned.operation;
        let change = flotilla_meta::OperationChange::Pause;
        world.meta.apply(&MetaCommand::ChangeOperation { operation, changes: 0, change });
        assert_eq!(world.reconcile(&mut ShardsLed::default()), []);
    }

    /// Node 1 is to be replaced by node 4. Nodes 2 and 3 are caught up, but node 2 drains.
    #[test]
    fn a_suspected_node_takes_over_rather_than_one_that_drains() {
        let mut meta = Meta::of_nodes(4);
        let shard = meta.collection(&[&[1, 2, 3]])[0];
        (2..=ClusterVersion::LOGGED_FOLDS.0).for_each(|version| meta.raise_to(ClusterVersion(version)));
        meta.assign(shard, 4);
        meta.unassign(shard, 1);
        meta.set_state(2, AdminState::Draining);
        let mut world = World::new(1, meta);
        world.replicas = vec![leads(shard.0, &[(1, 2), (2, 3), (3, 4)], &[(4, 5)])];
        for (state, to) in [(NodeState::Alive, 3), (NodeState::Suspect, 3), (NodeState::Down, 2)] {
            world.hears(2, NodeState::Alive);
            world.hears(3, state);
            let transfer = [Action::Transfer { shard, to: node(to) }];
            assert_eq!(world.reconcile(&mut ShardsLed::default()), transfer, "{state:?}");
        }
    }
}
