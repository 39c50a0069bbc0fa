//! What a record keeps of a value.
//!
//! The encoding: version u8, form u8, length u64 (little-endian), BLAKE3 of the content (32 bytes), and by
//! form:
//!
//! - 0: nothing. The value is empty, or it is one chunk, whose id is the hash of the content.
//! - 2 to 64: so many chunks, encoded as in a list.
//! - 255: the id of the root list (32 bytes).
//!
//! A reference has one encoding, of at most 2,346 bytes.

use std::slice;

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_types::{ObjectId, ObjectRef, Refs};

use crate::{
    CHUNK_BYTES_MAX, CHUNKS_IN_REF_MAX, FormatError, Kind, Level, NODE_CHUNKS_MAX, NODES_MAX, Need, Part,
    list_node::{PART_BYTES, check_lengths, covers, decode_parts, encode_parts},
};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 2 + 8 + 32;
/// The form of a value with at most one chunk.
const FORM_WHOLE: u8 = 0;
/// The form of a value with a root list.
const FORM_ROOT: u8 = u8::MAX;
/// The longest value that lists can describe.
const VALUE_BYTES_MAX: u64 = NODES_MAX as u64 * NODE_CHUNKS_MAX as u64 * CHUNK_BYTES_MAX as u64;

/// A value: its length, its hash, and the objects of which it consists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueRef {
    bytes: u64,
    etag: ObjectId,
    list: List,
}

/// The objects that a value names directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// The chunks; none if the value is empty.
    Chunks(Vec<Part>),
    /// The root list, for values of more than [`CHUNKS_IN_REF_MAX`] chunks.
    Root(ObjectId),
}

impl ValueRef {
    /// The encoded length at most, bytes.
    pub const ENCODED_BYTES_MAX: usize = HEADER_BYTES + CHUNKS_IN_REF_MAX * PART_BYTES;

    /// The value with this content hash, which consists of what a cutter listed.
    pub(crate) const fn new(bytes: u64, etag: ObjectId, list: List) -> Self {
        Self { bytes, etag, list }
    }

    /// Length of the value.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The BLAKE3 hash of the content, whatever it was cut into.
    #[must_use]
    pub const fn etag(&self) -> ObjectId {
        self.etag
    }

    /// The objects that it names directly.
    #[must_use]
    pub const fn list(&self) -> &List {
        &self.list
    }

    /// The objects that it names directly, which a record must keep. Can repeat.
    pub fn needs(&self) -> impl Iterator<Item = Need> {
        let (chunks, root) = match &self.list {
            List::Chunks(parts) => (parts.as_slice(), None),
            List::Root(id) => (&[][..], Some(Need { id: *id, kind: Kind::List(Level::Root), bytes: self.bytes })),
        };
        chunks.iter().map(|part| Need::new(Kind::Chunk, *part)).chain(root)
    }

    /// The same as references, for the entry and the record.
    #[must_use]
    pub fn refs(&self) -> Refs {
        self.needs().map(ObjectRef::from).collect()
    }

    /// The length of the encoding, bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let list = match &self.list {
            List::Chunks(parts) if parts.len() < 2 => 0,
            List::Chunks(parts) => parts.len() * PART_BYTES,
            List::Root(_) => 32,
        };
        HEADER_BYTES + list
    }

    /// The bytes that a record keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.encoded_bytes());
        bytes.put_u8(VERSION);
        bytes.put_u8(match &self.list {
            List::Chunks(parts) if parts.len() < 2 => FORM_WHOLE,
            List::Chunks(parts) => parts.len() as u8,
            List::Root(_) => FORM_ROOT,
        });
        bytes.put_u64_le(self.bytes);
        bytes.put_slice(self.etag.as_bytes());
        match &self.list {
            List::Chunks(parts) if parts.len() < 2 => {}
            List::Chunks(parts) => encode_parts(&mut bytes, parts),
            List::Root(id) => bytes.put_slice(id.as_bytes()),
        }
        bytes.freeze()
    }

    /// Reads a reference. That it fits the content is not known before the content was cut again.
    pub fn decode(encoded: &[u8]) -> Result<Self, FormatError> {
        let length = |expected| FormatError::Length { found: encoded.len(), expected };
        let Some((header, rest)) = encoded.split_first_chunk::<HEADER_BYTES>() else {
            return Err(length(HEADER_BYTES));
        };
        let [version, form, b0, b1, b2, b3, b4, b5, b6, b7, etag @ ..] = *header;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let bytes = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        let etag = ObjectId(etag);
        let list = match form {
            FORM_WHOLE if rest.is_empty() => List::Chunks(whole(bytes, etag)?),
            FORM_ROOT => {
                let id = ObjectId::from_slice(rest).ok_or(length(HEADER_BYTES + 32))?;
                if bytes <= CHUNKS_IN_REF_MAX as u64 || bytes > VALUE_BYTES_MAX {
                    return Err(FormatError::Sum { bytes });
                }
                List::Root(id)
            }
            FORM_WHOLE => return Err(length(HEADER_BYTES)),
            count if (2..=CHUNKS_IN_REF_MAX).contains(&count.into()) => {
                let parts = decode_parts(rest, count.into())?;
                check_lengths(&parts, CHUNK_BYTES_MAX)?;
                if covers(&parts) != bytes {
                    return Err(FormatError::Sum { bytes });
                }
                List::Chunks(parts)
            }
            count => return Err(FormatError::Count(count.into())),
        };
        Ok(Self { bytes, etag, list })
    }
}

/// The chunks of a value that has at most one.
fn whole(bytes: u64, etag: ObjectId) -> Result<Vec<Part>, FormatError> {
    if bytes == 0 {
        return if etag == ObjectId::of(b"") { Ok(Vec::new()) } else { Err(FormatError::EmptyHash) };
    }
    let part = u32::try_from(bytes).map(|bytes| Part { id: etag, bytes }).map_err(|_| FormatError::Sum { bytes })?;
    check_lengths(slice::from_ref(&part), CHUNK_BYTES_MAX)?;
    Ok(vec![part])
}
