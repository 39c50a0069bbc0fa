//! The scrub on real files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use flotilla_types::{Holder, ObjectId, ReplicaId};
use rustix::fs::{Advice, fadvise};

use super::{TRIES, body, open, put_all, segment_files};
use crate::{ObjectStore, Scope, ScrubPass, Scrubbed, load::segment_path};

const HOLDER: Holder = Holder::Checkpoint(ReplicaId(1));

/// Flips a bit of an object on disk.
fn damage(store: &ObjectStore, dir: &std::path::Path, id: ObjectId) {
    let location = store.index.read().entry(id).unwrap().location;
    let file = File::options().read(true).write(true).open(segment_path(dir, location.segment)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, location.offset + 500).unwrap();
    file.write_all_at(&[byte[0] ^ 4], location.offset + 500).unwrap();
}

/// The rest of a pass, in steps of this many bytes.
fn finish(store: &ObjectStore, pass: &mut ScrubPass, step_bytes: u64) -> Scrubbed {
    let mut all = Scrubbed::default();
    while !all.ended {
        let step = store.scrub(pass, step_bytes).unwrap();
        assert!(step.bytes < step_bytes + 1_100, "a step ends soon after its bound");
        all.objects += step.objects;
        all.bytes += step.bytes;
        all.damaged.extend(step.damaged);
        all.unreadable.extend(step.unreadable);
        all.ended = step.ended;
    }
    let (done, total) = pass.progress_bytes();
    assert_eq!(done, total);
    all
}

#[test]
fn a_pass_finds_every_damaged_object_at_once_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..20);
    let damaged = [ids[2], ids[7], ids[19]];
    damaged.iter().for_each(|id| damage(&store, dir.path(), *id));
    let found = finish(&store, &mut store.begin_scrub(), 1);
    assert_eq!((found.objects, found.damaged), (20, damaged.to_vec()));
    assert!(found.unreadable.is_empty());
    for id in &ids {
        assert_eq!(store.contains(*id), !damaged.contains(id), "a damaged object is missing, without a read");
    }
    assert_eq!(finish(&store, &mut store.begin_scrub(), 5_000).objects, 17);
}

#[test]
fn damaged_objects_are_named_by_holder_until_they_are_stored_again_or_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let child = store.put(&body(1), &[]).unwrap();
    let parent = store.put(&body(2), &[child]).unwrap();
    let other = store.put(&body(3), &[]).unwrap();
    let unneeded = store.put(&body(4), &[]).unwrap();
    store.sync().unwrap();
    store.hold(HOLDER, [parent]);
    store.hold(Holder::Receiver(ReplicaId(2)), [other]);
    [child, parent, other, unneeded].iter().for_each(|id| store.unpin(*id));
    assert_eq!(store.damaged(9), []);
    [child, other, unneeded].iter().for_each(|id| damage(&store, dir.path(), *id));
    assert_eq!(finish(&store, &mut store.begin_scrub(), 1 << 20).damaged.len(), 3);
    assert_eq!(store.damaged(9), [(HOLDER, vec![child]), (Holder::Receiver(ReplicaId(2)), vec![other])]);
    store.import(child, &body(1), &[]).unwrap();
    store.let_go(Holder::Receiver(ReplicaId(2)));
    assert_eq!(store.damaged(9), []);
    // A read finds it as well.
    damage(&store, dir.path(), parent);
    assert!(store.get(parent).is_err());
    assert_eq!(store.damaged(9), [(HOLDER, vec![parent])]);
}

/// What this process has made the disk read, if the kernel counts it.
fn bytes_read_from_disk() -> Option<u64> {
    let counts = fs::read_to_string("/proc/self/io").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

#[test]
fn a_pass_reads_the_disk_and_leaves_the_page_cache_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put_all(&store, 0..1)[0];
    let file = File::open(&segment_files(dir.path())[0]).unwrap();
    // A file system without a page cache that can be dropped, such as tmpfs, has nothing to test.
    let read_in_memory = |expected: bool| store.slice_in_memory(id, 0, 1_000).is_some() == expected;
    store.get(id).unwrap();
    let caches = read_in_memory(true) && {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        read_in_memory(false)
    };
    if caches {
        store.get(id).unwrap();
        let reads_the_disk = (0..TRIES).any(|_| {
            let before = bytes_read_from_disk();
            finish(&store, &mut store.begin_scrub(), 1);
            assert!(read_in_memory(true), "what was in memory is in memory again");
            before.is_none() || bytes_read_from_disk() > before
        });
        assert!(reads_the_disk);
        let leaves_no_pages = (0..TRIES).any(|_| {
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            finish(&store, &mut store.begin_scrub(), 1);
            read_in_memory(false)
        });
        assert!(leaves_no_pages, "a pass over cold objects does not fill the memory");
    }
}

#[test]
fn a_pass_survives_segments_that_are_compacted_or_deleted_and_ends_while_objects_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..60);
    let kept: Vec<_> = ids.iter().copied().step_by(5).collect();
    store.hold(HOLDER, kept.clone());
    let mut pass = store.begin_scrub();
    let first = store.scrub(&mut pass, 1).unwrap();
    assert_eq!((first.objects, first.ended), (1, false));
    ids.iter().for_each(|id| store.unpin(*id));
    store.collect(Scope::All).unwrap();
    assert!(!store.contains(ids[1]), "the segment that the pass is in is gone");
    let mut steps = 0;
    for n in 60.. {
        put_all(&store, n..n + 1);
        let step = store.scrub(&mut pass, 1).unwrap();
        assert_eq!((step.damaged, step.unreadable), (vec![], vec![]));
        steps += 1;
        if step.ended {
            break;
        }
    }
    assert!(steps < 60, "what is stored meanwhile is for the next pass");
    let next = finish(&store, &mut store.begin_scrub(), 4_000);
    assert!(next.damaged.is_empty() && next.objects >= kept.len() as u64 + steps);
}

#[test]
fn objects_of_a_file_that_vanished_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..2);
    fs::remove_file(&segment_files(dir.path())[0]).unwrap();
    assert_eq!(finish(&store, &mut store.begin_scrub(), 1 << 20).damaged, ids);
}

#[test]
fn a_step_that_cannot_open_its_segment_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put_all(&store, 0..3);
    let mut pass = store.begin_scrub();
    store.opens_to_fail.store(usize::MAX, std::sync::atomic::Ordering::Release);
    assert!(store.scrub(&mut pass, 1).is_err());
    store.opens_to_fail.store(0, std::sync::atomic::Ordering::Release);
    assert_eq!(finish(&store, &mut pass, 1_000).objects, 3);
}

#[test]
fn objects_that_move_before_their_segment_is_opened_are_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids = put_all(&store, 0..12);
    store.hold(HOLDER, [ids[0]]);
    let mut pass = store.begin_scrub();
    store.opens_to_fail.store(usize::MAX, std::sync::atomic::Ordering::Release);
    assert!(store.scrub(&mut pass, 1).is_err(), "its objects are listed by now");
    store.opens_to_fail.store(0, std::sync::atomic::Ordering::Release);
    ids.iter().for_each(|id| store.unpin(*id));
    store.collect(Scope::All).unwrap();
    assert!(segment_files(dir.path())[0] != segment_path(dir.path(), 1), "the segment is gone");
    assert_eq!(finish(&store, &mut pass, 1_000).damaged, []);
    assert!(store.contains(ids[0]));
}
