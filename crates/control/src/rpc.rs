//! The peers' RPC stream: requests for shards led here, the metadata feed, and the authority's key.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Freshness, Handle, RequestError};
use flotilla_types::{NodeId, ShardId};

use crate::{Ask, MalformedRequest, PeerRequest, Topology, core};

/// How long the feed's query of the replica here may take.
const FEED_QUERY_TIMEOUT: Duration = Duration::from_secs(1);

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
        let answer = match PeerRequest::decode(request) {
            Ok(request) => self.run(from, request).await,
            Err(MalformedRequest) => {
                tracing::warn!(%from, "a request does not parse");
                Err(RequestError::Stopped)
            }
        };
        core::response_of(answer)
    }

    async fn run(&self, from: NodeId, request: PeerRequest) -> Answer {
        match request {
            PeerRequest::Ask { ask, shard, range_epoch, payload, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms.into());
                match ask {
                    Ask::Propose => self.host.propose(shard, range_epoch, payload, timeout).await,
                    Ask::Query => self.host.query(shard, range_epoch, payload, Freshness::Strong, timeout).await,
                }
            }
            PeerRequest::Feed { version, wait_ms } => self.feed(version, wait_ms).await,
            PeerRequest::Authority(authority) => {
                let take = self.take_authority.clone();
                let taken = tokio::task::spawn_blocking(move || take(&authority)).await.unwrap_or(false);
                tracing::info!(%from, taken, "was sent the cluster authority");
                if taken { Ok(Bytes::new()) } else { Err(RequestError::Stopped) }
            }
        }
    }

    /// Metadata after a version, from the replica here. Waits a while when there is nothing new.
    async fn feed(&self, version: u64, wait_ms: u32) -> Answer {
        let wait = Duration::from_millis(core::feed_wait_ms(&self.host.status(), wait_ms)?);
        let mut news = self.topology.watch();
        // A time-out is an answer too: nothing new.
        let _ = tokio::time::timeout(wait, news.wait_for(|meta| core::has_news(meta, version))).await;
        let query = MetaQuery::FeedSince(version).encode();
        self.host.query(ShardId::META, None, query, Freshness::Local, FEED_QUERY_TIMEOUT).await
    }
}
