//! Lengths of chunks, and where a chunk ends.
//!
//! FastCDC of 2020 with normalization level 1, from the crate `fastcdc`: a rolling hash of the bytes decides,
//! so equal bytes are cut equally wherever they are. For lengths that are powers of two, its releases from
//! 3.2 to 5.0 cut alike, and a test with fixed ids holds the next one to it.

use fastcdc::v2020::FastCDC;

use crate::{CHUNK_BYTES_MAX, ChunkingError, NODE_CHUNKS_MIN, NODES_MAX};

/// Length of a chunk at least, bytes. Below it, ids outweigh what they name.
const CHUNK_BYTES_MIN: u32 = 1 << 10;

/// How long chunks are, in bytes.
///
/// Choose once for a collection, not by the length of a value: values that are cut differently share nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking {
    min: u32,
    average: u32,
    max: u32,
}

impl Chunking {
    /// For most values, and for trees of files.
    pub const AVERAGE_16_KIB: Self = Self { min: 4 << 10, average: 16 << 10, max: 64 << 10 };
    /// For archives: a quarter of the ids, but more new bytes after a small change.
    pub const AVERAGE_64_KIB: Self = Self { min: 16 << 10, average: 64 << 10, max: 256 << 10 };
    /// For archives that change rarely, or in large parts.
    pub const AVERAGE_256_KIB: Self = Self { min: 64 << 10, average: 256 << 10, max: 1 << 20 };

    /// Chunks of `average` bytes, none longer than `max`, and only the last of a value shorter than `min`.
    ///
    /// All are powers of two from 1 KiB to [`CHUNK_BYTES_MAX`], and ascend. A quarter and four times the
    /// average are good limits: closer ones override the content more often.
    pub fn new(min: u32, average: u32, max: u32) -> Result<Self, ChunkingError> {
        for bytes in [min, average, max] {
            if !bytes.is_power_of_two() {
                return Err(ChunkingError::NotPowerOfTwo(bytes));
            }
            if !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes) {
                return Err(ChunkingError::OutOfBounds {
                    bytes,
                    bytes_min: CHUNK_BYTES_MIN,
                    bytes_max: CHUNK_BYTES_MAX,
                });
            }
        }
        if min < average && average < max { Ok(Self { min, average, max }) } else { Err(ChunkingError::Order) }
    }

    /// Length of a chunk at least, except the last one of a value.
    #[must_use]
    pub const fn min(self) -> u32 {
        self.min
    }

    /// Length of a chunk on average.
    #[must_use]
    pub const fn average(self) -> u32 {
        self.average
    }

    /// Length of a chunk at most.
    #[must_use]
    pub const fn max(self) -> u32 {
        self.max
    }

    /// The longest value that two levels of lists can hold, wherever its content makes it be cut, bytes.
    #[must_use]
    pub const fn value_bytes_max(self) -> u64 {
        self.min as u64 * (NODE_CHUNKS_MIN * NODES_MAX) as u64
    }

    /// The length of the chunk at the beginning of these bytes, which are at least `max`, or the rest of the
    /// value.
    pub(crate) fn cut(self, bytes: &[u8]) -> usize {
        let [min, average, max] = [self.min, self.average, self.max].map(|bytes| bytes as usize);
        FastCDC::new(bytes, min, average, max).cut(0, bytes.len()).1
    }
}

impl Default for Chunking {
    fn default() -> Self {
        Self::AVERAGE_16_KIB
    }
}
