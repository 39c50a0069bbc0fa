//! Space comes back: what is let go, in bounded steps, and how much of it the disk keeps meanwhile.

use std::{fs, path::Path};

use flotilla_types::{Holder, ObjectId, ReplicaId};

use crate::{ObjectStore, Options, Scope};

const HOLDER: Holder = Holder::Checkpoint(ReplicaId(1));

fn file_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Pieces of random bytes, of 4 to 28 KiB, and what names them.
fn put_value(store: &ObjectStore, round: u64, bytes: usize) -> ObjectId {
    let mut value = vec![0; bytes];
    blake3::Hasher::new().update(&round.to_le_bytes()).finalize_xof().fill(&mut value);
    let (mut rest, mut pieces) = (&value[..], Vec::new());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(4_096 + 96 * usize::from(rest[0])));
        pieces.push(store.put_compressible(piece, &[]).unwrap());
        rest = after;
    }
    let list: Vec<u8> = pieces.iter().flat_map(|id| id.0).collect();
    let root = store.put_compressible(&list, &pieces).unwrap();
    store.sync().unwrap();
    store.hold(HOLDER, [root]);
    pieces.iter().chain([&root]).for_each(|id| store.unpin(*id));
    root
}

/// The default bounds, and a value of 64 MiB, at a sixty-fourth.
#[test]
fn a_value_that_is_overwritten_again_and_again_takes_less_than_three_times_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let segment_bytes = Options::default().segment_bytes / 64;
    let store = ObjectStore::open(dir.path(), Options { segment_bytes, ..Options::default() }).unwrap();
    store.allow_compression();
    let bytes = 1 << 20;
    for round in 0..40 {
        let root = put_value(&store, round, bytes);
        let most = file_bytes(dir.path());
        assert!(most < 3 * bytes as u64, "{most} bytes in round {round}");
        store.collect(Scope::All).unwrap();
        assert!(store.children(root).iter().chain([&root]).all(|id| store.contains(*id)));
        assert!(file_bytes(dir.path()) < 2 * bytes as u64);
    }
    assert_eq!(store.usage().disk_bytes, file_bytes(dir.path()));
}

#[test]
fn many_small_objects_that_are_let_go_leave_only_the_active_segment() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    let store = ObjectStore::open(dir.path(), options.clone()).unwrap();
    let ids: Vec<_> = (0..20_000_u32).map(|n| store.put(&n.to_le_bytes().repeat(20), &[]).unwrap()).collect();
    let root = store.put(b"all", &ids).unwrap();
    store.sync().unwrap();
    store.hold(HOLDER, [root]);
    ids.iter().chain([&root]).for_each(|id| store.unpin(*id));
    let before = file_bytes(dir.path());
    store.collect(Scope::All).unwrap();
    assert_eq!(file_bytes(dir.path()), before, "without garbage nothing is moved");
    store.let_go(HOLDER);
    let done = store.collect(Scope::All).unwrap();
    assert_eq!((done.moved_bytes, done.freed_bytes), (0, before - file_bytes(dir.path())));
    assert!(file_bytes(dir.path()) <= options.segment_bytes + (1 << 20), "{} bytes", file_bytes(dir.path()));
    assert_eq!(store.usage().segments, fs::read_dir(dir.path()).unwrap().count() as u64);
    store.index.read().audit();
}

#[test]
fn holds_end_a_bounded_number_at_a_time_and_what_waits_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path(), Options::default()).unwrap();
    let ids: Vec<_> = (0..100_u8).map(|n| store.put(&[n], &[]).unwrap()).collect();
    let root = store.put(b"all", &ids).unwrap();
    store.hold(HOLDER, [root]);
    ids.iter().chain([&root]).for_each(|id| store.unpin(*id));
    let held = || ids.iter().filter(|id| store.index.read().is_held(**id)).count();
    store.index.write().hold(HOLDER, std::iter::empty());
    assert_eq!(held(), 100);
    assert!(store.index.write().end_holds(11), "there are more");
    store.index.read().audit();
    assert_eq!(held(), 90);
    // Held again before its hold has ended, an object stays.
    let again = *ids.iter().find(|id| store.index.read().is_held(**id)).unwrap();
    store.hold(HOLDER, [again]);
    assert_eq!(held(), 1, "any change ends the others");
    store.index.read().audit();
}
