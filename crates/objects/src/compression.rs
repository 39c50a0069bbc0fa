//! Compression of small objects, each by itself: zstd, level 1.
//!
//! An object is compressed only if that saves a tenth of it, which a probe of its first bytes tells cheaply of
//! most objects that are compressed already or random. Its id stays the hash of the plain bytes.
//!
//! A frame from the disk is not trusted: it is decompressed into a buffer of the length that its record names,
//! which is at most [`COMPRESSED_BYTES_MAX`], and has to fill it.

use std::fmt;

use bytes::Bytes;
use parking_lot::Mutex;
use zstd::bulk::{Compressor, Decompressor};

use crate::segment::Lengths;

/// Bytes of the largest object that is compressed. To read any part of a compressed object takes all of it.
pub(crate) const COMPRESSED_BYTES_MAX: usize = 64 << 10;

/// Objects below are stored as they are: a frame would save less than a record's header takes.
const COMPRESSED_BYTES_MIN: usize = 256;
/// Bytes of the probe. Objects of less than twice this length are compressed without one.
const PROBE_BYTES: usize = 4 << 10;
const LEVEL: i32 = 1;
/// Contexts of each kind that are kept for later use; each takes some hundreds of KiB.
const CONTEXTS_KEPT_MAX: usize = 4;

/// Compresses and decompresses, on several threads at once.
#[derive(Default)]
pub(crate) struct Compression {
    compressors: Mutex<Vec<Compressor<'static>>>,
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

impl fmt::Debug for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compression").finish_non_exhaustive()
    }
}

impl Compression {
    /// A frame that is shorter than these bytes by a tenth at least, if there is one.
    pub(crate) fn compress(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if !(COMPRESSED_BYTES_MIN..=COMPRESSED_BYTES_MAX).contains(&bytes.len()) {
            return None;
        }
        let kept = self.compressors.lock().pop();
        let mut compressor = kept.or_else(|| Compressor::new(LEVEL).ok())?;
        let probed = bytes.len() < 2 * PROBE_BYTES || shortened(&mut compressor, &bytes[..PROBE_BYTES]).is_some();
        let frame = if probed { shortened(&mut compressor, bytes) } else { None };
        keep(&self.compressors, compressor);
        frame
    }

    /// The plain bytes of what is stored; `None` if it is no frame of that length. Only the id tells whether
    /// they are the right ones.
    pub(crate) fn plain_of(&self, stored: Bytes, lengths: Lengths) -> Option<Bytes> {
        if lengths.is_compressed() { self.decompress(&stored, lengths.plain).map(Bytes::from) } else { Some(stored) }
    }

    /// The content of a frame, if it has exactly this length.
    fn decompress(&self, frame: &[u8], plain_bytes: u32) -> Option<Vec<u8>> {
        let bytes = plain_bytes as usize;
        if bytes > COMPRESSED_BYTES_MAX {
            return None;
        }
        let kept = self.decompressors.lock().pop();
        let mut decompressor = kept.or_else(|| Decompressor::new().ok())?;
        let plain = decompressor.decompress(frame, bytes).ok();
        keep(&self.decompressors, decompressor);
        plain.filter(|plain| plain.len() == bytes)
    }
}

/// The frame of these bytes, unless it is too long to be worth it.
fn shortened(compressor: &mut Compressor<'static>, bytes: &[u8]) -> Option<Vec<u8>> {
    let bytes_max = bytes.len() - bytes.len().div_ceil(10);
    let mut frame = Vec::with_capacity(bytes_max);
    let length = compressor.compress_to_buffer(bytes, &mut frame).ok()?;
    (length <= bytes_max).then_some(frame)
}

fn keep<T>(contexts: &Mutex<Vec<T>>, context: T) {
    let mut contexts = contexts.lock();
    if contexts.len() < CONTEXTS_KEPT_MAX {
        contexts.push(context);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::*;

    use super::*;

    fn random(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn text(len: usize) -> Vec<u8> {
        let line = |n: usize| format!("{n} of the records was read from the log of the shard\n");
        (0..).flat_map(|n| line(n).into_bytes()).take(len).collect()
    }

    #[test]
    fn only_what_shrinks_is_compressed_and_only_if_it_is_small() {
        let compression = Compression::default();
        for bytes in [256, 300, 4_096, 8_191, 8_192, 16_384, COMPRESSED_BYTES_MAX] {
            let frame = compression.compress(&text(bytes)).expect("text shrinks");
            assert!(frame.len() < bytes * 3 / 4, "{bytes} to {}", frame.len());
            assert_eq!(compression.decompress(&frame, bytes as u32).unwrap(), text(bytes));
            assert_eq!(compression.compress(&random(bytes)), None);
        }
        assert_eq!(compression.compress(&text(COMPRESSED_BYTES_MAX + 1)), None);
        assert_eq!(compression.compress(&text(COMPRESSED_BYTES_MIN - 1)), None);
        assert_eq!(compression.compress(&[]), None);
        // The rest is not looked at once the first part does not shrink, and a little is not enough.
        let mixed = [random(PROBE_BYTES), text(30_000)].concat();
        assert_eq!(compression.compress(&mixed), None);
        let nearly_random = [text(1_000), random(30_000)].concat();
        assert_eq!(compression.compress(&nearly_random), None);
    }

    #[test]
    fn a_frame_of_another_length_is_refused() {
        let compression = Compression::default();
        let frame = compression.compress(&vec![0; COMPRESSED_BYTES_MAX]).unwrap();
        for claimed in [0, 1, COMPRESSED_BYTES_MAX as u32 - 1, COMPRESSED_BYTES_MAX as u32 + 1, u32::MAX] {
            assert_eq!(compression.decompress(&frame, claimed), None, "{claimed}");
        }
        // Zeros, a thousand times as many as may be.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let claimed = COMPRESSED_BYTES_MAX as u32;
        let bounded = Proportion { base: 2 * COMPRESSED_BYTES_MAX as u64, per_byte: 1 };
        assert_eq!(bounded.of(bomb.len(), || compression.decompress(&bomb, claimed)), None);
    }

    #[test]
    fn hostile_frames_take_no_more_memory_than_their_record_names() {
        let compression = Compression::default();
        compression.decompress(&compression.compress(&text(9_000)).unwrap(), 9_000).unwrap();
        let valid = (300..20_000_usize).prop_map(move |bytes| Compression::default().compress(&text(bytes)).unwrap());
        attack(300, mutated(valid), |frame| {
            let bounded = Proportion { base: 40_000, per_byte: 1 };
            let found = bounded.of(frame.len(), || compression.decompress(&frame, 20_000));
            assert!(found.is_none_or(|plain| plain.len() == 20_000));
        });
    }
}
