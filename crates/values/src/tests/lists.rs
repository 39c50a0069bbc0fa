//! Lists are cut by content and fit two levels in any case.

use flotilla_types::ObjectId;

use crate::{
    CHUNKS_IN_REF_MAX, Level, List, ListNode, NODE_CHUNKS_MAX, NODE_CHUNKS_MIN, NODES_MAX, Object, ObjectKind, Part,
    list::ListBuilder,
};

/// The list of these chunks, its leaves and its root, if it has some.
fn list(chunks: impl IntoIterator<Item = ObjectId>) -> (List, Vec<ListNode>) {
    let mut nodes = Vec::new();
    let mut out = |object: Object| {
        let ObjectKind::List(node) = object.kind else { panic!("no chunk") };
        assert_eq!(ListNode::decode(&object.bytes).as_ref(), Ok(&node));
        assert!(object.bytes.len() <= ListNode::ENCODED_BYTES_MAX);
        nodes.push(node);
    };
    let mut builder = ListBuilder::default();
    chunks.into_iter().for_each(|id| builder.add(Part { id, bytes: 4_096 }, &mut out));
    let list = builder.finish(&mut out);
    (list, nodes)
}

fn ids(count: u32) -> Vec<ObjectId> {
    (0..count).map(|n| ObjectId::of(&n.to_le_bytes())).collect()
}

#[test]
fn a_list_keeps_every_chunk_in_order() {
    for count in [0, 1, 64, 65, 66, 200, 3_000] {
        let ids = ids(count);
        let (list, mut nodes) = list(ids.clone());
        let kept: Vec<_> = match list {
            List::Chunks(parts) => {
                assert!(nodes.is_empty() && parts.len() <= CHUNKS_IN_REF_MAX);
                parts
            }
            List::Root(id) => {
                let root = nodes.pop().unwrap();
                assert_eq!((ObjectId::of(&root.encode()), root.level()), (id, Level::Root));
                let leaves: Vec<_> = nodes.iter().map(|leaf| ObjectId::of(&leaf.encode())).collect();
                assert_eq!(root.parts().iter().map(|part| part.id).collect::<Vec<_>>(), leaves);
                assert!(nodes.iter().all(|leaf| leaf.level() == Level::Leaf));
                nodes.iter().flat_map(ListNode::parts).copied().collect()
            }
        };
        assert_eq!(kept.iter().map(|part| part.id).collect::<Vec<_>>(), ids);
    }
}

#[test]
fn nodes_have_64_chunks_on_average() {
    let (_, nodes) = list(ids(16_384));
    let leaves = &nodes[..nodes.len() - 1];
    let average = 16_384 / leaves.len();
    assert!((56..72).contains(&average), "{average} chunks in a node");
    let lens = leaves[..leaves.len() - 1].iter().map(|leaf| leaf.parts().len());
    assert!(lens.clone().all(|len| (NODE_CHUNKS_MIN..=NODE_CHUNKS_MAX).contains(&len)));
    assert!(lens.clone().min() < Some(40) && lens.max() > Some(120), "the content decides");
}

#[test]
fn the_longest_list_of_any_chunks_fits_two_levels() {
    let chunks_max = NODE_CHUNKS_MIN * NODES_MAX;
    // Ids after each of which a node may end, or after none of which.
    for (last_byte, leaves) in [(0, NODES_MAX), (1, chunks_max / NODE_CHUNKS_MAX)] {
        let mut id = [7; 32];
        id[31] = last_byte;
        let (_, nodes) = list(vec![ObjectId(id); chunks_max]);
        let root = nodes.last().unwrap();
        assert_eq!(root.parts().len(), leaves);
        assert_eq!(root.covers(), chunks_max as u64 * 4_096);
    }
}

#[test]
fn a_changed_chunk_changes_few_nodes() {
    let before = ids(3_400);
    let (_, nodes_before) = list(before.clone());
    let mut changed: Vec<_> = (0..200_u32)
        .map(|trial| {
            let mut after = before.clone();
            let at = (trial as usize * 17) % after.len();
            after.splice(at..=at, [ObjectId::of(&[b'a', trial as u8]), ObjectId::of(&[b'b', trial as u8])]);
            list(after).1.iter().filter(|node| !nodes_before.contains(node)).count()
        })
        .collect();
    changed.sort_unstable();
    // The root, and the node with the chunk.
    assert_eq!(changed[0], 2);
    assert!(changed[100] <= 3 && changed[199] <= 16, "{changed:?}");
}
