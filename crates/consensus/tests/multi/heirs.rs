//! The first leader of a shard that was split off.

use flotilla_types::HardState;

use super::*;

fn split_off(heir: u64) -> Driver {
    let mut driver = Driver::default();
    [1, 2, 3].into_iter().for_each(|id| driver.split_off(id, &[1, 2, 3], heir));
    driver
}

#[test]
fn an_heir_leads_without_an_election_and_commits() {
    let mut driver = split_off(2);
    driver.settle();
    assert_eq!(driver.leader(), Some(2));
    let transcript = driver.take_transcript();
    assert!(!transcript.contains("Vote"), "{transcript}");
    driver.propose(2, "a");
    driver.heartbeat();
    for id in [1, 2, 3] {
        assert_eq!(driver.applied(id), [b"a"]);
    }
}

#[test]
fn an_heir_whose_followers_come_later_commits_when_they_do() {
    let mut driver = Driver::default();
    driver.split_off(1, &[1, 2, 3], 1);
    driver.settle();
    driver.tick(3);
    assert!(driver.node(1).committed.is_empty());
    driver.split_off(2, &[1, 2, 3], 1);
    driver.heartbeat();
    driver.propose(1, "a");
    driver.heartbeat();
    assert_eq!(driver.applied(2), [b"a"]);
}

/// Its first entry may have been sent to some and be lost here.
#[test]
fn a_restarted_heir_never_leads_the_first_term_again() {
    let mut driver = split_off(1);
    driver.node(1).disk_held = true;
    driver.settle();
    driver.restart(1, 0);
    driver.node(1).disk_held = false;
    driver.settle();
    assert_eq!(driver.leader(), None);
    driver.tick(3 * Config::default().election_ticks);
    let leader = driver.leader().expect("somebody was elected");
    let term = driver.node(leader).raft.group(ReplicaId(leader)).map(|group| group.role().1);
    assert!(term > Some(Term(2)), "{term:?}");
}

#[test]
fn nobody_leads_for_whom_its_own_log_has_not_voted() {
    let mut driver = split_off(1);
    let (_, state) = driver.node(2).log.replicas().unwrap().remove(0);
    let opens = |state: &_| {
        let mut raft = MultiRaft::new(Config::default(), std::sync::Arc::new(flotilla_storage::MemoryLog::default()));
        raft.open(ReplicaId(2), state, Origin::Heir, 2).is_ok()
    };
    assert!(!opens(&state), "it has voted for replica 1");
    let hard_state = HardState { term: Term(1), vote: ReplicaId(2), commit: state.hard_state.commit };
    assert!(!opens(&flotilla_storage::ReplicaLog { hard_state, ..state }), "the term of its checkpoint");
}

/// The new shard would have the voters of both configurations.
#[test]
fn a_shard_is_not_split_while_its_configuration_is_joint() {
    let mut driver = elected(&[1, 2, 3]);
    driver.create(4, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    driver.heartbeat();
    let split = |driver: &mut Driver| {
        let descriptor = driver.nodes[&1].raft.group(ReplicaId(1)).expect("a group").descriptor().clone();
        let replicas: Vec<_> =
            descriptor.replicas.iter().map(|held| (held.replica, ReplicaId(held.replica.0 + 10))).collect();
        let (at, child, epoch) = (Bytes::from_static(b"m"), ShardId(9), descriptor.epoch);
        let change = ShardChange::Split(Split { at, child, epoch, replicas, heir: ReplicaId(11) });
        driver.node(1).raft.propose_shard_change(ReplicaId(1), &change, &mut Effects::default())
    };
    assert_eq!(split(&mut driver), Err(ProposeError::Configuration), "replica 4 is a learner");
    driver.change(1, &ConfChange::Swap { promote: vec![ReplicaId(4)], demote: vec![ReplicaId(3)] });
    assert!(driver.conf(1).is_joint());
    assert_eq!(split(&mut driver), Err(ProposeError::Configuration));
    driver.change(1, &ConfChange::LeaveJoint);
    driver.change(1, &ConfChange::RemoveLearner { replica: ReplicaId(3) });
    assert!(split(&mut driver).is_ok());
}
