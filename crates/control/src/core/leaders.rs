//! Balances leaderships: each node transfers, one shard at a time, the leaderships that another node should
//! hold.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_membership::NodeState;
use flotilla_meta::NodeState as AdminState;
use flotilla_placement::preferred_leaders;
use flotilla_types::{NodeId, ShardId};

use super::{Action, Reconciler, View};

/// Minimum time between two transfers of one shard, in milliseconds.
const TRANSFER_AGAIN_MS: u64 = 10_000;
/// How long a node must be alive before it gets leaderships, in milliseconds.
const PREFERRED_AFTER_MS: u64 = 3_000;
/// How many committed entries the new leader may lack.
const LAG_ENTRIES_MAX: u64 = 64;

/// Transfers leaderships that other nodes should hold.
#[derive(Debug, Default)]
pub struct Leaders {
    /// When each shard's leadership was last transferred from here.
    moved: BTreeMap<ShardId, u64>,
}

impl Reconciler for Leaders {
    fn interval_ms(&self) -> u64 {
        1_000
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        self.moved.retain(|_, at_ms| *at_ms + TRANSFER_AGAIN_MS > view.now_ms);
        let me = view.me.node;
        let up = |node: &NodeId| {
            let (state, since_ms) = view.members.liveness(*node);
            state == NodeState::Alive && (*node == me || since_ms + PREFERRED_AFTER_MS <= view.now_ms)
        };
        let usable: BTreeSet<_> =
            view.meta.nodes().filter(|node| node.state == AdminState::Active).map(|node| node.id).filter(up).collect();
        // Balanced separately, because leading the metadata group is almost no work: counted together, a node
        // would lose a shard to it.
        let (meta, shards): (Vec<_>, Vec<_>) =
            view.meta.shards().map(|shard| &shard.descriptor).partition(|shard| shard.shard == ShardId::META);
        let mut preferred = preferred_leaders(shards, &usable);
        preferred.extend(preferred_leaders(meta, &usable));
        let candidate = view.led().filter(|(_, group)| !group.conf.is_joint()).find_map(|(replica, group)| {
            let to = *preferred.get(&replica.shard)?;
            let successor = replica.descriptor.replica_on(to)?.replica;
            let ready = group.conf.voters.contains(&successor)
                && group.followers.iter().any(|follower| {
                    follower.replica == successor
                        && follower.recently_active
                        && follower.matched.0 + LAG_ENTRIES_MAX >= group.commit.0
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
    fn leaderships_move_one_by_one_to_nodes_that_have_been_up_for_a_while() {
        let mut world = world();
        let mut leaders = Leaders::default();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        assert_eq!(world.reconcile(&mut leaders), []);
        world.now_ms += PREFERRED_AFTER_MS;
        let first = moved(&world.reconcile(&mut leaders));
        let second = moved(&world.reconcile(&mut leaders));
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second, "a recently moved shard is left alone");
        world.now_ms += TRANSFER_AGAIN_MS;
        assert_eq!(moved(&world.reconcile(&mut leaders)), first, "the transfer did not succeed, so it is tried again");
    }

    /// The shards a node keeps when it leads all three of them, among three nodes that also hold the metadata
    /// group.
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
        while let [Action::Transfer { shard, .. }] = world.reconcile(&mut leaders)[..] {
            kept.remove(&shard);
        }
        kept
    }

    #[test]
    fn each_of_three_nodes_leads_one_of_three_shards_besides_the_metadata() {
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
        assert_eq!(world.reconcile(&mut Leaders::default()).len(), 1);
        for replica in &mut world.replicas {
            let conf = &mut replica.group.as_mut().expect("a group").conf;
            conf.voters_outgoing = conf.voters.clone();
        }
        assert_eq!(world.reconcile(&mut Leaders::default()), []);
    }

    #[test]
    fn a_follower_that_lags_or_is_silent_inherits_nothing() {
        let mut world = world();
        world.hears(2, NodeState::Alive);
        world.hears(3, NodeState::Alive);
        world.now_ms += PREFERRED_AFTER_MS;
        for follower in world.replicas.iter_mut().flat_map(|replica| &mut replica.group.as_mut().unwrap().followers) {
            follower.matched.0 -= LAG_ENTRIES_MAX + 1;
        }
        assert_eq!(world.reconcile(&mut Leaders::default()), []);
        for follower in world.replicas.iter_mut().flat_map(|replica| &mut replica.group.as_mut().unwrap().followers) {
            follower.matched.0 += 1;
        }
        assert_eq!(world.reconcile(&mut Leaders::default()).len(), 1);
    }
}
