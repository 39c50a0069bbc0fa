//! Arguments and results of the store's calls. Keys are the user's keys.

use bytes::Bytes;
use flotilla_kv::{OperationResult, Value};
use flotilla_types::{NodeId, ShardId, Timestamp};

/// Consistency of a read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Linearizable.
    #[default]
    Strong,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// One result for each operation.
    pub results: Vec<OperationResult>,
    /// The version of every record written, and its hybrid time.
    pub timestamp: Timestamp,
    /// The shard.
    pub shard: ShardId,
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The user's key.
    pub key: Bytes,
    /// The value; empty when values were not requested.
    pub value: Value,
    /// The version.
    pub version: Timestamp,
    /// Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// Length of the value.
    pub value_bytes: u64,
    /// The node that served the read.
    pub served_by: NodeId,
    /// The shard.
    pub shard: ShardId,
}

/// Which records a scan returns, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Only keys that start with this.
    pub prefix: Bytes,
    /// First key, included.
    pub start: Bytes,
    /// End of the range, exclusive; empty for no bound.
    pub end: Bytes,
    /// Only keys from this one on: the cursor of the previous page.
    pub from: Option<Bytes>,
    /// At most this many records: 1 to 10,000.
    pub items_max: usize,
    /// Whether to return values.
    pub values: bool,
    /// The moment at which to see each shard; `None` for the time at which each page is read.
    pub snapshot: Option<ScanSnapshot>,
}

/// The moment at which a scan of many pages sees each shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanSnapshot {
    /// That of the page that begins it.
    Begin,
    /// That of an earlier page.
    At(SnapshotId),
}

/// Names the moment of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotId(pub u128);

/// A page of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub records: Vec<Found>,
    /// Where the next page starts: the smallest key that it may have, which need not exist. `None` at the
    /// end. A page without records may have one, after a long range of records that are deleted or expired.
    pub cursor: Option<Bytes>,
    /// The moment that it shows, if that is one for all pages.
    pub snapshot: Option<SnapshotId>,
}

/// What a collection holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Live records.
    pub records: u64,
    /// Those of them that have an expiry. Shards whose nodes run a binary of an earlier release count none.
    pub expiring: u64,
    /// The mean expiry of those, in Unix milliseconds; `None` without one. Shards whose nodes run a binary of
    /// an earlier release are left out.
    pub mean_expiry_ms: Option<u64>,
}
