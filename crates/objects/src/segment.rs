//! The format of a segment file, and the scan that finds its records.
//!
//! A segment is a 16-byte header (`FLOTSEG\0`, version u32, check u32) followed by records. A record is a
//! 44-byte header (`FLOB`, length u32, id 32 bytes, check u32) and the object's bytes. Integers are
//! little-endian. A check is the first four bytes of the BLAKE3 hash of the header's bytes before it.
//!
//! The scan reads headers only; payloads are verified by their id when they are read. After a damaged header
//! the scan searches for the next valid one, so that damage affects no other objects. A record found inside
//! another payload does no harm: its bytes still have to match its id.

use std::{fs::File, io, os::unix::fs::FileExt};

use flotilla_types::ObjectId;

/// Newest segment version known here.
pub(crate) const SEGMENT_VERSION: u32 = 1;
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 16;
/// Bytes of a record before its payload.
pub(crate) const RECORD_HEADER_BYTES: u64 = 44;

const SEGMENT_MAGIC: [u8; 8] = *b"FLOTSEG\0";
const RECORD_MAGIC: [u8; 4] = *b"FLOB";
const SEARCH_WINDOW_BYTES: u64 = 256 * 1024;

/// The result of reading a segment header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeader {
    /// A version this binary reads.
    Known,
    /// A version this binary does not know.
    Newer(u32),
    /// Not a segment header: damaged or torn.
    Invalid,
}

/// One record found by a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) id: ObjectId,
    /// Where the payload starts.
    pub(crate) offset: u64,
    /// Length of the payload.
    pub(crate) len: u32,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Records whose headers are intact, in file order.
    pub(crate) records: Vec<FoundRecord>,
    /// End of the last record; anything after it is a torn tail.
    pub(crate) end: u64,
    /// Bytes before [`Self::end`] that belong to no record.
    pub(crate) damaged_bytes: u64,
}

/// The header of a new segment.
pub(crate) fn encode_segment_header() -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut header = [0; SEGMENT_HEADER_BYTES as usize];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    let check = check(&header[..12]);
    header[12..].copy_from_slice(&check);
    header
}

/// Reads the header of a segment file of `file_bytes` bytes.
pub(crate) fn read_segment_header(file: &File, file_bytes: u64) -> io::Result<SegmentHeader> {
    let mut header = [0; SEGMENT_HEADER_BYTES as usize];
    if file_bytes < SEGMENT_HEADER_BYTES {
        return Ok(SegmentHeader::Invalid);
    }
    file.read_exact_at(&mut header, 0)?;
    if header[..8] != SEGMENT_MAGIC || header[12..] != check(&header[..12]) {
        return Ok(SegmentHeader::Invalid);
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    Ok(if version > SEGMENT_VERSION { SegmentHeader::Newer(version) } else { SegmentHeader::Known })
}

/// The header of a record.
pub(crate) fn encode_record_header(id: ObjectId, len: u32) -> [u8; RECORD_HEADER_BYTES as usize] {
    let mut header = [0; RECORD_HEADER_BYTES as usize];
    header[..4].copy_from_slice(&RECORD_MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..40].copy_from_slice(id.as_bytes());
    let check = check(&header[..40]);
    header[40..].copy_from_slice(&check);
    header
}

/// Finds every record from `start` on.
pub(crate) fn scan(file: &File, start: u64, file_bytes: u64) -> io::Result<Scan> {
    let mut scan = Scan { end: start, ..Scan::default() };
    loop {
        let record = match record_at(file, scan.end, file_bytes)? {
            Some(record) => record,
            None => match find_record(file, scan.end.saturating_add(1), file_bytes)? {
                Some(record) => record,
                None => return Ok(scan),
            },
        };
        scan.damaged_bytes += record.offset - RECORD_HEADER_BYTES - scan.end;
        scan.end = record.offset + u64::from(record.len);
        scan.records.push(record);
    }
}

fn record_at(file: &File, at: u64, file_bytes: u64) -> io::Result<Option<FoundRecord>> {
    if at.saturating_add(RECORD_HEADER_BYTES) > file_bytes {
        return Ok(None);
    }
    let mut header = [0; RECORD_HEADER_BYTES as usize];
    file.read_exact_at(&mut header, at)?;
    Ok(decode_record(&header, at, file_bytes))
}

/// The first valid record whose header starts at or after `from`.
fn find_record(file: &File, from: u64, file_bytes: u64) -> io::Result<Option<FoundRecord>> {
    let mut window = Vec::new();
    let mut start = from;
    while start.saturating_add(RECORD_HEADER_BYTES) <= file_bytes {
        window.resize((file_bytes - start).min(SEARCH_WINDOW_BYTES) as usize, 0);
        file.read_exact_at(&mut window, start)?;
        for (i, header) in window.windows(RECORD_HEADER_BYTES as usize).enumerate() {
            if header[..4] == RECORD_MAGIC
                && let Some(record) = decode_record(header, start + i as u64, file_bytes)
            {
                return Ok(Some(record));
            }
        }
        // Windows overlap by one byte less than a header, so that no header is missed between them.
        start += window.len() as u64 - (RECORD_HEADER_BYTES - 1);
    }
    Ok(None)
}

fn decode_record(header: &[u8], at: u64, file_bytes: u64) -> Option<FoundRecord> {
    if header[..4] != RECORD_MAGIC || header[40..44] != check(&header[..40]) {
        return None;
    }
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let offset = at + RECORD_HEADER_BYTES;
    let id = ObjectId::from_slice(&header[8..40])?;
    (offset + u64::from(len) <= file_bytes).then_some(FoundRecord { id, offset, len })
}

fn check(bytes: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(bytes);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = encode_segment_header().to_vec();
        for payload in payloads {
            bytes.extend(encode_record_header(ObjectId::of(payload), payload.len() as u32));
            bytes.extend(*payload);
        }
        bytes
    }

    fn scan_bytes(bytes: &[u8]) -> (SegmentHeader, Scan) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let header = read_segment_header(&file, bytes.len() as u64).unwrap();
        (header, scan(&file, SEGMENT_HEADER_BYTES, bytes.len() as u64).unwrap())
    }

    #[test]
    fn a_damaged_header_loses_only_its_own_record() {
        let mut bytes = segment(&[b"first", b"second", b"third"]);
        bytes[16 + 44 + 5 + 10] ^= 1;
        let (header, scan) = scan_bytes(&bytes);
        assert_eq!(header, SegmentHeader::Known);
        let ids: Vec<_> = scan.records.iter().map(|record| record.id).collect();
        assert_eq!(ids, [ObjectId::of(b"first"), ObjectId::of(b"third")]);
        assert_eq!((scan.damaged_bytes, scan.end), (44 + 6, bytes.len() as u64));
    }

    #[test]
    fn a_segment_torn_anywhere_yields_the_whole_records_before_the_tear() {
        let bytes = segment(&[b"first", b"second"]);
        let first_end = 16 + 44 + 5;
        for len in first_end..bytes.len() {
            let (_, scan) = scan_bytes(&bytes[..len]);
            assert_eq!((scan.records.len(), scan.end), (1, first_end as u64), "cut at {len}");
        }
    }

    #[test]
    fn a_header_of_a_newer_version_is_not_a_damaged_one() {
        let mut bytes = segment(&[]);
        bytes[8] = 9;
        assert_eq!(scan_bytes(&bytes).0, SegmentHeader::Invalid);
        let check = check(&bytes[..12]);
        bytes[12..16].copy_from_slice(&check);
        assert_eq!(scan_bytes(&bytes).0, SegmentHeader::Newer(9));
        assert_eq!(scan_bytes(&bytes[..7]).0, SegmentHeader::Invalid);
    }

    #[test]
    fn a_record_after_more_than_a_window_of_damage_is_found() {
        let mut bytes = segment(&[b"first"]);
        bytes.extend(vec![0xF1; SEARCH_WINDOW_BYTES as usize - 20]);
        let at = bytes.len() as u64;
        bytes.extend(&segment(&[b"second"])[16..]);
        let (_, scan) = scan_bytes(&bytes);
        assert_eq!(scan.records.last().map(|record| record.offset), Some(at + RECORD_HEADER_BYTES));
    }
}
