//! The store as protocols see it: typed calls in, typed answers out, wherever the leader is.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use flotilla_kv::{Condition, Operation, OperationResult};
use flotilla_types::{NodeId, ShardId, Timestamp};

/// Why a call failed. [`StoreError::OutcomeUnknown`] alone means that state may have changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such collection.
    #[error("there is no collection `{0}`; create it first")]
    CollectionNotFound(String),
    /// The collection exists already, with other properties.
    #[error("the collection `{0}` exists already")]
    CollectionExists(String),
    /// A name, limit, cursor or option is not valid.
    #[error("{0}")]
    Invalid(&'static str),
    /// A key is empty or longer than the limit.
    #[error("a key must have 1 to {limit_bytes} bytes; this one has {bytes}")]
    KeySize {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A value is longer than the limit.
    #[error("a value may have at most {limit_bytes} bytes")]
    ValueTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// A batch has too many operations or bytes.
    #[error("a batch may have at most {operations_max} operations and {bytes_max} bytes")]
    BatchTooLarge {
        /// The limit.
        operations_max: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// An atomic batch names keys of more than one shard.
    #[error("the keys of an atomic batch must live in one shard; give them a common {{tag}}")]
    CrossShard,
    /// A condition did not hold. Nothing was written.
    #[error("the condition on operation {operation} does not hold")]
    ConditionFailed {
        /// Which one (conditions first, then operations).
        operation: u32,
        /// The version found, if the record exists.
        found: Option<Timestamp>,
    },
    /// The value is not a decimal 64-bit integer.
    #[error("the value is not an integer or out of range")]
    NotAnInteger,
    /// The sum does not fit into 64 bits.
    #[error("increment or decrement would overflow")]
    Overflow,
    /// A bound is reached. Nothing was written; try again.
    #[error("the cluster is busy; try again")]
    Busy {
        /// Wait so long.
        retry_after_ms: u64,
    },
    /// The shard has no leader that can be reached, or not enough of its replicas are up. Nothing was written.
    #[error("the shard is not available: too few of its replicas can be reached")]
    Unavailable {
        /// The shard.
        shard: Option<ShardId>,
        /// Its last known leader.
        leader: Option<NodeId>,
    },
    /// The deadline passed and nothing was written.
    #[error("the deadline passed before the request could be served; nothing was written")]
    DeadlineExceeded {
        /// The shard.
        shard: Option<ShardId>,
    },
    /// The write may or may not have taken effect.
    #[error("the outcome of the write is not known: it may or may not have taken effect")]
    OutcomeUnknown {
        /// The shard.
        shard: ShardId,
    },
    /// This node is draining.
    #[error("this node is draining; use another one")]
    Draining,
    /// The metadata group refused.
    #[error("{0}")]
    Refused(String),
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Linearizable.
    #[default]
    Strong,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// One for each operation.
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
    /// The value; empty when values were not asked for.
    pub value: Bytes,
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
    /// First key behind; empty for none.
    pub end: Bytes,
    /// Only keys after this one: the cursor of the page before.
    pub after: Option<Bytes>,
    /// At most so many records, 1 to 10,000.
    pub items_max: usize,
    /// Whether values are wanted.
    pub values: bool,
}

/// A page of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub records: Vec<Found>,
    /// The last key seen, to go on with; `None` when there is nothing more.
    pub cursor: Option<Bytes>,
}

/// The store behind every protocol of this node. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<()>,
}

impl Store {
    /// Applies operations atomically. Keys are the user's keys and must live in one shard.
    pub async fn write(
        &self,
        collection: &str,
        conditions: Vec<(Bytes, Condition)>,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        let _ = (collection, conditions, operations, deadline, &self.inner);
        unimplemented!()
    }

    /// Reads records, of any shards, in the order of the keys.
    pub async fn get(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        values: bool,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let _ = (collection, keys, values, consistency, deadline);
        unimplemented!()
    }

    /// A page of records in key order, merged over all shards of the collection.
    pub async fn scan(
        &self,
        collection: &str,
        scan: Scan,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let _ = (collection, scan, consistency, deadline);
        unimplemented!()
    }

    /// Live records in a collection, over all its shards.
    pub async fn count(&self, collection: &str, deadline: Instant) -> Result<u64, StoreError> {
        let _ = (collection, deadline);
        unimplemented!()
    }

    /// Whether two keys live in one shard, so that a write may name both.
    pub fn same_shard(&self, collection: &str, keys: &[Bytes]) -> Result<bool, StoreError> {
        let _ = (collection, keys);
        unimplemented!()
    }
}
