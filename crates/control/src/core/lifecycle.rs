//! Decides which replicas this node creates, destroys, or has replaced.
//!
//! Invariants: a lost replica is never used or created again; the metadata group must assign another one in
//! its place. A node whose data folder was rolled back creates nothing before fresh metadata has shown which
//! replicas the folder forgot: those are lost too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_meta::{MetaCommand, MetaState, ReplicaStatus};
use flotilla_replication::{LostReason, Replicas};
use flotilla_types::{NodeId, ReplicaId, ShardId};

use super::{Action, Outcome, Reconciler, View, last_look::LastLook};

/// Minimum time between two replacements of a shard's replica here, so that one that always fails costs
/// little. Milliseconds.
const REPLACE_AGAIN_MS: u64 = 10_000;

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
    last_pass_ms: u64,
    last_look: LastLook,
    /// Shards of whose replicas here one is lost, is to be created or destroyed, or is newer than the metadata.
    unsettled: BTreeSet<ShardId>,
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
        actions.push(Action::TrustFolder);
        actions
    }

    /// Compares the replicas assigned to this node with those that are here.
    fn compare(&mut self, view: &View<'_>) -> Vec<Action> {
        let mut shards = self.last_look.changes(view, |before, after| before.is_some() != after.is_some());
        shards.append(&mut self.unsettled);
        let (mut actions, mut destructions, mut proposals) = (Vec::new(), Vec::new(), Vec::new());
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
                    let founding = record.is_initial(replica);
                    let descriptor = if founding { &record.initial } else { &record.descriptor };
                    actions.push(Action::Create { replica, descriptor: descriptor.clone(), founding });
                }
                _ => {}
            }
            for here in view.replicas.of_shard(shard) {
                let status = view.meta.replica_status(shard, here.replica);
                settled &= status == ReplicaStatus::InUse;
                if status == ReplicaStatus::Obsolete {
                    destructions.push(Action::Destroy { replica: here.replica });
                }
            }
            if !settled {
                self.unsettled.insert(shard);
            }
        }
        actions.append(&mut destructions);
        actions.append(&mut proposals);
        actions
    }
}

fn is_here(here: &Replicas, shard: ShardId, replica: ReplicaId) -> bool {
    here.of_shard(shard).any(|here| here.replica == replica)
}

impl Reconciler for Lifecycle {
    fn interval_ms(&self) -> u64 {
        200
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        self.last_pass_ms = view.now_ms;
        self.replaced.retain(|_, at_ms| *at_ms + REPLACE_AGAIN_MS > view.now_ms);
        match std::mem::take(&mut self.folder) {
            Folder::Complete => self.compare(view),
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
            Outcome::AuthorityTaken(_) | Outcome::FreshMeta(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::MetaReply;

    use super::*;
    use crate::core::testing::{Meta, World, replica};

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
