//! The encoding of stored records and of the snapshot that holds all of them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_placement::{Collection, PlanReplica, Sharding};
use flotilla_storage::VersionNeed;
use flotilla_types::{
    ClusterId, ClusterVersion, CollectionId, Epoch, KeyRange, Locality, OperationId, ReplicaDescriptor, ReplicaId,
    ReplicaRole, Role, ShardDescriptor, VersionRange,
};
use flotilla_values::Chunking;

use super::{
    CodecError, authority::AuthorityPb, decode_versioned, encode_at, encode_versioned, hash, number,
    operations::OperationPb, required,
};
use crate::{
    Addresses, AuthorityRecord, CollectionSettings, KeyId, KeyRecord, MetaState, NodeRecord, NodeRole, NodeStart,
    NodeState, OperationRecord, PlannedMerge, PlannedSplit, ShardRecord, TokenId, TokenRecord, state::Header,
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddressesPb {
    #[prost(string, tag = "1")]
    quic: String,
    #[prost(string, tag = "2")]
    http: String,
    #[prost(string, tag = "3")]
    redis: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodePb {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    addresses: Option<AddressesPb>,
    #[prost(btree_map = "string, string", tag = "4")]
    locality: BTreeMap<String, String>,
    #[prost(uint32, tag = "5")]
    state: u32,
    #[prost(uint64, tag = "6")]
    incarnation: u64,
    #[prost(bytes = "vec", tag = "7")]
    key_digest: Vec<u8>,
    #[prost(uint64, tag = "8")]
    joined_at_ms: u64,
    /// None for the first version only.
    #[prost(message, optional, tag = "9")]
    versions: Option<VersionsPb>,
    #[prost(message, optional, tag = "10")]
    start: Option<StartPb>,
    /// None for the default only.
    #[prost(message, optional, tag = "11")]
    role: Option<NodeRolePb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct NodeRolePb {
    #[prost(bool, tag = "1")]
    gateway: bool,
    #[prost(uint32, tag = "2")]
    weight: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StartPb {
    #[prost(uint64, tag = "1")]
    incarnation: u64,
    #[prost(string, tag = "2")]
    build: String,
    #[prost(uint64, tag = "3")]
    at_ms: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct VersionsPb {
    #[prost(uint32, tag = "1")]
    min: u32,
    #[prost(uint32, tag = "2")]
    max: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CollectionPb {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    sharding: u32,
    #[prost(uint32, tag = "4")]
    buckets: u32,
    #[prost(uint32, tag = "5")]
    replicas: u32,
    /// What differs from the defaults.
    #[prost(message, optional, tag = "6")]
    settings: Option<SettingsPb>,
}

/// Settings of a collection; zero for those of large values that are not said.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct SettingsPb {
    #[prost(uint32, tag = "1")]
    objects_from: u32,
    #[prost(uint32, tag = "2")]
    chunk_min: u32,
    #[prost(uint32, tag = "3")]
    chunk_average: u32,
    #[prost(uint32, tag = "4")]
    chunk_max: u32,
    #[prost(uint64, optional, tag = "5")]
    split_bytes: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ReplicaPb {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    learner: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DescriptorPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(bytes = "bytes", tag = "2")]
    start: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    end: Bytes,
    #[prost(uint64, tag = "4")]
    epoch_range: u64,
    #[prost(uint64, tag = "5")]
    epoch_config: u64,
    #[prost(message, repeated, tag = "6")]
    replicas: Vec<ReplicaPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ShardPb {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    collection: u32,
    #[prost(uint32, tag = "3")]
    replicas_desired: u32,
    #[prost(message, repeated, tag = "4")]
    intent: Vec<ReplicaPb>,
    #[prost(uint64, tag = "5")]
    intent_version: u64,
    #[prost(message, optional, tag = "6")]
    initial: Option<DescriptorPb>,
    #[prost(message, optional, tag = "7")]
    descriptor: Option<DescriptorPb>,
    #[prost(uint64, optional, tag = "8")]
    parent: Option<u64>,
    #[prost(message, optional, tag = "9")]
    split: Option<PlannedSplitPb>,
    #[prost(message, optional, tag = "10")]
    merge: Option<PlannedMergePb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PlannedMergePb {
    #[prost(uint64, tag = "1")]
    right: u64,
    #[prost(uint64, tag = "2")]
    epoch_range: u64,
    #[prost(uint64, tag = "3")]
    epoch_config: u64,
    #[prost(uint64, tag = "4")]
    right_epoch_range: u64,
    #[prost(uint64, tag = "5")]
    right_epoch_config: u64,
    #[prost(bytes = "bytes", tag = "6")]
    right_start: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    right_end: Bytes,
    #[prost(message, repeated, tag = "8")]
    replicas: Vec<SplitReplicaPb>,
    #[prost(uint64, repeated, tag = "9")]
    frozen: Vec<u64>,
    #[prost(bool, tag = "10")]
    is_cancelled: bool,
    #[prost(uint64, tag = "11")]
    operation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PlannedSplitPb {
    #[prost(bytes = "bytes", tag = "1")]
    at: Bytes,
    #[prost(uint64, tag = "2")]
    child: u64,
    #[prost(message, repeated, tag = "3")]
    replicas: Vec<SplitReplicaPb>,
    #[prost(uint64, tag = "4")]
    operation: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SplitReplicaPb {
    #[prost(uint64, tag = "1")]
    parent: u64,
    #[prost(uint64, tag = "2")]
    child: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TokenPb {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    expires_at_ms: u64,
    #[prost(uint32, tag = "4")]
    uses_left: u32,
    #[prost(uint32, tag = "5")]
    uses_max: u32,
    #[prost(uint64, tag = "6")]
    created_at_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyPb {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(uint32, tag = "3")]
    role: u32,
    #[prost(string, repeated, tag = "4")]
    collections: Vec<String>,
    #[prost(uint64, tag = "5")]
    expires_at_ms: u64,
    #[prost(uint64, tag = "6")]
    created_at_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderPb {
    /// Empty before bootstrap.
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(uint64, tag = "3")]
    next_node: u64,
    #[prost(uint32, tag = "4")]
    next_collection: u32,
    #[prost(uint64, tag = "5")]
    next_shard: u64,
    #[prost(uint64, tag = "6")]
    next_replica: u64,
    /// Zero for the first.
    #[prost(uint32, tag = "7")]
    cluster_version: u32,
    /// Zero for the first.
    #[prost(uint64, tag = "8")]
    next_operation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotPb {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderPb>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<NodePb>,
    #[prost(message, repeated, tag = "3")]
    collections: Vec<CollectionPb>,
    #[prost(message, repeated, tag = "4")]
    shards: Vec<ShardPb>,
    #[prost(message, repeated, tag = "5")]
    tokens: Vec<TokenPb>,
    #[prost(btree_map = "string, string", tag = "6")]
    settings: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "7")]
    keys: Vec<KeyPb>,
    #[prost(message, optional, tag = "8")]
    authority: Option<AuthorityPb>,
    #[prost(message, repeated, tag = "9")]
    operations: Vec<OperationPb>,
}

impl MetaState {
    /// Encodes the whole state. Equal states give equal bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let snapshot = SnapshotPb {
            header: Some(HeaderPb::from(&self.header)),
            nodes: self.nodes().map(NodePb::from).collect(),
            collections: self.collections().map(CollectionPb::from).collect(),
            shards: self.shards().map(ShardPb::from).collect(),
            tokens: self.tokens().map(TokenPb::from).collect(),
            settings: self.settings.iter().map(|(key, value)| (key.clone(), value.to_string())).collect(),
            keys: self.keys().map(KeyPb::from).collect(),
            authority: self.authority().map(AuthorityPb::from),
            operations: self.operations().map(OperationPb::from).collect(),
        };
        encode_at(VersionNeed::InForce(self.cluster_version()), &snapshot)
    }

    /// Decodes the output of [`MetaState::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let snapshot: SnapshotPb = decode_versioned(bytes)?;
        let mut state = Self { header: required(snapshot.header)?.try_into()?, ..Self::default() };
        for node in snapshot.nodes {
            let node = NodeRecord::try_from(node)?;
            state.nodes.insert(node.id, Arc::new(node));
        }
        for collection in snapshot.collections {
            let collection = Collection::from_pb(collection)?;
            state.collections.insert(collection.id, Arc::new(collection));
        }
        for shard in snapshot.shards {
            state.record_shard(ShardRecord::try_from(shard)?);
        }
        for token in snapshot.tokens {
            let token = TokenRecord::try_from(token)?;
            state.tokens.insert(token.id, Arc::new(token));
        }
        for key in snapshot.keys {
            let key = KeyRecord::try_from(key)?;
            state.keys.insert(key.id, Arc::new(key));
        }
        for operation in snapshot.operations {
            state.record_operation(OperationRecord::try_from(operation)?);
        }
        state.authority = snapshot.authority.map(AuthorityRecord::try_from).transpose()?.map(Arc::new);
        state.settings = snapshot.settings.into_iter().map(|(key, value)| (key, value.into())).collect();
        Ok(state)
    }
}

macro_rules! stored {
    ($record:ty, $pb:ty, $encode:ident, $decode:ident, $from:expr) => {
        /// Encodes a stored record.
        pub(crate) fn $encode(record: &$record) -> Bytes {
            encode_versioned(&<$pb>::from(record))
        }

        /// Decodes a stored record.
        pub(crate) fn $decode(bytes: &[u8]) -> Result<$record, CodecError> {
            $from(decode_versioned::<$pb>(bytes)?)
        }
    };
}

/// Encodes the header. It has the version in force, so that a binary that does not support it reads no
/// further.
pub(crate) fn encode_header(header: &Header) -> Bytes {
    encode_at(VersionNeed::InForce(header.cluster_version), &HeaderPb::from(header))
}

/// Decodes the header.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<Header, CodecError> {
    decode_versioned::<HeaderPb>(bytes)?.try_into()
}

/// Encodes a node.
pub(crate) fn encode_node(node: &NodeRecord) -> Bytes {
    let needs = [
        (node.versions != VersionRange::FIRST_ONLY).then_some(ClusterVersion::NODE_VERSIONS),
        node.start.is_some().then_some(ClusterVersion::NODE_STARTS),
        Some(node.state.since()),
        (node.role != NodeRole::default()).then_some(ClusterVersion::NODE_ROLES),
    ];
    let version = needs.into_iter().flatten().max().unwrap_or(ClusterVersion::FIRST);
    encode_at(VersionNeed::InForce(version), &NodePb::from(node))
}

/// Decodes a node.
pub(crate) fn decode_node(bytes: &[u8]) -> Result<NodeRecord, CodecError> {
    decode_versioned::<NodePb>(bytes)?.try_into()
}

/// Encodes a shard.
pub(crate) fn encode_shard(shard: &ShardRecord) -> Bytes {
    let needs = [
        (shard.parent.is_some() || shard.split.is_some()).then_some(ClusterVersion::SPLITS),
        shard.merge.is_some().then_some(ClusterVersion::MERGES),
    ];
    let version = needs.into_iter().flatten().max().unwrap_or(ClusterVersion::FIRST);
    encode_at(VersionNeed::InForce(version), &ShardPb::from(shard))
}

/// Decodes a shard.
pub(crate) fn decode_shard(bytes: &[u8]) -> Result<ShardRecord, CodecError> {
    decode_versioned::<ShardPb>(bytes)?.try_into()
}

stored!(TokenRecord, TokenPb, encode_token, decode_token, TokenRecord::try_from);

impl From<&Header> for HeaderPb {
    fn from(header: &Header) -> Self {
        Self {
            cluster: header.cluster.map_or_else(Vec::new, |cluster| cluster.0.to_vec()),
            version: header.version,
            next_node: header.next_node.0,
            next_collection: header.next_collection.0,
            next_shard: header.next_shard.0,
            next_replica: header.next_replica.0,
            cluster_version: match header.cluster_version {
                ClusterVersion::FIRST => 0,
                later => later.0,
            },
            next_operation: match header.next_operation {
                OperationId(1) => 0,
                later => later.0,
            },
        }
    }
}

impl TryFrom<HeaderPb> for Header {
    type Error = CodecError;

    fn try_from(header: HeaderPb) -> Result<Self, CodecError> {
        let cluster = match &header.cluster[..] {
            [] => None,
            bytes => Some(cluster(bytes)?),
        };
        Ok(Self {
            cluster,
            version: number(header.version)?,
            next_node: number(header.next_node)?,
            next_collection: collection_id(header.next_collection)?,
            next_shard: number(header.next_shard)?,
            next_replica: number(header.next_replica)?,
            cluster_version: match header.cluster_version {
                0 => ClusterVersion::FIRST,
                later => version(later)?,
            },
            next_operation: match header.next_operation {
                0 => OperationId(1),
                later => number(later)?,
            },
        })
    }
}

impl From<&NodeRecord> for NodePb {
    fn from(node: &NodeRecord) -> Self {
        Self {
            id: node.id.0,
            name: node.name.clone(),
            addresses: Some((&node.addresses).into()),
            locality: node.locality.0.clone(),
            state: state_number(node.state),
            incarnation: node.incarnation.0,
            key_digest: node.key_digest.to_vec(),
            joined_at_ms: node.joined_at_ms,
            versions: (node.versions != VersionRange::FIRST_ONLY).then(|| node.versions.into()),
            start: node.start.as_ref().map(|start| StartPb {
                incarnation: start.incarnation.0,
                build: start.build.clone(),
                at_ms: start.at_ms,
            }),
            role: role_pb(node.role),
        }
    }
}

impl TryFrom<NodePb> for NodeRecord {
    type Error = CodecError;

    fn try_from(node: NodePb) -> Result<Self, CodecError> {
        Ok(Self {
            id: number(node.id)?,
            name: node.name,
            addresses: required(node.addresses)?.into(),
            locality: Locality(node.locality),
            state: node_state(node.state)?,
            incarnation: number(node.incarnation)?,
            key_digest: hash(&node.key_digest)?,
            joined_at_ms: node.joined_at_ms,
            versions: node.versions.map_or(Ok(VersionRange::FIRST_ONLY), versions)?,
            start: node.start.map(node_start).transpose()?,
            role: node_role(node.role),
        })
    }
}

/// A role, unless it is the default.
pub(super) fn role_pb(role: NodeRole) -> Option<NodeRolePb> {
    let gateway = role == NodeRole::Gateway;
    (role != NodeRole::default()).then(|| NodeRolePb { gateway, weight: role.weight() })
}

/// The output of [`role_pb`].
pub(super) fn node_role(pb: Option<NodeRolePb>) -> NodeRole {
    match pb {
        None => NodeRole::default(),
        Some(NodeRolePb { gateway: true, .. }) => NodeRole::Gateway,
        Some(NodeRolePb { gateway: false, weight }) => NodeRole::Storage { weight },
    }
}

fn node_start(start: StartPb) -> Result<NodeStart, CodecError> {
    Ok(NodeStart { incarnation: number(start.incarnation)?, build: start.build, at_ms: start.at_ms })
}

impl From<&Collection> for CollectionPb {
    fn from(collection: &Collection) -> Self {
        Self {
            id: collection.id.0,
            name: collection.name.clone(),
            sharding: sharding_number(collection.sharding),
            buckets: collection.buckets.into(),
            replicas: collection.replicas.into(),
            settings: Some(said(collection)).filter(|said| *said != CollectionSettings::NONE).map(SettingsPb::from),
        }
    }
}

/// What differs from the defaults.
fn said(collection: &Collection) -> CollectionSettings {
    CollectionSettings {
        objects_from: (collection.objects_from != Collection::OBJECTS_FROM_DEFAULT).then_some(collection.objects_from),
        chunking: (collection.chunking != Chunking::default()).then_some(collection.chunking),
        split_bytes: (collection.split_bytes != Collection::SPLIT_BYTES_DEFAULT).then_some(collection.split_bytes),
    }
}

/// Encodes a collection.
pub(crate) fn encode_collection(collection: &Collection) -> Bytes {
    let version = said(collection).since().unwrap_or(ClusterVersion::FIRST);
    encode_at(VersionNeed::InForce(version), &CollectionPb::from(collection))
}

/// Decodes a collection.
pub(crate) fn decode_collection(bytes: &[u8]) -> Result<Collection, CodecError> {
    Collection::from_pb(decode_versioned::<CollectionPb>(bytes)?)
}

impl From<CollectionSettings> for SettingsPb {
    fn from(settings: CollectionSettings) -> Self {
        let lengths = settings.chunking.map(|chunking| [chunking.min(), chunking.average(), chunking.max()]);
        let [chunk_min, chunk_average, chunk_max] = lengths.unwrap_or_default();
        let objects_from = settings.objects_from.unwrap_or(0);
        Self { objects_from, chunk_min, chunk_average, chunk_max, split_bytes: settings.split_bytes }
    }
}

pub(super) fn collection_settings(settings: SettingsPb) -> Result<CollectionSettings, CodecError> {
    let SettingsPb { objects_from, chunk_min, chunk_average, chunk_max, split_bytes } = settings;
    let chunking = match (chunk_min, chunk_average, chunk_max) {
        (0, 0, 0) => None,
        (min, average, max) => Some(Chunking::new(min, average, max).map_err(|_| CodecError::Malformed)?),
    };
    Ok(CollectionSettings { objects_from: (objects_from > 0).then_some(objects_from), chunking, split_bytes })
}

/// `Collection` belongs to another crate, so this cannot be a `TryFrom`.
trait FromPb<Pb>: Sized {
    fn from_pb(pb: Pb) -> Result<Self, CodecError>;
}

impl FromPb<CollectionPb> for Collection {
    fn from_pb(collection: CollectionPb) -> Result<Self, CodecError> {
        let settings = collection_settings(collection.settings.unwrap_or_default())?;
        Ok(Self {
            id: collection_id(collection.id)?,
            name: collection.name,
            sharding: sharding(collection.sharding)?,
            buckets: u16::try_from(collection.buckets).map_err(|_| CodecError::Malformed)?,
            replicas: u8::try_from(collection.replicas).map_err(|_| CodecError::Malformed)?,
            objects_from: settings.objects_from.unwrap_or(Self::OBJECTS_FROM_DEFAULT),
            chunking: settings.chunking.unwrap_or_default(),
            split_bytes: settings.split_bytes.unwrap_or(Self::SPLIT_BYTES_DEFAULT),
        })
    }
}

impl From<&ShardRecord> for ShardPb {
    fn from(shard: &ShardRecord) -> Self {
        let intent = |held: &PlanReplica| ReplicaPb { replica: held.replica.0, node: held.node.0, learner: false };
        Self {
            id: shard.id.0,
            collection: shard.collection.0,
            replicas_desired: shard.replicas_desired.into(),
            intent: shard.intent.iter().map(intent).collect(),
            intent_version: shard.intent_version,
            initial: Some((&shard.initial).into()),
            descriptor: Some((&shard.descriptor).into()),
            parent: shard.parent.map(|parent| parent.0),
            split: shard.split.as_ref().map(PlannedSplitPb::from),
            merge: shard.merge.as_ref().map(PlannedMergePb::from),
        }
    }
}

impl TryFrom<ShardPb> for ShardRecord {
    type Error = CodecError;

    fn try_from(shard: ShardPb) -> Result<Self, CodecError> {
        let intent = |held: &ReplicaPb| Ok(PlanReplica { replica: number(held.replica)?, node: number(held.node)? });
        Ok(Self {
            id: number(shard.id)?,
            collection: collection_id(shard.collection)?,
            replicas_desired: u8::try_from(shard.replicas_desired).map_err(|_| CodecError::Malformed)?,
            intent: shard.intent.iter().map(intent).collect::<Result<_, CodecError>>()?,
            intent_version: number(shard.intent_version)?,
            initial: required(shard.initial)?.try_into_descriptor()?,
            descriptor: required(shard.descriptor)?.try_into_descriptor()?,
            parent: shard.parent.map(number).transpose()?,
            split: shard.split.map(PlannedSplit::try_from).transpose()?,
            merge: shard.merge.map(PlannedMerge::try_from).transpose()?,
        })
    }
}

impl From<&PlannedMerge> for PlannedMergePb {
    fn from(merge: &PlannedMerge) -> Self {
        // The left one is the parent of nobody, but the pair is the same.
        let pair = |(left, right): &(ReplicaId, ReplicaId)| SplitReplicaPb { parent: left.0, child: right.0 };
        Self {
            right: merge.right.0,
            epoch_range: merge.epoch.range,
            epoch_config: merge.epoch.config,
            right_epoch_range: merge.right_epoch.range,
            right_epoch_config: merge.right_epoch.config,
            right_start: merge.right_range.start.clone(),
            right_end: merge.right_range.end.clone(),
            replicas: merge.replicas.iter().map(pair).collect(),
            frozen: merge.frozen.iter().map(|replica| replica.0).collect(),
            is_cancelled: merge.is_cancelled,
            operation: merge.operation.0,
        }
    }
}

impl TryFrom<PlannedMergePb> for PlannedMerge {
    type Error = CodecError;

    fn try_from(merge: PlannedMergePb) -> Result<Self, CodecError> {
        let pair = |pair: &SplitReplicaPb| Ok((number(pair.parent)?, number(pair.child)?));
        Ok(Self {
            right: number(merge.right)?,
            epoch: Epoch { range: number(merge.epoch_range)?, config: number(merge.epoch_config)? },
            right_epoch: Epoch { range: number(merge.right_epoch_range)?, config: number(merge.right_epoch_config)? },
            right_range: KeyRange { start: merge.right_start, end: merge.right_end },
            replicas: merge.replicas.iter().map(pair).collect::<Result<_, CodecError>>()?,
            frozen: merge.frozen.into_iter().map(number).collect::<Result<_, CodecError>>()?,
            is_cancelled: merge.is_cancelled,
            operation: number(merge.operation)?,
        })
    }
}

impl From<&PlannedSplit> for PlannedSplitPb {
    fn from(split: &PlannedSplit) -> Self {
        let replica = |(parent, child): &(ReplicaId, ReplicaId)| SplitReplicaPb { parent: parent.0, child: child.0 };
        Self {
            at: split.at.clone(),
            child: split.child.0,
            replicas: split.replicas.iter().map(replica).collect(),
            operation: split.operation.0,
        }
    }
}

impl TryFrom<PlannedSplitPb> for PlannedSplit {
    type Error = CodecError;

    fn try_from(split: PlannedSplitPb) -> Result<Self, CodecError> {
        let replica = |pair: &SplitReplicaPb| Ok((number(pair.parent)?, number(pair.child)?));
        Ok(Self {
            at: split.at,
            child: number(split.child)?,
            replicas: split.replicas.iter().map(replica).collect::<Result<_, CodecError>>()?,
            operation: number(split.operation)?,
        })
    }
}

impl From<&ShardDescriptor> for DescriptorPb {
    fn from(descriptor: &ShardDescriptor) -> Self {
        let replica = |held: &ReplicaDescriptor| ReplicaPb {
            replica: held.replica.0,
            node: held.node.0,
            learner: held.role == ReplicaRole::Learner,
        };
        Self {
            shard: descriptor.shard.0,
            start: descriptor.range.start.clone(),
            end: descriptor.range.end.clone(),
            epoch_range: descriptor.epoch.range,
            epoch_config: descriptor.epoch.config,
            replicas: descriptor.replicas.iter().map(replica).collect(),
        }
    }
}

impl DescriptorPb {
    pub(super) fn try_into_descriptor(self) -> Result<ShardDescriptor, CodecError> {
        let replica = |held: &ReplicaPb| {
            let role = if held.learner { ReplicaRole::Learner } else { ReplicaRole::Voter };
            Ok(ReplicaDescriptor { replica: number(held.replica)?, node: number(held.node)?, role })
        };
        Ok(ShardDescriptor {
            shard: number(self.shard)?,
            range: KeyRange { start: self.start, end: self.end },
            epoch: Epoch { range: number(self.epoch_range)?, config: number(self.epoch_config)? },
            replicas: self.replicas.iter().map(replica).collect::<Result<_, CodecError>>()?,
        })
    }
}

impl From<&TokenRecord> for TokenPb {
    fn from(token: &TokenRecord) -> Self {
        Self {
            id: token.id.0,
            hash: token.hash.to_vec(),
            expires_at_ms: token.expires_at_ms,
            uses_left: token.uses_left,
            uses_max: token.uses_max,
            created_at_ms: token.created_at_ms,
        }
    }
}

impl TryFrom<TokenPb> for TokenRecord {
    type Error = CodecError;

    fn try_from(token: TokenPb) -> Result<Self, CodecError> {
        Ok(Self {
            id: TokenId(token.id),
            hash: hash(&token.hash)?,
            expires_at_ms: token.expires_at_ms,
            uses_left: token.uses_left,
            uses_max: token.uses_max,
            created_at_ms: token.created_at_ms,
        })
    }
}

/// Encodes a stored client key. Its version keeps older binaries from reading it.
pub(crate) fn encode_key(record: &KeyRecord) -> Bytes {
    encode_at(VersionNeed::InForce(ClusterVersion::CLIENT_KEYS), &KeyPb::from(record))
}

/// Decodes a stored client key.
pub(crate) fn decode_key(bytes: &[u8]) -> Result<KeyRecord, CodecError> {
    decode_versioned::<KeyPb>(bytes)?.try_into()
}

impl From<&KeyRecord> for KeyPb {
    fn from(key: &KeyRecord) -> Self {
        Self {
            id: key.id.0,
            hash: key.hash.to_vec(),
            role: role_number(key.role),
            collections: key.collections.clone(),
            expires_at_ms: key.expires_at_ms,
            created_at_ms: key.created_at_ms,
        }
    }
}

impl TryFrom<KeyPb> for KeyRecord {
    type Error = CodecError;

    fn try_from(key: KeyPb) -> Result<Self, CodecError> {
        Ok(Self {
            id: KeyId(key.id),
            hash: hash(&key.hash)?,
            role: role(key.role)?,
            collections: key.collections,
            expires_at_ms: key.expires_at_ms,
            created_at_ms: key.created_at_ms,
        })
    }
}

pub(super) fn role_number(role: Role) -> u32 {
    match role {
        Role::Reader => 1,
        Role::Writer => 2,
        Role::Operator => 3,
        Role::Admin => 4,
    }
}

pub(super) fn role(number: u32) -> Result<Role, CodecError> {
    Role::ALL.into_iter().find(|role| role_number(*role) == number).ok_or(CodecError::Malformed)
}

impl From<&Addresses> for AddressesPb {
    fn from(addresses: &Addresses) -> Self {
        let Addresses { quic, http, redis } = addresses.clone();
        Self { quic, http, redis }
    }
}

impl From<AddressesPb> for Addresses {
    fn from(addresses: AddressesPb) -> Self {
        let AddressesPb { quic, http, redis } = addresses;
        Self { quic, http, redis }
    }
}

impl From<VersionRange> for VersionsPb {
    fn from(range: VersionRange) -> Self {
        Self { min: range.min.0, max: range.max.0 }
    }
}

pub(super) fn versions(pb: VersionsPb) -> Result<VersionRange, CodecError> {
    let range = VersionRange { min: version(pb.min)?, max: version(pb.max)? };
    if range.min <= range.max { Ok(range) } else { Err(CodecError::Malformed) }
}

pub(super) fn version(number: u32) -> Result<ClusterVersion, CodecError> {
    if (1..=ClusterVersion::LAST.0).contains(&number) { Ok(ClusterVersion(number)) } else { Err(CodecError::Malformed) }
}

pub(super) fn cluster(bytes: &[u8]) -> Result<ClusterId, CodecError> {
    bytes.try_into().map(ClusterId).map_err(|_| CodecError::Malformed)
}

/// Checks that an id is below half of the id space, so that the next id and the end of the collection's range
/// exist.
pub(super) fn collection_id(id: u32) -> Result<CollectionId, CodecError> {
    if id <= u32::MAX / 2 { Ok(CollectionId(id)) } else { Err(CodecError::Malformed) }
}

pub(super) fn state_number(state: NodeState) -> u32 {
    match state {
        NodeState::Active => 1,
        NodeState::Decommissioning => 2,
        NodeState::Removed => 3,
        NodeState::Lost => 4,
        NodeState::Draining => 5,
        NodeState::Leaving => 6,
    }
}

pub(super) fn node_state(number: u32) -> Result<NodeState, CodecError> {
    match number {
        1 => Ok(NodeState::Active),
        2 => Ok(NodeState::Decommissioning),
        3 => Ok(NodeState::Removed),
        4 => Ok(NodeState::Lost),
        5 => Ok(NodeState::Draining),
        6 => Ok(NodeState::Leaving),
        _ => Err(CodecError::Malformed),
    }
}

pub(super) fn sharding_number(sharding: Sharding) -> u32 {
    match sharding {
        Sharding::Hash => 1,
        Sharding::Range => 2,
    }
}

pub(super) fn sharding(number: u32) -> Result<Sharding, CodecError> {
    match number {
        1 => Ok(Sharding::Hash),
        2 => Ok(Sharding::Range),
        _ => Err(CodecError::Malformed),
    }
}
