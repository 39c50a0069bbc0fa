//! Strong reads by lease: served at once while no other leader is possible, and never later.

use flotilla_kv::Answer;
use flotilla_replication::{
    ApplyTask, CommandRefs, Demand, Effects, Freshness, Input, Leases, Outgoing, ReadCounts, Request, RequestError,
};
use flotilla_types::{Message, MessageKind, NodeId, ReplicaId, ShardId, Timestamp, WalSequence};
use rand::RngExt as _;

use crate::harness::{SHARD, World, get, key, seeds, store};

/// How a core handles a read.
#[derive(Debug, PartialEq, Eq)]
enum Handled {
    /// Served by the lease.
    Served,
    /// Served by the lease, which a quorum round renews.
    ServedAndRenewed,
    /// Not served; a quorum round has started.
    RoundStarted,
    /// Neither: a round is in flight already, or this node does not lead.
    Pending,
}

impl World {
    /// A strong read whose answer is not awaited.
    fn read_request(&mut self) -> Input<u64> {
        let (reply, deadline_ms) = (self.next_attempt(), self.now_ms() + 60_000);
        let (range_epoch, after, payload) = (None, Timestamp::ZERO, get(key("read")));
        let request =
            Request { shard: SHARD, range_epoch, after, payload, refs: CommandRefs::default(), deadline_ms, reply };
        Input::Read(request, Freshness::Strong)
    }

    /// The raft thread of a node receives a read, is stopped for `stopped_ms`, and continues. Its effects are
    /// dropped.
    fn handle_read(&mut self, node: NodeId, stopped_ms: u64) -> Handled {
        let (read, now_ms) = (self.read_request(), self.now_ms());
        let mut effects = Effects::default();
        let running = self.nodes.get_mut(&node).and_then(|node| node.running.as_mut()).unwrap();
        running.core.step(now_ms, crate::harness::WALL_MS + now_ms, read, &mut effects);
        running.core.flush(now_ms + stopped_ms, &mut effects);
        let asks = |outgoing: &Outgoing| {
            outgoing.message.kind == MessageKind::Heartbeat && !outgoing.message.context.is_empty()
        };
        let served = effects.apply.iter().any(|task| matches!(task, ApplyTask::Read { .. }));
        match (served, effects.sends.iter().any(asks)) {
            (true, false) => Handled::Served,
            (true, true) => Handled::ServedAndRenewed,
            (false, true) => Handled::RoundStarted,
            (false, false) => Handled::Pending,
        }
    }

    /// Reads at a node, so that it has a fresh lease.
    fn take_lease(&mut self, node: NodeId) {
        let reads = self.reads_of(node);
        self.run_ms(600);
        let asked = self.request(node, get(key("read")), 1_000, Some(Freshness::Strong));
        self.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
        assert!(self.reads_of(node).by_round > reads.by_round && self.has_lease(node));
    }

    fn reads_of(&self, node: NodeId) -> ReadCounts {
        self.nodes[&node].running.as_ref().map(|running| running.core.read_counts()).unwrap_or_default()
    }

    fn has_lease(&self, node: NodeId) -> bool {
        let now_ms = self.now_ms();
        self.nodes[&node].running.as_ref().is_some_and(|running| !running.core.leases(now_ms).is_empty())
    }

    /// Reads at a node every few milliseconds for this long.
    fn read_for_ms(&mut self, node: NodeId, ms: u64) {
        let until_ms = self.now_ms() + ms;
        while self.now_ms() < until_ms {
            self.request(node, get(key("read")), 1_000, Some(Freshness::Strong));
            self.run_some_ms(10);
        }
    }
}

/// A world of three nodes, and the leader.
fn world_with_leader(seed: u64) -> (World, NodeId) {
    let mut world = World::founded(seed, 3, 3);
    world.run_ms(300);
    let leader = world.leader().unwrap().0;
    (world, leader)
}

fn length_ms(world: &World) -> u64 {
    world.config.lease_ms().unwrap()
}

#[test]
fn steady_reads_keep_the_lease_and_a_group_without_reads_lets_it_expire() {
    for seed in seeds(3) {
        let (mut world, leader) = world_with_leader(seed);
        world.take_lease(leader);
        let before = world.reads_of(leader);
        world.read_for_ms(leader, 3_000);
        let after = world.reads_of(leader);
        assert!(after.by_lease > before.by_lease + 300 && after.by_round == before.by_round, "{before:?} {after:?}");
        world.run_ms(1_000);
        assert!(!world.has_lease(leader), "without reads, the lease is not renewed");
    }
}

#[test]
fn without_leases_every_read_needs_a_quorum_round() {
    let (mut world, leader) = world_with_leader(1);
    world.config.leases = Leases::Off;
    world.crash(leader);
    world.start(leader);
    for node in (1..=3).map(NodeId).filter(|node| *node != leader) {
        world.crash(node);
        world.start(node);
    }
    world.run_until(20_000, "a leader", |world| world.leader().is_some());
    world.run_ms(300);
    let leader = world.leader().unwrap().0;
    world.read_for_ms(leader, 500);
    let reads = world.reads_of(leader);
    assert!(reads.by_round > 30 && reads.by_lease == 0, "{reads:?}");
}

/// Ticks visit it, although nothing arrives any more.
#[test]
fn a_read_that_no_quorum_confirms_is_answered_at_its_deadline() {
    for seed in seeds(3) {
        let (mut world, leader) = world_with_leader(seed);
        assert!(!world.has_lease(leader));
        world.isolate(leader);
        let asked = world.request(leader, get(key("read")), 100, Some(Freshness::Strong));
        world.run_ms(300);
        assert_eq!(world.leader().map(|(node, _)| node), Some(leader), "it has not noticed the isolation");
        assert_eq!(world.answers.get(&asked), Some(&Err(RequestError::Deadline)));
    }
}

/// The lease is checked after the read was received, so a process that was stopped in between starts a round.
#[test]
fn a_leader_that_was_stopped_before_answering_starts_a_quorum_round() {
    for seed in seeds(3) {
        let (mut world, leader) = world_with_leader(seed);
        let length_ms = length_ms(&world);
        world.take_lease(leader);
        assert_eq!(world.handle_read(leader, 0), Handled::Served);
        assert_eq!(world.handle_read(leader, length_ms), Handled::RoundStarted);
        world.take_lease(leader);
        assert_eq!(world.handle_read(leader, length_ms * 3 / 4), Handled::ServedAndRenewed);
        assert_eq!(world.handle_read(leader, length_ms * 3 / 4), Handled::Served, "one renewal at a time");
        world.take_lease(leader);
        assert_eq!(
            world.handle_read(leader, 3_600_000),
            Handled::RoundStarted,
            "a jump of the clock does not extend the lease"
        );
    }
}

/// The leader's clock stops unnoticed for as long as the drift allowance, while the voters' clocks continue.
#[test]
fn a_leader_whose_clock_lost_the_drift_allowance_is_still_the_only_leader() {
    for seed in seeds(6) {
        let (mut world, leader) = world_with_leader(seed);
        world.take_lease(leader);
        let term = world.leader().and_then(|(_, leader)| leader.group).map(|group| group.term);
        let promise_ms = (world.config.raft.election_ticks as u64 - 1) * world.config.tick_ms;
        let lost_ms = promise_ms - length_ms(&world);
        world.isolate(leader);
        let stood_ms = world.now_ms();
        let holds = |world: &World| {
            let clock_ms = stood_ms.max(world.now_ms() - lost_ms);
            world.nodes[&leader].running.as_ref().is_some_and(|running| !running.core.leases(clock_ms).is_empty())
        };
        while holds(&world) {
            world.run_ms(1);
            let newest = world.leader().and_then(|(_, leader)| leader.group).map(|group| group.term);
            assert!(newest == term || !holds(&world), "another node leads in {newest:?}");
        }
        assert!(
            world.now_ms() > stood_ms + lost_ms + length_ms(&world) / 2,
            "the lease lasted by a clock that lost time"
        );
        world.finish();
    }
}

/// The process is paused, another leader is elected and writes, and the process continues with a read
/// received before.
#[test]
fn a_leader_that_was_paused_during_an_election_does_not_answer_earlier_reads() {
    for seed in seeds(4) {
        let (mut world, old) = world_with_leader(seed);
        let written = world.request(old, store(7, 1, "read", "old"), 1_000, None);
        world.run_until(2_000, "a write", |world| world.answers.contains_key(&written));
        world.take_lease(old);
        let (read, now_ms) = (world.read_request(), world.now_ms());
        let mut paused = world.nodes.get_mut(&old).unwrap().running.take().unwrap();
        let mut effects = Effects::default();
        paused.core.step(now_ms, crate::harness::WALL_MS + now_ms, read, &mut effects);
        world.run_until(5_000, "another leader", |world| world.leader().is_some_and(|(node, _)| node != old));
        let new = world.leader().unwrap().0;
        let written = world.request(new, store(7, 2, "read", "new"), 2_000, None);
        world.run_until(3_000, "a write", |world| world.answers.contains_key(&written));
        paused.core.flush(world.now_ms(), &mut effects);
        assert!(effects.apply.is_empty() && paused.core.leases(world.now_ms()).is_empty());
        world.nodes.get_mut(&old).unwrap().running = Some(paused);
        world.crash(old);
        world.finish();
    }
}

#[test]
fn a_leadership_transfer_ends_the_lease_before_any_message_is_sent() {
    for seed in seeds(3) {
        let (mut world, leader) = world_with_leader(seed);
        world.take_lease(leader);
        let (to, now_ms) = (NodeId(leader.0 % 3 + 1), world.now_ms());
        let mut effects = Effects::default();
        let running = world.nodes.get_mut(&leader).and_then(|node| node.running.as_mut()).unwrap();
        running.core.step(now_ms, 0, Input::Transfer { shard: SHARD, to }, &mut effects);
        assert!(running.core.leases(now_ms).is_empty());
        running.core.flush(now_ms, &mut effects);
        let sent = effects.sends.iter().any(|outgoing| outgoing.message.kind == MessageKind::TimeoutNow);
        assert!(sent, "the follower is told to campaign at once");
        assert_eq!(world.handle_read(leader, 0), Handled::RoundStarted);
    }
}

#[test]
fn a_change_of_the_replica_set_ends_the_lease_until_the_next_round() {
    let mut world = World::founded(5, 4, 3);
    world.run_ms(300);
    let leader = world.leader().unwrap().0;
    world.take_lease(leader);
    let mut ended = false;
    world.request_replica(ReplicaId(4), NodeId(4), crate::harness::descriptor(&[]), false);
    let change = flotilla_replication::ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) };
    world.input(leader, Input::Change { shard: SHARD, change });
    let until_ms = world.now_ms() + length_ms(&world) / 2;
    while world.now_ms() < until_ms {
        world.run_ms(1);
        ended |= !world.has_lease(leader);
    }
    assert!(ended && world.conf().contains(ReplicaId(4)));
    world.take_lease(leader);
}

/// A voter that granted a lease restarts, and a candidate that is cut off from the leader asks for its vote.
#[test]
fn a_restarted_voter_does_not_vote_while_a_lease_that_it_granted_lasts() {
    let mut elected = 0;
    for seed in seeds(12) {
        let (mut world, leader) = world_with_leader(seed);
        let (voter, candidate) = (NodeId(leader.0 % 3 + 1), NodeId((leader.0 + 1) % 3 + 1));
        world.set_link(leader, candidate, true);
        let cut_off_ms = world.rng.random_range(400..1_200);
        world.read_for_ms(leader, cut_off_ms);
        world.crash(voter);
        world.set_link(leader, voter, true);
        world.start(voter);
        // `harness::checks` compares leases with leaders at each step.
        world.run_ms(2_000);
        elected += u32::from(world.leader().is_some_and(|(node, _)| node == candidate || node == voter));
        world.finish();
    }
    assert!(elected > 6, "they do elect a leader in the end");
}

#[test]
fn reads_see_earlier_acknowledged_writes_across_leader_changes() {
    let mut leased = 0;
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(6);
        for _ in 0..6 {
            world.run_some_ms(800);
            let Some((leader, _)) = world.leader() else { continue };
            match world.rng.random_range(0..3) {
                0 => world.isolate(leader),
                1 => world.input(leader, Input::Transfer { shard: SHARD, to: NodeId(leader.0 % 3 + 1) }),
                _ => {
                    world.crash(leader);
                    world.start(leader);
                }
            }
            world.run_some_ms(1_200);
            world.heal();
        }
        leased += (1..=3).map(|node| world.reads_of(NodeId(node)).by_lease).sum::<u64>();
        world.finish();
    }
    assert!(leased > 0);
}

/// A new leader may have committed entries that it has not delivered yet and that the old leader
/// acknowledged.
#[test]
fn a_read_by_lease_is_queued_after_all_committed_entries() {
    let (mut world, leader) = world_with_leader(3);
    world.take_lease(leader);
    let status = world.leader().unwrap().1;
    let group = status.group.unwrap();
    let (read, now_ms) = (world.read_request(), world.now_ms());
    let payload = store(7, 1, "read", "new");
    let (range_epoch, after, deadline_ms) = (None, Timestamp::ZERO, now_ms + 1_000);
    let write =
        Request { shard: SHARD, range_epoch, after, payload, refs: CommandRefs::default(), deadline_ms, reply: 0 };
    let running = world.nodes.get_mut(&leader).and_then(|node| node.running.as_mut()).unwrap();
    let (mut effects, mut later) = (Effects::default(), Effects::default());
    running.core.step(now_ms, 0, Input::Propose(write), &mut effects);
    running.core.flush(now_ms, &mut effects);
    let append = effects.sends.iter().find(|outgoing| outgoing.message.kind == MessageKind::Append).unwrap();
    let answer = Message {
        kind: MessageKind::AppendResponse,
        from: append.message.to,
        to: append.message.from,
        index: group.last.next(),
        entries: Vec::new(),
        ..append.message.clone()
    };
    let done = effects.writes.into_iter().map(|write| write.done).collect();
    running.core.step(now_ms, 0, Input::Written { sequence: WalSequence(0), done }, &mut later);
    running.core.step(now_ms, 0, Input::Raft { from: append.node, shard: SHARD, message: answer }, &mut later);
    running.core.step(now_ms, 0, read, &mut later);
    running.core.flush(now_ms, &mut later);
    let order: Vec<_> = later.apply.iter().map(|task| matches!(task, ApplyTask::Read { .. })).collect();
    assert_eq!(order, [false, true], "the write first");
}

#[test]
fn what_a_leader_is_asked_is_counted_once_and_followers_count_nothing() {
    let (mut world, leader) = world_with_leader(2);
    let take = |world: &mut World, node: NodeId| -> Vec<(ShardId, Demand)> {
        let running = world.nodes.get_mut(&node).and_then(|node| node.running.as_mut()).expect("it runs");
        running.core.take_demands().iter().collect()
    };
    world.take_lease(leader);
    take(&mut world, leader);
    let written = world.request(leader, store(7, 1, "read", "new"), 1_000, None);
    world.run_until(1_000, "a write", |world| world.answers.contains_key(&written));
    for freshness in [Freshness::Strong, Freshness::Strong] {
        let asked = world.request(leader, get(key("read")), 1_000, Some(freshness));
        world.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
    }
    let found = take(&mut world, leader);
    let [(SHARD, Demand { commands: 1, reads: 2, bytes })] = found[..] else { panic!("{found:?}") };
    assert!((10..500).contains(&bytes), "{bytes} bytes of an entry");
    assert_eq!(take(&mut world, leader), [], "it was taken");
    let followers: Vec<_> = world.nodes.keys().copied().filter(|node| *node != leader).collect();
    assert!(followers.into_iter().all(|node| take(&mut world, node).is_empty()));
}

#[test]
fn a_read_by_lease_returns_the_written_value() {
    let (mut world, leader) = world_with_leader(2);
    world.take_lease(leader);
    let written = world.request(leader, store(7, 1, "read", "new"), 1_000, None);
    world.run_until(1_000, "a write", |world| world.answers.contains_key(&written));
    let before = world.reads_of(leader);
    let asked = world.request(leader, get(key("read")), 1_000, Some(Freshness::Strong));
    world.run_until(1_000, "an answer", |world| world.answers.contains_key(&asked));
    assert_eq!(world.reads_of(leader).by_lease, before.by_lease + 1);
    let Ok(Answer::Records(records)) = flotilla_kv::decode_answer(world.answers[&asked].clone().unwrap().payload)
    else {
        panic!("not records")
    };
    assert_eq!(records[0].as_ref().unwrap().value, "new".into());
}
