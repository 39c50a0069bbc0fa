//! A checkpoint's own objects as the place where its records are found: runs, newest first, over the base.
//!
//! Nothing has to be fed or rebuilt, and nothing is trusted that was not seen to match its id: a piece is read whole and indexed
//! before the first of its records is believed, and every later read of a block of it is checked against that index. Indexes are
//! kept in a cache of bounded size. Where pieces begin is known from a first glance at each, which is not verified: that a key is
//! *not* there is only believed once the pieces on both sides have been indexed.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
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

use super::index::{Block, PieceIndex, record_in, records_in};
use crate::{
    failure,
    merge::{Merge, Record, Source},
    piece::{PIECE_HEADER_BYTES, PieceKind, split_key},
    sorted::{Cut, Pinned, run_groups},
};

/// Bytes of a piece read at first glance; enough for its first key unless that is long.
const GLANCE_BYTES: u32 = 256;
/// What the cache expects one index to take, for its own bookkeeping.
const INDEX_BYTES_EXPECTED: u64 = 8 << 10;

/// The indexes of all pieces on a node that were used of late.
pub(crate) struct Indexes {
    objects: Arc<ObjectStore>,
    cache: Cache<ObjectId, Arc<PieceIndex>, Weight>,
    hasher: RandomState,
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<ObjectId, Arc<PieceIndex>> for Weight {
    fn weight(&self, _: &ObjectId, index: &Arc<PieceIndex>) -> u64 {
        index.len_bytes() as u64
    }
}

impl fmt::Debug for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Indexes").field("cached", &self.cache.len()).finish_non_exhaustive()
    }
}

impl Indexes {
    pub(super) fn new(objects: Arc<ObjectStore>, bytes_max: u64) -> Self {
        let expected = usize::try_from(bytes_max / INDEX_BYTES_EXPECTED).unwrap_or(usize::MAX).max(1);
        let cache = Cache::with_weighter(expected, bytes_max, Weight);
        Self { objects, cache, hasher: RandomState::new() }
    }

    /// The index of a piece, read anew when it is not cached.
    fn of(&self, replica: ReplicaId, id: ObjectId) -> Result<Arc<PieceIndex>, EngineError> {
        if let Some(index) = self.cache.get(&id) {
            return Ok(index);
        }
        let piece = self.objects.get(id).map_err(failure::of_objects)?;
        let index = PieceIndex::of(&piece, &self.hasher).map_err(|reason| EngineError::Corrupt { replica, reason })?;
        let index = Arc::new(index);
        self.cache.insert(id, index.clone());
        Ok(index)
    }

    /// A block of a piece, verified.
    fn block(&self, id: ObjectId, block: Block) -> Result<Bytes, EngineError> {
        let bytes = self.objects.slice(id, block.offset, block.len).map_err(failure::of_objects)?;
        if block.matches(&bytes) {
            return Ok(bytes);
        }
        // The whole object tells whether it is damaged for good, and is then known to be missing.
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
    /// The first key, as a glance showed it.
    first: Bytes,
    /// Whether the piece has been read whole and the glance was right.
    confirmed: AtomicBool,
}

impl Table {
    fn open(indexes: &Indexes, replica: ReplicaId, cut: Cut, ids: &[ObjectId]) -> Result<Self, EngineError> {
        let pinned = Pinned::keep(&indexes.objects, ids)?;
        let glance = |id: &ObjectId| {
            let first = first_key(&indexes.objects, replica, *id)?;
            Ok(Piece { id: *id, first, confirmed: AtomicBool::new(false) })
        };
        let pieces = ids.iter().map(glance).collect::<Result<_, EngineError>>()?;
        Ok(Self { cut, pieces, _pinned: pinned })
    }

    fn holds(&self, ids: &[ObjectId]) -> bool {
        self.pieces.iter().map(|piece| &piece.id).eq(ids)
    }

    /// The index of the piece with this number, whose place among its neighbours is confirmed.
    fn index(&self, indexes: &Indexes, replica: ReplicaId, number: usize) -> Result<Arc<PieceIndex>, EngineError> {
        let piece = &self.pieces[number];
        let index = indexes.of(replica, piece.id)?;
        if !piece.confirmed.load(Ordering::Acquire) {
            let corrupt = |reason| Err(EngineError::Corrupt { replica, reason });
            if index.kind != self.cut.kind(number == 0) {
                return corrupt("an object is a piece of another kind than its place says");
            }
            if index.first_key() != Some(&piece.first[..]) {
                return corrupt("a piece does not begin with the key that was read first");
            }
            if self.pieces.get(number + 1).is_some_and(|next| *index.last_key() >= next.first[..]) {
                return corrupt("pieces do not ascend");
            }
            piece.confirmed.store(true, Ordering::Release);
        }
        Ok(index)
    }

    /// Reads every piece that was not read yet.
    fn confirm(&self, indexes: &Indexes, replica: ReplicaId) -> Result<(), EngineError> {
        (0..self.pieces.len()).try_for_each(|number| self.index(indexes, replica, number).map(drop))
    }

    /// `None` when this table knows nothing of the key, `Some(None)` when it was deleted here.
    fn get(
        &self,
        indexes: &Indexes,
        replica: ReplicaId,
        key: &[u8],
        hash: u64,
    ) -> Result<Option<Option<Bytes>>, EngineError> {
        let behind = self.pieces.partition_point(|piece| piece.first[..] <= *key);
        if self.pieces.get(behind).is_some_and(|next| !next.confirmed.load(Ordering::Acquire)) {
            self.index(indexes, replica, behind)?;
        }
        let Some(number) = behind.checked_sub(1) else { return Ok(None) };
        let index = self.index(indexes, replica, number)?;
        let Some(block) = index.find(key, hash) else { return Ok(None) };
        let bytes = indexes.block(self.pieces[number].id, block)?;
        record_in(&bytes, key).map_err(|reason| EngineError::Corrupt { replica, reason })
    }
}

/// The first key of a piece by a glance at its first bytes.
fn first_key(objects: &ObjectStore, replica: ReplicaId, id: ObjectId) -> Result<Bytes, EngineError> {
    let mut glance = GLANCE_BYTES;
    loop {
        let head = objects.slice(id, 0, glance).map_err(failure::of_objects)?;
        let corrupt = |reason| EngineError::Corrupt { replica, reason };
        PieceKind::of(&head).ok_or(corrupt("an object is not a piece of records known here"))?;
        let record = &head[PIECE_HEADER_BYTES..];
        match split_key(record) {
            Some(key) => return Ok(Bytes::copy_from_slice(key)),
            None if head.len() < glance as usize => return Err(corrupt("a piece ends inside its first record")),
            None => glance = glance.saturating_mul(16),
        }
    }
}

/// The records of one replica's checkpoint.
#[derive(Debug)]
pub(crate) struct Levels {
    indexes: Arc<Indexes>,
    replica: ReplicaId,
    /// Newest first.
    runs: Vec<Arc<Table>>,
    base: Arc<Table>,
}

impl Levels {
    /// The records of a checkpoint whose objects are all here. Tables that `before` has open are shared.
    pub(super) fn open(
        indexes: &Arc<Indexes>,
        replica: ReplicaId,
        checkpoint: &Checkpoint,
        before: Option<&Self>,
    ) -> Result<Self, EngineError> {
        let open = |cut, ids: &[ObjectId]| {
            let tables = before.into_iter().flat_map(|levels| levels.runs.iter().chain([&levels.base]));
            let same = tables.into_iter().find(|table| table.cut == cut && table.holds(ids));
            same.map_or_else(|| Table::open(indexes, replica, cut, ids).map(Arc::new), |table| Ok(table.clone()))
        };
        let groups = run_groups(&indexes.objects, &checkpoint.runs)?;
        let runs = groups.iter().rev().map(|group| open(Cut::Size, group)).collect::<Result<_, _>>()?;
        let base = open(Cut::Content, &checkpoint.base)?;
        Ok(Self { indexes: indexes.clone(), replica, runs, base })
    }

    /// Reads and verifies whatever was not read yet. Takes a while; reads meanwhile do not wait for it.
    pub(super) fn confirm(&self) -> Result<(), EngineError> {
        self.tables().try_for_each(|table| table.confirm(&self.indexes, self.replica))
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let hash = self.indexes.hasher.hash_one(key);
        for table in self.tables() {
            if let Some(value) = table.get(&self.indexes, self.replica, key, hash)? {
                return Ok(value);
            }
        }
        Ok(None)
    }

    /// Records of a range, deletions included.
    pub(super) fn records<'a>(&'a self, range: &'a KeyRange) -> Source<'a> {
        let walk = |table: &'a Arc<Table>| -> Source<'a> { Box::new(Walk::new(self, table, range)) };
        Box::new(Merge::new(self.tables().map(walk)))
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.runs.iter().chain([&self.base])
    }
}

/// Reads a range of a table, block by block.
struct Walk<'a> {
    levels: &'a Levels,
    table: &'a Table,
    range: &'a KeyRange,
    /// The piece that is read, or the next one.
    number: usize,
    index: Option<Arc<PieceIndex>>,
    next_block: usize,
    records: std::vec::IntoIter<Record>,
}

impl<'a> Walk<'a> {
    fn new(levels: &'a Levels, table: &'a Table, range: &'a KeyRange) -> Self {
        let behind = table.pieces.partition_point(|piece| piece.first <= range.start);
        let records = Vec::new().into_iter();
        Self { levels, table, range, number: behind.saturating_sub(1), index: None, next_block: 0, records }
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
                    let index = self.table.index(indexes, *replica, self.number)?;
                    self.next_block = index.seek(&self.range.start);
                    self.index.insert(index)
                }
            };
            match index.block(self.next_block) {
                Some(block) => {
                    let bytes = indexes.block(self.table.pieces[self.number].id, block)?;
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

impl Iterator for Walk<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
