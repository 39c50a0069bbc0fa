//! The shard map: a snapshot of which shard holds which keys.
//!
//! Invariants: a [`ShardMap`] is immutable; cloning it copies a pointer, and the next version of it shares what
//! has not changed. It may be stale: a shard refuses a
//! request that was routed by an old map because of its epoch. It has no leaders ([`crate::LeaderHints`]) and
//! no addresses.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_persistent::Map;
use flotilla_types::{Bucket, CollectionId, KeyRange, RecordKey, ShardDescriptor, ShardId};
use flotilla_values::Chunking;

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
    /// Longer values, in bytes, are stored as objects that records refer to.
    pub objects_from: u32,
    /// How those are cut. Values that were cut before it changed stay as they are.
    pub chunking: Chunking,
    /// A shard with more bytes of keys and values than this is split: range collections by key, hash collections
    /// between two buckets. Objects that values refer to do not count. 0 for never. Small shards spread, move and
    /// recover in finer steps; each costs some 20 KB of memory on each of its nodes, and an atomic batch must fit one.
    pub split_bytes: u64,
}

impl Collection {
    /// [`Self::objects_from`] of a collection for which nothing else was said. Records of the metadata rely on it:
    /// to change it takes a cluster version.
    pub const OBJECTS_FROM_DEFAULT: u32 = 4 << 10;
    /// [`Self::split_bytes`] of a collection for which nothing else was said. Records of the metadata rely on it.
    pub const SPLIT_BYTES_DEFAULT: u64 = 64 << 20;
    /// No collection makes objects of values up to this length, bytes: references would outweigh what they name.
    pub const OBJECTS_FROM_MIN: u32 = 1 << 10;

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

impl Shard {
    fn start(&self) -> Start {
        (self.descriptor.range.start.clone(), self.descriptor.shard)
    }
}

/// Collections and shards at one version of the metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMap(Arc<Inner>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Inner {
    version: u64,
    collections: Arc<BTreeMap<String, Collection>>,
    shards: Map<ShardId, Arc<Shard>>,
    by_start: Map<Start, Arc<Shard>>,
    /// Those of `by_start` that reach past the start of the next one: few, while changes of ranges become
    /// known. All other shards that contain a key start last before it.
    reaching: Map<Start, Arc<Shard>>,
}

/// The start of a shard's range. Shards that start together are ordered by their ids.
type Start = (Bytes, ShardId);

impl ShardMap {
    /// Builds a map. If two shards contain a key, which can happen while a change of ranges becomes known,
    /// lookups find the one with the higher range epoch, or else the one whose range starts later.
    #[must_use]
    pub fn new(
        version: u64,
        collections: impl IntoIterator<Item = Collection>,
        shards: impl IntoIterator<Item = Shard>,
    ) -> Self {
        let shards = shards.into_iter().map(|shard| (shard.descriptor.shard, Some(Arc::new(shard))));
        Self::default().with_collections(collections).with(version, shards)
    }

    /// The map at another version, with these shards as they are now; `None` for one that is gone. Costs what
    /// changed.
    #[must_use]
    pub fn with(&self, version: u64, changes: impl IntoIterator<Item = (ShardId, Option<Arc<Shard>>)>) -> Self {
        let mut inner = Inner { version, ..Inner::clone(&self.0) };
        for (id, shard) in changes {
            inner.replace(id, shard);
        }
        Self(Arc::new(inner))
    }

    /// The map with these collections instead of its own.
    #[must_use]
    pub fn with_collections(&self, collections: impl IntoIterator<Item = Collection>) -> Self {
        let collections = collections.into_iter().map(|collection| (collection.name.clone(), collection)).collect();
        Self(Arc::new(Inner { collections: Arc::new(collections), ..Inner::clone(&self.0) }))
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
        self.0.shards.get(&shard).map(Arc::as_ref)
    }

    /// Whether a shard with a later range epoch has the first key of this one, which is no more then: it was merged, or
    /// what is known of it is outdated.
    #[must_use]
    pub fn is_overtaken(&self, shard: &ShardDescriptor) -> bool {
        let now = self.shard_of(&shard.range.start).map(|now| &now.descriptor);
        now.is_some_and(|now| now.shard != shard.shard && now.epoch.range > shard.epoch.range)
    }

    /// Every shard, ordered by the start of its range; the metadata group's is first.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.0.by_start.values().map(Arc::as_ref)
    }

    /// The number of shards.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.0.shards.len()
    }

    /// The shard that holds a record key.
    #[must_use]
    pub fn shard_of(&self, record_key: &[u8]) -> Option<&Shard> {
        let Inner { by_start, reaching, .. } = &*self.0;
        let (_, last) = by_start.last_before(|(start, _)| start[..] <= *record_key)?;
        let collection_key = &record_key[..record_key.len().min(size_of::<CollectionId>())];
        let others = reaching
            .iter_from(|(start, _)| start[..] < *collection_key)
            .take_while(|((start, _), _)| start[..] <= *record_key)
            .filter(|(_, other)| other.collection == last.collection);
        others
            .map(|(_, other)| other)
            .chain([last])
            .filter(|shard| shard.descriptor.range.contains(record_key))
            .max_by_key(|shard| shard.descriptor.epoch.range)
            .map(Arc::as_ref)
    }
}

impl Inner {
    /// Replaces a shard, also if it starts elsewhere now.
    fn replace(&mut self, id: ShardId, shard: Option<Arc<Shard>>) {
        let before = match &shard {
            Some(shard) => self.shards.insert(id, shard.clone()),
            None => self.shards.remove(&id),
        };
        let start = shard.as_ref().map(|shard| shard.start());
        if let Some(left) = before.map(|before| before.start()).filter(|left| Some(left) != start.as_ref()) {
            self.by_start.remove(&left);
            self.settle(&left);
        }
        if let (Some(shard), Some(start)) = (shard, start) {
            self.by_start.insert(start.clone(), shard);
            self.settle(&start);
        }
    }

    /// Finds out which shards reach past the next one, where one was put or removed: it or the one before.
    fn settle(&mut self, start: &Start) {
        let before = self.by_start.last_before(|known| known < start).map(|(known, _)| known.clone());
        for start in before.iter().chain([start]) {
            let next = self.by_start.iter_from(|known| known <= start).next();
            let ends_after = |range: &KeyRange, key: &Bytes| range.end.is_empty() || range.end > *key;
            let reaches =
                |shard: &Arc<Shard>| next.is_some_and(|((key, _), _)| ends_after(&shard.descriptor.range, key));
            match self.by_start.get(start).filter(|shard| reaches(shard)) {
                Some(shard) => self.reaching.insert(start.clone(), shard.clone()),
                None => self.reaching.remove(start),
            };
        }
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
        let (objects_from, chunking) = (Collection::OBJECTS_FROM_DEFAULT, Chunking::default());
        Collection {
            id: CollectionId(id),
            name: name.to_owned(),
            sharding,
            buckets,
            replicas: 3,
            objects_from,
            chunking,
            split_bytes: Collection::SPLIT_BYTES_DEFAULT,
        }
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
        let with = |shards: &[Shard]| {
            map.with(map.version(), shards.iter().map(|shard| (shard.descriptor.shard, Some(Arc::new(shard.clone())))))
        };
        let after = with(&[piece(21, 2, "m", "t"), piece(30, 2, "t", "zz")]);
        assert_eq!((before, homes(&after, "anu")), (vec![Some(20), Some(21)], vec![Some(20), Some(21), Some(30)]));
        assert_eq!(after.shard(ShardId(21)).map(|shard| shard.descriptor.epoch.range), Some(2));
        assert_eq!((after.version(), after.shard_count()), (map.version(), map.shard_count() + 1));
        assert_eq!(homes(&with(&[piece(21, 2, "m", "t")]), "u"), [None], "the new owner is not known yet");
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

        /// Shards come, change, move and go, in steps of several.
        #[test]
        fn a_map_that_follows_changes_equals_one_that_is_built_anew(
            steps in proptest::collection::vec(
                proptest::collection::vec(
                    (0_u64..8, proptest::option::weighted(0.8, (0_u8..12, 1_u8..12, 1_u64..4))),
                    1..4,
                ),
                1..30,
            ),
            key in 0_u8..24,
        ) {
            let letter = |at: u8| char::from(b'a' + at).to_string();
            let collections = || [collection(2, "r", Sharding::Range, 1)];
            let mut map = ShardMap::new(0, collections(), []);
            let mut shards = BTreeMap::new();
            for (step, version) in steps.iter().zip(1..) {
                let before = (map.clone(), map.shards().cloned().collect::<Vec<_>>());
                let changes = step.iter().map(|(id, now)| {
                    let piece = |(start, length, epoch)| piece(*id, epoch, &letter(start), &letter(start + length));
                    (ShardId(*id), now.map(piece))
                });
                let changes: Vec<_> = changes.collect();
                map = map.with(version, changes.iter().cloned().map(|(id, now)| (id, now.map(Arc::new))));
                for (id, now) in changes {
                    match now {
                        Some(now) => shards.insert(id, now),
                        None => shards.remove(&id),
                    };
                }
                let anew = ShardMap::new(version, collections(), shards.values().cloned());
                proptest::prop_assert_eq!(&map, &anew);
                let record = RecordKey::new(CollectionId(2), Bucket(0), letter(key).as_bytes()).into_bytes();
                proptest::prop_assert_eq!(map.shard_of(&record), anew.shard_of(&record));
                let kept: Vec<_> = before.0.shards().cloned().collect();
                proptest::prop_assert_eq!(kept, before.1, "an older map changed");
            }
        }
    }
}
