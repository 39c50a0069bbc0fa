//! Crashes and damage: copies of a live folder, torn ends, flipped bits.

use std::{collections::BTreeSet, fs, path::PathBuf};

use flotilla_storage::{Log, LogBatch, ReplicaWrite};
use flotilla_types::{HardState, LogIndex, ReplicaId, WalSequence};
use proptest::prelude::*;

use super::*;
use crate::tail;

/// A folder after `count` batches, as a kill leaves it.
fn killed(count: u64, len: usize, options: Options) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = EngineLog::open(dir.path(), options).unwrap();
    for sequence in 1..=count {
        append(&log, sequence, len);
    }
    copy(dir.path())
}

fn last_file(dir: &Path) -> PathBuf {
    tail::last_file(dir).unwrap().unwrap().0
}

/// Bytes up to the last one that is not zero: the rest is space allocated ahead.
fn written(file: &Path) -> usize {
    let bytes = fs::read(file).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

/// The offset in a file of the data of the entry with this index.
fn find_data(file: &Path, index: u64, len: usize) -> usize {
    let (bytes, data) = (fs::read(file).unwrap(), entry(index, 1, len).data);
    bytes.windows(len).position(|window| window == &data[..]).unwrap()
}

#[test]
fn a_killed_log_recovers_every_write() {
    let dir = killed(20, 300, SMALL);
    let log = open(dir.path());
    assert_appended(&log, 20, 300);
    append(&log, 21, 300);
    drop(log);
    assert_appended(&open(dir.path()), 21, 300);
}

#[test]
fn a_torn_end_loses_whole_batches_only() {
    let whole = killed(4, 60, Options::default());
    let end = written(&last_file(whole.path()));
    let mut recovered = BTreeSet::new();
    for keep in (0..end).step_by(5) {
        let dir = copy(whole.path());
        fs::OpenOptions::new().write(true).open(last_file(dir.path())).unwrap().set_len(keep as u64).unwrap();
        let log = open(dir.path());
        let count = log.recovered().0;
        assert_appended(&log, count, 60);
        recovered.insert(count);
        // Appending continues where the log was truncated.
        append(&log, count + 1, 60);
        drop(log);
        assert_appended(&open(dir.path()), count + 1, 60);
    }
    assert_eq!(Vec::from_iter(recovered), [0, 1, 2, 3]);
}

#[test]
fn a_last_batch_with_torn_entries_is_discarded() {
    let dir = killed(4, 600, Options::default());
    let file = last_file(dir.path());
    let (at, mut bytes) = (find_data(&file, 4, 600), fs::read(&file).unwrap());
    bytes[at + 100..at + 300].fill(0);
    fs::write(&file, bytes).unwrap();
    let log = open(dir.path());
    assert_appended(&log, 3, 600);
    append(&log, 4, 600);
    drop(log);
    assert_appended(&open(dir.path()), 4, 600);
}

#[test]
fn damage_before_the_end_names_the_file_and_is_not_truncated() {
    let dir = killed(6, 60, Options::default());
    let file = last_file(dir.path());
    // The footer of the batch follows the data.
    flip(&file, find_data(&file, 3, 60) + 60 + 10);
    let before = fs::read(&file).unwrap();
    for _ in 0..2 {
        let message = refusal(dir.path());
        assert!(message.contains("damaged at byte") && message.contains(file.to_str().unwrap()), "{message}");
        assert_eq!(fs::read(&file).unwrap(), before, "nothing is truncated");
    }
}

#[test]
fn damage_to_the_sequence_of_a_batch_is_detected() {
    let dir = killed(6, 60, Options::default());
    let file = last_file(dir.path());
    let bytes = fs::read(&file).unwrap();
    let sequences: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"sequence")).collect();
    flip(&file, sequences[4] + 3);
    assert!(refusal(dir.path()).contains("damaged at byte"), "the batch after it was synced");
}

#[test]
fn a_damaged_file_header_is_not_an_empty_log() {
    let dir = killed(3, 60, Options::default());
    flip(&last_file(dir.path()), 5);
    assert!(refusal(dir.path()).contains("damaged at byte 0"));
}

#[test]
fn damage_in_an_older_file_names_it() {
    let dir = killed(60, 300, SMALL);
    let first = dir.path().join("0000000000000001.raftlog");
    assert_ne!(first, last_file(dir.path()));
    flip(&first, find_data(&first, 2, 300) + 300 + 10);
    let message = refusal(dir.path());
    assert!(message.contains(first.to_str().unwrap()), "{message}");
}

#[test]
fn damaged_last_entries_of_an_older_file_are_not_truncated() {
    let dir = killed(60, 300, SMALL);
    let first = dir.path().join("0000000000000001.raftlog");
    let bytes = fs::read(&first).unwrap();
    let last = (1..=60).rev().find(|index| {
        let data = entry(*index, 1, 300).data;
        bytes.windows(300).any(|window| window == &data[..])
    });
    flip(&first, find_data(&first, last.unwrap(), 300));
    let message = refusal(dir.path());
    assert!(message.contains("damaged at byte") && message.contains(first.to_str().unwrap()), "{message}");
    assert_eq!(fs::read(&first).unwrap().len(), bytes.len(), "nothing is truncated");
}

#[test]
fn damaged_entries_before_a_torn_batch_are_not_truncated() {
    let dir = killed(3, 300, Options::default());
    let file = last_file(dir.path());
    flip(&file, find_data(&file, 2, 300));
    let end = written(&file);
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(end as u64 - 3).unwrap();
    assert!(refusal(dir.path()).contains("damaged at byte"));
}

#[test]
fn a_client_cannot_make_a_torn_batch_look_like_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 1, 60);
    // Everything a client could know of a batch, except the folder's nonce.
    let mut data = Vec::new();
    for sequence in 0..9_u64 {
        data.extend_from_slice(b"sequence\x11\x01\x00\x00\x00\x00\x00\x00\x00\x01");
        data.extend_from_slice(&sequence.to_be_bytes());
    }
    let forged = Entry { data: data.into(), ..entry(2, 1, 0) };
    let write = ReplicaWrite { entries: vec![forged], ..ReplicaWrite::new(ReplicaId(1)) };
    log.write(LogBatch { sequence: WalSequence(2), replicas: vec![write], peer_sequences: Vec::new() }).unwrap();
    let copy = copy(dir.path());
    let file = last_file(copy.path());
    let end = written(&file);
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(end as u64 - 3).unwrap();
    assert_appended(&open(copy.path()), 1, 60);
}

#[test]
fn a_lost_file_makes_its_replicas_corrupt() {
    let dir = killed(60, 300, SMALL);
    fs::remove_file(dir.path().join("0000000000000003.raftlog")).unwrap();
    let log = open(dir.path());
    assert!(matches!(log.replicas(), Err(LogError::Corrupt { replica: ReplicaId(1), .. })));
    assert!(matches!(log.entries(ReplicaId(1), LogIndex(60), LogIndex(61), 0), Err(LogError::Corrupt { .. })));
    let write =
        |write| log.write(LogBatch { sequence: WalSequence(61), replicas: vec![write], peer_sequences: Vec::new() });
    let hard_state = Some(HardState::default());
    assert!(write(ReplicaWrite { hard_state, ..ReplicaWrite::new(ReplicaId(1)) }).is_err());
    // Other replicas can be opened once it is destroyed.
    write(ReplicaWrite { destroy: true, ..ReplicaWrite::new(ReplicaId(1)) }).unwrap();
    write(create(2)).unwrap();
    drop(log);
    let log = open(dir.path());
    assert!(log.is_tombstone(ReplicaId(1)));
    assert_eq!(log.replicas().unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn flipped_bits_are_errors_and_never_wrong_entries(seed in any::<u64>(), flips in 1..4_usize) {
        const BATCHES: u64 = 30;
        thread_local! {
            static WHOLE: tempfile::TempDir = killed(BATCHES, 300, SMALL);
        }
        let dir = WHOLE.with(|whole| copy(whole.path()));
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for n in 0..flips {
            let choice = noise(seed.wrapping_add(n as u64), 16);
            let file = &files[usize::from(choice[1]) % files.len()];
            let end = written(file);
            if end > 0 {
                flip(file, (usize::from(choice[3]) << 16 | usize::from(choice[5]) << 8 | usize::from(choice[7])) % end);
            }
        }
        let Ok(log) = EngineLog::open(dir.path(), SMALL) else { return Ok(()) };
        let recovered = log.recovered().0;
        // A single flip looks like a torn end in the last batch only. Several flips may hide the difference.
        prop_assert!(recovered <= BATCHES && (flips > 1 || recovered >= BATCHES - 1), "{recovered}");
        let Ok(replicas) = log.replicas() else { return Ok(()) };
        prop_assert_eq!(replicas[0].1.hard_state.commit, LogIndex(recovered));
        for index in 1..=recovered {
            if let Ok(entries) = log.entries(ReplicaId(1), LogIndex(index), LogIndex(index + 1), usize::MAX) {
                prop_assert_eq!(entries, [entry(index, 1, 300)]);
            }
        }
    }
}
