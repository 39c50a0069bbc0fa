//! Why a call to the store failed.

use flotilla_types::{NodeId, ObjectId, ShardId, Timestamp};

/// Why a shard did not answer a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It was routed by an outdated map: route it again.
    Stale,
    /// It failed.
    Failed(StoreError),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

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
        /// Index of the condition (conditions first, then operations).
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
    /// A limit is reached. Nothing was written; retry.
    #[error("the cluster is busy; try again")]
    Busy {
        /// How long to wait before a retry.
        retry_after_ms: u64,
    },
    /// The shard has no leader that can be reached, or not enough of its replicas are up. Nothing was
    /// written.
    #[error("the shard is not available: too few of its replicas can be reached")]
    Unavailable {
        /// The shard.
        shard: Option<ShardId>,
        /// Its last known leader.
        leader: Option<NodeId>,
    },
    /// What the request reads is damaged on the disk of the shard's leader. Nothing was written.
    #[error("what the request reads is damaged on disk; if the shard has another replica, it is being repaired")]
    Damaged {
        /// The shard.
        shard: ShardId,
    },
    /// The snapshot that a scan goes on from has ended: its time is up, its shard's leader has changed or was
    /// started again, or others needed the room.
    #[error("the snapshot of this scan has expired; start the scan again from its beginning")]
    SnapshotExpired {
        /// The shard.
        shard: ShardId,
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
    /// An append to a large value, whose key other writes of the batch change as well. Nothing was written.
    #[error("a large value can be appended to only once in a batch that does not change it otherwise")]
    LargeValue,
    /// Objects of a value are not on this node, and no other node has them. Nothing was written.
    #[error("{} objects of the value are missing; upload them, and try again", missing.len())]
    ObjectsMissing {
        /// The first of them.
        missing: Vec<ObjectId>,
    },
    /// The objects of a reference make up another value, or are cut in another way than this collection's.
    #[error("the objects make up another value than the reference says, or are not cut as in this collection")]
    WrongReference,
    /// The upload has ended. Nothing was written.
    #[error("the upload has ended; begin another one, and ask for all of its objects again")]
    UploadEnded,
    /// Objects of a value cannot be read or stored at present. Nothing was written.
    #[error("objects of the value cannot be read or stored at present; try again, or at another node")]
    ObjectsUnavailable,
    /// This node is draining.
    #[error("this node is draining; use another one")]
    Draining,
    /// The metadata group refused.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether a single operation or key caused the error, so that others of the same call would succeed
    /// without it. Nothing was written.
    #[must_use]
    pub fn is_request_error(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_)
                | Self::KeySize { .. }
                | Self::ValueTooLarge { .. }
                | Self::BatchTooLarge { .. }
                | Self::CrossShard
                | Self::NotAnInteger
                | Self::Overflow
                | Self::LargeValue
                | Self::ObjectsMissing { .. }
        )
    }
}
