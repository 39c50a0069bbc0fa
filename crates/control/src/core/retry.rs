//! The attempts of one request to a shard: which node to send it to, what a failure means, which error the
//! caller gets.
//!
//! Invariant: once an attempt may have been proposed, the request never fails with an error that claims
//! nothing was written: it ends with [`ShardError::Unknown`]. Retries are harmless, because state machines
//! recognize a repeated command. An answer can be a refusal that the state machine does not remember; whoever
//! reads it needs to know whether earlier attempts are [in doubt](Earlier).

use bytes::Bytes;
use flotilla_meta::MetaReply;
use flotilla_replication::RequestError;
use flotilla_route::{Attempts, Failure, Step};
use flotilla_types::{NodeId, Refs, ShardId, Timestamp};

use super::ClusterView;

/// Longest attempt, so that a node that died does not use up the whole deadline.
const ATTEMPT_MS_MAX: u64 = 1_500;
/// Bytes that a leader fetches in a millisecond before it proposes a command that refers to them, at least: 1 MiB/s.
const FETCHED_PER_MS_MIN: u64 = 1 << 10;
/// Attempts for which the leader could not get what the command refers to.
const OBJECTS_MISSING_TRIES_MAX: u32 = 3;

/// Why a request to a shard failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// No leader was reached before the deadline. Nothing was written.
    #[error("the shard has no reachable leader")]
    Unavailable,
    /// The leader had no capacity until the deadline. Nothing was written.
    #[error("the shard is busy")]
    Busy,
    /// The shard changed its range, or is no more. Route again; what is known of the attempts goes with the request.
    #[error("the shard map is outdated")]
    Stale(Earlier),
    /// What a read needs is damaged on the leader's disk, and no other replica took its place in time.
    #[error("what the read needs is damaged on the disk")]
    Damaged,
    /// The snapshot that a read names is not open at the leader (any more).
    #[error("the snapshot has expired")]
    SnapshotExpired,
    /// The leader could not get the objects that a command refers to, or they are not what it says of them. Nothing
    /// was written; store them again.
    #[error("objects that the command refers to are missing")]
    ObjectsMissing,
    /// A write may or may not have taken effect.
    #[error("the outcome is unknown")]
    Unknown,
}

/// Attempts of a read that meet damage before it fails, over about two seconds: meanwhile the leader gives its
/// leadership to a replica without damage, if there is one.
const DAMAGED_TRIES_MAX: u32 = 40;

/// What kind of request a shard gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A command. Safe to repeat, because the state machine recognizes it.
    Propose,
    /// A linearizable query.
    Query,
}

impl RequestKind {
    /// The error of an attempt that reached a node and got no answer: the connection broke, the attempt timed
    /// out, or another node turned out to lead the shard ([`ClusterView::is_led_by_another`]), which ends an
    /// attempt at once.
    #[must_use]
    pub fn error_without_answer(self) -> RequestError {
        match self {
            Self::Propose => RequestError::Unknown,
            Self::Query => RequestError::Stopped,
        }
    }
}

/// What is known about the attempts of a request before the one that was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Earlier {
    /// None of them was proposed: a refusal holds for the whole request.
    #[default]
    Unproposed,
    /// One may have been proposed, and may still be applied: a refusal that the state machine does not
    /// remember says nothing about the request.
    InDoubt,
}

/// A shard's answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardAnswer {
    /// What the state machine answered.
    pub payload: Bytes,
    /// The node that gave the answer.
    pub node: NodeId,
    /// What is known about earlier attempts.
    pub earlier: Earlier,
}

/// Reads the metadata group's answer to a command. The group has no sessions and remembers no refusal: after
/// an attempt in doubt, a refusal may be the consequence of that attempt.
///
/// # Errors
/// The outcome is unknown.
pub fn meta_reply(answer: &[u8], earlier: Earlier) -> Result<MetaReply, ShardError> {
    match MetaReply::decode(answer) {
        Ok(MetaReply::Refused(_)) if earlier == Earlier::InDoubt => Err(ShardError::Unknown),
        Ok(reply) => Ok(reply),
        Err(_) => Err(ShardError::Unknown),
    }
}

/// What to do next about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryStep {
    /// Send the request to this node, then report a failure to [`RequestRetry::on_failure`]. An answer ends
    /// the request.
    Send {
        /// The node, possibly this one.
        node: NodeId,
        /// The range epoch to send; `None` to skip the check.
        range_epoch: Option<u64>,
        /// Hybrid time that a command must follow; zero for none.
        after: Timestamp,
        /// How long the attempt may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Call [`RequestRetry::next`] again after this many milliseconds.
    Wait(u64),
    /// The deadline has passed.
    GiveUp(ShardError),
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Continue with [`RequestRetry::next`].
    Retry,
    /// Clear this node as a leader hint ([`ClusterView::clear_leader`]), then continue.
    RetryWithoutLeader(NodeId),
    /// Retrying would not help.
    GiveUp(ShardError),
}

/// The retry state of one request to a shard, until it is answered or its deadline passes.
#[derive(Debug, Clone)]
pub struct RequestRetry {
    kind: RequestKind,
    shard: ShardId,
    /// Whether the caller routed by a range.
    is_routed: bool,
    /// The range epoch that attempts are checked for.
    range_epoch: Option<u64>,
    after: Timestamp,
    deadline_ms: u64,
    attempts: Attempts,
    /// The target of the attempt in flight.
    in_flight: Option<NodeId>,
    /// What is known about all attempts so far.
    earlier: Earlier,
    last_error: ShardError,
    /// Attempts that met damage.
    damaged: u32,
    /// Attempts for which objects were missing.
    objects_missing: u32,
    attempt_ms_max: u64,
}

impl RequestRetry {
    /// Retries until `deadline_ms` on the caller's monotonic clock. `range_epoch` is that of the descriptor by
    /// which the caller routed; `None` for a request that no range concerns.
    #[must_use]
    pub fn new(kind: RequestKind, shard: ShardId, range_epoch: Option<u64>, deadline_ms: u64) -> Self {
        Self {
            kind,
            shard,
            is_routed: range_epoch.is_some(),
            range_epoch,
            after: Timestamp::ZERO,
            deadline_ms,
            attempts: Attempts::new(deadline_ms),
            in_flight: None,
            earlier: Earlier::Unproposed,
            last_error: ShardError::Unavailable,
            damaged: 0,
            objects_missing: 0,
            attempt_ms_max: ATTEMPT_MS_MAX,
        }
    }

    /// The same, for a command whose time must be later than `heard`.
    #[must_use]
    pub fn following(self, heard: Timestamp) -> Self {
        Self { after: heard, ..self }
    }

    /// The same, for a command that refers to these objects: an attempt may take the time that the leader needs to
    /// fetch them.
    #[must_use]
    pub fn referring(self, refs: &Refs) -> Self {
        let bytes = refs.iter().fold(0, |bytes: u64, reference| bytes.saturating_add(reference.bytes));
        Self { attempt_ms_max: ATTEMPT_MS_MAX + bytes / FETCHED_PER_MS_MIN, ..self }
    }

    /// The same, for a command that was sent to another shard before, with attempts of this state.
    #[must_use]
    pub fn after(self, earlier: Earlier) -> Self {
        Self { earlier, ..self }
    }

    /// Whether the caller routed by a range, and can route again.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.is_routed
    }

    /// What is known about all attempts that failed.
    #[must_use]
    pub fn earlier(&self) -> Earlier {
        self.earlier
    }

    /// What to do next, given the current view of the cluster.
    pub fn next(&mut self, now_ms: u64, cluster: &ClusterView) -> RetryStep {
        let shard = cluster.map().shard(self.shard);
        if shard.is_none() && self.is_routed && now_ms < self.deadline_ms {
            // It was there when the caller routed. Another shard has its keys, and what its sessions remember.
            return RetryStep::GiveUp(ShardError::Stale(self.earlier));
        }
        let replicas = shard.map(|shard| &shard.descriptor.replicas[..]).unwrap_or_default();
        let nodes = replicas.iter().map(|replica| replica.node);
        match self.attempts.next(now_ms, cluster.leader(self.shard), nodes) {
            Step::Try(node) => {
                self.in_flight = Some(node);
                let timeout_ms = (self.deadline_ms - now_ms).min(self.attempt_ms_max);
                RetryStep::Send { node, range_epoch: self.range_epoch, after: self.after, timeout_ms }
            }
            // The metadata may not say yet that it was merged.
            Step::Wait(_)
                if self.is_routed && shard.is_some_and(|shard| cluster.map().is_overtaken(&shard.descriptor)) =>
            {
                RetryStep::GiveUp(ShardError::Stale(self.earlier))
            }
            Step::Wait(pause_ms) => RetryStep::Wait(pause_ms),
            Step::GiveUp if self.earlier == Earlier::InDoubt => RetryStep::GiveUp(ShardError::Unknown),
            Step::GiveUp => RetryStep::GiveUp(self.last_error),
        }
    }

    /// Records that the last attempt failed. What a refusal says of the shards is taken first
    /// ([`ClusterView::learn`]).
    pub fn on_failure(&mut self, error: &RequestError, cluster: &ClusterView) -> RetryDecision {
        let failure = match error {
            RequestError::NotLeader { leader } => Failure::NotLeader(*leader),
            // The leader's metadata may lag behind that of the sender, by which the command was made.
            RequestError::Busy | RequestError::VersionNotInForce => {
                self.last_error = ShardError::Busy;
                Failure::Later
            }
            // Whoever holds what the command refers to may not have been reached.
            RequestError::ObjectsMissing => {
                self.objects_missing += 1;
                self.last_error = ShardError::ObjectsMissing;
                if self.objects_missing >= OBJECTS_MISSING_TRIES_MAX {
                    let is_in_doubt = self.earlier == Earlier::InDoubt;
                    let error = if is_in_doubt { ShardError::Unknown } else { ShardError::ObjectsMissing };
                    return RetryDecision::GiveUp(error);
                }
                Failure::Later
            }
            // The leader gives its leadership away, if another replica can take it.
            RequestError::Damaged => {
                self.damaged += 1;
                if self.damaged >= DAMAGED_TRIES_MAX {
                    return RetryDecision::GiveUp(ShardError::Damaged);
                }
                Failure::Later
            }
            RequestError::SnapshotExpired => return RetryDecision::GiveUp(ShardError::SnapshotExpired),
            RequestError::StaleEpoch { .. } if self.earlier == Earlier::Unproposed => {
                return RetryDecision::GiveUp(ShardError::Stale(Earlier::Unproposed));
            }
            // The shard's session knows whether the attempt in doubt was applied, and is asked before the
            // range is checked; so the command goes there once more, whatever the shard's range is now.
            RequestError::StaleEpoch { .. } if self.range_epoch.take().is_some() => Failure::Again,
            RequestError::Unknown => {
                if self.kind == RequestKind::Propose {
                    self.earlier = Earlier::InDoubt;
                }
                Failure::Later
            }
            // The clocks of this node and the leader differ by more than they may. Causal order is lost then,
            // service is not.
            RequestError::AfterAhead if self.after > Timestamp::ZERO => {
                self.after = Timestamp::ZERO;
                Failure::Again
            }
            RequestError::UnknownShard
            | RequestError::AfterAhead
            | RequestError::Stopped
            | RequestError::Deadline
            | RequestError::StaleEpoch { .. } => Failure::Unreachable,
        };
        self.attempts.on_failure(failure);
        // Hints that name this node are kept: they come from its own shard host, which is authoritative.
        let hinted_peer =
            self.in_flight.take().filter(|node| *node != cluster.node() && cluster.leader(self.shard) == Some(*node));
        match hinted_peer {
            Some(node) if failure == Failure::Unreachable => RetryDecision::RetryWithoutLeader(node),
            _ => RetryDecision::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::{MetaRefusal, MetaState};
    use flotilla_types::{ObjectId, ObjectRef, Term};

    use super::*;
    use crate::core::testing::{Meta, node};

    const SHARD: ShardId = ShardId(1);

    /// The view of node 9: a shard on nodes 1 to 3, led by node 2.
    fn cluster_view() -> ClusterView {
        let mut meta = Meta::of_nodes(3);
        assert_eq!(meta.collection(&[&[1, 2, 3]]), [SHARD]);
        let mut cluster = ClusterView::new(node(9), MetaState::clone(&meta.state()));
        cluster.observe_leader(SHARD, Term(2), node(2));
        cluster
    }

    fn send(id: u64, timeout_ms: u64) -> RetryStep {
        RetryStep::Send { node: node(id), range_epoch: Some(1), after: Timestamp::ZERO, timeout_ms }
    }

    #[test]
    fn a_read_that_meets_damage_waits_for_another_leader_and_not_until_the_deadline() {
        let cluster = cluster_view();
        let mut retry = RequestRetry::new(RequestKind::Query, SHARD, Some(1), 1_000_000);
        let mut tries = 0;
        let mut now_ms = 0;
        let given_up = loop {
            match retry.next(now_ms, &cluster) {
                RetryStep::Send { .. } => tries += 1,
                RetryStep::Wait(pause_ms) => {
                    now_ms += pause_ms;
                    continue;
                }
                RetryStep::GiveUp(error) => break error,
            }
            if let RetryDecision::GiveUp(error) = retry.on_failure(&RequestError::Damaged, &cluster) {
                break error;
            }
        };
        assert_eq!((given_up, tries), (ShardError::Damaged, DAMAGED_TRIES_MAX));
        assert!((1_000..4_000).contains(&now_ms), "{now_ms} ms");
    }

    /// What becomes of a request that is refused again and again for want of objects.
    fn refused_for_want_of_objects(mut retry: RequestRetry, deadline_ms: u64) -> (ShardError, u32) {
        let (cluster, mut now_ms, mut tries) = (cluster_view(), 0, 0);
        let error = loop {
            match retry.next(now_ms, &cluster) {
                RetryStep::Send { .. } => tries += 1,
                RetryStep::Wait(pause_ms) => {
                    now_ms = (now_ms + pause_ms).min(deadline_ms);
                    continue;
                }
                RetryStep::GiveUp(error) => break error,
            }
            if let RetryDecision::GiveUp(error) = retry.on_failure(&RequestError::ObjectsMissing, &cluster) {
                break error;
            }
        };
        (error, tries)
    }

    #[test]
    fn missing_objects_end_a_write_soon_and_say_so_unless_it_may_be_written() {
        let retry = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 1_000_000);
        let given_up = refused_for_want_of_objects(retry.clone(), 1_000_000);
        assert_eq!(given_up, (ShardError::ObjectsMissing, OBJECTS_MISSING_TRIES_MAX));
        let given_up = refused_for_want_of_objects(retry.after(Earlier::InDoubt), 1_000_000);
        assert_eq!(given_up, (ShardError::Unknown, OBJECTS_MISSING_TRIES_MAX));
        let late = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 1);
        assert_eq!(refused_for_want_of_objects(late, 1), (ShardError::ObjectsMissing, 1));
    }

    #[test]
    fn an_attempt_has_the_time_to_fetch_what_the_command_refers_to() {
        let refs = |bytes| Refs::from_iter([ObjectRef { id: ObjectId::of(b"list"), height: 1, bytes }]);
        let retry = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 100_000);
        let cluster = cluster_view();
        assert_eq!(retry.clone().referring(&Refs::NONE).next(0, &cluster), send(2, ATTEMPT_MS_MAX));
        assert_eq!(retry.clone().referring(&refs(4 << 20)).next(0, &cluster), send(2, ATTEMPT_MS_MAX + 4_096));
        assert_eq!(retry.referring(&refs(u64::MAX)).next(0, &cluster), send(2, 100_000));
    }

    #[test]
    fn hinted_leader_is_tried_first_and_a_redirect_is_followed() {
        let cluster = cluster_view();
        let mut retry = RequestRetry::new(RequestKind::Query, SHARD, Some(1), 5_000);
        assert_eq!(retry.next(0, &cluster), send(2, ATTEMPT_MS_MAX));
        assert_eq!(
            retry.on_failure(&RequestError::NotLeader { leader: Some(node(3)) }, &cluster),
            RetryDecision::Retry
        );
        assert_eq!(retry.next(4_900, &cluster), send(3, 100));
        assert_eq!(
            retry.on_failure(&RequestError::UnknownShard, &cluster),
            RetryDecision::Retry,
            "it was not the hinted leader"
        );
        assert_eq!(retry.next(4_950, &cluster), send(1, 50));
        assert_eq!(retry.next(5_000, &cluster), RetryStep::GiveUp(ShardError::Unavailable));
    }

    #[test]
    fn unreachable_leader_hint_is_cleared_unless_it_names_this_node() {
        let mut cluster = cluster_view();
        let mut retry = RequestRetry::new(RequestKind::Query, SHARD, Some(1), 5_000);
        retry.next(0, &cluster);
        assert_eq!(
            retry.on_failure(&RequestKind::Query.error_without_answer(), &cluster),
            RetryDecision::RetryWithoutLeader(node(2))
        );
        cluster.observe_leader(SHARD, Term(3), node(9));
        assert_eq!(retry.next(1, &cluster), send(9, ATTEMPT_MS_MAX));
        assert_eq!(retry.on_failure(&RequestError::Stopped, &cluster), RetryDecision::Retry);
    }

    #[test]
    fn every_failure_after_a_possible_proposal_is_unknown() {
        let cluster = cluster_view();
        for (kind, end) in [(RequestKind::Propose, ShardError::Unknown), (RequestKind::Query, ShardError::Busy)] {
            let mut retry = RequestRetry::new(kind, SHARD, Some(1), 100);
            retry.next(0, &cluster);
            assert_eq!(retry.on_failure(&RequestError::Unknown, &cluster), RetryDecision::Retry);
            assert!(matches!(retry.next(1, &cluster), RetryStep::Wait(_)), "the same node, after a pause");
            assert_eq!(retry.next(10, &cluster), send(2, 90));
            assert_eq!(retry.on_failure(&RequestError::Busy, &cluster), RetryDecision::Retry);
            assert_eq!(retry.next(100, &cluster), RetryStep::GiveUp(end));
        }
    }

    #[test]
    fn doubt_lasts_to_the_answer_and_into_another_shard() {
        let cluster = cluster_view();
        let mut retry = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 100);
        retry.next(0, &cluster);
        retry.on_failure(&RequestError::Busy, &cluster);
        assert_eq!(retry.earlier(), Earlier::Unproposed, "a busy leader proposed nothing");
        retry.on_failure(&RequestError::Unknown, &cluster);
        retry.on_failure(&RequestError::Busy, &cluster);
        assert_eq!(retry.earlier(), Earlier::InDoubt);
        let mut elsewhere = RequestRetry::new(RequestKind::Propose, ShardId(9), Some(1), 100).after(retry.earlier());
        assert_eq!(elsewhere.next(100, &cluster), RetryStep::GiveUp(ShardError::Unknown));
    }

    #[test]
    fn a_refusal_of_the_metadata_group_counts_only_while_no_attempt_is_in_doubt() {
        let refused = MetaReply::Refused(MetaRefusal::UnknownToken);
        let answer = refused.encode();
        assert_eq!(meta_reply(&answer, Earlier::Unproposed), Ok(refused));
        assert_eq!(meta_reply(&answer, Earlier::InDoubt), Err(ShardError::Unknown));
        let done = MetaReply::Node(node(1));
        assert_eq!(meta_reply(&done.encode(), Earlier::InDoubt), Ok(done));
        assert_eq!(meta_reply(b"\xff\xff", Earlier::Unproposed), Err(ShardError::Unknown));
    }

    fn stale() -> RequestError {
        RequestError::StaleEpoch { now: Box::new([]) }
    }

    #[test]
    fn a_request_to_a_shard_that_is_gone_is_routed_again_with_what_is_known_of_its_attempts() {
        let cluster = cluster_view();
        let gone = ShardId(77);
        for earlier in [Earlier::Unproposed, Earlier::InDoubt] {
            let mut retry = RequestRetry::new(RequestKind::Propose, gone, Some(1), 100).after(earlier);
            assert_eq!(retry.next(99, &cluster), RetryStep::GiveUp(ShardError::Stale(earlier)));
        }
        // It may be known later.
        let mut by_id = RequestRetry::new(RequestKind::Query, gone, None, 100);
        assert!(matches!(by_id.next(0, &cluster), RetryStep::Wait(_)));
    }

    #[test]
    fn a_request_that_wrote_nothing_is_routed_again_when_its_map_is_outdated() {
        let cluster = cluster_view();
        for kind in [RequestKind::Propose, RequestKind::Query] {
            let mut retry = RequestRetry::new(kind, SHARD, Some(1), 100);
            retry.next(0, &cluster);
            assert_eq!(
                retry.on_failure(&stale(), &cluster),
                RetryDecision::GiveUp(ShardError::Stale(Earlier::Unproposed))
            );
        }
        let mut retry = RequestRetry::new(RequestKind::Query, SHARD, Some(1), 100);
        retry.next(0, &cluster);
        retry.on_failure(&RequestKind::Query.error_without_answer(), &cluster);
        retry.next(1, &cluster);
        assert_eq!(retry.on_failure(&stale(), &cluster), RetryDecision::GiveUp(ShardError::Stale(Earlier::Unproposed)));
    }

    #[test]
    fn a_command_follows_what_was_heard_unless_the_leader_finds_it_too_far_ahead() {
        let cluster = cluster_view();
        let heard = Timestamp(77);
        let mut retry = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 100).following(heard);
        let following =
            |id, after, timeout_ms| RetryStep::Send { node: node(id), range_epoch: Some(1), after, timeout_ms };
        assert_eq!(retry.next(0, &cluster), following(2, heard, 100));
        retry.on_failure(&RequestError::NotLeader { leader: Some(node(3)) }, &cluster);
        assert_eq!(retry.next(1, &cluster), following(3, heard, 99));
        assert_eq!(retry.on_failure(&RequestError::AfterAhead, &cluster), RetryDecision::Retry);
        assert_eq!(retry.next(2, &cluster), following(3, Timestamp::ZERO, 98), "the same node, at once");
        assert_eq!(retry.earlier(), Earlier::Unproposed);
    }

    /// The first attempt was applied and its answer lost; then the shard changed its range.
    #[test]
    fn a_write_in_doubt_asks_the_session_of_a_shard_that_changed_its_range() {
        let cluster = cluster_view();
        let mut retry = RequestRetry::new(RequestKind::Propose, SHARD, Some(1), 100);
        retry.next(0, &cluster);
        retry.on_failure(&RequestError::Unknown, &cluster);
        retry.next(1, &cluster);
        assert_eq!(retry.next(10, &cluster), send(2, 90));
        assert_eq!(retry.on_failure(&stale(), &cluster), RetryDecision::Retry);
        let after = Timestamp::ZERO;
        let unchecked = |id, timeout_ms| RetryStep::Send { node: node(id), range_epoch: None, after, timeout_ms };
        assert_eq!(retry.next(11, &cluster), unchecked(2, 89), "the same node, at once, in whatever range");
        retry.on_failure(&RequestError::NotLeader { leader: Some(node(3)) }, &cluster);
        assert_eq!(retry.next(12, &cluster), unchecked(3, 88));
        // No node refuses a request without an epoch; a faulty one costs no more than one that is down.
        assert_eq!(retry.on_failure(&stale(), &cluster), RetryDecision::Retry);
        assert_eq!(retry.next(13, &cluster), unchecked(1, 87));
    }
}
