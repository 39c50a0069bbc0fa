//! The errors of this crate. None of them leaves a changed state behind.

use flotilla_types::ObjectId;

use crate::Level;

/// Lengths with which nothing can be cut. Retrying does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkingError {
    /// A length is not a power of two.
    #[error("{0} bytes: the length of a chunk must be a power of two")]
    NotPowerOfTwo(u32),
    /// A length is outside what is supported.
    #[error("{bytes} bytes: the length of a chunk must be from {bytes_min} to {bytes_max}")]
    OutOfBounds {
        /// The refused length.
        bytes: u32,
        /// The least length.
        bytes_min: u32,
        /// The greatest length.
        bytes_max: u32,
    },
    /// The average is not above the minimum and below the maximum.
    #[error("the average length of a chunk must be above the minimum and below the maximum")]
    Order,
}

/// The value is longer than it may be. The bytes of this push were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value is longer than {bytes_max} bytes")]
pub struct TooLong {
    /// The limit.
    pub bytes_max: u64,
}

/// A range that is not within a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range {start}..{end} is not within a value of {bytes} bytes")]
pub struct OutOfRange {
    /// The first byte of the range.
    pub start: u64,
    /// The end of the range, exclusive.
    pub end: u64,
    /// The length of the value.
    pub bytes: u64,
}

/// Bytes that are not the encoding of a reference or of a list. Retrying does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They do not begin as a list does.
    #[error("this is not a list of a value")]
    NotAList,
    /// A newer binary wrote them, or nobody did.
    #[error("the format version {0} is not known")]
    Version(u8),
    /// There is no such level of lists.
    #[error("there is no list of level {0}")]
    Level(u8),
    /// They list fewer or more parts than can be.
    #[error("{0} parts: no list has so many")]
    Count(usize),
    /// They are shorter or longer than their number of parts says.
    #[error("{found} bytes where {expected} are expected")]
    Length {
        /// How many bytes there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A part covers no bytes, or more than a part can.
    #[error("a part of {0} bytes: no part has this length")]
    PartLength(u32),
    /// The lengths of the parts do not add up, or no value of this form has this length.
    #[error("the parts do not make up {bytes} bytes")]
    Sum {
        /// The length of the whole.
        bytes: u64,
    },
    /// The hash of an empty value is always the same.
    #[error("an empty value has another hash")]
    EmptyHash,
}

/// Bytes that are not the object that a value needs. The object may be right at another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The length differs from what the parent says. If the bytes match their id, the parent is wrong, and
    /// with it the value: no other place helps.
    #[error("object {id} makes up {found} bytes of a value, not {expected}")]
    Length {
        /// The expected object.
        id: ObjectId,
        /// Bytes of the value in it.
        found: u64,
        /// Bytes that the parent says.
        expected: u64,
    },
    /// The bytes do not hash to the id.
    #[error("the bytes given for object {0} do not match its id")]
    Mismatch(ObjectId),
    /// The object is intact, but is no list. The value is damaged; no other place helps.
    #[error("object {id} is not a list: {reason}")]
    Malformed {
        /// The object.
        id: ObjectId,
        /// What is wrong.
        reason: FormatError,
    },
    /// The object is intact, but a list of another level. The value is damaged; no other place helps.
    #[error("object {id} is a list of level {found:?}")]
    Level {
        /// The object.
        id: ObjectId,
        /// Its level.
        found: Level,
    },
    /// Nobody asked for this object.
    #[error("object {0} is not needed")]
    Unexpected(ObjectId),
}
