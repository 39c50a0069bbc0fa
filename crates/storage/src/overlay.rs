//! Applied records with pending writes on top, so that a later command of an entry sees the writes of earlier
//! ones.
//!
//! Invariants: the records underneath do not change while the overlay exists, and [`Overlay::into_writes`]
//! returns each key at most once, in key order, so that equal commands give equal write sets on every
//! replica. It cannot undo writes: a command checks its conditions before it writes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use flotilla_types::KeyRange;

use crate::{EngineError, StateReader, Value, WriteSet, engine::successor, page::Page};

/// A reader with pending writes on top. `None` in `pending` is a deletion.
///
/// ```
/// use bytes::Bytes;
/// use flotilla_storage::{EngineError, Overlay, StateReader};
///
/// fn increment(records: &dyn StateReader) -> Result<flotilla_storage::WriteSet, EngineError> {
///     let mut overlay = Overlay::new(records);
///     let old = overlay.get(b"counter")?.map_or(0, |value| value.len());
///     overlay.put(Bytes::from_static(b"counter"), Bytes::from(vec![b'|'; old + 1]));
///     Ok(overlay.into_writes())
/// }
/// ```
pub struct Overlay<'a> {
    records: &'a dyn StateReader,
    pending: BTreeMap<Bytes, Option<Value>>,
}

impl<'a> Overlay<'a> {
    /// An overlay without pending writes.
    #[must_use]
    pub fn new(records: &'a dyn StateReader) -> Self {
        Self { records, pending: BTreeMap::new() }
    }

    /// The value under a key, pending writes included.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self.pending.get(key) {
            Some(pending) => Ok(pending.clone().map(Value::into_bytes)),
            None => self.records.get(key),
        }
    }

    /// Writes a value.
    pub fn put(&mut self, key: Bytes, value: impl Into<Value>) {
        self.pending.insert(key, Some(value.into()));
    }

    /// Removes a record, if there is one.
    pub fn delete(&mut self, key: Bytes) {
        self.pending.insert(key, None);
    }

    /// As [`StateReader::scan`], pending writes included.
    pub fn scan(
        &self,
        range: &KeyRange,
        items_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut page = Page::new(items_max, bytes_max);
        if range.is_empty() {
            return Ok(page.into_items());
        }
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end) };
        let mut pending = self.pending.range::<Bytes, _>((Bound::Included(&range.start), end)).peekable();
        let mut rest = range.clone();
        let mut stored = VecDeque::new();
        let mut exhausted = false;
        while !page.is_full() {
            if stored.is_empty() && !exhausted {
                // A short page may have reached its bound in bytes: only an empty page means that nothing is
                // left.
                stored.extend(self.records.scan(&rest, items_max, bytes_max)?);
                match stored.back() {
                    Some((last, _)) => rest.start = successor(last),
                    None => exhausted = true,
                }
                exhausted |= rest.is_empty();
            }
            let pending_is_next = match (pending.peek(), stored.front()) {
                (None, None) => break,
                (Some((ours, _)), Some((theirs, _))) => *ours <= theirs,
                (ours, _) => ours.is_some(),
            };
            if !pending_is_next {
                if let Some((key, value)) = stored.pop_front() {
                    page.push(key, value);
                }
            } else if let Some((key, value)) = pending.next() {
                if stored.front().is_some_and(|(theirs, _)| theirs == key) {
                    stored.pop_front();
                }
                if let Some(value) = value {
                    page.push(key.clone(), value.bytes().clone());
                }
            }
        }
        Ok(page.into_items())
    }

    /// Whether there are no pending writes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The pending writes: one per key, in key order.
    #[must_use]
    pub fn into_writes(self) -> WriteSet {
        self.pending.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records that return pages of at most two items, to check that an overlay fetches further pages.
    struct SmallPages(BTreeMap<Bytes, Bytes>);

    impl StateReader for SmallPages {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            Ok(self.0.get(key).cloned())
        }

        fn scan(
            &self,
            range: &KeyRange,
            items_max: usize,
            bytes_max: usize,
        ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
            let mut page = Page::new(items_max.min(2), bytes_max);
            for (key, value) in self.0.range(range.start.clone()..).filter(|(key, _)| range.contains(key)) {
                if page.is_full() {
                    break;
                }
                page.push(key.clone(), value.clone());
            }
            Ok(page.into_items())
        }
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn records(keys: &str) -> SmallPages {
        SmallPages(keys.chars().map(|key| (bytes(&key.to_string()), bytes("stored"))).collect())
    }

    fn keys(items: &[(Bytes, Bytes)]) -> String {
        items.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
    }

    #[test]
    fn later_commands_see_earlier_writes() {
        let records = records("ab");
        let mut overlay = Overlay::new(&records);
        assert!(overlay.is_empty());
        overlay.put(bytes("b"), bytes("new"));
        overlay.delete(bytes("a"));
        assert_eq!(overlay.get(b"a").unwrap(), None);
        assert_eq!(overlay.get(b"b").unwrap(), Some(bytes("new")));
        assert_eq!(overlay.get(b"c").unwrap(), None);
        overlay.put(bytes("a"), bytes("again"));
        assert_eq!(overlay.into_writes(), vec![(bytes("a"), Some("again".into())), (bytes("b"), Some("new".into()))]);
    }

    #[test]
    fn scan_merges_pending_writes_in_key_order() {
        let records = records("bcdefgh");
        let mut overlay = Overlay::new(&records);
        for key in ["a", "d", "i"] {
            overlay.put(bytes(key), bytes("new"));
        }
        for key in ["b", "c", "e", "h", "x"] {
            overlay.delete(bytes(key));
        }
        let all = overlay.scan(&KeyRange::all(), 100, 1 << 20).unwrap();
        assert_eq!(keys(&all), "adfgi");
        assert_eq!(all[1].1, bytes("new"));
        assert_eq!(keys(&overlay.scan(&KeyRange { start: bytes("b"), end: bytes("g") }, 100, 1 << 20).unwrap()), "df");
        assert_eq!(keys(&overlay.scan(&KeyRange { start: bytes("g"), end: bytes("b") }, 100, 1 << 20).unwrap()), "");
    }

    #[test]
    fn scan_stops_at_its_bounds_but_returns_one_record() {
        let records = records("bcd");
        let mut overlay = Overlay::new(&records);
        overlay.delete(bytes("b"));
        assert_eq!(keys(&overlay.scan(&KeyRange::all(), 1, 1 << 20).unwrap()), "c");
        assert_eq!(keys(&overlay.scan(&KeyRange::all(), 10, 0).unwrap()), "c");
        assert_eq!(keys(&overlay.scan(&KeyRange::all(), 10, 8).unwrap()), "cd");
    }
}
