//! The stored form of a record: a header with version and expiry, then the value.
//!
//! Format, integers big-endian: `1 ‖ version u64 ‖ value` without expiry, `2 ‖ version u64 ‖ expiry ms u64 ‖
//! value` with one. Decoding does not copy the value.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::MachineError;
use flotilla_types::Timestamp;

const WITHOUT_EXPIRY: u8 = 1;
const WITH_EXPIRY: u8 = 2;
const HEADER_BYTES_MAX: usize = 17;

/// A record as stored, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub(crate) version: Timestamp,
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) value: Bytes,
}

impl StoredRecord {
    /// Whether the record has expired at this time.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES_MAX + self.value.len());
        bytes.put_u8(if self.expires_at_ms.is_some() { WITH_EXPIRY } else { WITHOUT_EXPIRY });
        bytes.put_u64(self.version.0);
        if let Some(at_ms) = self.expires_at_ms {
            bytes.put_u64(at_ms);
        }
        bytes.put_slice(&self.value);
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, MachineError> {
        let short = |_| MachineError::Corrupt("a record is shorter than its header");
        let format = bytes.try_get_u8().map_err(short)?;
        let version = Timestamp(bytes.try_get_u64().map_err(short)?);
        let expires_at_ms = match format {
            WITHOUT_EXPIRY => None,
            WITH_EXPIRY => Some(bytes.try_get_u64().map_err(short)?),
            _ => return Err(MachineError::Corrupt("a record has an unknown format")),
        };
        Ok(Self { version, expires_at_ms, value: bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_round_trip(version: u64, expires_at_ms: Option<u64>, value: Vec<u8>) {
            let record = StoredRecord { version: Timestamp(version), expires_at_ms, value: value.into() };
            prop_assert_eq!(StoredRecord::decode(record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn a_truncated_header_is_an_error() {
        let record = StoredRecord { version: Timestamp(1), expires_at_ms: Some(2), value: Bytes::new() };
        let bytes = record.encode();
        assert!((0..bytes.len()).all(|end| StoredRecord::decode(bytes.slice(..end)).is_err()));
    }
}
