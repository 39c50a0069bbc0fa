//! Asks shards, wherever their leaders are: here, or one forward away over the peers' RPC stream. Whom and how often is
//! decided by [`Asking`].

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::{MetaCommand, MetaReply};
use flotilla_replication::{Answer, Freshness, Handle, RequestError, clock};
use flotilla_transport::{CallError, Class, NotSent, Transport};
use flotilla_types::{NodeId, ShardId};

use crate::{Ask, AskStep, Asking, PeerRequest, ShardError, Topology, Verdict, core};

/// The way to every shard. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    topology: Arc<Topology>,
    host: Handle,
    network: Arc<Transport>,
}

impl Shards {
    /// A way through this node's host and transport.
    #[must_use]
    pub fn new(topology: Arc<Topology>, host: Handle, network: Arc<Transport>) -> Self {
        Self { topology, host, network }
    }

    /// What is known of the cluster.
    #[must_use]
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Asks a shard and follows its leader until `deadline_ms` (monotonic). Returns the answer and the node that gave it.
    pub async fn ask(
        &self,
        ask: Ask,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        deadline_ms: u64,
    ) -> Result<(Bytes, NodeId), ShardError> {
        let mut asking = Asking::new(ask, shard, deadline_ms);
        loop {
            let now_ms = clock::monotonic_ms();
            let (node, timeout_ms) = match self.topology.with(|known| asking.next(now_ms, known)) {
                AskStep::Ask { node, timeout_ms } => (node, timeout_ms),
                AskStep::Wait(pause_ms) => {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    continue;
                }
                AskStep::GiveUp(error) => return Err(error),
            };
            let timeout = Duration::from_millis(timeout_ms);
            let error = match self.ask_node(node, ask, shard, range_epoch, payload.clone(), timeout).await {
                Ok(answer) => return Ok((answer, node)),
                Err(error) => error,
            };
            match self.topology.with(|known| asking.failed(error, known)) {
                Verdict::Again => {}
                Verdict::AgainWithout(leader) => self.topology.clear_leader(leader),
                Verdict::GiveUp(error) => return Err(error),
            }
        }
    }

    async fn ask_node(
        &self,
        node: NodeId,
        ask: Ask,
        shard: ShardId,
        range_epoch: Option<u64>,
        payload: Bytes,
        timeout: Duration,
    ) -> Answer {
        if node == self.topology.node() {
            return match ask {
                Ask::Propose => self.host.propose(shard, range_epoch, payload, timeout).await,
                Ask::Query => self.host.query(shard, range_epoch, payload, Freshness::Strong, timeout).await,
            };
        }
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = PeerRequest::Ask { ask, shard, range_epoch, payload, timeout_ms };
        let call = self.network.call(node, Class::Rpc, request.encode(), timeout);
        // A leader that died cannot say so: its successor's first words end the wait.
        let outcome = tokio::select! {
            outcome = call => outcome,
            () = self.topology.led_by_another(shard, node) => return Err(ask.unanswered()),
        };
        match outcome {
            Ok(response) => core::answer_of(response),
            Err(CallError::NotSent(NotSent::Busy | NotSent::Refused)) => Err(RequestError::Busy),
            Err(CallError::NotSent(_)) => Err(RequestError::Stopped),
            Err(CallError::MaybeExecuted(_)) => Err(ask.unanswered()),
        }
    }

    /// Proposes to the metadata group.
    pub async fn propose_meta(&self, command: &MetaCommand, timeout: Duration) -> Result<MetaReply, ShardError> {
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let (reply, _) = self.ask(Ask::Propose, ShardId::META, None, command.encode(), deadline_ms).await?;
        MetaReply::decode(&reply).map_err(|_| ShardError::Unknown)
    }
}
