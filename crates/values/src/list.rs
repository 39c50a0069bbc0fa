//! The list of a value's chunks, cut by content.
//!
//! A node ends after a chunk whose id ends with five zero bits, but has 32 to 256 chunks: 64 on average. So a
//! change of few chunks changes few nodes. The ids decide, not positions, and ids are as good as random.

use std::mem;

use flotilla_types::ObjectId;

use crate::{CHUNKS_IN_REF_MAX, Level, List, ListNode, NODE_CHUNKS_MAX, NODE_CHUNKS_MIN, Object, ObjectKind, Part};

/// A node may end after one chunk in so many.
const NODE_ENDS_ONE_IN: u8 = 32;

/// A list that grows by one chunk at a time. It keeps one open node, and a part for each closed one.
#[derive(Debug, Default)]
pub(crate) struct ListBuilder {
    /// Chunks that are in no node yet.
    open: Vec<Part>,
    /// Nodes that were closed.
    nodes: Vec<Part>,
    /// Whether there are too many chunks for the reference, so that nodes are made.
    has_nodes: bool,
}

impl ListBuilder {
    /// Adds a chunk. Calls `out` with each node that this closes.
    pub(crate) fn add(&mut self, chunk: Part, out: &mut impl FnMut(Object)) {
        if self.has_nodes {
            return self.add_to_node(chunk, out);
        }
        self.open.push(chunk);
        if self.open.len() > CHUNKS_IN_REF_MAX {
            self.has_nodes = true;
            for chunk in mem::take(&mut self.open) {
                self.add_to_node(chunk, out);
            }
        }
    }

    /// The whole list. Calls `out` with the nodes that were not closed yet.
    pub(crate) fn finish(mut self, out: &mut impl FnMut(Object)) -> List {
        if !self.has_nodes {
            return List::Chunks(self.open);
        }
        if !self.open.is_empty() {
            self.close_node(out);
        }
        let root = object(ListNode::new(Level::Root, self.nodes));
        let id = root.id;
        out(root);
        List::Root(id)
    }

    fn add_to_node(&mut self, chunk: Part, out: &mut impl FnMut(Object)) {
        self.open.push(chunk);
        if ends_node(self.open.len(), chunk.id) {
            self.close_node(out);
        }
    }

    fn close_node(&mut self, out: &mut impl FnMut(Object)) {
        let node = ListNode::new(Level::Leaf, mem::take(&mut self.open));
        let bytes = node.covers() as u32;
        let node = object(node);
        self.nodes.push(Part { id: node.id, bytes });
        out(node);
    }
}

/// Whether a node ends that has so many chunks, this one being the last.
fn ends_node(chunks: usize, last: ObjectId) -> bool {
    let may_end = last.as_bytes()[31].is_multiple_of(NODE_ENDS_ONE_IN);
    chunks == NODE_CHUNKS_MAX || (chunks >= NODE_CHUNKS_MIN && may_end)
}

fn object(node: ListNode) -> Object {
    let bytes = node.encode();
    Object { id: ObjectId::of(&bytes), bytes, kind: ObjectKind::List(node) }
}
