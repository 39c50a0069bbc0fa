//! The tries of one request: whom to ask next, and how long to wait before.

use std::collections::BTreeSet;

use flotilla_types::NodeId;

/// Shortest pause after every candidate was asked in vain, in milliseconds.
const PAUSE_MS_MIN: u64 = 5;
/// Longest pause, in milliseconds. An election takes a few hundred.
const PAUSE_MS_MAX: u64 = 50;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask this node.
    Ask(NodeId),
    /// Wait so many milliseconds, then look again: a leader may have been elected or become known.
    Wait(u64),
    /// The deadline is here.
    GiveUp,
}

/// Why a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The node does not lead the shard; it may know who does.
    NotLeader(Option<NodeId>),
    /// The node cannot be reached, does not answer, or holds no replica.
    Unreachable,
    /// The node leads and is busy, or its replica is not ready: the same one later.
    Later,
}

/// The tries of one request.
#[derive(Debug, Clone)]
pub struct Attempts {
    deadline_ms: u64,
    /// Asked since the last pause.
    asked: BTreeSet<NodeId>,
    /// Named by the last refusal.
    named: Option<NodeId>,
    pause_ms: u64,
    wait_first: bool,
}

impl Attempts {
    /// Tries until `deadline_ms` on the caller's monotonic clock.
    #[must_use]
    pub fn new(deadline_ms: u64) -> Self {
        Self { deadline_ms, asked: BTreeSet::new(), named: None, pause_ms: PAUSE_MS_MIN, wait_first: false }
    }

    /// Whom to ask: the node that the last refusal named, else the hinted leader, else any replica, each at most once between
    /// two pauses.
    pub fn next(&mut self, now_ms: u64, hint: Option<NodeId>, replicas: impl IntoIterator<Item = NodeId>) -> Step {
        if now_ms >= self.deadline_ms {
            return Step::GiveUp;
        }
        if !std::mem::take(&mut self.wait_first) {
            let mut candidates = self.named.take().into_iter().chain(hint).chain(replicas);
            if let Some(node) = candidates.find(|node| !self.asked.contains(node)) {
                self.asked.insert(node);
                return Step::Ask(node);
            }
        }
        self.asked.clear();
        let pause_ms = self.pause_ms.min(self.deadline_ms - now_ms);
        self.pause_ms = (2 * self.pause_ms).min(PAUSE_MS_MAX);
        Step::Wait(pause_ms)
    }

    /// The last try failed.
    pub fn failed(&mut self, failure: Failure) {
        match failure {
            Failure::NotLeader(named) => self.named = named,
            Failure::Unreachable => {}
            Failure::Later => self.wait_first = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICAS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    #[test]
    fn the_hinted_leader_is_asked_first_and_every_replica_before_a_pause() {
        let mut attempts = Attempts::new(1_000);
        let mut asked = Vec::new();
        while let Step::Ask(node) = attempts.next(0, Some(NodeId(2)), REPLICAS) {
            attempts.failed(Failure::Unreachable);
            asked.push(node);
        }
        assert_eq!(asked, [NodeId(2), NodeId(1), NodeId(3)]);
        assert_eq!(attempts.next(0, None, REPLICAS), Step::Ask(NodeId(1)));
    }

    #[test]
    fn a_refusal_that_names_the_leader_is_followed() {
        let mut attempts = Attempts::new(1_000);
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Ask(NodeId(1)));
        attempts.failed(Failure::NotLeader(Some(NodeId(3))));
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Ask(NodeId(3)));
    }

    #[test]
    fn a_busy_leader_is_asked_again_only_after_a_pause() {
        let mut attempts = Attempts::new(1_000);
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Ask(NodeId(1)));
        attempts.failed(Failure::Later);
        assert!(matches!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Wait(_)));
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Ask(NodeId(1)));
    }

    #[test]
    fn nothing_is_tried_at_the_deadline_and_no_pause_passes_it() {
        let mut attempts = Attempts::new(7);
        attempts.failed(Failure::Later);
        assert_eq!(attempts.next(5, None, REPLICAS), Step::Wait(2));
        assert_eq!(attempts.next(7, None, REPLICAS), Step::GiveUp);
    }
}
