//! Rules for collections, shards and their replicas.
//!
//! Invariants: ids grow and are never reused; an intent has at least one replica and at most one per node (a
//! replica whose log is lost is replaced on the same node); a recorded epoch never goes backwards.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_placement::{Collection, PlanReplica, Sharding};
use flotilla_types::{
    Bucket, CollectionId, Epoch, KeyRange, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
};

use super::{
    ApplyResult, BUCKETS_MAX, COLLECTIONS_MAX, INTENT_MAX, NAME_BYTES_MAX, OBJECTS_FROM_MAX, OBJECTS_FROM_MIN,
    SHARDS_MAX, SPLIT_BYTES, VALUE_BYTES_CUT_MIN,
};
use crate::{CollectionSettings, Field, Limit, MetaRefusal, MetaReply, MetaState, ShardRecord};

/// Limit on replicas in a reported descriptor: both halves of a joint configuration.
const DESCRIPTOR_REPLICAS_MAX: usize = 2 * INTENT_MAX;

impl MetaState {
    pub(super) fn create_collection(
        &mut self,
        name: &str,
        sharding: Sharding,
        buckets: u16,
        replicas: u8,
        initial_nodes: &[Vec<NodeId>],
        settings: CollectionSettings,
    ) -> ApplyResult {
        check_collection(name, sharding, buckets, replicas)?;
        check_settings(settings)?;
        if let Some(known) = self.collection(name) {
            return Err(MetaRefusal::CollectionExists(known.id));
        }
        if self.collections.len() >= COLLECTIONS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Collections));
        }
        if self.shards_len() + initial_nodes.len() > SHARDS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Shards));
        }
        let shards = u16::try_from(initial_nodes.len()).map_err(|_| MetaRefusal::BadPlacement)?;
        if shards == 0 || shards > buckets {
            return Err(MetaRefusal::BadPlacement);
        }
        for nodes in initial_nodes {
            let distinct = nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
            if nodes.len() % 2 == 0 || nodes.len() > usize::from(replicas) || !distinct {
                return Err(MetaRefusal::BadPlacement);
            }
            nodes.iter().try_for_each(|&node| self.check_active(node)).map_err(|_| MetaRefusal::BadPlacement)?;
        }

        let id = self.header.next_collection;
        self.header.next_collection = id.next();
        // Shard i begins at bucket i · buckets / shards, so that sizes differ by at most one bucket.
        let first_bucket = |shard: u16| (u32::from(shard) * u32::from(buckets) / u32::from(shards)) as u16;
        let shards = initial_nodes
            .iter()
            .zip(0..shards)
            .map(|(nodes, shard)| {
                let range = KeyRange::of_buckets(id, Bucket(first_bucket(shard)), Bucket(first_bucket(shard + 1) - 1));
                self.add_shard(id, range, replicas, nodes)
            })
            .collect();
        let objects_from = settings.objects_from.unwrap_or(Collection::OBJECTS_FROM_DEFAULT);
        let chunking = settings.chunking.unwrap_or_default();
        let split_bytes = settings.split_bytes.unwrap_or(Collection::SPLIT_BYTES_DEFAULT);
        let name = name.to_owned();
        let collection = Collection { id, name, sharding, buckets, replicas, objects_from, chunking, split_bytes };
        self.collections.insert(id, Arc::new(collection));
        Ok(MetaReply::Collection { collection: id, shards })
    }

    pub(super) fn change_collection(&mut self, collection: CollectionId, settings: CollectionSettings) -> ApplyResult {
        check_settings(settings)?;
        let found = self.collections.get(&collection).ok_or(MetaRefusal::UnknownCollection(collection))?;
        let changed = Collection {
            objects_from: settings.objects_from.unwrap_or(found.objects_from),
            chunking: settings.chunking.unwrap_or(found.chunking),
            split_bytes: settings.split_bytes.unwrap_or(found.split_bytes),
            ..Collection::clone(found)
        };
        self.collections.insert(collection, Arc::new(changed));
        Ok(MetaReply::Done)
    }

    pub(super) fn drop_collection(&mut self, now_ms: u64, collection: CollectionId) -> ApplyResult {
        self.collections.remove(&collection).ok_or(MetaRefusal::UnknownCollection(collection))?;
        self.shards.retain(|_, shard| shard.collection != collection);
        self.forget_plans_of_dropped();
        self.forget_merges_of_dropped();
        self.end_operations_of_dropped(now_ms);
        Ok(MetaReply::Done)
    }

    pub(super) fn assign_replica(
        &mut self,
        now_ms: u64,
        shard: ShardId,
        node: NodeId,
        intent_version: u64,
    ) -> ApplyResult {
        let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
        if record.intent_version != intent_version {
            return Err(MetaRefusal::IntentChanged { found: record.intent_version });
        }
        if let Some(replica) = record.desired_on(node) {
            return Err(MetaRefusal::ReplicaExists(replica));
        }
        if record.intent.len() >= INTENT_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Replicas));
        }
        self.check_active(node)?;
        let replica = self.allocate_replica();
        self.change_intent(now_ms, shard, |intent| intent.push(PlanReplica { replica, node }));
        Ok(MetaReply::Replica(replica))
    }

    pub(super) fn unassign_replica(&mut self, now_ms: u64, shard: ShardId, replica: ReplicaId) -> ApplyResult {
        let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
        if !record.intent.iter().any(|held| held.replica == replica) {
            return Err(MetaRefusal::UnknownReplica(replica));
        }
        if record.intent.len() == 1 {
            return Err(MetaRefusal::LastReplica);
        }
        self.change_intent(now_ms, shard, |intent| intent.retain(|held| held.replica != replica));
        Ok(MetaReply::Done)
    }

    pub(super) fn replace_replica(&mut self, now_ms: u64, shard: ShardId, replica: ReplicaId) -> ApplyResult {
        let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
        let held = record.intent.iter().find(|held| held.replica == replica);
        let node = held.ok_or(MetaRefusal::UnknownReplica(replica))?.node;
        let new = self.allocate_replica();
        self.follow_replacement(shard, replica, new);
        self.change_intent(now_ms, shard, |intent| {
            intent.retain(|held| held.replica != replica);
            intent.push(PlanReplica { replica: new, node });
        });
        Ok(MetaReply::Replica(new))
    }

    pub(super) fn report_shard(&mut self, now_ms: u64, reported: &ShardDescriptor) -> ApplyResult {
        let record = self.shard(reported.shard).ok_or(MetaRefusal::UnknownShard(reported.shard))?;
        let mut reported = reported.clone();
        reported.replicas.sort_by_key(|held| held.replica);
        if reported == record.descriptor {
            return Ok(MetaReply::Done);
        }
        let known = record.descriptor.epoch;
        let regressed = reported.epoch.range < known.range || reported.epoch.config < known.config;
        if regressed || reported.epoch == known {
            return Err(MetaRefusal::StaleEpoch { known });
        }
        self.check_descriptor(&reported)?;
        let is_merged = Self::merged_by_report(record, &reported);
        let child = if is_merged { None } else { self.child_of_report(record, &reported)? };
        let (id, is_reconfigured) = (reported.shard, reported.epoch.config != known.config);
        self.change_shard(id, |record| record.descriptor = reported);
        if let Some(child) = child {
            self.give_birth(id, child);
        } else if is_merged {
            self.complete_merge(id, now_ms);
        } else if is_reconfigured {
            self.plan_split_again(id);
        }
        self.end_merge_of(id, now_ms);
        self.end_operations_of(id, now_ms);
        Ok(MetaReply::Done)
    }

    pub(super) fn allocate_replica(&mut self) -> ReplicaId {
        let id = self.header.next_replica;
        self.header.next_replica = id.next();
        id
    }

    fn add_shard(&mut self, collection: CollectionId, range: KeyRange, desired: u8, nodes: &[NodeId]) -> ShardId {
        let id = self.header.next_shard;
        self.header.next_shard = id.next();
        let replicas: Vec<ReplicaDescriptor> = nodes
            .iter()
            .map(|&node| ReplicaDescriptor { replica: self.allocate_replica(), node, role: ReplicaRole::Voter })
            .collect();
        let intent = replicas.iter().map(|held| PlanReplica { replica: held.replica, node: held.node }).collect();
        let descriptor = ShardDescriptor { shard: id, range, epoch: Epoch { range: 1, config: 1 }, replicas };
        let record = ShardRecord {
            id,
            collection,
            replicas_desired: desired,
            intent,
            intent_version: 1,
            initial: descriptor.clone(),
            descriptor,
            parent: None,
            split: None,
            merge: None,
        };
        self.record_shard(record);
        id
    }

    pub(super) fn change_intent(&mut self, now_ms: u64, shard: ShardId, change: impl FnOnce(&mut Vec<PlanReplica>)) {
        self.change_shard(shard, |record| {
            change(&mut record.intent);
            record.intent_version += 1;
        });
        self.end_operations_of(shard, now_ms);
    }

    /// Adds a shard, as created or as stored.
    pub(crate) fn record_shard(&mut self, record: ShardRecord) {
        if let Some(split) = &record.split {
            self.unborn.insert(split.child, record.id);
        }
        if let Some(merge) = &record.merge {
            self.merging.insert(merge.right, record.id);
        }
        self.shards.insert(record.id, Arc::new(record));
    }

    pub(super) fn change_shard(&mut self, shard: ShardId, change: impl FnOnce(&mut ShardRecord)) {
        if let Some(record) = self.shards.get_mut(&shard) {
            change(Arc::make_mut(record));
        }
    }

    /// Checks a report like any other input from a peer.
    fn check_descriptor(&self, reported: &ShardDescriptor) -> Result<(), MetaRefusal> {
        let replicas = &reported.replicas;
        let distinct = replicas.windows(2).all(|pair| pair[0].replica < pair[1].replica);
        let known = replicas.iter().all(|held| {
            held.replica != ReplicaId::NONE
                && held.replica < self.header.next_replica
                && held.node != NodeId::NONE
                && held.node < self.header.next_node
        });
        let voter = replicas.iter().any(|held| held.role == ReplicaRole::Voter);
        let fits = replicas.len() <= DESCRIPTOR_REPLICAS_MAX && !reported.range.is_empty();
        if distinct && known && voter && fits { Ok(()) } else { Err(MetaRefusal::Invalid(Field::Descriptor)) }
    }
}

fn check_settings(settings: CollectionSettings) -> Result<(), MetaRefusal> {
    if settings.objects_from.is_some_and(|bytes| !(OBJECTS_FROM_MIN..=OBJECTS_FROM_MAX).contains(&bytes)) {
        return Err(MetaRefusal::Invalid(Field::ObjectsFrom));
    }
    if settings.chunking.is_some_and(|chunking| chunking.value_bytes_max() < VALUE_BYTES_CUT_MIN) {
        return Err(MetaRefusal::Invalid(Field::Chunking));
    }
    if settings.split_bytes.is_some_and(|bytes| bytes != 0 && !SPLIT_BYTES.contains(&bytes)) {
        return Err(MetaRefusal::Invalid(Field::SplitBytes));
    }
    Ok(())
}

fn check_collection(name: &str, sharding: Sharding, buckets: u16, replicas: u8) -> Result<(), MetaRefusal> {
    if !is_collection_name(name) {
        return Err(MetaRefusal::Invalid(Field::CollectionName));
    }
    let buckets_max = match sharding {
        Sharding::Hash => BUCKETS_MAX,
        Sharding::Range => 1,
    };
    if !(1..=buckets_max).contains(&buckets) {
        return Err(MetaRefusal::Invalid(Field::Buckets));
    }
    if !matches!(replicas, 1 | 3 | 5) {
        return Err(MetaRefusal::Invalid(Field::Replicas));
    }
    Ok(())
}

/// Whether a text may name a collection.
pub(super) fn is_collection_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}
