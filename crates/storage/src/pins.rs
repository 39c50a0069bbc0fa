//! Reference counts of objects that transfers share.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use flotilla_types::ObjectId;

/// Counts the pins of objects: an object that one transfer releases may be needed by another.
#[derive(Debug, Default)]
pub struct Pins(HashMap<ObjectId, usize>);

impl Pins {
    /// Adds one pin.
    pub fn add(&mut self, object: ObjectId) {
        *self.0.entry(object).or_default() += 1;
    }

    /// Whether the object has a pin.
    #[must_use]
    pub fn holds(&self, object: ObjectId) -> bool {
        self.0.contains_key(&object)
    }

    /// Removes one pin from each of these, and returns those that had one. An object that is named twice
    /// counts once.
    pub fn take(&mut self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let distinct: BTreeSet<_> = objects.iter().copied().collect();
        distinct.into_iter().filter(|object| self.take_one(*object)).collect()
    }

    fn take_one(&mut self, object: ObjectId) -> bool {
        let Entry::Occupied(mut pins) = self.0.entry(object) else { return false };
        *pins.get_mut() -= 1;
        if *pins.get() == 0 {
            pins.remove();
        }
        true
    }
}
