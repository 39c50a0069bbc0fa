use flotilla_replication::{ChainSamples, Fingerprints, Role};
use flotilla_types::ConfState;

use super::*;
use crate::core::{
    fingerprints::{Evidence, Point},
    testing::{Meta, World, leads, node},
};

const SHARD: ShardId = ShardId(1);
/// What replica `10 + id` on node `id` has.
const RIGHT: [u8; 32] = [1; 32];
const WRONG: [u8; 32] = [9; 32];

fn said(applied: u64, digest: [u8; 32]) -> Said {
    let chain = ChainSamples { begun: LogIndex(3), copied: None, samples: Vec::new(), now: Some(digest) };
    let meaning = ClusterVersion::CHAINS;
    let chain = Some(chain);
    Said::here(Fingerprints { applied: LogIndex(applied), meaning, chain, bases: Vec::new() })
}

/// Node 1 of three leads the shard with replica 2; replicas 3 and 4 are on the others.
fn world() -> (World, Consistency) {
    let mut meta = Meta::of_nodes(3);
    meta.collection(&[&[1, 2, 3]]);
    for version in 2..=ClusterVersion::CHAINS.0 {
        meta.raise_to(ClusterVersion(version));
    }
    let mut world = World::new(1, meta);
    world.replicas = vec![leads(SHARD.0, &[(1, 2), (2, 3), (3, 4)], &[])];
    world.replicas[0].applied = LogIndex(20);
    (world, Consistency::default())
}

/// Passes until something is asked or done.
fn next(world: &mut World, consistency: &mut Consistency) -> Vec<Action> {
    for _ in 0..2_000 {
        let actions = world.reconcile(consistency);
        if !actions.is_empty() {
            return actions;
        }
        world.now_ms += PASS_MS;
        world.wall_ms += PASS_MS;
    }
    Vec::new()
}

/// The shard is asked about, and its voters say these.
fn compare(world: &mut World, consistency: &mut Consistency, answers: [Option<Said>; 3]) -> Vec<Action> {
    let of = vec![(ReplicaId(2), node(1)), (ReplicaId(3), node(2)), (ReplicaId(4), node(3))];
    assert_eq!(next(world, consistency), [Action::ReadFingerprints { shard: SHARD, of }]);
    let answered = (2..).map(ReplicaId).zip(answers).filter_map(|(replica, said)| Some((replica, said?))).collect();
    consistency.on_outcome(Outcome::Fingerprints(answered));
    world.reconcile(consistency)
}

fn all(applied: u64, digests: [[u8; 32]; 3]) -> [Option<Said>; 3] {
    digests.map(|digest| Some(said(applied, digest)))
}

fn verdict(consistency: &mut Consistency) -> ShardConsistency {
    let changes = consistency.take_changes();
    changes.into_iter().rev().find_map(|(_, comparison)| Some(comparison?.verdict)).expect("a comparison")
}

#[test]
fn an_equal_shard_is_compared_again_only_after_it_has_changed() {
    let (mut world, mut consistency) = world();
    assert_eq!(compare(&mut world, &mut consistency, all(20, [RIGHT; 3])), []);
    assert_eq!(verdict(&mut consistency), ShardConsistency::Equal);
    assert_eq!(next(&mut world, &mut consistency), [], "it rests");
    world.replicas[0].applied = LogIndex(21);
    compare(&mut world, &mut consistency, all(21, [RIGHT; 3]));
    // It goes on changing, and is compared at its pace.
    let began_ms = world.now_ms;
    world.replicas[0].applied = LogIndex(22);
    compare(&mut world, &mut consistency, all(21, [RIGHT; 3]));
    assert!(world.now_ms >= began_ms + AGAIN_MS - SETTLE_MS);
    compare(&mut world, &mut consistency, all(22, [RIGHT; 3]));
    let findings = consistency.take_findings();
    assert_eq!(findings, vec![Finding::Compared(ShardConsistency::Equal); 4]);
}

#[test]
fn one_shard_is_asked_about_at_a_time() {
    let (mut world, mut consistency) = world();
    world.replicas.push(leads(0, &[(1, 1), (2, 8)], &[]));
    let asked = |actions: &[Action]| matches!(actions, [Action::ReadFingerprints { .. }]);
    assert!(asked(&next(&mut world, &mut consistency)));
    // The pass that concludes the first asks about the second.
    consistency.on_outcome(Outcome::Fingerprints(Vec::new()));
    assert!(asked(&world.reconcile(&mut consistency)));
    assert_eq!(world.reconcile(&mut consistency), [], "both have had their turn");
}

#[test]
fn the_odd_follower_is_given_up_with_the_evidence() {
    let (mut world, mut consistency) = world();
    let actions = compare(&mut world, &mut consistency, all(20, [RIGHT, WRONG, RIGHT]));
    let evidence = Evidence { point: Point::Now(LogIndex(20)), digest: RIGHT };
    let give_up = [Action::GiveUp { node: node(2), shard: SHARD, replica: ReplicaId(3), evidence }];
    assert_eq!(actions, give_up);
    assert_eq!(verdict(&mut consistency), ShardConsistency::Different);
    let findings = consistency.take_findings();
    assert!(matches!(
        findings[..],
        [
            Finding::Compared(ShardConsistency::Different),
            Finding::Different { shard: SHARD, odd: Some((ReplicaId(3), NodeId(2))), .. },
        ]
    ));
    // The order was lost. It is reported once.
    assert_eq!(compare(&mut world, &mut consistency, all(20, [RIGHT, WRONG, RIGHT])), give_up);
    assert_eq!(consistency.take_findings(), [Finding::Compared(ShardConsistency::Different)]);
    assert_eq!(compare(&mut world, &mut consistency, all(20, [RIGHT; 3])), []);
    let equal = [Finding::Compared(ShardConsistency::Equal), Finding::Equal { shard: SHARD }];
    assert_eq!(consistency.take_findings(), equal);
}

#[test]
fn nobody_is_given_up_while_a_replica_is_rebuilt_or_the_configuration_changes() {
    let (mut world, mut consistency) = world();
    // Node 3's replica was lost, and its replacement does not vote yet.
    world.meta.apply(&flotilla_meta::MetaCommand::ReplaceReplica { shard: SHARD, replica: ReplicaId(4) });
    assert_eq!(compare(&mut world, &mut consistency, all(20, [RIGHT, WRONG, RIGHT])), []);
    assert_eq!(verdict(&mut consistency), ShardConsistency::Different, "it is known all the same");
    let group = world.replicas[0].group.as_mut().expect("a group");
    group.conf.voters_outgoing = vec![ReplicaId(2)];
    assert_eq!(next(&mut world, &mut consistency), [], "it is not compared");
}

#[test]
fn an_odd_leader_hands_over_first_and_is_given_up_if_it_cannot() {
    let (mut world, mut consistency) = world();
    let mut heirs = Vec::new();
    for _ in 0..HANDOVERS_MAX {
        let actions = compare(&mut world, &mut consistency, all(20, [WRONG, RIGHT, RIGHT]));
        let [Action::Transfer { shard: SHARD, to }] = actions[..] else { panic!("{actions:?}") };
        heirs.push(to);
    }
    assert_eq!(heirs, [node(2), node(3), node(2)]);
    let actions = compare(&mut world, &mut consistency, all(20, [WRONG, RIGHT, RIGHT]));
    assert!(matches!(actions[..], [Action::GiveUp { node: NodeId(1), replica: ReplicaId(2), .. }]), "{actions:?}");
}

/// The nodes that prefer this leader give the leadership back before they have compared.
#[test]
fn an_odd_leader_is_given_up_if_the_leadership_always_comes_back() {
    let (mut world, mut consistency) = world();
    let mut steps = Vec::new();
    for _ in 0..=HANDOVERS_MAX {
        steps.extend(compare(&mut world, &mut consistency, all(20, [WRONG, RIGHT, RIGHT])));
        let group = world.replicas[0].group.as_mut().expect("a group");
        group.role = Role::Follower;
        assert_eq!(next(&mut world, &mut consistency), []);
        world.replicas[0].group.as_mut().expect("a group").role = Role::Leader;
    }
    let handovers = steps.iter().filter(|step| matches!(step, Action::Transfer { .. })).count();
    assert_eq!(handovers, HANDOVERS_MAX as usize);
    assert!(matches!(steps.last(), Some(Action::GiveUp { node: NodeId(1), replica: ReplicaId(2), .. })), "{steps:?}");
}

#[test]
fn without_a_majority_there_is_an_alarm_and_nothing_is_given_up() {
    let (mut world, mut consistency) = world();
    assert_eq!(compare(&mut world, &mut consistency, [Some(said(20, RIGHT)), Some(said(20, WRONG)), None]), []);
    assert_eq!(verdict(&mut consistency), ShardConsistency::Different);
    let findings = consistency.take_findings();
    assert!(matches!(findings[..], [_, Finding::Different { odd: None, .. }]), "{findings:?}");
}

#[test]
fn inconclusive_is_an_alarm_after_an_hour_and_equal_ends_it() {
    let (mut world, mut consistency) = world();
    let silent = || [Some(said(20, RIGHT)), None, None];
    compare(&mut world, &mut consistency, silent());
    assert_eq!(verdict(&mut consistency), ShardConsistency::Inconclusive);
    assert_eq!(consistency.take_findings(), [Finding::Compared(ShardConsistency::Inconclusive)]);
    let began_ms = world.wall_ms;
    while world.wall_ms < began_ms + INCONCLUSIVE_MS_MAX - 2 * AGAIN_LATER_MS {
        compare(&mut world, &mut consistency, silent());
    }
    let is_alarm = |finding: &Finding| matches!(finding, Finding::Inconclusive { .. });
    assert!(!consistency.take_findings().iter().any(is_alarm));
    while world.wall_ms < began_ms + INCONCLUSIVE_MS_MAX + 2 * AGAIN_LATER_MS {
        compare(&mut world, &mut consistency, silent());
    }
    assert_eq!(consistency.take_findings().iter().filter(|finding| is_alarm(finding)).count(), 1, "once");
    compare(&mut world, &mut consistency, all(20, [RIGHT; 3]));
    assert!(consistency.take_findings().contains(&Finding::Equal { shard: SHARD }));
}

#[test]
fn a_new_leader_compares_anew_and_the_old_one_forgets() {
    let (mut world, mut consistency) = world();
    compare(&mut world, &mut consistency, all(20, [RIGHT; 3]));
    consistency.take_changes();
    // Leadership is lost while the voters are asked.
    world.replicas[0].applied = LogIndex(30);
    assert_eq!(next(&mut world, &mut consistency).len(), 1);
    let group = world.replicas[0].group.as_mut().expect("a group");
    group.role = Role::Follower;
    consistency.on_outcome(Outcome::Fingerprints(vec![(ReplicaId(3), said(20, WRONG))]));
    assert_eq!(world.reconcile(&mut consistency), []);
    assert_eq!(consistency.take_changes(), [(SHARD, None)]);
    assert_eq!(next(&mut world, &mut consistency), []);
    world.replicas[0].group.as_mut().expect("a group").role = Role::Leader;
    compare(&mut world, &mut consistency, all(30, [RIGHT; 3]));
    assert_eq!(verdict(&mut consistency), ShardConsistency::Equal);
}

#[test]
fn a_shard_with_one_voter_is_compared_with_nothing() {
    let (mut world, mut consistency) = world();
    let group = world.replicas[0].group.as_mut().expect("a group");
    group.conf = ConfState::of_voters([ReplicaId(2)]);
    assert_eq!(next(&mut world, &mut consistency), []);
    assert_eq!(verdict(&mut consistency), ShardConsistency::Single);
    assert_eq!(consistency.take_findings(), []);
}

#[test]
fn a_fold_is_ordered_once_to_compare_the_records_of_copies() {
    let (mut world, mut consistency) = world();
    let with_copy = || {
        let mut answers = all(20, [RIGHT; 3]);
        for said in answers[1..2].iter_mut().flatten() {
            said.fingerprints.chain.iter_mut().for_each(|chain| chain.copied = Some(LogIndex(10)));
        }
        answers
    };
    let fold = ShardChange::Fold { piece_bytes: PIECE_BYTES };
    let actions = compare(&mut world, &mut consistency, with_copy());
    assert_eq!(actions, [Action::ChangeShard { shard: SHARD, change: fold }]);
    assert_eq!(compare(&mut world, &mut consistency, with_copy()), [], "it was ordered");
    assert!(ShardChange::PIECE_BYTES.contains(&PIECE_BYTES));
}

#[test]
fn nothing_is_compared_before_the_version_is_in_force() {
    let mut meta = Meta::of_nodes(3);
    meta.collection(&[&[1, 2, 3]]);
    let mut world = World::new(1, meta);
    world.replicas = vec![leads(SHARD.0, &[(1, 2), (2, 3), (3, 4)], &[])];
    assert_eq!(next(&mut world, &mut Consistency::default()), []);
}
