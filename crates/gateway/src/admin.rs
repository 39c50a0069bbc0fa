//! What the HTTP interface asks of the node beside the store: status, collections, tokens, drain, events.
//!
//! The node implements [`Admin`]; the gateway only calls it. Questions are answered at once from what the node already
//! knows, so that they work without a quorum. Changes wait for the metadata group, until a deadline.

use std::time::Instant;

use flotilla_api::{Check, ClusterStatus, Collection, CreateCollection, Event, TokenReply, TokenRequest};
use flotilla_types::NodeId;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::StoreError;

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such node.
    #[error("there is no node {0}")]
    NodeNotFound(NodeId),
    /// Everything else, with the same meaning as for the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change under way.
pub type AdminFuture<'a, T> = BoxFuture<'a, Result<T, AdminError>>;

/// The node behind the HTTP interface.
pub trait Admin: Send + Sync + 'static {
    /// What the node knows of the cluster. Never waits.
    fn status(&self) -> ClusterStatus;

    /// All collections, in the order of their names. Never waits.
    fn list_collections(&self) -> Vec<Collection>;

    /// What must hold before traffic should come here. Never waits.
    fn readiness(&self) -> Vec<Check>;

    /// Whether the node was told to drain.
    fn is_draining(&self) -> bool;

    /// All metrics in the Prometheus text format.
    fn metrics_text(&self) -> String;

    /// Events from now on. Ids grow by one from event to event; the first id after a start must be above every id of
    /// earlier starts (Unix milliseconds times 1,024, say), so that resuming across a restart is seen to be a gap.
    fn subscribe(&self) -> broadcast::Receiver<Event>;

    /// The last events, oldest first, without holes: a bounded ring that ends with the newest event.
    fn recent(&self) -> Vec<Event>;

    /// Creates a collection. Again with the same properties: answers the one that exists.
    fn create_collection(&self, wanted: CreateCollection, deadline: Instant) -> AdminFuture<'_, Collection>;

    /// Removes a collection and its records.
    fn drop_collection(&self, name: String, deadline: Instant) -> AdminFuture<'_, ()>;

    /// Mints a join token.
    fn create_token(&self, wanted: TokenRequest, deadline: Instant) -> AdminFuture<'_, TokenReply>;

    /// Removes a node for ever. `force` also removes one that is alive, or that still holds replicas.
    fn remove_node(&self, node: NodeId, force: bool, deadline: Instant) -> AdminFuture<'_, ()>;

    /// Starts to drain this node: leaders move away, `/healthz` says 503. Returns once it has begun.
    fn drain(&self) -> AdminFuture<'_, ()>;
}
