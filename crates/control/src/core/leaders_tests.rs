//! Leaderships spread evenly, in bounded time and without bursts, and are not swapped back and forth.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_meta::{MetaState, SHARDS_MAX};
use flotilla_replication::{ReplicaStatus, Replicas, Role};

use super::*;
use crate::core::{
    ClusterView,
    testing::{Meta, World, leads, local_node, node},
};

/// Node 1 leads four shards that it shares with node 2 and 3.
fn world() -> World {
    let mut meta = Meta::of_nodes(3);
    let shards = meta.collection(&[&[1, 2, 3][..]; 4]);
    let mut world = World::new(1, meta);
    let state = world.meta.state();
    let replicas = |shard| state.shard(shard).expect("a shard").intent.iter().map(|held| (held.node.0, held.replica.0));
    world.replicas = shards.iter().map(|shard| leads(shard.0, &replicas(*shard).collect::<Vec<_>>(), &[])).collect();
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
fn leaderships_move_to_nodes_that_have_been_up_for_a_while() {
    let mut world = world();
    let mut leaders = Leaders::default();
    world.hears(2, NodeState::Alive);
    world.hears(3, NodeState::Alive);
    assert_eq!(world.reconcile(&mut leaders), []);
    world.now_ms += PREFERRED_AFTER_MS;
    let first = moved(&world.reconcile(&mut leaders));
    assert!(!first.is_empty());
    assert_eq!(world.reconcile(&mut leaders), [], "they are on their way");
    world.now_ms += TRANSFER_AGAIN_MS;
    assert_eq!(moved(&world.reconcile(&mut leaders)), first, "the transfer did not succeed, so it is tried again");
    world.now_ms += TRANSFER_AGAIN_MS;
    assert_eq!(world.reconcile(&mut leaders), [], "and each time after a longer wait");
    world.now_ms += TRANSFER_AGAIN_MS;
    assert_eq!(moved(&world.reconcile(&mut leaders)), first);
}

#[test]
fn a_node_that_restarts_unnoticed_gets_nothing_before_it_could_load_its_shards() {
    let mut world = world();
    let mut leaders = Leaders::default();
    world.hears(2, NodeState::Alive);
    world.now_ms += PREFERRED_AFTER_MS;
    // Led here, so that nothing is misplaced.
    let led = std::mem::take(&mut world.replicas);
    assert_eq!(world.reconcile(&mut leaders), []);
    world.meta.restart(2);
    world.replicas = led;
    assert_eq!(world.reconcile(&mut leaders), []);
    world.now_ms += PREFERRED_AFTER_MS - 1;
    assert_eq!(world.reconcile(&mut leaders), []);
    world.now_ms += 1;
    assert!(!world.reconcile(&mut leaders).is_empty());
}

#[test]
fn a_node_that_drains_hands_over_everything_and_again_what_comes_back() {
    let mut world = world();
    world.meta.raise();
    let mut leaders = Leaders::default();
    (2..=3).for_each(|other| world.hears(other, NodeState::Alive));
    world.now_ms += PREFERRED_AFTER_MS;
    assert!(moved(&world.reconcile(&mut leaders)).len() < 4, "it keeps its share");
    world.meta.set_state(1, AdminState::Draining);
    world.now_ms += (2 * TRANSFER_AGAIN_MS) << DOUBLINGS_MAX;
    let all = moved(&world.reconcile(&mut leaders));
    assert_eq!(all.len(), 4);
    assert_eq!(leaders.interval_ms(), BUSY_MS);
    for _ in 0..3 {
        world.now_ms += IN_FLIGHT_MS;
        assert_eq!(moved(&world.reconcile(&mut leaders)), all, "elections brought them back");
    }
    world.meta.set_state(1, AdminState::Active);
    world.now_ms += IN_FLIGHT_MS;
    assert_eq!(world.reconcile(&mut leaders), [], "it is in service again");
}

#[test]
fn leaderships_go_to_no_node_that_drains_or_leaves() {
    for state in [AdminState::Draining, AdminState::Leaving, AdminState::Decommissioning] {
        let mut world = world();
        world.meta.raise();
        world.meta.set_state(2, state);
        (2..=3).for_each(|other| world.hears(other, NodeState::Alive));
        world.now_ms += PREFERRED_AFTER_MS;
        let actions = world.reconcile(&mut Leaders::default());
        let goes_to = |action: &Action| matches!(action, Action::Transfer { to, .. } if *to == node(3));
        assert!(!actions.is_empty() && actions.iter().all(goes_to), "{state}: {actions:?}");
        world.meta.set_state(3, state);
        assert_eq!(world.reconcile(&mut Leaders::default()), [], "nobody else can lead");
    }
}

#[test]
fn a_voter_that_is_about_to_be_replaced_inherits_nothing() {
    let mut meta = Meta::of_nodes(3);
    let shards = meta.collection(&[&[1, 2, 3][..]; 16]);
    let mut world = World::new(1, meta);
    world.hears(2, NodeState::Alive);
    world.now_ms += PREFERRED_AFTER_MS;
    let state = world.meta.state();
    let led = |shard: &ShardId| {
        let intent = state.shard(*shard).expect("a shard").intent.iter();
        leads(shard.0, &intent.map(|held| (held.node.0, held.replica.0)).collect::<Vec<_>>(), &[])
    };
    world.replicas = shards.iter().map(led).collect();
    assert_eq!(world.reconcile(&mut Leaders::default()).len(), TRANSFERS_MIN);
    for shard in shards {
        world.meta.unassign(shard, 2);
    }
    assert_eq!(world.reconcile(&mut Leaders::default()), []);
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
        let mut held: Vec<_> = intent.map(|held| (held.node.0, held.replica.0)).collect();
        held.sort_by_key(|(node, _)| *node != me);
        leads(shard.0, &held, &[])
    };
    world.replicas = shards.iter().map(led).collect();
    let mut leaders = Leaders::default();
    let mut kept = BTreeSet::from_iter(shards);
    for action in world.reconcile(&mut leaders) {
        let Action::Transfer { shard, .. } = action else { panic!("{action:?}") };
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
    assert!(!world.reconcile(&mut Leaders::default()).is_empty());
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
    assert!(!world.reconcile(&mut Leaders::default()).is_empty());
}

/// How much more one node may lead than another once leaderships are spread.
const APART_MAX: usize = 1;
/// The time in which they must be, in milliseconds.
const SPREAD_WITHIN_MS: u64 = 10_000;
/// How long a transfer takes, in milliseconds.
const TRANSFER_MS: u64 = 30;

/// Nodes that lead shards and transfer them among each other. Each node holds every shard.
struct Fleet {
    state: Arc<MetaState>,
    nodes: BTreeMap<NodeId, FleetNode>,
    /// Transfers in flight: when they end, the shard's position, from, to.
    transfers: BTreeMap<(u64, usize), (NodeId, NodeId)>,
    in_flight_max: usize,
    /// How often each shard, by position, has moved.
    moves: BTreeMap<usize, usize>,
    now_ms: u64,
}

struct FleetNode {
    leaders: Leaders,
    cluster: ClusterView,
    replicas: Vec<ReplicaStatus>,
    /// The same, as the host publishes it.
    published: Replicas,
    led: usize,
    next_ms: u64,
}

impl FleetNode {
    fn hears(&mut self, other: u64, state: NodeState, at_ms: u64) {
        self.cluster.member_changed(node(other), state, at_ms);
    }

    /// The shard at this position has another leader.
    fn sees_leader(&mut self, me: NodeId, at: usize, leader: NodeId) {
        let replica = &mut self.replicas[at];
        let successor = replica.descriptor.replica_on(leader).expect("a voter").replica;
        let group = replica.group.as_mut().expect("a group");
        self.led -= usize::from(group.role == Role::Leader);
        (group.role, group.leader) = (if leader == me { Role::Leader } else { Role::Follower }, successor);
        self.led += usize::from(leader == me);
        self.published.set(replica.clone());
    }
}

impl Fleet {
    /// Nodes 1 to `nodes`, which hold `shards` shards. `leader` is asked for each one's leader.
    fn new(nodes: u64, shards: usize, leader: impl Fn(usize) -> u64) -> Self {
        let mut meta = Meta::of_nodes(nodes);
        let everywhere: Vec<_> = (1..=nodes).collect();
        for (number, first) in (0..shards).step_by(1_000).enumerate() {
            let part = vec![&everywhere[..]; 1_000.min(shards - first)];
            meta.collection_named(&format!("c{number}"), &part);
        }
        let state = meta.state();
        let mut replicas = Vec::new();
        for shard in state.shards().filter(|shard| shard.id != ShardId::META) {
            let held: Vec<_> = shard.intent.iter().map(|held| (held.node.0, held.replica.0)).collect();
            replicas.push(leads(shard.id.0, &held, &[]));
        }
        let start = |id: u64| {
            let cluster = ClusterView::new(node(id), MetaState::clone(&state));
            let (leaders, led, next_ms) = (Leaders::default(), shards, 100_000 + 37 * id);
            let (replicas, published) = (replicas.clone(), replicas.iter().cloned().collect());
            let mut me = FleetNode { leaders, cluster, replicas, published, led, next_ms };
            for other in &everywhere {
                me.hears(*other, NodeState::Alive, 0);
            }
            for at in 0..shards {
                me.sees_leader(node(id), at, node(leader(at)));
            }
            (node(id), me)
        };
        let nodes = everywhere.iter().map(|id| start(*id)).collect();
        let (transfers, moves) = (BTreeMap::new(), BTreeMap::new());
        Self { state, nodes, transfers, in_flight_max: 0, moves, now_ms: 100_000 }
    }

    fn node(&mut self, id: u64) -> &mut FleetNode {
        self.nodes.get_mut(&node(id)).expect("a node")
    }

    fn run(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            let next_pass_ms = self.nodes.values().map(|node| node.next_ms).min().expect("a node");
            let next_end_ms = self.transfers.first_key_value().map_or(u64::MAX, |((at_ms, _), _)| *at_ms);
            self.now_ms = next_pass_ms.min(next_end_ms).min(end_ms);
            while let Some(first) = self.transfers.first_entry().filter(|first| first.key().0 <= self.now_ms) {
                let ((_, at), (_, to)) = first.remove_entry();
                self.nodes.iter_mut().for_each(|(id, node)| node.sees_leader(*id, at, to));
                *self.moves.entry(at).or_default() += 1;
            }
            let due: Vec<_> =
                self.nodes.iter().filter(|(_, node)| node.next_ms <= self.now_ms).map(|(id, _)| *id).collect();
            due.into_iter().for_each(|id| self.pass(id));
        }
    }

    fn pass(&mut self, id: NodeId) {
        let me = self.nodes.get_mut(&id).expect("a node");
        let actions = me.leaders.reconcile(&View {
            me: &local_node(id.0),
            meta: &self.state,
            members: me.cluster.members(),
            replicas: &me.published,
            now_ms: self.now_ms,
            wall_ms: self.now_ms,
        });
        me.next_ms = self.now_ms + me.leaders.interval_ms();
        for action in actions {
            let Action::Transfer { shard, to } = action else { panic!("{action:?}") };
            let at = me.replicas.binary_search_by_key(&shard, |replica| replica.shard).expect("a shard");
            self.transfers.insert((self.now_ms + TRANSFER_MS, at), (id, to));
        }
        for node in self.nodes.keys() {
            let from = self.transfers.values().filter(|(from, _)| from == node).count();
            let to = self.transfers.values().filter(|(_, to)| to == node).count();
            self.in_flight_max = self.in_flight_max.max(from).max(to);
        }
    }

    /// By how much the nodes differ.
    fn apart(&self) -> usize {
        let led = || self.nodes.values().map(|node| node.led);
        led().max().unwrap_or(0) - led().min().unwrap_or(0)
    }

    /// Leaderships spread in time, within the bound, each with one move at most, and then stay.
    fn spreads(&mut self) {
        self.run(SPREAD_WITHIN_MS);
        assert!(self.apart() <= APART_MAX, "{} apart after {SPREAD_WITHIN_MS} ms", self.apart());
        assert!((1..=TRANSFERS_MAX).contains(&self.in_flight_max), "{} in flight", self.in_flight_max);
        assert_eq!(self.moves.values().max(), Some(&1), "no leadership is passed on");
        let moves = self.moves.len();
        self.run(2 * TRANSFER_AGAIN_MS);
        assert_eq!((self.moves.len(), self.transfers.len()), (moves, 0));
    }
}

#[test]
fn a_thousand_leaderships_spread_within_ten_seconds() {
    // 691 of them on one node.
    let mut fleet = Fleet::new(3, 1_030, |at| if at < 691 { 1 } else { 2 + at as u64 % 2 });
    fleet.spreads();
    assert!(fleet.moves.len() <= 691 - 343, "{} moved", fleet.moves.len());
}

#[test]
fn as_many_leaderships_as_a_cluster_has_spread_from_one_node_within_ten_seconds() {
    Fleet::new(3, SHARDS_MAX - 1, |_| 1).spreads();
}

#[test]
fn a_node_that_returns_without_leaderships_gets_its_share_within_ten_seconds() {
    let mut fleet = Fleet::new(5, 4_999, |at| 1 + at as u64 % 4);
    for id in 1..=4 {
        let now_ms = fleet.now_ms;
        fleet.node(id).hears(5, NodeState::Down, now_ms - 50_000);
        fleet.node(id).hears(5, NodeState::Alive, now_ms);
    }
    fleet.run(PREFERRED_AFTER_MS - 100);
    assert_eq!(fleet.node(5).led, 0);
    fleet.run(SPREAD_WITHIN_MS - PREFERRED_AFTER_MS + 100);
    assert!(fleet.apart() <= APART_MAX, "{} apart", fleet.apart());
    assert!(fleet.in_flight_max <= TRANSFERS_MAX, "{} in flight to the node that returned", fleet.in_flight_max);
    assert!((999..1_250).contains(&fleet.moves.len()), "{} moved", fleet.moves.len());
}

#[test]
fn few_misplaced_leaderships_cause_no_burst() {
    let mut fleet = Fleet::new(3, 90, |at| 1 + at as u64 % 2);
    fleet.spreads();
    // Two nodes have an excess of 15.
    assert!(fleet.in_flight_max <= 2 * TRANSFERS_MIN, "{} in flight", fleet.in_flight_max);
}

#[test]
fn nodes_that_disagree_do_not_swap_leaderships() {
    let mut fleet = Fleet::new(3, 300, |_| 1);
    // Node 2 takes node 1 for dead, and would take over its share.
    fleet.node(2).hears(1, NodeState::Down, 0);
    fleet.run(600_000);
    let most = fleet.moves.values().max().copied().unwrap_or(0);
    assert!(most <= 2, "a leadership moved {most} times");
}
