//! The next step of one shard towards its intent, decided by its leader: learner → caught up → joint swap →
//! leave joint → remove.
//!
//! Invariants: a replica votes only after it has caught up; all promotions and demotions of a step happen in
//! one joint change, so a group grows from one voter to three without ever having two; a leader that is to be
//! demoted first transfers leadership to a caught-up voter that stays, if there is one. If a node that may lead
//! holds one that is late, the leader waits for that rather than give leadership to a node that may not.

use std::{cmp::Reverse, collections::BTreeSet};

use flotilla_placement::PlanReplica;
use flotilla_replication::{ConfChange, GroupStatus};
use flotilla_types::{LogIndex, NodeId, ReplicaId};

/// A replica is caught up when it lacks at most this many committed entries.
const CAUGHT_UP_ENTRIES: u64 = 512;

/// What a shard's leader should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardStep {
    /// The shard matches its intent, or has to wait.
    Nothing,
    /// Change the configuration.
    Change(ConfChange),
    /// Transfer leadership to this replica first.
    TransferLeadership(ReplicaId),
}

/// Decides the next step from the leader's status and the intent. The replicas of moves in `paused` stay what they
/// are, except that a joint configuration is left.
#[must_use]
pub fn next_shard_step(
    me: ReplicaId,
    here: NodeId,
    status: &GroupStatus,
    intent: &[PlanReplica],
    paused: &BTreeSet<ReplicaId>,
    may_lead: impl Fn(NodeId) -> bool,
) -> ShardStep {
    let conf = &status.conf;
    if conf.is_joint() {
        return ShardStep::Change(ConfChange::LeaveJoint);
    }
    let wanted: BTreeSet<_> = intent.iter().map(|held| held.replica).collect();
    if wanted.is_empty() {
        return ShardStep::Nothing;
    }
    // Remove before adding, so that a node that fails repeatedly leaves no trail of dead learners.
    if let Some(surplus) = conf.learners.iter().find(|learner| !wanted.contains(learner)) {
        return ShardStep::Change(ConfChange::RemoveLearner { replica: *surplus });
    }
    let goes_on = |replica: &&ReplicaId| !paused.contains(*replica);
    if let Some(new) = intent.iter().find(|held| !conf.contains(held.replica) && goes_on(&&held.replica)) {
        return ShardStep::Change(ConfChange::AddLearner { replica: new.replica, node: new.node });
    }
    let caught_up = |replica: &ReplicaId| is_caught_up(status, *replica);
    let promote: Vec<_> =
        conf.learners.iter().filter(goes_on).filter(|learner| wanted.contains(learner)).copied().collect();
    let demote: Vec<_> = conf.voters.iter().filter(goes_on).filter(|voter| !wanted.contains(voter)).copied().collect();
    if !promote.iter().all(caught_up) {
        // A node sends nothing to itself, so a new replica on this one waits for another leader.
        let is_here = |replica: &ReplicaId| intent.iter().any(|held| held.replica == *replica && held.node == here);
        let waits = promote.iter().any(|replica| is_here(replica) && !caught_up(replica));
        if !waits {
            return ShardStep::Nothing;
        }
        let others = conf.voters.iter().filter(|voter| **voter != me && !is_here(voter)).map(|voter| Candidate {
            replica: *voter,
            may_lead: intent.iter().any(|held| held.replica == *voter && may_lead(held.node)),
            is_ready: caught_up(voter),
        });
        return hand_over(others.collect()).unwrap_or(ShardStep::Nothing);
    }
    if demote.contains(&me) {
        let staying = intent.iter().filter(|held| conf.voters.contains(&held.replica)).map(|held| Candidate {
            replica: held.replica,
            may_lead: may_lead(held.node),
            is_ready: caught_up(&held.replica),
        });
        if let Some(step) = hand_over(staying.collect()) {
            return step;
        }
    }
    if promote.is_empty() && demote.is_empty() {
        return ShardStep::Nothing;
    }
    ShardStep::Change(ConfChange::Swap { promote, demote })
}

/// A voter that could succeed the leader.
struct Candidate {
    replica: ReplicaId,
    /// Whether its node may lead. One that is to be removed is on none that may.
    may_lead: bool,
    /// Whether it is caught up.
    is_ready: bool,
}

/// Gives leadership to a voter that is ready, or waits for one that is only late if no ready one may lead: that would
/// give the leadership away again. `None` if none is ready.
fn hand_over(candidates: Vec<Candidate>) -> Option<ShardStep> {
    let ready = candidates.iter().filter(|candidate| candidate.is_ready);
    let best = ready.max_by_key(|candidate| (candidate.may_lead, Reverse(candidate.replica)))?;
    let waits = !best.may_lead && candidates.iter().any(|candidate| candidate.may_lead);
    Some(if waits { ShardStep::Nothing } else { ShardStep::TransferLeadership(best.replica) })
}

/// Whether a follower has almost all committed entries, so that it may vote.
pub(super) fn is_caught_up(leader: &GroupStatus, replica: ReplicaId) -> bool {
    leader.followers.iter().any(|follower| {
        follower.replica == replica
            && follower.recently_active
            && !follower.in_snapshot
            // A follower that never answered counts as active for a while, and may not even exist.
            && follower.matched > LogIndex(0)
            && follower.matched.0 + CAUGHT_UP_ENTRIES >= leader.commit.0
    })
}

#[cfg(test)]
mod tests {
    use flotilla_replication::{Follower, Role};
    use flotilla_types::{ConfState, Term};

    use super::*;

    const ME: ReplicaId = ReplicaId(1);

    /// Where node 2 may not lead, and the leader is on node 1.
    fn next_shard_step(me: ReplicaId, status: &GroupStatus, intent: &[PlanReplica]) -> ShardStep {
        super::next_shard_step(me, NodeId(1), status, intent, &BTreeSet::new(), |node| node != NodeId(2))
    }

    fn status(voters: &[u64], learners: &[u64], matched: &[(u64, u64)]) -> GroupStatus {
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let follower = |(replica, matched): &(u64, u64)| Follower {
            replica: ReplicaId(*replica),
            matched: LogIndex(*matched),
            recently_active: true,
            in_snapshot: false,
        };
        GroupStatus {
            role: Role::Leader,
            term: Term(2),
            leader: ME,
            commit: LogIndex(10_000),
            last: LogIndex(10_000),
            truncated: LogIndex(0),
            conf: ConfState { voters: ids(voters), learners: ids(learners), ..ConfState::default() },
            followers: matched.iter().map(follower).collect(),
            transfers_to: None,
            rests: false,
        }
    }

    fn intent(replicas: &[u64]) -> Vec<PlanReplica> {
        replicas.iter().map(|id| PlanReplica { replica: ReplicaId(*id), node: NodeId(*id) }).collect()
    }

    #[test]
    fn growing_from_one_to_three_promotes_both_learners_together() {
        let wanted = intent(&[1, 2, 3]);
        let add =
            |replica| ShardStep::Change(ConfChange::AddLearner { replica: ReplicaId(replica), node: NodeId(replica) });
        assert_eq!(next_shard_step(ME, &status(&[1], &[], &[]), &wanted), add(2));
        assert_eq!(next_shard_step(ME, &status(&[1], &[2], &[(2, 10_000)]), &wanted), add(3));
        let one_lagging = status(&[1], &[2, 3], &[(2, 10_000), (3, 5)]);
        assert_eq!(next_shard_step(ME, &one_lagging, &wanted), ShardStep::Nothing);
        let ready = status(&[1], &[2, 3], &[(2, 10_000), (3, 9_900)]);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(2), ReplicaId(3)], demote: vec![] };
        assert_eq!(next_shard_step(ME, &ready, &wanted), ShardStep::Change(swap));
    }

    #[test]
    fn learner_that_never_answered_is_not_promoted_even_with_a_short_log() {
        let wanted = intent(&[1, 2, 3]);
        let mut young = status(&[1], &[2, 3], &[(2, 16), (3, 0)]);
        young.commit = LogIndex(17);
        assert_eq!(
            next_shard_step(ME, &young, &wanted),
            ShardStep::Nothing,
            "promoting an absent replica would cost the quorum"
        );
        young.followers[1].matched = LogIndex(1);
        assert!(matches!(next_shard_step(ME, &young, &wanted), ShardStep::Change(ConfChange::Swap { .. })));
    }

    #[test]
    fn replacement_swaps_in_one_change_and_removes_the_old_replica_last() {
        let wanted = intent(&[1, 2, 4]);
        let caught_up = status(&[1, 2, 3], &[4], &[(2, 10_000), (3, 0), (4, 10_000)]);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(4)], demote: vec![ReplicaId(3)] };
        assert_eq!(next_shard_step(ME, &caught_up, &wanted), ShardStep::Change(swap));
        let swapped = status(&[1, 2, 4], &[3], &[(2, 10_000), (3, 0), (4, 10_000)]);
        let remove = ConfChange::RemoveLearner { replica: ReplicaId(3) };
        assert_eq!(next_shard_step(ME, &swapped, &wanted), ShardStep::Change(remove));
    }

    #[test]
    fn leader_to_be_demoted_transfers_leadership_first() {
        let wanted = intent(&[2, 3, 4]);
        let status = status(&[1, 2, 3], &[4], &[(2, 10_000), (3, 10_000), (4, 10_000)]);
        assert_eq!(next_shard_step(ME, &status, &wanted), ShardStep::TransferLeadership(ReplicaId(3)));
    }

    #[test]
    fn a_node_that_may_not_lead_succeeds_only_when_no_other_node_may() {
        let late = status(&[1, 2, 3], &[4], &[(2, 10_000), (3, 5), (4, 10_000)]);
        assert_eq!(next_shard_step(ME, &late, &intent(&[2, 3, 4])), ShardStep::Nothing, "3 catches up");
        let alone = super::next_shard_step(ME, NodeId(1), &late, &intent(&[2, 3, 4]), &BTreeSet::new(), |_| false);
        assert_eq!(alone, ShardStep::TransferLeadership(ReplicaId(2)));
    }

    /// Replica 1, the leader, is to be replaced by replica 5 on its own node.
    #[test]
    fn a_leader_hands_over_for_a_new_replica_on_its_own_node() {
        let mut wanted = intent(&[2, 3]);
        wanted.push(PlanReplica { replica: ReplicaId(5), node: NodeId(1) });
        let status = |matched: &[(u64, u64)]| status(&[1, 2, 3], &[5], matched);
        let waits = status(&[(2, 10_000), (3, 10_000), (5, 0)]);
        assert_eq!(next_shard_step(ME, &waits, &wanted), ShardStep::TransferLeadership(ReplicaId(3)));
        let late = status(&[(2, 5), (3, 10_000), (5, 0)]);
        assert_eq!(next_shard_step(ME, &late, &wanted), ShardStep::TransferLeadership(ReplicaId(3)));
        let alone = status(&[(2, 5), (3, 5), (5, 0)]);
        assert_eq!(next_shard_step(ME, &alone, &wanted), ShardStep::Nothing);
        let not_there =
            super::next_shard_step(ME, NodeId(1), &waits, &wanted, &BTreeSet::new(), |node| node == NodeId(3));
        assert_eq!(not_there, ShardStep::TransferLeadership(ReplicaId(3)));
        let only_late = status(&[(2, 10_000), (3, 5), (5, 0)]);
        let later =
            super::next_shard_step(ME, NodeId(1), &only_late, &wanted, &BTreeSet::new(), |node| node == NodeId(3));
        assert_eq!(later, ShardStep::Nothing, "3 catches up");
        let elsewhere = super::next_shard_step(ME, NodeId(4), &waits, &wanted, &BTreeSet::new(), |_| true);
        assert_eq!(elsewhere, ShardStep::Nothing, "it catches up");
    }

    /// Replica 3 moves to node 4 as replica 4, and node 5 gets replica 5 meanwhile.
    #[test]
    fn a_paused_move_changes_nothing_but_a_joint_configuration_and_others_go_on() {
        let paused = BTreeSet::from([ReplicaId(3), ReplicaId(4)]);
        let next = |status: &GroupStatus, intent: &[PlanReplica]| {
            super::next_shard_step(ME, NodeId(1), status, intent, &paused, |_| true)
        };
        let wanted = intent(&[1, 2, 4]);
        assert_eq!(next(&status(&[1, 2, 3], &[], &[]), &wanted), ShardStep::Nothing);
        let ready = [(2, 10_000), (3, 10_000), (4, 10_000), (5, 10_000)];
        let mut caught_up = status(&[1, 2, 3], &[4], &ready);
        assert_eq!(next(&caught_up, &wanted), ShardStep::Nothing);
        caught_up.conf.voters_outgoing = vec![ReplicaId(1)];
        assert_eq!(next(&caught_up, &wanted), ShardStep::Change(ConfChange::LeaveJoint));
        let more = intent(&[1, 2, 4, 5]);
        let swap = ConfChange::Swap { promote: vec![ReplicaId(5)], demote: vec![] };
        assert_eq!(next(&status(&[1, 2, 3], &[4, 5], &ready), &more), ShardStep::Change(swap));
        let remove = ConfChange::RemoveLearner { replica: ReplicaId(3) };
        let swapped = status(&[1, 2, 4], &[3], &ready);
        assert_eq!(next(&swapped, &wanted), ShardStep::Change(remove), "what is done is completed");
    }

    #[test]
    fn joint_configuration_is_left_before_anything_else() {
        let mut joint = status(&[1, 2, 3], &[], &[]);
        joint.conf.voters_outgoing = vec![ReplicaId(1)];
        assert_eq!(next_shard_step(ME, &joint, &intent(&[1, 2, 3])), ShardStep::Change(ConfChange::LeaveJoint));
    }
}
