//! Frames with objects as bodies, compressed or not.

use bytes::Bytes;
use flotilla_api::FrameKind;
use flotilla_values::{Kind, Level};

/// The level of compression: more costs more time than it saves on a fast network.
const ZSTD_LEVEL: i32 = 3;
/// A body is sent compressed if that saves at least one byte in this number.
const SAVES_ONE_IN: usize = 16;

pub(super) fn kind(kind: Kind) -> FrameKind {
    match kind {
        Kind::Chunk => FrameKind::Chunk,
        Kind::List(level) => list_kind(level),
    }
}

pub(super) fn list_kind(level: Level) -> FrameKind {
    match level {
        Level::Leaf => FrameKind::List,
        Level::Root => FrameKind::Root,
    }
}

/// The body compressed, if that pays.
pub(super) fn compress(body: &[u8]) -> Option<Bytes> {
    let compressed = zstd::bulk::compress(body, ZSTD_LEVEL).ok()?;
    (compressed.len() <= body.len() - body.len() / SAVES_ONE_IN).then(|| compressed.into())
}

/// How long a compressed body is at most, if it does not get shorter, and was compressed in small parts.
pub(super) fn compressed_bytes_max(bytes: usize) -> usize {
    zstd::zstd_safe::compress_bound(bytes) + bytes / SAVES_ONE_IN
}

/// A compressed body of at most `bytes_max` bytes.
pub(super) fn decompress(body: &[u8], bytes_max: usize) -> Option<Bytes> {
    zstd::bulk::decompress(body, bytes_max).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_compressed_only_if_that_pays_and_never_grows_over_its_limit() {
        let text = b"text ".repeat(1_000);
        let compressed = compress(&text).expect("text gets shorter");
        assert_eq!(decompress(&compressed, text.len()).expect("intact"), text);
        assert!(decompress(&compressed, text.len() - 1).is_none());
        assert!(compress(&compressed).is_none(), "what is compressed does not get shorter");
    }
}
