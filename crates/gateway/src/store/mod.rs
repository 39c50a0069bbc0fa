//! The store as protocols see it: typed calls, routed to the leaders of the shards concerned.
//!
//! A write is one atomic command to one shard with a session's sequence number, so that a retry at another
//! leader is harmless. Reads and scans of many shards run in parallel and are merged here. Deliberately
//! absent: transactions across shards, and any knowledge of a protocol.

mod batcher;
mod collections;
mod error;
mod large;
mod middle;
mod objects;
mod peers;
mod read;
mod routes;
mod scan;
mod sessions;
mod snapshots;
mod types;
mod values;
mod write;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_api::KEY_BYTES_MAX;
use flotilla_control::{ShardError, Shards, clock};
use flotilla_placement::{Collection, ShardMap};
use flotilla_route::GatewayStart;
use flotilla_storage::ValueObjects;
use flotilla_types::{NodeId, ShardId};

use batcher::Batchers;
use read::PendingRead;
use write::PendingWrite;

pub use error::StoreError;
pub(crate) use large::{Opened, ValueRules};
pub(crate) use objects::Lacking;
pub use types::{Consistency, Counted, Found, Page, Scan, ScanSnapshot, SnapshotId, Written};
pub(crate) use values::{Encoding, FramesError, HOLD_TIME, Hold, UPLOAD_TIME, ValueReader, ValueWriter};

/// Keys of one read.
pub const READ_KEYS_MAX: usize = 4_096;

/// When a caller that was refused as busy may retry: long enough for a request of usual size to finish.
pub(crate) const RETRY_AFTER_MS: u64 = 50;

/// The store that all protocols of this node share. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Shards,
    sessions: sessions::Sessions,
    /// Writes that share commands.
    writes: Batchers<PendingWrite>,
    /// Reads that share queries.
    reads: Batchers<PendingRead>,
    /// The latest version of the shard map whose dropped shards were forgotten.
    swept_version: AtomicU64,
    refreshes: collections::Refreshes,
    snapshots: snapshots::SnapshotIds,
    values: values::Values,
}

impl Store {
    /// Creates a store over this node's access to the shards and its objects. `start` is random, and new at every
    /// start.
    #[must_use]
    pub fn new(shards: Shards, objects: Arc<dyn ValueObjects>, start: GatewayStart) -> Self {
        let values = values::Values::new(objects, Arc::new(peers::Peers(shards.clone())));
        let snapshots = snapshots::SnapshotIds::new(start);
        let sessions = sessions::Sessions::new(start);
        let (writes, reads) = (Batchers::default(), Batchers::default());
        let (swept_version, refreshes) = (AtomicU64::new(0), collections::Refreshes::default());
        Self { inner: Arc::new(Inner { shards, sessions, writes, reads, swept_version, refreshes, snapshots, values }) }
    }

    /// The shard of each key, or `None` where no shard is known. A write may name keys of one shard only.
    pub fn shards_of<'a>(
        &self,
        collection: &str,
        keys: impl Iterator<Item = &'a Bytes>,
    ) -> Result<Vec<Option<ShardId>>, StoreError> {
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        let shard_of = |key| map.shard_of(collection.record_key(key).as_bytes()).map(|shard| shard.descriptor.shard);
        Ok(keys.map(|key: &Bytes| shard_of(key)).collect())
    }

    fn map(&self) -> Arc<ShardMap> {
        let map = self.inner.shards.topology().map();
        self.forget_dropped_shards(&map);
        map
    }

    /// Forgets the shards that the map no longer has, once for each version of the map.
    fn forget_dropped_shards(&self, map: &ShardMap) {
        let Inner { sessions, writes, reads, swept_version, .. } = &*self.inner;
        let is_swept = || swept_version.load(Ordering::Relaxed) >= map.version();
        if !is_swept() && swept_version.fetch_max(map.version(), Ordering::Relaxed) < map.version() {
            let exists = |shard: ShardId| map.shard(shard).is_some();
            sessions.retain(exists);
            writes.retain(exists);
            reads.retain(exists);
        }
    }

    fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.inner.shards.topology().leader(shard)
    }

    /// The error of a write.
    fn write_error(&self, error: ShardError, shard: ShardId, deadline_ms: u64) -> StoreError {
        match error {
            ShardError::Unknown => StoreError::OutcomeUnknown { shard },
            ShardError::Busy => StoreError::Busy { retry_after_ms: RETRY_AFTER_MS },
            ShardError::Damaged => StoreError::Damaged { shard },
            ShardError::SnapshotExpired => StoreError::SnapshotExpired { shard },
            ShardError::Unavailable | ShardError::Stale(_) if clock::monotonic_ms() + 1 >= deadline_ms => {
                match self.leader(shard) {
                    Some(_) => StoreError::DeadlineExceeded { shard: Some(shard) },
                    None => StoreError::Unavailable { shard: Some(shard), leader: None },
                }
            }
            ShardError::ObjectsMissing => StoreError::ObjectsMissing { missing: Vec::new() },
            ShardError::Unavailable | ShardError::Stale(_) => {
                StoreError::Unavailable { shard: Some(shard), leader: self.leader(shard) }
            }
        }
    }

    /// The error of a request that changes nothing: its outcome is never unknown.
    fn read_error(&self, error: ShardError, shard: ShardId, deadline_ms: u64) -> StoreError {
        let error = match error {
            ShardError::Unknown => ShardError::Unavailable,
            other => other,
        };
        self.write_error(error, shard, deadline_ms)
    }
}

fn collection_of<'a>(map: &'a ShardMap, name: &str) -> Result<&'a Collection, StoreError> {
    // Without any metadata yet, a collection cannot be said to be missing.
    let unknown = || match map.collections().next() {
        Some(_) => StoreError::CollectionNotFound(name.to_owned()),
        None => StoreError::Unavailable { shard: None, leader: None },
    };
    map.collection(name).ok_or_else(unknown)
}

/// Refuses an empty key and one above the limit.
pub(crate) fn check_key(key: &[u8]) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(StoreError::KeySize { bytes: key.len(), limit_bytes: KEY_BYTES_MAX });
    }
    Ok(())
}

/// A deadline on the host's monotonic clock.
fn deadline_ms(deadline: Instant) -> u64 {
    let time_left: Duration = deadline.saturating_duration_since(Instant::now());
    clock::monotonic_ms() + u64::try_from(time_left.as_millis()).unwrap_or(u64::MAX / 2)
}
