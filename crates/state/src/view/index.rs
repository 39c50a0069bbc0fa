//! The in-memory index of a verified piece: enough to find a record with one small read.
//!
//! The records of a piece are grouped into blocks of about [`BLOCK_BYTES`]. For each block the index has its
//! offset, its first key and a checksum, so that a later read of that block alone is verified too; for the
//! piece, its last key and a filter.

use std::hash::BuildHasher;

use bytes::Bytes;

use super::filter::Filter;
use crate::{
    merge::Record,
    piece::{PIECE_HEADER_BYTES, PieceKind, PieceReader, record_bytes, split_record},
};

/// A block ends after the record with which it reaches this size.
const BLOCK_BYTES: usize = 4096;

/// The index of one piece.
#[derive(Debug)]
pub(super) struct PieceIndex {
    pub(super) kind: PieceKind,
    /// First keys of all blocks, end to end.
    keys: Box<[u8]>,
    blocks: Box<[Block]>,
    last_key: Box<[u8]>,
    filter: Filter,
}

/// The position and checksum of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// End of its first key in `keys`.
    key_end: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    crc: u32,
}

impl Block {
    /// Whether these bytes match the block's length and checksum.
    pub(super) fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && crc32c::crc32c(bytes) == self.crc
    }
}

impl PieceIndex {
    /// Indexes a whole piece. Fails when it is malformed: bytes that match an id may still come from a
    /// malicious peer.
    pub(super) fn of(piece: &Bytes, hasher: &impl BuildHasher) -> Result<Self, &'static str> {
        let reader = PieceReader::new(piece.clone())?;
        let kind = reader.kind();
        let (mut keys, mut blocks, mut hashes) = (Vec::new(), Vec::<Block>::new(), Vec::new());
        let mut last_key = Bytes::new();
        let mut offset = PIECE_HEADER_BYTES;
        for record in reader {
            let record = record?;
            let open = blocks.last().filter(|block| offset - (block.offset as usize) < BLOCK_BYTES);
            if open.is_none() {
                keys.extend_from_slice(&record.0);
                // Objects are at most 4 GiB − 1 long.
                blocks.push(Block { key_end: keys.len() as u32, offset: offset as u32, len: 0, crc: 0 });
            }
            hashes.push(hasher.hash_one(&record.0[..]));
            offset += record_bytes(&record);
            last_key = record.0;
        }
        let ends: Vec<u32> = blocks.iter().skip(1).map(|block| block.offset).chain([offset as u32]).collect();
        for (block, end) in blocks.iter_mut().zip(ends) {
            block.len = end - block.offset;
            block.crc = crc32c::crc32c(&piece[block.offset as usize..end as usize]);
        }
        let filter = Filter::of(&hashes);
        Ok(Self { kind, keys: keys.into(), blocks: blocks.into(), last_key: last_key.as_ref().into(), filter })
    }

    /// Memory that the index takes.
    pub(super) fn len_bytes(&self) -> usize {
        size_of::<Self>() + self.keys.len() + size_of_val(&*self.blocks) + self.last_key.len() + self.filter.len_bytes()
    }

    /// The first key; `None` when the piece holds no record.
    pub(super) fn first_key(&self) -> Option<&[u8]> {
        (!self.blocks.is_empty()).then(|| self.key(0))
    }

    pub(super) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// The block that may hold a key.
    pub(super) fn find(&self, key: &[u8], hash: u64) -> Option<Block> {
        if !self.filter.may_hold(hash) || *key > *self.last_key {
            return None;
        }
        self.blocks.get(self.blocks_up_to(key).checked_sub(1)?).copied()
    }

    /// The number of the first block that may hold a key or a greater one.
    pub(super) fn seek(&self, key: &[u8]) -> usize {
        self.blocks_up_to(key).saturating_sub(1)
    }

    pub(super) fn block(&self, number: usize) -> Option<Block> {
        self.blocks.get(number).copied()
    }

    /// Number of blocks that begin at or before a key.
    fn blocks_up_to(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) <= key { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn key(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.blocks[before].key_end);
        &self.keys[start as usize..self.blocks[number].key_end as usize]
    }
}

/// The record of a key in a block: `None` when absent, `Some(None)` when deleted.
pub(super) fn record_in(block: &[u8], key: &[u8]) -> Result<Option<Option<Bytes>>, &'static str> {
    let mut rest = block;
    while !rest.is_empty() {
        let (found, value, after) = split_record(rest)?;
        if found == key {
            return Ok(Some(value.map(Bytes::copy_from_slice)));
        }
        rest = after;
    }
    Ok(None)
}

/// All records of a block.
pub(super) fn records_in(block: &Bytes) -> Result<Vec<Record>, &'static str> {
    let mut records = Vec::new();
    let mut rest = &block[..];
    while !rest.is_empty() {
        let (key, value, after) = split_record(rest)?;
        records.push((block.slice_ref(key), value.map(|value| block.slice_ref(value))));
        rest = after;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use super::*;
    use crate::piece::PieceWriter;

    fn piece(records: &[Record]) -> Bytes {
        let mut writer = PieceWriter::new();
        records.iter().for_each(|record| writer.push(record));
        writer.finish(PieceKind::RunStart)
    }

    #[test]
    fn a_record_is_found_in_the_one_block_that_may_hold_it() {
        let hasher = RandomState::new();
        let key = |i: u32| Bytes::from(format!("key{i:05}"));
        let records: Vec<Record> =
            (0..500).map(|i| (key(2 * i), (i % 7 != 0).then(|| Bytes::from(vec![i as u8; 100])))).collect();
        let piece = piece(&records);
        let index = PieceIndex::of(&piece, &hasher).unwrap();
        assert!(index.blocks.len() > 10, "500 records of 116 bytes are {} blocks", index.blocks.len());
        assert_eq!((index.first_key(), index.last_key()), (Some(&records[0].0[..]), &records[499].0[..]));
        let get = |key: &[u8]| {
            let block = index.find(key, hasher.hash_one(key))?;
            let bytes = piece.slice(block.offset as usize..(block.offset + block.len) as usize);
            assert!(block.matches(&bytes) && !block.matches(&bytes[1..]));
            record_in(&bytes, key).unwrap()
        };
        for (key, value) in &records {
            assert_eq!(get(key).as_ref(), Some(value));
        }
        assert!((0..500).all(|i| get(&key(2 * i + 1)).is_none()));
        assert!(get(b"a").is_none() && get(b"z").is_none());
        assert_eq!((index.seek(b""), index.seek(b"zzz")), (0, index.blocks.len() - 1));
        let all = (0..).map_while(|number| index.block(number)).flat_map(|block| {
            records_in(&piece.slice(block.offset as usize..(block.offset + block.len) as usize)).unwrap()
        });
        assert_eq!(all.collect::<Vec<_>>(), records);
    }

    #[test]
    fn the_index_of_an_empty_piece_finds_nothing() {
        let index = PieceIndex::of(&piece(&[]), &RandomState::new()).unwrap();
        assert_eq!((index.first_key(), index.block(0).is_none()), (None, true));
        assert!(index.find(b"a", 1).is_none());
    }
}
