//! The administrative interface of the node for the HTTP gateway: status, collections, nodes, tokens and
//! settings.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_api::{
    AuthorityStatus, ChangeCollection, Check, ClusterStatus, Collection, ConsistencyReport, CreateCollection,
    DecisionList, DigestList, Event, KeyId, KeyInfo, KeyReply, KeyRequest, MoveShard, NodeChange, NodeTraffic,
    NodeVerb, OperationInfo, OperationList, OperationVerb, RecordsDigest, ReplicaDigest, ReplicationStats, ScrubReport,
    Setting as ApiSetting, ShardExplanation, ShardOrder, ShardTop, Sharding as ApiSharding, TokenInfo, TokenReply,
    TokenRequest, UpgradeStatus,
};
use flotilla_control::{MemberState, ShardError, Shards, Topology, UpgradeError, next_version};
use flotilla_gateway::{Admin, AdminError, AdminFuture, AuditEntry, ChangeOptions, Store, StoreError};
use flotilla_identity::{ClientKey, JoinToken, TokenId};
use flotilla_meta::{
    BUCKETS_MAX, CollectionSettings, Liveness, MetaCommand, MetaRefusal, MetaReply, NodeState, Setting,
};
use flotilla_placement::Sharding;
use flotilla_replication::{Handle, ReplicaStatus, clock};
use flotilla_transport::Transport;
use flotilla_types::{NodeId, OperationId, ShardId, VersionRange};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::broadcast;

use super::{
    audit::Audit,
    authority::{self, AuthorityDesk, IdentityWatch, RotateError},
    config::{BUCKETS_DEFAULT, REPLICAS_DEFAULT, SHARDS_DEFAULT},
    consistency,
    events::Events,
    health, load, metrics,
    node_change::{self, Facts, disks, preflight_of, version_missing},
    operations, placement, scrub, status,
};

/// Lifetime of a join token when the request names none.
const TOKEN_TTL_MS_DEFAULT: u64 = 3_600_000;
/// How long another node may take to report what changes shards.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Implements [`Admin`] for a running node.
pub(crate) struct NodeAdmin {
    /// Finds where to split shards.
    pub(crate) store: Store,
    pub(crate) identity: IdentityWatch,
    pub(crate) desk: AuthorityDesk,
    pub(crate) topology: Arc<Topology>,
    pub(crate) host: Handle,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
    pub(crate) events: Arc<Events>,
    pub(crate) audit: Audit,
    /// Remarks for operators in the status.
    pub(crate) notes: Vec<String>,
    pub(crate) metrics: PrometheusHandle,
    /// Whether the process is about to end.
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) started_ms: u64,
    /// Whether all checks of readiness passed once.
    pub(crate) was_ready: AtomicBool,
}

impl NodeAdmin {
    /// Proposes a command to the metadata group and returns its reply, which may be a refusal.
    async fn send_command(&self, command: MetaCommand, deadline: Instant) -> Result<MetaReply, StoreError> {
        let remaining: Duration = deadline.saturating_duration_since(Instant::now());
        self.shards.propose_meta(&command, remaining).await.map_err(|error| match error {
            ShardError::Unknown => StoreError::OutcomeUnknown { shard: ShardId::META },
            ShardError::Busy => StoreError::Busy { retry_after_ms: 100 },
            ShardError::Unavailable
            | ShardError::Stale(_)
            | ShardError::Damaged
            | ShardError::SnapshotExpired
            | ShardError::ObjectsMissing => {
                StoreError::Unavailable { shard: Some(ShardId::META), leader: self.topology.leader(ShardId::META) }
            }
        })
    }

    /// As [`send_command`](Self::send_command), with a refusal as an error.
    pub(super) async fn propose(&self, command: MetaCommand, deadline: Instant) -> Result<MetaReply, AdminError> {
        match self.send_command(command, deadline).await? {
            MetaReply::Refused(refusal) => Err(StoreError::Refused(refusal.to_string()).into()),
            reply => Ok(reply),
        }
    }

    /// Waits until a change is visible in this node's metadata, so that the next request to it sees the
    /// change.
    pub(super) async fn wait_until(&self, deadline: Instant, is_visible: impl Fn(&flotilla_meta::MetaState) -> bool) {
        let mut metadata = self.topology.watch();
        let wait = metadata.wait_for(|meta| is_visible(meta));
        let _ = tokio::time::timeout_at(deadline.into(), wait).await;
    }

    async fn create(&self, request: CreateCollection, deadline: Instant) -> Result<Collection, AdminError> {
        let replicas = request.replicas.unwrap_or(REPLICAS_DEFAULT);
        let (sharding, buckets) = match request.sharding {
            ApiSharding::Hash => (Sharding::Hash, request.buckets.unwrap_or(BUCKETS_DEFAULT)),
            ApiSharding::Range => (Sharding::Range, 1),
        };
        let shards = request.shards.unwrap_or_else(|| SHARDS_DEFAULT.min(buckets));
        if let Some(refusal) = misfit(request.sharding, shards, buckets) {
            return Err(StoreError::Refused(refusal).into());
        }
        let CreateCollection { objects_from, chunk, split_bytes, .. } = request.clone();
        let settings = self.settings(ChangeCollection { objects_from, chunk, split_bytes })?;
        let matches = |found: &Collection| {
            found.sharding == request.sharding
                && found.buckets == buckets
                && found.replicas == replicas
                && has_settings(found, settings)
        };
        if let Some(found) = self.find(&request.name) {
            return if matches(&found) { Ok(found) } else { Err(StoreError::CollectionExists(request.name).into()) };
        }
        let meta = self.topology.meta();
        let command = MetaCommand::CreateCollection {
            name: request.name.clone(),
            sharding,
            buckets,
            replicas,
            initial_nodes: meta.initial_nodes(shards, replicas, |node| self.liveness(node)),
            settings,
        };
        let name = request.name.clone();
        match self.propose(command, deadline).await {
            Ok(_) => {}
            // A retry, after the reply to an earlier attempt was lost.
            Err(AdminError::Store(StoreError::Refused(_) | StoreError::OutcomeUnknown { .. }))
                if self.find(&name).is_some_and(|found| matches(&found)) => {}
            Err(error) => return Err(error),
        }
        self.wait_until(deadline, |meta| meta.collection(&name).is_some()).await;
        self.find(&name).ok_or_else(|| StoreError::OutcomeUnknown { shard: ShardId::META }.into())
    }

    /// What a request says of a collection's settings.
    fn settings(&self, request: ChangeCollection) -> Result<CollectionSettings, AdminError> {
        let refused = |refusal: String| AdminError::from(StoreError::Refused(refusal));
        let ChangeCollection { objects_from, chunk, split_bytes } = request;
        let chunking =
            chunk.map(|chunk| chunk.parse().map_err(|error| refused(format!("`chunk`: {error}")))).transpose()?;
        let settings = CollectionSettings { objects_from, chunking, split_bytes };
        let missing = settings.since().and_then(|needed| version_missing(&self.topology.meta(), needed));
        missing.map_or(Ok(settings), |missing| Err(refused(missing)))
    }

    async fn change_settings(
        &self,
        name: String,
        request: ChangeCollection,
        deadline: Instant,
    ) -> Result<Collection, AdminError> {
        let settings = self.settings(request)?;
        let found = self.find(&name).ok_or_else(|| StoreError::CollectionNotFound(name.clone()))?;
        if !has_settings(&found, settings) {
            self.propose(MetaCommand::ChangeCollection { collection: found.id, settings }, deadline).await?;
            self.wait_until(deadline, |meta| {
                meta.collection(&name).is_none_or(|found| has_settings(&status::collection(found), settings))
            })
            .await;
        }
        self.find(&name).ok_or_else(|| StoreError::CollectionNotFound(name).into())
    }

    fn find(&self, name: &str) -> Option<Collection> {
        status::collections(&self.topology.meta()).into_iter().find(|collection| collection.name == name)
    }

    async fn change(
        &self,
        node: NodeId,
        verb: NodeVerb,
        options: ChangeOptions,
        deadline: Instant,
    ) -> Result<NodeChange, AdminError> {
        let moves_away = || self.topology.meta().node(node).is_some_and(|node| node.state.moves_replicas_away());
        // What moves already is not refused any more.
        let capacities = if matches!(verb, NodeVerb::Decommission | NodeVerb::Leave) && !moves_away() {
            let remaining = deadline.saturating_duration_since(Instant::now());
            self.shards.capacities(remaining.min(REPORT_TIMEOUT)).await
        } else {
            Vec::new()
        };
        let disks = Arc::new(disks(capacities));
        let plan = async || {
            let disks = disks.clone();
            let (meta, topology, with) = (self.topology.meta(), self.topology.clone(), options.with.clone());
            // On a thread of its own, because it visits all shards.
            let work = move || preflight_of(&meta, |node| liveness(&topology, node), verb, node, &with, &disks);
            let unavailable = |_| StoreError::Unavailable { shard: None, leader: None };
            let preflight = tokio::task::spawn_blocking(work).await.map_err(unavailable)?;
            let (meta, status) = (self.topology.meta(), self.status());
            let record = meta.node(node).ok_or(AdminError::NodeNotFound(node))?;
            let liveness = |node| self.liveness(node);
            let with = &options.with;
            let facts = Facts { meta: &meta, status: &status, liveness: &liveness, with, preflight: &preflight };
            Ok::<_, AdminError>(facts.plan(record, verb, options.dry_run))
        };
        let planned = plan().await?;
        if options.dry_run {
            return Ok(planned);
        }
        if let Some(refusal) = planned.refusal.filter(|_| !(options.force && planned.force_helps)) {
            let blockers = planned.blockers;
            let is_blocked = planned.force_helps && !blockers.is_empty();
            return Err(if is_blocked {
                AdminError::Blocked { refusal, blockers }
            } else {
                StoreError::Refused(refusal).into()
            });
        }
        let command = node_change::command(node, verb);
        let wanted = match command {
            MetaCommand::SetNodeState { state, .. } => state,
            _ => NodeState::Removed,
        };
        self.propose(command, deadline).await?;
        // A node that is taken back may be gone by then.
        self.wait_until(deadline, |meta| meta.node(node).is_none_or(|node| node.state == wanted)).await;
        plan().await
    }

    /// Whether new clients should use this node.
    fn service(&self, status: &ClusterStatus) -> String {
        match status.nodes.iter().find(|node| node.is_self).map(|node| node.state) {
            _ if self.stopping.load(Ordering::Relaxed) => "this node is about to end; use another one".to_owned(),
            Some(state) if status.draining => format!("this node is {state}; use another one"),
            _ => "in service".to_owned(),
        }
    }

    /// What changes shards, as this node reports it.
    fn operations_here(&self) -> OperationList {
        let me = self.topology.node();
        let reports = vec![(me, Some(self.shards.operations_here()))];
        operations::list(reports, &self.topology.meta(), me, clock::wall_ms())
    }

    /// What changes shards, as all nodes report it that answer soon.
    pub(super) async fn reported_operations(&self, deadline: Instant) -> OperationList {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let reports = self.shards.operations(remaining.min(REPORT_TIMEOUT)).await;
        operations::list(reports, &self.topology.meta(), self.topology.node(), clock::wall_ms())
    }

    /// The liveness of a node for placement, now.
    pub(super) fn liveness(&self, node: NodeId) -> Liveness {
        liveness(&self.topology, node)
    }

    async fn finish(&self, deadline: Instant) -> Result<UpgradeStatus, AdminError> {
        let meta = self.topology.meta();
        match next_version(&meta, VersionRange::supported(), self.topology.seen()) {
            Ok(command) => {
                self.propose(command, deadline).await?;
                let raised = meta.cluster_version().next();
                self.wait_until(deadline, |meta| meta.cluster_version() >= raised).await;
            }
            Err(UpgradeError::NothingLater { .. }) => {}
            Err(UpgradeError::Missing { next, nodes }) => {
                let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
                return Err(StoreError::Refused(format!(
                    "these nodes were not seen with a binary that supports version {next} since their last start: {}; \
                     start each with such a binary, or remove it",
                    nodes.join(", ")
                ))
                .into());
            }
        }
        Ok(self.upgrade_status())
    }

    /// Remarks for operators.
    fn notes(&self) -> Vec<String> {
        let life = self.identity.borrow().life();
        let overdue = authority::is_overdue(life, authority::now_s());
        let ends = life.expires_s().saturating_sub(authority::now_s());
        let overdue = overdue.then(|| format!("this node's certificate ends in {ends} s and could not be renewed"));
        self.notes.iter().cloned().chain(overdue).collect()
    }

    async fn rotate(&self, deadline: Instant) -> Result<AuthorityStatus, AdminError> {
        let before = self.topology.meta().authority().map_or(0, |record| record.serial);
        match self.desk.rotate_anywhere(deadline).await {
            Ok(()) => {}
            Err(RotateError::Refused(reason)) => return Err(StoreError::Refused(reason).into()),
            Err(RotateError::Unknown) => return Err(StoreError::OutcomeUnknown { shard: ShardId::META }.into()),
        }
        self.wait_until(deadline, |meta| meta.authority().is_some_and(|record| record.serial > before)).await;
        Ok(self.authority_status())
    }

    async fn revoke(&self, token: flotilla_api::TokenId, deadline: Instant) -> Result<(), AdminError> {
        let id = flotilla_meta::TokenId(token.0);
        // The command is sent without a local check: this node may not know the token yet.
        match self.send_command(MetaCommand::RevokeToken { id }, deadline).await? {
            MetaReply::Refused(MetaRefusal::UnknownToken) => return Err(AdminError::TokenNotFound(token)),
            MetaReply::Refused(refusal) => return Err(StoreError::Refused(refusal.to_string()).into()),
            _ => {}
        }
        self.wait_until(deadline, |meta| meta.token(id).is_none()).await;
        Ok(())
    }

    async fn create_client_key(&self, request: KeyRequest, deadline: Instant) -> Result<KeyReply, AdminError> {
        let key = ClientKey::mint(&mut rand::rng());
        let id = flotilla_meta::KeyId(key.id());
        let command = MetaCommand::CreateKey {
            id,
            hash: key.hash().0,
            role: request.role,
            collections: request.collections,
            expires_at_ms: request.ttl_ms.map_or(0, |ttl_ms| clock::wall_ms().saturating_add(ttl_ms)),
        };
        self.propose(command, deadline).await?;
        self.wait_until(deadline, |meta| meta.key(id).is_some()).await;
        let meta = self.topology.meta();
        let record = meta.key(id).ok_or(StoreError::OutcomeUnknown { shard: ShardId::META })?;
        Ok(KeyReply { key: key.to_string(), info: status::key(record) })
    }

    async fn revoke_client_key(&self, key: KeyId, deadline: Instant) -> Result<(), AdminError> {
        let id = flotilla_meta::KeyId(key.0);
        // The command is sent without a local check: this node may not know the key yet.
        match self.send_command(MetaCommand::RevokeKey { id }, deadline).await? {
            MetaReply::Refused(MetaRefusal::UnknownKey) => return Err(AdminError::KeyNotFound(key)),
            MetaReply::Refused(refusal) => return Err(StoreError::Refused(refusal.to_string()).into()),
            _ => {}
        }
        self.wait_until(deadline, |meta| meta.key(id).is_none()).await;
        Ok(())
    }

    /// The digests of the local replicas, or of those of some shards. Replicas that do not answer before the
    /// deadline get a reason instead.
    async fn local_digests(&self, only: Option<BTreeSet<ShardId>>, deadline: Instant) -> DigestList {
        let mut replicas = Vec::new();
        let is_asked = |status: &&ReplicaStatus| only.as_ref().is_none_or(|only| only.contains(&status.shard));
        for status in self.host.status().iter().filter(is_asked) {
            let digest = tokio::time::timeout_at(deadline.into(), self.host.digest(status.replica)).await;
            let (held, reason) = match digest {
                Ok(Ok(digest)) => {
                    let hex = digest.hash.iter().map(|byte| format!("{byte:02x}")).collect();
                    (Some(RecordsDigest { applied: digest.applied.0, records: digest.records, digest: hex }), None)
                }
                Ok(Err(error)) => (None, Some(error.to_string())),
                Err(_) => (None, Some("no digest before the deadline; use a longer timeout".to_owned())),
            };
            replicas.push(ReplicaDigest { shard: status.shard, replica: status.replica, held, reason });
        }
        DigestList { node: self.topology.node(), replicas }
    }

    async fn set(&self, key: String, value: u64, deadline: Instant) -> Result<ApiSetting, AdminError> {
        let setting: Setting = key.parse().map_err(|_| AdminError::SettingNotFound)?;
        if !setting.accepts(value) {
            return Err(AdminError::SettingValue { description: setting.description() });
        }
        self.propose(MetaCommand::PutSetting { key, value: value.to_string() }, deadline).await?;
        self.wait_until(deadline, |meta| meta.setting(setting) == value).await;
        Ok(status::setting(setting, value))
    }
}

/// The liveness of a node for placement, now.
fn liveness(topology: &Topology, node: NodeId) -> Liveness {
    match topology.liveness(node).0 {
        MemberState::Alive => Liveness::Live,
        _ => Liveness::Suspect,
    }
}

/// Whether a collection has these settings, as far as they are said.
fn has_settings(found: &Collection, settings: CollectionSettings) -> bool {
    let has = |said: Option<String>, found: &Option<String>| said.is_none() || said == *found;
    (settings.objects_from.is_none() || settings.objects_from == found.objects_from)
        && (settings.split_bytes.is_none() || settings.split_bytes == found.split_bytes)
        && has(settings.chunking.map(|chunking| chunking.to_string()), &found.chunk)
}

/// Why a collection cannot have as many shards. Other limits are for the metadata group to check.
fn misfit(sharding: ApiSharding, shards: u16, buckets: u16) -> Option<String> {
    match sharding {
        _ if shards == 0 => Some("the number of shards must be 1 to the number of buckets".to_owned()),
        ApiSharding::Range if shards > 1 => {
            Some(format!("a range collection begins with one shard, not {shards}; leave out the number of shards"))
        }
        ApiSharding::Hash if shards > buckets && (1..=BUCKETS_MAX).contains(&buckets) => Some(format!(
            "{shards} shards do not fit {buckets} buckets: each shard needs at least one; ask for at most {buckets} \
             shards, or for more buckets (`--buckets`, at most {BUCKETS_MAX})"
        )),
        _ => None,
    }
}

impl Admin for NodeAdmin {
    fn status(&self) -> ClusterStatus {
        let sources = status::Sources {
            cluster: self.identity.borrow().cluster(),
            topology: &self.topology,
            host: &self.host,
            network: &self.network,
            started_ms: self.started_ms,
            draining: self.is_draining(),
            notes: self.notes(),
            operations: self.operations_here(),
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

    fn list_keys(&self) -> Vec<KeyInfo> {
        self.topology.meta().keys().map(status::key).collect()
    }

    fn upgrade_status(&self) -> UpgradeStatus {
        status::upgrade(&self.topology.meta(), &self.topology.seen())
    }

    fn authority_status(&self) -> AuthorityStatus {
        let custody = &self.desk.custody;
        let fingerprint = authority::fingerprint(&custody.authorities()).to_string();
        status::authority(&self.topology.meta(), fingerprint, custody.holds(), self.identity.borrow().life())
    }

    fn readiness(&self) -> Vec<Check> {
        let hints = self.topology.hints();
        let status = self.status();
        let was_ready = self.was_ready.load(Ordering::Relaxed);
        let check = |name: &str, ok, detail: String| Check { name: name.to_owned(), ok, detail };
        let checks = vec![
            check("metadata", !status.nodes.is_empty(), format!("version {}", self.topology.meta().version())),
            // Lost redundancy is shown and does not make a node unready: it serves.
            check(
                "available",
                health::serves(&status.shards, was_ready, |shard| hints.was_led(shard)),
                status.redundancy(),
            ),
            check("collection", !status.collections.is_empty(), format!("{} collections", status.collections.len())),
            check("draining", !status.draining, self.service(&status)),
        ];
        self.was_ready.fetch_or(checks.iter().all(|check| check.ok), Ordering::Relaxed);
        checks
    }

    fn is_draining(&self) -> bool {
        let me = self.identity.borrow().node();
        let out_of_service = || self.topology.meta().node(me).is_some_and(|node| node.state != NodeState::Active);
        self.stopping.load(Ordering::Relaxed) || out_of_service()
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

    fn audit(&self, entry: AuditEntry) {
        self.audit.record(entry);
    }

    fn subscribe_audit(&self) -> broadcast::Receiver<Event> {
        self.audit.subscribe()
    }

    fn recent_audit(&self) -> Vec<Event> {
        self.audit.recent()
    }

    fn operations(&self, deadline: Instant) -> AdminFuture<'_, OperationList> {
        Box::pin(async move { Ok(self.reported_operations(deadline).await) })
    }

    fn operation(&self, operation: OperationId, deadline: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(self.show_operation(operation, deadline))
    }

    fn move_shard(&self, shard: ShardId, request: MoveShard, deadline: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(self.begin_move(shard, request, deadline))
    }

    fn split_shard(&self, shard: ShardId, at: Option<Bytes>, deadline: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(self.begin_split(shard, at, deadline))
    }

    fn merge_shards(&self, left: ShardId, right: ShardId, deadline: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(self.begin_merge(left, right, deadline))
    }

    fn change_operation(
        &self,
        operation: OperationId,
        verb: OperationVerb,
        deadline: Instant,
    ) -> AdminFuture<'_, OperationInfo> {
        Box::pin(self.change_recorded(operation, verb, deadline))
    }

    fn explain(&self, shard: ShardId, deadline: Instant) -> AdminFuture<'_, ShardExplanation> {
        Box::pin(self.explain_shard(shard, deadline))
    }

    fn rebalance(&self, dry_run: bool, deadline: Instant) -> AdminFuture<'_, DecisionList> {
        Box::pin(self.replan(dry_run, deadline))
    }

    fn decisions(&self, limit: usize, deadline: Instant) -> AdminFuture<'_, DecisionList> {
        Box::pin(async move {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let reports = self.shards.decisions(limit, remaining.min(REPORT_TIMEOUT)).await;
            Ok(placement::list(reports, limit, &self.topology.meta()))
        })
    }

    fn shard_top(&self, order: ShardOrder, limit: usize, deadline: Instant) -> AdminFuture<'_, ShardTop> {
        Box::pin(async move {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let reports = self.shards.loads(remaining.min(REPORT_TIMEOUT)).await;
            Ok(load::top(reports, order, limit, &self.topology.meta()))
        })
    }

    fn scrub(&self, start: bool, deadline: Instant) -> AdminFuture<'_, ScrubReport> {
        Box::pin(async move {
            let remaining = deadline.saturating_duration_since(Instant::now());
            Ok(scrub::report(self.shards.scrubs(start, remaining.min(REPORT_TIMEOUT)).await))
        })
    }

    fn consistency(&self, deadline: Instant) -> AdminFuture<'_, ConsistencyReport> {
        Box::pin(async move {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let reports = self.shards.comparisons(remaining.min(REPORT_TIMEOUT)).await;
            Ok(consistency::report(reports, self.topology.meta().shards().map(|shard| shard.id)))
        })
    }

    fn replication_stats(&self, deadline: Instant) -> AdminFuture<'_, ReplicationStats> {
        Box::pin(async move {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let nodes = self.shards.value_traffic(remaining.min(REPORT_TIMEOUT)).await;
            let of = |(node, traffic): (_, Option<_>)| NodeTraffic { node, values: traffic.map(status::values) };
            Ok(ReplicationStats { nodes: nodes.into_iter().map(of).collect() })
        })
    }

    fn digests(&self, only: Option<BTreeSet<ShardId>>, deadline: Instant) -> AdminFuture<'_, DigestList> {
        Box::pin(async move { Ok(self.local_digests(only, deadline).await) })
    }

    fn create_collection(&self, request: CreateCollection, deadline: Instant) -> AdminFuture<'_, Collection> {
        Box::pin(self.create(request, deadline))
    }

    fn change_collection(
        &self,
        name: String,
        request: ChangeCollection,
        deadline: Instant,
    ) -> AdminFuture<'_, Collection> {
        Box::pin(self.change_settings(name, request, deadline))
    }

    fn drop_collection(&self, name: String, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(async move {
            let id = self.topology.meta().collection(&name).map(|collection| collection.id);
            let id = id.ok_or_else(|| StoreError::CollectionNotFound(name.clone()))?;
            self.propose(MetaCommand::DropCollection { collection: id }, deadline).await?;
            self.wait_until(deadline, |meta| meta.collection(&name).is_none()).await;
            Ok(())
        })
    }

    fn create_token(&self, request: TokenRequest, deadline: Instant) -> AdminFuture<'_, TokenReply> {
        Box::pin(async move {
            let uses = request.uses.unwrap_or(1);
            let expires_at_ms = clock::wall_ms().saturating_add(request.ttl_ms.unwrap_or(TOKEN_TTL_MS_DEFAULT));
            let id = TokenId(rand::random());
            let cluster = self.identity.borrow().cluster();
            let pin = authority::fingerprint(&self.desk.custody.authorities());
            let token = JoinToken::mint(cluster, pin, id, &mut rand::rng());
            let command = MetaCommand::CreateToken {
                id: flotilla_meta::TokenId(id.0),
                hash: token.hash().0,
                expires_at_ms,
                uses,
            };
            self.propose(command, deadline).await?;
            self.wait_until(deadline, |meta| meta.token(flotilla_meta::TokenId(id.0)).is_some()).await;
            Ok(TokenReply { id: flotilla_api::TokenId(id.0), token: token.to_string(), expires_at_ms, uses })
        })
    }

    fn revoke_token(&self, token: flotilla_api::TokenId, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(self.revoke(token, deadline))
    }

    fn create_key(&self, request: KeyRequest, deadline: Instant) -> AdminFuture<'_, KeyReply> {
        Box::pin(self.create_client_key(request, deadline))
    }

    fn revoke_key(&self, key: KeyId, deadline: Instant) -> AdminFuture<'_, ()> {
        Box::pin(self.revoke_client_key(key, deadline))
    }

    fn put_setting(&self, key: String, value: u64, deadline: Instant) -> AdminFuture<'_, ApiSetting> {
        Box::pin(self.set(key, value, deadline))
    }

    fn finish_upgrade(&self, deadline: Instant) -> AdminFuture<'_, UpgradeStatus> {
        Box::pin(self.finish(deadline))
    }

    fn change_node(
        &self,
        node: NodeId,
        verb: NodeVerb,
        options: ChangeOptions,
        deadline: Instant,
    ) -> AdminFuture<'_, NodeChange> {
        Box::pin(self.change(node, verb, options, deadline))
    }

    fn rotate_authority(&self, deadline: Instant) -> AdminFuture<'_, AuthorityStatus> {
        Box::pin(self.rotate(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_shards_than_buckets_are_refused_with_what_to_do() {
        let refusal = misfit(ApiSharding::Hash, 40, 16).expect("a refusal");
        let parts = ["40 shards", "16 buckets", "at most 16 shards", "`--buckets`, at most 1024"];
        assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal}");
        assert!(misfit(ApiSharding::Range, 2, 1).is_some_and(|refusal| refusal.contains("one shard")));
        assert!(misfit(ApiSharding::Hash, 0, 16).is_some());
        for (sharding, shards, buckets) in [(ApiSharding::Hash, 16, 16), (ApiSharding::Range, 1, 1)] {
            assert_eq!(misfit(sharding, shards, buckets), None);
        }
        // What is wrong there is the number of buckets, which the metadata group says.
        assert_eq!(misfit(ApiSharding::Hash, 2_000, 1_500), None);
    }
}
