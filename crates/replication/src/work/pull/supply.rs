//! The objects that a pull lacks, and which sources hold them.
//!
//! Invariant: an object that was put into the supply waits for a request, is requested, or is here. Only what
//! waits is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use flotilla_types::ObjectId;

use super::wanted::Wanted;

/// Sources of a pull: a bit of [`Holders`] for each.
pub(super) const SOURCES_MAX: usize = 8;

/// A set of sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Holders(u8);

impl Holders {
    fn of(source: usize) -> Self {
        Self(1 << source)
    }

    fn has(self, source: usize) -> bool {
        self.0 & Self::of(source).0 != 0
    }

    fn with(self, source: usize) -> Self {
        Self(self.0 | Self::of(source).0)
    }

    fn without(self, source: usize) -> Self {
        Self(self.0 & !Self::of(source).0)
    }
}

#[derive(Debug)]
struct Object {
    wanted: Wanted,
    holders: Holders,
    waits: bool,
}

#[derive(Debug, Default)]
pub(super) struct Supply {
    /// In the order in which they became known.
    objects: Vec<Object>,
    numbers: HashMap<ObjectId, u32>,
    /// Those that wait, by who holds them.
    waiting: BTreeMap<Holders, BTreeSet<u32>>,
    waiting_count: usize,
}

impl Supply {
    /// Adds an object that waits, if it is new, and who holds it as far as that is known.
    pub(super) fn add(&mut self, wanted: Wanted, holder: Option<usize>) {
        let number = self.objects.len() as u32;
        if *self.numbers.entry(wanted.id).or_insert(number) == number {
            let holders = holder.map(Holders::of).unwrap_or_default();
            self.objects.push(Object { wanted, holders, waits: false });
            self.wait(number);
        }
    }

    /// The number of objects that were added.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The number of those that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// Whether some source holds one that waits.
    pub(super) fn has_holders(&self) -> bool {
        self.waiting.keys().any(|holders| *holders != Holders::default())
    }

    /// Takes objects that a source holds, those with the fewest holders first, and says how many bytes they
    /// have, as far as that is known. The first one may have more than `bytes_max`.
    pub(super) fn take(&mut self, source: usize, objects_max: usize, bytes_max: u64) -> (Vec<Wanted>, u64) {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        let mut held: Vec<_> = self.waiting.keys().copied().filter(|holders| holders.has(source)).collect();
        held.sort_by_key(|holders| holders.0.count_ones());
        for holders in held {
            let numbers: Vec<_> = self.waiting[&holders].iter().copied().take(objects_max - taken.len()).collect();
            for number in numbers {
                let object = &self.objects[number as usize];
                if !taken.is_empty() && bytes + u64::from(object.wanted.bytes) > bytes_max {
                    return (taken, bytes);
                }
                bytes += u64::from(object.wanted.bytes);
                taken.push(object.wanted);
                self.unwait(number);
            }
        }
        (taken, bytes)
    }

    /// Objects that wait, at most so many, from this one on; and the first one that was not looked at.
    pub(super) fn waiting_from(&self, from: usize, objects_max: usize) -> (Vec<ObjectId>, usize) {
        let mut found = Vec::new();
        for (number, object) in self.objects.iter().enumerate().skip(from) {
            if found.len() == objects_max {
                return (found, number);
            }
            if object.waits {
                found.push(object.wanted.id);
            }
        }
        (found, self.objects.len())
    }

    /// An object that was taken waits again.
    pub(super) fn put_back(&mut self, id: ObjectId) {
        if let Some(number) = self.numbers.get(&id).copied() {
            self.wait(number);
        }
    }

    /// A source holds an object.
    pub(super) fn found(&mut self, id: ObjectId, source: usize) {
        self.change(id, |holders| holders.with(source));
    }

    /// A source does not hold an object.
    pub(super) fn lacks(&mut self, id: ObjectId, source: usize) {
        self.change(id, |holders| holders.without(source));
    }

    /// Whether this source holds an object, as far as that is known.
    pub(super) fn is_held_by(&self, id: ObjectId, source: usize) -> bool {
        self.holders(id).has(source)
    }

    /// Whether another source than this one holds an object.
    pub(super) fn is_held_elsewhere(&self, id: ObjectId, source: usize) -> bool {
        self.holders(id).without(source) != Holders::default()
    }

    /// The number of an object that no source holds, as far as that is known.
    pub(super) fn number_without_holder(&self, id: ObjectId) -> Option<usize> {
        let number = *self.numbers.get(&id)? as usize;
        (self.objects[number].holders == Holders::default()).then_some(number)
    }

    fn holders(&self, id: ObjectId) -> Holders {
        self.numbers.get(&id).map(|number| self.objects[*number as usize].holders).unwrap_or_default()
    }

    /// A source holds nothing any more.
    pub(super) fn lose(&mut self, source: usize) {
        for number in 0..self.objects.len() as u32 {
            self.change_number(number, |holders| holders.without(source));
        }
    }

    fn change(&mut self, id: ObjectId, change: impl FnOnce(Holders) -> Holders) {
        if let Some(number) = self.numbers.get(&id).copied() {
            self.change_number(number, change);
        }
    }

    fn change_number(&mut self, number: u32, change: impl FnOnce(Holders) -> Holders) {
        let object = &self.objects[number as usize];
        let (waits, holders) = (object.waits, change(object.holders));
        if holders != object.holders {
            self.unwait(number);
            self.objects[number as usize].holders = holders;
            if waits {
                self.wait(number);
            }
        }
    }

    fn wait(&mut self, number: u32) {
        let object = &mut self.objects[number as usize];
        if !std::mem::replace(&mut object.waits, true) {
            self.waiting.entry(object.holders).or_default().insert(number);
            self.waiting_count += 1;
        }
    }

    fn unwait(&mut self, number: u32) {
        let object = &mut self.objects[number as usize];
        if std::mem::replace(&mut object.waits, false) {
            self.waiting_count -= 1;
            if let Some(numbers) = self.waiting.get_mut(&object.holders) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.waiting.remove(&object.holders);
                }
            }
        }
    }
}
