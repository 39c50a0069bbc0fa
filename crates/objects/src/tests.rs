//! Tests of the store on real files: durability, damage, holds, collection.

mod children;
mod compression;
mod histories;
mod scrub;
mod space;
mod uploads;

use std::{fs, io, path::Path, sync::atomic::Ordering};

use flotilla_types::{Holder, ObjectId, ReplicaId};
use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};

use crate::{ObjectError, ObjectStore, Options, Scope};

/// Segments of three or four objects of 1,000 bytes.
pub(crate) fn small() -> Options {
    Options { segment_bytes: 4096, object_bytes_max: 2000, ..Options::default() }
}

pub(crate) fn open(dir: &Path) -> ObjectStore {
    ObjectStore::open(dir, small()).unwrap()
}

pub(crate) fn body(n: u16) -> Vec<u8> {
    n.to_le_bytes().repeat(500)
}

pub(crate) fn put_all(store: &ObjectStore, numbers: std::ops::Range<u16>) -> Vec<ObjectId> {
    let ids = numbers.map(|n| store.put(&body(n), &[]).unwrap()).collect();
    store.sync().unwrap();
    ids
}

pub(crate) fn segment_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn an_object_is_contained_only_after_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = store.put(b"x", &[]).unwrap();
    assert!(!store.contains(id) && !store.pin(id));
    assert_eq!(&store.get(id).unwrap()[..], b"x");
    store.sync().unwrap();
    assert!(store.contains(id) && store.pin(id));
}

#[test]
fn equal_objects_are_stored_once_and_pinned_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..1);
    let before = store.usage();
    assert_eq!(store.put(&body(0), &[]).unwrap(), ids[0]);
    assert_eq!(store.usage(), before);
    put_all(&store, 1..9);
    store.unpin(ids[0]);
    store.collect(Scope::All).unwrap();
    assert!(store.contains(ids[0]));
}

#[test]
fn objects_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let ids = put_all(&open(dir.path()), 0..20);
    let store = open(dir.path());
    for (n, id) in ids.iter().enumerate() {
        assert!(store.contains(*id));
        assert_eq!(store.get(*id).unwrap(), body(n as u16));
    }
    let more = put_all(&store, 20..21);
    drop(store);
    assert!(open(dir.path()).contains(more[0]));
}

#[test]
fn wrong_bytes_and_large_objects_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = ObjectId::of(b"right");
    assert!(matches!(store.import(id, b"wrong", &[]), Err(ObjectError::Mismatch(other)) if other == id));
    assert!(matches!(store.put(&[0; 2001], &[]), Err(ObjectError::TooLarge { bytes: 2001, bytes_max: 2000 })));
    assert!(matches!(store.get(id), Err(ObjectError::Missing(_))));
    store.import(id, b"right", &[]).unwrap();
    assert_eq!(&store.get(id).unwrap()[..], b"right");
}

#[test]
fn a_torn_tail_is_truncated_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ids = put_all(&open(dir.path()), 0..2);
    let file = &segment_files(dir.path())[0];
    let whole = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(whole - 1).unwrap();
    let store = open(dir.path());
    assert!(store.contains(ids[0]) && !store.contains(ids[1]));
    assert_eq!(fs::metadata(file).unwrap().len(), 16 + 44 + 1000);
}

#[test]
fn a_flipped_bit_is_detected_and_healed_by_storing_the_object_again() {
    let dir = tempfile::tempdir().unwrap();
    let ids = put_all(&open(dir.path()), 0..3);
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    bytes[16 + 1044 + 44 + 17] ^= 0x40;
    bytes[16 + 2 * 1044 + 44 + 17] ^= 0x40;
    fs::write(file, bytes).unwrap();

    let store = open(dir.path());
    assert!(matches!(store.get(ids[1]), Err(ObjectError::Damaged(id)) if id == ids[1]));
    assert!(!store.contains(ids[1]) && store.contains(ids[0]));
    // The damage of the third object is not detected yet: storing it again must not rely on the damaged copy.
    store.put(&body(1), &[]).unwrap();
    store.put(&body(2), &[]).unwrap();
    store.sync().unwrap();
    assert_eq!(store.get(ids[1]).unwrap(), body(1));
    assert_eq!(store.get(ids[2]).unwrap(), body(2));
}

#[test]
fn collection_keeps_pinned_rooted_and_unsynced_objects() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..30);
    let rooted: Vec<_> = ids.iter().copied().step_by(7).collect();
    store.hold(Holder::Checkpoint(ReplicaId(1)), rooted.clone());
    for id in ids.iter().skip(1) {
        store.unpin(*id);
    }
    let unsynced: Vec<_> = (100..110).map(|n| store.put(&body(n), &[]).unwrap()).collect();
    unsynced.iter().for_each(|id| store.unpin(*id));
    let before = store.usage();
    let done = store.collect(Scope::All).unwrap();
    // Ten segments of three objects; every other one has a held object to copy first.
    assert!(done.segments >= 9 && done.moved_bytes >= 5 * 1000, "{done:?}");
    assert!(store.usage().disk_bytes < before.disk_bytes);
    for id in rooted.iter().chain(&unsynced).chain(&ids[..1]) {
        assert!(store.get(*id).is_ok());
    }
    assert!(matches!(store.get(ids[1]), Err(ObjectError::Missing(_))));
    drop(store);
    let store = open(dir.path());
    assert!(rooted.iter().all(|id| store.get(*id).is_ok()));
}

#[test]
fn a_collection_since_open_keeps_objects_of_earlier_runs() {
    let dir = tempfile::tempdir().unwrap();
    let old = put_all(&open(dir.path()), 0..10);
    let store = open(dir.path());
    let new = put_all(&store, 10..20);
    new.iter().for_each(|id| store.unpin(*id));
    store.collect(Scope::SinceOpen).unwrap();
    assert!(old.iter().all(|id| store.contains(*id)) && !store.contains(new[0]));
    store.collect(Scope::All).unwrap();
    assert!(!store.contains(old[0]));
}

#[test]
fn a_failed_fsync_poisons_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put_all(&store, 0..1)[0];
    store.put(b"next", &[]).unwrap();
    store.fail_next_sync.store(true, Ordering::Release);
    assert!(store.check_healthy().is_ok());
    assert!(matches!(store.sync(), Err(ObjectError::Poisoned(_))));
    assert!(store.check_healthy().is_err());
    assert!(matches!(store.sync(), Err(ObjectError::Poisoned(_))));
    assert!(matches!(store.put(b"y", &[]), Err(ObjectError::Poisoned(_))));
    assert!(matches!(store.get(id), Err(ObjectError::Poisoned(_))));
    assert!(!store.contains(id) && !store.pin(id));
}

#[test]
fn an_exhausted_process_closes_files_of_its_own_before_a_read_or_a_write_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..9);
    assert!(segment_files(dir.path()).len() > 2);
    let get = |n: usize| store.get(ids[n]).map(drop);
    // With no file of its own to close, the store reports the error and stays as it was.
    store.opens_to_fail.store(1, Ordering::Release);
    assert!(matches!(get(0), Err(ObjectError::Io(_))));
    get(0).unwrap();
    store.opens_to_fail.store(1, Ordering::Release);
    get(4).unwrap();
    store.opens_to_fail.store(1, Ordering::Release);
    put_all(&store, 9..14);
    assert!(store.check_healthy().is_ok());
}

/// How often the kernel is asked to drop pages until it does.
pub(crate) const TRIES: u32 = 100;

/// Drops a segment's pages from the page cache, unless the kernel uses them at that moment. Returns whether the file
/// system can say what is in it: it is asked for nothing, at the end of the file, since a question for a page makes
/// the kernel read that.
fn evict(path: &Path) -> bool {
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    let bytes = file.metadata().unwrap().len();
    let knows = preadv2(&file, &mut [io::IoSliceMut::new(&mut [0])], bytes, ReadWriteFlags::NOWAIT);
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    !matches!(knows, Err(Errno::OPNOTSUPP))
}

#[test]
fn a_slice_that_must_not_wait_comes_from_the_page_cache_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), Options::default()).unwrap();
    let bytes = vec![7; 300_000];
    let id = store.put(&bytes, &[]).unwrap();
    store.sync().unwrap();
    assert_eq!(store.slice_in_memory(id, 0, 10), None, "the file was not opened yet");
    assert_eq!(store.slice_in_memory(ObjectId::of(b"absent"), 0, 10), None);
    assert_eq!(store.slice(id, 100, 4_096).unwrap().len(), 4_096);
    let segment = &segment_files(dir.path())[0];
    if evict(segment) {
        let is_out = (0..TRIES).any(|_| evict(segment) && store.slice_in_memory(id, 200_000, 4_096).is_none());
        assert!(is_out, "it is on the disk only");
        assert_eq!(store.slice(id, 200_000, 4_096).unwrap(), bytes[..4_096]);
        assert_eq!(store.slice_in_memory(id, 200_000, 4_096).unwrap(), bytes[..4_096]);
        assert_eq!(store.slice(id, 299_999, 4_096).unwrap().len(), 1);
        assert_eq!(store.slice_in_memory(id, 299_999, 4_096).unwrap().len(), 1);
    }
}

#[test]
fn an_error_names_the_file_and_keeps_the_systems_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..1);
    store.opens_to_fail.store(1, Ordering::Release);
    let Err(ObjectError::Io(error)) = store.get(ids[0]) else { panic!("an I/O error") };
    assert!(error.to_string().contains(".segment: "), "{error}");
    let source = std::error::Error::source(&*error).and_then(|source| source.downcast_ref::<std::io::Error>());
    assert_eq!(source.and_then(std::io::Error::raw_os_error), Some(rustix::io::Errno::MFILE.raw_os_error()));
}

#[test]
fn dead_segments_are_deleted_before_live_objects_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..12);
    // The first segment is sparse, later ones are dead.
    ids[1..].iter().for_each(|id| store.unpin(*id));
    store.opens_to_fail.store(usize::MAX, Ordering::Release);
    let before = store.usage().segments;
    assert!(store.collect(Scope::All).is_err(), "the sparse segment cannot be copied");
    assert!(store.usage().segments < before, "but dead ones are gone");
}

#[test]
fn objects_of_a_manually_deleted_segment_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put_all(&store, 0..1)[0];
    fs::remove_file(&segment_files(dir.path())[0]).unwrap();
    assert!(matches!(store.get(id), Err(ObjectError::Damaged(_))));
    assert!(!store.contains(id));
}

#[test]
fn readers_never_miss_a_rooted_object_while_segments_are_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..60);
    let rooted: Vec<_> = ids.iter().copied().step_by(5).collect();
    store.hold(Holder::Checkpoint(ReplicaId(1)), rooted.clone());
    ids.iter().for_each(|id| store.unpin(*id));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..20 {
                rooted.iter().for_each(|id| assert!(store.get(*id).is_ok()));
            }
        });
        for _ in 0..5 {
            store.collect(Scope::All).unwrap();
        }
    });
    assert!(!store.contains(ids[1]));
}
