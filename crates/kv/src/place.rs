//! The records that say when others expire, and their order.
//!
//! From [`flotilla_types::ClusterVersion::EXPIRY_RECORDS`] on, each record that expires has a second one in a
//! collection that no user has: so whoever needs the next ones to expire reads a short range, and a load none
//! at all. Format of its key, integers big-endian: the prefix of [`CollectionId::INTERNAL`] and
//! [`EXPIRIES`] ‖ expiry ms u64 ‖ the whole key of the record; of its value: the record's bytes u64.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::MachineError;
use flotilla_types::{Bucket, CollectionId, KeyRange, RecordKey};

/// Of the machine's own records, those that say when others expire.
const EXPIRIES: Bucket = Bucket(0);

const KEY_AT: usize = RecordKey::PREFIX_BYTES + 8;
const MALFORMED: MachineError = MachineError::Corrupt("a record that says when another expires does not parse");

/// The place of a record in the order in which due records are removed: by expiry, then by key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Unix milliseconds.
    pub(crate) at_ms: u64,
    /// The whole record key.
    pub(crate) key: Bytes,
}

impl Place {
    pub(crate) fn new(at_ms: u64, key: Bytes) -> Self {
        Self { at_ms, key }
    }

    /// The same place with a copy of the key: a key that was read is often a slice of a whole block.
    pub(crate) fn unshared(self) -> Self {
        Self { key: Bytes::copy_from_slice(&self.key), ..self }
    }

    /// Before all records that expire at this time or later.
    pub(crate) fn first_at(at_ms: u64) -> Self {
        Self { at_ms, key: Bytes::new() }
    }

    /// After all records that expire at this time or earlier; `None` if that is after all.
    pub(crate) fn after(at_ms: u64) -> Option<Self> {
        at_ms.checked_add(1).map(Self::first_at)
    }

    /// The key of the record that says so.
    pub(crate) fn stored_key(&self) -> Bytes {
        let mut suffix = BytesMut::with_capacity(8 + self.key.len());
        suffix.put_u64(self.at_ms);
        suffix.put_slice(&self.key);
        RecordKey::new(CollectionId::INTERNAL, EXPIRIES, &suffix).into_bytes()
    }

    /// The place that a key of these records stands for; it may be less than any that a record has.
    pub(crate) fn of_stored_key(key: &Bytes) -> Result<Self, MachineError> {
        let at_ms = key.get(RecordKey::PREFIX_BYTES..KEY_AT).ok_or(MALFORMED)?;
        let at_ms = at_ms.try_into().map_err(|_| MALFORMED)?;
        Ok(Self { at_ms: u64::from_be_bytes(at_ms), key: key.slice(KEY_AT..) })
    }
}

/// The range of the records that say when others expire, from a place on, up to one if it is given.
pub(crate) fn stored_range(from: &Place, to: Option<&Place>) -> KeyRange {
    let end =
        to.map_or_else(|| KeyRange::of_buckets(CollectionId::INTERNAL, EXPIRIES, EXPIRIES).end, Place::stored_key);
    KeyRange { start: from.stored_key(), end }
}

/// The value of such a record.
pub(crate) fn encode_bytes(bytes: u64) -> Bytes {
    Bytes::copy_from_slice(&bytes.to_be_bytes())
}

/// The bytes of the record that expires, from such a value.
pub(crate) fn decode_bytes(value: &Bytes) -> Result<u64, MachineError> {
    value[..].try_into().map(u64::from_be_bytes).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_round_trip_and_keep_their_order(places: Vec<(u64, Vec<u8>)>) {
            let mut places: Vec<_> = places.into_iter().map(|(at_ms, key)| Place::new(at_ms, key.into())).collect();
            places.sort();
            prop_assert!(places.iter().is_sorted_by_key(|place| place.stored_key()));
            for place in &places {
                let key = place.stored_key();
                prop_assert_eq!(&Place::of_stored_key(&key).unwrap(), place);
                prop_assert!(stored_range(&Place::first_at(0), None).contains(&key));
                prop_assert!(!stored_range(&Place::first_at(0), Some(place)).contains(&key));
                prop_assert!(!KeyRange::of_users().contains(&key));
            }
        }
    }

    #[test]
    fn damage_is_a_typed_error() {
        let key = Place::new(5, Bytes::from_static(b"k")).stored_key();
        assert!((0..KEY_AT).all(|end| Place::of_stored_key(&key.slice(..end)).is_err()));
        let value = encode_bytes(7);
        assert!(matches!(decode_bytes(&value), Ok(7)));
        assert!((0..8).all(|end| decode_bytes(&value.slice(..end)).is_err()));
        assert!(decode_bytes(&Bytes::from_static(&[0; 9])).is_err());
    }
}
