//! Sends requests to shards, whose leaders are on this node or one hop away over the peer RPC stream.
//! [`RequestRetry`] decides the target and the retries.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::{MetaCommand, MetaReply};
use flotilla_replication::{Answer, Freshness, Handle, RequestError, clock};
use flotilla_transport::{CallError, Class, NotSent, Transport};
use flotilla_types::{NodeId, ShardId};

use crate::{
    Earlier, PeerRequest, RequestKind, RequestRetry, RetryDecision, RetryStep, ShardAnswer, ShardError, Topology, core,
};

/// A client of every shard. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    topology: Arc<Topology>,
    host: Handle,
    network: Arc<Transport>,
}

impl Shards {
    /// Sends requests through this node's host and transport.
    #[must_use]
    pub fn new(topology: Arc<Topology>, host: Handle, network: Arc<Transport>) -> Self {
        Self { topology, host, network }
    }

    /// This node's view of the cluster.
    #[must_use]
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Sends a request to a shard's leader, retrying until `deadline_ms` (monotonic).
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn request(
        &self,
        kind: RequestKind,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        deadline_ms: u64,
    ) -> Result<ShardAnswer, ShardError> {
        let retry = RequestRetry::new(kind, shard, range_epoch, deadline_ms);
        self.request_after(retry, kind, shard, payload).await
    }

    /// Sends a command that was sent before, perhaps to another shard, with earlier attempts of this state.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn propose_after(
        &self,
        earlier: Earlier,
        shard: ShardId,
        range_epoch: Option<u64>,
        command: Bytes,
        deadline_ms: u64,
    ) -> Result<ShardAnswer, ShardError> {
        let retry = RequestRetry::new(RequestKind::Propose, shard, range_epoch, deadline_ms).after(earlier);
        self.request_after(retry, RequestKind::Propose, shard, command).await
    }

    async fn request_after(
        &self,
        mut retry: RequestRetry,
        kind: RequestKind,
        shard: ShardId,
        payload: Bytes,
    ) -> Result<ShardAnswer, ShardError> {
        loop {
            let now_ms = clock::monotonic_ms();
            let (node, range_epoch, timeout_ms) = match self.topology.with(|cluster| retry.next(now_ms, cluster)) {
                RetryStep::Send { node, range_epoch, timeout_ms } => (node, range_epoch, timeout_ms),
                RetryStep::Wait(pause_ms) => {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    continue;
                }
                RetryStep::GiveUp(error) => return Err(error),
            };
            let timeout = Duration::from_millis(timeout_ms);
            let error = match self.send(node, kind, shard, range_epoch, payload.clone(), timeout).await {
                Ok(payload) => return Ok(ShardAnswer { payload, node, earlier: retry.earlier() }),
                Err(error) => error,
            };
            if let RequestError::StaleEpoch { now } = &error {
                self.topology.learn(shard, now);
            }
            match self.topology.with(|cluster| retry.on_failure(&error, cluster)) {
                RetryDecision::Retry => {}
                RetryDecision::RetryWithoutLeader(leader) => self.topology.clear_leader(leader),
                RetryDecision::GiveUp(error) => return Err(error),
            }
        }
    }

    async fn send(
        &self,
        node: NodeId,
        kind: RequestKind,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        timeout: Duration,
    ) -> Answer {
        if node == self.topology.node() {
            return match kind {
                RequestKind::Propose => self.host.propose(shard, range_epoch, payload, timeout).await,
                RequestKind::Query => self.host.query(shard, range_epoch, payload, Freshness::Strong, timeout).await,
            };
        }
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = PeerRequest::Shard { kind, shard, range_epoch, payload, timeout_ms };
        let call = self.network.call(node, Class::Rpc, request.encode(), timeout);
        // A leader that died cannot redirect the request: the first sign of its successor ends the wait.
        let outcome = tokio::select! {
            outcome = call => outcome,
            () = self.topology.led_by_another(shard, node) => return Err(kind.error_without_answer()),
        };
        match outcome {
            Ok(response) => core::decode_answer(response),
            Err(CallError::NotSent(NotSent::Busy | NotSent::Refused)) => Err(RequestError::Busy),
            Err(CallError::NotSent(_)) => Err(RequestError::Stopped),
            Err(CallError::MaybeExecuted(_)) => Err(kind.error_without_answer()),
        }
    }

    /// Proposes to the metadata group.
    ///
    /// # Errors
    /// See [`ShardError`]. A refusal after an attempt in doubt is [`ShardError::Unknown`].
    pub async fn propose_meta(&self, command: &MetaCommand, timeout: Duration) -> Result<MetaReply, ShardError> {
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let answer = self.request(RequestKind::Propose, ShardId::META, None, command.encode(), deadline_ms).await?;
        core::meta_reply(&answer.payload, answer.earlier)
    }
}
