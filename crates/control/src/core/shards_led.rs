//! Moves each shard that is led here one step towards its intent, and reports what it has become.
//!
//! Invariant: nobody votes in the metadata group before it holds the cluster's authority: any voter may have to admit a node.

use std::collections::BTreeSet;

use flotilla_meta::MetaCommand;
use flotilla_replication::{ConfChange, ReplicaStatus};
use flotilla_types::{NodeId, ShardId};

use super::{Action, Next, Outcome, Reconciler, View, next_step};

/// The steps of the shards that are led here.
#[derive(Debug, Default)]
pub struct ShardsLed {
    /// Nodes that were given the cluster's authority since this node started.
    has_authority: BTreeSet<NodeId>,
}

impl ShardsLed {
    /// Nodes that must be given the authority before a change.
    fn lacks_authority(&self, replica: &ReplicaStatus, change: &ConfChange) -> Vec<Action> {
        match change {
            ConfChange::Swap { promote, .. } if replica.shard == ShardId::META => promote
                .iter()
                .filter_map(|promoted| replica.descriptor.node_of(*promoted))
                .filter(|node| !self.has_authority.contains(node))
                .map(|to| Action::GiveAuthority { to })
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl Reconciler for ShardsLed {
    fn every_ms(&self) -> u64 {
        200
    }

    fn look(&mut self, view: &View<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut reports = Vec::new();
        for (replica, group) in view.led() {
            let Some(record) = view.meta.shard(replica.shard) else { continue };
            match next_step(replica.replica, group, &record.intent) {
                Next::Nothing => {}
                Next::HandOver(heir) => {
                    let heir = replica.descriptor.node_of(heir);
                    actions.extend(heir.map(|to| Action::Transfer { shard: replica.shard, to }));
                }
                Next::Change(change) => {
                    let lacking = self.lacks_authority(replica, &change);
                    if lacking.is_empty() {
                        actions.push(Action::Change { shard: replica.shard, change });
                    } else {
                        actions.extend(lacking);
                    }
                }
            }
            if replica.descriptor.epoch > record.descriptor.epoch {
                let report = MetaCommand::ReportShard { descriptor: replica.descriptor.clone() };
                reports.push(Action::Propose(report));
            }
        }
        actions.append(&mut reports);
        actions
    }

    fn learn(&mut self, outcome: Outcome) {
        if let Outcome::AuthorityTaken(node) = outcome {
            self.has_authority.insert(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use super::*;
    use crate::core::testing::{Meta, World, leads, node};

    #[test]
    fn a_group_grows_as_intended_and_its_voters_get_the_authority_first() {
        let mut meta = Meta::of_nodes(3);
        meta.assign(ShardId::META, 2);
        meta.assign(ShardId::META, 3);
        let mut world = World::new(1, meta);
        let mut led = ShardsLed::default();
        let add = |id| ConfChange::AddLearner { replica: ReplicaId(id), node: node(id) };
        let change = |change| [Action::Change { shard: ShardId::META, change }];
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        assert_eq!(world.look(&mut led), change(add(2)));
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 2)])];
        assert_eq!(world.look(&mut led), change(add(3)));
        world.replicas = vec![leads(0, &[(1, 1)], &[(2, 2), (3, 3)])];
        let give = |id| Action::GiveAuthority { to: node(id) };
        assert_eq!(world.look(&mut led), [give(2), give(3)]);
        led.learn(Outcome::AuthorityTaken(node(2)));
        assert_eq!(world.look(&mut led), [give(3)], "one of them did not take it");
        led.learn(Outcome::AuthorityTaken(node(3)));
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        assert_eq!(world.look(&mut led), change(swap));
    }

    #[test]
    fn a_shard_that_moved_on_is_reported_behind_every_step() {
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
            world.look(&mut ShardsLed::default()),
            [Action::Change { shard: ShardId::META, change: add }, Action::Propose(report)]
        );
    }
}
