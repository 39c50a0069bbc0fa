//! Where a node believes the shards to be: the metadata, and what shards themselves answered since.
//!
//! A shard's own log decides its range and replicas, and the metadata follows. A shard that refuses an
//! outdated route answers with the descriptors that hold now, so requests need not wait for the metadata.
//!
//! Invariants: metadata only moves forward; of each shard the newest descriptor by epoch counts; what the
//! metadata has overtaken is dropped, and at most [`NEWER_MAX`] others are kept. A peer can mislead only about
//! shards of the collection that it was asked about.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_meta::MetaState;
use flotilla_placement::{Shard, ShardMap};
use flotilla_types::{ShardDescriptor, ShardId};

/// Descriptors that are kept beside the metadata, at most. Requests for further ones wait for the metadata.
const NEWER_MAX: usize = 1_024;

/// One version of a node's knowledge of the shards.
#[derive(Debug)]
pub(crate) struct Routing {
    meta: Arc<MetaState>,
    /// Shards whose descriptors are newer than the metadata's.
    newer: BTreeMap<ShardId, Arc<Shard>>,
    map: Arc<ShardMap>,
}

impl Routing {
    /// Starts from the metadata.
    #[must_use]
    pub(crate) fn new(meta: Arc<MetaState>) -> Self {
        Self { map: Arc::new(meta.shard_map()), newer: BTreeMap::new(), meta }
    }

    /// The newest metadata.
    #[must_use]
    pub(crate) fn meta(&self) -> &Arc<MetaState> {
        &self.meta
    }

    /// The newest shard map.
    #[must_use]
    pub(crate) fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// What follows from this metadata; `None` if it is not newer. Costs what the metadata has changed.
    #[must_use]
    pub(crate) fn offered(&self, meta: &Arc<MetaState>) -> Option<Self> {
        if meta.version() <= self.meta.version() {
            return None;
        }
        let mut newer = self.newer.clone();
        newer.retain(|id, shard| match meta.shard(*id) {
            Some(recorded) => recorded.descriptor.epoch < shard.descriptor.epoch,
            // A shard that the metadata had and has no more is gone; one that it never had is yet to be
            // reported.
            None => self.meta.shard(*id).is_none() && meta.collection_with_id(shard.collection).is_some(),
        });
        let changed = meta.shard_changes(&self.meta).map(|(id, ..)| id);
        let overtaken = self.newer.keys().copied().filter(|id| !newer.contains_key(id));
        let now = |id| {
            let recorded = || meta.shard(id).map(|record| Arc::new(record.reported()));
            (id, newer.get(&id).cloned().or_else(recorded))
        };
        let mut map = self.map.with(meta.version(), changed.chain(overtaken).map(now));
        // It came and went between two versions of the metadata.
        let merged: Vec<_> = newer
            .values()
            .filter(|shard| map.is_overtaken(&shard.descriptor))
            .map(|shard| shard.descriptor.shard)
            .collect();
        for id in merged {
            newer.remove(&id);
            map = map.with(meta.version(), [(id, meta.shard(id).map(|record| Arc::new(record.reported())))]);
        }
        if !meta.has_collections_of(&self.meta) {
            map = map.with_collections(meta.collections().cloned());
        }
        Some(Self { meta: meta.clone(), newer, map: Arc::new(map) })
    }

    /// What follows from the descriptors with which a shard refused a route; `None` if they say nothing new.
    #[must_use]
    pub(crate) fn learned(&self, refused_by: ShardId, now: &[ShardDescriptor]) -> Option<Self> {
        let collection = self.map.shard(refused_by)?.collection;
        let keys = self.meta.collection_with_id(collection)?.range();
        let is_news = |descriptor: &&ShardDescriptor| {
            let range = &descriptor.range;
            let fits = !range.is_empty() && range.intersection(&keys) == *range;
            let known = self.map.shard(descriptor.shard);
            fits && !self.map.is_overtaken(descriptor)
                && !now.iter().any(|other| overtakes(other, descriptor))
                && known.is_none_or(|known| known.collection == collection && known.descriptor.epoch < descriptor.epoch)
        };
        let mut news = now.iter().filter(is_news).peekable();
        news.peek()?;
        let mut newer = self.newer.clone();
        let mut taken = Vec::new();
        for descriptor in news {
            if newer.len() < NEWER_MAX || newer.contains_key(&descriptor.shard) {
                let shard = Arc::new(Shard { collection, descriptor: descriptor.clone() });
                newer.insert(descriptor.shard, shard.clone());
                taken.push((descriptor.shard, Some(shard)));
            }
        }
        if taken.is_empty() {
            return None;
        }
        let map = Arc::new(self.map.with(self.map.version(), taken));
        Some(Self { meta: self.meta.clone(), newer, map })
    }
}

/// Whether a shard has keys of another one since a later range epoch.
fn overtakes(shard: &ShardDescriptor, other: &ShardDescriptor) -> bool {
    shard.epoch.range > other.epoch.range && !shard.range.intersection(&other.range).is_empty()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::{Epoch, KeyRange};
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::core::testing::Meta;

    const SHARD: ShardId = ShardId(1);

    /// Metadata with one shard of a collection, and its descriptor.
    fn founded() -> (Meta, ShardDescriptor) {
        let mut meta = Meta::of_nodes(3);
        assert_eq!(meta.collection(&[&[1, 2, 3]]), [SHARD]);
        let descriptor = meta.state().shard(SHARD).expect("a shard").descriptor.clone();
        (meta, descriptor)
    }

    fn at(descriptor: &ShardDescriptor, range: u64, config: u64) -> ShardDescriptor {
        ShardDescriptor { epoch: Epoch { range, config }, ..descriptor.clone() }
    }

    fn epoch(routing: &Routing, shard: ShardId) -> Option<(u64, u64)> {
        routing.map().shard(shard).map(|shard| (shard.descriptor.epoch.range, shard.descriptor.epoch.config))
    }

    #[test]
    fn the_newest_descriptor_counts_whoever_brings_it_first() {
        let (mut meta, descriptor) = founded();
        let routing = Routing::new(meta.state());
        for old in [at(&descriptor, 1, 1), at(&descriptor, 0, 9)] {
            assert!(routing.learned(SHARD, &[old]).is_none());
        }
        let routing = routing.learned(SHARD, &[at(&descriptor, 2, 1)]).expect("news");
        assert_eq!(epoch(&routing, SHARD), Some((2, 1)));
        assert!(routing.learned(SHARD, &[at(&descriptor, 2, 1)]).is_none(), "known already");
        // Metadata of another matter does not bring the old descriptor back.
        meta.join(4);
        let routing = routing.offered(&meta.state()).expect("newer metadata");
        assert_eq!((epoch(&routing, SHARD), routing.newer.len()), (Some((2, 1)), 1));
        assert!(routing.offered(&meta.state()).is_none(), "known already");
        meta.report(at(&descriptor, 2, 1));
        let routing = routing.offered(&meta.state()).expect("newer metadata");
        assert_eq!((epoch(&routing, SHARD), routing.newer.len()), (Some((2, 2)), 0), "the metadata has overtaken it");
    }

    #[test]
    fn shards_that_took_over_keys_are_known_until_their_collection_or_they_are_gone() {
        let (mut meta, descriptor) = founded();
        let middle = Bytes::copy_from_slice(&[&descriptor.range.start[..], b"m"].concat());
        let mut left = at(&descriptor, 2, 1);
        left.range.end = middle.clone();
        let mut right = at(&descriptor, 2, 1);
        (right.shard, right.range.start) = (ShardId(9), middle.clone());
        let routing = Routing::new(meta.state()).learned(SHARD, &[left, right]).expect("news");
        let home = |routing: &Routing, key: &[u8]| routing.map().shard_of(key).map(|shard| shard.descriptor.shard);
        assert_eq!(home(&routing, &middle), Some(ShardId(9)));
        assert_eq!(home(&routing, &descriptor.range.start), Some(SHARD));
        meta.join(4);
        let routing = routing.offered(&meta.state()).expect("newer metadata");
        assert_eq!(home(&routing, &middle), Some(ShardId(9)), "not reported yet");
        meta.drop_collection();
        let routing = routing.offered(&meta.state()).expect("newer metadata");
        assert_eq!((home(&routing, &middle), routing.newer.len()), (None, 0));
    }

    #[test]
    fn a_shard_that_was_merged_does_not_come_back() {
        let (mut meta, descriptor) = founded();
        let middle = Bytes::copy_from_slice(&[&descriptor.range.start[..], b"m"].concat());
        let mut merged_again = at(&descriptor, 2, 1);
        (merged_again.shard, merged_again.range.start) = (ShardId(9), middle);
        let whole = at(&descriptor, 3, 1);
        let both = [whole.clone(), merged_again.clone()];
        let routing = Routing::new(meta.state()).learned(SHARD, &both).expect("news");
        assert_eq!((epoch(&routing, SHARD), epoch(&routing, ShardId(9))), (Some((3, 1)), None));
        assert!(routing.learned(SHARD, &both).is_none(), "one with its keys is newer");
        // It was heard of, and the metadata says of neither that it was there nor that it is gone.
        let routing = Routing::new(meta.state()).learned(SHARD, &[merged_again]).expect("news");
        assert_eq!(epoch(&routing, ShardId(9)), Some((2, 1)));
        meta.report(whole);
        let routing = routing.offered(&meta.state()).expect("newer metadata");
        assert_eq!((epoch(&routing, ShardId(9)), routing.newer.len()), (None, 0));
    }

    #[test]
    fn a_peer_can_mislead_only_about_the_collection_that_was_asked() {
        let (meta, descriptor) = founded();
        let routing = Routing::new(meta.state());
        let everything = ShardDescriptor { range: KeyRange::all(), ..at(&descriptor, 5, 5) };
        let end = descriptor.range.end.clone();
        let nothing = ShardDescriptor { range: KeyRange { start: end.clone(), end }, ..at(&descriptor, 5, 5) };
        let system = ShardDescriptor { shard: ShardId::META, ..at(&descriptor, 5, 5) };
        assert!(routing.learned(SHARD, &[everything, nothing, system]).is_none());
        assert!(routing.learned(ShardId(77), &[at(&descriptor, 5, 5)]).is_none(), "nobody asks an unknown shard");
        assert!(routing.learned(ShardId::META, &[at(&descriptor, 5, 5)]).is_none());
    }

    #[test]
    fn a_flood_of_descriptors_is_bounded() {
        let (meta, descriptor) = founded();
        let flood: Vec<_> =
            (2..10_000).map(|id| ShardDescriptor { shard: ShardId(id), ..descriptor.clone() }).collect();
        let routing = Routing::new(meta.state()).learned(SHARD, &flood).expect("news");
        assert_eq!(routing.newer.len(), NEWER_MAX);
        let routing = routing.learned(ShardId(2), &[at(&flood[0], 3, 1)]).expect("news of one that is kept");
        assert_eq!((routing.newer.len(), epoch(&routing, ShardId(2))), (NEWER_MAX, Some((3, 1))));
    }

    /// The routing map as it is by definition: the metadata's shards, or what they said themselves since.
    fn built_anew(routing: &Routing) -> ShardMap {
        let (meta, newer) = (routing.meta(), routing.newer.clone());
        let news = newer.into_iter().map(|(id, shard)| (id, Some(shard)));
        meta.shard_map().with(meta.version(), news)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Found(usize),
        Drop,
        Join,
        /// A shard reports a new range epoch, and the half of its range.
        Report(Index, bool),
        /// A shard refuses a route with these epochs of it and of a shard beside it.
        Refuse(Index, u64, u64),
        Look,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (1_usize..40).prop_map(Step::Found),
            1 => Just(Step::Drop),
            1 => Just(Step::Join),
            5 => (any::<Index>(), any::<bool>()).prop_map(|(shard, halve)| Step::Report(shard, halve)),
            5 => (any::<Index>(), 0_u64..5, 0_u64..5).prop_map(|(at, range, config)| Step::Refuse(at, range, config)),
            5 => Just(Step::Look),
        ]
    }

    /// Takes a step. Returns the routing after it.
    fn take(step: &Step, meta: &mut Meta, nodes: &mut u64, routing: Arc<Routing>) -> Arc<Routing> {
        let state = meta.state();
        let shards: Vec<_> = state.shards().filter(|shard| shard.id != ShardId::META).collect();
        let middle = |range: &KeyRange| Bytes::copy_from_slice(&[&range.start[..], b"m"].concat());
        match step {
            Step::Found(count) if state.collection("c").is_none() => {
                meta.collection(&vec![&[1, 2, 3][..]; *count]);
            }
            Step::Drop if state.collection("c").is_some() => meta.drop_collection(),
            Step::Join if *nodes < 40 => {
                *nodes += 1;
                meta.join(*nodes);
            }
            Step::Report(at, halve) if !shards.is_empty() => {
                let mut descriptor = at.get(&shards).descriptor.clone();
                descriptor.epoch.range += 1;
                if *halve {
                    descriptor.range.end = middle(&descriptor.range);
                }
                meta.apply(&flotilla_meta::MetaCommand::ReportShard { descriptor });
            }
            Step::Refuse(at, range, config) if !shards.is_empty() => {
                let refused_by = at.get(&shards);
                let mut left = self::at(&refused_by.descriptor, *range, *config);
                let mut right = ShardDescriptor { shard: ShardId(1_000 + at.index(3) as u64), ..left.clone() };
                left.range.end = middle(&left.range);
                right.range.start = left.range.end.clone();
                return routing.learned(refused_by.id, &[left, right]).map_or(routing, Arc::new);
            }
            Step::Look => return routing.offered(&state).map_or(routing, Arc::new),
            _ => {}
        }
        routing
    }

    proptest! {
        /// Versions are skipped, shards are founded, split, dropped, and tell of changes before the metadata does.
        #[test]
        fn a_map_that_follows_changes_equals_one_that_is_built_anew(steps in vec(any_step(), 1..60)) {
            let (mut meta, mut nodes) = (Meta::of_nodes(3), 3);
            let mut routing = Arc::new(Routing::new(meta.state()));
            for step in &steps {
                routing = take(step, &mut meta, &mut nodes, routing);
                prop_assert_eq!(&**routing.map(), &built_anew(&routing), "after {:?}", step);
            }
        }
    }
}
