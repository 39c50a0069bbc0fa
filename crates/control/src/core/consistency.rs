//! Compares the replicas of the shards that are led here, one shard at a time, and has the odd one given up.
//!
//! Each voter is asked what it says of its state; no records are read. A shard is compared soon after it has
//! changed, and not again before its turn; one that rests after it was found equal costs nothing.
//!
//! Invariants: a replica is ordered to be given up only by the leader of its shard, only when [`judge`] convicts
//! it, only while the configuration is not changing, and only while every wanted replica votes: so one at a time,
//! and those that agree are a quorum. If the leader itself is the odd one, it gives its leadership to one of the
//! others first, which then finds the same.

mod judge;
mod report;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_replication::{GroupStatus, ReplicaStatus, ShardChange};
use flotilla_types::{ClusterVersion, LogIndex, NodeId, ReplicaId, ShardId};

use self::judge::{Agreed, Judgement, Voter, judge};
pub use self::report::{COMPARISONS_LISTED_MAX, Comparisons};
use super::{Action, Outcome, Reconciler, View, fingerprints::Said, last_look::LastLook, lifecycle::is_rebuilding};

/// Between two comparisons, also of different shards, in milliseconds: what a node spends on it is bounded by
/// that.
const PASS_MS: u64 = 100;
/// From a change of a shard to its comparison, in milliseconds: followers learn of the commit meanwhile.
const SETTLE_MS: u64 = 1_000;
/// Between two comparisons of a shard, in milliseconds.
const AGAIN_MS: u64 = 10_000;
/// The same, while the last one was inconclusive for longer than that.
const AGAIN_LATER_MS: u64 = 60_000;
/// How long comparisons of a shard may be inconclusive before it is an alarm, in milliseconds.
pub const INCONCLUSIVE_MS_MAX: u64 = 3_600_000;
/// Handovers that an odd leader tries before it is given up as the leader, which ends its leadership as well.
const HANDOVERS_MAX: u32 = 3;
/// Between two folds that are ordered to compare the records of a shard with copies, in milliseconds.
const FOLD_AGAIN_MS: u64 = 3_600_000;
/// Between two such folds of different shards, in milliseconds: after a node was replaced there are many copies.
const FOLDS_PACE_MS: u64 = 5_000;
/// Comparisons that wait for the base of a fold which some voters have made: it may be skipped by others.
const BASE_WAITS_MAX: u32 = 10;
/// Average size of the pieces of such a base, in bytes: as the state engine chooses it.
const PIECE_BYTES: u32 = 1 << 20;

/// What comparisons of a shard say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShardConsistency {
    /// All voters were compared and are equal.
    Equal,
    /// Too little could be compared.
    Inconclusive,
    /// Two have different states.
    Different,
    /// It has one voter: there is nothing to compare it with.
    Single,
}

/// The last comparison of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// What it says.
    pub verdict: ShardConsistency,
    /// The entry up to which the voters were compared, or after which they differ.
    pub index: Option<LogIndex>,
    /// The fold whose bases were compared.
    pub fold: Option<LogIndex>,
    /// When, in Unix milliseconds; `None` before the first one.
    pub at_ms: Option<u64>,
    /// Since when comparisons have said so, in Unix milliseconds.
    pub since_ms: u64,
    /// Of different replicas: whether one is given up, because a majority agrees without it.
    pub is_seen_to: bool,
    /// Why it is not equal.
    pub reason: String,
}

/// What a comparison found that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A comparison was made.
    Compared(ShardConsistency),
    /// Replicas have different states.
    Different {
        /// The shard.
        shard: ShardId,
        /// The one that is given up, with its node; `None` if no majority agrees.
        odd: Option<(ReplicaId, NodeId)>,
        /// How they differ.
        reason: String,
    },
    /// Nothing could be compared for [`INCONCLUSIVE_MS_MAX`].
    Inconclusive {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// All replicas are equal, after another finding.
    Equal {
        /// The shard.
        shard: ShardId,
    },
}

/// What is known of a shard that is led here.
#[derive(Debug, Default)]
struct Known {
    due_ms: Option<u64>,
    compared_ms: Option<u64>,
    agreed: Agreed,
    /// Whether something was reported of it that has not ended.
    alarmed: bool,
    fold_ordered_ms: Option<u64>,
    /// Comparisons since the shard has changed that waited for the base of a fold.
    base_waits: u32,
}

/// Compares the replicas of the shards that are led here.
#[derive(Debug, Default)]
pub struct Consistency {
    last_look: LastLook,
    known: BTreeMap<ShardId, Known>,
    due: BTreeSet<(u64, ShardId)>,
    shown: BTreeMap<ShardId, Comparison>,
    /// Those of them that were not taken yet.
    changed: BTreeSet<ShardId>,
    /// The voters whose answers are awaited, and when they were asked.
    asked: Option<(ShardId, Vec<Voter>)>,
    answers: Vec<(ReplicaId, Said)>,
    /// How often the leadership of a shard whose replica here is the odd one was handed over from here. Each may come
    /// back before the other leader has compared.
    handovers: BTreeMap<ShardId, u32>,
    /// When a fold was last ordered.
    fold_ordered_ms: Option<u64>,
    findings: Vec<Finding>,
}

impl Consistency {
    /// The last comparisons that have changed since the last call; `None` for a shard that is not led here any
    /// more.
    pub fn take_changes(&mut self) -> Vec<(ShardId, Option<Comparison>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|shard| (shard, self.shown.get(&shard).cloned())).collect()
    }

    /// What was found since the last call.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Schedules the shards that have changed, and forgets those that are not led here any more.
    fn look(&mut self, view: &View<'_>) {
        for shard in self.last_look.changes(view, has_moved) {
            let Some((_, group)) = view.leader_of(shard) else {
                self.forget(shard);
                if view.replicas.of_shard(shard).next().is_none() {
                    self.handovers.remove(&shard);
                }
                if self.shown.remove(&shard).is_some() {
                    self.changed.insert(shard);
                }
                continue;
            };
            if group.conf.voters.len() < 2 {
                self.show_single(shard, view.wall_ms);
                continue;
            }
            let known = self.known.entry(shard).or_default();
            known.base_waits = 0;
            if known.due_ms.is_none() {
                let again_ms = known.compared_ms.map_or(0, |compared_ms| compared_ms + AGAIN_MS);
                let due_ms = again_ms.max(view.now_ms + SETTLE_MS);
                self.schedule(shard, due_ms);
            }
            if self.shown.get(&shard).is_none_or(|shown| shown.verdict == ShardConsistency::Single) {
                let reason = "it was not compared yet, since this node leads it".to_owned();
                self.show(shard, ShardConsistency::Inconclusive, view.wall_ms, |shown| shown.reason = reason);
            }
        }
    }

    fn forget(&mut self, shard: ShardId) {
        if let Some(due_ms) = self.known.remove(&shard).and_then(|known| known.due_ms) {
            self.due.remove(&(due_ms, shard));
        }
    }

    fn schedule(&mut self, shard: ShardId, due_ms: u64) {
        if let Some(known) = self.known.get_mut(&shard) {
            if let Some(before) = known.due_ms.replace(due_ms) {
                self.due.remove(&(before, shard));
            }
            self.due.insert((due_ms, shard));
        }
    }

    fn show_single(&mut self, shard: ShardId, wall_ms: u64) {
        self.forget(shard);
        if self.shown.get(&shard).is_none_or(|shown| shown.verdict != ShardConsistency::Single) {
            self.show(shard, ShardConsistency::Single, wall_ms, |shown| {
                shown.reason = "it has one replica that votes".to_owned();
            });
        }
    }

    /// Shows a verdict. What was shown before stays, as far as `change` does not say otherwise.
    fn show(
        &mut self,
        shard: ShardId,
        verdict: ShardConsistency,
        wall_ms: u64,
        change: impl FnOnce(&mut Comparison),
    ) -> u64 {
        let before = self.shown.get(&shard);
        let since_ms = before.filter(|before| before.verdict == verdict).map_or(wall_ms, |before| before.since_ms);
        let (index, fold, at_ms, reason) = (None, None, None, String::new());
        let mut shown = Comparison { verdict, index, fold, at_ms, since_ms, is_seen_to: false, reason };
        change(&mut shown);
        self.shown.insert(shard, shown);
        self.changed.insert(shard);
        since_ms
    }

    /// The next shard whose turn it is, to be asked about.
    fn ask_next(&mut self, view: &View<'_>) -> Vec<Action> {
        let Some((_, shard)) = self.due.first().copied().filter(|(due_ms, _)| *due_ms <= view.now_ms) else {
            return Vec::new();
        };
        self.due.pop_first();
        let Some(known) = self.known.get_mut(&shard) else { return Vec::new() };
        known.due_ms = None;
        known.compared_ms = Some(view.now_ms);
        let Some((replica, group)) = view.leader_of(shard) else { return Vec::new() };
        if !group.conf.voters_outgoing.is_empty() {
            // It is being changed, and then looked at again.
            self.schedule(shard, view.now_ms + AGAIN_MS);
            return Vec::new();
        }
        let start = |node| view.meta.node(node).and_then(|node| node.start.as_ref());
        let build = |node| start(node).map_or_else(String::new, |start| start.build.clone());
        let voters = group.conf.voters.iter().map(|voter| {
            let node = replica.descriptor.node_of(*voter).unwrap_or(NodeId(0));
            Voter { replica: *voter, node, said: None, build: build(node) }
        });
        let voters: Vec<_> = voters.collect();
        let of = voters.iter().map(|voter| (voter.replica, voter.node)).collect();
        self.asked = Some((shard, voters));
        self.answers.clear();
        vec![Action::ReadFingerprints { shard, of }]
    }

    /// Judges what the voters have answered since the last pass.
    fn conclude(&mut self, view: &View<'_>) -> Vec<Action> {
        let Some((shard, mut voters)) = self.asked.take() else { return Vec::new() };
        for (replica, said) in self.answers.drain(..) {
            if let Some(voter) = voters.iter_mut().find(|voter| voter.replica == replica) {
                voter.said = Some(said);
            }
        }
        let (Some((replica, group)), Some(known)) = (view.leader_of(shard), self.known.get_mut(&shard)) else {
            return Vec::new();
        };
        if group.conf.voters.iter().ne(voters.iter().map(|voter| &voter.replica)) {
            self.schedule(shard, view.now_ms + SETTLE_MS);
            return Vec::new();
        }
        match judge(&voters, known.agreed) {
            Judgement::Equal { index, fold, agreed } => {
                known.agreed = agreed;
                self.on_equal(view, shard, &voters, (index, fold))
            }
            Judgement::Inconclusive(reason) => {
                self.on_inconclusive(view, shard, reason);
                Vec::new()
            }
            Judgement::Different { index, verdict } => {
                self.findings.push(Finding::Compared(ShardConsistency::Different));
                let reason = match &verdict {
                    Ok(convicted) => format!(
                        "replica {} on {} differs from a majority after entry {index}",
                        convicted.replica, convicted.node
                    ),
                    Err(reason) => format!("{reason} (after entry {index})"),
                };
                if !std::mem::replace(&mut known.alarmed, true) {
                    let odd = verdict.as_ref().ok().map(|convicted| (convicted.replica, convicted.node));
                    self.findings.push(Finding::Different { shard, odd, reason: reason.clone() });
                }
                self.show(shard, ShardConsistency::Different, view.wall_ms, |shown| {
                    (shown.index, shown.at_ms, shown.reason) = (Some(index), Some(view.wall_ms), reason);
                    shown.is_seen_to = verdict.is_ok();
                });
                self.schedule(shard, view.now_ms + AGAIN_MS);
                verdict.map_or_else(|_| Vec::new(), |convicted| self.give_up(view, (replica, group), &convicted))
            }
        }
    }

    fn on_equal(
        &mut self,
        view: &View<'_>,
        shard: ShardId,
        voters: &[Voter],
        (index, fold): (LogIndex, Option<LogIndex>),
    ) -> Vec<Action> {
        self.findings.push(Finding::Compared(ShardConsistency::Equal));
        self.show(shard, ShardConsistency::Equal, view.wall_ms, |shown| {
            (shown.index, shown.fold, shown.at_ms) = (Some(index), fold, Some(view.wall_ms));
        });
        let Some(known) = self.known.get_mut(&shard) else { return Vec::new() };
        self.handovers.remove(&shard);
        if std::mem::take(&mut known.alarmed) {
            self.findings.push(Finding::Equal { shard });
        }
        // Entries that were applied meanwhile are compared when it is the shard's turn again.
        let is_behind = view.leader_of(shard).is_some_and(|(replica, _)| replica.applied > index);
        let waits = lacks_base(voters) && known.base_waits < BASE_WAITS_MAX;
        known.base_waits += u32::from(waits);
        if is_behind || waits {
            self.schedule(shard, view.now_ms + if is_behind { AGAIN_MS } else { AGAIN_LATER_MS });
        }
        self.order_fold(view, shard, voters)
    }

    /// Copies of another replica are witnesses once their records were compared, too: orders a fold for that.
    fn order_fold(&mut self, view: &View<'_>, shard: ShardId, voters: &[Voter]) -> Vec<Action> {
        let Some(known) = self.known.get_mut(&shard) else { return Vec::new() };
        let copied = |voter: &Voter| voter.said.as_ref()?.fingerprints.chain.as_ref()?.copied;
        let is_unproven = voters.iter().filter_map(copied).any(|copied| known.agreed.records <= copied);
        let is_over = |at_ms: Option<u64>, pause_ms| at_ms.is_none_or(|at_ms| at_ms + pause_ms <= view.now_ms);
        if !is_unproven || !is_over(known.fold_ordered_ms, FOLD_AGAIN_MS) {
            return Vec::new();
        }
        // A fold rewrites what a replica that is being built has fetched, or is about to.
        let is_building = view.leader_of(shard).is_some_and(|(_, group)| !group.conf.learners.is_empty());
        if is_building || !is_over(self.fold_ordered_ms, FOLDS_PACE_MS) {
            self.schedule(shard, view.now_ms + AGAIN_MS);
            return Vec::new();
        }
        known.fold_ordered_ms = Some(view.now_ms);
        self.fold_ordered_ms = Some(view.now_ms);
        self.schedule(shard, view.now_ms + AGAIN_MS);
        vec![Action::ChangeShard { shard, change: ShardChange::Fold { piece_bytes: PIECE_BYTES } }]
    }

    fn on_inconclusive(&mut self, view: &View<'_>, shard: ShardId, reason: String) {
        self.findings.push(Finding::Compared(ShardConsistency::Inconclusive));
        let since_ms = self.show(shard, ShardConsistency::Inconclusive, view.wall_ms, |shown| {
            (shown.at_ms, shown.reason) = (Some(view.wall_ms), reason.clone());
        });
        let for_ms = view.wall_ms.saturating_sub(since_ms);
        self.schedule(shard, view.now_ms + if for_ms > AGAIN_LATER_MS { AGAIN_LATER_MS } else { AGAIN_MS });
        if let Some(known) = self.known.get_mut(&shard)
            && for_ms >= INCONCLUSIVE_MS_MAX
            && !std::mem::replace(&mut known.alarmed, true)
        {
            self.findings.push(Finding::Inconclusive { shard, reason });
        }
    }

    /// The next step to give up a replica that differs from a majority.
    fn give_up(
        &mut self,
        view: &View<'_>,
        (replica, group): (&ReplicaStatus, &GroupStatus),
        convicted: &judge::Conviction,
    ) -> Vec<Action> {
        let shard = replica.shard;
        let is_settled = group.conf.voters_outgoing.is_empty()
            && view.meta.shard(shard).is_some_and(|record| !is_rebuilding(record));
        if !is_settled {
            return Vec::new();
        }
        let handovers = self.handovers.get(&shard).copied().unwrap_or(0);
        if convicted.replica == replica.replica && handovers < HANDOVERS_MAX {
            // Not always to the same one.
            let heirs: Vec<_> =
                convicted.majority.iter().filter_map(|heir| replica.descriptor.node_of(*heir)).collect();
            let heir = heirs.get(handovers as usize % heirs.len().max(1)).copied();
            self.handovers.insert(shard, handovers + 1);
            return heir.map(|to| Action::Transfer { shard, to }).into_iter().collect();
        }
        let (node, evidence) = (convicted.node, convicted.evidence);
        vec![Action::GiveUp { node, shard, replica: convicted.replica, evidence }]
    }
}

/// Whether a voter has made a base that another one may still make.
fn lacks_base(voters: &[Voter]) -> bool {
    let last = |voter: &Voter| voter.said.as_ref()?.fingerprints.bases.last().map(|(fold, _)| *fold);
    let lasts: BTreeSet<_> = voters.iter().map(last).collect();
    lasts.len() > 1
}

/// Whether a change of a replica is a reason to compare its shard.
fn has_moved(before: Option<&ReplicaStatus>, after: Option<&ReplicaStatus>) -> bool {
    let of = |replica: &ReplicaStatus| {
        let group = replica.group.as_ref().map(|group| (group.role, group.term, group.conf.clone()));
        (replica.applied, replica.checkpoint, group)
    };
    before.map(of) != after.map(of)
}

impl Reconciler for Consistency {
    fn interval_ms(&self) -> u64 {
        PASS_MS
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        if view.meta.cluster_version() < ClusterVersion::CHAINS {
            return Vec::new();
        }
        self.look(view);
        let mut actions = self.conclude(view);
        if actions.is_empty() {
            actions = self.ask_next(view);
        }
        actions
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        if let Outcome::Fingerprints(said) = outcome {
            self.answers.extend(said);
        }
    }
}

#[cfg(test)]
mod tests;
