//! What the reconcilers of a node do, driven as their loops drive them: look, perform in order, learn, wait.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::Bytes;
use flotilla_control::{
    Action, Ask, FeedFollower, FeedStep, Known, Leaders, Lifecycle, Lost, Me, MembershipConfig, Outcome,
    PROPOSE_TIMEOUT_MS, PeerRequest, Peers, Placement, Present, Reconciler as _, ShardsLed, View, snapshot_of,
};
use flotilla_membership::{Effect, Input as MemberInput, Member, Membership, Timer};
use flotilla_meta::{Addresses, Feed, Liveness, MetaCommand, MetaQuery, MetaReply, MetaState, NewNode};
use flotilla_placement::Sharding;
use flotilla_replication::{Input, LostReason};
use flotilla_types::{
    Bucket, ClusterId, CollectionId, Epoch, KeyRange, Locality, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId,
};
use std::sync::Arc;

use super::{
    Asked, Happening, Node, Running, Who,
    rpc::{Calling, Following},
};
use crate::{
    network::{CallKind, Frame},
    world::World,
};

/// The one cluster of a world.
const CLUSTER: ClusterId = ClusterId(*b"simulatedcluster");
const FOUNDING_EVERY_MS: u64 = 100;
/// How soon new metadata reaches the loop that follows it, microseconds.
const NEWS_US: u64 = 200;

/// What a node does again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Duty {
    Lifecycle,
    ShardsLed,
    Placement,
    Leaders,
    Present,
    Peers,
    /// The same, because of news and not because it is time.
    PeersNow,
    Feed,
    Founding,
}

/// The reconcilers of a process, and what they know.
pub(crate) struct Control {
    pub(crate) known: Known,
    me: Me,
    lifecycle: Lifecycle,
    shards_led: ShardsLed,
    placement: Placement,
    leaders: Leaders,
    present: Present,
    peers: Peers,
    feed: FeedFollower,
    membership: Membership,
    timers: u64,
    /// Actions of a look that are under way; the next look waits for them.
    under_way: BTreeMap<Duty, usize>,
    /// Answers that reconcilers have not learned yet.
    pub(super) told: Vec<Asked>,
    /// Followers of the feed that wait for news.
    pub(super) following: Vec<Following>,
    /// The process ends as soon as the event at hand is over.
    pub(super) fatal: bool,
}

/// Where a node is reached.
pub(crate) fn addresses(port: u16) -> Addresses {
    let at = |offset: u16| format!("127.0.0.1:{}", port + offset);
    Addresses { quic: at(0), http: at(1), redis: at(2) }
}

fn socket(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// How the node at a port presents itself when it joins. Each life of a disk has another key.
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
            Err(error) => panic!("the default settings of membership are refused: {error}"),
        };
        Self {
            known: Known::new(node.id, node.folder.meta.clone()),
            me: Me {
                node: node.id,
                incarnation: node.incarnation,
                addresses: addresses(node.port),
                locality: Locality::default(),
            },
            lifecycle: Lifecycle::default(),
            shards_led: ShardsLed::default(),
            placement: Placement::default(),
            leaders: Leaders::default(),
            present: Present::default(),
            peers: Peers::default(),
            feed: FeedFollower::default(),
            membership,
            timers: 0,
            under_way: BTreeMap::new(),
            told: Vec::new(),
            following: Vec::new(),
            fatal: false,
        }
    }

    pub(super) fn lost(&mut self, replicas: Vec<(ShardId, ReplicaId)>, reason: LostReason) {
        self.lifecycle.lost(&Lost { replicas, reason });
    }

    fn reconciler(&mut self, duty: Duty) -> Option<&mut dyn flotilla_control::Reconciler> {
        Some(match duty {
            Duty::Lifecycle => &mut self.lifecycle,
            Duty::ShardsLed => &mut self.shards_led,
            Duty::Placement => &mut self.placement,
            Duty::Leaders => &mut self.leaders,
            Duty::Present => &mut self.present,
            Duty::Peers | Duty::PeersNow => &mut self.peers,
            Duty::Feed | Duty::Founding => return None,
        })
    }
}

impl World {
    /// Starts every duty of a process.
    pub(super) fn begin_control(&mut self, node: &mut Node, running: &mut Running) {
        let duties =
            [Duty::Peers, Duty::Lifecycle, Duty::ShardsLed, Duty::Placement, Duty::Leaders, Duty::Present, Duty::Feed];
        for (at, duty) in duties.into_iter().chain(node.folder.founding.then_some(Duty::Founding)).enumerate() {
            self.later(node, 500 + 10 * at as u64, Happening::Look(duty));
        }
        // Membership starts its timers with its first input.
        self.member_input(node, running, MemberInput::Gossip);
    }

    pub(super) fn look(&mut self, node: &mut Node, running: &mut Running, duty: Duty) {
        match duty {
            Duty::Feed => return self.follow_feed(node, running),
            Duty::Founding => return self.found(node, running),
            _ => {}
        }
        let replicas = running.core.status();
        let control = &mut running.control;
        let (meta, members, me) = (control.known.meta().clone(), control.known.members().clone(), control.me.clone());
        let view = View {
            me: &me,
            meta: &meta,
            members: &members,
            replicas: &replicas,
            now_ms: node.clock.mono_ms(self.now_us),
            wall_ms: node.clock.wall_ms(self.now_us),
        };
        let Some(reconciler) = control.reconciler(duty) else { return };
        let actions = reconciler.look(&view);
        control.under_way.insert(duty, 1);
        for action in actions {
            self.act_on(node, running, duty, action);
        }
        self.one_done(node, running, duty);
        self.learn(node, running);
    }

    /// One of the actions of a look is over; behind the last one the next look is due.
    fn one_done(&mut self, node: &mut Node, running: &mut Running, duty: Duty) {
        let control = &mut running.control;
        let Some(under_way) = control.under_way.get_mut(&duty) else { return };
        *under_way -= 1;
        if *under_way > 0 {
            return;
        }
        control.under_way.remove(&duty);
        if duty == Duty::PeersNow {
            return;
        }
        let every_ms = control.reconciler(duty).map_or(0, |reconciler| reconciler.every_ms());
        let wait_us = node.clock.true_us(every_ms);
        self.later(node, wait_us, Happening::Look(duty));
    }

    fn act_on(&mut self, node: &mut Node, running: &mut Running, duty: Duty, action: Action) {
        let begun = |running: &mut Running| *running.control.under_way.entry(duty).or_default() += 1;
        match action {
            Action::Create { replica, descriptor, founding } => {
                self.take(node, running, Input::Create { replica, descriptor, founding });
            }
            Action::Destroy { replica } => self.take(node, running, Input::Destroy { replica }),
            Action::Change { shard, change } => self.take(node, running, Input::Change { shard, change }),
            Action::Transfer { shard, to } => self.take(node, running, Input::Transfer { shard, to }),
            Action::Propose(command) => {
                begun(running);
                let who = Who::Duty(duty, Box::new(command.clone()));
                self.propose_meta(node, running, &command, PROPOSE_TIMEOUT_MS, who);
            }
            Action::FetchMeta => {
                begun(running);
                let (payload, who) = (MetaQuery::State.encode(), Who::FreshMeta(duty));
                let (ask, shard) = (Ask::Query, ShardId::META);
                self.question(node, running, ask, shard, None, payload, None, PROPOSE_TIMEOUT_MS, who);
            }
            Action::GiveAuthority { to } => {
                if node.folder.has_authority {
                    begun(running);
                    let body = PeerRequest::Authority(Bytes::from_static(b"authority")).encode();
                    let calling = Calling::Authority(to);
                    self.call(node, running, to, CallKind::Rpc, body, PROPOSE_TIMEOUT_MS, calling);
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
            Action::Beat { peers } => self.take(node, running, Input::Peers(peers)),
            Action::Greet { node: peer, addr } => {
                self.member_input(node, running, MemberInput::Announce(Member { node: peer, addr, generation: 0 }));
            }
            Action::Forget { node: peer } => self.member_input(node, running, MemberInput::Forget(peer)),
        }
    }

    /// Reconcilers hear what became of their actions.
    pub(super) fn learn(&mut self, node: &mut Node, running: &mut Running) {
        while let Some(Asked { who, result }) = running.control.told.pop() {
            match who {
                Who::Duty(Duty::Founding, _) => {}
                Who::Duty(duty, command) => {
                    if let Some(reply) = result.ok().and_then(|bytes| MetaReply::decode(&bytes).ok())
                        && let Some(reconciler) = running.control.reconciler(duty)
                    {
                        reconciler.learn(Outcome::Answered(command, reply));
                    }
                    self.one_done(node, running, duty);
                }
                Who::FreshMeta(duty) => {
                    if let Some(meta) = result.ok().and_then(|bytes| snapshot_of(&bytes)) {
                        let meta = Arc::new(meta);
                        self.offer(node, running, &meta);
                        if let Some(reconciler) = running.control.reconciler(duty) {
                            reconciler.learn(Outcome::FreshMeta(meta));
                        }
                    }
                    self.one_done(node, running, duty);
                }
                Who::Client(_) | Who::Operator(_) => {}
            }
        }
    }

    pub(super) fn authority_given(&mut self, node: &mut Node, running: &mut Running, to: NodeId, taken: bool) {
        if taken {
            running.control.shards_led.learn(Outcome::AuthorityTaken(to));
        }
        self.one_done(node, running, Duty::ShardsLed);
    }

    /// Metadata that may be newer.
    pub(super) fn offer(&mut self, node: &mut Node, running: &mut Running, meta: &Arc<MetaState>) {
        let before = running.control.known.meta().clone();
        if !running.control.known.offer(meta) {
            return;
        }
        self.checks.metadata(node, &before, meta);
        node.folder.meta = MetaState::clone(meta);
        self.later(node, NEWS_US, Happening::Look(Duty::PeersNow));
        self.tell_followers(node, running);
    }

    fn follow_feed(&mut self, node: &mut Node, running: &mut Running) {
        let replicas = running.core.status();
        // Whoever is there may know the cluster: the real node has the addresses from its join.
        let seeds: Vec<_> = self.nodes.keys().copied().collect();
        let control = &mut running.control;
        match control.feed.next(node.id, control.known.meta(), &seeds, &replicas) {
            FeedStep::Wait(wait_ms) => {
                let wait_us = node.clock.true_us(wait_ms);
                self.later(node, wait_us, Happening::Look(Duty::Feed));
            }
            FeedStep::Ask { source, version, wait_ms, timeout_ms } => {
                let body = PeerRequest::Feed { version, wait_ms }.encode();
                self.call(node, running, source, CallKind::Rpc, body, timeout_ms, Calling::Feed);
            }
        }
    }

    pub(super) fn feed_answered(&mut self, node: &mut Node, running: &mut Running, answer: Option<Bytes>) {
        let feed = &mut running.control.feed;
        match answer.and_then(|answer| Feed::decode(&answer).ok()) {
            Some(news) => {
                let meta = feed.answered(&news).ok().cloned();
                if let Some(meta) = meta {
                    self.offer(node, running, &meta);
                }
            }
            None => feed.failed(),
        }
        self.later(node, 100, Happening::Look(Duty::Feed));
    }

    pub(super) fn member_timer(&mut self, node: &mut Node, running: &mut Running, timer: Timer) {
        self.member_input(node, running, MemberInput::Timer(timer));
    }

    pub(super) fn member_input(&mut self, node: &mut Node, running: &mut Running, input: MemberInput) {
        let now_ms = node.clock.mono_ms(self.now_us);
        let mut effects = Vec::new();
        // A refused packet is counted by the real node, and nothing else.
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
                    self.later(node, wait_us, Happening::Member(timer));
                }
                Effect::Changed { node: peer, new, .. } => {
                    running.control.known.member_changed(peer, new, now_ms);
                }
            }
        }
    }

    /// The first commands of a cluster, until they are done: as the node that is told to found one does.
    fn found(&mut self, node: &mut Node, running: &mut Running) {
        let meta = running.control.known.meta().clone();
        if meta.collection("default").is_some() {
            node.folder.founding = false;
            return;
        }
        let command = if meta.node(node.id).is_none() {
            let create = Input::Create { replica: ReplicaId(1), descriptor: metadata_group(), founding: true };
            self.take(node, running, create);
            MetaCommand::Bootstrap { cluster: CLUSTER, node: new_node(node.port, node.id.0) }
        } else {
            let buckets = self.plan.buckets;
            MetaCommand::CreateCollection {
                name: "default".to_owned(),
                sharding: Sharding::Hash,
                buckets,
                replicas: 3,
                initial_nodes: meta.initial_nodes(buckets, 3, |_| Liveness::Live),
            }
        };
        let who = Who::Duty(Duty::Founding, Box::new(command.clone()));
        self.propose_meta(node, running, &command, 1_000, who);
        let wait_us = node.clock.true_us(FOUNDING_EVERY_MS);
        self.later(node, wait_us, Happening::Look(Duty::Founding));
    }
}

/// The metadata group as the first node creates it; the same as its own record of itself.
fn metadata_group() -> ShardDescriptor {
    ShardDescriptor {
        shard: ShardId::META,
        range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
        epoch: Epoch { range: 1, config: 1 },
        replicas: vec![ReplicaDescriptor { replica: ReplicaId(1), node: NodeId(1), role: ReplicaRole::Voter }],
    }
}
