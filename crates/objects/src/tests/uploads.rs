//! Uploads: what they hold, for how long, and how much.

use std::{
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use flotilla_types::{Holder, ObjectId};

use super::{body, put_all, segment_files, small};
use crate::{MISSING_MAX, ObjectStore, Options, Scope, UPLOAD_TIME_MAX, UploadBounds, UploadError, UploadUsage};

const MINUTE: Duration = Duration::from_secs(60);

/// Compacts every closed segment of which anything is dead.
fn open_with(dir: &Path, uploads: UploadBounds) -> ObjectStore {
    ObjectStore::open(dir, Options { live_percent_min: 100, uploads, ..small() }).unwrap()
}

fn open(dir: &Path) -> ObjectStore {
    open_with(dir, UploadBounds::default())
}

fn ids(numbers: std::ops::Range<u16>) -> Vec<ObjectId> {
    numbers.map(|n| ObjectId::of(&body(n))).collect()
}

/// Stores objects that nobody holds.
fn put_unheld(store: &ObjectStore, numbers: std::ops::Range<u16>) -> Vec<ObjectId> {
    let ids = put_all(store, numbers);
    ids.iter().for_each(|id| store.unpin(*id));
    ids
}

/// Closes the active segment and collects.
fn collect(store: &ObjectStore, filler: u16) {
    put_all(store, filler..filler + 4);
    store.collect(Scope::All).unwrap();
    store.index.read().audit();
}

#[test]
fn an_answer_names_what_is_absent_and_the_rest_stays_until_the_upload_ends() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let here = put_unheld(&store, 0..4);
    store.begin_upload(7, now, MINUTE).unwrap();
    let asked: Vec<_> = ids(2..6).into_iter().chain(ids(2..6)).collect();
    assert_eq!(store.need(7, now, &asked).unwrap(), ids(4..6), "each once, in their order");
    collect(&store, 100);
    assert_eq!(
        ids(0..6).iter().map(|id| store.contains(*id)).collect::<Vec<_>>(),
        [false, false, true, true, false, false]
    );
    // What was absent is held as soon as it is asked for again.
    put_all(&store, 4..6);
    assert_eq!(store.need(7, now, &ids(4..6)).unwrap(), []);
    ids(4..6).iter().for_each(|id| store.unpin(*id));
    collect(&store, 110);
    assert!(ids(2..6).iter().all(|id| store.contains(*id)));
    assert_eq!(store.upload_usage().objects, 4);
    store.let_go(Holder::Upload(7));
    assert_eq!(store.upload_usage(), UploadUsage::default());
    collect(&store, 120);
    assert!(here.iter().chain(&ids(4..6)).all(|id| !store.contains(*id)));
}

#[test]
fn an_upload_ends_at_its_deadline_unless_it_is_renewed() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let here = put_unheld(&store, 0..1);
    for upload in [1, 2] {
        store.begin_upload(upload, now, MINUTE).unwrap();
        assert_eq!(store.need(upload, now, &here).unwrap(), []);
    }
    let later = now + MINUTE - Duration::from_nanos(1);
    store.renew_upload(2, later, MINUTE).unwrap();
    assert_eq!(store.need(1, later, &here).unwrap(), []);
    let end = now + MINUTE;
    assert!(matches!(store.need(1, end, &here), Err(UploadError::Ended(1))));
    assert!(matches!(store.renew_upload(1, end, MINUTE), Err(UploadError::Ended(1))));
    collect(&store, 100);
    assert!(store.contains(here[0]), "the other upload goes on");
    store.end_due_uploads(later + MINUTE);
    collect(&store, 110);
    assert!(!store.contains(here[0]));
    // An upload that begins again holds nothing of before, and none lasts for ever.
    store.begin_upload(1, end, Duration::MAX).unwrap();
    assert_eq!(store.need(1, end, &here).unwrap(), here);
    assert!(matches!(store.need(1, end + UPLOAD_TIME_MAX, &[]), Err(UploadError::Ended(1))));
}

#[test]
fn beginning_again_before_the_deadline_keeps_what_is_held() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let here = put_unheld(&store, 0..1);
    store.begin_upload(1, now, MINUTE).unwrap();
    assert_eq!(store.need(1, now, &here).unwrap(), []);
    store.begin_upload(1, now + MINUTE / 2, MINUTE).unwrap();
    store.end_due_uploads(now + MINUTE);
    collect(&store, 100);
    assert!(store.contains(here[0]));
}

#[test]
fn what_is_absent_below_an_object_that_is_here_is_named_too() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let absent = ObjectId::of(b"absent");
    let chunks = put_unheld(&store, 0..2);
    let list = store.put(b"list", &[chunks[0], chunks[1], absent]).unwrap();
    let root = store.put(b"root", &[list, chunks[0]]).unwrap();
    store.sync().unwrap();
    [list, root].iter().for_each(|id| store.unpin(*id));
    store.begin_upload(1, now, MINUTE).unwrap();
    assert_eq!(store.need(1, now, &[root, absent]).unwrap(), [absent]);
    collect(&store, 100);
    assert!([root, list, chunks[0], chunks[1]].iter().all(|id| store.contains(*id)));
    // It is held by what needs it as soon as it is stored.
    store.put(b"absent", &[]).unwrap();
    store.unpin(absent);
    store.sync().unwrap();
    collect(&store, 110);
    assert!(store.contains(absent));
    assert_eq!(store.need(1, now, &[root]).unwrap(), [], "one id stands for the whole value");
}

/// More objects than are looked at in one go, some of them missing.
#[test]
fn values_of_many_pieces_are_answered_in_parts() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = ObjectStore::open(dir.path(), Options::default()).unwrap();
    let piece = |n: u32| ObjectId::of(&n.to_le_bytes());
    let mut roots = Vec::new();
    for value in 0..40_u32 {
        let pieces: Vec<_> = (0..1_000).map(|n| piece(value * 1_000 + n)).collect();
        // The last piece of each is missing.
        for n in 0..999 {
            store.put(&(value * 1_000 + n).to_le_bytes(), &[]).unwrap();
        }
        roots.push(store.put(&[value as u8; 9], &pieces).unwrap());
    }
    store.sync().unwrap();
    store.begin_upload(1, now, MINUTE).unwrap();
    let missing: Vec<_> = (0..40).map(|value| piece(value * 1_000 + 999)).collect();
    assert_eq!(store.need(1, now, &roots).unwrap(), missing);
    assert_eq!(store.upload_usage().objects, 40);
}

#[test]
fn an_answer_is_bounded() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let many: Vec<_> = (0..MISSING_MAX as u32 + 5).map(|n| ObjectId::of(&n.to_le_bytes())).collect();
    store.begin_upload(1, now, MINUTE).unwrap();
    assert_eq!(store.need(1, now, &many).unwrap(), many[..MISSING_MAX]);
    assert_eq!(store.index.read().nodes.len(), 0, "what is absent takes no memory");
}

#[test]
fn uploads_are_bounded_by_number_objects_and_bytes() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let bounds = UploadBounds { uploads_max: 9, objects_max: 32, bytes_max: 20_000 };
    let store = open_with(dir.path(), bounds);
    let large = put_unheld(&store, 0..20);
    let small: Vec<_> = (0..40_u8).map(|n| store.put(&[n], &[]).unwrap()).collect();
    store.sync().unwrap();
    (0..9).for_each(|upload| store.begin_upload(upload, now, MINUTE).unwrap());
    assert!(matches!(store.begin_upload(9, now, MINUTE), Err(UploadError::TooManyUploads(9))));
    store.begin_upload(8, now, MINUTE).unwrap();
    // Each upload has an eighth: 4 objects, or 2,500 bytes.
    assert_eq!(store.need(0, now, &large[..2]).unwrap(), []);
    assert!(matches!(store.need(0, now, &large[1..3]), Err(UploadError::Full { objects: 2, .. })));
    assert_eq!(store.need(0, now, &large[..2]).unwrap(), [], "what it holds already costs nothing");
    assert!(store.need(1, now, &small[..6]).is_err());
    assert_eq!(store.upload_usage().objects, 6);
    for upload in 2..8 {
        store.need(upload, now, &small[4 * upload as usize..][..4]).unwrap();
    }
    store.need(8, now, &small[32..34]).unwrap();
    assert_eq!(store.upload_usage().objects, 32, "all that may be held");
    assert!(matches!(store.need(0, now, &small[..1]), Err(UploadError::Full { objects: 32, .. })));
    store.index.read().audit();
    // What a refused call came to is held, the rest is not.
    small.iter().for_each(|id| store.unpin(*id));
    collect(&store, 100);
    assert!(large[..2].iter().chain(&small[..4]).all(|id| store.contains(*id)));
    assert!(!store.contains(large[2]) && !store.contains(small[4]));
    store.end_due_uploads(now + MINUTE);
    assert_eq!(store.upload_usage(), UploadUsage::default());
    store.begin_upload(9, now, MINUTE).unwrap();
    store.need(9, now, &small[..4]).unwrap();
}

#[test]
fn bytes_of_all_uploads_are_bounded() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open_with(dir.path(), UploadBounds { bytes_max: 9_000, ..UploadBounds::default() });
    let here = put_unheld(&store, 0..9);
    for (upload, id) in (0..9).zip(&here) {
        store.begin_upload(upload, now, MINUTE).unwrap();
        let answer = store.need(upload, now, &[*id]);
        assert_eq!(answer.is_ok(), upload < 8, "records of 1,068 bytes; an eighth is 1,125");
    }
    assert_eq!(store.upload_usage().objects, 8);
}

#[test]
fn an_upload_does_not_outlive_the_process() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let here = put_unheld(&store, 0..4);
    store.begin_upload(1, now, MINUTE).unwrap();
    store.need(1, now, &here).unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(matches!(store.need(1, now, &here), Err(UploadError::Ended(1))));
    collect(&store, 100);
    assert!(here.iter().all(|id| !store.contains(*id)));
}

#[test]
fn a_damaged_object_of_an_upload_is_named_and_can_be_stored_again() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let here = put_unheld(&store, 0..1);
    store.begin_upload(1, now, MINUTE).unwrap();
    store.need(1, now, &here).unwrap();
    std::fs::write(&segment_files(dir.path())[0], b"").unwrap();
    assert!(store.get(here[0]).is_err());
    assert_eq!(store.damaged(9), [(Holder::Upload(1), here.clone())]);
    assert_eq!(store.need(1, now, &here).unwrap(), here);
    store.put(&body(0), &[]).unwrap();
    assert_eq!(store.damaged(9), []);
    assert_eq!(store.need(1, now, &here).unwrap(), []);
    assert_eq!(store.upload_usage().objects, 1);
}

#[test]
fn an_object_of_an_earlier_run_is_here_only_if_it_is_intact() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let chunks = put_unheld(&store, 0..8);
    let root = store.put(b"root", &chunks).unwrap();
    store.sync().unwrap();
    drop(store);
    // Power was lost before the disk had the bytes of these.
    let store = open(dir.path());
    for rotten in [chunks[1], chunks[5]] {
        let location = store.index.read().entry(rotten).unwrap().location;
        let path = crate::load::segment_path(dir.path(), location.segment);
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(&[0; 1_000], location.offset).unwrap();
    }
    store.begin_upload(1, now, MINUTE).unwrap();
    let asked = [&chunks[5..], &[root]].concat();
    assert_eq!(store.need(1, now, &asked).unwrap(), [chunks[5], chunks[1]]);
    assert_eq!(store.upload_usage().objects, 3);
    collect(&store, 100);
    assert!(store.contains(root) && !store.contains(chunks[1]));
}

#[test]
fn a_store_that_refuses_work_says_so() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    store.put(b"x", &[]).unwrap();
    store.begin_upload(1, now, MINUTE).unwrap();
    store.fail_next_sync.store(true, Ordering::Release);
    store.sync().unwrap_err();
    assert!(matches!(store.need(1, now, &[]), Err(UploadError::Store(_))));
    assert!(matches!(store.begin_upload(2, now, MINUTE), Err(UploadError::Store(_))));
}

/// While others collect, what an answer did not name is there until the upload ends.
#[test]
fn nothing_is_collected_between_an_answer_and_its_use() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let store = open(dir.path());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let workers = (0..3_u64).map(|worker| {
            let store = &store;
            threads.spawn(move || {
                for round in 0..60_u64 {
                    let upload = worker << 32 | round;
                    store.begin_upload(upload, now, MINUTE).unwrap();
                    let from = (round % 7) as u16 * 3;
                    let wanted = ids(from..from + 9);
                    let missing = store.need(upload, now, &wanted).unwrap();
                    for (n, id) in (from..).zip(&wanted) {
                        if missing.contains(id) {
                            store.put(&body(n), &[]).unwrap();
                        }
                    }
                    store.sync().unwrap();
                    assert_eq!(store.need(upload, now, &wanted).unwrap(), []);
                    missing.iter().for_each(|id| store.unpin(*id));
                    for (n, id) in (from..).zip(&wanted) {
                        assert_eq!(store.get(*id).unwrap(), body(n));
                    }
                    store.end_upload(upload);
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
    assert_eq!(store.upload_usage(), UploadUsage::default());
    collect(&store, 100);
    collect(&store, 110);
    assert!(ids(0..27).iter().all(|id| !store.contains(*id)));
}
