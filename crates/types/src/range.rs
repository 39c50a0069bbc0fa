//! Record keys and key ranges.
//!
//! A record's key is `collection (u32, big-endian) ‖ bucket (u16, big-endian) ‖ key`, so that plain byte
//! order keeps collections and buckets together and a shard is one contiguous range.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::CollectionId;

/// A fixed slice of a hash collection. Range collections use bucket 0 only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub u16);

/// The whole key of a record: collection, bucket and the user's key in one ordered byte string.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(Bytes);

impl RecordKey {
    /// Bytes before the user's key.
    pub const PREFIX_BYTES: usize = 6;

    /// Builds the key from its parts.
    #[must_use]
    pub fn new(collection: CollectionId, bucket: Bucket, key: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(Self::PREFIX_BYTES + key.len());
        bytes.put_u32(collection.0);
        bytes.put_u16(bucket.0);
        bytes.put_slice(key);
        Self(bytes.freeze())
    }

    /// Wraps the bytes of a whole record key; `None` if they are shorter than the prefix.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        (bytes.len() >= Self::PREFIX_BYTES).then_some(Self(bytes))
    }

    /// The collection.
    #[must_use]
    pub fn collection(&self) -> CollectionId {
        CollectionId(u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }

    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> Bucket {
        Bucket(u16::from_be_bytes([self.0[4], self.0[5]]))
    }

    /// The user's key.
    #[must_use]
    pub fn user_key(&self) -> Bytes {
        self.0.slice(Self::PREFIX_BYTES..)
    }

    /// The bytes of the whole key.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes of the whole key.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:?}", self.collection(), self.bucket().0, self.user_key())
    }
}

/// The keys from `start` (inclusive) to `end` (exclusive). An empty `end` means no upper bound.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// The exclusive end; empty for no upper bound.
    pub end: Bytes,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that records of users can have: all but those of [`CollectionId::INTERNAL`].
    #[must_use]
    pub fn of_users() -> Self {
        Self { start: Bytes::new(), end: Self::internal().start }
    }

    /// The keys of [`CollectionId::INTERNAL`].
    #[must_use]
    pub fn internal() -> Self {
        Self { start: Bytes::copy_from_slice(&CollectionId::INTERNAL.0.to_be_bytes()), end: Bytes::new() }
    }

    /// The buckets `first..=last` of a collection.
    #[must_use]
    pub fn of_buckets(collection: CollectionId, first: Bucket, last: Bucket) -> Self {
        let start = RecordKey::new(collection, first, &[]).into_bytes();
        let end = match last.0.checked_add(1) {
            Some(next) => RecordKey::new(collection, Bucket(next), &[]).into_bytes(),
            None => RecordKey::new(collection.next(), Bucket(0), &[]).into_bytes(),
        };
        Self { start, end }
    }

    /// The keys that start with these bytes.
    #[must_use]
    pub fn of_prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        Self { start: Bytes::copy_from_slice(prefix), end: end.into() }
    }

    /// Whether the range contains the key.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether the range can contain no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// The keys that both ranges contain.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        Self { start, end }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}, {:?})", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_by_collection_then_bucket_then_key() {
        let key = |c, b, k: &[u8]| RecordKey::new(CollectionId(c), Bucket(b), k);
        assert!(key(1, 9, b"z") < key(2, 0, b"a"));
        assert!(key(1, 1, b"z") < key(1, 2, b"a"));
        assert_eq!(key(7, 3, b"k").user_key(), &b"k"[..]);
        assert_eq!((key(7, 3, b"").collection(), key(7, 3, b"").bucket()), (CollectionId(7), Bucket(3)));
    }

    #[test]
    fn the_last_bucket_ends_where_the_next_collection_starts() {
        let range = KeyRange::of_buckets(CollectionId(1), Bucket(0), Bucket(u16::MAX));
        assert!(range.contains(RecordKey::new(CollectionId(1), Bucket(u16::MAX), b"\xff\xff").as_bytes()));
        assert!(!range.contains(RecordKey::new(CollectionId(2), Bucket(0), b"").as_bytes()));
    }

    #[test]
    fn a_prefix_of_all_ones_has_no_upper_bound() {
        let range = KeyRange::of_prefix(b"\xff\xff");
        assert!(range.end.is_empty() && range.contains(b"\xff\xff\xff"));
        assert!(KeyRange::of_prefix(b"a\xff").contains(b"a\xff\x00") && !KeyRange::of_prefix(b"a\xff").contains(b"b"));
    }

    #[test]
    fn intersection_treats_an_empty_end_as_unbounded() {
        let left = KeyRange { start: Bytes::from_static(b"b"), end: Bytes::new() };
        let right = KeyRange { start: Bytes::from_static(b"a"), end: Bytes::from_static(b"c") };
        let both = left.intersection(&right);
        assert_eq!((&both.start[..], &both.end[..]), (&b"b"[..], &b"c"[..]));
    }
}
