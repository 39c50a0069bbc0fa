//! Hostile folders: damaged segments, and files that the store did not write.

use std::fs;

use flotilla_hostile::{Proportion, attack, mutated};
use flotilla_types::ObjectId;
use proptest::{collection::vec, prelude::*};

use crate::{
    ObjectError, ObjectStore, Options, footer,
    segment::{
        Format, FoundRecord, ID_BYTES, Lengths, SegmentHeader, encode_record_header, encode_segment_header,
        read_segment_header, scan,
    },
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

/// Stores objects that have the one before as their child, and one more, so that the first segment is closed.
fn put_family(store: &ObjectStore) -> Vec<ObjectId> {
    let mut ids: Vec<ObjectId> = Vec::new();
    for n in 0..=OBJECTS {
        let children: Vec<_> = ids.last().copied().or(Some(ObjectId::of(b"absent"))).into_iter().collect();
        ids.push(store.put(&body(n), &children).unwrap());
    }
    store.sync().unwrap();
    ids.truncate(OBJECTS.into());
    ids
}

/// An intact closed segment of objects with children.
fn family_segment() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    put_family(&open(dir.path()));
    fs::read(&segment_files(dir.path())[0]).unwrap()
}

fn yields_all_before_the_damage(
    format: Format,
    children: u64,
    whole: &[u8],
    store_again: impl Fn(&ObjectStore) -> Vec<ObjectId>,
) {
    attack(50, mutated(Just(whole.to_vec())), |bytes| {
        let dir = tempfile::tempdir().unwrap();
        let ids = store_again(&open(dir.path()));
        fs::write(&segment_files(dir.path())[0], &bytes).unwrap();
        let intact = whole.iter().zip(&bytes).take_while(|(left, right)| left == right).count() as u64;
        let store = match ObjectStore::open(dir.path(), small()) {
            Ok(store) => store,
            Err(error) => {
                return assert!(intact < format.segment_header_bytes(), "{error}, although the header is intact");
            }
        };
        let record_bytes = format.record_header_bytes() + children * ID_BYTES + body(0).len() as u64;
        for (n, id) in (0..).zip(&ids) {
            let end = format.segment_header_bytes() + (n + 1) * record_bytes;
            match store.get(*id) {
                Ok(found) => assert_eq!(found, body(n as u16)),
                Err(error) => assert!(intact < end, "{error}, although its record is before the damage"),
            }
        }
        store.index.read().audit();
        // The store still works, and storing the objects again repairs them.
        assert_eq!(store_again(&store), ids);
        assert!(ids.iter().all(|id| store.get(*id).is_ok()));
        store.index.read().audit();
    });
}

#[test]
fn hostile_segments_yield_correct_objects_including_all_before_the_damage() {
    yields_all_before_the_damage(Format::V1, 0, &segment(), |store| put_all(store, 0..OBJECTS));
}

#[test]
fn hostile_segments_with_children_yield_correct_objects_including_all_before_the_damage() {
    yields_all_before_the_damage(Format::V2([0; 8]), 1, &family_segment(), put_family);
}

/// Stores objects that are compressed, and one more, so that the first segment is closed.
fn put_compressed(store: &ObjectStore) -> Vec<ObjectId> {
    store.allow_compression();
    let ids: Vec<_> = (0..OBJECTS).map(|n| store.put_compressible(&body(n), &[]).unwrap()).collect();
    store.put(&vec![0; 2_000], &[]).unwrap();
    store.put(&vec![1; 2_000], &[]).unwrap();
    store.sync().unwrap();
    ids
}

#[test]
fn hostile_segments_of_compressed_objects_yield_correct_objects() {
    let dir = tempfile::tempdir().unwrap();
    put_compressed(&open(dir.path()));
    let whole = fs::read(&segment_files(dir.path())[0]).unwrap();
    attack(100, mutated(Just(whole.clone())), |bytes| {
        let dir = tempfile::tempdir().unwrap();
        let ids = put_compressed(&open(dir.path()));
        fs::write(&segment_files(dir.path())[0], &bytes).unwrap();
        let Ok(store) = ObjectStore::open(dir.path(), small()) else { return };
        for (n, id) in (0..).zip(&ids) {
            match store.get(*id) {
                Ok(found) => assert_eq!(found, body(n)),
                Err(ObjectError::Missing(_) | ObjectError::Damaged(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let _ = store.slice(*id, 10, 10).map(|slice| assert!(slice.len() <= 10));
        }
        let mut pass = store.begin_scrub();
        assert!(store.scrub(&mut pass, u64::MAX).unwrap().ended);
        assert_eq!(put_compressed(&store), ids);
        assert!(ids.iter().all(|id| store.get(*id).is_ok()));
        store.index.read().audit();
    });
}

#[test]
fn a_table_of_contents_that_lies_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let ids = put_family(&open(dir.path()));
    let path = segment_files(dir.path()).remove(0);
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let file_bytes = file.metadata().unwrap().len();
    let Ok(SegmentHeader::Known(format @ Format::V2(_))) = read_segment_header(&file, file_bytes) else {
        panic!("a segment of format 2")
    };
    let truth = footer::read(&file, file_bytes, format).unwrap().unwrap();
    let end = truth.last().unwrap().end();
    // The first object is said to be where the second one is, the second one is left out, the third one is there
    // twice, first at a wrong place.
    let mut lie = truth.clone();
    lie[0] = FoundRecord { id: ids[2], children: vec![ids[2]], ..lie[0].clone() };
    lie[1].id = ids[0];
    file.set_len(end).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &footer::encode(format, &lie, end), end).unwrap();
    let store = open(dir.path());
    store.index.read().audit();
    assert!(matches!(store.get(ids[0]), Err(ObjectError::Damaged(_))));
    assert!(matches!(store.get(ids[1]), Err(ObjectError::Missing(_))));
    assert_eq!(store.get(ids[2]).unwrap(), body(2));
    store.index.read().audit();
    assert_eq!(put_family(&store), ids);
    assert!(ids.iter().all(|id| store.get(*id).is_ok()));
    assert_eq!(store.index.read().children(ids[2]), [ids[1]]);
}

/// A segment of which nearly all is a hole.
#[test]
fn an_object_that_starts_where_no_store_writes_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let format = Format::new(3);
    let (near, far) = (1_000, (1 << 32) + 200);
    let record = |bytes: &[u8], offset| FoundRecord {
        id: ObjectId::of(bytes),
        offset,
        lengths: Lengths::uncompressed(bytes.len() as u32),
        children: Vec::new(),
    };
    let records = [record(b"near", near), record(b"far", far)];
    let file = fs::File::create(crate::load::segment_path(dir.path(), 1)).unwrap();
    let write = |bytes: &[u8], at| std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    write(&encode_segment_header(format), 0);
    write(b"near", near);
    write(b"far", far);
    write(&footer::encode(format, &records, far + 3), far + 3);
    let store = ObjectStore::open(dir.path(), Options { segment_bytes: u64::MAX, ..small() }).unwrap();
    assert_eq!(&store.get(records[0].id).unwrap()[..], b"near");
    assert!(matches!(store.get(records[1].id), Err(ObjectError::Missing(_))));
    assert!(store.options.segment_bytes < far, "nor does this one");
    store.index.read().audit();
}

#[test]
fn hostile_segments_are_read_within_proportional_memory() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let nonce = [3; 8];
    let object = (vec(any::<u8>(), 0..40), vec(any::<[u8; 32]>(), 0..4));
    let formats = [Format::V1, Format::V2(nonce), Format::V3(nonce)];
    let valid = (0..3_usize, vec(object, 0..6)).prop_map(move |(format, objects)| {
        let format = formats[format];
        let with_children = format != Format::V1;
        let mut bytes = encode_segment_header(format);
        let mut records = Vec::new();
        for (object, children) in objects {
            let (id, stored) = (ObjectId::of(&object), object.len() as u32);
            let lengths = Lengths { stored, plain: if format.version() > 2 { stored * 3 } else { stored } };
            let children = if with_children { children.into_iter().map(ObjectId).collect() } else { Vec::new() };
            bytes.extend(encode_record_header(format, id, lengths, &children));
            records.push(FoundRecord { id, offset: bytes.len() as u64, lengths, children });
            bytes.extend(object);
        }
        if with_children {
            bytes.extend(footer::encode(format, &records, bytes.len() as u64));
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
        let (scan, tables) = Proportion::DEFAULT.of(bytes.len(), || {
            read_segment_header(&file, length).unwrap();
            (scan(&file, 0, length, None).unwrap(), formats.map(|format| footer::read(&file, length, format).unwrap()))
        });
        let mut end = 0;
        for record in &scan.records {
            let header_bytes = Format::V1.record_header_bytes() + record.children.len() as u64 * ID_BYTES;
            assert!(record.offset >= end + header_bytes, "records do not overlap");
            end = record.end();
        }
        assert!(end <= scan.end && scan.end <= length);
        assert!(tables.into_iter().flatten().flatten().all(|record| record.end() <= length));
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
