//! A snapshot of where every key lives.
//!
//! Invariants: a [`ShardMap`] never changes once built; cloning it copies a pointer. It may be older than the
//! truth: a shard's own epoch is what refuses a request that was routed by an old map. It knows no leaders
//! ([`crate::LeaderHints`]) and no addresses.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_types::{Bucket, CollectionId, KeyRange, RecordKey, ShardDescriptor, ShardId};

use crate::bucket_of;

/// How a collection spreads its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharding {
    /// By the hash of the key: even load, scans merge the buckets.
    Hash,
    /// By key order: scans are local, hot ranges are possible.
    Range,
}

/// What routing needs to know of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Its id, never reused.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// How keys are spread.
    pub sharding: Sharding,
    /// Number of buckets; fixed for the collection's life. One for range collections.
    pub buckets: u16,
    /// Replicas wanted for each shard.
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

    /// Every record key the collection can hold.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        KeyRange::of_buckets(self.id, Bucket(0), Bucket(u16::MAX))
    }
}

/// A shard as last reported by its own log.
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
    /// Builds a map. Should two shards claim a key, as may be seen for a moment while a split is being reported, the one
    /// whose range starts later is found.
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

    /// The version of the metadata this was built from. Zero before any was received.
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

    /// Every shard, by the start of its range; the metadata group's first.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.0.shards
    }

    /// The shard that holds a record key.
    #[must_use]
    pub fn shard_of(&self, record_key: &[u8]) -> Option<&Shard> {
        let behind = self.0.shards.partition_point(|shard| &shard.descriptor.range.start[..] <= record_key);
        // Normally the first look finds it; an overlap may put a shorter range before the right one.
        self.0.shards[..behind]
            .iter()
            .rev()
            .take_while(|shard| shard.collection == self.0.shards[behind - 1].collection)
            .find(|shard| shard.descriptor.range.contains(record_key))
    }

    /// The shards that hold any key of a range of record keys, in key order.
    pub fn shards_in(&self, range: &KeyRange) -> impl Iterator<Item = &Shard> {
        let end: Bytes = range.end.clone();
        let range = range.clone();
        let behind = self.0.shards.partition_point(|shard| end.is_empty() || shard.descriptor.range.start < end);
        self.0.shards[..behind].iter().filter(move |shard| !shard.descriptor.range.intersection(&range).is_empty())
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
    fn a_hash_key_is_found_in_the_shard_of_its_bucket() {
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
    fn a_range_key_is_found_by_order() {
        let map = map();
        let find = |key: &[u8]| {
            let record = map.record_key("r", key).expect("collection");
            map.shard_of(record.as_bytes()).map(|shard| shard.descriptor.shard)
        };
        assert_eq!(find(b"a"), Some(ShardId(20)));
        assert_eq!(find(b"lzzz"), Some(ShardId(20)));
        assert_eq!(find(b"m"), Some(ShardId(21)));
        assert_eq!(find(b"{m}a"), Some(ShardId(21)), "tags mean nothing in a range collection");
    }

    #[test]
    fn keys_outside_every_shard_have_none() {
        let map = map();
        assert_eq!(map.shard_of(b""), None);
        let foreign = RecordKey::new(CollectionId(9), Bucket(0), b"k");
        assert_eq!(map.shard_of(foreign.as_bytes()), None);
        let gap = RecordKey::new(CollectionId(1), Bucket(4), b"k");
        assert_eq!(map.shard_of(gap.as_bytes()), None);
    }

    #[test]
    fn a_range_query_lists_its_shards_in_key_order() {
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
