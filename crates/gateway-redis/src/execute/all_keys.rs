//! Commands about all keys of a database. They read it page by page, so they see it as it changes, not as
//! of one moment.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_gateway::{Page, Scan, StoreError};

use super::task::del;
use crate::{
    Database, Glob, Reply,
    answer::{error_reply, integer},
    keyspace::Keyspace,
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
    keyspace: &Keyspace,
    from: Option<Bytes>,
    prefix: Bytes,
    items_max: usize,
    deadline: Instant,
) -> Result<Page, StoreError> {
    let scan = Scan { prefix, from, items_max, values: false, ..Scan::default() };
    keyspace.scan(scan, deadline).await
}

/// All keys that match.
pub(super) async fn keys(keyspace: &Keyspace, pattern: &Glob, deadline: Instant) -> Result<Reply, StoreError> {
    let prefix = Bytes::copy_from_slice(pattern.literal_prefix());
    let (mut keys, mut bytes, mut from) = (Vec::new(), 0, None);
    loop {
        let page = page(keyspace, from, prefix.clone(), PAGE_KEYS, deadline).await?;
        for key in page.records.into_iter().map(|record| record.key).filter(|key| pattern.matches(key)) {
            bytes += size_of::<Reply>() + key.len();
            if bytes > KEYS_BYTES_MAX {
                return Ok(Reply::Error("ERR too many keys match for one reply; use SCAN".into()));
            }
            keys.push(Reply::Bulk(key));
        }
        match page.cursor {
            Some(cursor) => from = Some(cursor),
            None => return Ok(Reply::Array(keys)),
        }
    }
}

/// Some key: one of those that follow the last one that was chosen, in the order of keys, around the end.
pub(super) async fn random_key(shared: &Shared, keyspace: &Keyspace, deadline: Instant) -> Result<Reply, StoreError> {
    let place = keyspace.database().index();
    let last = shared.last_random_keys.lock()[place].clone();
    let mut found = some_keys(keyspace, last.clone(), RANDOM_KEYS, deadline).await?;
    if last.is_some() && found.len() < RANDOM_KEYS {
        found.extend(some_keys(keyspace, None, RANDOM_KEYS - found.len(), deadline).await?);
    }
    let chosen = RandomState::new().hash_one(found.len()) % (found.len().max(1) as u64);
    let key = found.into_iter().nth(chosen as usize);
    // Copied, because it may be a slice of a whole page.
    shared.last_random_keys.lock()[place] = key.as_ref().map(|key| Bytes::copy_from_slice(key));
    Ok(Reply::bulk_or_null(key))
}

/// At least one of the keys from here on, if there is one.
async fn some_keys(
    keyspace: &Keyspace,
    mut from: Option<Bytes>,
    items_max: usize,
    deadline: Instant,
) -> Result<Vec<Bytes>, StoreError> {
    loop {
        let page = page(keyspace, from, Bytes::new(), items_max, deadline).await?;
        if !page.records.is_empty() || page.cursor.is_none() {
            return Ok(page.records.into_iter().map(|record| record.key).collect());
        }
        from = page.cursor;
    }
}

/// Removes all keys of these databases that exist when it begins, page by page.
pub(super) async fn flush(keyspace: &Keyspace, databases: impl IntoIterator<Item = Database>) -> Reply {
    let deadline = Instant::now() + FLUSH_WITHIN;
    let mut removed = 0;
    for database in databases {
        match remove_all(&keyspace.of(database), &mut removed, deadline).await {
            Ok(()) => {}
            Err(reason) if removed == 0 => return reason,
            Err(reason) => {
                let reason = if let Reply::Error(text) = &reason { text } else { "" };
                return Reply::error(format_args!("UNKNOWN {removed} keys were removed, and others remain: {reason}"));
            }
        }
    }
    Reply::OK
}

async fn remove_all(keyspace: &Keyspace, removed: &mut i64, deadline: Instant) -> Result<(), Reply> {
    let mut from = None;
    loop {
        let page =
            page(keyspace, from, Bytes::new(), PAGE_KEYS, deadline).await.map_err(|error| error_reply(&error))?;
        let keys: Vec<Bytes> = page.records.into_iter().map(|record| record.key).collect();
        if !keys.is_empty() {
            match del(keyspace, keys, deadline).await {
                Reply::Integer(count) => *removed += count,
                error => return Err(error),
            }
        }
        match page.cursor {
            Some(cursor) => from = Some(cursor),
            None => return Ok(()),
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
