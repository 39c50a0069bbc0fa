//! Finds the middle of a replica's records by where the pieces of its tables begin.
//!
//! Reads nothing. Records of the memtables do not count: they are few beside so many pieces.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_types::KeyRange;

use crate::table::Table;

/// With fewer pieces the middle would be too far off.
const PIECES_MIN: usize = 16;

/// The key inside a range before which about half of the bytes of the tables are; `None` if too few pieces begin in it.
pub(crate) fn of_pieces(tables: &[Arc<Table>], range: &KeyRange) -> Option<Bytes> {
    let within = |table: &Arc<Table>| {
        let pieces = &table.pieces[table.pieces_within(&table.clip.intersection(range))];
        pieces.iter().map(|piece| (piece.listed.first_key.clone(), u64::from(piece.listed.bytes))).collect::<Vec<_>>()
    };
    let mut pieces: Vec<_> = tables.iter().flat_map(within).collect();
    pieces.sort_unstable();
    let half = pieces.iter().map(|(_, bytes)| bytes).sum::<u64>() / 2;
    let mut before = 0;
    let inside = pieces.into_iter().filter_map(|(key, bytes)| {
        let is_inside = key > range.start;
        let piece = (key, before);
        before += bytes;
        is_inside.then_some(piece)
    });
    let inside: Vec<_> = inside.collect();
    let behind = inside.partition_point(|(_, before)| *before < half);
    let at = behind.min(inside.len().checked_sub(1)?);
    (inside.len() >= PIECES_MIN).then(|| inside[at].0.clone())
}

#[cfg(test)]
mod tests {
    use flotilla_types::{CheckpointFormat, LogIndex};

    use super::*;
    use crate::sorted::{
        Cut,
        tests::{records, store},
        write_table,
    };

    fn range(start: &str, end: &str) -> KeyRange {
        let bytes = |key: &str| Bytes::copy_from_slice(key.as_bytes());
        KeyRange { start: bytes(start), end: bytes(end) }
    }

    /// The number of a key of [`records`].
    fn number(key: &Bytes) -> u32 {
        std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix("key")?.parse().ok()).expect("a key")
    }

    #[test]
    fn half_of_the_pieces_within_the_clips_and_the_range_are_before_it() {
        let (_dir, objects) = store();
        let write = |records: &[crate::merge::Record], cut| {
            let records = records.iter().cloned().map(Ok);
            let table = write_table(&objects, cut, CheckpointFormat::Manifests, 4096, LogIndex(1), records);
            table.unwrap().expect("there are records")
        };
        let all = records(5_000);
        let base = Arc::new(write(&all, Cut::Content));
        let middle = |tables: &[Arc<Table>], range: &KeyRange| of_pieces(tables, range).map(|key| number(&key));
        let tables = [base.clone()];
        let found = middle(&tables, &KeyRange::all()).expect("many pieces");
        assert!(found.abs_diff(2_500) < 150, "{found}");
        let found = middle(&tables, &range("key004000", "key005000")).expect("many pieces");
        assert!(found.abs_diff(4_500) < 150, "{found}");
        let clipped = [Arc::new(base.within(range("", "key001000")))];
        let found = middle(&clipped, &KeyRange::all()).expect("many pieces");
        assert!(found.abs_diff(500) < 100, "{found}");
        // As much again in a run at the upper end.
        let run = Arc::new(write(&all[4_000..], Cut::Size));
        let found = middle(&[base.clone(), run.clone(), run.clone(), run.clone(), run], &KeyRange::all());
        assert!((4_000..4_400).contains(&found.expect("many pieces")), "{found:?}");
        assert_eq!(middle(&tables, &range("key000000", "key000300")), None, "too few");
        assert_eq!(middle(&[], &KeyRange::all()), None);
    }
}
