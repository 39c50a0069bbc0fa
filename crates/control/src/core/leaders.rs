//! Spreads leaderships: each leader hands over what another node should lead, one shard at a time.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_membership::NodeState;
use flotilla_meta::NodeState as Life;
use flotilla_placement::preferred_leaders;
use flotilla_types::{NodeId, ShardId};

use super::{Action, Reconciler, View};

/// A shard's leadership is not moved for balance again within this time.
const TRANSFER_AGAIN_MS: u64 = 10_000;
/// A node must be up for so long before it is given leaderships.
const PREFERRED_AFTER_MS: u64 = 3_000;
/// An heir lacks no more than so many entries.
const BEHIND_ENTRIES_MAX: u64 = 64;

/// Hands over leaderships that other nodes should have.
#[derive(Debug, Default)]
pub struct Leaders {
    /// When each shard was last handed over from here.
    moved: BTreeMap<ShardId, u64>,
}

impl Reconciler for Leaders {
    fn every_ms(&self) -> u64 {
        1_000
    }

    fn look(&mut self, view: &View<'_>) -> Vec<Action> {
        self.moved.retain(|_, at_ms| *at_ms + TRANSFER_AGAIN_MS > view.now_ms);
        let me = view.me.node;
        let up = |node: &NodeId| {
            let (state, since_ms) = view.members.liveness(*node);
            state == NodeState::Alive && (*node == me || since_ms + PREFERRED_AFTER_MS <= view.now_ms)
        };
        let usable: BTreeSet<_> =
            view.meta.nodes().filter(|node| node.state == Life::Active).map(|node| node.id).filter(up).collect();
        // Apart, because leading the metadata is next to no work: with few shards it would cost a node its share of them.
        let (meta, shards): (Vec<_>, Vec<_>) =
            view.meta.shards().map(|shard| &shard.descriptor).partition(|shard| shard.shard == ShardId::META);
        let mut preferred = preferred_leaders(shards, &usable);
        preferred.extend(preferred_leaders(meta, &usable));
        let candidate = view.led().filter(|(_, group)| !group.conf.is_joint()).find_map(|(replica, group)| {
            let to = *preferred.get(&replica.shard)?;
            let heir = replica.descriptor.replica_on(to)?.replica;
            let ready = group.conf.voters.contains(&heir)
                && group.followers.iter().any(|follower| {
                    follower.replica == heir
                        && follower.recently_active
                        && follower.matched.0 + BEHIND_ENTRIES_MAX >= group.commit.0
                });
            (to != me && !self.moved.contains_key(&replica.shard) && ready).then_some((replica.shard, to))
        });
        let Some((shard, to)) = candidate else { return Vec::new() };
        self.moved.insert(shard, view.now_ms);
        vec![Action::Transfer { shard, to }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Meta, World, leads, node};

    /// Node 1 leads four shards that it shares with node 2 and 3.
    fn world() -> World {
        let mut meta = Meta::of_nodes(3);
        let shards = meta.collection(&[&[1, 2, 3][..]; 4]);
        let mut world = World::new(1, meta);
        let state = world.meta.state();
        let replicas =
            |shard| state.shard(shard).expect("a shard").intent.iter().map(|held| (held.node.0, held.replica.0));
        world.replicas =
            shards.iter().map(|shard| leads(shard.0, &replicas(*shard).collect::<Vec<_>>(), &[])).collect();
        world
    }

    fn moved(actions: &[Action]) -> BTreeSet<ShardId> {
        let shard = |action: &Action| match action {
            Action::Transfer { shard, to } if *to != node(1) => *shard,
            other => panic!("{other:?}"),
        };
        actions.iter().map(shard).collect()
    }

    #[test]
    fn leaderships_go_one_by_one_to_nodes_that_are_up_for_a_while() {
        let mut world = world();
        let mut leaders = Leaders::default();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        assert_eq!(world.look(&mut leaders), []);
        world.now_ms += PREFERRED_AFTER_MS;
        let first = moved(&world.look(&mut leaders));
        let second = moved(&world.look(&mut leaders));
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second, "a shard that was moved a moment ago is left alone");
        world.now_ms += TRANSFER_AGAIN_MS;
        assert_eq!(moved(&world.look(&mut leaders)), first, "the transfer came to nothing");
    }

    /// Shards that a node keeps of three that it leads, on three nodes that all have the metadata too.
    fn kept_by(me: u64) -> BTreeSet<ShardId> {
        let mut meta = Meta::of_nodes(3);
        (2..=3).for_each(|other| meta.assign(ShardId::META, other));
        let shards = meta.collection(&[&[1, 2, 3][..]; 3]);
        let mut world = World::new(me, meta);
        (1..=3).filter(|other| *other != me).for_each(|other| world.hears(other, NodeState::Alive));
        world.now_ms += PREFERRED_AFTER_MS;
        let state = world.meta.state();
        let led = |shard: &ShardId| {
            let intent = state.shard(*shard).expect("a shard").intent.iter();
            leads(shard.0, &intent.map(|held| (held.node.0, held.replica.0)).collect::<Vec<_>>(), &[])
        };
        world.replicas = shards.iter().map(led).collect();
        let mut leaders = Leaders::default();
        let mut kept = BTreeSet::from_iter(shards);
        while let [Action::Transfer { shard, .. }] = world.look(&mut leaders)[..] {
            kept.remove(&shard);
        }
        kept
    }

    #[test]
    fn each_of_three_nodes_leads_one_of_three_shards_beside_the_metadata() {
        let kept = (1..=3).map(kept_by).collect::<Vec<_>>();
        assert!(kept.iter().all(|kept| kept.len() == 1), "{kept:?}");
        assert_eq!(kept.into_iter().flatten().collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn a_shard_on_its_way_to_other_voters_keeps_its_leader() {
        let mut world = world();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        world.now_ms += PREFERRED_AFTER_MS;
        assert_eq!(world.look(&mut Leaders::default()).len(), 1);
        for replica in &mut world.replicas {
            let conf = &mut replica.group.as_mut().expect("a group").conf;
            conf.voters_outgoing = conf.voters.clone();
        }
        assert_eq!(world.look(&mut Leaders::default()), []);
    }

    #[test]
    fn a_follower_that_lags_or_is_silent_inherits_nothing() {
        let mut world = world();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        world.now_ms += PREFERRED_AFTER_MS;
        for follower in world.replicas.iter_mut().flat_map(|replica| &mut replica.group.as_mut().unwrap().followers) {
            follower.matched.0 -= BEHIND_ENTRIES_MAX + 1;
        }
        assert_eq!(world.look(&mut Leaders::default()), []);
        for follower in world.replicas.iter_mut().flat_map(|replica| &mut replica.group.as_mut().unwrap().followers) {
            follower.matched.0 += 1;
        }
        assert_eq!(world.look(&mut Leaders::default()).len(), 1);
    }
}
