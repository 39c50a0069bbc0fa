//! Reads records directly from a checkpoint's objects: runs, newest first, over the base.
//!
//! Invariant: no record is used that was not verified. A piece is read whole, compared with its id and
//! indexed before any of its records is used, and every later read of a block is checked against that index.
//! Indexes are kept in a cache of bounded size. The first key of each piece is read in advance without
//! verification, so that a key counts as absent only after the pieces on both sides of it have been indexed.
//! Only pieces that this process has just written need no verification of their place.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{Checkpoint, KeyRange, ObjectId, ReplicaId};
use quick_cache::{Weighter, sync::Cache};

use super::Reach;
use crate::{
    failure,
    merge::{Merge, Record, Source},
    piece::{Block, PIECE_HEADER_BYTES, PieceIndex, PieceKind, key_hash, record_in, records_in, split_key},
    sorted::{Cut, Pinned, run_groups},
};

/// Bytes of a piece that are read to find its first key; enough unless the key is long.
const PEEK_BYTES: u32 = 256;
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

    /// Brings the index of a piece into the cache.
    pub(super) fn index(&self, replica: ReplicaId, id: ObjectId) -> Result<(), EngineError> {
        self.get(replica, id, Reach::Disk).map(drop)
    }

    /// The index of a piece; reads the piece when it is not cached. Threads that need the same one wait for
    /// one of them to read it.
    fn get(&self, replica: ReplicaId, id: ObjectId, reach: Reach) -> Result<Arc<PieceIndex>, EngineError> {
        if reach == Reach::Memory {
            return self.cache.get(&id).ok_or(EngineError::NotInMemory);
        }
        self.cache.get_or_insert_with(&id, || {
            let piece = self.objects.get(id).map_err(failure::of_objects)?;
            PieceIndex::of(&piece).map(Arc::new).map_err(|reason| EngineError::Corrupt { replica, reason })
        })
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

/// One run, or the base.
#[derive(Debug)]
struct Table {
    cut: Cut,
    pieces: Vec<Piece>,
    _pinned: Pinned,
}

#[derive(Debug)]
struct Piece {
    id: ObjectId,
    /// The first key, unverified until `verified` is set.
    first: Bytes,
    /// Whether the piece has been read whole and `first` was right.
    verified: AtomicBool,
}

impl Table {
    fn open(
        indexes: &IndexCache,
        replica: ReplicaId,
        cut: Cut,
        ids: &[ObjectId],
        written: &HashMap<ObjectId, Bytes>,
    ) -> Result<Self, EngineError> {
        let pinned = Pinned::pin(&indexes.objects, ids)?;
        let open_piece = |id: &ObjectId| match written.get(id) {
            Some(first) => Ok(Piece { id: *id, first: first.clone(), verified: AtomicBool::new(true) }),
            None => {
                let first = first_key(&indexes.objects, replica, *id)?;
                Ok(Piece { id: *id, first, verified: AtomicBool::new(false) })
            }
        };
        let pieces = ids.iter().map(open_piece).collect::<Result<_, EngineError>>()?;
        Ok(Self { cut, pieces, _pinned: pinned })
    }

    fn holds(&self, ids: &[ObjectId]) -> bool {
        self.pieces.iter().map(|piece| &piece.id).eq(ids)
    }

    /// The index of the piece with this number. Verifies its kind, its first key and the order to the next
    /// piece.
    fn index(
        &self,
        indexes: &IndexCache,
        replica: ReplicaId,
        number: usize,
        reach: Reach,
    ) -> Result<Arc<PieceIndex>, EngineError> {
        let piece = &self.pieces[number];
        let index = indexes.get(replica, piece.id, reach)?;
        if !piece.verified.load(Ordering::Acquire) {
            let corrupt = |reason| Err(EngineError::Corrupt { replica, reason });
            if index.kind != self.cut.kind(number == 0) {
                return corrupt("an object is a piece of the wrong kind for its position");
            }
            if index.first_key() != Some(&piece.first[..]) {
                return corrupt("the first key of a piece has changed between two reads");
            }
            if self.pieces.get(number + 1).is_some_and(|next| *index.last_key() >= next.first[..]) {
                return corrupt("pieces do not ascend");
            }
            piece.verified.store(true, Ordering::Release);
        }
        Ok(index)
    }

    /// Verifies every piece that was not read yet.
    fn verify(&self, indexes: &IndexCache, replica: ReplicaId) -> Result<(), EngineError> {
        (0..self.pieces.len()).try_for_each(|number| self.index(indexes, replica, number, Reach::Disk).map(drop))
    }

    /// `None` when the table does not have the key, `Some(None)` when it has its deletion.
    fn get(
        &self,
        indexes: &IndexCache,
        replica: ReplicaId,
        key: &[u8],
        hash: u64,
        reach: Reach,
    ) -> Result<Option<Option<Bytes>>, EngineError> {
        let next = self.pieces.partition_point(|piece| piece.first[..] <= *key);
        if self.pieces.get(next).is_some_and(|piece| !piece.verified.load(Ordering::Acquire)) {
            self.index(indexes, replica, next, reach)?;
        }
        let Some(number) = next.checked_sub(1) else { return Ok(None) };
        let index = self.index(indexes, replica, number, reach)?;
        let Some(block) = index.find(key, hash) else { return Ok(None) };
        let bytes = indexes.block(self.pieces[number].id, block, reach)?;
        record_in(&bytes, key).map_err(|reason| EngineError::Corrupt { replica, reason })
    }
}

/// Reads the first key of a piece, unverified.
fn first_key(objects: &ObjectStore, replica: ReplicaId, id: ObjectId) -> Result<Bytes, EngineError> {
    let mut peek_bytes = PEEK_BYTES;
    loop {
        let head = objects.slice(id, 0, peek_bytes).map_err(failure::of_objects)?;
        let corrupt = |reason| EngineError::Corrupt { replica, reason };
        PieceKind::of(&head).ok_or(corrupt("an object is not a piece of a known version"))?;
        let record = &head[PIECE_HEADER_BYTES..];
        match split_key(record) {
            Some(key) => return Ok(Bytes::copy_from_slice(key)),
            None if head.len() < peek_bytes as usize => return Err(corrupt("a piece ends inside its first record")),
            None => peek_bytes = peek_bytes.saturating_mul(16),
        }
    }
}

/// The records of one replica's checkpoint.
#[derive(Debug)]
pub(crate) struct Levels {
    indexes: Arc<IndexCache>,
    replica: ReplicaId,
    /// Newest first.
    runs: Vec<Arc<Table>>,
    base: Arc<Table>,
}

impl Levels {
    /// Opens a checkpoint whose objects are all present. Tables that `before` has open are shared; `written`
    /// are pieces that this process has written since, with their first keys.
    pub(super) fn open(
        indexes: &Arc<IndexCache>,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
        before: Option<&Self>,
        written: &HashMap<ObjectId, Bytes>,
    ) -> Result<Self, EngineError> {
        let open = |cut, ids: &[ObjectId]| {
            let tables = before.into_iter().flat_map(|levels| levels.runs.iter().chain([&levels.base]));
            let same = tables.into_iter().find(|table| table.cut == cut && table.holds(ids));
            match same {
                Some(table) => Ok(table.clone()),
                None => Table::open(indexes, replica, cut, ids, written).map(Arc::new),
            }
        };
        let groups = run_groups(&indexes.objects, &checkpoint.runs)?;
        let runs = groups.iter().rev().map(|group| open(Cut::Size, group)).collect::<Result<_, _>>()?;
        let base = open(Cut::Content, &checkpoint.base)?;
        Ok(Self { indexes: indexes.clone(), replica, runs, base })
    }

    /// Verifies all pieces that were not read yet. May take long; concurrent reads do not wait for it.
    pub(super) fn verify(&self) -> Result<(), EngineError> {
        self.tables().try_for_each(|table| table.verify(&self.indexes, self.replica))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables().all(|table| table.pieces.is_empty())
    }

    pub(super) fn get(&self, key: &[u8], reach: Reach) -> Result<Option<Bytes>, EngineError> {
        let hash = key_hash(key);
        for table in self.tables() {
            if let Some(value) = table.get(&self.indexes, self.replica, key, hash, reach)? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    /// Records of a range, deletions included.
    pub(super) fn records<'a>(&'a self, range: &'a KeyRange) -> Source<'a> {
        let scan = |table: &'a Arc<Table>| -> Source<'a> { Box::new(TableScan::new(self, table, range)) };
        Box::new(Merge::new(self.tables().map(scan)))
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.runs.iter().chain([&self.base])
    }
}

/// Reads a range of a table, block by block.
struct TableScan<'a> {
    levels: &'a Levels,
    table: &'a Table,
    range: &'a KeyRange,
    /// The current piece, or the next one when `index` is `None`.
    number: usize,
    index: Option<Arc<PieceIndex>>,
    next_block: usize,
    records: std::vec::IntoIter<Record>,
}

impl<'a> TableScan<'a> {
    fn new(levels: &'a Levels, table: &'a Table, range: &'a KeyRange) -> Self {
        let next = table.pieces.partition_point(|piece| piece.first <= range.start);
        let records = Vec::new().into_iter();
        Self { levels, table, range, number: next.saturating_sub(1), index: None, next_block: 0, records }
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
                    let index = self.table.index(indexes, *replica, self.number, Reach::Disk)?;
                    self.next_block = index.seek(&self.range.start);
                    self.index.insert(index)
                }
            };
            match index.block(self.next_block) {
                Some(block) => {
                    let bytes = indexes.block(self.table.pieces[self.number].id, block, Reach::Disk)?;
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
