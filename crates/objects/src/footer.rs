//! The table of contents at the end of a closed segment: [`open`](crate::ObjectStore::open) reads it instead
//! of every record.
//!
//! It lists the segment's objects (id 32 bytes, offset of the payload u64, length u32, number of children
//! u32, ids of the children), by offset. A trailer of 48 bytes follows: `FLOTEND\0`, the segment's nonce,
//! offset of the table u64, number of objects u32, check of the table 16 bytes, check u32.
//!
//! It is optional. It is written after the sync of the records that it lists, so that a table that is whole
//! speaks of durable objects. Whatever is wrong with it, the segment is scanned instead; what a table claims
//! is proved when an object is read.

use std::{fs::File, io, os::unix::fs::FileExt};

use flotilla_types::ObjectId;

use crate::{
    CHILDREN_MAX,
    segment::{Fields, Format, FoundRecord, ID_BYTES, check, ids},
};

const TRAILER_MAGIC: [u8; 8] = *b"FLOTEND\0";
const TRAILER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 48;
/// Bytes at the end of a segment that are read at once: most tables are shorter.
const TAIL_BYTES: u64 = 64 * 1024;

/// A table of contents with its trailer, for a segment whose records end at `table_at`.
pub(crate) fn encode(nonce: [u8; 8], records: &[FoundRecord], table_at: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for FoundRecord { id, offset, len, children } in records {
        bytes.extend(id.as_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(len.to_le_bytes());
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
pub(crate) fn read(file: &File, file_bytes: u64, nonce: [u8; 8]) -> io::Result<Option<Vec<FoundRecord>>> {
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
        return Ok(decode_table(&rest[(table_at - tail_at) as usize..], table_at, records, table_check));
    }
    let mut table = vec![0; (table_end - table_at) as usize];
    file.read_exact_at(&mut table, table_at)?;
    Ok(decode_table(&table, table_at, records, table_check))
}

fn decode_trailer(bytes: &[u8; TRAILER_BYTES], nonce: [u8; 8]) -> Option<(u64, u32, [u8; 16])> {
    let trailer = Fields(bytes);
    let is_ours = trailer.array(0) == Some(TRAILER_MAGIC) && trailer.array(8) == Some(nonce) && trailer.is_checked(44);
    is_ours.then_some((trailer.number_u64(16)?, trailer.number(24)?, trailer.array(28)?))
}

fn decode_table(table: &[u8], table_at: u64, count: u32, table_check: [u8; 16]) -> Option<Vec<FoundRecord>> {
    let format = Format::V2([0; 8]);
    if check(table) != table_check || count as usize > table.len() / ENTRY_BYTES {
        return None;
    }
    let mut records = Vec::with_capacity(count as usize);
    let mut rest = table;
    let mut end = format.segment_header_bytes();
    for _ in 0..count {
        let (entry, after) = rest.split_at_checked(ENTRY_BYTES)?;
        let fields = Fields(entry);
        let children = fields.number(44)? as usize;
        let (list, after) = after.split_at_checked(children.checked_mul(ID_BYTES as usize)?)?;
        let (id, offset, len) = (ObjectId(fields.array(0)?), fields.number_u64(32)?, fields.number(40)?);
        let record = FoundRecord { id, offset, len, children: ids(list) };
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

    const NONCE: [u8; 8] = [7; 8];

    fn records() -> Vec<FoundRecord> {
        let id = |n: u8| ObjectId::of(&[n]);
        vec![
            FoundRecord { id: id(1), offset: 96, len: 10, children: Vec::new() },
            FoundRecord { id: id(2), offset: 106 + 64 + 64, len: 4, children: vec![id(1), id(3)] },
        ]
    }

    /// A segment with this table after `table_at` bytes.
    fn read_back(records: &[FoundRecord], table_at: u64, change: impl Fn(&mut Vec<u8>)) -> Option<Vec<FoundRecord>> {
        let mut bytes = vec![0; 238];
        bytes.extend(encode(NONCE, records, table_at));
        change(&mut bytes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        read(&file, bytes.len() as u64, NONCE).unwrap()
    }

    #[test]
    fn a_table_is_read_back_and_any_flipped_bit_is_noticed() {
        assert_eq!(read_back(&records(), 238, |_| {}), Some(records()));
        let bytes = 238 + encode(NONCE, &records(), 238).len();
        for at in 238..bytes {
            assert_eq!(read_back(&records(), 238, |bytes| bytes[at] ^= 1), None, "byte {at}");
            assert_eq!(read_back(&records(), 238, |bytes| bytes.truncate(at)), None, "cut at {at}");
        }
        assert_eq!(read_back(&records(), 238, |bytes| bytes.push(0)), None);
    }

    #[test]
    fn a_table_longer_than_the_first_read_is_read_back() {
        let long: Vec<_> = (0..3_000)
            .map(|n: u32| FoundRecord {
                id: ObjectId::of(&n.to_le_bytes()),
                offset: 32 + 64,
                len: 0,
                children: Vec::new(),
            })
            .zip(0..)
            .map(|(record, n)| FoundRecord { offset: record.offset + n * 64, ..record })
            .collect();
        let table_at = 32 + 3_000 * 64;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; table_at as usize]).unwrap();
        file.write_all(&encode(NONCE, &long, table_at)).unwrap();
        let file_bytes = file.metadata().unwrap().len();
        assert_eq!(read(&file, file_bytes, NONCE).unwrap(), Some(long));
        assert_eq!(read(&file, file_bytes, [8; 8]).unwrap(), None, "of another segment");
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
            ("beyond the table", with(&|records| records[1].len = 5)),
            ("far beyond the file", with(&|records| records[1].offset = u64::MAX)),
            ("overlapping", with(&|records| records[0].len = 40)),
            ("in another order", with(&|records| records.reverse())),
        ];
        for (what, records) in wrong {
            assert_eq!(read_back(&records, 238, |_| {}), None, "{what}");
        }
        assert_eq!(read_back(&records(), 239, |_| {}), None, "the table is said to be elsewhere");
        assert_eq!(read_back(&records(), u64::MAX, |_| {}), None, "the table is said to be beyond the file");
    }
}
