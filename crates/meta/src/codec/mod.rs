//! The binary format of commands, replies, records and snapshots.
//!
//! Invariants: every encoding starts with one byte, the cluster version that has its format (see
//! `flotilla_types::ClusterVersion`), so that a binary that does not support it stops there; equal values
//! give equal bytes; any bytes that this module did not write are refused with a typed error. The protobuf
//! messages stay private.

mod authority;
mod commands;
mod operations;
mod records;
mod replies;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::{VersionNeed, version_byte, version_need};
use flotilla_types::{ClusterVersion, VersionRange};
use prost::Message;

pub(crate) use authority::{decode_authority, encode_authority};
pub(crate) use operations::{decode_operation, encode_operation};
pub(crate) use records::{decode_collection, decode_header, decode_key, decode_node, decode_shard, decode_token};
pub(crate) use records::{encode_collection, encode_header, encode_key, encode_node, encode_shard, encode_token};

/// Limit on the bytes of one command; a longer one is malformed.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Ids and counters above this are refused, so that arithmetic on what peers send cannot overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Bytes do not parse. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They do not match their format version.
    #[error("the bytes do not parse")]
    Malformed,
    /// Their format is newer. Upgrade the binary.
    #[error("format version {found} is newer than {known}")]
    Version {
        /// Version in the bytes.
        found: u32,
        /// Newest version that this binary supports.
        known: u32,
    },
}

/// Encodes a message of the first version.
pub(crate) fn encode_versioned(message: &impl Message) -> Bytes {
    encode_at(VersionNeed::InForce(ClusterVersion::FIRST), message)
}

/// Encodes a message after its version.
fn encode_at(need: VersionNeed, message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + message.encoded_len());
    bytes.put_u8(version_byte(need));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// Checks the version and decodes the message after it.
pub(crate) fn decode_versioned<M: Message + Default>(bytes: &[u8]) -> Result<M, CodecError> {
    match decode_with_need(bytes)? {
        (VersionNeed::InForce(_), message) => Ok(message),
        (VersionNeed::Raises(_), _) => Err(CodecError::Malformed),
    }
}

/// As [`decode_versioned`], with the version. A field that its version does not have must be ignored by the
/// caller, as binaries of that version ignore it.
fn decode_with_need<M: Message + Default>(bytes: &[u8]) -> Result<(VersionNeed, M), CodecError> {
    let need = version_need(bytes);
    let known = VersionRange::supported().max;
    let (VersionNeed::InForce(version) | VersionNeed::Raises(version)) = need;
    match bytes {
        [0, ..] | [] => Err(CodecError::Malformed),
        [_, rest @ ..] if version <= known => {
            M::decode(rest).map(|message| (need, message)).map_err(|_| CodecError::Malformed)
        }
        _ => Err(CodecError::Version { found: version.0, known: known.0 }),
    }
}

/// Checks that an id or counter is within [`NUMBER_MAX`].
pub(crate) fn number<T: From<u64>>(number: u64) -> Result<T, CodecError> {
    if number <= NUMBER_MAX { Ok(number.into()) } else { Err(CodecError::Malformed) }
}

/// Checks the length of a 32-byte hash.
fn hash(bytes: &[u8]) -> Result<[u8; 32], CodecError> {
    bytes.try_into().map_err(|_| CodecError::Malformed)
}

/// Unwraps a required field.
fn required<T>(part: Option<T>) -> Result<T, CodecError> {
    part.ok_or(CodecError::Malformed)
}
