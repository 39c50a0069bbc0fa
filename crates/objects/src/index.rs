//! The index: the location of each object, and the pins and roots that hold it.
//!
//! Pure bookkeeping behind the store's lock: one look-up tells whether an object is present, durable and
//! held, so that `contains` and `collect` always agree. It does no I/O.

use std::collections::{BTreeSet, HashMap};

use flotilla_types::{Holder, ObjectId};

/// The location of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Where the payload starts.
    pub(crate) offset: u64,
    /// Length of the payload.
    pub(crate) len: u32,
}

/// The state of one object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) location: Location,
    /// Whether an fsync covered it.
    pub(crate) synced: bool,
    /// Whether its bytes were verified against its id since the store was opened.
    pub(crate) verified: bool,
}

#[derive(Debug, Default)]
struct Holds {
    pins: u32,
    holders: u32,
}

/// Every object of the store.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: HashMap<ObjectId, Entry>,
    /// Counts for every id that is pinned or rooted, whether or not the object is present.
    holds: HashMap<ObjectId, Holds>,
    roots: HashMap<Holder, BTreeSet<ObjectId>>,
}

impl Index {
    pub(crate) fn entry(&self, id: ObjectId) -> Option<Entry> {
        self.entries.get(&id).copied()
    }

    pub(crate) fn insert(&mut self, id: ObjectId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ObjectId, Entry)> + '_ {
        self.entries.iter().map(|(id, entry)| (*id, *entry))
    }

    /// The entry, if the object is still at this location.
    fn entry_at(&mut self, id: ObjectId, location: Location) -> Option<&mut Entry> {
        self.entries.get_mut(&id).filter(|entry| entry.location == location)
    }

    pub(crate) fn mark_synced(&mut self, id: ObjectId, location: Location) {
        if let Some(entry) = self.entry_at(id, location) {
            entry.synced = true;
        }
    }

    pub(crate) fn mark_verified(&mut self, id: ObjectId, location: Location) {
        if let Some(entry) = self.entry_at(id, location) {
            entry.verified = true;
        }
    }

    /// Switches an object to a durable, verified copy, unless it was moved or removed meanwhile.
    pub(crate) fn relocate(&mut self, id: ObjectId, from: Location, to: Location) {
        if let Some(entry) = self.entry_at(id, from) {
            *entry = Entry { location: to, synced: true, verified: true };
        }
    }

    /// Removes an object, if it is still at this location.
    pub(crate) fn forget(&mut self, id: ObjectId, location: Location) {
        if self.entry_at(id, location).is_some() {
            self.entries.remove(&id);
        }
    }

    /// Whether the object must stay: pinned, rooted or not yet durable.
    pub(crate) fn is_held(&self, id: ObjectId) -> bool {
        self.holds.contains_key(&id) || self.entries.get(&id).is_some_and(|entry| !entry.synced)
    }

    pub(crate) fn pin(&mut self, id: ObjectId) {
        self.holds.entry(id).or_default().pins += 1;
    }

    pub(crate) fn unpin(&mut self, id: ObjectId) {
        if let Some(holds) = self.holds.get_mut(&id) {
            holds.pins = holds.pins.saturating_sub(1);
            self.drop_unheld(id);
        }
    }

    pub(crate) fn set_roots(&mut self, holder: Holder, ids: BTreeSet<ObjectId>) {
        for id in &ids {
            self.holds.entry(*id).or_default().holders += 1;
        }
        let before = if ids.is_empty() { self.roots.remove(&holder) } else { self.roots.insert(holder, ids) };
        for id in before.unwrap_or_default() {
            if let Some(holds) = self.holds.get_mut(&id) {
                holds.holders = holds.holders.saturating_sub(1);
                self.drop_unheld(id);
            }
        }
    }

    fn drop_unheld(&mut self, id: ObjectId) {
        if self.holds.get(&id).is_some_and(|holds| holds.pins == 0 && holds.holders == 0) {
            self.holds.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::ReplicaId;

    use super::*;

    const FIRST: Holder = Holder::Checkpoint(ReplicaId(1));
    const SECOND: Holder = Holder::Receiver(ReplicaId(1));

    #[test]
    fn an_object_is_held_until_its_last_pin_and_last_root_are_removed() {
        let id = ObjectId::of(b"x");
        let mut index = Index::default();
        index.pin(id);
        index.pin(id);
        index.set_roots(FIRST, [id].into());
        index.set_roots(SECOND, [id].into());
        index.unpin(id);
        index.unpin(id);
        index.unpin(id);
        assert!(index.is_held(id));
        index.set_roots(FIRST, BTreeSet::new());
        index.set_roots(SECOND, [ObjectId::of(b"y")].into());
        assert!(!index.is_held(id) && index.is_held(ObjectId::of(b"y")));
    }

    #[test]
    fn damage_at_an_old_location_does_not_remove_the_new_copy() {
        let id = ObjectId::of(b"x");
        let (old, new) = (Location { segment: 1, offset: 60, len: 1 }, Location { segment: 2, offset: 60, len: 1 });
        let mut index = Index::default();
        index.insert(id, Entry { location: old, synced: true, verified: false });
        index.relocate(id, old, new);
        index.forget(id, old);
        assert_eq!(index.entry(id).map(|entry| entry.location), Some(new));
    }
}
