//! The encoding of commands, outcomes, queries and answers, in log entries and between nodes.
//!
//! Format: one version byte, then a protobuf message. Keys and values are decoded as slices of the input;
//! code that keeps one longer than the request must copy it, so that it does not keep a whole log entry in
//! memory.
//!
//! Invariants: decoding any bytes gives a value or a typed error, and the number of elements is bounded
//! before anything is allocated for them. It does not check *values* (lengths, counts, ranges).

mod command;
mod outcome;
mod query;
mod value;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{ClusterVersion, VersionRange};
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

pub use command::{decode_command, encode_command};
pub use outcome::{decode_outcome, encode_outcome};
pub(crate) use query::decode_query_as_of;
pub use query::{decode_answer, decode_query, encode_answer, encode_query, encode_query_as_of};

/// The format of all messages but the switch of a machine to a later version, and that of a system state
/// after a switch.
pub const FORMAT_VERSION: u8 = 1;

/// The format of a command that writes values which are large or have a media type: the same message, with fields that
/// earlier binaries do not know.
pub(crate) const EXTENDED_VERSION: u8 = ClusterVersion::VALUE_REFS.0 as u8;

/// The highest version byte that will ever be used. Higher ones are malformed rather than newer, and need not
/// stop a replica.
const FORMAT_VERSION_MAX: u8 = 15;

/// Top-level fields of a message (each operation, key or record is one), at most; checked before decoding.
pub const ELEMENTS_MAX: u32 = 65_536;

/// The bytes are not a message of the expected kind. Nothing was changed. Decoding them again fails again,
/// except for [`DecodeError::Version`] after an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They do not parse, or have an invalid value.
    #[error("the bytes are not a valid {0}")]
    Malformed(&'static str),
    /// A newer version of this crate wrote them.
    #[error("the bytes have format version {found}, newer than {known}")]
    Version {
        /// Version in the bytes.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// They hold more elements than any valid message.
    #[error("the message has more than {limit} elements")]
    TooManyElements {
        /// [`ELEMENTS_MAX`].
        limit: u32,
    },
}

/// Encodes the version and the message.
pub(crate) fn seal(message: &impl Message) -> Bytes {
    seal_at(FORMAT_VERSION, message)
}

/// As [`seal`], with another version byte.
pub(crate) fn seal_at(version: u8, message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + message.encoded_len());
    bytes.put_u8(version);
    message.encode(&mut bytes).expect("a growable buffer fits any message");
    bytes.freeze()
}

/// Checks the version and decodes the message; errors name `what`.
pub(crate) fn unseal<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M, DecodeError> {
    check_version(what, bytes.first().copied())?;
    unseal_message(what, bytes)
}

/// The message after the version byte.
fn unseal_message<M: Message + Default>(what: &'static str, mut bytes: Bytes) -> Result<M, DecodeError> {
    bytes.advance(1);
    bound_elements(what, &bytes)?;
    M::decode(bytes).map_err(|_| DecodeError::Malformed(what))
}

/// Whether bytes that start with `version` are a message of format 1. Messages of later formats, which this
/// binary reads too, are not: their readers look at the version first.
pub(crate) fn check_version(what: &'static str, version: Option<u8>) -> Result<(), DecodeError> {
    let known = VersionRange::supported().max.0;
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(newer @ FORMAT_VERSION..=FORMAT_VERSION_MAX) if u32::from(newer) > known => {
            Err(DecodeError::Version { found: newer.into(), known })
        }
        _ => Err(DecodeError::Malformed(what)),
    }
}

/// Counts the elements before they are decoded, because an empty one takes two bytes on the wire and two
/// hundred in memory. Skipping an element takes a few nanoseconds.
fn bound_elements(what: &'static str, mut bytes: &[u8]) -> Result<(), DecodeError> {
    let mut elements = 0;
    while bytes.has_remaining() {
        elements += 1;
        if elements > ELEMENTS_MAX {
            return Err(DecodeError::TooManyElements { limit: ELEMENTS_MAX });
        }
        decode_key(&mut bytes)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut bytes, DecodeContext::default()))
            .map_err(|_| DecodeError::Malformed(what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_and_damage_are_distinguished() {
        let decode = |bytes: &'static [u8]| decode_command(Bytes::from_static(bytes));
        assert_eq!(decode(b""), Err(DecodeError::Malformed("command")));
        assert_eq!(decode(b"\x00"), Err(DecodeError::Malformed("command")));
        assert_eq!(decode(b"\x02"), Err(DecodeError::Malformed("command")), "version 2 has only the switch");
        assert_eq!(decode(b"\x03"), Err(DecodeError::Malformed("command")), "so has version 3");
        assert_eq!(decode(b"\x04"), Err(DecodeError::Malformed("command")), "and version 4");
        assert_eq!(decode(b"\x05"), Err(DecodeError::Malformed("command")), "version 5 has extended values");
        assert_eq!(decode(b"\x06"), Err(DecodeError::Malformed("command")), "version 6 has only the switch");
        assert_eq!(decode(b"\x07"), Err(DecodeError::Malformed("command")), "and version 7");
        assert_eq!(decode(b"\x08"), Err(DecodeError::Malformed("command")), "and version 8");
        assert_eq!(decode(b"\x09"), Err(DecodeError::Malformed("command")), "and version 9");
        assert_eq!(decode(b"\x0a"), Err(DecodeError::Malformed("command")), "and version 10");
        assert_eq!(decode(b"\x0b"), Err(DecodeError::Version { found: 11, known: 10 }));
        assert_eq!(decode(b"\xff"), Err(DecodeError::Malformed("command")));
    }

    #[test]
    fn a_flood_of_empty_elements_is_refused_before_it_is_decoded() {
        let mut flood = vec![FORMAT_VERSION];
        flood.extend([0x32, 0x00].repeat(ELEMENTS_MAX as usize + 1));
        assert_eq!(decode_command(flood.into()), Err(DecodeError::TooManyElements { limit: ELEMENTS_MAX }));
    }
}
