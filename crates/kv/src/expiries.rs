//! What the machine knows of the records that expire: how many, the sum of their expiries, and the next ones.
//!
//! Up to the version before [`flotilla_types::ClusterVersion::EXPIRY_RECORDS`] all of them are in memory, and a
//! load finds them by reading the records. After the switch each entry writes [places](crate::place) of some of
//! them as records, in order; until all are written, memory still has all. From then on it has only the next
//! ones, and reads more when entries have removed these: a bounded number, whatever the number of records that
//! expire.
//!
//! After a split of the shard some places that are records are of keys that another shard has: see [`owned`]. After a
//! merge places are written anew: see [`unplaced`].
//!
//! Invariant: `next` and `foreign` have every place before `known_to`. What is removed at an entry depends on the
//! places, on the clock and on the shard's own keys only, never on how many places are in memory: those differ
//! between replicas.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use flotilla_storage::{MachineError, Overlay, ScanBounds, StateReader};

use crate::place::{Place, decode_bytes, encode_bytes, stored_range};

mod owned;
mod unplaced;

pub(crate) use owned::Owned;
pub(crate) use unplaced::Unplaced;

/// Places that are read at once and kept; up to twice as many are kept as entries add some.
pub(crate) const NEXT_MAX: usize = 2_048;
/// Bytes of places that are read at once.
const READ_BYTES_MAX: usize = 1 << 20;

/// The expiries disagree with the records, or with what the system state says of them.
pub(crate) const DISAGREES: MachineError = MachineError::Corrupt("the counts of records disagree with the records");

/// Where the places are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// In memory only.
    #[default]
    Memory,
    /// In memory, and those up to this one also as records.
    Converting(Place),
    /// As records.
    Records,
}

/// Records with an expiry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) records: u64,
    /// Of their keys and values.
    pub(crate) bytes: u64,
    /// The sum of their expiries.
    pub(crate) expiries_ms: u128,
}

impl Totals {
    pub(crate) fn add(&mut self, at_ms: u64, bytes: u64) {
        self.records = self.records.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.expiries_ms = self.expiries_ms.saturating_add(u128::from(at_ms));
    }

    fn subtract(&mut self, at_ms: u64, bytes: u64) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.expiries_ms = self.expiries_ms.saturating_sub(u128::from(at_ms));
    }
}

/// What a checkpoint has of the expiries, besides records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) form: Form,
    /// Records that expire.
    pub(crate) count: u64,
    pub(crate) sum_ms: u128,
    /// No record expires before this time.
    pub(crate) none_before_ms: u64,
    /// Once the shard was split or merged.
    pub(crate) owned: Option<Owned>,
}

/// What was taken because it is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// A record of so many bytes.
    Record(Place, u64),
    /// Only the place of a record that another shard has.
    Foreign,
}

/// The records of a shard that expire.
#[derive(Debug)]
pub(crate) struct Expiries {
    stored: Stored,
    /// The bytes of the next records to expire.
    next: BTreeMap<Place, u64>,
    /// The next places of records that other shards have, if all places are records; else none.
    foreign: BTreeSet<Place>,
    /// `None`: all are in memory.
    known_to: Option<Place>,
    next_max: usize,
    /// The shard's clock.
    clock_ms: u64,
    /// Those in `next` that are due at the clock.
    due: Totals,
}

impl Expiries {
    /// The expiries of a shard without records.
    pub(crate) fn new(next_max: usize) -> Self {
        let (stored, next, due) = (Stored::default(), BTreeMap::new(), Totals::default());
        Self { stored, next, foreign: BTreeSet::new(), known_to: None, next_max, clock_ms: 0, due }
    }

    /// The expiries of a checkpoint at this clock. Unless they are records, [`find`](Self::find) completes them.
    pub(crate) fn restored(stored: Stored, clock_ms: u64, next_max: usize) -> Self {
        let is_any_stored = stored.form == Form::Records && (stored.count, stored.foreign()) != (stored.unplaced(), 0);
        let known_to = is_any_stored.then(|| Place::first_at(stored.none_before_ms));
        Self { stored, known_to, clock_ms, ..Self::new(next_max) }
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.stored
    }

    pub(crate) fn next_max(&self) -> usize {
        self.next_max
    }

    /// Whether the places must be found among the records.
    pub(crate) fn must_be_found(&self) -> bool {
        self.stored.form != Form::Records && self.found() < self.stored.count
    }

    fn found(&self) -> u64 {
        self.next.len() as u64
    }

    /// Adds a record that is counted already.
    pub(crate) fn find(&mut self, place: Place, bytes: u64) {
        let at_ms = place.at_ms;
        if self.next.insert(place, bytes).is_none() && at_ms <= self.clock_ms {
            self.due.add(at_ms, bytes);
        }
    }

    /// All places were found.
    pub(crate) fn finish_finding(&mut self) -> Result<(), MachineError> {
        let sum_ms = self.next.keys().map(|place| u128::from(place.at_ms)).sum();
        match self.stored.form {
            Form::Memory => self.stored.sum_ms = sum_ms,
            Form::Converting(_) if self.stored.sum_ms != sum_ms => return Err(DISAGREES),
            Form::Converting(_) | Form::Records => {}
        }
        Ok(())
    }

    /// The shard's clock has reached this time. Costs what is in memory and has become due by it.
    pub(crate) fn advance(&mut self, clock_ms: u64) {
        if self.clock_ms >= clock_ms {
            return;
        }
        if let Some(from) = Place::after(self.clock_ms) {
            for (place, bytes) in self.next.range(from..).take_while(|(place, _)| place.at_ms <= clock_ms) {
                self.due.add(place.at_ms, *bytes);
            }
        }
        self.clock_ms = clock_ms;
    }

    /// Whether a place is, or must become, a record.
    fn is_record(&self, place: &Place) -> bool {
        match &self.stored.form {
            Form::Memory => false,
            Form::Converting(to) => place <= to,
            Form::Records => true,
        }
    }

    fn is_known(&self, place: &Place) -> bool {
        self.known_to.as_ref().is_none_or(|known_to| place < known_to)
    }

    /// A record of so many bytes expires at this place.
    pub(crate) fn insert(&mut self, place: Place, bytes: u64, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        if !self.stored.owns(&place) {
            return Err(DISAGREES);
        }
        self.stored.count = self.stored.count.checked_add(1).ok_or(DISAGREES)?;
        self.stored.sum_ms = self.stored.sum_ms.checked_add(u128::from(place.at_ms)).ok_or(DISAGREES)?;
        if self.stored.count_unplaced(&place.key, true)? {
            return Ok(());
        }
        if self.is_record(&place) {
            overlay.put(place.stored_key(), encode_bytes(bytes));
        }
        if self.is_known(&place) {
            self.find(place, bytes);
        }
        Ok(())
    }

    /// The record of so many bytes that expires at this place does not any more.
    pub(crate) fn remove(&mut self, place: &Place, bytes: u64, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        self.stored.count = self.stored.count.checked_sub(1).ok_or(DISAGREES)?;
        self.stored.sum_ms = self.stored.sum_ms.checked_sub(u128::from(place.at_ms)).ok_or(DISAGREES)?;
        if self.stored.count_unplaced(&place.key, false)? {
            return Ok(());
        }
        if self.is_record(place) {
            overlay.delete(place.stored_key());
        }
        if self.is_known(place) {
            self.next.remove(place).filter(|held| *held == bytes).ok_or(DISAGREES)?;
            if place.at_ms <= self.clock_ms {
                self.due.subtract(place.at_ms, bytes);
            }
        }
        Ok(())
    }

    /// Removes the first place if it is due at the clock, and returns what it was of.
    pub(crate) fn take_due(&mut self, overlay: &mut Overlay<'_>) -> Result<Option<Due>, MachineError> {
        while self.in_memory() == 0 && self.known_to.as_ref().is_some_and(|known_to| known_to.at_ms <= self.clock_ms) {
            self.read_next(overlay)?;
        }
        let first = self.in_order().next().filter(|place| place.at_ms <= self.clock_ms).cloned();
        let Some(place) = first else {
            self.stored.none_before_ms = self.clock_ms.saturating_add(1);
            return Ok(None);
        };
        self.stored.none_before_ms = place.at_ms;
        let Some(bytes) = self.next.get(&place).copied() else {
            self.remove_foreign(&place, overlay)?;
            return Ok(Some(Due::Foreign));
        };
        self.remove(&place, bytes, overlay)?;
        Ok(Some(Due::Record(place, bytes)))
    }

    /// Reads the places that follow those in memory.
    fn read_next(&mut self, records: &Overlay<'_>) -> Result<(), MachineError> {
        let Some(from) = &self.known_to else { return Ok(()) };
        let page = records.scan(&stored_range(from, None), self.next_max, READ_BYTES_MAX)?;
        self.known_to = match page.last() {
            Some((last, _)) => Some(Place::of_stored_key(&flotilla_storage::successor(last))?),
            None => None,
        };
        for (key, value) in page {
            let (place, bytes) = (Place::of_stored_key(&key)?.unshared(), decode_bytes(&value)?);
            if self.stored.owns(&place) {
                self.find(place, bytes);
            } else {
                self.foreign.insert(place);
            }
        }
        let found = (self.found(), self.foreign.len() as u64);
        let placed = self.stored.count.checked_sub(self.stored.unplaced()).ok_or(DISAGREES)?;
        let disagrees = self.known_to.is_none() && found != (placed, self.stored.foreign());
        if disagrees { Err(DISAGREES) } else { Ok(()) }
    }

    /// From now on places become records.
    pub(crate) fn begin_conversion(&mut self) {
        if self.stored.form == Form::Memory {
            let is_done = self.next.is_empty();
            self.stored.form = if is_done { Form::Records } else { Form::Converting(Place::first_at(0)) };
        }
    }

    /// Writes at most so many places as records, if they still have to be.
    pub(crate) fn convert(&mut self, places_max: usize, overlay: &mut Overlay<'_>) {
        let Form::Converting(to) = &self.stored.form else { return };
        let (mut converted, mut last) = (0, None);
        for (place, bytes) in self.next.range((Bound::Excluded(to), Bound::Unbounded)).take(places_max) {
            overlay.put(place.stored_key(), encode_bytes(*bytes));
            (converted, last) = (converted + 1, Some(place));
        }
        self.stored.form = match last {
            Some(last) if converted == places_max => Form::Converting(last.clone()),
            _ => Form::Records,
        };
        if self.stored.form == Form::Records {
            self.meet_foreign();
        }
    }

    pub(crate) fn is_converting(&self) -> bool {
        matches!(self.stored.form, Form::Converting(_))
    }

    /// Keeps only the next ones in memory, when there are too many. Call it after each entry.
    pub(crate) fn forget_later(&mut self) {
        if self.stored.form != Form::Records || self.in_memory() <= 2 * self.next_max {
            return;
        }
        let Some(first) = self.in_order().nth(self.next_max).cloned() else { return };
        for (place, bytes) in self.next.split_off(&first) {
            if place.at_ms <= self.clock_ms {
                self.due.subtract(place.at_ms, bytes);
            }
        }
        self.foreign.split_off(&first);
        self.known_to = Some(first);
    }

    /// How many places are in memory.
    pub(crate) fn in_memory(&self) -> usize {
        self.next.len() + self.foreign.len()
    }

    /// Whether entries up to this time may have to read places: entries that add at most so many records with
    /// an expiry, and remove at most so many.
    pub(crate) fn may_read(&self, until_ms: u64, added: usize, removed: usize) -> bool {
        if self.may_meet_foreign() {
            return true;
        }
        // `forget_later` may act between any two of the entries, but leaves `next_max`.
        let Some(known_to) = &self.known_to else {
            return self.in_memory() + added > 2 * self.next_max && removed > self.next_max;
        };
        if removed <= self.next_max.min(self.in_memory()) {
            return false;
        }
        let due = || self.in_order().take_while(|place| place.at_ms <= until_ms).take(self.next_max).count();
        known_to.at_ms <= until_ms || due() + added >= self.next_max
    }

    /// No place is due before this time; `None` if there is none.
    pub(crate) fn first_ms(&self) -> Option<u64> {
        let first = self.in_order().next().or(self.known_to.as_ref());
        first.map(|place| place.at_ms)
    }

    /// What a count needs.
    pub(crate) fn summary(&self) -> Summary {
        let later = Place::after(self.clock_ms).and_then(|from| self.next.range(from..).next());
        Summary {
            count: self.stored.count,
            sum_ms: self.stored.sum_ms,
            clock_ms: self.clock_ms,
            due: self.due,
            later_ms: later.map(|(place, _)| place.at_ms),
            known_to: self.known_to.clone(),
            owned: self.stored.owned.clone(),
        }
    }
}

/// The expiries of a state, as far as they are in memory.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    count: u64,
    sum_ms: u128,
    clock_ms: u64,
    /// Due records before `known_to`.
    due: Totals,
    /// The first expiry before `known_to` and after the clock.
    later_ms: Option<u64>,
    known_to: Option<Place>,
    owned: Option<Owned>,
}

impl Summary {
    /// The number of records that are not due at the clock and expire.
    pub(crate) fn live(&self, due: &Totals) -> (u64, u128) {
        (self.count.saturating_sub(due.records), self.sum_ms.saturating_sub(due.expiries_ms))
    }

    /// The records that are due at the clock. Reads those that are not in memory, at most `examined_max`
    /// places: `None` if there are more.
    pub(crate) fn due(&self, records: &dyn StateReader, examined_max: usize) -> Result<Option<Totals>, MachineError> {
        let mut due = self.due;
        if !self.add_unplaced(&mut due, records, examined_max)? {
            return Ok(None);
        }
        let Some(known_to) = self.known_to.as_ref().filter(|known_to| known_to.at_ms <= self.clock_ms) else {
            return Ok(Some(due));
        };
        let mut rest = stored_range(known_to, Place::after(self.clock_ms).as_ref());
        let mut examined = 0;
        while examined < examined_max {
            let examined_max = NEXT_MAX.min(examined_max - examined);
            let bounds = ScanBounds { items_max: NEXT_MAX, bytes_max: READ_BYTES_MAX, examined_max };
            let page = records.scan_page(&rest, bounds)?;
            for (key, value) in &page.items {
                let place = Place::of_stored_key(key)?;
                if self.owns(&place) {
                    due.add(place.at_ms, decode_bytes(value)?);
                }
            }
            examined += page.examined.max(1);
            match page.next {
                Some(next) => rest.start = next,
                None => return Ok(Some(due)),
            }
        }
        Ok(None)
    }

    /// Whether a record expires after the clock and at or before this time. Also if there are too many foreign places
    /// to tell, or records without a place: whoever advances the clock then gets past them.
    pub(crate) fn becomes_due_by(&self, until_ms: u64, records: &dyn StateReader) -> Result<bool, MachineError> {
        let Some(from) = Place::after(self.clock_ms).filter(|from| from.at_ms <= until_ms) else { return Ok(false) };
        if self.later_ms.is_some_and(|at_ms| at_ms <= until_ms) || self.unplaced().is_some() {
            return Ok(true);
        }
        let Some(known_to) = self.known_to.as_ref().filter(|known_to| known_to.at_ms <= until_ms) else {
            return Ok(false);
        };
        let from = known_to.max(&from);
        let range = stored_range(from, Place::after(until_ms).as_ref());
        if self.has_foreign() {
            return self.may_have_own(range, records);
        }
        Ok(!records.scan(&range, 1, READ_BYTES_MAX)?.is_empty())
    }
}
