//! Sends requests to shards, whose leaders are on this node or one hop away over the peer RPC stream.
//! [`RequestRetry`] decides the target and the retries.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_meta::{Feed, MetaCommand, MetaFollower, MetaQuery, MetaReply};
use flotilla_placement::Disk;
use flotilla_replication::{
    Answer, Answered, FetchError, Fetched, Freshness, Handle, ReplicaStatus, RequestError, Role, ValueTraffic, clock,
};
use flotilla_route::Heard;
use flotilla_transport::{CallError, Class, NotSent, Transport};
use flotilla_types::{NodeId, Refs, ReplicaId, ReplicaRole, ShardId};
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use parking_lot::Mutex;

use crate::{
    Capacity, Comparisons, Earlier, Evidence, LoadMeter, NodeLoad, NodeScrub, Operations, PeerRequest,
    PlacementQuestion, PlacementReport, RequestKind, RequestRetry, RetryDecision, RetryStep, Said, ShardAnswer,
    ShardError, ShardRequest, Topology, core,
    core::{CpuMeter, may_order_to_give_up},
    placement::{self, Asker},
};

/// How often a refresh asks for the changes since the last answer, before it asks for the whole metadata.
const REFRESH_FEEDS_MAX: usize = 4;

/// Pause before the leader of the metadata group is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Asks this node's host, for a node that sent the request.
pub(crate) async fn ask_host(host: &Handle, from: NodeId, request: ShardRequest) -> Answer {
    let refs = request.command_refs(from);
    let ShardRequest { kind, shard, range_epoch, after, payload, timeout_ms, .. } = request;
    let timeout = Duration::from_millis(timeout_ms.into());
    match kind {
        RequestKind::Propose => host.propose_referring(shard, range_epoch, after, payload, refs, timeout).await,
        RequestKind::Query => host.query(shard, range_epoch, payload, Freshness::Strong, timeout).await,
    }
}

/// What changes the shards that are led here, and the snapshots that are received here.
pub(crate) fn operations_here(topology: &Topology, host: &Handle) -> Operations {
    topology.operations().with_snapshots(host.incoming_snapshots(), topology.node())
}

/// Gives up a replica of this node, as the node `from` orders: if that leads the shard, and the replica differs from
/// what a majority has.
pub(crate) async fn give_up(host: &Handle, from: NodeId, (shard, replica): (ShardId, ReplicaId), evidence: &Evidence) {
    if !host.status().get(replica).is_some_and(|status| may_order_to_give_up(status, shard, from)) {
        tracing::warn!(%from, %shard, %replica, "a node that does not lead the shard wants a replica to be given up");
        return;
    }
    match host.fingerprints(replica).await.map(Said::here) {
        Some(said) if said.is_refuted_by(evidence) => host.diverged(replica),
        // It has gone on, or is gone: its leader compares it again.
        _ => tracing::info!(%replica, ?evidence, "the replica does not differ there, or cannot tell"),
    }
}

/// How the scrub of this node stands. With `start`, a pass begins.
pub(crate) fn scrub_here(host: &Handle, start: bool) -> NodeScrub {
    if start {
        host.scrub_now();
    }
    NodeScrub::new(host.scrub_status(), host.status().iter())
}

/// Reads how much disk this node has. Must be quick.
pub type DiskReader = Arc<dyn Fn() -> Option<Disk> + Send + Sync>;

/// Measures the work of this node.
#[derive(Default)]
struct NodeMeter {
    cpu: CpuMeter,
    used_milli: Option<u32>,
    shards: LoadMeter,
}

/// A client of every shard. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    topology: Arc<Topology>,
    host: Handle,
    network: Arc<Transport>,
    /// What any shard answered this node, so that later commands to other shards follow it.
    heard: Arc<Mutex<Heard>>,
    /// The loop of this node that plans.
    planner: Asker,
    disk: DiskReader,
    load: Arc<Mutex<NodeMeter>>,
}

impl Shards {
    /// Sends requests through this node's host and transport. No loop plans on this node, and its disk is not known.
    #[must_use]
    pub fn new(topology: Arc<Topology>, host: Handle, network: Arc<Transport>) -> Self {
        Self {
            topology,
            host,
            network,
            heard: Arc::default(),
            planner: placement::questions().0,
            disk: Arc::new(|| None),
            load: Arc::default(),
        }
    }

    /// With a loop of this node that plans, and its disk.
    pub(crate) fn with(self, planner: Asker, disk: DiskReader) -> Self {
        Self { planner, disk, ..self }
    }

    /// This node's loop that plans.
    pub(crate) fn planner(&self) -> &Asker {
        &self.planner
    }

    /// This node's host.
    pub(crate) fn host(&self) -> &Handle {
        &self.host
    }

    /// This node's view of the cluster.
    #[must_use]
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// What changes shards in the whole cluster: of each node that is up, the shards that it leads and the
    /// snapshots that it receives. `None` for a node that does not answer in time, or does not know the
    /// request.
    pub async fn operations(&self, timeout: Duration) -> Vec<(NodeId, Option<Operations>)> {
        let decode = |answer| Operations::decode(answer).ok();
        self.of_all_nodes(&PeerRequest::Operations.encode(), timeout, decode, self.operations_here()).await
    }

    /// How the scrubs of all nodes stand. With `start`, a pass begins on each. `None` as for
    /// [`operations`](Self::operations).
    pub async fn scrubs(&self, start: bool, timeout: Duration) -> Vec<(NodeId, Option<NodeScrub>)> {
        let decode = |answer| NodeScrub::decode(answer).ok();
        let request = PeerRequest::Scrub { start }.encode();
        self.of_all_nodes(&request, timeout, decode, scrub_here(&self.host, start)).await
    }

    /// Verdicts on the shards that each node leads. `None` as for [`operations`](Self::operations).
    pub async fn comparisons(&self, timeout: Duration) -> Vec<(NodeId, Option<Comparisons>)> {
        let decode = |answer| Comparisons::decode(answer).ok();
        self.of_all_nodes(&PeerRequest::Comparisons.encode(), timeout, decode, self.topology.comparisons()).await
    }

    /// What values have cost the network of each node since its start. `None` as for
    /// [`operations`](Self::operations).
    pub async fn value_traffic(&self, timeout: Duration) -> Vec<(NodeId, Option<ValueTraffic>)> {
        let decode = |answer| core::decode_traffic(answer).ok();
        self.of_all_nodes(&PeerRequest::ValueTraffic.encode(), timeout, decode, self.host.value_traffic()).await
    }

    /// The capacity of this node.
    pub(crate) fn capacity_here(&self) -> Capacity {
        Capacity::new((self.disk)(), self.host.status().iter())
    }

    /// The capacity of each node. `None` as for [`operations`](Self::operations).
    pub async fn capacities(&self, timeout: Duration) -> Vec<(NodeId, Option<Capacity>)> {
        let decode = |answer| Capacity::decode(answer).ok();
        self.of_all_nodes(&PeerRequest::Capacity.encode(), timeout, decode, self.capacity_here()).await
    }

    /// Measures what the shards that are led here were asked since the last call.
    pub(crate) fn measure(&self, cpu_used_us: u64) {
        let now_ms = clock::monotonic_ms();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut load = self.load.lock();
        load.used_milli = load.cpu.observe(now_ms, cpu_used_us, cores);
        load.shards.observe(now_ms, &self.host.take_demands(), cpu_used_us);
    }

    /// The work of this node.
    pub(crate) fn load_here(&self) -> NodeLoad {
        let status = self.host.status();
        let is_leader =
            |replica: &ReplicaStatus| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader);
        let mut load = self.load.lock();
        let used_milli = load.used_milli;
        load.shards.report(clock::monotonic_ms(), used_milli, |shard| status.of_shard(shard).any(is_leader))
    }

    /// The work of each node. `None` as for [`operations`](Self::operations).
    pub async fn loads(&self, timeout: Duration) -> Vec<(NodeId, Option<NodeLoad>)> {
        let decode = |answer| NodeLoad::decode(answer).ok();
        self.of_all_nodes(&PeerRequest::Load.encode(), timeout, decode, self.load_here()).await
    }

    /// What each node has decided while it led the metadata group, the newest entries, at most `limit` of each.
    /// `None` as for [`operations`](Self::operations).
    pub async fn decisions(&self, limit: usize, timeout: Duration) -> Vec<(NodeId, Option<PlacementReport>)> {
        let question = PlacementQuestion::Journal { limit };
        let decode = |answer| PlacementReport::decode(answer).ok().map(Some);
        let own = tokio::time::timeout(timeout, self.planner.ask(question, &self.topology));
        let own = async { own.await.ok()?.ok() };
        let request = PeerRequest::Placement(question).encode();
        let (mut reports, own) = tokio::join!(self.of_all_nodes(&request, timeout, decode, None), own);
        let me = self.topology.node();
        if let Some(report) = reports.iter_mut().find(|(node, _)| *node == me) {
            report.1 = Some(own);
        }
        reports.into_iter().map(|(node, report)| (node, report.flatten())).collect()
    }

    /// Asks the leader of the metadata group about placement, again and again until it answers. Returns its
    /// answer and which node it is.
    ///
    /// # Errors
    /// No leader answered in time, or its binary does not know the question.
    pub async fn ask_placement(
        &self,
        question: PlacementQuestion,
        timeout: Duration,
    ) -> Result<(NodeId, PlacementReport), ShardError> {
        let ask = async {
            loop {
                if let Some(leader) = self.topology.leader(ShardId::META)
                    && let Some(report) = self.ask_planner(leader, question, timeout).await
                {
                    return (leader, report);
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::time::timeout(timeout, ask).await.map_err(|_| ShardError::Unavailable)
    }

    async fn ask_planner(
        &self,
        node: NodeId,
        question: PlacementQuestion,
        timeout: Duration,
    ) -> Option<PlacementReport> {
        if node == self.topology.node() {
            return self.planner.ask(question, &self.topology).await.ok();
        }
        let request = PeerRequest::Placement(question).encode();
        let answer = self.network.call(node, Class::Rpc, request, timeout).await.ok()?;
        PlacementReport::decode(core::decode_answer(answer).ok()?.payload).ok()
    }

    /// The reports of all nodes that are not gone, in their order; the own one is at hand.
    async fn of_all_nodes<T>(
        &self,
        request: &Bytes,
        timeout: Duration,
        decode: impl Fn(Bytes) -> Option<T>,
        own: T,
    ) -> Vec<(NodeId, Option<T>)> {
        let me = self.topology.node();
        let meta = self.topology.meta();
        let ask = async |node| {
            let answer = self.network.call(node, Class::Rpc, request.clone(), timeout).await.ok()?;
            decode(core::decode_answer(answer).ok()?.payload)
        };
        let others = meta.nodes().filter(|node| !node.state.is_gone() && node.id != me);
        let asked = others.map(async |node| (node.id, ask(node.id).await));
        let mut reports = join_all(asked).await;
        reports.push((me, Some(own)));
        reports.sort_by_key(|(node, _)| *node);
        reports
    }

    /// The same, of this node only. Does not wait.
    #[must_use]
    pub fn operations_here(&self) -> Operations {
        operations_here(&self.topology, &self.host)
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
        self.request_after(retry, kind, shard, (payload, Refs::NONE)).await
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
        self.propose_referring(earlier, shard, range_epoch, command, Refs::NONE, deadline_ms).await
    }

    /// The same for a command that refers to objects: all that the records refer to which it writes. An upload of
    /// this node holds all of them until the answer, or longer if the outcome is unknown.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn propose_referring(
        &self,
        earlier: Earlier,
        shard: ShardId,
        range_epoch: Option<u64>,
        command: Bytes,
        refs: Refs,
        deadline_ms: u64,
    ) -> Result<ShardAnswer, ShardError> {
        let retry = RequestRetry::new(RequestKind::Propose, shard, range_epoch, deadline_ms);
        let retry = retry.after(earlier).referring(&refs);
        self.request_after(retry, RequestKind::Propose, shard, (command, refs)).await
    }

    /// The nodes with a replica of a shard: the leader first, as far as that is known, then voters.
    #[must_use]
    pub fn nodes_of(&self, shard: ShardId) -> Vec<NodeId> {
        self.topology.with(|cluster| cluster.nodes_of(shard))
    }

    /// Fetches what this node lacks of these objects, and of all that they need, from the nodes of a shard. The upload
    /// holds what comes, also if not all of it does.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(
        &self,
        upload: u64,
        shard: ShardId,
        refs: &Refs,
        deadline_ms: u64,
    ) -> Result<Fetched, FetchError> {
        self.fetch_from(upload, self.nodes_of(shard), refs, deadline_ms).await
    }

    /// The same from these nodes.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch_from(
        &self,
        upload: u64,
        nodes: Vec<NodeId>,
        refs: &Refs,
        deadline_ms: u64,
    ) -> Result<Fetched, FetchError> {
        let timeout = Duration::from_millis(deadline_ms.saturating_sub(clock::monotonic_ms()));
        self.host.fetch(upload, refs, nodes, timeout).await
    }

    /// Has the nodes of a shard fetch these objects from this node, which holds them, before a command that refers to
    /// them is proposed: what is proposed later waits behind that command until a quorum has its objects. Returns when
    /// a quorum of the shard's voters has them, or nothing more can be expected by the deadline.
    pub async fn prefetch(&self, shard: ShardId, refs: &Refs, deadline_ms: u64) {
        let me = self.topology.node();
        let Some(descriptor) = self.topology.map().shard(shard).map(|shard| shard.descriptor.clone()) else { return };
        let voters: Vec<_> =
            descriptor.replicas.iter().filter(|held| held.role == ReplicaRole::Voter).map(|held| held.node).collect();
        let quorum = voters.len() / 2 + 1;
        let mut have = usize::from(voters.contains(&me));
        let timeout = Duration::from_millis(deadline_ms.saturating_sub(clock::monotonic_ms()));
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = PeerRequest::Prefetch { refs: refs.clone(), timeout_ms }.encode();
        let mut calls: FuturesUnordered<_> = voters
            .into_iter()
            .filter(|node| *node != me)
            .map(|node| self.network.call(node, Class::Rpc, request.clone(), timeout))
            .collect();
        while have < quorum
            && let Some(answer) = calls.next().await
        {
            have += usize::from(answer.is_ok_and(|answer| core::decode_answer(answer).is_ok()));
        }
    }

    async fn request_after(
        &self,
        mut retry: RequestRetry,
        kind: RequestKind,
        shard: ShardId,
        (payload, refs): (Bytes, Refs),
    ) -> Result<ShardAnswer, ShardError> {
        if kind == RequestKind::Propose {
            retry = retry.following(self.heard.lock().after(clock::wall_ms()));
        }
        loop {
            let now_ms = clock::monotonic_ms();
            let step = self.topology.with(|cluster| retry.next(now_ms, cluster));
            let (node, range_epoch, after, timeout_ms) = match step {
                RetryStep::Send { node, range_epoch, after, timeout_ms } => (node, range_epoch, after, timeout_ms),
                RetryStep::Wait(pause_ms) => {
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
                        () = self.topology.gone(shard), if retry.is_routed() => {}
                    }
                    continue;
                }
                RetryStep::GiveUp(error) => return Err(error),
            };
            let timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
            let (payload, refs) = (payload.clone(), refs.clone());
            let request = ShardRequest { kind, shard, range_epoch, after, payload, refs, timeout_ms };
            let error = match self.send(node, request).await {
                Ok(Answered { payload, clock }) => {
                    self.heard.lock().observe(clock, clock::wall_ms());
                    return Ok(ShardAnswer { payload, node, earlier: retry.earlier() });
                }
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

    async fn send(&self, node: NodeId, request: ShardRequest) -> Answer {
        if node == self.topology.node() {
            return ask_host(&self.host, node, request).await;
        }
        let ShardRequest { kind, shard, timeout_ms, .. } = request;
        let timeout = Duration::from_millis(timeout_ms.into());
        let call = self.network.call(node, Class::Rpc, PeerRequest::Shard(request).encode(), timeout);
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

    /// Brings this node's metadata to at least the state that its group had when this was called.
    ///
    /// # Errors
    /// See [`ShardError`]; never [`ShardError::Unknown`] in effect, because nothing is changed.
    pub async fn refresh(&self, deadline_ms: u64) -> Result<(), ShardError> {
        let ask = async |query: MetaQuery| {
            let answer = self.request(RequestKind::Query, ShardId::META, None, query.encode(), deadline_ms).await?;
            Ok(answer.payload)
        };
        let mut follower = MetaFollower::new(self.topology.meta());
        for _ in 0..REFRESH_FEEDS_MAX {
            let feed = ask(MetaQuery::FeedSince(follower.resume_version())).await?;
            match Feed::decode(&feed).map(|feed| follower.apply(&feed)) {
                // The metadata up to the moment of the question.
                Ok(Ok(false)) => return Ok(()),
                Ok(Ok(true)) => self.topology.offer(follower.state()),
                _ => break,
            }
        }
        let state = ask(MetaQuery::State).await?;
        let state = core::decode_snapshot(&state).ok_or(ShardError::Unavailable)?;
        self.topology.offer(&Arc::new(state));
        Ok(())
    }
}
