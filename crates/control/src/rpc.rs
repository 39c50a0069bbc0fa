//! The peers' RPC stream: requests for shards led here, the metadata feed, and the authority's key.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Freshness, Handle, ReplicaStatus, RequestError};
use flotilla_types::{NodeId, ShardId};
use flotilla_wire::{decode, encode, peer};

use crate::Topology;

/// A request that names no deadline, or a longer one, gets this.
const DEADLINE_MS_MAX: u32 = 60_000;
/// How long a follower of the feed may be kept waiting for news.
const FEED_WAIT_MS_MAX: u32 = 10_000;

const CODES: [RequestError; 7] = [
    RequestError::UnknownShard,
    RequestError::NotLeader { leader: None },
    RequestError::Busy,
    RequestError::StaleEpoch,
    RequestError::Deadline,
    RequestError::Unknown,
    RequestError::Stopped,
];

/// Takes the cluster's authority in; answers whether it is now durable here.
pub type TakeAuthority = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Answers peers.
#[derive(Clone)]
pub struct RpcServer {
    topology: Arc<Topology>,
    host: Handle,
    take_authority: TakeAuthority,
}

impl RpcServer {
    /// Answers from this node's host.
    #[must_use]
    pub fn new(topology: Arc<Topology>, host: Handle, take_authority: TakeAuthority) -> Self {
        Self { topology, host, take_authority }
    }

    /// Answers one request.
    pub async fn answer(&self, from: NodeId, request: Bytes) -> Bytes {
        let answer = match decode::<peer::Request>(request) {
            Ok(peer::Request { kind: Some(kind) }) => self.run(from, kind).await,
            _ => {
                tracing::warn!(%from, "a request does not parse");
                Err(RequestError::Stopped)
            }
        };
        encode(&response_of(answer))
    }

    async fn run(&self, from: NodeId, kind: peer::request::Kind) -> Answer {
        use peer::request::Kind;
        let timeout = |deadline_ms: u32| Duration::from_millis(deadline_ms.min(DEADLINE_MS_MAX).into());
        match kind {
            Kind::Propose(ask) => {
                let epoch = ask.range_epoch_plus_one.checked_sub(1);
                self.host.propose(ShardId(ask.shard), epoch, ask.command, timeout(ask.deadline_ms)).await
            }
            Kind::Query(ask) => {
                let epoch = ask.range_epoch_plus_one.checked_sub(1);
                let timeout = timeout(ask.deadline_ms);
                self.host.query(ShardId(ask.shard), epoch, ask.query, Freshness::Strong, timeout).await
            }
            Kind::Feed(feed) => self.feed(feed).await,
            Kind::Authority(authority) => {
                let take = self.take_authority.clone();
                let taken = tokio::task::spawn_blocking(move || take(&authority)).await.unwrap_or(false);
                tracing::info!(%from, taken, "was sent the cluster authority");
                if taken { Ok(Bytes::new()) } else { Err(RequestError::Stopped) }
            }
        }
    }

    /// Metadata after a version, from the replica here. Waits a while when there is nothing new.
    async fn feed(&self, feed: peer::Feed) -> Answer {
        // Only a voter is worth waiting for: two nodes that follow could wait for each other.
        let votes = |replica: &ReplicaStatus| {
            replica.shard == ShardId::META
                && replica.group.as_ref().is_some_and(|group| group.conf.is_voter(replica.replica))
        };
        if !self.host.status().iter().any(votes) {
            return Err(RequestError::UnknownShard);
        }
        let mut news = self.topology.watch();
        let wait = Duration::from_millis(feed.wait_ms.min(FEED_WAIT_MS_MAX).into());
        // A time-out is an answer too: nothing new.
        let _ = tokio::time::timeout(wait, news.wait_for(|state| state.version() > feed.version)).await;
        let query = MetaQuery::FeedSince(feed.version).encode();
        self.host.query(ShardId::META, None, query, Freshness::Local, Duration::from_secs(1)).await
    }
}

fn response_of(answer: Answer) -> peer::Response {
    let kind = match answer {
        Ok(value) => peer::response::Kind::Value(value),
        Err(error) => {
            let leader = match error {
                RequestError::NotLeader { leader } => leader.map_or(0, |node| node.0),
                _ => 0,
            };
            let plain = match error {
                RequestError::NotLeader { .. } => RequestError::NotLeader { leader: None },
                other => other,
            };
            let code = CODES.iter().position(|known| *known == plain).unwrap_or(CODES.len()) as u32;
            peer::response::Kind::Failure(peer::Failure { code, leader })
        }
    };
    peer::Response { kind: Some(kind) }
}

/// What a peer's response says. What does not parse may have been executed.
pub(crate) fn answer_of(response: peer::Response) -> Answer {
    match response.kind {
        Some(peer::response::Kind::Value(value)) => Ok(value),
        Some(peer::response::Kind::Failure(failure)) => Err(match CODES.get(failure.code as usize) {
            Some(RequestError::NotLeader { .. }) => {
                RequestError::NotLeader { leader: (failure.leader != 0).then_some(NodeId(failure.leader)) }
            }
            Some(error) => *error,
            None => RequestError::Unknown,
        }),
        None => Err(RequestError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_survives_the_wire() {
        let named = RequestError::NotLeader { leader: Some(NodeId(3)) };
        for error in CODES.into_iter().chain([named]) {
            assert_eq!(answer_of(response_of(Err(error))), Err(error));
        }
    }
}
