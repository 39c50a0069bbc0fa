//! Statistics of all stored records: their number, their bytes, and which of them expire.
//!
//! Invariant: the statistics agree with the stored records after every command. They count stored records,
//! and apart from them those that are due at the shard's clock and not removed yet.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{MachineError, Overlay, StateReader};
use flotilla_types::KeyRange;

use crate::{
    expiries::{DISAGREES, Due, Expiries, Stored, Summary, Totals},
    machine::Counting,
    place::Place,
    record::StoredRecord,
};

/// The share of one stored record in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Bytes of the whole record key and the whole value.
    pub(crate) bytes: u64,
    pub(crate) expires_at_ms: Option<u64>,
}

impl Footprint {
    pub(crate) fn of(key: &[u8], record: &StoredRecord) -> Self {
        Self { bytes: key.len() as u64 + record.value.bytes(), expires_at_ms: record.expires_at_ms }
    }
}

/// What a part of the records adds to the statistics.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Those of them that expire.
    expiring: Totals,
    /// Those of them that have no place.
    unplaced: u64,
}

impl Share {
    /// Adds a record, which has a place if it expires, or not yet.
    pub(crate) fn add(&mut self, record: &Footprint, is_unplaced: bool) {
        self.records = self.records.saturating_add(1);
        self.bytes = self.bytes.saturating_add(record.bytes);
        if let Some(at_ms) = record.expires_at_ms {
            self.expiring.add(at_ms, record.bytes);
            self.unplaced += u64::from(is_unplaced);
        }
    }
}

/// What a split at this range would give up, counted ahead: what was there when the count began, and what has changed
/// since.
#[derive(Debug)]
pub(crate) struct Ahead {
    right: KeyRange,
    counting: Arc<Counting>,
    appeared: Share,
    disappeared: Share,
}

impl Ahead {
    pub(crate) fn new(right: KeyRange, counting: Arc<Counting>) -> Self {
        Self { right, counting, appeared: Share::default(), disappeared: Share::default() }
    }

    fn replace(&mut self, key: &[u8], before: Option<&Footprint>, after: Option<&Footprint>) {
        if self.right.contains(key) {
            before.into_iter().for_each(|before| self.disappeared.add(before, false));
            after.into_iter().for_each(|after| self.appeared.add(after, false));
        }
    }

    /// The share now; `None` while the count runs.
    fn share(&self) -> Option<Share> {
        let Self { appeared, disappeared, .. } = self;
        let counted = self.counting.share()?;
        let sum = |part: fn(&Share) -> u64| (part(counted) + part(appeared)).checked_sub(part(disappeared));
        let expiries_ms = |share: &Share| share.expiring.expiries_ms;
        Some(Share {
            records: sum(|share| share.records)?,
            bytes: sum(|share| share.bytes)?,
            unplaced: 0,
            expiring: Totals {
                records: sum(|share| share.expiring.records)?,
                bytes: sum(|share| share.expiring.bytes)?,
                expiries_ms: (expiries_ms(counted) + expiries_ms(appeared)).checked_sub(expiries_ms(disappeared))?,
            },
        })
    }
}

/// Counts of all stored records, and those that expire.
#[derive(Debug)]
pub(crate) struct RecordStats {
    records: u64,
    bytes: u64,
    pub(crate) expiries: Expiries,
    /// Of this replica alone.
    ahead: Option<Box<Ahead>>,
}

impl RecordStats {
    pub(crate) fn new(records: u64, bytes: u64, expiries: Expiries) -> Self {
        Self { records, bytes, expiries, ahead: None }
    }

    /// Counts ahead from now on.
    pub(crate) fn begin_ahead(&mut self, ahead: Ahead) {
        self.ahead = Some(Box::new(ahead));
    }

    /// The share of these records, if it was counted ahead, and all of them have their places.
    pub(crate) fn take_ahead(&mut self, right: &KeyRange) -> Option<Share> {
        let ahead = self.ahead.take().filter(|ahead| ahead.right == *right && !self.expiries.is_placing())?;
        ahead.share()
    }

    /// A record changed, appeared (`before` is `None`) or disappeared (`after` is `None`).
    pub(crate) fn replace(
        &mut self,
        key: &Bytes,
        before: Option<Footprint>,
        after: Option<Footprint>,
        overlay: &mut Overlay<'_>,
    ) -> Result<(), MachineError> {
        if before == after {
            return Ok(());
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.replace(key, before.as_ref(), after.as_ref());
        }
        // A copy, because `key` is a slice of a whole log entry.
        let place = |at_ms| Place::new(at_ms, Bytes::copy_from_slice(key));
        if let Some(before) = before {
            self.subtract(before.bytes)?;
            if let Some(at_ms) = before.expires_at_ms {
                self.expiries.remove(&place(at_ms), before.bytes, overlay)?;
            }
        }
        if let Some(after) = after {
            self.records = self.records.checked_add(1).ok_or(DISAGREES)?;
            self.bytes = self.bytes.checked_add(after.bytes).ok_or(DISAGREES)?;
            if let Some(at_ms) = after.expires_at_ms {
                self.expiries.insert(place(at_ms), after.bytes, overlay)?;
            }
        }
        Ok(())
    }

    fn subtract(&mut self, bytes: u64) -> Result<(), MachineError> {
        self.records = self.records.checked_sub(1).ok_or(DISAGREES)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(DISAGREES)?;
        Ok(())
    }

    /// Removes the record with the earliest expiry, if it is due at the clock, or the place of one that another shard
    /// has. Returns whether there was one.
    pub(crate) fn remove_due(&mut self, overlay: &mut Overlay<'_>) -> Result<bool, MachineError> {
        match self.expiries.take_due(overlay)? {
            Some(Due::Record(place, bytes)) => {
                self.subtract(bytes)?;
                if let Some(ahead) = &mut self.ahead {
                    let removed = Footprint { bytes, expires_at_ms: Some(place.at_ms) };
                    ahead.replace(&place.key, Some(&removed), None);
                }
                overlay.delete(place.key);
                Ok(true)
            }
            Some(Due::Foreign) => Ok(true),
            None => Ok(false),
        }
    }

    /// Gives up the records of `right`, the upper part of the shard's keys, which have this share. Returns what the
    /// new shard has of those that expire.
    pub(crate) fn split(&mut self, right: &KeyRange, share: &Share) -> Result<Stored, MachineError> {
        let records = self.records.checked_sub(share.records).ok_or(DISAGREES)?;
        let bytes = self.bytes.checked_sub(share.bytes).ok_or(DISAGREES)?;
        let expiries = self.expiries.split(right, &share.expiring, share.unplaced)?;
        (self.records, self.bytes) = (records, bytes);
        Ok(expiries)
    }

    /// Takes over the right neighbour's records: so many of so many bytes, and those that expire. From now on the shard
    /// has these keys.
    pub(crate) fn merge(
        &mut self,
        keys: KeyRange,
        records: u64,
        bytes: u64,
        right: &Stored,
    ) -> Result<(), MachineError> {
        let records = self.records.checked_add(records).ok_or(DISAGREES)?;
        let bytes = self.bytes.checked_add(bytes).ok_or(DISAGREES)?;
        self.expiries.merge(keys, right)?;
        self.ahead = None;
        (self.records, self.bytes) = (records, bytes);
        Ok(())
    }

    /// The number of stored records, and their bytes.
    pub(crate) fn stored(&self) -> (u64, u64) {
        (self.records, self.bytes)
    }

    /// What a count needs.
    pub(crate) fn counts(&self) -> Counts {
        Counts { records: self.records, bytes: self.bytes, expiries: self.expiries.summary() }
    }
}

/// The counts of a state.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    records: u64,
    bytes: u64,
    expiries: Summary,
}

/// The records that are live at the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Those that expire.
    pub(crate) expiring: u64,
    /// The mean of their expiries, in Unix milliseconds; 0 if there is none.
    pub(crate) mean_expiry_ms: u64,
}

impl Counts {
    /// The records that are live at the clock; `None` if more than `examined_max` places had to be read for it.
    pub(crate) fn live(&self, records: &dyn StateReader, examined_max: usize) -> Result<Option<Live>, MachineError> {
        let Some(due) = self.expiries.due(records, examined_max)? else { return Ok(None) };
        let (expiring, sum_ms) = self.expiries.live(&due);
        Ok(Some(Live {
            records: self.records.saturating_sub(due.records),
            bytes: self.bytes.saturating_sub(due.bytes),
            expiring,
            mean_expiry_ms: mean(sum_ms, expiring),
        }))
    }

    /// Whether a record expires after the clock and at or before this time.
    pub(crate) fn changes_by(&self, until_ms: u64, records: &dyn StateReader) -> Result<bool, MachineError> {
        self.expiries.becomes_due_by(until_ms, records)
    }
}

/// The mean of values with this sum; 0 if there is none.
pub(crate) fn mean(sum: u128, count: u64) -> u64 {
    sum.checked_div(u128::from(count)).and_then(|mean| u64::try_from(mean).ok()).unwrap_or(0)
}
