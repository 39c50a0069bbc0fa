//! Large values: only what the other side lacks travels.
//!
//! A value is cut here as the cluster cuts it ([`LocalValue`]). A put asks a node which objects it lacks, from
//! the root down, sends those, and then stores the reference. A get takes the objects from a [`ValueCache`] and
//! fetches the others. Nodes that do not know these calls get and return whole values.
//!
//! Invariants: memory is bounded by [`BATCH_BYTES_MAX`], [`BATCHES_IN_FLIGHT`] and the lists of the value,
//! whatever its length. Every object is verified by its id, whether it comes from a node, from the cache or from
//! a file that is read a second time. Calls that change no record are repeated until the deadline; a write of
//! which nobody knows whether it took effect is not.

mod cache;
mod collection;
mod frames;
mod get;
mod local;
mod need;
mod put;
mod retry;
mod source;

#[cfg(test)]
mod tests;

use std::{ops::AddAssign, time::Duration};

use flotilla_api::{FRAME_HEADER_BYTES, OBJECT_REFS_MAX, UPLOAD_BYTES_MAX, UPLOAD_OBJECTS_MAX};

pub use cache::ValueCache;
pub(crate) use collection::CollectionCache;
pub use get::ValueReader;
pub use local::LocalValue;
pub use put::StoredValue;
pub use source::{ValueSource, ValueSourceReader};

/// Longest value that a cluster takes, bytes. Clusters of earlier versions take 4 MiB.
pub const LARGE_VALUE_BYTES_MAX: u64 = flotilla_api::LARGE_VALUE_BYTES_MAX as u64;

/// Objects in one call, in both directions, bytes before compression. A single object may be as long.
const BATCH_BYTES_MAX: usize = 1 << 20;
const _: () = assert!(BATCH_BYTES_MAX + FRAME_HEADER_BYTES <= UPLOAD_BYTES_MAX);
/// Objects in one call. Chunks have 1 KiB at least, except the last one of a value.
const BATCH_OBJECTS_MAX: usize =
    if UPLOAD_OBJECTS_MAX < OBJECT_REFS_MAX { UPLOAD_OBJECTS_MAX } else { OBJECT_REFS_MAX };
/// Calls with objects of one value under way at the same time.
const BATCHES_IN_FLIGHT: usize = 4;
/// How long a call with objects may take at least: a batch needs 30 s at 0.3 Mbit/s.
const BATCH_TIMEOUT_MIN: Duration = Duration::from_secs(30);

/// What a put or get moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Length of the values.
    pub value_bytes: u64,
    /// Bytes in bodies of requests that were sent: questions, objects after compression, references, whole values.
    pub sent_bytes: u64,
    /// The same in bodies of answers.
    pub received_bytes: u64,
    /// Objects that the other side lacked, or that were fetched.
    pub objects_moved: u64,
    /// Objects that were there already.
    pub objects_here: u64,
}

impl Transfer {
    /// How many bytes of the values did not have to travel. None if calls and headers outweigh that.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.value_bytes.saturating_sub(self.sent_bytes.max(self.received_bytes))
    }
}

impl AddAssign for Transfer {
    fn add_assign(&mut self, other: Self) {
        self.value_bytes += other.value_bytes;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.objects_moved += other.objects_moved;
        self.objects_here += other.objects_here;
    }
}
