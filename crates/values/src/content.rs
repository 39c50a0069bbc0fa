//! The hash of a whole content that arrives in chunks.

use flotilla_types::ObjectId;

/// Bytes that are hashed at once. BLAKE3 is twice as fast on such aligned blocks as on chunks of any length.
const BLOCK_BYTES: usize = 64 << 10;

/// A BLAKE3 hash over bytes that are added one after another.
#[derive(Debug, Default)]
pub(crate) struct ContentHash {
    hasher: blake3::Hasher,
    /// The end of what was added, less than a block: not hashed yet.
    open: Vec<u8>,
}

impl ContentHash {
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open.is_empty() && bytes.len() >= BLOCK_BYTES {
                let (block, rest) = bytes.split_at(BLOCK_BYTES);
                self.hasher.update(block);
                bytes = rest;
                continue;
            }
            let (more, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.open.len()));
            self.open.reserve_exact(BLOCK_BYTES - self.open.len());
            self.open.extend_from_slice(more);
            bytes = rest;
            if self.open.len() == BLOCK_BYTES {
                self.hasher.update(&self.open);
                self.open.clear();
            }
        }
    }

    pub(crate) fn finish(mut self) -> ObjectId {
        ObjectId(*self.hasher.update(&self.open).finalize().as_bytes())
    }
}
