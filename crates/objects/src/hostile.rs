//! Hostile folders: damaged segments, and files that the store did not write.

use std::fs;

use flotilla_hostile::{Proportion, attack, mutated};
use proptest::{collection::vec, prelude::*};

use crate::{
    ObjectStore,
    segment::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, read_segment_header, scan},
    tests::{body, open, put_all, segment_files, small},
};

/// Objects of a segment before it is damaged.
const OBJECTS: u16 = 3;

/// An intact segment, as the store writes it.
fn segment() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    put_all(&open(dir.path()), 0..OBJECTS);
    fs::read(&segment_files(dir.path())[0]).unwrap()
}

#[test]
fn hostile_segments_yield_correct_objects_including_all_before_the_damage() {
    let whole = segment();
    attack(50, mutated(Just(whole.clone())), |bytes| {
        let dir = tempfile::tempdir().unwrap();
        let ids = put_all(&open(dir.path()), 0..OBJECTS);
        fs::write(&segment_files(dir.path())[0], &bytes).unwrap();
        let intact = whole.iter().zip(&bytes).take_while(|(left, right)| left == right).count();
        let store = match ObjectStore::open(dir.path(), small()) {
            Ok(store) => store,
            Err(error) => {
                return assert!(intact < SEGMENT_HEADER_BYTES as usize, "{error}, although the header is intact");
            }
        };
        let record_bytes = RECORD_HEADER_BYTES as usize + body(0).len();
        for (n, id) in ids.iter().enumerate() {
            let end = SEGMENT_HEADER_BYTES as usize + (n + 1) * record_bytes;
            match store.get(*id) {
                Ok(found) => assert_eq!(found, body(n as u16)),
                Err(error) => assert!(intact < end, "{error}, although its record is before the damage"),
            }
        }
        // The store still works, and storing the objects again repairs them.
        assert_eq!(put_all(&store, 0..OBJECTS), ids);
        assert!(ids.iter().all(|id| store.get(*id).is_ok()));
    });
}

#[test]
fn hostile_segments_are_scanned_within_proportional_memory() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let valid = vec(vec(any::<u8>(), 0..40), 0..6).prop_map(|objects| {
        let mut bytes = crate::segment::encode_segment_header().to_vec();
        for object in objects {
            let id = flotilla_types::ObjectId::of(&object);
            bytes.extend(crate::segment::encode_record_header(id, object.len() as u32));
            bytes.extend(object);
        }
        bytes
    });
    let file = std::cell::RefCell::new(file.as_file_mut());
    attack(300, mutated(valid), |bytes| {
        use std::io::{Seek, Write};
        let mut file = file.borrow_mut();
        file.rewind().unwrap();
        file.set_len(0).unwrap();
        file.write_all(&bytes).unwrap();
        let length = bytes.len() as u64;
        let scan = Proportion::DEFAULT.of(bytes.len(), || {
            read_segment_header(&file, length).unwrap();
            scan(&file, 0, length).unwrap()
        });
        let mut end = 0;
        for record in &scan.records {
            assert!(record.offset >= end + RECORD_HEADER_BYTES, "records do not overlap");
            end = record.offset + u64::from(record.len);
        }
        assert!(end <= length && scan.end == end);
    });
}

#[test]
fn files_with_foreign_names_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let ids = put_all(&open(dir.path()), 0..OBJECTS);
    let names = "[0-9a-f+-]{0,18}\\.segment|\\PC{0,12}";
    attack(64, vec(names, 1..4), |names| {
        let added: Vec<_> = names.iter().map(|name| dir.path().join(name.replace(['/', '\0'], "_"))).collect();
        let added: Vec<_> = added.iter().filter(|path| !path.exists()).collect();
        added.iter().for_each(|path| fs::write(path, b"not a segment").unwrap());
        let store = open(dir.path());
        assert!(ids.iter().all(|id| store.get(*id).is_ok()));
        drop(store);
        added.iter().for_each(|path| drop(fs::remove_file(path)));
    });
}

#[test]
fn files_with_non_canonical_numbers_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["7.segment", "+00000000000000f.segment", "ffffffffffffffff.segment"] {
        fs::write(dir.path().join(name), b"not ours").unwrap();
    }
    let ids = put_all(&open(dir.path()), 0..OBJECTS);
    assert!(ids.iter().all(|id| open(dir.path()).contains(*id)));
    assert_eq!(segment_files(dir.path()).len(), 4, "nothing was removed");
}
