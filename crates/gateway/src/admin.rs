//! What the HTTP interface needs from the node in addition to the store: status, collections, tokens,
//! settings, drain, events.
//!
//! The node implements [`Admin`]; the gateway only calls it. Queries return at once from the node's local
//! state, so that they work without a quorum. Changes wait for the metadata group, until a deadline.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use bytes::Bytes;
use flotilla_api::{
    AuthorityStatus, Blocker, ChangeCollection, Check, ClusterStatus, Collection, ConsistencyReport, CreateCollection,
    DecisionList, DigestList, Event, KeyId, KeyInfo, KeyReply, KeyRequest, MoveShard, NodeChange, NodeVerb,
    OperationInfo, OperationList, OperationVerb, ReplicationStats, ScrubReport, Setting, ShardExplanation, ShardOrder,
    ShardTop, TokenId, TokenInfo, TokenReply, TokenRequest, UpgradeStatus,
};
use flotilla_types::{NodeId, OperationId, ShardId};
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::StoreError;

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such node.
    #[error("there is no node {0}")]
    NodeNotFound(NodeId),
    /// There is no such shard.
    #[error("there is no shard {0}")]
    ShardNotFound(ShardId),
    /// There is no such operation.
    #[error("there is no operation {0}, or it ended long ago; /v1/cluster/operations lists those under way")]
    OperationNotFound(OperationId),
    /// Replicas cannot, or should not, leave their nodes.
    #[error("{refusal}")]
    Blocked {
        /// What speaks against it, in words.
        refusal: String,
        /// The first of these replicas.
        blockers: Vec<Blocker>,
    },
    /// There is no such setting.
    #[error("there is no such setting; /v1/cluster/settings lists them")]
    SettingNotFound,
    /// The setting cannot have this value.
    #[error("the value is not allowed: {description}")]
    SettingValue {
        /// What the setting does and which values it takes.
        description: &'static str,
    },
    /// There is no such join token.
    #[error("there is no join token {0}: it was never created, was revoked, or expired long ago")]
    TokenNotFound(TokenId),
    /// There is no such client key.
    #[error("there is no client key {0}: it was never created, was revoked, or expired long ago")]
    KeyNotFound(KeyId),
    /// Everything else, with the same meaning as for the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// The client key; `None` when none was given, or none is needed.
    pub key: Option<u64>,
    /// Where the request came from.
    pub address: Option<IpAddr>,
    /// Method and path.
    pub action: String,
    /// What the path does not say.
    pub detail: Option<String>,
    /// Status of the answer.
    pub status: u16,
}

/// How a node's part in the cluster is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Do it also where only `force` helps.
    pub force: bool,
    /// Do nothing, and say what would be done.
    pub dry_run: bool,
    /// Other nodes whose replicas are to move away as well: they count as nodes that take none.
    pub with: BTreeSet<NodeId>,
}

/// A change in progress.
pub type AdminFuture<'a, T> = BoxFuture<'a, Result<T, AdminError>>;

/// Node operations that the HTTP interface calls.
pub trait Admin: Send + Sync + 'static {
    /// The cluster as this node knows it. Never waits.
    fn status(&self) -> ClusterStatus;

    /// All collections, in the order of their names. Never waits.
    fn list_collections(&self) -> Vec<Collection>;

    /// Every setting, always in the same order. Never waits.
    fn list_settings(&self) -> Vec<Setting>;

    /// The join tokens, in the order of their ids. Never waits.
    fn list_tokens(&self) -> Vec<TokenInfo>;

    /// The client keys, in the order of their ids. Never waits.
    fn list_keys(&self) -> Vec<KeyInfo>;

    /// The cluster version and which nodes are ready for the next one. Never waits.
    fn upgrade_status(&self) -> UpgradeStatus;

    /// The cluster's authority and its rotation. Never waits.
    fn authority_status(&self) -> AuthorityStatus;

    /// The conditions under which the node can serve, and whether they hold. Never waits.
    fn readiness(&self) -> Vec<Check>;

    /// Whether the node drains, leaves or stops, so that new clients should use another one. Cheap.
    fn is_draining(&self) -> bool;

    /// All metrics in the Prometheus text format.
    fn metrics_text(&self) -> String;

    /// Events from now on. Ids grow by one from event to event; the first id after a start must be above
    /// every id of earlier starts (Unix milliseconds times 1,024, say), so that resuming across a restart is
    /// detected as a gap.
    fn subscribe(&self) -> broadcast::Receiver<Event>;

    /// The most recent events, oldest first, without gaps: a bounded ring that ends with the newest event.
    fn recent(&self) -> Vec<Event>;

    /// Records an entry of the audit log. Never waits.
    fn audit(&self, entry: AuditEntry);

    /// As [`subscribe`](Self::subscribe), for the audit log.
    fn subscribe_audit(&self) -> broadcast::Receiver<Event>;

    /// As [`recent`](Self::recent), for the audit log.
    fn recent_audit(&self) -> Vec<Event>;

    /// What changes shards now: the reports of all nodes that answer soon.
    fn operations(&self, deadline: Instant) -> AdminFuture<'_, OperationList>;

    /// A move of a replica, a split or a merge of shards, as far as all nodes that answer soon know: one under way, or
    /// one of the latest that have ended.
    fn operation(&self, operation: OperationId, deadline: Instant) -> AdminFuture<'_, OperationInfo>;

    /// Begins to move a replica of a shard to another node.
    fn move_shard(&self, shard: ShardId, request: MoveShard, deadline: Instant) -> AdminFuture<'_, OperationInfo>;

    /// Begins to split a shard in two, in the middle unless the first key of the new shard is given.
    fn split_shard(&self, shard: ShardId, at: Option<Bytes>, deadline: Instant) -> AdminFuture<'_, OperationInfo>;

    /// Begins to merge a shard's right neighbour into it.
    fn merge_shards(&self, left: ShardId, right: ShardId, deadline: Instant) -> AdminFuture<'_, OperationInfo>;

    /// Pauses, resumes or cancels a move, pauses or resumes a split, or cancels a merge.
    fn change_operation(
        &self,
        operation: OperationId,
        verb: OperationVerb,
        deadline: Instant,
    ) -> AdminFuture<'_, OperationInfo>;

    /// Why the replicas of a shard are where they are, as the leader of the metadata group sees it.
    fn explain(&self, shard: ShardId, deadline: Instant) -> AdminFuture<'_, ShardExplanation>;

    /// Has placement plan at once, and says what it decides; in a dry run only what it would decide.
    fn rebalance(&self, dry_run: bool, deadline: Instant) -> AdminFuture<'_, DecisionList>;

    /// The newest decisions of placement, at most `limit`.
    fn decisions(&self, limit: usize, deadline: Instant) -> AdminFuture<'_, DecisionList>;

    /// The shards that are the most work, at most `limit`, as all nodes that answer soon report.
    fn shard_top(&self, order: ShardOrder, limit: usize, deadline: Instant) -> AdminFuture<'_, ShardTop>;

    /// How the scrubs of all nodes that answer soon stand. With `start`, a pass begins on each.
    fn scrub(&self, start: bool, deadline: Instant) -> AdminFuture<'_, ScrubReport>;

    /// What large values have cost the networks of all nodes that answer soon.
    fn replication_stats(&self, deadline: Instant) -> AdminFuture<'_, ReplicationStats>;

    /// What the comparisons of replicas say that all nodes which answer soon have made.
    fn consistency(&self, deadline: Instant) -> AdminFuture<'_, ConsistencyReport>;

    /// Digests of this node's replicas, or of those of the shards in `only`. Reads all their records without
    /// blocking other requests. A replica that is not done by the deadline has a reason in place of its
    /// digest.
    fn digests(&self, only: Option<BTreeSet<ShardId>>, deadline: Instant) -> AdminFuture<'_, DigestList>;

    /// Creates a collection. If it exists with the same properties, returns it.
    fn create_collection(&self, request: CreateCollection, deadline: Instant) -> AdminFuture<'_, Collection>;

    /// Changes the settings of a collection.
    fn change_collection(
        &self,
        name: String,
        request: ChangeCollection,
        deadline: Instant,
    ) -> AdminFuture<'_, Collection>;

    /// Removes a collection and its records.
    fn drop_collection(&self, name: String, deadline: Instant) -> AdminFuture<'_, ()>;

    /// Creates a join token.
    fn create_token(&self, request: TokenRequest, deadline: Instant) -> AdminFuture<'_, TokenReply>;

    /// Revokes a join token. Nodes that joined with it stay.
    fn revoke_token(&self, token: TokenId, deadline: Instant) -> AdminFuture<'_, ()>;

    /// Creates a client key.
    fn create_key(&self, request: KeyRequest, deadline: Instant) -> AdminFuture<'_, KeyReply>;

    /// Revokes a client key.
    fn revoke_key(&self, key: KeyId, deadline: Instant) -> AdminFuture<'_, ()>;

    /// Changes a setting and returns it.
    fn put_setting(&self, key: String, value: u64, deadline: Instant) -> AdminFuture<'_, Setting>;

    /// Puts the next cluster version in force, if every node is ready for it; does nothing if this node's
    /// binary supports no later one.
    fn finish_upgrade(&self, deadline: Instant) -> AdminFuture<'_, UpgradeStatus>;

    /// Changes a node's part in the cluster, as far as nothing speaks against it or `force` helps.
    fn change_node(
        &self,
        node: NodeId,
        verb: NodeVerb,
        options: ChangeOptions,
        deadline: Instant,
    ) -> AdminFuture<'_, NodeChange>;

    /// Replaces the cluster's authority. Returns once the new one is in force, beside the one before.
    fn rotate_authority(&self, deadline: Instant) -> AdminFuture<'_, AuthorityStatus>;
}
