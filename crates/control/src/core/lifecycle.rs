//! Which replicas this node should create, destroy, or have replaced.
//!
//! Invariants: a replica that was lost is never used or created again: the metadata group must want another one in its place.
//! A node whose folder went back in time creates nothing before it has seen, in fresh metadata, which replicas the folder
//! forgot: those are lost too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_meta::{MetaCommand, MetaState, ReplicaStatus};
use flotilla_replication::LostReason;
use flotilla_types::{NodeId, ReplicaId, ShardId};

use super::{Action, Outcome, Reconciler, View};

/// A shard's replica here is not replaced again within this time, so that one that always fails costs little.
const REPLACE_AGAIN_MS: u64 = 10_000;

/// Replicas that this node may not use any more.
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
    /// When the metadata group last answered that it replaces a shard's replica here.
    replaced: BTreeMap<ShardId, u64>,
    looked_ms: u64,
}

/// What the data folder is to be believed.
#[derive(Debug, Default)]
enum Folder {
    /// It knows every replica that was ever created here.
    #[default]
    Whole,
    /// It went back in time: replicas that it forgot altogether are lost too, and only fresh metadata names them all.
    RolledBack,
    /// The same, and here is the metadata.
    Known(Arc<MetaState>),
}

impl Lifecycle {
    /// The host gave replicas up.
    pub fn lost(&mut self, loss: &Lost) {
        self.lost.extend(loss.replicas.iter().map(|(_, replica)| *replica));
        if loss.reason == LostReason::RolledBack {
            self.folder = Folder::RolledBack;
        }
    }

    /// Replicas that are wanted here and that the folder does not even know. They are destroyed, so that their ids stay out.
    fn forget_unknown(
        &mut self,
        fresh: &MetaState,
        node: NodeId,
        here: &BTreeSet<(ShardId, ReplicaId)>,
    ) -> Vec<Action> {
        let wanted = fresh.wanted_on(node).map(|(record, replica)| (record.id, replica));
        let forgotten = wanted.filter(|held| !here.contains(held)).map(|(_, replica)| replica);
        forgotten.filter(|replica| self.lost.insert(*replica)).map(|replica| Action::Destroy { replica }).collect()
    }

    /// Compares what is wanted with what is `here`.
    fn compare(&mut self, view: &View<'_>, here: &BTreeSet<(ShardId, ReplicaId)>) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut proposals = Vec::new();
        for (record, replica) in view.meta.wanted_on(view.me.node) {
            if self.lost.contains(&replica) {
                if !self.replaced.contains_key(&record.id) {
                    proposals.push(Action::Propose(MetaCommand::ReplaceReplica { shard: record.id, replica }));
                }
            } else if !here.contains(&(record.id, replica)) {
                let founding = record.is_initial(replica);
                let descriptor = if founding { &record.initial } else { &record.descriptor };
                actions.push(Action::Create { replica, descriptor: descriptor.clone(), founding });
            }
        }
        for (shard, replica) in here {
            if view.meta.replica_status(*shard, *replica) == ReplicaStatus::Unwanted {
                actions.push(Action::Destroy { replica: *replica });
            }
        }
        actions.append(&mut proposals);
        actions
    }
}

impl Reconciler for Lifecycle {
    fn every_ms(&self) -> u64 {
        200
    }

    fn look(&mut self, view: &View<'_>) -> Vec<Action> {
        self.looked_ms = view.now_ms;
        self.replaced.retain(|_, at_ms| *at_ms + REPLACE_AGAIN_MS > view.now_ms);
        let here = view.replicas.iter().map(|replica| (replica.shard, replica.replica)).collect();
        match std::mem::take(&mut self.folder) {
            Folder::Whole => self.compare(view, &here),
            Folder::RolledBack => {
                self.folder = Folder::RolledBack;
                vec![Action::FetchMeta]
            }
            Folder::Known(fresh) => self.forget_unknown(&fresh, view.me.node, &here),
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::FreshMeta(fresh) if matches!(self.folder, Folder::RolledBack) => {
                self.folder = Folder::Known(fresh);
            }
            // An answer counts, whatever it is; without one the replacement is asked for again at once.
            Outcome::Answered(command, _) => {
                if let MetaCommand::ReplaceReplica { shard, .. } = *command {
                    self.replaced.insert(shard, self.looked_ms);
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

    /// The replicas that the node is to hold, of the metadata group and of a shard.
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
    fn what_is_wanted_is_created_and_what_nobody_counts_on_is_destroyed() {
        let (mut world, meta_group, shard) = world();
        let mut lifecycle = Lifecycle::default();
        assert_eq!(world.look(&mut lifecycle), [meta_group, shard]);
        world.replicas = vec![replica(0, 1), replica(1, 2)];
        assert_eq!(world.look(&mut lifecycle), []);
        world.meta.drop_collection();
        assert_eq!(world.look(&mut lifecycle), [Action::Destroy { replica: ReplicaId(2) }]);
        world.replicas = vec![replica(0, 1), replica(9, 700)];
        assert_eq!(world.look(&mut lifecycle), [], "a replica that this metadata cannot know yet is left alone");
    }

    #[test]
    fn a_lost_replica_is_replaced_and_not_again_for_a_while_once_that_is_answered() {
        let (mut world, ..) = world();
        world.replicas = vec![replica(0, 1), replica(1, 2)];
        let mut lifecycle = Lifecycle::default();
        lifecycle.lost(&lost(LostReason::Broken, &[(1, 2)]));
        let command = MetaCommand::ReplaceReplica { shard: ShardId(1), replica: ReplicaId(2) };
        let ask = [Action::Propose(command.clone())];
        assert_eq!(world.look(&mut lifecycle), ask);
        assert_eq!(world.look(&mut lifecycle), ask, "nobody answered");
        lifecycle.learn(Outcome::Answered(Box::new(command), MetaReply::Done));
        world.now_ms += REPLACE_AGAIN_MS - 1;
        assert_eq!(world.look(&mut lifecycle), []);
        world.now_ms += 1;
        assert_eq!(world.look(&mut lifecycle), ask);
    }

    #[test]
    fn a_node_that_rolled_back_creates_nothing_before_it_knows_what_it_forgot() {
        let (mut world, ..) = world();
        world.replicas = vec![replica(0, 1)];
        let mut lifecycle = Lifecycle::default();
        lifecycle.lost(&lost(LostReason::RolledBack, &[]));
        assert_eq!(world.look(&mut lifecycle), [Action::FetchMeta]);
        assert_eq!(world.look(&mut lifecycle), [Action::FetchMeta], "nobody answered");
        lifecycle.learn(Outcome::FreshMeta(world.meta.state()));
        assert_eq!(world.look(&mut lifecycle), [Action::Destroy { replica: ReplicaId(2) }]);
        let replace = |shard, replica| {
            Action::Propose(MetaCommand::ReplaceReplica { shard: ShardId(shard), replica: ReplicaId(replica) })
        };
        assert_eq!(world.look(&mut lifecycle), [replace(1, 2)], "what is here is lost when the host says so");
        lifecycle.lost(&lost(LostReason::Broken, &[(0, 1)]));
        assert_eq!(world.look(&mut lifecycle), [replace(0, 1), replace(1, 2)]);
    }

    #[test]
    fn metadata_that_was_fetched_before_another_loss_is_not_fresh() {
        let (world, ..) = world();
        let mut lifecycle = Lifecycle::default();
        lifecycle.lost(&lost(LostReason::RolledBack, &[]));
        lifecycle.learn(Outcome::FreshMeta(world.meta.state()));
        lifecycle.lost(&lost(LostReason::RolledBack, &[]));
        assert_eq!(world.look(&mut lifecycle), [Action::FetchMeta]);
    }
}
