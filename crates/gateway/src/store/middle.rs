//! Finds the middle of a shard's keys.
//!
//! Invariants: reads keys only, a bounded number of them and for a bounded time; what is kept of them is bounded too.
//! A shard with more keys than that is divided behind half of those that were read.

use std::time::Instant;

use bytes::Bytes;
use flotilla_control::clock;
use flotilla_kv::{Answer, Query};
use flotilla_placement::ShardMap;
use flotilla_route::Route;
use flotilla_types::{KeyRange, ShardId};

use super::{
    Store, StoreError, deadline_ms,
    error::ReadError,
    routes::{Rerouting, route_to},
};

/// Keys that are read, at most.
const KEYS_READ_MAX: u64 = 200_000;
/// How long keys are read, in milliseconds, and no longer than half of the time that the caller has.
const READ_MS_MAX: u64 = 3_000;
/// Keys of one answer.
const PAGE_KEYS_MAX: u32 = 10_000;
/// Bytes of one answer.
const PAGE_BYTES_MAX: u32 = 1 << 20;
/// Keys that are kept, of at most 4 KiB each: the middle is found to within one part in 512 of what was read.
const SAMPLE_KEYS_MAX: usize = 1_024;

impl Store {
    /// The record key in the middle of those that a shard holds; `None` if there are fewer than two. As many keys are
    /// before it as behind it, give or take a few.
    ///
    /// # Errors
    /// The shard is not known here, or cannot be read before the deadline.
    pub async fn middle_key(&self, shard: ShardId, deadline: Instant) -> Result<Option<Bytes>, StoreError> {
        let deadline_ms = deadline_ms(deadline);
        let now_ms = clock::monotonic_ms();
        let stop_ms = now_ms.midpoint(deadline_ms).min(now_ms.saturating_add(READ_MS_MAX));
        let mut rerouting = Rerouting::new(self, deadline_ms);
        let mut sample = Sample::default();
        let mut next = Bytes::new();
        loop {
            let routed = rerouting.route(|map| rest_of(map, shard, &next)).await?;
            let Some((route, range)) = routed.into_iter().next() else { break };
            let query = Query::Scan { range, items_max: PAGE_KEYS_MAX, bytes_max: PAGE_BYTES_MAX, values: false };
            let (records, more_from) = match self.query(route, &query, deadline_ms).await {
                Ok((Answer::Page { records, next }, _)) => (records, next),
                Ok(_) => return Err(StoreError::Unavailable { shard: Some(shard), leader: None }),
                Err(ReadError::Failed(error)) => return Err(error),
                Err(ReadError::Stale) => {
                    rerouting.refused(route);
                    continue;
                }
            };
            records.iter().for_each(|record| sample.add(&record.key));
            match more_from {
                Some(from) if sample.seen < KEYS_READ_MAX && clock::monotonic_ms() < stop_ms => next = from,
                Some(_) | None => break,
            }
        }
        Ok(sample.middle())
    }
}

/// The keys of a shard from one on, with the route to it; none if it has none of those.
fn rest_of(map: &ShardMap, shard: ShardId, from: &Bytes) -> Result<Vec<(Route, KeyRange)>, StoreError> {
    let shard = map.shard(shard).ok_or(StoreError::Unavailable { shard: Some(shard), leader: None })?;
    let rest = KeyRange { start: from.clone(), end: Bytes::new() };
    let range = shard.descriptor.range.intersection(&rest);
    Ok(if range.is_empty() { Vec::new() } else { vec![(route_to(shard), range)] })
}

/// Every so many of the keys that were added, in order.
#[derive(Debug)]
struct Sample {
    keys: Vec<Bytes>,
    /// Each of `keys` stands for so many, of which it is the first.
    stride: u64,
    seen: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { keys: Vec::new(), stride: 1, seen: 0 }
    }
}

impl Sample {
    fn add(&mut self, key: &[u8]) {
        if self.keys.len() == SAMPLE_KEYS_MAX && self.seen.is_multiple_of(self.stride) {
            let mut position = 0;
            self.keys.retain(|_| {
                position += 1;
                position % 2 == 1
            });
            self.stride *= 2;
        }
        if self.seen.is_multiple_of(self.stride) {
            // A copy, because the key is a part of a whole answer.
            self.keys.push(Bytes::copy_from_slice(key));
        }
        self.seen += 1;
    }

    /// The key before which half of the keys are; never the first one.
    fn middle(self) -> Option<Bytes> {
        let at = usize::try_from(self.seen / 2 / self.stride).ok()?;
        self.keys.into_iter().nth(at).filter(|_| at > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middle_of(keys: u64) -> Option<u64> {
        let mut sample = Sample::default();
        for key in 0..keys {
            sample.add(&key.to_be_bytes());
            assert!(sample.keys.len() <= SAMPLE_KEYS_MAX);
        }
        let middle = sample.middle()?;
        Some(u64::from_be_bytes(middle[..].try_into().expect("a key")))
    }

    #[test]
    fn the_middle_of_few_keys_is_exact_and_never_the_first() {
        let found: Vec<_> = (0..6).map(middle_of).collect();
        assert_eq!(found, [None, None, Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(middle_of(1_024), Some(512));
    }

    #[test]
    fn the_middle_of_many_keys_is_near() {
        for keys in [1_025, 2_048, 2_049, 5_000, 100_003, KEYS_READ_MAX + 9_999] {
            let middle = middle_of(keys).expect("a middle");
            assert!(middle.abs_diff(keys / 2) <= keys / 512, "{middle} of {keys}");
        }
    }
}
