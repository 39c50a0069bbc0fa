//! Clips: replicas whose shards a split has separated name the same tables, each with the part that is its own.
//!
//! Invariant: no record is copied. What a clip hides stays on the disk until every replica that names the table has
//! folded it; [`hidden_bytes`] says when that is worth its while.

use std::sync::Arc;

use flotilla_objects::ObjectStore;
use flotilla_storage::KeyRanges;

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

/// Size of the pieces that tables name and do not need.
pub(crate) fn hidden_bytes(tables: &[Arc<Table>]) -> u64 {
    // The parts of a table follow each other. A piece that two of them need counts for both.
    let tables = tables.chunk_by(|left, right| left.shares_manifest(right));
    let hidden = |parts: &[Arc<Table>]| {
        let needed = parts.iter().map(|part| part.bytes()).sum();
        parts.first().map_or(0, |part| part.bytes_unclipped()).saturating_sub(needed)
    };
    tables.map(hidden).sum()
}
