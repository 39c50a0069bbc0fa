//! The node as the HTTP interface sees it beside the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use flotilla_api::{
    Check, ClusterStatus, Collection, CreateCollection, DigestList, Event, Held, ReplicaDigest, Setting as ApiSetting,
    Sharding as ApiSharding, TokenInfo, TokenReply, TokenRequest,
};
use flotilla_control::{MemberState, ShardError, Shards, Topology};
use flotilla_gateway::{Admin, AdminError, AdminFuture, StoreError};
use flotilla_identity::{JoinToken, NodeIdentity, TokenId};
use flotilla_meta::{Liveness, MetaCommand, MetaRefusal, MetaReply, Setting};
use flotilla_placement::Sharding;
use flotilla_replication::{Handle, clock};
use flotilla_transport::Transport;
use flotilla_types::{NodeId, ShardId};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::broadcast;

use super::{config::SHARDS, events::Events, metrics, status};

const TOKEN_TTL_MS_DEFAULT: u64 = 3_600_000;
const BUCKETS_DEFAULT: u16 = 16;
const REPLICAS_DEFAULT: u8 = 3;

pub(crate) struct NodeAdmin {
    pub(crate) identity: NodeIdentity,
    pub(crate) topology: Arc<Topology>,
    pub(crate) host: Handle,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) started_ms: u64,
}

impl NodeAdmin {
    /// What the metadata group says to a command, a refusal included.
    async fn ask(&self, command: MetaCommand, deadline: Instant) -> Result<MetaReply, StoreError> {
        let left: Duration = deadline.saturating_duration_since(Instant::now());
        self.shards.propose_meta(&command, left).await.map_err(|error| match error {
            ShardError::Unknown => StoreError::OutcomeUnknown { shard: ShardId::META },
            ShardError::Busy => StoreError::Busy { retry_after_ms: 100 },
            ShardError::Unavailable | ShardError::Stale => {
                StoreError::Unavailable { shard: Some(ShardId::META), leader: self.topology.leader(ShardId::META) }
            }
        })
    }

    async fn propose(&self, command: MetaCommand, deadline: Instant) -> Result<MetaReply, AdminError> {
        match self.ask(command, deadline).await? {
            MetaReply::Refused(refusal) => Err(StoreError::Refused(refusal.to_string()).into()),
            reply => Ok(reply),
        }
    }

    /// Waits until this node's own view has taken a change in, so that whoever asks next sees it.
    async fn until(&self, deadline: Instant, seen: impl Fn(&flotilla_meta::MetaState) -> bool) {
        let mut news = self.topology.watch();
        let wait = news.wait_for(|meta| seen(meta));
        let _ = tokio::time::timeout_at(deadline.into(), wait).await;
    }

    async fn create(&self, wanted: CreateCollection, deadline: Instant) -> Result<Collection, AdminError> {
        let replicas = wanted.replicas.unwrap_or(REPLICAS_DEFAULT);
        let (sharding, buckets) = match wanted.sharding {
            ApiSharding::Hash => (Sharding::Hash, wanted.buckets.unwrap_or(BUCKETS_DEFAULT)),
            ApiSharding::Range => (Sharding::Range, 1),
        };
        let shards = wanted.shards.unwrap_or_else(|| SHARDS.min(buckets));
        let same = |found: &Collection| {
            found.sharding == wanted.sharding && found.buckets == buckets && found.replicas == replicas
        };
        if let Some(found) = self.find(&wanted.name) {
            return if same(&found) { Ok(found) } else { Err(StoreError::CollectionExists(wanted.name).into()) };
        }
        let meta = self.topology.meta();
        let alive = |node| match self.topology.liveness(node).0 {
            MemberState::Alive => Liveness::Live,
            _ => Liveness::Suspect,
        };
        let command = MetaCommand::CreateCollection {
            name: wanted.name.clone(),
            sharding,
            buckets,
            replicas,
            initial_nodes: meta.initial_nodes(shards, replicas, alive),
        };
        let name = wanted.name.clone();
        match self.propose(command, deadline).await {
            Ok(_) => {}
            // A retry of a command whose answer was lost.
            Err(AdminError::Store(StoreError::Refused(_))) if self.find(&name).is_some_and(|found| same(&found)) => {}
            Err(error) => return Err(error),
        }
        self.until(deadline, |meta| meta.collection(&name).is_some()).await;
        self.find(&name).ok_or_else(|| StoreError::OutcomeUnknown { shard: ShardId::META }.into())
    }

    fn find(&self, name: &str) -> Option<Collection> {
        status::collections(&self.topology.meta()).into_iter().find(|collection| collection.name == name)
    }

    async fn remove(&self, node: NodeId, force: bool, deadline: Instant) -> Result<(), AdminError> {
        let meta = self.topology.meta();
        if meta.node(node).is_none() {
            return Err(AdminError::NodeNotFound(node));
        }
        let holds = meta.shards().filter(|shard| shard.descriptor.replica_on(node).is_some()).count();
        let alive = self.topology.liveness(node).0 == MemberState::Alive;
        if !force && (alive || holds > 0) {
            let state = if alive { "alive" } else { "not alive" };
            return Err(StoreError::Refused(format!(
                "node {node} is {state} and holds {holds} replicas; stop it and wait until they are replaced, or use force \
                 (shards that have no other live majority would lose writes)"
            ))
            .into());
        }
        self.propose(MetaCommand::RemoveNode { node }, deadline).await?;
        Ok(())
    }

    async fn revoke(&self, token: flotilla_api::TokenId, deadline: Instant) -> Result<(), AdminError> {
        let id = flotilla_meta::TokenId(token.0);
        // The group is asked in any case: this node's own view may not have the token yet.
        match self.ask(MetaCommand::RevokeToken { id }, deadline).await? {
            MetaReply::Refused(MetaRefusal::UnknownToken) => return Err(AdminError::TokenNotFound(token)),
            MetaReply::Refused(refusal) => return Err(StoreError::Refused(refusal.to_string()).into()),
            _ => {}
        }
        self.until(deadline, |meta| meta.token(id).is_none()).await;
        Ok(())
    }

    async fn digests_until(&self, deadline: Instant) -> DigestList {
        let mut replicas = Vec::new();
        for status in self.host.status().iter() {
            let digest = tokio::time::timeout_at(deadline.into(), self.host.digest(status.replica)).await;
            let (held, reason) = match digest {
                Ok(Ok(digest)) => {
                    let hex = digest.hash.iter().map(|byte| format!("{byte:02x}")).collect();
                    (Some(Held { applied: digest.applied.0, records: digest.records, digest: hex }), None)
                }
                Ok(Err(error)) => (None, Some(error.to_string())),
                Err(_) => (None, Some("there was no time left; allow more".to_owned())),
            };
            replicas.push(ReplicaDigest { shard: status.shard, replica: status.replica, held, reason });
        }
        DigestList { node: self.identity.node(), replicas }
    }

    async fn set(&self, key: String, value: u64, deadline: Instant) -> Result<ApiSetting, AdminError> {
        let setting: Setting = key.parse().map_err(|_| AdminError::SettingNotFound)?;
        if !setting.accepts(value) {
            return Err(AdminError::SettingValue { description: setting.description() });
        }
        self.propose(MetaCommand::PutSetting { key, value: value.to_string() }, deadline).await?;
        self.until(deadline, |meta| meta.setting(setting) == value).await;
        Ok(status::setting(setting, value))
    }
}

impl Admin for NodeAdmin {
    fn status(&self) -> ClusterStatus {
        let sources = status::Sources {
            cluster: self.identity.cluster(),
            topology: &self.topology,
            host: &self.host,
            network: &self.network,
            started_ms: self.started_ms,
            draining: self.is_draining(),
            notes: Vec::new(),
        };
        sources.status()
    }

    fn list_collections(&self) -> Vec<Collection> {
        status::collections(&self.topology.meta())
    }

    fn list_settings(&self) -> Vec<ApiSetting> {
        let meta = self.topology.meta();
        Setting::ALL.into_iter().map(|setting| status::setting(setting, meta.setting(setting))).collect()
    }

    fn list_tokens(&self) -> Vec<TokenInfo> {
        self.topology.meta().tokens().map(status::token).collect()
    }

    fn readiness(&self) -> Vec<Check> {
        let status = self.status();
        let leaderless = status.shards.iter().filter(|shard| shard.leader.is_none()).count();
        let check = |name: &str, ok, detail: String| Check { name: name.to_owned(), ok, detail };
        vec![
            check("metadata", !status.nodes.is_empty(), format!("version {}", self.topology.meta().version())),
            check(
                "leaders",
                !status.shards.is_empty() && leaderless == 0,
                format!("{leaderless} of {} shards without a known leader", status.shards.len()),
            ),
            check("collection", !status.collections.is_empty(), format!("{} collections", status.collections.len())),
            check("draining", !status.draining, format!("draining: {}", status.draining)),
        ]
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn metrics_text(&self) -> String {
        let mut text = self.metrics.render();
        text.push_str(&metrics::text(&self.status()));
        text
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn recent(&self) -> Vec<Event> {
        self.events.recent()
    }

    fn digests(&self, deadline: Instant) -> AdminFuture<'_, DigestList> {
        Box::pin(async move { Ok(self.digests_until(deadline).await) })
    }

    fn create_collection(&self, wanted: CreateCollection, deadline: Instant) -> AdminFuture<'_, Collection> {
        Box::pin(self.create(wanted, deadline))
    }

    fn drop_collection(&self, name: String, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(async move {
            let id = self.topology.meta().collection(&name).map(|collection| collection.id);
            let id = id.ok_or_else(|| StoreError::CollectionNotFound(name.clone()))?;
            self.propose(MetaCommand::DropCollection { collection: id }, deadline).await?;
            self.until(deadline, |meta| meta.collection(&name).is_none()).await;
            Ok(())
        })
    }

    fn create_token(&self, wanted: TokenRequest, deadline: Instant) -> AdminFuture<'_, TokenReply> {
        Box::pin(async move {
            let uses = wanted.uses.unwrap_or(1);
            let expires_at_ms = clock::wall_ms().saturating_add(wanted.ttl_ms.unwrap_or(TOKEN_TTL_MS_DEFAULT));
            let id = TokenId(rand::random());
            let token = JoinToken::mint(self.identity.cluster(), self.identity.ca_fingerprint(), id, &mut rand::rng());
            let command = MetaCommand::CreateToken {
                id: flotilla_meta::TokenId(id.0),
                hash: token.hash().0,
                expires_at_ms,
                uses,
            };
            self.propose(command, deadline).await?;
            self.until(deadline, |meta| meta.token(flotilla_meta::TokenId(id.0)).is_some()).await;
            Ok(TokenReply { id: flotilla_api::TokenId(id.0), token: token.to_string(), expires_at_ms, uses })
        })
    }

    fn revoke_token(&self, token: flotilla_api::TokenId, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(self.revoke(token, deadline))
    }

    fn put_setting(&self, key: String, value: u64, deadline: Instant) -> AdminFuture<'_, ApiSetting> {
        Box::pin(self.set(key, value, deadline))
    }

    fn remove_node(&self, node: NodeId, force: bool, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(self.remove(node, force, deadline))
    }

    fn drain(&self) -> AdminFuture<'_, ()> {
        self.draining.store(true, Ordering::Relaxed);
        self.host.step_down();
        Box::pin(async { Ok(()) })
    }
}
