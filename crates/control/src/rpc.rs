//! Serves the peer RPC stream: requests for shards led here, the metadata feed, and the authority's key.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Answered, Freshness, Handle, RequestError};
use flotilla_types::{NodeId, ShardId, Timestamp};

use crate::{MalformedRequest, PeerRequest, Topology, core, shards::ask_host};

/// Timeout of the feed's query at the local replica.
const FEED_QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// Stores the cluster's authority. Returns whether it is now durable here.
pub type TakeAuthority = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Certifies a peer's client ports: node, signing request, hosts, seconds. `None` if this node cannot.
pub type Certify = Arc<dyn Fn(NodeId, &[u8], &[String], u64) -> Option<Vec<u8>> + Send + Sync>;

/// Answers requests from peers.
#[derive(Clone)]
pub struct RpcServer {
    topology: Arc<Topology>,
    host: Handle,
    take_authority: TakeAuthority,
    certify: Certify,
}

impl RpcServer {
    /// Answers from this node's host.
    #[must_use]
    pub fn new(topology: Arc<Topology>, host: Handle, take_authority: TakeAuthority, certify: Certify) -> Self {
        Self { topology, host, take_authority, certify }
    }

    /// Answers one request.
    pub async fn answer(&self, from: NodeId, request: Bytes) -> Bytes {
        let answer = match PeerRequest::decode(request) {
            Ok(request) => self.run(from, request).await,
            Err(MalformedRequest) => {
                tracing::warn!(%from, "a peer's request does not parse");
                Err(RequestError::Stopped)
            }
        };
        core::encode_answer(answer)
    }

    async fn run(&self, from: NodeId, request: PeerRequest) -> Answer {
        match request {
            PeerRequest::Shard(request) => ask_host(&self.host, request).await,
            PeerRequest::Feed { version, wait_ms } => self.feed(version, wait_ms).await,
            PeerRequest::Authority(authority) => {
                let take = self.take_authority.clone();
                let taken = tokio::task::spawn_blocking(move || take(&authority)).await.unwrap_or(false);
                tracing::info!(%from, taken, "received the cluster authority");
                let done = Answered { payload: Bytes::new(), clock: Timestamp::ZERO };
                if taken { Ok(done) } else { Err(RequestError::Stopped) }
            }
            PeerRequest::CertifyClientPorts { csr, hosts, valid_s } => {
                let certified = (self.certify)(from, &csr, &hosts, valid_s);
                let certified = certified.map(|cert| Answered { payload: cert.into(), clock: Timestamp::ZERO });
                certified.ok_or(RequestError::Stopped)
            }
        }
    }

    /// The metadata changes after a version, from the local replica. Waits up to `wait_ms` for a change.
    async fn feed(&self, version: u64, wait_ms: u32) -> Answer {
        let wait = Duration::from_millis(core::feed_wait_ms(&self.host.status(), wait_ms)?);
        let mut meta = self.topology.watch();
        // After a timeout the local replica answers that there are no changes.
        let _ = tokio::time::timeout(wait, meta.wait_for(|meta| core::has_changes_since(meta, version))).await;
        let query = MetaQuery::FeedSince(version).encode();
        self.host.query(ShardId::META, None, query, Freshness::Local, FEED_QUERY_TIMEOUT).await
    }
}
