//! Leases of leaders, and the promises of voters behind them.

use flotilla_consensus::{Lease, Role};

use super::*;

const LENGTH_MS: u64 = 250;

/// Starts a read-index round and delivers all messages.
fn run_round(driver: &mut Driver, id: u64, context: &'static str, now_ms: u64) {
    let mut effects = Effects::default();
    let started =
        driver.node(id).raft.read_index(ReplicaId(id), Bytes::from_static(context.as_bytes()), now_ms, &mut effects);
    started.unwrap();
    driver.perform(id, effects);
    driver.settle();
}

fn lease(driver: &Driver, id: u64) -> Option<Lease> {
    driver.nodes[&id].raft.group(ReplicaId(id)).unwrap().lease()
}

fn remaining_ms(driver: &Driver, id: u64, now_ms: u64) -> u64 {
    lease(driver, id).map_or(0, |lease| lease.remaining_ms(now_ms, LENGTH_MS))
}

/// Three voters; the first leads and holds a lease that starts at 1,000 ms.
fn with_lease() -> Driver {
    let mut driver = elected(&[1, 2, 3]);
    run_round(&mut driver, 1, "first", 1_000);
    assert_eq!(remaining_ms(&driver, 1, 1_000), LENGTH_MS);
    driver
}

fn vote_request(kind: MessageKind, from: u64, to: u64, term: u64) -> Message {
    Message { index: LogIndex(99), log_term: Term(9), ..message(kind, from, to, term) }
}

/// Whether a replica would grant another one a pre-vote in a later term.
fn would_vote(driver: &mut Driver, voter: u64, candidate: u64, term: u64) -> bool {
    driver.take_transcript();
    driver.input(voter, Input::Message(vote_request(MessageKind::RequestPreVote, candidate, voter, term)));
    let transcript = driver.take_transcript();
    driver.wire.clear();
    transcript.contains("RequestPreVoteResponse")
}

#[test]
fn a_quorum_of_responses_grants_a_lease_and_fewer_do_not() {
    let mut driver = elected(&[1, 2, 3]);
    assert_eq!(lease(&driver, 1), None, "an election grants no lease");
    driver.cut.extend([2, 3]);
    run_round(&mut driver, 1, "no voter reached", 1_000);
    assert_eq!(lease(&driver, 1), None);
    driver.cut.remove(&3);
    run_round(&mut driver, 1, "one voter reached", 1_100);
    assert_eq!(remaining_ms(&driver, 1, 1_150), LENGTH_MS - 50);
    assert_eq!((lease(&driver, 2), lease(&driver, 3)), (None, None), "followers hold no lease");
}

#[test]
fn a_lease_starts_with_the_first_heartbeat_of_its_round() {
    let mut driver = elected(&[1, 2, 3]);
    driver.cut.extend([2, 3]);
    run_round(&mut driver, 1, "no response", 1_000);
    driver.cut.clear();
    // Later heartbeats repeat the context; when they were created is not recorded.
    driver.tick(2);
    assert_eq!(remaining_ms(&driver, 1, 1_100), LENGTH_MS - 100);
}

#[test]
fn a_learners_response_does_not_count() {
    let mut driver = elected(&[1, 2, 3]);
    driver.create(4, &[]);
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    driver.checkpoint(1);
    driver.tick(4);
    driver.cut.extend([2, 3]);
    run_round(&mut driver, 1, "only the learner reached", 1_000);
    assert_eq!(lease(&driver, 1), None);
}

#[test]
fn a_joint_configuration_grants_a_lease_by_both_majorities_only() {
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
    run_round(&mut driver, 1, "the new majority", 1_000);
    assert_eq!(lease(&driver, 1), None);
    driver.cut = [4, 5].into();
    run_round(&mut driver, 1, "the old majority", 1_100);
    assert_eq!(lease(&driver, 1), None);
    driver.cut.clear();
    run_round(&mut driver, 1, "both", 1_200);
    assert_eq!(remaining_ms(&driver, 1, 1_200), LENGTH_MS);
}

#[test]
fn a_configuration_change_ends_the_lease_and_drops_pending_rounds() {
    let mut driver = with_lease();
    driver.create(4, &[]);
    driver.cut.extend([2, 3]);
    run_round(&mut driver, 1, "before the change", 1_010);
    driver.cut.clear();
    driver.change(1, &ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) });
    assert_eq!(lease(&driver, 1), None);
    driver.tick(4);
    assert_eq!(lease(&driver, 1), None, "a round from before the change was confirmed after it");
    run_round(&mut driver, 1, "after the change", 1_020);
    assert_eq!(remaining_ms(&driver, 1, 1_020), LENGTH_MS);
}

#[test]
fn no_round_starts_before_the_first_entry_of_a_term_is_committed() {
    let mut driver = Driver::of_voters(&[1, 2, 3]);
    driver.input(1, Input::Campaign { replica: ReplicaId(1) });
    // The vote is delivered; the new leader's messages are not.
    while driver.leader().is_none() {
        let message = driver.wire.pop_front().unwrap();
        driver.input(message.to.0, Input::Message(message));
    }
    driver.wire.clear();
    let started = driver.node(1).raft.read_index(ReplicaId(1), Bytes::new(), 1_000, &mut Effects::default());
    assert_eq!((started, lease(&driver, 1)), (Err(ProposeError::Busy), None));
    driver.tick(2);
    run_round(&mut driver, 1, "after the commit", 1_100);
    assert_eq!(lease(&driver, 1).unwrap().index(), LogIndex(2), "it covers that entry");
}

#[test]
fn a_lease_covers_the_commit_index_at_the_time_of_access() {
    let mut driver = with_lease();
    driver.propose(1, "one");
    driver.settle();
    assert_eq!(lease(&driver, 1).unwrap().index(), LogIndex(3));
}

#[test]
fn a_message_of_a_later_term_ends_the_lease_before_the_next_drain() {
    let mut driver = with_lease();
    driver.step(1, Input::Message(message(MessageKind::AppendResponse, 2, 1, 9)));
    assert_eq!(lease(&driver, 1), None);
    driver.settle();
    driver.tick(40);
    let leader = driver.leader().unwrap();
    assert_eq!(lease(&driver, leader), None, "the next term starts without a lease");
}

#[test]
fn a_leader_that_reaches_no_quorum_loses_lease_and_leadership() {
    let mut driver = with_lease();
    driver.cut.extend([2, 3]);
    driver.tick(20);
    assert_eq!((driver.leader(), lease(&driver, 1)), (None, None));
}

#[test]
fn a_transfer_ends_the_lease_for_the_rest_of_the_term() {
    let mut driver = with_lease();
    driver.cut.extend([2, 3]);
    run_round(&mut driver, 1, "before the transfer", 1_005);
    driver.step(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(3) });
    assert_eq!(lease(&driver, 1), None, "even before the message is sent");
    driver.settle();
    driver.cut.clear();
    // The transfer failed; raft-rs aborts it after an election timeout.
    driver.tick(10);
    assert_eq!(driver.leader(), Some(1));
    run_round(&mut driver, 1, "after the transfer", 1_010);
    assert_eq!(lease(&driver, 1), None, "the target may still campaign");
    driver.input(1, Input::Message(message(MessageKind::AppendResponse, 2, 1, 9)));
    driver.tick(40);
    let leader = driver.leader().unwrap();
    run_round(&mut driver, leader, "in another term", 1_020);
    assert!(lease(&driver, leader).is_some());
}

#[test]
fn a_transfer_to_itself_or_to_an_unknown_replica_keeps_the_lease() {
    let mut driver = with_lease();
    for to in [1, 9] {
        driver.step(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(to) });
        assert!(lease(&driver, 1).is_some());
    }
}

#[test]
fn a_follower_does_not_vote_while_its_promise_holds() {
    let mut driver = with_lease();
    driver.cut.insert(1);
    for _ in 0..Config::default().election_ticks {
        assert!(!would_vote(&mut driver, 2, 3, 3));
        driver.input(2, Input::Tick);
        driver.drain(2);
        driver.wire.clear();
    }
    assert!(would_vote(&mut driver, 2, 3, 3), "the promise has ended");
}

/// raft-rs forgets its leader when its term grows, and would vote at once.
#[test]
fn a_follower_keeps_its_promise_when_its_term_grows() {
    let mut driver = with_lease();
    let rejection = Message { reject: true, ..message(MessageKind::RequestPreVoteResponse, 3, 2, 5) };
    driver.input(2, Input::Message(rejection));
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
fn a_candidate_of_an_older_term_learns_of_the_newer_one() {
    let mut driver = with_lease();
    driver.take_transcript();
    driver.input(2, Input::Message(vote_request(MessageKind::RequestPreVote, 3, 2, 1)));
    assert!(driver.take_transcript().contains("RequestPreVoteResponse in t2"));
}

#[test]
fn a_requested_campaign_is_ignored_while_the_promise_holds() {
    let mut driver = with_lease();
    driver.take_transcript();
    driver.input(2, Input::Campaign { replica: ReplicaId(2) });
    assert_eq!(driver.take_transcript(), "");
    driver.input(1, Input::Transfer { replica: ReplicaId(1), to: ReplicaId(2) });
    driver.settle();
    assert_eq!(driver.leader(), Some(2), "the target of a transfer need not wait");
}

#[test]
fn a_restarted_replica_does_not_vote_before_an_election_timeout_has_passed() {
    let mut driver = with_lease();
    driver.cut.insert(1);
    driver.restart(2, 0);
    for _ in 0..Config::default().election_ticks {
        assert!(!would_vote(&mut driver, 2, 3, 3));
        driver.input(2, Input::Campaign { replica: ReplicaId(2) });
        assert_eq!(driver.take_transcript(), "");
        driver.input(2, Input::Tick);
        driver.drain(2);
        driver.wire.clear();
    }
    assert!(would_vote(&mut driver, 2, 3, 3));
}

/// The wait counts from the start of the process, not from when the replica is opened.
#[test]
fn a_replica_opened_after_an_election_timeout_votes_at_once() {
    let mut driver = with_lease();
    driver.restart(2, Config::default().election_ticks);
    assert!(would_vote(&mut driver, 2, 3, 3));
}

#[test]
fn a_restarted_replica_votes_for_the_target_of_a_transfer() {
    let mut driver = with_lease();
    driver.restart(2, 0);
    let request =
        Message { context: Bytes::from_static(b"CampaignTransfer"), ..vote_request(MessageKind::RequestVote, 3, 2, 3) };
    driver.take_transcript();
    driver.input(2, Input::Message(request));
    assert!(driver.take_transcript().contains("RequestVoteResponse in t3"));
}

/// The leader's node may be silent since long before the leader's last message.
#[test]
fn a_resting_follower_that_wakes_campaigns_no_earlier_than_its_promise_allows() {
    let mut driver = elected(&[1, 2, 3]);
    for id in 1..=3 {
        driver.node(id).raft.allow_rest();
    }
    driver.tick(60);
    assert_eq!(driver.nodes[&2].raft.resting(), 1);
    run_round(&mut driver, 1, "read", 1_000);
    assert_eq!(driver.nodes[&2].raft.resting(), 0, "the leader's heartbeat wakes it");
    let group = driver.nodes[&2].raft.group(ReplicaId(2)).unwrap();
    let (term, commit) = (group.term().0, group.last());
    driver.input(2, Input::Message(Message { commit, ..message(MessageKind::Rest, 1, 2, term) }));
    assert_eq!(driver.nodes[&2].raft.resting(), 1);
    driver.input(2, Input::Wake { replica: ReplicaId(2), leader_is_silent: true });
    let role = |driver: &Driver| driver.nodes[&2].raft.group(ReplicaId(2)).unwrap().role().0;
    let election_ticks = Config::default().election_ticks;
    for tick in 1..election_ticks {
        driver.input(2, Input::Tick);
        assert_eq!(role(&driver), Role::Follower, "it campaigns {tick} ticks after the leader's message");
    }
    for _ in 0..election_ticks {
        driver.input(2, Input::Tick);
    }
    assert_eq!(role(&driver), Role::Candidate);
}
