//! Decides which replicas this node creates, destroys, or has replaced.
//!
//! A *lost* replica is not used any more. A *damaged* one lacks objects and is whole otherwise: it votes on until
//! its replacement votes, so that its group keeps its quorum, even if others of it are damaged or rebuilt at
//! the same time. It gives away its leadership first, because the snapshot for the replacement comes from the
//! leader. Without another voter nothing could repair it, and it stays.
//!
//! Invariants: a lost replica is never used or created again; the metadata group must assign another one in
//! its place. A node whose data folder was rolled back creates nothing before fresh metadata has shown which
//! replicas the folder forgot: those are lost too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_membership::NodeState;
use flotilla_meta::{MetaCommand, MetaState, ReplicaStatus, ShardRecord};
use flotilla_replication::{Follower, LostReason, ReplicaStatus as HostedReplica, Replicas, Role};
use flotilla_types::{NodeId, ReplicaId, ReplicaRole, ShardId};

use super::{Action, Outcome, Reconciler, View, last_look::LastLook, merges, step::is_caught_up};

/// Minimum time between two transfers of a shard's leadership away from damage here: should the others be
/// damaged too, it goes around slowly. Milliseconds.
const TRANSFER_AGAIN_MS: u64 = 5_000;

/// Minimum time between two replacements of a shard's replica here, so that one that always fails costs
/// little. Milliseconds.
const REPLACE_AGAIN_MS: u64 = 10_000;

/// Interval of passes, in milliseconds.
const IDLE_MS: u64 = 200;

/// Replicas that this node may no longer use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The replicas.
    pub replicas: Vec<(ShardId, ReplicaId)>,
    /// Why.
    pub reason: LostReason,
}

/// Creates and destroys this node's replicas, and has lost ones replaced.
#[derive(Debug, Default)]
pub struct Lifecycle {
    lost: BTreeSet<ReplicaId>,
    folder: Folder,
    /// When the metadata group last answered a request to replace a shard's replica here.
    replaced: BTreeMap<ShardId, u64>,
    /// When a damaged leader of a shard here was last told to give its leadership away.
    transferred: BTreeMap<ShardId, u64>,
    last_pass_ms: u64,
    last_look: LastLook,
    /// Shards of whose replicas here one is lost or damaged, is to be created or destroyed, or is newer than the
    /// metadata.
    unsettled: BTreeSet<ShardId>,
    /// Whether a merge waits for a report of this node.
    merging: bool,
    merges: merges::SeenMerges,
}

/// How far the data folder can be trusted.
#[derive(Debug, Default)]
enum Folder {
    /// It has a record of every replica that was ever created here.
    #[default]
    Complete,
    /// It was rolled back: replicas that it has no record of are lost too, and only fresh metadata names them
    /// all.
    RolledBack,
    /// It was rolled back, and this is the fresh metadata.
    MetaFetched(Arc<MetaState>),
}

impl Lifecycle {
    /// Makes the next pass look at every shard.
    #[cfg(test)]
    pub(super) fn look_anew(&mut self) {
        self.last_look = LastLook::default();
    }

    /// Records that the host gave up replicas.
    pub fn on_loss(&mut self, loss: &Lost) {
        self.lost.extend(loss.replicas.iter().map(|(_, replica)| *replica));
        self.unsettled.extend(loss.replicas.iter().map(|(shard, _)| *shard));
        if loss.reason == LostReason::RolledBack {
            self.folder = Folder::RolledBack;
        }
    }

    /// Destroys the replicas that are assigned here but unknown to the folder, so that their ids are never
    /// used again.
    fn destroy_forgotten(&mut self, fresh: &MetaState, node: NodeId, here: &Replicas) -> Vec<Action> {
        let mut actions = Vec::new();
        for (record, replica) in fresh.desired_on(node) {
            if !is_here(here, record.id, replica) && self.lost.insert(replica) {
                self.unsettled.insert(record.id);
                actions.push(Action::Destroy { replica });
            }
        }
        // Those of shards that are about to be split off may have been here, and the metadata does not know yet.
        for (shard, replica) in fresh.planned_children_on(node) {
            if !is_here(here, shard, replica) && self.lost.insert(replica) {
                self.unsettled.insert(shard);
                actions.push(Action::Destroy { replica });
            }
        }
        actions.push(Action::TrustFolder);
        actions
    }

    /// Compares the replicas assigned to this node with those that are here.
    fn compare(&mut self, view: &View<'_>) -> Vec<Action> {
        let is_damaged = |replica: Option<&HostedReplica>| replica.map(|replica| replica.damaged);
        let mut shards = self.last_look.changes(view, |before, after| is_damaged(before) != is_damaged(after));
        shards.append(&mut self.unsettled);
        let (mut actions, mut destructions, mut proposals) = (Vec::new(), Vec::new(), Vec::new());
        let mut repairs = Vec::new();
        for shard in shards {
            let desired = view.meta.shard(shard).and_then(|record| Some((record, record.desired_on(view.me.node)?)));
            let mut settled = true;
            match desired {
                Some((_, replica)) if self.lost.contains(&replica) => {
                    settled = false;
                    if !self.replaced.contains_key(&shard) {
                        proposals.push(Action::Propose(MetaCommand::ReplaceReplica { shard, replica }));
                    }
                }
                Some((record, replica)) if !is_here(view.replicas, shard, replica) => {
                    settled = false;
                    if !merges::may_be_merged(view.meta, shard, replica) && !self.comes_of_split(view.replicas, record)
                    {
                        let founding = record.is_initial(replica);
                        let descriptor = if founding { &record.initial } else { &record.descriptor };
                        actions.push(Action::Create { replica, descriptor: descriptor.clone(), founding });
                    }
                }
                _ => {}
            }
            for here in view.replicas.of_shard(shard) {
                let status = view.meta.replica_status(shard, here.replica);
                settled &= status == ReplicaStatus::InUse && !here.damaged;
                if here.damaged && !self.lost.contains(&here.replica) {
                    repairs.extend(self.repair(view, here));
                }
                if status == ReplicaStatus::Obsolete && !merges::is_needed(view.meta, view.me.node, view.replicas, here)
                {
                    destructions.push(Action::Destroy { replica: here.replica });
                }
            }
            if !settled {
                self.unsettled.insert(shard);
            }
        }
        actions.append(&mut destructions);
        actions.append(&mut repairs);
        actions.append(&mut proposals);
        actions
    }

    /// Whether a replica of a shard that was split off comes out of a replica here, which has not come to the split.
    fn comes_of_split(&self, here: &Replicas, record: &ShardRecord) -> bool {
        record.parent.is_some_and(|parent| {
            let mut usable = here.of_shard(parent).filter(|replica| !self.lost.contains(&replica.replica));
            usable.any(|replica| replica.descriptor.range.contains(&record.descriptor.range.start))
        })
    }

    /// The next step towards a replacement of a damaged replica.
    fn repair(&mut self, view: &View<'_>, replica: &HostedReplica) -> Option<Action> {
        let (record, group) = (view.meta.shard(replica.shard)?, replica.group.as_ref()?);
        let me = replica.replica;
        if group.role == Role::Leader {
            let can_lead = |follower: &&Follower| {
                follower.replica != me
                    && group.conf.voters.contains(&follower.replica)
                    && is_caught_up(group, follower.replica)
            };
            let node_of = |follower: &Follower| replica.descriptor.node_of(follower.replica);
            let is_alive = |node: &NodeId| *node != view.me.node && view.members.liveness(*node).0 == NodeState::Alive;
            let heirs: Vec<_> = group.followers.iter().filter(can_lead).filter_map(node_of).filter(is_alive).collect();
            if heirs.is_empty() || self.transferred.contains_key(&replica.shard) {
                return None;
            }
            // Not always the same one: it may be damaged as well, and would give the leadership back.
            let to = heirs[(view.now_ms / TRANSFER_AGAIN_MS) as usize % heirs.len()];
            self.transferred.insert(replica.shard, view.now_ms);
            return Some(Action::Transfer { shard: replica.shard, to });
        }
        // A leader that is heard from has a quorum without this replica's word about its records.
        let is_led = group.leader != ReplicaId::NONE && group.leader != me;
        let is_wanted = record.intent.iter().any(|held| held.replica == me);
        if !is_led || !is_wanted || is_rebuilding(record) || self.replaced.contains_key(&replica.shard) {
            return None;
        }
        Some(Action::Propose(MetaCommand::ReplaceReplica { shard: replica.shard, replica: me }))
    }
}

/// Whether a replica of the shard does not vote yet, as far as the metadata knows.
pub(super) fn is_rebuilding(record: &ShardRecord) -> bool {
    let votes = |id: ReplicaId| {
        record.descriptor.replicas.iter().any(|held| held.replica == id && held.role == ReplicaRole::Voter)
    };
    record.intent.iter().any(|wanted| !votes(wanted.replica))
}

fn is_here(here: &Replicas, shard: ShardId, replica: ReplicaId) -> bool {
    here.of_shard(shard).any(|here| here.replica == replica)
}

impl Reconciler for Lifecycle {
    fn interval_ms(&self) -> u64 {
        if self.merging { merges::PASS_MS } else { IDLE_MS }
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        self.last_pass_ms = view.now_ms;
        self.replaced.retain(|_, at_ms| *at_ms + REPLACE_AGAIN_MS > view.now_ms);
        self.transferred.retain(|_, at_ms| *at_ms + TRANSFER_AGAIN_MS > view.now_ms);
        match std::mem::take(&mut self.folder) {
            Folder::Complete => {
                let mut actions = self.compare(view);
                // The reconciler of the shards that are led here prepares them.
                self.merges.observe(view);
                self.merging = self.merges.wait_for_report(view);
                actions.append(&mut merges::reports(view.meta, view.me.node, view.replicas));
                actions
            }
            Folder::RolledBack => {
                self.folder = Folder::RolledBack;
                vec![Action::FetchMeta]
            }
            Folder::MetaFetched(fresh) => self.destroy_forgotten(&fresh, view.me.node, view.replicas),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::FreshMeta(fresh) if matches!(self.folder, Folder::RolledBack) => {
                self.folder = Folder::MetaFetched(fresh);
            }
            // Any answer counts; without one the replacement is proposed again in the next pass.
            Outcome::Answered(command, _) => {
                if let MetaCommand::ReplaceReplica { shard, .. } = *command {
                    self.replaced.insert(shard, self.last_pass_ms);
                }
            }
            Outcome::AuthorityTaken(_) | Outcome::FreshMeta(_) | Outcome::Fingerprints(_) | Outcome::Measured(..) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::MetaReply;

    use super::*;
    use crate::core::testing::{Meta, World, leads, replica};

    fn lost(reason: LostReason, held: &[(u64, u64)]) -> Lost {
        Lost { replicas: held.iter().map(|(shard, id)| (ShardId(*shard), ReplicaId(*id))).collect(), reason }
    }

    /// A node with two assigned replicas, of the metadata group and of a shard, and the actions that create
    /// them.
    fn world() -> (World, Action, Action) {
        let mut meta = Meta::of_nodes(1);
        let shard = meta.collection(&[&[1]]);
        let world = World::new(1, meta);
        let create = |shard| {
            let record = world.meta.state().shard(shard).expect("a shard").clone();
            Action::Create { replica: record.intent[0].replica, descriptor: record.initial, founding: true }
        };
        let (first, second) = (create(ShardId::META), create(shard[0]));
        (world, first, second)
    }

    #[test]
    fn assigned_replicas_are_created_and_unwanted_ones_destroyed() {
        let (mut world, meta_group, shard) = world();
        let mut lifecycle = Lifecycle::default();
        assert_eq!(world.reconcile(&mut lifecycle), [meta_group, shard]);
        world.replicas = vec![replica(0, 1), replica(1, 2)];
        assert_eq!(world.reconcile(&mut lifecycle), []);
        world.meta.drop_collection();
        assert_eq!(world.reconcile(&mut lifecycle), [Action::Destroy { replica: ReplicaId(2) }]);
        world.replicas = vec![replica(0, 1), replica(9, 700)];
        assert_eq!(world.reconcile(&mut lifecycle), [], "a replica newer than this metadata is left alone");
    }

    #[test]
    fn a_replica_that_was_newer_than_the_metadata_is_destroyed_when_that_knows_better() {
        let (mut world, ..) = world();
        world.meta.join(2);
        world.replicas = vec![replica(0, 1), replica(1, 2), replica(9, 4)];
        let mut lifecycle = Lifecycle::default();
        assert_eq!(world.reconcile(&mut lifecycle), []);
        world.meta.collection_named("d", &[&[2]]);
        assert_eq!(world.reconcile(&mut lifecycle), [], "only replica 3 was allocated");
        world.meta.collection_named("e", &[&[2]]);
        assert_eq!(world.reconcile(&mut lifecycle), [Action::Destroy { replica: ReplicaId(4) }]);
    }

    #[test]
    fn lost_replica_is_replaced_and_an_answered_replacement_waits_before_the_next() {
        let (mut world, ..) = world();
        world.replicas = vec![replica(0, 1), replica(1, 2)];
        let mut lifecycle = Lifecycle::default();
        lifecycle.on_loss(&lost(LostReason::Broken, &[(1, 2)]));
        let command = MetaCommand::ReplaceReplica { shard: ShardId(1), replica: ReplicaId(2) };
        let replace = [Action::Propose(command.clone())];
        assert_eq!(world.reconcile(&mut lifecycle), replace);
        assert_eq!(world.reconcile(&mut lifecycle), replace, "the proposal was not answered");
        lifecycle.on_outcome(Outcome::Answered(Box::new(command), MetaReply::Done));
        world.now_ms += REPLACE_AGAIN_MS - 1;
        assert_eq!(world.reconcile(&mut lifecycle), []);
        world.now_ms += 1;
        assert_eq!(world.reconcile(&mut lifecycle), replace);
    }

    /// Node 1 of three holds replica 2 of shard 1, which is damaged, beside replicas 3 and 4 on the others.
    fn damaged(leader: u64) -> (World, Action) {
        let mut meta = Meta::of_nodes(3);
        let shard = meta.collection(&[&[1, 2, 3]])[0];
        let mut world = World::new(1, meta);
        (2..=3).for_each(|id| world.hears(id, NodeState::Alive));
        let mut held = leads(shard.0, &[(1, 2), (2, 3), (3, 4)], &[]);
        held.damaged = true;
        if let Some(group) = held.group.as_mut().filter(|_| leader != 2) {
            (group.role, group.leader) = (Role::Follower, ReplicaId(leader));
        }
        world.replicas = vec![replica(0, 1), held];
        (world, Action::Propose(MetaCommand::ReplaceReplica { shard, replica: ReplicaId(2) }))
    }

    #[test]
    fn a_damaged_follower_is_replaced_and_neither_destroyed_nor_asked_for_again_at_once() {
        let (mut world, replace) = damaged(3);
        let mut lifecycle = Lifecycle::default();
        assert_eq!(world.reconcile(&mut lifecycle), std::slice::from_ref(&replace));
        let command = MetaCommand::ReplaceReplica { shard: ShardId(1), replica: ReplicaId(2) };
        lifecycle.on_outcome(Outcome::Answered(Box::new(command.clone()), MetaReply::Done));
        assert_eq!(world.reconcile(&mut lifecycle), [], "it was answered");
        world.meta.apply(&command);
        world.now_ms += REPLACE_AGAIN_MS;
        // Its successor is created beside it, and it stays for as long as the shard has it.
        let actions = world.reconcile(&mut lifecycle);
        assert!(matches!(actions[..], [Action::Create { replica: ReplicaId(5), founding: false, .. }]), "{actions:?}");
        // One that is whole again needs nothing.
        let (mut world, _) = damaged(3);
        world.replicas[1].damaged = false;
        assert_eq!(world.reconcile(&mut Lifecycle::default()), []);
    }

    #[test]
    fn a_damaged_replica_waits_while_its_group_has_no_leader_or_rebuilds_another_replica() {
        let (mut world, replace) = damaged(0);
        assert_eq!(world.reconcile(&mut Lifecycle::default()), [], "nobody leads");
        (world, _) = damaged(4);
        world.meta.apply(&MetaCommand::ReplaceReplica { shard: ShardId(1), replica: ReplicaId(3) });
        assert_eq!(world.reconcile(&mut Lifecycle::default()), [], "the replacement of replica 3 does not vote yet");
        let mut descriptor = world.replicas[1].descriptor.clone();
        descriptor.epoch.config += 1;
        descriptor.replicas[1].replica = ReplicaId(5);
        world.meta.apply(&MetaCommand::ReportShard { descriptor });
        assert_eq!(world.reconcile(&mut Lifecycle::default()), [replace]);
    }

    #[test]
    fn a_damaged_leader_gives_its_leadership_to_a_live_node_first_and_not_again_and_again() {
        let (mut world, _) = damaged(2);
        world.hears(2, NodeState::Down);
        let mut lifecycle = Lifecycle::default();
        let transfer = [Action::Transfer { shard: ShardId(1), to: NodeId(3) }];
        assert_eq!(world.reconcile(&mut lifecycle), transfer);
        assert_eq!(world.reconcile(&mut lifecycle), []);
        world.now_ms += TRANSFER_AGAIN_MS;
        assert_eq!(world.reconcile(&mut lifecycle), transfer);
        world.hears(2, NodeState::Alive);
        let mut heirs = Vec::new();
        for _ in 0..2 {
            world.now_ms += TRANSFER_AGAIN_MS;
            heirs.extend(world.reconcile(&mut lifecycle));
        }
        heirs.sort_by_key(|action| matches!(action, Action::Transfer { to: NodeId(3), .. }));
        let both = [2, 3].map(|to| Action::Transfer { shard: ShardId(1), to: NodeId(to) });
        assert_eq!(heirs, both, "the first may be damaged as well");
        world.hears(2, NodeState::Down);
        world.hears(3, NodeState::Down);
        assert_eq!(world.reconcile(&mut Lifecycle::default()), [], "nobody could lead");
    }

    #[test]
    fn a_damaged_replica_without_another_voter_stays() {
        let mut meta = Meta::of_nodes(1);
        let shard = meta.collection(&[&[1]])[0];
        let mut world = World::new(1, meta);
        let mut alone = leads(shard.0, &[(1, 2)], &[]);
        alone.damaged = true;
        world.replicas = vec![replica(0, 1), alone];
        assert_eq!(world.reconcile(&mut Lifecycle::default()), []);
    }

    #[test]
    fn rolled_back_node_creates_nothing_before_it_knows_what_it_forgot() {
        let (mut world, ..) = world();
        world.replicas = vec![replica(0, 1)];
        let mut lifecycle = Lifecycle::default();
        lifecycle.on_loss(&lost(LostReason::RolledBack, &[]));
        assert_eq!(world.reconcile(&mut lifecycle), [Action::FetchMeta]);
        assert_eq!(world.reconcile(&mut lifecycle), [Action::FetchMeta], "the query was not answered");
        lifecycle.on_outcome(Outcome::FreshMeta(world.meta.state()));
        assert_eq!(world.reconcile(&mut lifecycle), [Action::Destroy { replica: ReplicaId(2) }, Action::TrustFolder]);
        let replace = |shard, replica| {
            Action::Propose(MetaCommand::ReplaceReplica { shard: ShardId(shard), replica: ReplicaId(replica) })
        };
        assert_eq!(
            world.reconcile(&mut lifecycle),
            [replace(1, 2)],
            "a replica that is here is lost only when the host reports it"
        );
        lifecycle.on_loss(&lost(LostReason::Broken, &[(0, 1)]));
        assert_eq!(world.reconcile(&mut lifecycle), [replace(0, 1), replace(1, 2)]);
    }

    /// Node 1 holds replica 2 of a shard that is split.
    fn split() -> (World, ShardId, HostedReplica) {
        let mut meta = Meta::of_nodes(1);
        let shard = meta.collection(&[&[1]])[0];
        meta.plan_split(shard);
        let world = World::new(1, meta);
        let mut parent = replica(shard.0, 2);
        parent.descriptor = world.meta.state().shard(shard).expect("a shard").descriptor.clone();
        (world, shard, parent)
    }

    #[test]
    fn a_replica_that_comes_out_of_one_here_is_not_created_before_that_is_past_the_split() {
        let (mut world, shard, parent) = split();
        let descriptor = world.meta.report_split(shard);
        world.replicas = vec![replica(0, 1), parent.clone()];
        assert_eq!(world.reconcile(&mut Lifecycle::default()), [], "its parent has not come to the split");
        let past = HostedReplica { descriptor, ..parent };
        world.replicas = vec![replica(0, 1), past];
        let actions = world.reconcile(&mut Lifecycle::default());
        assert!(matches!(actions[..], [Action::Create { founding: false, .. }]), "a snapshot skipped it: {actions:?}");
    }

    #[test]
    fn a_replica_that_is_split_off_before_the_metadata_knows_is_neither_destroyed_nor_forgotten() {
        let (mut world, shard, parent) = split();
        let planned = world.meta.state().shard(shard).and_then(|record| record.split.clone()).expect("a plan");
        let child = planned.replicas[0].1;
        world.replicas = vec![replica(0, 1), parent.clone(), replica(planned.child.0, child.0)];
        assert_eq!(world.reconcile(&mut Lifecycle::default()), []);
        // The folder went back to before it was created.
        world.replicas = vec![replica(0, 1), parent];
        let mut lifecycle = Lifecycle::default();
        lifecycle.on_loss(&lost(LostReason::RolledBack, &[]));
        assert_eq!(world.reconcile(&mut lifecycle), [Action::FetchMeta]);
        lifecycle.on_outcome(Outcome::FreshMeta(world.meta.state()));
        assert_eq!(world.reconcile(&mut lifecycle), [Action::Destroy { replica: child }, Action::TrustFolder]);
    }

    #[test]
    fn metadata_fetched_before_another_loss_is_not_fresh() {
        let (world, ..) = world();
        let mut lifecycle = Lifecycle::default();
        lifecycle.on_loss(&lost(LostReason::RolledBack, &[]));
        lifecycle.on_outcome(Outcome::FreshMeta(world.meta.state()));
        lifecycle.on_loss(&lost(LostReason::RolledBack, &[]));
        assert_eq!(world.reconcile(&mut lifecycle), [Action::FetchMeta]);
    }
}
