//! The index: every object that is present, held or named as a child, and where its bytes are.
//!
//! Pure bookkeeping behind the store's lock; it does no I/O. An object has a *node*; nodes name each other by
//! slot, which is a tenth of an id. A node counts the holders, pins and held parents of its object
//! (`Node::holds`, in `holds.rs`), and the children lists that name it. It exists while it is present, held
//! or named.
//!
//! An object that is forgotten while it is held keeps its children, so that what it held stays: to repair it
//! takes only the object itself.

use std::collections::{BTreeSet, HashMap, HashSet};

use flotilla_types::{Holder, ObjectId};
use hashbrown::HashTable;
use slab::Slab;

use crate::{
    node::{Lists, Node, Place, Slot, Stored},
    segment::{FoundRecord, Lengths},
    tables::Tables,
    uploads::Uploads,
};

/// Where the bytes of an object may start: segments are shorter, but for a last object that is larger.
pub(crate) const OFFSET_MAX: u64 = u32::MAX as u64;

/// The location of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Where the payload starts.
    pub(crate) offset: u64,
    pub(crate) lengths: Lengths,
}

/// An object that is present.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) location: Location,
    pub(crate) stored: Stored,
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
    pub(crate) lists: Lists,
    by_id: HashTable<Slot>,
    hasher: Hasher,
    pub(crate) roots: HashMap<Holder, Box<[Slot]>>,
    pub(crate) pins: HashMap<Slot, u32>,
    pub(crate) uploads: Uploads,
    /// Holds that are to end, and count until then.
    pub(crate) ending: Vec<Slot>,
    pub(crate) tables: Tables,
    present: usize,
    /// Objects that are held, and absent because they were found damaged or did not survive a restart.
    pub(crate) damaged: BTreeSet<Slot>,
}

impl Index {
    pub(crate) fn entry(&self, id: ObjectId) -> Option<Entry> {
        self.entry_of(self.slot(id)?)
    }

    pub(crate) fn entry_of(&self, slot: Slot) -> Option<Entry> {
        let node = &self.nodes[slot.index()];
        let (Place { segment, offset, lengths }, stored) = (node.place()?, node.stored()?);
        let location = Location { segment: self.tables.number(segment), offset: offset.into(), lengths };
        Some(Entry { location, stored })
    }

    /// The children of a node.
    pub(crate) fn children_of(&self, slot: Slot) -> &[Slot] {
        self.lists.of(self.nodes[slot.index()].children)
    }

    /// Bytes of an object's record on disk.
    pub(crate) fn record_bytes(&self, slot: Slot) -> u64 {
        self.nodes[slot.index()].record_bytes(self.children_of(slot).len())
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
        let known = self.children_of(slot);
        let has = |child: &ObjectId| self.slot(*child).is_some_and(|child| known.binary_search(&child).is_ok());
        match self.nodes[slot.index()].is_present() {
            false => Known::Absent,
            true if children.iter().all(has) => Known::Covered,
            true => Known::Lacking,
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
        let is_copy = self.nodes[slot.index()].is_present();
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
            && let Some(stored) = self.nodes[slot.index()].stored()
        {
            self.nodes[slot.index()].set_stored(Stored { verified: true, ..stored });
        }
    }

    /// Records that the copy at `to` is durable, and uses it if the object still is at `from` or at `to`, or,
    /// without `from`, wherever it is.
    pub(crate) fn synced(&mut self, id: ObjectId, from: Option<Location>, to: Location) {
        self.tables.synced(to.segment);
        let Some(slot) = self.slot(id) else { return };
        let Some(now) = self.entry_of(slot) else { return };
        if now.location == to {
            self.nodes[slot.index()].set_stored(Stored { synced: true, ..now.stored });
        } else if from.is_none_or(|from| now.location == from) {
            self.place(slot, Entry { location: to, stored: Stored { synced: true, verified: true } });
        }
    }

    /// Forgets an object's bytes, if they are still at this location. If the object is held, it counts as
    /// damaged until it is stored again.
    pub(crate) fn forget(&mut self, id: ObjectId, location: Location) {
        let Some(slot) = self.slot_at(id, location) else { return };
        self.account(slot, false);
        self.nodes[slot.index()].set_absent();
        self.present -= 1;
        if self.nodes[slot.index()].holds > 0 {
            self.damaged.insert(slot);
        }
        self.drop_unneeded(slot);
    }

    /// An object counts as damaged if it is held and absent.
    pub(crate) fn expect(&mut self, id: ObjectId) {
        if let Some(slot) = self.slot(id)
            && !self.nodes[slot.index()].is_present()
            && self.nodes[slot.index()].holds > 0
        {
            self.damaged.insert(slot);
        }
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
                    queue.extend_from_slice(self.children_of(slot));
                    found.extend(self.damaged.contains(&slot).then_some(self.nodes[slot.index()].id));
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
        node.is_some_and(|node| node.holds > 0 || node.stored().is_some_and(|stored| !stored.synced))
    }

    /// The objects of a segment, by location, with their children if asked for.
    pub(crate) fn contents(&self, segment: u64, with_children: bool) -> Vec<FoundRecord> {
        let mut slots = self.tables.slots(segment).to_vec();
        slots.sort_unstable();
        slots.dedup();
        let of = |slot: Slot| {
            // A slot may be in use for another object by now.
            let node = self.nodes.get(slot.index())?;
            let entry = self.entry_of(slot).filter(|entry| entry.location.segment == segment)?;
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
        let slot = self.nodes.insert(Node::new(id));
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
        if node.is_present() || node.holds > 0 {
            return;
        }
        let children = self.lists.take(&mut node.children);
        self.damaged.remove(&slot);
        self.remove_unnamed(slot);
        for child in children {
            self.nodes[child.index()].named -= 1;
            self.remove_unnamed(child);
        }
    }

    fn remove_unnamed(&mut self, slot: Slot) {
        let node = &self.nodes[slot.index()];
        if !node.is_present() && node.holds == 0 && node.named == 0 {
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
        let held = self.nodes[slot.index()].holds > 0;
        for child in &after {
            self.nodes[child.index()].named += 1;
            if held {
                self.count(*child);
            }
        }
        self.account(slot, false);
        let before = self.lists.take(&mut self.nodes[slot.index()].children);
        self.nodes[slot.index()].children = self.lists.insert(after);
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
        let Location { segment, offset, lengths } = entry.location;
        // The opened store and its bounds see to that.
        assert!(offset <= OFFSET_MAX, "an object at {offset}");
        let place = Place { segment: self.tables.key(segment), offset: offset as u32, lengths };
        let node = &mut self.nodes[slot.index()];
        let before = node.place();
        let moved = before.is_none_or(|before| before.segment != place.segment);
        node.set_place(place, entry.stored);
        self.present += usize::from(before.is_none());
        self.damaged.remove(&slot);
        if moved {
            self.tables.list(segment, slot);
        }
        self.account(slot, true);
    }

    /// Adds an object's bytes to the live ones of its segment, or takes them away.
    pub(crate) fn account(&mut self, slot: Slot, live: bool) {
        let node = &self.nodes[slot.index()];
        if let Some(place) = node.place()
            && node.holds > 0
        {
            let bytes = self.record_bytes(slot);
            self.tables.change_live(self.tables.number(place.segment), bytes, live);
        }
    }

    fn slot_at(&self, id: ObjectId, location: Location) -> Option<Slot> {
        let at = |slot: &Slot| self.entry_of(*slot).is_some_and(|entry| entry.location == location);
        self.slot(id).filter(at)
    }

    fn child_ids(&self, slot: Slot) -> Vec<ObjectId> {
        let mut ids: Vec<_> = self.children_of(slot).iter().map(|child| self.nodes[child.index()].id).collect();
        ids.sort_unstable();
        ids
    }
}
