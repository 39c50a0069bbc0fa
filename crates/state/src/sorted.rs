//! Writes sorted records as the pieces of a table.
//!
//! A run is cut by size. The base is cut by content (content-defined chunking): after a record whose key's
//! hash is below a threshold, with a probability in proportion to the record's size. So the same records give
//! the same chunks, and a change moves cuts only near itself: other chunks keep their ids. A chunk has a
//! minimum and a maximum size.

use std::{borrow::Borrow, sync::Arc};

use flotilla_objects::ObjectStore;
use flotilla_storage::{EngineError, PieceRef, Value};
use flotilla_types::{CheckpointFormat, LogIndex, ObjectId};

use crate::{
    failure,
    piece::{PieceKind, PieceVersion, PieceWriter, record_bytes},
    table::Table,
};

/// Objects that are protected from garbage collection until this is dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    objects: Arc<ObjectStore>,
    ids: Vec<ObjectId>,
}

impl Pinned {
    pub(crate) fn none(objects: &Arc<ObjectStore>) -> Self {
        Self { objects: objects.clone(), ids: Vec::new() }
    }

    /// Pins objects. Fails with the first one that is absent.
    pub(crate) fn pin(objects: &Arc<ObjectStore>, ids: &[ObjectId]) -> Result<Self, EngineError> {
        let mut pinned = Self::none(objects);
        pinned.add(ids)?;
        Ok(pinned)
    }

    /// Pins more objects. Fails with the first one that is absent.
    pub(crate) fn add(&mut self, ids: &[ObjectId]) -> Result<(), EngineError> {
        for id in ids {
            if !self.objects.pin(*id) {
                return Err(failure::absent(&self.objects, *id));
            }
            self.ids.push(*id);
        }
        Ok(())
    }

    /// Pins objects, whether or not they are present.
    pub(crate) fn all(objects: &Arc<ObjectStore>, ids: Vec<ObjectId>) -> Self {
        objects.pin_all(&ids);
        Self { objects: objects.clone(), ids }
    }

    pub(crate) fn objects(&self) -> &Arc<ObjectStore> {
        &self.objects
    }

    /// Stores an object, which needs these, and pins it.
    pub(crate) fn put(&mut self, bytes: &[u8], children: &[ObjectId]) -> Result<ObjectId, EngineError> {
        let id = self.objects.put(bytes, children).map_err(failure::of_objects)?;
        self.ids.push(id);
        Ok(id)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.objects.unpin(*id));
    }
}

/// How records are cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// By size: runs.
    Size,
    /// By content: the base.
    Content,
}

impl Cut {
    /// The kind of a piece in a version: of the first one, or of a later one.
    pub(crate) fn kind(self, version: PieceVersion, is_first: bool) -> PieceKind {
        match (self, version) {
            (Self::Content, _) => PieceKind::Chunk,
            (Self::Size, PieceVersion::V2 | PieceVersion::V3) => PieceKind::Run,
            (Self::Size, PieceVersion::V1) if is_first => PieceKind::RunStart,
            (Self::Size, PieceVersion::V1) => PieceKind::RunRest,
        }
    }

    /// Whether the first piece, or a later one, may be of a kind.
    pub(crate) fn allows(self, kind: PieceKind, is_first: bool) -> bool {
        [PieceVersion::V1, PieceVersion::V2].iter().any(|version| self.kind(*version, is_first) == kind)
    }
}

/// Writes ascending records, of entries up to `last`, as pieces of about `piece_bytes`; `None` if there are no
/// records.
pub(crate) fn write_table<K: AsRef<[u8]>, V: Borrow<Value>>(
    objects: &Arc<ObjectStore>,
    cut: Cut,
    format: CheckpointFormat,
    piece_bytes: usize,
    last: LogIndex,
    records: impl Iterator<Item = Result<(K, Option<V>), EngineError>>,
) -> Result<Option<Table>, EngineError> {
    let version = match format {
        CheckpointFormat::Pieces => PieceVersion::V1,
        CheckpointFormat::Manifests => PieceVersion::V2,
    };
    let bytes_max = if cut == Cut::Content { piece_bytes.saturating_mul(4) } else { piece_bytes };
    let (mut pinned, mut pieces) = (Pinned::none(objects), Vec::new());
    let mut end_piece = |writer: &mut PieceWriter, next: PieceWriter| {
        let kind = cut.kind(version, pieces.is_empty());
        let piece = std::mem::replace(writer, next).finish(kind);
        let (footer_bytes, footer_crc) = piece.footer.map_or((0, 0), |footer| (footer.len, footer.crc));
        pieces.push(PieceRef {
            id: pinned.put(&piece.bytes, &piece.refs)?,
            first_key: piece.first_key,
            // Objects are at most 4 GiB − 1 long.
            bytes: piece.bytes.len() as u32,
            records: piece.records,
            footer_bytes,
            footer_crc,
        });
        Ok::<_, EngineError>(())
    };
    let new_writer = || PieceWriter::new(version, piece_bytes);
    let mut writer = new_writer();
    for record in records {
        let (key, value) = record?;
        let (key, value) = (key.as_ref(), value.as_ref().map(Borrow::borrow));
        let bytes = record_bytes(key, value);
        if !writer.is_empty() && writer.len_bytes() + bytes > bytes_max {
            end_piece(&mut writer, new_writer())?;
        }
        writer.push(key, value);
        let may_end = cut == Cut::Content && writer.len_bytes() >= piece_bytes / 4;
        if may_end && writer.last_hash().is_some_and(|hash| ends_chunk(bytes, hash, piece_bytes)) {
            end_piece(&mut writer, new_writer())?;
        }
    }
    if !writer.is_empty() {
        end_piece(&mut writer, new_writer())?;
    }
    if pieces.is_empty() { Ok(None) } else { Table::written(pinned, cut, format, last, pieces).map(Some) }
}

/// Whether a chunk that has reached its minimum size ends after a record of this size, whose key has this hash.
fn ends_chunk(record_bytes: usize, hash: u64, piece_bytes: usize) -> bool {
    // The minimum size is a quarter of the average; the cut follows after the other three quarters on
    // average.
    let bytes_mean = (piece_bytes - piece_bytes / 4).max(1) as u128;
    u128::from(hash) * bytes_mean < (record_bytes as u128) << 64
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::*;
    use crate::merge::Record;

    pub(crate) fn store() -> (tempfile::TempDir, Arc<ObjectStore>) {
        let dir = tempfile::tempdir().unwrap();
        let objects = ObjectStore::open(dir.path(), flotilla_objects::Options::default()).unwrap();
        (dir, Arc::new(objects))
    }

    pub(crate) fn records(n: u32) -> Vec<Record> {
        (0..n).map(|i| (Bytes::from(format!("key{i:06}")), Some(vec![i as u8; 100].into()))).collect()
    }

    fn write_table_of(objects: &Arc<ObjectStore>, cut: Cut, format: CheckpointFormat, records: &[Record]) -> Table {
        let written = write_table(objects, cut, format, 4096, LogIndex(1), records.iter().cloned().map(Ok)).unwrap();
        objects.sync().unwrap();
        written.expect("there are records")
    }

    fn write(objects: &Arc<ObjectStore>, cut: Cut, records: &[Record]) -> Vec<ObjectId> {
        write_table_of(objects, cut, CheckpointFormat::Pieces, records).ids().collect()
    }

    #[test]
    fn a_change_keeps_the_ids_of_other_chunks() {
        let (_dir, objects) = store();
        let mut all = records(5000);
        let before: BTreeSet<_> = write(&objects, Cut::Content, &all).into_iter().collect();
        assert!((100..250).contains(&before.len()), "about 580 KB in chunks of 4 KiB, got {}", before.len());
        all[2500].1 = Some("changed".into());
        all.remove(100);
        all.insert(4000, ("key003999+".into(), Some("inserted".into())));
        let after: BTreeSet<_> = write(&objects, Cut::Content, &all).into_iter().collect();
        assert!(after.difference(&before).count() <= 12, "{} new chunks", after.difference(&before).count());
        for id in &after {
            assert!(objects.len_bytes(*id).unwrap() <= 4 * 4096);
        }
    }

    /// Every replica must cut the same records alike, in every release.
    #[test]
    fn the_cuts_of_the_base_are_these() {
        let (_dir, objects) = store();
        let ids = write(&objects, Cut::Content, &records(5000));
        let all = ObjectId::of(ids.iter().map(ObjectId::as_bytes).copied().collect::<Vec<_>>().as_flattened());
        assert_eq!(ids.len(), 140);
        assert_eq!(all.to_string(), "4f07c427484f419d51676946d8d8127c29903401e8eb3c386a150fc98aa1dc47");
    }

    #[test]
    fn the_cuts_are_the_same_in_both_formats() {
        let (_dir, objects) = store();
        let all = records(500);
        for cut in [Cut::Size, Cut::Content] {
            let cuts = |format| {
                let table = write_table_of(&objects, cut, format, &all);
                table.pieces.iter().map(|piece| piece.listed.first_key.clone()).collect::<Vec<_>>()
            };
            assert_eq!(cuts(CheckpointFormat::Pieces), cuts(CheckpointFormat::Manifests));
        }
    }

    #[test]
    fn a_record_larger_than_a_piece_gets_its_own_piece() {
        let (_dir, objects) = store();
        let mut all = records(3);
        all[1].1 = Some(vec![7; 100_000].into());
        assert_eq!(write(&objects, Cut::Size, &all).len(), 3);
    }
}
