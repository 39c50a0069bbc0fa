//! The attempts of one request: which node to try next, and how long to wait before.

use std::collections::BTreeSet;

use flotilla_types::NodeId;

/// First pause after every candidate has failed, in milliseconds.
const PAUSE_MS_MIN: u64 = 5;
/// Longest pause, in milliseconds. An election takes a few hundred.
const PAUSE_MS_MAX: u64 = 50;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send the request to this node.
    Try(NodeId),
    /// Wait this many milliseconds, then call [`Attempts::next`] again: a leader may have been elected by
    /// then.
    Wait(u64),
    /// The deadline has passed.
    GiveUp,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The node does not lead the shard; it may know who does.
    NotLeader(Option<NodeId>),
    /// The node cannot be reached, does not answer, or holds no replica.
    Unreachable,
    /// The node leads and is busy, or its replica is not ready: try the same node later.
    Later,
    /// The node answers the request in another form: try it at once.
    Again,
}

/// The attempts of one request.
#[derive(Debug, Clone)]
pub struct Attempts {
    deadline_ms: u64,
    /// Tried since the last pause.
    tried: BTreeSet<NodeId>,
    last: Option<NodeId>,
    /// The leader named by the last refusal.
    redirect: Option<NodeId>,
    pause_ms: u64,
    wait_first: bool,
}

impl Attempts {
    /// Retries until `deadline_ms` on the caller's monotonic clock.
    #[must_use]
    pub fn new(deadline_ms: u64) -> Self {
        Self {
            deadline_ms,
            tried: BTreeSet::new(),
            last: None,
            redirect: None,
            pause_ms: PAUSE_MS_MIN,
            wait_first: false,
        }
    }

    /// The next step. Candidates are the node that the last refusal named, then the hinted leader, then any
    /// replica, each at most once between two pauses.
    pub fn next(&mut self, now_ms: u64, hint: Option<NodeId>, replicas: impl IntoIterator<Item = NodeId>) -> Step {
        if now_ms >= self.deadline_ms {
            return Step::GiveUp;
        }
        if !std::mem::take(&mut self.wait_first) {
            let mut candidates = self.redirect.take().into_iter().chain(hint).chain(replicas);
            if let Some(node) = candidates.find(|node| !self.tried.contains(node)) {
                self.tried.insert(node);
                self.last = Some(node);
                return Step::Try(node);
            }
        }
        self.tried.clear();
        let pause_ms = self.pause_ms.min(self.deadline_ms - now_ms);
        self.pause_ms = (2 * self.pause_ms).min(PAUSE_MS_MAX);
        Step::Wait(pause_ms)
    }

    /// Records that the last attempt failed.
    pub fn on_failure(&mut self, failure: Failure) {
        match failure {
            Failure::NotLeader(leader) => self.redirect = leader,
            Failure::Unreachable => {}
            Failure::Later => self.wait_first = true,
            Failure::Again => {
                self.redirect = self.last;
                self.tried.retain(|node| Some(*node) != self.last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICAS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    #[test]
    fn hinted_leader_is_tried_first_and_every_replica_before_a_pause() {
        let mut attempts = Attempts::new(1_000);
        let mut tried = Vec::new();
        while let Step::Try(node) = attempts.next(0, Some(NodeId(2)), REPLICAS) {
            attempts.on_failure(Failure::Unreachable);
            tried.push(node);
        }
        assert_eq!(tried, [NodeId(2), NodeId(1), NodeId(3)]);
        assert_eq!(attempts.next(0, None, REPLICAS), Step::Try(NodeId(1)));
    }

    #[test]
    fn redirect_to_the_leader_is_followed() {
        let mut attempts = Attempts::new(1_000);
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Try(NodeId(1)));
        attempts.on_failure(Failure::NotLeader(Some(NodeId(3))));
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Try(NodeId(3)));
    }

    #[test]
    fn busy_leader_is_retried_only_after_a_pause() {
        let mut attempts = Attempts::new(1_000);
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Try(NodeId(1)));
        attempts.on_failure(Failure::Later);
        assert!(matches!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Wait(_)));
        assert_eq!(attempts.next(0, Some(NodeId(1)), REPLICAS), Step::Try(NodeId(1)));
    }

    #[test]
    fn node_that_wants_another_form_is_tried_again_at_once() {
        let mut attempts = Attempts::new(1_000);
        assert_eq!(attempts.next(0, Some(NodeId(2)), REPLICAS), Step::Try(NodeId(2)));
        attempts.on_failure(Failure::Again);
        assert_eq!(attempts.next(0, Some(NodeId(3)), REPLICAS), Step::Try(NodeId(2)));
        attempts.on_failure(Failure::Unreachable);
        assert_eq!(attempts.next(0, Some(NodeId(3)), REPLICAS), Step::Try(NodeId(3)));
    }

    #[test]
    fn no_attempt_starts_at_the_deadline_and_no_pause_exceeds_it() {
        let mut attempts = Attempts::new(7);
        attempts.on_failure(Failure::Later);
        assert_eq!(attempts.next(5, None, REPLICAS), Step::Wait(2));
        assert_eq!(attempts.next(7, None, REPLICAS), Step::GiveUp);
    }
}
