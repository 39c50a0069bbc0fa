//! What placement decided lately and what it left, with reasons: for operators. It decides nothing.
//!
//! A verdict that one pass after the other repeats is one entry, which says since when and how often. Each node
//! remembers what it decided itself.

use std::collections::{BTreeMap, VecDeque};

use flotilla_placement::{Decision, Hold, NonDecision, Plan};

/// Entries that are kept; the oldest are dropped first.
pub const JOURNAL_MAX: usize = 1_000;
/// Rejected nodes that a decision keeps, at most.
pub(super) const REJECTED_MAX: usize = 32;

/// What a pass has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A change that was proposed.
    Decided(Decision),
    /// Something that was left as it is.
    Undecided(NonDecision),
}

/// A verdict of one pass or of several that followed each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// When it was reached first and last, in Unix milliseconds.
    pub at_ms: u64,
    /// See `at_ms`.
    pub last_ms: u64,
    /// How many passes reached it.
    pub count: u64,
    /// The verdict, as of the last of these passes.
    pub verdict: Verdict,
}

/// What tells verdicts apart, whatever their numbers are.
type Key = [u64; 4];

impl Verdict {
    fn key(&self) -> Key {
        match self {
            Self::Decided(Decision { shard, from, to, .. }) => {
                [0, shard.0, from.map_or(0, |from| from.replica.0), to.map_or(0, |to| to.0)]
            }
            Self::Undecided(NonDecision::Stuck { node, reason, .. }) => [1, node.0, *reason as u64, 0],
            Self::Undecided(NonDecision::Short { .. }) => [2, 0, 0, 0],
            Self::Undecided(NonDecision::Unsettled { .. }) => [3, 0, 0, 0],
            Self::Undecided(NonDecision::Off) => [4, 0, 0, 0],
            Self::Undecided(NonDecision::Held(Hold::RecentJoin)) => [5, 0, 0, 0],
            Self::Undecided(NonDecision::Held(Hold::Cpu { .. })) => [6, 0, 0, 0],
            Self::Undecided(NonDecision::Balanced { .. }) => [7, 0, 0, 0],
            Self::Undecided(NonDecision::NoMove { .. }) => [8, 0, 0, 0],
        }
    }
}

/// The entries of a plan that was not recorded.
pub(super) fn entries(plan: &Plan, wall_ms: u64) -> Vec<JournalEntry> {
    let entry = |verdict| JournalEntry { at_ms: wall_ms, last_ms: wall_ms, count: 1, verdict };
    verdicts(plan).map(entry).collect()
}

fn verdicts(plan: &Plan) -> impl Iterator<Item = Verdict> {
    let decided = plan.decisions.iter().map(|decision| {
        let mut decision = decision.clone();
        decision.rejected.truncate(REJECTED_MAX);
        Verdict::Decided(decision)
    });
    decided.chain(plan.undecided.iter().cloned().map(Verdict::Undecided))
}

/// The last entries.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: VecDeque<JournalEntry>,
    /// How many entries were dropped.
    dropped: u64,
    /// The entries of the last pass, counted from the first that there ever was.
    current: BTreeMap<Key, u64>,
    /// Verdicts of the last pass that the one before had not reached.
    fresh: Vec<Verdict>,
}

impl Journal {
    /// Records a pass.
    pub(super) fn record(&mut self, plan: &Plan, wall_ms: u64) {
        let before = std::mem::take(&mut self.current);
        self.fresh.clear();
        for verdict in verdicts(plan) {
            let key = verdict.key();
            let known =
                before.get(&key).and_then(|at| Some((*at, usize::try_from(at.checked_sub(self.dropped)?).ok()?)));
            if let Some((at, position)) = known
                && let Some(entry) = self.entries.get_mut(position)
            {
                entry.last_ms = wall_ms;
                entry.count += 1;
                entry.verdict = verdict;
                self.current.insert(key, at);
                continue;
            }
            if self.entries.len() == JOURNAL_MAX {
                self.entries.pop_front();
                self.dropped += 1;
            }
            self.fresh.push(verdict.clone());
            self.current.insert(key, self.dropped + self.entries.len() as u64);
            self.entries.push_back(JournalEntry { at_ms: wall_ms, last_ms: wall_ms, count: 1, verdict });
        }
    }

    /// Verdicts of the last pass that the one before had not reached.
    pub(super) fn fresh(&self) -> &[Verdict] {
        &self.fresh
    }

    /// The newest entries: those that are said again and again are as new as their beginning.
    pub(super) fn newest(&self, limit: usize) -> Vec<JournalEntry> {
        self.entries.iter().rev().take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_placement::{PlanReplica, Reason, Rejected, Rejection};
    use flotilla_types::{NodeId, ReplicaId, ShardId};

    use super::*;

    fn balanced(difference: i64) -> NonDecision {
        NonDecision::Balanced { difference, limit: 1_000 }
    }

    fn decision(shard: u64) -> Decision {
        Decision {
            shard: ShardId(shard),
            from: Some(PlanReplica { replica: ReplicaId(shard), node: NodeId(1) }),
            to: Some(NodeId(2)),
            reason: Reason::Balance,
            rejected: vec![Rejected { node: NodeId(3), why: Rejection::Hash }; 2 * REJECTED_MAX],
        }
    }

    fn plan(decisions: &[u64], undecided: &[NonDecision]) -> Plan {
        Plan { decisions: decisions.iter().map(|shard| decision(*shard)).collect(), undecided: undecided.to_vec() }
    }

    #[test]
    fn what_is_repeated_is_one_entry_with_its_newest_numbers() {
        let mut journal = Journal::default();
        for (at, difference) in [(10, 1), (20, 2), (30, 3)] {
            journal.record(&plan(&[], &[balanced(difference), NonDecision::Off]), at);
            assert_eq!(journal.fresh().len(), if at == 10 { 2 } else { 0 });
        }
        journal.record(&plan(&[7], &[NonDecision::Off]), 40);
        journal.record(&plan(&[], &[balanced(4)]), 50);
        let shown: Vec<_> = journal
            .newest(9)
            .into_iter()
            .map(|entry| (entry.at_ms, entry.last_ms, entry.count, entry.verdict))
            .collect();
        let decided = Decision { rejected: decision(7).rejected[..REJECTED_MAX].to_vec(), ..decision(7) };
        let undecided = Verdict::Undecided;
        assert_eq!(
            shown,
            [
                (50, 50, 1, undecided(balanced(4))),
                (40, 40, 1, Verdict::Decided(decided)),
                (10, 40, 4, undecided(NonDecision::Off)),
                (10, 30, 3, undecided(balanced(3))),
            ]
        );
        assert_eq!(journal.newest(1).len(), 1);
    }

    #[test]
    fn the_oldest_entries_are_dropped_and_what_lasts_is_not_said_of_another() {
        let mut journal = Journal::default();
        for pass in 0..2 * JOURNAL_MAX as u64 {
            journal.record(&plan(&[pass], &[NonDecision::Off]), pass);
            assert!(journal.entries.len() <= JOURNAL_MAX);
        }
        let entries = journal.newest(JOURNAL_MAX);
        assert_eq!(entries.len(), JOURNAL_MAX);
        let repeated = |entry: &&JournalEntry| entry.count > 1;
        assert!(entries.iter().filter(repeated).all(|entry| entry.verdict == Verdict::Undecided(NonDecision::Off)));
    }
}
