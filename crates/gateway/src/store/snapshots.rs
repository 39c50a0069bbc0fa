//! Snapshots of scans: each shard is seen at one moment, on all pages.
//!
//! The first page opens a snapshot at every shard of its range, all under one id that the cursor carries. The
//! leaders keep them for a while ([`flotilla_control::PinnedQuery`]). Whoever goes on and does not find one is
//! told so; a page is never put together from two moments of a shard.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use flotilla_control::{PinId, PinnedQuery};
use flotilla_kv::{Answer, Query};
use flotilla_placement::ShardMap;
use flotilla_route::{GatewayStart, Route};
use flotilla_types::KeyRange;
use futures_util::future::try_join_all;

use super::{ScanSnapshot, SnapshotId, Store, StoreError, error::ReadError, routes::Rerouting};

/// Numbers the snapshots of this start.
#[derive(Debug)]
pub(super) struct SnapshotIds {
    start: u64,
    last: AtomicU64,
}

impl SnapshotIds {
    pub(super) fn new(start: GatewayStart) -> Self {
        Self { start: start.0, last: AtomicU64::new(0) }
    }

    fn next(&self) -> SnapshotId {
        SnapshotId(u128::from(self.start) << 64 | u128::from(self.last.fetch_add(1, Ordering::Relaxed) + 1))
    }
}

/// A query on a snapshot, as bytes.
pub(super) fn on_snapshot(SnapshotId(id): SnapshotId, opens: bool, query: Bytes) -> Bytes {
    PinnedQuery { id: PinId(id), opens, query }.encode()
}

impl Store {
    /// The snapshot of a page; opens one if the page begins it.
    pub(super) async fn snapshot_of(
        &self,
        asked: Option<ScanSnapshot>,
        parts_of: impl Fn(&ShardMap) -> Result<Vec<(Route, KeyRange)>, StoreError>,
        deadline_ms: u64,
    ) -> Result<Option<SnapshotId>, StoreError> {
        match asked {
            None => Ok(None),
            Some(ScanSnapshot::At(id)) => Ok(Some(id)),
            Some(ScanSnapshot::Begin) => {
                let id = self.inner.snapshots.next();
                self.open_snapshots(id, parts_of, deadline_ms).await.map(|()| Some(id))
            }
        }
    }

    /// Opens a snapshot at every shard that holds a part of a range. Nothing was read from it yet, so a shard whose
    /// range has changed since it was opened may open it again.
    async fn open_snapshots(
        &self,
        id: SnapshotId,
        parts_of: impl Fn(&ShardMap) -> Result<Vec<(Route, KeyRange)>, StoreError>,
        deadline_ms: u64,
    ) -> Result<(), StoreError> {
        let mut rerouting = Rerouting::new(self, deadline_ms);
        let mut opened = BTreeSet::new();
        loop {
            let routes = rerouting.route(&parts_of).await?;
            let (mut shards, mut to_open) = (BTreeSet::new(), Vec::new());
            for (route, range) in routes {
                if shards.insert(route) && !opened.contains(&route) {
                    to_open.push((route, range));
                }
            }
            if to_open.is_empty() {
                return Ok(());
            }
            let opens = to_open.into_iter().map(|(route, range)| async move {
                let query = Query::Scan { range, items_max: 1, bytes_max: 1, values: false };
                match self.query_snapshot(route, &query, Some((id, true)), deadline_ms).await {
                    Ok((Answer::Page { .. }, _)) => Ok((route, true)),
                    Ok(_) => Err(StoreError::Unavailable { shard: Some(route.shard), leader: None }),
                    Err(ReadError::Stale) => Ok((route, false)),
                    Err(ReadError::Failed(error)) => Err(error),
                }
            });
            for (route, is_open) in try_join_all(opens).await? {
                if is_open {
                    opened.insert(route);
                } else {
                    rerouting.refused(route);
                }
            }
        }
    }
}
