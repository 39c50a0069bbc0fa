//! The format of a segment file, and the scan that finds its records.
//!
//! A segment of format 1 is a 16-byte header (`FLOTSEG\0`, version u32, check u32) followed by records. A
//! record is a 44-byte header (`FLOB`, length u32, id 32 bytes, check u32) and the object's bytes. Integers
//! are little-endian. A check is the first bytes of the BLAKE3 hash of the bytes before it.
//!
//! In format 2 objects have children. The segment's header goes on with a nonce of 8 bytes and a check of 8
//! bytes; its first 16 bytes are as in format 1, so that older binaries refuse the file by its version. Each
//! record has a header of 64 bytes (`FLOC`, length u32, number of children u32, nonce, id, check of the
//! children 8 bytes, check u32), then the ids of its children, then the object's bytes. A closed segment ends
//! with a table of contents (`footer.rs`). The nonce is secret: a client, whose bytes end up in objects,
//! cannot make what a scan or an open would take for a record or a table. That is why format 1 has no table.
//!
//! In format 3 objects may be compressed. It is as format 2, with version 3 and with records whose header of 68
//! bytes (`FLOD`) has the length of the plain bytes, a u32, behind the length of what is stored. Where both are
//! the same, the bytes are stored as they are; otherwise the stored ones are a zstd frame, which is shorter.
//!
//! Format 2 is written from the first object with children on, format 3 from the first compressed one on, and
//! both by a store that has found a segment of it. The store needs no word about the cluster's version: who
//! stores an object with children, or allows compression, guarantees that binaries that do not know the format
//! are out of use, since those would not keep what the object needs, or refuse the folder. Until then every
//! segment is one that they read.
//!
//! The scan reads headers and lists of children only; payloads are verified by their id when they are read.
//! After a damaged header the scan searches for the next valid one, so that damage affects no other objects.
//! A record found inside another payload does no harm: its bytes still have to match its id.

use std::{fs::File, io, os::unix::fs::FileExt};

use flotilla_types::ObjectId;

use crate::{CHILDREN_MAX, compression::COMPRESSED_BYTES_MAX};

/// Newest segment version known here.
pub(crate) const SEGMENT_VERSION: u32 = 3;
/// Bytes of an id.
pub(crate) const ID_BYTES: u64 = 32;

const SEGMENT_MAGIC: [u8; 8] = *b"FLOTSEG\0";
const RECORD_MAGIC: [u8; 4] = *b"FLOB";
const PARENT_MAGIC: [u8; 4] = *b"FLOC";
const PACKED_MAGIC: [u8; 4] = *b"FLOD";
const SEARCH_WINDOW_BYTES: u64 = 256 * 1024;
const RECORD_HEADER_BYTES_MIN: u64 = 44;
/// Bytes of the longest header of a record.
pub(crate) const RECORD_HEADER_BYTES_MAX: u64 = 68;

/// What tells the records of a segment from bytes that look like some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Records have no children; the segment has no table of contents.
    V1,
    /// Records and the table of contents hold this nonce.
    V2([u8; 8]),
    /// As the second, and objects may be compressed.
    V3([u8; 8]),
}

impl Format {
    /// The format of a new segment, with a nonce of its own.
    pub(crate) fn new(version: u32) -> Self {
        match version {
            ..=1 => Self::V1,
            2 => Self::V2(rand::random()),
            3.. => Self::V3(rand::random()),
        }
    }

    pub(crate) const fn version(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2(_) => 2,
            Self::V3(_) => 3,
        }
    }

    /// What records and the table of contents hold, in formats that have such a table.
    pub(crate) const fn nonce(self) -> Option<[u8; 8]> {
        match self {
            Self::V1 => None,
            Self::V2(nonce) | Self::V3(nonce) => Some(nonce),
        }
    }

    /// Bytes before the first record.
    pub(crate) const fn segment_header_bytes(self) -> u64 {
        match self {
            Self::V1 => 16,
            Self::V2(_) | Self::V3(_) => 32,
        }
    }

    /// Bytes of a record before its children.
    pub(crate) const fn record_header_bytes(self) -> u64 {
        match self {
            Self::V1 => RECORD_HEADER_BYTES_MIN,
            Self::V2(_) => 64,
            Self::V3(_) => RECORD_HEADER_BYTES_MAX,
        }
    }
}

/// The result of reading a segment header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeader {
    /// A version this binary reads.
    Known(Format),
    /// A version this binary does not know.
    Newer(u32),
    /// Not a segment header: damaged or torn.
    Invalid,
}

/// One record of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) id: ObjectId,
    /// Where the payload starts.
    pub(crate) offset: u64,
    pub(crate) lengths: Lengths,
    pub(crate) children: Vec<ObjectId>,
}

/// The lengths of a payload: what is stored is shorter than the plain bytes if it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Bytes on disk.
    pub(crate) stored: u32,
    /// Bytes of the object.
    pub(crate) plain: u32,
}

impl Lengths {
    pub(crate) const fn uncompressed(bytes: u32) -> Self {
        Self { stored: bytes, plain: bytes }
    }

    /// Lengths that a file claims, if they can be.
    pub(crate) fn claimed(stored: u32, plain: u32) -> Option<Self> {
        let lengths = Self { stored, plain };
        let valid = stored == plain || lengths.is_compressed() && plain as usize <= COMPRESSED_BYTES_MAX;
        valid.then_some(lengths)
    }

    pub(crate) const fn is_compressed(self) -> bool {
        self.stored < self.plain
    }
}

impl FoundRecord {
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.lengths.stored))
    }
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Records whose headers and children are intact, in file order.
    pub(crate) records: Vec<FoundRecord>,
    /// End of the last record; anything after it is a torn tail.
    pub(crate) end: u64,
    /// Bytes before [`Self::end`] that belong to no intact record.
    pub(crate) damaged_bytes: u64,
}

/// The header of a new segment.
pub(crate) fn encode_segment_header(format: Format) -> Vec<u8> {
    let mut header = SEGMENT_MAGIC.to_vec();
    header.extend(format.version().to_le_bytes());
    header.extend(check::<4>(&header));
    if let Some(nonce) = format.nonce() {
        header.extend(nonce);
        header.extend(check::<8>(&header));
    }
    header
}

/// Reads the header of a segment file of `file_bytes` bytes.
pub(crate) fn read_segment_header(file: &File, file_bytes: u64) -> io::Result<SegmentHeader> {
    let mut header = vec![0; file_bytes.min(Format::V2([0; 8]).segment_header_bytes()) as usize];
    file.read_exact_at(&mut header, 0)?;
    let header = Fields(&header);
    if header.array(0) != Some(SEGMENT_MAGIC) || !header.is_checked(12) {
        return Ok(SegmentHeader::Invalid);
    }
    Ok(match (header.number(8), header.array(16), header.array(24)) {
        (Some(1), ..) => SegmentHeader::Known(Format::V1),
        (Some(version @ 2..=3), Some(nonce), Some(found)) if found == check::<8>(&header.0[..24]) => {
            SegmentHeader::Known(if version == 2 { Format::V2(nonce) } else { Format::V3(nonce) })
        }
        (Some(version), ..) if version > SEGMENT_VERSION => SegmentHeader::Newer(version),
        _ => SegmentHeader::Invalid,
    })
}

/// A record up to its payload. Segments of format 1 have no children, and only those of format 3 compressed
/// objects.
pub(crate) fn encode_record_header(format: Format, id: ObjectId, lengths: Lengths, children: &[ObjectId]) -> Vec<u8> {
    let mut header = Vec::with_capacity(format.record_header_bytes() as usize + size_of_val(children));
    let ids = || children.iter().flat_map(|child| child.as_bytes()).copied();
    match format {
        Format::V1 => {
            header.extend(RECORD_MAGIC);
            header.extend(lengths.stored.to_le_bytes());
            header.extend(id.as_bytes());
        }
        Format::V2(nonce) | Format::V3(nonce) => {
            let is_packed = format.version() > 2;
            header.extend(if is_packed { PACKED_MAGIC } else { PARENT_MAGIC });
            header.extend(lengths.stored.to_le_bytes());
            if is_packed {
                header.extend(lengths.plain.to_le_bytes());
            }
            header.extend((children.len() as u32).to_le_bytes());
            header.extend(nonce);
            header.extend(id.as_bytes());
            header.extend(check::<8>(&ids().collect::<Vec<_>>()));
        }
    }
    header.extend(check::<4>(&header));
    header.extend(ids());
    header
}

/// Finds every record from `start` on. Without a format, that of the first record found is taken.
pub(crate) fn scan(file: &File, start: u64, file_bytes: u64, format: Option<Format>) -> io::Result<Scan> {
    let mut scanner = Scanner { file, file_bytes, format };
    let mut scan = Scan { end: start, ..Scan::default() };
    loop {
        let header = match scanner.header_at(scan.end)? {
            Some(header) => header,
            None => match scanner.find_header(scan.end.saturating_add(1))? {
                Some(header) => header,
                None => return Ok(scan),
            },
        };
        scan.damaged_bytes += header.at - scan.end;
        scan.end = header.end();
        match scanner.children(&header)? {
            Some(children) => {
                let Header { id, lengths, .. } = header;
                scan.records.push(FoundRecord { id, offset: header.offset(), lengths, children });
            }
            // The extent is that of a record all the same: what lies in it is not searched, so that a file is
            // read once, whatever it claims.
            None => scan.damaged_bytes += header.end() - header.at,
        }
    }
}

struct Scanner<'a> {
    file: &'a File,
    file_bytes: u64,
    format: Option<Format>,
}

/// A record's header.
struct Header {
    at: u64,
    format: Format,
    id: ObjectId,
    lengths: Lengths,
    children: u32,
    children_check: [u8; 8],
}

impl Header {
    const fn children_at(&self) -> u64 {
        self.at + self.format.record_header_bytes()
    }

    const fn offset(&self) -> u64 {
        self.children_at() + self.children as u64 * ID_BYTES
    }

    const fn end(&self) -> u64 {
        self.offset() + self.lengths.stored as u64
    }
}

impl Scanner<'_> {
    fn header_at(&mut self, at: u64) -> io::Result<Option<Header>> {
        let bytes = self.file_bytes.saturating_sub(at).min(RECORD_HEADER_BYTES_MAX);
        let mut header = [0; RECORD_HEADER_BYTES_MAX as usize];
        let header = &mut header[..bytes as usize];
        self.file.read_exact_at(header, at)?;
        Ok(self.decode(header, at))
    }

    /// The first valid header that starts at or after `from`.
    fn find_header(&mut self, from: u64) -> io::Result<Option<Header>> {
        let mut window = Vec::new();
        let mut start = from;
        while start.saturating_add(RECORD_HEADER_BYTES_MIN) <= self.file_bytes {
            window.resize((self.file_bytes - start).min(SEARCH_WINDOW_BYTES) as usize, 0);
            self.file.read_exact_at(&mut window, start)?;
            for i in 0..window.len() {
                if let Some(header) = self.decode(&window[i..], start + i as u64) {
                    return Ok(Some(header));
                }
            }
            if start + window.len() as u64 >= self.file_bytes {
                break;
            }
            // Windows overlap by one byte less than a header, so that no header is missed between them.
            start += window.len() as u64 - (RECORD_HEADER_BYTES_MAX - 1);
        }
        Ok(None)
    }

    fn decode(&mut self, bytes: &[u8], at: u64) -> Option<Header> {
        let fields = Fields(bytes);
        let header = match fields.array(0)? {
            RECORD_MAGIC if fields.is_checked(40) => {
                let (id, lengths) = (ObjectId(fields.array(8)?), Lengths::uncompressed(fields.number(4)?));
                Header { at, format: Format::V1, id, lengths, children: 0, children_check: [0; 8] }
            }
            PARENT_MAGIC if fields.is_checked(60) => {
                let lengths = Lengths::uncompressed(fields.number(4)?);
                Self::decode_parent(Fields(&bytes[8..]), at, lengths, Format::V2)?
            }
            PACKED_MAGIC if fields.is_checked(64) => {
                let lengths = Lengths::claimed(fields.number(4)?, fields.number(8)?)?;
                Self::decode_parent(Fields(&bytes[12..]), at, lengths, Format::V3)?
            }
            _ => return None,
        };
        let fits = header.children as usize <= CHILDREN_MAX && header.end() <= self.file_bytes;
        if !fits || self.format.is_some_and(|format| format != header.format) {
            return None;
        }
        self.format = Some(header.format);
        Some(header)
    }

    /// The fields that follow the lengths.
    fn decode_parent(fields: Fields<'_>, at: u64, lengths: Lengths, format: fn([u8; 8]) -> Format) -> Option<Header> {
        let (children, format, id) = (fields.number(0)?, format(fields.array(4)?), ObjectId(fields.array(12)?));
        Some(Header { at, format, id, lengths, children, children_check: fields.array(44)? })
    }

    /// The ids after a header, unless they are damaged.
    fn children(&self, header: &Header) -> io::Result<Option<Vec<ObjectId>>> {
        if header.format == Format::V1 {
            return Ok(Some(Vec::new()));
        }
        let mut bytes = vec![0; header.children as usize * ID_BYTES as usize];
        self.file.read_exact_at(&mut bytes, header.children_at())?;
        Ok((check(&bytes) == header.children_check).then(|| ids(&bytes)))
    }
}

/// The ids in a list of them.
pub(crate) fn ids(bytes: &[u8]) -> Vec<ObjectId> {
    bytes.as_chunks().0.iter().map(|id| ObjectId(*id)).collect()
}

/// The first bytes of the hash.
pub(crate) fn check<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let hash = blake3::hash(bytes);
    let mut check = [0; N];
    check.copy_from_slice(&hash.as_bytes()[..N]);
    check
}

/// Fields of a header at fixed offsets.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    pub(crate) fn number(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(crate) fn number_u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Whether the four bytes at `at` are the check of those before.
    pub(crate) fn is_checked(&self, at: usize) -> bool {
        self.array(at).is_some_and(|found| found == check::<4>(&self.0[..at]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = encode_segment_header(Format::V1);
        for payload in payloads {
            bytes.extend(record(Format::V1, payload, &[]));
        }
        bytes
    }

    fn record(format: Format, payload: &[u8], children: &[ObjectId]) -> Vec<u8> {
        let lengths = Lengths::uncompressed(payload.len() as u32);
        let mut bytes = encode_record_header(format, ObjectId::of(payload), lengths, children);
        bytes.extend(payload);
        bytes
    }

    fn scan_bytes(bytes: &[u8]) -> (SegmentHeader, Scan) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let header = read_segment_header(&file, bytes.len() as u64).unwrap();
        let (start, format) = match header {
            SegmentHeader::Known(format) => (format.segment_header_bytes(), Some(format)),
            _ => (0, None),
        };
        (header, scan(&file, start, bytes.len() as u64, format).unwrap())
    }

    #[test]
    fn a_damaged_header_loses_only_its_own_record() {
        let mut bytes = segment(&[b"first", b"second", b"third"]);
        bytes[16 + 44 + 5 + 10] ^= 1;
        let (header, scan) = scan_bytes(&bytes);
        assert_eq!(header, SegmentHeader::Known(Format::V1));
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
        let check: [u8; 4] = check(&bytes[..12]);
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
        assert_eq!(scan.records.last().map(|record| record.offset), Some(at + RECORD_HEADER_BYTES_MIN));
    }

    const V2: Format = Format::V2([7; 8]);

    fn children(count: u8) -> Vec<ObjectId> {
        (0..count).map(|n| ObjectId::of(&[n])).collect()
    }

    #[test]
    fn records_are_found_with_their_children_also_without_the_segments_header() {
        let mut bytes = encode_segment_header(V2);
        bytes.extend(record(V2, b"first", &children(3)));
        bytes.extend(record(V2, b"second", &[]));
        for damaged in [false, true] {
            bytes[9] ^= u8::from(damaged);
            let (header, scan) = scan_bytes(&bytes);
            assert_eq!(header == SegmentHeader::Known(V2), !damaged);
            let found: Vec<_> = scan.records.iter().map(|record| (record.id, record.children.len())).collect();
            assert_eq!(found, [(ObjectId::of(b"first"), 3), (ObjectId::of(b"second"), 0)]);
            assert_eq!(scan.end, bytes.len() as u64);
        }
    }

    #[test]
    fn damaged_children_lose_only_their_own_record() {
        let mut bytes = encode_segment_header(V2);
        bytes.extend(record(V2, b"first", &children(3)));
        bytes.extend(record(V2, b"second", &children(1)));
        bytes[32 + 64 + 40] ^= 1;
        let (_, scan) = scan_bytes(&bytes);
        assert_eq!(scan.records.len(), 1);
        assert_eq!((scan.records[0].id, scan.damaged_bytes), (ObjectId::of(b"second"), 64 + 3 * 32 + 5));
    }

    #[test]
    fn a_record_that_a_client_has_made_up_is_not_found_in_its_payload() {
        let forged = [record(Format::V2([8; 8]), b"forged", &children(2)), record(Format::V1, b"forged", &[])].concat();
        let mut bytes = encode_segment_header(V2);
        bytes.extend(record(V2, &forged, &[]));
        let second_at = bytes.len();
        bytes.extend(record(V2, b"second", &[]));
        bytes[32] ^= 1;
        let (_, scan) = scan_bytes(&bytes);
        assert_eq!(scan.records.len(), 1);
        assert_eq!((scan.records[0].id, scan.damaged_bytes), (ObjectId::of(b"second"), second_at as u64 - 32));
    }

    #[test]
    fn a_record_with_too_many_children_is_not_read() {
        let mut bytes = encode_segment_header(V2);
        bytes.extend(record(V2, b"first", &vec![ObjectId::of(b"x"); CHILDREN_MAX + 1]));
        assert!(scan_bytes(&bytes).1.records.is_empty());
    }

    /// What other binaries have written and will read.
    #[test]
    fn records_of_every_format_are_as_described() {
        let (id, child, nonce) = (ObjectId::of(b"x"), ObjectId::of(b"y"), [7; 8]);
        let lengths = Lengths { stored: 3, plain: 9 };
        let checked = |mut header: Vec<u8>| {
            header.extend(check::<4>(&header));
            header
        };
        let first = checked([&b"FLOB\x03\0\0\0"[..], id.as_bytes()].concat());
        assert_eq!(encode_record_header(Format::V1, id, lengths, &[]), first);
        let rest = [&b"\x01\0\0\0"[..], &nonce, id.as_bytes(), &check::<8>(child.as_bytes())].concat();
        let second = checked([&b"FLOC\x03\0\0\0"[..], &rest].concat());
        let third = checked([&b"FLOD\x03\0\0\0\x09\0\0\0"[..], &rest].concat());
        for (format, header) in [(Format::V2(nonce), second), (Format::V3(nonce), third)] {
            assert_eq!(header.len() as u64, format.record_header_bytes());
            let expected = [header, child.as_bytes().to_vec()].concat();
            assert_eq!(encode_record_header(format, id, lengths, &[child]), expected);
            let header = encode_segment_header(format);
            let start = checked([b"FLOTSEG\0", &format.version().to_le_bytes()[..]].concat());
            assert_eq!(header[..24], [&start[..], &nonce].concat());
            assert_eq!(header[24..], check::<8>(&header[..24]));
        }
    }

    /// The rule of binaries that know only format 1: they delete a file whose header is invalid.
    #[test]
    fn older_binaries_see_a_newer_version_in_a_segment_with_children() {
        let header = encode_segment_header(V2);
        assert_eq!(header[..12], *b"FLOTSEG\0\x02\0\0\0");
        assert_eq!(header[12..16], check::<4>(&header[..12]));
    }
}
