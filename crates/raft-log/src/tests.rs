//! Tests of the whole log: conformance, restarts, torn ends, damage and purges.

mod crash;
mod hostile;
mod reclaim;
mod walk;

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use flotilla_storage::{Log, LogBatch, LogError, ReplicaWrite, conformance};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, Epoch, HardState, KeyRange, LogIndex, Position, ReplicaId,
    ShardDescriptor, ShardId, Term, WalSequence,
};

use crate::{EngineLog, OpenError, Options};

/// The smallest files allowed, so that a test writes many of them.
const SMALL: Options = Options {
    target_file_size_bytes: 4 << 10,
    purge_threshold_bytes: 16 << 10,
    witness_dir: crate::witness::WITNESS_DIR,
};

fn open(dir: &Path) -> EngineLog {
    EngineLog::open(dir, SMALL).expect("an intact folder opens")
}

/// The error when the folder does not open.
fn refusal(dir: &Path) -> String {
    match EngineLog::open(dir, SMALL) {
        Ok(_) => "it opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

fn checkpoint(replica: u64, index: u64, term: u64) -> Checkpoint {
    let descriptor = ShardDescriptor {
        shard: ShardId(replica),
        range: KeyRange::all(),
        epoch: Epoch::default(),
        replicas: Vec::new(),
    };
    let conf = ConfState::of_voters([ReplicaId(replica)]);
    let position =
        Position { index: LogIndex(index), term: Term(term), conf: Arc::new(conf), descriptor: Arc::new(descriptor) };
    Checkpoint::empty(position)
}

fn truncate(replica: u64, index: u64, term: u64) -> ReplicaWrite {
    ReplicaWrite {
        checkpoint: Some(checkpoint(replica, index, term)),
        truncate: Some((LogIndex(index), Term(term))),
        ..ReplicaWrite::new(ReplicaId(replica))
    }
}

fn create(replica: u64) -> ReplicaWrite {
    ReplicaWrite { create: Some(ShardId(replica)), ..truncate(replica, 0, 0) }
}

/// Bytes that do not compress, different for every seed.
fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(next).collect()
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    let data = noise(index.wrapping_mul(1_000).wrapping_add(term), len);
    Entry { index: LogIndex(index), term: Term(term), kind: EntryKind::Normal, data, context: Bytes::new() }
}

/// Batch `sequence` appends the entry of that index to replica 1 and moves its commit index with it.
fn append(log: &dyn Log, sequence: u64, len: usize) {
    let write = ReplicaWrite {
        entries: vec![entry(sequence, 1, len)],
        hard_state: Some(HardState { term: Term(1), vote: ReplicaId(1), commit: LogIndex(sequence) }),
        ..ReplicaWrite::new(ReplicaId(1))
    };
    let replicas = if sequence == 1 { vec![create(1), write] } else { vec![write] };
    log.write(LogBatch { sequence: WalSequence(sequence), replicas, peer_sequences: Vec::new() })
        .expect("a valid batch");
}

/// Asserts that exactly the first `count` batches of [`append`] are there.
fn assert_appended(log: &dyn Log, count: u64, len: usize) {
    assert_eq!(log.recovered(), WalSequence(count));
    let replicas = log.replicas().expect("no replica is damaged");
    if count == 0 {
        return assert!(replicas.is_empty());
    }
    assert_eq!((replicas[0].1.last, replicas[0].1.hard_state.commit), (LogIndex(count), LogIndex(count)));
    let entries = log.entries(ReplicaId(1), LogIndex(1), LogIndex(count + 1), usize::MAX).expect("all are readable");
    let expected: Vec<_> = (1..=count).map(|index| entry(index, 1, len)).collect();
    assert_eq!(entries, expected);
}

#[test]
fn conforms_to_the_log_contract() {
    let dir = tempfile::tempdir().unwrap();
    conformance::log(&mut || Box::new(EngineLog::open(dir.path(), Options::default()).unwrap()));
}

#[test]
fn conforms_to_the_log_contract_with_many_small_files() {
    let dir = tempfile::tempdir().unwrap();
    conformance::log(&mut || Box::new(open(dir.path())));
}

#[test]
fn a_folder_cannot_be_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert!(refusal(dir.path()).contains("in use"));
    append(&log, 1, 10);
    drop(log);
    assert_appended(&open(dir.path()), 1, 10);
}

#[test]
fn missing_parents_of_the_folder_are_created() {
    let dir = tempfile::tempdir().unwrap();
    let nested = dir.path().join("a/b");
    append(&open(&nested), 1, 10);
    assert_appended(&open(&nested), 1, 10);
}

#[test]
fn two_logs_read_from_one_thread_do_not_mix() {
    // Both blocks are at the same offset of a file with the same number.
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let logs = [open(dirs[0].path()), open(dirs[1].path())];
    for (log, term) in logs.iter().zip([1, 2]) {
        let write = ReplicaWrite { entries: vec![entry(1, term, 50)], ..create(1) };
        log.write(LogBatch { sequence: WalSequence(1), replicas: vec![write], peer_sequences: Vec::new() }).unwrap();
    }
    for _ in 0..2 {
        for (log, term) in logs.iter().zip([1, 2]) {
            let entries = log.entries(ReplicaId(1), LogIndex(1), LogIndex(2), usize::MAX).unwrap();
            assert_eq!(entries, [entry(1, term, 50)]);
        }
    }
}

#[test]
fn terms_from_before_a_restart_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    append(&open(dir.path()), 1, 10);
    let log = open(dir.path());
    assert_eq!(log.term(ReplicaId(1), LogIndex(1)).unwrap(), Term(1));
    append(&log, 2, 10);
    assert_eq!(log.term(ReplicaId(1), LogIndex(1)).unwrap(), Term(1));
    assert_eq!(log.term(ReplicaId(1), LogIndex(2)).unwrap(), Term(1));
    assert!(matches!(log.term(ReplicaId(1), LogIndex(u64::MAX)), Err(LogError::Missing { .. })));
}

#[test]
fn the_reserved_replica_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for write in [create(u64::MAX), ReplicaWrite { destroy: true, ..ReplicaWrite::new(ReplicaId(u64::MAX)) }] {
        let batch = LogBatch { sequence: WalSequence(1), replicas: vec![write], peer_sequences: Vec::new() };
        assert!(matches!(log.write(batch), Err(LogError::Corrupt { .. })));
    }
    append(&log, 1, 10);
}

#[test]
fn a_read_stops_at_its_bound_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let entries: Vec<_> = (1..=50).map(|index| entry(index, u64::MAX - 1, (index % 7) as usize)).collect();
    let write = ReplicaWrite { entries: entries.clone(), ..create(1) };
    log.write(LogBatch { sequence: WalSequence(1), replicas: vec![write], peer_sequences: Vec::new() }).unwrap();
    let mut bytes_max = 0;
    for count in 1..=50 {
        bytes_max += entries[count - 1].size_bytes();
        let found = log.entries(ReplicaId(1), LogIndex(1), LogIndex(51), bytes_max).unwrap();
        assert_eq!(found.len(), count);
    }
}

#[test]
fn an_idle_log_takes_one_small_file_of_each_kind() {
    let dir = tempfile::tempdir().unwrap();
    let log = EngineLog::open(dir.path(), Options::default()).unwrap();
    append(&log, 1, 10);
    let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 8 << 20, "{bytes}");
}

#[test]
fn invalid_settings_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let result = EngineLog::open(dir.path(), Options { target_file_size_bytes: 0, ..SMALL });
    let Err(LogError::Engine(error)) = result else { panic!("it must not open") };
    assert!(matches!(error.downcast_ref::<OpenError>(), Some(OpenError::Options(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
