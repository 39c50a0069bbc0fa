//! A value comes back as it was, whole or in ranges, and nothing wrong is taken for a part of it.

use std::collections::{BTreeSet, btree_map::Entry};

use bytes::Bytes;
use flotilla_types::ObjectId;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{Store, contents, cut, random, short, store};
use crate::{
    Chunking, FormatError, Kind, Level, List, ListNode, Need, NotSupplied, OutOfRange, Part, Plan, Reader, Step,
    ValueRef, VerifyError,
};

/// The objects of a value that one node lacks, fetched from another.
fn pull(value: &ValueRef, from: &Store, to: &mut Store) -> Vec<Need> {
    let mut fetched = Vec::new();
    let mut plan = Plan::new(value);
    loop {
        for need in plan.level().to_vec() {
            if let Entry::Vacant(missing) = to.entry(need.id) {
                let object = &from[&need.id];
                need.verify(object).unwrap();
                missing.insert(object.clone());
                fetched.push(need);
            }
            if need.kind != Kind::Chunk {
                plan.supply(&need, &to[&need.id]).unwrap();
            }
        }
        if !plan.descend().unwrap() {
            return fetched;
        }
    }
}

/// A range, and the lists that were fetched for it.
fn read(value: &ValueRef, range: std::ops::Range<u64>, store: &Store) -> (Vec<u8>, usize) {
    let (mut content, mut lists) = (Vec::new(), 0);
    let mut reader = Reader::new(value, range).unwrap();
    while let Some(step) = reader.step() {
        match step {
            Step::List(need) => {
                lists += 1;
                assert_eq!(reader.step(), Some(Step::List(need)), "it waits for the list");
                reader.supply(&store[&need.id]).unwrap();
            }
            Step::Chunk(slice) => content.extend_from_slice(&slice.of(&store[&slice.need.id]).unwrap()),
        }
    }
    assert_eq!(reader.step(), None);
    (content, lists)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn ranges_equal_slices_of_what_was_pulled(content in contents(), ranges in vec(any::<(Index, Index)>(), 1..8)) {
        for chunking in [short(), Chunking::default()] {
            let (value, objects) = cut(chunking, &content);
            let all: BTreeSet<_> = objects.iter().map(|object| object.id).collect();
            let from = store(objects);
            let mut to = Store::new();
            let fetched = pull(&value, &from, &mut to);
            prop_assert_eq!(fetched.len(), all.len(), "each object once, and no other");
            prop_assert_eq!(&to, &from);
            let value = ValueRef::decode(&value.encode()).unwrap();
            let len = content.len();
            prop_assert_eq!(&read(&value, 0..len as u64, &to).0, &content);
            for (one, other) in &ranges {
                let (one, other) = (one.index(len + 1), other.index(len + 1));
                let (start, end) = (one.min(other), one.max(other));
                let (found, _) = read(&value, start as u64..end as u64, &to);
                prop_assert_eq!(found.as_slice(), &content[start..end]);
            }
        }
    }
}

#[test]
fn a_pull_fetches_only_what_is_missing() {
    let content = random(21, 4 << 20);
    let changed = [&content[..2 << 20], b"inserted", &content[2 << 20..]].concat();
    let ((before, objects_before), (after, objects_after)) =
        (cut(Chunking::default(), &content), cut(Chunking::default(), &changed));
    let mut held = store(objects_before);
    let from = store(objects_after);
    let fetched = pull(&after, &from, &mut held);
    assert!(fetched.len() < 8, "{fetched:?}");
    assert_eq!(pull(&after, &from, &mut held), []);
    assert_eq!(pull(&before, &from, &mut held), []);
    assert_eq!(read(&after, 0..changed.len() as u64, &held).0, changed);
}

#[test]
fn a_range_fetches_only_the_lists_on_its_way() {
    let content = random(22, 3 << 20);
    let (value, objects) = cut(short(), &content);
    let leaves = objects.iter().filter(|object| object.children().next().is_some()).count() - 1;
    assert!(leaves > 10);
    let store = store(objects);
    for start in (0..content.len()).step_by(300_000) {
        let (found, lists) = read(&value, start as u64..start as u64 + 10, &store);
        assert_eq!(found, content[start..start + 10]);
        assert_eq!(lists, 2, "the root and one leaf");
    }
    assert_eq!(read(&value, 0..content.len() as u64, &store).1, leaves + 1);
    for at in [0, 1_000, content.len() as u64] {
        assert_eq!(read(&value, at..at, &store), (Vec::new(), 0), "nothing is fetched for nothing");
    }
}

#[test]
fn a_range_outside_the_value_is_refused() {
    let (value, _) = cut(short(), &random(23, 5_000));
    assert!(Reader::new(&value, 5_000..5_000).is_ok());
    for range in [0..5_001, 5_001..5_001, 3..u64::MAX] {
        let refused = OutOfRange { start: range.start, end: range.end, bytes: 5_000 };
        assert_eq!(Reader::new(&value, range).unwrap_err(), refused);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "the subject of the test")]
    let reversed = 7..6;
    assert!(Reader::new(&value, reversed).is_err());
}

/// A value with a root, its objects, and the needs of its first two levels.
fn large() -> (ValueRef, Store, Need, Need) {
    let (value, objects) = cut(short(), &random(24, 1 << 20));
    let store = store(objects);
    let root = value.needs().next().unwrap();
    let leaf = root.verify(&store[&root.id]).unwrap().unwrap().needs().nth(1).unwrap();
    (value, store, root, leaf)
}

#[test]
fn wrong_bytes_are_no_object_of_a_value() {
    let (_, store, root, leaf) = large();
    let chunk = leaf.verify(&store[&leaf.id]).unwrap().unwrap().needs().next().unwrap();
    assert_eq!((root.kind, leaf.kind, chunk.kind), (Kind::List(Level::Root), Kind::List(Level::Leaf), Kind::Chunk));
    for need in [root, leaf, chunk] {
        let mut wrong = store[&need.id].to_vec();
        assert!(need.verify(&wrong).is_ok());
        let last = wrong.len() - 1;
        wrong[last] ^= 1;
        assert_eq!(need.verify(&wrong), Err(VerifyError::Mismatch(need.id)));
        assert!(need.verify(&wrong[..last]).is_err());
        assert!(need.verify(&[]).is_err());
    }
}

#[test]
fn an_object_that_differs_from_what_its_parent_says_is_refused() {
    let (_, store, root, leaf) = large();
    let chunk = leaf.verify(&store[&leaf.id]).unwrap().unwrap().needs().next().unwrap();
    for need in [root, leaf, chunk] {
        let longer = Need { bytes: need.bytes + 1, ..need };
        let refused = VerifyError::Length { id: need.id, found: need.bytes, expected: need.bytes + 1 };
        assert_eq!(longer.verify(&store[&need.id]), Err(refused));
    }
    let as_root = Need { kind: Kind::List(Level::Root), ..leaf };
    assert_eq!(as_root.verify(&store[&leaf.id]), Err(VerifyError::Level { id: leaf.id, found: Level::Leaf }));
    let as_leaf = Need { kind: Kind::List(Level::Leaf), ..chunk };
    let reason = FormatError::NotAList;
    assert_eq!(as_leaf.verify(&store[&chunk.id]), Err(VerifyError::Malformed { id: chunk.id, reason }));
    // A list can be content as well.
    let bytes = store[&leaf.id].len() as u64;
    assert_eq!(Need { kind: Kind::Chunk, bytes, ..leaf }.verify(&store[&leaf.id]), Ok(None));
}

#[test]
fn a_plan_takes_nothing_but_the_lists_of_its_level() {
    let (value, store, root, leaf) = large();
    let mut plan = Plan::new(&value);
    assert_eq!(plan.level(), [root]);
    assert_eq!(plan.descend(), Err(NotSupplied { lists: 1 }));
    assert_eq!(plan.supply(&leaf, &store[&leaf.id]), Err(VerifyError::Unexpected(leaf.id)));
    assert_eq!(plan.supply(&root, b"else"), Err(VerifyError::Mismatch(root.id)));
    assert_eq!(plan.descend(), Err(NotSupplied { lists: 1 }));
    plan.supply(&root, &store[&root.id]).unwrap();
    plan.supply(&root, b"another answer, too late").unwrap();
    assert_eq!(plan.descend(), Ok(true));
    assert!(plan.level().contains(&leaf));
    let leaves = plan.level().to_vec();
    for need in &leaves[1..] {
        plan.supply(need, &store[&need.id]).unwrap();
    }
    assert_eq!(plan.descend(), Err(NotSupplied { lists: 1 }));
    plan.supply(&leaves[0], &store[&leaves[0].id]).unwrap();
    assert_eq!(plan.descend(), Ok(true));
    let chunks = plan.level().to_vec();
    assert_eq!(chunks.iter().map(|need| need.bytes).sum::<u64>(), value.bytes());
    assert_eq!(plan.supply(&chunks[0], &store[&chunks[0].id]), Err(VerifyError::Unexpected(chunks[0].id)));
    assert_eq!(plan.descend(), Ok(false));
    assert_eq!(plan.level(), chunks);
}

#[test]
fn a_reader_takes_nothing_but_the_list_that_it_waits_for() {
    let (value, store, root, leaf) = large();
    let mut reader = Reader::new(&value, 0..value.bytes()).unwrap();
    let list = &store[&leaf.id];
    assert_eq!(reader.supply(list), Err(VerifyError::Unexpected(leaf.id)));
    assert_eq!(reader.step(), Some(Step::List(root)));
    assert_eq!(reader.supply(list), Err(VerifyError::Mismatch(root.id)));
    reader.supply(&store[&root.id]).unwrap();
    let Some(Step::List(first)) = reader.step() else { panic!() };
    reader.supply(&store[&first.id]).unwrap();
    let Some(Step::Chunk(slice)) = reader.step() else { panic!() };
    let mut chunk = store[&slice.need.id].to_vec();
    chunk[0] ^= 1;
    assert_eq!(slice.of(&chunk.into()), Err(VerifyError::Mismatch(slice.need.id)));
    assert_eq!(reader.supply(list), Err(VerifyError::Unexpected(leaf.id)));
}

#[test]
fn a_plan_names_a_repeated_object_once() {
    let content = vec![0; 1 << 20];
    let (value, objects) = cut(short(), &content);
    let store = store(objects);
    let mut held = Store::new();
    assert!(pull(&value, &store, &mut held).len() <= 4);
    assert_eq!(read(&value, 0..1 << 20, &held).0, content);
}

#[test]
fn lists_that_claim_much_take_no_memory_for_it() {
    let chunk = random(25, 1);
    let part = |node: &ListNode| Part { id: ObjectId::of(&node.encode()), bytes: node.covers() as u32 };
    let leaf = ListNode::new(Level::Leaf, vec![Part { id: ObjectId::of(&chunk), bytes: 1 }; 256]);
    let root = ListNode::new(Level::Root, vec![part(&leaf); 512]);
    let root_id = ObjectId::of(&root.encode());
    let value = ValueRef::new(root.covers(), ObjectId::of(b"any"), List::Root(root_id));
    let store: Store =
        [root.encode(), leaf.encode(), Bytes::from(chunk)].map(|bytes| (ObjectId::of(&bytes), bytes)).into();
    let mut held = Store::new();
    let bytes = store.values().map(Bytes::len).sum();
    let fetched = flotilla_hostile::Proportion::DEFAULT.of(bytes, || pull(&value, &store, &mut held).len());
    assert_eq!(fetched, 3);
    // The same list cannot cover different lengths.
    let parts = vec![part(&leaf), Part { bytes: 255, ..part(&leaf) }];
    let liar = ListNode::new(Level::Root, parts);
    let value = ValueRef::new(liar.covers(), ObjectId::of(b"any"), List::Root(ObjectId::of(&liar.encode())));
    let mut plan = Plan::new(&value);
    let root = plan.level()[0];
    plan.supply(&root, &liar.encode()).unwrap();
    plan.descend().unwrap();
    let [honest, lie] = plan.level() else { panic!() };
    assert!(honest.verify(&leaf.encode()).is_ok() && lie.verify(&leaf.encode()).is_err());
}
