//! The payload of a log entry: one hybrid timestamp, the merged commands, and the objects that they refer to.
//!
//! Layout, big-endian: format (u8), timestamp (u64), count (u32), in format 2 the references (see [`Refs`]), then
//! for each command its length (u32) and bytes. Format 2 is used if and only if there are references; they are
//! read without the commands. Decoding shares the entry's buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{ByteOrder, Entry, EntryKind, Refs, Timestamp};

const FORMAT: u8 = 1;
const FORMAT_WITH_REFS: u8 = 2;
const HEADER_BYTES: usize = 13;

/// The commands of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Hybrid time of the first command; command *n* has `timestamp.plus(n)`.
    pub timestamp: Timestamp,
    /// The objects that a replica needs, durable, before it may take the entry into its log.
    pub refs: Refs,
    /// In apply order.
    pub commands: Vec<Bytes>,
}

/// A committed entry is not a batch that this binary reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It does not parse: the log is damaged.
    #[error("the entry is not a batch of commands")]
    Malformed,
    /// Its format is newer. Upgrade the binary.
    #[error("the entry has format {found}, newer than {known}")]
    Version {
        /// Format of the entry.
        found: u8,
        /// Newest format that this binary reads.
        known: u8,
    },
}

impl Batch {
    /// The entry's payload.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let payload: usize = self.commands.iter().map(|command| 4 + command.len()).sum();
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.refs.encoded_bytes() + payload);
        bytes.put_u8(if self.refs.is_empty() { FORMAT } else { FORMAT_WITH_REFS });
        bytes.put_u64(self.timestamp.0);
        bytes.put_u32(self.commands.len() as u32);
        if !self.refs.is_empty() {
            self.refs.encode(&mut bytes, ByteOrder::Big);
        }
        for command in &self.commands {
            bytes.put_u32(command.len() as u32);
            bytes.put_slice(command);
        }
        bytes.freeze()
    }

    /// Reads an entry's payload.
    pub fn decode(mut bytes: Bytes) -> Result<Self, BatchError> {
        let (timestamp, count, refs) = decode_header(&mut bytes)?;
        if timestamp >= Timestamp::MAX || count > bytes.len() / 4 {
            return Err(BatchError::Malformed);
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let length = bytes.try_get_u32().map_err(|_| BatchError::Malformed)? as usize;
            if length > bytes.len() {
                return Err(BatchError::Malformed);
            }
            commands.push(bytes.split_to(length));
        }
        Ok(Self { timestamp, refs, commands })
    }
}

fn decode_header(bytes: &mut impl Buf) -> Result<(Timestamp, usize, Refs), BatchError> {
    let short = |_| BatchError::Malformed;
    let format = bytes.try_get_u8().map_err(short)?;
    match format {
        FORMAT | FORMAT_WITH_REFS => {}
        0 => return Err(BatchError::Malformed),
        found => return Err(BatchError::Version { found, known: FORMAT_WITH_REFS }),
    }
    let timestamp = Timestamp(bytes.try_get_u64().map_err(short)?);
    let count = bytes.try_get_u32().map_err(short)? as usize;
    let refs = if format == FORMAT { Refs::NONE } else { decode_refs(bytes)? };
    Ok((timestamp, count, refs))
}

fn decode_refs(bytes: &mut impl Buf) -> Result<Refs, BatchError> {
    Refs::decode(bytes, ByteOrder::Big).map_err(|_| BatchError::Malformed)
}

/// The objects that an entry refers to. One that is no batch refers to none: what it is, is found out where it is
/// applied.
#[must_use]
pub fn refs_of(entry: &Entry) -> Refs {
    if entry.kind != EntryKind::Normal || entry.data.first() != Some(&FORMAT_WITH_REFS) {
        return Refs::NONE;
    }
    decode_header(&mut &entry.data[..]).map(|(_, _, refs)| refs).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flotilla_types::{ClusterVersion, LogIndex, ObjectId, ObjectRef, Term};

    use super::*;

    fn refs(count: u8) -> Refs {
        (0..count).map(|n| ObjectRef { id: ObjectId::of(&[n]), height: n % 3, bytes: n.into() }).collect()
    }

    fn entry(data: Bytes) -> Entry {
        Entry { index: LogIndex(1), term: Term(1), kind: EntryKind::Normal, data, context: Bytes::new() }
    }

    /// Entries are stored and exchanged, so their bytes must not change; older binaries read format 1.
    #[test]
    fn the_bytes_of_a_batch_are_these() {
        let text = |refs| {
            let batch = Batch { timestamp: Timestamp(7), refs, commands: vec![Bytes::from_static(b"one")] };
            batch.encode().escape_ascii().to_string()
        };
        let time = r"\x00\x00\x00\x00\x00\x00\x00\x07";
        let (count, command) = (r"\x00\x00\x00\x01", r"\x00\x00\x00\x03one");
        assert_eq!(text(Refs::NONE), [r"\x01", time, count, command].concat());
        let refs = [ObjectRef { id: ObjectId([7; 32]), height: 2, bytes: 258 }].into_iter().collect();
        let reference = [&r"\x07".repeat(32), r"\x02", r"\x00\x00\x00\x00\x00\x00\x01\x02"].concat();
        assert_eq!(text(refs), [r"\x02", time, count, r"\x00\x01", &reference, command].concat());
    }

    #[test]
    fn only_entries_with_commands_refer_to_objects() {
        let batch = Batch { timestamp: Timestamp(7), refs: refs(2), commands: Vec::new() }.encode();
        let change = Entry { kind: EntryKind::ConfChange, ..entry(batch) };
        for other in [change, entry(Bytes::from_static(Entry::SHARD_DATA)), entry(Bytes::new())] {
            assert_eq!(refs_of(&other), Refs::NONE);
        }
    }

    #[test]
    fn a_batch_decodes_to_what_was_encoded() {
        for count in [0, 1, 3] {
            let commands = vec![Bytes::from_static(b"one"), Bytes::new()];
            let batch = Batch { timestamp: Timestamp(7), refs: refs(count), commands };
            assert_eq!(refs_of(&entry(batch.encode())), batch.refs, "they are read without the commands");
            assert_eq!(Batch::decode(batch.encode()), Ok(batch));
        }
    }

    #[test]
    fn a_truncated_batch_is_refused() {
        for count in [0, 2] {
            let commands = vec![Bytes::from_static(b"one")];
            let whole = Batch { timestamp: Timestamp(7), refs: refs(count), commands }.encode();
            for cut in 0..whole.len() {
                assert_eq!(Batch::decode(whole.slice(..cut)), Err(BatchError::Malformed));
                let found = refs_of(&entry(whole.slice(..cut)));
                assert!(found.is_empty() || found == refs(count));
            }
        }
    }

    #[test]
    fn a_batch_of_a_newer_format_is_not_taken_for_damage() {
        assert_eq!(
            Batch::decode(Bytes::from_static(&[3, 0])),
            Err(BatchError::Version { found: 3, known: FORMAT_WITH_REFS })
        );
        assert_eq!(Batch::decode(Bytes::from_static(&[0, 0])), Err(BatchError::Malformed));
    }

    /// So a binary that does not know such entries stops before one, and never skips it.
    #[test]
    fn the_payload_of_an_entry_that_changes_the_shard_is_a_batch_of_its_version() {
        let version = ClusterVersion::SHARD_ENTRIES.0 as u8;
        let decoded = Batch::decode(Bytes::from_static(Entry::SHARD_DATA));
        assert_eq!(decoded, Err(BatchError::Version { found: version, known: FORMAT_WITH_REFS }));
    }

    #[test]
    fn a_batch_with_a_timestamp_out_of_range_is_refused() {
        // The timestamps of later commands are added to the batch's own and would overflow.
        let batch =
            |timestamp| Batch { timestamp, refs: Refs::NONE, commands: vec![Bytes::new(), Bytes::new()] }.encode();
        for timestamp in [Timestamp(u64::MAX), Timestamp::MAX] {
            assert_eq!(Batch::decode(batch(timestamp)), Err(BatchError::Malformed));
        }
        assert!(Batch::decode(batch(Timestamp(Timestamp::MAX.0 - 1))).is_ok());
    }
}
