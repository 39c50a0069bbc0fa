//! When a leader may count on voters, and what voters do for it.

use flotilla_consensus::Lease;

use super::*;

const LENGTH_MS: u64 = 250;

/// Asks and lets everybody answer.
fn ask(driver: &mut Driver, id: u64, context: &'static str, now_ms: u64) {
    let mut effects = Effects::default();
    let asked =
        driver.node(id).raft.read_index(ReplicaId(id), Bytes::from_static(context.as_bytes()), now_ms, &mut effects);
    asked.unwrap();
    driver.perform(id, effects);
    driver.settle();
}

fn lease(driver: &Driver, id: u64) -> Option<Lease> {
    driver.nodes[&id].raft.group(ReplicaId(id)).unwrap().lease()
}

fn left_ms(driver: &Driver, id: u64, now_ms: u64) -> u64 {
    lease(driver, id).map_or(0, |lease| lease.left_ms(now_ms, LENGTH_MS))
}

/// Three voters; the first leads and has a lease from instant 1,000 on.
fn leased() -> Driver {
    let mut driver = elected(&[1, 2, 3]);
    ask(&mut driver, 1, "first", 1_000);
    assert_eq!(left_ms(&driver, 1, 1_000), LENGTH_MS);
    driver
}

fn vote_request(kind: MessageKind, from: u64, to: u64, term: u64) -> Message {
    Message { index: LogIndex(99), log_term: Term(9), ..message(kind, from, to, term) }
}

/// Whether a replica would vote for another one in a later term.
fn votes(driver: &mut Driver, voter: u64, candidate: u64, term: u64) -> bool {
    driver.take_transcript();
    driver.input(voter, Input::Message(vote_request(MessageKind::RequestPreVote, candidate, voter, term)));
    let story = driver.take_transcript();
    driver.wire.clear();
    story.contains("RequestPreVoteResponse")
}

#[test]
fn a_quorum_of_answers_earns_a_lease_and_fewer_do_not() {
    let mut driver = elected(&[1, 2, 3]);
    assert_eq!(lease(&driver, 1), None, "being elected earns nothing");
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "nobody hears", 1_000);
    assert_eq!(lease(&driver, 1), None);
    driver.cut.remove(&3);
    ask(&mut driver, 1, "one hears", 1_100);
    assert_eq!(left_ms(&driver, 1, 1_150), LENGTH_MS - 50);
    assert_eq!((lease(&driver, 2), lease(&driver, 3)), (None, None), "who follows has none");
}

#[test]
fn answers_to_later_heartbeats_date_the_lease_by_the_first() {
    let mut driver = elected(&[1, 2, 3]);
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "asked in vain", 1_000);
    driver.cut.clear();
    // Heartbeats repeat the question; nobody knows here when they were made.
    driver.tick(2);
    assert_eq!(left_ms(&driver, 1, 1_100), LENGTH_MS - 100);
}

#[test]
fn a_learners_answer_earns_nothing() {
    let mut driver = elected(&[1, 2, 3]);
    driver.create(4, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    driver.checkpoint(1);
    driver.tick(4);
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "the learner hears", 1_000);
    assert_eq!(lease(&driver, 1), None);
}

#[test]
fn a_joint_configuration_earns_a_lease_by_both_majorities() {
    let mut driver = elected(&[1, 2, 3]);
    for id in [4, 5] {
        driver.create(id, &[]);
        driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(id), node: NodeId(id) });
        driver.checkpoint(1);
        driver.tick(4);
    }
    let learners = vec![ReplicaId(4), ReplicaId(5)];
    driver.change(1, &ConfChange::Swap { promote: learners, demote: vec![ReplicaId(2), ReplicaId(3)] });
    assert!(driver.conf(1).is_joint());
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "the new majority", 1_000);
    assert_eq!(lease(&driver, 1), None);
    driver.cut = [4, 5].into();
    ask(&mut driver, 1, "the old majority", 1_100);
    assert_eq!(lease(&driver, 1), None);
    driver.cut.clear();
    ask(&mut driver, 1, "both", 1_200);
    assert_eq!(left_ms(&driver, 1, 1_200), LENGTH_MS);
}

#[test]
fn a_configuration_change_ends_the_lease_and_what_was_asked_before_it() {
    let mut driver = leased();
    driver.create(4, &[]);
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "asked before", 1_010);
    driver.cut.clear();
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    assert_eq!(lease(&driver, 1), None);
    driver.tick(4);
    assert_eq!(lease(&driver, 1), None, "an answer to what was asked before came after");
    ask(&mut driver, 1, "asked after", 1_020);
    assert_eq!(left_ms(&driver, 1, 1_020), LENGTH_MS);
}

#[test]
fn nothing_is_asked_before_the_first_entry_of_a_term_is_committed() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    // The vote arrives; what the new leader then sends does not.
    while driver.leader().is_none() {
        let message = driver.wire.pop_front().unwrap();
        driver.input(message.to.0, Input::Message(message));
    }
    driver.wire.clear();
    let asked = driver.node(1).raft.read_index(ReplicaId(1), Bytes::new(), 1_000, &mut Effects::default());
    assert_eq!((asked, lease(&driver, 1)), (Err(ProposeError::Busy), None));
    driver.tick(2);
    ask(&mut driver, 1, "now", 1_100);
    assert_eq!(lease(&driver, 1).unwrap().index(), LogIndex(2), "it covers that entry");
}

#[test]
fn a_lease_covers_what_is_committed_when_it_is_looked_at() {
    let mut driver = leased();
    driver.propose(1, "one");
    driver.settle();
    assert_eq!(lease(&driver, 1).unwrap().index(), LogIndex(3));
}

#[test]
fn any_word_of_a_later_term_ends_the_lease_before_anything_is_brought_out() {
    let mut driver = leased();
    driver.step(1, Input::Message(message(MessageKind::AppendResponse, 2, 1, 9)));
    assert_eq!(lease(&driver, 1), None);
    driver.settle();
    driver.tick(40);
    let leader = driver.leader().unwrap();
    assert_eq!(lease(&driver, leader), None, "the next term begins without one");
}

#[test]
fn a_leader_that_reaches_no_quorum_loses_lease_and_leadership() {
    let mut driver = leased();
    driver.cut.extend([2, 3]);
    driver.tick(20);
    assert_eq!((driver.leader(), lease(&driver, 1)), (None, None));
}

#[test]
fn offering_leadership_ends_the_lease_for_the_rest_of_the_term() {
    let mut driver = leased();
    driver.cut.extend([2, 3]);
    ask(&mut driver, 1, "asked before", 1_005);
    driver.step(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(3) });
    assert_eq!(lease(&driver, 1), None, "before the message leaves");
    driver.settle();
    driver.cut.clear();
    // Nobody took it; raft-rs gives up after an election timeout.
    driver.tick(10);
    assert_eq!(driver.leader(), Some(1));
    ask(&mut driver, 1, "asked after", 1_010);
    assert_eq!(lease(&driver, 1), None, "whoever was told to campaign may do so still");
    driver.input(1, Input::Message(message(MessageKind::AppendResponse, 2, 1, 9)));
    driver.tick(40);
    let leader = driver.leader().unwrap();
    ask(&mut driver, leader, "in another term", 1_020);
    assert!(lease(&driver, leader).is_some());
}

#[test]
fn a_transfer_to_oneself_or_to_nobody_costs_no_lease() {
    let mut driver = leased();
    for to in [1, 9] {
        driver.step(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(to) });
        assert!(lease(&driver, 1).is_some());
    }
}

#[test]
fn a_follower_votes_for_nobody_while_a_leader_may_count_on_it() {
    let mut driver = leased();
    driver.cut.insert(1);
    for _ in 0..Config::default().election_ticks {
        assert!(!votes(&mut driver, 2, 3, 3));
        driver.input(2, Input::Tick);
        driver.drain(2);
        driver.wire.clear();
    }
    assert!(votes(&mut driver, 2, 3, 3), "the others elect another leader in time");
}

/// raft-rs forgets its leader with its term: it would vote at once.
#[test]
fn a_follower_whose_term_grew_keeps_the_promise_it_gave_in_the_old_one() {
    let mut driver = leased();
    let refusal = Message { reject: true, ..message(MessageKind::RequestPreVoteResponse, 3, 2, 5) };
    driver.input(2, Input::Message(refusal));
    assert_eq!(driver.nodes[&2].raft.group(ReplicaId(2)).unwrap().role().1, Term(5));
    for kind in [MessageKind::RequestPreVote, MessageKind::RequestVote] {
        for term in [5, 6] {
            driver.take_transcript();
            driver.input(2, Input::Message(vote_request(kind, 3, 2, term)));
            assert_eq!(driver.take_transcript(), "", "{kind:?} in {term}");
        }
    }
}

#[test]
fn a_candidate_of_an_older_term_is_told_of_the_newer_one() {
    let mut driver = leased();
    driver.take_transcript();
    driver.input(2, Input::Message(vote_request(MessageKind::RequestPreVote, 3, 2, 1)));
    assert!(driver.take_transcript().contains("RequestPreVoteResponse in t2"));
}

#[test]
fn who_is_told_to_campaign_waits_while_a_leader_may_count_on_it() {
    let mut driver = leased();
    driver.take_transcript();
    driver.input(2, Input::Campaign { replica: ReplicaId(2) });
    assert_eq!(driver.take_transcript(), "");
    driver.input(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(2) });
    driver.settle();
    assert_eq!(driver.leader(), Some(2), "whom the leader sends forward need not wait");
}

#[test]
fn a_restarted_replica_votes_for_nobody_before_an_election_timeout_has_passed() {
    let mut driver = leased();
    driver.cut.insert(1);
    driver.restart(2, 0);
    for _ in 0..Config::default().election_ticks {
        assert!(!votes(&mut driver, 2, 3, 3));
        driver.input(2, Input::Campaign { replica: ReplicaId(2) });
        assert_eq!(driver.take_transcript(), "");
        driver.input(2, Input::Tick);
        driver.drain(2);
        driver.wire.clear();
    }
    assert!(votes(&mut driver, 2, 3, 3));
}

/// The wait counts from the start of the process, not from when the replica was allowed to wake up.
#[test]
fn a_replica_that_slept_through_an_election_timeout_votes_at_once() {
    let mut driver = leased();
    driver.restart(2, Config::default().election_ticks);
    assert!(votes(&mut driver, 2, 3, 3));
}

#[test]
fn a_restarted_replica_votes_for_whom_the_leader_sent_forward() {
    let mut driver = leased();
    driver.restart(2, 0);
    let forward =
        Message { context: Bytes::from_static(b"CampaignTransfer"), ..vote_request(MessageKind::RequestVote, 3, 2, 3) };
    driver.take_transcript();
    driver.input(2, Input::Message(forward));
    assert!(driver.take_transcript().contains("RequestVoteResponse in t3"));
}
