//! Tables: the base and the runs of a checkpoint, each a list of sorted pieces and a clip.
//!
//! A table of format 2 has a manifest, which is read when the table is opened and holds its pieces in the
//! object store. For one of format 1 the first key of each piece is read in advance, without verification.

use std::{
    iter,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, Manifest, PieceRef};
use flotilla_types::{
    Checkpoint, CheckpointFormat, KeyRange, LogIndex, ObjectId, ReplicaId, TableKind, TableRef, Tables,
};

use crate::{
    failure,
    merge::{Record, Source},
    piece::{PIECE_HEADER_BYTES, PieceIndex, PieceKind, PieceReader, split_key},
    sorted::{Cut, Pinned},
};

/// Bytes of a piece that are read to find its first key; enough unless the key is long.
const PEEK_BYTES: u32 = 256;

/// One run, or the base. Its pieces stay in the object store until it is dropped.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) cut: Cut,
    pub(crate) clip: KeyRange,
    /// Every record is of this entry of the log, or of one before.
    pub(crate) last: LogIndex,
    /// The entry that ordered the fold which made it.
    pub(crate) fold: Option<LogIndex>,
    /// `None` in format 1.
    manifest: Option<ObjectId>,
    pub(crate) pieces: Arc<[Piece]>,
    /// Size of the pieces that may have records within the clip.
    bytes: u64,
    /// Whether all pieces have footers.
    has_footers: bool,
    pinned: Arc<Pinned>,
}

#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) listed: PieceRef,
    /// Whether its place in the table is verified.
    verified: AtomicBool,
}

impl Piece {
    fn of(listed: PieceRef, is_verified: bool) -> Self {
        Self { listed, verified: is_verified.into() }
    }

    pub(crate) fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }
}

impl Table {
    fn new(
        pinned: Pinned,
        cut: Cut,
        clip: KeyRange,
        last: LogIndex,
        manifest: Option<ObjectId>,
        pieces: Vec<Piece>,
    ) -> Self {
        let has_footers = pieces.iter().all(|piece| piece.listed.footer_bytes > 0);
        let (pieces, pinned) = (pieces.into(), Arc::new(pinned));
        Self { cut, clip: KeyRange::all(), last, fold: None, manifest, pieces, bytes: 0, has_footers, pinned }
            .with_clip(clip)
    }

    fn with_clip(self, clip: KeyRange) -> Self {
        let mut table = Self { clip, ..self };
        table.bytes = size_of_pieces(&table.pieces[table.pieces_within(&table.clip)]);
        table
    }

    /// A table whose pieces, which this process has written, are pinned. In format 2 the manifest takes over
    /// from the pins.
    pub(crate) fn written(
        mut pinned: Pinned,
        cut: Cut,
        format: CheckpointFormat,
        last: LogIndex,
        pieces: Vec<PieceRef>,
    ) -> Result<Self, EngineError> {
        let mut manifest = None;
        if format >= CheckpointFormat::Manifests {
            let id;
            (pinned, id) = put_manifest(&pinned, pieces.clone())?;
            manifest = Some(id);
        }
        let pieces = pieces.into_iter().map(|piece| Piece::of(piece, true)).collect();
        Ok(Self::new(pinned, cut, KeyRange::all(), last, manifest, pieces))
    }

    /// The same table as the base that a fold has made, which an entry has ordered.
    pub(crate) fn of_fold(self, fold: LogIndex) -> Self {
        Self { fold: Some(fold), ..self }
    }

    /// The same table as a base that no entry has ordered.
    pub(crate) fn of_no_fold(&self) -> Self {
        Self { fold: None, ..self.same() }
    }

    /// The same table with a manifest.
    fn with_manifest(&self, objects: &Arc<ObjectStore>) -> Result<Self, EngineError> {
        let pieces = self.pieces.iter().map(|piece| piece.listed.clone()).collect();
        let (pinned, manifest) = put_manifest(&Pinned::none(objects), pieces)?;
        Ok(Self { manifest: Some(manifest), pinned: Arc::new(pinned), ..self.same() })
    }

    /// The same table, restricted to a range of its clip.
    pub(crate) fn within(&self, clip: KeyRange) -> Self {
        self.same().with_clip(clip)
    }

    fn same(&self) -> Self {
        let (clip, pieces, pinned) = (self.clip.clone(), self.pieces.clone(), self.pinned.clone());
        let Self { cut, last, fold, manifest, bytes, has_footers, .. } = *self;
        Self { cut, clip, last, fold, manifest, pieces, bytes, has_footers, pinned }
    }

    /// Opens a table of format 2.
    fn of_manifest(
        objects: &Arc<ObjectStore>,
        replica: ReplicaId,
        last: LogIndex,
        table: &TableRef,
    ) -> Result<Self, EngineError> {
        let pinned = Pinned::pin(objects, &[table.manifest])?;
        let manifest = objects.get(table.manifest).map_err(failure::of_objects)?;
        let manifest = Manifest::decode(manifest).map_err(|reason| EngineError::Corrupt { replica, reason })?;
        let cut = match table.kind {
            TableKind::Base => Cut::Content,
            TableKind::Run => Cut::Size,
        };
        let pieces = manifest.pieces.into_iter().map(|piece| Piece::of(piece, false)).collect();
        let opened = Self::new(pinned, cut, table.clip.clone(), last, Some(table.manifest), pieces);
        Ok(Self { fold: table.fold, ..opened })
    }

    /// Opens a table of format 1.
    fn of_pieces(
        objects: &Arc<ObjectStore>,
        cut: Cut,
        last: LogIndex,
        pieces: Vec<PieceRef>,
    ) -> Result<Self, EngineError> {
        let ids: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
        let pinned = Pinned::pin(objects, &ids)?;
        let pieces = pieces.into_iter().map(|piece| Piece::of(piece, false)).collect();
        Ok(Self::new(pinned, cut, KeyRange::all(), last, None, pieces))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.pieces.iter().map(|piece| piece.listed.id)
    }

    /// Size of the pieces that may have records within the clip.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size of all pieces.
    pub(crate) fn bytes_unclipped(&self) -> u64 {
        size_of_pieces(&self.pieces)
    }

    /// Whether both have the same manifest.
    pub(crate) fn shares_manifest(&self, other: &Self) -> bool {
        self.manifest.is_some() && self.manifest == other.manifest
    }

    /// Whether both are the same records, in whatever format.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.cut == other.cut && self.clip == other.clip && self.ids().eq(other.ids())
    }

    /// Whether it is, or consists of, this object.
    pub(crate) fn needs(&self, object: ObjectId) -> bool {
        self.manifest == Some(object) || self.ids().any(|id| id == object)
    }

    /// Whether it has a manifest, and yet pieces without footers.
    pub(crate) fn is_converted(&self) -> bool {
        self.manifest.is_some() && !self.has_footers
    }

    fn kind(&self) -> TableKind {
        match self.cut {
            Cut::Content => TableKind::Base,
            Cut::Size => TableKind::Run,
        }
    }

    /// Checks a piece, of which this is the index, against its place in the table.
    pub(crate) fn verify_place(&self, number: usize, index: &PieceIndex) -> Result<(), &'static str> {
        let piece = &self.pieces[number];
        if piece.is_verified() {
            return Ok(());
        }
        if !self.cut.allows(index.kind, number == 0) {
            return Err("an object is a piece of the wrong kind for its position");
        }
        if index.first_key() != Some(&piece.listed.first_key[..]) {
            return Err("a piece begins with another key than was read or listed before");
        }
        if self.pieces.get(number + 1).is_some_and(|next| *index.last_key() >= next.listed.first_key[..]) {
            return Err("pieces do not ascend");
        }
        piece.verified.store(true, Ordering::Release);
        Ok(())
    }

    /// The number of the last piece that begins at or before a key.
    pub(crate) fn piece_up_to(&self, key: &[u8]) -> Option<usize> {
        self.pieces.partition_point(|piece| piece.listed.first_key[..] <= *key).checked_sub(1)
    }

    /// The numbers of the pieces that may have records of a range, by their first keys.
    pub(crate) fn pieces_within(&self, range: &KeyRange) -> Range<usize> {
        let begins_before_end = |piece: &Piece| range.end.is_empty() || piece.listed.first_key[..] < range.end[..];
        let end = if range.is_empty() { 0 } else { self.pieces.partition_point(begins_before_end) };
        self.piece_up_to(&range.start).unwrap_or(0).min(end)..end
    }

    /// The records within the clip, reading one piece at a time.
    pub(crate) fn records<'a>(&'a self, objects: &'a ObjectStore, replica: ReplicaId) -> Source<'a> {
        let next = self.piece_up_to(&self.clip.start).unwrap_or(0);
        Box::new(Records { table: self, objects, replica, next, current: None, last: None })
    }
}

fn size_of_pieces(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.listed.bytes)).sum()
}

/// Stores the manifest of these pieces, and pins it alone.
fn put_manifest(pinned: &Pinned, pieces: Vec<PieceRef>) -> Result<(Pinned, ObjectId), EngineError> {
    let children: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
    let mut alone = Pinned::none(pinned.objects());
    let manifest = alone.put(&Manifest { pieces }.encode(), &children)?;
    Ok((alone, manifest))
}

/// The tables of a checkpoint, whose objects are all present, oldest first.
pub(crate) fn open_tables(
    objects: &Arc<ObjectStore>,
    replica: ReplicaId,
    checkpoint: &Checkpoint,
) -> Result<Vec<Arc<Table>>, EngineError> {
    let last = checkpoint.position.index;
    match &checkpoint.tables {
        Tables::Manifests(tables) => {
            tables.iter().map(|table| Table::of_manifest(objects, replica, last, table).map(Arc::new)).collect()
        }
        Tables::Pieces { base, runs } => {
            let base = (!base.is_empty()).then(|| {
                let pieces = base.iter().map(|id| Ok(head(objects, replica, *id)?.0));
                Table::of_pieces(objects, Cut::Content, last, pieces.collect::<Result<_, EngineError>>()?)
            });
            let runs = group_runs(objects, replica, runs)?;
            let runs = runs.into_iter().map(|pieces| Table::of_pieces(objects, Cut::Size, last, pieces));
            base.into_iter().chain(runs).map(|table| table.map(Arc::new)).collect()
        }
    }
}

/// The pieces of a checkpoint's runs in format 1, by run. The grouping uses unverified headers; reading the
/// pieces verifies them.
fn group_runs(objects: &ObjectStore, replica: ReplicaId, runs: &[ObjectId]) -> Result<Vec<Vec<PieceRef>>, EngineError> {
    let mut groups: Vec<Vec<PieceRef>> = Vec::new();
    for id in runs {
        let (piece, kind) = head(objects, replica, *id)?;
        match groups.last_mut() {
            Some(group) if kind == PieceKind::RunRest => group.push(piece),
            _ => groups.push(vec![piece]),
        }
    }
    Ok(groups)
}

/// Reads the head of a piece without a manifest, unverified.
fn head(objects: &ObjectStore, replica: ReplicaId, id: ObjectId) -> Result<(PieceRef, PieceKind), EngineError> {
    let mut peek_bytes = PEEK_BYTES;
    loop {
        let head = objects.slice(id, 0, peek_bytes).map_err(failure::of_objects)?;
        let corrupt = |reason| EngineError::Corrupt { replica, reason };
        let (kind, records) =
            PieceKind::and_count(&head).ok_or(corrupt("an object is not a piece of a known version"))?;
        match split_key(&head[PIECE_HEADER_BYTES..]) {
            Some(key) => {
                let first_key = Bytes::copy_from_slice(key);
                // Objects are at most 4 GiB − 1 long.
                let bytes = objects.len_bytes(id).ok_or_else(|| failure::absent(objects, id))? as u32;
                return Ok((PieceRef { id, first_key, bytes, records, footer_bytes: 0, footer_crc: 0 }, kind));
            }
            None if head.len() < peek_bytes as usize => return Err(corrupt("a piece ends inside its first record")),
            None => peek_bytes = peek_bytes.saturating_mul(16),
        }
    }
}

/// What a checkpoint in this format names, or in a later one that a table has already; and its tables, with
/// manifests if it names those.
pub(crate) fn name_tables(
    objects: &Arc<ObjectStore>,
    format: CheckpointFormat,
    tables: Vec<Arc<Table>>,
) -> Result<(Tables, Vec<Arc<Table>>), EngineError> {
    if format < CheckpointFormat::Manifests && tables.iter().all(|table| table.manifest.is_none()) {
        let of = |cut| tables.iter().filter(move |table| table.cut == cut).flat_map(|table| table.ids()).collect();
        return Ok((Tables::Pieces { base: of(Cut::Content), runs: of(Cut::Size) }, tables));
    }
    let (mut named, mut with_manifests) = (Vec::new(), Vec::new());
    for mut table in tables {
        if table.manifest.is_none() {
            table = Arc::new(table.with_manifest(objects)?);
        }
        let (kind, fold) = (table.kind(), table.fold);
        let named_as = |manifest| TableRef { kind, clip: table.clip.clone(), manifest, fold };
        named.extend(table.manifest.map(named_as));
        with_manifests.push(table);
    }
    Ok((Tables::Manifests(named), with_manifests))
}

/// Total size of the pieces that tables need.
pub(crate) fn total_bytes(tables: &[Arc<Table>]) -> u64 {
    tables.iter().map(|table| table.bytes()).sum()
}

/// Reads a table's pieces in order.
struct Records<'a> {
    table: &'a Table,
    objects: &'a ObjectStore,
    replica: ReplicaId,
    /// The piece after the current one.
    next: usize,
    current: Option<PieceReader>,
    last: Option<Bytes>,
}

impl Records<'_> {
    fn advance(&mut self) -> Result<Option<Record>, EngineError> {
        let corrupt = |reason| EngineError::Corrupt { replica: self.replica, reason };
        let clip = &self.table.clip;
        loop {
            if let Some(record) = self.current.as_mut().and_then(Iterator::next) {
                let record = record.map_err(corrupt)?;
                if self.last.as_ref().is_some_and(|last| *last >= record.0) {
                    return Err(corrupt("pieces do not ascend"));
                }
                self.last = Some(record.0.clone());
                if clip.contains(&record.0) {
                    return Ok(Some(record));
                }
                if record.0 >= clip.start {
                    return Ok(None);
                }
                continue;
            }
            let Some(piece) = self.table.pieces.get(self.next) else { return Ok(None) };
            let bytes = self.objects.get(piece.listed.id).map_err(failure::of_objects)?;
            let reader = PieceReader::new(bytes).map_err(corrupt)?;
            if !self.table.cut.allows(reader.kind(), self.next == 0) {
                return Err(corrupt("an object is a piece of the wrong kind for its position"));
            }
            self.next += 1;
            self.current = Some(reader);
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.advance().transpose();
        if !matches!(record, Some(Ok(_))) {
            // At its end, beyond its clip, or after an error.
            self.current = None;
            self.next = self.table.pieces.len();
        }
        record
    }
}

/// The records of tables as merge sources, newest first.
pub(crate) fn sources<'a>(
    objects: &'a ObjectStore,
    replica: ReplicaId,
    tables: &'a [Arc<Table>],
) -> impl Iterator<Item = Source<'a>> + 'a {
    let tables = tables.iter().rev().zip(iter::repeat((objects, replica)));
    tables.map(|(table, (objects, replica))| table.records(objects, replica))
}

#[cfg(test)]
mod tests {
    use flotilla_types::Position;

    use super::*;
    use crate::{
        merge::Merge,
        sorted::{
            tests::{records, store},
            write_table,
        },
        tests::empty_checkpoint,
    };

    const ID: ReplicaId = ReplicaId(1);

    fn write(objects: &Arc<ObjectStore>, cut: Cut, format: CheckpointFormat, records: &[Record]) -> Arc<Table> {
        let table = write_table(objects, cut, format, 4096, LogIndex(1), records.iter().cloned().map(Ok)).unwrap();
        objects.sync().unwrap();
        Arc::new(table.expect("there are records"))
    }

    fn checkpoint(tables: Tables) -> Checkpoint {
        let position: Position = empty_checkpoint(ID).position;
        Checkpoint { position, system: None, tables }
    }

    fn read(objects: &ObjectStore, tables: &[Arc<Table>]) -> Result<Vec<Record>, EngineError> {
        Merge::new(sources(objects, ID, tables)).collect()
    }

    #[test]
    fn tables_of_both_formats_open_as_they_were_written() {
        let (_dir, objects) = store();
        let all = records(200);
        for format in [CheckpointFormat::Pieces, CheckpointFormat::Manifests] {
            let base = write(&objects, Cut::Content, format, &all);
            let runs = [&all[..150], &all[20..21]].map(|run| write(&objects, Cut::Size, format, run));
            let tables: Vec<_> = [base].into_iter().chain(runs).collect();
            assert!(tables[1].pieces.len() > 3);
            let (named, tables) = name_tables(&objects, format, tables).unwrap();
            let opened = open_tables(&objects, ID, &checkpoint(named.clone())).unwrap();
            assert_eq!(opened.len(), 3);
            for (opened, written) in opened.iter().zip(&tables) {
                let listed = |table: &Table| table.pieces.iter().map(|piece| piece.listed.clone()).collect::<Vec<_>>();
                assert!(opened.is_same(written) && listed(opened) == listed(written));
                let read = |table| read(&objects, std::slice::from_ref(table)).unwrap();
                assert_eq!(read(opened), read(written));
            }
            assert_eq!(named.format(), format);
        }
    }

    /// Every replica must name the same records alike, in every release.
    #[test]
    fn the_manifest_of_a_base_is_this() {
        let (_dir, objects) = store();
        let base = write(&objects, Cut::Content, CheckpointFormat::Manifests, &records(500));
        assert_eq!(
            base.manifest.unwrap().to_string(),
            "9dc546bc2ebd6a9c4ac71672b8d77338a12b485dc6a56e52c755c4416f9cc1aa"
        );
    }

    #[test]
    fn a_clip_restricts_what_is_read() {
        let (_dir, objects) = store();
        let all = records(200);
        let (named, _) = name_tables(
            &objects,
            CheckpointFormat::Manifests,
            vec![write(&objects, Cut::Content, CheckpointFormat::Manifests, &all)],
        )
        .unwrap();
        let Tables::Manifests(named) = named else { panic!("it has a manifest") };
        for (start, end) in [(0, 200), (0, 1), (0, 70), (70, 71), (70, 140), (199, 200), (70, 70)] {
            let key = |number: usize| all.get(number).map_or(Bytes::from("z"), |(key, _)| key.clone());
            let clip = KeyRange { start: key(start), end: key(end) };
            let table = TableRef { clip, ..named[0].clone() };
            let opened = open_tables(&objects, ID, &checkpoint(Tables::Manifests(vec![table]))).unwrap();
            assert_eq!(read(&objects, &opened).unwrap(), all[start..end], "{start} to {end}");
        }
    }

    #[test]
    fn pieces_out_of_order_are_an_error_not_wrong_records() {
        let (_dir, objects) = store();
        let table = write(&objects, Cut::Content, CheckpointFormat::Pieces, &records(500));
        let base: Vec<_> = table.ids().collect();
        let reversed: Vec<_> = base.iter().rev().copied().collect();
        let of = |base: Vec<_>, runs| {
            let tables = open_tables(&objects, ID, &checkpoint(Tables::Pieces { base, runs })).unwrap();
            read(&objects, &tables)
        };
        assert!(of(base.clone(), vec![]).is_ok());
        assert!(matches!(of(reversed, vec![]), Err(EngineError::Corrupt { .. })));
        assert!(matches!(of(vec![], base), Err(EngineError::Corrupt { .. })), "chunks are no run");
    }
}
