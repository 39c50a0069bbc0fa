//! The engine over real files: the conformance suite, trust in the view, damage, garbage collection,
//! concurrency.

use std::{
    fs,
    io::IoSliceMut,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_storage::{CompactionDue, EngineError, Fold, Manifest, ScanBounds, StateEngine, conformance};
use flotilla_types::{
    Checkpoint, CheckpointFormat, ConfState, Epoch, Folding, Holder, KeyRange, LogIndex, ObjectId, Position, ReplicaId,
    ShardDescriptor, ShardId, Tables, Term,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::{Engine, Options, ViewOptions};

const REPLICA: ReplicaId = ReplicaId(7);

/// A replica that has applied nothing.
pub(crate) fn empty_checkpoint(replica: ReplicaId) -> Checkpoint {
    let epoch = Epoch::default();
    let descriptor = ShardDescriptor { shard: ShardId(1), range: KeyRange::all(), epoch, replicas: Vec::new() };
    let position = Position {
        index: LogIndex(0),
        term: Term(0),
        conf: Arc::new(ConfState::of_voters([replica])),
        descriptor: Arc::new(descriptor),
    };
    Checkpoint::empty(position)
}

/// Small pieces, early folds and a small index cache, so that few records exercise everything.
pub(crate) fn small() -> Options {
    let objects = flotilla_objects::Options { segment_bytes: 64 << 10, ..flotilla_objects::Options::default() };
    Options {
        view: ViewOptions::Objects { index_bytes: 4 << 10 },
        piece_bytes: 1024,
        fold_bytes_min: 8 << 10,
        tier_bytes_min: 2 << 10,
        runs_max: 6,
        inherited_grace: Duration::ZERO,
        objects,
        ..Options::default()
    }
}

pub(crate) fn open(dir: &Path) -> Engine {
    Engine::open(dir, small()).unwrap()
}

pub(crate) fn open_with_sled(dir: &Path) -> Engine {
    Engine::open(dir, Options { view: ViewOptions::Sled { cache_bytes: 1 << 20 }, ..small() }).unwrap()
}

pub(crate) fn open_replica(dir: &Path, checkpoint: &Checkpoint) -> Engine {
    let engine = open(dir);
    engine.open(REPLICA, checkpoint).unwrap();
    engine
}

/// Like [`open_replica`], with sled as the view.
pub(crate) fn open_replica_with_sled(dir: &Path, checkpoint: &Checkpoint) -> Engine {
    let engine = open_with_sled(dir);
    engine.open(REPLICA, checkpoint).unwrap();
    engine
}

fn write(engine: &Engine, keys: std::ops::Range<u32>, value: &str) {
    let records = keys.map(|key| (format!("key{key:05}").into(), Some(value.to_owned().into()))).collect();
    engine.write(REPLICA, records, LogIndex(1)).unwrap();
}

fn build(engine: &Engine, index: u64, format: CheckpointFormat) -> Checkpoint {
    let position = Position { index: LogIndex(index), ..empty_checkpoint(REPLICA).position };
    assert!(engine.freeze(REPLICA, position, "system".into()).unwrap());
    engine.build(REPLICA, format).unwrap()
}

fn flush(engine: &Engine, index: u64) -> Checkpoint {
    flush_as(engine, index, CheckpointFormat::Manifests)
}

fn flush_as(engine: &Engine, index: u64, format: CheckpointFormat) -> Checkpoint {
    let checkpoint = build(engine, index, format);
    engine.install_checkpoint(REPLICA, &checkpoint).unwrap();
    engine.compact(REPLICA, Folding::Local, &|| false).unwrap();
    checkpoint
}

pub(crate) fn all(engine: &Engine) -> Vec<(Bytes, Bytes)> {
    engine.reader(REPLICA).unwrap().scan(&KeyRange::all(), usize::MAX, usize::MAX).unwrap()
}

fn identity(dir: &Path) -> String {
    let text = fs::read_to_string(dir.join("view.trust")).unwrap();
    text.lines().find(|line| line.starts_with("identity=")).unwrap().to_owned()
}

/// Makes the trust file look as if the machine had been restarted.
fn restart_machine(dir: &Path) {
    let path = dir.join("view.trust");
    let text = fs::read_to_string(&path).unwrap();
    let (before, after) = text.split_once("boot=").unwrap();
    fs::write(path, format!("{before}boot=another{after}")).unwrap();
}

/// Makes a folder with two checkpoints; returns the second one and its records.
pub(crate) fn two_flushes(dir: &Path) -> (Checkpoint, Vec<(Bytes, Bytes)>) {
    two_flushes_as(dir, CheckpointFormat::Manifests)
}

fn two_flushes_as(dir: &Path, format: CheckpointFormat) -> (Checkpoint, Vec<(Bytes, Bytes)>) {
    two_flushes_of(open_replica(dir, &empty_checkpoint(REPLICA)), format)
}

/// Like [`two_flushes`], with sled as the view.
pub(crate) fn two_flushes_with_sled(dir: &Path) -> (Checkpoint, Vec<(Bytes, Bytes)>) {
    two_flushes_of(open_replica_with_sled(dir, &empty_checkpoint(REPLICA)), CheckpointFormat::Manifests)
}

fn two_flushes_of(engine: Engine, format: CheckpointFormat) -> (Checkpoint, Vec<(Bytes, Bytes)>) {
    write(&engine, 0..50, "first");
    flush_as(&engine, 1, format);
    write(&engine, 25..75, "second");
    let checkpoint = flush_as(&engine, 2, format);
    let records = all(&engine);
    assert_eq!(records.len(), 75);
    (checkpoint, records)
}

#[test]
fn the_engine_passes_the_conformance_suite() {
    let dir = tempfile::tempdir().unwrap();
    conformance::state_engine(CheckpointFormat::Pieces, &mut || Box::new(open(dir.path())));
    let dir = tempfile::tempdir().unwrap();
    conformance::state_engine(CheckpointFormat::Manifests, &mut || Box::new(open(dir.path())));
}

/// As [`open`], with other bounds everywhere.
fn open_with_larger_pieces(dir: &Path) -> Engine {
    let options = Options { piece_bytes: 4096, fold_bytes_min: 1, tier_bytes_min: 100, runs_max: 3, ..small() };
    Engine::open(dir, options).unwrap()
}

#[test]
fn the_engine_passes_the_suite_of_references() {
    let dir = tempfile::tempdir().unwrap();
    conformance::references(&mut || Box::new(open(dir.path())));
    let dir = tempfile::tempdir().unwrap();
    conformance::references(&mut || Box::new(open_with_larger_pieces(dir.path())));
}

#[test]
fn the_engine_passes_the_suite_of_references_with_sled() {
    let dir = tempfile::tempdir().unwrap();
    conformance::references(&mut || Box::new(open_with_sled(dir.path())));
}

#[test]
fn the_engine_passes_the_suite_of_folds() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut first = || -> Box<dyn StateEngine> { Box::new(open(dirs[0].path())) };
    conformance::folds(&mut first, &mut || Box::new(open_with_larger_pieces(dirs[1].path())));
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut first = || -> Box<dyn StateEngine> { Box::new(open_with_sled(dirs[0].path())) };
    conformance::folds(&mut first, &mut || Box::new(open(dirs[1].path())));
}

/// A replica with a fold whose view needs two memtables, one of which is installed: in an engine with these
/// bounds.
fn waiting_fold(dir: &Path, options: Options) -> Engine {
    let engine = Engine::open(dir, options).unwrap();
    engine.open(REPLICA, &empty_checkpoint(REPLICA)).unwrap();
    write(&engine, 0..200, "first");
    let frozen = build(&engine, 1, CheckpointFormat::Manifests);
    write(&engine, 100..300, "second");
    engine.pin_fold(REPLICA, Fold { index: LogIndex(2), piece_bytes: 1024 }).unwrap();
    write(&engine, 200..400, "third");
    engine.install_checkpoint(REPLICA, &frozen).unwrap();
    engine
}

#[test]
fn a_fold_that_waits_too_long_or_holds_too_much_is_skipped_and_changes_no_record() {
    let bounds = [
        Options { fold_wait_max: Duration::ZERO, ..small() },
        Options { fold_memory_bytes_max: 0, ..small() },
        // Enough for the first of the two memtables.
        Options { fold_memory_bytes_max: 200 * 200, ..small() },
        small(),
    ];
    for (number, options) in bounds.into_iter().enumerate() {
        let is_within = number == 3;
        let dir = tempfile::tempdir().unwrap();
        let engine = waiting_fold(dir.path(), options);
        let records = all(&engine);
        flush(&engine, 3);
        let counts = engine.fold_counts();
        assert_eq!((counts.made, counts.skipped), if is_within { (1, 0) } else { (0, 1) }, "{number}");
        let checkpoint = flush(&engine, 4);
        let Tables::Manifests(tables) = &checkpoint.tables else { panic!("the tables have manifests") };
        assert_eq!(tables[0].fold, is_within.then_some(LogIndex(2)));
        assert_eq!(engine.fold_memory.load(Ordering::Relaxed), 0, "what a fold held is let go with it");
        assert_eq!(all(&engine), records);
    }
}

/// The replica does not need the object any more, so it is no loss.
#[test]
fn a_fold_whose_view_is_damaged_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let engine = waiting_fold(dir.path(), small());
    let run = engine.replica(REPLICA).unwrap().build_input().unwrap().attached.tables[0].ids().next().unwrap();
    let run = engine.object(run).unwrap();
    for index in 3..12 {
        // Merged by flushes, because compaction is late.
        engine.install_checkpoint(REPLICA, &build(&engine, index, CheckpointFormat::Manifests)).unwrap();
        write(&engine, 0..400, "later");
    }
    let records = all(&engine);
    assert!(engine.compaction_due(REPLICA).compact);
    damage(dir.path(), &run);
    assert!(!engine.compact(REPLICA, Folding::Logged, &|| false).unwrap());
    assert_eq!(engine.fold_counts().skipped, 1);
    assert_eq!(all(&engine), records);
}

#[test]
fn the_engine_passes_the_conformance_suite_with_sled() {
    let dir = tempfile::tempdir().unwrap();
    conformance::state_engine(CheckpointFormat::Pieces, &mut || Box::new(open_with_sled(dir.path())));
    let dir = tempfile::tempdir().unwrap();
    conformance::state_engine(CheckpointFormat::Manifests, &mut || Box::new(open_with_sled(dir.path())));
}

#[test]
fn the_engine_passes_the_conformance_suite_when_each_restart_switches_views() {
    let dir = tempfile::tempdir().unwrap();
    let mut with_sled = false;
    conformance::state_engine(CheckpointFormat::Manifests, &mut || {
        with_sled = !with_sled;
        Box::new(if with_sled { open_with_sled(dir.path()) } else { open(dir.path()) })
    });
}

#[test]
fn the_engine_passes_the_conformance_suite_when_each_restart_loses_the_view() {
    let dir = tempfile::tempdir().unwrap();
    conformance::state_engine(CheckpointFormat::Manifests, &mut || {
        if let Err(error) = fs::remove_dir_all(dir.path().join("view")) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
        Box::new(open_with_sled(dir.path()))
    });
}

#[test]
fn the_view_survives_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, records) = two_flushes_with_sled(dir.path());
    let before = identity(dir.path());
    let engine = open_replica_with_sled(dir.path(), &checkpoint);
    assert_eq!((all(&engine), identity(dir.path())), (records, before));
}

#[test]
fn a_view_from_an_earlier_boot_is_rebuilt_unless_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, records) = two_flushes_with_sled(dir.path());
    let before = identity(dir.path());
    restart_machine(dir.path());
    let engine = open_replica_with_sled(dir.path(), &checkpoint);
    assert_eq!(all(&engine), records);
    let rebuilt = identity(dir.path());
    assert_ne!(before, rebuilt);
    engine.close().unwrap();
    assert!(matches!(engine.reader(REPLICA), Err(EngineError::NotOpen(_))));
    assert!(matches!(engine.open(REPLICA, &checkpoint), Err(EngineError::View(_))));
    drop(engine);
    restart_machine(dir.path());
    let engine = open_replica_with_sled(dir.path(), &checkpoint);
    assert_eq!((all(&engine), identity(dir.path())), (records.clone(), rebuilt.clone()));
    // Opening removed the clean mark: it is valid for one start only.
    drop(engine);
    restart_machine(dir.path());
    assert_eq!(all(&open_replica_with_sled(dir.path(), &checkpoint)), records);
    assert_ne!(identity(dir.path()), rebuilt);
}

#[test]
fn a_broken_or_foreign_view_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, records) = two_flushes_with_sled(dir.path());
    let other = tempfile::tempdir().unwrap();
    drop(open_replica_with_sled(other.path(), &empty_checkpoint(REPLICA)));
    let view = dir.path().join("view");
    let conf = view.join("conf");
    fs::write(&conf, b"this is not a configuration of sled").unwrap();
    assert_eq!(all(&open_replica_with_sled(dir.path(), &checkpoint)), records);
    for file in fs::read_dir(&view).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        fs::write(file, vec![0xA5; 8192]).unwrap();
    }
    assert_eq!(all(&open_replica_with_sled(dir.path(), &checkpoint)), records);
    fs::remove_dir_all(&view).unwrap();
    fs::rename(other.path().join("view"), &view).unwrap();
    let before = identity(dir.path());
    assert_eq!(all(&open_replica_with_sled(dir.path(), &checkpoint)), records);
    assert_ne!(identity(dir.path()), before);
}

#[test]
fn a_view_ahead_of_or_behind_the_durable_checkpoint_is_brought_in_line() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica_with_sled(dir.path(), &empty_checkpoint(REPLICA));
    write(&engine, 0..50, "first");
    let first = flush(&engine, 1);
    let at_first = all(&engine);
    write(&engine, 25..75, "second");
    let second = build(&engine, 2, CheckpointFormat::Manifests);
    let at_second = all(&engine);
    drop(engine);
    // The checkpoint is newer than the view.
    let engine = open_replica_with_sled(dir.path(), &second);
    assert_eq!(all(&engine), at_second);
    drop(engine);
    // The log went backwards: the checkpoint is older than the view.
    let engine = open_replica_with_sled(dir.path(), &first);
    assert_eq!(all(&engine), at_first);
    drop(engine);
}

#[test]
fn only_missing_objects_of_a_checkpoint_are_transferred() {
    let (source_dir, target_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open_replica(source_dir.path(), &empty_checkpoint(REPLICA));
    let target = open(target_dir.path());
    let pull = |checkpoint: &Checkpoint| {
        let objects: Vec<_> = checkpoint.objects().collect();
        let children = |id: ObjectId| {
            let manifest = Manifest::decode(source.object(id).unwrap());
            manifest.map(|manifest| manifest.children()).unwrap_or_default()
        };
        let needed = objects.iter().map(|id| 1 + children(*id).len()).sum::<usize>();
        let mut moved = 0;
        // First the manifests, then the pieces.
        for _ in 0..2 {
            let missing = target.missing(&objects);
            moved += missing.len();
            for id in missing {
                target.import(id, source.object(id).unwrap(), &children(id)).unwrap();
            }
        }
        target.sync().unwrap();
        assert!(target.missing(&objects).is_empty());
        target.install_snapshot(REPLICA, checkpoint).unwrap();
        assert_eq!(all(&target), all(&source));
        (moved, needed)
    };
    write(&source, 0..500, "first");
    flush(&source, 1);
    let (moved, named) = pull(&flush(&source, 2));
    assert_eq!(moved, named);
    for index in 3..9 {
        write(&source, 100..110, "changed");
        let (moved, named) = pull(&flush(&source, index));
        assert!(moved < named / 2, "{moved} of {named} objects moved");
    }
    drop(target);
    drop(source);
}

#[test]
fn what_a_receiver_has_fetched_survives_collections_until_it_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    let receiver = ReplicaId(8);
    let objects: Vec<Bytes> = (0..40).map(|n| vec![n; 4 << 10].into()).collect();
    let ids: Vec<_> = objects.iter().map(|object| ObjectId::of(object)).collect();
    engine.hold(Holder::Receiver(receiver), &ids);
    for (id, object) in ids.iter().zip(objects) {
        engine.import(*id, object, &[]).unwrap();
    }
    engine.sync().unwrap();
    // The new replica is opened while it receives the snapshot.
    engine.open(receiver, &empty_checkpoint(receiver)).unwrap();
    let collect = |rounds: std::ops::Range<u64>| {
        for index in rounds {
            write(&engine, 0..200, &format!("{index}"));
            flush(&engine, index);
        }
    };
    collect(1..40);
    assert!(engine.missing(&ids).is_empty());
    engine.hold(Holder::Receiver(receiver), &[]);
    collect(40..80);
    assert_eq!(engine.missing(&ids).len(), ids.len());
}

#[test]
fn a_damaged_object_is_reported_and_a_copy_from_a_peer_repairs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, records) = two_flushes(dir.path());
    let peer = tempfile::tempdir().unwrap();
    two_flushes(peer.path());
    let peer = open_replica(peer.path(), &checkpoint);
    for file in fs::read_dir(dir.path().join("objects")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[16 + 44 + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let engine = open_with_sled(dir.path());
    let Err(EngineError::Object(damaged)) = engine.open(REPLICA, &checkpoint) else {
        panic!("damage must be detected");
    };
    assert_eq!(engine.missing(&[damaged]), [damaged]);
    assert!(matches!(engine.reader(REPLICA), Err(EngineError::NotOpen(_))));
    engine.import(damaged, peer.object(damaged).unwrap(), &[]).unwrap();
    engine.sync().unwrap();
    engine.open(REPLICA, &checkpoint).unwrap();
    assert_eq!(all(&engine), records);
}

/// Flips a bit of one object.
fn damage(dir: &Path, object: &[u8]) {
    let mut damaged = 0;
    for file in fs::read_dir(dir.join("objects")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let Some(at) = bytes.windows(object.len()).position(|window| window == object) else { continue };
        bytes[at + object.len() / 2] ^= 1;
        fs::write(&path, bytes).unwrap();
        damaged += 1;
    }
    assert_eq!(damaged, 1, "the object is in one file");
}

/// Flips a bit in every object file.
fn flip(dir: &Path, at: usize) {
    for file in fs::read_dir(dir.join("objects")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        // In place, so that an open engine reads the damage.
        fs::write(&path, bytes).unwrap();
    }
}

/// Gets every key and scans all of them. Each result must be right or an error of damage; counts the errors.
fn count_damaged_reads(engine: &Engine, records: &[(Bytes, Bytes)]) -> usize {
    let reader = engine.reader(REPLICA).unwrap();
    let mut damaged = 0;
    for (key, value) in records {
        match reader.get(key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value)),
            Err(EngineError::Object(_) | EngineError::Corrupt { .. }) => damaged += 1,
            Err(error) => panic!("{error:?}"),
        }
        // An absent key between this one and the next.
        match reader.get(&[key, &b"!"[..]].concat()) {
            Ok(found) => assert_eq!(found, None),
            Err(EngineError::Object(_) | EngineError::Corrupt { .. }) => damaged += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    match reader.scan(&KeyRange::all(), usize::MAX, usize::MAX) {
        Ok(found) => assert_eq!(found, records),
        Err(EngineError::Object(_) | EngineError::Corrupt { .. }) => damaged += 1,
        Err(error) => panic!("{error:?}"),
    }
    damaged
}

#[test]
fn a_flipped_bit_is_an_error_and_never_a_wrong_answer() {
    let mut seen = 0;
    let formats = [CheckpointFormat::Pieces, CheckpointFormat::Manifests].into_iter().cycle();
    for (at, format) in (0..12_000).step_by(97).zip(formats) {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, records) = two_flushes_as(dir.path(), format);
        // Damage that exists before the engine is opened.
        flip(dir.path(), at);
        let engine = open(dir.path());
        match engine.open(REPLICA, &checkpoint) {
            Ok(()) => seen += usize::from(count_damaged_reads(&engine, &records) > 0),
            Err(EngineError::Object(_) | EngineError::Corrupt { .. }) => seen += 1,
            Err(error) => panic!("{error:?}"),
        }
        // Damage under an open engine that has verified all pieces.
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, records) = two_flushes_as(dir.path(), format);
        let engine = open_replica(dir.path(), &checkpoint);
        assert_eq!(count_damaged_reads(&engine, &records), 0);
        flip(dir.path(), at);
        count_damaged_reads(&engine, &records);
    }
    assert!(seen > 30, "{seen} flips were detected");
}

/// The first key of a piece is read without verification. A key that seems to lie before it must not count as
/// absent.
#[test]
fn a_piece_with_a_damaged_first_key_is_not_skipped() {
    for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
        damage_first_keys(format);
    }
}

fn damage_first_keys(format: CheckpointFormat) {
    let mut pieces = 0;
    for piece in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
        write(&engine, 0..200, "value");
        let checkpoint = flush_as(&engine, 1, format);
        let records = all(&engine);
        drop(engine);
        let path = fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // A footer ends like this, too.
        let is_start = |at: &usize| bytes[*at..].starts_with(b"FLPC") && !bytes[*at..].starts_with(b"FLPCEND");
        let starts: Vec<_> = (0..bytes.len() - 4).filter(is_start).collect();
        let Some(start) = starts.get(piece) else { break };
        // The last byte of the first key: a digit, which becomes a greater character.
        bytes[start + 12 + 8 + 7] |= 0x40;
        fs::write(&path, bytes).unwrap();
        let engine = open_replica(dir.path(), &checkpoint);
        assert!(count_damaged_reads(&engine, &records) > 0, "piece {piece}");
        pieces += 1;
    }
    assert!(pieces > 3, "{pieces} pieces");
}

#[test]
fn tables_of_pieces_are_rewritten_once_their_checkpoint_has_manifests() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    write(&engine, 0..200, "first");
    flush_as(&engine, 1, CheckpointFormat::Pieces);
    let records = all(&engine);
    let footers = || {
        let attached = engine.replica(REPLICA).unwrap().build_input().unwrap().attached;
        let pieces = attached.tables.iter().flat_map(|table| table.pieces.iter());
        pieces.map(|piece| piece.listed.footer_bytes > 0).collect::<Vec<_>>()
    };
    assert!(footers().iter().all(|has_footer| !has_footer));
    // The first checkpoint with manifests lists the old pieces; the next one names the rewritten base.
    flush(&engine, 2);
    assert!(footers().iter().all(|has_footer| !has_footer));
    let checkpoint = flush(&engine, 3);
    assert!(!footers().is_empty() && footers().iter().all(|has_footer| *has_footer));
    assert_eq!(engine.compaction_due(REPLICA), CompactionDue::default());
    assert_eq!(all(&engine), records);
    drop(engine);
    assert_eq!(all(&open_replica(dir.path(), &checkpoint)), records);
}

#[test]
fn readers_keep_the_objects_of_an_older_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    write(&engine, 0..200, "first");
    flush(&engine, 1);
    let before = all(&engine);
    let found = engine.replica(REPLICA).unwrap().build_input().unwrap().view;
    for index in 2..30 {
        write(&engine, 0..200, &format!("value {index} {}", "x".repeat(50)));
        flush(&engine, index);
    }
    let records: Vec<_> = found.records(REPLICA, &KeyRange::all(), usize::MAX).map(Result::unwrap).collect();
    assert!(records.into_iter().map(|(key, value)| (key, value.unwrap().into_bytes())).eq(before));
}

#[test]
fn repeated_overwrites_take_bounded_disk_space() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    for index in 1..60 {
        write(&engine, 0..200, &format!("value {index} {}", "x".repeat(50)));
        flush(&engine, index);
    }
    let files = fs::read_dir(dir.path().join("objects")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    // 15 KB of records are live; more than 900 KB were written.
    assert!(bytes < 6 * (64 << 10), "{bytes} bytes of objects");
    assert_eq!(all(&engine).len(), 200);
}

#[test]
fn scans_see_each_write_set_whole_while_checkpoints_are_made() {
    const ROUNDS: u32 = 300;
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    write(&engine, 0..400, "0");
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 1..=ROUNDS {
                write(&engine, 0..400, &round.to_string());
            }
            done.store(true, Ordering::Release);
        });
        threads.spawn(|| {
            for index in 1.. {
                flush(&engine, index);
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        let reader = engine.reader(REPLICA).unwrap();
        let mut last = 0;
        while !done.load(Ordering::Acquire) {
            let records = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).unwrap();
            let values: std::collections::BTreeSet<_> = records.iter().map(|(_, value)| value).collect();
            assert_eq!((records.len(), values.len()), (400, 1), "a torn scan: {values:?}");
            let value: u32 = String::from_utf8_lossy(&records[0].1).parse().unwrap();
            assert!(value >= last, "a scan went back in time");
            last = value;
        }
    });
    assert!(all(&engine).iter().all(|(_, value)| *value == ROUNDS.to_string()));
}

#[test]
fn one_process_opens_a_folder_and_readers_do_not_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    assert!(matches!(Engine::open(dir.path(), small()), Err(EngineError::Io(_))));
    let reader = engine.reader(REPLICA).unwrap();
    drop(engine);
    let _again = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    assert!(matches!(reader.get(b"a"), Err(EngineError::NotOpen(_))));
}

#[test]
fn a_checkpoint_that_was_not_built_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    write(&engine, 0..1, "x");
    let built = build(&engine, 1, CheckpointFormat::Pieces);
    let other = Checkpoint { system: None, ..built.clone() };
    assert!(matches!(engine.install_checkpoint(REPLICA, &other), Err(EngineError::Corrupt { .. })));
    engine.install_checkpoint(REPLICA, &built).unwrap();
    engine.install_checkpoint(REPLICA, &built).unwrap();
}

/// The small index cache holds few of the pieces.
#[test]
fn a_read_that_must_not_wait_finds_what_is_in_memory_and_misses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_replica(dir.path(), &empty_checkpoint(REPLICA));
    let reader = engine.reader(REPLICA).unwrap();
    let misses = |key: &Bytes| matches!(reader.get_in_memory(key), Err(EngineError::NotInMemory));
    let key = |i: u32| Bytes::from(format!("key{i:05}"));
    let bounds = ScanBounds { items_max: 10, bytes_max: 1_000, examined_max: 10 };
    let records = (0..400).map(|i| (key(i), Some(vec![1; 100].into()))).collect();
    engine.write(REPLICA, records, LogIndex(1)).unwrap();
    assert_eq!(reader.get_in_memory(&key(1)).unwrap().unwrap().len(), 100);
    assert_eq!(reader.get_in_memory(b"absent").unwrap(), None);
    assert!(reader.scan_page_in_memory(&KeyRange::all(), bounds).is_ok());
    assert!(engine.freeze(REPLICA, empty_checkpoint(REPLICA).position, Bytes::new()).unwrap());
    assert!(!misses(&key(1)), "a frozen memtable is memory");
    let checkpoint = engine.build(REPLICA, CheckpointFormat::Manifests).unwrap();
    engine.install_checkpoint(REPLICA, &checkpoint).unwrap();
    assert!((0..400).any(|i| misses(&key(i))), "the index of most pieces is not cached");
    assert!(matches!(reader.scan_page_in_memory(&KeyRange::all(), bounds), Err(EngineError::NotInMemory)));
    // A read that waits brings the record's index, and its block, into memory.
    let found = (0..400).filter(|i| reader.get(&key(*i)).unwrap().is_some() && !misses(&key(*i))).count();
    assert!(found == 400 || !is_cache_visible(dir.path()), "{found}");
    engine.write(REPLICA, vec![(key(1), None)], LogIndex(2)).unwrap();
    assert_eq!(reader.get_in_memory(&key(1)).unwrap(), None);
}

/// Whether the file system tells what is in the page cache.
fn is_cache_visible(dir: &Path) -> bool {
    let path = dir.join("probe");
    fs::write(&path, b"x").unwrap();
    let (file, mut byte) = (fs::File::open(&path).unwrap(), [0]);
    let read = preadv2(&file, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::OPNOTSUPP))
}

#[test]
fn snapshots_are_whole_while_writes_freezes_and_installs_go_on() {
    for sled in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let engine = if sled { open_with_sled(dir.path()) } else { open(dir.path()) };
        engine.open(REPLICA, &empty_checkpoint(REPLICA)).unwrap();
        let key = |i: u32| Bytes::from(format!("key{i:02}"));
        let write = |round: u32| {
            let records = (0..20).map(|i| (key(i), Some(round.to_string().into()))).collect();
            engine.write(REPLICA, records, LogIndex(round.into())).unwrap();
        };
        write(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        let snapshot = engine.snapshot(REPLICA).unwrap();
                        let first = snapshot.get(&key(0)).unwrap().unwrap();
                        let all = snapshot.scan(&KeyRange::all(), 100, 10_000).unwrap();
                        assert_eq!(all.len(), 20);
                        assert!(all.iter().all(|(_, value)| *value == first), "{first:?}: {all:?}");
                        assert!((1..20).all(|i| snapshot.get(&key(i)).unwrap().as_ref() == Some(&first)));
                    }
                });
            }
            threads.spawn(|| {
                for round in 1..600 {
                    write(round);
                    if round % 7 == 0
                        && engine.freeze(REPLICA, empty_checkpoint(REPLICA).position, Bytes::new()).unwrap()
                    {
                        let checkpoint = engine.build(REPLICA, CheckpointFormat::Manifests).unwrap();
                        engine.install_checkpoint(REPLICA, &checkpoint).unwrap();
                    }
                }
                done.store(true, Ordering::Release);
            });
        });
    }
}
