//! The format of objects that hold records: pieces of runs, and chunks of the base. A piece is a sorted block
//! of records.
//!
//! A piece is a 12-byte header (`FLPC`, version u16, kind u8, zero u8, count u32) and `count` records: key
//! length u32, value length u32 (all ones for a deletion), key, value. Integers are little-endian; keys
//! ascend strictly. There is no checksum: the object's id is one. Pieces come from peers and disks, so the
//! reader checks every length.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::merge::Record;

/// Bytes before the first record.
pub(crate) const PIECE_HEADER_BYTES: usize = 12;

const MAGIC: [u8; 4] = *b"FLPC";
const VERSION: u16 = 1;
const RECORD_HEADER_BYTES: usize = 8;
const DELETED: u32 = u32::MAX;

/// What a piece is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// The base: no deletions.
    Chunk,
    /// The first piece of a run.
    RunStart,
    /// A further piece of the run before it.
    RunRest,
}

impl PieceKind {
    const fn code(self) -> u8 {
        match self {
            Self::Chunk => 0,
            Self::RunStart => 1,
            Self::RunRest => 2,
        }
    }

    /// Reads the kind from the header of a piece; `None` when the bytes are not the header of a known
    /// version.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        let head = head.get(..PIECE_HEADER_BYTES)?;
        if head[..4] != MAGIC || head[4..6] != VERSION.to_le_bytes() || head[7] != 0 {
            return None;
        }
        [Self::Chunk, Self::RunStart, Self::RunRest].into_iter().find(|kind| kind.code() == head[6])
    }
}

/// Encoded size of a record.
pub(crate) fn record_bytes(record: &Record) -> usize {
    RECORD_HEADER_BYTES + record.0.len() + record.1.as_ref().map_or(0, Bytes::len)
}

/// Collects records into a piece.
#[derive(Debug)]
pub(crate) struct PieceWriter {
    bytes: BytesMut,
    count: u32,
}

impl PieceWriter {
    pub(crate) fn new() -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_bytes(0, PIECE_HEADER_BYTES);
        Self { bytes, count: 0 }
    }

    pub(crate) fn push(&mut self, (key, value): &Record) {
        self.bytes.put_u32_le(key.len() as u32);
        self.bytes.put_u32_le(value.as_ref().map_or(DELETED, |value| value.len() as u32));
        self.bytes.put_slice(key);
        self.bytes.put_slice(value.as_deref().unwrap_or_default());
        self.count += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the piece so far.
    pub(crate) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The finished piece.
    pub(crate) fn finish(mut self, kind: PieceKind) -> Bytes {
        let mut header = &mut self.bytes[..PIECE_HEADER_BYTES];
        header.put_slice(&MAGIC);
        header.put_u16_le(VERSION);
        header.put_u8(kind.code());
        header.put_u8(0);
        header.put_u32_le(self.count);
        self.bytes.freeze()
    }
}

/// Reads the records of a piece in order and checks them. Ends after an error.
#[derive(Debug)]
pub(crate) struct PieceReader {
    kind: PieceKind,
    rest: Bytes,
    left: u32,
    last: Option<Bytes>,
}

impl PieceReader {
    pub(crate) fn new(piece: Bytes) -> Result<Self, &'static str> {
        let kind = PieceKind::of(&piece).ok_or("an object is not a piece of a known version")?;
        let left = u32::from_le_bytes([piece[8], piece[9], piece[10], piece[11]]);
        Ok(Self { kind, rest: piece.slice(PIECE_HEADER_BYTES..), left, last: None })
    }

    pub(crate) fn kind(&self) -> PieceKind {
        self.kind
    }

    fn record(&mut self) -> Result<Record, &'static str> {
        let (key, value, _) = split_record(&self.rest)?;
        let (key, value) = (self.rest.slice_ref(key), value.map(|value| self.rest.slice_ref(value)));
        self.rest.advance(RECORD_HEADER_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len));
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err("keys of a piece do not ascend");
        }
        if value.is_none() && self.kind == PieceKind::Chunk {
            return Err("a base chunk holds a deletion");
        }
        self.last = Some(key.clone());
        Ok((key, value))
    }
}

/// Key, value and the remaining bytes.
type Split<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8]);

/// Splits the first record off the records of a piece.
pub(crate) fn split_record(bytes: &[u8]) -> Result<Split<'_>, &'static str> {
    const SHORT: &str = "a piece ends inside a record";
    let (header, body) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or(SHORT)?;
    let [k0, k1, k2, k3, v0, v1, v2, v3] = *header;
    let (key_len, value_len) = (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([v0, v1, v2, v3]));
    let (key, rest) = body.split_at_checked(key_len as usize).ok_or(SHORT)?;
    if value_len == DELETED {
        return Ok((key, None, rest));
    }
    let (value, rest) = rest.split_at_checked(value_len as usize).ok_or(SHORT)?;
    Ok((key, Some(value), rest))
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
            return surplus.then_some(Err("a piece is longer than its records"));
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
mod tests {
    use super::*;

    fn piece(records: &[Record], kind: PieceKind) -> Bytes {
        let mut writer = PieceWriter::new();
        records.iter().for_each(|record| writer.push(record));
        writer.finish(kind)
    }

    fn read(piece: Bytes) -> Result<Vec<Record>, &'static str> {
        PieceReader::new(piece)?.collect()
    }

    #[test]
    fn pieces_round_trip_and_keep_empty_values_and_deletions_apart() {
        let records: Vec<Record> =
            vec![("".into(), Some("1".into())), ("a".into(), Some("".into())), ("b".into(), None)];
        let bytes = piece(&records, PieceKind::RunRest);
        assert_eq!(PieceKind::of(&bytes), Some(PieceKind::RunRest));
        assert_eq!(read(bytes).unwrap(), records);
    }

    #[test]
    fn disorder_deletions_in_the_base_and_trailing_bytes_are_rejected() {
        let twice: Vec<Record> = vec![("a".into(), None), ("a".into(), None)];
        assert!(read(piece(&twice, PieceKind::RunStart)).is_err());
        assert!(read(piece(&twice[..1], PieceKind::Chunk)).is_err());
        let mut longer = piece(&twice[..1], PieceKind::RunStart).to_vec();
        longer.push(0);
        assert!(read(longer.into()).is_err());
    }

    #[test]
    fn hostile_pieces_are_read_in_proportion_and_in_order() {
        use flotilla_hostile::{Proportion, attack, mutated};
        use proptest::{collection::btree_map, option, prelude::*, sample::select};

        let bytes = || prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from);
        let kinds = select(&[PieceKind::Chunk, PieceKind::RunStart, PieceKind::RunRest][..]);
        let valid = (btree_map(bytes(), option::of(bytes()), 0..12), kinds)
            .prop_map(|(records, kind)| piece(&Vec::from_iter(records), kind));
        attack(1_000, mutated(valid), |bytes| {
            let piece = Bytes::from(bytes);
            if let Ok(records) = Proportion::DEFAULT.of(piece.len(), || read(piece.clone())) {
                assert!(records.is_sorted_by(|left, right| left.0 < right.0));
                assert_eq!(
                    super::tests::piece(&records, PieceKind::of(&piece).unwrap()),
                    piece,
                    "the records are the whole piece"
                );
            }
        });
    }
}
