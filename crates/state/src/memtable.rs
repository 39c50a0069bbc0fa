//! Records in memory, ordered.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use flotilla_storage::WriteSet;
use flotilla_types::{KeyRange, Position};

use crate::merge::Record;

/// Counted for each record beside key and value: tree node, two handles, allocations.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// Shorter keys and values are copied on their way in: they are often slices of a whole log entry, and one that stays
/// would keep all of that entry's memory.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// The newest records of a replica; `None` is a deletion.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    records: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

/// A memtable that takes no more writes, and the point in the log at which it was closed.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) memtable: Memtable,
    pub(crate) position: Position,
    pub(crate) system: Bytes,
}

impl Memtable {
    pub(crate) fn write(&mut self, records: WriteSet) {
        for (key, value) in records {
            let new = record_bytes(&key, value.as_ref());
            match self.records.get_mut(&key) {
                Some(slot) => {
                    self.bytes = self.bytes + new - record_bytes(&key, slot.as_ref());
                    *slot = value.map(compact);
                }
                None => {
                    self.bytes += new;
                    self.records.insert(compact(key), value.map(compact));
                }
            }
        }
    }

    /// `None` when this memtable knows nothing of the key, `Some(None)` when it was deleted here.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.records.get(key).cloned()
    }

    /// Bytes it takes, estimated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Record> + '_ {
        self.records.iter().map(|(key, value)| (key.clone(), value.clone()))
    }

    /// Records of a range that is not empty.
    pub(crate) fn range<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = Record> + 'a {
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end[..]) };
        self.records
            .range::<[u8], _>((Bound::Included(&range.start[..]), end))
            .map(|(key, value)| (key.clone(), value.clone()))
    }

    /// Copies as much of a range as a scan with these bounds can need: up to the point where the live records here
    /// alone fill it. Everything the scan returns lies at or before that point.
    pub(crate) fn capture(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Vec<Record> {
        let (mut items, mut bytes) = (0, 0);
        let mut captured = Vec::new();
        for (key, value) in self.range(range) {
            if let Some(value) = &value {
                items += 1;
                bytes += key.len() + value.len();
            }
            captured.push((key, value));
            if items > 0 && (items >= items_max || bytes >= bytes_max) {
                break;
            }
        }
        captured
    }
}

fn record_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + RECORD_OVERHEAD_BYTES
}

fn compact(bytes: Bytes) -> Bytes {
    if bytes.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(&bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> Record {
        (Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(value.as_bytes())))
    }

    #[test]
    fn overwriting_counts_the_new_size_only() {
        let mut memtable = Memtable::default();
        memtable.write(vec![put("a", "12345678")]);
        memtable.write(vec![put("a", "1"), ("a".into(), None), put("a", "12")]);
        assert_eq!(memtable.bytes(), 1 + 2 + RECORD_OVERHEAD_BYTES);
        assert_eq!(memtable.get(b"a"), Some(Some("12".into())));
        assert_eq!(memtable.get(b"b"), None);
    }

    #[test]
    fn a_capture_goes_past_deletions_until_live_records_fill_the_page() {
        let mut memtable = Memtable::default();
        memtable.write(vec![("a".into(), None), put("b", "1"), ("c".into(), None), put("d", "1"), put("e", "1")]);
        assert_eq!(memtable.capture(&KeyRange::all(), 2, 100).len(), 4);
        assert_eq!(memtable.capture(&KeyRange::all(), 9, 2).len(), 2);
        assert_eq!(memtable.capture(&KeyRange { start: "b".into(), end: "d".into() }, 9, 100).len(), 2);
    }
}
