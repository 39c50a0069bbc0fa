use flotilla_replication::{ChainSamples, Fingerprints};
use flotilla_types::{ClusterVersion, ObjectId};

use super::*;

/// Node `id` with replica `10 + id`, which has applied everything itself up to entry 300.
fn voter(id: u64) -> Voter {
    let chain =
        ChainSamples { begun: LogIndex(3), copied: None, samples: vec![(LogIndex(256), [1; 32])], now: Some([2; 32]) };
    let fingerprints = Fingerprints {
        applied: LogIndex(300),
        meaning: ClusterVersion::CHAINS,
        chain: Some(chain),
        bases: vec![(LogIndex(100), ObjectId([3; 32]))],
    };
    let said = Some(Said { fingerprints, supported: ClusterVersion::CHAINS });
    Voter { replica: ReplicaId(10 + id), node: NodeId(id), said, build: "one".to_owned() }
}

fn fingerprints(voter: &mut Voter) -> &mut Fingerprints {
    &mut voter.said.as_mut().expect("it says something").fingerprints
}

fn chain(voter: &mut Voter) -> &mut ChainSamples {
    fingerprints(voter).chain.as_mut().expect("a chain")
}

fn diverge(voter: &mut Voter, digest: u8) {
    let chain = chain(voter);
    chain.samples[0].1 = [digest; 32];
    chain.now = Some([digest; 32]);
}

fn three() -> [Voter; 3] {
    [1, 2, 3].map(voter)
}

fn convicted(voters: &[Voter], agreed: Agreed) -> Option<ReplicaId> {
    match judge(voters, agreed) {
        Judgement::Different { verdict: Ok(conviction), .. } => Some(conviction.replica),
        _ => None,
    }
}

#[track_caller]
fn assert_alarm(voters: &[Voter], agreed: Agreed, why: &str) {
    let judgement = judge(voters, agreed);
    let Judgement::Different { verdict: Err(reason), .. } = &judgement else { panic!("{judgement:?}") };
    assert!(reason.contains(why), "{reason}");
}

#[track_caller]
fn assert_inconclusive(voters: &[Voter], why: &str) {
    let judgement = judge(voters, Agreed::default());
    let Judgement::Inconclusive(reason) = &judgement else { panic!("{judgement:?}") };
    assert!(reason.contains(why), "{reason}");
}

#[test]
fn voters_that_agree_wherever_they_can_be_compared_are_equal() {
    let agreed = Agreed { state: LogIndex(300), records: LogIndex(100) };
    let (index, fold) = (LogIndex(300), Some(LogIndex(100)));
    assert_eq!(judge(&three(), Agreed::default()), Judgement::Equal { index, fold, agreed });
    let mut voters = three();
    // It is a little behind, and has made another fold last.
    fingerprints(&mut voters[1]).applied = LogIndex(299);
    chain(&mut voters[1]).now = Some([77; 32]);
    fingerprints(&mut voters[1]).bases[0].0 = LogIndex(50);
    let equal = Judgement::Equal { index: LogIndex(256), fold: None, agreed: Agreed::default() };
    assert_eq!(judge(&voters, Agreed::default()), equal, "a sample of both");
    assert!(matches!(judge(&voters[..2], Agreed::default()), Judgement::Equal { .. }), "two can be compared too");
}

#[test]
fn what_cannot_be_compared_is_no_pass() {
    let mut silent = three();
    silent[2].said = None;
    assert_inconclusive(&silent, "n3");
    // Slow: the samples that the others keep are behind it, and it has none of them yet.
    let mut slow = three();
    fingerprints(&mut slow[1]).applied = LogIndex(200);
    chain(&mut slow[1]).samples.clear();
    assert_inconclusive(&slow, "no entry");
    let mut bare = three();
    fingerprints(&mut bare[0]).chain = None;
    assert_inconclusive(&bare, "no chain");
    assert_inconclusive(&three()[..1], "one voter");
    assert_inconclusive(&[], "one voter");
    let mut bases = three();
    chain(&mut bases[2]).samples.clear();
    fingerprints(&mut bases[2]).applied = LogIndex(1);
    assert_inconclusive(&bases, "no entry");
}

#[test]
fn chains_of_another_beginning_or_meaning_say_nothing() {
    let mut other = three();
    chain(&mut other[2]).begun = LogIndex(4);
    diverge(&mut other[2], 9);
    assert_inconclusive(&other, "no entry");
    let mut other = three();
    fingerprints(&mut other[2]).meaning = ClusterVersion(9);
    diverge(&mut other[2], 9);
    assert_inconclusive(&other, "no entry");
}

#[test]
fn the_odd_one_of_three_is_convicted_whatever_it_differs_in() {
    let mut voters = three();
    diverge(&mut voters[1], 9);
    let judgement = judge(&voters, Agreed::default());
    let Judgement::Different { index: LogIndex(256), verdict: Ok(conviction) } = judgement else {
        panic!("{judgement:?}")
    };
    let evidence = Evidence { point: Point::Sample(LogIndex(256)), digest: [1; 32] };
    assert_eq!((conviction.replica, conviction.node, conviction.evidence), (ReplicaId(12), NodeId(2), evidence));
    assert_eq!(conviction.majority, [ReplicaId(11), ReplicaId(13)]);
    assert!(voters[1].said.as_ref().is_some_and(|said| said.is_refuted_by(&evidence)));
    // In its sessions only: nothing that its entries wrote.
    let mut voters = three();
    chain(&mut voters[0]).now = Some([9; 32]);
    assert_eq!(convicted(&voters, Agreed::default()), Some(ReplicaId(11)));
    // In a record that its engine lost.
    let mut voters = three();
    fingerprints(&mut voters[2]).bases[0].1 = ObjectId([9; 32]);
    assert_eq!(convicted(&voters, Agreed::default()), Some(ReplicaId(13)));
}

#[test]
fn without_a_majority_nobody_is_convicted() {
    let mut two = three();
    diverge(&mut two[1], 9);
    assert_alarm(&two[..2], Agreed::default(), "no majority");
    let mut lost = two.clone();
    lost[2].said = None;
    assert_alarm(&lost, Agreed::default(), "no majority");
    let mut all = three();
    diverge(&mut all[1], 9);
    diverge(&mut all[2], 8);
    assert_alarm(&all, Agreed::default(), "no majority");
    // Two of five agree, and one does not answer.
    let mut five = [1, 2, 3, 4, 5].map(voter);
    diverge(&mut five[0], 9);
    diverge(&mut five[1], 8);
    five[2].said = None;
    assert_alarm(&five, Agreed::default(), "no majority");
    five[2] = voter(3);
    assert_eq!(convicted(&five, Agreed::default()), Some(ReplicaId(11)), "one at a time");
}

#[test]
fn a_replica_that_agrees_at_one_point_and_differs_at_another_belongs_to_no_majority() {
    let mut voters = three();
    // It differs from the first only, as the other two have no base in common.
    fingerprints(&mut voters[0]).bases.clear();
    fingerprints(&mut voters[2]).bases[0].1 = ObjectId([9; 32]);
    assert_alarm(&voters, Agreed::default(), "none differs from all");
}

#[test]
fn a_copy_is_no_witness_until_all_were_equal_after_it_was_made() {
    let copy = |at: u64| {
        let mut voters = three();
        voters.iter_mut().for_each(|voter| fingerprints(voter).bases.clear());
        chain(&mut voters[2]).copied = Some(LogIndex(at));
        voters
    };
    // Replica 13 was copied from 11, which was wrong already: both agree against the right one.
    let mut voters = copy(200);
    diverge(&mut voters[1], 9);
    assert_alarm(&voters, Agreed::default(), "copies");
    let agreed = |state, records| Agreed { state: LogIndex(state), records: LogIndex(records) };
    assert_alarm(&voters, agreed(250, 150), "copies");
    assert_alarm(&voters, agreed(150, 250), "copies");
    assert_eq!(convicted(&voters, agreed(250, 250)), Some(ReplicaId(12)));
    // A copy can be the odd one.
    let mut voters = copy(200);
    diverge(&mut voters[2], 9);
    assert_eq!(convicted(&voters, Agreed::default()), Some(ReplicaId(13)));
}

#[test]
fn what_all_have_in_common_makes_copies_witnesses() {
    let mut voters = three();
    for voter in &mut voters {
        chain(voter).samples.insert(0, (LogIndex(SYSTEM_SPACING), [5; 32]));
        chain(voter).samples[1].0 = LogIndex(SYSTEM_SPACING + 256);
        fingerprints(voter).applied = LogIndex(SYSTEM_SPACING + 300);
    }
    chain(&mut voters[2]).copied = Some(LogIndex(90));
    chain(&mut voters[1]).samples[1].1 = [9; 32];
    chain(&mut voters[1]).now = Some([9; 32]);
    assert_eq!(convicted(&voters, Agreed::default()), Some(ReplicaId(12)));
    chain(&mut voters[2]).copied = Some(LogIndex(100));
    assert_alarm(&voters, Agreed::default(), "copies");
}

#[test]
fn a_fold_after_a_copy_makes_it_a_witness_for_every_later_leader() {
    let mut voters = three();
    for voter in &mut voters {
        chain(voter).samples.insert(0, (LogIndex(101), [6; 32]));
        fingerprints(voter).bases[0].0 = LogIndex(101);
    }
    chain(&mut voters[2]).copied = Some(LogIndex(100));
    chain(&mut voters[1]).samples[1].1 = [9; 32];
    chain(&mut voters[1]).now = Some([9; 32]);
    assert_eq!(convicted(&voters, Agreed::default()), Some(ReplicaId(12)));
    // Its base is not made yet.
    fingerprints(&mut voters[0]).bases.clear();
    assert_alarm(&voters, Agreed::default(), "copies");
}

#[test]
fn replicas_of_different_binaries_are_never_convicted() {
    for change in [(|voter: &mut Voter| voter.build = "other".to_owned()) as fn(&mut Voter), |voter| {
        voter.said.as_mut().expect("it says something").supported = ClusterVersion(5)
    }] {
        for changed in 0..3 {
            let mut voters = three();
            diverge(&mut voters[1], 9);
            change(&mut voters[changed]);
            assert_inconclusive(&voters, "different binaries");
            // If they are equal, it does not matter.
            let mut voters = three();
            change(&mut voters[changed]);
            assert!(matches!(judge(&voters, Agreed::default()), Judgement::Equal { .. }));
        }
    }
}
