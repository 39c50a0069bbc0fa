//! The memtable: a hash table of records whose keys are sorted on demand.
//!
//! Most workloads read and write single keys, where hashing is much cheaper than a tree lookup. A scan of the
//! active memtable inserts the keys that were added since the last scan into the sorted set; a frozen
//! memtable is sorted once, by the thread that writes it out.
//!
//! A snapshot is a number of write sets. While snapshots are open, a write keeps what it replaces, once for
//! the newest of them: what a snapshot sees of a key is what the first later write replaced.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::OnceLock,
};

use bytes::{Bytes, BytesMut};
use flotilla_storage::{KeyRanges, ScanBounds, Value, WriteSet};
use flotilla_types::{KeyRange, Position};
use parking_lot::Mutex;

use crate::{merge::Record, sorted::Pinned};

/// Estimated bytes per record beside key and value: table slot, sorted set, allocations.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// Keys and values that share their buffer are copied if they are at most this long: they are often slices of
/// a log entry, and one of them would keep the memory of the whole entry.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// Keys of up to this length share buffers of [`KEYS_BYTES`].
const SHARED_KEY_BYTES_MAX: usize = 1_024;
const KEYS_BYTES: usize = 64 * 1_024;

/// The newest records of a replica; `None` is a deletion.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    records: HashMap<Bytes, Option<Value>>,
    /// What the records refer to, also those that were replaced: snapshots may see them.
    refs: Vec<Pinned>,
    keys: Keys,
    order: Mutex<Option<Order>>,
    bytes: usize,
    history: History,
}

/// Copies of keys, end to end: one allocation for many. A memtable keeps its keys as long as it lives.
#[derive(Debug, Default)]
struct Keys(BytesMut);

/// What a memtable has under a key: nothing, a deletion or a value.
type Held = Option<Option<Value>>;

/// The state after so many write sets of a memtable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64);

impl Version {
    /// The latest.
    pub(crate) const LATEST: Self = Self(u64::MAX);
}

/// What open snapshots see of keys that were written since.
#[derive(Debug, Default)]
struct History {
    write_sets: u64,
    /// What each write replaced, with the write's number, ascending.
    replaced: HashMap<Bytes, Vec<(Version, Held)>>,
    bytes: usize,
}

/// The keys of a memtable that was scanned.
#[derive(Debug, Default)]
struct Order {
    sorted: BTreeSet<Bytes>,
    /// Keys that are not in `sorted` yet.
    unsorted: Vec<Bytes>,
}

/// A copy of the first records of a range.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) records: Vec<Record>,
    /// The first key that was not copied; `None` if all were.
    pub(crate) end: Option<Bytes>,
}

/// A memtable that takes no more writes, with its position in the log.
#[derive(Debug)]
pub(crate) struct Frozen {
    memtable: Memtable,
    sorted: OnceLock<Box<[Bytes]>>,
    pub(crate) position: Position,
    pub(crate) system: Bytes,
    /// What the replica gives up at that position.
    pub(crate) split: Option<GivenUp>,
}

/// What a replica gives up when its shard is split.
#[derive(Debug)]
pub(crate) struct GivenUp {
    /// The keys of the new replica.
    pub(crate) keys: KeyRanges,
    /// The keys that the two have together.
    pub(crate) of_both: KeyRanges,
    pub(crate) position: Position,
    pub(crate) system: Bytes,
}

impl Memtable {
    /// Keeps objects as long as it lives.
    pub(crate) fn keep_refs(&mut self, refs: Pinned) {
        self.refs.push(refs);
    }

    /// Writes records. `snapshots` are the oldest and the newest open one.
    pub(crate) fn write(&mut self, records: WriteSet, snapshots: Option<(Version, Version)>) {
        self.history.write_sets += 1;
        match snapshots {
            Some((oldest, newest)) => records.iter().for_each(|(key, _)| self.keep(key, oldest, newest)),
            None if self.history.replaced.is_empty() => {}
            None => {
                self.history.replaced = HashMap::new();
                self.history.bytes = 0;
            }
        }
        for (key, value) in records {
            let new = record_bytes(&key, value.as_ref());
            match self.records.get_mut(&key) {
                Some(slot) => {
                    self.bytes = self.bytes + new - record_bytes(&key, slot.as_ref());
                    *slot = value.map(unshare_value);
                }
                None => {
                    self.bytes += new;
                    let key = self.keys.copy(&key);
                    if let Some(order) = self.order.get_mut() {
                        order.unsorted.push(key.clone());
                    }
                    self.records.insert(key, value.map(unshare_value));
                }
            }
        }
    }

    /// Keeps what the current write set is about to replace, if an open snapshot sees it.
    fn keep(&mut self, key: &Bytes, oldest: Version, newest: Version) {
        let History { write_sets, replaced, bytes } = &mut self.history;
        let kept = replaced.get_mut(key);
        // Earlier writes have kept what every open snapshot sees.
        if kept.as_ref().and_then(|kept| kept.last()).is_some_and(|(number, _)| *number > newest) {
            return;
        }
        let held = self.records.get(key).cloned();
        *bytes += record_bytes(key, held.as_ref().and_then(Option::as_ref));
        let entry = (Version(*write_sets), held);
        match kept {
            Some(kept) => {
                kept.retain(|(number, held)| {
                    let is_seen = *number > oldest;
                    if !is_seen {
                        *bytes -= record_bytes(key, held.as_ref().and_then(Option::as_ref));
                    }
                    is_seen
                });
                kept.push(entry);
            }
            None => {
                replaced.insert(unshare(key.clone()), vec![entry]);
            }
        }
    }

    /// The state as it is now.
    pub(crate) fn version(&self) -> Version {
        Version(self.history.write_sets)
    }

    /// `None` when the memtable does not have the key, `Some(None)` when it has its deletion.
    pub(crate) fn get(&self, key: &[u8]) -> Held {
        self.records.get(key).cloned()
    }

    /// What [`get`](Self::get) returned at a version of which a snapshot is open.
    pub(crate) fn get_at(&self, version: Version, key: &[u8]) -> Held {
        let later = self.history.replaced.get(key).into_iter().flatten().find(|(number, _)| *number > version);
        later.map_or_else(|| self.get(key), |(_, held)| held.clone())
    }

    /// Estimated memory, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.history.bytes
    }

    /// Copies as much of a non-empty range as a scan with these bounds can need: up to the point where the
    /// records here alone reach a bound. Everything the scan returns is before that point. The records are
    /// those of a version of which a snapshot is open, or the latest ones.
    pub(crate) fn capture(&self, version: Version, range: &KeyRange, bounds: ScanBounds) -> Capture {
        let mut order = self.order.lock();
        let all = || Order { sorted: self.records.keys().cloned().collect(), unsorted: Vec::new() };
        let Order { sorted, unsorted } = order.get_or_insert_with(all);
        sorted.extend(unsorted.drain(..));
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end[..]) };
        let (mut items, mut bytes) = (0, 0);
        let mut captured = Capture::default();
        for key in sorted.range::<[u8], _>((Bound::Included(&range.start[..]), end)) {
            let is_full = items > 0 && (items >= bounds.items_max || bytes >= bounds.bytes_max);
            if is_full || captured.records.len() >= bounds.examined_max {
                captured.end = Some(key.clone());
                break;
            }
            let Some(value) = self.get_at(version, key) else { continue };
            if let Some(value) = &value {
                items += 1;
                bytes += key.len() + value.len();
            }
            captured.records.push((key.clone(), value));
        }
        captured
    }
}

impl Keys {
    fn copy(&mut self, key: &[u8]) -> Bytes {
        if key.len() > SHARED_KEY_BYTES_MAX {
            return Bytes::copy_from_slice(key);
        }
        if self.0.capacity() < key.len() {
            self.0 = BytesMut::with_capacity(KEYS_BYTES);
        }
        self.0.extend_from_slice(key);
        self.0.split().freeze()
    }
}

impl Frozen {
    pub(crate) fn new(memtable: Memtable, position: Position, system: Bytes) -> Self {
        Self { memtable, sorted: OnceLock::new(), position, system, split: None }
    }

    /// As [`Memtable::get`].
    pub(crate) fn get(&self, key: &[u8]) -> Held {
        self.memtable.get(key)
    }

    /// The memtable, for snapshots that were taken before it was frozen.
    pub(crate) fn memtable(&self) -> &Memtable {
        &self.memtable
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memtable.bytes()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.memtable.records.is_empty()
    }

    /// Whether records refer, or referred, to objects.
    pub(crate) fn has_refs(&self) -> bool {
        !self.memtable.refs.is_empty()
    }

    /// All records, in key order.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.borrowed_records().map(|(key, value)| (key.clone(), value.cloned()))
    }

    /// All records, in key order.
    pub(crate) fn borrowed_records(&self) -> impl Iterator<Item = (&Bytes, Option<&Value>)> {
        sorted(&self.memtable.records).into_iter().map(|(_, key, value)| (key, value.as_ref()))
    }

    /// All records as of a version of which a snapshot is open, in key order.
    pub(crate) fn records_at(&self, version: Version) -> impl Iterator<Item = Record> + '_ {
        self.keys().iter().filter_map(move |key| Some((key.clone(), self.memtable.get_at(version, key)?)))
    }

    /// Records of a non-empty range.
    pub(crate) fn range(&self, range: &KeyRange) -> impl Iterator<Item = Record> + '_ {
        let keys = self.keys();
        let start = keys.partition_point(|key| *key < range.start);
        let end = keys.partition_point(|key| range.end.is_empty() || *key < range.end);
        self.of_keys(&keys[start..end])
    }

    fn of_keys<'a>(&'a self, keys: &'a [Bytes]) -> impl Iterator<Item = Record> + 'a {
        keys.iter().filter_map(|key| Some((key.clone(), self.memtable.get(key)?)))
    }

    fn keys(&self) -> &[Bytes] {
        let sort = || sorted(&self.memtable.records).into_iter().map(|(_, key, _)| key.clone()).collect();
        self.sorted.get_or_init(sort)
    }
}

/// A record behind what is compared of its key first.
type Sorted<'a> = (u128, &'a Bytes, &'a Option<Value>);

/// Sorts records. Compares the 16 bytes after the common prefix of their keys first, which avoids a cache miss
/// per key.
fn sorted(records: &HashMap<Bytes, Option<Value>>) -> Vec<Sorted<'_>> {
    let Some(first) = records.keys().next() else { return Vec::new() };
    let common = records.keys().fold(first.len(), |common, key| {
        first[..common].iter().zip(&key[..]).take_while(|(left, right)| left == right).count()
    });
    let mut order: Vec<_> = records.iter().map(|(key, value)| (prefix(&key[common..]), key, value)).collect();
    order.sort_unstable_by(|left, right| (left.0, left.1).cmp(&(right.0, right.1)));
    order
}

/// The first 16 bytes as a number of the same order; missing bytes count as zero.
fn prefix(bytes: &[u8]) -> u128 {
    let mut prefix = [0; 16];
    let length = bytes.len().min(prefix.len());
    prefix[..length].copy_from_slice(&bytes[..length]);
    u128::from_be_bytes(prefix)
}

fn record_bytes(key: &Bytes, value: Option<&Value>) -> usize {
    key.len() + value.map_or(0, Value::size_bytes) + RECORD_OVERHEAD_BYTES
}

fn unshare_value(value: Value) -> Value {
    let refs = value.refs().clone();
    Value::new(unshare(value.into_bytes()), refs)
}

fn unshare(bytes: Bytes) -> Bytes {
    if bytes.is_unique() || bytes.len() > COPY_BYTES_MAX { bytes } else { Bytes::copy_from_slice(&bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> Record {
        (Bytes::from_static(key.as_bytes()), Some(value.into()))
    }

    fn bounds(items_max: usize, bytes_max: usize) -> ScanBounds {
        ScanBounds { items_max, bytes_max, examined_max: usize::MAX }
    }

    #[test]
    fn overwriting_counts_the_new_size_only() {
        let mut memtable = Memtable::default();
        memtable.write(vec![put("a", "12345678")], None);
        memtable.write(vec![put("a", "1"), ("a".into(), None), put("a", "12")], None);
        assert_eq!(memtable.bytes(), 1 + 2 + RECORD_OVERHEAD_BYTES);
        assert_eq!(memtable.get(b"a"), Some(Some("12".into())));
        assert_eq!(memtable.get(b"b"), None);
    }

    #[test]
    fn history_is_kept_once_for_the_open_snapshots_and_dropped_with_the_last() {
        let mut memtable = Memtable::default();
        memtable.write(vec![put("a", "1")], None);
        let (first, size) = (memtable.version(), memtable.bytes());
        let lengths = |memtable: &Memtable| memtable.history.replaced.get(&b"a"[..]).map_or(0, Vec::len);
        for _ in 0..9 {
            memtable.write(vec![put("a", "2")], Some((first, first)));
        }
        assert_eq!((lengths(&memtable), memtable.get_at(first, b"a")), (1, Some(Some("1".into()))));
        assert!(memtable.bytes() > size, "history counts as memory");
        let second = memtable.version();
        memtable.write(vec![put("a", "3")], Some((first, second)));
        assert_eq!((lengths(&memtable), memtable.get_at(second, b"a")), (2, Some(Some("2".into()))));
        assert_eq!(memtable.get_at(first, b"a"), Some(Some("1".into())));
        memtable.write(vec![put("a", "4")], Some((second, memtable.version())));
        assert_eq!(lengths(&memtable), 2, "no snapshot sees the oldest any more");
        memtable.write(vec![put("a", "5")], None);
        assert_eq!((lengths(&memtable), memtable.bytes()), (0, size));
    }

    #[test]
    fn scans_see_keys_in_order_of_any_insertion() {
        let mut memtable = Memtable::default();
        let keys = |records: &[Record]| records.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        memtable.write(vec![put("c", "1"), put("a", "1")], None);
        assert_eq!(keys(&memtable.capture(Version::LATEST, &KeyRange::all(), bounds(9, 100)).records), ["a", "c"]);
        memtable.write(vec![put("b", "1"), put("a", "2"), ("d".into(), None)], None);
        assert_eq!(
            keys(&memtable.capture(Version::LATEST, &KeyRange::all(), bounds(9, 100)).records),
            ["a", "b", "c", "d"]
        );
        let position = crate::tests::empty_checkpoint(flotilla_types::ReplicaId(1)).position;
        let frozen = Frozen::new(memtable, position, Bytes::new());
        let expected = [put("a", "2"), put("b", "1"), put("c", "1"), ("d".into(), None)];
        let in_range = |start: &'static str, end: &'static str| {
            frozen.range(&KeyRange { start: start.into(), end: end.into() }).collect::<Vec<_>>()
        };
        assert_eq!(frozen.records().collect::<Vec<_>>(), expected);
        assert_eq!(in_range("b", "d"), expected[1..3]);
        assert_eq!(in_range("x", ""), []);
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn keys_are_sorted_as_bytes(
            common in proptest::collection::vec(0u8..3, 0..20),
            ends in proptest::collection::btree_set(proptest::collection::vec(0u8..3, 0..22), 0..40),
        ) {
            let mut keys: Vec<_> = ends.iter().map(|end| Bytes::from([&common[..], &end[..]].concat())).collect();
            let records = keys.iter().map(|key| (key.clone(), Some(key.clone().into()))).collect();
            keys.sort();
            let sorted: Vec<_> = sorted(&records).into_iter().map(|(_, key, value)| (key.clone(), value.clone())).collect();
            let expected: Vec<_> = keys.into_iter().map(|key| (key.clone(), Some(key.into()))).collect();
            proptest::prop_assert_eq!(sorted, expected);
        }
    }

    #[test]
    fn keys_of_all_lengths_are_kept() {
        let lengths = (0..200).chain([SHARED_KEY_BYTES_MAX, SHARED_KEY_BYTES_MAX + 1, 2 * KEYS_BYTES]);
        let keys: Vec<_> = lengths.flat_map(|len| [vec![1; len], vec![2; len]]).collect();
        let mut memtable = Memtable::default();
        for key in &keys {
            memtable.write(vec![(key.clone().into(), Some(Bytes::from_static(b"old").into()))], None);
            memtable.write(vec![(key.clone().into(), Some(key.clone().into()))], None);
        }
        for key in keys {
            assert_eq!(memtable.get(&key), Some(Some(key.clone().into())));
        }
    }

    #[test]
    fn small_slices_do_not_keep_their_log_entry_in_memory() {
        let entry = Bytes::from(vec![7; 100_000]);
        let mut memtable = Memtable::default();
        memtable.write(vec![(entry.slice(..8), Some(entry.slice(8..16).into()))], None);
        assert!(entry.is_unique());
    }

    #[test]
    fn a_capture_goes_past_deletions_until_live_records_fill_the_page() {
        let mut memtable = Memtable::default();
        memtable.write(vec![("a".into(), None), put("b", "1"), ("c".into(), None), put("d", "1"), put("e", "1")], None);
        assert_eq!(memtable.capture(Version::LATEST, &KeyRange::all(), bounds(2, 100)).records.len(), 4);
        assert_eq!(memtable.capture(Version::LATEST, &KeyRange::all(), bounds(9, 2)).records.len(), 2);
        assert_eq!(
            memtable
                .capture(Version::LATEST, &KeyRange { start: "b".into(), end: "d".into() }, bounds(9, 100))
                .records
                .len(),
            2
        );
    }

    #[test]
    fn a_capture_of_deletions_ends_with_the_budget() {
        let mut memtable = Memtable::default();
        memtable.write((0..100u8).map(|key| (Bytes::from(vec![key]), None)).collect(), None);
        let captured =
            memtable.capture(Version::LATEST, &KeyRange::all(), ScanBounds { examined_max: 10, ..bounds(5, 100) });
        assert_eq!((captured.records.len(), captured.end), (10, Some(Bytes::from(vec![10]))));
    }
}
