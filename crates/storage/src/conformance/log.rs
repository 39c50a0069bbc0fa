//! The suite for [`Log`]: covers its whole contract on one storage. Each case has its own replicas.

use std::{cell::Cell, sync::Arc};

use bytes::Bytes;
use flotilla_types::{
    Checkpoint, Entry, EntryKind, HardState, KeyRange, LogIndex, NodeId, ObjectId, ReplicaDescriptor, ReplicaId,
    ReplicaRole, ShardId, TableKind, TableRef, Tables, Term, WalSequence,
};

use super::{bytes, empty_checkpoint};
use crate::{Log, LogBatch, LogError, PeerSequence, ReplicaLog, ReplicaWrite};

type Open<'a> = dyn FnMut() -> Box<dyn Log> + 'a;

/// Runs the suite. Each call of `open` opens the same log; its storage must be empty at the first call.
///
/// # Panics
/// When the log breaks its contract.
pub fn log(open: &mut dyn FnMut() -> Box<dyn Log>) {
    a_new_log_is_empty(open);
    writes_survive_reopening(open);
    a_checkpoint_survives_in_full(open);
    a_conflicting_suffix_is_replaced(open);
    truncated_entries_are_gone(open);
    a_snapshot_replaces_the_whole_log(open);
    a_snapshot_before_the_end_of_the_log_replaces_the_suffix(open);
    writes_of_one_replica_take_effect_in_order(open);
    reads_stop_at_their_bound_in_bytes(open);
    reads_outside_the_log_return_specific_errors(open);
    refused_batches_change_nothing(open);
    a_destroyed_replica_stays_destroyed(open);
    peer_sequences_and_batch_sequence_are_remembered(open);
    reclaim_keeps_live_entries_and_tombstones(open);
}

/// A log under test, with the numbering of its batches.
struct Fixture<'a> {
    open: &'a mut Open<'a>,
    log: Option<Box<dyn Log>>,
    sequence: Cell<WalSequence>,
}

impl<'a> Fixture<'a> {
    fn new(open: &'a mut Open<'_>) -> Self {
        let log = open();
        let sequence = Cell::new(log.recovered());
        Self { open, log: Some(log), sequence }
    }

    fn log(&self) -> &dyn Log {
        self.log.as_deref().expect("the fixture always holds a log between calls")
    }

    fn reopen(&mut self) {
        self.log = None;
        self.log = Some((self.open)());
    }

    fn write_batch(&self, replicas: Vec<ReplicaWrite>, peer_sequences: Vec<PeerSequence>) -> Result<(), LogError> {
        self.sequence.set(self.sequence.get().next());
        self.log().write(LogBatch { sequence: self.sequence.get(), replicas, peer_sequences })
    }

    fn write(&self, replicas: Vec<ReplicaWrite>) -> Result<(), LogError> {
        self.write_batch(replicas, Vec::new())
    }

    fn must_write(&self, replicas: Vec<ReplicaWrite>) {
        self.write(replicas).expect("a valid batch is written");
    }

    fn replica(&self, id: u64) -> Option<ReplicaLog> {
        let replicas = self.log().replicas().expect("an intact log lists its replicas");
        assert!(replicas.windows(2).all(|pair| pair[0].0 < pair[1].0), "replicas are ordered by id");
        replicas.into_iter().find(|(replica, _)| replica.0 == id).map(|(_, log)| log)
    }

    fn entries(&self, id: u64, from: u64, to: u64) -> Result<Vec<Entry>, LogError> {
        self.log().entries(ReplicaId(id), LogIndex(from), LogIndex(to), usize::MAX)
    }

    /// Asserts that the log holds exactly the entries `(index, term)`, before and after reopening.
    fn assert_entries(&mut self, id: u64, expected: &[(u64, u64)]) {
        for round in ["before", "after"] {
            let replica = self.replica(id).expect("the replica is there");
            let first = replica.truncated.0.next();
            let last = expected.last().map_or(replica.truncated.0, |(index, _)| LogIndex(*index));
            assert_eq!(replica.last, last, "last index {round} reopening");
            let found = self.entries(id, first.0, replica.last.0 + 1).expect("entries inside the log are readable");
            let expected: Vec<_> = expected.iter().map(|(index, term)| entry(*index, *term)).collect();
            assert_eq!(found, expected, "entries {round} reopening");
            for entry in &expected {
                let term = self.log().term(ReplicaId(id), entry.index).expect("terms inside the log are readable");
                assert_eq!(term, entry.term, "term of {} {round} reopening", entry.index);
            }
            let truncated = self.log().term(ReplicaId(id), replica.truncated.0);
            assert_eq!(truncated.expect("the term of the last truncated entry is kept"), replica.truncated.1);
            if round == "before" {
                self.reopen();
            }
        }
    }
}

fn entry(index: u64, term: u64) -> Entry {
    let kind = match index {
        _ if index.is_multiple_of(3) => EntryKind::ConfChange,
        _ if index.is_multiple_of(4) => EntryKind::Shard,
        _ => EntryKind::Normal,
    };
    let data = bytes(&format!("data {index} of {term} {}", "x".repeat(index as usize % 40)));
    let context = if index.is_multiple_of(2) { bytes("context") } else { bytes("") };
    let data = if kind == EntryKind::Shard { Bytes::from_static(Entry::SHARD_DATA) } else { data };
    Entry { index: LogIndex(index), term: Term(term), kind, data, context }
}

fn append(id: u64, entries: &[(u64, u64)]) -> ReplicaWrite {
    let entries = entries.iter().map(|(index, term)| entry(*index, *term)).collect();
    ReplicaWrite { entries, ..ReplicaWrite::new(ReplicaId(id)) }
}

fn create(id: u64, index: u64, term: u64) -> ReplicaWrite {
    ReplicaWrite { create: Some(ShardId(id)), ..truncate(id, index, term) }
}

fn truncate(id: u64, index: u64, term: u64) -> ReplicaWrite {
    ReplicaWrite {
        checkpoint: Some(empty_checkpoint(ReplicaId(id), index, term)),
        truncate: Some((LogIndex(index), Term(term))),
        ..ReplicaWrite::new(ReplicaId(id))
    }
}

fn clear(id: u64, index: u64, term: u64) -> ReplicaWrite {
    ReplicaWrite { clear: true, ..truncate(id, index, term) }
}

fn destroy(id: u64) -> ReplicaWrite {
    ReplicaWrite { destroy: true, ..ReplicaWrite::new(ReplicaId(id)) }
}

fn a_new_log_is_empty(open: &mut Open<'_>) {
    let test = Fixture::new(open);
    assert_eq!(test.log().recovered(), WalSequence(0));
    assert!(test.log().peer_sequences().is_empty());
    assert!(test.log().replicas().expect("an empty log lists no replicas").is_empty());
    assert!(!test.log().is_tombstone(ReplicaId(1)));
}

fn writes_survive_reopening(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    let hard_state = HardState { term: Term(2), vote: ReplicaId(9), commit: LogIndex(1) };
    test.must_write(vec![create(101, 0, 0), create(102, 5, 2)]);
    let write = ReplicaWrite { hard_state: Some(hard_state), ..append(101, &[(1, 1), (2, 1), (3, 2)]) };
    test.must_write(vec![write, append(102, &[(6, 2)])]);
    test.assert_entries(101, &[(1, 1), (2, 1), (3, 2)]);
    test.assert_entries(102, &[(6, 2)]);
    let replica = test.replica(101).expect("the replica is there");
    assert_eq!(replica.hard_state, hard_state);
    assert_eq!((replica.shard, replica.truncated), (ShardId(101), (LogIndex(0), Term(0))));
    // A write of entries alone keeps the hard state, and a write of the hard state alone keeps the entries.
    test.must_write(vec![append(101, &[(4, 2)])]);
    let moved = HardState { commit: LogIndex(4), ..hard_state };
    test.must_write(vec![ReplicaWrite { hard_state: Some(moved), ..ReplicaWrite::new(ReplicaId(101)) }]);
    test.assert_entries(101, &[(1, 1), (2, 1), (3, 2), (4, 2)]);
    assert_eq!(test.replica(101).expect("the replica is there").hard_state, moved);
}

fn a_checkpoint_survives_in_full(open: &mut Open<'_>) {
    let object = |name: &[u8]| ObjectId::of(name);
    let clip = KeyRange { start: bytes("b"), end: bytes("x") };
    let table = |kind, name| TableRef { kind, clip: clip.clone(), manifest: object(name), fold: None };
    let folded = TableRef { fold: Some(LogIndex(5)), ..table(TableKind::Base, b"base") };
    let pieces = Tables::Pieces { base: vec![object(b"chunk 1"), object(b"chunk 2")], runs: vec![object(b"run")] };
    let manifests = Tables::Manifests(vec![folded, table(TableKind::Run, b"run")]);
    for (replica, tables) in [(103, pieces), (183, manifests), (184, Tables::Manifests(Vec::new()))] {
        survives_in_full(open, ReplicaId(replica), tables);
    }
}

fn survives_in_full(open: &mut Open<'_>, replica: ReplicaId, tables: Tables) {
    let mut test = Fixture::new(open);
    let mut checkpoint =
        Checkpoint { system: Some(ObjectId::of(b"system")), tables, ..empty_checkpoint(replica, 7, 3) };
    let conf = Arc::make_mut(&mut checkpoint.position.conf);
    conf.voters_outgoing = vec![ReplicaId(4)];
    conf.learners = vec![ReplicaId(5), ReplicaId(6)];
    conf.learners_next = vec![ReplicaId(7)];
    Arc::make_mut(&mut checkpoint.position.descriptor).replicas = vec![
        ReplicaDescriptor { replica: ReplicaId(4), node: NodeId(1), role: ReplicaRole::Voter },
        ReplicaDescriptor { replica: ReplicaId(5), node: NodeId(2), role: ReplicaRole::Learner },
    ];
    test.must_write(vec![ReplicaWrite { checkpoint: Some(checkpoint.clone()), ..create(replica.0, 7, 3) }]);
    test.must_write(vec![append(replica.0, &[(8, 3)])]);
    assert_eq!(test.replica(replica.0).expect("the replica is there").checkpoint, checkpoint);
    test.reopen();
    assert_eq!(test.replica(replica.0).expect("the replica is there").checkpoint, checkpoint);
    // The pointer may move without a truncation.
    checkpoint.position.index = LogIndex(8);
    let moved = ReplicaWrite { checkpoint: Some(checkpoint.clone()), ..ReplicaWrite::new(replica) };
    test.must_write(vec![moved]);
    test.assert_entries(replica.0, &[(8, 3)]);
    assert_eq!(test.replica(replica.0).expect("the replica is there").checkpoint, checkpoint);
}

fn a_conflicting_suffix_is_replaced(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(104, 0, 0), append(104, &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)])]);
    test.must_write(vec![append(104, &[(3, 2), (4, 2)])]);
    test.assert_entries(104, &[(1, 1), (2, 1), (3, 2), (4, 2)]);
    test.must_write(vec![append(104, &[(1, 3)])]);
    test.assert_entries(104, &[(1, 3)]);
    test.must_write(vec![append(104, &[(2, 3)])]);
    test.assert_entries(104, &[(1, 3), (2, 3)]);
}

fn truncated_entries_are_gone(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(105, 0, 0), append(105, &[(1, 1), (2, 1), (3, 2), (4, 2)])]);
    test.must_write(vec![truncate(105, 2, 1)]);
    test.assert_entries(105, &[(3, 2), (4, 2)]);
    assert_eq!(test.replica(105).expect("the replica is there").truncated, (LogIndex(2), Term(1)));
    // Truncating to the same index again changes nothing.
    test.must_write(vec![truncate(105, 2, 1)]);
    test.assert_entries(105, &[(3, 2), (4, 2)]);
    test.must_write(vec![truncate(105, 4, 2)]);
    test.assert_entries(105, &[]);
    test.must_write(vec![append(105, &[(5, 3)])]);
    test.assert_entries(105, &[(5, 3)]);
}

fn a_snapshot_replaces_the_whole_log(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(106, 0, 0), append(106, &[(1, 1), (2, 1), (3, 1)])]);
    test.must_write(vec![clear(106, 20, 4)]);
    test.assert_entries(106, &[]);
    let replica = test.replica(106).expect("the replica is there");
    assert_eq!((replica.truncated, replica.last), ((LogIndex(20), Term(4)), LogIndex(20)));
    assert_eq!(replica.checkpoint, empty_checkpoint(ReplicaId(106), 20, 4));
    assert_eq!(replica.shard, ShardId(106));
    test.must_write(vec![append(106, &[(21, 4), (22, 5)])]);
    test.assert_entries(106, &[(21, 4), (22, 5)]);
}

fn a_snapshot_before_the_end_of_the_log_replaces_the_suffix(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    let hard_state = HardState { term: Term(6), vote: ReplicaId(107), commit: LogIndex(2) };
    let write = ReplicaWrite { hard_state: Some(hard_state), ..append(107, &[(1, 1), (2, 1), (3, 1), (4, 1)]) };
    test.must_write(vec![create(107, 0, 0), write]);
    // A snapshot and the first entries after it in one write: the old suffix must be gone.
    test.must_write(vec![ReplicaWrite { entries: vec![entry(3, 6)], ..clear(107, 2, 5) }]);
    test.assert_entries(107, &[(3, 6)]);
    assert_eq!(test.replica(107).expect("the replica is there").hard_state, hard_state);
}

fn writes_of_one_replica_take_effect_in_order(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    let everything = ReplicaWrite {
        entries: vec![entry(11, 2), entry(12, 2)],
        hard_state: Some(HardState { term: Term(2), vote: ReplicaId::NONE, commit: LogIndex(11) }),
        ..create(108, 10, 1)
    };
    test.must_write(vec![everything, append(108, &[(12, 3), (13, 3)]), truncate(108, 12, 3), append(108, &[(13, 4)])]);
    test.assert_entries(108, &[(13, 4)]);
    let replica = test.replica(108).expect("the replica is there");
    assert_eq!((replica.truncated, replica.hard_state.commit), ((LogIndex(12), Term(3)), LogIndex(11)));
}

fn reads_stop_at_their_bound_in_bytes(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(109, 0, 0), append(109, &[(1, 1), (2, 1), (3, 1), (4, 1)])]);
    test.reopen();
    let read = |to: u64, bytes_max: usize| {
        let entries = test.log().entries(ReplicaId(109), LogIndex(1), LogIndex(to), bytes_max);
        entries.expect("entries inside the log are readable").len()
    };
    let two = entry(1, 1).size_bytes() + entry(2, 1).size_bytes();
    assert_eq!(read(5, 0), 1, "at least one entry");
    assert_eq!(read(5, two - 1), 1);
    assert_eq!(read(5, two), 2, "as many as fit");
    assert_eq!(read(3, usize::MAX), 2, "the end is excluded");
    assert_eq!(read(1, usize::MAX), 0, "an empty range has no entries");
}

fn reads_outside_the_log_return_specific_errors(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(110, 5, 1), append(110, &[(6, 1), (7, 1)])]);
    for _ in 0..2 {
        let compacted = test.entries(110, 5, 7).expect_err("truncated entries are not readable");
        assert!(matches!(compacted, LogError::Compacted { truncated: LogIndex(5), .. }), "{compacted}");
        let missing = test.entries(110, 6, 9).expect_err("entries after the end are not readable");
        assert!(matches!(missing, LogError::Missing { index: LogIndex(8), .. }), "{missing}");
        let term = |index: u64| test.log().term(ReplicaId(110), LogIndex(index));
        assert_eq!(term(5).expect("the last truncated term is kept"), Term(1));
        assert!(matches!(term(4), Err(LogError::Compacted { .. })));
        assert!(matches!(term(8), Err(LogError::Missing { index: LogIndex(8), .. })));
        assert!(matches!(test.entries(999, 1, 2), Err(LogError::Missing { .. })), "unknown replica");
        assert!(matches!(test.log().term(ReplicaId(999), LogIndex(1)), Err(LogError::Missing { .. })));
        test.reopen();
    }
}

fn refused_batches_change_nothing(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(111, 5, 1), append(111, &[(6, 1)]), create(112, 0, 0)]);
    let refused = [
        ("gap before", append(111, &[(8, 1)])),
        ("in the truncated part", append(111, &[(5, 1)])),
        ("gap inside", append(111, &[(7, 1), (9, 1)])),
        ("truncation beyond the end", truncate(111, 7, 1)),
        ("clear without checkpoint", ReplicaWrite { clear: true, ..ReplicaWrite::new(ReplicaId(111)) }),
        ("never created", append(113, &[(1, 1)])),
        ("new without checkpoint", ReplicaWrite { create: Some(ShardId(1)), ..ReplicaWrite::new(ReplicaId(113)) }),
        ("another shard", ReplicaWrite { create: Some(ShardId(1)), ..ReplicaWrite::new(ReplicaId(111)) }),
        ("invalid id", create(0, 0, 0)),
    ];
    for (what, write) in refused {
        let result = test.write(vec![append(112, &[(1, 1)]), write]);
        assert!(matches!(result, Err(LogError::Corrupt { .. })), "{what}: {result:?}");
        assert_eq!(test.replica(112).expect("the replica is there").last, LogIndex(0), "{what}");
    }
    test.assert_entries(112, &[]);
    test.assert_entries(111, &[(6, 1)]);
    assert!(test.replica(113).is_none());
    test.must_write(vec![append(111, &[(7, 1)])]);
    test.assert_entries(111, &[(6, 1), (7, 1)]);
}

fn a_destroyed_replica_stays_destroyed(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(114, 0, 0), append(114, &[(1, 1)])]);
    test.must_write(vec![destroy(114)]);
    for _ in 0..2 {
        assert!(test.log().is_tombstone(ReplicaId(114)));
        assert!(!test.log().is_tombstone(ReplicaId(112)));
        assert!(test.replica(114).is_none());
        assert!(matches!(test.entries(114, 1, 2), Err(LogError::Missing { .. })));
        assert!(matches!(test.write(vec![create(114, 0, 0)]), Err(LogError::Corrupt { .. })));
        assert!(matches!(test.write(vec![append(114, &[(2, 1)])]), Err(LogError::Corrupt { .. })));
        // Destroying again, or a replica that never existed, is harmless and leaves a tombstone.
        test.must_write(vec![destroy(114), destroy(115)]);
        assert!(test.log().is_tombstone(ReplicaId(115)));
        test.reopen();
    }
    // Destroying and creating within one batch is refused as well.
    let result = test.write(vec![create(116, 0, 0), destroy(116), create(116, 0, 0)]);
    assert!(matches!(result, Err(LogError::Corrupt { .. })));
    assert!(!test.log().is_tombstone(ReplicaId(116)), "a refused batch leaves no tombstone");
}

fn peer_sequences_and_batch_sequence_are_remembered(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    let peer = |node, sequence| PeerSequence { node: NodeId(node), sequence: WalSequence(sequence) };
    let before = test.log().recovered();
    test.write_batch(Vec::new(), vec![peer(2, 5), peer(1, 9)]).expect("peer sequences are written");
    test.write_batch(Vec::new(), vec![peer(2, 6)]).expect("peer sequences are written");
    // Batch numbers may have gaps, and an empty batch moves the sequence too.
    test.sequence.set(WalSequence(test.sequence.get().0 + 4));
    test.must_write(Vec::new());
    assert_eq!(test.log().recovered(), before, "writes do not change the recovered sequence");
    test.reopen();
    assert_eq!(test.log().recovered(), test.sequence.get());
    let mut peer_sequences = test.log().peer_sequences();
    peer_sequences.sort_by_key(|peer| peer.node);
    assert_eq!(peer_sequences, [peer(1, 9), peer(2, 6)]);
}

fn reclaim_keeps_live_entries_and_tombstones(open: &mut Open<'_>) {
    let mut test = Fixture::new(open);
    test.must_write(vec![create(117, 0, 0), append(117, &[(1, 1), (2, 1), (3, 1)])]);
    test.must_write(vec![truncate(117, 1, 1)]);
    for _ in 0..3 {
        test.log().reclaim().expect("reclaim succeeds on an intact log");
    }
    test.assert_entries(117, &[(2, 1), (3, 1)]);
    assert!(test.log().is_tombstone(ReplicaId(114)), "tombstones are kept");
    assert_eq!(test.log().recovered(), test.sequence.get());
}
