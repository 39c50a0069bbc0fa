//! Objects in a body: for each its kind (u8), its length (u32, little-endian) and its bytes.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_values::{Kind, Level};

/// Kind and length.
pub(super) const HEADER_BYTES: usize = 5;
/// The level of compression: more costs more time than it saves on a fast network.
const ZSTD_LEVEL: i32 = 3;
/// A body is compressed if that saves at least one byte in so many.
const SAVES_ONE_IN: usize = 16;

pub(super) fn kind(kind: Kind) -> u8 {
    match kind {
        Kind::Chunk => 0,
        Kind::List(level) => list_kind(level),
    }
}

pub(super) fn list_kind(level: Level) -> u8 {
    match level {
        Level::Leaf => 1,
        Level::Root => 2,
    }
}

/// Appends an object.
pub(super) fn push(body: &mut BytesMut, kind: u8, object: &[u8]) {
    body.put_u8(kind);
    body.put_u32_le(object.len() as u32);
    body.put_slice(object);
}

/// The next object of a body, with its kind. None at the end, and if the rest is no object.
pub(super) fn pop(body: &mut Bytes) -> Option<(u8, Bytes)> {
    let kind = body.try_get_u8().ok()?;
    let bytes = body.try_get_u32_le().ok()? as usize;
    (bytes <= body.len()).then(|| (kind, body.split_to(bytes)))
}

/// The body compressed, if that pays.
pub(super) fn compress(body: &[u8]) -> Option<Bytes> {
    let compressed = zstd::bulk::compress(body, ZSTD_LEVEL).ok()?;
    (compressed.len() <= body.len() - body.len() / SAVES_ONE_IN).then(|| compressed.into())
}

/// How long a compressed body is at most, if it does not get shorter.
pub(super) fn compressed_bytes_max(bytes: usize) -> usize {
    zstd::zstd_safe::compress_bound(bytes)
}

/// A compressed body of at most `bytes_max` bytes.
pub(super) fn decompress(body: &[u8], bytes_max: usize) -> Option<Bytes> {
    zstd::bulk::decompress(body, bytes_max).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_round_trip_and_a_body_that_ends_early_has_no_last_object() {
        let mut body = BytesMut::new();
        push(&mut body, 0, b"chunk");
        push(&mut body, 2, b"");
        let body = body.freeze();
        let read = |mut body: Bytes| std::iter::from_fn(|| pop(&mut body)).collect::<Vec<_>>();
        let objects = [(0, Bytes::from_static(b"chunk")), (2, Bytes::new())];
        assert_eq!(read(body.clone()), objects);
        for end in 0..body.len() {
            let whole = usize::from(end >= HEADER_BYTES + 5);
            assert_eq!(read(body.slice(..end)), objects[..whole], "{end}");
        }
    }

    #[test]
    fn a_body_is_compressed_only_if_that_pays_and_never_grows_over_its_limit() {
        let text = b"text ".repeat(1_000);
        let compressed = compress(&text).expect("text gets shorter");
        assert_eq!(decompress(&compressed, text.len()).expect("intact"), text);
        assert!(decompress(&compressed, text.len() - 1).is_none());
        assert!(compress(&compressed).is_none(), "what is compressed does not get shorter");
    }
}
