//! Hostile bytes as references and lists.

use flotilla_hostile::{Proportion, at_every_cut, attack, extreme_u64, mutated};
use flotilla_types::ObjectId;
use proptest::{collection::vec, prelude::*};

use crate::{
    CHUNK_BYTES_MAX, CHUNKS_IN_REF_MAX, FormatError, Kind, Level, List, ListNode, NODE_CHUNKS_MAX, Need, Part, Plan,
    Reader, Step, ValueRef,
    tests::{cut, random, short},
};

fn parts(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Part>> {
    let part = (any::<[u8; 32]>(), 1..=CHUNK_BYTES_MAX).prop_map(|(id, bytes)| Part { id: ObjectId(id), bytes });
    vec(part, count)
}

fn references() -> impl Strategy<Value = ValueRef> {
    let chunks = parts(2..CHUNKS_IN_REF_MAX + 1).prop_map(|parts| {
        let bytes = parts.iter().map(|part| u64::from(part.bytes)).sum();
        ValueRef::new(bytes, ObjectId([1; 32]), List::Chunks(parts))
    });
    let root = (65..1_u64 << 37, any::<[u8; 32]>())
        .prop_map(|(bytes, id)| ValueRef::new(bytes, ObjectId([2; 32]), List::Root(ObjectId(id))));
    let whole = (0..10_000_usize).prop_map(|len| cut(short(), &random(7, len.min(1_000))).0);
    prop_oneof![chunks, root, whole]
}

fn lists() -> impl Strategy<Value = ListNode> {
    prop_oneof![
        parts(1..257).prop_map(|parts| ListNode::new(Level::Leaf, parts)),
        parts(1..513).prop_map(|parts| ListNode::new(Level::Root, parts)),
    ]
}

fn reads_reference(bytes: &[u8]) {
    let Ok(value) = Proportion::DEFAULT.of(bytes.len(), || ValueRef::decode(bytes)) else { return };
    assert_eq!(value.encode(), bytes, "a reference has one encoding");
    let covered: u64 = value.needs().map(|need| need.bytes).sum();
    assert_eq!(covered, value.bytes());
    assert!(value.needs().all(|need| need.bytes > 0));
    // What follows from it takes no more either, and ends.
    Proportion::DEFAULT.of(bytes.len(), || {
        let mut plan = Plan::new(&value);
        let _ = plan.descend();
        let mut reader = Reader::new(&value, value.bytes() / 2..value.bytes()).unwrap();
        while let Some(Step::Chunk(slice)) = reader.step() {
            assert!(u64::from(slice.offset + slice.len) <= slice.need.bytes && slice.len > 0);
        }
    });
}

fn reads_list(bytes: &[u8]) {
    let Ok(list) = Proportion::DEFAULT.of(bytes.len(), || ListNode::decode(bytes)) else { return };
    assert_eq!(list.encode(), bytes, "a list has one encoding");
    assert_eq!(list.covers(), list.needs().map(|need| need.bytes).sum::<u64>());
    assert!(list.needs().all(|need| need.bytes > 0));
    assert!(list.needs().all(|need| (need.kind == Kind::Chunk) == (list.level() == Level::Leaf)));
    assert!(bytes.len() <= ListNode::ENCODED_BYTES_MAX);
    let need = Need { id: ObjectId::of(bytes), kind: Kind::List(list.level()), bytes: list.covers() };
    assert_eq!(need.verify(bytes), Ok(Some(list)));
}

#[test]
fn hostile_references_are_refused_or_have_one_encoding() {
    attack(1_000, mutated(references().prop_map(|value| value.encode())), |bytes| reads_reference(&bytes));
}

#[test]
fn hostile_lists_are_refused_or_have_one_encoding() {
    attack(1_000, mutated(lists().prop_map(|list| list.encode())), |bytes| reads_list(&bytes));
}

#[test]
fn hostile_lists_below_a_reference_are_refused_or_make_up_the_value() {
    let leaf = parts(1..257).prop_map(|parts| ListNode::new(Level::Leaf, parts));
    let leaf = mutated(leaf.prop_map(|leaf| leaf.encode()));
    // A list, and what its parent says of its length: the truth or anything.
    let leaves = vec((leaf, prop_oneof![3 => Just(None), 1 => extreme_u64().prop_map(Some)]), 1..6);
    attack(300, leaves, |leaves| {
        let covers = |leaf: &[u8]| ListNode::decode(leaf).map_or(1, |leaf| leaf.covers());
        let most = u64::from(CHUNK_BYTES_MAX) * NODE_CHUNKS_MAX as u64;
        let part = |(leaf, said): &(Vec<u8>, Option<u64>)| Part {
            id: ObjectId::of(leaf),
            bytes: said.unwrap_or(covers(leaf)).clamp(1, most) as u32,
        };
        let root = ListNode::new(Level::Root, leaves.iter().map(part).collect());
        let value = ValueRef::new(root.covers(), ObjectId([3; 32]), List::Root(ObjectId::of(&root.encode())));
        let Ok(value) = ValueRef::decode(&value.encode()) else { return assert!(root.covers() <= 64) };
        let given = root.encode().len() + leaves.iter().map(|(leaf, _)| leaf.len()).sum::<usize>();
        let read = Proportion::DEFAULT.of(given, || {
            let mut reader = Reader::new(&value, 0..value.bytes())?;
            let mut lists = std::iter::once(root.encode()).chain(leaves.iter().map(|(leaf, _)| leaf.clone().into()));
            let mut read = 0;
            while let Some(step) = reader.step() {
                match step {
                    Step::Chunk(slice) => read += u64::from(slice.len),
                    Step::List(_) => reader.supply(&lists.next().unwrap())?,
                }
            }
            Ok::<_, Box<dyn std::error::Error>>(read)
        });
        let is_right = |(leaf, part): (&(Vec<u8>, _), &Part)| {
            ListNode::decode(&leaf.0)
                .is_ok_and(|leaf| leaf.level() == Level::Leaf && leaf.covers() == u64::from(part.bytes))
        };
        if leaves.iter().zip(root.parts()).all(is_right) {
            assert_eq!(read.unwrap(), value.bytes());
        } else {
            assert!(read.is_err());
        }
    });
}

#[test]
fn a_prefix_is_never_a_reference_or_a_list() {
    for (len, leaves) in [(0, 0), (10, 0), (100_000, 0), (1 << 20, 5)] {
        let (value, objects) = cut(short(), &random(8, len));
        at_every_cut(&value.encode(), |bytes| assert!(ValueRef::decode(bytes).is_err()));
        let lists = objects.iter().filter(|object| object.children().next().is_some());
        assert!(lists.clone().count() >= leaves);
        for list in lists.take(2) {
            at_every_cut(&list.bytes, |bytes| assert!(ListNode::decode(bytes).is_err()));
        }
    }
}

/// An encoding with some bytes replaced.
fn with(bytes: &[u8], at: usize, put: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + put.len()].copy_from_slice(put);
    bytes
}

#[test]
fn what_is_wrong_with_a_reference_is_named() {
    let (empty, whole, chunks, root) = (0, 1_000, 100_000, 1 << 20);
    let [empty, whole, chunks, root] = [empty, whole, chunks, root].map(|len| cut(short(), &random(9, len)).0.encode());
    let refused = |bytes: &[u8]| ValueRef::decode(bytes).unwrap_err();
    assert_eq!(refused(&with(&root, 0, &[2])), FormatError::Version(2));
    for count in [1, 65, 254] {
        assert_eq!(refused(&with(&chunks, 1, &[count])), FormatError::Count(count.into()));
    }
    assert!(matches!(refused(&with(&chunks, 1, &[64])), FormatError::Length { .. }));
    assert!(matches!(refused(&with(&chunks, 1, &[0])), FormatError::Length { .. }));
    for bytes in [0, 99_999, 100_001, u64::MAX] {
        assert_eq!(refused(&with(&chunks, 2, &bytes.to_le_bytes())), FormatError::Sum { bytes });
    }
    for bytes in [0, 64, u64::MAX] {
        assert_eq!(refused(&with(&root, 2, &bytes.to_le_bytes())), FormatError::Sum { bytes });
    }
    assert_eq!(refused(&with(&whole, 2, &(1_u64 << 40).to_le_bytes())), FormatError::Sum { bytes: 1 << 40 });
    let too_long = CHUNK_BYTES_MAX + 1;
    assert_eq!(refused(&with(&whole, 2, &u64::from(too_long).to_le_bytes())), FormatError::PartLength(too_long));
    assert_eq!(refused(&with(&empty, 10, &[0])), FormatError::EmptyHash);
    assert_eq!(refused(&with(&whole, 2, &0_u64.to_le_bytes())), FormatError::EmptyHash);
    // The length moves from the first chunk to the second.
    assert_eq!(refused(&with(&chunks, 42 + 32, &0_u32.to_le_bytes())), FormatError::PartLength(0));
    assert_eq!(refused(&[&chunks[..], &[0]].concat()), refused(&[&chunks[..], &[9]].concat()));
}

#[test]
fn what_is_wrong_with_a_list_is_named() {
    let part = Part { id: ObjectId([5; 32]), bytes: 9 };
    let leaf = ListNode::new(Level::Leaf, vec![part; 40]).encode();
    let refused = |bytes: &[u8]| ListNode::decode(bytes).unwrap_err();
    assert_eq!(refused(&with(&leaf, 0, b"FLVX")), FormatError::NotAList);
    assert_eq!(refused(&with(&leaf, 4, &[2])), FormatError::Version(2));
    for level in [0, 3] {
        assert_eq!(refused(&with(&leaf, 5, &[level])), FormatError::Level(level));
    }
    assert!(matches!(refused(&with(&leaf, 6, &[41])), FormatError::Length { .. }));
    assert_eq!(refused(&with(&leaf[..8], 6, &[0, 0])), FormatError::Count(0));
    assert_eq!(refused(&with(&leaf, 8 + 32, &0_u32.to_le_bytes())), FormatError::PartLength(0));
    let long = CHUNK_BYTES_MAX + 1;
    assert_eq!(refused(&with(&leaf, 8 + 32, &long.to_le_bytes())), FormatError::PartLength(long));
    // A root may list as much as a leaf can cover.
    assert!(ListNode::decode(&with(&with(&leaf, 5, &[2]), 8 + 32, &long.to_le_bytes())).is_ok());
    let many = [&leaf[..6], &257_u16.to_le_bytes(), &leaf[8..8 + 36].repeat(257)].concat();
    assert_eq!(refused(&many), FormatError::Count(257));
    assert!(ListNode::decode(&with(&many, 5, &[2])).is_ok());
}
