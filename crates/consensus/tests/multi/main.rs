//! Behaviour of groups of replicas, driven by inputs and observed by effects.

mod driver;
mod failing;
mod heirs;
mod hostile;
mod leases;
mod timers;

use std::sync::Arc;

use bytes::Bytes;
use flotilla_consensus::{
    ConfChange, Config, Effects, GroupError, Input, MultiRaft, Origin, ProposeError, ShardChange, Split,
};
use flotilla_storage::{Log as _, LogError};
use flotilla_types::{Entry, EntryKind, LogIndex, Message, MessageKind, NodeId, ReplicaId, ShardId, Snapshot, Term};

use driver::Driver;
use failing::{FailingLog, Fails};

fn elected(voters: &[u64]) -> Driver {
    elect(Driver::of_voters(voters))
}

/// Makes replica 1 the leader.
fn elect(mut driver: Driver) -> Driver {
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.settle();
    assert_eq!(driver.leader(), Some(1));
    driver.take_transcript();
    driver
}

fn message(kind: MessageKind, from: u64, to: u64, term: u64) -> Message {
    Message {
        kind,
        from: ReplicaId(from),
        to: ReplicaId(to),
        term: Term(term),
        log_term: Term(0),
        index: LogIndex(0),
        entries: Vec::new(),
        commit: LogIndex(0),
        commit_term: Term(0),
        snapshot: None,
        reject: false,
        reject_hint: LogIndex(0),
        context: Bytes::new(),
        priority: 0,
    }
}

fn entry(index: u64, term: u64, data: &'static str) -> Entry {
    Entry {
        index: LogIndex(index),
        term: Term(term),
        kind: EntryKind::Normal,
        data: Bytes::from_static(data.as_bytes()),
        context: Bytes::new(),
    }
}

/// Entries that follow the entry at `index` of `log_term`.
fn append(from: u64, to: u64, term: u64, (index, log_term): (u64, u64), entries: Vec<Entry>) -> Message {
    Message {
        index: LogIndex(index),
        log_term: Term(log_term),
        entries,
        ..message(MessageKind::Append, from, to, term)
    }
}

#[test]
fn a_lone_voter_elects_itself_and_commits_once_its_log_is_durable() {
    let mut driver = Driver::of_voters(&[1]);
    driver.node(1).disk_held = true;
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.propose(1, "one");
    assert_eq!(driver.take_transcript(), "r1 is Leader in t2, leader r1");
    driver.node(1).disk_held = false;
    driver.write(1);
    driver.settle();
    assert_eq!(driver.take_transcript(), "r1 applies 2 b\"\"\nr1 applies 3 b\"one\"");
    driver.node(1).raft.read_index(ReplicaId(1), Bytes::from_static(b"read"), 0, &mut Effects::default()).unwrap();
    driver.settle();
    assert_eq!(driver.take_transcript(), "r1 may read at 3");
}

/// Found by simulated crashes: a lone voter that loses its new term starts the same term again, with other
/// entries.
#[test]
fn a_lone_voter_sends_nothing_of_a_term_before_that_term_is_durable() {
    let mut driver = elected(&[1]);
    driver.create(2, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(2), node: NodeId(2) });
    driver.checkpoint(1);
    driver.tick(4);
    driver.input(1, Input::Message(message(MessageKind::HeartbeatResponse, 2, 1, 5)));
    driver.settle();
    driver.take_transcript();
    driver.node(1).disk_held = true;
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.propose(1, "one");
    driver.settle();
    assert_eq!(driver.take_transcript(), "r1 is Leader in t6, leader r1");
    driver.node(1).disk_held = false;
    driver.write(1);
    driver.settle();
    let transcript = driver.take_transcript();
    assert!(transcript.contains("r1 → r2: Append in t6"), "{transcript}");
    assert_eq!(driver.applied(2), [b"one"]);
}

#[test]
fn a_majority_elects_a_leader_after_a_pre_vote() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.cut.insert(3);
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.settle();
    let transcript = "\
r1 is Candidate in t1, leader r0
r1 → r2: RequestPreVote in t2 at 1
r2 → r1: RequestPreVoteResponse in t2 at 0
r1 is Candidate in t2, leader r0
r1 → r2: RequestVote in t2 at 1
r2 is Follower in t2, leader r0
r2 → r1: RequestVoteResponse in t2 at 0
r1 is Leader in t2, leader r1
r1 → r2: Append in t2 at 1
r2 is Follower in t2, leader r1
r2 → r1: AppendResponse in t2 at 2
r1 applies 2 b\"\"";
    assert_eq!(driver.take_transcript(), transcript);
}

#[test]
fn ticks_alone_lead_to_one_leader() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.tick(40);
    let leader = driver.leader().unwrap();
    driver.cut.insert(leader);
    driver.tick(40);
    assert!(driver.leader().is_some_and(|new| new != leader), "the others elect another one");
}

#[test]
fn proposals_are_applied_on_every_replica_in_order() {
    let mut driver = elected(&[1, 2, 3]);
    driver.propose(1, "one");
    driver.propose(1, "two");
    driver.heartbeat();
    for id in 1..=3 {
        assert_eq!(driver.applied(id), [b"one", b"two"]);
    }
}

#[test]
fn followers_learn_of_commits_with_the_next_message_except_for_metadata() {
    let mut applied = Vec::new();
    for shard in [driver::SHARD, ShardId::META] {
        let mut driver = elect(Driver::of_shard(shard, &[1, 2, 3]));
        driver.propose(1, "one");
        driver.settle();
        assert_eq!(driver.applied(1), [b"one"]);
        applied.push(driver.applied(2).len());
        driver.propose(1, "two");
        driver.settle();
        applied.push(driver.applied(2).len());
        driver.heartbeat();
        applied.push(driver.applied(2).len());
    }
    assert_eq!(applied, [0, 1, 2, 1, 2, 2]);
}

#[test]
fn minority_cannot_commit() {
    let mut driver = elected(&[1, 2, 3]);
    driver.cut.extend([2, 3]);
    driver.propose(1, "one");
    driver.settle();
    assert!(driver.applied(1).is_empty());
    driver.tick(20);
    assert_eq!(driver.leader(), None, "a leader without a quorum steps down");
}

#[test]
fn a_follower_acknowledges_only_durable_entries() {
    let mut driver = elected(&[1, 2]);
    driver.node(2).disk_held = true;
    driver.propose(1, "one");
    driver.settle();
    assert!(driver.applied(1).is_empty());
    driver.node(2).disk_held = false;
    driver.write(2);
    driver.settle();
    assert_eq!(driver.applied(1), [b"one"]);
}

#[test]
fn uncommitted_entries_of_a_deposed_leader_are_replaced() {
    let mut driver = elected(&[1, 2, 3]);
    driver.cut.insert(1);
    driver.propose(1, "lost");
    driver.propose(1, "lost too");
    driver.tick(40);
    let new = driver.leader().unwrap();
    assert_ne!(new, 1);
    driver.propose(new, "kept");
    driver.settle();
    driver.cut.clear();
    driver.tick(4);
    for id in 1..=3 {
        assert_eq!(driver.applied(id), [b"kept"]);
    }
}

#[test]
fn a_joint_swap_replaces_a_voter_and_needs_both_majorities() {
    let mut driver = elected(&[1, 2, 3]);
    driver.checkpoint(1);
    driver.create(4, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    driver.checkpoint(1);
    driver.tick(4);
    driver.change(1, &ConfChange::Swap { promote: vec![ReplicaId(4)], demote: vec![ReplicaId(3)] });
    assert!(driver.conf(1).is_joint());
    driver.cut.extend([2, 3]);
    driver.propose(1, "with the new majority only");
    driver.settle();
    assert!(driver.applied(1).is_empty(), "the old majority is missing");
    driver.cut.clear();
    driver.tick(4);
    driver.change(1, &ConfChange::LeaveJoint);
    let conf = driver.conf(4);
    assert_eq!((conf.voters, conf.learners), (vec![ReplicaId(1), ReplicaId(2), ReplicaId(4)], vec![ReplicaId(3)]));
    driver.change(1, &ConfChange::RemoveLearner { replica: ReplicaId(3) });
    assert!(!driver.conf(1).contains(ReplicaId(3)));
    let descriptor = driver.nodes[&4].raft.group(ReplicaId(4)).unwrap().descriptor().clone();
    assert_eq!((descriptor.epoch.config, descriptor.node_of(ReplicaId(4))), (5, Some(NodeId(4))));
}

#[test]
fn a_leader_that_is_swapped_out_steps_down_at_once() {
    let mut driver = elected(&[1, 2, 3]);
    driver.create(4, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    driver.checkpoint(1);
    driver.tick(4);
    driver.change(1, &ConfChange::Swap { promote: vec![ReplicaId(4)], demote: vec![ReplicaId(1)] });
    assert_eq!(driver.leader(), Some(1), "it leads until the joint configuration is left");
    driver.change(1, &ConfChange::LeaveJoint);
    assert_eq!(driver.leader(), None);
    driver.tick(40);
    assert!(driver.leader().is_some_and(|leader| leader != 1));
}

#[test]
fn changes_that_do_not_apply_are_refused() {
    let mut driver = elected(&[1, 2, 3]);
    for change in [
        ConfChange::AddLearner { replica: ReplicaId(2), node: NodeId(2) },
        ConfChange::RemoveLearner { replica: ReplicaId(2) },
        ConfChange::Swap { promote: vec![ReplicaId(4)], demote: vec![] },
        ConfChange::Swap { promote: vec![], demote: vec![] },
        ConfChange::Swap { promote: vec![], demote: vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)] },
        ConfChange::LeaveJoint,
    ] {
        let answer = driver.node(1).raft.propose_change(ReplicaId(1), &change, &mut Effects::default());
        assert_eq!(answer, Err(ProposeError::Configuration), "{change:?}");
    }
    let answer = driver.node(2).raft.propose(ReplicaId(2), Bytes::new(), &mut Effects::default());
    assert_eq!(answer, Err(ProposeError::NotLeader));
}

#[test]
fn a_snapshot_is_sent_only_if_its_configuration_names_the_receiver() {
    let mut driver = elected(&[1]);
    driver.propose(1, "one");
    driver.checkpoint(1);
    driver.create(2, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(2), node: NodeId(2) });
    driver.tick(4);
    assert!(driver.node(1).wants_checkpoint, "the learner needs a newer checkpoint");
    assert!(!driver.take_transcript().contains("Snapshot"));
    driver.checkpoint(1);
    driver.tick(4);
    assert!(driver.take_transcript().contains("r1 → r2: Snapshot"));
    assert_eq!(driver.conf(2), driver.conf(1));
    driver.propose(1, "two");
    driver.settle();
    assert_eq!(driver.applied(2), [b"two"]);
    let logs = driver.nodes[&2].log.replicas().unwrap();
    assert_eq!(logs[0].1.checkpoint.position.index, LogIndex(4));
}

#[test]
fn one_round_may_send_different_checkpoints_to_followers() {
    let mut driver = elected(&[1]);
    for id in [2, 3] {
        driver.create(id, &[]);
        driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(id), node: NodeId(id) });
    }
    // Both respond in one round, with a new checkpoint in between.
    let first = driver.build(1);
    driver.propose(1, "one");
    driver.settle();
    let second = driver.build(1);
    driver.adopt(1, first);
    driver.step(1, Input::Message(message(MessageKind::HeartbeatResponse, 2, 1, 2)));
    driver.adopt(1, second);
    driver.step(1, Input::Message(message(MessageKind::HeartbeatResponse, 3, 1, 2)));
    driver.settle();
    let transcript = driver.take_transcript();
    assert!(transcript.contains("r1 → r2: Snapshot") && transcript.contains("r1 → r3: Snapshot"), "{transcript}");
    driver.tick(4);
    assert_eq!((driver.conf(2), driver.conf(3)), (driver.conf(1), driver.conf(1)));
}

/// A rejection that is older than the acknowledgements after it must not bring a snapshot about that the
/// follower does not need.
#[test]
fn a_rejection_of_entries_that_were_acknowledged_since_changes_nothing() {
    let mut driver = elected(&[1, 2, 3]);
    for data in ["a", "b", "c"] {
        driver.propose(1, data);
        driver.settle();
    }
    driver.heartbeat();
    driver.checkpoint(1);
    let last = driver.nodes[&1].raft.group(ReplicaId(1)).unwrap().last();
    let term = driver.nodes[&1].raft.group(ReplicaId(1)).unwrap().role().1;
    let rejection = |index: u64| Message {
        index: LogIndex(index),
        reject: true,
        reject_hint: LogIndex(index),
        ..message(MessageKind::AppendResponse, 2, 1, term.0)
    };
    // A genuine one makes the leader send again what follows; meanwhile the old one arrives.
    driver.cut.insert(2);
    driver.input(1, Input::Message(rejection(last.0 + 1)));
    driver.input(1, Input::Message(rejection(last.0)));
    driver.cut.clear();
    driver.take_transcript();
    driver.propose(1, "d");
    driver.heartbeat();
    assert!(!driver.take_transcript().contains("Snapshot"));
    assert_eq!(driver.applied(2).last(), Some(&&b"d"[..]));
}

#[test]
fn a_heartbeat_beyond_the_log_is_dropped() {
    let mut driver = elected(&[1, 2, 3]);
    let heartbeat = Message { commit: LogIndex(99), ..message(MessageKind::Heartbeat, 1, 2, 2) };
    driver.input(2, Input::Message(heartbeat));
    assert!(driver.node(2).failed.is_empty());
    driver.propose(1, "one");
    driver.heartbeat();
    assert_eq!(driver.applied(2), [b"one"]);
}

#[test]
fn a_message_that_no_correct_peer_sends_is_dropped() {
    let mut driver = elected(&[1, 2, 3]);
    for kind in [MessageKind::ReadIndex, MessageKind::ReadIndexResponse, MessageKind::Snapshot] {
        driver.input(1, Input::Message(message(kind, 2, 1, 2)));
    }
    driver.input(1, Input::Message(message(MessageKind::Append, 2, 1, 0)));
    assert!(driver.node(1).failed.is_empty());
    assert_eq!(driver.leader(), Some(1));
}

#[test]
fn a_panic_in_one_group_does_not_affect_others() {
    let mut driver = elected(&[1, 2, 3]);
    driver.propose(1, "one");
    driver.settle();
    let lone = Driver::of_voters(&[9]).nodes[&9].log.replicas().unwrap()[0].1.clone();
    // No known message makes raft-rs panic any more; a panicking log has the same effect.
    let node = driver.node(2);
    let (log, state) = (node.log.clone(), node.log.replicas().unwrap()[0].1.clone());
    node.raft = MultiRaft::new(Config::default(), Arc::new(FailingLog(log, Fails::EntriesPanic)));
    node.raft.open(ReplicaId(9), &lone, Origin::Recovered, 9).unwrap();
    node.raft.open(ReplicaId(2), &state, Origin::Recovered, 2).unwrap();
    driver.drain(2);
    assert_eq!(driver.node(2).failed, [ReplicaId(2)]);
    assert!(driver.node(2).raft.group(ReplicaId(2)).is_none());
    assert!(driver.node(2).raft.group(ReplicaId(9)).is_some());
    driver.propose(1, "two");
    driver.heartbeat();
    assert_eq!(driver.applied(3), [&b"one"[..], b"two"], "the other replicas commit");
}

#[test]
fn a_log_that_cannot_be_read_is_reported_even_where_raft_panics() {
    let mut driver = elected(&[1, 2, 3]);
    driver.propose(1, "one");
    driver.settle();
    let log = driver.node(2).log.clone();
    let state = log.replicas().unwrap()[0].1.clone();
    for fails in [Fails::Entries, Fails::Terms] {
        let mut raft = MultiRaft::new(Config::default(), Arc::new(FailingLog(log.clone(), fails)));
        let mut effects = Effects::default();
        let failed = match raft.open(ReplicaId(2), &state, Origin::Recovered, 2) {
            Ok(()) => {
                raft.drain(&mut effects);
                effects.failed.pop().map(|(_, error)| error)
            }
            Err(error) => Some(error),
        };
        assert!(matches!(failed, Some(GroupError::Log(LogError::Io(_)))), "{fails:?}: {failed:?}");
    }
}

/// Another replica, on a newer binary, may apply the change: this one must not continue without it.
#[test]
fn a_committed_change_of_a_newer_format_stops_its_replica() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    let mut newer = ConfChange::RemoveLearner { replica: ReplicaId(8) }.encode().to_vec();
    newer[0] += 1;
    let change = Entry { kind: EntryKind::ConfChange, context: newer.into(), ..entry(2, 2, "") };
    let entries = vec![change, entry(3, 2, "after")];
    driver.input(2, Input::Message(Message { commit: LogIndex(3), ..append(1, 2, 2, (1, 1), entries) }));
    assert_eq!(driver.node(2).failed, [ReplicaId(2)]);
    assert_eq!(driver.applied(2), Vec::<&[u8]>::new());
}

/// An entry of this kind with a change in this encoding.
fn shard_entry(index: u64, term: u64, change: Bytes) -> Entry {
    let data = Bytes::from_static(Entry::SHARD_DATA);
    Entry { kind: EntryKind::Shard, data, context: change, ..entry(index, term, "") }
}

#[test]
fn a_change_of_the_shard_ends_its_batch_and_moves_the_descriptor() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    let entries = |to| {
        let bump = |index| shard_entry(index, 2, ShardChange::Bump.encode());
        let entries = vec![entry(2, 2, "two"), bump(3), bump(4), entry(5, 2, "five"), entry(6, 2, "six")];
        Input::Message(Message { commit: LogIndex(6), ..append(1, to, 2, (1, 1), entries) })
    };
    driver.input(2, entries(2));
    let bump = Some(ShardChange::Bump);
    assert_eq!(driver.node(2).batches, [(3, bump.clone(), 2), (4, bump.clone(), 3), (6, None, 3)]);
    // After a restart the log is applied again, and the changes with it.
    driver.restart(2, 0);
    assert_eq!(driver.node(2).batches, [(3, bump.clone(), 2), (4, bump, 3), (6, None, 3)]);
}

#[test]
fn a_proposed_change_of_the_shard_is_made_on_all_replicas() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    let propose = |driver: &mut Driver, id: u64| {
        let mut effects = Effects::default();
        let proposed = driver.node(id).raft.propose_shard_change(ReplicaId(id), &ShardChange::Bump, &mut effects);
        driver.perform(id, effects);
        driver.settle();
        proposed
    };
    assert_eq!(propose(&mut driver, 1), Err(ProposeError::NotLeader));
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.heartbeat();
    propose(&mut driver, 1).unwrap();
    driver.heartbeat();
    for id in 1..=3 {
        let group = driver.node(id).raft.group(ReplicaId(id)).unwrap();
        assert_eq!((group.descriptor().epoch.range, group.descriptor().epoch.config), (2, 1), "replica {id}");
    }
}

/// It must not fail a replica: all replicas would fail at it, or only those of some binaries.
#[test]
fn a_committed_change_of_the_shard_that_is_none_has_no_effect() {
    for malformed in [&[0][..], &[1], &[1, 0], &[1, 1, 1], &[0, 1]] {
        let mut driver = Driver::of_voters(&[1, 2, 3]);
        let entries = vec![shard_entry(2, 2, Bytes::from_static(malformed)), entry(3, 2, "after")];
        driver.input(2, Input::Message(Message { commit: LogIndex(3), ..append(1, 2, 2, (1, 1), entries) }));
        assert_eq!(driver.node(2).batches, [(2, None, 1), (3, None, 1)], "{malformed:?}");
        assert!(driver.node(2).failed.is_empty());
        assert_eq!(driver.applied(2), [b"after"]);
    }
}

/// Not even those that come in a later round, after so many bytes that raft-rs hands them out apart.
#[test]
fn nothing_is_delivered_behind_a_change_of_a_newer_format() {
    let mut newer = ShardChange::Bump.encode().to_vec();
    newer[0] = u8::MAX;
    let mut remove = ConfChange::RemoveLearner { replica: ReplicaId(8) }.encode().to_vec();
    remove[0] += 1;
    let conf_change = Entry { kind: EntryKind::ConfChange, context: remove.into(), ..entry(3, 2, "") };
    for change in [shard_entry(3, 2, newer.into()), conf_change] {
        let mut driver = Driver::of_voters(&[1, 2, 3]);
        let large = Bytes::from(vec![b'x'; Config::default().committed_bytes_max]);
        let large = |index| Entry { data: large.clone(), ..entry(index, 2, "") };
        let entries = vec![entry(2, 2, "before"), change, large(4), large(5)];
        driver.input(2, Input::Message(Message { commit: LogIndex(5), ..append(1, 2, 2, (1, 1), entries) }));
        assert_eq!(driver.node(2).failed, [ReplicaId(2)]);
        assert_eq!(driver.applied(2), Vec::<&[u8]>::new());
        assert!(driver.node(2).raft.group(ReplicaId(2)).is_none());
    }
}

/// Binaries that do not know the kind take such an entry for commands, in any case.
#[test]
fn an_entry_is_a_change_of_the_shard_only_if_older_binaries_stop_at_it() {
    let change = ShardChange::Bump.encode();
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    let tagged = Entry { context: change.clone(), ..entry(2, 2, "commands") };
    let untagged = Entry { context: Bytes::new(), ..shard_entry(3, 2, Bytes::new()) };
    let longer = Entry { data: Bytes::from_static(b"\x03\x03"), ..shard_entry(4, 2, change) };
    let entries = vec![tagged, untagged, longer];
    driver.input(2, Input::Message(Message { commit: LogIndex(4), ..append(1, 2, 2, (1, 1), entries) }));
    assert_eq!(driver.applied(2), [&b"commands"[..], b"\x03", b"\x03\x03"]);
    assert_eq!(driver.node(2).batches, [(4, None, 1)]);
}

#[test]
fn a_lone_voter_does_not_win_before_its_log_is_durable() {
    let mut driver = Driver::of_voters(&[1]);
    driver.node(1).disk_held = true;
    // From a leader that a later configuration removes.
    driver.input(1, Input::Message(append(8, 1, 5, (1, 1), vec![entry(2, 5, "two")])));
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    driver.tick(40);
    assert_eq!((driver.leader(), driver.node(1).failed.len()), (None, 0));
    driver.node(1).disk_held = false;
    driver.write(1);
    driver.tick(40);
    assert_eq!(driver.leader(), Some(1));
    assert_eq!(driver.applied(1), [b"two"]);
}

#[test]
fn a_write_may_complete_after_its_entries_were_replaced() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.node(1).disk_held = true;
    let old = (2..6).map(|index| entry(index, 2, "old")).collect();
    driver.input(1, Input::Message(append(2, 1, 2, (1, 1), old)));
    driver.input(1, Input::Message(append(3, 1, 3, (1, 1), vec![entry(2, 3, "new")])));
    driver.node(1).disk_held = false;
    driver.write(1);
    driver.settle();
    assert!(driver.node(1).failed.is_empty());
    let heartbeat = Message { commit: LogIndex(2), ..message(MessageKind::Heartbeat, 3, 1, 3) };
    driver.input(1, Input::Message(heartbeat));
    assert_eq!(driver.applied(1), [b"new"]);
}

#[test]
fn leadership_is_transferred_to_the_target() {
    let mut driver = elected(&[1, 2, 3]);
    driver.step(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(3) });
    driver.settle();
    assert_eq!(driver.leader(), Some(3));
}

#[test]
fn equal_seeds_give_equal_transcripts() {
    let transcript = || {
        let mut driver = Driver::of_voters(&[1, 2, 3]);
        driver.tick(60);
        driver.take_transcript()
    };
    assert_eq!(transcript(), transcript());
}
