//! The tries of one request to a shard: whom to ask, what a failure means, and what the caller is told in the end.
//!
//! Invariant: once a try may have been proposed, later failures are [`ShardError::Unknown`]. Repeating is harmless, because state
//! machines know a command again.

use flotilla_replication::RequestError;
use flotilla_route::{Attempts, Failure, Step};
use flotilla_types::{NodeId, ShardId};

use super::Known;

/// A try never takes longer than this, so that a node that died does not use up the whole deadline.
const TRY_MS_MAX: u64 = 1_500;

/// Why a shard gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// No leader could be reached within the deadline. Nothing was written.
    #[error("the shard has no leader that can be reached")]
    Unavailable,
    /// The leader refused for want of capacity until the deadline. Nothing was written.
    #[error("the shard is busy")]
    Busy,
    /// The shard changed its range, or is gone. Nothing was written; refresh the map and route again.
    #[error("the shard map is outdated")]
    Stale,
    /// A write may or may not have taken effect.
    #[error("the outcome is not known")]
    Unknown,
}

/// What is asked of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A command; safe to repeat, because the state machine knows it again.
    Propose,
    /// A linearizable query.
    Query,
}

impl Ask {
    /// What a try counts as that reached a node and was not answered: its connection broke, it took too long, or
    /// somebody else turned out to lead the shard ([`Known::is_led_by_another`]), which ends a try at once.
    #[must_use]
    pub fn unanswered(self) -> RequestError {
        match self {
            Self::Propose => RequestError::Unknown,
            Self::Query => RequestError::Stopped,
        }
    }
}

/// What to do next about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskStep {
    /// Ask this node, then report a failure to [`Asking::failed`]. An answer ends the request.
    Ask {
        /// The node; possibly this one.
        node: NodeId,
        /// How long the try may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Wait so many milliseconds, then look again.
    Wait(u64),
    /// The deadline is here.
    GiveUp(ShardError),
}

/// What follows from a try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on with [`Asking::next`].
    Again,
    /// Go on, and forget this node as a leader ([`Known::clear_leader`]).
    AgainWithout(NodeId),
    /// Trying again would not help.
    GiveUp(ShardError),
}

/// One request to a shard, until it is answered or its deadline is here.
#[derive(Debug, Clone)]
pub struct Asking {
    ask: Ask,
    shard: ShardId,
    deadline_ms: u64,
    attempts: Attempts,
    /// Under way.
    asked: Option<NodeId>,
    /// Whether a try may have been proposed.
    proposed: bool,
    last: ShardError,
}

impl Asking {
    /// Tries until `deadline_ms` on the caller's monotonic clock.
    #[must_use]
    pub fn new(ask: Ask, shard: ShardId, deadline_ms: u64) -> Self {
        let attempts = Attempts::new(deadline_ms);
        Self { ask, shard, deadline_ms, attempts, asked: None, proposed: false, last: ShardError::Unavailable }
    }

    /// What to do next, by what is known now.
    pub fn next(&mut self, now_ms: u64, known: &Known) -> AskStep {
        let replicas = known.map().shard(self.shard).map(|shard| &shard.descriptor.replicas[..]).unwrap_or_default();
        let nodes = replicas.iter().map(|replica| replica.node);
        match self.attempts.next(now_ms, known.leader(self.shard), nodes) {
            Step::Ask(node) => {
                self.asked = Some(node);
                AskStep::Ask { node, timeout_ms: (self.deadline_ms - now_ms).min(TRY_MS_MAX) }
            }
            Step::Wait(pause_ms) => AskStep::Wait(pause_ms),
            Step::GiveUp => AskStep::GiveUp(if self.proposed { ShardError::Unknown } else { self.last }),
        }
    }

    /// The last try failed.
    pub fn failed(&mut self, error: RequestError, known: &Known) -> Verdict {
        let failure = match error {
            RequestError::NotLeader { leader } => Failure::NotLeader(leader),
            RequestError::Busy => {
                self.last = ShardError::Busy;
                Failure::Later
            }
            RequestError::StaleEpoch if !self.proposed => return Verdict::GiveUp(ShardError::Stale),
            RequestError::Unknown => {
                self.proposed |= self.ask == Ask::Propose;
                Failure::Later
            }
            RequestError::UnknownShard | RequestError::Stopped | RequestError::Deadline | RequestError::StaleEpoch => {
                Failure::Unreachable
            }
        };
        self.attempts.failed(failure);
        // This node's own hints about itself come from its host, which knows.
        let silent = self.asked.take().filter(|node| *node != known.node() && known.leader(self.shard) == Some(*node));
        match silent {
            Some(node) if failure == Failure::Unreachable => Verdict::AgainWithout(node),
            _ => Verdict::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::MetaState;
    use flotilla_types::Term;

    use super::*;
    use crate::core::testing::{Meta, node};

    const SHARD: ShardId = ShardId(1);

    /// Node 9 knows a shard on nodes 1 to 3, led by node 2.
    fn known() -> Known {
        let mut meta = Meta::of_nodes(3);
        assert_eq!(meta.collection(&[&[1, 2, 3]]), [SHARD]);
        let mut known = Known::new(node(9), MetaState::clone(&meta.state()));
        known.observe_leader(SHARD, Term(2), node(2));
        known
    }

    fn ask(id: u64, timeout_ms: u64) -> AskStep {
        AskStep::Ask { node: node(id), timeout_ms }
    }

    #[test]
    fn the_leader_is_asked_and_a_refusal_that_names_another_is_followed() {
        let known = known();
        let mut asking = Asking::new(Ask::Query, SHARD, 5_000);
        assert_eq!(asking.next(0, &known), ask(2, TRY_MS_MAX));
        assert_eq!(asking.failed(RequestError::NotLeader { leader: Some(node(3)) }, &known), Verdict::Again);
        assert_eq!(asking.next(4_900, &known), ask(3, 100));
        assert_eq!(asking.failed(RequestError::UnknownShard, &known), Verdict::Again, "it was not the hinted leader");
        assert_eq!(asking.next(4_950, &known), ask(1, 50));
        assert_eq!(asking.next(5_000, &known), AskStep::GiveUp(ShardError::Unavailable));
    }

    #[test]
    fn a_leader_that_is_silent_is_forgotten_but_never_this_node_itself() {
        let mut known = known();
        let mut asking = Asking::new(Ask::Query, SHARD, 5_000);
        asking.next(0, &known);
        assert_eq!(asking.failed(Ask::Query.unanswered(), &known), Verdict::AgainWithout(node(2)));
        known.observe_leader(SHARD, Term(3), node(9));
        assert_eq!(asking.next(1, &known), ask(9, TRY_MS_MAX));
        assert_eq!(asking.failed(RequestError::Stopped, &known), Verdict::Again);
    }

    #[test]
    fn once_a_try_may_have_been_proposed_every_later_failure_is_unknown() {
        let known = known();
        for (asked, end) in [(Ask::Propose, ShardError::Unknown), (Ask::Query, ShardError::Busy)] {
            let mut asking = Asking::new(asked, SHARD, 100);
            asking.next(0, &known);
            assert_eq!(asking.failed(RequestError::Unknown, &known), Verdict::Again);
            assert!(matches!(asking.next(1, &known), AskStep::Wait(_)), "the same one later");
            assert_eq!(asking.next(10, &known), ask(2, 90));
            assert_eq!(asking.failed(RequestError::Busy, &known), Verdict::Again);
            assert_eq!(asking.next(100, &known), AskStep::GiveUp(end));
        }
    }

    #[test]
    fn a_stale_map_is_reported_only_while_nothing_was_proposed() {
        let known = known();
        let mut asking = Asking::new(Ask::Propose, SHARD, 100);
        asking.next(0, &known);
        assert_eq!(asking.failed(RequestError::StaleEpoch, &known), Verdict::GiveUp(ShardError::Stale));
        let mut asking = Asking::new(Ask::Propose, SHARD, 100);
        asking.next(0, &known);
        asking.failed(RequestError::Unknown, &known);
        asking.next(1, &known);
        asking.next(10, &known);
        assert_eq!(asking.failed(RequestError::StaleEpoch, &known), Verdict::AgainWithout(node(2)));
    }
}
