//! The metadata as a value.
//!
//! Invariants: changed only by `apply`; equal logs give equal states. Copies share what they have in common, so
//! that cloning a state costs a few pointers, a reader may keep its copy indefinitely, and a change or the
//! comparison of two versions costs what changed, whatever else there is.

use std::sync::Arc;

use flotilla_persistent::Map;
use flotilla_placement::Collection;
use flotilla_types::{ClusterId, ClusterVersion, CollectionId, NodeId, OperationId, ReplicaId, ShardId, VersionRange};

use crate::{
    AuthorityRecord, KeyId, KeyRecord, NodeRecord, OperationRecord, OperationState, PlannedMerge, PlannedSplit,
    Setting, ShardRecord, TokenId, TokenRecord,
};

/// All metadata at one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetaState {
    pub(crate) header: Header,
    pub(crate) nodes: Map<NodeId, Arc<NodeRecord>>,
    pub(crate) collections: Map<CollectionId, Arc<Collection>>,
    pub(crate) shards: Map<ShardId, Arc<ShardRecord>>,
    pub(crate) tokens: Map<TokenId, Arc<TokenRecord>>,
    pub(crate) keys: Map<KeyId, Arc<KeyRecord>>,
    pub(crate) settings: Map<String, Arc<str>>,
    pub(crate) authority: Option<Arc<AuthorityRecord>>,
    pub(crate) operations: Map<OperationId, Arc<OperationRecord>>,
    /// Which of them have not ended, by shard. Not stored.
    pub(crate) running_by_shard: Map<(ShardId, OperationId), ()>,
    /// Which of them have ended. Not stored.
    pub(crate) ended: Map<OperationId, ()>,
    /// The shards that have ids and no records yet, with the shards that they are to be split off. Not stored.
    pub(crate) unborn: Map<ShardId, ShardId>,
    /// The shards that are to be merged into their left neighbours, with these. Not stored.
    pub(crate) merging: Map<ShardId, ShardId>,
}

/// Identity, version, and the next ids to allocate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) version: u64,
    pub(crate) cluster_version: ClusterVersion,
    pub(crate) next_node: NodeId,
    pub(crate) next_collection: CollectionId,
    pub(crate) next_shard: ShardId,
    pub(crate) next_replica: ReplicaId,
    pub(crate) next_operation: OperationId,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            cluster: None,
            version: 0,
            cluster_version: ClusterVersion::FIRST,
            next_node: NodeId(1),
            next_collection: CollectionId::DEFAULT,
            next_shard: ShardId::META.next(),
            next_replica: ReplicaId(1),
            next_operation: OperationId(1),
        }
    }
}

/// The metadata's status of a replica, for a node that holds it or gets requests for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaStatus {
    /// It is in the intent or in the shard's reported configuration, or comes out of a planned split.
    InUse,
    /// Its id was allocated, but it is no longer in use: it may be destroyed.
    Obsolete,
    /// Its id was not allocated up to this version of the metadata: wait for newer metadata.
    Unknown,
}

impl MetaState {
    /// The cluster; `None` before bootstrap.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.header.cluster
    }

    /// The index of the last entry that changed the state; zero before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.header.version
    }

    /// The cluster version in force.
    #[must_use]
    pub fn cluster_version(&self) -> ClusterVersion {
        self.header.cluster_version
    }

    /// What a `Join` or an `UpdateNode` says of the versions that a binary supports, under the version in
    /// force.
    #[must_use]
    pub fn announced(&self, versions: VersionRange) -> Option<VersionRange> {
        (self.cluster_version() >= ClusterVersion::NODE_VERSIONS).then_some(versions)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node).map(Arc::as_ref)
    }

    /// Every node by id, including removed and lost ones.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(Arc::as_ref)
    }

    /// Whether another version has the same nodes. At the cost of a comparison of pointers, so that versions of
    /// which neither derives from the other may differ though they are equal.
    #[must_use]
    pub fn has_nodes_of(&self, other: &Self) -> bool {
        self.nodes.is_same(&other.nodes)
    }

    /// Whether a node is removed or lost, which is final. Every id that was given belongs to a recorded node
    /// or to one that is gone: records of others are never deleted. So no record is needed to know that a
    /// node is gone, and the list of gone ids is the gaps between the others.
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        match self.node(node) {
            Some(record) => record.state.is_gone(),
            None => node < self.header.next_node,
        }
    }

    /// The cluster's authority; `None` if it was never rotated.
    #[must_use]
    pub fn authority(&self) -> Option<&AuthorityRecord> {
        self.authority.as_deref()
    }

    /// The nodes that are recorded at this address and are not gone.
    pub fn nodes_at(&self, quic: &str) -> impl Iterator<Item = &NodeRecord> {
        self.nodes().filter(move |node| !node.state.is_gone() && node.addresses.quic == quic)
    }

    /// The node with this public key.
    #[must_use]
    pub fn node_with_key(&self, key_digest: &[u8; 32]) -> Option<&NodeRecord> {
        self.nodes().find(|node| node.key_digest == *key_digest)
    }

    /// A collection by name.
    #[must_use]
    pub fn collection(&self, name: &str) -> Option<&Collection> {
        self.collections().find(|collection| collection.name == name)
    }

    /// A collection by id.
    #[must_use]
    pub fn collection_with_id(&self, collection: CollectionId) -> Option<&Collection> {
        self.collections.get(&collection).map(Arc::as_ref)
    }

    /// Every collection, by id.
    pub fn collections(&self) -> impl Iterator<Item = &Collection> {
        self.collections.values().map(Arc::as_ref)
    }

    /// Whether another version has the same collections.
    #[must_use]
    pub fn has_collections_of(&self, other: &Self) -> bool {
        self.collections == other.collections
    }

    /// A shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRecord> {
        self.shards.get(&shard).map(Arc::as_ref)
    }

    /// Every shard, the metadata group's first.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.values().map(Arc::as_ref)
    }

    /// The shards that differ from those of another version, with what they were and what they are.
    pub fn shard_changes<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (ShardId, Option<&'a ShardRecord>, Option<&'a ShardRecord>)> {
        Map::changes(&before.shards, &self.shards)
            .map(|change| (*change.key, change.before.map(Arc::as_ref), change.after.map(Arc::as_ref)))
    }

    /// The shards that another version has no ids for, or that it has records of, while in this one they have ids and
    /// no records; and the other way around.
    pub fn unborn_changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = ShardId> + 'a {
        Map::changes(&before.unborn, &self.unborn).map(|change| *change.key)
    }

    /// Every shard whose intent has a replica on this node, with that replica.
    pub fn desired_on(&self, node: NodeId) -> impl Iterator<Item = (&ShardRecord, ReplicaId)> {
        self.shards().filter_map(move |shard| Some((shard, shard.desired_on(node)?)))
    }

    /// Whether a shard has, or wants, a replica on this node, as far as was reported.
    #[must_use]
    pub fn is_named_by_a_shard(&self, node: NodeId) -> bool {
        self.shards().any(|shard| shard.desired_on(node).is_some() || shard.descriptor.replica_on(node).is_some())
    }

    /// A join token.
    #[must_use]
    pub fn token(&self, token: TokenId) -> Option<&TokenRecord> {
        self.tokens.get(&token).map(Arc::as_ref)
    }

    /// Every join token, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values().map(Arc::as_ref)
    }

    /// A client key.
    #[must_use]
    pub fn key(&self, key: KeyId) -> Option<&KeyRecord> {
        self.keys.get(&key).map(Arc::as_ref)
    }

    /// Every client key, by id.
    pub fn keys(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.values().map(Arc::as_ref)
    }

    /// An operation: a running one, or one of the latest that have ended.
    #[must_use]
    pub fn operation(&self, operation: OperationId) -> Option<&OperationRecord> {
        self.operations.get(&operation).map(Arc::as_ref)
    }

    /// Every operation, by id.
    pub fn operations(&self) -> impl Iterator<Item = &OperationRecord> {
        self.operations.values().map(Arc::as_ref)
    }

    /// Whether another version has the same operations in the same states.
    #[must_use]
    pub fn has_operations_of(&self, other: &Self) -> bool {
        self.operations == other.operations
    }

    /// The operations of a shard that have not ended.
    pub fn running_of(&self, shard: ShardId) -> impl Iterator<Item = &OperationRecord> {
        let from = self.running_by_shard.iter_from(move |(known, _)| *known < shard);
        from.take_while(move |((known, _), ())| *known == shard).filter_map(|((_, id), ())| self.operation(*id))
    }

    /// The operations that have not ended, in the order of their shards.
    pub fn running(&self) -> impl Iterator<Item = &OperationRecord> {
        self.running_by_shard.keys().filter_map(|(_, id)| self.operation(*id))
    }

    /// The operations that wait for an operator. Visits all that have not ended.
    pub fn paused(&self) -> impl Iterator<Item = &OperationRecord> {
        self.running().filter(|operation| operation.state == OperationState::Paused)
    }

    /// The operations that have ended, as far as they are kept.
    pub fn ended(&self) -> impl Iterator<Item = &OperationRecord> {
        self.ended.keys().filter_map(|id| self.operation(*id))
    }

    /// The value of a setting, or its default.
    #[must_use]
    pub fn setting(&self, setting: Setting) -> u64 {
        self.settings.get(setting.key()).and_then(|value| setting.parse(value).ok()).unwrap_or(setting.default_value())
    }

    /// The shards of which a split is planned. Visits those alone.
    pub fn splitting(&self) -> impl Iterator<Item = (ShardId, &PlannedSplit)> {
        self.unborn.values().filter_map(|parent| Some((*parent, self.shard(*parent)?.split.as_ref()?)))
    }

    /// The planned merge in which a shard takes part, as the left one or as the right one, with the left one.
    #[must_use]
    pub fn merge_with(&self, shard: ShardId) -> Option<(ShardId, &PlannedMerge)> {
        let left = self.merging.get(&shard).copied().unwrap_or(shard);
        Some((left, self.shard(left)?.merge.as_ref()?))
    }

    /// The planned merges, with their left shards. Visits those alone.
    pub fn merges(&self) -> impl Iterator<Item = (ShardId, &PlannedMerge)> {
        self.merging.values().filter_map(|left| Some((*left, self.shard(*left)?.merge.as_ref()?)))
    }

    /// The replicas that planned splits will leave on this node, with their shards, which have no records yet. Visits
    /// the planned splits alone.
    pub fn planned_children_on(&self, node: NodeId) -> Vec<(ShardId, ReplicaId)> {
        let planned = self.splitting().flat_map(|(parent, split)| {
            let descriptor = self.shard(parent).map(|record| &record.descriptor);
            split.replicas.iter().filter_map(move |(replica, child)| {
                let is_here = descriptor?.node_of(*replica) == Some(node);
                is_here.then_some((split.child, *child))
            })
        });
        planned.collect()
    }

    /// Whether a planned split leaves this replica of a shard that has no record yet.
    fn is_planned(&self, shard: ShardId, replica: ReplicaId) -> bool {
        let parent = self.unborn.get(&shard).and_then(|parent| self.shard(*parent));
        let split = parent.and_then(|parent| parent.split.as_ref());
        split.is_some_and(|split| split.replicas.iter().any(|(_, child)| *child == replica))
    }

    /// Whether a replica is in use. Before destroying one, also check that the shard's own configuration does
    /// not name it: a report may be in flight.
    #[must_use]
    pub fn replica_status(&self, shard: ShardId, replica: ReplicaId) -> ReplicaStatus {
        let in_use = self.shard(shard).is_some_and(|record| {
            record.intent.iter().any(|held| held.replica == replica) || record.descriptor.node_of(replica).is_some()
        });
        if in_use || self.is_planned(shard, replica) {
            ReplicaStatus::InUse
        } else if replica < self.header.next_replica && replica != ReplicaId::NONE {
            ReplicaStatus::Obsolete
        } else {
            ReplicaStatus::Unknown
        }
    }
}
