//! The core: one node's view of all others.
//!
//! foca runs the protocol. Around it this module checks packets before foca sees them, compares foca's member list
//! before and after each step (foca announces neither suspicion nor refutation), tells a leave from a crash, and
//! keeps asking while this node is alone. One comparison per step costs a walk over the member list: microseconds
//! at hundreds of nodes.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

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

/// Nodes that are kept in mind, present or gone. Far above what the failure detector is meant for.
pub const MEMBERS_MAX: usize = 4_096;
/// Seeds that are asked again while this node is alone.
pub const SEEDS_MAX: usize = 64;
/// Members greeted per attempt while this node is alone. The attempts go round, so all have their turn.
const GREETINGS_MAX: usize = 16;
/// How often the goodbye is sent, each time to `fanout` members, since nobody is left to repeat a lost one.
const GOODBYES: usize = 3;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A packet arrived.
    Packet {
        /// Who sent it, by certificate.
        from: NodeId,
        /// The packet.
        bytes: Bytes,
    },
    /// A timer from [`Effect::Timer`] is due. Give timers back in the order in which they are due, each once.
    Timer(Timer),
    /// Greet a node, and go on greeting it while nobody is known. Also right for a node that is known already.
    Announce(Member),
    /// Pass on news now instead of at the next period.
    Gossip,
    /// Forget a node that is gone, because the metadata group has removed it. A present one is not forgotten.
    Forget(NodeId),
    /// Say goodbye. Send the packets, then stop: this membership ignores everything afterwards.
    Leave,
}

/// What to do about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a packet, unreliably.
    Send {
        /// To whom. The certificate there must be that of `to.node`.
        to: Member,
        /// At most `packet_bytes_max` bytes.
        packet: Bytes,
    },
    /// Give the timer back after this time.
    Timer {
        /// From now.
        after: Duration,
        /// What to give back.
        timer: Timer,
    },
    /// A node's state changed. Subscribers have heard of it already.
    Changed {
        /// The node.
        node: NodeId,
        /// What it was.
        old: NodeState,
        /// What it is; never equal to `old`.
        new: NodeState,
    },
}

/// A timer, to be given back when it is due. There is nothing to see in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer(Due);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    Foca(foca::Timer<Identity>),
    /// Greet seeds and lost members if this node is alone.
    Greet,
}

/// One node's view of all others. See the crate's documentation for what it promises.
pub struct Membership {
    foca: Foca<Identity, Codec, ChaCha8Rng, NoCustomBroadcast>,
    config: Config,
    known: BTreeMap<NodeId, Record>,
    seeds: BTreeMap<NodeId, Identity>,
    /// Where the next round of greetings starts.
    greeted: NodeId,
    phase: Phase,
    subscribers: Vec<Arc<dyn Subscriber>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The timer for greetings is not running yet: the first step starts it.
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
    /// A view that knows nobody. `seed` drives every random choice; give each node another one.
    ///
    /// # Errors
    /// The settings do not pass [`Config::validate`].
    pub fn new(me: Member, config: Config, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        let foca = Foca::new(Identity::new(&me), config.to_foca(), ChaCha8Rng::seed_from_u64(seed), Codec);
        Ok(Self {
            foca,
            config,
            known: BTreeMap::new(),
            seeds: BTreeMap::new(),
            greeted: NodeId::NONE,
            phase: Phase::New,
            subscribers: Vec::new(),
        })
    }

    /// Takes one input in. `now_ms` is any clock that does not run backwards; it only dates changes.
    ///
    /// Effects are appended to `effects`, also when the step fails: a packet may be wrong in its second half only
    /// for foca. Perform them all.
    ///
    /// # Errors
    /// The input was refused. The membership goes on; nothing needs to be done but to count it.
    pub fn step(&mut self, now_ms: u64, input: Input, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        if self.phase == Phase::Left {
            return if matches!(input, Input::Announce(_)) { Err(StepError::Left) } else { Ok(()) };
        }
        if self.phase == Phase::New {
            self.phase = Phase::Running;
            self.arm_greetings(effects);
        }
        let result = match input {
            Input::Packet { from, bytes } => self.packet(from, &bytes, effects),
            Input::Timer(Timer(Due::Foca(timer))) => self.timer(timer, effects),
            Input::Timer(Timer(Due::Greet)) => self.greet(effects),
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

    /// What is believed of a node. Of itself a node believes that it is alive until it has left.
    #[must_use]
    pub fn state(&self, node: NodeId) -> NodeState {
        if node == self.me().node {
            return if self.phase == Phase::Left { NodeState::Left } else { NodeState::Alive };
        }
        self.known.get(&node).map_or(NodeState::Unknown, |record| record.state)
    }

    /// Another node's latest life and address.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.known.get(&node).map(|record| &record.identity.member)
    }

    /// When a node got into its present state, by the clock given to `step`.
    #[must_use]
    pub fn since_ms(&self, node: NodeId) -> Option<u64> {
        self.known.get(&node).map(|record| record.since_ms)
    }

    /// Lets `subscriber` hear of every change from now on. Gives it back when there are [`SUBSCRIBERS_MAX`] already.
    ///
    /// # Errors
    /// The subscriber that found no room.
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
        let news = packet.about.iter().chain([&claimed]).filter(|node| self.is_stranger(**node)).count();
        if self.known.len() + news > MEMBERS_MAX {
            return Err(StepError::TooManyMembers);
        }
        self.keep_up(&packet.dst, effects)?;
        let me = self.me().node;
        Ok(self.foca.handle_data(bytes, Outbox { me, effects })?)
    }

    fn is_stranger(&self, node: NodeId) -> bool {
        node != self.me().node && !self.known.contains_key(&node)
    }

    /// A packet for a newer life of this node than the present one: the data folder is an old copy, and forgot how
    /// often the node had started. Without this the others would ignore us until we had started often enough.
    fn keep_up(&mut self, dst: &Identity, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        let me = self.foca.identity();
        if dst.node() != me.node() || !dst.beats(me) {
            return Ok(());
        }
        match me.above(dst) {
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
            // The timers of one probe came late or all at once, because this process did not run for a while. foca
            // has started the next probe already.
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

    /// foca stops all its timers while it knows nobody who is present, so the way back is ours.
    fn greet(&mut self, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.arm_greetings(effects);
        let me = self.me().node;
        if self.foca.num_members() > 0 {
            return Ok(());
        }
        let mut lost = self.seeds.clone();
        let down = self.known.values().filter(|record| record.state != NodeState::Left);
        lost.extend(down.map(|record| (record.identity.node(), record.identity.clone())));
        let (before, after): (Vec<_>, Vec<_>) = lost.into_iter().partition(|(node, _)| *node <= self.greeted);
        for (node, identity) in after.into_iter().chain(before).take(GREETINGS_MAX) {
            self.greeted = node;
            self.foca.announce(identity, Outbox { me, effects })?;
        }
        Ok(())
    }

    fn arm_greetings(&self, effects: &mut Vec<Effect>) {
        let after = Duration::from_millis(self.config.announce_down_ms);
        effects.push(Effect::Timer { after, timer: Timer(Due::Greet) });
    }

    fn forget(&mut self, node: NodeId, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.seeds.remove(&node);
        let Some(record) = self.known.get(&node).filter(|record| !record.state.is_present()) else {
            return Ok(());
        };
        let me = self.me().node;
        // Removes the member only while it is down. The departed one may still count as alive for foca; it will be
        // declared down soon, and is forgotten when the metadata group says so again.
        Ok(self.foca.handle_timer(foca::Timer::RemoveDown(record.identity.clone()), Outbox { me, effects })?)
    }

    fn leave(&mut self, effects: &mut Vec<Effect>) -> Result<(), StepError> {
        self.phase = Phase::Left;
        let me = self.me().node;
        let departed = self.foca.identity().departed();
        self.foca.change_identity(departed, Outbox { me, effects })?;
        for _ in 1..GOODBYES {
            self.foca.gossip(Outbox { me, effects })?;
        }
        Ok(self.foca.leave_cluster(Outbox { me, effects })?)
    }

    /// Compares foca's members with what was last reported.
    fn report(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let me = self.me().node;
        let mut changes = BTreeMap::new();
        let mut seen = 0;
        for member in self.foca.iter_membership_state() {
            let (identity, node) = (member.id(), member.id().node());
            if node == me {
                // Our own earlier lives.
                continue;
            }
            let new = state_of(member);
            let old = match self.known.get_mut(&node) {
                Some(record) => {
                    seen += 1;
                    if record.identity != *identity {
                        record.identity = identity.clone();
                    }
                    std::mem::replace(&mut record.state, new)
                }
                None => {
                    seen += 1;
                    self.known.insert(node, Record { identity: identity.clone(), state: new, since_ms: now_ms });
                    NodeState::Unknown
                }
            };
            if old != new {
                changes.insert(node, (old, new));
            }
        }
        if seen < self.known.len() {
            let still: Vec<NodeId> = self.foca.iter_membership_state().map(|member| member.id().node()).collect();
            self.known.retain(|node, record| {
                let kept = still.contains(node);
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

/// Turns what foca wants done into effects.
struct Outbox<'a> {
    me: NodeId,
    effects: &'a mut Vec<Effect>,
}

impl foca::Runtime<Identity> for Outbox<'_> {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        // The member list says more: see `report`.
    }

    fn send_to(&mut self, to: Identity, packet: &[u8]) {
        // foca keeps our own earlier lives among the members that are down, and would greet them.
        if to.node() != self.me {
            self.effects.push(Effect::Send { to: to.member, packet: Bytes::copy_from_slice(packet) });
        }
    }

    fn submit_after(&mut self, timer: foca::Timer<Identity>, after: Duration) {
        self.effects.push(Effect::Timer { after, timer: Timer(Due::Foca(timer)) });
    }
}
