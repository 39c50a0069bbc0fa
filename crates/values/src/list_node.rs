//! Lists of parts as objects.
//!
//! The encoding: `FLVL`, version u8, level u8, number of parts u16, and for each part its id (32 bytes) and
//! how many bytes of the value it covers (u32). Integers are little-endian. A list has one encoding.
//!
//! There are two levels: leaves list chunks, the root of a value lists leaves. So a list cannot contain
//! itself, and no list is deeper than two.

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_types::ObjectId;

use crate::{CHUNK_BYTES_MAX, FormatError, Kind, NODE_CHUNKS_MAX, NODES_MAX, Need};

const MAGIC: [u8; 4] = *b"FLVL";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
/// An encoded part.
pub(crate) const PART_BYTES: usize = 32 + 4;

/// An object, and how much of a value it covers: itself if it is a chunk, else what is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// The object.
    pub id: ObjectId,
    /// Bytes of the value, not zero.
    pub bytes: u32,
}

/// The level of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// It lists chunks.
    Leaf,
    /// It lists leaves, all those of a value.
    Root,
}

/// Parts of a value, in order, as an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListNode {
    level: Level,
    parts: Vec<Part>,
}

impl Level {
    const fn code(self) -> u8 {
        match self {
            Self::Leaf => 1,
            Self::Root => 2,
        }
    }

    const fn parts_max(self) -> usize {
        match self {
            Self::Leaf => NODE_CHUNKS_MAX,
            Self::Root => NODES_MAX,
        }
    }

    const fn part_bytes_max(self) -> u32 {
        match self {
            Self::Leaf => CHUNK_BYTES_MAX,
            Self::Root => CHUNK_BYTES_MAX * NODE_CHUNKS_MAX as u32,
        }
    }
}

impl ListNode {
    /// The length of the object at most, bytes.
    pub const ENCODED_BYTES_MAX: usize = HEADER_BYTES + NODES_MAX * PART_BYTES;

    /// A list of parts, whose number and lengths the caller keeps within the limits.
    pub(crate) fn new(level: Level, parts: Vec<Part>) -> Self {
        let node = Self { level, parts };
        assert!(node.check().is_ok(), "a list of {} parts cannot be read", node.parts.len());
        node
    }

    /// The list in this object.
    pub fn decode(object: &[u8]) -> Result<Self, FormatError> {
        let Some((&header, rest)) = object.split_first_chunk::<HEADER_BYTES>() else {
            return Err(FormatError::NotAList);
        };
        let [m, a, g, i, version, level, low, high] = header;
        if [m, a, g, i] != MAGIC {
            return Err(FormatError::NotAList);
        }
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let level = match level {
            1 => Level::Leaf,
            2 => Level::Root,
            other => return Err(FormatError::Level(other)),
        };
        let node = Self { level, parts: decode_parts(rest, u16::from_le_bytes([low, high]).into())? };
        node.check()?;
        Ok(node)
    }

    /// The bytes of the object.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.parts.len() * PART_BYTES);
        bytes.put_slice(&MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u8(self.level.code());
        bytes.put_u16_le(self.parts.len() as u16);
        encode_parts(&mut bytes, &self.parts);
        bytes.freeze()
    }

    /// What it lists.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The parts, in the order of the value. A part can be repeated.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The objects that it lists, in the order of the value. Can repeat.
    pub fn needs(&self) -> impl Iterator<Item = Need> {
        let kind = match self.level {
            Level::Leaf => Kind::Chunk,
            Level::Root => Kind::List(Level::Leaf),
        };
        self.parts.iter().map(move |part| Need::new(kind, *part))
    }

    /// How many bytes of the value it covers.
    #[must_use]
    pub fn covers(&self) -> u64 {
        covers(&self.parts)
    }

    fn check(&self) -> Result<(), FormatError> {
        if !(1..=self.level.parts_max()).contains(&self.parts.len()) {
            return Err(FormatError::Count(self.parts.len()));
        }
        check_lengths(&self.parts, self.level.part_bytes_max())
    }
}

/// How many bytes these parts cover together.
pub(crate) fn covers(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.bytes)).sum()
}

/// Checks that no part is empty or too long.
pub(crate) fn check_lengths(parts: &[Part], bytes_max: u32) -> Result<(), FormatError> {
    match parts.iter().find(|part| !(1..=bytes_max).contains(&part.bytes)) {
        Some(part) => Err(FormatError::PartLength(part.bytes)),
        None => Ok(()),
    }
}

pub(crate) fn encode_parts(bytes: &mut BytesMut, parts: &[Part]) {
    for part in parts {
        bytes.put_slice(part.id.as_bytes());
        bytes.put_u32_le(part.bytes);
    }
}

/// Exactly `count` parts.
pub(crate) fn decode_parts(bytes: &[u8], count: usize) -> Result<Vec<Part>, FormatError> {
    let (parts, []) = bytes.as_chunks::<PART_BYTES>() else {
        return Err(FormatError::Length { found: bytes.len(), expected: count * PART_BYTES });
    };
    if parts.len() != count {
        return Err(FormatError::Length { found: bytes.len(), expected: count * PART_BYTES });
    }
    let part = |bytes: &[u8; PART_BYTES]| {
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[..32]);
        Part { id: ObjectId(id), bytes: u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]) }
    };
    Ok(parts.iter().map(part).collect())
}
