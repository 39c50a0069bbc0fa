//! Benchmarks of write sets, reads and checkpoints of the state engine. Keys are 20 bytes, values 256.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use flotilla_state::{Engine, Options, ViewOptions};
use flotilla_storage::{StateEngine, WriteSet};
use flotilla_types::{
    Checkpoint, CheckpointFormat, ConfState, Epoch, KeyRange, LogIndex, Position, ReplicaId, ShardDescriptor, ShardId,
    Term,
};
use tempfile::TempDir;

const REPLICA: ReplicaId = ReplicaId(1);
const KEYS: u64 = 10_000;

fn main() {
    divan::main();
}

/// Writes a write set into the memtable.
#[divan::bench(args = [1, 64, 1_024])]
fn write(bencher: Bencher, records: u64) {
    let opened = Opened::new();
    let round = AtomicU64::new(0);
    let set = || {
        let round = round.fetch_add(1, Ordering::Relaxed);
        (records_from(round * records, records), LogIndex(1 + round))
    };
    bencher
        .counter(ItemsCount::new(records))
        .with_inputs(set)
        .bench_local_values(|(records, index)| opened.engine.write(REPLICA, records, index).expect("an open replica"));
}

/// Gets a record from the memtable.
#[divan::bench]
fn get_from_memtable(bencher: Bencher) {
    let opened = Opened::new();
    opened.engine.write(REPLICA, records_from(0, KEYS), LogIndex(1)).expect("an open replica");
    get(bencher, &opened);
}

/// Gets a record from a checkpoint's objects.
#[divan::bench]
fn get_from_objects(bencher: Bencher) {
    get_from_checkpoint(bencher, &Opened::new());
}

/// Gets a record from sled.
#[divan::bench]
fn get_from_sled(bencher: Bencher) {
    get_from_checkpoint(bencher, &Opened::with(sled()));
}

fn get_from_checkpoint(bencher: Bencher, opened: &Opened) {
    opened.engine.write(REPLICA, records_from(0, KEYS), LogIndex(1)).expect("an open replica");
    opened.checkpoint(1);
    get(bencher, opened);
}

/// A whole checkpoint of 10,000 records: freeze, an fsynced run, its index.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn checkpoint(bencher: Bencher) {
    checkpoints(bencher, Opened::new);
}

/// The same, and written to sled.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn checkpoint_with_sled(bencher: Bencher) {
    checkpoints(bencher, || Opened::with(sled()));
}

fn sled() -> Options {
    Options { view: ViewOptions::Sled { cache_bytes: 32 << 20 }, ..Options::default() }
}

fn checkpoints(bencher: Bencher, open: impl Fn() -> Opened) {
    let full = || {
        let opened = open();
        opened.engine.write(REPLICA, records_from(0, KEYS), LogIndex(1)).expect("an open replica");
        opened
    };
    bencher.counter(ItemsCount::new(KEYS)).with_inputs(full).bench_local_values(|opened| {
        opened.checkpoint(1);
        opened
    });
}

fn get(bencher: Bencher, opened: &Opened) {
    let reader = opened.engine.reader(REPLICA).expect("an open replica");
    let next = AtomicU64::new(0);
    let key = || key(next.fetch_add(7_919, Ordering::Relaxed) % KEYS);
    bencher.with_inputs(key).bench_local_refs(|key| reader.get(key).expect("a sound engine").expect("a record"));
}

struct Opened {
    engine: Engine,
    position: Position,
    _folder: TempDir,
}

impl Opened {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine::open(folder.path(), options).expect("a new engine");
        let descriptor = ShardDescriptor {
            shard: ShardId(1),
            range: KeyRange::all(),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let conf = ConfState::of_voters([REPLICA]);
        let position =
            Position { index: LogIndex(0), term: Term(0), conf: Arc::new(conf), descriptor: Arc::new(descriptor) };
        let empty = Checkpoint::empty(position.clone());
        engine.open(REPLICA, &empty).expect("a new replica");
        Self { engine, position, _folder: folder }
    }

    fn checkpoint(&self, index: u64) {
        let position = Position { index: LogIndex(index), ..self.position.clone() };
        self.engine.freeze(REPLICA, position, Bytes::new()).expect("an open replica");
        let checkpoint = self.engine.build(REPLICA, CheckpointFormat::Manifests).expect("a disk");
        self.engine.install_checkpoint(REPLICA, &checkpoint).expect("a view");
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("bench-{number:014}"))
}

fn records_from(first: u64, count: u64) -> WriteSet {
    let value = Bytes::from(vec![7; 256]);
    (first..first + count).map(|number| (key(number % KEYS), Some(value.clone().into()))).collect()
}
