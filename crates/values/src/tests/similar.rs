//! A small change of a large value makes few new objects.

use std::collections::BTreeMap;

use flotilla_types::ObjectId;

use super::{cut, random};
use crate::{Chunking, Object, ObjectKind, Part, ValueRef, list::ListBuilder, new_bytes};

const CHANGE_BYTES: usize = 100;
/// With the change, as long as a value can be.
const VALUE_BYTES: usize = (64 << 20) - CHANGE_BYTES;
const TRIALS: usize = 200;

/// A value that was cut, and where its chunks begin.
struct Cut {
    content: Vec<u8>,
    objects: Vec<Object>,
    chunks: BTreeMap<u64, Part>,
}

fn sizes(objects: &[Object]) -> impl Iterator<Item = (ObjectId, u64)> {
    objects.iter().map(|object| (object.id, object.bytes.len() as u64))
}

impl Cut {
    fn new(content: Vec<u8>) -> Self {
        let (_, objects) = cut(Chunking::default(), &content);
        let chunk = |object: &Object| match object.kind {
            ObjectKind::Chunk { offset } => Some((offset, Part { id: object.id, bytes: object.bytes.len() as u32 })),
            ObjectKind::List(_) => None,
        };
        let chunks = objects.iter().filter_map(chunk).collect();
        Self { content, objects, chunks }
    }

    fn changed(&self, at: usize, removed: usize, inserted: &[u8]) -> Vec<u8> {
        [&self.content[..at], inserted, &self.content[at + removed..]].concat()
    }

    /// Ids and lengths of the objects of the changed value. Cuts only from the last chunk before the change
    /// to the first one that begins where one began before: a cut depends on nothing before it.
    fn objects_changed(&self, at: usize, removed: usize, inserted: &[u8]) -> Vec<(ObjectId, u64)> {
        let (begin, _) = self.chunks.range(..=at as u64).next_back().unwrap();
        let window = [&self.content[*begin as usize..at], inserted, &self.content[at + removed..][..2 << 20]].concat();
        let mut parts: Vec<_> = self.chunks.range(..begin).map(|(_, part)| *part).collect();
        let mut rest = window.as_slice();
        loop {
            let (chunk, after) = rest.split_at(Chunking::default().cut(rest));
            parts.push(Part { id: ObjectId::of(chunk), bytes: chunk.len() as u32 });
            rest = after;
            assert!(rest.len() >= Chunking::default().max() as usize, "the cuts are the same again soon");
            let offset = begin + (window.len() - rest.len()) as u64;
            let offset_before = (offset + removed as u64).checked_sub(inserted.len() as u64);
            if let Some(before) = offset_before.filter(|before| *before >= (at + removed) as u64)
                && self.chunks.contains_key(&before)
            {
                parts.extend(self.chunks.range(before..).map(|(_, part)| *part));
                break;
            }
        }
        let mut objects: Vec<_> = parts.iter().map(|part| (part.id, u64::from(part.bytes))).collect();
        let mut builder = ListBuilder::default();
        let mut out = |node: Object| objects.push((node.id, node.bytes.len() as u64));
        parts.into_iter().for_each(|part| builder.add(part, &mut out));
        builder.finish(&mut out);
        objects
    }
}

/// New bytes of each trial, sorted.
fn trials(before: &Cut, removed: usize, inserted: usize) -> Vec<u64> {
    let held = || before.objects.iter().map(|object| object.id);
    let trial = |number: usize| {
        let at = VALUE_BYTES / 8 + number * (VALUE_BYTES / 4 * 3 / TRIALS);
        let inserted = random(1_000 + number as u64, inserted);
        let new = new_bytes(held(), before.objects_changed(at, removed, &inserted));
        if number.is_multiple_of(100) {
            let (_, whole) = cut(Chunking::default(), &before.changed(at, removed, &inserted));
            assert_eq!(new, new_bytes(held(), sizes(&whole)), "the shortcut finds the same objects");
        }
        new
    };
    let mut all: Vec<_> = (0..TRIALS).map(trial).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_change_of_100_bytes_in_64_mib_makes_few_new_bytes() {
    let before = Cut::new(random(11, VALUE_BYTES));
    for (removed, inserted) in [(0, CHANGE_BYTES), (CHANGE_BYTES, 0), (CHANGE_BYTES, CHANGE_BYTES)] {
        let all = trials(&before, removed, inserted);
        let (median, worst) = (all[TRIALS / 2], all[TRIALS - 1]);
        println!("-{removed} +{inserted} bytes: {} new at least, median {median}, worst {worst}", all[0]);
        assert!(all[0] > 4_096, "something is new");
        assert!(median <= VALUE_BYTES as u64 / 400, "median {median}");
        assert!(worst <= VALUE_BYTES as u64 / 100, "worst {worst}");
    }
}

#[test]
fn bytes_at_both_ends_make_few_new_bytes() {
    let before = Cut::new(random(12, VALUE_BYTES / 8));
    let held = || before.objects.iter().map(|object| object.id);
    for content in
        [[b"in front".as_slice(), &before.content].concat(), [&before.content, b"behind".as_slice()].concat()]
    {
        let (_, objects) = cut(Chunking::default(), &content);
        let new = new_bytes(held(), sizes(&objects));
        assert!(new < 200_000, "{new}");
    }
}

#[test]
fn the_same_content_has_no_new_bytes_and_one_reference() {
    let content = random(13, 3 << 20);
    let ((value, objects), (again, objects_again)) =
        (cut(Chunking::default(), &content), cut(Chunking::default(), &content));
    assert_eq!(new_bytes(objects.iter().map(|object| object.id), sizes(&objects_again)), 0);
    assert_eq!(value, again);
    assert!(value.encode().len() < ValueRef::ENCODED_BYTES_MAX);
    assert_eq!(new_bytes([], sizes(&objects)), sizes(&objects).map(|(_, bytes)| bytes).sum());
}

#[test]
fn repeated_objects_count_once() {
    let (one, two) = (ObjectId::of(b"1"), ObjectId::of(b"2"));
    assert_eq!(new_bytes([one], [(one, 5), (two, 7), (two, 7)]), 7);
}
