//! `SCAN`: pages in key order, over all shards.
//!
//! A key that exists during the whole scan is returned exactly once; Redis promises at least once. Cursors
//! are kept in this process (see `cursors`), so a scan must continue on the node where it started.

use std::time::Instant;

use bytes::Bytes;
use flotilla_gateway::{Consistency, StoreError};

use super::COLLECTION;
use crate::{Reply, Scan, server::Shared};

/// Maximum number of keys that one call examines.
const SCAN_KEYS_MAX: u64 = 10_000;

/// Returns one page.
pub(crate) async fn scan(shared: &Shared, scan: Scan, deadline: Instant) -> Result<Reply, StoreError> {
    let after = match scan.cursor {
        0 => None,
        cursor => match shared.cursors.lock().find(cursor) {
            Some(key) => Some(key),
            None => {
                let text = "ERR invalid cursor: it has expired or is from another node; restart from 0";
                return Ok(Reply::Error(text.into()));
            }
        },
    };
    if !scan.type_exists {
        return Ok(page(0, Vec::new()));
    }
    let prefix = scan.pattern.as_ref().map(|glob| Bytes::copy_from_slice(glob.literal_prefix())).unwrap_or_default();
    let query = flotilla_gateway::Scan {
        prefix,
        after,
        items_max: scan.count.min(SCAN_KEYS_MAX) as usize,
        values: false,
        ..flotilla_gateway::Scan::default()
    };
    let found = shared.store.scan(COLLECTION, query, Consistency::Strong, deadline).await?;
    let cursor = found.cursor.map_or(0, |key| shared.cursors.lock().insert(&key));
    let matches = |key: &Bytes| scan.pattern.as_ref().is_none_or(|glob| glob.matches(key));
    let keys = found.records.into_iter().map(|record| record.key).filter(matches);
    Ok(page(cursor, keys.map(Reply::Bulk).collect()))
}

fn page(cursor: u64, keys: Vec<Reply>) -> Reply {
    Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(keys)])
}
