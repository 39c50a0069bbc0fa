//! Which places are of the shard's own keys, once it was split.
//!
//! Places are sorted by expiry, so a split cannot tell those of one half from those of the other: both shards keep
//! all that are records. Of these each knows which are its own, by the range of its keys, and how many are not.
//! Foreign ones are in no count. They are removed in their order among the others when they are due, each as one
//! removal, but without the record that expires: so they never outlive the records they were made for.
//!
//! A merge drops all places of both shards: what either has of the other's keys may be outdated. They are written again,
//! see [`unplaced`](super::unplaced).
//!
//! Until all places are records, only own ones are in memory and are removed. A shard that was split in that time
//! meets the foreign ones when it is done, and then reads all from the first on.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use flotilla_storage::{MachineError, Overlay, ScanBounds, StateReader};
use flotilla_types::KeyRange;

use super::{DISAGREES, Expiries, Form, READ_BYTES_MAX, Stored, Summary, Totals, Unplaced};
use crate::place::Place;

/// Places that are read at once to find one of the shard's own.
const PAGE_ITEMS: usize = 64;
/// Foreign places that a read passes over to find one of the shard's own.
const FOREIGN_READ_MAX: usize = 4_096;

/// The keys of a shard that was split or merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    /// A part of [`KeyRange::of_users`], with an end.
    pub(crate) keys: KeyRange,
    /// How many places that are records are of other keys.
    pub(crate) foreign: u64,
    /// The keys whose places are still to be written, since a merge.
    pub(crate) unplaced: Option<Unplaced>,
}

fn owns(owned: Option<&Owned>, place: &Place) -> bool {
    owned.is_none_or(|owned| owned.keys.contains(&place.key))
}

impl Stored {
    /// The keys of the shard's records.
    pub(crate) fn keys(&self) -> KeyRange {
        self.owned.as_ref().map_or_else(KeyRange::of_users, |owned| owned.keys.clone())
    }

    /// Whether this is the place of one of its own records.
    pub(crate) fn owns(&self, place: &Place) -> bool {
        owns(self.owned.as_ref(), place)
    }

    /// How many places that are records are of other keys.
    pub(crate) fn foreign(&self) -> u64 {
        self.owned.as_ref().map_or(0, |owned| owned.foreign)
    }
}

impl Expiries {
    /// Gives up the records of `right`, the upper part of the shard's keys, of which these expire, so many of them
    /// without a place. Returns what the new shard has of them.
    pub(crate) fn split(&mut self, right: &KeyRange, expiring: &Totals, unplaced: u64) -> Result<Stored, MachineError> {
        let count = self.stored.count.checked_sub(expiring.records).ok_or(DISAGREES)?;
        let sum_ms = self.stored.sum_ms.checked_sub(expiring.expiries_ms).ok_or(DISAGREES)?;
        let places = std::mem::take(&mut self.next).into_iter();
        let (given, kept): (BTreeMap<_, _>, BTreeMap<_, _>) = places.partition(|(place, _)| right.contains(&place.key));
        let mut totals = Totals::default();
        for (place, bytes) in &given {
            totals.add(place.at_ms, *bytes);
            if place.at_ms <= self.clock_ms {
                self.due.subtract(place.at_ms, *bytes);
            }
        }
        let placed = |records: u64, unplaced: u64| records.checked_sub(unplaced).ok_or(DISAGREES);
        let own_unplaced = placed(self.stored.unplaced(), unplaced)?;
        if self.known_to.is_none() && unplaced == 0 && totals != *expiring {
            return Err(DISAGREES);
        }
        let are_records = |places: &BTreeMap<Place, u64>, all| match self.stored.form {
            Form::Memory | Form::Converting(_) => places.keys().filter(|place| self.is_record(place)).count() as u64,
            Form::Records => all,
        };
        let own_stored = are_records(&kept, placed(count, own_unplaced)?);
        let given_stored = are_records(&given, placed(expiring.records, unplaced)?);
        let foreign = |others| self.stored.foreign().checked_add(others).ok_or(DISAGREES);
        let keys = KeyRange { end: right.start.clone(), ..self.stored.keys() };
        let still = |keys: &KeyRange, count| self.stored.unplaced_within(keys, count);
        let (left_rest, right_rest) = (still(&keys, own_unplaced), still(right, unplaced));
        let owned = Some(Owned { keys, foreign: foreign(given_stored)?, unplaced: left_rest });
        let rights = Some(Owned { keys: right.clone(), foreign: foreign(own_stored)?, unplaced: right_rest });
        let (form, none_before_ms) = (self.stored.form.clone(), self.stored.none_before_ms);
        self.next = kept;
        if form == Form::Records {
            self.foreign.extend(given.into_keys());
        }
        self.stored = Stored { form: form.clone(), count, sum_ms, none_before_ms, owned };
        let (count, sum_ms) = (expiring.records, expiring.expiries_ms);
        Ok(Stored { form, count, sum_ms, none_before_ms, owned: rights })
    }

    /// The places in memory.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Place> {
        let (mut own, mut foreign) = (self.next.keys().peekable(), self.foreign.iter().peekable());
        iter::from_fn(move || match (own.peek(), foreign.peek()) {
            (Some(ours), Some(theirs)) if theirs < ours => foreign.next(),
            (Some(_), _) => own.next(),
            (None, _) => foreign.next(),
        })
    }

    /// Removes a foreign place that is in memory.
    pub(super) fn remove_foreign(&mut self, place: &Place, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        let owned = self.stored.owned.as_mut().ok_or(DISAGREES)?;
        owned.foreign = owned.foreign.checked_sub(1).ok_or(DISAGREES)?;
        self.foreign.remove(place);
        let removed = place.stored_key();
        overlay.delete(removed);
        Ok(())
    }

    /// All places have just become records. If some are foreign, which memory does not have, all are read again:
    /// foreign ones may be earlier than any that was removed.
    pub(super) fn meet_foreign(&mut self) {
        if self.stored.foreign() > 0 {
            (self.next, self.foreign, self.due) = (BTreeMap::new(), BTreeSet::new(), Totals::default());
            self.known_to = Some(Place::first_at(0));
            self.stored.none_before_ms = 0;
        }
    }

    /// Whether entries may come to that.
    pub(super) fn may_meet_foreign(&self) -> bool {
        self.is_converting() && self.stored.foreign() > 0
    }
}

impl Summary {
    pub(super) fn owns(&self, place: &Place) -> bool {
        owns(self.owned.as_ref(), place)
    }

    /// The keys whose places are still to be written.
    pub(super) fn unplaced(&self) -> Option<KeyRange> {
        let owned = self.owned.as_ref()?;
        let start = owned.unplaced.as_ref()?.from.clone();
        Some(KeyRange { start, end: owned.keys.end.clone() })
    }

    pub(super) fn has_foreign(&self) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.foreign > 0)
    }

    /// Whether this range of places may have one of the shard's own: it has, or too many are foreign to tell.
    pub(super) fn may_have_own(&self, mut range: KeyRange, records: &dyn StateReader) -> Result<bool, MachineError> {
        let mut examined = 0;
        while examined < FOREIGN_READ_MAX {
            let examined_max = FOREIGN_READ_MAX - examined;
            let bounds = ScanBounds { items_max: PAGE_ITEMS, bytes_max: READ_BYTES_MAX, examined_max };
            let page = records.scan_page(&range, bounds)?;
            for (key, _) in &page.items {
                if self.owns(&Place::of_stored_key(key)?) {
                    return Ok(true);
                }
            }
            examined += page.examined.max(1);
            match page.next {
                Some(next) => range.start = next,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
