//! Frames on a stream: `length u32 ‖ version u8 ‖ body`, big-endian; the length counts version and body.
//!
//! On one-way streams the body is the payload. On call streams it is `kind u8 ‖ id u64 ‖ payload`. Every
//! stream begins with two bytes, version and class. Pure: bytes in, frames out; the caller does the I/O.
//!
//! A decoded frame owns exactly its own bytes. Slices of the read buffer would be cheaper to return, but a
//! few bytes kept for long would then keep the whole buffer alive.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of frames and streams.
pub(crate) const VERSION: u8 = 1;
/// The tag of the welcome stream, with which the accepting side confirms that it serves the connection.
pub(crate) const WELCOME_TAG: u8 = 0;
const HEADER_BYTES: usize = 5;
/// Bytes that the call header adds to the payload.
pub(crate) const CALL_BYTES: usize = 9;
/// Payloads up to this size, in bytes, are copied into one buffer, so that many small frames make one write.
/// Larger ones are written without a copy.
const COALESCE_BYTES_MAX: usize = 8 * 1024;

/// A peer sent malformed bytes. The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("unknown version {found}")]
    Version { found: u8 },
    #[error("a frame of length 0")]
    Empty,
    #[error("a stream of an unexpected class")]
    Class,
    #[error("a call frame that is too short or of an unknown kind")]
    Call,
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// The kind of a frame on a call stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Request,
    Answer,
    /// Not executed: the peer is at its limit of concurrent calls.
    Refused,
    /// Executed; the answer is over the limit.
    TooLarge,
}

impl CallKind {
    const fn tag(self) -> u8 {
        match self {
            Self::Request => 0,
            Self::Answer => 1,
            Self::Refused => 2,
            Self::TooLarge => 3,
        }
    }

    fn of_tag(tag: u8) -> Option<Self> {
        [Self::Request, Self::Answer, Self::Refused, Self::TooLarge].into_iter().find(|kind| kind.tag() == tag)
    }
}

/// The header fields before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    OneWay,
    Call { kind: CallKind, id: u64 },
}

/// Splits a call frame's body into its header and payload.
pub(crate) fn split_call(mut body: Bytes) -> Result<(CallKind, u64, Bytes), FrameError> {
    if body.len() < CALL_BYTES {
        return Err(FrameError::Call);
    }
    let kind = CallKind::of_tag(body.get_u8()).ok_or(FrameError::Call)?;
    Ok((kind, body.get_u64(), body))
}

/// Assembles frames from the chunks of a stream.
#[derive(Debug)]
pub(crate) struct Decoder {
    body_bytes_max: usize,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    body: Vec<u8>,
    body_bytes: usize,
}

impl Decoder {
    pub(crate) fn new(body_bytes_max: usize) -> Self {
        Self { body_bytes_max, header: [0; HEADER_BYTES], header_filled: 0, body: Vec::new(), body_bytes: 0 }
    }

    /// Consumes bytes of `chunk` and returns the next frame's body, or `None` once the chunk is empty.
    pub(crate) fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        if self.header_filled < HEADER_BYTES {
            let end = HEADER_BYTES.min(self.header_filled + chunk.len());
            chunk.copy_to_slice(&mut self.header[self.header_filled..end]);
            self.header_filled = end;
            if end < HEADER_BYTES {
                return Ok(None);
            }
            self.begin_body()?;
        }
        let take = chunk.len().min(self.body_bytes - self.body.len());
        self.body.extend_from_slice(&chunk[..take]);
        chunk.advance(take);
        if self.body.len() < self.body_bytes {
            return Ok(None);
        }
        self.header_filled = 0;
        Ok(Some(Bytes::from(std::mem::take(&mut self.body))))
    }

    /// Called at the end of the stream, which is an error inside a frame.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        if self.header_filled == 0 { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn begin_body(&mut self) -> Result<(), FrameError> {
        let [length @ .., version] = self.header;
        let bytes = (u32::from_be_bytes(length) as usize).checked_sub(1).ok_or(FrameError::Empty)?;
        if bytes > self.body_bytes_max {
            return Err(FrameError::TooLarge { bytes, bytes_max: self.body_bytes_max });
        }
        if version != VERSION {
            return Err(FrameError::Version { found: version });
        }
        self.body = Vec::with_capacity(bytes);
        self.body_bytes = bytes;
        Ok(())
    }
}

/// Encodes frames for one write.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    chunks: Vec<Bytes>,
    small: BytesMut,
}

impl Batch {
    /// Adds a frame. The caller has checked the payload against its limit, which is far below 4 GiB.
    pub(crate) fn push(&mut self, head: Head, payload: Bytes) {
        let call_bytes = if head == Head::OneWay { 0 } else { CALL_BYTES };
        let length = u32::try_from(1 + call_bytes + payload.len()).expect("payloads are checked against their limit");
        self.small.put_u32(length);
        self.small.put_u8(VERSION);
        if let Head::Call { kind, id } = head {
            self.small.put_u8(kind.tag());
            self.small.put_u64(id);
        }
        if payload.len() <= COALESCE_BYTES_MAX {
            self.small.extend_from_slice(&payload);
        } else {
            self.seal();
            self.chunks.push(payload);
        }
    }

    /// The encoded frames, to be written in this order. Call [`clear`](Self::clear) afterwards.
    pub(crate) fn chunks(&mut self) -> &mut [Bytes] {
        self.seal();
        &mut self.chunks
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut batch = Batch::default();
        for frame in frames {
            batch.push(Head::OneWay, Bytes::copy_from_slice(frame));
        }
        batch.chunks().concat()
    }

    fn decode_all(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Result<Vec<Bytes>, FrameError> {
        let mut frames = Vec::new();
        for chunk in bytes.chunks(step) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some(frame) = decoder.decode(&mut chunk)? {
                frames.push(frame);
            }
            assert!(chunk.is_empty());
        }
        decoder.finish().map(|()| frames)
    }

    #[test]
    fn oversize_length_is_refused_before_any_body_arrives() {
        let mut decoder = Decoder::new(16);
        let mut header = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, VERSION]);
        assert!(matches!(decoder.decode(&mut header), Err(FrameError::TooLarge { bytes_max: 16, .. })));
        assert_eq!(decoder.body.capacity(), 0);
        // Exactly the limit passes.
        assert_eq!(decode_all(&mut Decoder::new(16), &encode(&[vec![1; 16]]), 3).unwrap().len(), 1);
        assert!(decode_all(&mut Decoder::new(16), &encode(&[vec![1; 17]]), 3).is_err());
    }

    #[test]
    fn zero_length_unknown_version_and_truncated_frame_are_errors() {
        let decode = |bytes: &[u8]| decode_all(&mut Decoder::new(16), bytes, 64);
        assert_eq!(decode(&[0, 0, 0, 0, VERSION]), Err(FrameError::Empty));
        assert_eq!(decode(&[0, 0, 0, 1, 9]), Err(FrameError::Version { found: 9 }));
        assert_eq!(decode(&[0, 0, 0, 5, VERSION, 1]), Err(FrameError::Truncated));
        assert_eq!(decode(&[0, 0]), Err(FrameError::Truncated));
        assert_eq!(decode(&[0, 0, 0, 1, VERSION]), Ok(vec![Bytes::new()]));
    }

    #[test]
    fn call_header_round_trips_and_garbage_is_refused() {
        let mut batch = Batch::default();
        batch.push(Head::Call { kind: CallKind::Answer, id: 7 }, Bytes::from_static(b"yes"));
        let bytes = batch.chunks().concat();
        let body = decode_all(&mut Decoder::new(64), &bytes, 1).unwrap().remove(0);
        assert_eq!(split_call(body), Ok((CallKind::Answer, 7, Bytes::from_static(b"yes"))));
        assert_eq!(split_call(Bytes::from_static(b"short")), Err(FrameError::Call));
        assert_eq!(split_call(Bytes::from_static(&[9; 9])), Err(FrameError::Call));
    }

    #[test]
    fn large_payloads_keep_their_order() {
        let frames = [vec![1; 10], vec![2; COALESCE_BYTES_MAX + 1], vec![3; 10], vec![]];
        let decoded = decode_all(&mut Decoder::new(1 << 20), &encode(&frames), 1000).unwrap();
        assert_eq!(decoded, frames.map(Bytes::from));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(frames: Vec<Vec<u8>>, step in 1_usize..50) {
            let decoded = decode_all(&mut Decoder::new(1 << 20), &encode(&frames), step).unwrap();
            prop_assert_eq!(decoded, frames.into_iter().map(Bytes::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn hostile_streams_decode_within_the_limit_or_fail() {
        const BODY_BYTES_MAX: usize = 64;
        let frames = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5);
        let valid = (frames, any::<bool>()).prop_map(|(frames, calls)| {
            let mut batch = Batch::default();
            for (id, frame) in (0..).zip(frames) {
                let head = if calls { Head::Call { kind: CallKind::Request, id } } else { Head::OneWay };
                batch.push(head, frame.into());
            }
            batch.chunks().concat()
        });
        attack(1_000, (mutated(valid), 1_usize..50), |(bytes, step)| {
            // Includes the copies of the chunks, which this test makes.
            let frames = Proportion { per_byte: 160, ..Proportion::DEFAULT }
                .of(bytes.len(), || decode_all(&mut Decoder::new(BODY_BYTES_MAX), &bytes, step));
            let Ok(frames) = frames else { return };
            assert_eq!(
                encode(&frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>()),
                bytes,
                "no byte is lost"
            );
            for frame in frames {
                assert!(frame.len() <= BODY_BYTES_MAX);
                if let Ok((_, _, payload)) = split_call(frame.clone()) {
                    assert_eq!(payload.len() + CALL_BYTES, frame.len());
                }
            }
        });
    }
}
