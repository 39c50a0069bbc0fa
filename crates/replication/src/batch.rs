//! The payload of a log entry: one hybrid timestamp and the merged commands.
//!
//! Layout, big-endian: format (u8 = 1), timestamp (u64), count (u32), then for each command its length (u32)
//! and bytes. Decoding shares the entry's buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::Timestamp;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 13;

/// The commands of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Hybrid time of the first command; command *n* has `timestamp.plus(n)`.
    pub timestamp: Timestamp,
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
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload);
        bytes.put_u8(FORMAT);
        bytes.put_u64(self.timestamp.0);
        bytes.put_u32(self.commands.len() as u32);
        for command in &self.commands {
            bytes.put_u32(command.len() as u32);
            bytes.put_slice(command);
        }
        bytes.freeze()
    }

    /// Reads an entry's payload.
    pub fn decode(mut bytes: Bytes) -> Result<Self, BatchError> {
        let short = |_| BatchError::Malformed;
        match bytes.try_get_u8().map_err(short)? {
            FORMAT => {}
            0 => return Err(BatchError::Malformed),
            found => return Err(BatchError::Version { found, known: FORMAT }),
        }
        let timestamp = Timestamp(bytes.try_get_u64().map_err(short)?);
        let count = bytes.try_get_u32().map_err(short)? as usize;
        if timestamp >= Timestamp::MAX || count > bytes.len() / 4 {
            return Err(BatchError::Malformed);
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let length = bytes.try_get_u32().map_err(short)? as usize;
            if length > bytes.len() {
                return Err(BatchError::Malformed);
            }
            commands.push(bytes.split_to(length));
        }
        Ok(Self { timestamp, commands })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{ClusterVersion, Entry};

    use super::*;

    #[test]
    fn a_batch_decodes_to_what_was_encoded() {
        let batch = Batch { timestamp: Timestamp(7), commands: vec![Bytes::from_static(b"one"), Bytes::new()] };
        assert_eq!(Batch::decode(batch.encode()), Ok(batch));
    }

    #[test]
    fn a_truncated_batch_is_refused() {
        let whole = Batch { timestamp: Timestamp(7), commands: vec![Bytes::from_static(b"one")] }.encode();
        for cut in 0..whole.len() {
            assert_eq!(Batch::decode(whole.slice(..cut)), Err(BatchError::Malformed));
        }
    }

    #[test]
    fn a_batch_of_a_newer_format_is_not_taken_for_damage() {
        assert_eq!(Batch::decode(Bytes::from_static(&[2, 0])), Err(BatchError::Version { found: 2, known: FORMAT }));
        assert_eq!(Batch::decode(Bytes::from_static(&[0, 0])), Err(BatchError::Malformed));
    }

    /// So a binary that does not know such entries stops before one, and never skips it.
    #[test]
    fn the_payload_of_an_entry_that_changes_the_shard_is_a_batch_of_its_version() {
        let version = ClusterVersion::SHARD_ENTRIES.0 as u8;
        let decoded = Batch::decode(Bytes::from_static(Entry::SHARD_DATA));
        assert_eq!(decoded, Err(BatchError::Version { found: version, known: FORMAT }));
    }

    #[test]
    fn a_batch_with_a_timestamp_out_of_range_is_refused() {
        // The timestamps of later commands are added to the batch's own and would overflow.
        let batch = |timestamp| Batch { timestamp, commands: vec![Bytes::new(), Bytes::new()] }.encode();
        for timestamp in [Timestamp(u64::MAX), Timestamp::MAX] {
            assert_eq!(Batch::decode(batch(timestamp)), Err(BatchError::Malformed));
        }
        assert!(Batch::decode(batch(Timestamp(Timestamp::MAX.0 - 1))).is_ok());
    }
}
