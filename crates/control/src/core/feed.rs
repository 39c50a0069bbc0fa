//! Nodes without a vote in the metadata group follow it by a resumable, versioned feed: which source to ask, and who may be one.
//!
//! Invariants: only a voter that knows its leader serves the feed, and such a node follows nobody: no two nodes wait for each
//! other, and nobody waits for a voter that is cut off. Between two tries that failed there is a pause.

use std::sync::Arc;

use flotilla_meta::{Feed, FeedError, MetaFollower, MetaState};
use flotilla_replication::{ReplicaStatus, RequestError};
use flotilla_types::{NodeId, ShardId};

/// How long the source may wait for news.
const WAIT_MS: u32 = 5_000;
/// Beyond the wait, how long an answer may take.
const SLACK_MS: u64 = 2_000;
/// Pause after a source failed, and between looks at whether a feed is needed.
const PAUSE_MS: u64 = 250;
/// How long a follower of the feed may be kept waiting for news.
const WAIT_MS_MAX: u32 = 10_000;

/// What a follower should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedStep {
    /// Ask a node for what came after a version ([`super::PeerRequest::Feed`]), then call [`FeedFollower::answered`] or
    /// [`FeedFollower::failed`].
    Ask {
        /// The node.
        source: NodeId,
        /// The version.
        version: u64,
        /// How long it may wait for news, in milliseconds.
        wait_ms: u32,
        /// How long the whole call may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Wait so many milliseconds, then look again.
    Wait(u64),
}

/// Keeps a node's metadata fresh while no replica of the metadata group does so here.
#[derive(Debug, Default)]
pub struct FeedFollower {
    follower: MetaFollower,
    /// Sources that failed in a row.
    turn: usize,
    pause: bool,
}

impl FeedFollower {
    /// What to do next. `meta` is the newest metadata known here; `seeds` are asked while it names nobody.
    pub fn next(
        &mut self,
        me: NodeId,
        meta: &Arc<MetaState>,
        seeds: &[NodeId],
        replicas: &[ReplicaStatus],
    ) -> FeedStep {
        if serves_feed(replicas) || std::mem::take(&mut self.pause) {
            return FeedStep::Wait(PAUSE_MS);
        }
        if meta.version() > self.follower.state().version() {
            self.follower = MetaFollower::new(meta.clone());
        }
        let Some(source) = source(meta, seeds, me, self.turn) else { return FeedStep::Wait(PAUSE_MS) };
        FeedStep::Ask {
            source,
            version: self.follower.wanted(),
            wait_ms: WAIT_MS,
            timeout_ms: u64::from(WAIT_MS) + SLACK_MS,
        }
    }

    /// The source answered. Returns the metadata that it led to, to be offered to [`super::Known`].
    ///
    /// # Errors
    /// The answer could not be taken: the next step starts over, with another source if this was the second failure.
    pub fn answered(&mut self, feed: &Feed) -> Result<&Arc<MetaState>, FeedError> {
        let asked = self.follower.wanted();
        match self.follower.apply(feed) {
            Ok(_) => {
                self.turn = 0;
                Ok(self.follower.state())
            }
            Err(error) => {
                // Starting over is worth a try at once; a source that fails at that too would be asked without end.
                if asked == 0 || self.follower.wanted() != 0 {
                    self.failed();
                }
                Err(error)
            }
        }
    }

    /// The source did not answer, or refused, or what it said does not parse.
    pub fn failed(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.pause = true;
    }
}

/// Voters of the metadata group, in turn; after each round of them one other node, in case the metadata is old.
fn source(meta: &MetaState, seeds: &[NodeId], me: NodeId, turn: usize) -> Option<NodeId> {
    let replicas = meta.shard(ShardId::META).map(|shard| &shard.descriptor.replicas[..]).unwrap_or_default();
    let voters: Vec<_> = replicas.iter().map(|replica| replica.node).filter(|node| *node != me).collect();
    let mut others: Vec<_> = meta.nodes().filter(|node| !node.state.is_gone()).map(|node| node.id).collect();
    others.extend(seeds);
    let mut seen = std::collections::BTreeSet::new();
    others.retain(|node| *node != me && !voters.contains(node) && seen.insert(*node));
    let round = voters.len() + usize::from(!others.is_empty());
    let (rounds, position) = (turn.checked_div(round)?, turn.checked_rem(round)?);
    voters.get(position).or_else(|| others.get(rounds % others.len().max(1))).copied()
}

/// Whether a node with these replicas may serve the metadata feed, and need not follow it: one of them votes in the metadata
/// group and knows the group's leader. A voter without a leader may be cut off, and its silence would pass for "no news".
#[must_use]
pub fn serves_feed(replicas: &[ReplicaStatus]) -> bool {
    replicas.iter().any(|replica| {
        replica.shard == ShardId::META
            && replica.group.as_ref().is_some_and(|group| group.conf.is_voter(replica.replica) && group.leader.0 != 0)
    })
}

/// How long a follower that allows for `wait_ms` waits at most until [`has_news`], in milliseconds. After that it is answered from
/// the replica here ([`flotilla_replication::Freshness::Local`]), whether there is news or not.
///
/// # Errors
/// This node does not serve the feed.
pub fn feed_wait_ms(replicas: &[ReplicaStatus], wait_ms: u32) -> Result<u64, RequestError> {
    if serves_feed(replicas) { Ok(wait_ms.min(WAIT_MS_MAX).into()) } else { Err(RequestError::UnknownShard) }
}

/// Whether there is anything to tell a follower that is at `version`.
#[must_use]
pub fn has_news(meta: &MetaState, version: u64) -> bool {
    meta.version() > version
}

/// The metadata in the answer to [`flotilla_meta::MetaQuery::State`]. `None` when it does not parse.
#[must_use]
pub fn snapshot_of(answer: &[u8]) -> Option<MetaState> {
    match Feed::decode(answer) {
        Ok(Feed::Snapshot(snapshot)) => MetaState::decode(&snapshot).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use super::*;
    use crate::core::testing::{Meta, leads, node};

    /// Node 9 follows a group of voters 1 and 2, among nodes 1 to 4, and knows seed 7.
    fn follow(follower: &mut FeedFollower, meta: &Meta) -> FeedStep {
        follower.next(node(9), &meta.state(), &[node(7)], &[])
    }

    fn asked(step: FeedStep) -> Option<(u64, u64)> {
        match step {
            FeedStep::Ask { source, version, .. } => Some((source.0, version)),
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
    fn voters_are_asked_again_and_again_and_one_other_node_after_each_round() {
        let meta = two_voters();
        let mut follower = FeedFollower::default();
        let mut sources = Vec::new();
        for _ in 0..12 {
            sources.push(asked(follow(&mut follower, &meta)).expect("a source").0);
            follower.failed();
            assert_eq!(follow(&mut follower, &meta), FeedStep::Wait(PAUSE_MS), "no source is asked without a pause");
        }
        assert_eq!(sources, [1, 2, 3, 1, 2, 4, 1, 2, 7, 1, 2, 3]);
    }

    #[test]
    fn a_node_that_knows_nobody_asks_its_seeds() {
        let nobody = Arc::new(MetaState::default());
        let mut follower = FeedFollower::default();
        assert_eq!(asked(follower.next(node(9), &nobody, &[node(9), node(7)], &[])), Some((7, 0)));
        assert_eq!(follower.next(node(9), &nobody, &[node(9)], &[]), FeedStep::Wait(PAUSE_MS));
    }

    #[test]
    fn news_is_taken_and_the_next_question_goes_on_from_it() {
        let meta = two_voters();
        let version = meta.state().version();
        let mut follower = FeedFollower::default();
        follower.failed();
        follow(&mut follower, &Meta::of_nodes(1));
        let snapshot = Feed::Snapshot(meta.state().encode());
        assert_eq!(follower.answered(&snapshot).map(|state| state.version()), Ok(version));
        assert_eq!(asked(follow(&mut follower, &meta)), Some((1, version)), "the first voter again");
    }

    #[test]
    fn a_source_that_cannot_be_followed_is_asked_for_everything_once_and_then_left() {
        let meta = two_voters();
        let mut follower = FeedFollower::default();
        assert_eq!(asked(follow(&mut follower, &meta)), Some((1, meta.state().version())));
        assert!(follower.answered(&Feed::Refused).is_err());
        assert_eq!(asked(follow(&mut follower, &meta)), Some((1, 0)));
        assert!(follower.answered(&Feed::Refused).is_err());
        assert_eq!(follow(&mut follower, &meta), FeedStep::Wait(PAUSE_MS));
        assert_eq!(asked(follow(&mut follower, &meta)), Some((2, 0)));
    }

    #[test]
    fn only_a_voter_with_a_leader_serves_and_it_follows_nobody() {
        let meta = two_voters();
        let mut replica = leads(0, &[(1, 1), (2, 2)], &[]);
        let mut follower = FeedFollower::default();
        let serving = [replica.clone()];
        assert_eq!(feed_wait_ms(&serving, 60_000), Ok(WAIT_MS_MAX.into()));
        assert_eq!(follower.next(node(1), &meta.state(), &[], &serving), FeedStep::Wait(PAUSE_MS));

        replica.group.as_mut().expect("a group").leader = ReplicaId::NONE;
        let cut_off = [replica.clone()];
        assert_eq!(feed_wait_ms(&cut_off, 10), Err(RequestError::UnknownShard));
        assert_eq!(asked(follower.next(node(1), &meta.state(), &[], &cut_off)).map(|(source, _)| source), Some(2));

        replica.shard = ShardId(3);
        assert_eq!(feed_wait_ms(&[replica], 10), Err(RequestError::UnknownShard));
    }
}
