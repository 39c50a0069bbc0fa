//! The objects of an answer as one zstd frame, when that pays: small objects of one value have much in common.
//!
//! A frame from a peer is not trusted: it is decompressed into a buffer of the lengths that are said, which are bounded
//! together, and has to fill it. Each object is verified by its hash afterwards.

use bytes::Bytes;

/// Plain bytes of an answer at most: an answer without compression has no more.
const PLAIN_BYTES_MAX: usize = 16 << 20;
/// Less is not worth a frame.
const PLAIN_BYTES_MIN: usize = 1 << 10;
/// Bytes that are compressed to see whether the rest is worth it.
const PROBE_BYTES: usize = 16 << 10;
const LEVEL: i32 = 1;

/// A frame of all these objects and their lengths, if it is shorter than they are by a tenth at least.
pub(super) fn pack(objects: &[Bytes]) -> Option<(Bytes, Vec<u32>)> {
    let lengths = objects.iter().map(|object| u32::try_from(object.len()).ok()).collect::<Option<Vec<_>>>()?;
    let bytes: usize = objects.iter().map(Bytes::len).sum();
    if !(PLAIN_BYTES_MIN..=PLAIN_BYTES_MAX).contains(&bytes) {
        return None;
    }
    if bytes > 2 * PROBE_BYTES {
        // From the middle: an archive may begin with a list of names.
        shortened(&part(objects, (bytes - PROBE_BYTES) / 2, PROBE_BYTES))?;
    }
    Some((shortened(&objects.concat())?, lengths))
}

/// The `length` bytes from `from` on of all objects together.
fn part(objects: &[Bytes], mut from: usize, length: usize) -> Vec<u8> {
    let mut part = Vec::with_capacity(length);
    for object in objects {
        let skipped = from.min(object.len());
        from -= skipped;
        let end = object.len().min(skipped + length - part.len());
        part.extend_from_slice(&object[skipped..end]);
    }
    part
}

fn shortened(plain: &[u8]) -> Option<Bytes> {
    let frame = zstd::bulk::compress(plain, LEVEL).ok()?;
    (frame.len() < plain.len() - plain.len() / 10).then(|| frame.into())
}

/// The objects of a frame; `None` if it is not one of these lengths. They share their memory.
pub(super) fn unpack(frame: &[u8], lengths: &[u32]) -> Option<Vec<Bytes>> {
    let total = lengths.iter().try_fold(0_usize, |total, length| total.checked_add(*length as usize))?;
    if total > PLAIN_BYTES_MAX {
        return None;
    }
    let mut plain = Bytes::from(zstd::bulk::decompress(frame, total).ok()?);
    if plain.len() != total {
        return None;
    }
    Some(lengths.iter().map(|length| plain.split_to(*length as usize)).collect())
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::*;

    use super::*;

    fn text(seed: usize, bytes: usize) -> Bytes {
        (0..bytes).map(|at| b"the quick brown fox "[(at + seed) % 20]).collect()
    }

    #[test]
    fn objects_come_back_as_they_were() {
        let objects = [text(1, 3_000), Bytes::new(), text(2, 40_000), text(3, 1)];
        let (frame, lengths) = pack(&objects).unwrap();
        assert!(frame.len() < 5_000 && lengths == [3_000, 0, 40_000, 1]);
        assert_eq!(unpack(&frame, &lengths).unwrap(), objects);
    }

    #[test]
    fn a_probe_is_a_part_of_all_objects_together() {
        let objects = [text(1, 5), Bytes::new(), text(2, 7), text(3, 9)];
        let whole = objects.concat();
        for from in 0..whole.len() {
            for length in 0..=whole.len() - from {
                assert_eq!(part(&objects, from, length), whole[from..from + length]);
            }
        }
    }

    #[test]
    fn what_does_not_get_shorter_stays_as_it_is() {
        let random = |seed: u32, bytes: u32| {
            let words = (0..bytes / 32).flat_map(|n| *blake3::hash(&(seed + n).to_le_bytes()).as_bytes());
            words.collect::<Bytes>()
        };
        assert_eq!(pack(&[random(1, 8_000), random(9_000, 90_000)]), None);
        assert_eq!(pack(&[text(1, 100)]), None, "too little");
        assert_eq!(pack(&[]), None);
    }

    #[test]
    fn a_frame_of_other_lengths_is_refused() {
        let (frame, _) = pack(&[text(1, 3_000)]).unwrap();
        for lengths in [&[2_999][..], &[3_001], &[3_000, 1], &[], &[u32::MAX, u32::MAX], &[3_000, u32::MAX]] {
            assert_eq!(unpack(&frame, lengths), None, "{lengths:?}");
        }
        assert_eq!(unpack(b"no frame", &[8]), None);
    }

    #[test]
    fn hostile_frames_are_refused_or_have_the_lengths_that_are_said() {
        let frames =
            (0..40usize, 1_500..9_000usize).prop_map(|(seed, bytes)| pack(&[text(seed, bytes)]).unwrap().0.to_vec());
        attack(300, mutated(frames), |frame| {
            for length in [0, 1_500, 9_000] {
                let memory = Proportion { base: (16 << 10) + 4 * u64::from(length), per_byte: 16 };
                if let Some(objects) = memory.of(frame.len(), || unpack(&frame, &[length])) {
                    assert_eq!(objects[0].len(), length as usize);
                }
            }
        });
    }
}
