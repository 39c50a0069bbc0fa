//! The stored form of a record: a header with version and expiry, then the value.
//!
//! Formats, integers big-endian:
//!
//! - `1 ‖ version u64 ‖ value` without expiry, `2 ‖ version u64 ‖ expiry ms u64 ‖ value` with one;
//! - `3 ‖ parts u8 ‖ version u64 ‖ what the parts say ‖ value` for a value that is large or has a media type. Parts:
//!   1, `expiry ms u64`; 2, `length u8 ‖ media type`; 4, nothing: the value is a [`ValueRef`].
//!
//! A record has one encoding. Decoding does not copy the value.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::MachineError;
use flotilla_types::Timestamp;
use flotilla_values::ValueRef;

use crate::{Content, MEDIA_TYPE_BYTES_MAX, Value};

const WITHOUT_EXPIRY: u8 = 1;
const WITH_EXPIRY: u8 = 2;
const IN_PARTS: u8 = 3;

const EXPIRY: u8 = 1;
const MEDIA_TYPE: u8 = 2;
const LARGE: u8 = 4;

const HEADER_BYTES_MAX: usize = 2 + 8 + 8 + 1;

/// A record as stored, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub(crate) version: Timestamp,
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) value: Value,
}

impl StoredRecord {
    /// Whether the record has expired at this time.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// The record as storage keeps it, with the objects that it needs.
    pub(crate) fn stored(&self) -> flotilla_storage::Value {
        flotilla_storage::Value::new(self.encode(), self.value.refs())
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Value { content, media_type } = &self.value;
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES_MAX + self.value.stored_bytes());
        let part = |is_there: bool, part| if is_there { part } else { 0 };
        if self.value.is_extended() {
            bytes.put_u8(IN_PARTS);
            bytes.put_u8(
                part(self.expires_at_ms.is_some(), EXPIRY)
                    | part(!media_type.is_empty(), MEDIA_TYPE)
                    | part(matches!(content, Content::Large(_)), LARGE),
            );
        } else {
            bytes.put_u8(if self.expires_at_ms.is_some() { WITH_EXPIRY } else { WITHOUT_EXPIRY });
        }
        bytes.put_u64(self.version.0);
        if let Some(at_ms) = self.expires_at_ms {
            bytes.put_u64(at_ms);
        }
        if !media_type.is_empty() {
            // Commands with longer ones are refused.
            let media_type = &media_type[..media_type.len().min(MEDIA_TYPE_BYTES_MAX)];
            bytes.put_u8(media_type.len() as u8);
            bytes.put_slice(media_type);
        }
        match content {
            Content::Inline(value) => bytes.put_slice(value),
            Content::Large(value) => bytes.put_slice(&value.encode()),
        }
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, MachineError> {
        let short = |_| MachineError::Corrupt("a record is shorter than its header");
        let parts = match bytes.try_get_u8().map_err(short)? {
            WITHOUT_EXPIRY => 0,
            WITH_EXPIRY => EXPIRY,
            IN_PARTS => match bytes.try_get_u8().map_err(short)? {
                parts @ 2..=7 => parts,
                _ => return Err(MachineError::Corrupt("a record has unknown parts")),
            },
            _ => return Err(MachineError::Corrupt("a record has an unknown format")),
        };
        let version = Timestamp(bytes.try_get_u64().map_err(short)?);
        let expires_at_ms = if parts & EXPIRY == 0 { None } else { Some(bytes.try_get_u64().map_err(short)?) };
        let mut media_type = Bytes::new();
        if parts & MEDIA_TYPE != 0 {
            let length = usize::from(bytes.try_get_u8().map_err(short)?);
            if length == 0 || length > bytes.len() {
                return Err(MachineError::Corrupt("a record has a bad media type"));
            }
            media_type = bytes.split_to(length);
        }
        let content = if parts & LARGE == 0 {
            Content::Inline(bytes)
        } else {
            let value = ValueRef::decode(&bytes);
            Content::Large(value.map_err(|_| MachineError::Corrupt("the reference of a record does not parse"))?)
        };
        Ok(Self { version, expires_at_ms, value: Value { content, media_type } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    proptest! {
        #[test]
        fn records_round_trip(version: u64, expires_at_ms: Option<u64>, value in testing::value()) {
            let record = StoredRecord { version: Timestamp(version), expires_at_ms, value };
            let encoded = record.encode();
            prop_assert_eq!(StoredRecord::decode(encoded.clone()).unwrap(), record.clone());
            prop_assert_eq!(encoded[0] == IN_PARTS, record.value.is_extended());
            let stored = record.stored();
            prop_assert_eq!(stored.refs(), &record.value.refs());
        }

        #[test]
        fn a_record_has_one_encoding(bytes: Vec<u8>, format in 0..5u8, parts in 0..9u8) {
            let bytes = Bytes::from([&[format, parts][..], &bytes].concat());
            if let Ok(record) = StoredRecord::decode(bytes.clone()) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_truncated_header_is_an_error() {
        let record = StoredRecord { version: Timestamp(1), expires_at_ms: Some(2), value: Value::default() };
        let typed = Value { media_type: Bytes::from_static(b"text/plain"), ..Value::default() };
        for bytes in [record.encode(), StoredRecord { value: typed, ..record }.encode()] {
            assert!((0..bytes.len()).all(|end| StoredRecord::decode(bytes.slice(..end)).is_err()));
        }
    }
}
