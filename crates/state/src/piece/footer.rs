//! The footer of a piece of version 2: its index, encoded so that it can be read alone.
//!
//! For each block of records: length of the block u32, its CRC-32C u32, length of its first key u32, the key.
//! Then the length u32 of the piece's last key, the key, and the filter of keys (u64 each). The last 24 bytes
//! of the piece are the tail: number of records u32, of deletions u32, of blocks u32, offset of the footer
//! u32, kind u8, `FLPCEND`. Blocks follow one another from the header to the footer, so they need no offsets.
//!
//! An index has one encoding only. There is no checksum: the object's id is one, and whoever has the footer
//! read alone keeps one. (A checksum at its end would make the checksum of the whole footer a constant.)

use super::{
    PIECE_HEADER_BYTES, PieceKind, RECORD_HEADER_BYTES,
    filter::Filter,
    index::{BLOCK_BYTES, Block, PieceIndex},
};

/// Bytes at the end of a piece from which [`start`] tells where the footer begins.
pub(crate) const TAIL_BYTES: usize = 24;

const MAGIC: [u8; 7] = *b"FLPCEND";
/// Of a block, beside its first key.
const BLOCK_ENTRY_BYTES: usize = 12;
const SHORT: &str = "a footer ends early";

/// Where the footer of a piece begins, from bytes with which the piece ends.
pub(crate) fn start(end: &[u8]) -> Result<u32, &'static str> {
    Ok(split_tail(end)?.1.start)
}

/// The footer with this index.
pub(super) fn encode(index: &PieceIndex) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(index.len_bytes());
    for (number, block) in index.blocks.iter().enumerate() {
        bytes.extend(block.len.to_le_bytes());
        bytes.extend(block.crc.to_le_bytes());
        put_key(&mut bytes, index.key(number));
    }
    put_key(&mut bytes, &index.last_key);
    index.filter.words().for_each(|word| bytes.extend(word.to_le_bytes()));
    let blocks = index.blocks.len() as u32;
    for number in [index.records, index.deletions, blocks, index.records_end()] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(index.kind.code());
    bytes.extend(MAGIC);
    bytes
}

/// The index in a footer of a piece of this kind. Fails unless it may be the footer of some piece, and has the
/// one encoding of its index.
pub(super) fn decode(kind: PieceKind, footer: &[u8]) -> Result<PieceIndex, &'static str> {
    let (mut rest, tail) = split_tail(footer)?;
    if tail.kind != kind.code() {
        return Err("a footer is of a piece of another kind");
    }
    let (keys, blocks) = decode_blocks(&mut rest, &tail)?;
    let last_key = take_key(&mut rest)?;
    let filter = Filter::decode(rest, tail.records).ok_or("the filter of a footer has the wrong size")?;
    let index = PieceIndex {
        kind,
        records: tail.records,
        deletions: tail.deletions,
        keys,
        blocks,
        last_key: last_key.into(),
        filter,
    };
    check(&index, &tail)?;
    Ok(index)
}

/// First keys, end to end, and blocks.
type Blocks = (Box<[u8]>, Box<[Block]>);

fn decode_blocks(rest: &mut &[u8], tail: &Tail) -> Result<Blocks, &'static str> {
    let count = tail.blocks as usize;
    if count > rest.len() / BLOCK_ENTRY_BYTES {
        return Err(SHORT);
    }
    let (mut keys, mut blocks) = (Vec::new(), Vec::with_capacity(count));
    let (mut offset, mut last) = (PIECE_HEADER_BYTES as u32, None);
    for number in 1..=count {
        let (len, crc, key) = (take_u32(rest)?, take_u32(rest)?, take_key(rest)?);
        if last.is_some_and(|last| last >= key) {
            return Err("the blocks of a footer do not ascend");
        }
        // Only the last block may end before it is full.
        let len_min = if number < count { BLOCK_BYTES } else { 0 };
        if (len as usize) < len_min.max(RECORD_HEADER_BYTES + key.len()) {
            return Err("a block of a footer is shorter than its records");
        }
        keys.extend_from_slice(key);
        blocks.push(Block { key_end: keys.len() as u32, offset, len, crc });
        offset = offset.checked_add(len).ok_or("the blocks of a footer exceed a piece")?;
        last = Some(key);
    }
    Ok((keys.into(), blocks.into()))
}

/// Checks that the parts of a footer agree.
fn check(index: &PieceIndex, tail: &Tail) -> Result<(), &'static str> {
    if index.records_end() != tail.start {
        return Err("the blocks of a footer do not end where it begins");
    }
    let records_max = (tail.start as usize - PIECE_HEADER_BYTES) / RECORD_HEADER_BYTES;
    let (records, blocks) = (index.records as usize, index.blocks.len());
    if records < blocks || records > records_max || (blocks == 0 && !index.last_key.is_empty()) {
        return Err("a footer counts more or fewer records than its blocks can hold");
    }
    if blocks > 0 && *index.last_key < *index.key(blocks - 1) {
        return Err("the last key of a footer is less than an earlier one");
    }
    if index.deletions > index.records || (index.kind == PieceKind::Chunk && index.deletions > 0) {
        return Err("a footer counts deletions that its piece cannot hold");
    }
    Ok(())
}

#[derive(Debug)]
struct Tail {
    records: u32,
    deletions: u32,
    blocks: u32,
    start: u32,
    kind: u8,
}

/// Splits the tail off bytes that end with one.
fn split_tail(bytes: &[u8]) -> Result<(&[u8], Tail), &'static str> {
    const ABSENT: &str = "a piece does not end with a footer";
    let (rest, tail) = bytes.split_last_chunk::<TAIL_BYTES>().ok_or(ABSENT)?;
    let ([records, deletions, blocks, start, _, _], []) = tail.as_chunks() else { return Err(ABSENT) };
    if tail[17..] != MAGIC {
        return Err(ABSENT);
    }
    let [records, deletions, blocks, start] =
        [records, deletions, blocks, start].map(|number| u32::from_le_bytes(*number));
    Ok((rest, Tail { records, deletions, blocks, start, kind: tail[16] }))
}

fn put_key(bytes: &mut Vec<u8>, key: &[u8]) {
    bytes.extend((key.len() as u32).to_le_bytes());
    bytes.extend(key);
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, &'static str> {
    let (number, after) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = after;
    Ok(u32::from_le_bytes(*number))
}

fn take_key<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let len = take_u32(rest)?;
    let (key, after) = rest.split_at_checked(len as usize).ok_or(SHORT)?;
    *rest = after;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use bytes::Bytes;

    use super::*;
    use crate::{
        merge::Record,
        piece::{
            PieceVersion,
            tests::{any_records, footer_of, many_records, piece as piece_of},
        },
    };

    fn footer(kind: PieceKind, records: &[Record]) -> Bytes {
        footer_of(&piece_of(PieceVersion::V2, kind, records))
    }

    /// A footer with bytes replaced, counted from its end if `at` is negative.
    fn changed(footer: &Bytes, at: isize, with: &[u8]) -> Vec<u8> {
        let mut bytes = footer.to_vec();
        let at = if at < 0 { bytes.len() - at.unsigned_abs() } else { at as usize };
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    }

    #[test]
    fn a_footer_alone_is_the_index_of_the_whole_piece() {
        for kind in [PieceKind::Chunk, PieceKind::Run] {
            for count in [0, 1, 2, 40, 700] {
                let records = many_records(kind, count);
                let piece = piece_of(PieceVersion::V2, kind, &records);
                let footer = footer_of(&piece);
                let index = PieceIndex::of(&piece).unwrap();
                assert_eq!(PieceIndex::from_footer(kind, &footer).as_ref(), Ok(&index));
                assert_eq!(index.records_end() as usize, piece.len() - footer.len());
                // The index of the same records without a footer is the same.
                let first = if kind == PieceKind::Run { PieceKind::RunStart } else { kind };
                let before = PieceIndex::of(&piece_of(PieceVersion::V1, first, &records)).unwrap();
                assert_eq!(PieceIndex { kind, ..before }, index);
            }
        }
    }

    #[test]
    fn a_reader_finds_the_footer_by_the_end_of_the_piece() {
        let piece = piece_of(PieceVersion::V2, PieceKind::Run, &many_records(PieceKind::Run, 100));
        let end = &piece[piece.len() - TAIL_BYTES..];
        assert_eq!(piece[start(end).unwrap() as usize..], footer_of(&piece));
        assert!(start(&end[1..]).is_err() && start(&piece[..piece.len() - 1]).is_err());
    }

    /// Why the footer with this index is refused after a change.
    fn reason(records: &[Record], change: impl FnOnce(&mut PieceIndex)) -> &'static str {
        let mut index = PieceIndex::from_footer(PieceKind::Run, &footer(PieceKind::Run, records)).unwrap();
        change(&mut index);
        PieceIndex::from_footer(PieceKind::Run, &encode(&index)).unwrap_err()
    }

    /// Moves bytes from one block to the next, so that only their lengths are wrong.
    fn move_bytes(index: &mut PieceIndex, from: usize, len: u32) {
        index.blocks[from].len = index.blocks[from].len.wrapping_sub(len);
        index.blocks[from + 1].len = index.blocks[from + 1].len.wrapping_add(len);
    }

    #[test]
    fn footers_that_no_piece_can_have_are_refused() {
        let many = many_records(PieceKind::Run, 100);
        let ascend = "the blocks of a footer do not ascend";
        assert_eq!(reason(&many, |index| index.keys[3] = b'9'), ascend);
        assert_eq!(reason(&many, |index| index.keys.copy_within(..8, 8)), ascend, "twice the same key of 8 bytes");
        let short = "a block of a footer is shorter than its records";
        assert_eq!(reason(&many, |index| move_bytes(index, 0, index.blocks[0].len - 4_095)), short, "not full");
        let to_15 = |index: &mut PieceIndex| move_bytes(index, 1, 15_u32.wrapping_sub(index.blocks[2].len));
        assert_eq!(reason(&many, to_15), short, "no room for a record with its key");
        let add_4_gib = |index: &mut PieceIndex| (0..2).for_each(|block| index.blocks[block].len += 1 << 31);
        assert_eq!(reason(&many, add_4_gib), "the blocks of a footer exceed a piece");
        let less = "the last key of a footer is less than an earlier one";
        assert_eq!(reason(&many, |index| index.last_key = index.key(1).into()), less);
        let counts = "a footer counts more or fewer records than its blocks can hold";
        assert_eq!(reason(&[], |index| index.last_key = (*b"a").into()), counts);
        let filter = "the filter of a footer has the wrong size";
        assert_eq!(reason(&many, |index| index.records += 52), filter);
        assert_eq!(reason(&many, |index| index.records -= 52), filter);
        let deletions = "a footer counts deletions that its piece cannot hold";
        assert_eq!(reason(&many, |index| index.deletions = index.records + 1), deletions);
        assert_eq!(reason(&many, |index| index.kind = PieceKind::Chunk), "a footer is of a piece of another kind");
    }

    #[test]
    fn footers_that_are_cut_or_count_wrongly_are_refused() {
        let footer = footer(PieceKind::Run, &many_records(PieceKind::Run, 100));
        let index = PieceIndex::from_footer(PieceKind::Run, &footer).unwrap();
        let blocks = index.blocks.len() as u32;
        let second_at = (BLOCK_ENTRY_BYTES + index.key(0).len()) as isize;
        let cases = [
            ("a block that leaves a gap", changed(&footer, 0, &(index.blocks[0].len + 1).to_le_bytes())),
            ("a key longer than the footer", changed(&footer, second_at + 8, &[0xFF; 4])),
            ("more blocks than there are", changed(&footer, -16, &(blocks + 1).to_le_bytes())),
            ("fewer blocks than there are", changed(&footer, -16, &(blocks - 1).to_le_bytes())),
            ("more blocks than any footer", changed(&footer, -16, &[0xFF; 4])),
            ("a start behind the blocks", changed(&footer, -12, &(index.records_end() + 1).to_le_bytes())),
            ("a start before the end of the blocks", changed(&footer, -12, &(index.records_end() - 1).to_le_bytes())),
            ("another magic", changed(&footer, -7, b"f")),
            (
                "a word too many",
                [&footer[..footer.len() - TAIL_BYTES], &[0; 8], &footer[footer.len() - TAIL_BYTES..]].concat(),
            ),
        ];
        for (what, bytes) in cases {
            assert!(PieceIndex::from_footer(PieceKind::Run, &bytes).is_err(), "{what}");
        }
        assert!(PieceIndex::from_footer(PieceKind::Chunk, &footer).is_err());
        flotilla_hostile::at_every_cut(&footer, |cut| {
            assert!(PieceIndex::from_footer(PieceKind::Run, cut).is_err());
        });
    }

    #[test]
    fn counts_that_no_piece_can_have_are_refused() {
        let records: Vec<Record> = vec![("a".into(), Some("1".into())), ("b".into(), Some("2".into()))];
        let footer = footer(PieceKind::Chunk, &records);
        let read =
            |at, number: u32| PieceIndex::from_footer(PieceKind::Chunk, &changed(&footer, at, &number.to_le_bytes()));
        assert!(read(-24, 2).is_ok());
        // 20 bytes of records hold one or two.
        assert!(read(-24, 0).is_err() && read(-24, 3).is_err());
        assert!(read(-20, 1).is_err(), "the base has no deletions");
        let empty = super::tests::footer(PieceKind::Run, &[]);
        assert!(PieceIndex::from_footer(PieceKind::Run, &empty).is_ok());
        assert!(PieceIndex::from_footer(PieceKind::Run, &changed(&empty, -24, &1_u32.to_le_bytes())).is_err());
    }

    #[test]
    fn hostile_footers_are_read_in_proportion_and_have_one_encoding() {
        use flotilla_hostile::{Proportion, attack, mutated};
        use proptest::{prelude::*, sample::select};

        let many = [0, 1, 60, 200].map(|count| footer(PieceKind::Run, &many_records(PieceKind::Run, count)));
        let few = any_records().prop_map(|records| footer(PieceKind::Run, &records));
        attack(2_000, mutated(prop_oneof![few, select(many.to_vec())]), |bytes| {
            let read = || PieceIndex::from_footer(PieceKind::Run, &bytes);
            let Ok(index) = Proportion::DEFAULT.of(bytes.len(), read) else { return };
            assert_eq!(encode(&index), bytes);
            let positions: Vec<Range<u32>> = (0..)
                .map_while(|number| index.block(number))
                .map(|block| block.offset..block.offset + block.len)
                .collect();
            assert!(positions.is_sorted_by(|left, right| left.end == right.start));
            for key in [&b""[..], b"a", b"key00031", b"\xFF"] {
                index.seek(key);
                index.find(key, super::super::key_hash(key));
            }
        });
    }
}
