//! The encoding of replies and refusals.
//!
//! A refusal is a code and up to two numbers. Codes are never reused.

use bytes::Bytes;
use flotilla_types::{CollectionId, Epoch, ShardId, VersionRange};

use super::{
    CodecError, decode_versioned, encode_versioned, number,
    records::{cluster, collection_id, node_state, state_number, version},
    required,
};
use crate::{Field, Limit, MetaRefusal, MetaReply};

#[derive(Clone, PartialEq, prost::Message)]
struct ReplyPb {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(bool, tag = "1")]
    Done(bool),
    #[prost(uint64, tag = "2")]
    Node(u64),
    #[prost(message, tag = "3")]
    Collection(CollectionPb),
    #[prost(uint64, tag = "4")]
    Replica(u64),
    #[prost(message, tag = "5")]
    Batch(BatchPb),
    #[prost(message, tag = "6")]
    Refused(RefusalPb),
    #[prost(uint64, tag = "7")]
    Operation(u64),
}

#[derive(Clone, PartialEq, prost::Message)]
struct CollectionPb {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(uint64, repeated, tag = "2")]
    shards: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BatchPb {
    #[prost(message, repeated, tag = "1")]
    replies: Vec<ReplyPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RefusalPb {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(uint64, tag = "2")]
    first: u64,
    #[prost(uint64, tag = "3")]
    second: u64,
    #[prost(bytes = "vec", tag = "4")]
    cluster: Vec<u8>,
    #[prost(message, optional, boxed, tag = "5")]
    inner: Option<Box<RefusalPb>>,
}

impl MetaReply {
    /// Encodes the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode_versioned(&ReplyPb::from(self))
    }

    /// Decodes the output of [`MetaReply::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode_versioned::<ReplyPb>(bytes)?.try_into()
    }
}

impl From<&MetaReply> for ReplyPb {
    fn from(reply: &MetaReply) -> Self {
        let kind = match reply {
            MetaReply::Done => Kind::Done(true),
            MetaReply::Node(node) => Kind::Node(node.0),
            MetaReply::Collection { collection, shards } => Kind::Collection(CollectionPb {
                id: collection.0,
                shards: shards.iter().map(|shard| shard.0).collect(),
            }),
            MetaReply::Replica(replica) => Kind::Replica(replica.0),
            MetaReply::Operation(operation) => Kind::Operation(operation.0),
            MetaReply::Batch(replies) => Kind::Batch(BatchPb { replies: replies.iter().map(Self::from).collect() }),
            MetaReply::Refused(refusal) => Kind::Refused(refusal.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<ReplyPb> for MetaReply {
    type Error = CodecError;

    fn try_from(reply: ReplyPb) -> Result<Self, CodecError> {
        Ok(match required(reply.kind)? {
            Kind::Done(_) => Self::Done,
            Kind::Node(node) => Self::Node(number(node)?),
            Kind::Collection(pb) => Self::Collection {
                collection: collection_id(pb.id)?,
                shards: pb.shards.into_iter().map(number).collect::<Result<Vec<ShardId>, _>>()?,
            },
            Kind::Replica(replica) => Self::Replica(number(replica)?),
            Kind::Operation(operation) => Self::Operation(number(operation)?),
            Kind::Batch(pb) => {
                Self::Batch(pb.replies.into_iter().map(Self::try_from).collect::<Result<_, CodecError>>()?)
            }
            Kind::Refused(refusal) => Self::Refused(refusal.try_into()?),
        })
    }
}

impl From<&MetaRefusal> for RefusalPb {
    fn from(refusal: &MetaRefusal) -> Self {
        let (code, first, second) = match *refusal {
            MetaRefusal::NotBootstrapped => (1, 0, 0),
            MetaRefusal::OtherCluster(_) => (2, 0, 0),
            MetaRefusal::UnknownToken => (3, 0, 0),
            MetaRefusal::TokenExpired => (4, 0, 0),
            MetaRefusal::TokenUsedUp => (5, 0, 0),
            MetaRefusal::WrongSecret => (6, 0, 0),
            MetaRefusal::TokenExists => (7, 0, 0),
            MetaRefusal::KeyRemoved(node) => (8, node.0, 0),
            MetaRefusal::UnknownNode(node) => (9, node.0, 0),
            MetaRefusal::NodeGone { node, state } => (10, node.0, state_number(state).into()),
            MetaRefusal::NodeNotActive(node) => (11, node.0, 0),
            MetaRefusal::StaleIncarnation { known } => (12, known.0, 0),
            MetaRefusal::LastNode => (13, 0, 0),
            MetaRefusal::UnknownCollection(collection) => (14, collection.0.into(), 0),
            MetaRefusal::CollectionExists(collection) => (15, collection.0.into(), 0),
            MetaRefusal::BadPlacement => (16, 0, 0),
            MetaRefusal::UnknownShard(shard) => (17, shard.0, 0),
            MetaRefusal::UnknownReplica(replica) => (18, replica.0, 0),
            MetaRefusal::ReplicaExists(replica) => (19, replica.0, 0),
            MetaRefusal::LastReplica => (20, 0, 0),
            MetaRefusal::IntentChanged { found } => (21, found, 0),
            MetaRefusal::StaleEpoch { known } => (22, known.range, known.config),
            MetaRefusal::UnknownSetting => (23, 0, 0),
            MetaRefusal::Invalid(field) => (24, field.number(), 0),
            MetaRefusal::LimitReached(limit) => (25, limit.number(), 0),
            MetaRefusal::Malformed => (26, 0, 0),
            MetaRefusal::InBatch { position, .. } => (27, position.into(), 0),
            MetaRefusal::VersionNotSupported { in_force, supported } => {
                (28, in_force.0.into(), u64::from(supported.min.0) << 32 | u64::from(supported.max.0))
            }
            MetaRefusal::VersionNotSeen { node, version } => (29, node.0, version.0.into()),
            MetaRefusal::VersionNotNext { in_force } => (30, in_force.0.into(), 0),
            MetaRefusal::VersionNotInForce { needed, in_force } => (31, needed.0.into(), in_force.0.into()),
            MetaRefusal::UnknownKey => (32, 0, 0),
            MetaRefusal::KeyExists => (33, 0, 0),
            MetaRefusal::LastAdminKey => (34, 0, 0),
            MetaRefusal::NodeNotLeaving(node) => (35, node.0, 0),
            MetaRefusal::NodeHoldsReplicas(node) => (36, node.0, 0),
            MetaRefusal::OtherAuthority => (37, 0, 0),
            MetaRefusal::RotationInProgress => (38, 0, 0),
            MetaRefusal::AuthorityNotHeld(node) => (39, node.0, 0),
            MetaRefusal::AddressInUse(node) => (40, node.0, 0),
            MetaRefusal::ShardChanging(shard) => (41, shard.0, 0),
            MetaRefusal::UnknownOperation(operation) => (42, operation.0, 0),
            MetaRefusal::OperationEnded(operation) => (43, operation.0, 0),
            MetaRefusal::OperationTooLate(operation) => (44, operation.0, 0),
            MetaRefusal::OperationChanged(operation) => (45, operation.0, 0),
            MetaRefusal::SplitPlanned(operation) => (46, operation.0, 0),
            MetaRefusal::NotSplittable(shard) => (47, shard.0, 0),
            MetaRefusal::NodeIsGateway(node) => (48, node.0, 0),
            MetaRefusal::NotNeighbours { left, right } => (50, left.0, right.0),
            MetaRefusal::ReplicasApart { shard, node } => (51, shard.0, node.0),
            MetaRefusal::MergePlanned(operation) => (52, operation.0, 0),
            MetaRefusal::OperationNotPaused(operation) => (53, operation.0, 0),
        };
        let cluster = if let MetaRefusal::OtherCluster(cluster) = refusal { cluster.0.to_vec() } else { Vec::new() };
        let inner = if let MetaRefusal::InBatch { refusal, .. } = refusal {
            Some(Box::new(Self::from(refusal.as_ref())))
        } else {
            None
        };
        Self { code, first, second, cluster, inner }
    }
}

impl TryFrom<RefusalPb> for MetaRefusal {
    type Error = CodecError;

    fn try_from(pb: RefusalPb) -> Result<Self, CodecError> {
        let small = |number: u64| u32::try_from(number).map_err(|_| CodecError::Malformed);
        let collection = |number: u64| small(number).and_then(collection_id).map(|id: CollectionId| id);
        Ok(match pb.code {
            1 => Self::NotBootstrapped,
            2 => Self::OtherCluster(cluster(&pb.cluster)?),
            3 => Self::UnknownToken,
            4 => Self::TokenExpired,
            5 => Self::TokenUsedUp,
            6 => Self::WrongSecret,
            7 => Self::TokenExists,
            8 => Self::KeyRemoved(number(pb.first)?),
            9 => Self::UnknownNode(number(pb.first)?),
            10 => Self::NodeGone { node: number(pb.first)?, state: node_state(small(pb.second)?)? },
            11 => Self::NodeNotActive(number(pb.first)?),
            12 => Self::StaleIncarnation { known: number(pb.first)? },
            13 => Self::LastNode,
            14 => Self::UnknownCollection(collection(pb.first)?),
            15 => Self::CollectionExists(collection(pb.first)?),
            16 => Self::BadPlacement,
            17 => Self::UnknownShard(number(pb.first)?),
            18 => Self::UnknownReplica(number(pb.first)?),
            19 => Self::ReplicaExists(number(pb.first)?),
            20 => Self::LastReplica,
            21 => Self::IntentChanged { found: pb.first },
            22 => Self::StaleEpoch { known: Epoch { range: pb.first, config: pb.second } },
            23 => Self::UnknownSetting,
            24 => Self::Invalid(required(Field::from_number(pb.first))?),
            25 => Self::LimitReached(required(Limit::from_number(pb.first))?),
            26 => Self::Malformed,
            27 => {
                Self::InBatch { position: small(pb.first)?, refusal: Box::new(Self::try_from(*required(pb.inner)?)?) }
            }
            28 => Self::VersionNotSupported {
                in_force: version(small(pb.first)?)?,
                supported: VersionRange {
                    min: version(small(pb.second >> 32)?)?,
                    max: version(small(pb.second & u64::from(u32::MAX))?)?,
                },
            },
            29 => Self::VersionNotSeen { node: number(pb.first)?, version: version(small(pb.second)?)? },
            30 => Self::VersionNotNext { in_force: version(small(pb.first)?)? },
            31 => Self::VersionNotInForce { needed: version(small(pb.first)?)?, in_force: version(small(pb.second)?)? },
            32 => Self::UnknownKey,
            33 => Self::KeyExists,
            34 => Self::LastAdminKey,
            35 => Self::NodeNotLeaving(number(pb.first)?),
            36 => Self::NodeHoldsReplicas(number(pb.first)?),
            37 => Self::OtherAuthority,
            38 => Self::RotationInProgress,
            39 => Self::AuthorityNotHeld(number(pb.first)?),
            40 => Self::AddressInUse(number(pb.first)?),
            41 => Self::ShardChanging(number(pb.first)?),
            42 => Self::UnknownOperation(number(pb.first)?),
            43 => Self::OperationEnded(number(pb.first)?),
            44 => Self::OperationTooLate(number(pb.first)?),
            45 => Self::OperationChanged(number(pb.first)?),
            46 => Self::SplitPlanned(number(pb.first)?),
            47 => Self::NotSplittable(number(pb.first)?),
            48 => Self::NodeIsGateway(number(pb.first)?),
            50 => Self::NotNeighbours { left: number(pb.first)?, right: number(pb.second)? },
            51 => Self::ReplicasApart { shard: number(pb.first)?, node: number(pb.second)? },
            52 => Self::MergePlanned(number(pb.first)?),
            53 => Self::OperationNotPaused(number(pb.first)?),
            _ => return Err(CodecError::Malformed),
        })
    }
}
