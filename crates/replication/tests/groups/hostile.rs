//! A node with a malicious peer: frames, objects and entries that no correct node sends, from an
//! authenticated member.
//!
//! The victim is everything that a host runs on its threads, but synchronous. It must never panic, and a
//! shard without a replica on the malicious peer must not be affected.

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_hostile::{extreme_u64, mutated};
use flotilla_kv::{KvMachine, Limits, Outcome, decode_outcome};
use flotilla_replication::{
    Answer, Applied, Applier, Background, Batch, CommandRefs, ConfChange, Core, Effects, Freshness, Gather, GatherEnd,
    Input, LostReason, NodeHeartbeat, Notice, Outgoing, Request, ShardChange,
    work::{
        End, Job, JobResult, Pull, PullBounds, PullOrder, PullState, Wal, WalJob, pack, pack_node_heartbeat, serve,
        unpack,
    },
};
use flotilla_storage::{MemoryEngine, MemoryLog, StateEngine as _};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, Incarnation, LogIndex, Message, MessageKind, NodeId, ObjectId,
    ObjectRef, Position, Refs, ReplicaId, ShardId, Snapshot, Tables, Term, Timestamp, VersionRange, WalSequence,
};
use flotilla_values::list_refs;
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::harness::{SHARD, WALL_MS, descriptor, get, key, store};

const ME: NodeId = NodeId(1);
/// The malicious peer.
const MALICIOUS: NodeId = NodeId(2);
/// The honest peer, which only sends heartbeats.
const HONEST: NodeId = NodeId(3);
/// A shard with a single replica, on this node.
const LONE: ShardId = ShardId(2);
const LONE_REPLICA: ReplicaId = ReplicaId(7);
/// Rounds of effects that one input may cause; more are an endless loop.
const ROUNDS_MAX: usize = 10_000;

struct Victim {
    log: MemoryLog,
    engine: MemoryEngine,
    core: Core<u64>,
    applier: Applier<u64>,
    wal: Wal,
    now_ms: u64,
    incarnation: Incarnation,
    answers: BTreeMap<u64, Answer>,
    asked: u64,
    broken: usize,
    /// Objects that the malicious peer serves.
    objects: BTreeMap<ObjectId, Bytes>,
}

impl Victim {
    /// A node with a replica of a shard on three nodes, and the only replica of another one, which it leads.
    fn new() -> Self {
        let mut victim = Self::open(MemoryLog::default(), MemoryEngine::default(), Incarnation(1), 0);
        victim.verify();
        let lone = flotilla_types::ShardDescriptor {
            shard: LONE,
            replicas: vec![flotilla_types::ReplicaDescriptor { replica: LONE_REPLICA, ..descriptor(&[1]).replicas[0] }],
            ..descriptor(&[1])
        };
        victim.input(Input::Create { replica: ReplicaId(1), descriptor: descriptor(&[1, 2, 3]), founding: true });
        victim.input(Input::Create { replica: LONE_REPLICA, descriptor: lone, founding: true });
        victim.ticks(30);
        victim
    }

    fn open(log: MemoryLog, engine: MemoryEngine, incarnation: Incarnation, now_ms: u64) -> Self {
        let mut effects = Effects::default();
        let config = crate::harness::small_bounds();
        let core = Core::open(ME, incarnation, config, Arc::new(log.clone()), incarnation.0, &mut effects).unwrap();
        let machines = Arc::new(|_| Box::new(KvMachine::new(Limits::default())) as _);
        let applier = Applier::new(Arc::new(engine.clone()), machines);
        let wal = Wal::new(&log, incarnation);
        let answers = BTreeMap::new();
        let objects = BTreeMap::from([(ObjectId::of(OBJECT), Bytes::from_static(OBJECT))]);
        let mut victim =
            Self { log, engine, core, applier, wal, now_ms, incarnation, answers, asked: 0, broken: 0, objects };
        victim.perform_all(effects);
        victim.input(Input::Peers(vec![MALICIOUS, HONEST]));
        victim
    }

    /// Restarts from the disk.
    fn restart(&mut self) {
        let (log, engine) = (self.log.reopen(), self.engine.reopen());
        let (broken, asked, objects) = (self.broken, self.asked, std::mem::take(&mut self.objects));
        *self = Self { broken, asked, objects, ..Self::open(log, engine, self.incarnation.next(), self.now_ms) };
        self.verify();
        self.ticks(30);
    }

    fn heartbeat(&self) -> NodeHeartbeat {
        NodeHeartbeat {
            incarnation: Incarnation(1),
            recovered: WalSequence(0),
            synced: WalSequence(0),
            wall_ms: WALL_MS + self.now_ms,
            recovery_complete: true,
            your_incarnation: self.incarnation,
            you_lost_up_to: None,
            leaders: Vec::new(),
            not_led: Vec::new(),
            versions: VersionRange::supported(),
        }
    }

    /// The honest peer verifies this node's log.
    fn verify(&mut self) {
        self.input(Input::NodeHeartbeat { from: HONEST, heartbeat: self.heartbeat() });
    }

    fn ticks(&mut self, times: u64) {
        for _ in 0..times {
            self.now_ms += 100;
            self.input(Input::Tick);
        }
    }

    fn input(&mut self, input: Input<u64>) {
        let mut effects = Effects::default();
        self.core.step(self.now_ms, WALL_MS + self.now_ms, input, &mut effects);
        self.perform_all(effects);
    }

    /// Performs effects, and those that they cause in turn.
    fn perform_all(&mut self, mut effects: Effects<u64>) {
        for _ in 0..ROUNDS_MAX {
            self.core.flush(self.now_ms, &mut effects);
            let inputs = self.perform(std::mem::take(&mut effects));
            if inputs.is_empty() {
                return;
            }
            for input in inputs {
                self.core.step(self.now_ms, WALL_MS + self.now_ms, input, &mut effects);
            }
        }
        panic!("the effects of one input do not end");
    }

    fn perform(&mut self, mut effects: Effects<u64>) -> Vec<Input<u64>> {
        let mut inputs = Vec::new();
        for hold in std::mem::take(&mut effects.holds) {
            self.engine.hold(hold.holder, &hold.objects);
        }
        // Everything that is sent must parse.
        let mut sends = std::mem::take(&mut effects.sends);
        for (_, heartbeat) in std::mem::take(&mut effects.node_heartbeats) {
            unpack::<u64>(ME, pack_node_heartbeat(&heartbeat)).expect("a heartbeat parses");
        }
        if let Some(job) = WalJob::take(&mut effects) {
            let merged = self.wal.merge([job]);
            let durable = self.wal.write(&self.log, merged).expect("the core requests valid writes only");
            sends.extend(durable.after);
            inputs.push(Input::Written { sequence: durable.sequence, done: durable.done });
        }
        self.send(sends);
        for task in effects.apply {
            let mut out = Applied::default();
            self.applier.run(WALL_MS + self.now_ms, task, &mut out);
            self.applied(out, &mut inputs);
        }
        for task in effects.background {
            match task {
                Background::Build { replica, format } => {
                    self.work(Job::Build { replica, format, failures: 0 }, &mut inputs)
                }
                Background::InstallCheckpoint { replica, checkpoint } => {
                    self.work(Job::InstallCheckpoint { replica, checkpoint, failures: 0 }, &mut inputs);
                }
                Background::Compact { replica, folding } => self.work(Job::Compact { replica, folding }, &mut inputs),
                Background::Expect { objects } => self.work(Job::Expect { objects }, &mut inputs),
                Background::Count(count) => self.work(Job::Count(count), &mut inputs),
                Background::Gather(Gather { holder, number, refs, .. }) => {
                    let complete = self.pull(PullOrder::of_refs(vec![MALICIOUS], &refs, list_refs));
                    let end = if complete { GatherEnd::Complete } else { GatherEnd::Incomplete };
                    inputs.push(Input::Gathered { holder, number, end });
                }
                Background::Pull { replica, checkpoint, .. } => {
                    let order = PullOrder::of_snapshot(ME, replica, MALICIOUS, &checkpoint, list_refs);
                    let complete = self.pull(order);
                    inputs.push(Input::Pulled { replica, checkpoint, complete });
                }
            }
        }
        assert!(effects.fatal.is_none(), "{:?}", effects.fatal);
        self.answers.extend(effects.replies);
        for notice in effects.notices {
            if let Notice::Lost { replicas, reason: LostReason::Broken } = notice {
                assert!(
                    !replicas.contains(&(LONE, LONE_REPLICA)),
                    "the malicious peer broke a shard that it has no replica of"
                );
                self.broken += replicas.len();
            }
        }
        inputs
    }

    fn send(&self, sends: Vec<Outgoing>) {
        for packed in pack(sends) {
            unpack::<u64>(ME, packed.frame).expect("a correct node's frame parses");
        }
    }

    fn applied(&mut self, out: Applied<u64>, inputs: &mut Vec<Input<u64>>) {
        assert!(out.fatal.is_none(), "{:?}", out.fatal);
        inputs.extend(out.inputs);
        self.answers.extend(out.replies);
        for load in out.loads {
            self.work(Job::Load(load), inputs);
        }
        for replica in out.destroyed {
            self.work(Job::Destroy { replica, failures: 0 }, inputs);
        }
    }

    fn work(&mut self, job: Job, inputs: &mut Vec<Input<u64>>) {
        match job.run(&self.engine, &|| false) {
            JobResult::Done => {}
            JobResult::Report(input) => inputs.push(input),
            JobResult::Loaded(load, result) => {
                let mut out = Applied::default();
                self.applier.loaded(WALL_MS + self.now_ms, &load, result, &mut out);
                self.applied(out, inputs);
            }
            JobResult::Retry { job, .. } => panic!("{job:?} failed"),
            JobResult::Fatal { replica, error } => panic!("{replica}: {error}"),
        }
    }

    /// Pulls from the malicious peer, which serves what it has.
    fn pull(&self, order: PullOrder) -> bool {
        let bounds = PullBounds::default();
        let mut pull = Pull::start(&self.engine, order, bounds).unwrap();
        while let Some(request) = pull.next_request(self.now_ms) {
            let source = MemoryEngine::default();
            for (id, object) in &self.objects {
                source.import(*id, object.clone(), &[]).unwrap();
            }
            let served = serve(&source, request.encode(), bounds);
            let stored = request.store(&self.engine, served.response);
            if matches!(stored.end, End::Failed(_)) {
                return false;
            }
            let _ = pull.on_stored(self.now_ms, 1, request, stored);
        }
        pull.state() == PullState::Fetched && pull.finish(&self.engine).unwrap()
    }

    fn ask(&mut self, shard: ShardId, payload: Bytes, read: bool) -> Option<Answer> {
        self.asked += 1;
        let reply = self.asked;
        let (range_epoch, after, deadline_ms) = (None, Timestamp::ZERO, self.now_ms + 1_000);
        let request = Request { shard, range_epoch, after, payload, refs: CommandRefs::default(), deadline_ms, reply };
        self.input(if read { Input::Read(request, Freshness::Strong) } else { Input::Propose(request) });
        self.answers.remove(&reply)
    }

    /// Checks that the shard on this node alone still serves writes and reads.
    fn lone_shard_serves(&mut self) {
        self.ticks(30);
        self.verify();
        let sequence = self.asked + 1;
        let write = self.ask(LONE, store(1, sequence, "key", "value"), false);
        let outcome = write.expect("an answer").expect("a write that is applied");
        assert!(matches!(decode_outcome(outcome.payload), Ok(Outcome::Done { .. })), "a write that is done");
        let read = self.ask(LONE, get(key("key")), true).expect("an answer").expect("a read");
        assert!(read.payload.windows(5).any(|part| part == b"value"), "the written value is there");
    }
}

/// A number in a hostile message: near the true one, or anything.
#[derive(Debug, Clone, Copy)]
enum Number {
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
    prop_oneof![4 => (-2..3_i64).prop_map(Number::Near), 1 => extreme_u64().prop_map(Number::Absurd)]
}

#[derive(Debug, Clone)]
struct HostileMessage {
    kind: MessageKind,
    from: u64,
    term: Number,
    log_term: Number,
    index: Number,
    commit: Number,
    payloads: Vec<(EntryKind, Bytes)>,
    conf: ConfState,
    /// The snapshot's system state, and other objects.
    system: Option<Bytes>,
    objects: Vec<Bytes>,
    reject: bool,
    context: Bytes,
}

/// An object that the malicious peer has.
const OBJECT: &[u8] = b"object";

/// Payloads of entries: valid batches with corrupt commands, and corrupt batches.
fn payload() -> impl Strategy<Value = (EntryKind, Bytes)> {
    let command = || mutated(Just(store(5, 1, "key", "mad")));
    let timestamp = prop_oneof![Just(Timestamp::from_millis(WALL_MS).0), extreme_u64()];
    // Of objects that are there at times, or are not what is said.
    let reference = (any::<bool>(), 0..=ObjectRef::HEIGHT_MAX, prop_oneof![Just(6), extreme_u64()]);
    let refs = vec(reference, 0..3).prop_map(|refs| {
        let id = |is_there| ObjectId::of(if is_there { OBJECT } else { b"absent" });
        refs.into_iter().map(|(is_there, height, bytes)| ObjectRef { id: id(is_there), height, bytes }).collect()
    });
    let batch = (timestamp, refs, vec(command(), 0..3)).prop_map(|(timestamp, refs, commands)| {
        Batch { timestamp: Timestamp(timestamp), refs, commands: commands.into_iter().map(Bytes::from).collect() }
            .encode()
    });
    let replicas = || vec((1..6_u64).prop_map(ReplicaId), 0..3);
    let change = prop_oneof![
        (1..6_u64).prop_map(|id| ConfChange::AddLearner { replica: ReplicaId(id), node: NodeId(id) }),
        (1..6_u64).prop_map(|id| ConfChange::RemoveLearner { replica: ReplicaId(id) }),
        (replicas(), replicas()).prop_map(|(promote, demote)| ConfChange::Swap { promote, demote }),
        Just(ConfChange::LeaveJoint),
    ];
    let valid =
        Just(Batch { timestamp: Timestamp(9), refs: Refs::NONE, commands: vec![store(5, 1, "key", "mad")] }.encode());
    prop_oneof![
        3 => batch.prop_map(|data| (EntryKind::Normal, data)),
        1 => mutated(valid).prop_map(|data| (EntryKind::Normal, data.into())),
        2 => change.prop_map(|change| (EntryKind::ConfChange, change.encode())),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| (EntryKind::ConfChange, bytes.into())),
        1 => Just((EntryKind::Shard, ShardChange::Bump.encode())),
        1 => Just((EntryKind::Shard, ShardChange::Fold { piece_bytes: 4096 }.encode())),
        1 => vec(any::<u8>(), 0..4).prop_map(|bytes| (EntryKind::Shard, bytes.into())),
    ]
}

fn conf() -> impl Strategy<Value = ConfState> {
    let ids = || vec((1..5_u64).prop_map(ReplicaId), 0..4);
    let odd = (ids(), ids(), ids(), ids()).prop_map(|(voters, voters_outgoing, learners, learners_next)| ConfState {
        voters,
        voters_outgoing,
        learners,
        learners_next,
    });
    prop_oneof![1 => Just(ConfState::of_voters([1, 2, 3].map(ReplicaId))), 1 => odd]
}

fn hostile_message() -> impl Strategy<Value = HostileMessage> {
    let kinds = [
        MessageKind::Append,
        MessageKind::Append,
        MessageKind::Append,
        MessageKind::AppendResponse,
        MessageKind::RequestVote,
        MessageKind::RequestVoteResponse,
        MessageKind::RequestPreVoteResponse,
        MessageKind::Heartbeat,
        MessageKind::HeartbeatResponse,
        MessageKind::Snapshot,
        MessageKind::TimeoutNow,
        MessageKind::Rest,
    ];
    let numbers = (number(), number(), number(), number());
    let object = || mutated(Just(vec![0; 40]));
    let rest = (vec(payload(), 0..4), conf(), option::of(object()), vec(object(), 0..3), any::<bool>());
    let from = prop_oneof![6 => Just(2_u64), 1 => 1..9_u64];
    (select(kinds.to_vec()), from, numbers, rest, vec(any::<u8>(), 0..17)).prop_map(
        |(kind, from, numbers, rest, context)| {
            let (term, log_term, index, commit) = numbers;
            let (payloads, conf, system, objects, reject) = rest;
            let (system, objects) = (system.map(Bytes::from), objects.into_iter().map(Bytes::from).collect());
            HostileMessage {
                kind,
                from,
                term,
                log_term,
                index,
                commit,
                payloads,
                conf,
                system,
                objects,
                reject,
                context: context.into(),
            }
        },
    )
}

#[derive(Debug, Clone)]
enum HostileAction {
    Raft(Box<HostileMessage>),
    /// A corrupt frame.
    Frame(Vec<u8>),
    NodeHeartbeat {
        numbers: [u64; 5],
        known: bool,
        lost: Option<u64>,
    },
    Ticks(u64),
    Ask,
    Link(bool),
    Restart,
}

fn hostile_action() -> impl Strategy<Value = HostileAction> {
    let frame = hostile_message().prop_map(|hostile_message| {
        let victim = Victim::new();
        pack(vec![Outgoing {
            node: ME,
            shard: SHARD,
            message: hostile_message.message(&victim).0,
            synced: WalSequence(0),
        }])
        .remove(0)
        .frame
    });
    let wall = prop_oneof![Just(WALL_MS), extreme_u64()];
    let heartbeat =
        (extreme_u64(), extreme_u64(), extreme_u64(), wall, extreme_u64(), any::<bool>(), option::of(extreme_u64()))
            .prop_map(|(a, b, c, d, e, known, lost)| HostileAction::NodeHeartbeat {
                numbers: [a, b, c, d, e],
                known,
                lost,
            });
    prop_oneof![
        12 => hostile_message().prop_map(|hostile_message| HostileAction::Raft(Box::new(hostile_message))),
        1 => mutated(frame).prop_map(HostileAction::Frame),
        3 => heartbeat,
        3 => (1..25_u64).prop_map(HostileAction::Ticks),
        2 => Just(HostileAction::Ask),
        1 => any::<bool>().prop_map(HostileAction::Link),
        1 => Just(HostileAction::Restart),
    ]
}

impl HostileMessage {
    /// The shard's own descriptor, with any epoch.
    fn descriptor(&self) -> flotilla_types::ShardDescriptor {
        let own = descriptor(&[1, 2, 3]);
        let epoch = Epoch { range: self.commit.of(own.epoch.range), config: self.log_term.of(own.epoch.config) };
        flotilla_types::ShardDescriptor { epoch, ..own }
    }

    /// The message, and the objects that it names.
    fn message(&self, victim: &Victim) -> (Message, Vec<Bytes>) {
        let status = victim.core.status().into_iter().find(|status| status.shard == SHARD);
        let group = status.and_then(|status| status.group);
        let (last, term, commit) = group.map_or((1, 1, 1), |group| (group.last.0, group.term.0, group.commit.0));
        let (index, term) = (self.index.of(last), self.term.of(term));
        let entry = |(at, (kind, payload)): (u64, &(EntryKind, Bytes))| {
            let (data, context) = match kind {
                EntryKind::Normal => (payload.clone(), Bytes::new()),
                EntryKind::ConfChange => (Bytes::new(), payload.clone()),
                EntryKind::Shard => (Bytes::from_static(Entry::SHARD_DATA), payload.clone()),
            };
            Entry { index: LogIndex(index.wrapping_add(at)), term: Term(term), kind: *kind, data, context }
        };
        let objects: Vec<_> = self.system.iter().chain(&self.objects).cloned().collect();
        let snapshot = (self.kind == MessageKind::Snapshot).then(|| Snapshot {
            checkpoint: Checkpoint {
                position: Position {
                    index: LogIndex(index),
                    term: Term(self.log_term.of(term)),
                    conf: Arc::new(self.conf.clone()),
                    descriptor: Arc::new(self.descriptor()),
                },
                system: self.system.as_deref().map(ObjectId::of),
                tables: Tables::Pieces {
                    base: Vec::new(),
                    runs: self.objects.iter().map(|object| ObjectId::of(object)).collect(),
                },
            },
        });
        let message = Message {
            kind: self.kind,
            from: ReplicaId(self.from),
            to: ReplicaId(1),
            term: Term(term),
            log_term: Term(self.log_term.of(term)),
            index: LogIndex(index),
            entries: (1..).zip(&self.payloads).map(entry).collect(),
            commit: LogIndex(self.commit.of(commit)),
            commit_term: Term(0),
            snapshot,
            reject: self.reject,
            reject_hint: LogIndex(self.commit.of(last)),
            context: self.context.clone(),
            priority: 0,
        };
        (message, objects)
    }
}

fn act(victim: &mut Victim, action: HostileAction) {
    match action {
        HostileAction::Raft(hostile_message) => {
            let (message, objects) = hostile_message.message(victim);
            victim.objects.extend(objects.into_iter().map(|object| (ObjectId::of(&object), object)));
            let frames = pack(vec![Outgoing { node: ME, shard: SHARD, message, synced: WalSequence(0) }]);
            for packed in frames {
                receive(victim, packed.frame);
            }
        }
        HostileAction::Frame(frame) => receive(victim, frame.into()),
        HostileAction::NodeHeartbeat { numbers: [incarnation, recovered, synced, wall_ms, yours], known, lost } => {
            let heartbeat = NodeHeartbeat {
                incarnation: Incarnation(incarnation),
                recovered: WalSequence(recovered),
                synced: WalSequence(synced),
                wall_ms,
                recovery_complete: known,
                your_incarnation: if known { victim.incarnation } else { Incarnation(yours) },
                you_lost_up_to: lost.map(WalSequence),
                leaders: vec![(SHARD, Term(yours)), (ShardId(wall_ms), Term(0))],
                not_led: vec![SHARD, ShardId(yours)],
                versions: VersionRange::announced(yours as u32, synced as u32),
            };
            receive(victim, pack_node_heartbeat(&heartbeat));
        }
        HostileAction::Ticks(times) => victim.ticks(times),
        HostileAction::Ask => {
            let sequence = victim.asked;
            victim.ask(SHARD, store(2, sequence, "key", "mine"), false);
            victim.ask(SHARD, get(key("key")), true);
        }
        HostileAction::Link(connected) => victim.input(Input::Peer { node: MALICIOUS, connected }),
        HostileAction::Restart => victim.restart(),
    }
}

/// Receives a frame from the malicious peer. One that does not parse only closes the connection.
fn receive(victim: &mut Victim, frame: Bytes) {
    for input in unpack(MALICIOUS, frame).unwrap_or_default() {
        victim.input(input);
    }
}

#[test]
fn a_heartbeat_with_an_impossible_log_sequence_is_not_remembered() {
    let mut victim = Victim::new();
    for sequence in [u64::MAX, u64::MAX - 1] {
        let absurd = NodeHeartbeat { synced: WalSequence(sequence), ..victim.heartbeat() };
        receive(&mut victim, pack_node_heartbeat(&absurd));
        let absurd = NodeHeartbeat { you_lost_up_to: Some(WalSequence(sequence)), ..victim.heartbeat() };
        receive(&mut victim, pack_node_heartbeat(&absurd));
        victim.restart();
        victim.lone_shard_serves();
    }
}

#[test]
fn a_heartbeat_with_an_extreme_wall_clock_does_no_harm() {
    let mut victim = Victim::new();
    for wall_ms in [u64::MAX, 0] {
        let absurd = NodeHeartbeat { wall_ms, ..victim.heartbeat() };
        receive(&mut victim, pack_node_heartbeat(&absurd));
        victim.ticks(1);
        victim.ask(LONE, store(1, 1, "key", "value"), false);
        victim.lone_shard_serves();
    }
}

#[test]
fn a_malicious_peer_cannot_harm_shards_without_a_replica_on_it() {
    let broken = Cell::new(0);
    flotilla_hostile::attack(200, vec(hostile_action(), 1..30), |actions| {
        let mut victim = Victim::new();
        for action in actions {
            act(&mut victim, action);
        }
        victim.lone_shard_serves();
        victim.restart();
        victim.lone_shard_serves();
        broken.set(broken.get() + victim.broken);
    });
    println!("replicas abandoned: {}", broken.get());
}
