//! What is cut does not depend on how it is pushed, and stays within its limits.

use flotilla_hostile::Proportion;
use flotilla_types::ObjectId;
use proptest::{collection::vec, prelude::*};

use super::{contents, cut, cut_in_pushes, random, short};
use crate::{
    CHUNKS_IN_REF_MAX, Chunking, ChunkingError, Cutter, Level, List, NODE_CHUNKS_MAX, NODE_CHUNKS_MIN, NODES_MAX,
    Object, ObjectKind, TooLong, ValueRef,
};

const MIB: usize = 1 << 20;

/// Checks all that holds for any value.
fn check(chunking: Chunking, content: &[u8], value: &ValueRef, objects: &[Object]) {
    let mut offset_next = 0;
    for object in objects {
        assert_eq!(ObjectId::of(&object.bytes), object.id);
        let ObjectKind::Chunk { offset } = object.kind else { continue };
        assert_eq!(offset, offset_next);
        let end = offset as usize + object.bytes.len();
        assert_eq!(content[offset as usize..end], object.bytes);
        let least = if end < content.len() { chunking.min() as usize } else { 1 };
        assert!((least..=chunking.max() as usize).contains(&object.bytes.len()), "{} bytes", object.bytes.len());
        offset_next = end as u64;
    }
    assert_eq!(offset_next, content.len() as u64);
    assert_eq!((value.bytes(), value.etag()), (offset_next, ObjectId::of(content)));
    let encoded = value.encode();
    assert!(encoded.len() <= ValueRef::ENCODED_BYTES_MAX && ValueRef::ENCODED_BYTES_MAX < 2_500);
    assert_eq!(ValueRef::decode(&encoded).as_ref(), Ok(value));
}

fn chunks(objects: &[Object]) -> usize {
    objects.iter().filter(|object| matches!(object.kind, ObjectKind::Chunk { .. })).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn objects_do_not_depend_on_pushes(
        content in contents(),
        pushes in vec(prop_oneof![0..10_usize, 0..5_000_usize, 0..100_000_usize], 0..60),
    ) {
        for chunking in [short(), Chunking::default()] {
            let (value, objects) = cut(chunking, &content);
            check(chunking, &content, &value, &objects);
            prop_assert_eq!((value, objects), cut_in_pushes(chunking, &content, pushes.iter().copied()));
        }
    }
}

#[test]
fn objects_do_not_depend_on_pushes_of_one_byte() {
    let content = random(1, 30_000);
    assert_eq!(cut(short(), &content), cut_in_pushes(short(), &content, std::iter::repeat_n(1, 30_000)));
}

#[test]
fn every_length_around_a_limit_is_cut() {
    for chunking in [short(), Chunking::default(), Chunking::AVERAGE_64_KIB, Chunking::AVERAGE_256_KIB] {
        let [min, average, max] = [chunking.min(), chunking.average(), chunking.max()].map(|bytes| bytes as usize);
        let near = |bytes: usize| [bytes - 1, bytes, bytes + 1];
        for len in [0, 1].into_iter().chain([min, average, max, 2 * max].into_iter().flat_map(near)) {
            for content in [random(2, len), vec![0; len]] {
                let (value, objects) = cut(chunking, &content);
                check(chunking, &content, &value, &objects);
                // Nothing is cut that is not longer than one chunk must be.
                assert!(len > min || objects.len() == usize::from(len > 0));
            }
        }
    }
}

#[test]
fn the_reference_lists_64_chunks_itself_and_more_through_a_root() {
    // Equal bytes give no place to cut, so every chunk has the greatest length.
    let max = short().max() as usize;
    let zeros = vec![0; CHUNKS_IN_REF_MAX * max + 1];
    for (content, chunks_expected) in [(&zeros[1..], CHUNKS_IN_REF_MAX), (&zeros, CHUNKS_IN_REF_MAX + 1)] {
        let (value, objects) = cut(short(), content);
        check(short(), content, &value, &objects);
        assert_eq!(chunks(&objects), chunks_expected);
        let lists = objects.len() - chunks_expected;
        match value.list() {
            List::Chunks(parts) => assert_eq!((parts.len(), lists), (64, 0)),
            List::Root(id) => {
                assert_eq!(chunks_expected, 65);
                assert!(lists >= 2);
                let Some(Object { id: last, kind: ObjectKind::List(root), .. }) = objects.last() else { panic!() };
                assert_eq!((last, root.level(), root.covers()), (id, Level::Root, value.bytes()));
            }
        }
    }
}

#[test]
fn a_value_of_64_mib_is_cut_and_one_byte_more_is_refused() {
    let limit = 64 * MIB as u64;
    assert_eq!(Chunking::default().value_bytes_max(), limit, "the product's limit fits two levels in any case");
    for content in [random(3, 64 * MIB + 1), vec![0; 64 * MIB + 1]] {
        let mut cutter = Cutter::new(Chunking::default(), limit);
        assert_eq!(cutter.push(&mut &content[..]), Err(TooLong { bytes_max: limit }));
        assert_eq!(cutter.bytes(), 0, "a refused push takes nothing");
        let mut push = &content[1..];
        let mut objects = Vec::new();
        while let Some(object) = cutter.push(&mut push).unwrap() {
            objects.push(object);
        }
        assert_eq!(cutter.push(&mut &content[..1]), Err(TooLong { bytes_max: limit }));
        let finished = cutter.finish();
        objects.extend(finished.objects);
        check(Chunking::default(), &content[1..], &finished.value, &objects);
    }
}

#[test]
fn no_limit_exceeds_what_two_levels_can_list() {
    let limit = short().value_bytes_max();
    assert_eq!(limit, 1_024 * 32 * 512);
    let content = vec![0; limit as usize + 1];
    let refused = Cutter::new(short(), u64::MAX).push(&mut &content[..]);
    assert_eq!(refused, Err(TooLong { bytes_max: limit }));
}

#[test]
fn cutting_takes_bounded_memory_whatever_the_length() {
    for (chunking, push_bytes) in [(short(), 700), (short(), 9_000), (Chunking::default(), 8_192)] {
        let hash_bytes = 64 << 10;
        let list_bytes = 40 * (2 * NODE_CHUNKS_MAX + 2 * NODES_MAX);
        let bound = Proportion { base: (3 * chunking.max() as usize + hash_bytes + list_bytes) as u64, per_byte: 0 };
        let push = random(4, push_bytes);
        let objects = bound.of(0, || {
            let mut cutter = Cutter::new(chunking, u64::MAX);
            let mut objects = 0;
            // The pushes differ, so that chunks do.
            for number in 0..(8 * MIB / push_bytes) as u64 {
                for part in [&number.to_le_bytes(), &push[..]] {
                    let mut part = part;
                    while cutter.push(&mut part).unwrap().is_some() {
                        objects += 1;
                    }
                }
            }
            objects
        });
        assert!(objects > 8 * MIB / chunking.max() as usize);
    }
}

#[test]
fn a_chunk_has_memory_of_its_own() {
    let content = random(5, MIB);
    let (_, objects) = cut(Chunking::default(), &content);
    assert!(objects.into_iter().all(|object| object.bytes.try_into_mut().is_ok()));
}

#[test]
fn lengths_that_cannot_be_used_are_refused() {
    let kib = |kib: u32| kib << 10;
    assert!(Chunking::new(kib(1), kib(2), kib(4)).is_ok());
    assert!(Chunking::new(kib(1), kib(512), kib(1_024)).is_ok());
    assert_eq!(Chunking::new(kib(4), kib(15), kib(64)), Err(ChunkingError::NotPowerOfTwo(kib(15))));
    assert_eq!(Chunking::new(0, kib(16), kib(64)), Err(ChunkingError::NotPowerOfTwo(0)));
    for (min, max) in [(512, kib(64)), (kib(4), kib(2_048))] {
        assert!(matches!(Chunking::new(min, kib(16), max), Err(ChunkingError::OutOfBounds { .. })));
    }
    for (min, average, max) in [(16, 16, 64), (4, 64, 64), (64, 16, 4)] {
        assert_eq!(Chunking::new(kib(min), kib(average), kib(max)), Err(ChunkingError::Order));
    }
    for preset in [Chunking::AVERAGE_16_KIB, Chunking::AVERAGE_64_KIB, Chunking::AVERAGE_256_KIB] {
        assert_eq!(Chunking::new(preset.min(), preset.average(), preset.max()), Ok(preset));
        assert!(preset.value_bytes_max() >= (NODE_CHUNKS_MIN * NODES_MAX) as u64 * 4_096);
    }
}
