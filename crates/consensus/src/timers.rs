//! Which groups a tick must visit: those whose timers end with it.
//!
//! A group at rest counts no ticks. Whoever touches it next first makes up for the ticks that passed
//! ([`Group::advance_to`](crate::Group)), so each group behaves as if it had counted every one. What a tick
//! costs depends on the timers that end, not on the number of groups.
//!
//! Invariant: for each group whose timers run, a visit is queued no later than the tick with which the first
//! of them ends. Input often postpones that tick; the visit is then queued again when it comes, rather than
//! with every input.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::ReplicaId;

/// Visits by tick, then by replica.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    visits: BTreeMap<usize, BTreeSet<ReplicaId>>,
    /// The tick of each group's next visit. A visit at another tick has been replaced by an earlier one.
    queued: BTreeMap<ReplicaId, usize>,
}

impl Timers {
    /// Queues a visit at a tick, unless an earlier one is queued.
    pub(crate) fn visit_at(&mut self, replica: ReplicaId, tick: usize) {
        let queued = self.queued.entry(replica).or_insert(usize::MAX);
        if tick < *queued {
            *queued = tick;
            self.visits.entry(tick).or_default().insert(replica);
        }
    }

    /// Forgets a group.
    pub(crate) fn remove(&mut self, replica: ReplicaId) {
        self.queued.remove(&replica);
    }

    /// Takes the visits up to this tick.
    pub(crate) fn take_due(&mut self, now: usize) -> BTreeSet<ReplicaId> {
        let mut due = BTreeSet::new();
        while let Some(first) = self.visits.first_entry().filter(|first| *first.key() <= now) {
            let (tick, replicas) = first.remove_entry();
            for replica in replicas {
                if self.queued.get(&replica) == Some(&tick) {
                    self.queued.remove(&replica);
                    due.insert(replica);
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);

    #[test]
    fn a_group_is_visited_once_at_its_earliest_tick() {
        let mut timers = Timers::default();
        timers.visit_at(A, 9);
        timers.visit_at(A, 5);
        timers.visit_at(A, 7);
        timers.visit_at(B, 5);
        assert!(timers.take_due(4).is_empty());
        assert_eq!(timers.take_due(5), [A, B].into());
        assert!(timers.take_due(20).is_empty(), "later visits were replaced");
        timers.visit_at(A, 30);
        assert_eq!(timers.take_due(31), [A].into(), "a missed tick delays the visit");
        assert!(timers.visits.is_empty() && timers.queued.is_empty());
    }

    #[test]
    fn a_removed_group_is_not_visited() {
        let mut timers = Timers::default();
        timers.visit_at(A, 5);
        timers.remove(A);
        assert!(timers.take_due(5).is_empty());
        timers.visit_at(A, 6);
        assert_eq!(timers.take_due(6), [A].into());
    }
}
