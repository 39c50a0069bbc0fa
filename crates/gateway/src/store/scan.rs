//! Ordered scans: every bucket is scanned for its next records, and the results are merged by the user's key.
//!
//! Invariants: bounds are any bytes in any order, and those between which no key lies give an empty page. A
//! page never lacks records because their shard is unknown here: that scan waits, and fails as unavailable at
//! its deadline. What a shard refuses because its range has changed is asked of the shards that hold it now.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_api::SCAN_ITEMS_MAX;
use flotilla_control::clock;
use flotilla_kv::{Answer, Query};
use flotilla_placement::{Collection, ShardMap, Sharding};
use flotilla_route::Route;
use flotilla_types::{Bucket, KeyRange, NodeId, RecordKey};
use futures_util::future::try_join_all;

use super::{
    Consistency, Counted, Found, Page, Scan, SnapshotId, Store, StoreError, collection_of, deadline_ms,
    error::ReadError,
    read::found,
    routes::{Rerouting, home, parts, route_to},
};

/// Bytes of records in one page, which ends with the record that reaches them.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes that one bucket contributes to a page at a time.
const BUCKET_BYTES_MAX: usize = 512 << 10;
/// Answers that one bucket contributes to a page, which passes over at most thousands of records that are
/// deleted or expired for each. A page that has too few records by then is returned as it is.
const BUCKET_ANSWERS_MAX: usize = 8;

/// The first records of a part of a bucket.
struct BucketPage {
    records: Vec<Found>,
    /// The user's key from which the range may have more; `None` at its end.
    more_from: Option<Bytes>,
}

impl Store {
    /// Scans a page of records in key order, merged over all shards of the collection.
    pub async fn scan(
        &self,
        collection: &str,
        scan: Scan,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let Consistency::Strong = consistency;
        if scan.items_max == 0 || scan.items_max > SCAN_ITEMS_MAX {
            return Err(StoreError::Invalid("`limit` must be between 1 and 10,000"));
        }
        let deadline_ms = deadline_ms(deadline);
        let collection = collection_of(&self.map(), collection)?.clone();
        let parts_of = |map: &ShardMap| bucket_ranges(map, &collection, &user_range(&scan));
        let snapshot = self.snapshot_of(scan.snapshot, parts_of, deadline_ms).await?;
        let ranges = Rerouting::new(self, deadline_ms).route(parts_of).await?;
        let items_max = bucket_items_max(scan.items_max, ranges.len());
        let scans = ranges
            .into_iter()
            .map(|(_, range)| self.scan_bucket(range, (items_max, scan.values), snapshot, deadline_ms));
        let pages = try_join_all(scans).await?;
        Ok(Page { snapshot, ..merge(pages, scan.items_max) })
    }

    /// Scans a range of one bucket, shard by shard.
    async fn scan_bucket(
        &self,
        mut rest: KeyRange,
        (items_max, values): (usize, bool),
        snapshot: Option<SnapshotId>,
        deadline_ms: u64,
    ) -> Result<BucketPage, StoreError> {
        let mut rerouting = Rerouting::new(self, deadline_ms);
        let mut records: Vec<Found> = Vec::new();
        let (mut bytes, mut answers) = (0, 0);
        // Whoever waits for a page gets what there is rather than an error, and goes on from there.
        let late_ms = clock::monotonic_ms().midpoint(deadline_ms);
        loop {
            let first = rerouting.route(|map| first_part(map, &rest)).await?;
            let Some((route, range)) = first.into_iter().next() else {
                return Ok(BucketPage { records, more_from: None });
            };
            let end = range.end.clone();
            let query = Query::Scan {
                range,
                items_max: u32::try_from(items_max - records.len()).unwrap_or(u32::MAX),
                bytes_max: (BUCKET_BYTES_MAX - bytes.min(BUCKET_BYTES_MAX - 1)) as u32,
                values,
            };
            let (page, next, node): (_, _, NodeId) =
                match self.query_snapshot(route, &query, snapshot.map(|id| (id, false)), deadline_ms).await {
                    Ok((Answer::Page { records, next }, node)) => (records, next, node),
                    Ok(_) => return Err(StoreError::Unavailable { shard: Some(route.shard), leader: None }),
                    Err(ReadError::Failed(error)) => return Err(error),
                    Err(ReadError::Stale) => {
                        rerouting.refused(route);
                        continue;
                    }
                };
            for record in page {
                bytes += record.key.len() + record.value.stored_bytes();
                records.push(found(record, node, route.shard));
            }
            // Without a `next`, the rest is in other shards, if there is any. With one and room for more
            // records, all others so far had expired.
            rest = match next {
                Some(next) => KeyRange { start: next, ..rest },
                None if end == rest.end => return Ok(BucketPage { records, more_from: None }),
                None => KeyRange { start: end, ..rest },
            };
            answers += 1;
            let is_late = answers >= BUCKET_ANSWERS_MAX || clock::monotonic_ms() >= late_ms;
            if records.len() >= items_max || bytes >= BUCKET_BYTES_MAX || is_late {
                let more_from = rest.start.slice(RecordKey::PREFIX_BYTES.min(rest.start.len())..);
                return Ok(BucketPage { records, more_from: Some(more_from) });
            }
        }
    }

    /// Counts the live records of a collection, over all its shards.
    pub async fn count(&self, collection: &str, deadline: Instant) -> Result<Counted, StoreError> {
        let deadline_ms = deadline_ms(deadline);
        let mut uncounted = {
            let map = self.map();
            let Collection { id, buckets, .. } = collection_of(&map, collection)?;
            vec![KeyRange::of_buckets(*id, Bucket(0), Bucket(buckets.saturating_sub(1)))]
        };
        let mut rerouting = Rerouting::new(self, deadline_ms);
        let mut total = Counted::default();
        let mut expiries = MeanOf::default();
        while !uncounted.is_empty() {
            let whole = |map: &ShardMap| -> Result<Vec<_>, StoreError> {
                let parts = uncounted.iter().map(|range| parts(map, range)).collect::<Result<Vec<_>, _>>()?;
                Ok(parts.into_iter().flatten().collect())
            };
            let counts = rerouting.route(whole).await?.into_iter().map(|(route, range)| async move {
                let query = Query::Count { range: range.clone() };
                match self.query(route, &query, deadline_ms).await {
                    Ok((Answer::Count { records, expiring, mean_expiry_ms, .. }, _)) => {
                        Ok((route, range, Some((records, expiring, mean_expiry_ms))))
                    }
                    Ok(_) => Err(StoreError::Unavailable { shard: Some(route.shard), leader: None }),
                    Err(ReadError::Stale) => Ok((route, range, None)),
                    Err(ReadError::Failed(error)) => Err(error),
                }
            });
            let counts = try_join_all(counts).await?;
            uncounted.clear();
            for (route, range, count) in counts {
                match count {
                    Some((records, expiring, mean_expiry_ms)) => {
                        total.records = total.records.saturating_add(records);
                        total.expiring = total.expiring.saturating_add(expiring);
                        expiries.add(mean_expiry_ms, expiring);
                    }
                    None => {
                        rerouting.refused(route);
                        uncounted.push(range);
                    }
                }
            }
        }
        Ok(Counted { mean_expiry_ms: expiries.mean(), ..total })
    }
}

/// The mean of several means, each of some values. A mean of zero is not known.
#[derive(Debug, Default)]
struct MeanOf {
    sum: u128,
    count: u128,
}

impl MeanOf {
    fn add(&mut self, mean: u64, count: u64) {
        if mean > 0 {
            self.sum = self.sum.saturating_add(u128::from(mean) * u128::from(count));
            self.count += u128::from(count);
        }
    }

    fn mean(&self) -> Option<u64> {
        u64::try_from(self.sum.checked_div(self.count)?).ok()
    }
}

/// The part of a range that its first shard holds; none if it is empty.
fn first_part(map: &ShardMap, range: &KeyRange) -> Result<Vec<(Route, KeyRange)>, StoreError> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let shard = home(map, &range.start)?;
    Ok(vec![(route_to(shard), range.intersection(&shard.descriptor.range))])
}

/// The parts of a range of user's keys, by bucket and shard. None if the range is empty.
fn bucket_ranges(
    map: &ShardMap,
    collection: &Collection,
    keys: &KeyRange,
) -> Result<Vec<(Route, KeyRange)>, StoreError> {
    let mut ranges = Vec::new();
    if keys.is_empty() {
        return Ok(ranges);
    }
    let buckets = match collection.sharding {
        Sharding::Hash => collection.buckets,
        Sharding::Range => 1,
    };
    for bucket in (0..buckets).map(Bucket) {
        let whole = KeyRange::of_buckets(collection.id, bucket, bucket);
        let start = RecordKey::new(collection.id, bucket, &keys.start).into_bytes();
        let end = match &keys.end[..] {
            [] => whole.end,
            end => RecordKey::new(collection.id, bucket, end).into_bytes(),
        };
        ranges.extend(parts(map, &KeyRange { start, end })?);
    }
    Ok(ranges)
}

/// Records to request from each of `ranges` ranges. Of many, each is scanned for twice its likely share only:
/// the merged page ends early where one of them was not scanned far enough.
fn bucket_items_max(items_max: usize, ranges: usize) -> usize {
    match ranges {
        0 | 1 => items_max,
        many => (2 * items_max / many + 16).min(items_max),
    }
}

/// The range of user's keys that a scan covers. It may be empty, also inverted.
fn user_range(scan: &Scan) -> KeyRange {
    let prefix = KeyRange::of_prefix(&scan.prefix);
    let bounds = KeyRange { start: scan.start.clone(), end: scan.end.clone() };
    let mut range = prefix.intersection(&bounds);
    if let Some(from) = &scan.from {
        range.start = range.start.max(from.clone());
    }
    range
}

/// The smallest key greater than this one.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Merges the buckets' pages up to the first key that some bucket was not scanned for yet.
fn merge(pages: Vec<BucketPage>, items_max: usize) -> Page {
    let end = pages.iter().filter_map(|page| page.more_from.clone()).min();
    let mut records: Vec<_> = pages.into_iter().flat_map(|page| page.records).collect();
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if let Some(end) = &end {
        records.retain(|record| record.key < *end);
    }
    let (mut bytes, mut fitting) = (0, 0);
    for record in records.iter().take(items_max) {
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
        bytes += record.key.len() + record.value.stored_bytes();
        fitting += 1;
    }
    let is_cut = fitting < records.len();
    records.truncate(fitting);
    // Where buckets were not scanned further, also without a record, the next page goes on.
    let cursor = if is_cut { records.last().map(|record| successor(&record.key)) } else { end };
    Page { records, cursor, snapshot: None }
}

#[cfg(test)]
mod tests {
    use flotilla_api::KEY_BYTES_MAX;
    use flotilla_placement::Shard;
    use flotilla_types::{CollectionId, Epoch, ShardDescriptor, ShardId, Timestamp};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn record(key: &'static str) -> Found {
        Found {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new().into(),
            version: Timestamp(1),
            expires_at_ms: None,
            value_bytes: 0,
            served_by: NodeId(1),
            shard: ShardId(1),
        }
    }

    fn bucket_page(keys: &[&'static str], more_from: Option<&'static str>) -> BucketPage {
        let more_from = more_from.map(|key| Bytes::from_static(key.as_bytes()));
        BucketPage { records: keys.iter().map(|key| record(key)).collect(), more_from }
    }

    fn keys(page: &Page) -> Vec<&[u8]> {
        page.records.iter().map(|record| &record.key[..]).collect()
    }

    #[test]
    fn a_page_ends_where_some_bucket_was_not_scanned_further() {
        let page = merge(vec![bucket_page(&["a", "d"], Some("e")), bucket_page(&["b", "c"], Some("c1"))], 10);
        assert_eq!(keys(&page), [&b"a"[..], b"b", b"c"]);
        assert_eq!(page.cursor, Some(Bytes::from_static(b"c1")));
    }

    #[test]
    fn a_page_without_records_is_not_the_last_one_while_some_bucket_has_more() {
        let page = merge(vec![bucket_page(&[], Some("e")), bucket_page(&["f"], None)], 10);
        assert_eq!((page.records.len(), page.cursor), (0, Some(Bytes::from_static(b"e"))));
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let page = merge(vec![bucket_page(&["b"], None), bucket_page(&["a"], None)], 2);
        assert_eq!(keys(&page), [&b"a"[..], b"b"]);
        assert_eq!(page.cursor, None);
    }

    #[test]
    fn a_limit_cuts_the_page_and_leaves_a_cursor() {
        let page = merge(vec![bucket_page(&["b", "c"], None), bucket_page(&["a"], None)], 2);
        assert_eq!(keys(&page), [&b"a"[..], b"b"]);
        assert_eq!(page.cursor, Some(Bytes::from_static(b"b\0")));
    }

    #[test]
    fn a_cursor_continues_right_after_its_key() {
        let page = merge(vec![bucket_page(&["k", "l"], None)], 1);
        let range = user_range(&Scan { from: page.cursor, items_max: 1, ..Scan::default() });
        assert!(!range.contains(b"k") && range.contains(b"k\0"));
    }

    const RANGE: CollectionId = CollectionId(7);

    fn shard(id: u64, collection: CollectionId, range: KeyRange) -> Shard {
        let descriptor =
            ShardDescriptor { shard: ShardId(id), range, epoch: Epoch { range: 1, config: 1 }, replicas: Vec::new() };
        Shard { collection, descriptor }
    }

    fn collection(id: CollectionId, sharding: Sharding, buckets: u16) -> Collection {
        let (objects_from, chunking) = (Collection::OBJECTS_FROM_DEFAULT, Default::default());
        let split_bytes = Collection::SPLIT_BYTES_DEFAULT;
        Collection { id, name: id.to_string(), sharding, buckets, replicas: 3, objects_from, chunking, split_bytes }
    }

    /// A hash collection of three buckets in two shards, and a range collection that is cut at `b`.
    fn map(missing: Option<u64>) -> (ShardMap, [Collection; 2]) {
        let hash = CollectionId::DEFAULT;
        let whole = KeyRange::of_buckets(RANGE, Bucket(0), Bucket(u16::MAX));
        let cut = RecordKey::new(RANGE, Bucket(0), b"b").into_bytes();
        let shards = [
            shard(1, hash, KeyRange::of_buckets(hash, Bucket(0), Bucket(1))),
            shard(2, hash, KeyRange::of_buckets(hash, Bucket(2), Bucket(u16::MAX))),
            shard(3, RANGE, KeyRange { start: whole.start, end: cut.clone() }),
            shard(4, RANGE, KeyRange { start: cut, end: whole.end }),
        ];
        let shards = shards.into_iter().filter(|shard| Some(shard.descriptor.shard.0) != missing);
        let collections = [collection(hash, Sharding::Hash, 3), collection(RANGE, Sharding::Range, 1)];
        (ShardMap::new(1, collections.clone(), shards), collections)
    }

    #[test]
    fn a_scan_fails_while_a_shard_in_its_range_is_unknown() {
        for missing in 1..=4 {
            let (map, [hash, range]) = map(Some(missing));
            let whole = [&hash, &range].map(|all| bucket_ranges(&map, all, &KeyRange::all()).is_ok());
            assert_eq!(whole, if missing < 3 { [false, true] } else { [true, false] }, "without {missing}");
        }
        let (map, [_, range]) = map(Some(4));
        let below = KeyRange { start: Bytes::from_static(b"a"), end: Bytes::from_static(b"b") };
        assert_eq!(bucket_ranges(&map, &range, &below).map(|ranges| ranges.len()), Ok(1));
    }

    #[test]
    fn an_empty_range_is_an_empty_page() {
        let (map, collections) = map(None);
        let bytes = Bytes::from_static;
        for scan in [
            Scan { start: bytes(b"b"), end: bytes(b"a"), ..Scan::default() },
            Scan { start: bytes(b"a"), end: bytes(b"a"), ..Scan::default() },
            Scan { prefix: bytes(b"b"), end: bytes(b"a"), ..Scan::default() },
            Scan { prefix: bytes(b"a"), start: bytes(b"b"), ..Scan::default() },
            Scan { prefix: bytes(b"a"), from: Some(bytes(b"b")), ..Scan::default() },
            Scan { end: bytes(b"b"), from: Some(bytes(b"b")), ..Scan::default() },
        ] {
            for collection in &collections {
                let ranges = bucket_ranges(&map, collection, &user_range(&scan)).expect("every shard is known");
                assert!(ranges.is_empty(), "{scan:?}");
                assert!(bucket_items_max(10, ranges.len()) > 0);
            }
            let page = merge(Vec::new(), 10);
            assert_eq!((page.records.len(), page.cursor), (0, None));
        }
    }

    /// Bounds that meet: short ones over few letters, the ends, and ones at and beyond the limit of keys.
    fn bound() -> impl Strategy<Value = Bytes> {
        let long = prop_oneof![Just(KEY_BYTES_MAX - 1), Just(KEY_BYTES_MAX), Just(KEY_BYTES_MAX + 1)];
        prop_oneof![
            2 => Just(Bytes::new()),
            6 => vec(prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(u8::MAX)], 0..4).prop_map(Bytes::from),
            1 => (long, prop_oneof![Just(b'a'), Just(u8::MAX)]).prop_map(|(len, byte)| std::vec![byte; len].into()),
        ]
    }

    proptest! {
        /// The parts of a scan hold exactly the keys that match it by the definition, each once.
        #[test]
        fn every_matching_key_lies_in_exactly_one_part(
            prefix in bound(),
            start in bound(),
            end in bound(),
            from in proptest::option::of(bound()),
            items_max in 1..=SCAN_ITEMS_MAX,
            keys in vec(bound().prop_filter("a key", |key| !key.is_empty()), 1..8),
        ) {
            let (map, collections) = map(None);
            let scan = Scan { prefix, start, end, from, items_max, values: true, snapshot: None };
            for collection in &collections {
                let ranges = bucket_ranges(&map, collection, &user_range(&scan)).expect("every shard is known");
                let share = bucket_items_max(items_max, ranges.len());
                prop_assert!((1..=items_max).contains(&share));
                for key in &keys {
                    let matches = key.starts_with(&scan.prefix)
                        && *key >= scan.start
                        && (scan.end.is_empty() || *key < scan.end)
                        && scan.from.as_ref().is_none_or(|from| key >= from);
                    let record_key = collection.record_key(key).into_bytes();
                    let parts: Vec<_> = ranges.iter().filter(|(_, part)| part.contains(&record_key)).collect();
                    prop_assert_eq!(parts.len(), usize::from(matches), "{:?} in {:?}", key, scan);
                    let home = map.shard_of(&record_key).map(|shard| shard.descriptor.shard);
                    for (route, part) in parts {
                        prop_assert_eq!(Some(route.shard), home);
                        let first = first_part(&map, part).expect("every shard is known");
                        prop_assert_eq!(first, [(*route, part.clone())], "each part lies in one shard");
                    }
                }
            }
        }
    }

    #[test]
    fn a_mean_of_means_weighs_each_by_its_count() {
        let mut mean = MeanOf::default();
        assert_eq!(mean.mean(), None);
        mean.add(0, 5);
        assert_eq!(mean.mean(), None, "a shard that does not report");
        mean.add(10, 1);
        mean.add(40, 2);
        assert_eq!(mean.mean(), Some(30));
        mean.add(u64::MAX, u64::MAX);
        assert!(mean.mean().is_some(), "what a shard answers may be anything");
    }
}
