//! The applier alone: reads and entries that need the disk run in any order with entries, checkpoints,
//! snapshots and the end of their replica.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_kv::{
    Action, Answer as Found, Command, Expiry, KvMachine, Limits, Operation, Otherwise, Outcome, Query as KvQuery,
    Refusal, decode_answer, decode_outcome, encode_command, encode_query,
};
use flotilla_replication::{
    Answer, Applied, Applier, ApplyTask, Batch, Contents, Input, PIN_IDLE_MS, PIN_MS_MAX, PINS_MAX, PinId, PinnedQuery,
    Query, RequestError, SLOW_READS_PER_REPLICA_MAX, Slow,
};
use flotilla_storage::{MemoryEngine, StateEngine as _};
use flotilla_types::{
    Checkpoint, CheckpointFormat, ConfState, Entry, EntryKind, KeyRange, LogIndex, Position, Refs, ReplicaId,
    ShardDescriptor, Term, Timestamp,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::harness::{SHARD, WALL_MS, descriptor, key, seeds};

const REPLICA: ReplicaId = ReplicaId(1);
/// Counters, to all of which each entry adds one: their values are the entry's index.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// A deadline that no test reaches.
const LATER_MS: u64 = 1_000_000;

/// An applier of one replica, and what its callers were answered.
struct Bench {
    engine: MemoryEngine,
    applier: Applier<u64>,
    /// The last entry that was passed to it.
    index: u64,
    slow: Vec<Slow<u64>>,
    answers: BTreeMap<u64, Answer>,
    inputs: Vec<Input<u64>>,
    next_caller: u64,
    wall_ms: u64,
}

impl Bench {
    fn new(misses_percent: u32) -> Self {
        let engine = MemoryEngine::default();
        engine.set_misses(misses_percent);
        let machines = Arc::new(|_| Box::new(KvMachine::new(Limits::default())) as _);
        let mut bench = Self {
            applier: Applier::new(Arc::new(engine.clone()), machines),
            engine,
            index: 0,
            slow: Vec::new(),
            answers: BTreeMap::new(),
            inputs: Vec::new(),
            next_caller: 0,
            wall_ms: WALL_MS,
        };
        let position = Position {
            index: LogIndex(0),
            term: Term(1),
            conf: Arc::new(ConfState::of_voters([REPLICA])),
            descriptor: Arc::new(descriptor(&[1])),
        };
        bench.load(Checkpoint::empty(position), false);
        bench
    }

    fn load(&mut self, checkpoint: Checkpoint, replaces: bool) {
        self.run(ApplyTask::Open { replica: REPLICA, shard: SHARD, checkpoint, replaces });
    }

    fn run(&mut self, task: ApplyTask<u64>) {
        let mut out = Applied::default();
        self.applier.run(self.wall_ms, task, &mut out);
        self.take(out);
    }

    fn take(&mut self, out: Applied<u64>) {
        assert!(out.fatal.is_none(), "{:?}", out.fatal);
        self.slow.extend(out.slow);
        self.inputs.extend(out.inputs);
        for (caller, answer) in out.replies {
            assert!(self.answers.insert(caller, answer).is_none(), "caller {caller} was answered twice");
        }
        for load in out.loads {
            let result = load.run(&self.engine);
            let mut out = Applied::default();
            self.applier.loaded(WALL_MS, &load, result, &mut out);
            self.take(out);
        }
        for replica in out.destroyed {
            self.engine.destroy(replica).unwrap();
        }
    }

    /// Does the slow work at this place of the list.
    fn do_slow(&mut self, at: usize, now_ms: u64) {
        let done = self.slow.remove(at).run(now_ms, &self.engine);
        let mut out = Applied { replies: done.replies, fatal: done.fatal, ..Applied::default() };
        if let Some(returned) = done.returned {
            self.applier.returned(WALL_MS, returned, &mut out);
        }
        self.take(out);
    }

    fn do_all_slow(&mut self) {
        while !self.slow.is_empty() {
            self.do_slow(0, 0);
        }
    }

    fn caller(&mut self) -> u64 {
        self.next_caller += 1;
        self.next_caller
    }

    /// Passes on so many entries in one task, and returns the caller of the last one.
    fn write(&mut self, count: u64) -> u64 {
        let entries = (1..=count).map(|n| entry(self.index + n)).collect();
        self.index += count;
        let caller = self.caller();
        self.run(ApplyTask::Apply {
            replica: REPLICA,
            entries,
            shard_change: None,
            source: None,
            conf: Arc::new(ConfState::of_voters([REPLICA])),
            descriptor: Arc::new(descriptor(&[1])),
            waiters: vec![(LogIndex(self.index), vec![caller])],
        });
        caller
    }

    fn read(&mut self, query: &KvQuery, deadline_ms: u64) -> u64 {
        self.ask(encode_query(query), deadline_ms)
    }

    /// Reads from a snapshot, and returns the values.
    fn read_pinned(&mut self, id: u128, opens: bool, query: &KvQuery) -> Result<Vec<String>, RequestError> {
        let query = PinnedQuery { id: PinId(id), opens, query: encode_query(query) };
        let caller = self.ask(query.encode(), LATER_MS);
        self.do_all_slow();
        self.answers.remove(&caller).unwrap().map(|answer| values(&answer.payload))
    }

    fn ask(&mut self, payload: Bytes, deadline_ms: u64) -> u64 {
        let caller = self.caller();
        let queries = vec![Query { payload, deadline_ms, reply: caller }];
        self.run(ApplyTask::Read { replica: REPLICA, index: LogIndex(self.index), queries });
        caller
    }

    /// Freezes, builds and installs what was applied, unless the replica is away.
    fn checkpoint(&mut self) -> Option<Checkpoint> {
        self.run(ApplyTask::Freeze { replica: REPLICA });
        let checkpoint = self.engine.build(REPLICA, CheckpointFormat::Manifests).ok()?;
        self.engine.install_checkpoint(REPLICA, &checkpoint).ok()?;
        Some(checkpoint)
    }
}

/// A command without a session that does this with some records.
fn command(names: &[&str], action: &Action) -> Bytes {
    let operation = |name: &&str| Operation {
        key: key(name),
        condition: None,
        otherwise: Otherwise::Refuse,
        action: action.clone(),
    };
    let operations = names.iter().map(operation).collect();
    encode_command(&Command { expires_at_ms: u64::MAX >> 16, operations, ..Command::empty() })
}

/// A command without a session that stores a value.
pub(crate) fn put(name: &str, value: &'static str) -> Bytes {
    let value = Bytes::from_static(value.as_bytes());
    command(&[name], &Action::Put { value: value.into(), expiry: Expiry::Never, return_old: false })
}

fn entry(index: u64) -> Entry {
    let command = command(&NAMES, &Action::Add { delta: 1 });
    let timestamp = Timestamp::from_millis(WALL_MS + index);
    Entry {
        index: LogIndex(index),
        term: Term(1),
        kind: EntryKind::Normal,
        data: Batch { timestamp, refs: Refs::NONE, commands: vec![command] }.encode(),
        context: Bytes::new(),
    }
}

fn get() -> KvQuery {
    KvQuery::Get { keys: NAMES.map(key).into(), values: true }
}

fn scan() -> KvQuery {
    KvQuery::Scan { range: KeyRange::all(), items_max: 10, bytes_max: 1 << 20, values: true }
}

/// The values that an answer has.
fn values(answer: &Bytes) -> Vec<String> {
    let records = match decode_answer(answer.clone()).unwrap() {
        Found::Records(records) => records.into_iter().flatten().collect(),
        Found::Page { records, next: None } => records,
        other => panic!("{other:?}"),
    };
    records.into_iter().map(|record| String::from_utf8(record.value.inline().unwrap().to_vec()).unwrap()).collect()
}

/// Whatever runs meanwhile, a read sees exactly the entries that were passed on before it, or is refused.
#[test]
fn reads_see_the_entries_before_them_and_none_after() {
    let (mut slow_reads, mut slow_entries, mut refused, mut replaced) = (0, 0, 0, 0);
    for seed in seeds(40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bench = Bench::new(30);
        let mut expected = BTreeMap::new();
        let mut writers = Vec::new();
        for _ in 0..300 {
            match rng.random_range(0..20) {
                0..7 => writers.push(bench.write(rng.random_range(1..=3))),
                7..12 => {
                    let query = if rng.random_bool(0.5) { get() } else { scan() };
                    let index = bench.index;
                    expected.insert(bench.read(&query, LATER_MS), index);
                }
                12 => drop(bench.checkpoint()),
                13 => {
                    // What a leader could send: it has all entries that were passed on.
                    let taken = bench.checkpoint();
                    if let Some(checkpoint) = taken.filter(|taken| taken.position.index == LogIndex(bench.index)) {
                        replaced += 1;
                        bench.load(checkpoint, true);
                    }
                }
                _ if !bench.slow.is_empty() => {
                    let at = rng.random_range(0..bench.slow.len());
                    let is_read = matches!(bench.slow[at], Slow::Read(_));
                    *(if is_read { &mut slow_reads } else { &mut slow_entries }) += 1;
                    bench.do_slow(at, 0);
                }
                _ => {}
            }
        }
        let end_early = rng.random_bool(0.5);
        if end_early {
            bench.run(ApplyTask::Close { replica: REPLICA });
        }
        bench.do_all_slow();
        for (caller, index) in expected {
            match &bench.answers[&caller] {
                Ok(answer) => {
                    let count = if index == 0 { 0 } else { NAMES.len() };
                    assert_eq!(values(&answer.payload), vec![index.to_string(); count], "seed {seed}, caller {caller}");
                }
                Err(RequestError::Stopped) => refused += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        for caller in writers {
            let is_answered = matches!(bench.answers[&caller], Ok(_) | Err(RequestError::Unknown));
            assert!(is_answered, "seed {seed}: {:?}", bench.answers[&caller]);
        }
        let contents = bench.applier.contents(REPLICA);
        match contents {
            Contents::AtRest(contents) => assert!(!end_early && contents.applied == LogIndex(bench.index)),
            Contents::NotServing => assert!(end_early),
            Contents::Moving => panic!("seed {seed}: the replica did not return"),
        }
    }
    assert!(
        slow_reads > 500 && slow_entries > 100 && refused > 10 && replaced > 10,
        "{slow_reads} {slow_entries} {refused} {replaced}"
    );
}

/// A load that fails for lack of space is retried for a minute, and a snapshot may arrive meanwhile.
#[test]
fn loads_of_a_replica_run_one_after_the_other_and_the_last_one_counts() {
    let mut bench = Bench::new(0);
    bench.write(1);
    let older = bench.checkpoint().unwrap();
    bench.write(1);
    let newer = bench.checkpoint().unwrap();
    let open = |checkpoint: &Checkpoint| ApplyTask::Open {
        replica: REPLICA,
        shard: SHARD,
        checkpoint: checkpoint.clone(),
        replaces: true,
    };
    let mut out = Applied::default();
    bench.applier.run(WALL_MS, open(&older), &mut out);
    bench.applier.run(WALL_MS, open(&newer), &mut out);
    let read = Query { payload: encode_query(&get()), deadline_ms: LATER_MS, reply: 100 };
    let read = ApplyTask::Read { replica: REPLICA, index: newer.position.index, queries: vec![read] };
    bench.applier.run(WALL_MS, read, &mut out);
    let mut loads = std::mem::take(&mut out.loads);
    assert_eq!(loads.len(), 1, "the second one waits for the first");
    let (load, mut out) = (loads.remove(0), Applied::default());
    let result = load.run(&bench.engine);
    bench.applier.loaded(WALL_MS, &load, result, &mut out);
    assert_eq!(out.loads[0].checkpoint, newer);
    bench.take(out);
    assert_eq!(values(&bench.answers[&100].as_ref().unwrap().payload), ["2"; 4]);
}

#[test]
fn what_memory_answers_waits_for_nothing() {
    let mut bench = Bench::new(0);
    let (writer, reader) = (bench.write(1), bench.read(&get(), LATER_MS));
    assert!(bench.slow.is_empty() && bench.answers[&writer].is_ok());
    assert_eq!(values(&bench.answers[&reader].as_ref().unwrap().payload), ["1"; 4]);
}

#[test]
fn tasks_wait_for_a_replica_that_is_away_and_reads_only_up_to_a_bound() {
    let mut bench = Bench::new(100);
    let writers = [bench.write(1), bench.write(1)];
    assert!(matches!(bench.slow[..], [Slow::Apply(_)]), "one task of entries at a time: {:?}", bench.slow);
    assert!(matches!(bench.applier.contents(REPLICA), Contents::Moving));
    let applied = |bench: &mut Bench| bench.applier.fingerprints(REPLICA).map(|said| said.applied.0);
    let before = applied(&mut bench).expect("it is compared while it is away, by what it was before");
    let readers: Vec<_> = (0..4_200).map(|_| bench.read(&get(), LATER_MS)).collect();
    let busy = readers.iter().filter(|reader| matches!(bench.answers.get(reader), Some(Err(RequestError::Busy))));
    assert!((50..200).contains(&busy.count()), "the queue has a bound");
    bench.do_slow(0, 0);
    assert!(bench.answers[&writers[0]].is_ok() && !bench.answers.contains_key(&writers[1]));
    bench.do_all_slow();
    assert!(bench.answers[&writers[1]].is_ok() && readers.iter().all(|reader| bench.answers.contains_key(reader)));
    assert_eq!(applied(&mut bench), Some(before + 2));
}

#[test]
fn slow_reads_are_bounded_and_keep_their_deadlines() {
    let mut bench = Bench::new(0);
    bench.write(1);
    bench.engine.set_misses(100);
    let readers: Vec<_> = (0..=SLOW_READS_PER_REPLICA_MAX).map(|_| bench.read(&get(), 1_000)).collect();
    assert_eq!(bench.slow.len(), SLOW_READS_PER_REPLICA_MAX);
    assert!(matches!(bench.answers[readers.last().unwrap()], Err(RequestError::Busy)));
    bench.do_slow(0, 999);
    bench.do_slow(0, 1_000);
    assert!(bench.answers[&readers[0]].is_ok());
    assert!(matches!(bench.answers[&readers[1]], Err(RequestError::Deadline)));
    let next = bench.read(&get(), LATER_MS);
    bench.do_all_slow();
    assert!(bench.answers[&next].is_ok(), "reads that are done make room");
}

/// Until a change of the shard, entries are judged by the range before it, those in the same task too; behind
/// it, entries and reads are judged by the range after it, whoever had proposed or confirmed them before.
#[test]
fn a_change_of_the_range_takes_effect_at_its_entry() {
    for kind in [EntryKind::ConfChange, EntryKind::Shard] {
        let mut bench = Bench::new(0);
        let narrow = ShardDescriptor { range: KeyRange { start: key("b"), end: key("z") }, ..descriptor(&[1]) };
        let narrow = Arc::new(narrow);
        let task = |bench: &mut Bench, entries: Vec<Entry>, descriptor: Arc<ShardDescriptor>| {
            let waiters = entries.iter().filter(|entry| entry.kind == EntryKind::Normal);
            let waiters: Vec<_> = waiters.map(|entry| (entry.index, vec![bench.caller()])).collect();
            let callers = waiters.iter().flat_map(|(_, callers)| callers.clone()).collect::<Vec<_>>();
            let conf = Arc::new(ConfState::of_voters([REPLICA]));
            bench.index += entries.len() as u64;
            bench.run(ApplyTask::Apply {
                replica: REPLICA,
                entries,
                shard_change: None,
                conf,
                descriptor,
                waiters,
                source: None,
            });
            callers
        };
        let put_entry = |index: u64, name: &str| {
            let timestamp = Timestamp::from_millis(WALL_MS + index);
            let data = Batch { timestamp, refs: Refs::NONE, commands: vec![put(name, "value")] }.encode();
            Entry { data, ..entry(index) }
        };
        let change = Entry {
            kind,
            data: Bytes::from_static(Entry::SHARD_DATA),
            context: Bytes::from_static(b"change"),
            ..entry(2)
        };
        let before = task(&mut bench, vec![put_entry(1, "a"), change], narrow.clone());
        let behind = task(&mut bench, vec![put_entry(3, "a"), put_entry(4, "b")], narrow.clone());
        let outcome = |bench: &Bench, caller: u64| {
            let answer = bench.answers[&caller].clone().expect("an outcome");
            decode_outcome(answer.payload).expect("an outcome")
        };
        assert!(matches!(outcome(&bench, before[0]), Outcome::Done { .. }), "{kind:?}");
        assert_eq!(outcome(&bench, behind[0]), Outcome::Refused(Refusal::WrongShard), "{kind:?}");
        assert!(matches!(outcome(&bench, behind[1]), Outcome::Done { .. }), "{kind:?}");
        let read = bench.read(&KvQuery::Get { keys: vec![key("a")], values: true }, LATER_MS);
        let answer = bench.answers[&read].clone().expect("an answer");
        assert_eq!(decode_answer(answer.payload), Ok(Found::WrongShard), "{kind:?}");
        // The checkpoint has the descriptor of its index.
        let checkpoint = bench.checkpoint().expect("a checkpoint");
        assert_eq!((checkpoint.position.index, checkpoint.position.descriptor), (LogIndex(4), narrow));
    }
}

/// The record with this name.
fn page(name: &str) -> KvQuery {
    let end = Bytes::from([&key(name)[..], &[0]].concat());
    KvQuery::Scan { range: KeyRange { start: key(name), end }, items_max: 10, bytes_max: 1 << 20, values: true }
}

#[test]
fn all_pages_of_a_snapshot_are_of_the_moment_that_opened_it() {
    for seed in seeds(20) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bench = Bench::new(30);
        bench.write(1);
        bench.do_all_slow();
        let mut opened = Vec::new();
        for id in 0..60_u128 {
            match rng.random_range(0..3) {
                0 => drop(bench.write(rng.random_range(1..4))),
                1 => drop(bench.checkpoint()),
                _ => {
                    let index = bench.index.to_string();
                    assert_eq!(bench.read_pinned(id, true, &page("a")), Ok(vec![index.clone()]));
                    opened.push((id, index));
                }
            }
            for (id, index) in &opened {
                let name = NAMES[rng.random_range(0..NAMES.len())];
                assert_eq!(bench.read_pinned(*id, false, &page(name)), Ok(vec![index.clone()]), "seed {seed}");
            }
        }
        // What is read without a snapshot is the newest state.
        bench.do_all_slow();
        let caller = bench.read(&page("a"), LATER_MS);
        bench.do_all_slow();
        let newest = bench.answers.remove(&caller).unwrap().unwrap();
        assert_eq!(values(&newest.payload), [bench.index.to_string()]);
    }
}

#[test]
fn a_snapshot_that_has_ended_is_never_replaced_by_a_later_state() {
    let expired = Err(RequestError::SnapshotExpired);
    let mut bench = Bench::new(0);
    bench.write(1);
    let read = |bench: &mut Bench, id| bench.read_pinned(id, false, &page("a"));
    assert_eq!(read(&mut bench, 1), expired, "it was never opened here");
    let open = |bench: &mut Bench, id| assert_eq!(bench.read_pinned(id, true, &page("a")), Ok(vec!["1".to_owned()]));
    // It is idle for too long.
    open(&mut bench, 1);
    bench.wall_ms += PIN_IDLE_MS - 1;
    assert!(read(&mut bench, 1).is_ok());
    bench.wall_ms += PIN_IDLE_MS;
    assert_eq!(read(&mut bench, 1), expired);
    // It is open for too long.
    open(&mut bench, 2);
    for _ in 0..PIN_MS_MAX / (PIN_IDLE_MS / 2) - 1 {
        bench.wall_ms += PIN_IDLE_MS / 2;
        assert!(read(&mut bench, 2).is_ok());
    }
    bench.wall_ms += PIN_IDLE_MS / 2;
    assert_eq!(read(&mut bench, 2), expired);
    // Nobody reads, and time passes.
    open(&mut bench, 3);
    let open_pins = bench.applier.open_pins();
    assert_eq!(open_pins.load(std::sync::atomic::Ordering::Relaxed), 1);
    bench.wall_ms += PIN_IDLE_MS;
    bench.applier.expire_pins(bench.wall_ms);
    assert_eq!(open_pins.load(std::sync::atomic::Ordering::Relaxed), 0);
    // Others need the room.
    for id in 10..11 + PINS_MAX as u128 {
        open(&mut bench, id);
    }
    assert_eq!(read(&mut bench, 10), expired);
    assert!(read(&mut bench, 11).is_ok());
    // The replica receives a snapshot from its leader, which has other records.
    let checkpoint = bench.checkpoint().unwrap();
    let caller =
        bench.ask(PinnedQuery { id: PinId(11), opens: false, query: encode_query(&page("a")) }.encode(), LATER_MS);
    bench.load(checkpoint, true);
    bench.do_all_slow();
    assert_eq!(bench.answers.remove(&caller), Some(Err(RequestError::SnapshotExpired)), "it was under way");
    assert_eq!(read(&mut bench, 11), expired);
    // The replica is destroyed.
    open(&mut bench, 12);
    bench.run(ApplyTask::Close { replica: REPLICA });
    assert_eq!(open_pins.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn the_contents_of_a_replica_do_not_change_while_they_are_read() {
    let mut bench = Bench::new(0);
    bench.write(3);
    let Contents::AtRest(contents) = bench.applier.contents(REPLICA) else { panic!("the replica is at rest") };
    let all = || contents.records.scan(&KeyRange::all(), 100, 1 << 20).unwrap();
    let before = all();
    bench.write(2);
    drop(bench.checkpoint());
    assert_eq!((all(), contents.applied, before.len()), (before.clone(), LogIndex(3), NAMES.len()));
}
