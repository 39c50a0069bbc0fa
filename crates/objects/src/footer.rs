//! The table of contents at the end of a closed segment: [`open`](crate::ObjectStore::open) reads it instead
//! of every record.
//!
//! It lists the segment's objects (id 32 bytes, offset of the payload u64, length u32, in format 3 the length of
//! the plain bytes u32, number of children u32, ids of the children), by offset. A trailer of 48 bytes follows:
//! `FLOTEND\0`, the segment's nonce, offset of the table u64, number of objects u32, check of the table 16 bytes,
//! check u32.
//!
//! It is optional. It is written after the sync of the records that it lists, so that a table that is whole
//! speaks of durable objects. Whatever is wrong with it, the segment is scanned instead; what a table claims
//! is proved when an object is read.

use std::{fs::File, io, os::unix::fs::FileExt};

use flotilla_types::ObjectId;

use crate::{
    CHILDREN_MAX,
    segment::{Fields, Format, FoundRecord, ID_BYTES, Lengths, check, ids},
};

const TRAILER_MAGIC: [u8; 8] = *b"FLOTEND\0";
const TRAILER_BYTES: usize = 48;
/// Bytes at the end of a segment that are read at once: most tables are shorter.
const TAIL_BYTES: u64 = 64 * 1024;

/// Bytes of an entry before the children.
const fn entry_bytes(format: Format) -> usize {
    if format.version() > 2 { 52 } else { 48 }
}

/// A table of contents with its trailer, for a segment whose records end at `table_at`. Segments of format 1
/// have none.
pub(crate) fn encode(format: Format, records: &[FoundRecord], table_at: u64) -> Vec<u8> {
    let Some(nonce) = format.nonce() else { return Vec::new() };
    let mut bytes = Vec::new();
    for FoundRecord { id, offset, lengths, children } in records {
        bytes.extend(id.as_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(lengths.stored.to_le_bytes());
        if format.version() > 2 {
            bytes.extend(lengths.plain.to_le_bytes());
        }
        bytes.extend((children.len() as u32).to_le_bytes());
        children.iter().for_each(|child| bytes.extend(child.as_bytes()));
    }
    let table_check = check::<16>(&bytes);
    let table_bytes = bytes.len();
    bytes.extend(TRAILER_MAGIC);
    bytes.extend(nonce);
    bytes.extend(table_at.to_le_bytes());
    bytes.extend((records.len() as u32).to_le_bytes());
    bytes.extend(table_check);
    let trailer_check = check::<4>(&bytes[table_bytes..]);
    bytes.extend(trailer_check);
    bytes
}

/// Reads the table of contents of a segment file of `file_bytes` bytes: `None` if it has none that is valid.
pub(crate) fn read(file: &File, file_bytes: u64, format: Format) -> io::Result<Option<Vec<FoundRecord>>> {
    let Some(nonce) = format.nonce() else { return Ok(None) };
    let mut tail = vec![0; file_bytes.min(TAIL_BYTES) as usize];
    let tail_at = file_bytes - tail.len() as u64;
    file.read_exact_at(&mut tail, tail_at)?;
    let Some((rest, trailer)) = tail.split_last_chunk::<TRAILER_BYTES>() else { return Ok(None) };
    let Some((table_at, records, table_check)) = decode_trailer(trailer, nonce) else { return Ok(None) };
    let table_end = file_bytes - TRAILER_BYTES as u64;
    if table_at > table_end {
        return Ok(None);
    }
    if table_at >= tail_at {
        return Ok(decode_table(format, &rest[(table_at - tail_at) as usize..], table_at, records, table_check));
    }
    let mut table = vec![0; (table_end - table_at) as usize];
    file.read_exact_at(&mut table, table_at)?;
    Ok(decode_table(format, &table, table_at, records, table_check))
}

fn decode_trailer(bytes: &[u8; TRAILER_BYTES], nonce: [u8; 8]) -> Option<(u64, u32, [u8; 16])> {
    let trailer = Fields(bytes);
    let is_ours = trailer.array(0) == Some(TRAILER_MAGIC) && trailer.array(8) == Some(nonce) && trailer.is_checked(44);
    is_ours.then_some((trailer.number_u64(16)?, trailer.number(24)?, trailer.array(28)?))
}

fn decode_table(
    format: Format,
    table: &[u8],
    table_at: u64,
    count: u32,
    table_check: [u8; 16],
) -> Option<Vec<FoundRecord>> {
    let entry_bytes = entry_bytes(format);
    if check(table) != table_check || count as usize > table.len() / entry_bytes {
        return None;
    }
    let mut records = Vec::with_capacity(count as usize);
    let mut rest = table;
    let mut end = format.segment_header_bytes();
    for _ in 0..count {
        let (entry, after) = rest.split_at_checked(entry_bytes)?;
        let fields = Fields(entry);
        let children = fields.number(entry_bytes - 4)? as usize;
        let (list, after) = after.split_at_checked(children.checked_mul(ID_BYTES as usize)?)?;
        let (id, offset, stored) = (ObjectId(fields.array(0)?), fields.number_u64(32)?, fields.number(40)?);
        let plain = if format.version() > 2 { fields.number(44)? } else { stored };
        let record = FoundRecord { id, offset, lengths: Lengths::claimed(stored, plain)?, children: ids(list) };
        // Records follow one another, each with its header and children before its payload.
        let starts_at = offset.checked_sub(format.record_header_bytes() + list.len() as u64)?;
        if children > CHILDREN_MAX || starts_at < end || record.end() > table_at {
            return None;
        }
        end = record.end();
        records.push(record);
        rest = after;
    }
    rest.is_empty().then_some(records)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const V2: Format = Format::V2([7; 8]);
    const V3: Format = Format::V3([7; 8]);

    fn records() -> Vec<FoundRecord> {
        let id = |n: u8| ObjectId::of(&[n]);
        vec![
            FoundRecord { id: id(1), offset: 100, lengths: Lengths::uncompressed(10), children: Vec::new() },
            FoundRecord {
                id: id(2),
                offset: 110 + 68 + 64,
                lengths: Lengths::uncompressed(4),
                children: vec![id(1), id(3)],
            },
        ]
    }

    /// A segment with this table after `table_at` bytes.
    fn read_back(
        format: Format,
        records: &[FoundRecord],
        table_at: u64,
        change: impl Fn(&mut Vec<u8>),
    ) -> Option<Vec<FoundRecord>> {
        let mut bytes = vec![0; 246];
        bytes.extend(encode(format, records, table_at));
        change(&mut bytes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        read(&file, bytes.len() as u64, format).unwrap()
    }

    fn is_read_back_unless_a_bit_is_flipped(format: Format, records: &[FoundRecord]) {
        assert_eq!(read_back(format, records, 246, |_| {}).as_deref(), Some(records));
        let bytes = 246 + encode(format, records, 246).len();
        for at in 246..bytes {
            assert_eq!(read_back(format, records, 246, |bytes| bytes[at] ^= 1), None, "byte {at}");
            assert_eq!(read_back(format, records, 246, |bytes| bytes.truncate(at)), None, "cut at {at}");
        }
        assert_eq!(read_back(format, records, 246, |bytes| bytes.push(0)), None);
    }

    #[test]
    fn a_table_is_read_back_and_any_flipped_bit_is_noticed() {
        is_read_back_unless_a_bit_is_flipped(V2, &records());
        let mut compressed = records();
        compressed[0].lengths.plain = 60_000;
        is_read_back_unless_a_bit_is_flipped(V3, &compressed);
    }

    /// What other binaries have written and will read.
    #[test]
    fn tables_are_as_described() {
        let (record, nonce) = (records().remove(1), [7; 8]);
        for (format, plain) in [(V2, &[][..]), (V3, &[4, 0, 0, 0])] {
            let ids: Vec<u8> = record.children.iter().flat_map(|id| id.0).collect();
            let (offset, len) = (record.offset.to_le_bytes(), [4, 0, 0, 0]);
            let table = [record.id.as_bytes(), &offset[..], &len, plain, &[2, 0, 0, 0], &ids].concat();
            let trailer =
                [&b"FLOTEND\0"[..], &nonce, &246_u64.to_le_bytes(), &[1, 0, 0, 0], &check::<16>(&table)].concat();
            let expected = [&table[..], &trailer, &check::<4>(&trailer)].concat();
            assert_eq!(encode(format, std::slice::from_ref(&record), 246), expected);
        }
    }

    #[test]
    fn lengths_that_no_compressed_object_has_are_refused() {
        let with = |plain: u32| {
            let mut records = records();
            records[1].lengths.plain = plain;
            read_back(V3, &records, 246, |_| {}).is_some()
        };
        assert_eq!([4, 5, 65_536, 3, 65_537, u32::MAX].map(with), [true, true, true, false, false, false]);
    }

    #[test]
    fn a_table_longer_than_the_first_read_is_read_back() {
        let long: Vec<_> = (0..3_000)
            .map(|n: u32| FoundRecord {
                id: ObjectId::of(&n.to_le_bytes()),
                offset: 32 + 64,
                lengths: Lengths::uncompressed(0),
                children: Vec::new(),
            })
            .zip(0..)
            .map(|(record, n)| FoundRecord { offset: record.offset + n * 64, ..record })
            .collect();
        let table_at = 32 + 3_000 * 64;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; table_at as usize]).unwrap();
        file.write_all(&encode(V2, &long, table_at)).unwrap();
        let file_bytes = file.metadata().unwrap().len();
        assert_eq!(read(&file, file_bytes, V2).unwrap(), Some(long));
        assert_eq!(read(&file, file_bytes, Format::V2([8; 8])).unwrap(), None, "of another segment");
    }

    #[test]
    fn a_table_that_claims_what_cannot_be_is_refused() {
        let with = |change: &dyn Fn(&mut Vec<FoundRecord>)| {
            let mut records = records();
            change(&mut records);
            records
        };
        let wrong: [(&str, Vec<FoundRecord>); 5] = [
            ("before the first record", with(&|records| records[0].offset = 40)),
            ("beyond the table", with(&|records| records[1].lengths = Lengths::uncompressed(5))),
            ("far beyond the file", with(&|records| records[1].offset = u64::MAX)),
            ("overlapping", with(&|records| records[0].lengths = Lengths::uncompressed(40))),
            ("in another order", with(&|records| records.reverse())),
        ];
        for (what, records) in wrong {
            assert_eq!(read_back(V3, &records, 246, |_| {}), None, "{what}");
        }
        assert_eq!(read_back(V3, &records(), 247, |_| {}), None, "the table is said to be elsewhere");
        assert_eq!(read_back(V3, &records(), u64::MAX, |_| {}), None, "the table is said to be beyond the file");
    }
}
