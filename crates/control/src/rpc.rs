//! Serves the peer RPC stream: requests for shards led here, the metadata feed, and what needs the authority.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::MetaQuery;
use flotilla_replication::{Answer, Answered, Freshness, Handle, RequestError};
use flotilla_transport::BoxFuture;
use flotilla_types::{NodeId, ShardId, Timestamp};

use crate::{
    MalformedRequest, PeerRequest, Said, Shards, Topology, core,
    shards::{ask_host, give_up, operations_here, scrub_here},
};

/// Timeout of the feed's query at the local replica.
const FEED_QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a question about placement may wait for a pass.
const PLACEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The cluster's authority, as far as this node holds it.
pub trait AuthorityService: Send + Sync + 'static {
    /// Stores the authority, or the next one. Returns whether it is now durable here. May block.
    fn take(&self, authority: &[u8]) -> bool;

    /// Certifies a peer's client ports for these hosts, for some seconds. `None` if this node cannot.
    fn certify_client_ports(&self, node: NodeId, csr: &[u8], hosts: &[String], valid_s: u64) -> Option<Bytes>;

    /// Certifies a peer for some seconds. `None` if this node cannot.
    fn certify_node(&self, node: NodeId, csr: &[u8], valid_s: u64) -> Option<Bytes>;

    /// Replaces the authority. The answer says why it was not replaced; `Ok` for nothing.
    fn rotate(&self, timeout: Duration) -> BoxFuture<'static, Result<(), String>>;
}

/// Answers requests from peers.
#[derive(Clone)]
pub struct RpcServer {
    topology: Arc<Topology>,
    host: Handle,
    shards: Shards,
    authority: Arc<dyn AuthorityService>,
}

impl RpcServer {
    /// Answers from what the client of all shards knows of this node.
    #[must_use]
    pub fn new(shards: Shards, authority: Arc<dyn AuthorityService>) -> Self {
        Self { topology: shards.topology().clone(), host: shards.host().clone(), shards, authority }
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
            PeerRequest::Shard(request) => ask_host(&self.host, from, request).await,
            PeerRequest::Feed { version, wait_ms } => self.feed(version, wait_ms).await,
            PeerRequest::Authority(authority) => {
                let service = self.authority.clone();
                let taken = tokio::task::spawn_blocking(move || service.take(&authority)).await.unwrap_or(false);
                tracing::info!(%from, taken, "received the cluster authority");
                certified(taken.then(Bytes::new))
            }
            PeerRequest::CertifyClientPorts { csr, hosts, valid_s } => {
                certified(self.authority.certify_client_ports(from, &csr, &hosts, valid_s))
            }
            PeerRequest::CertifyNode { csr, valid_s } => certified(self.authority.certify_node(from, &csr, valid_s)),
            PeerRequest::Operations => {
                let operations = operations_here(&self.topology, &self.host).encode();
                Ok(Answered { payload: operations, clock: Timestamp::ZERO })
            }
            PeerRequest::Scrub { start } => {
                let scrub = scrub_here(&self.host, start).encode();
                Ok(Answered { payload: scrub, clock: Timestamp::ZERO })
            }
            PeerRequest::Fingerprints { replica, .. } => {
                let said = self.host.fingerprints(replica).await.ok_or(RequestError::Stopped)?;
                Ok(Answered { payload: Said::here(said).encode(), clock: Timestamp::ZERO })
            }
            PeerRequest::GiveUp { shard, replica, evidence } => {
                tracing::warn!(%from, %shard, %replica, "a replica is to be given up, as it differs from a majority");
                give_up(&self.host, from, (shard, replica), &evidence).await;
                Ok(Answered { payload: Bytes::new(), clock: Timestamp::ZERO })
            }
            PeerRequest::Comparisons => {
                let comparisons = self.topology.comparisons().encode();
                Ok(Answered { payload: comparisons, clock: Timestamp::ZERO })
            }
            PeerRequest::ValueTraffic => {
                let traffic = core::encode_traffic(&self.host.value_traffic());
                Ok(Answered { payload: traffic, clock: Timestamp::ZERO })
            }
            PeerRequest::Prefetch { refs, timeout_ms } => {
                let fetched = self.host.prefetch(&refs, from, Duration::from_millis(timeout_ms.into())).await;
                fetched.map_err(|_| RequestError::ObjectsMissing)?;
                Ok(Answered { payload: Bytes::new(), clock: Timestamp::ZERO })
            }
            PeerRequest::Capacity => {
                Ok(Answered { payload: self.shards.capacity_here().encode(), clock: Timestamp::ZERO })
            }
            PeerRequest::Load => Ok(Answered { payload: self.shards.load_here().encode(), clock: Timestamp::ZERO }),
            PeerRequest::Placement(question) => {
                let asked =
                    tokio::time::timeout(PLACEMENT_TIMEOUT, self.shards.planner().ask(question, &self.topology));
                let report = asked.await.unwrap_or(Err(RequestError::Deadline))?;
                Ok(Answered { payload: report.encode(), clock: Timestamp::ZERO })
            }
            PeerRequest::RotateAuthority { timeout_ms } => {
                let rotated = self.authority.rotate(Duration::from_millis(timeout_ms.into())).await;
                tracing::info!(%from, ?rotated, "a node asked for a rotation of the authority");
                certified(Some(rotated.map_or_else(Bytes::from, |()| Bytes::new())))
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

/// The answer to a request that needs the authority. `None` if this node cannot serve it.
fn certified(payload: Option<Bytes>) -> Answer {
    payload.map(|payload| Answered { payload, clock: Timestamp::ZERO }).ok_or(RequestError::Stopped)
}
