//! Finds the middle of the records of a range by reading them.
//!
//! Invariant: what is kept of the records is bounded, however many there are.

use bytes::Bytes;
use flotilla_types::KeyRange;

use crate::{EngineError, ScanBounds, StateReader};

/// Records and bytes of one page.
const PAGE: ScanBounds = ScanBounds { items_max: 4_096, bytes_max: 1 << 20, examined_max: 65_536 };
/// Keys that are kept: the middle is found to within one part in half as many of what was read.
const KEYS_MAX: usize = 1_024;

/// The first key before which at least half of the bytes of a range are, give or take a few; `None` if there are fewer
/// than two records.
///
/// # Errors
/// The records cannot be read.
pub fn of_records(reader: &(impl StateReader + ?Sized), range: &KeyRange) -> Result<Option<Bytes>, EngineError> {
    let mut sample = Sample::default();
    let mut rest = range.clone();
    loop {
        let page = reader.scan_page(&rest, PAGE)?;
        for (key, value) in &page.items {
            sample.add(key, (key.len() + value.len()) as u64);
        }
        let Some(next) = page.next else { break };
        rest.start = next;
        if rest.is_empty() {
            break;
        }
    }
    Ok(sample.middle())
}

/// Keys of a list that is added in order, each with the bytes before it.
#[derive(Debug, Default)]
struct Sample {
    keys: Vec<(Bytes, u64)>,
    /// At least as many bytes are between two of them.
    spacing: u64,
    bytes: u64,
}

impl Sample {
    fn add(&mut self, key: &[u8], bytes: u64) {
        if self.keys.len() == KEYS_MAX {
            self.spacing = self.bytes / (KEYS_MAX as u64 / 2);
            let mut kept: Option<u64> = None;
            let spacing = self.spacing;
            // The second key stays, in case that the first record is most of it all.
            let mut position = 0;
            self.keys.retain(|(_, before)| {
                position += 1;
                let keep = position <= 2 || kept.is_none_or(|kept| *before >= kept + spacing);
                if keep {
                    kept = Some(*before);
                }
                keep
            });
        }
        if self.keys.len() < 2 || self.keys.last().is_none_or(|(_, before)| self.bytes >= before + self.spacing) {
            // A copy, because the key may be a part of a whole block.
            self.keys.push((Bytes::copy_from_slice(key), self.bytes));
        }
        self.bytes += bytes;
    }

    fn middle(self) -> Option<Bytes> {
        let half = self.bytes / 2;
        let behind = self.keys.partition_point(|(_, before)| *before < half);
        let at = behind.clamp(1, self.keys.len().saturating_sub(1).max(1));
        self.keys.into_iter().nth(at).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middle_of(sizes: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut sample = Sample::default();
        for (key, bytes) in sizes.into_iter().enumerate() {
            sample.add(&(key as u64).to_be_bytes(), bytes);
            assert!(sample.keys.len() <= KEYS_MAX);
        }
        sample.middle().map(|key| u64::from_be_bytes(key[..].try_into().expect("a key")))
    }

    #[test]
    fn the_middle_of_few_records_is_where_half_of_the_bytes_are_before_it() {
        assert_eq!(middle_of([]), None);
        assert_eq!(middle_of([5]), None);
        assert_eq!(middle_of([1, 1]), Some(1));
        assert_eq!(middle_of([1, 1, 1, 1]), Some(2));
        assert_eq!(middle_of([100, 1, 1]), Some(1), "never the first one");
        assert_eq!(middle_of([1, 1, 100]), Some(2), "never behind the last one");
        assert_eq!(middle_of([0, 0, 0]), Some(1));
    }

    #[test]
    fn the_middle_of_many_records_is_near() {
        for records in [1_024, 1_025, 5_000, 300_000_u64] {
            let middle = middle_of((0..records).map(|_| 10)).expect("a middle");
            assert!(middle.abs_diff(records / 2) <= records / 200, "{middle} of {records}");
            let large = middle_of((0..records).map(|key| if key == records / 4 { 100 * records } else { 1 }));
            assert!(large.expect("a middle").abs_diff(records / 4) <= records / 100, "{large:?} of {records}");
            let first = middle_of((0..records).map(|key| if key == 0 { 100 * records } else { 1 }));
            assert_eq!(first, Some(1));
        }
    }
}
