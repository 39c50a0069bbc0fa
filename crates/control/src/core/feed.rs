//! The metadata feed: how nodes that are no voters of the metadata group follow it, by a resumable, versioned
//! feed.
//!
//! Invariants: only a voter that knows its leader serves the feed, and such a node follows no source. So no
//! two nodes wait for each other, and no node waits for a voter that is cut off. A pause follows every failed
//! fetch.

use std::sync::Arc;

use flotilla_meta::{Feed, FeedError, MetaFollower, MetaState};
use flotilla_replication::{Replicas, RequestError, Role};
use flotilla_types::{NodeId, ShardId};

/// How long the source may wait for changes, in milliseconds.
const WAIT_MS: u32 = 5_000;
/// How long an answer may take beyond the wait, in milliseconds.
const SLACK_MS: u64 = 2_000;
/// Pause after a source failed, and between checks whether a feed is needed. Milliseconds.
const PAUSE_MS: u64 = 250;
/// How long a source holds back its answer to a follower at most, in milliseconds.
const WAIT_MS_MAX: u32 = 10_000;

/// The next step of a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedStep {
    /// Fetch the changes after a version from a node ([`super::PeerRequest::Feed`]), then call
    /// [`FeedFollower::on_answer`] or [`FeedFollower::on_failure`].
    Fetch {
        /// The node.
        source: NodeId,
        /// The version.
        version: u64,
        /// How long the source may wait for changes, in milliseconds.
        wait_ms: u32,
        /// How long the whole call may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Call [`FeedFollower::next`] again after this many milliseconds.
    Wait(u64),
}

/// Follows the metadata feed while no voter of the metadata group runs on this node.
#[derive(Debug, Default)]
pub struct FeedFollower {
    follower: MetaFollower,
    /// Consecutive failures; selects the source.
    failures: usize,
    pause: bool,
}

impl FeedFollower {
    /// What to do next. `meta` is the newest metadata here; `seeds` are extra sources, needed while it names
    /// no node.
    pub fn next(&mut self, me: NodeId, meta: &Arc<MetaState>, seeds: &[NodeId], replicas: &Replicas) -> FeedStep {
        if serves_feed(replicas) || std::mem::take(&mut self.pause) {
            return FeedStep::Wait(PAUSE_MS);
        }
        if meta.version() > self.follower.state().version() {
            self.follower = MetaFollower::new(meta.clone());
        }
        let Some(source) = source(meta, seeds, me, self.failures) else { return FeedStep::Wait(PAUSE_MS) };
        FeedStep::Fetch {
            source,
            version: self.follower.resume_version(),
            wait_ms: WAIT_MS,
            timeout_ms: u64::from(WAIT_MS) + SLACK_MS,
        }
    }

    /// Applies the source's answer. Returns the resulting metadata, to be offered to [`super::ClusterView`].
    ///
    /// # Errors
    /// The answer cannot be applied: the next fetch starts from scratch, after the second failure at another
    /// source.
    pub fn on_answer(&mut self, feed: &Feed) -> Result<&Arc<MetaState>, FeedError> {
        let requested = self.follower.resume_version();
        match self.follower.apply(feed) {
            Ok(_) => {
                self.failures = 0;
                Ok(self.follower.state())
            }
            Err(error) => {
                // The first full fetch follows without a pause. A source that fails at that too must not be
                // retried forever.
                if requested == 0 || self.follower.resume_version() != 0 {
                    self.on_failure();
                }
                Err(error)
            }
        }
    }

    /// Records that the source did not answer, refused, or sent an answer that does not parse.
    pub fn on_failure(&mut self) {
        self.failures = self.failures.wrapping_add(1);
        self.pause = true;
    }
}

/// Voters of the metadata group in turn; after each round of them one other node, in case the metadata is
/// old.
fn source(meta: &MetaState, seeds: &[NodeId], me: NodeId, failures: usize) -> Option<NodeId> {
    let replicas = meta.shard(ShardId::META).map(|shard| &shard.descriptor.replicas[..]).unwrap_or_default();
    let voters: Vec<_> = replicas.iter().map(|replica| replica.node).filter(|node| *node != me).collect();
    let mut others: Vec<_> = meta.nodes().filter(|node| !node.state.is_gone()).map(|node| node.id).collect();
    others.extend(seeds);
    let mut seen = std::collections::BTreeSet::new();
    others.retain(|node| *node != me && !voters.contains(node) && seen.insert(*node));
    let round = voters.len() + usize::from(!others.is_empty());
    let (rounds, position) = (failures.checked_div(round)?, failures.checked_rem(round)?);
    voters.get(position).or_else(|| others.get(rounds % others.len().max(1))).copied()
}

/// Whether a node with these replicas serves the metadata feed and need not follow it: one of them is a voter
/// of the metadata group, knows its leader, and applies what is committed. A voter without a leader may be cut
/// off, and its empty answers would be taken for "no changes". So would those of a damaged one, which may apply
/// no more, or may not even hear what is committed; that its place is to be taken by another replica, such a
/// node learns by the feed. A damaged leader serves while it applies: there may be nobody else.
#[must_use]
pub fn serves_feed(replicas: &Replicas) -> bool {
    replicas.of_shard(ShardId::META).any(|replica| {
        let Some(group) = replica.group.as_ref() else { return false };
        let is_stuck = replica.damaged && (group.role != Role::Leader || replica.applied < group.commit);
        group.conf.is_voter(replica.replica) && group.leader.0 != 0 && !is_stuck
    })
}

/// How long the answer to a follower that allows `wait_ms` waits for [`has_changes_since`], in milliseconds.
/// After that the local replica answers ([`flotilla_replication::Freshness::Local`]), with or without
/// changes.
///
/// # Errors
/// This node does not serve the feed.
pub fn feed_wait_ms(replicas: &Replicas, wait_ms: u32) -> Result<u64, RequestError> {
    if serves_feed(replicas) { Ok(wait_ms.min(WAIT_MS_MAX).into()) } else { Err(RequestError::UnknownShard) }
}

/// Whether there are changes for a follower that is at `version`.
#[must_use]
pub fn has_changes_since(meta: &MetaState, version: u64) -> bool {
    meta.version() > version
}

/// Decodes the answer to [`flotilla_meta::MetaQuery::State`]. `None` when it does not parse.
#[must_use]
pub fn decode_snapshot(answer: &[u8]) -> Option<MetaState> {
    match Feed::decode(answer) {
        Ok(Feed::Snapshot(snapshot)) => MetaState::decode(&snapshot).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_replication::ReplicaStatus;
    use flotilla_types::{LogIndex, ReplicaId};

    use super::*;
    use crate::core::testing::{Meta, leads, node};

    /// Node 9 follows a group of voters 1 and 2, among nodes 1 to 4, and knows seed 7.
    fn follow(follower: &mut FeedFollower, meta: &Meta) -> FeedStep {
        follower.next(node(9), &meta.state(), &[node(7)], &Replicas::default())
    }

    fn requested(step: FeedStep) -> Option<(u64, u64)> {
        match step {
            FeedStep::Fetch { source, version, .. } => Some((source.0, version)),
            FeedStep::Wait(_) => None,
        }
    }

    fn two_voters() -> Meta {
        let mut meta = Meta::of_nodes(4);
        meta.assign(ShardId::META, 2);
        meta.report(leads(0, &[(1, 1), (2, 2)], &[]).descriptor);
        meta
    }

    #[test]
    fn voters_take_turns_and_one_other_node_follows_each_round() {
        let meta = two_voters();
        let mut follower = FeedFollower::default();
        let mut sources = Vec::new();
        for _ in 0..12 {
            sources.push(requested(follow(&mut follower, &meta)).expect("a source").0);
            follower.on_failure();
            assert_eq!(follow(&mut follower, &meta), FeedStep::Wait(PAUSE_MS), "a pause follows every failure");
        }
        assert_eq!(sources, [1, 2, 3, 1, 2, 4, 1, 2, 7, 1, 2, 3]);
    }

    #[test]
    fn seeds_are_the_sources_while_the_metadata_names_no_node() {
        let empty = Arc::new(MetaState::default());
        let mut follower = FeedFollower::default();
        assert_eq!(requested(follower.next(node(9), &empty, &[node(9), node(7)], &Replicas::default())), Some((7, 0)));
        assert_eq!(follower.next(node(9), &empty, &[node(9)], &Replicas::default()), FeedStep::Wait(PAUSE_MS));
    }

    #[test]
    fn changes_are_applied_and_the_next_fetch_continues_from_them() {
        let meta = two_voters();
        let version = meta.state().version();
        let mut follower = FeedFollower::default();
        follower.on_failure();
        follow(&mut follower, &Meta::of_nodes(1));
        let snapshot = Feed::Snapshot(meta.state().encode());
        assert_eq!(follower.on_answer(&snapshot).map(|state| state.version()), Ok(version));
        assert_eq!(requested(follow(&mut follower, &meta)), Some((1, version)), "the first voter again");
    }

    #[test]
    fn source_that_cannot_be_followed_gets_one_full_fetch_then_the_next_source_is_used() {
        let meta = two_voters();
        let mut follower = FeedFollower::default();
        assert_eq!(requested(follow(&mut follower, &meta)), Some((1, meta.state().version())));
        assert!(follower.on_answer(&Feed::Refused).is_err());
        assert_eq!(requested(follow(&mut follower, &meta)), Some((1, 0)));
        assert!(follower.on_answer(&Feed::Refused).is_err());
        assert_eq!(follow(&mut follower, &meta), FeedStep::Wait(PAUSE_MS));
        assert_eq!(requested(follow(&mut follower, &meta)), Some((2, 0)));
    }

    #[test]
    fn a_damaged_voter_that_applies_no_more_serves_nothing_and_follows() {
        let meta = two_voters();
        let mut voter = leads(0, &[(9, 1), (2, 2)], &[]);
        voter.applied = LogIndex(9_999);
        let here = |voter: &ReplicaStatus| [voter.clone()].into_iter().collect::<Replicas>();
        let step = |voter: &ReplicaStatus| FeedFollower::default().next(node(9), &meta.state(), &[], &here(voter));
        assert_eq!(step(&voter), FeedStep::Wait(PAUSE_MS), "it only lags");
        voter.damaged = true;
        assert!(feed_wait_ms(&here(&voter), 1).is_err() && requested(step(&voter)).is_some());
        voter.applied = LogIndex(10_000);
        assert_eq!(step(&voter), FeedStep::Wait(PAUSE_MS), "it leads, and applies what comes");
        voter.group.as_mut().expect("a group").role = Role::Follower;
        assert!(requested(step(&voter)).is_some(), "it may not hear what is committed");
    }

    #[test]
    fn only_a_voter_with_a_leader_serves_and_it_follows_no_source() {
        let meta = two_voters();
        let mut replica = leads(0, &[(1, 1), (2, 2)], &[]);
        let mut follower = FeedFollower::default();
        let of = |replica: &flotilla_replication::ReplicaStatus| [replica.clone()].into_iter().collect::<Replicas>();
        let serving = of(&replica);
        assert_eq!(feed_wait_ms(&serving, 60_000), Ok(WAIT_MS_MAX.into()));
        assert_eq!(follower.next(node(1), &meta.state(), &[], &serving), FeedStep::Wait(PAUSE_MS));

        replica.group.as_mut().expect("a group").leader = ReplicaId::NONE;
        let cut_off = of(&replica);
        assert_eq!(feed_wait_ms(&cut_off, 10), Err(RequestError::UnknownShard));
        assert_eq!(requested(follower.next(node(1), &meta.state(), &[], &cut_off)).map(|(source, _)| source), Some(2));

        replica.shard = ShardId(3);
        assert_eq!(feed_wait_ms(&of(&replica), 10), Err(RequestError::UnknownShard));
    }
}
