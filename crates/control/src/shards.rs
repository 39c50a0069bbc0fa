//! Asks shards, wherever their leaders are: here, or one forward away over the peers' RPC stream.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::{MetaCommand, MetaReply};
use flotilla_replication::{Freshness, Handle, RequestError, clock};
use flotilla_route::{Attempts, Failure, Step};
use flotilla_transport::{CallError, Class, Transport};
use flotilla_types::{NodeId, ShardId};
use flotilla_wire::{decode, encode, peer};

use crate::{Topology, rpc};

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
        let mut attempts = Attempts::new(deadline_ms);
        let mut proposed = false;
        let mut last = ShardError::Unavailable;
        loop {
            let now_ms = clock::monotonic_ms();
            let map = self.topology.map();
            let replicas = map.shard(shard).map(|shard| shard.descriptor.replicas.clone()).unwrap_or_default();
            let nodes = replicas.iter().map(|replica| replica.node);
            let node = match attempts.next(now_ms, self.topology.leader(shard), nodes) {
                Step::Ask(node) => node,
                Step::Wait(pause_ms) => {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    continue;
                }
                Step::GiveUp => return Err(if proposed { ShardError::Unknown } else { last }),
            };
            let timeout = Duration::from_millis((deadline_ms - now_ms).min(TRY_MS_MAX));
            let error = match self.ask_node(node, ask, shard, range_epoch, payload.clone(), timeout).await {
                Ok(answer) => return Ok((answer, node)),
                Err(error) => error,
            };
            let failure = match error {
                RequestError::NotLeader { leader } => Failure::NotLeader(leader),
                RequestError::Busy => {
                    last = ShardError::Busy;
                    Failure::Later
                }
                RequestError::StaleEpoch if !proposed => return Err(ShardError::Stale),
                RequestError::Unknown => {
                    proposed |= ask == Ask::Propose;
                    Failure::Later
                }
                RequestError::UnknownShard
                | RequestError::Stopped
                | RequestError::Deadline
                | RequestError::StaleEpoch => Failure::Unreachable,
            };
            if failure == Failure::Unreachable
                && self.topology.leader(shard) == Some(node)
                && node != self.topology.node()
            {
                self.topology.clear_leader(node);
            }
            attempts.failed(failure);
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
    ) -> Result<Bytes, RequestError> {
        if node == self.topology.node() {
            return match ask {
                Ask::Propose => self.host.propose(shard, range_epoch, payload, timeout).await,
                Ask::Query => self.host.query(shard, range_epoch, payload, Freshness::Strong, timeout).await,
            };
        }
        let deadline_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let range_epoch = range_epoch.map_or(0, |epoch| epoch + 1);
        let kind = match ask {
            Ask::Propose => peer::request::Kind::Propose(peer::Propose {
                shard: shard.0,
                range_epoch_plus_one: range_epoch,
                command: payload,
                deadline_ms,
            }),
            Ask::Query => peer::request::Kind::Query(peer::Query {
                shard: shard.0,
                range_epoch_plus_one: range_epoch,
                query: payload,
                deadline_ms,
            }),
        };
        let request = encode(&peer::Request { kind: Some(kind) });
        let call = self.network.call(node, Class::Rpc, request, timeout);
        // A leader that died cannot say so: its successor's first words end the wait.
        let outcome = tokio::select! {
            outcome = call => outcome,
            () = self.topology.led_by_another(shard, node) => {
                return Err(if ask == Ask::Propose { RequestError::Unknown } else { RequestError::Stopped });
            }
        };
        match outcome {
            Ok(response) => rpc::answer_of(decode(response).map_err(|_| RequestError::Unknown)?),
            Err(CallError::NotSent(flotilla_transport::NotSent::Busy | flotilla_transport::NotSent::Refused)) => {
                Err(RequestError::Busy)
            }
            Err(CallError::NotSent(_)) => Err(RequestError::Stopped),
            Err(CallError::MaybeExecuted(_)) if ask == Ask::Propose => Err(RequestError::Unknown),
            Err(CallError::MaybeExecuted(_)) => Err(RequestError::Stopped),
        }
    }

    /// Proposes to the metadata group.
    pub async fn propose_meta(&self, command: &MetaCommand, timeout: Duration) -> Result<MetaReply, ShardError> {
        let deadline_ms = clock::monotonic_ms() + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        let (reply, _) = self.ask(Ask::Propose, ShardId::META, None, command.encode(), deadline_ms).await?;
        MetaReply::decode(&reply).map_err(|_| ShardError::Unknown)
    }
}
