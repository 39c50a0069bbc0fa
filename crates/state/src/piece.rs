//! The format of objects that hold records: pieces of runs, and chunks of the base. A piece is a sorted block
//! of records.
//!
//! A piece is a 12-byte header (`FLPC`, version u16, kind u8, zero u8, count u32) and `count` records: key length
//! u32, value length u32 (all ones for a deletion), key, value. In version 2 the piece's index follows as a
//! [footer]. In version 3 bit 31 of a value's length says that the record refers to objects: the references are
//! behind the value. A piece has that version if and only if a record does. Integers are little-endian; keys ascend
//! strictly. There is no checksum: the object's id is one. A piece is a function of its version, kind and records,
//! so that equal records have equal ids on all machines. Pieces come from peers and disks, so the reader checks
//! every length.

mod filter;
pub(crate) mod footer;
mod index;

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::Value;
use flotilla_types::{ByteOrder, ObjectId, ObjectRef, Refs};

use self::index::IndexBuilder;
pub(crate) use self::{
    filter::key_hash,
    index::{Block, PieceIndex, record_in, records_in},
};
use crate::merge::Record;

/// Bytes before the first record.
pub(crate) const PIECE_HEADER_BYTES: usize = 12;

const MAGIC: [u8; 4] = *b"FLPC";
const RECORD_HEADER_BYTES: usize = 8;
const DELETED: u32 = u32::MAX;
/// Of a value's length: references follow the value.
const WITH_REFS: u32 = 1 << 31;
/// Memory is taken in advance for pieces of up to this size.
const CAPACITY_BYTES_MAX: usize = 4 << 20;

/// A version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PieceVersion {
    /// Header and records.
    V1,
    /// With a footer, by which the piece is indexed without its records.
    V2,
    /// The same with records that refer to objects.
    V3,
}

impl PieceVersion {
    const fn code(self) -> u16 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    const fn kinds(self) -> &'static [PieceKind] {
        match self {
            Self::V1 => &[PieceKind::Chunk, PieceKind::RunStart, PieceKind::RunRest],
            Self::V2 | Self::V3 => &[PieceKind::Chunk, PieceKind::Run],
        }
    }
}

/// What a piece is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// The base: no deletions.
    Chunk,
    /// The first piece of a run (version 1).
    RunStart,
    /// A further piece of the run before it (version 1).
    RunRest,
    /// A run (version 2): a list elsewhere says of which run, and at which place.
    Run,
}

impl PieceKind {
    const fn code(self) -> u8 {
        match self {
            Self::Chunk => 0,
            Self::RunStart => 1,
            Self::RunRest => 2,
            Self::Run => 3,
        }
    }

    /// Reads the kind and the number of records from the header of a piece; `None` when the bytes are not the
    /// header of a known version.
    pub(crate) fn and_count(head: &[u8]) -> Option<(Self, u32)> {
        Header::of(head).map(|header| (header.kind, header.count))
    }
}

#[derive(Debug)]
struct Header {
    version: PieceVersion,
    kind: PieceKind,
    count: u32,
}

impl Header {
    fn of(head: &[u8]) -> Option<Self> {
        let [b'F', b'L', b'P', b'C', v0, v1, kind, 0, c0, c1, c2, c3] = *head.first_chunk()? else { return None };
        let code = u16::from_le_bytes([v0, v1]);
        let version = [PieceVersion::V1, PieceVersion::V2, PieceVersion::V3]
            .into_iter()
            .find(|version| version.code() == code)?;
        let kind = version.kinds().iter().copied().find(|known| known.code() == kind)?;
        Some(Self { version, kind, count: u32::from_le_bytes([c0, c1, c2, c3]) })
    }

    fn write(&self, mut header: &mut [u8]) {
        header.put_slice(&MAGIC);
        header.put_u16_le(self.version.code());
        header.put_u8(self.kind.code());
        header.put_u8(0);
        header.put_u32_le(self.count);
    }
}

/// Encoded size of a record.
pub(crate) fn record_bytes(key: &[u8], value: Option<&Value>) -> usize {
    let value_bytes = |value: &Value| {
        let refs = value.refs();
        value.len() + if refs.is_empty() { 0 } else { refs.encoded_bytes() }
    };
    RECORD_HEADER_BYTES + key.len() + value.map_or(0, value_bytes)
}

/// Collects records into a piece.
#[derive(Debug)]
pub(crate) struct PieceWriter {
    bytes: BytesMut,
    count: u32,
    /// Where the last record begins.
    last_at: usize,
    /// The objects that records refer to.
    refs: BTreeSet<ObjectId>,
    /// For a footer.
    index: Option<IndexBuilder>,
}

/// A finished piece, and what is said about it elsewhere so that it need not be read. Keys are copies.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) bytes: Bytes,
    /// Empty when there is no record.
    pub(crate) first_key: Bytes,
    pub(crate) records: u32,
    /// The objects that its records refer to, each once.
    pub(crate) refs: Vec<ObjectId>,
    /// From version 2 on.
    pub(crate) footer: Option<FooterCheck>,
}

/// By what a footer that is read alone is verified. It is at the end of its piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterCheck {
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl FooterCheck {
    fn of(footer: &[u8]) -> Self {
        // Objects are at most 4 GiB − 1 long.
        Self { len: footer.len() as u32, crc: crc32c::crc32c(footer) }
    }

    /// Whether these bytes are the footer.
    pub(crate) fn matches(self, footer: &[u8]) -> bool {
        Self::of(footer) == self
    }
}

impl PieceWriter {
    /// A writer of a piece of about this size.
    pub(crate) fn new(version: PieceVersion, piece_bytes: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(piece_bytes.min(CAPACITY_BYTES_MAX) / 16 * 17);
        bytes.put_bytes(0, PIECE_HEADER_BYTES);
        let index = (version >= PieceVersion::V2).then(IndexBuilder::new);
        Self { bytes, count: 0, last_at: PIECE_HEADER_BYTES, refs: BTreeSet::new(), index }
    }

    /// Adds a record, whose key is greater than the last one.
    pub(crate) fn push(&mut self, key: &[u8], value: Option<&Value>) {
        let refs = value.map(Value::refs).filter(|refs| !refs.is_empty());
        let flag = if refs.is_some() { WITH_REFS } else { 0 };
        self.last_at = self.bytes.len();
        self.bytes.put_u32_le(key.len() as u32);
        // A value is shorter than 2 GiB, as is an entry.
        self.bytes.put_u32_le(value.map_or(DELETED, |value| value.len() as u32 | flag));
        self.bytes.put_slice(key);
        self.bytes.put_slice(value.map(|value| &value[..]).unwrap_or_default());
        if let Some(refs) = refs {
            refs.encode(&mut self.bytes, ByteOrder::Little);
            self.refs.extend(refs.ids());
        }
        self.count += 1;
        if let Some(index) = &mut self.index {
            index.push(key, value);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the header and the records so far. A footer does not count, so that records are cut into the
    /// same pieces in all versions.
    pub(crate) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The [hash](key_hash) of the last key.
    pub(crate) fn last_hash(&self) -> Option<u64> {
        match &self.index {
            Some(index) => index.last_hash(),
            None => self.last_key().map(key_hash),
        }
    }

    fn last_key(&self) -> Option<&[u8]> {
        split_key(&self.bytes[self.last_at..])
    }

    /// The finished piece. The kind must be one of the version.
    pub(crate) fn finish(mut self, kind: PieceKind) -> Finished {
        let version = match (&self.index, self.refs.is_empty()) {
            (None, has_none) => {
                assert!(has_none, "a piece of version 1 cannot have references");
                PieceVersion::V1
            }
            (Some(_), true) => PieceVersion::V2,
            (Some(_), false) => PieceVersion::V3,
        };
        assert!(version.kinds().contains(&kind), "a piece of version {} has no kind {kind:?}", version.code());
        Header { version, kind, count: self.count }.write(&mut self.bytes[..PIECE_HEADER_BYTES]);
        let first_key = split_key(&self.bytes[PIECE_HEADER_BYTES..]).map(Bytes::copy_from_slice).unwrap_or_default();
        let last_key = self.last_key().map(Bytes::copy_from_slice).unwrap_or_default();
        let footer = self.index.take().map(|index| {
            let footer = footer::encode(&index.finish(kind, &self.bytes, &last_key));
            self.bytes.put_slice(&footer);
            FooterCheck::of(&footer)
        });
        let refs = self.refs.into_iter().collect();
        Finished { bytes: self.bytes.freeze(), first_key, records: self.count, refs, footer }
    }
}

/// Reads the records of a piece in order and checks them. Ends after an error. A footer is not compared with
/// them: [`PieceIndex::of`] does.
#[derive(Debug)]
pub(crate) struct PieceReader {
    version: PieceVersion,
    kind: PieceKind,
    rest: Bytes,
    left: u32,
    last: Option<Bytes>,
    has_refs: bool,
    footer: Option<Bytes>,
}

impl PieceReader {
    pub(crate) fn new(piece: Bytes) -> Result<Self, &'static str> {
        let header = Header::of(&piece).ok_or("an object is not a piece of a known version")?;
        let mut rest = piece.slice(PIECE_HEADER_BYTES..);
        let footer = match header.version {
            PieceVersion::V1 => None,
            PieceVersion::V2 | PieceVersion::V3 => {
                let start = (footer::start(&rest)? as usize).checked_sub(PIECE_HEADER_BYTES);
                let start = start.filter(|start| *start <= rest.len() - footer::TAIL_BYTES);
                Some(rest.split_off(start.ok_or("the footer of a piece begins outside of it")?))
            }
        };
        let Header { version, kind, count } = header;
        Ok(Self { version, kind, rest, left: count, last: None, has_refs: false, footer })
    }

    pub(crate) fn kind(&self) -> PieceKind {
        self.kind
    }

    /// The footer, from version 2 on.
    fn footer(&self) -> Option<&Bytes> {
        self.footer.as_ref()
    }

    fn record(&mut self) -> Result<Record, &'static str> {
        let split = split_record(&self.rest)?;
        let (key, value) = (self.rest.slice_ref(split.key), split.value.map(|value| self.rest.slice_ref(value)));
        let refs = split.refs()?;
        self.rest.advance(self.rest.len() - split.rest.len());
        if !refs.is_empty() && self.version < PieceVersion::V3 {
            return Err("a record of a piece of version 1 or 2 has references");
        }
        self.has_refs |= !refs.is_empty();
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err("keys of a piece do not ascend");
        }
        if value.is_none() && self.kind == PieceKind::Chunk {
            return Err("a base chunk holds a deletion");
        }
        self.last = Some(key.clone());
        Ok((key, value.map(|value| Value::new(value, refs))))
    }
}

/// The first record of some bytes, and what follows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
    /// Encoded; empty if there are none.
    refs: &'a [u8],
    pub(crate) rest: &'a [u8],
}

impl Split<'_> {
    fn refs(&self) -> Result<Refs, &'static str> {
        if self.refs.is_empty() {
            return Ok(Refs::NONE);
        }
        Refs::decode(&mut &self.refs[..], ByteOrder::Little).map_err(|_| "the references of a record do not parse")
    }
}

/// Splits the first record off the records of a piece. Its references are not checked.
pub(crate) fn split_record(bytes: &[u8]) -> Result<Split<'_>, &'static str> {
    const SHORT: &str = "a piece ends inside a record";
    let (header, body) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or(SHORT)?;
    let [k0, k1, k2, k3, v0, v1, v2, v3] = *header;
    let (key_len, value_len) = (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([v0, v1, v2, v3]));
    let (key, rest) = body.split_at_checked(key_len as usize).ok_or(SHORT)?;
    if value_len == DELETED {
        return Ok(Split { key, value: None, refs: &[], rest });
    }
    let (value, rest) = rest.split_at_checked((value_len & !WITH_REFS) as usize).ok_or(SHORT)?;
    if value_len & WITH_REFS == 0 {
        return Ok(Split { key, value: Some(value), refs: &[], rest });
    }
    let [low, high, ..] = *rest else { return Err(SHORT) };
    let refs_bytes = 2 + usize::from(u16::from_le_bytes([low, high])) * ObjectRef::ENCODED_BYTES;
    let (refs, rest) = rest.split_at_checked(refs_bytes).ok_or(SHORT)?;
    Ok(Split { key, value: Some(value), refs, rest })
}

/// The references of the records of a piece, ascending, each once.
pub(crate) fn refs_of(piece: Bytes) -> Result<Vec<ObjectRef>, &'static str> {
    let mut reader = PieceReader::new(piece)?;
    if reader.version < PieceVersion::V3 {
        return Ok(Vec::new());
    }
    let refs = reader.try_fold(BTreeSet::new(), |mut refs, record| {
        let value = record?.1;
        refs.extend(value.iter().flat_map(|value| value.refs().iter().copied()));
        Ok::<_, &'static str>(refs)
    })?;
    Ok(refs.into_iter().collect())
}

/// The key of the first record, which may be truncated after its key; `None` when the bytes end inside the
/// key.
pub(crate) fn split_key(bytes: &[u8]) -> Option<&[u8]> {
    let (header, body) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let [k0, k1, k2, k3, ..] = *header;
    body.get(..u32::from_le_bytes([k0, k1, k2, k3]) as usize)
}

impl Iterator for PieceReader {
    type Item = Result<Record, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let surplus = !self.rest.is_empty();
            self.rest.clear();
            if surplus {
                return Some(Err("a piece is longer than its records"));
            }
            // Said once.
            let lacks_refs = std::mem::replace(&mut self.has_refs, true) != (self.version == PieceVersion::V3);
            return (lacks_refs && self.version == PieceVersion::V3)
                .then_some(Err("a piece of version 3 has no references"));
        }
        self.left -= 1;
        let record = self.record();
        if record.is_err() {
            self.left = 0;
            self.rest.clear();
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests;
