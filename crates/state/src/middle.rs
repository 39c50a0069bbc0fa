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
