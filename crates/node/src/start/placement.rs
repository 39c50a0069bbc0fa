//! What placement says, for operators: its reports in words, with the labels that the metadata gives.

use std::{cmp::Reverse, time::Instant};

use flotilla_api::{
    Alternative, Blocker, DecisionInfo, DecisionList, PlacementAction, ReplicaExplanation, ReplicaVerdict,
    ShardExplanation,
};
use flotilla_control::{JournalEntry, PlacementQuestion, PlacementReport, Verdict};
use flotilla_gateway::{AdminError, StoreError};
use flotilla_meta::{MetaState, NodeRole};
use flotilla_placement::{
    Decision, Explanation, Fate, Hold, NodeStatus, NonDecision, Obstacle, Reason, Rejected, Rejection, ReplicaPhase,
};
use flotilla_replication::clock;
use flotilla_types::{NodeId, ShardId};

use super::admin::NodeAdmin;

impl NodeAdmin {
    /// Why the replicas of a shard are where they are.
    pub(super) async fn explain_shard(
        &self,
        shard: ShardId,
        deadline: Instant,
    ) -> Result<ShardExplanation, AdminError> {
        let (leader, report) = self.ask_placement(PlacementQuestion::Explain(shard), deadline).await?;
        let found = report.explanation.ok_or(AdminError::ShardNotFound(shard))?;
        Ok(explanation(found, leader, &self.topology.meta(), clock::wall_ms()))
    }

    /// Asks the leader of the metadata group about placement.
    async fn ask_placement(
        &self,
        question: PlacementQuestion,
        deadline: Instant,
    ) -> Result<(NodeId, PlacementReport), AdminError> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let leader = || self.topology.leader(ShardId::META);
        let unavailable = |_| StoreError::Unavailable { shard: Some(ShardId::META), leader: leader() };
        Ok(self.shards.ask_placement(question, remaining).await.map_err(unavailable)?)
    }

    /// What the leader of the metadata group decides now, or would decide.
    pub(super) async fn replan(&self, dry_run: bool, deadline: Instant) -> Result<DecisionList, AdminError> {
        let question = if dry_run { PlacementQuestion::Preview } else { PlacementQuestion::Rebalance };
        let (leader, report) = self.ask_placement(question, deadline).await?;
        let meta = self.topology.meta();
        let decisions = report.entries.into_iter().map(|entry| decision(entry, leader, &meta)).collect();
        Ok(DecisionList { dry_run: Some(dry_run), decisions, silent: Vec::new() })
    }
}

/// Joins what nodes have decided, the newest first; a node without a report is listed as silent.
pub(super) fn list(reports: Vec<(NodeId, Option<PlacementReport>)>, limit: usize, meta: &MetaState) -> DecisionList {
    let mut list = DecisionList::default();
    for (node, report) in reports {
        match report {
            Some(report) => list.decisions.extend(report.entries.into_iter().map(|entry| decision(entry, node, meta))),
            None => list.silent.push(node),
        }
    }
    // Stable, so that the entries of one node keep their order.
    list.decisions.sort_by_key(|entry| Reverse(entry.at_ms));
    list.decisions.truncate(limit);
    list
}

/// An explanation, as the leader of the metadata group gave it.
fn explanation(found: Explanation, decided_by: NodeId, meta: &MetaState, wall_ms: u64) -> ShardExplanation {
    let entry = |verdict| JournalEntry { at_ms: wall_ms, last_ms: wall_ms, count: 1, verdict };
    let additions = found.additions.into_iter().map(|decision| entry(Verdict::Decided(decision)));
    let undecided = found.undecided.into_iter().map(|undecided| entry(Verdict::Undecided(undecided)));
    ShardExplanation {
        shard: found.shard,
        decided_by,
        desired_replicas: found.replicas_desired.into(),
        too_few_nodes: found.is_short,
        replicas: found.replicas.into_iter().map(|replica| explained(replica, meta)).collect(),
        additions: additions.map(|entry| decision(entry, decided_by, meta)).collect(),
        undecided: undecided.map(|entry| decision(entry, decided_by, meta)).collect(),
    }
}

fn explained(replica: flotilla_placement::ReplicaExplanation, meta: &MetaState) -> ReplicaExplanation {
    let node = replica.held.node;
    let (verdict, to, why) = match replica.fate {
        Fate::Stays => (ReplicaVerdict::Stays, None, None),
        Fate::Goes { to, reason } => (ReplicaVerdict::Goes, to, Some(reason)),
        Fate::Stuck { reason } => (ReplicaVerdict::Stuck, None, Some(reason)),
        Fate::Departs => (ReplicaVerdict::Goes, None, None),
    };
    let share = thousandths(i64::try_from(replica.share_milli).unwrap_or(i64::MAX));
    let load =
        format!("{node} is {}, holds {} replicas, and its share is {share}", status(replica.status), replica.count);
    let detail = match (replica.fate, replica.phase) {
        (Fate::Stays, ReplicaPhase::Arriving) => format!("was decided on and does not vote yet; {load}"),
        (Fate::Stays, _) => format!("stays: {load}"),
        (Fate::Goes { to: Some(to), reason }, _) => format!("goes to {to}: {}; {load}", words(reason, Some(node))),
        (Fate::Goes { to: None, reason }, _) => format!("goes: {}; {load}", words(reason, Some(node))),
        (Fate::Stuck { reason }, _) => {
            format!("should go and cannot: {}, and no other node can take it; {load}", words(reason, Some(node)))
        }
        (Fate::Departs, _) => "was decided against, and is being removed".to_owned(),
    };
    let phase = match replica.phase {
        ReplicaPhase::InPlace => "in_place",
        ReplicaPhase::Arriving => "arriving",
        ReplicaPhase::Departing => "departing",
    };
    ReplicaExplanation {
        replica: replica.held.replica,
        node,
        node_status: status(replica.status).to_owned(),
        node_replicas: replica.count,
        node_share: replica.share_milli as f64 / 1e3,
        phase: phase.to_owned(),
        verdict,
        to,
        reason: why.map(|why| why.name().to_owned()),
        detail,
        alternatives: replica.rejected.iter().map(|rejected| alternative(rejected, Some(node), meta)).collect(),
    }
}

/// An entry of the journal, or of a plan.
fn decision(entry: JournalEntry, decided_by: NodeId, meta: &MetaState) -> DecisionInfo {
    let JournalEntry { at_ms, last_ms, count, verdict } = entry;
    let none = DecisionInfo {
        at_ms,
        last_ms,
        count,
        decided_by,
        action: PlacementAction::None,
        shard: None,
        replica: None,
        from: None,
        to: None,
        reason: String::new(),
        detail: String::new(),
        shards: Vec::new(),
        shards_total: None,
        alternatives: Vec::new(),
    };
    match verdict {
        Verdict::Decided(Decision { shard, from, to, reason, rejected }) => {
            let node = from.map(|from| from.node);
            DecisionInfo {
                action: match (from, to) {
                    (None, _) => PlacementAction::Add,
                    (Some(_), Some(_)) => PlacementAction::Move,
                    (Some(_), None) => PlacementAction::Remove,
                },
                shard: Some(shard),
                replica: from.map(|from| from.replica),
                from: node,
                to,
                reason: reason.name().to_owned(),
                detail: words(reason, node),
                alternatives: rejected.iter().map(|rejected| alternative(rejected, node, meta)).collect(),
                ..none
            }
        }
        Verdict::Undecided(undecided) => {
            let shards = match &undecided {
                NonDecision::Stuck { shards, .. }
                | NonDecision::Short { shards }
                | NonDecision::Unsettled { shards } => Some(shards.clone()),
                _ => None,
            };
            let node = if let NonDecision::Stuck { node, .. } = undecided { Some(node) } else { None };
            DecisionInfo {
                from: node,
                reason: undecided.name().to_owned(),
                detail: undecided_words(&undecided),
                shards_total: shards.as_ref().map(|shards| shards.total as u64),
                shards: shards.map(|shards| shards.first).unwrap_or_default(),
                ..none
            }
        }
    }
}

fn alternative(rejected: &Rejected, from: Option<NodeId>, meta: &MetaState) -> Alternative {
    let Rejected { node, why } = *rejected;
    let detail = match why {
        Rejection::HoldsReplica => "holds a replica".to_owned(),
        Rejection::Status(found) => status(found).to_owned(),
        Rejection::NoWeight => match meta.node(node).map(|record| record.role) {
            Some(NodeRole::Gateway) => "is a gateway, which holds no replicas".to_owned(),
            _ => "its weight is zero".to_owned(),
        },
        Rejection::OldReplica => "an old replica is still being removed there".to_owned(),
        Rejection::Closer { with } => format!("would bring replicas closer ({})", closeness(node, with, meta)),
        Rejection::Fuller => "holds more for its weight than the node that was chosen".to_owned(),
        Rejection::Hash => "suits as well; the hash of shard and node decided".to_owned(),
        Rejection::WithinThreshold { difference, limit } => {
            let from = from.map_or_else(|| "the other node".to_owned(), |from| from.to_string());
            if difference <= 0 {
                let detail = format!("{from} does not hold more than it for its weight");
                return Alternative { node, reason: why.name().to_owned(), detail };
            }
            format!(
                "difference below the threshold: {from} has {} more than it for its weight, and may have {}",
                thousandths(difference),
                thousandths(limit)
            )
        }
        Rejection::MetadataGroup => "the metadata group is not moved for balance".to_owned(),
        Rejection::WaitsForNodes => "the shard waits for more nodes, and grows then".to_owned(),
        Rejection::PlacedByOperator => "an operator placed the shard lately, or has paused a move of it".to_owned(),
        Rejection::Later => "could take it; other moves come first, or none are made now".to_owned(),
    };
    Alternative { node, reason: why.name().to_owned(), detail }
}

/// A replica that cannot, or should not, leave its node.
pub(super) fn blocker(found: &flotilla_placement::Blocker, meta: &MetaState) -> Blocker {
    let (why, detail) = match found.why {
        Obstacle::NoNode => ("no_node", "no other node can take it".to_owned()),
        Obstacle::Disk { to, needs_bytes, free_bytes } => (
            "disk",
            format!(
                "{to} would take it, needs {needs_bytes} bytes for all that it would take, and may use {free_bytes}"
            ),
        ),
        Obstacle::Unsettled => {
            ("unsettled", "too few voters of the shard answer for it to change its replicas".to_owned())
        }
        Obstacle::Zone { to, with } => {
            ("zone", format!("{to} would take it, and bring replicas closer ({})", closeness(to, with, meta)))
        }
    };
    Blocker { shard: found.shard, replica: found.held.replica, node: found.held.node, why: why.to_owned(), detail }
}

/// The labels that two nodes share.
fn closeness(node: NodeId, with: NodeId, meta: &MetaState) -> String {
    let labels = |node| meta.node(node).map(|record| &record.locality.0).into_iter().flatten();
    let shared = labels(node).zip(labels(with)).take_while(|(a, b)| a == b);
    let shared: Vec<_> = shared.map(|((key, value), _)| format!("{key}={value}")).collect();
    format!("{}, as {with}", shared.join(","))
}

/// Why a replica goes or comes, in words.
fn words(reason: Reason, node: Option<NodeId>) -> String {
    let node = node.map_or_else(|| "its node".to_owned(), |node| node.to_string());
    match reason {
        Reason::UnderReplicated => "the shard has fewer replicas than desired".to_owned(),
        Reason::NodeDead => format!("{node} does not answer for longer than the grace period"),
        Reason::NodeLeaving => format!("{node} gives up its replicas"),
        Reason::NodeRemoved => format!("{node} was removed"),
        Reason::Surplus => "the shard has more replicas than desired".to_owned(),
        Reason::Spread => "replicas share more labels than necessary".to_owned(),
        Reason::Balance => format!("{node} holds more than its share"),
    }
}

fn undecided_words(undecided: &NonDecision) -> String {
    match undecided {
        NonDecision::Stuck { node, reason, .. } => {
            format!("replicas should go, because {}, and no other node can take them", words(*reason, Some(*node)))
        }
        NonDecision::Short { .. } => "shards have fewer replicas than desired, and no node for more".to_owned(),
        NonDecision::Unsettled { .. } => {
            "no healthy replica moves while shards carry out what was decided, or have a replica on a node that does not \
             answer"
                .to_owned()
        }
        NonDecision::Off => "moves are turned off: the setting balance_moves_max is 0".to_owned(),
        NonDecision::Held(Hold::RecentJoin) => {
            "no healthy replica moves for a while after a node has joined, because others may follow".to_owned()
        }
        NonDecision::Held(Hold::Cpu { used_milli }) => {
            format!("no healthy replica moves while the node that decides is busy: it uses {} % of its CPUs", used_milli / 10)
        }
        NonDecision::Balanced { difference, limit } => format!(
            "balanced: the fullest and the emptiest node differ by {} replicas for their weights, and may by {}",
            thousandths(*difference),
            thousandths(*limit)
        ),
        NonDecision::NoMove { difference, limit } => format!(
            "the fullest and the emptiest node differ by {} replicas for their weights, more than {}, and no replica can \
             move",
            thousandths(*difference),
            thousandths(*limit)
        ),
    }
}

fn status(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Live => "live",
        NodeStatus::Suspect => "suspect",
        NodeStatus::Dead => "dead",
        NodeStatus::Draining => "draining",
        NodeStatus::Leaving => "leaving",
        NodeStatus::Removed => "removed",
    }
}

/// Thousandths as a number with one decimal.
fn thousandths(number: i64) -> String {
    format!("{:.1}", number as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use flotilla_placement::PlanReplica;
    use flotilla_types::ReplicaId;

    use super::*;
    use crate::start::testing::Metadata;

    #[test]
    fn a_rejection_by_labels_names_them_and_the_node_that_shares_them() {
        let mut metadata = Metadata::of_nodes(2);
        for node in [1, 2] {
            metadata.label(node, &format!("region=eu,zone={node}"));
        }
        let meta = metadata.state();
        let why = Rejection::Closer { with: NodeId(1) };
        let found = alternative(&Rejected { node: NodeId(2), why }, Some(NodeId(9)), &meta);
        assert_eq!(
            (found.reason.as_str(), found.detail.as_str()),
            ("closer", "would bring replicas closer (region=eu, as n1)")
        );
        let held = PlanReplica { replica: ReplicaId(7), node: NodeId(3) };
        let why = Obstacle::Zone { to: NodeId(2), with: NodeId(1) };
        let found = blocker(&flotilla_placement::Blocker { shard: ShardId(4), held, why }, &meta);
        assert_eq!(found.detail, "n2 would take it, and bring replicas closer (region=eu, as n1)");
    }

    #[test]
    fn what_several_nodes_decided_is_one_list() {
        let entry =
            |at_ms| JournalEntry { at_ms, last_ms: at_ms, count: 1, verdict: Verdict::Undecided(NonDecision::Off) };
        let report =
            |times: &[u64]| PlacementReport { entries: times.iter().copied().map(entry).collect(), explanation: None };
        let reports = vec![(NodeId(1), Some(report(&[9, 3]))), (NodeId(2), None), (NodeId(3), Some(report(&[7, 1])))];
        let list = list(reports, 3, &MetaState::default());
        let shown: Vec<_> = list.decisions.iter().map(|entry| (entry.at_ms, entry.decided_by.0)).collect();
        assert_eq!((shown, list.silent), (vec![(9, 1), (7, 3), (3, 1)], vec![NodeId(2)]));
    }

    #[test]
    fn an_entry_says_what_is_done_to_which_replica_and_why() {
        let held = PlanReplica { replica: ReplicaId(7), node: NodeId(3) };
        let shown = |from, to, reason| {
            let decided = Decision { shard: ShardId(4), from, to, reason, rejected: Vec::new() };
            let entry = JournalEntry { at_ms: 1, last_ms: 2, count: 3, verdict: Verdict::Decided(decided) };
            let shown = decision(entry, NodeId(8), &MetaState::default());
            assert_eq!((shown.at_ms, shown.last_ms, shown.count), (1, 2, 3));
            (shown.action, shown.detail)
        };
        let to = Some(NodeId(5));
        assert_eq!(
            shown(Some(held), to, Reason::Balance),
            (PlacementAction::Move, "n3 holds more than its share".to_owned())
        );
        assert_eq!(shown(Some(held), None, Reason::Surplus).0, PlacementAction::Remove);
        assert_eq!(shown(None, to, Reason::UnderReplicated).0, PlacementAction::Add);
    }
}
