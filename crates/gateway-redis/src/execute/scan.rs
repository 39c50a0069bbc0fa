//! `SCAN`: pages in key order, over all shards.
//!
//! A key that exists during the whole scan is returned exactly once; Redis promises at least once. Cursors
//! are good on every node (see `positions`). As in Redis, a cursor may be used with another pattern: the scan
//! goes on from its position, and ends if no key that the pattern matches can follow.

use std::time::Instant;

use bytes::Bytes;
use flotilla_gateway::StoreError;

use super::positions::{cursor_of, position_of};
use crate::{Reply, Scan, keyspace::Keyspace, server::Shared};

/// Maximum number of keys that one call examines.
const SCAN_KEYS_MAX: u64 = 10_000;
/// The least number, because a page has its price whatever it holds. To Redis, `COUNT` is a hint, too.
const SCAN_KEYS_MIN: u64 = 100;

/// Returns one page.
pub(crate) async fn scan(
    shared: &Shared,
    keyspace: &Keyspace,
    scan: Scan,
    deadline: Instant,
) -> Result<Reply, StoreError> {
    let from = match scan.cursor {
        0 => None,
        cursor => match position_of(shared, cursor, deadline).await? {
            Some(from) => Some(from),
            None => return Ok(Reply::Error("ERR invalid cursor: it is too old; restart from 0".into())),
        },
    };
    if !scan.type_exists {
        return Ok(page(0, Vec::new()));
    }
    let query = query(&scan, from);
    let found = keyspace.scan(query, deadline).await?;
    let cursor = match &found.cursor {
        Some(from) => cursor_of(shared, from, deadline).await,
        None => 0,
    };
    let matches = |key: &Bytes| scan.pattern.as_ref().is_none_or(|glob| glob.matches(key));
    let keys = found.records.into_iter().map(|record| record.key).filter(matches);
    Ok(page(cursor, keys.map(Reply::Bulk).collect()))
}

/// The query for the keys from a position on.
fn query(scan: &Scan, from: Option<Bytes>) -> flotilla_gateway::Scan {
    let prefix = scan.pattern.as_ref().map(|glob| Bytes::copy_from_slice(glob.literal_prefix())).unwrap_or_default();
    flotilla_gateway::Scan {
        prefix,
        from,
        items_max: scan.count.clamp(SCAN_KEYS_MIN, SCAN_KEYS_MAX) as usize,
        values: false,
        ..flotilla_gateway::Scan::default()
    }
}

fn page(cursor: u64, keys: Vec<Reply>) -> Reply {
    Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(keys)])
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::{Command, parse::testing::parsed};

    fn scan_of(line: &str) -> Scan {
        match parsed(line) {
            Ok(Command::Scan(scan)) => scan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_cursor_goes_on_under_another_pattern() {
        let from = Some(Bytes::from_static(b"b"));
        let query = query(&scan_of("SCAN 7 MATCH a*"), from.clone());
        assert_eq!((&query.prefix[..], query.from), (&b"a"[..], from));
    }

    proptest! {
        /// Whatever a client sends, the store gets limits that it accepts, and misses no key that matches.
        #[test]
        fn every_scan_is_valid_for_the_store(
            pattern in option::of("[ab*?\\[\\]^\\\\-]{0,7}"),
            count in prop_oneof![Just(1), 1..u64::from(u32::MAX), Just(i64::MAX as u64)],
            from in option::of(vec(any::<u8>(), 0..5).prop_map(Bytes::from)),
            key in "[ab\\]-]{0,5}",
        ) {
            let pattern = pattern.filter(|pattern| !pattern.is_empty());
            let matching = pattern.as_ref().map(|pattern| format!(" MATCH {pattern}")).unwrap_or_default();
            let scan = scan_of(&format!("SCAN 0{matching} COUNT {count}"));
            let query = query(&scan, from.clone());
            prop_assert!((SCAN_KEYS_MIN as usize..=SCAN_KEYS_MAX as usize).contains(&query.items_max));
            prop_assert_eq!(&query.from, &from);
            let matches = scan.pattern.is_none_or(|glob| glob.matches(key.as_bytes()));
            prop_assert!(!matches || key.as_bytes().starts_with(&query.prefix));
        }

        #[test]
        fn hostile_cursors_and_counts_are_refused_or_bounded(
            cursor in "[0-9+-]{0,21}",
            count in "[0-9+-]{1,21}",
        ) {
            if let Ok(Command::Scan(scan)) = parsed(&format!("SCAN {cursor} COUNT {count}")) {
                prop_assert_eq!(cursor.parse(), Ok(scan.cursor));
                prop_assert!((SCAN_KEYS_MIN as usize..=SCAN_KEYS_MAX as usize).contains(&query(&scan, None).items_max));
            }
        }
    }
}
