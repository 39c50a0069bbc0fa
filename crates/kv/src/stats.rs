//! Statistics of all stored records: their number, their bytes, and an index of those that expire.
//!
//! Invariant: the statistics agree with the stored records after every command. They count stored records,
//! and apart from them those that are due at the shard's clock and not removed yet. The index is not part of
//! checkpoints: it is rebuilt from the records, and ordered by (expiry, key), so it is equal on every
//! replica.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use flotilla_storage::MachineError;

use crate::record::StoredRecord;

/// The share of one stored record in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Bytes of the whole record key and the value.
    pub(crate) bytes: u64,
    pub(crate) expires_at_ms: Option<u64>,
}

impl Footprint {
    pub(crate) fn of(key: &[u8], record: &StoredRecord) -> Self {
        Self { bytes: (key.len() + record.value.len()) as u64, expires_at_ms: record.expires_at_ms }
    }
}

/// Counts of all stored records and an index of those that expire.
#[derive(Debug, Default)]
pub(crate) struct RecordStats {
    records: u64,
    bytes: u64,
    /// Bytes of each expiring record under (Unix milliseconds, whole record key).
    expiring: BTreeMap<(u64, Bytes), u64>,
    /// The shard's clock.
    clock_ms: u64,
    /// Stored records that are due at the clock, and their bytes.
    due: (u64, u64),
    /// Sum of the expiries of those that are not due.
    live_expiries_ms: u128,
}

const DISAGREES: MachineError = MachineError::Corrupt("the counts of records disagree with the records");

impl RecordStats {
    /// Statistics with the counts of a checkpoint; [`insert_expiring`](Self::insert_expiring) completes them.
    pub(crate) fn of_counts(records: u64, bytes: u64) -> Self {
        Self { records, bytes, ..Self::default() }
    }

    /// The shard's clock has reached this time. Costs what has become due by it.
    pub(crate) fn advance(&mut self, clock_ms: u64) {
        let range = (after(self.clock_ms), after(clock_ms));
        if self.clock_ms >= clock_ms {
            return;
        }
        for ((at_ms, _), bytes) in self.expiring.range(range.0..range.1) {
            self.due = (self.due.0 + 1, self.due.1 + bytes);
            self.live_expiries_ms = self.live_expiries_ms.saturating_sub(u128::from(*at_ms));
        }
        self.clock_ms = clock_ms;
    }

    /// Adds an already counted record to the index.
    pub(crate) fn insert_expiring(&mut self, key: &[u8], at_ms: u64, bytes: u64) {
        if self.expiring.insert((at_ms, Bytes::copy_from_slice(key)), bytes).is_some() {
            return;
        }
        if at_ms <= self.clock_ms {
            self.due = (self.due.0 + 1, self.due.1 + bytes);
        } else {
            self.live_expiries_ms += u128::from(at_ms);
        }
    }

    fn remove_expiring(&mut self, key: &Bytes, at_ms: u64) -> Result<(), MachineError> {
        let bytes = self.expiring.remove(&(at_ms, key.clone())).ok_or(DISAGREES)?;
        if at_ms <= self.clock_ms {
            let (records, all) = self.due;
            self.due = (records.saturating_sub(1), all.saturating_sub(bytes));
        } else {
            self.live_expiries_ms = self.live_expiries_ms.saturating_sub(u128::from(at_ms));
        }
        Ok(())
    }

    /// A record changed, appeared (`before` is `None`) or disappeared (`after` is `None`).
    pub(crate) fn replace(
        &mut self,
        key: &Bytes,
        before: Option<Footprint>,
        after: Option<Footprint>,
    ) -> Result<(), MachineError> {
        if let Some(before) = before {
            self.records = self.records.checked_sub(1).ok_or(DISAGREES)?;
            self.bytes = self.bytes.checked_sub(before.bytes).ok_or(DISAGREES)?;
            if let Some(at_ms) = before.expires_at_ms {
                self.remove_expiring(key, at_ms)?;
            }
        }
        if let Some(after) = after {
            self.records += 1;
            self.bytes += after.bytes;
            if let Some(at_ms) = after.expires_at_ms {
                // A copy, because `key` is a slice of a whole log entry.
                self.insert_expiring(key, at_ms, after.bytes);
            }
        }
        Ok(())
    }

    /// Removes the record with the earliest expiry from the statistics, if it is due at the clock, and
    /// returns its key.
    pub(crate) fn take_due(&mut self) -> Result<Option<Bytes>, MachineError> {
        let Some(at_ms) = self.first_expiry_ms().filter(|at_ms| *at_ms <= self.clock_ms) else { return Ok(None) };
        let Some(((_, key), bytes)) = self.expiring.first_key_value().map(|(key, bytes)| (key.clone(), *bytes)) else {
            return Ok(None);
        };
        self.remove_expiring(&key, at_ms)?;
        self.records = self.records.checked_sub(1).ok_or(DISAGREES)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(DISAGREES)?;
        Ok(Some(key))
    }

    /// The number of stored records, and their bytes.
    pub(crate) fn stored(&self) -> (u64, u64) {
        (self.records, self.bytes)
    }

    /// The number of stored records with an expiry.
    pub(crate) fn expiring(&self) -> u64 {
        self.expiring.len() as u64
    }

    /// The earliest expiry of a stored record.
    pub(crate) fn first_expiry_ms(&self) -> Option<u64> {
        self.expiring.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// The number of records that are live at the clock, and their bytes.
    pub(crate) fn live(&self) -> (u64, u64) {
        (self.records.saturating_sub(self.due.0), self.bytes.saturating_sub(self.due.1))
    }

    /// The number of records that are live at the clock and have an expiry.
    pub(crate) fn live_expiring(&self) -> u64 {
        self.expiring().saturating_sub(self.due.0)
    }

    /// The mean expiry of those, in Unix milliseconds; 0 if there is none.
    pub(crate) fn mean_expiry_ms(&self) -> u64 {
        mean(self.live_expiries_ms, self.live_expiring())
    }

    /// Whether a record expires after `from_ms` and at or before `to_ms`.
    pub(crate) fn expires_between(&self, from_ms: u64, to_ms: u64) -> bool {
        let Some(first_ms) = from_ms.checked_add(1) else { return false };
        self.expiring
            .range((Bound::Included((first_ms, Bytes::new())), Bound::Unbounded))
            .next()
            .is_some_and(|((at_ms, _), _)| *at_ms <= to_ms)
    }
}

/// The mean of values with this sum; 0 if there is none.
pub(crate) fn mean(sum: u128, count: u64) -> u64 {
    sum.checked_div(u128::from(count)).and_then(|mean| u64::try_from(mean).ok()).unwrap_or(0)
}

/// The smallest key of the index after all that expire at this time.
fn after(at_ms: u64) -> (u64, Bytes) {
    (at_ms.saturating_add(1), Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn due_records_are_removed_in_order_of_expiry_then_key() {
        let mut stats = RecordStats::default();
        for (name, at_ms) in [("b", 5), ("a", 5), ("z", 1), ("later", 9)] {
            stats.replace(&key(name), None, Some(Footprint { bytes: 10, expires_at_ms: Some(at_ms) })).unwrap();
        }
        assert_eq!((stats.live(), stats.first_expiry_ms()), ((4, 40), Some(1)));
        assert_eq!(stats.mean_expiry_ms(), 5);
        stats.advance(5);
        assert_eq!(stats.mean_expiry_ms(), 9, "of those that are not due");
        assert_eq!((stats.live(), stats.stored()), ((1, 10), (4, 40)));
        assert_eq!((stats.expiring(), stats.live_expiring()), (4, 1));
        assert!(stats.expires_between(5, 9) && !stats.expires_between(5, 8) && !stats.expires_between(9, 20));
        let mut taken = Vec::new();
        while let Some(key) = stats.take_due().unwrap() {
            taken.push(key);
            assert_eq!(stats.live(), (1, 10));
        }
        assert_eq!(taken, [key("z"), key("a"), key("b")]);
        assert_eq!((stats.stored(), stats.expiring(), stats.mean_expiry_ms()), ((1, 10), 1, 9));
        let later = Footprint { bytes: 10, expires_at_ms: Some(9) };
        stats.replace(&key("later"), Some(later), Some(Footprint { expires_at_ms: None, ..later })).unwrap();
        assert_eq!(stats.mean_expiry_ms(), 0);
    }

    #[test]
    fn counts_that_disagree_with_the_records_are_an_error() {
        let footprint = Footprint { bytes: 1, expires_at_ms: None };
        assert!(RecordStats::default().replace(&key("a"), Some(footprint), None).is_err());
        let expiring = Footprint { bytes: 1, expires_at_ms: Some(1) };
        assert!(RecordStats::of_counts(1, 1).replace(&key("a"), Some(expiring), None).is_err());
    }
}
