//! Which replicas hold back log space, and what makes the log stop naming them.

use super::*;

/// Entries of the cold replica, and those that it kept after its checkpoint, as hosts do.
const COLD_ENTRIES: u64 = 1_100;
const COLD_TAIL: u64 = 1_024;

/// A log with small files, in which replica 1 is cold and replica 2 is written to.
struct Fixture {
    log: EngineLog,
    sequence: u64,
    hot: u64,
}

impl Fixture {
    fn new(dir: &Path) -> Self {
        let options =
            Options { target_file_size_bytes: 16 << 10, purge_threshold_bytes: 64 << 10, ..Options::default() };
        let log = EngineLog::open(dir, options).unwrap();
        let mut fixture = Self { log, sequence: 0, hot: 0 };
        fixture.write(create(1));
        for index in 1..=COLD_ENTRIES {
            fixture.write(ReplicaWrite { entries: vec![entry(index, 1, 30)], ..ReplicaWrite::new(ReplicaId(1)) });
        }
        let kept_from = (LogIndex(COLD_ENTRIES - COLD_TAIL), Term(1));
        fixture.write(ReplicaWrite { truncate: Some(kept_from), ..truncate(1, COLD_ENTRIES, 1) });
        fixture.write(create(2));
        fixture
    }

    fn write(&mut self, write: ReplicaWrite) {
        self.sequence += 1;
        let sequence = WalSequence(self.sequence);
        self.log.write(LogBatch { sequence, replicas: vec![write], peer_sequences: Vec::new() }).unwrap();
    }

    /// Writes to the hot replica, which truncates its log, and reclaims. Returns whether the log names the
    /// cold one.
    fn names_cold(&mut self) -> bool {
        for _ in 0..10 {
            self.hot += 1;
            self.write(ReplicaWrite { entries: vec![entry(self.hot, 1, 1_000)], ..ReplicaWrite::new(ReplicaId(2)) });
        }
        if self.hot > 40 {
            self.write(truncate(2, self.hot - 20, 1));
        }
        self.log.reclaim().unwrap().contains(&ReplicaId(1))
    }
}

#[test]
fn a_cold_replica_is_named_until_it_truncates_what_its_checkpoint_covers() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path());
    let named = (0..50).filter(|_| fixture.names_cold()).count();
    assert!(named > 0, "its tail is in the oldest files");
    // The same checkpoint again does not help.
    fixture.write(ReplicaWrite { checkpoint: Some(checkpoint(1, COLD_ENTRIES, 1)), ..ReplicaWrite::new(ReplicaId(1)) });
    assert!((0..50).any(|_| fixture.names_cold()));
    let to = (LogIndex(COLD_ENTRIES), Term(1));
    fixture.write(ReplicaWrite { truncate: Some(to), ..ReplicaWrite::new(ReplicaId(1)) });
    let named = (0..200).filter(|_| fixture.names_cold()).count();
    assert_eq!(named, 0, "it keeps no entries");
    let replicas = fixture.log.replicas().unwrap();
    assert_eq!((replicas[0].1.truncated, replicas[0].1.last), (to, to.0));
    assert_eq!(replicas[0].1.checkpoint, checkpoint(1, COLD_ENTRIES, 1));
}
