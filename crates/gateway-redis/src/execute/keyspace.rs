//! Commands about all keys of the collection. They read it page by page, so they see it as it changes, not as
//! of one moment.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_gateway::{Consistency, Page, Scan, StoreError};

use super::{COLLECTION, task::del};
use crate::{
    Glob, Reply,
    answer::{error_reply, integer},
    server::Shared,
};

/// Keys in one page.
const PAGE_KEYS: usize = 10_000;
/// Bytes of the reply to `KEYS`.
const KEYS_BYTES_MAX: usize = 32 << 20;
/// Keys from which `RANDOMKEY` chooses.
const RANDOM_KEYS: usize = 1_000;
/// How long `FLUSHALL` may take; about 100,000 keys are removed in a second.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);

async fn page(
    shared: &Shared,
    after: Option<Bytes>,
    prefix: Bytes,
    items_max: usize,
    deadline: Instant,
) -> Result<Page, StoreError> {
    let scan = Scan { prefix, after, items_max, values: false, ..Scan::default() };
    shared.store.scan(COLLECTION, scan, Consistency::Strong, deadline).await
}

/// All keys that match.
pub(super) async fn keys(shared: &Shared, pattern: &Glob, deadline: Instant) -> Result<Reply, StoreError> {
    let prefix = Bytes::copy_from_slice(pattern.literal_prefix());
    let (mut keys, mut bytes, mut after) = (Vec::new(), 0, None);
    loop {
        let page = page(shared, after, prefix.clone(), PAGE_KEYS, deadline).await?;
        for key in page.records.into_iter().map(|record| record.key).filter(|key| pattern.matches(key)) {
            bytes += size_of::<Reply>() + key.len();
            if bytes > KEYS_BYTES_MAX {
                return Ok(Reply::Error("ERR too many keys match for one reply; use SCAN".into()));
            }
            keys.push(Reply::Bulk(key));
        }
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => return Ok(Reply::Array(keys)),
        }
    }
}

/// Some key: one of those that follow the last one that was chosen, in the order of keys, around the end.
pub(super) async fn random_key(shared: &Shared, deadline: Instant) -> Result<Reply, StoreError> {
    let last = shared.last_random_key.lock().clone();
    let mut found = page(shared, last.clone(), Bytes::new(), RANDOM_KEYS, deadline).await?.records;
    if last.is_some() && found.len() < RANDOM_KEYS {
        found.extend(page(shared, None, Bytes::new(), RANDOM_KEYS - found.len(), deadline).await?.records);
    }
    let chosen = RandomState::new().hash_one(found.len()) % (found.len().max(1) as u64);
    let key = found.into_iter().nth(chosen as usize).map(|record| record.key);
    // Copied, because it may be a slice of a whole page.
    *shared.last_random_key.lock() = key.as_ref().map(|key| Bytes::copy_from_slice(key));
    Ok(Reply::bulk_or_null(key))
}

/// Removes all keys that exist when it begins, page by page.
pub(super) async fn flush(shared: &Shared) -> Reply {
    let deadline = Instant::now() + FLUSH_WITHIN;
    let (mut removed, mut after) = (0, None);
    let incomplete = |removed: i64, reason: &Reply| {
        let reason = if let Reply::Error(text) = reason { text } else { "" };
        Reply::error(format_args!("UNKNOWN {removed} keys were removed, and others remain: {reason}"))
    };
    loop {
        let page = match page(shared, after, Bytes::new(), PAGE_KEYS, deadline).await {
            Ok(page) => page,
            Err(error) if removed == 0 => return error_reply(&error),
            Err(error) => return incomplete(removed, &error_reply(&error)),
        };
        let keys: Vec<Bytes> = page.records.into_iter().map(|record| record.key).collect();
        if !keys.is_empty() {
            match del(&shared.store, keys, deadline).await {
                Reply::Integer(count) => removed += count,
                error if removed == 0 => return error,
                error => return incomplete(removed, &error),
            }
        }
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => return Reply::OK,
        }
    }
}

/// Seconds and microseconds.
pub(crate) fn time_reply(now_us: u64) -> Reply {
    Reply::Array([now_us / 1_000_000, now_us % 1_000_000].map(|part| Reply::text(integer(part).to_string())).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_two_decimal_texts() {
        assert_eq!(time_reply(1_700_000_000_000_042), Reply::Array(vec![Reply::text("1700000000"), Reply::text("42")]));
    }
}
