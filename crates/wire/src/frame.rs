//! Frames of one-way streams, judged before anything is allocated for them.
//!
//! An empty message takes two bytes on the wire and hundreds in memory: a frame of a few megabytes that holds nothing else
//! would take gigabytes. So envelopes are counted, and what is too short to be one, or an entry, is refused, first.
//! A frame within [`FRAME_ENVELOPES_MAX`] that a correct node packed is always read.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::{WireError, decode, peer};

/// Raft messages in one frame. Whoever packs more starts another one.
pub const FRAME_ENVELOPES_MAX: usize = 16_384;
/// An envelope names two replicas, an entry its index and term: two bytes each at least.
const PARTS_BYTES_MIN: usize = 4;
const RAFT_FIELD: u32 = 1;
const ENTRIES_FIELD: u32 = 8;

/// Decodes a frame; payload fields share `bytes`.
///
/// # Errors
/// It does not parse, or holds more messages than a frame may.
pub fn decode_frame(bytes: Bytes) -> Result<peer::Frame, WireError> {
    let mut envelopes = 0;
    each_part(&bytes, RAFT_FIELD, |envelope| {
        envelopes += 1;
        if envelopes > FRAME_ENVELOPES_MAX {
            return Err(WireError::OutOfRange("raft"));
        }
        each_part(envelope, ENTRIES_FIELD, |_| Ok(()))
    })?;
    decode(bytes)
}

/// Calls `look` with each part that a message holds in a field, without decoding any.
fn each_part<'a>(
    mut message: &'a [u8],
    field: u32,
    mut look: impl FnMut(&'a [u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        if tag != field || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        }
        let bytes = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let (part, rest) = message.split_at_checked(bytes).ok_or(WireError::OutOfRange("length"))?;
        if part.len() < PARTS_BYTES_MIN {
            return Err(WireError::OutOfRange("length"));
        }
        message = rest;
        look(part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;

    fn frame_of(envelopes: usize) -> Bytes {
        let envelope = peer::Envelope { from: 1, to: 2, ..Default::default() };
        encode(&peer::Frame { raft: vec![envelope; envelopes], beat: None })
    }

    #[test]
    fn a_frame_holds_so_many_messages_and_no_more() {
        assert_eq!(decode_frame(frame_of(FRAME_ENVELOPES_MAX)).map(|frame| frame.raft.len()), Ok(FRAME_ENVELOPES_MAX));
        assert_eq!(decode_frame(frame_of(FRAME_ENVELOPES_MAX + 1)), Err(WireError::OutOfRange("raft")));
    }

    #[test]
    fn a_flood_of_empty_messages_is_refused_before_it_is_decoded() {
        let envelopes = [RAFT_FIELD as u8 * 8 + 2, 0].repeat(1 << 20);
        assert_eq!(decode_frame(envelopes.into()), Err(WireError::OutOfRange("length")));
        let entries = vec![peer::Entry::default(); 1_000];
        let envelope = peer::Envelope { from: 1, to: 2, entries, ..Default::default() };
        let frame = peer::Frame { raft: vec![envelope], beat: None };
        assert_eq!(decode_frame(encode(&frame)), Err(WireError::OutOfRange("length")));
    }
}
