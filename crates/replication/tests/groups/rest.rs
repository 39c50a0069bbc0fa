//! Groups at rest: no messages, and awake when they are needed.

use bytes::Bytes;
use flotilla_replication::{CommandRefs, ConfChange, Freshness, Input, ReplicaStatus, Request, Role};
use flotilla_types::{ClusterVersion, MessageKind, NodeId, ReplicaId, ShardId, Term, Timestamp};

use crate::{
    harness::{World, descriptor, get, key, seeds},
    many::Many,
};

/// Time in which an idle group comes to rest: `rest_after_ticks`, a heartbeat, and delays.
const REST_MS: u64 = 4_000;
/// Time in which a resting group has another leader when that of its node is gone: three intervals of node
/// heartbeats, the random part of an election timeout, and a second election.
const ELECTION_MS: u64 = 1_900;

fn resting(world: &World, node: NodeId) -> usize {
    world.nodes[&node].running.as_ref().map_or(0, |running| running.core.resting())
}

impl World {
    /// A group on three nodes, at the version that knows of rest, which rests.
    fn at_rest(seed: u64) -> (Self, NodeId, Term) {
        Self::at_rest_among(seed, 3)
    }

    /// The same, among more nodes.
    fn at_rest_among(seed: u64, nodes: u64) -> (Self, NodeId, Term) {
        let mut world = Self::founded(seed, nodes, 3);
        world.work_slow_per_mille = 0;
        world.network.slow_per_mille = 0;
        world.allow_rest();
        world.read_once();
        world.all_rest();
        let (leader, term) = world.leader_and_term();
        (world, leader, term)
    }

    fn allow_rest(&mut self) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(node, Input::ClusterVersion(ClusterVersion::REST));
        }
    }

    fn all_rest(&mut self) {
        let all = |world: &Self| {
            let mut running = world.nodes.values().filter(|node| node.running.is_some());
            running.all(|node| node.status().is_empty() || resting(world, node.id) == 1)
        };
        self.run_until(REST_MS, "all replicas rest", all);
    }

    fn leader_and_term(&self) -> (NodeId, Term) {
        let (leader, status) = self.leader().unwrap();
        (leader, status.group.unwrap().term)
    }

    /// A strong read at the leader, which must succeed.
    fn read_once(&mut self) {
        let (leader, _) = self.leader().unwrap();
        let request = self.request(leader, get(key("read")), 1_000, Some(Freshness::Strong));
        self.run_until(1_000, "an answer", |world| world.answers.contains_key(&request));
        assert!(self.answers[&request].is_ok(), "{:?}", self.answers[&request]);
    }
}

#[test]
fn an_idle_group_sends_nothing_and_serves_when_asked() {
    for seed in seeds(6) {
        let (mut world, leader, term) = World::at_rest(seed);
        for _ in 0..3 {
            let visits = |world: &World| world.nodes[&leader].running.as_ref().unwrap().core.visits();
            let before = visits(&world);
            world.run_ms(20_000);
            assert_eq!((world.leader_and_term(), resting(&world, leader)), ((leader, term), 1));
            assert!(visits(&world) - before < 20, "a replica at rest is visited");
            world.read_once();
            assert_eq!(resting(&world, leader), 0, "a read wakes the group");
            world.all_rest();
            assert_eq!(world.leader_and_term(), (leader, term));
        }
        world.add_clients(2);
        world.finish();
    }
}

#[test]
fn a_resting_group_has_a_new_leader_soon_after_its_leaders_node_died() {
    for seed in seeds(20) {
        let (mut world, leader, _) = World::at_rest(seed);
        world.run_some_ms(3_000);
        if seed % 2 == 0 {
            world.crash(leader);
        } else {
            world.isolate(leader);
        }
        let elected = |world: &World| world.leader().is_some_and(|(node, _)| node != leader);
        world.run_until(ELECTION_MS, "another leader", elected);
        if seed % 2 == 0 {
            world.start(leader);
        }
        world.heal();
        world.all_rest();
        world.finish();
    }
}

/// No connection changes; only the heartbeats stop, as when a process hangs.
#[test]
fn a_follower_wakes_when_its_leaders_node_falls_silent() {
    for seed in seeds(6) {
        let (mut world, leader, _) = World::at_rest(seed);
        world.run_some_ms(3_000);
        world.network.node_heartbeats_lost = true;
        let wakes = |world: &World| world.nodes.keys().any(|node| *node != leader && resting(world, *node) == 0);
        world.run_until(1_500, "a follower wakes", wakes);
        world.network.node_heartbeats_lost = false;
        world.all_rest();
        world.finish();
    }
}

/// The node lives, and so do its heartbeats; the leader does not.
#[test]
fn a_resting_group_has_a_new_leader_soon_after_its_leader_was_lost_on_a_living_node() {
    for seed in seeds(20) {
        let (mut world, leader, _) = World::at_rest(seed);
        world.network.lost_per_mille = 200;
        let replica = ReplicaId(leader.0);
        world.input(leader, Input::Broken { replica });
        let elected = |world: &World| world.leader().is_some_and(|(node, _)| node != leader);
        world.run_until(ELECTION_MS + 1_000, "another leader", elected);
    }
}

#[test]
fn a_follower_that_restarts_finds_its_resting_leader() {
    for seed in seeds(10) {
        let (mut world, leader, term) = World::at_rest(seed);
        let follower = NodeId(leader.0 % 3 + 1);
        world.crash(follower);
        world.run_some_ms(3_000);
        world.start(follower);
        world.allow_rest();
        world.run_ms(100);
        world.all_rest();
        assert_eq!(world.leader_and_term(), (leader, term), "nobody had a reason to elect another leader");
        world.add_clients(2);
        world.finish();
    }
}

/// Rests and heartbeats are lost: timers end, and the leader answers the candidates.
#[test]
fn a_lost_message_to_rest_costs_no_leader() {
    let (mut changed, mut rested) = (0, 0);
    for seed in seeds(20) {
        let mut world = World::founded(seed, 3, 3);
        world.allow_rest();
        world.config.raft.rest_after_ticks = 3;
        world.run_until(2_000, "a leader", |world| world.leader().is_some());
        let (leader, term) = world.leader_and_term();
        world.network.lost_per_mille = 50;
        for _ in 0..40 {
            world.run_some_ms(500);
            rested += resting(&world, leader);
        }
        changed += usize::from(world.leader().is_none() || world.leader_and_term() != (leader, term));
        world.network.lost_per_mille = 0;
        world.add_clients(2);
        world.finish();
    }
    assert!(rested > 0, "no group rested");
    assert!(changed <= 4, "{changed} of 20 leaders were deposed");
}

#[test]
fn a_group_with_a_follower_that_lags_does_not_rest() {
    for seed in seeds(6) {
        let (mut world, leader, _) = World::at_rest(seed);
        world.network.entries_lost_to = Some(NodeId(leader.0 % 3 + 1));
        world.add_clients(1);
        let writes = world.checks.writes;
        world.run_until(REST_MS, "a write", |world| world.checks.writes > writes);
        world.clients.iter_mut().for_each(|client| client.stopping = true);
        world.run_ms(2 * REST_MS);
        assert_eq!(resting(&world, leader), 0);
        world.network.entries_lost_to = None;
        world.all_rest();
        world.add_clients(1);
        world.finish();
    }
}

/// Its node creates it seconds after the change, and no connection changes: only the leader can know of it.
#[test]
fn a_learner_that_is_created_late_is_served() {
    for seed in seeds(6) {
        let (mut world, leader, _) = World::at_rest_among(seed, 4);
        let (replica, node) = (ReplicaId(40), NodeId(4));
        world.change(&ConfChange::AddLearner { replica, node }, |conf| conf.contains(replica));
        world.run_ms(2 * REST_MS);
        assert_eq!(resting(&world, leader), 0);
        world.request_replica(replica, node, descriptor(&[]), false);
        let has_all = |world: &World| {
            let group = world.leader().unwrap().1.group.unwrap();
            group.followers.iter().all(|follower| follower.matched == group.last)
        };
        world.run_until(REST_MS, "the learner catches up", has_all);
        world.all_rest();
        world.add_clients(1);
        world.finish();
    }
}

#[test]
fn a_group_rests_while_a_follower_is_down_and_brings_it_up_to_date_when_it_is_back() {
    for seed in seeds(10) {
        let (mut world, leader, _) = World::at_rest(seed);
        let follower = NodeId(leader.0 % 3 + 1);
        if seed % 2 == 0 {
            world.crash(follower);
        } else {
            world.isolate(follower);
        }
        world.add_clients(1);
        let writes = world.checks.writes;
        world.run_until(REST_MS, "a write", |world| world.checks.writes > writes);
        world.clients.iter_mut().for_each(|client| client.stopping = true);
        world.run_until(REST_MS, "the client is done", |world| world.clients[0].is_idle());
        world.run_until(2 * REST_MS, "the leader rests", |world| resting(world, leader) == 1);
        let lags = |world: &World| {
            let group = world.leader().unwrap().1.group.unwrap();
            group.followers.iter().any(|follower| follower.matched < group.last)
        };
        assert!(lags(&world));
        if seed % 2 == 0 {
            world.start(follower);
            world.allow_rest();
        }
        world.heal();
        world.run_until(REST_MS, "the follower is up to date", |world| !lags(world));
        world.all_rest();
        world.add_clients(1);
        world.finish();
    }
}

#[test]
fn thousands_of_resting_groups_cost_no_tick_anything() {
    let count = 2_000;
    let mut many = Many::resting(count);
    let before = many.core.visits();
    for _ in 0..100 {
        let effects = many.next_tick();
        assert!(effects.sends.is_empty());
        many.answer(effects);
    }
    assert_eq!(many.core.visits(), before);
    // A peer that comes back wakes them some at a time.
    many.input(Input::Peer { node: NodeId(2), connected: true });
    let sends = |effects: &flotilla_replication::Effects<u64>| {
        effects.sends.iter().filter(|sent| sent.message.kind == MessageKind::Heartbeat).count()
    };
    let first = many.next_tick();
    assert!((1..=2 * 500).contains(&sends(&first)), "{}", sends(&first));
    many.answer(first);
    for _ in 0..300 {
        let effects = many.next_tick();
        many.answer(effects);
    }
    assert_eq!(many.core.resting() as u64, count, "they rest again");
    let leads = |status: &ReplicaStatus| status.group.as_ref().is_some_and(|group| group.role == Role::Leader);
    assert_eq!(many.core.status().iter().filter(|status| leads(status)).count() as u64, count);
}

/// Otherwise all of them would campaign within one election timeout, and wake their whole groups.
#[test]
fn replicas_of_a_node_that_starts_wake_some_at_a_time() {
    let mut many = Many::new(3_000);
    many.verify();
    assert_eq!(many.core.resting(), 3_000);
    let mut awake = 0;
    while awake < 3_000 {
        many.next_tick();
        let woken = 3_000 - many.core.resting() - awake;
        assert!((1..=500).contains(&woken), "{woken}");
        awake += woken;
    }
}

#[test]
fn fewer_replicas_wake_while_ticks_come_late() {
    let mut many = Many::new(3_000);
    many.verify();
    let mut woken = Vec::new();
    for late in [false, true, true, true, false, false] {
        let before = many.core.resting();
        many.now_ms += if late { 80 } else { 0 };
        many.next_tick();
        woken.push(before - many.core.resting());
    }
    assert!(woken.is_sorted_by(|earlier, later| *later < *earlier || *earlier < 100), "{woken:?}");
    assert!(woken[3] < 100 && woken[5] > woken[3], "{woken:?}");
}

#[test]
fn a_request_wakes_a_replica_that_waits_for_its_turn() {
    let mut many = Many::new(3_000);
    many.verify();
    many.next_tick();
    let ask = |many: &mut Many| {
        let request = Request {
            shard: ShardId(3_000),
            range_epoch: None,
            after: Timestamp::ZERO,
            payload: Bytes::new(),
            refs: CommandRefs::default(),
            deadline_ms: many.now_ms + 1_000,
            reply: 0,
        };
        let before = many.core.resting();
        many.input(Input::Read(request, Freshness::Strong));
        before - many.core.resting()
    };
    assert_eq!([ask(&mut many), ask(&mut many)], [1, 0]);
}
