//! Clips: replicas whose shards a split has separated name the same tables, each with the part that is its own.
//!
//! Invariant: no record is copied. What a clip hides stays on the disk until every replica that names the table has
//! folded it; [`hidden_bytes`] says when that is worth its while.

use std::sync::Arc;

use flotilla_objects::ObjectStore;
use flotilla_storage::KeyRanges;
use flotilla_types::KeyRange;

use crate::{
    piece::{FooterCheck, PieceIndex, PieceVersion},
    table::Table,
};

/// The parts of tables that lie within these keys, in the order of the tables. Leaves out those that surely hold
/// nothing. The tables have manifests.
pub(crate) fn clipped(objects: &ObjectStore, tables: &[Arc<Table>], keys: &KeyRanges) -> Vec<Arc<Table>> {
    let parts = |table: &Arc<Table>| {
        let parts: Vec<_> = keys.within(&table.clip).map(|clip| (clip, table.clone())).collect();
        parts.into_iter().map(|(clip, table)| if clip == table.clip { table } else { Arc::new(table.within(clip)) })
    };
    tables.iter().flat_map(parts).filter(|part| !is_surely_empty(objects, part)).collect()
}

/// Reads at most the footer of a piece. A part that cannot be told to be empty is kept, which costs no more than a
/// look at each read.
fn is_surely_empty(objects: &ObjectStore, part: &Table) -> bool {
    let mut within = part.pieces_within(&part.clip);
    match (within.next(), within.next()) {
        (None, _) => true,
        (Some(only), None) if part.pieces[only].listed.first_key < part.clip.start => {
            last_key(objects, part, only).is_some_and(|last| last[..] < part.clip.start[..])
        }
        _ => false,
    }
}

/// The last key of a piece, if its footer tells.
fn last_key(objects: &ObjectStore, table: &Table, number: usize) -> Option<Vec<u8>> {
    let piece = &table.pieces[number].listed;
    if piece.footer_bytes == 0 {
        return None;
    }
    let footer = objects.slice(piece.id, piece.bytes - piece.footer_bytes, piece.footer_bytes).ok()?;
    let listed = FooterCheck { len: piece.footer_bytes, crc: piece.footer_crc };
    let footer = listed.matches(&footer).then_some(footer)?;
    let index = PieceIndex::from_footer(table.cut.kind(PieceVersion::V2, true), &footer).ok()?;
    Some(index.last_key().to_vec())
}

/// The parts of each table: they follow each other. Two runs of the same records have one manifest, too, and are no
/// parts.
fn whole(tables: &[Arc<Table>]) -> impl Iterator<Item = &[Arc<Table>]> {
    let is_next = |left: &KeyRange, right: &KeyRange| !left.end.is_empty() && left.end <= right.start;
    tables.chunk_by(move |left, right| left.shares_manifest(right) && is_next(&left.clip, &right.clip))
}

/// How many tables these are parts of.
pub(crate) fn count_whole(tables: &[Arc<Table>]) -> usize {
    whole(tables).count()
}

/// Size of the pieces that tables name and do not need.
pub(crate) fn hidden_bytes(tables: &[Arc<Table>]) -> u64 {
    // A piece that two parts need counts for both.
    let hidden = |parts: &[Arc<Table>]| {
        let needed = parts.iter().map(|part| part.bytes()).sum();
        parts.first().map_or(0, |part| part.bytes_unclipped()).saturating_sub(needed)
    };
    whole(tables).map(hidden).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_storage::Value;
    use flotilla_types::{CheckpointFormat, LogIndex, ReplicaId};

    use super::*;
    use crate::{
        merge::Merge,
        sorted::{
            Cut,
            tests::{records, store},
            write_table,
        },
        table::sources,
    };

    type Records = Vec<(Bytes, Option<Value>)>;

    fn table(objects: &Arc<ObjectStore>, format: CheckpointFormat, records: &Records) -> Arc<Table> {
        let table = write_table(objects, Cut::Size, format, 4096, LogIndex(1), records.iter().cloned().map(Ok));
        objects.sync().unwrap();
        Arc::new(table.unwrap().expect("there are records"))
    }

    fn read(objects: &ObjectStore, parts: &[Arc<Table>]) -> Records {
        Merge::new(sources(objects, ReplicaId(1), parts)).map(Result::unwrap).collect()
    }

    fn keys(at: &str) -> (KeyRanges, KeyRanges) {
        KeyRanges::all().split_at(&Bytes::copy_from_slice(at.as_bytes()))
    }

    #[test]
    fn parts_without_records_are_left_out() {
        let (_dir, objects) = store();
        let of_users = records(200);
        let mut with_internal = of_users.clone();
        with_internal.push((KeyRange::internal().start, Some("1".into())));
        // (where, parts of the one replica, parts of the other)
        for (at, left, right) in [
            ("a", 0, 1),
            ("key000000", 0, 1),
            ("key000001", 1, 1),
            ("key000100", 1, 1),
            ("key000199", 1, 1),
            ("key0001990", 1, 0),
            ("z", 1, 0),
        ] {
            for (records, internal) in [(&of_users, 0), (&with_internal, 1)] {
                let whole = [table(&objects, CheckpointFormat::Manifests, records)];
                let (left_keys, right_keys) = keys(at);
                let parts = [&left_keys, &right_keys].map(|keys| clipped(&objects, &whole, keys));
                assert_eq!(parts.each_ref().map(Vec::len), [left + internal, right.max(internal)], "{at}");
                assert!(parts.iter().all(|parts| count_whole(parts) <= 1));
                for (parts, keys) in parts.iter().zip([&left_keys, &right_keys]) {
                    let own: Records = records.iter().filter(|(key, _)| keys.contains(key)).cloned().collect();
                    assert_eq!(read(&objects, parts), own, "{at}");
                    assert!(
                        clipped(&objects, parts, keys).iter().zip(parts).all(|(again, part)| Arc::ptr_eq(again, part))
                    );
                }
            }
        }
    }

    /// Pieces of format 1 do not tell their last keys.
    #[test]
    fn a_part_that_cannot_be_told_to_be_empty_is_kept() {
        let (_dir, objects) = store();
        let whole = [table(&objects, CheckpointFormat::Pieces, &records(20))];
        let (left, right) = keys("z");
        let parts = [left, right].map(|keys| clipped(&objects, &whole, &keys));
        assert_eq!(parts.each_ref().map(Vec::len), [2, 1]);
        assert!(read(&objects, &parts[1]).is_empty());
    }

    #[test]
    fn what_clips_hide_is_what_no_part_shows() {
        let (_dir, objects) = store();
        let mut all = records(200);
        all.extend(
            (0..100).map(|n| ([&KeyRange::internal().start[..], &[n]].concat().into(), Some(vec![n; 100].into()))),
        );
        let whole = [table(&objects, CheckpointFormat::Manifests, &all)];
        assert_eq!(hidden_bytes(&whole), 0);
        let total = whole[0].bytes();
        let (left, right) = keys("key000050");
        let [left, right] = [left, right].map(|keys| clipped(&objects, &whole, &keys));
        let about = |bytes: u64, share: u64| (total * share / 300).abs_diff(bytes) <= 3 * 4096;
        assert_eq!(left.len(), 2);
        assert!(about(hidden_bytes(&left), 150) && about(hidden_bytes(&right), 50), "{total} bytes");
        assert!(about(left.iter().map(|part| part.bytes()).sum(), 150));
    }
}
