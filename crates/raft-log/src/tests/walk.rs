//! Random walks: the log against the one in memory, with files so small that they are purged constantly.

use std::sync::atomic::{AtomicBool, Ordering};

use flotilla_storage::{MemoryLog, ReplicaLog};

use super::*;

/// Two logs that receive the same batches.
struct LogAndModel {
    dir: tempfile::TempDir,
    log: Option<EngineLog>,
    model: MemoryLog,
    sequence: u64,
}

impl LogAndModel {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Some(open(dir.path()));
        Self { dir, log, model: MemoryLog::default(), sequence: 0 }
    }

    fn log(&self) -> &EngineLog {
        self.log.as_ref().unwrap()
    }

    fn write(&mut self, write: ReplicaWrite) {
        self.sequence += 1;
        let batch =
            LogBatch { sequence: WalSequence(self.sequence), replicas: vec![write], peer_sequences: Vec::new() };
        let expected = self.model.write(batch.clone());
        assert_eq!(self.log().write(batch).is_ok(), expected.is_ok());
    }

    fn reopen(&mut self) {
        self.log = None;
        self.log = Some(open(self.dir.path()));
        self.model = self.model.reopen();
        self.assert_equal();
    }

    fn state(&self, replica: u64) -> Option<ReplicaLog> {
        self.model.replicas().unwrap().into_iter().find(|(id, _)| id.0 == replica).map(|(_, state)| state)
    }

    fn assert_equal(&self) {
        assert_eq!(self.log().recovered(), self.model.recovered());
        let replicas = self.model.replicas().unwrap();
        assert_eq!(self.log().replicas().unwrap(), replicas);
        for (id, state) in replicas {
            let (from, to) = (state.truncated.0.next(), state.last.next());
            let read = |log: &dyn Log| log.entries(id, from, to, usize::MAX).unwrap();
            assert_eq!(read(self.log()), read(&self.model));
            for index in state.truncated.0.0..=state.last.0 {
                let term = |log: &dyn Log| log.term(id, LogIndex(index)).unwrap();
                assert_eq!(term(self.log()), term(&self.model));
            }
        }
    }
}

/// One random write to a replica.
fn step(pair: &mut LogAndModel, replica: u64, term: u64, choice: &[u8]) {
    let Some(state) = pair.state(replica) else { return pair.write(create(replica)) };
    let (truncated, last) = (state.truncated.0.0, state.last.0);
    let pick = |from: u64, to: u64, byte: u8| from + u64::from(byte) % (to + 1 - from);
    let id = ReplicaId(replica);
    match choice[0] % 16 {
        0..=7 => {
            // Mostly at the end; sometimes the entries replace a suffix.
            let first = if choice[0] == 7 { pick(truncated + 1, last + 1, choice[1]) } else { last + 1 };
            let count = 1 + u64::from(choice[2] % 4);
            let entries =
                (first..first + count).map(|index| entry(index, term, 150 + usize::from(choice[3]))).collect();
            pair.write(ReplicaWrite { entries, ..ReplicaWrite::new(id) });
        }
        8 | 9 => {
            let hard_state = Some(HardState { term: Term(term), vote: id, commit: LogIndex(truncated) });
            pair.write(ReplicaWrite { hard_state, ..ReplicaWrite::new(id) });
        }
        10..=12 => {
            let index = pick(truncated, last, choice[1]);
            let at = pair.model.term(id, LogIndex(index)).unwrap();
            pair.write(truncate(replica, index, at.0));
        }
        13 => {
            let index = pick(truncated + 1, last + 5, choice[1]);
            pair.write(ReplicaWrite { clear: true, ..truncate(replica, index, term) });
        }
        14 if replica > 3 => pair.write(ReplicaWrite { destroy: true, ..ReplicaWrite::new(id) }),
        _ => {
            let with_gap = ReplicaWrite { entries: vec![entry(last + 2, term, 10)], ..ReplicaWrite::new(id) };
            pair.write(with_gap);
        }
    }
}

#[test]
fn random_writes_with_purges_and_restarts_match_the_model() {
    for seed in 0..2 {
        let mut pair = LogAndModel::new();
        let choices = noise(seed + 77, 8 * 600);
        let mut purged = false;
        for (n, choice) in choices.chunks(8).enumerate() {
            let replica = 1 + u64::from(choice[4] % 5);
            if !pair.model.is_tombstone(ReplicaId(replica)) {
                step(&mut pair, replica, 1 + n as u64 / 10, choice);
            }
            if choice[5] % 8 == 0 {
                let before = pair.log().size_bytes();
                for replica in pair.log().reclaim().unwrap() {
                    if let Some(state) = pair.state(replica.0) {
                        let at = pair.model.term(replica, state.last).unwrap();
                        pair.write(truncate(replica.0, state.last.0, at.0));
                    }
                }
                purged |= pair.log().size_bytes() < before;
                pair.assert_equal();
            }
            if choice[6] % 32 == 0 {
                pair.reopen();
            }
        }
        pair.reopen();
        assert!(purged, "the walk must include purges");
    }
}

#[test]
fn replaced_entries_do_not_come_back_after_a_purge() {
    let mut pair = LogAndModel::new();
    pair.write(create(1));
    pair.write(create(2));
    // An idle replica keeps old files of rewritten entries alive.
    pair.write(ReplicaWrite {
        entries: (1..=8).map(|index| entry(index, 1, 200)).collect(),
        ..ReplicaWrite::new(ReplicaId(2))
    });
    pair.write(ReplicaWrite {
        entries: (1..=30).map(|index| entry(index, 1, 20)).collect(),
        ..ReplicaWrite::new(ReplicaId(1))
    });
    fill(&mut pair);
    // Now the entries are in a rewritten file. Replace their suffix, truncate up to the new end, and purge
    // the commands.
    pair.write(ReplicaWrite { entries: vec![entry(25, 2, 20)], ..ReplicaWrite::new(ReplicaId(1)) });
    pair.write(truncate(1, 25, 2));
    fill(&mut pair);
    for _ in 0..2 {
        pair.reopen();
        let missing = pair.log().entries(ReplicaId(1), LogIndex(26), LogIndex(31), usize::MAX);
        assert!(matches!(missing, Err(LogError::Missing { .. })));
    }
    pair.write(ReplicaWrite { entries: vec![entry(26, 3, 20)], ..ReplicaWrite::new(ReplicaId(1)) });
    pair.reopen();
}

#[test]
fn truncated_entries_that_come_back_do_not_block_the_log() {
    let mut pair = LogAndModel::new();
    pair.write(create(1));
    pair.write(create(2));
    let append = |replica: u64, from: u64, to: u64| {
        let entries = (from..=to).map(|index| entry(index, 1, 20)).collect();
        ReplicaWrite { entries, ..ReplicaWrite::new(ReplicaId(replica)) }
    };
    pair.write(append(2, 1, 8));
    pair.write(append(1, 1, 10));
    fill(&mut pair);
    // Entries that are never rewritten, and a truncation whose command is purged: the engine still knows 1 to
    // 10 only.
    pair.write(append(1, 11, 20));
    pair.write(truncate(1, 20, 1));
    fill(&mut pair);
    pair.reopen();
    pair.write(append(1, 21, 22));
    pair.reopen();
}

/// Writes and truncates another replica until the oldest files are deleted.
fn fill(pair: &mut LogAndModel) {
    if pair.state(9).is_none() {
        pair.write(create(9));
    }
    for round in 0..40 {
        let last = pair.state(9).unwrap().last.0;
        let entries = (last + 1..=last + 2).map(|index| entry(index, 1, 1_000)).collect();
        pair.write(ReplicaWrite { entries, ..ReplicaWrite::new(ReplicaId(9)) });
        pair.write(truncate(9, last + 2, 1));
        if round % 4 == 0 {
            pair.log().reclaim().unwrap();
        }
    }
    assert!(!pair.dir.path().join("0000000000000001.raftlog").exists(), "the first file is purged");
}

#[test]
fn reads_during_a_purge_never_fail() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // One block per entry, so that a read takes long.
    let entries: Vec<_> = (1..=30).map(|index| entry(index, 1, 30)).collect();
    let write = |sequence, replicas| {
        log.write(LogBatch { sequence: WalSequence(sequence), replicas, peer_sequences: Vec::new() }).unwrap();
    };
    write(1, vec![create(1), create(2)]);
    for entry in &entries {
        write(
            1 + entry.index.0,
            vec![ReplicaWrite { entries: vec![entry.clone()], ..ReplicaWrite::new(ReplicaId(1)) }],
        );
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(log.entries(ReplicaId(1), LogIndex(1), LogIndex(31), usize::MAX).unwrap(), entries);
                reads += 1;
            }
            reads
        });
        for round in 0..150 {
            let write_2 = ReplicaWrite { entries: vec![entry(round + 1, 1, 2_000)], ..ReplicaWrite::new(ReplicaId(2)) };
            write(round + 40, vec![write_2, truncate(2, round + 1, 1)]);
            log.reclaim().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    assert!(!dir.path().join("0000000000000001.raftlog").exists(), "files were purged");
}
