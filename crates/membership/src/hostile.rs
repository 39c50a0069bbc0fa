//! Tests with datagrams that no correct node sends, and a member that lies about every node, including
//! itself.

use bytes::{BufMut, Bytes};
use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
use flotilla_types::NodeId;
use foca::{Codec as _, Header, State};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Config, Effect, Input, Member, Membership, NodeState,
    codec::{
        Codec, Packet,
        tests::{identities, messages},
    },
    identity::Identity,
};

/// Limit on the effects of one input: some answers, changes and timers.
const EFFECTS_MAX: usize = 200;

fn member(node: u64) -> Member {
    Member { node: NodeId(node), addr: ([127, 0, 0, 1], 7_100 + node as u16).into(), generation: 1 }
}

/// An identity in a packet: a node of this cluster in any generation, or an invented one.
fn any_identity() -> impl Strategy<Value = Identity> {
    let known =
        (1..5_u64, prop_oneof![2 => Just(1), 1 => extreme_u64()], prop_oneof![Just(0), any::<u32>()], any::<bool>())
            .prop_map(|(node, generation, renewal, left)| Identity {
                renewal,
                left,
                ..Identity::new(&Member { generation, ..member(node) })
            });
    prop_oneof![3 => known, 1 => identities()]
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let states = select(&[State::Alive, State::Suspect, State::Down][..]);
    let updates = vec((any_identity(), any::<u16>(), states), 0..6);
    let dst = prop_oneof![5 => Just(Identity::new(&member(1))), 1 => any_identity()];
    let src = prop_oneof![5 => Just(Identity::new(&member(2))), 2 => any_identity()];
    let incarnation = prop_oneof![Just(0), Just(u16::MAX), any::<u16>()];
    (src, dst, incarnation, messages(), any_identity(), updates).prop_map(
        |(src, dst, src_incarnation, message, other, updates)| {
            let mut message = message;
            if let foca::Message::PingReq { target, .. } = &mut message {
                *target = other;
            }
            let mut bytes = Vec::new();
            Codec.encode_header(&Header { src, src_incarnation, dst, message }, &mut bytes).expect("there is room");
            bytes.put_u16(updates.len() as u16);
            for (identity, incarnation, state) in updates {
                let member = foca::Member::new(identity, incarnation, state);
                Codec.encode_member(&member, &mut bytes).expect("there is room");
            }
            bytes
        },
    )
}

#[test]
fn hostile_datagrams_cost_memory_in_proportion() {
    attack(1_000, mutated(packet()), |bytes| {
        let _ = Proportion::DEFAULT.of(bytes.len(), || Packet::decode(&bytes));
    });
}

#[derive(Debug, Clone)]
enum Action {
    Packet(u64, Vec<u8>),
    /// This many of the running timers are due.
    Timers(usize),
    Forget(u64),
    Gossip,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (prop_oneof![6 => Just(2_u64), 1 => 3..6_u64], prop_oneof![3 => packet().boxed(), 1 => mutated(packet()).boxed()])
            .prop_map(|(from, bytes)| Action::Packet(from, bytes)),
        3 => (1..6_usize).prop_map(Action::Timers),
        1 => (1..6_u64).prop_map(Action::Forget),
        1 => Just(Action::Gossip),
    ]
}

/// A node under attack, with its pending timers.
struct Victim {
    core: Membership,
    timers: Vec<(u64, Input)>,
    now_ms: u64,
}

impl Victim {
    fn new() -> Self {
        let core = Membership::new(member(1), Config::default(), 7).expect("the defaults are valid");
        let mut victim = Self { core, timers: Vec::new(), now_ms: 0 };
        victim.step(Input::Announce(member(3)));
        victim
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        // An error means that the input was refused; the membership continues.
        let _ = self.core.step(self.now_ms, input, &mut effects);
        assert!(effects.len() <= EFFECTS_MAX, "{} effects of one input", effects.len());
        for effect in effects {
            match effect {
                Effect::Timer { after, timer } => {
                    self.timers.push((self.now_ms + after.as_millis() as u64, Input::Timer(timer)));
                }
                Effect::Send { packet, .. } => {
                    assert!(packet.len() <= Config::default().packet_bytes_max);
                    Packet::decode(&packet).expect("a correct node sends valid packets");
                }
                Effect::Changed { node, .. } | Effect::Located { node, .. } => {
                    assert_ne!(node, NodeId(1), "a node never reports itself")
                }
            }
        }
    }

    fn timers(&mut self, count: usize) {
        for _ in 0..count {
            let next = (0..self.timers.len()).min_by_key(|at| self.timers[*at].0);
            let Some((due_ms, timer)) = next.map(|at| self.timers.remove(at)) else { return };
            self.now_ms = due_ms;
            self.step(timer);
        }
    }
}

#[test]
fn lying_members_cannot_break_a_correct_node() {
    attack(300, vec(any_action(), 1..40), |actions| {
        let mut victim = Victim::new();
        for action in actions {
            match action {
                Action::Packet(from, bytes) => {
                    victim.step(Input::Packet { from: NodeId(from), bytes: Bytes::from(bytes) })
                }
                Action::Timers(count) => victim.timers(count),
                Action::Forget(node) => victim.step(Input::Forget(NodeId(node))),
                Action::Gossip => victim.step(Input::Gossip),
            }
            let (me, own) = (victim.core.me(), member(1));
            assert_eq!((me.node, me.addr), (own.node, own.addr), "a node keeps its id and address");
            assert!(victim.core.members().len() <= crate::MEMBERS_MAX);
        }
        victim.timers(50);
        // A correct node is still accepted, whatever was claimed about it.
        let mut correct = Membership::new(Member { generation: u64::MAX, ..member(4) }, Config::default(), 9).unwrap();
        let mut effects = Vec::new();
        correct.step(victim.now_ms, Input::Announce(member(1)), &mut effects).expect("an announcement");
        for effect in effects {
            if let Effect::Send { packet, .. } = effect {
                victim.step(Input::Packet { from: NodeId(4), bytes: packet });
            }
        }
        assert_ne!(victim.core.state(NodeId(1)), NodeState::Down);
    });
}
