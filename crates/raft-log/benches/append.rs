//! The cost of a batch in the log: written and fsynced, on the disk of the temporary folder.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use flotilla_raft_log::{EngineLog, Options};
use flotilla_storage::{Log, LogBatch, ReplicaWrite};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, KeyRange, LogIndex, Position, ReplicaId, ShardDescriptor, ShardId,
    Term, WalSequence,
};

fn main() {
    divan::main();
}

/// Entries of one replica, 256 bytes each, with random content that the engine cannot compress.
#[divan::bench(args = [1, 16, 256], sample_count = 50, sample_size = 4)]
fn one_replica(bencher: Bencher, entries: u64) {
    append(bencher, 1, entries);
}

/// One entry for each replica, with one fsync.
#[divan::bench(args = [16, 64], sample_count = 50, sample_size = 4)]
fn many_replicas(bencher: Bencher, replicas: u64) {
    append(bencher, replicas, 1);
}

fn append(bencher: Bencher, replicas: u64, entries: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = EngineLog::open(folder.path(), Options::default()).expect("the log opens");
    let create = (1..=replicas).map(create).collect();
    log.write(LogBatch { sequence: WalSequence(1), replicas: create, peer_sequences: Vec::new() })
        .expect("the write succeeds");
    let round = AtomicU64::new(0);
    let batch = || {
        let round = round.fetch_add(1, Ordering::Relaxed);
        let write = |id| ReplicaWrite {
            entries: (1..=entries).map(|i| entry(1 + round * entries + i)).collect(),
            ..ReplicaWrite::new(ReplicaId(id))
        };
        LogBatch {
            sequence: WalSequence(2 + round),
            replicas: (1..=replicas).map(write).collect(),
            peer_sequences: Vec::new(),
        }
    };
    bencher
        .counter(ItemsCount::new(replicas * entries))
        .with_inputs(batch)
        .bench_local_values(|batch| log.write(batch).expect("the write succeeds"));
}

fn create(id: u64) -> ReplicaWrite {
    let shard = ShardId(id);
    let descriptor = ShardDescriptor { shard, range: KeyRange::all(), epoch: Epoch::default(), replicas: Vec::new() };
    let conf = ConfState::of_voters([ReplicaId(id)]);
    let position =
        Position { index: LogIndex(1), term: Term(1), conf: Arc::new(conf), descriptor: Arc::new(descriptor) };
    ReplicaWrite {
        create: Some(shard),
        checkpoint: Some(Checkpoint::empty(position)),
        truncate: Some((LogIndex(1), Term(1))),
        ..ReplicaWrite::new(ReplicaId(id))
    }
}

fn entry(index: u64) -> Entry {
    // Incompressible content from a xorshift generator (Marsaglia, 2003).
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let data: Vec<u8> = (0..32).flat_map(|_| next()).collect();
    Entry {
        index: LogIndex(index),
        term: Term(1),
        kind: EntryKind::Normal,
        data: Bytes::from(data),
        context: Bytes::new(),
    }
}
