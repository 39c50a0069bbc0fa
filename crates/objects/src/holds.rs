//! What must stay: pins, the roots of holders, and everything that is reachable from them.
//!
//! Holds begin at once. Those that end wait in a queue, which is emptied a bounded number at a time: what is let
//! go at once may be a million objects, and nobody who reads one must wait for all of them. Until then they stay.
//!
//! An object is *held* while a pin, a holder or a held parent counts for it. The counts change with what
//! changes: the first hold on an object counts for its children, the end of the last one releases them.
//! Neither recurses, so that a chain of any length is no danger. An object that is absent is held as well;
//! its children are counted when it arrives.
//!
//! Children follow from an object's bytes, so that no object can reach itself. Should the disk's lists say
//! otherwise, what is in the circle stays until the store is opened again.

use flotilla_types::{Holder, ObjectId};

use parking_lot::RwLockWriteGuard;

use crate::{ObjectStore, index::Index, node::Slot};

/// Holds that end while nobody else may use the index: half a millisecond.
const ENDED_PER_LOCK_MAX: usize = 4_096;

impl Index {
    /// Whether the object is reachable from a pin or a holder.
    #[cfg(test)]
    pub(crate) fn is_held(&self, id: ObjectId) -> bool {
        self.slot(id).is_some_and(|slot| self.nodes[slot.index()].holds > 0)
    }

    pub(crate) fn pin(&mut self, id: ObjectId) {
        let slot = self.slot_or_new(id);
        let pins = self.pins.entry(slot).or_default();
        *pins += 1;
        if *pins == 1 {
            self.count(slot);
        }
    }

    pub(crate) fn unpin(&mut self, id: ObjectId) {
        let Some(slot) = self.slot(id) else { return };
        let Some(pins) = self.pins.get_mut(&slot) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&slot);
            self.release(slot);
        }
    }

    /// Replaces the roots of a holder.
    pub(crate) fn hold(&mut self, holder: Holder, roots: impl Iterator<Item = ObjectId>) {
        let mut after: Vec<_> = roots.map(|id| self.slot_or_new(id)).collect();
        after.sort_unstable();
        after.dedup();
        let before = self.roots.remove(&holder).unwrap_or_default();
        let lacks = |list: &[Slot], slot: &Slot| list.binary_search(slot).is_err();
        // First what is added: what stays reachable is not released in between.
        after.iter().filter(|slot| lacks(&before, slot)).for_each(|slot| self.count(*slot));
        before.iter().filter(|slot| lacks(&after, slot)).for_each(|slot| self.release(*slot));
        if !after.is_empty() {
            self.roots.insert(holder, after.into_boxed_slice());
        }
    }

    /// Counts one hold on an object.
    pub(crate) fn count(&mut self, slot: Slot) {
        let mut queue = vec![slot];
        while let Some(slot) = queue.pop() {
            let node = &mut self.nodes[slot.index()];
            node.holds += 1;
            if node.holds == 1 {
                queue.extend_from_slice(self.children_of(slot));
                self.account(slot, true);
            }
        }
    }

    /// Lets one hold on an object end. Each slot in the queue stands for a hold that is still counted, so that no
    /// node in it is removed.
    pub(crate) fn release(&mut self, slot: Slot) {
        self.ending.push(slot);
    }

    /// Ends some of the holds that are to end, and those that end with them. Returns whether there are more.
    pub(crate) fn end_holds(&mut self, holds_max: usize) -> bool {
        for _ in 0..holds_max {
            let Some(slot) = self.ending.pop() else { break };
            if self.nodes[slot.index()].holds == 1 {
                self.account(slot, false);
            }
            let node = &mut self.nodes[slot.index()];
            node.holds -= 1;
            if node.holds == 0 {
                self.ending.extend_from_slice(self.lists.of(node.children));
                self.drop_unneeded(slot);
            }
        }
        !self.ending.is_empty()
    }
}

impl ObjectStore {
    /// Changes the index, and ends the holds that the change lets end.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.write();
        let changed = change(&mut index);
        while index.end_holds(ENDED_PER_LOCK_MAX) {
            RwLockWriteGuard::bump(&mut index);
        }
        changed
    }
}
