//! Messages that no correct peer sends: absurd terms, positions, commit indexes and configurations.
//!
//! raft-rs panics on some of them, which would fail the replica, so they must be dropped before they reach
//! it.

use std::sync::Arc;

use flotilla_hostile::{attack, extreme_u64};
use flotilla_types::{Checkpoint, ConfState, Position};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

/// A number in a hostile message: near the receiver's own, or arbitrary.
#[derive(Debug, Clone, Copy)]
enum Number {
    /// Offset from the receiver's own number.
    Near(i64),
    Absurd(u64),
}

impl Number {
    fn of(self, own: u64) -> u64 {
        match self {
            Self::Near(by) => own.saturating_add_signed(by),
            Self::Absurd(number) => number,
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![3 => (-4..5_i64).prop_map(Number::Near), 1 => extreme_u64().prop_map(Number::Absurd)]
}

/// A message, before it is adapted to the numbers of its receiver.
#[derive(Debug, Clone)]
struct Hostile {
    kind: MessageKind,
    from: u64,
    term: Number,
    log_term: Number,
    index: Number,
    commit: Number,
    commit_term: Number,
    /// Term, data and kind of each entry.
    entries: Vec<(Number, Bytes, EntryKind)>,
    /// Offset of the first entry from the index; 1 is correct.
    gap: Number,
    snapshot: Option<(Number, Number, ConfState)>,
    reject: bool,
    reject_hint: Number,
    context: Bytes,
    /// Mostly zero; correct peers never send another value.
    priority: i64,
}

const KINDS: [MessageKind; 13] = [
    MessageKind::Append,
    MessageKind::AppendResponse,
    MessageKind::RequestVote,
    MessageKind::RequestVoteResponse,
    MessageKind::RequestPreVote,
    MessageKind::RequestPreVoteResponse,
    MessageKind::Heartbeat,
    MessageKind::HeartbeatResponse,
    MessageKind::Snapshot,
    MessageKind::TimeoutNow,
    MessageKind::ReadIndex,
    MessageKind::ReadIndexResponse,
    MessageKind::Rest,
];

fn replica() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1..6_u64, 1 => extreme_u64()]
}

fn conf() -> impl Strategy<Value = ConfState> {
    let ids = || vec(replica().prop_map(ReplicaId), 0..4);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(|(voters, outgoing, learners, learners_next, joint)| {
        ConfState {
            voters,
            voters_outgoing: if joint { outgoing } else { vec![] },
            learners,
            learners_next: if joint { learners_next } else { vec![] },
        }
    })
}

fn change() -> impl Strategy<Value = Bytes> {
    let ids = || vec(replica().prop_map(ReplicaId), 0..4);
    prop_oneof![
        (replica(), 0..4_u64).prop_map(|(id, node)| ConfChange::AddLearner {
            replica: ReplicaId(id),
            node: NodeId(node)
        }
        .encode()),
        replica().prop_map(|id| ConfChange::RemoveLearner { replica: ReplicaId(id) }.encode()),
        (ids(), ids()).prop_map(|(promote, demote)| ConfChange::Swap { promote, demote }.encode()),
        Just(ConfChange::LeaveJoint.encode()),
        vec(any::<u8>(), 0..20).prop_map(of_known_format),
    ]
}

fn shard_change() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(ShardChange::Bump.encode()),
        Just(ShardChange::Fold { piece_bytes: 4096 }.encode()),
        vec(any::<u8>(), 0..4).prop_map(of_known_format)
    ]
}

/// A committed change of a newer format stops a replica, and must: see `a_change_of_a_newer_format…`.
fn of_known_format(mut bytes: Vec<u8>) -> Bytes {
    if let Some(format) = bytes.first_mut() {
        *format %= 2;
    }
    bytes.into()
}

fn entries() -> impl Strategy<Value = Vec<(Number, Bytes, EntryKind)>> {
    let entry = prop_oneof![
        (number(), Just(Bytes::from_static(b"data")), Just(EntryKind::Normal)),
        (number(), change(), Just(EntryKind::ConfChange)),
        (number(), shard_change(), Just(EntryKind::Shard)),
    ];
    vec(entry, 0..4)
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let numbers = (number(), number(), number(), number(), number(), number());
    let gap = prop_oneof![9 => Just(Number::Near(1)), 1 => number()];
    let snapshot = option::of((number(), number(), conf()));
    let rest = (
        select(&KINDS[..]),
        replica(),
        entries(),
        gap,
        snapshot,
        any::<bool>(),
        prop_oneof![4 => Just(0), 1 => any::<i64>()],
    );
    (numbers, rest, vec(any::<u8>(), 0..20)).prop_map(|(numbers, rest, context)| {
        let (term, log_term, index, commit, commit_term, reject_hint) = numbers;
        let (kind, from, entries, gap, snapshot, reject, priority) = rest;
        let context = context.into();
        Hostile {
            kind,
            from,
            term,
            log_term,
            index,
            commit,
            commit_term,
            entries,
            gap,
            snapshot,
            reject,
            reject_hint,
            context,
            priority,
        }
    })
}

impl Hostile {
    fn for_receiver(&self, driver: &Driver, to: u64) -> Message {
        let group = driver.nodes[&to].raft.group(ReplicaId(to)).unwrap();
        let (last, term, commit) = (group.last().0, group.role().1.0, group.status().commit.0);
        let index = self.index.of(last);
        let entry = |(at, (entry_term, data, kind)): (u64, &(Number, Bytes, EntryKind))| Entry {
            index: LogIndex(self.gap.of(index).wrapping_add(at)),
            term: Term(entry_term.of(term)),
            kind: *kind,
            data: if *kind == EntryKind::Shard { Bytes::from_static(Entry::SHARD_DATA) } else { data.clone() },
            context: if *kind == EntryKind::Normal { Bytes::new() } else { data.clone() },
        };
        Message {
            from: ReplicaId(self.from),
            term: Term(self.term.of(term)),
            log_term: Term(self.log_term.of(term)),
            index: LogIndex(index),
            commit: LogIndex(self.commit.of(commit)),
            commit_term: Term(self.commit_term.of(term)),
            entries: (0..).zip(&self.entries).map(entry).collect(),
            snapshot: self.snapshot.as_ref().map(|(at, snapshot_term, conf)| Snapshot {
                checkpoint: Checkpoint::empty(Position {
                    index: LogIndex(at.of(last)),
                    term: Term(snapshot_term.of(term)),
                    conf: Arc::new(conf.clone()),
                    descriptor: Arc::new(driver::descriptor(&[1, 2, 3])),
                }),
            }),
            reject: self.reject,
            reject_hint: LogIndex(self.reject_hint.of(last)),
            context: self.context.clone(),
            priority: self.priority,
            ..message(self.kind, self.from, to, 0)
        }
    }
}

/// One step of the test: a hostile message or an ordinary event.
#[derive(Debug, Clone)]
enum Step {
    Receive(Box<Hostile>),
    Tick,
    Campaign,
    Propose,
    Read,
    Change,
    Transfer,
    Unreachable(u64),
    SnapshotFailed(u64),
    Checkpoint,
    /// Holds the disk back (`true`) or releases it.
    Disk(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => hostile().prop_map(|hostile| Step::Receive(Box::new(hostile))),
        3 => Just(Step::Tick),
        1 => Just(Step::Campaign),
        2 => Just(Step::Propose),
        1 => Just(Step::Read),
        1 => Just(Step::Change),
        1 => Just(Step::Transfer),
        1 => replica().prop_map(Step::Unreachable),
        1 => replica().prop_map(Step::SnapshotFailed),
        1 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(Step::Disk),
    ]
}

fn act(driver: &mut Driver, step: &Step) {
    let id = ReplicaId(1);
    let mut effects = Effects::default();
    match step {
        Step::Receive(hostile) => {
            let message = hostile.for_receiver(driver, 1);
            driver.step(1, Input::Message(message));
        }
        Step::Tick => driver.step(1, Input::Tick),
        Step::Campaign => driver.step(1, Input::Campaign { replica: id }),
        Step::Propose => {
            let _ = driver.node(1).raft.propose(id, Bytes::from_static(b"own"), &mut effects);
        }
        Step::Read => {
            let _ = driver.node(1).raft.read_index(id, Bytes::from_static(b"read"), 0, &mut effects);
        }
        Step::Change => {
            let change = ConfChange::AddLearner { replica: ReplicaId(4), node: NodeId(4) };
            let _ = driver.node(1).raft.propose_change(id, &change, &mut effects);
        }
        Step::Transfer => driver.step(1, Input::Transfer { replica: id, to: ReplicaId(2) }),
        Step::Unreachable(to) => driver.step(1, Input::Unreachable { replica: id, to: ReplicaId(*to) }),
        Step::SnapshotFailed(to) => {
            driver.step(1, Input::SnapshotSent { replica: id, to: ReplicaId(*to), delivered: false });
        }
        Step::Checkpoint => driver.checkpoint(1),
        Step::Disk(held) => driver.node(1).disk_held = *held,
    }
    driver.perform(1, effects);
    driver.drain(1);
}

/// Replica 1 of three in each possible state.
fn begin(state: u8) -> Driver {
    let mut driver = Driver::of_voters(if state == 4 { &[1] } else { &[1, 2, 3] });
    match state {
        // New, and waiting for a snapshot.
        0 => {
            driver = Driver::default();
            driver.create(1, &[]);
        }
        // A follower without a known leader.
        1 => {}
        // A follower of replica 2.
        2 => {
            driver.input(2, Input::Campaign { replica: ReplicaId(2) });
            driver.settle();
            driver.propose(2, "one");
            driver.settle();
        }
        // A leader, or a lone one.
        _ => {
            driver.input(1, Input::Campaign { replica: ReplicaId(1) });
            driver.settle();
            driver.propose(1, "one");
            driver.settle();
            assert_eq!(driver.leader(), Some(1));
        }
    }
    // The other replicas send nothing by themselves.
    driver.cut.extend([2, 3]);
    driver
}

#[test]
fn hostile_messages_fail_no_replica() {
    attack(1_500, (0..5_u8, vec(any_step(), 1..25)), |(state, steps)| {
        let mut driver = begin(state);
        for step in &steps {
            act(&mut driver, step);
            assert_eq!(driver.node(1).failed, [], "after {step:?}");
        }
        driver.node(1).disk_held = false;
        driver.write(1);
        driver.drain(1);
        assert_eq!(driver.node(1).failed, []);
    });
}
