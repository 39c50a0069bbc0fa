//! Upkeep: entries without commands, by which state machines do work that depends on time also in shards that
//! no client writes to.
//!
//! Invariants: only leaders propose it, one entry of a shard at a time, and only while nothing else of the
//! shard is in flight; a tick visits only shards whose upkeep is due, and proposes for a bounded number.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::ReplicaId;

use super::Core;
use crate::Batch;

/// How long upkeep is due before it is proposed, in milliseconds. Commands often come first and do the same;
/// records that expire one by one cost an entry per shard in this time.
const UPKEEP_DELAY_MS: u64 = 1_000;
/// Upkeep that a node proposes in one tick: so much of its time goes into it at most.
const UPKEEPS_PER_TICK: usize = 4;
/// Pause before a shard that is busy is looked at again, in milliseconds.
const RETRY_MS: u64 = 1_000;

/// The shards led here whose upkeep will be due, by time.
#[derive(Debug, Default)]
pub(super) struct UpkeepQueue {
    by_time: BTreeSet<(u64, ReplicaId)>,
    times: BTreeMap<ReplicaId, u64>,
}

impl UpkeepQueue {
    /// Sets when a replica is visited (Unix milliseconds), or that it is not.
    pub(super) fn set(&mut self, replica: ReplicaId, at_ms: Option<u64>) {
        let before = match at_ms {
            Some(at_ms) => self.times.insert(replica, at_ms),
            None => self.times.remove(&replica),
        };
        if before == at_ms {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, replica));
        }
        self.by_time.extend(at_ms.map(|at_ms| (at_ms, replica)));
    }

    /// Takes the replica that has been due for the longest time.
    fn take_due(&mut self, now_ms: u64) -> Option<ReplicaId> {
        let (_, replica) = self.by_time.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms)?;
        self.set(replica, None);
        Some(replica)
    }
}

impl<T> Core<T> {
    /// The state machine said when its upkeep is due. It does after each entry, so also after the first one of
    /// a leader's term.
    pub(super) fn on_upkeep_due(&mut self, id: ReplicaId, due_ms: Option<u64>) {
        let leads = self.replicas.get(&id).is_some_and(|replica| replica.leads());
        let due_ms = due_ms.filter(|_| leads);
        self.schedule.upkeep.set(id, due_ms.map(|due_ms| due_ms.saturating_add(UPKEEP_DELAY_MS)));
    }

    pub(super) fn propose_due_upkeep(&mut self) {
        if self.is_clock_ahead() {
            return;
        }
        for _ in 0..UPKEEPS_PER_TICK {
            let Some(id) = self.schedule.upkeep.take_due(self.wall_ms) else { return };
            self.schedule.visits += 1;
            // Once it is applied, the state machine says when the next one is due.
            if !self.propose_upkeep(id) {
                self.schedule.upkeep.set(id, Some(self.wall_ms.saturating_add(RETRY_MS)));
            }
        }
    }

    /// `false` if it must be tried again.
    fn propose_upkeep(&mut self, id: ReplicaId) -> bool {
        let Some(replica) = self.replicas.get_mut(&id).filter(|replica| replica.leads()) else { return true };
        if replica.descriptor.is_frozen()
            || !replica.may_propose()
            || !replica.inflight.is_empty()
            || replica.is_backlogged(&self.config)
        {
            return false;
        }
        let timestamp = replica.clock.advance(self.wall_ms);
        let payload = Batch { timestamp, refs: flotilla_types::Refs::NONE, commands: Vec::new() }.encode();
        let Ok(index) = self.raft.propose(id, payload, &mut self.raft_effects) else { return false };
        replica.clock = timestamp;
        // No caller waits for its outcome.
        replica.inflight.push_back((index, replica.term, Vec::new()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_taken_in_the_order_of_their_times() {
        let mut queue = UpkeepQueue::default();
        for (replica, at_ms) in [(1, Some(30)), (2, Some(10)), (3, Some(20)), (1, Some(5)), (3, None), (4, Some(10))] {
            queue.set(ReplicaId(replica), at_ms);
        }
        assert_eq!(queue.take_due(4), None);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take_due(10)).map(|replica| replica.0).collect();
        assert_eq!(taken, [1, 2, 4]);
        assert!(queue.by_time.is_empty() && queue.times.is_empty());
    }
}
