//! The control loops of a node: each reconciles, performs its actions in order, receives their outcomes, and
//! waits.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use flotilla_control::{
    Action, AnnounceNode, ClusterView, Consistency, Evidence, FeedFollower, FeedStep, Leaders, Lifecycle, LocalNode,
    Lost, MembershipConfig, Outcome, PROPOSE_TIMEOUT_MS, PeerRequest, Peers, Placement, Reconciler as _, RequestKind,
    Said, ShardsLed, SizeMerges, SizeSplits, View, decode_snapshot, may_order_to_give_up, meta_reply,
};
use flotilla_membership::{Effect, Input as MemberInput, Member, Membership, Timer};
use flotilla_meta::{Addresses, CollectionSettings, Feed, Liveness, MetaCommand, MetaQuery, MetaState, NewNode};
use flotilla_replication::{Contents, Input, LostReason, Replicas};
use flotilla_storage::{Remedy, remedy};
use flotilla_types::{
    Bucket, ClusterId, CollectionId, Epoch, KeyRange, Locality, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId, VersionRange,
};
use std::sync::Arc;

use super::{
    Caller, Completion, Node, NodeEvent, Running,
    rpc::{CallPurpose, FeedWaiter},
};
use crate::{
    network::{CallKind, Frame},
    world::World,
};

/// The one cluster of a world.
const CLUSTER: ClusterId = ClusterId(*b"simulatedcluster");
const BOOTSTRAP_RETRY_MS: u64 = 100;
/// How long a peer may take to say something of a replica's state.
const FINGERPRINTS_TIMEOUT_MS: u64 = 2_000;
/// Delay until new metadata triggers the peers task, microseconds.
const METADATA_NOTICE_US: u64 = 200;

/// The periodic tasks of a node. Variants are ordered: a `BTreeMap` is keyed by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ControlTask {
    Lifecycle,
    ShardsLed,
    Placement,
    Leaders,
    AnnounceNode,
    Consistency,
    SizeSplits,
    SizeMerges,
    Peers,
    /// A pass of `Peers` that new metadata triggered; it does not schedule the next one.
    PeersUntimed,
    Feed,
    Bootstrap,
}

/// The reconcilers of a process, and their view of the cluster.
pub(crate) struct Control {
    pub(crate) cluster: ClusterView,
    me: LocalNode,
    lifecycle: Lifecycle,
    shards_led: ShardsLed,
    placement: Placement,
    leaders: Leaders,
    announce_node: AnnounceNode,
    pub(crate) consistency: Consistency,
    size_splits: SizeSplits,
    size_merges: SizeMerges,
    peers: Peers,
    feed: FeedFollower,
    membership: Membership,
    timers: u64,
    /// Pending actions of a pass; the next pass waits for them.
    in_flight: BTreeMap<ControlTask, usize>,
    /// Results that were not delivered to their reconcilers yet.
    pub(super) completed: Vec<Completion>,
    /// Long polls of the feed that wait for changes.
    pub(super) feed_waiters: Vec<FeedWaiter>,
    /// The process exits at the end of the current event.
    pub(super) fatal: bool,
}

/// The addresses of the node at a port.
pub(crate) fn addresses(port: u16) -> Addresses {
    let at = |offset: u16| format!("127.0.0.1:{}", port + offset);
    Addresses { quic: at(0), http: at(1), redis: at(2) }
}

fn socket(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The description with which the node at a port joins. Each new disk has another key.
pub(crate) fn new_node(port: u16, key: u64) -> NewNode {
    let mut key_digest = [0; 32];
    key_digest[..8].copy_from_slice(&key.to_be_bytes());
    NewNode { name: format!("at-{port}"), addresses: addresses(port), locality: Locality::default(), key_digest }
}

impl Control {
    pub(super) fn new(node: &Node, seed: u64) -> Self {
        let me = Member { node: node.id, addr: socket(node.port), generation: node.incarnation.0 };
        let membership = match Membership::new(me, MembershipConfig::default(), seed) {
            Ok(membership) => membership,
            Err(error) => panic!("the default settings of membership are rejected: {error}"),
        };
        let mut cluster = ClusterView::new(node.id, node.folder.meta.clone());
        cluster.observe_versions(node.id, node.incarnation, VersionRange::supported());
        Self {
            cluster,
            me: LocalNode {
                node: node.id,
                incarnation: node.incarnation,
                addresses: addresses(node.port),
                locality: Locality::default(),
                versions: VersionRange::supported(),
                role: node.role,
            },
            lifecycle: Lifecycle::default(),
            shards_led: ShardsLed::default(),
            placement: Placement::default(),
            leaders: Leaders::default(),
            announce_node: AnnounceNode::default(),
            consistency: Consistency::default(),
            size_splits: SizeSplits::default(),
            size_merges: SizeMerges::default(),
            peers: Peers::default(),
            feed: FeedFollower::default(),
            membership,
            timers: 0,
            in_flight: BTreeMap::new(),
            completed: Vec::new(),
            feed_waiters: Vec::new(),
            fatal: false,
        }
    }

    pub(super) fn lost(&mut self, replicas: Vec<(ShardId, ReplicaId)>, reason: LostReason) {
        self.lifecycle.on_loss(&Lost { replicas, reason });
    }

    fn reconciler(&mut self, task: ControlTask) -> Option<&mut dyn flotilla_control::Reconciler> {
        Some(match task {
            ControlTask::Lifecycle => &mut self.lifecycle,
            ControlTask::ShardsLed => &mut self.shards_led,
            ControlTask::Placement => &mut self.placement,
            ControlTask::Leaders => &mut self.leaders,
            ControlTask::AnnounceNode => &mut self.announce_node,
            ControlTask::Consistency => &mut self.consistency,
            ControlTask::SizeSplits => &mut self.size_splits,
            ControlTask::SizeMerges => &mut self.size_merges,
            ControlTask::Peers | ControlTask::PeersUntimed => &mut self.peers,
            ControlTask::Feed | ControlTask::Bootstrap => return None,
        })
    }
}

impl World {
    /// Schedules all control tasks of a process.
    pub(super) fn start_control(&mut self, node: &mut Node, running: &mut Running) {
        let tasks = [
            ControlTask::Peers,
            ControlTask::Lifecycle,
            ControlTask::ShardsLed,
            ControlTask::Placement,
            ControlTask::Leaders,
            ControlTask::AnnounceNode,
            ControlTask::Consistency,
            ControlTask::SizeSplits,
            ControlTask::SizeMerges,
            ControlTask::Feed,
        ];
        for (at, task) in tasks.into_iter().chain(node.folder.founding.then_some(ControlTask::Bootstrap)).enumerate() {
            self.schedule_on(node, 500 + 10 * at as u64, NodeEvent::Reconcile(task));
        }
        // Membership starts its timers with its first input.
        self.member_input(node, running, MemberInput::Gossip);
    }

    pub(super) fn reconcile(&mut self, node: &mut Node, running: &mut Running, task: ControlTask) {
        match task {
            ControlTask::Feed => return self.follow_feed(node, running),
            ControlTask::Bootstrap => return self.bootstrap(node, running),
            _ => {}
        }
        let replicas: Replicas = running.core.status().into_iter().collect();
        let control = &mut running.control;
        let (meta, members, me) =
            (control.cluster.meta().clone(), control.cluster.members().clone(), control.me.clone());
        let view = View {
            me: &me,
            meta: &meta,
            members: &members,
            replicas: &replicas,
            now_ms: node.clock.mono_ms(self.now_us),
            wall_ms: node.clock.wall_ms(self.now_us),
        };
        let Some(reconciler) = control.reconciler(task) else { return };
        let actions = reconciler.reconcile(&view);
        for finding in control.consistency.take_findings() {
            self.checks.compared(&finding);
        }
        control.in_flight.insert(task, 1);
        for action in actions {
            self.start_action(node, running, task, action);
        }
        self.action_done(node, running, task);
        self.deliver_outcomes(node, running);
    }

    /// Counts an action of a pass as done; after the last one the next pass is scheduled.
    fn action_done(&mut self, node: &mut Node, running: &mut Running, task: ControlTask) {
        let control = &mut running.control;
        let Some(in_flight) = control.in_flight.get_mut(&task) else { return };
        *in_flight -= 1;
        if *in_flight > 0 {
            return;
        }
        control.in_flight.remove(&task);
        if task == ControlTask::PeersUntimed {
            return;
        }
        let interval_ms = control.reconciler(task).map_or(0, |reconciler| reconciler.interval_ms());
        let wait_us = node.clock.true_us(interval_ms);
        self.schedule_on(node, wait_us, NodeEvent::Reconcile(task));
    }

    fn start_action(&mut self, node: &mut Node, running: &mut Running, task: ControlTask, action: Action) {
        let count_pending = |running: &mut Running| *running.control.in_flight.entry(task).or_default() += 1;
        match action {
            Action::Create { replica, descriptor, founding } => {
                self.enqueue(node, running, Input::Create { replica, descriptor, founding });
            }
            Action::Destroy { replica } => self.enqueue(node, running, Input::Destroy { replica }),
            Action::TrustFolder => self.enqueue(node, running, Input::TrustFolder),
            Action::Change { shard, change } => self.enqueue(node, running, Input::Change { shard, change }),
            Action::ChangeShard { shard, change } => {
                self.enqueue(node, running, Input::ChangeShard { shard, change });
            }
            Action::PrepareSplit { shard, at } => self.enqueue(node, running, Input::PrepareSplit { shard, at }),
            Action::PrepareMerge { shard, epoch } => {
                self.enqueue(node, running, Input::PrepareMerge { shard, epoch });
            }
            Action::Measure { shard, replica, above } => {
                if let Contents::AtRest(contents) = running.applier.contents(replica) {
                    match contents.size(above) {
                        Ok(Some(size)) => running.control.size_splits.on_outcome(Outcome::Measured(shard, size)),
                        Ok(None) => {}
                        Err(error) => running.control.fatal |= remedy(&error) == Remedy::EndNode,
                    }
                }
            }
            Action::ReadFingerprints { shard, of } => {
                for (replica, to) in of {
                    if to == node.id {
                        let said = running.applier.fingerprints(replica).map(Said::here);
                        let said = said.map(|said| (replica, said)).into_iter().collect();
                        running.control.consistency.on_outcome(Outcome::Fingerprints(said));
                        continue;
                    }
                    count_pending(running);
                    let body = PeerRequest::Fingerprints { shard, replica }.encode();
                    let purpose = CallPurpose::Fingerprints(replica);
                    self.call(node, running, to, CallKind::Rpc, body, FINGERPRINTS_TIMEOUT_MS, purpose);
                }
            }
            Action::GiveUp { node: to, shard, replica, evidence } if to == node.id => {
                self.give_up(node, running, to, (shard, replica), &evidence);
            }
            Action::GiveUp { node: to, shard, replica, evidence } => {
                count_pending(running);
                let body = PeerRequest::GiveUp { shard, replica, evidence }.encode();
                self.call(node, running, to, CallKind::Rpc, body, PROPOSE_TIMEOUT_MS, CallPurpose::GiveUp);
            }
            Action::Transfer { shard, to } => self.enqueue(node, running, Input::Transfer { shard, to }),
            Action::Propose(command) => {
                count_pending(running);
                let caller = Caller::Task(task, Box::new(command.clone()));
                self.propose_meta(node, running, &command, PROPOSE_TIMEOUT_MS, caller);
            }
            Action::FetchMeta => {
                count_pending(running);
                let (payload, caller) = (MetaQuery::State.encode(), Caller::FreshMeta(task));
                let (kind, shard) = (RequestKind::Query, ShardId::META);
                self.start_request(node, running, kind, shard, payload, PROPOSE_TIMEOUT_MS, caller);
            }
            Action::GiveAuthority { to } => {
                if node.folder.has_authority {
                    count_pending(running);
                    let body = PeerRequest::Authority(Bytes::from_static(b"authority")).encode();
                    let purpose = CallPurpose::Authority(to);
                    self.call(node, running, to, CallKind::Rpc, body, PROPOSE_TIMEOUT_MS, purpose);
                }
            }
            Action::Connect { node: peer, .. } => {
                if running.refused.remove(&peer) {
                    self.link_changed(node.id, peer);
                }
            }
            Action::Disconnect { node: peer } => {
                running.refused.insert(peer);
                self.link(node, running, peer);
                self.link_changed(peer, node.id);
            }
            Action::SetClusterVersion(version) => self.enqueue(node, running, Input::ClusterVersion(version)),
            Action::SetHeartbeatPeers { peers } => self.enqueue(node, running, Input::Peers(peers)),
            Action::AddMember { node: peer, addr } => {
                self.member_input(node, running, MemberInput::Announce(Member { node: peer, addr, generation: 0 }));
            }
            Action::ForgetMember { node: peer } => self.member_input(node, running, MemberInput::Forget(peer)),
        }
    }

    /// Passes the results of actions to their reconcilers.
    pub(super) fn deliver_outcomes(&mut self, node: &mut Node, running: &mut Running) {
        while let Some(Completion { caller, result }) = running.control.completed.pop() {
            match caller {
                Caller::Task(ControlTask::Bootstrap, _) => {}
                Caller::Task(task, command) => {
                    if let Some(reply) = result.ok().and_then(|answer| meta_reply(&answer.payload, answer.earlier).ok())
                        && let Some(reconciler) = running.control.reconciler(task)
                    {
                        reconciler.on_outcome(Outcome::Answered(command, reply));
                    }
                    self.action_done(node, running, task);
                }
                Caller::FreshMeta(task) => {
                    if let Some(meta) = result.ok().and_then(|answer| decode_snapshot(&answer.payload)) {
                        let meta = Arc::new(meta);
                        self.offer_metadata(node, running, &meta);
                        if let Some(reconciler) = running.control.reconciler(task) {
                            reconciler.on_outcome(Outcome::FreshMeta(meta));
                        }
                    }
                    self.action_done(node, running, task);
                }
                Caller::Client(_) | Caller::Operator(_) => {}
            }
        }
    }

    /// A replica of a node has said something of its state, or its node does not answer.
    pub(super) fn fingerprints_read(
        &mut self,
        node: &mut Node,
        running: &mut Running,
        replica: ReplicaId,
        answer: Option<Bytes>,
    ) {
        let said = answer.and_then(|answer| Some((replica, Said::decode(answer).ok()?)));
        running.control.consistency.on_outcome(Outcome::Fingerprints(said.into_iter().collect()));
        self.action_done(node, running, ControlTask::Consistency);
    }

    pub(super) fn gave_up(&mut self, node: &mut Node, running: &mut Running) {
        self.action_done(node, running, ControlTask::Consistency);
    }

    pub(super) fn give_up(
        &mut self,
        node: &Node,
        running: &mut Running,
        from: NodeId,
        (shard, replica): (ShardId, ReplicaId),
        evidence: &Evidence,
    ) {
        let status = running.core.status().into_iter().find(|status| status.replica == replica);
        if !status.is_some_and(|status| may_order_to_give_up(&status, shard, from)) {
            return;
        }
        let said = running.applier.fingerprints(replica).map(Said::here);
        if said.is_some_and(|said| said.is_refuted_by(evidence)) {
            self.enqueue(node, running, Input::Diverged { replica });
        }
    }

    pub(super) fn authority_given(&mut self, node: &mut Node, running: &mut Running, to: NodeId, taken: bool) {
        if taken {
            running.control.shards_led.on_outcome(Outcome::AuthorityTaken(to));
        }
        self.action_done(node, running, ControlTask::ShardsLed);
    }

    /// Takes metadata if it is newer than what the node has.
    pub(super) fn offer_metadata(&mut self, node: &mut Node, running: &mut Running, meta: &Arc<MetaState>) {
        let before = running.control.cluster.meta().clone();
        if !running.control.cluster.offer(meta) {
            return;
        }
        self.checks.metadata(node, &before, meta);
        node.folder.meta = MetaState::clone(meta);
        self.schedule_on(node, METADATA_NOTICE_US, NodeEvent::Reconcile(ControlTask::PeersUntimed));
        self.answer_feed_waiters(node, running);
    }

    fn follow_feed(&mut self, node: &mut Node, running: &mut Running) {
        let replicas = running.core.status().into_iter().collect();
        // The real node has these addresses from its join.
        let seeds: Vec<_> = self.nodes.keys().copied().collect();
        let control = &mut running.control;
        match control.feed.next(node.id, control.cluster.meta(), &seeds, &replicas) {
            FeedStep::Wait(wait_ms) => {
                let wait_us = node.clock.true_us(wait_ms);
                self.schedule_on(node, wait_us, NodeEvent::Reconcile(ControlTask::Feed));
            }
            FeedStep::Fetch { source, version, wait_ms, timeout_ms } => {
                let body = PeerRequest::Feed { version, wait_ms }.encode();
                self.call(node, running, source, CallKind::Rpc, body, timeout_ms, CallPurpose::Feed);
            }
        }
    }

    pub(super) fn feed_answered(&mut self, node: &mut Node, running: &mut Running, answer: Option<Bytes>) {
        let feed = &mut running.control.feed;
        match answer.and_then(|answer| Feed::decode(&answer).ok()) {
            Some(feed_page) => {
                let meta = feed.on_answer(&feed_page).ok().cloned();
                if let Some(meta) = meta {
                    self.offer_metadata(node, running, &meta);
                }
            }
            None => feed.on_failure(),
        }
        self.schedule_on(node, 100, NodeEvent::Reconcile(ControlTask::Feed));
    }

    pub(super) fn member_timer(&mut self, node: &mut Node, running: &mut Running, timer: Timer) {
        self.member_input(node, running, MemberInput::Timer(timer));
    }

    pub(super) fn member_input(&mut self, node: &mut Node, running: &mut Running, input: MemberInput) {
        let now_ms = node.clock.mono_ms(self.now_us);
        let mut effects = Vec::new();
        // The real node only counts a packet that is rejected.
        let _ = running.control.membership.step(now_ms, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { to, packet } => {
                    if running.links.contains_key(&to.node) {
                        self.send(node.id, to.node, Frame::Member(packet));
                    }
                }
                Effect::Timer { after, timer } => {
                    running.control.timers += 1;
                    let wait_us = node.clock.true_us(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                    self.schedule_on(node, wait_us, NodeEvent::MemberTimer(timer));
                }
                Effect::Changed { node: peer, new, .. } => {
                    running.control.cluster.member_changed(peer, new, now_ms);
                }
                // Simulated links lead to nodes, not to addresses.
                Effect::Located { .. } => {}
            }
        }
    }

    /// Proposes the first commands of a cluster until they are applied, as the founding node does.
    fn bootstrap(&mut self, node: &mut Node, running: &mut Running) {
        let meta = running.control.cluster.meta().clone();
        if meta.collection("default").is_some() {
            node.folder.founding = false;
            return;
        }
        let command = if meta.node(node.id).is_none() {
            let create = Input::Create { replica: ReplicaId(1), descriptor: metadata_group(), founding: true };
            self.enqueue(node, running, create);
            MetaCommand::Bootstrap { cluster: CLUSTER, node: new_node(node.port, node.id.0) }
        } else {
            let buckets = self.plan.buckets;
            MetaCommand::CreateCollection {
                name: "default".to_owned(),
                sharding: self.plan.sharding,
                buckets,
                replicas: 3,
                initial_nodes: meta.initial_nodes(buckets, 3, |_| Liveness::Live),
                settings: CollectionSettings::NONE,
            }
        };
        let caller = Caller::Task(ControlTask::Bootstrap, Box::new(command.clone()));
        self.propose_meta(node, running, &command, 1_000, caller);
        let wait_us = node.clock.true_us(BOOTSTRAP_RETRY_MS);
        self.schedule_on(node, wait_us, NodeEvent::Reconcile(ControlTask::Bootstrap));
    }
}

/// The metadata group as the first node creates it; equal to its record in the metadata.
fn metadata_group() -> ShardDescriptor {
    ShardDescriptor {
        shard: ShardId::META,
        range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
        epoch: Epoch { range: 1, config: 1 },
        replicas: vec![ReplicaDescriptor { replica: ReplicaId(1), node: NodeId(1), role: ReplicaRole::Voter }],
    }
}
