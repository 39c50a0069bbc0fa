//! Writes sorted records as pieces, and reads the pieces of a run or of the base as one source.
//!
//! A run is cut by size. The base is cut by content (content-defined chunking): after a record whose key's
//! hash is below a threshold, with a probability in proportion to the record's size. So the same records give
//! the same chunks, and a change moves cuts only near itself: other chunks keep their ids. A chunk has a
//! minimum and a maximum size.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{ObjectId, ReplicaId};

use crate::{
    failure,
    merge::{Record, Source},
    piece::{PIECE_HEADER_BYTES, PieceKind, PieceReader, PieceVersion, PieceWriter, record_bytes},
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

    /// Stores an object and pins it.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<ObjectId, EngineError> {
        let id = self.objects.put(bytes, &[]).map_err(failure::of_objects)?;
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
    /// The kind of the first piece, or of a later one.
    pub(crate) fn kind(self, is_first: bool) -> PieceKind {
        match self {
            Self::Content => PieceKind::Chunk,
            Self::Size if is_first => PieceKind::RunStart,
            Self::Size => PieceKind::RunRest,
        }
    }
}

/// Pieces that were written here, in order, with their first keys: they need not be read back.
#[derive(Debug, Default)]
pub(crate) struct Written(Vec<(ObjectId, Bytes)>);

impl Written {
    pub(crate) fn ids(&self) -> Vec<ObjectId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    pub(crate) fn first_keys(self) -> HashMap<ObjectId, Bytes> {
        self.0.into_iter().collect()
    }
}

/// Writes ascending records as pieces of about `piece_bytes`.
pub(crate) fn write_pieces(
    pinned: &mut Pinned,
    cut: Cut,
    piece_bytes: usize,
    records: impl Iterator<Item = Result<Record, EngineError>>,
) -> Result<Written, EngineError> {
    let bytes_max = if cut == Cut::Content { piece_bytes.saturating_mul(4) } else { piece_bytes };
    let mut written = Written::default();
    let new_writer = || PieceWriter::new(PieceVersion::V1);
    let mut writer = new_writer();
    for record in records {
        let record = record?;
        if !writer.is_empty() && writer.len_bytes() + record_bytes(&record) > bytes_max {
            put_piece(pinned, cut, std::mem::replace(&mut writer, new_writer()), &mut written)?;
        }
        writer.push(&record);
        let may_end = cut == Cut::Content && writer.len_bytes() >= piece_bytes / 4;
        if may_end && writer.last_hash().is_some_and(|hash| ends_chunk(&record, hash, piece_bytes)) {
            put_piece(pinned, cut, std::mem::replace(&mut writer, new_writer()), &mut written)?;
        }
    }
    if !writer.is_empty() {
        put_piece(pinned, cut, writer, &mut written)?;
    }
    Ok(written)
}

fn put_piece(pinned: &mut Pinned, cut: Cut, writer: PieceWriter, written: &mut Written) -> Result<(), EngineError> {
    let piece = writer.finish(cut.kind(written.0.is_empty()));
    written.0.push((pinned.put(&piece.bytes)?, piece.first_key));
    Ok(())
}

/// Whether a chunk that has reached its minimum size ends after this record, whose key has this hash.
fn ends_chunk(record: &Record, hash: u64, piece_bytes: usize) -> bool {
    // The minimum size is a quarter of the average; the cut follows after the other three quarters on
    // average.
    let bytes_mean = (piece_bytes - piece_bytes / 4).max(1) as u128;
    u128::from(hash) * bytes_mean < (record_bytes(record) as u128) << 64
}

/// Ids of a checkpoint's runs, grouped by run, oldest first. The grouping uses unverified headers; reading a
/// group with [`pieces`] verifies them.
pub(crate) fn run_groups(objects: &ObjectStore, runs: &[ObjectId]) -> Result<Vec<Vec<ObjectId>>, EngineError> {
    let mut groups: Vec<Vec<ObjectId>> = Vec::new();
    for id in runs {
        let head = objects.slice(*id, 0, PIECE_HEADER_BYTES as u32).map_err(failure::of_objects)?;
        match groups.last_mut() {
            Some(group) if PieceKind::of(&head) == Some(PieceKind::RunRest) => group.push(*id),
            _ => groups.push(vec![*id]),
        }
    }
    Ok(groups)
}

/// Total size of the objects that are present.
pub(crate) fn total_bytes(objects: &ObjectStore, ids: impl Iterator<Item = ObjectId>) -> u64 {
    ids.filter_map(|id| objects.len_bytes(id)).sum()
}

/// The records of a run or of the base, reading one piece at a time.
pub(crate) fn pieces<'a>(objects: &'a ObjectStore, replica: ReplicaId, cut: Cut, ids: Vec<ObjectId>) -> Source<'a> {
    Box::new(Pieces { objects, replica, cut, ids: ids.into_iter(), current: None, last: None, started: false })
}

struct Pieces<'a> {
    objects: &'a ObjectStore,
    replica: ReplicaId,
    cut: Cut,
    ids: std::vec::IntoIter<ObjectId>,
    current: Option<PieceReader>,
    last: Option<Bytes>,
    started: bool,
}

impl Pieces<'_> {
    fn advance(&mut self) -> Result<Option<Record>, EngineError> {
        let corrupt = |reason| EngineError::Corrupt { replica: self.replica, reason };
        loop {
            if let Some(record) = self.current.as_mut().and_then(Iterator::next) {
                let record = record.map_err(corrupt)?;
                if self.last.as_ref().is_some_and(|last| *last >= record.0) {
                    return Err(corrupt("pieces do not ascend"));
                }
                self.last = Some(record.0.clone());
                return Ok(Some(record));
            }
            let Some(id) = self.ids.next() else { return Ok(None) };
            let reader = PieceReader::new(self.objects.get(id).map_err(failure::of_objects)?).map_err(corrupt)?;
            if reader.kind() != self.cut.kind(!self.started) {
                return Err(corrupt("an object is a piece of the wrong kind for its position"));
            }
            self.started = true;
            self.current = Some(reader);
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Record, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.advance().transpose();
        if matches!(record, Some(Err(_))) {
            self.current = None;
            self.ids = Vec::new().into_iter();
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn store() -> (tempfile::TempDir, Arc<ObjectStore>) {
        let dir = tempfile::tempdir().unwrap();
        let objects = ObjectStore::open(dir.path(), flotilla_objects::Options::default()).unwrap();
        (dir, Arc::new(objects))
    }

    fn records(n: u32) -> Vec<Record> {
        (0..n).map(|i| (Bytes::from(format!("key{i:06}")), Some(Bytes::from(vec![i as u8; 100])))).collect()
    }

    fn write(objects: &Arc<ObjectStore>, cut: Cut, records: &[Record]) -> Vec<ObjectId> {
        let mut pinned = Pinned::none(objects);
        write_pieces(&mut pinned, cut, 4096, records.iter().cloned().map(Ok)).unwrap().ids()
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
    fn a_run_of_many_pieces_is_one_group_and_round_trips() {
        let (_dir, objects) = store();
        let all = records(200);
        let mut ids = write(&objects, Cut::Size, &all);
        assert!(ids.len() > 5);
        ids.extend(write(&objects, Cut::Size, &all[..1]));
        let groups = run_groups(&objects, &ids).unwrap();
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [ids.len() - 1, 1]);
        let read: Vec<_> = pieces(&objects, ReplicaId(1), Cut::Size, groups[0].clone()).map(Result::unwrap).collect();
        assert_eq!(read, all);
    }

    #[test]
    fn a_record_larger_than_a_piece_gets_its_own_piece() {
        let (_dir, objects) = store();
        let mut all = records(3);
        all[1].1 = Some(vec![7; 100_000].into());
        assert_eq!(write(&objects, Cut::Size, &all).len(), 3);
    }

    #[test]
    fn pieces_out_of_order_are_an_error_not_wrong_records() {
        let (_dir, objects) = store();
        let mut ids = write(&objects, Cut::Content, &records(500));
        ids.reverse();
        assert!(pieces(&objects, ReplicaId(1), Cut::Content, ids.clone()).any(|record| record.is_err()));
        let wrong_kind = pieces(&objects, ReplicaId(1), Cut::Size, ids).next();
        assert!(matches!(wrong_kind, Some(Err(EngineError::Corrupt { .. }))));
    }
}
