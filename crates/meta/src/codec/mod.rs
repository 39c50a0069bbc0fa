//! Bytes and back: commands, replies, records, snapshots.
//!
//! Invariants: everything starts with one byte that names the format's version; equal values give equal bytes; bytes that were not
//! written by this module are refused with a type, whatever they are. The protobuf messages stay private.

mod commands;
mod records;
mod replies;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

pub(crate) use records::{decode_collection, decode_header, decode_node, decode_shard, decode_token};
pub(crate) use records::{encode_collection, encode_header, encode_node, encode_shard, encode_token};

/// The version of everything written here.
const FORMAT_VERSION: u8 = 1;

/// Bytes of one command; a longer one is malformed.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Ids and counters above this are refused, so that arithmetic on what peers send cannot overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Bytes do not parse. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They are not in the format they claim.
    #[error("the bytes do not parse")]
    Malformed,
    /// They are of a newer format. Upgrade the binary.
    #[error("format version {found} is newer than {known}")]
    Version {
        /// Version in the bytes.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
}

/// Version byte, then the message.
pub(crate) fn seal(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + message.encoded_len());
    bytes.put_u8(FORMAT_VERSION);
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// Takes off the version byte and parses the rest.
pub(crate) fn open<M: Message + Default>(bytes: &[u8]) -> Result<M, CodecError> {
    match bytes.split_first() {
        None | Some((0, _)) => Err(CodecError::Malformed),
        Some((&FORMAT_VERSION, rest)) => M::decode(rest).map_err(|_| CodecError::Malformed),
        Some((&found, _)) => Err(CodecError::Version { found: found.into(), known: FORMAT_VERSION.into() }),
    }
}

/// An id or counter within [`NUMBER_MAX`].
pub(crate) fn number<T: From<u64>>(number: u64) -> Result<T, CodecError> {
    if number <= NUMBER_MAX { Ok(number.into()) } else { Err(CodecError::Malformed) }
}

/// A 32-byte hash.
fn hash(bytes: &[u8]) -> Result<[u8; 32], CodecError> {
    bytes.try_into().map_err(|_| CodecError::Malformed)
}

/// A part that must be there.
fn required<T>(part: Option<T>) -> Result<T, CodecError> {
    part.ok_or(CodecError::Malformed)
}
