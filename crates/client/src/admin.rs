//! Collections, nodes, tokens, settings and status.

use flotilla_api::{
    AuthorityStatus, ChangeCollection, ClusterStatus, Collection, CollectionList, ConsistencyReport, CreateCollection,
    DecisionList, DigestList, Event, EventList, KeyId, KeyInfo, KeyList, KeyReply, KeyRequest, MergeShards, MoveShard,
    NodeChange, NodeVerb, OperationInfo, OperationList, OperationVerb, RebalanceRequest, ScrubReport, Setting,
    SettingList, SettingRequest, ShardExplanation, ShardInfo, ShardList, ShardOrder, ShardTop, SplitShard, TokenId,
    TokenInfo, TokenList, TokenReply, TokenRequest, UpgradeStatus,
};
use flotilla_types::{NodeId, ShardId};
use reqwest::Method;

use crate::{Client, ClientError, EventStream, call::Call, url};

impl Client {
    /// The cluster as the node that answers sees it; works without a quorum.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<ClusterStatus, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/status")).await?.json()
    }

    /// All shards, with what changes them now as all nodes report it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shards(&self) -> Result<Vec<ShardInfo>, ClientError> {
        let list: ShardList = self.call(Call::read(Method::GET, "/v1/cluster/shards")).await?.json()?;
        Ok(list.shards)
    }

    /// What changes shards now, as all nodes report it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn operations(&self) -> Result<OperationList, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/operations")).await?.json()
    }

    /// One of these operations.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn operation(&self, id: &str) -> Result<OperationInfo, ClientError> {
        let path = format!("/v1/cluster/operations/{}", url::encode(id.as_bytes()));
        self.call(Call::read(Method::GET, path)).await?.json()
    }

    /// Begins to move a replica of a shard to another node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn move_shard(&self, shard: ShardId, request: MoveShard) -> Result<OperationInfo, ClientError> {
        let path = format!("/v1/cluster/shards/{shard}/move");
        self.call(Call::write(Method::POST, path).json(&request)).await?.json()
    }

    /// Begins to split a shard in two.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn split_shard(&self, shard: ShardId, request: &SplitShard) -> Result<OperationInfo, ClientError> {
        let path = format!("/v1/cluster/shards/{shard}/split");
        self.call(Call::write(Method::POST, path).json(request)).await?.json()
    }

    /// Begins to merge a shard's right neighbour into it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn merge_shards(&self, left: ShardId, request: MergeShards) -> Result<OperationInfo, ClientError> {
        let path = format!("/v1/cluster/shards/{left}/merge");
        self.call(Call::write(Method::POST, path).json(&request)).await?.json()
    }

    /// Pauses, resumes or cancels a move, pauses or resumes a split, or cancels a merge.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_operation(&self, id: &str, verb: OperationVerb) -> Result<OperationInfo, ClientError> {
        let path = format!("/v1/cluster/operations/{}/{verb}", url::encode(id.as_bytes()));
        self.call(Call::write(Method::POST, path)).await?.json()
    }

    /// How the scrubs of all nodes stand: how they read their stored objects again to find damage.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scrub(&self) -> Result<ScrubReport, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/scrub")).await?.json()
    }

    /// What the leaders' comparisons of the replicas of their shards say.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn consistency(&self) -> Result<ConsistencyReport, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/consistency")).await?.json()
    }

    /// Begins a pass of the scrub on every node: right after the one that is under way, if there is one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_scrub(&self) -> Result<ScrubReport, ClientError> {
        self.call(Call::write(Method::POST, "/v1/cluster/scrub")).await?.json()
    }

    /// Whether a node answers that it is ready. Needs no key.
    pub async fn is_ready(&self) -> bool {
        self.call(Call::read(Method::GET, "/readyz")).await.is_ok()
    }

    /// Digests of the replicas of the node that answers. Use a client with a single endpoint to choose the
    /// node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn digests(&self) -> Result<DigestList, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/digests")).await?.json()
    }

    /// As [`digests`](Self::digests), of these shards only: one to [`flotilla_api::DIGEST_SHARDS_MAX`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn digests_of(&self, shards: &[ShardId]) -> Result<DigestList, ClientError> {
        let ids: Vec<String> = shards.iter().map(|shard| shard.0.to_string()).collect();
        self.call(Call::read(Method::GET, format!("/v1/cluster/digests?shards={}", ids.join(",")))).await?.json()
    }

    /// All collections.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn collections(&self) -> Result<Vec<Collection>, ClientError> {
        let list: CollectionList = self.call(Call::read(Method::GET, "/v1/collections")).await?.json()?;
        Ok(list.collections)
    }

    /// Creates a collection. If it exists with the same properties, returns it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_collection(&self, request: &CreateCollection) -> Result<Collection, ClientError> {
        self.call(Call::write(Method::POST, "/v1/collections").json(request)).await?.json()
    }

    /// A collection and its settings.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn collection(&self, name: &str) -> Result<Collection, ClientError> {
        let path = format!("/v1/collections/{}", url::encode(name.as_bytes()));
        self.call(Call::read(Method::GET, path)).await?.json()
    }

    /// Changes the settings of a collection; what is absent stays.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_collection(&self, name: &str, change: &ChangeCollection) -> Result<Collection, ClientError> {
        let path = format!("/v1/collections/{}", url::encode(name.as_bytes()));
        self.call(Call::write(Method::PATCH, path).json(change)).await?.json()
    }

    /// Removes a collection and its records.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drop_collection(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/collections?name={}", url::encode(name.as_bytes()));
        self.call(Call::write(Method::DELETE, path)).await.map(drop)
    }

    /// Creates a join token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenReply, ClientError> {
        self.call(Call::write(Method::POST, "/v1/cluster/tokens").json(request)).await?.json()
    }

    /// The join tokens that the cluster remembers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, ClientError> {
        let list: TokenList = self.call(Call::read(Method::GET, "/v1/cluster/tokens")).await?.json()?;
        Ok(list.tokens)
    }

    /// Revokes a join token. Nodes that joined with it stay.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke_token(&self, token: TokenId) -> Result<(), ClientError> {
        self.call(Call::write(Method::DELETE, format!("/v1/cluster/tokens/{token}"))).await.map(drop)
    }

    /// Creates a client key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_key(&self, request: &KeyRequest) -> Result<KeyReply, ClientError> {
        self.call(Call::write(Method::POST, "/v1/cluster/keys").json(request)).await?.json()
    }

    /// The client keys, without their secrets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, ClientError> {
        let list: KeyList = self.call(Call::read(Method::GET, "/v1/cluster/keys")).await?.json()?;
        Ok(list.keys)
    }

    /// Revokes a client key. Every node refuses it within two seconds.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke_key(&self, key: KeyId) -> Result<(), ClientError> {
        self.call(Call::write(Method::DELETE, format!("/v1/cluster/keys/{key}"))).await.map(drop)
    }

    /// All settings of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn settings(&self) -> Result<Vec<Setting>, ClientError> {
        let list: SettingList = self.call(Call::read(Method::GET, "/v1/cluster/settings")).await?.json()?;
        Ok(list.settings)
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_setting(&self, key: &str, value: u64) -> Result<Setting, ClientError> {
        let path = format!("/v1/cluster/settings/{}", url::encode(key.as_bytes()));
        self.call(Call::write(Method::PUT, path).json(&SettingRequest { value })).await?.json()
    }

    /// The cluster version and which nodes are ready for the next one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upgrade_status(&self) -> Result<UpgradeStatus, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/upgrade")).await?.json()
    }

    /// Puts the next cluster version in force, if every node is ready for it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn finish_upgrade(&self) -> Result<UpgradeStatus, ClientError> {
        self.call(Call::write(Method::POST, "/v1/cluster/upgrade")).await?.json()
    }

    /// The cluster's authority and its rotation.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn authority_status(&self) -> Result<AuthorityStatus, ClientError> {
        self.call(Call::read(Method::GET, "/v1/cluster/authority")).await?.json()
    }

    /// Replaces the cluster's authority. Returns once the new one is in force, beside the one before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rotate_authority(&self) -> Result<AuthorityStatus, ClientError> {
        self.call(Call::write(Method::POST, "/v1/cluster/authority/rotate")).await?.json()
    }

    /// Removes a node permanently. `force` also removes one that is alive or holds replicas.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_node(&self, node: NodeId, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/cluster/nodes/{}?force={force}", node.0);
        self.call(Call::write(Method::DELETE, path)).await.map(drop)
    }

    /// Changes a node's part in the cluster. `force` does it also where only that helps; a dry run only says
    /// what would be done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_node(
        &self,
        node: NodeId,
        verb: NodeVerb,
        force: bool,
        dry_run: bool,
    ) -> Result<NodeChange, ClientError> {
        self.change_node_with(node, &[], verb, force, dry_run).await
    }

    /// As [`change_node`](Self::change_node), of a node that gives up its replicas together with others: those
    /// count as nodes that take none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_node_with(
        &self,
        node: NodeId,
        others: &[NodeId],
        verb: NodeVerb,
        force: bool,
        dry_run: bool,
    ) -> Result<NodeChange, ClientError> {
        let mut path = format!("/v1/cluster/nodes/{node}/{verb}?force={force}&dry_run={dry_run}");
        if !others.is_empty() {
            let others: Vec<String> = others.iter().map(NodeId::to_string).collect();
            path.push_str(&format!("&with={}", others.join(",")));
        }
        self.call(Call::write(Method::POST, path)).await?.json()
    }

    /// Why the replicas of a shard are where they are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn explain_shard(&self, shard: ShardId) -> Result<ShardExplanation, ClientError> {
        self.call(Call::read(Method::GET, format!("/v1/cluster/shards/{shard}/explain"))).await?.json()
    }

    /// Has placement plan at once, and returns what it decides; in a dry run only what it would decide.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rebalance(&self, dry_run: bool) -> Result<DecisionList, ClientError> {
        let request = RebalanceRequest { dry_run };
        self.call(Call::write(Method::POST, "/v1/cluster/rebalance").json(&request)).await?.json()
    }

    /// The newest decisions of placement, at most `limit`: 1 to [`flotilla_api::DECISIONS_MAX`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn decisions(&self, limit: usize) -> Result<DecisionList, ClientError> {
        self.call(Call::read(Method::GET, format!("/v1/cluster/decisions?limit={limit}"))).await?.json()
    }

    /// The shards that are the most work, at most `limit`: 1 to [`flotilla_api::SHARD_TOP_MAX`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shard_top(&self, order: ShardOrder, limit: usize) -> Result<ShardTop, ClientError> {
        let path = format!("/v1/cluster/shards/top?by={}&limit={limit}", order.name());
        self.call(Call::read(Method::GET, path)).await?.json()
    }

    /// Recent events that the answering node remembers, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn recent_events(&self) -> Result<Vec<Event>, ClientError> {
        let list: EventList = self.call(Call::read(Method::GET, "/v1/cluster/events?follow=false")).await?.json()?;
        Ok(list.events)
    }

    /// Follows events as they happen, from the first endpoint that answers. Skips events with ids up to
    /// `after`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn follow_events(&self, after: Option<u64>) -> Result<EventStream, ClientError> {
        EventStream::open(self, "/v1/cluster/events", after).await
    }

    /// Recent entries of the answering node's audit log, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn recent_audit(&self) -> Result<Vec<Event>, ClientError> {
        let list: EventList = self.call(Call::read(Method::GET, "/v1/cluster/audit?follow=false")).await?.json()?;
        Ok(list.events)
    }

    /// As [`follow_events`](Self::follow_events), for the audit log.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn follow_audit(&self, after: Option<u64>) -> Result<EventStream, ClientError> {
        EventStream::open(self, "/v1/cluster/audit", after).await
    }
}
