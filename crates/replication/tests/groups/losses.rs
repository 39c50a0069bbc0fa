//! Data folders that were rolled back or wiped.

use std::sync::Arc;

use flotilla_replication::{ConfChange, Core, Effects, Input, LostReason, Notice};
use flotilla_storage::{Log as _, LogBatch, LogEvidence, MemoryLog, ReplicaWrite};
use flotilla_types::{
    Checkpoint, ConfState, EntryKind, Incarnation, LogIndex, NodeId, Position, ReplicaId, ShardId, Term, WalSequence,
};

use crate::harness::{SHARD, World, descriptor, seeds, small_bounds};

/// The replicas that a node reported as lost after a roll-back; `None` when it reported nothing.
fn lost(world: &World, node: NodeId) -> Option<Vec<ReplicaId>> {
    world.notices.iter().find_map(|(from, notice)| match notice {
        Notice::Lost { replicas, reason: LostReason::RolledBack } if *from == node => {
            Some(replicas.iter().map(|(_, replica)| *replica).collect())
        }
        _ => None,
    })
}

/// Replaces the first replica of a node, which it lost, by a new one that joins as a learner.
fn replace_lost(world: &mut World, node: NodeId) {
    let (old, new) = (ReplicaId(node.0), ReplicaId(9));
    world.input(node, Input::TrustFolder);
    world.desired.remove(&old);
    world.add_learners(&[(new, node)]);
    world.swap(&[new], &[old]);
    world.remove(old, node);
}

#[test]
fn a_rolled_back_node_abandons_its_replicas_and_no_write_is_lost() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(3);
        world.run_some_ms(1_000);
        let (node, replica) = (NodeId(1 + seed % 3), ReplicaId(1 + seed % 3));
        let backup = world.backup(node);
        if seed % 2 == 0 {
            world.run_ms(1_000);
            world.crash(node);
            world.start(node);
        }
        world.run_ms(1_500);
        world.crash(node);
        world.restore(node, &backup);
        world.start(node);
        world.run_until(3_000, "the node reports a loss", |world| lost(world, node).is_some());
        assert_eq!(lost(&world, node), Some(vec![replica]));
        // It may have forgotten other replicas, and must find out which, even if it restarts before it could.
        let new = ReplicaId(9);
        world.desired.remove(&replica);
        let create = || Input::Create { replica: new, descriptor: descriptor(&[1, 2, 3]), founding: false };
        world.run_ms(500);
        for _ in 0..2 {
            world.input(node, create());
            world.run_ms(200);
            assert!(world.nodes[&node].status().is_empty(), "an untrusted folder creates no replica");
            world.notices.clear();
            world.crash(node);
            world.start(node);
            world.run_ms(1_000);
            assert_eq!(lost(&world, node), Some(vec![]), "the loss is remembered across restarts");
        }
        // It comes back under a new id, as a learner.
        world.input(node, Input::TrustFolder);
        world.add_learners(&[(new, node)]);
        world.swap(&[new], &[replica]);
        world.remove(replica, node);
        world.run_ms(500);
        world.finish();
        assert_eq!(world.conf().voters.len(), 3);
    }
}

#[test]
fn a_rolled_back_node_does_not_vote_before_it_is_verified() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(1_000);
        let (leader, _) = world.leader().unwrap();
        let (rolled, behind) = (NodeId(leader.0 % 3 + 1), NodeId((leader.0 + 1) % 3 + 1));
        let backup = world.backup(rolled);
        // The third node gets heartbeats of the node that will be rolled back, but no entries.
        world.set_link(leader, behind, true);
        world.add_clients(3);
        world.run_ms(1_500);
        assert!(world.checks.writes > 20);
        world.crash(leader);
        world.crash(rolled);
        world.restore(rolled, &backup);
        world.network.node_heartbeats_lost = true;
        world.start(rolled);
        world.run_ms(3_000);
        assert!(world.leader().is_none(), "these two lack acknowledged writes\n{}", world.describe());
        world.network.node_heartbeats_lost = false;
        world.run_until(1_000, "the node reports a loss", |world| lost(world, rolled).is_some());
        world.heal();
        world.start(leader);
        replace_lost(&mut world, rolled);
        world.finish();
    }
}

/// Node heartbeats come four times a second, and writes by the thousand: acknowledgements themselves say what
/// a node must not forget.
#[test]
fn a_roll_back_to_after_the_last_heartbeat_is_noticed() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(1_000);
        let (leader, _) = world.leader().unwrap();
        let (rolled, down) = (NodeId(leader.0 % 3 + 1), NodeId((leader.0 + 1) % 3 + 1));
        world.crash(down);
        world.network.node_heartbeats_lost = true;
        let backup = world.backup(rolled);
        world.add_clients(3);
        world.run_ms(1_500);
        assert!(world.checks.writes > 20);
        world.crash(leader);
        world.crash(rolled);
        world.restore(rolled, &backup);
        world.network.node_heartbeats_lost = false;
        world.start(rolled);
        world.start(down);
        world.run_ms(3_000);
        assert!(world.leader().is_none(), "these two lack acknowledged writes\n{}", world.describe());
        world.start(leader);
        world.run_until(3_000, "the node reports a loss", |world| lost(world, rolled).is_some());
        replace_lost(&mut world, rolled);
        world.finish();
    }
}

/// With five voters, three others can verify a node and yet not know what it acknowledged to the last leader.
#[test]
fn a_roll_back_that_only_the_last_leader_can_notice_costs_no_write() {
    for seed in seeds(30) {
        let mut world = World::founded(seed, 5, 5);
        world.run_ms(1_000);
        let (leader, _) = world.leader().unwrap();
        let [rolled, _, down, also_down] = [1, 2, 3, 4].map(|step| NodeId((leader.0 + step - 1) % 5 + 1));
        world.crash(down);
        world.crash(also_down);
        world.network.node_heartbeats_lost = true;
        let backup = world.backup(rolled);
        world.add_clients(3);
        world.run_until(5_000, "writes", |world| world.checks.writes > 20);
        world.crash(leader);
        world.crash(rolled);
        world.restore(rolled, &backup);
        world.network.node_heartbeats_lost = false;
        for node in [down, also_down, rolled] {
            world.start(node);
        }
        world.run_until(5_000, "the other three serve", |world| world.leader().is_some());
        world.run_ms(500);
        world.start(leader);
        world.run_until(3_000, "the node reports a loss", |world| lost(world, rolled).is_some());
        replace_lost(&mut world, rolled);
        world.finish();
    }
}

#[test]
fn a_rolled_back_node_that_was_the_only_voter_does_not_fork_its_group() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 1);
        world.add_clients(3);
        world.run_some_ms(500);
        world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
        world.swap(&[ReplicaId(2), ReplicaId(3)], &[]);
        let backup = world.backup(NodeId(1));
        world.run_ms(1_000);
        world.crash(NodeId(1));
        world.run_ms(1_500);
        world.restore(NodeId(1), &backup);
        world.start(NodeId(1));
        world.run_until(3_000, "the node reports a loss", |world| lost(world, NodeId(1)).is_some());
        assert_eq!(lost(&world, NodeId(1)), Some(vec![ReplicaId(1)]));
        replace_lost(&mut world, NodeId(1));
        world.finish();
    }
}

/// The voters of a replica's checkpoint may be gone for good; those at the end of its log know at least as
/// much.
#[test]
fn a_restarted_replica_is_verified_by_the_latest_voters() {
    let mut outdated = 0;
    for seed in seeds(12) {
        let mut world = World::founded(seed, 3, 1);
        world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        world.change(&swap, |conf| conf.voters.contains(&ReplicaId(2)));
        world.input(NodeId(1), Input::Change { shard: SHARD, change: ConfChange::LeaveJoint });
        let log = |world: &World| world.nodes[&NodeId(2)].log.replicas().unwrap().remove(0).1;
        let swapped = log(&world).last;
        world.run_until(500, "the end of the joint configuration arrives", |world| log(world).last > swapped);
        outdated += usize::from(
            log(&world).checkpoint.position.conf.is_voter(ReplicaId(1))
                && log(&world).checkpoint.position.index <= swapped,
        );
        world.crash(NodeId(2));
        world.run_ms(500);
        world.crash(NodeId(1));
        world.start(NodeId(2));
        world.run_until(5_000, "two of three elect a leader", |world| {
            world.leader().is_some_and(|(node, _)| node != NodeId(1))
        });
    }
    assert!(outdated > 0, "no checkpoint was older than the configuration");
}

#[test]
fn a_wiped_node_creates_no_replica_before_it_is_verified() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(2);
        world.run_ms(1_500);
        let node = NodeId(1 + seed % 3);
        world.wipe(node);
        world.isolate(node);
        world.start(node);
        // Its old replica, by an outdated operation.
        let create = |world: &mut World, replica| {
            let input =
                Input::Create { replica: ReplicaId(replica), descriptor: descriptor(&[1, 2, 3]), founding: false };
            world.input(node, input);
        };
        world.desired.remove(&ReplicaId(node.0));
        for _ in 0..20 {
            create(&mut world, node.0);
            world.run_ms(50);
        }
        assert!(world.nodes[&node].status().is_empty(), "nothing is created while the node is unverified");
        world.heal();
        world.run_until(3_000, "the node reports a loss", |world| lost(world, node).is_some());
        assert!(world.nodes[&node].status().is_empty());
        world.input(node, Input::TrustFolder);
        world.run_ms(1_000);
        let new = ReplicaId(9);
        world.add_learners(&[(new, node)]);
        world.swap(&[new], &[ReplicaId(node.0)]);
        world.remove(ReplicaId(node.0), node);
        world.finish();
    }
}

#[test]
fn a_node_that_lost_nothing_reports_no_loss() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.network.slow_per_mille = 200;
        world.network.duplicated_per_mille = 100;
        world.add_clients(2);
        for _ in 0..6 {
            world.crash_and_start_one();
        }
        world.finish();
        let reported = world.notices.iter().any(|(_, notice)| matches!(notice, Notice::Lost { .. }));
        assert!(!reported, "{:?}", world.notices);
    }
}

/// The node that was down remembers nothing, and the node that forgot cannot verify itself: together they
/// would be a majority that lacks acknowledged writes.
#[test]
fn a_rolled_back_node_needs_more_than_one_that_was_away() {
    for seed in seeds(8) {
        let mut world = World::founded(seed, 3, 3);
        world.run_ms(1_000);
        let (leader, _) = world.leader().unwrap();
        let (rolled, away) = (NodeId(leader.0 % 3 + 1), NodeId((leader.0 + 1) % 3 + 1));
        let backup = world.backup(rolled);
        world.crash(away);
        world.add_clients(3);
        world.run_ms(1_500);
        assert!(world.checks.writes > 20);
        world.crash(leader);
        world.crash(rolled);
        world.restore(rolled, &backup);
        let (first, second) = if seed % 2 == 0 { (rolled, away) } else { (away, rolled) };
        world.start(first);
        world.run_some_ms(1_000);
        world.start(second);
        world.run_ms(3_000);
        assert!(world.leader().is_none(), "these two lack acknowledged writes\n{}", world.describe());
        assert_eq!(lost(&world, rolled), None, "nobody who remembers is there");
        world.start(leader);
        world.run_until(3_000, "the node reports a loss", |world| lost(world, rolled).is_some());
        replace_lost(&mut world, rolled);
        world.finish();
    }
}

/// Evidence stands for the peers: two of three serve after all were killed, whoever comes back.
#[test]
fn two_of_three_serve_after_all_were_killed() {
    for seed in seeds(6) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(2);
        world.run_ms(1_000);
        for node in 1..=3 {
            world.crash(NodeId(node));
        }
        let away = NodeId(1 + seed % 3);
        for node in (1..=3).map(NodeId).filter(|node| *node != away) {
            world.start(node);
        }
        world.run_until(5_000, "two of three elect a leader", |world| world.leader().is_some());
        world.start(away);
        world.finish();
    }
}

/// Without evidence, n − q + 1 other voters must answer: with three voters both of them.
#[test]
fn a_replica_without_evidence_waits_for_both_others() {
    for seed in seeds(4) {
        let mut world = World::founded(seed, 3, 3);
        world.add_clients(2);
        world.run_ms(1_000);
        let node = NodeId(1 + seed % 3);
        let away = NodeId(1 + (seed + 1) % 3);
        world.crash(node);
        let same = world.backup(node);
        world.restore(node, &same);
        world.crash(away);
        world.start(node);
        world.run_ms(3_000);
        assert!(world.leader().is_none(), "one of two others verified it\n{}", world.describe());
        world.start(away);
        world.run_until(3_000, "all three serve", |world| world.leader().is_some());
        assert_eq!(lost(&world, node), None);
        world.finish();
    }
}

/// A group of one voter that becomes one of three, and back: whatever its log shows when the node loses the
/// evidence for it, the replica is verified once all peers answer.
#[test]
fn a_replica_that_was_or_becomes_the_only_voter_is_verified_at_every_step() {
    let (mut joint, mut alone_before_joint, mut alone_after_joint) = (0, 0, 0);
    for seed in seeds(40) {
        let grows = seed % 2 == 0;
        let mut world = World::founded(seed, 3, if grows { 1 } else { 3 });
        let others = [ReplicaId(2), ReplicaId(3)];
        let change = if grows {
            world.add_learners(&[(ReplicaId(2), NodeId(2)), (ReplicaId(3), NodeId(3))]);
            ConfChange::Swap { promote: others.to_vec(), demote: vec![] }
        } else {
            ConfChange::Swap { promote: vec![], demote: others.to_vec() }
        };
        world.add_clients(1);
        world.run_some_ms(300);
        let (leader, _) = world.leader().unwrap();
        for change in [change, ConfChange::LeaveJoint].into_iter().take(1 + (seed / 2 % 2) as usize) {
            world.input(leader, Input::Change { shard: SHARD, change });
            world.run_some_ms(40);
        }
        let node = NodeId(1);
        world.crash(node);
        let (id, state) = world.nodes[&node].log.replicas().unwrap().remove(0);
        let position = &state.checkpoint.position;
        let changes = world.nodes[&node].log.entries(id, position.index.next(), state.last.next(), 1 << 20).unwrap();
        let changes = changes.iter().filter(|entry| entry.kind == EntryKind::ConfChange).count();
        match (grows, position.conf.is_joint(), changes) {
            (true, true, 0) => joint += 1,
            (true, false, 1..) if position.conf.voters == [id] => alone_before_joint += 1,
            (false, true, 1) => alone_after_joint += 1,
            _ => {}
        }
        let same = world.backup(node);
        world.restore(node, &same);
        world.start(node);
        world.run_until(5_000, "the replica is verified", |world| {
            world.nodes[&node].status().iter().any(|replica| replica.group.is_some())
        });
        assert_eq!(lost(&world, node), None);
    }
    assert!(
        joint > 0 && alone_before_joint > 0 && alone_after_joint > 0,
        "a step was never drawn: {joint} {alone_before_joint} {alone_after_joint}"
    );
}

/// A new replica has no configuration before its first snapshot.
#[test]
fn a_replica_that_waits_for_its_first_snapshot_is_verified() {
    for seed in seeds(10) {
        let mut world = World::founded(seed, 4, 3);
        let (id, node) = (ReplicaId(4), NodeId(4));
        world.run_some_ms(300);
        world.add_learners(&[(id, node)]);
        world.run_until(1_000, "the replica is here", |world| {
            world.nodes[&node].log.replicas().unwrap().iter().any(|(held, _)| *held == id)
        });
        world.crash(node);
        let state = world.nodes[&node].log.replicas().unwrap().remove(0).1;
        assert_eq!(*state.checkpoint.position.conf, ConfState::default());
        let same = world.backup(node);
        world.restore(node, &same);
        world.start(node);
        world.run_until(5_000, "the replica has caught up", |world| {
            world.nodes[&node].status().iter().any(|replica| {
                replica.group.as_ref().is_some_and(|group| group.conf.contains(id)) && replica.applied > LogIndex(1)
            })
        });
        assert_eq!(lost(&world, node), None);
    }
}

/// A lone node has no peer to ask, and does not stay in doubt.
#[test]
fn a_log_is_complete_if_its_node_is_alone_in_the_metadata_group() {
    let replica = |number: u64, shard: ShardId, voters: &[u64]| {
        let position = Position {
            index: LogIndex(1),
            term: Term(1),
            conf: Arc::new(ConfState::of_voters(voters.iter().map(|voter| ReplicaId(*voter)))),
            descriptor: Arc::new(descriptor(voters)),
        };
        let checkpoint = Checkpoint::empty(position);
        ReplicaWrite {
            create: Some(shard),
            checkpoint: Some(checkpoint),
            truncate: Some((LogIndex(1), Term(1))),
            ..ReplicaWrite::new(ReplicaId(number))
        }
    };
    let becomes_complete = |replicas: Vec<ReplicaWrite>, peers: &[u64]| {
        let log = MemoryLog::default();
        log.write(LogBatch { sequence: WalSequence(1), replicas, peer_sequences: Vec::new() }).unwrap();
        let log = Arc::new(log.reopen_with(LogEvidence::Unknown));
        let mut effects = Effects::<u64>::default();
        let mut core = Core::open(NodeId(1), Incarnation(2), small_bounds(), log, 7, &mut effects).unwrap();
        core.step(0, 0, Input::Peers(peers.iter().map(|peer| NodeId(*peer)).collect()), &mut effects);
        effects.log_complete
    };
    let meta = || replica(1, ShardId::META, &[1]);
    assert!(becomes_complete(vec![meta(), replica(2, SHARD, &[2])], &[]));
    assert!(!becomes_complete(vec![meta()], &[2]), "a peer was not heard");
    assert!(!becomes_complete(vec![replica(2, SHARD, &[2])], &[]), "others hold the metadata");
    assert!(!becomes_complete(vec![meta(), replica(2, SHARD, &[2, 3, 4])], &[]), "others vote");
    assert!(!becomes_complete(Vec::new(), &[]), "a wiped folder");
}

/// A node gives up a replica that its folder forgot, and stops before the metadata has replaced it.
#[test]
fn a_replica_with_a_tombstone_is_lost_to_whoever_wants_it() {
    let mut world = World::founded(1, 3, 3);
    let (node, replica) = (NodeId(3), ReplicaId(9));
    world.input(node, Input::Destroy { replica });
    world.run_ms(200);
    world.crash(node);
    world.start(node);
    world.run_ms(1_000);
    world.notices.clear();
    world.input(node, Input::Create { replica, descriptor: descriptor(&[1, 2, 3]), founding: false });
    world.run_ms(200);
    assert!(world.nodes[&node].status().iter().all(|status| status.replica != replica));
    let lost = world.notices.iter().filter_map(|(from, notice)| match notice {
        Notice::Lost { replicas, reason: LostReason::Tombstone } if *from == node => Some(replicas.clone()),
        _ => None,
    });
    assert_eq!(lost.collect::<Vec<_>>(), [vec![(SHARD, replica)]]);
}
