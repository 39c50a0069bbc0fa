//! The shard map: a snapshot of which shard holds which keys.
//!
//! Invariants: a [`ShardMap`] is immutable; cloning it copies a pointer. It may be stale: a shard refuses a
//! request that was routed by an old map because of its epoch. It has no leaders ([`crate::LeaderHints`]) and
//! no addresses.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_types::{Bucket, CollectionId, KeyRange, RecordKey, ShardDescriptor, ShardId};

use crate::bucket_of;

/// How a collection distributes its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharding {
    /// By the hash of the key: even load, but scans must merge the buckets.
    Hash,
    /// By key order: scans are local, but ranges can be hot.
    Range,
}

/// The routing information of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Its id, never reused.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// How keys are distributed.
    pub sharding: Sharding,
    /// Number of buckets, which never changes. One for range collections.
    pub buckets: u16,
    /// Desired replicas of each shard.
    pub replicas: u8,
}

impl Collection {
    /// The record key under which a user's key is stored.
    #[must_use]
    pub fn record_key(&self, user_key: &[u8]) -> RecordKey {
        RecordKey::new(self.id, self.bucket(user_key), user_key)
    }

    /// The bucket of a user's key.
    #[must_use]
    pub fn bucket(&self, user_key: &[u8]) -> Bucket {
        match self.sharding {
            Sharding::Hash => bucket_of(user_key, self.buckets),
            Sharding::Range => Bucket(0),
        }
    }

    /// The range of all record keys of the collection.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        KeyRange::of_buckets(self.id, Bucket(0), Bucket(u16::MAX))
    }
}

/// A shard, as its own log last reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The collection it belongs to; [`CollectionId::SYSTEM`] for the metadata group.
    pub collection: CollectionId,
    /// Range, epoch and replicas.
    pub descriptor: ShardDescriptor,
}

/// Collections and shards at one version of the metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMap(Arc<Inner>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Inner {
    version: u64,
    collections: BTreeMap<String, Collection>,
    /// Ordered by the start of the range.
    shards: Vec<Shard>,
    positions: BTreeMap<ShardId, usize>,
}

impl ShardMap {
    /// Builds a map. If two shards contain a key, which can happen while a split is being reported, lookups
    /// find the one whose range starts later.
    #[must_use]
    pub fn new(
        version: u64,
        collections: impl IntoIterator<Item = Collection>,
        shards: impl IntoIterator<Item = Shard>,
    ) -> Self {
        let collections = collections.into_iter().map(|collection| (collection.name.clone(), collection)).collect();
        let mut shards: Vec<Shard> = shards.into_iter().collect();
        shards.sort_by(|a, b| {
            (&a.descriptor.range.start, a.descriptor.shard).cmp(&(&b.descriptor.range.start, b.descriptor.shard))
        });
        let positions = shards.iter().enumerate().map(|(i, shard)| (shard.descriptor.shard, i)).collect();
        Self(Arc::new(Inner { version, collections, shards, positions }))
    }

    /// The version of the metadata it was built from; zero before any was received.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// The collection with this name.
    #[must_use]
    pub fn collection(&self, name: &str) -> Option<&Collection> {
        self.0.collections.get(name)
    }

    /// Every collection, by name.
    pub fn collections(&self) -> impl Iterator<Item = &Collection> {
        self.0.collections.values()
    }

    /// The record key of a user's key in a named collection.
    #[must_use]
    pub fn record_key(&self, collection: &str, user_key: &[u8]) -> Option<RecordKey> {
        self.collection(collection).map(|collection| collection.record_key(user_key))
    }

    /// A shard by id.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.0.positions.get(&shard).and_then(|&i| self.0.shards.get(i))
    }

    /// Every shard, ordered by the start of its range; the metadata group's is first.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.0.shards
    }

    /// The shard that holds a record key.
    #[must_use]
    pub fn shard_of(&self, record_key: &[u8]) -> Option<&Shard> {
        let end = self.0.shards.partition_point(|shard| &shard.descriptor.range.start[..] <= record_key);
        // Normally the last candidate contains the key; in an overlap a shorter range may come after the
        // right one.
        self.0.shards[..end]
            .iter()
            .rev()
            .take_while(|shard| shard.collection == self.0.shards[end - 1].collection)
            .find(|shard| shard.descriptor.range.contains(record_key))
    }

    /// The shards whose range intersects a range of record keys, in key order.
    pub fn shards_in(&self, range: &KeyRange) -> impl Iterator<Item = &Shard> {
        let range = range.clone();
        let end =
            self.0.shards.partition_point(|shard| range.end.is_empty() || shard.descriptor.range.start < range.end);
        self.0.shards[..end].iter().filter(move |shard| !shard.descriptor.range.intersection(&range).is_empty())
    }

    /// The shards of a collection, in key order.
    pub fn shards_of_collection(&self, collection: CollectionId) -> impl Iterator<Item = &Shard> {
        let range = KeyRange::of_buckets(collection, Bucket(0), Bucket(u16::MAX));
        let first = self.0.shards.partition_point(|shard| shard.descriptor.range.start < range.start);
        self.0.shards[first..].iter().take_while(move |shard| shard.collection == collection)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::Epoch;

    use super::*;

    fn shard(id: u64, collection: u32, range: KeyRange) -> Shard {
        let descriptor =
            ShardDescriptor { shard: ShardId(id), range, epoch: Epoch { range: 1, config: 1 }, replicas: Vec::new() };
        Shard { collection: CollectionId(collection), descriptor }
    }

    fn collection(id: u32, name: &str, sharding: Sharding, buckets: u16) -> Collection {
        Collection { id: CollectionId(id), name: name.to_owned(), sharding, buckets, replicas: 3 }
    }

    fn map() -> ShardMap {
        let hash =
            (0..4).map(|i| shard(10 + u64::from(i), 1, KeyRange::of_buckets(CollectionId(1), Bucket(i), Bucket(i))));
        let split = RecordKey::new(CollectionId(2), Bucket(0), b"m").into_bytes();
        let whole = KeyRange::of_buckets(CollectionId(2), Bucket(0), Bucket(0));
        let left = KeyRange { start: whole.start.clone(), end: split.clone() };
        let right = KeyRange { start: split, end: whole.end };
        let shards = hash.chain([shard(21, 2, right), shard(20, 2, left)]);
        ShardMap::new(7, [collection(1, "h", Sharding::Hash, 4), collection(2, "r", Sharding::Range, 1)], shards)
    }

    #[test]
    fn hash_key_is_found_in_the_shard_of_its_bucket() {
        let map = map();
        for i in 0..100 {
            let key = format!("k{i}");
            let record = map.record_key("h", key.as_bytes()).expect("collection");
            let found = map.shard_of(record.as_bytes()).expect("shard");
            assert_eq!(found.descriptor.shard, ShardId(10 + u64::from(record.bucket().0)));
        }
        assert_eq!(map.record_key("none", b"k"), None);
    }

    #[test]
    fn range_key_is_found_by_order() {
        let map = map();
        let find = |key: &[u8]| {
            let record = map.record_key("r", key).expect("collection");
            map.shard_of(record.as_bytes()).map(|shard| shard.descriptor.shard)
        };
        assert_eq!(find(b"a"), Some(ShardId(20)));
        assert_eq!(find(b"lzzz"), Some(ShardId(20)));
        assert_eq!(find(b"m"), Some(ShardId(21)));
        assert_eq!(find(b"{m}a"), Some(ShardId(21)), "range collections ignore tags");
    }

    #[test]
    fn keys_outside_every_shard_are_not_found() {
        let map = map();
        assert_eq!(map.shard_of(b""), None);
        let foreign = RecordKey::new(CollectionId(9), Bucket(0), b"k");
        assert_eq!(map.shard_of(foreign.as_bytes()), None);
        let gap = RecordKey::new(CollectionId(1), Bucket(4), b"k");
        assert_eq!(map.shard_of(gap.as_bytes()), None);
    }

    #[test]
    fn shards_in_a_range_are_listed_in_key_order() {
        let map = map();
        let ids = |range: &KeyRange| map.shards_in(range).map(|shard| shard.descriptor.shard.0).collect::<Vec<_>>();
        assert_eq!(ids(&KeyRange::all()), [10, 11, 12, 13, 20, 21]);
        assert_eq!(ids(&KeyRange::of_buckets(CollectionId(1), Bucket(1), Bucket(2))), [11, 12]);
        let from_n = RecordKey::new(CollectionId(2), Bucket(0), b"n").into_bytes();
        assert_eq!(ids(&KeyRange { start: from_n, end: Bytes::new() }), [21]);
        let collection: Vec<_> =
            map.shards_of_collection(CollectionId(2)).map(|shard| shard.descriptor.shard.0).collect();
        assert_eq!(collection, [20, 21]);
        assert_eq!(map.shards_of_collection(CollectionId(3)).count(), 0);
    }
}
