//! Frames of one-way streams, checked before anything is allocated for them.
//!
//! An empty message takes two bytes on the wire and hundreds in memory, so a frame of a few megabytes full of
//! them would take gigabytes. Therefore envelopes are counted first, and envelopes or entries that are too
//! short are refused. A frame of a correct node with at most [`FRAME_ENVELOPES_MAX`] envelopes always
//! decodes.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::{WireError, decode, peer};

/// Raft messages in one frame, at most; the sender starts another frame for more.
pub const FRAME_ENVELOPES_MAX: usize = 16_384;
/// Bytes of an envelope (two replica ids) or an entry (index and term) at least: two per number.
const PART_BYTES_MIN: usize = 4;
const RAFT_FIELD: u32 = 1;
const ENTRIES_FIELD: u32 = 8;

/// Decodes a frame; its payload fields share `bytes`.
///
/// # Errors
/// The frame does not parse, or holds more than [`FRAME_ENVELOPES_MAX`] messages.
pub fn decode_frame(bytes: Bytes) -> Result<peer::Frame, WireError> {
    let mut envelopes = 0;
    for_each_part(&bytes, RAFT_FIELD, |envelope| {
        envelopes += 1;
        if envelopes > FRAME_ENVELOPES_MAX {
            return Err(WireError::OutOfRange("raft"));
        }
        for_each_part(envelope, ENTRIES_FIELD, |_| Ok(()))
    })?;
    decode(bytes)
}

/// Calls `visit` with the bytes of every occurrence of a length-delimited field, without decoding them.
fn for_each_part<'a>(
    mut message: &'a [u8],
    field: u32,
    mut visit: impl FnMut(&'a [u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        if tag != field || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        }
        let bytes = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let (part, rest) = message.split_at_checked(bytes).ok_or(WireError::OutOfRange("length"))?;
        if part.len() < PART_BYTES_MIN {
            return Err(WireError::OutOfRange("length"));
        }
        message = rest;
        visit(part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;

    fn frame_of(envelopes: usize) -> Bytes {
        let envelope = peer::Envelope { from: 1, to: 2, ..Default::default() };
        encode(&peer::Frame { raft: vec![envelope; envelopes], heartbeat: None, synced: 0 })
    }

    #[test]
    fn a_frame_holds_a_bounded_number_of_messages() {
        assert_eq!(decode_frame(frame_of(FRAME_ENVELOPES_MAX)).map(|frame| frame.raft.len()), Ok(FRAME_ENVELOPES_MAX));
        assert_eq!(decode_frame(frame_of(FRAME_ENVELOPES_MAX + 1)), Err(WireError::OutOfRange("raft")));
    }

    #[test]
    fn a_flood_of_empty_messages_is_refused_before_it_is_decoded() {
        let envelopes = [RAFT_FIELD as u8 * 8 + 2, 0].repeat(1 << 20);
        assert_eq!(decode_frame(envelopes.into()), Err(WireError::OutOfRange("length")));
        let entries = vec![peer::Entry::default(); 1_000];
        let envelope = peer::Envelope { from: 1, to: 2, entries, ..Default::default() };
        let frame = peer::Frame { raft: vec![envelope], heartbeat: None, synced: 0 };
        assert_eq!(decode_frame(encode(&frame)), Err(WireError::OutOfRange("length")));
    }
}
