//! The store as protocols see it: typed calls in, typed answers out, wherever the leader is.
//!
//! A write is one atomic command to one shard with a session's number, so that a retry at another leader is harmless.
//! Reads and scans of many shards are asked in parallel and put together here.

mod error;
mod lanes;
mod read;
mod scan;
mod sessions;
mod shapes;
mod write;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_control::{ShardError, Shards};
use flotilla_placement::{Collection, ShardMap};
use flotilla_replication::clock;
use flotilla_types::{NodeId, SessionId, ShardId};

use lanes::Lanes;
use read::ReadPart;
use write::WritePart;

pub use error::StoreError;
pub use shapes::{Consistency, Found, Page, Scan, Written};

/// Longest key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest value, in bytes.
pub(crate) const VALUE_BYTES_MAX: u64 = 4 << 20;
/// Operations, and likewise conditions, of one batch.
pub(crate) const BATCH_OPERATIONS_MAX: usize = 1_024;
/// Bytes of one batch.
pub(crate) const BATCH_BYTES_MAX: usize = 8 << 20;
/// Keys of one read.
pub(crate) const KEYS_MAX: usize = 4_096;
/// Records in one page.
pub(crate) const PAGE_ITEMS_MAX: usize = 10_000;

/// Tells callers of a busy cluster when to come back.
const RETRY_AFTER_MS: u64 = 50;

/// The store behind every protocol of this node. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Shards,
    sessions: sessions::Sessions,
    /// Writes on their way into commands.
    writes: Lanes<WritePart>,
    /// Reads on their way into queries.
    reads: Lanes<ReadPart>,
}

impl Store {
    /// A store over this node's way to the shards. `session` is random, and new at every start.
    #[must_use]
    pub fn new(shards: Shards, session: SessionId) -> Self {
        let sessions = sessions::Sessions::new(session);
        Self { inner: Arc::new(Inner { shards, sessions, writes: Lanes::default(), reads: Lanes::default() }) }
    }

    /// The shard of each key. `None` where no shard is known; a write may name keys of one shard only.
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
        self.inner.shards.topology().map()
    }

    fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.inner.shards.topology().leader(shard)
    }

    fn error_of(&self, error: ShardError, shard: ShardId, deadline_ms: u64) -> StoreError {
        match error {
            ShardError::Unknown => StoreError::OutcomeUnknown { shard },
            ShardError::Busy => StoreError::Busy { retry_after_ms: RETRY_AFTER_MS },
            ShardError::Unavailable | ShardError::Stale if clock::monotonic_ms() + 1 >= deadline_ms => {
                match self.leader(shard) {
                    Some(_) => StoreError::DeadlineExceeded { shard: Some(shard) },
                    None => StoreError::Unavailable { shard: Some(shard), leader: None },
                }
            }
            ShardError::Unavailable | ShardError::Stale => {
                StoreError::Unavailable { shard: Some(shard), leader: self.leader(shard) }
            }
        }
    }
}

fn collection_of<'a>(map: &'a ShardMap, name: &str) -> Result<&'a Collection, StoreError> {
    // Before any metadata has come, nothing is known to be missing.
    let unknown = || match map.collections().next() {
        Some(_) => StoreError::CollectionNotFound(name.to_owned()),
        None => StoreError::Unavailable { shard: None, leader: None },
    };
    map.collection(name).ok_or_else(unknown)
}

fn check_key(key: &[u8]) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(StoreError::KeySize { bytes: key.len(), limit_bytes: KEY_BYTES_MAX });
    }
    Ok(())
}

/// A deadline on the host's monotonic clock.
fn deadline_ms(deadline: Instant) -> u64 {
    let left: Duration = deadline.saturating_duration_since(Instant::now());
    clock::monotonic_ms() + u64::try_from(left.as_millis()).unwrap_or(u64::MAX / 2)
}
