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

/// A committed entry does not parse: the log is damaged, or written by a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry is not a batch of commands of a known version")]
pub struct BatchError;

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
        if bytes.try_get_u8().map_err(|_| BatchError)? != FORMAT {
            return Err(BatchError);
        }
        let timestamp = Timestamp(bytes.try_get_u64().map_err(|_| BatchError)?);
        let count = bytes.try_get_u32().map_err(|_| BatchError)? as usize;
        if timestamp >= Timestamp::MAX || count > bytes.len() / 4 {
            return Err(BatchError);
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let length = bytes.try_get_u32().map_err(|_| BatchError)? as usize;
            if length > bytes.len() {
                return Err(BatchError);
            }
            commands.push(bytes.split_to(length));
        }
        Ok(Self { timestamp, commands })
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(Batch::decode(whole.slice(..cut)), Err(BatchError));
        }
    }

    #[test]
    fn a_batch_with_a_timestamp_out_of_range_is_refused() {
        // The timestamps of later commands are added to the batch's own and would overflow.
        let batch = |timestamp| Batch { timestamp, commands: vec![Bytes::new(), Bytes::new()] }.encode();
        for timestamp in [Timestamp(u64::MAX), Timestamp::MAX] {
            assert_eq!(Batch::decode(batch(timestamp)), Err(BatchError));
        }
        assert!(Batch::decode(batch(Timestamp(Timestamp::MAX.0 - 1))).is_ok());
    }
}
