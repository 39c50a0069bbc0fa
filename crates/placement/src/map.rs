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
    /// For each shard: which of its collection's shards up to it ends last.
    furthest: Vec<usize>,
}

impl ShardMap {
    /// Builds a map. If two shards contain a key, which can happen while a change of ranges becomes known,
    /// lookups find the one with the higher range epoch, or else the one whose range starts later.
    #[must_use]
    pub fn new(
        version: u64,
        collections: impl IntoIterator<Item = Collection>,
        shards: impl IntoIterator<Item = Shard>,
    ) -> Self {
        let collections = collections.into_iter().map(|collection| (collection.name.clone(), collection)).collect();
        Self::build(version, collections, shards.into_iter().collect())
    }

    /// The same metadata with these shards, each in place of the one with its id if there is one.
    #[must_use]
    pub fn with<'a>(&self, newer: impl IntoIterator<Item = &'a Shard>) -> Self {
        let newer: BTreeMap<_, _> = newer.into_iter().map(|shard| (shard.descriptor.shard, shard)).collect();
        let kept = self.0.shards.iter().filter(|shard| !newer.contains_key(&shard.descriptor.shard));
        let shards = kept.chain(newer.values().copied()).cloned().collect();
        Self::build(self.0.version, self.0.collections.clone(), shards)
    }

    fn build(version: u64, collections: BTreeMap<String, Collection>, mut shards: Vec<Shard>) -> Self {
        shards.sort_by(|a, b| {
            (&a.descriptor.range.start, a.descriptor.shard).cmp(&(&b.descriptor.range.start, b.descriptor.shard))
        });
        let positions = shards.iter().enumerate().map(|(i, shard)| (shard.descriptor.shard, i)).collect();
        let mut furthest: Vec<usize> = Vec::with_capacity(shards.len());
        for (at, shard) in shards.iter().enumerate() {
            let before = furthest.last().copied().filter(|before| {
                let before = &shards[*before];
                before.collection == shard.collection && ends_later(&before.descriptor.range, &shard.descriptor.range)
            });
            furthest.push(before.unwrap_or(at));
        }
        Self(Arc::new(Inner { version, collections, shards, positions, furthest }))
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
        let Inner { shards, furthest, .. } = &*self.0;
        let end = shards.partition_point(|shard| &shard.descriptor.range.start[..] <= record_key);
        let collection = shards[..end].last()?.collection;
        let mut found: Option<&Shard> = None;
        for (shard, furthest) in shards[..end].iter().zip(furthest).rev() {
            let reach = &shards[*furthest].descriptor.range;
            if shard.collection != collection || !reach.contains(record_key) {
                break;
            }
            let is_newer = |found: &Shard| found.descriptor.epoch.range < shard.descriptor.epoch.range;
            if shard.descriptor.range.contains(record_key) && found.is_none_or(is_newer) {
                found = Some(shard);
            }
        }
        found
    }
}

fn ends_later(range: &KeyRange, other: &KeyRange) -> bool {
    !other.end.is_empty() && (range.end.is_empty() || range.end > other.end)
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

    /// A shard of the range collection: its id, range epoch, and range of user's keys.
    fn piece(id: u64, range_epoch: u64, start: &str, end: &str) -> Shard {
        let bound = |key: &str| RecordKey::new(CollectionId(2), Bucket(0), key.as_bytes()).into_bytes();
        let mut shard = shard(id, 2, KeyRange { start: bound(start), end: bound(end) });
        shard.descriptor.epoch.range = range_epoch;
        shard
    }

    fn homes(map: &ShardMap, keys: &str) -> Vec<Option<u64>> {
        let record = |key: char| RecordKey::new(CollectionId(2), Bucket(0), key.to_string().as_bytes());
        keys.chars().map(|key| map.shard_of(record(key).as_bytes()).map(|shard| shard.descriptor.shard.0)).collect()
    }

    #[test]
    fn the_newest_shard_that_contains_a_key_is_found() {
        let of = |shards: Vec<Shard>| ShardMap::new(7, [collection(2, "r", Sharding::Range, 1)], shards);
        let reported_split = of(vec![piece(1, 1, "a", "z"), piece(2, 2, "m", "z")]);
        assert_eq!(homes(&reported_split, "bmy"), [Some(1), Some(2), Some(2)]);
        let merged = of(vec![piece(1, 3, "a", "z"), piece(2, 2, "m", "p"), piece(3, 2, "p", "z")]);
        assert_eq!(homes(&merged, "bmpy"), [Some(1); 4]);
        let merged_and_split = of(vec![piece(1, 4, "a", "p"), piece(2, 1, "m", "z")]);
        assert_eq!(homes(&merged_and_split, "bnq"), [Some(1), Some(1), Some(2)]);
        let same_epoch = of(vec![piece(1, 1, "a", "z"), piece(2, 1, "m", "p")]);
        assert_eq!(homes(&same_epoch, "bmq"), [Some(1), Some(2), Some(1)]);
    }

    #[test]
    fn newer_shards_replace_or_join_those_of_the_metadata() {
        let map = map();
        let before = homes(&map, "an");
        let after = map.with(&[piece(21, 2, "m", "t"), piece(30, 2, "t", "zz")]);
        assert_eq!((before, homes(&after, "anu")), (vec![Some(20), Some(21)], vec![Some(20), Some(21), Some(30)]));
        assert_eq!(after.shard(ShardId(21)).map(|shard| shard.descriptor.epoch.range), Some(2));
        assert_eq!((after.version(), after.shards().len()), (map.version(), map.shards().len() + 1));
        assert_eq!(homes(&map.with(&[piece(21, 2, "m", "t")]), "u"), [None], "the new owner is not known yet");
    }

    proptest::proptest! {
        /// Against the definition: of all shards that contain a key, the newest.
        #[test]
        fn lookups_agree_with_a_search_of_all_shards(
            ranges in proptest::collection::vec((0_u8..12, 1_u8..6, 1_u64..4), 0..10),
            key in 0_u8..20,
        ) {
            let letter = |at: u8| char::from(b'a' + at).to_string();
            let pieces = ranges.iter().zip(1..);
            let shards: Vec<_> = pieces
                .map(|((start, length, epoch), id)| piece(id, *epoch, &letter(*start), &letter(start + length)))
                .collect();
            let map = ShardMap::new(1, [], shards.clone());
            let record = RecordKey::new(CollectionId(2), Bucket(0), letter(key).as_bytes()).into_bytes();
            let holders = shards.iter().filter(|shard| shard.descriptor.range.contains(&record));
            let rank = |shard: &&Shard| {
                (shard.descriptor.epoch.range, shard.descriptor.range.start.clone(), shard.descriptor.shard)
            };
            proptest::prop_assert_eq!(map.shard_of(&record), holders.max_by_key(rank));
        }
    }
}
