//! Ordered scans: every bucket is asked for its next records, and the pages are merged by the user's key.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_kv::{Answer, Query};
use flotilla_placement::Sharding;
use flotilla_types::{Bucket, KeyRange, NodeId, RecordKey, ShardId};
use futures_util::future::try_join_all;

use super::{
    Consistency, Found, PAGE_ITEMS_MAX, Page, Scan, Store, StoreError, collection_of, deadline_ms, read::found,
};

/// Bytes of records in one page; a page ends early rather than grow beyond it by more than one record.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes that one bucket contributes to a page at a time.
const BUCKET_BYTES_MAX: usize = 512 << 10;

/// One bucket's part in one shard: where to ask, for which records.
struct Part {
    shard: ShardId,
    range_epoch: u64,
    range: KeyRange,
}

/// What a part answered: its records, and whether (and from which key on) it has more.
struct Share {
    records: Vec<Found>,
    more_from: Option<Bytes>,
}

impl Store {
    /// A page of records in key order, merged over all shards of the collection.
    pub async fn scan(
        &self,
        collection: &str,
        scan: Scan,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let Consistency::Strong = consistency;
        if scan.items_max == 0 || scan.items_max > PAGE_ITEMS_MAX {
            return Err(StoreError::Invalid("`limit` must be between 1 and 10,000"));
        }
        let deadline_ms = deadline_ms(deadline);
        let parts = self.parts(collection, &scan)?;
        // With many buckets each is asked for its likely share first; the merge stops where the first one ran out.
        let share_items = if parts.len() == 1 { scan.items_max } else { 2 * scan.items_max / parts.len() + 16 };
        let share_items = share_items.min(scan.items_max);
        let asks = parts.iter().map(|part| self.share(part, share_items, scan.values, deadline_ms));
        let shares = try_join_all(asks).await?;
        Ok(merge(shares, scan.items_max))
    }

    fn parts(&self, collection: &str, scan: &Scan) -> Result<Vec<Part>, StoreError> {
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        let keys = user_range(scan);
        let buckets = match collection.sharding {
            Sharding::Hash => collection.buckets,
            Sharding::Range => 1,
        };
        let mut parts = Vec::new();
        for bucket in (0..buckets).map(Bucket) {
            let whole = KeyRange::of_buckets(collection.id, bucket, bucket);
            let start = RecordKey::new(collection.id, bucket, &keys.start).into_bytes();
            let end = match &keys.end[..] {
                [] => whole.end,
                end => RecordKey::new(collection.id, bucket, end).into_bytes(),
            };
            let wanted = KeyRange { start, end };
            for shard in map.shards_in(&wanted) {
                let range = wanted.intersection(&shard.descriptor.range);
                if !range.is_empty() {
                    let range_epoch = shard.descriptor.epoch.range;
                    parts.push(Part { shard: shard.descriptor.shard, range_epoch, range });
                }
            }
        }
        Ok(parts)
    }

    async fn share(&self, part: &Part, items_max: usize, values: bool, deadline_ms: u64) -> Result<Share, StoreError> {
        let mut range = part.range.clone();
        let mut records: Vec<Found> = Vec::new();
        let mut bytes = 0;
        loop {
            let query = Query::Scan {
                range: range.clone(),
                items_max: u32::try_from(items_max - records.len()).unwrap_or(u32::MAX),
                bytes_max: (BUCKET_BYTES_MAX - bytes.min(BUCKET_BYTES_MAX - 1)) as u32,
                values,
            };
            let (page, next, node): (_, _, NodeId) =
                match self.query(part.shard, part.range_epoch, &query, deadline_ms).await? {
                    (Answer::Page { records, next }, node) => (records, next, node),
                    _ => return Err(StoreError::Unavailable { shard: Some(part.shard), leader: None }),
                };
            for record in page {
                bytes += record.key.len() + record.value.len();
                records.push(found(record, node, part.shard));
            }
            match next {
                None => return Ok(Share { records, more_from: None }),
                Some(next) if records.len() >= items_max || bytes >= BUCKET_BYTES_MAX => {
                    let more_from = next.slice(RecordKey::PREFIX_BYTES.min(next.len())..);
                    return Ok(Share { records, more_from: Some(more_from) });
                }
                // Only expired records so far.
                Some(next) => range.start = next,
            }
        }
    }

    /// Live records in a collection, over all its shards.
    pub async fn count(&self, collection: &str, deadline: Instant) -> Result<u64, StoreError> {
        let deadline_ms = deadline_ms(deadline);
        let shards: Vec<_> = {
            let map = self.map();
            let id = collection_of(&map, collection)?.id;
            map.shards_of_collection(id).map(|shard| shard.descriptor.clone()).collect()
        };
        let asks = shards.iter().map(|shard| async move {
            let query = Query::Count { range: shard.range.clone() };
            match self.query(shard.shard, shard.epoch.range, &query, deadline_ms).await? {
                (Answer::Count { records, .. }, _) => Ok(records),
                _ => Err(StoreError::Unavailable { shard: Some(shard.shard), leader: None }),
            }
        });
        Ok(try_join_all(asks).await?.into_iter().sum())
    }
}

/// The user's keys that a scan wants.
fn user_range(scan: &Scan) -> KeyRange {
    let prefix = KeyRange::of_prefix(&scan.prefix);
    let bounds = KeyRange { start: scan.start.clone(), end: scan.end.clone() };
    let mut range = prefix.intersection(&bounds);
    if let Some(after) = &scan.after {
        // The smallest key behind `after`.
        let mut next = BytesMut::with_capacity(after.len() + 1);
        next.put_slice(after);
        next.put_u8(0);
        range.start = range.start.max(next.freeze());
    }
    range
}

/// Merges shares up to the first key that some bucket has not shown yet.
fn merge(shares: Vec<Share>, items_max: usize) -> Page {
    let horizon = shares.iter().filter_map(|share| share.more_from.clone()).min();
    let mut records: Vec<_> = shares.into_iter().flat_map(|share| share.records).collect();
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let mut more = horizon.is_some();
    if let Some(horizon) = &horizon {
        records.retain(|record| record.key < *horizon);
    }
    let mut bytes = 0;
    let fitting = records.iter().take(items_max).take_while(|record| {
        let fits = bytes < PAGE_BYTES_MAX;
        bytes += record.key.len() + record.value.len();
        fits
    });
    let fitting = fitting.count();
    more |= fitting < records.len();
    records.truncate(fitting);
    let cursor = more.then(|| records.last().map(|record| record.key.clone())).flatten();
    Page { records, cursor }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Timestamp;

    use super::*;

    fn record(key: &'static str) -> Found {
        Found {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            version: Timestamp(1),
            expires_at_ms: None,
            value_bytes: 0,
            served_by: NodeId(1),
            shard: ShardId(1),
        }
    }

    fn share(keys: &[&'static str], more_from: Option<&'static str>) -> Share {
        let more_from = more_from.map(|key| Bytes::from_static(key.as_bytes()));
        Share { records: keys.iter().map(|key| record(key)).collect(), more_from }
    }

    fn keys(page: &Page) -> Vec<&[u8]> {
        page.records.iter().map(|record| &record.key[..]).collect()
    }

    #[test]
    fn nothing_is_returned_beyond_what_every_bucket_has_shown() {
        let page = merge(vec![share(&["a", "d"], Some("e")), share(&["b", "c"], Some("c1"))], 10);
        assert_eq!(keys(&page), [&b"a"[..], b"b", b"c"]);
        assert_eq!(page.cursor, Some(Bytes::from_static(b"c")));
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let page = merge(vec![share(&["b"], None), share(&["a"], None)], 2);
        assert_eq!(keys(&page), [&b"a"[..], b"b"]);
        assert_eq!(page.cursor, None);
    }

    #[test]
    fn a_limit_cuts_the_page_and_leaves_a_cursor() {
        let page = merge(vec![share(&["b", "c"], None), share(&["a"], None)], 2);
        assert_eq!(keys(&page), [&b"a"[..], b"b"]);
        assert_eq!(page.cursor, Some(Bytes::from_static(b"b")));
    }

    #[test]
    fn a_cursor_continues_right_behind_its_key() {
        let scan = Scan { after: Some(Bytes::from_static(b"k")), items_max: 1, ..Scan::default() };
        let range = user_range(&scan);
        assert!(!range.contains(b"k") && range.contains(b"k\0"));
    }
}
