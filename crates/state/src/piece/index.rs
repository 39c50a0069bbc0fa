//! The in-memory index of a piece: enough to find a record with one small read.
//!
//! The records of a piece are grouped into blocks of about [`BLOCK_BYTES`]. For each block the index has its
//! offset, its first key and a checksum, so that a later read of that block alone is verified too; for the
//! piece, its last key and a filter. It is a function of the piece's kind and records; a piece of version 2
//! ends with it.

use bytes::Bytes;
use flotilla_storage::Value;

use super::{
    PIECE_HEADER_BYTES, PieceKind, PieceReader,
    filter::{Filter, key_hash},
    footer, record_bytes, split_record,
};
use crate::merge::Record;

/// A block ends after the record with which it reaches this size. Part of the format: footers list blocks.
pub(super) const BLOCK_BYTES: usize = 4096;

/// The index of one piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PieceIndex {
    pub(crate) kind: PieceKind,
    pub(super) records: u32,
    pub(super) deletions: u32,
    /// First keys of all blocks, end to end.
    pub(super) keys: Box<[u8]>,
    pub(super) blocks: Box<[Block]>,
    pub(super) last_key: Box<[u8]>,
    pub(super) filter: Filter,
}

/// The position and checksum of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// End of its first key in `keys`.
    pub(super) key_end: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(super) crc: u32,
}

impl Block {
    /// Whether these bytes match the block's length and checksum.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && crc32c::crc32c(bytes) == self.crc
    }
}

/// Makes the index of a piece from its records in order.
#[derive(Debug)]
pub(super) struct IndexBuilder {
    keys: Vec<u8>,
    /// Lengths and checksums are set at the end.
    blocks: Vec<Block>,
    hashes: Vec<u64>,
    deletions: u32,
    /// Where the next record begins.
    end: usize,
}

impl IndexBuilder {
    pub(super) fn new() -> Self {
        let (keys, blocks, hashes) = (Vec::new(), Vec::new(), Vec::new());
        Self { keys, blocks, hashes, deletions: 0, end: PIECE_HEADER_BYTES }
    }

    pub(super) fn push(&mut self, key: &[u8], value: Option<&Value>) {
        let open = self.blocks.last().filter(|block| self.end - (block.offset as usize) < BLOCK_BYTES);
        if open.is_none() {
            self.keys.extend_from_slice(key);
            // Objects are at most 4 GiB − 1 long.
            let (key_end, offset) = (self.keys.len() as u32, self.end as u32);
            self.blocks.push(Block { key_end, offset, len: 0, crc: 0 });
        }
        self.hashes.push(key_hash(key));
        self.deletions += u32::from(value.is_none());
        self.end += record_bytes(key, value);
    }

    /// The hash of the last key.
    pub(super) fn last_hash(&self) -> Option<u64> {
        self.hashes.last().copied()
    }

    /// The index of these records, which begin the piece behind its header.
    pub(super) fn finish(self, kind: PieceKind, piece: &[u8], last_key: &[u8]) -> PieceIndex {
        let Self { keys, mut blocks, hashes, deletions, end } = self;
        let ends: Vec<u32> = blocks.iter().skip(1).map(|block| block.offset).chain([end as u32]).collect();
        for (block, end) in blocks.iter_mut().zip(ends) {
            block.len = end - block.offset;
            block.crc = crc32c::crc32c(&piece[block.offset as usize..end as usize]);
        }
        PieceIndex {
            kind,
            records: hashes.len() as u32,
            deletions,
            keys: keys.into(),
            blocks: blocks.into(),
            last_key: last_key.into(),
            filter: Filter::of(&hashes),
        }
    }
}

impl PieceIndex {
    /// Indexes a whole piece. Fails when it is malformed, or when its footer is not that of its records: bytes
    /// that match an id may still come from a malicious peer.
    pub(crate) fn of(piece: &Bytes) -> Result<Self, &'static str> {
        let reader = PieceReader::new(piece.clone())?;
        let (kind, footer) = (reader.kind(), reader.footer().cloned());
        let (mut builder, mut last_key) = (IndexBuilder::new(), Bytes::new());
        for record in reader {
            let (key, value) = record?;
            builder.push(&key, value.as_ref());
            last_key = key;
        }
        let index = builder.finish(kind, piece, &last_key);
        if footer.is_some_and(|footer| footer != footer::encode(&index)) {
            return Err("the footer of a piece is not that of its records");
        }
        Ok(index)
    }

    /// Reads the footer of a piece of this kind. Fails when it is malformed. Only [`PieceIndex::of`] can tell
    /// whether it is true: the piece must have been read whole once, by whoever vouches for these bytes.
    pub(crate) fn from_footer(kind: PieceKind, footer: &[u8]) -> Result<Self, &'static str> {
        footer::decode(kind, footer)
    }

    /// How many records the piece has.
    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    /// Where the records end: the length of a piece of version 1, or the start of the footer.
    pub(super) fn records_end(&self) -> u32 {
        self.blocks.last().map_or(PIECE_HEADER_BYTES as u32, |block| block.offset + block.len)
    }

    /// Memory that the index takes.
    pub(crate) fn len_bytes(&self) -> usize {
        size_of::<Self>() + self.keys.len() + size_of_val(&*self.blocks) + self.last_key.len() + self.filter.len_bytes()
    }

    /// The first key; `None` when the piece holds no record.
    pub(crate) fn first_key(&self) -> Option<&[u8]> {
        (!self.blocks.is_empty()).then(|| self.key(0))
    }

    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// The block that may hold a key.
    pub(crate) fn find(&self, key: &[u8], hash: u64) -> Option<Block> {
        if !self.filter.may_hold(hash) || *key > *self.last_key {
            return None;
        }
        self.blocks.get(self.blocks_up_to(key).checked_sub(1)?).copied()
    }

    /// The number of the first block that may hold a key or a greater one.
    pub(crate) fn seek(&self, key: &[u8]) -> usize {
        self.blocks_up_to(key).saturating_sub(1)
    }

    pub(crate) fn block(&self, number: usize) -> Option<Block> {
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

    /// The first key of a block.
    pub(super) fn key(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.blocks[before].key_end);
        &self.keys[start as usize..self.blocks[number].key_end as usize]
    }
}

/// The record of a key in a block: `None` when absent, `Some(None)` when deleted.
pub(crate) fn record_in(block: &[u8], key: &[u8]) -> Result<Option<Option<Bytes>>, &'static str> {
    let mut rest = block;
    while !rest.is_empty() {
        let found = split_record(rest)?;
        if found.key == key {
            return Ok(Some(found.value.map(Bytes::copy_from_slice)));
        }
        rest = found.rest;
    }
    Ok(None)
}

/// All records of a block, for readers: without their references.
pub(crate) fn records_in(block: &Bytes) -> Result<Vec<Record>, &'static str> {
    let mut records = Vec::new();
    let mut rest = &block[..];
    while !rest.is_empty() {
        let split = split_record(rest)?;
        records.push((block.slice_ref(split.key), split.value.map(|value| block.slice_ref(value).into())));
        rest = split.rest;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::piece::{PieceVersion, tests::piece};

    const RUNS: [(PieceVersion, PieceKind); 2] =
        [(PieceVersion::V1, PieceKind::RunStart), (PieceVersion::V2, PieceKind::Run)];

    #[test]
    fn a_record_is_found_in_the_one_block_that_may_hold_it() {
        let key = |i: u32| Bytes::from(format!("key{i:05}"));
        let records: Vec<Record> =
            (0..500).map(|i| (key(2 * i), (i % 7 != 0).then(|| Value::from(vec![i as u8; 100])))).collect();
        for piece in RUNS.map(|(version, kind)| piece(version, kind, &records)) {
            let index = PieceIndex::of(&piece).unwrap();
            assert!(index.blocks.len() > 10, "500 records of 116 bytes are {} blocks", index.blocks.len());
            assert_eq!((index.first_key(), index.last_key()), (Some(&records[0].0[..]), &records[499].0[..]));
            assert_eq!((index.records, index.deletions), (500, 72));
            let get = |key: &[u8]| {
                let block = index.find(key, key_hash(key))?;
                let bytes = piece.slice(block.offset as usize..(block.offset + block.len) as usize);
                assert!(block.matches(&bytes) && !block.matches(&bytes[1..]));
                record_in(&bytes, key).unwrap()
            };
            for (key, value) in &records {
                assert_eq!(get(key), Some(value.clone().map(Value::into_bytes)));
            }
            assert!((0..500).all(|i| get(&key(2 * i + 1)).is_none()));
            assert!(get(b"a").is_none() && get(b"z").is_none());
            assert_eq!((index.seek(b""), index.seek(b"zzz")), (0, index.blocks.len() - 1));
            let all = (0..).map_while(|number| index.block(number)).flat_map(|block| {
                records_in(&piece.slice(block.offset as usize..(block.offset + block.len) as usize)).unwrap()
            });
            assert_eq!(all.collect::<Vec<_>>(), records);
        }
    }

    #[test]
    fn the_index_of_an_empty_piece_finds_nothing() {
        for piece in RUNS.map(|(version, kind)| piece(version, kind, &[])) {
            let index = PieceIndex::of(&piece).unwrap();
            assert_eq!((index.first_key(), index.block(0).is_none()), (None, true));
            assert!(index.find(b"a", 1).is_none());
        }
    }
}
