//! Reads records directly from a checkpoint's objects: runs, newest first, over the base.
//!
//! Invariant: no record is used that was not verified. The index of a piece is its footer, whose checksum is
//! in the manifest; a piece without a footer is read whole, compared with its id and indexed. Every later read
//! of a block is checked against the index. Indexes are kept in a cache of bounded size. First keys are known
//! in advance without verification, so that a key counts as absent only after the pieces on both sides of it
//! have been indexed. Only pieces that this process has just written need no verification of their place.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, PieceRef};
use flotilla_types::{KeyRange, ObjectId, ReplicaId};
use quick_cache::{Weighter, sync::Cache};

use super::Reach;
use crate::{
    failure,
    merge::{Merge, Record, Source},
    piece::{Block, FooterCheck, PieceIndex, PieceVersion, key_hash, record_in, records_in},
    sorted::Cut,
    table::Table,
};

/// Expected size of one index, from which the cache sizes its tables.
const INDEX_BYTES_EXPECTED: u64 = 8 << 10;

/// A cache of the indexes of recently used pieces, for the whole node.
pub(crate) struct IndexCache {
    objects: Arc<ObjectStore>,
    cache: Cache<ObjectId, Arc<PieceIndex>, Weight>,
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<ObjectId, Arc<PieceIndex>> for Weight {
    fn weight(&self, _: &ObjectId, index: &Arc<PieceIndex>) -> u64 {
        index.len_bytes() as u64
    }
}

impl fmt::Debug for IndexCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexCache").field("cached", &self.cache.len()).finish_non_exhaustive()
    }
}

impl IndexCache {
    pub(super) fn new(objects: Arc<ObjectStore>, bytes_max: u64) -> Self {
        let expected = usize::try_from(bytes_max / INDEX_BYTES_EXPECTED).unwrap_or(usize::MAX).max(1);
        let cache = Cache::with_weighter(expected, bytes_max, Weight);
        Self { objects, cache }
    }

    /// Brings the indexes of a table's pieces into the cache.
    pub(super) fn index(&self, replica: ReplicaId, table: &Table) -> Result<(), EngineError> {
        (0..table.pieces.len()).try_for_each(|number| self.get(replica, table, number, Reach::Disk).map(drop))
    }

    /// The index of a piece; reads its footer, or the piece if it has none, when it is not cached. Threads that
    /// need the same one wait for one of them to read it.
    fn get(
        &self,
        replica: ReplicaId,
        table: &Table,
        number: usize,
        reach: Reach,
    ) -> Result<Arc<PieceIndex>, EngineError> {
        let piece = &table.pieces[number].listed;
        if reach == Reach::Memory {
            return self.cache.get(&piece.id).ok_or(EngineError::NotInMemory);
        }
        self.cache.get_or_insert_with(&piece.id, || self.read(replica, table.cut, piece).map(Arc::new))
    }

    fn read(&self, replica: ReplicaId, cut: Cut, piece: &PieceRef) -> Result<PieceIndex, EngineError> {
        if piece.footer_bytes > 0 {
            let start = piece.bytes - piece.footer_bytes;
            let footer = self.objects.slice(piece.id, start, piece.footer_bytes).map_err(failure::of_objects)?;
            let listed = FooterCheck { len: piece.footer_bytes, crc: piece.footer_crc };
            if listed.matches(&footer)
                && let Ok(index) = PieceIndex::from_footer(cut.kind(PieceVersion::V2, true), &footer)
            {
                return Ok(index);
            }
            // Reading the whole object verifies it; if it is damaged, the store marks it as missing.
        }
        self.read_whole(replica, piece)
    }

    /// Reads a piece whole, and verifies that it is as listed.
    fn read_whole(&self, replica: ReplicaId, piece: &PieceRef) -> Result<PieceIndex, EngineError> {
        let bytes = self.objects.get(piece.id).map_err(failure::of_objects)?;
        let corrupt = |reason| EngineError::Corrupt { replica, reason };
        let index = PieceIndex::of(&bytes).map_err(corrupt)?;
        if bytes.len() != piece.bytes as usize || index.records() != piece.records {
            return Err(corrupt("a piece is not as its manifest says"));
        }
        let footer = piece.bytes.checked_sub(piece.footer_bytes).map(|start| bytes.slice(start as usize..));
        let listed = FooterCheck { len: piece.footer_bytes, crc: piece.footer_crc };
        if piece.footer_bytes > 0 && !footer.is_some_and(|footer| listed.matches(&footer)) {
            return Err(corrupt("the footer of a piece is not as its manifest says"));
        }
        Ok(index)
    }

    /// Reads and verifies a block of a piece.
    fn block(&self, id: ObjectId, block: Block, reach: Reach) -> Result<Bytes, EngineError> {
        if reach == Reach::Memory {
            let bytes = self.objects.slice_in_memory(id, block.offset, block.len);
            return bytes.filter(|bytes| block.matches(bytes)).ok_or(EngineError::NotInMemory);
        }
        let bytes = self.objects.slice(id, block.offset, block.len).map_err(failure::of_objects)?;
        if block.matches(&bytes) {
            return Ok(bytes);
        }
        // Reading the whole object verifies it; if it is damaged, the store marks it as missing.
        let piece = self.objects.get(id).map_err(failure::of_objects)?;
        Ok(piece.slice(block.offset as usize..(block.offset + block.len) as usize))
    }
}

/// The records of one replica's checkpoint.
#[derive(Debug)]
pub(crate) struct Levels {
    indexes: Arc<IndexCache>,
    replica: ReplicaId,
    /// Oldest first.
    tables: Vec<Arc<Table>>,
}

impl Levels {
    pub(super) fn new(indexes: &Arc<IndexCache>, replica: ReplicaId, tables: &[Arc<Table>]) -> Self {
        Self { indexes: indexes.clone(), replica, tables: tables.to_vec() }
    }

    /// Reads all pieces whole. May take long; concurrent reads do not wait for it.
    pub(super) fn verify(&self) -> Result<(), EngineError> {
        self.tables.iter().try_for_each(|table| {
            (0..table.pieces.len()).try_for_each(|number| {
                let index = self.indexes.read_whole(self.replica, &table.pieces[number].listed)?;
                self.verify_place(table, number, &index)
            })
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    fn verify_place(&self, table: &Table, number: usize, index: &PieceIndex) -> Result<(), EngineError> {
        let replica = self.replica;
        table.verify_place(number, index).map_err(|reason| EngineError::Corrupt { replica, reason })
    }

    /// The index of a piece, whose place in its table is verified.
    fn index(&self, table: &Table, number: usize, reach: Reach) -> Result<Arc<PieceIndex>, EngineError> {
        let index = self.indexes.get(self.replica, table, number, reach)?;
        self.verify_place(table, number, &index)?;
        Ok(index)
    }

    /// `None` when a table does not have the key, `Some(None)` when it has its deletion.
    fn find(&self, table: &Table, key: &[u8], hash: u64, reach: Reach) -> Result<Option<Option<Bytes>>, EngineError> {
        if !table.clip.contains(key) {
            return Ok(None);
        }
        let number = table.piece_up_to(key);
        let next = number.map_or(0, |number| number + 1);
        if table.pieces.get(next).is_some_and(|piece| !piece.is_verified()) {
            self.index(table, next, reach)?;
        }
        let Some(number) = number else { return Ok(None) };
        let index = self.index(table, number, reach)?;
        let Some(block) = index.find(key, hash) else { return Ok(None) };
        let bytes = self.indexes.block(table.pieces[number].listed.id, block, reach)?;
        record_in(&bytes, key).map_err(|reason| EngineError::Corrupt { replica: self.replica, reason })
    }

    pub(super) fn get(&self, key: &[u8], reach: Reach) -> Result<Option<Bytes>, EngineError> {
        let hash = key_hash(key);
        for table in self.tables.iter().rev() {
            if let Some(value) = self.find(table, key, hash, reach)? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    /// Records of a range, deletions included.
    pub(super) fn records<'a>(&'a self, range: &KeyRange) -> Source<'a> {
        let scan = |table: &'a Arc<Table>| -> Source<'a> { Box::new(TableScan::new(self, table, range)) };
        Box::new(Merge::new(self.tables.iter().rev().map(scan)))
    }
}

/// Reads a range of a table, block by block.
struct TableScan<'a> {
    levels: &'a Levels,
    table: &'a Table,
    /// Within the clip.
    range: KeyRange,
    /// The current piece, or the next one when `index` is `None`.
    number: usize,
    index: Option<Arc<PieceIndex>>,
    next_block: usize,
    records: std::vec::IntoIter<Record>,
}

impl<'a> TableScan<'a> {
    fn new(levels: &'a Levels, table: &'a Table, range: &KeyRange) -> Self {
        let range = table.clip.intersection(range);
        let first = table.piece_up_to(&range.start).unwrap_or(0);
        let number = if range.is_empty() { table.pieces.len() } else { first };
        Self { levels, table, range, number, index: None, next_block: 0, records: Vec::new().into_iter() }
    }

    fn advance(&mut self) -> Result<Option<Record>, EngineError> {
        let Levels { indexes, replica, .. } = self.levels;
        loop {
            for record in self.records.by_ref() {
                if !self.range.end.is_empty() && record.0 >= self.range.end {
                    return Ok(None);
                }
                if record.0 >= self.range.start {
                    return Ok(Some(record));
                }
            }
            let index = match &self.index {
                Some(index) => index,
                None if self.number >= self.table.pieces.len() => return Ok(None),
                None => {
                    let index = self.levels.index(self.table, self.number, Reach::Disk)?;
                    self.next_block = index.seek(&self.range.start);
                    self.index.insert(index)
                }
            };
            match index.block(self.next_block) {
                Some(block) => {
                    let bytes = indexes.block(self.table.pieces[self.number].listed.id, block, Reach::Disk)?;
                    let records =
                        records_in(&bytes).map_err(|reason| EngineError::Corrupt { replica: *replica, reason })?;
                    self.records = records.into_iter();
                    self.next_block += 1;
                }
                None => {
                    self.index = None;
                    self.number += 1;
                }
            }
        }
    }
}

impl Iterator for TableScan<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
