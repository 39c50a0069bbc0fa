//! Compressed objects on real files: what is stored, what every reader sees, damage, older binaries.

use std::{fs, os::unix::fs::FileExt, path::Path};

use flotilla_types::{Holder, ObjectId, ReplicaId};

use super::{open, put_all, segment_files, small};
use crate::{ObjectError, ObjectStore, Options, Scope, index::Location, load::segment_path, segment::SEGMENT_VERSION};

/// Text of which zstd makes a tenth or less.
fn text(n: u16, len: usize) -> Vec<u8> {
    (0..).flat_map(|line| format!("line {line} of object {n}\n").into_bytes()).take(len).collect()
}

fn random(n: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn open_compressing(dir: &Path) -> ObjectStore {
    let store = ObjectStore::open(dir, Options { segment_bytes: 64 << 10, ..Options::default() }).unwrap();
    store.allow_compression();
    store
}

fn location(store: &ObjectStore, id: ObjectId) -> Location {
    store.index.read().entry(id).unwrap().location
}

fn versions(dir: &Path) -> Vec<u8> {
    segment_files(dir).iter().map(|path| fs::read(path).unwrap()[8]).collect()
}

/// Overwrites bytes of what is stored.
fn overwrite(dir: &Path, store: &ObjectStore, id: ObjectId, bytes: &[u8]) {
    let location = location(store, id);
    let file = fs::File::options().write(true).open(segment_path(dir, location.segment)).unwrap();
    file.write_all_at(bytes, location.offset).unwrap();
}

#[test]
fn a_compressible_object_is_short_on_disk_and_plain_to_every_reader() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open_compressing(dir.path());
    let bytes = text(1, 60_000);
    let id = store.put_compressible(&bytes, &[ObjectId::of(b"child")]).unwrap();
    assert_eq!(id, ObjectId::of(&bytes), "the id is that of the plain bytes");
    store.sync().unwrap();
    assert!(store.usage().disk_bytes < 12_000, "{:?}", store.usage());
    for round in 0..2 {
        assert_eq!(store.len_bytes(id), Some(60_000));
        assert_eq!(store.get(id).unwrap(), bytes);
        assert_eq!(store.slice(id, 0, 60_000).unwrap(), bytes);
        assert_eq!(store.slice(id, 59_990, 4_096).unwrap(), bytes[59_990..]);
        assert_eq!(store.slice(id, 70_000, 1).unwrap().len(), 0);
        assert_eq!(store.children(id), [ObjectId::of(b"child")]);
        if let Some(slice) = store.slice_in_memory(id, 30_000, 100) {
            assert_eq!(slice, bytes[30_000..30_100]);
        }
        assert_eq!(store.scrub(&mut store.begin_scrub(), u64::MAX).unwrap().damaged, []);
        drop(store);
        if round == 0 {
            // The table of contents that the open wrote is damaged: the records are scanned.
            let path = &segment_files(dir.path())[0];
            ObjectStore::open(dir.path(), small()).unwrap();
            let bytes = fs::metadata(path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(bytes - 1).unwrap();
        }
        store = open_compressing(dir.path());
    }
}

#[test]
fn older_binaries_read_every_segment_until_the_first_compressed_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put_compressible(&text(1, 1_500), &[]).unwrap();
    store.put_compressible(&text(2, 1_500), &[ObjectId::of(b"child")]).unwrap();
    assert_eq!(versions(dir.path()), [1, 2], "compression is not allowed yet");
    store.allow_compression();
    store.put(&text(3, 1_500), &[]).unwrap();
    store.put_compressible(&random(4, 1_500), &[]).unwrap();
    assert!(versions(dir.path()).iter().all(|version| *version <= 2), "nothing is compressed");
    store.put_compressible(&text(5, 1_500), &[]).unwrap();
    assert_eq!(versions(dir.path()).last(), Some(&3));
    assert_eq!(u32::from(versions(dir.path())[versions(dir.path()).len() - 1]), SEGMENT_VERSION);
    store.sync().unwrap();
    drop(store);
    // The next run may compress at once: older binaries refuse the folder anyway.
    let store = open(dir.path());
    let id = store.put_compressible(&text(6, 1_500), &[]).unwrap();
    assert!(location(&store, id).lengths.is_compressed());
}

#[test]
fn objects_that_are_not_compressible_stay_plain() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_compressing(dir.path());
    let plain = store.put(&text(1, 50_000), &[]).unwrap();
    let large = store.put_compressible(&text(2, (64 << 10) + 1), &[]).unwrap();
    let random = store.put_compressible(&random(3, 16_000), &[]).unwrap();
    let tiny = store.put_compressible(&[0; 100], &[]).unwrap();
    for id in [plain, large, random, tiny] {
        assert!(!location(&store, id).lengths.is_compressed());
        assert!(store.get(id).is_ok());
    }
    // An object that is there is not stored again.
    assert_eq!(store.put_compressible(&text(1, 50_000), &[]).unwrap(), plain);
    assert!(!location(&store, plain).lengths.is_compressed());
}

#[test]
fn wrong_bytes_of_a_compressible_object_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_compressing(dir.path());
    let id = ObjectId::of(&text(1, 1_000));
    assert!(matches!(store.import_compressible(id, &text(2, 1_000), &[]), Err(ObjectError::Mismatch(_))));
    store.import_compressible(id, &text(1, 1_000), &[]).unwrap();
    assert!(location(&store, id).lengths.is_compressed());
}

#[test]
fn a_frame_that_rots_is_damage_whatever_reads_it() {
    let (bytes, other) = (text(1, 30_000), text(2, 30_000));
    let frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    // No frame, one that is cut, one of other bytes, one of a longer object.
    let rotten = [vec![0; 200], frame(&bytes)[..100].to_vec(), frame(&other), frame(&text(3, 40_000))];
    for (n, rotten) in rotten.into_iter().enumerate() {
        for read in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let store = open_compressing(dir.path());
            let id = store.put_compressible(&bytes, &[]).unwrap();
            store.sync().unwrap();
            let rotten = [rotten.clone(), vec![0; 8_000]].concat();
            let room = location(&store, id).lengths.stored as usize;
            overwrite(dir.path(), &store, id, &rotten[..room]);
            match read {
                0 => assert!(matches!(store.get(id), Err(ObjectError::Damaged(_)))),
                1 => assert_eq!(store.scrub(&mut store.begin_scrub(), u64::MAX).unwrap().damaged, [id]),
                // Slices are not verified, but they are never longer than asked for.
                _ => {
                    let slice = store.slice(id, 29_000, 500);
                    assert!(slice.is_ok_and(|slice| slice.len() == 500) || !store.contains(id), "{n}");
                    assert!(store.get(id).is_err());
                }
            }
            assert!(!store.contains(id));
            store.put_compressible(&bytes, &[]).unwrap();
            assert_eq!(store.get(id).unwrap(), bytes);
        }
    }
}

#[test]
fn a_compaction_moves_compressed_objects_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_compressing(dir.path());
    let kept: Vec<_> = (0..4).map(|n| store.put_compressible(&text(n, 20_000), &[]).unwrap()).collect();
    let before: Vec<_> = kept.iter().map(|id| location(&store, *id)).collect();
    let garbage = store.put(&random(9, 50_000), &[]).unwrap();
    put_all(&store, 0..30);
    store.hold(Holder::Checkpoint(ReplicaId(1)), kept.clone());
    kept.iter().chain([&garbage]).for_each(|id| store.unpin(*id));
    let done = store.collect(Scope::All).unwrap();
    assert!(done.segments > 0 && done.moved_bytes < 20_000, "{done:?}");
    for (n, (id, before)) in (0..).zip(kept.iter().zip(before)) {
        let now = location(&store, *id);
        assert!(now.segment != before.segment && now.lengths == before.lengths, "{before:?} to {now:?}");
        assert_eq!(store.get(*id).unwrap(), text(n, 20_000));
    }
    drop(store);
    let store = open(dir.path());
    assert!((0..).zip(&kept).all(|(n, id)| store.get(*id).unwrap() == text(n, 20_000)));
    assert_eq!(store.get(kept[0]).unwrap().len(), 20_000);
}
