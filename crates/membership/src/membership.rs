//! The core: one node's view of all others.
//!
//! foca runs the protocol. Around it this module checks packets before foca sees them, compares foca's member
//! list before and after each step (foca reports neither suspicion nor refutation), distinguishes a leave
//! from a crash, and keeps announcing this node while it is alone. One comparison per step costs a walk over
//! the member list: microseconds at hundreds of nodes.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_types::NodeId;
use foca::{Foca, NoCustomBroadcast, Notification, State};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    codec::{Codec, Packet},
    config::{Config, ConfigError},
    error::StepError,
    identity::{Identity, Member},
    state::{NodeState, SUBSCRIBERS_MAX, Subscriber},
};

/// Limit on known nodes, present or gone. Far above the cluster size for which the failure detector is
/// designed.
pub const MEMBERS_MAX: usize = 4_096;
/// Limit on seeds.
pub const SEEDS_MAX: usize = 64;
/// Nodes that get an announcement per attempt while this node is alone. Attempts rotate through all of them.
const ANNOUNCEMENTS_MAX: usize = 16;
/// How often the departure is sent, each time to `fanout` members, because this node cannot repeat a lost one
/// later.
const DEPARTURE_SENDS: usize = 3;

/// An input of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A packet arrived.
    Packet {
        /// The sender, authenticated by its certificate.
        from: NodeId,
        /// The packet.
        bytes: Bytes,
    },
    /// A timer from [`Effect::Timer`] is due. Return timers in the order in which they are due, each once.
    Timer(Timer),
    /// Announce this node to another and keep it as a seed: announcements repeat while this node is alone.
    /// Allowed for known nodes too.
    Announce(Member),
    /// Gossip pending updates now instead of at the next period.
    Gossip,
    /// Forget a node that the metadata group has removed. A node that is still present is not forgotten.
    Forget(NodeId),
    /// Announce the departure. Send the packets, then stop: this membership ignores all later inputs.
    Leave,
}

/// An effect of a step. Perform effects in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a packet, unreliably.
    Send {
        /// The receiver. Its certificate must be that of `to.node`.
        to: Member,
        /// At most `packet_bytes_max` bytes.
        packet: Bytes,
    },
    /// Return the timer after this time.
    Timer {
        /// The time from now.
        after: Duration,
        /// The timer to return.
        timer: Timer,
    },
    /// A node's state changed. Subscribers have already received it.
    Changed {
        /// The node.
        node: NodeId,
        /// Its old state.
        old: NodeState,
        /// Its new state, never equal to `old`.
        new: NodeState,
    },
    /// A node says that it is at this address, or another member passed that on. Not authenticated.
    Located {
        /// The node.
        node: NodeId,
        /// Where its transport listens.
        addr: SocketAddr,
    },
}

/// An opaque timer, to be returned when it is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer(Due);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    Foca(foca::Timer<Identity>),
    /// Announce this node to seeds and lost members if it is alone.
    Announce,
}

/// One node's view of all others. The crate's documentation lists its guarantees.
pub struct Membership {
    foca: Foca<Identity, Codec, ChaCha8Rng, NoCustomBroadcast>,
    config: Config,
    known: BTreeMap<NodeId, Record>,
    seeds: BTreeMap<NodeId, Identity>,
    /// The last node that got an announcement; the next attempt starts after it.
    last_announced: NodeId,
    phase: Phase,
    subscribers: Vec<Arc<dyn Subscriber>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The announcement timer does not run yet: the first step starts it.
    New,
    Running,
    Left,
}

struct Record {
    identity: Identity,
    state: NodeState,
    since_ms: u64,
}

impl Membership {
    /// An empty view. `seed` determines every random choice; give each node a different one.
    ///
    /// # Errors
    /// [`Config::validate`] refuses the settings.
    pub fn new(me: Member, config: Config, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        let foca = Foca::new(Identity::new(&me), config.to_foca(), ChaCha8Rng::seed_from_u64(seed), Codec);
        Ok(Self {
            foca,
            config,
            known: BTreeMap::new(),
            seeds: BTreeMap::new(),
            last_announced: NodeId::NONE,
            phase: Phase::New,
            subscribers: Vec::new(),
        })
    }

    /// Handles one input. `now_ms` is any monotonic clock; it dates changes and ends stale suspicions.
    ///
    /// Effects are appended to `effects`, also when the step fails: foca may refuse a packet after applying
    /// part of it. Perform them all.
    ///
    /// # Errors
    /// The input was refused. The membership continues; callers need only count the error.
    pub fn step(&mut self, now_ms: u64, input: Input, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        if self.phase == Phase::Left {
            return if matches!(input, Input::Announce(_)) { Err(StepError::Left) } else { Ok(()) };
        }
        if self.phase == Phase::New {
            self.phase = Phase::Running;
            self.start_announce_timer(effects);
        }
        let result = match input {
            Input::Packet { from, bytes } => self.packet(from, &bytes, effects),
            Input::Timer(Timer(Due::Foca(timer))) => self.timer(timer, effects),
            Input::Timer(Timer(Due::Announce)) => self.announce_if_alone(now_ms, effects),
            Input::Announce(member) => self.announce(&member, effects),
            Input::Gossip => self.foca.gossip(Outbox { me: self.me().node, effects }).map_err(StepError::from),
            Input::Forget(node) => self.forget(node, effects),
            Input::Leave => self.leave(effects),
        };
        self.report(now_ms, effects);
        result
    }

    /// This node, as the others see it.
    #[must_use]
    pub fn me(&self) -> &Member {
        &self.foca.identity().member
    }

    /// All other nodes, ordered by id.
    #[must_use]
    pub fn members(&self) -> Vec<(Member, NodeState)> {
        self.known.values().map(|record| (record.identity.member.clone(), record.state)).collect()
    }

    /// A node's state. This node itself is alive until it has left.
    #[must_use]
    pub fn state(&self, node: NodeId) -> NodeState {
        if node == self.me().node {
            return if self.phase == Phase::Left { NodeState::Left } else { NodeState::Alive };
        }
        self.known.get(&node).map_or(NodeState::Unknown, |record| record.state)
    }

    /// Another node's latest generation and address.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.known.get(&node).map(|record| &record.identity.member)
    }

    /// When a node entered its current state, by the clock given to `step`.
    #[must_use]
    pub fn since_ms(&self, node: NodeId) -> Option<u64> {
        self.known.get(&node).map(|record| record.since_ms)
    }

    /// Sends every later change to `subscriber`.
    ///
    /// # Errors
    /// Returns the subscriber when there are [`SUBSCRIBERS_MAX`] already.
    pub fn subscribe(&mut self, subscriber: Arc<dyn Subscriber>) -> Result<(), Arc<dyn Subscriber>> {
        if self.subscribers.len() == SUBSCRIBERS_MAX {
            return Err(subscriber);
        }
        self.subscribers.push(subscriber);
        Ok(())
    }

    fn packet(&mut self, from: NodeId, bytes: &[u8], effects: &mut Vec<Effect>) -> Result<(), StepError> {
        if bytes.len() > self.config.packet_bytes_max {
            return Err(StepError::TooLarge { bytes: bytes.len() });
        }
        let packet = Packet::decode(bytes)?;
        let claimed = packet.src.node();
        if claimed != from {
            return Err(StepError::WrongSender { from, claimed });
        }
        if claimed == self.me().node {
            return Err(StepError::Loop);
        }
        let new_nodes = packet.about.iter().chain([&claimed]).filter(|node| self.is_unknown(**node)).count();
        if self.known.len() + new_nodes > MEMBERS_MAX {
            return Err(StepError::TooManyMembers);
        }
        self.renew_if_outdated(&packet.dst, effects)?;
        let me = self.me().node;
        Ok(self.foca.handle_data(bytes, Outbox { me, effects })?)
    }

    fn is_unknown(&self, node: NodeId) -> bool {
        node != self.me().node && !self.known.contains_key(&node)
    }

    /// Renews this node's identity if a packet addresses a newer one: then the data folder is an old copy
    /// that counts the node's starts too low. Without this the others would ignore this node until it had
    /// started often enough.
    fn renew_if_outdated(&mut self, dst: &Identity, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        let me = self.foca.identity();
        if dst.node() != me.node() || !dst.is_newer_than(me) {
            return Ok(());
        }
        match me.renewed_after(dst) {
            Some(identity) => {
                let me = identity.node();
                Ok(self.foca.change_identity(identity, Outbox { me, effects })?)
            }
            None => Ok(()),
        }
    }

    fn timer(&mut self, timer: foca::Timer<Identity>, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        let me = self.me().node;
        match self.foca.handle_timer(timer, Outbox { me, effects }) {
            // The timers of one probe came late or all at once, because this process was paused. foca has
            // already started the next probe.
            Ok(()) | Err(foca::Error::IncompleteProbeCycle | foca::Error::NotConnected) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn announce(&mut self, member: &Member, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        let me = self.me().node;
        if member.node == me {
            return Err(StepError::Loop);
        }
        if self.seeds.len() == SEEDS_MAX && !self.seeds.contains_key(&member.node) {
            return Err(StepError::TooManySeeds);
        }
        let identity = Identity::new(member);
        self.seeds.insert(member.node, identity.clone());
        Ok(self.foca.announce(identity, Outbox { me, effects })?)
    }

    /// Announces this node while no member is present, because foca then stops all its timers.
    fn announce_if_alone(&mut self, now_ms: u64, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.start_announce_timer(effects);
        self.end_stale_suspicions(now_ms, effects)?;
        let me = self.me().node;
        if self.foca.num_members() > 0 {
            return Ok(());
        }
        let mut targets = self.seeds.clone();
        let down = self.known.values().filter(|record| record.state != NodeState::Left);
        targets.extend(down.map(|record| (record.identity.node(), record.identity.clone())));
        let (before, after): (Vec<_>, Vec<_>) = targets.into_iter().partition(|(node, _)| *node <= self.last_announced);
        for (node, identity) in after.into_iter().chain(before).take(ANNOUNCEMENTS_MAX) {
            self.last_announced = node;
            self.foca.announce(identity, Outbox { me, effects })?;
        }
        Ok(())
    }

    /// Declares members down that have been suspect for twice the usual time.
    ///
    /// A suspicion ends when the suspect refutes it, or by a timer of the node that raised it. If that node
    /// crashed or was itself declared down (foca then voids its timers), and the suspect never heard of the
    /// suspicion, neither happens. Once declared down, a live member objects when it is heard next.
    fn end_stale_suspicions(&mut self, now_ms: u64, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        let since_ms = now_ms.saturating_sub(2 * self.config.suspect_after_ms);
        let is_stale = |member: &&foca::Member<Identity>| {
            let record = self.known.get(&member.id().node());
            record.is_some_and(|record| record.state == NodeState::Suspect && record.since_ms < since_ms)
        };
        let stale = self.foca.iter_membership_state().filter(is_stale);
        let down: Vec<_> =
            stale.map(|member| foca::Member::new(member.id().clone(), member.incarnation(), State::Down)).collect();
        let me = self.me().node;
        Ok(self.foca.apply_many(down.into_iter(), true, Outbox { me, effects })?)
    }

    fn start_announce_timer(&self, effects: &mut Vec<Effect>) {
        let after = Duration::from_millis(self.config.announce_down_ms);
        effects.push(Effect::Timer { after, timer: Timer(Due::Announce) });
    }

    fn forget(&mut self, node: NodeId, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.seeds.remove(&node);
        let Some(record) = self.known.get(&node).filter(|record| !record.state.is_present()) else {
            return Ok(());
        };
        let me = self.me().node;
        // Removes the member only while it is down. foca may still count a departed member as alive; it soon
        // declares it down, and a later `Forget` removes it.
        Ok(self.foca.handle_timer(foca::Timer::RemoveDown(record.identity.clone()), Outbox { me, effects })?)
    }

    fn leave(&mut self, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.phase = Phase::Left;
        let me = self.me().node;
        let departed = self.foca.identity().departed();
        self.foca.change_identity(departed, Outbox { me, effects })?;
        for _ in 1..DEPARTURE_SENDS {
            self.foca.gossip(Outbox { me, effects })?;
        }
        Ok(self.foca.leave_cluster(Outbox { me, effects })?)
    }

    /// Reports the differences between foca's members and the last reported state.
    fn report(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let me = self.me().node;
        let mut changes = BTreeMap::new();
        let mut located = Vec::new();
        let mut seen = 0;
        for member in self.foca.iter_membership_state() {
            let (identity, node) = (member.id(), member.id().node());
            if node == me {
                // Earlier identities of this node.
                continue;
            }
            let new = state_of(member);
            let old = match self.known.get_mut(&node) {
                Some(record) => {
                    seen += 1;
                    if record.identity != *identity {
                        if record.identity.member.addr != identity.member.addr {
                            located.push(&identity.member);
                        }
                        record.identity = identity.clone();
                    }
                    std::mem::replace(&mut record.state, new)
                }
                None => {
                    seen += 1;
                    located.push(&identity.member);
                    self.known.insert(node, Record { identity: identity.clone(), state: new, since_ms: now_ms });
                    NodeState::Unknown
                }
            };
            if old != new {
                changes.insert(node, (old, new));
            }
        }
        // A node that does not know its own address says none.
        let located =
            located.into_iter().filter(|member| !member.addr.ip().is_unspecified() && member.addr.port() != 0);
        effects.extend(located.map(|member| Effect::Located { node: member.node, addr: member.addr }));
        if seen < self.known.len() {
            let present: Vec<NodeId> = self.foca.iter_membership_state().map(|member| member.id().node()).collect();
            self.known.retain(|node, record| {
                let kept = present.contains(node);
                if !kept {
                    changes.insert(*node, (record.state, NodeState::Unknown));
                }
                kept
            });
        }
        for (node, (old, new)) in changes {
            if let Some(record) = self.known.get_mut(&node) {
                record.since_ms = now_ms;
            }
            for subscriber in &self.subscribers {
                subscriber.on_state_change(node, old, new);
            }
            effects.push(Effect::Changed { node, old, new });
        }
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("me", self.foca.identity()).field("members", &self.members()).finish()
    }
}

fn state_of(member: &foca::Member<Identity>) -> NodeState {
    match member.state() {
        _ if member.id().left => NodeState::Left,
        State::Alive => NodeState::Alive,
        State::Suspect => NodeState::Suspect,
        State::Down => NodeState::Down,
    }
}

/// Converts foca's requests to effects.
struct Outbox<'a> {
    me: NodeId,
    effects: &'a mut Vec<Effect>,
}

impl foca::Runtime<Identity> for Outbox<'_> {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        // Not used: `report` compares member lists, which show more.
    }

    fn send_to(&mut self, to: Identity, packet: &[u8]) {
        // foca keeps earlier identities of this node among the members that are down, and would announce to
        // them.
        if to.node() != self.me {
            self.effects.push(Effect::Send { to: to.member, packet: Bytes::copy_from_slice(packet) });
        }
    }

    fn submit_after(&mut self, timer: foca::Timer<Identity>, after: Duration) {
        self.effects.push(Effect::Timer { after, timer: Timer(Due::Foca(timer)) });
    }
}
