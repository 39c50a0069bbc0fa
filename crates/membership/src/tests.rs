//! Tests of whole clusters in virtual time, over a network that loses, delays and partitions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use flotilla_types::NodeId;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{Config, Effect, Input, Member, Membership, NodeState, PacketError, StepError, Subscriber};

const SECOND: u64 = 1_000;

fn member(node: u64, generation: u64) -> Member {
    Member { node: NodeId(node), addr: ([127, 0, 0, 1], 7_100 + node as u16).into(), generation }
}

/// A scheduled event, with the node and run it is for.
struct Event {
    node: NodeId,
    run_id: u64,
    input: Input,
}

struct Net {
    now_ms: u64,
    nodes: BTreeMap<NodeId, (u64, Membership)>,
    events: Vec<Option<Event>>,
    due: BinaryHeap<Reverse<(u64, usize)>>,
    /// Nodes on the far side of a partition.
    far: BTreeSet<NodeId>,
    loss_percent: u32,
    rng: ChaCha8Rng,
    runs: u64,
    changes: Vec<(u64, NodeId, NodeId, NodeState, NodeState)>,
    /// The last address that the first node received of the second one.
    located: BTreeMap<(NodeId, NodeId), SocketAddr>,
}

impl Net {
    fn new(seed: u64, loss_percent: u32) -> Self {
        Self {
            now_ms: 0,
            nodes: BTreeMap::new(),
            events: Vec::new(),
            due: BinaryHeap::new(),
            far: BTreeSet::new(),
            loss_percent,
            rng: ChaCha8Rng::seed_from_u64(seed),
            runs: 0,
            changes: Vec::new(),
            located: BTreeMap::new(),
        }
    }

    /// Starts nodes 1 to `count`; all have the first as seed.
    fn cluster(seed: u64, loss_percent: u32, count: u64) -> Self {
        let mut net = Self::new(seed, loss_percent);
        for node in 1..=count {
            net.start(node, 1);
            net.step(NodeId(node), if node == 1 { Input::Gossip } else { Input::Announce(member(1, 0)) });
        }
        net
    }

    fn start(&mut self, node: u64, generation: u64) {
        self.start_as(member(node, generation));
    }

    fn start_as(&mut self, me: Member) {
        self.runs += 1;
        let node = me.node;
        let core = Membership::new(me, Config::default(), self.rng.next_u64());
        self.nodes.insert(node, (self.runs, core.expect("the defaults are valid")));
    }

    fn step(&mut self, node: NodeId, input: Input) {
        let Some((run_id, core)) = self.nodes.get_mut(&node) else { return };
        let (run_id, mut effects) = (*run_id, Vec::new());
        core.step(self.now_ms, input, &mut effects).expect("the network carries only valid packets");
        for effect in effects {
            match effect {
                Effect::Timer { after, timer } => {
                    self.plan(after.as_millis() as u64, Event { node, run_id, input: Input::Timer(timer) });
                }
                Effect::Changed { node: other, old, new } => self.changes.push((self.now_ms, node, other, old, new)),
                Effect::Located { node: other, addr } => {
                    assert_ne!(other, node, "a node never reports itself");
                    self.located.insert((node, other), addr);
                }
                Effect::Send { to, packet } => {
                    assert!(packet.len() <= Config::default().packet_bytes_max);
                    let cut = self.far.contains(&node) != self.far.contains(&to.node);
                    let lost = self.rng.next_u32() % 100 < self.loss_percent;
                    let delay_ms = 1 + u64::from(self.rng.next_u32() % 20);
                    if let Some((run_id, _)) = self.nodes.get(&to.node).filter(|_| !cut && !lost) {
                        let input = Input::Packet { from: node, bytes: packet };
                        self.plan(delay_ms, Event { node: to.node, run_id: *run_id, input });
                    }
                }
            }
        }
    }

    fn plan(&mut self, after_ms: u64, event: Event) {
        self.due.push(Reverse((self.now_ms + after_ms, self.events.len())));
        self.events.push(Some(event));
    }

    fn run(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while let Some(Reverse((at_ms, index))) = self.due.peek().copied().filter(|next| next.0.0 <= end_ms) {
            self.due.pop();
            self.now_ms = at_ms;
            if let Some(event) = self.events[index].take()
                && self.nodes.get(&event.node).is_some_and(|(run_id, _)| *run_id == event.run_id)
            {
                self.step(event.node, event.input);
            }
        }
        self.now_ms = end_ms;
    }

    /// Runs until `done`, in steps of 50 ms. Returns the elapsed milliseconds.
    fn until(&mut self, ms_max: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let start_ms = self.now_ms;
        while !done(self) {
            assert!(self.now_ms - start_ms < ms_max, "not within {ms_max} ms: {:#?}", self.nodes);
            self.run(50);
        }
        self.now_ms - start_ms
    }

    fn all_see(&self, node: u64, state: NodeState) -> bool {
        let node = NodeId(node);
        self.nodes.iter().filter(|(id, _)| **id != node).all(|(_, (_, core))| core.state(node) == state)
    }

    fn all_alive(&self) -> bool {
        self.nodes.keys().all(|node| self.all_see(node.get(), NodeState::Alive))
    }
}

#[test]
fn all_discover_each_other_from_one_seed() {
    for (seed, count) in [(1, 3), (2, 5), (3, 7)] {
        let mut net = Net::cluster(seed, 10, count);
        net.until(10 * SECOND, Net::all_alive);
        let me = net.nodes[&NodeId(2)].1.members();
        assert_eq!(me.len() as u64, count - 1, "a node is not its own member");
    }
}

#[test]
fn dead_first_seed_and_lost_announcements_are_tolerated() {
    let mut net = Net::new(4, 0);
    for node in 1..=3 {
        net.start(node, 1);
        // Node 9 never answers; the others are announced by every node, which is harmless.
        for seed in [9, 1, 2, 3].into_iter().filter(|seed| *seed != node) {
            net.loss_percent = 100;
            net.step(NodeId(node), Input::Announce(member(seed, 0)));
        }
    }
    net.loss_percent = 0;
    net.until(15 * SECOND, Net::all_alive);
    assert!(net.all_see(9, NodeState::Unknown));
}

#[test]
fn crashed_node_is_suspected_then_down_for_all() {
    let mut net = Net::cluster(5, 5, 5);
    net.until(10 * SECOND, Net::all_alive);
    net.nodes.remove(&NodeId(3));
    net.until(20 * SECOND, |net| net.all_see(3, NodeState::Down));
    let of_third = |change: &&(u64, NodeId, NodeId, NodeState, NodeState)| change.2 == NodeId(3);
    assert!(net.changes.iter().filter(of_third).any(|change| change.4 == NodeState::Suspect));
    assert!(net.changes.iter().filter(of_third).all(|change| change.4 != NodeState::Left));
}

#[test]
fn leaving_node_is_left_and_never_down() {
    let mut net = Net::cluster(6, 0, 5);
    net.until(10 * SECOND, Net::all_alive);
    net.step(NodeId(2), Input::Leave);
    net.run(100);
    net.nodes.remove(&NodeId(2));
    net.until(2 * SECOND, |net| net.all_see(2, NodeState::Left));
    net.run(60 * SECOND);
    assert!(net.all_see(2, NodeState::Left));
    assert!(net.changes.iter().all(|change| change.2 != NodeId(2) || change.4 != NodeState::Down));
}

#[test]
fn one_delivered_departure_suffices_on_a_lossy_network() {
    for seed in 20..30 {
        let mut net = Net::cluster(seed, 25, 5);
        net.until(20 * SECOND, Net::all_alive);
        net.step(NodeId(4), Input::Leave);
        net.run(100);
        net.nodes.remove(&NodeId(4));
        net.until(20 * SECOND, |net| net.all_see(4, NodeState::Left));
    }
}

#[test]
fn partition_heals_within_seconds() {
    for (seed, far) in [(7, vec![4, 5]), (8, vec![5]), (9, vec![1, 2])] {
        let mut net = Net::cluster(seed, 5, 5);
        net.until(10 * SECOND, Net::all_alive);
        net.far = far.into_iter().map(NodeId).collect();
        net.until(60 * SECOND, |net| {
            net.nodes.iter().all(|(node, (_, core))| {
                let others = net.nodes.keys().filter(|other| net.far.contains(other) != net.far.contains(node));
                others.map(|other| core.state(*other)).all(|state| state == NodeState::Down)
            })
        });
        net.run(120 * SECOND);
        net.far.clear();
        let took_ms = net.until(30 * SECOND, Net::all_alive);
        assert!(took_ms <= 20 * SECOND, "healed after {took_ms} ms of virtual time");
    }
}

#[test]
fn fully_isolated_nodes_find_each_other_again() {
    let mut net = Net::cluster(10, 0, 3);
    net.until(10 * SECOND, Net::all_alive);
    net.loss_percent = 100;
    net.until(60 * SECOND, |net| (1..=3).all(|node| net.all_see(node, NodeState::Down)));
    net.loss_percent = 0;
    net.until(20 * SECOND, Net::all_alive);
}

#[test]
fn restart_with_a_higher_generation_is_alive_at_once() {
    let mut net = Net::cluster(11, 0, 4);
    net.until(10 * SECOND, Net::all_alive);
    net.nodes.remove(&NodeId(3));
    net.until(20 * SECOND, |net| net.all_see(3, NodeState::Down));
    net.start(3, 2);
    net.step(NodeId(3), Input::Announce(member(1, 0)));
    net.until(2 * SECOND, Net::all_alive);
    let (_, first) = &net.nodes[&NodeId(1)];
    assert_eq!(first.member(NodeId(3)).map(|member| member.generation), Some(2));
    // The same after a leave.
    net.step(NodeId(3), Input::Leave);
    net.until(2 * SECOND, |net| net.all_see(3, NodeState::Left));
    net.start(3, 3);
    net.step(NodeId(3), Input::Announce(member(2, 0)));
    net.until(2 * SECOND, Net::all_alive);
}

#[test]
fn all_hear_where_a_node_is_that_moved_and_told_one_of_them() {
    let mut net = Net::cluster(8, 0, 5);
    net.run(20 * SECOND);
    let addr = |port| SocketAddr::from(([10, 0, 0, 9], port));
    net.start_as(Member { addr: addr(7), ..member(5, 2) });
    net.step(NodeId(5), Input::Announce(member(1, 0)));
    net.run(5 * SECOND);
    for other in 1..=4 {
        assert_eq!(net.located.get(&(NodeId(other), NodeId(5))), Some(&addr(7)), "n{other}");
        assert_eq!(net.located.get(&(NodeId(5), NodeId(other))), Some(&member(other, 1).addr));
    }
    // It does not know where it is: the others keep what they had.
    net.start_as(Member { addr: ([0, 0, 0, 0], 8).into(), ..member(5, 3) });
    net.step(NodeId(5), Input::Announce(member(1, 0)));
    net.run(5 * SECOND);
    assert!((1..=4).all(|other| net.located[&(NodeId(other), NodeId(5))] == addr(7)));
}

#[test]
fn node_with_a_rolled_back_folder_rejoins() {
    let mut net = Net::cluster(12, 0, 4);
    net.until(10 * SECOND, Net::all_alive);
    net.start(3, 9);
    net.step(NodeId(3), Input::Announce(member(1, 0)));
    net.until(5 * SECOND, Net::all_alive);
    net.start(3, 4);
    net.step(NodeId(3), Input::Announce(member(1, 0)));
    net.run(30 * SECOND);
    net.until(SECOND, Net::all_alive);
    net.run(30 * SECOND);
    assert!(net.all_alive());
}

#[test]
fn suspicion_after_a_short_pause_is_refuted() {
    let mut net = Net::cluster(13, 0, 5);
    net.until(10 * SECOND, Net::all_alive);
    net.far.insert(NodeId(5));
    net.until(10 * SECOND, |net| net.nodes[&NodeId(1)].1.state(NodeId(5)) == NodeState::Suspect);
    net.far.clear();
    net.until(5 * SECOND, Net::all_alive);
    let down = net.changes.iter().any(|change| change.2 == NodeId(5) && change.4 == NodeState::Down);
    assert!(!down, "a suspect that answers in time is not down");
}

/// A node that was cut off long enough to be declared down suspects others when it returns, and they never
/// hear of it.
#[test]
fn a_suspicion_ends_although_the_node_that_raised_it_was_declared_down() {
    for (seed, cut_ms) in (30..35).flat_map(|seed| (3..9).map(move |seconds| (seed, seconds * SECOND))) {
        let mut net = Net::cluster(seed, 0, 3);
        net.until(10 * SECOND, Net::all_alive);
        net.far.insert(NodeId(1));
        net.run(cut_ms);
        net.far.clear();
        net.run(20 * SECOND);
        net.until(10 * SECOND, Net::all_alive);
    }
}

#[test]
fn removed_node_is_forgotten_and_a_present_one_is_not() {
    let mut net = Net::cluster(14, 0, 3);
    net.until(10 * SECOND, Net::all_alive);
    net.step(NodeId(1), Input::Forget(NodeId(2)));
    assert_eq!(net.nodes[&NodeId(1)].1.state(NodeId(2)), NodeState::Alive);
    net.nodes.remove(&NodeId(3));
    net.until(20 * SECOND, |net| net.all_see(3, NodeState::Down));
    net.step(NodeId(1), Input::Forget(NodeId(3)));
    let (_, first) = &net.nodes[&NodeId(1)];
    assert_eq!((first.state(NodeId(3)), first.member(NodeId(3))), (NodeState::Unknown, None));
    assert_eq!(net.changes.last().map(|change| (change.3, change.4)), Some((NodeState::Down, NodeState::Unknown)));
}

#[test]
fn subscribers_receive_each_change_exactly_once() {
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(NodeId, NodeState, NodeState)>>);
    impl Subscriber for Recorder {
        fn on_state_change(&self, node: NodeId, old: NodeState, new: NodeState) {
            self.0.lock().expect("no panic under the lock").push((node, old, new));
        }
    }
    let mut net = Net::cluster(15, 10, 5);
    let received = Arc::new(Recorder::default());
    let first = &mut net.nodes.get_mut(&NodeId(1)).expect("node 1 was started").1;
    first.subscribe(received.clone()).unwrap_or_else(|_| panic!("room for one subscriber"));
    net.changes.clear();
    net.run(30 * SECOND);
    net.nodes.remove(&NodeId(4));
    net.run(30 * SECOND);
    let received = received.0.lock().expect("no panic under the lock").clone();
    let reported: Vec<_> = net
        .changes
        .iter()
        .filter(|change| change.1 == NodeId(1))
        .map(|change| (change.2, change.3, change.4))
        .collect();
    assert_eq!(received, reported);
    assert!(received.contains(&(NodeId(4), NodeState::Suspect, NodeState::Down)));
    let mut last = BTreeMap::new();
    for (node, old, new) in received {
        assert_ne!(old, new);
        assert_eq!(last.insert(node, new).unwrap_or(old), old, "each change starts from the previous state");
    }
}

#[test]
fn invalid_packets_are_typed_errors_and_change_nothing() {
    let mut core = Membership::new(member(1, 1), Config::default(), 1).expect("the defaults are valid");
    let mut other = Membership::new(member(2, 1), Config::default(), 2).expect("the defaults are valid");
    let mut effects = Vec::new();
    other.step(0, Input::Announce(member(1, 1)), &mut effects).expect("a valid input");
    let packet = effects.into_iter().find_map(|effect| match effect {
        Effect::Send { packet, .. } => Some(packet),
        _ => None,
    });
    let packet = packet.expect("an announcement");
    core.step(0, Input::Gossip, &mut Vec::new()).expect("a valid input");
    let mut refused = |from: u64, bytes: Bytes| {
        let mut effects = Vec::new();
        let error = core.step(0, Input::Packet { from: NodeId(from), bytes }, &mut effects).err();
        assert_eq!((effects, core.members()), (Vec::new(), Vec::new()));
        error
    };
    assert_eq!(refused(2, Bytes::new()), Some(StepError::Malformed(PacketError::Truncated)));
    assert_eq!(refused(2, Bytes::from_static(b"hello")), Some(StepError::Malformed(PacketError::Version(b'h'))));
    assert_eq!(refused(2, packet.slice(..20)), Some(StepError::Malformed(PacketError::Truncated)));
    assert_eq!(refused(2, Bytes::from(vec![1; 1_101])), Some(StepError::TooLarge { bytes: 1_101 }));
    let wrong = StepError::WrongSender { from: NodeId(3), claimed: NodeId(2) };
    assert_eq!(refused(3, packet.clone()), Some(wrong));
    let mut longer = packet.to_vec();
    longer.push(0);
    assert_eq!(refused(2, longer.into()), Some(StepError::Malformed(PacketError::Truncated)));
    core.step(0, Input::Packet { from: NodeId(2), bytes: packet }, &mut Vec::new()).expect("a valid packet");
    assert_eq!(core.state(NodeId(2)), NodeState::Alive);
}

#[test]
fn same_seed_gives_the_same_history() {
    let history = || {
        let mut net = Net::cluster(16, 20, 5);
        net.run(20 * SECOND);
        net.nodes.remove(&NodeId(2));
        net.run(20 * SECOND);
        net.changes
    };
    assert_eq!(history(), history());
}
