//! Places that are still to be written, of a shard that was merged.
//!
//! Two shards that become one have places of each other's keys, from the splits that made them, and what either has of
//! the other's is outdated. Places are sorted by time, so they cannot be told apart without reading all. So a merge
//! drops the places of both shards, and entries without commands write them again, from the records, in key order, a
//! bounded number each. Until then the records that expire are counted, and reads judge each by its own expiry; one
//! without a place is only not removed when it is due.
//!
//! Invariants: the keys without places are those from one key on; a record has its place if and only if its key is
//! below; how far an entry gets depends on the records alone.

use bytes::Bytes;
use flotilla_storage::{MachineError, Overlay, StateReader, successor};
use flotilla_types::KeyRange;

use super::{DISAGREES, Expiries, Form, Owned, READ_BYTES_MAX, Stored, Summary, Totals};
use crate::{
    place::{Place, encode_bytes},
    record::StoredRecord,
    stats::Footprint,
};

/// The keys of a shard, from one on, whose records have no places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unplaced {
    /// The first one.
    pub(crate) from: Bytes,
    /// Their records that expire: more than none.
    pub(crate) count: u64,
}

impl Stored {
    fn rest(&self) -> Option<&Unplaced> {
        self.owned.as_ref()?.unplaced.as_ref()
    }

    /// How many records that expire have no place.
    pub(crate) fn unplaced(&self) -> u64 {
        self.rest().map_or(0, |rest| rest.count)
    }

    /// Whether the record of a key has no place.
    pub(crate) fn is_unplaced(&self, key: &[u8]) -> bool {
        self.rest().is_some_and(|rest| *key >= rest.from[..])
    }

    /// What a shard with these keys, the end of the range or a part before it, has of the keys without places.
    pub(super) fn unplaced_within(&self, keys: &KeyRange, count: u64) -> Option<Unplaced> {
        let from = self.rest()?.from.clone().max(keys.start.clone());
        (count > 0).then_some(Unplaced { from, count })
    }

    /// Counts a record that expires and has no place, or does not expire any more. Returns whether it is one.
    pub(super) fn count_unplaced(&mut self, key: &[u8], is_added: bool) -> Result<bool, MachineError> {
        if !self.is_unplaced(key) {
            return Ok(false);
        }
        let Some(owned) = &mut self.owned else { return Err(DISAGREES) };
        let Some(rest) = &mut owned.unplaced else { return Err(DISAGREES) };
        let counted = if is_added { rest.count.checked_add(1) } else { rest.count.checked_sub(1) };
        rest.count = counted.ok_or(DISAGREES)?;
        if rest.count == 0 {
            owned.unplaced = None;
        }
        Ok(true)
    }
}

impl Expiries {
    /// Takes over the records of the right neighbour; from now on the shard has the keys of both. All places were
    /// dropped.
    pub(crate) fn merge(&mut self, keys: KeyRange, right: &Stored) -> Result<(), MachineError> {
        let count = self.stored.count.checked_add(right.count).ok_or(DISAGREES)?;
        let sum_ms = self.stored.sum_ms.checked_add(right.sum_ms).ok_or(DISAGREES)?;
        let unplaced = (count > 0).then(|| Unplaced { from: keys.start.clone(), count });
        let owned = Some(Owned { keys, foreign: 0, unplaced });
        let stored = Stored { form: Form::Records, count, sum_ms, none_before_ms: 0, owned };
        *self = Self::restored(stored, self.clock_ms, self.next_max);
        Ok(())
    }

    /// Whether places are still to be written.
    pub(crate) fn is_placing(&self) -> bool {
        self.stored.unplaced() > 0
    }

    /// Writes the places of the next so many records at most.
    pub(crate) fn place(&mut self, records_max: usize, overlay: &mut Overlay<'_>) -> Result<(), MachineError> {
        let mut examined = 0;
        while examined < records_max {
            let Some(Unplaced { from, .. }) = self.stored.rest() else { return Ok(()) };
            let range = KeyRange { start: from.clone(), end: self.stored.keys().end };
            let page = overlay.scan(&range, records_max - examined, READ_BYTES_MAX)?;
            // Some are left.
            let (last, _) = page.last().ok_or(DISAGREES)?;
            let next = successor(last);
            examined += page.len();
            let mut placed = 0;
            for (key, value) in page {
                let Footprint { bytes, expires_at_ms } = Footprint::of(&key, &StoredRecord::decode(value)?);
                let Some(at_ms) = expires_at_ms else { continue };
                let place = Place::new(at_ms, key).unshared();
                overlay.put(place.stored_key(), encode_bytes(bytes));
                self.stored.none_before_ms = self.stored.none_before_ms.min(at_ms);
                if self.is_known(&place) {
                    self.find(place, bytes);
                }
                placed += 1;
            }
            let Some(owned) = &mut self.stored.owned else { return Err(DISAGREES) };
            let Some(rest) = &mut owned.unplaced else { return Err(DISAGREES) };
            rest.count = rest.count.checked_sub(placed).ok_or(DISAGREES)?;
            rest.from = next;
            if rest.count == 0 {
                owned.unplaced = None;
            }
        }
        Ok(())
    }
}

impl Summary {
    /// Adds the due records that have no place. Reads records of so many keys at most: returns `false` if there are
    /// more.
    pub(super) fn add_unplaced(
        &self,
        due: &mut Totals,
        records: &dyn StateReader,
        examined_max: usize,
    ) -> Result<bool, MachineError> {
        let Some(mut rest) = self.unplaced() else { return Ok(true) };
        let mut examined = 0;
        while examined < examined_max {
            let page = records.scan(&rest, examined_max - examined, READ_BYTES_MAX)?;
            let Some((last, _)) = page.last() else { return Ok(true) };
            rest.start = successor(last);
            examined += page.len();
            for (key, value) in page {
                let Footprint { bytes, expires_at_ms } = Footprint::of(&key, &StoredRecord::decode(value)?);
                if let Some(at_ms) = expires_at_ms.filter(|at_ms| *at_ms <= self.clock_ms) {
                    due.add(at_ms, bytes);
                }
            }
        }
        Ok(false)
    }
}
