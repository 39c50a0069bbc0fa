//! Hostile bytes from disk: records and whole log files.

use flotilla_hostile::{Proportion, at_every_cut, attack, extreme_u64, mutated};
use flotilla_storage::ReplicaBounds;
use flotilla_types::{NodeId, ObjectId, TableKind, TableRef, Tables};
use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::*;
use crate::record::{
    SEQUENCE_KEY, decode_checkpoint, decode_node_pair, decode_replica, decode_sequence, encode_checkpoint,
    encode_peer_sequence, encode_replica, encode_sequence, encode_tombstone, peer_sequence_key, tombstone_key,
};

/// Batches in a folder before it is damaged.
const BATCHES: u64 = 12;
const ENTRY_BYTES: usize = 120;

fn bounds() -> impl Strategy<Value = ReplicaBounds> {
    let numbers = (extreme_u64(), extreme_u64(), extreme_u64(), extreme_u64(), extreme_u64());
    (numbers, extreme_u64(), extreme_u64()).prop_map(
        |((shard, term, vote, commit, truncated), truncated_term, more)| ReplicaBounds {
            shard: ShardId(shard),
            hard_state: HardState { term: Term(term), vote: ReplicaId(vote), commit: LogIndex(commit) },
            truncated: (LogIndex(truncated), Term(truncated_term)),
            last: LogIndex(truncated.saturating_add(more)),
        },
    )
}

fn checkpoints() -> impl Strategy<Value = Checkpoint> {
    let object = || any::<u8>().prop_map(|byte| ObjectId::of(&[byte]));
    let pieces = (vec(object(), 0..4), vec(object(), 0..4)).prop_map(|(base, runs)| Tables::Pieces { base, runs });
    let key = || vec(any::<u8>(), 0..4).prop_map(Bytes::from);
    let fold = option::of((1..=u64::MAX).prop_map(LogIndex));
    let table = (any::<bool>(), key(), key(), object(), fold).prop_map(|(run, start, end, manifest, fold)| TableRef {
        kind: if run { TableKind::Run } else { TableKind::Base },
        clip: KeyRange { start, end },
        manifest,
        fold,
    });
    let tables = prop_oneof![pieces, vec(table, 0..4).prop_map(Tables::Manifests)];
    (1..9_u64, extreme_u64(), extreme_u64(), option::of(object()), tables).prop_map(
        |(replica, index, term, system, tables)| Checkpoint { system, tables, ..checkpoint(replica, index, term) },
    )
}

#[test]
fn hostile_replica_records_decode_within_proportional_memory() {
    attack(128, bounds(), |bounds| {
        let read = decode_replica(&encode_replica(&bounds));
        assert_eq!(read.ok(), (bounds.last < LogIndex(u64::MAX)).then_some(bounds));
    });
    attack(500, mutated(bounds().prop_map(|bounds| encode_replica(&bounds))), |bytes| {
        if let Ok(bounds) = Proportion::DEFAULT.of(bytes.len(), || decode_replica(&bytes)) {
            assert!(bounds.truncated.0 <= bounds.last && bounds.last < LogIndex(u64::MAX), "{bounds:?}");
        }
    });
}

#[test]
fn hostile_checkpoint_records_decode_within_proportional_memory() {
    attack(64, checkpoints(), |checkpoint| {
        let encoded = encode_checkpoint(&checkpoint);
        assert_eq!(decode_checkpoint(&encoded), Ok(checkpoint));
        at_every_cut(&encoded, |cut| drop(decode_checkpoint(cut)));
    });
    attack(500, mutated(checkpoints().prop_map(|checkpoint| encode_checkpoint(&checkpoint))), |bytes| {
        let _ = Proportion::DEFAULT.of(bytes.len(), || decode_checkpoint(&bytes));
    });
}

#[test]
fn hostile_node_records_decode_within_proportional_memory() {
    let pair = (0..3_u8, extreme_u64(), extreme_u64()).prop_map(|(kind, id, number)| match kind {
        0 => (peer_sequence_key(NodeId(id)), encode_peer_sequence(WalSequence(number))),
        1 => (tombstone_key(ReplicaId(id)), encode_tombstone()),
        _ => (SEQUENCE_KEY.to_vec(), encode_sequence(id, WalSequence(number))),
    });
    let pair = pair.prop_flat_map(|(key, value)| {
        (prop_oneof![3 => Just(key.clone()), 1 => mutated(Just(key))], mutated(Just(value)))
    });
    attack(500, pair, |(key, value)| {
        Proportion::DEFAULT.of(key.len() + value.len(), || {
            let _ = decode_node_pair(&key, &value);
            let _ = decode_sequence(&value);
        });
    });
}

/// A folder as a kill leaves it: several files, of which only the last may be torn.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for sequence in 1..=BATCHES {
        append(&log, sequence, ENTRY_BYTES);
    }
    copy(dir.path())
}

/// The content of a file without the space that is allocated ahead.
fn content(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

#[test]
fn hostile_files_are_refused_or_read_correctly() {
    let whole = folder();
    let mut files: Vec<_> = fs::read_dir(whole.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    let contents: Vec<_> = files.iter().map(|name| content(&whole.path().join(name))).collect();
    let damage = any::<Index>().prop_flat_map(move |choice| {
        let choice = choice.index(contents.len());
        (Just(choice), mutated(Just(contents[choice].clone())))
    });
    attack(60, damage, |(choice, bytes)| {
        let dir = copy(whole.path());
        fs::write(dir.path().join(&files[choice]), &bytes).unwrap();
        let Ok(log) = EngineLog::open(dir.path(), SMALL) else {
            assert_eq!(fs::read(dir.path().join(&files[choice])).unwrap(), bytes, "a refused file is unchanged");
            return;
        };
        let recovered = log.recovered().0;
        assert!(recovered <= BATCHES, "{recovered}");
        let Ok(replicas) = log.replicas() else { return };
        for (id, bounds) in replicas {
            assert_eq!((id, bounds.hard_state.commit), (ReplicaId(1), LogIndex(recovered)));
            for index in 1..=recovered {
                if let Ok(entries) = log.entries(id, LogIndex(index), LogIndex(index + 1), usize::MAX) {
                    assert_eq!(entries, [entry(index, 1, ENTRY_BYTES)]);
                }
            }
        }
    });
}

#[test]
fn hostile_noise_after_the_end_loses_no_batch() {
    let whole = folder();
    let (last, _) = crate::tail::last_file(whole.path()).unwrap().unwrap();
    let (name, written) = (last.file_name().unwrap().to_owned(), content(&last));
    // Part of a batch, as a power failure leaves it: any bytes except the sequence of a later batch of this
    // folder.
    attack(30, vec(any::<u8>(), 0..300), |noise| {
        let dir = copy(whole.path());
        fs::write(dir.path().join(&name), [&written[..], &noise].concat()).unwrap();
        match EngineLog::open(dir.path(), SMALL) {
            Ok(log) => assert_appended(&log, BATCHES, ENTRY_BYTES),
            Err(error) => assert!(error.to_string().contains("damaged at byte"), "{error}"),
        }
    });
}
