//! The index: every object that is present, held or named as a child, and where its bytes are.
//!
//! Pure bookkeeping behind the store's lock; it does no I/O. An object has a *node*; nodes name each other by
//! slot, which is a tenth of an id. A node counts the holders, pins and held parents of its object
//! ([`Node::holds`], in `holds.rs`), and the children lists that name it. It exists while it is present, held
//! or named.
//!
//! An object that is forgotten while it is held keeps its children, so that what it held stays: to repair it
//! takes only the object itself.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
};

use flotilla_types::{Holder, ObjectId};
use hashbrown::HashTable;
use slab::Slab;

use crate::{
    segment::{FoundRecord, ID_BYTES, Lengths, RECORD_HEADER_BYTES_MAX},
    tables::Tables,
    uploads::Uploads,
};

/// The place of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u32);

impl Slot {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The location of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Where the payload starts.
    pub(crate) offset: u64,
    pub(crate) lengths: Lengths,
}

/// What is known of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Whether an fsync covered them.
    pub(crate) synced: bool,
    /// Whether they were verified against the id since the store was opened.
    pub(crate) verified: bool,
}

/// An object that is present.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) location: Location,
    pub(crate) stored: Stored,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: ObjectId,
    /// The location, if `stored` is set. As fields, without the padding of a [`Location`].
    segment: u64,
    offset: u64,
    lengths: Lengths,
    /// Holders, held parents, and one if it is pinned. The object is held while this is not 0.
    pub(crate) holds: u32,
    /// Children lists that name it.
    pub(crate) named: u32,
    pub(crate) stored: Option<Stored>,
    /// Ascending, without duplicates and without the node itself.
    pub(crate) children: Box<[Slot]>,
}

impl Node {
    /// Bytes of its record on disk. What is not payload counts as well: a segment of small objects would
    /// never be dense otherwise. A record of format 1 is a little shorter.
    pub(crate) fn record_bytes(&self) -> u64 {
        let header_bytes = RECORD_HEADER_BYTES_MAX + ID_BYTES * self.children.len() as u64;
        header_bytes + u64::from(self.lengths.stored)
    }

    pub(crate) fn entry(&self) -> Option<Entry> {
        let location = Location { segment: self.segment, offset: self.offset, lengths: self.lengths };
        self.stored.map(|stored| Entry { location, stored })
    }
}

/// How an object's children compare with a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The object is not present.
    Absent,
    /// It is present; its children contain the list.
    Covered,
    /// It is present; its children lack some of the list.
    Lacking,
}

/// Hashes ids, which are hashes already, by one multiplication. The key is secret, so that nobody can make
/// objects whose ids meet in one bucket.
#[derive(Debug)]
struct Hasher([u64; 2]);

impl Default for Hasher {
    fn default() -> Self {
        Self(rand::random())
    }
}

impl Hasher {
    fn hash(&self, id: ObjectId) -> u64 {
        let (words, _) = id.0.as_chunks();
        let product =
            u128::from(u64::from_le_bytes(words[0]) ^ self.0[0]) * u128::from(u64::from_le_bytes(words[1]) ^ self.0[1]);
        (product >> 64) as u64 ^ product as u64
    }
}

/// Every object of the store.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) nodes: Slab<Node>,
    by_id: HashTable<Slot>,
    hasher: Hasher,
    pub(crate) roots: HashMap<Holder, Box<[Slot]>>,
    pub(crate) pins: HashMap<Slot, u32>,
    pub(crate) uploads: Uploads,
    /// Holds that are to end, and count until then.
    pub(crate) ending: Vec<Slot>,
    pub(crate) tables: Tables,
    present: usize,
    /// Objects that are held, and absent because they were found damaged.
    pub(crate) damaged: BTreeSet<Slot>,
}

impl Index {
    pub(crate) fn entry(&self, id: ObjectId) -> Option<Entry> {
        self.nodes[self.slot(id)?.index()].entry()
    }

    /// Number of objects that are present.
    pub(crate) const fn present(&self) -> usize {
        self.present
    }

    /// The children of an object, ascending by id.
    pub(crate) fn children(&self, id: ObjectId) -> Vec<ObjectId> {
        self.slot(id).map_or_else(Vec::new, |slot| self.child_ids(slot))
    }

    /// Compares the object's children with a list.
    pub(crate) fn known(&self, id: ObjectId, children: &[ObjectId]) -> Known {
        let Some(slot) = self.slot(id) else { return Known::Absent };
        let node = &self.nodes[slot.index()];
        let has = |child: &ObjectId| self.slot(*child).is_some_and(|child| node.children.binary_search(&child).is_ok());
        match node.stored {
            None => Known::Absent,
            Some(_) if children.iter().all(has) => Known::Covered,
            Some(_) => Known::Lacking,
        }
    }

    /// Adds an object, or moves it. What it held is replaced by `children`.
    pub(crate) fn insert(&mut self, id: ObjectId, entry: Entry, children: &[ObjectId]) {
        let slot = self.slot_or_new(id);
        self.place(slot, entry);
        self.set_children(slot, children);
    }

    /// Adds an object of an earlier run. Where it is there twice, this copy counts only if it is intact.
    pub(crate) fn insert_found(
        &mut self,
        id: ObjectId,
        location: Location,
        children: &[ObjectId],
        is_intact: impl FnOnce() -> bool,
    ) {
        let slot = self.slot_or_new(id);
        let is_copy = self.nodes[slot.index()].stored.is_some();
        if !is_copy || is_intact() {
            self.place(slot, Entry { location, stored: Stored { synced: true, verified: is_copy } });
            self.set_children(slot, children);
        }
    }

    /// Replaces the children of an object.
    pub(crate) fn replace_children(&mut self, id: ObjectId, children: &[ObjectId]) {
        if let Some(slot) = self.slot(id) {
            self.set_children(slot, children);
        }
    }

    pub(crate) fn mark_verified(&mut self, id: ObjectId, location: Location) {
        if let Some(slot) = self.slot_at(id, location)
            && let Some(stored) = &mut self.nodes[slot.index()].stored
        {
            stored.verified = true;
        }
    }

    /// Records that the copy at `to` is durable, and uses it if the object still is at `from` or at `to`, or,
    /// without `from`, wherever it is.
    pub(crate) fn synced(&mut self, id: ObjectId, from: Option<Location>, to: Location) {
        self.tables.synced(to.segment);
        let Some(slot) = self.slot(id) else { return };
        let Some(now) = self.nodes[slot.index()].entry() else { return };
        if now.location == to {
            self.nodes[slot.index()].stored = Some(Stored { synced: true, ..now.stored });
        } else if from.is_none_or(|from| now.location == from) {
            self.place(slot, Entry { location: to, stored: Stored { synced: true, verified: true } });
        }
    }

    /// Forgets an object's bytes, if they are still at this location. If the object is held, it counts as
    /// damaged until it is stored again.
    pub(crate) fn forget(&mut self, id: ObjectId, location: Location) {
        let Some(slot) = self.slot_at(id, location) else { return };
        self.account(slot, false);
        self.nodes[slot.index()].stored = None;
        self.present -= 1;
        if self.nodes[slot.index()].holds > 0 {
            self.damaged.insert(slot);
        }
        self.drop_unneeded(slot);
    }

    /// The damaged objects that each holder needs, at most `ids_max` of each.
    pub(crate) fn damaged(&self, ids_max: usize) -> Vec<(Holder, Vec<ObjectId>)> {
        if self.damaged.is_empty() {
            return Vec::new();
        }
        let needed = |roots: &[Slot]| {
            let (mut queue, mut seen, mut found) = (roots.to_vec(), HashSet::new(), Vec::new());
            while let Some(slot) = queue.pop() {
                if found.len() >= ids_max {
                    break;
                }
                if seen.insert(slot) {
                    let node = &self.nodes[slot.index()];
                    queue.extend_from_slice(&node.children);
                    found.extend(self.damaged.contains(&slot).then_some(node.id));
                }
            }
            found.sort_unstable();
            found
        };
        let all = self.roots.iter().map(|(holder, roots)| (*holder, needed(roots)));
        let all = all.chain(self.uploads.roots().map(|(holder, roots)| (holder, needed(&roots))));
        let mut found: Vec<_> = all.filter(|(_, ids)| !ids.is_empty()).collect();
        found.sort_unstable();
        found
    }

    /// Whether the object must stay: held or not yet durable.
    pub(crate) fn must_stay(&self, id: ObjectId) -> bool {
        let node = self.slot(id).map(|slot| &self.nodes[slot.index()]);
        node.is_some_and(|node| node.holds > 0 || node.stored.is_some_and(|stored| !stored.synced))
    }

    /// The objects of a segment, by location, with their children if asked for.
    pub(crate) fn contents(&self, segment: u64, with_children: bool) -> Vec<FoundRecord> {
        let mut slots = self.tables.slots(segment).to_vec();
        slots.sort_unstable();
        slots.dedup();
        let of = |slot: Slot| {
            // A slot may be in use for another object by now.
            let node = self.nodes.get(slot.index())?;
            let entry = node.entry().filter(|entry| entry.location.segment == segment)?;
            let children = if with_children { self.child_ids(slot) } else { Vec::new() };
            let Location { offset, lengths, .. } = entry.location;
            Some(FoundRecord { id: node.id, offset, lengths, children })
        };
        let mut contents: Vec<_> = slots.into_iter().filter_map(of).collect();
        contents.sort_unstable_by_key(|record| record.offset);
        contents
    }

    pub(crate) fn slot(&self, id: ObjectId) -> Option<Slot> {
        self.by_id.find(self.hasher.hash(id), |slot| self.nodes[slot.index()].id == id).copied()
    }

    /// The node of an object. A new one has to be held, named or placed at once.
    pub(crate) fn slot_or_new(&mut self, id: ObjectId) -> Slot {
        if let Some(slot) = self.slot(id) {
            return slot;
        }
        let (lengths, children) = (Lengths::uncompressed(0), Box::default());
        let node = Node { id, segment: 0, offset: 0, lengths, holds: 0, named: 0, stored: None, children };
        let slot = self.nodes.insert(node);
        // So many nodes take 300 GiB of memory.
        assert!(u32::try_from(slot).is_ok(), "more than 2^32 objects");
        let slot = Slot(slot as u32);
        let Self { nodes, by_id, hasher, .. } = self;
        by_id.insert_unique(hasher.hash(id), slot, |slot| hasher.hash(nodes[slot.index()].id));
        slot
    }

    /// Lets go of what an object holds if it is neither present nor held, and of its node if nothing names
    /// it.
    pub(crate) fn drop_unneeded(&mut self, slot: Slot) {
        let node = &mut self.nodes[slot.index()];
        if node.stored.is_some() || node.holds > 0 {
            return;
        }
        let children = mem::take(&mut node.children);
        self.damaged.remove(&slot);
        self.remove_unnamed(slot);
        for child in children {
            self.nodes[child.index()].named -= 1;
            self.remove_unnamed(child);
        }
    }

    fn remove_unnamed(&mut self, slot: Slot) {
        let node = &self.nodes[slot.index()];
        if node.stored.is_none() && node.holds == 0 && node.named == 0 {
            let hash = self.hasher.hash(node.id);
            if let Ok(entry) = self.by_id.find_entry(hash, |other| *other == slot) {
                entry.remove();
            }
            self.nodes.remove(slot.index());
        }
    }

    fn set_children(&mut self, slot: Slot, children: &[ObjectId]) {
        let mut after: Vec<_> = children.iter().map(|child| self.slot_or_new(*child)).collect();
        after.sort_unstable();
        after.dedup();
        after.retain(|child| *child != slot);
        let after = after.into_boxed_slice();
        let held = self.nodes[slot.index()].holds > 0;
        for child in &after {
            self.nodes[child.index()].named += 1;
            if held {
                self.count(*child);
            }
        }
        self.account(slot, false);
        let before = mem::replace(&mut self.nodes[slot.index()].children, after);
        self.account(slot, true);
        for child in before {
            if held {
                self.release(child);
            }
            self.nodes[child.index()].named -= 1;
            self.drop_unneeded(child);
        }
    }

    fn place(&mut self, slot: Slot, entry: Entry) {
        self.account(slot, false);
        let node = &mut self.nodes[slot.index()];
        let Location { segment, offset, lengths } = entry.location;
        let moved = node.stored.is_none() || node.segment != segment;
        self.present += usize::from(node.stored.is_none());
        self.damaged.remove(&slot);
        (node.segment, node.offset, node.lengths, node.stored) = (segment, offset, lengths, Some(entry.stored));
        if moved {
            self.tables.list(segment, slot);
        }
        self.account(slot, true);
    }

    /// Adds an object's bytes to the live ones of its segment, or takes them away.
    pub(crate) fn account(&mut self, slot: Slot, live: bool) {
        let node = &self.nodes[slot.index()];
        if node.stored.is_some() && node.holds > 0 {
            self.tables.change_live(node.segment, node.record_bytes(), live);
        }
    }

    fn slot_at(&self, id: ObjectId, location: Location) -> Option<Slot> {
        let at = |slot: &Slot| self.nodes[slot.index()].entry().is_some_and(|entry| entry.location == location);
        self.slot(id).filter(at)
    }

    fn child_ids(&self, slot: Slot) -> Vec<ObjectId> {
        let mut ids: Vec<_> =
            self.nodes[slot.index()].children.iter().map(|child| self.nodes[child.index()].id).collect();
        ids.sort_unstable();
        ids
    }
}
