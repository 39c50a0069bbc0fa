//! Tests of children: what is reachable stays, what is not goes, over restarts and damage.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
};

use flotilla_types::{Holder, ObjectId, ReplicaId};

use super::{body, open, put_all, segment_files, small};
use crate::{CHILDREN_MAX, ObjectError, ObjectStore, Options, Scope, segment::Format};

const HOLDER: Holder = Holder::Checkpoint(ReplicaId(1));
const OTHER: Holder = Holder::Receiver(ReplicaId(2));

/// Compacts every closed segment of which anything is dead.
fn thorough() -> Options {
    Options { live_percent_min: 100, ..small() }
}

/// Closes the active segment, by objects that are new each time.
fn close(store: &ObjectStore) {
    static NEXT: AtomicU16 = AtomicU16::new(1_000);
    let first = NEXT.fetch_add(4, Ordering::Relaxed);
    put_all(store, first..first + 4);
}

/// Stores an object with children, without a pin.
fn put(store: &ObjectStore, n: u16, children: &[ObjectId]) -> ObjectId {
    let id = store.put(&body(n), children).unwrap();
    store.unpin(id);
    id
}

/// Flips a bit of an object's bytes.
fn damage(dir: &Path, store: &ObjectStore, id: ObjectId) {
    let location = store.index.read().entry(id).unwrap().location;
    let path = crate::load::segment_path(dir, location.segment);
    flip(&path, location.offset);
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn collect(store: &ObjectStore) {
    close(store);
    store.collect(Scope::All).unwrap();
    store.index.read().audit();
}

#[test]
fn a_held_object_holds_what_is_reachable_from_it_until_the_last_hold_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let leaves = [put(&store, 1, &[]), put(&store, 2, &[])];
    let nodes = [put(&store, 3, &leaves), put(&store, 4, &leaves[..1])];
    let root = put(&store, 5, &nodes);
    let garbage = put(&store, 6, &[]);
    store.hold(HOLDER, [root]);
    store.hold(OTHER, [nodes[1]]);
    collect(&store);
    assert!(!store.contains(garbage));
    assert!(leaves.iter().chain(&nodes).all(|id| store.contains(*id)));
    store.let_go(HOLDER);
    collect(&store);
    assert!(!store.contains(root) && !store.contains(nodes[0]) && !store.contains(leaves[1]));
    assert!(store.contains(nodes[1]) && store.contains(leaves[0]));
    store.let_go(OTHER);
    collect(&store);
    assert!(!store.contains(nodes[1]) && !store.contains(leaves[0]));
}

#[test]
fn segments_full_of_small_live_objects_are_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaves: Vec<_> = (0..100u8).map(|n| store.put(&[n; 30], &[]).unwrap()).collect();
    let nodes = leaves.iter().map(|leaf| store.put(leaf.as_bytes(), &[*leaf; 1]).unwrap());
    let roots: Vec<_> = nodes.collect();
    let lists: Vec<_> = (0..9).map(|n| store.put(&[n; 2], &leaves[..60]).unwrap()).collect();
    store.sync().unwrap();
    store.hold(HOLDER, roots.into_iter().chain(lists));
    leaves.iter().for_each(|id| store.unpin(*id));
    assert!(segment_files(dir.path()).len() > 8);
    for _ in 0..3 {
        let done = store.collect(Scope::All).unwrap();
        // One segment was closed early, by the first object with children.
        assert!(done.segments <= 1 && done.moved_bytes < 100, "{done:?}");
    }
    store.index.read().audit();
}

#[test]
fn a_pin_holds_children_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let leaf = put(&store, 1, &[]);
    let root = store.put(&body(2), &[leaf]).unwrap();
    collect(&store);
    assert!(store.contains(leaf));
    store.unpin(root);
    collect(&store);
    assert!(!store.contains(leaf));
}

#[test]
fn an_object_that_arrives_after_it_was_held_holds_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let root = ObjectId::of(&body(3));
    store.hold(HOLDER, [root]);
    let leaf = put(&store, 1, &[]);
    let node = put(&store, 2, &[leaf]);
    put(&store, 3, &[node]);
    collect(&store);
    assert!(store.contains(root) && store.contains(node) && store.contains(leaf));
    // What is held before it arrives stays as well.
    let late = ObjectId::of(&body(4));
    let parent = put(&store, 5, &[late]);
    store.hold(OTHER, [parent]);
    put(&store, 4, &[]);
    collect(&store);
    assert!(store.contains(late));
}

#[test]
fn a_damaged_object_holds_its_children_until_it_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let leaf = put(&store, 1, &[]);
    let root = put(&store, 2, &[leaf]);
    store.hold(HOLDER, [root]);
    store.sync().unwrap();
    damage(dir.path(), &store, root);
    assert!(matches!(store.get(root), Err(ObjectError::Damaged(_))));
    collect(&store);
    assert!(!store.contains(root) && store.contains(leaf));
    // To repair it takes only the object itself.
    put(&store, 2, &[leaf]);
    collect(&store);
    assert!(store.get(root).is_ok() && store.get(leaf).is_ok());
    damage(dir.path(), &store, root);
    assert!(store.get(root).is_err());
    store.let_go(HOLDER);
    collect(&store);
    assert!(!store.contains(leaf));
}

#[test]
fn children_survive_restarts_with_and_without_a_table_of_contents_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let leaf = put(&store, 1, &[]);
    let node = put(&store, 2, &[leaf]);
    let root = put(&store, 3, &[node]);
    close(&store);
    drop(store);
    for round in 0..4 {
        if round % 2 == 1 {
            // The tables of contents are damaged.
            segment_files(dir.path()).iter().for_each(|path| flip(path, fs::metadata(path).unwrap().len() - 1));
        }
        let store = ObjectStore::open(dir.path(), thorough()).unwrap();
        store.hold(HOLDER, [root]);
        collect(&store);
        assert!([leaf, node, root].iter().all(|id| store.get(*id).is_ok()), "round {round}");
        assert_eq!(store.index.read().children(root), [node]);
    }
}

#[test]
fn hostile_lists_of_children_are_bounded_and_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let many: Vec<_> = (0..100_000u32).map(|n| ObjectId::of(&n.to_le_bytes())).collect();
    let id = ObjectId::of(b"parent");
    let refused = store.import(id, b"parent", &many);
    assert!(matches!(refused, Err(ObjectError::TooManyChildren { children: 100_000, .. })));
    assert_eq!(store.usage().objects, 0);
    store.import(id, b"parent", &many[..CHILDREN_MAX]).unwrap();
    assert!(store.index.read().is_held(many[CHILDREN_MAX - 1]));
    // More than the limit together with what is known.
    assert!(matches!(store.import(id, b"parent", &many[1..=CHILDREN_MAX]), Err(ObjectError::TooManyChildren { .. })));
    store.unpin(id);
    assert!(!store.index.read().is_held(many[0]));
    // The object itself, and one child often.
    let leaf = put(&store, 1, &[]);
    let own = ObjectId::of(&body(2));
    put(&store, 2, &[vec![leaf; 100_000], vec![own; 3]].concat());
    store.hold(HOLDER, [own]);
    store.index.read().audit();
    store.let_go(HOLDER);
    collect(&store);
    assert!(!store.contains(own) && !store.contains(leaf));
}

#[test]
fn a_circle_of_children_ends_no_worse_than_as_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let (first, second) = (ObjectId::of(&body(1)), ObjectId::of(&body(2)));
    put(&store, 1, &[second]);
    put(&store, 2, &[first]);
    store.hold(HOLDER, [first]);
    store.let_go(HOLDER);
    store.index.read().nodes.iter().for_each(|(_, node)| assert!(node.holds <= 2));
    store.sync().unwrap();
    drop(store);
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    collect(&store);
    assert_eq!((store.contains(first), store.contains(second)), (false, false));
}

#[test]
fn a_long_chain_is_held_and_released_without_recursion() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), Options { segment_bytes: 1 << 20, ..thorough() }).unwrap();
    let mut last = ObjectId::of(b"absent");
    for n in 0..50_000u32 {
        let id = store.put(&n.to_le_bytes(), &[last]).unwrap();
        store.hold(HOLDER, [id]);
        store.unpin(id);
        last = id;
    }
    store.sync().unwrap();
    let of_first = ObjectId::of(&0u32.to_le_bytes());
    assert!(store.index.read().is_held(of_first));
    store.let_go(HOLDER);
    assert!(!store.index.read().is_held(of_first));
    store.collect(Scope::All).unwrap();
    assert!(!store.contains(of_first));
    store.index.read().audit();
}

#[test]
fn children_that_were_not_known_are_added_durably() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let leaves = [put(&store, 1, &[]), put(&store, 2, &[])];
    let root = put(&store, 3, &leaves[..1]);
    store.sync().unwrap();
    put(&store, 3, &leaves[1..]);
    assert!(store.contains(root), "the copy with fewer children counts until the other one is durable");
    put(&store, 3, &[]);
    store.sync().unwrap();
    store.index.read().audit();
    drop(store);
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    store.hold(HOLDER, [root]);
    collect(&store);
    assert!(leaves.iter().all(|id| store.contains(*id)));
}

fn versions(dir: &Path) -> Vec<u8> {
    segment_files(dir).iter().map(|path| fs::read(path).unwrap()[8]).collect()
}

#[test]
fn older_binaries_read_every_segment_until_an_object_has_children() {
    let dir = tempfile::tempdir().unwrap();
    put_all(&open(dir.path()), 0..4);
    let store = open(dir.path());
    put_all(&store, 4..8);
    assert_eq!(versions(dir.path()), [1, 1, 1, 1]);
    let bytes: u64 = segment_files(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert_eq!(bytes, 4 * 16 + 8 * 1044, "no table of contents follows the records");
    store.put(b"parent", &[ObjectId::of(b"child")]).unwrap();
    assert_eq!(versions(dir.path()), [1, 1, 1, 1, 2]);
    store.sync().unwrap();
    drop(store);
    put_all(&open(dir.path()), 10..11);
    assert_eq!(versions(dir.path()), [1, 1, 1, 1, 2, 2], "also after a restart");
}

#[test]
fn an_open_reads_the_table_of_contents_instead_of_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put(&store, 1, &[ObjectId::of(b"child")]);
    close(&store);
    let usage = store.usage();
    drop(store);
    let header_at = Format::V2([0; 8]).segment_header_bytes();
    let first = segment_files(dir.path()).remove(0);
    flip(&first, header_at + 5);
    let store = open(dir.path());
    assert_eq!(store.get(id).unwrap(), body(1), "its header is not read");
    assert_eq!(store.index.read().children(id), [ObjectId::of(b"child")]);
    // The active segment got its table when it was found.
    assert!(store.usage().disk_bytes > usage.disk_bytes);
    drop(store);
    // Without the table the record is lost, and the next open has a table again.
    flip(&first, fs::metadata(&first).unwrap().len() - 1);
    assert!(!open(dir.path()).contains(id));
    flip(&first, header_at + 5);
    assert!(!open(dir.path()).contains(id));
}

#[test]
fn a_copy_that_an_interrupted_compaction_left_damaged_does_not_hide_the_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = put_all(&open(first.path()), 1..2)[0];
    put_all(&open(second.path()), 1..3);
    for (from, number) in [(&first, 1), (&second, 2)] {
        fs::copy(&segment_files(from.path())[0], crate::load::segment_path(dir.path(), number)).unwrap();
    }
    let copy = crate::load::segment_path(dir.path(), 2);
    for is_damaged in [true, false] {
        // The first round damages the copy, the second one repairs it and damages the original.
        flip(&copy, 16 + 44 + 100);
        if !is_damaged {
            flip(&crate::load::segment_path(dir.path(), 1), 16 + 44 + 100);
        }
        let store = open(dir.path());
        assert_eq!(store.get(id).unwrap(), body(1));
        store.hold(HOLDER, [id]);
        store.index.read().audit();
        let used = store.index.read().entry(id).unwrap().location.segment;
        assert_eq!(used, if is_damaged { 1 } else { 2 });
    }
}

#[test]
fn a_segment_that_gets_no_table_of_contents_is_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ids: Vec<_> = (0..3).map(|n| put(&store, n, &[ObjectId::of(b"child")])).collect();
    store.sync().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(0);
    let bytes = fs::metadata(&path).unwrap().len();
    let read_only = fs::File::open(&path).unwrap();
    assert_eq!(crate::load::add_footer(&read_only, Format::V2([0; 8]), &[], bytes, 1), 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
    // Part of one, as a full disk leaves it.
    fs::File::options().append(true).open(&path).unwrap().write_all(b"FLOTEND").unwrap();
    let store = open(dir.path());
    assert!(ids.iter().all(|id| store.get(*id).is_ok() && !store.index.read().children(*id).is_empty()));
}

/// Threads store and hold trees, let go of them and read, while others sync and collect.
#[test]
fn trees_stay_whole_while_segments_are_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), thorough()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let workers = (0..3).map(|worker| {
            let store = &store;
            threads.spawn(move || {
                let holder = Holder::Checkpoint(ReplicaId(worker));
                for round in 0..40u16 {
                    // Some leaves are shared with other workers and earlier rounds.
                    let leaves: Vec<_> = (0..3).map(|n| (round / 4 + n) * 7 % 23).collect();
                    let ids: Vec<_> = leaves.iter().map(|n| store.put(&body(*n), &[]).unwrap()).collect();
                    let node = [worker.to_le_bytes(), u64::from(round).to_le_bytes()].concat();
                    let root = store.put(&node, &ids).unwrap();
                    store.sync().unwrap();
                    store.hold(holder, [root]);
                    ids.iter().chain([&root]).for_each(|id| store.unpin(*id));
                    for (id, n) in ids.iter().zip(leaves) {
                        assert_eq!(store.get(*id).unwrap(), body(n));
                    }
                    assert_eq!(store.get(root).unwrap(), node);
                }
            })
        });
        let workers: Vec<_> = workers.collect();
        threads.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                store.collect(Scope::All).unwrap();
            }
        });
        let ended: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_done.store(true, Ordering::Release);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    store.index.read().audit();
    for worker in 0..3 {
        store.let_go(Holder::Checkpoint(ReplicaId(worker)));
    }
    collect(&store);
    collect(&store);
    assert!((0..23).all(|n| !store.contains(ObjectId::of(&body(n)))));
}
