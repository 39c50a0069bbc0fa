//! The encoding of commands.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::VersionNeed;
use flotilla_types::{ClusterVersion, Epoch, Incarnation, Locality, NodeId, ShardId, VersionRange};

use super::{
    COMMAND_BYTES_MAX, CodecError,
    authority::PreparedAuthorityPb,
    decode_with_need, encode_at, hash, number, operations,
    records::{
        AddressesPb, DescriptorPb, NodeRolePb, SettingsPb, VersionsPb, cluster, collection_id, collection_settings,
        node_role, node_state, role, role_number, role_pb, sharding, sharding_number, state_number, version, versions,
    },
    required,
};
use crate::{
    CollectionSettings, Displaced, JoinRequest, KeyId, MetaCommand, NewNode, NodeRole, OperationReason, SeenNode,
    Setting, TokenId,
};

#[derive(Clone, PartialEq, prost::Message)]
struct CommandPb {
    #[prost(
        oneof = "Kind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30, \
                31"
    )]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Bootstrap(BootstrapPb),
    #[prost(message, tag = "2")]
    CreateToken(CreateTokenPb),
    #[prost(fixed64, tag = "3")]
    RevokeToken(u64),
    #[prost(message, tag = "4")]
    Join(JoinPb),
    #[prost(message, tag = "5")]
    UpdateNode(UpdateNodePb),
    #[prost(message, tag = "6")]
    SetNodeState(SetNodeStatePb),
    #[prost(uint64, tag = "7")]
    RemoveNode(u64),
    #[prost(message, tag = "8")]
    CreateCollection(CreateCollectionPb),
    #[prost(uint32, tag = "9")]
    DropCollection(u32),
    #[prost(message, tag = "10")]
    AssignReplica(AssignReplicaPb),
    #[prost(message, tag = "11")]
    UnassignReplica(NamedReplicaPb),
    #[prost(message, tag = "12")]
    ReplaceReplica(NamedReplicaPb),
    #[prost(message, tag = "13")]
    ReportShard(DescriptorPb),
    #[prost(message, tag = "14")]
    PutSetting(PutSettingPb),
    #[prost(message, tag = "15")]
    Batch(BatchPb),
    #[prost(message, tag = "16")]
    SetClusterVersion(SetClusterVersionPb),
    #[prost(message, tag = "17")]
    CreateKey(CreateKeyPb),
    #[prost(fixed64, tag = "18")]
    RevokeKey(u64),
    #[prost(uint64, tag = "19")]
    CompleteLeave(u64),
    #[prost(message, tag = "20")]
    ReportStart(ReportStartPb),
    #[prost(message, tag = "21")]
    PrepareAuthority(PrepareAuthorityPb),
    #[prost(message, tag = "22")]
    BeginRotation(BeginRotationPb),
    #[prost(message, tag = "23")]
    NodeCertified(NodeCertifiedPb),
    #[prost(message, tag = "24")]
    ChangeCollection(ChangeCollectionPb),
    #[prost(message, tag = "25")]
    MoveReplica(MoveReplicaPb),
    #[prost(message, tag = "26")]
    ChangeOperation(ChangeOperationPb),
    #[prost(message, tag = "27")]
    SplitShard(SplitShardPb),
    #[prost(message, tag = "28")]
    SetNodeRole(SetNodeRolePb),
    #[prost(message, tag = "30")]
    MergeShards(MergeShardsPb),
    #[prost(message, tag = "31")]
    ReportFrozen(ReportFrozenPb),
}

#[derive(Clone, PartialEq, prost::Message)]
struct NewNodePb {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    addresses: Option<AddressesPb>,
    #[prost(btree_map = "string, string", tag = "3")]
    locality: BTreeMap<String, String>,
    #[prost(bytes = "vec", tag = "4")]
    key_digest: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BootstrapPb {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    node: Option<NewNodePb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateTokenPb {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    expires_at_ms: u64,
    #[prost(uint32, tag = "4")]
    uses: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateKeyPb {
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
}

#[derive(Clone, PartialEq, prost::Message)]
struct PrepareAuthorityPb {
    #[prost(bytes = "bytes", tag = "1")]
    current: Bytes,
    #[prost(message, optional, tag = "2")]
    next: Option<PreparedAuthorityPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BeginRotationPb {
    #[prost(bytes = "bytes", tag = "1")]
    certificate: Bytes,
    #[prost(uint64, repeated, tag = "2")]
    holders: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct NodeCertifiedPb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    serial: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct JoinPb {
    #[prost(fixed64, tag = "1")]
    token: u64,
    #[prost(bytes = "vec", tag = "2")]
    secret_hash: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    node: Option<NewNodePb>,
    #[prost(message, optional, tag = "4")]
    versions: Option<VersionsPb>,
    #[prost(message, repeated, tag = "5")]
    displaced: Vec<DisplacedPb>,
    #[prost(message, optional, tag = "6")]
    role: Option<NodeRolePb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DisplacedPb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateNodePb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(message, optional, tag = "3")]
    addresses: Option<AddressesPb>,
    #[prost(btree_map = "string, string", tag = "4")]
    locality: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    versions: Option<VersionsPb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SetNodeRolePb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(message, optional, tag = "3")]
    role: Option<NodeRolePb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SetNodeStatePb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint32, tag = "2")]
    state: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReportStartPb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(string, tag = "3")]
    build: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodesPb {
    #[prost(uint64, repeated, tag = "1")]
    nodes: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateCollectionPb {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    sharding: u32,
    #[prost(uint32, tag = "3")]
    buckets: u32,
    #[prost(uint32, tag = "4")]
    replicas: u32,
    #[prost(message, repeated, tag = "5")]
    initial_nodes: Vec<NodesPb>,
    #[prost(message, optional, tag = "6")]
    settings: Option<SettingsPb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ChangeCollectionPb {
    #[prost(uint32, tag = "1")]
    collection: u32,
    #[prost(message, optional, tag = "2")]
    settings: Option<SettingsPb>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct AssignReplicaPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    intent_version: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct NamedReplicaPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    replica: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct MoveReplicaPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    replica: u64,
    #[prost(uint64, tag = "3")]
    to: u64,
    #[prost(uint64, tag = "4")]
    intent_version: u64,
    #[prost(uint32, tag = "5")]
    reason: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ChangeOperationPb {
    #[prost(uint64, tag = "1")]
    operation: u64,
    #[prost(uint32, tag = "2")]
    change: u32,
    #[prost(uint64, tag = "3")]
    changes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SplitShardPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(bytes = "bytes", tag = "2")]
    at: Bytes,
    #[prost(uint64, tag = "3")]
    epoch_range: u64,
    #[prost(uint64, tag = "4")]
    epoch_config: u64,
    /// Absent if an operator asked for it.
    #[prost(uint32, optional, tag = "5")]
    reason: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct MergeShardsPb {
    #[prost(message, optional, tag = "1")]
    left: Option<ShardEpochPb>,
    #[prost(message, optional, tag = "2")]
    right: Option<ShardEpochPb>,
    #[prost(uint32, tag = "3")]
    reason: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ReportFrozenPb {
    /// The left shard, and the epoch of the right one.
    #[prost(message, optional, tag = "1")]
    left: Option<ShardEpochPb>,
    #[prost(uint64, tag = "2")]
    replica: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ShardEpochPb {
    #[prost(uint64, tag = "1")]
    shard: u64,
    #[prost(uint64, tag = "2")]
    epoch_range: u64,
    #[prost(uint64, tag = "3")]
    epoch_config: u64,
}

impl From<(ShardId, Epoch)> for ShardEpochPb {
    fn from((shard, Epoch { range, config }): (ShardId, Epoch)) -> Self {
        Self { shard: shard.0, epoch_range: range, epoch_config: config }
    }
}

fn shard_epoch(pb: Option<ShardEpochPb>) -> Result<(ShardId, Epoch), CodecError> {
    let ShardEpochPb { shard, epoch_range, epoch_config } = required(pb)?;
    Ok((number(shard)?, Epoch { range: number(epoch_range)?, config: number(epoch_config)? }))
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutSettingPb {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SeenPb {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(message, optional, tag = "3")]
    versions: Option<VersionsPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SetClusterVersionPb {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    seen: Vec<SeenPb>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BatchPb {
    #[prost(message, repeated, tag = "1")]
    commands: Vec<CommandPb>,
}

impl MetaCommand {
    /// Encodes the command.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode_at(self.need(), &CommandPb::from(self))
    }

    /// What the command needs of the version in force.
    fn need(&self) -> VersionNeed {
        match self {
            Self::SetClusterVersion { version, .. } => VersionNeed::Raises(*version),
            other => VersionNeed::InForce(other.version()),
        }
    }

    /// The lowest version in which the command has its format and meaning.
    fn version(&self) -> ClusterVersion {
        match self {
            Self::Join(JoinRequest { role, .. }) if *role != NodeRole::default() => ClusterVersion::NODE_ROLES,
            Self::Join(JoinRequest { versions: None, displaced, .. }) if displaced.is_empty() => ClusterVersion::FIRST,
            Self::Join(_) => ClusterVersion::NODE_VERSIONS.max(ClusterVersion::NAMED_DISPLACEMENT),
            Self::UpdateNode { versions: Some(_), .. } | Self::SetClusterVersion { .. } => {
                ClusterVersion::NODE_VERSIONS
            }
            Self::CreateCollection { settings, .. } => settings.since().unwrap_or(ClusterVersion::FIRST),
            Self::ChangeCollection { settings, .. } => {
                self.kind_since().max(settings.since().unwrap_or(ClusterVersion::FIRST))
            }
            Self::MoveReplica { reason, .. } | Self::SplitShard { reason, .. } => self.kind_since().max(reason.since()),
            Self::PutSetting { key, .. } => key.parse().map_or(ClusterVersion::FIRST, Setting::since),
            Self::Batch(commands) => commands.iter().map(Self::version).max().unwrap_or(ClusterVersion::FIRST),
            other => other.kind_since(),
        }
    }

    /// The version that introduced the kind of command: binaries of earlier ones refuse it.
    pub(super) fn kind_since(&self) -> ClusterVersion {
        match self {
            Self::CreateKey { .. } | Self::RevokeKey { .. } => ClusterVersion::CLIENT_KEYS,
            Self::SetNodeState { state, .. } => state.since(),
            Self::CompleteLeave { .. } => ClusterVersion::DRAINING,
            Self::ChangeCollection { .. } => ClusterVersion::VALUE_REFS,
            Self::MoveReplica { .. } | Self::ChangeOperation { .. } => ClusterVersion::OPERATIONS,
            Self::SplitShard { .. } => ClusterVersion::SPLITS,
            Self::SetNodeRole { .. } => ClusterVersion::NODE_ROLES,
            Self::MergeShards { .. } | Self::ReportFrozen { .. } => ClusterVersion::MERGES,
            Self::ReportStart { .. } => ClusterVersion::NODE_STARTS,
            Self::PrepareAuthority { .. } | Self::BeginRotation { .. } | Self::NodeCertified { .. } => {
                ClusterVersion::AUTHORITY_ROTATION
            }
            Self::Batch(commands) => commands.iter().map(Self::kind_since).max().unwrap_or(ClusterVersion::FIRST),
            _ => ClusterVersion::FIRST,
        }
    }

    /// The command as a binary of `version` reads it: without the fields that came later.
    pub(super) fn known_to(self, read: ClusterVersion) -> Self {
        let keeps = read >= ClusterVersion::NODE_VERSIONS;
        match self {
            Self::Join(join) => {
                let role = if read >= ClusterVersion::NODE_ROLES { join.role } else { NodeRole::default() };
                let (versions, displaced) = if keeps { (join.versions, join.displaced) } else { (None, Vec::new()) };
                Self::Join(JoinRequest { versions, displaced, role, ..join })
            }
            Self::UpdateNode { node, incarnation, addresses, locality, versions } => {
                Self::UpdateNode { node, incarnation, addresses, locality, versions: versions.filter(|_| keeps) }
            }
            Self::CreateCollection { name, sharding, buckets, replicas, initial_nodes, settings } => {
                let settings = settings.known_to(read);
                Self::CreateCollection { name, sharding, buckets, replicas, initial_nodes, settings }
            }
            Self::ChangeCollection { collection, settings } => {
                Self::ChangeCollection { collection, settings: settings.known_to(read) }
            }
            Self::Batch(commands) => Self::Batch(commands.into_iter().map(|command| command.known_to(read)).collect()),
            other => other,
        }
    }

    /// Decodes the output of [`MetaCommand::encode`]. Fails with [`CodecError::Version`] only for a command
    /// that no leader of a supported version proposes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(CodecError::Malformed);
        }
        let (need, command) = decode_with_need::<CommandPb>(bytes)?;
        let command = Self::try_from(command)?;
        match (need, &command) {
            (VersionNeed::Raises(raised), Self::SetClusterVersion { version, .. }) if raised == *version => Ok(command),
            (VersionNeed::Raises(_), _) | (_, Self::SetClusterVersion { .. }) => Err(CodecError::Malformed),
            (VersionNeed::InForce(read), command) if command.kind_since() > read => Err(CodecError::Malformed),
            (VersionNeed::InForce(read), _) => Ok(command.known_to(read)),
        }
    }
}

impl From<&MetaCommand> for CommandPb {
    fn from(command: &MetaCommand) -> Self {
        let kind = match command {
            MetaCommand::Bootstrap { cluster, node } => {
                Kind::Bootstrap(BootstrapPb { cluster: cluster.0.to_vec(), node: Some(node.into()) })
            }
            MetaCommand::CreateToken { id, hash, expires_at_ms, uses } => Kind::CreateToken(CreateTokenPb {
                id: id.0,
                hash: hash.to_vec(),
                expires_at_ms: *expires_at_ms,
                uses: *uses,
            }),
            MetaCommand::RevokeToken { id } => Kind::RevokeToken(id.0),
            MetaCommand::CreateKey { id, hash, role, collections, expires_at_ms } => Kind::CreateKey(CreateKeyPb {
                id: id.0,
                hash: hash.to_vec(),
                role: role_number(*role),
                collections: collections.clone(),
                expires_at_ms: *expires_at_ms,
            }),
            MetaCommand::RevokeKey { id } => Kind::RevokeKey(id.0),
            MetaCommand::PrepareAuthority { current, next } => {
                Kind::PrepareAuthority(PrepareAuthorityPb { current: current.clone(), next: Some(next.into()) })
            }
            MetaCommand::BeginRotation { certificate, holders } => Kind::BeginRotation(BeginRotationPb {
                certificate: certificate.clone(),
                holders: holders.iter().map(|node| node.0).collect(),
            }),
            MetaCommand::NodeCertified { node, serial } => {
                Kind::NodeCertified(NodeCertifiedPb { node: node.0, serial: *serial })
            }
            MetaCommand::Join(request) => Kind::Join(JoinPb {
                token: request.token.0,
                secret_hash: request.secret_hash.to_vec(),
                node: Some((&request.node).into()),
                versions: request.versions.map(VersionsPb::from),
                displaced: request.displaced.iter().map(DisplacedPb::from).collect(),
                role: role_pb(request.role),
            }),
            MetaCommand::UpdateNode { node, incarnation, addresses, locality, versions } => {
                Kind::UpdateNode(UpdateNodePb {
                    node: node.0,
                    incarnation: incarnation.0,
                    addresses: Some(addresses.into()),
                    locality: locality.0.clone(),
                    versions: versions.map(VersionsPb::from),
                })
            }
            MetaCommand::SetNodeRole { node, incarnation, role } => {
                Kind::SetNodeRole(SetNodeRolePb { node: node.0, incarnation: incarnation.0, role: role_pb(*role) })
            }
            MetaCommand::SetNodeState { node, state } => {
                Kind::SetNodeState(SetNodeStatePb { node: node.0, state: state_number(*state) })
            }
            MetaCommand::RemoveNode { node } => Kind::RemoveNode(node.0),
            MetaCommand::CompleteLeave { node } => Kind::CompleteLeave(node.0),
            MetaCommand::ReportStart { node, incarnation, build } => {
                Kind::ReportStart(ReportStartPb { node: node.0, incarnation: incarnation.0, build: build.clone() })
            }
            MetaCommand::ChangeCollection { collection, settings } => Kind::ChangeCollection(ChangeCollectionPb {
                collection: collection.0,
                settings: Some(SettingsPb::from(*settings)),
            }),
            MetaCommand::CreateCollection { name, sharding, buckets, replicas, initial_nodes, settings } => {
                let nodes = |nodes: &Vec<NodeId>| NodesPb { nodes: nodes.iter().map(|node| node.0).collect() };
                Kind::CreateCollection(CreateCollectionPb {
                    name: name.clone(),
                    sharding: sharding_number(*sharding),
                    buckets: (*buckets).into(),
                    replicas: (*replicas).into(),
                    initial_nodes: initial_nodes.iter().map(nodes).collect(),
                    settings: (*settings != CollectionSettings::NONE).then(|| SettingsPb::from(*settings)),
                })
            }
            MetaCommand::DropCollection { collection } => Kind::DropCollection(collection.0),
            MetaCommand::AssignReplica { shard, node, intent_version } => {
                Kind::AssignReplica(AssignReplicaPb { shard: shard.0, node: node.0, intent_version: *intent_version })
            }
            MetaCommand::UnassignReplica { shard, replica } => {
                Kind::UnassignReplica(NamedReplicaPb { shard: shard.0, replica: replica.0 })
            }
            MetaCommand::ReplaceReplica { shard, replica } => {
                Kind::ReplaceReplica(NamedReplicaPb { shard: shard.0, replica: replica.0 })
            }
            MetaCommand::MoveReplica { shard, replica, to, intent_version, reason } => {
                Kind::MoveReplica(MoveReplicaPb {
                    shard: shard.0,
                    replica: replica.0,
                    to: to.0,
                    intent_version: *intent_version,
                    reason: operations::reason_number(*reason),
                })
            }
            MetaCommand::ChangeOperation { operation, changes, change } => Kind::ChangeOperation(ChangeOperationPb {
                operation: operation.0,
                change: operations::change_number(*change),
                changes: *changes,
            }),
            MetaCommand::SplitShard { shard, at, epoch, reason } => Kind::SplitShard(SplitShardPb {
                shard: shard.0,
                at: at.clone(),
                epoch_range: epoch.range,
                epoch_config: epoch.config,
                reason: (*reason != OperationReason::Operator).then(|| operations::reason_number(*reason)),
            }),
            MetaCommand::MergeShards { left, right, reason } => Kind::MergeShards(MergeShardsPb {
                left: Some((*left).into()),
                right: Some((*right).into()),
                reason: operations::reason_number(*reason),
            }),
            MetaCommand::ReportFrozen { left, right_epoch, replica } => {
                let left = Some((*left, *right_epoch).into());
                Kind::ReportFrozen(ReportFrozenPb { left, replica: replica.0 })
            }
            MetaCommand::ReportShard { descriptor } => Kind::ReportShard(descriptor.into()),
            MetaCommand::PutSetting { key, value } => {
                Kind::PutSetting(PutSettingPb { key: key.clone(), value: value.clone() })
            }
            MetaCommand::SetClusterVersion { version, seen } => {
                let seen = seen.iter().map(|seen| SeenPb {
                    node: seen.node.0,
                    incarnation: seen.incarnation.0,
                    versions: Some(seen.versions.into()),
                });
                Kind::SetClusterVersion(SetClusterVersionPb { version: version.0, seen: seen.collect() })
            }
            MetaCommand::Batch(commands) => {
                Kind::Batch(BatchPb { commands: commands.iter().map(Self::from).collect() })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<CommandPb> for MetaCommand {
    type Error = CodecError;

    fn try_from(command: CommandPb) -> Result<Self, CodecError> {
        match required(command.kind)? {
            Kind::Batch(batch) => {
                let nested =
                    |command: &CommandPb| matches!(command.kind, Some(Kind::Batch(_) | Kind::SetClusterVersion(_)));
                if batch.commands.iter().any(nested) {
                    return Err(CodecError::Malformed);
                }
                let commands = batch.commands.into_iter().map(Self::try_from).collect::<Result<_, CodecError>>()?;
                Ok(Self::Batch(commands))
            }
            kind => single(kind),
        }
    }
}

fn single(kind: Kind) -> Result<MetaCommand, CodecError> {
    Ok(match kind {
        Kind::Batch(_) => return Err(CodecError::Malformed),
        Kind::Bootstrap(pb) => {
            MetaCommand::Bootstrap { cluster: cluster(&pb.cluster)?, node: required(pb.node)?.try_into()? }
        }
        Kind::CreateToken(pb) => MetaCommand::CreateToken {
            id: TokenId(pb.id),
            hash: hash(&pb.hash)?,
            expires_at_ms: pb.expires_at_ms,
            uses: pb.uses,
        },
        Kind::RevokeToken(id) => MetaCommand::RevokeToken { id: TokenId(id) },
        Kind::CreateKey(pb) => MetaCommand::CreateKey {
            id: KeyId(pb.id),
            hash: hash(&pb.hash)?,
            role: role(pb.role)?,
            collections: pb.collections,
            expires_at_ms: pb.expires_at_ms,
        },
        Kind::RevokeKey(id) => MetaCommand::RevokeKey { id: KeyId(id) },
        Kind::PrepareAuthority(pb) => {
            MetaCommand::PrepareAuthority { current: pb.current, next: required(pb.next)?.into() }
        }
        Kind::BeginRotation(pb) => MetaCommand::BeginRotation {
            certificate: pb.certificate,
            holders: pb.holders.into_iter().map(number).collect::<Result<_, CodecError>>()?,
        },
        Kind::NodeCertified(pb) => MetaCommand::NodeCertified { node: number(pb.node)?, serial: number(pb.serial)? },
        Kind::Join(pb) => MetaCommand::Join(JoinRequest {
            token: TokenId(pb.token),
            secret_hash: hash(&pb.secret_hash)?,
            node: required(pb.node)?.try_into()?,
            versions: optional_versions(pb.versions)?,
            displaced: pb.displaced.into_iter().map(displaced).collect::<Result<_, _>>()?,
            role: node_role(pb.role),
        }),
        Kind::UpdateNode(pb) => MetaCommand::UpdateNode {
            node: number(pb.node)?,
            incarnation: number::<Incarnation>(pb.incarnation)?,
            addresses: required(pb.addresses)?.into(),
            locality: Locality(pb.locality),
            versions: optional_versions(pb.versions)?,
        },
        Kind::SetNodeRole(pb) => MetaCommand::SetNodeRole {
            node: number(pb.node)?,
            incarnation: number::<Incarnation>(pb.incarnation)?,
            role: node_role(pb.role),
        },
        Kind::SetNodeState(pb) => MetaCommand::SetNodeState { node: number(pb.node)?, state: node_state(pb.state)? },
        Kind::RemoveNode(node) => MetaCommand::RemoveNode { node: number(node)? },
        Kind::CompleteLeave(node) => MetaCommand::CompleteLeave { node: number(node)? },
        Kind::ReportStart(pb) => MetaCommand::ReportStart {
            node: number(pb.node)?,
            incarnation: number::<Incarnation>(pb.incarnation)?,
            build: pb.build,
        },
        Kind::CreateCollection(pb) => create_collection(pb)?,
        Kind::ChangeCollection(pb) => MetaCommand::ChangeCollection {
            collection: collection_id(pb.collection)?,
            settings: collection_settings(pb.settings.unwrap_or_default())?,
        },
        Kind::DropCollection(collection) => MetaCommand::DropCollection { collection: collection_id(collection)? },
        Kind::AssignReplica(pb) => MetaCommand::AssignReplica {
            shard: number(pb.shard)?,
            node: number(pb.node)?,
            intent_version: pb.intent_version,
        },
        Kind::UnassignReplica(pb) => {
            MetaCommand::UnassignReplica { shard: number(pb.shard)?, replica: number(pb.replica)? }
        }
        Kind::ReplaceReplica(pb) => {
            MetaCommand::ReplaceReplica { shard: number(pb.shard)?, replica: number(pb.replica)? }
        }
        Kind::MoveReplica(pb) => MetaCommand::MoveReplica {
            shard: number(pb.shard)?,
            replica: number(pb.replica)?,
            to: number(pb.to)?,
            intent_version: pb.intent_version,
            reason: operations::reason(pb.reason)?,
        },
        Kind::ChangeOperation(pb) => MetaCommand::ChangeOperation {
            operation: number(pb.operation)?,
            changes: pb.changes,
            change: operations::change(pb.change)?,
        },
        Kind::SplitShard(pb) => MetaCommand::SplitShard {
            shard: number(pb.shard)?,
            at: pb.at,
            epoch: Epoch { range: number(pb.epoch_range)?, config: number(pb.epoch_config)? },
            reason: pb.reason.map_or(Ok(OperationReason::Operator), operations::reason)?,
        },
        Kind::MergeShards(pb) => MetaCommand::MergeShards {
            left: shard_epoch(pb.left)?,
            right: shard_epoch(pb.right)?,
            reason: operations::reason(pb.reason)?,
        },
        Kind::ReportFrozen(pb) => {
            let (left, right_epoch) = shard_epoch(pb.left)?;
            MetaCommand::ReportFrozen { left, right_epoch, replica: number(pb.replica)? }
        }
        Kind::ReportShard(pb) => MetaCommand::ReportShard { descriptor: pb.try_into_descriptor()? },
        Kind::PutSetting(pb) => MetaCommand::PutSetting { key: pb.key, value: pb.value },
        Kind::SetClusterVersion(pb) => MetaCommand::SetClusterVersion {
            version: version(pb.version)?,
            seen: pb.seen.into_iter().map(seen).collect::<Result<_, _>>()?,
        },
    })
}

fn optional_versions(pb: Option<VersionsPb>) -> Result<Option<VersionRange>, CodecError> {
    pb.map(versions).transpose()
}

fn displaced(pb: DisplacedPb) -> Result<Displaced, CodecError> {
    Ok(Displaced { node: number(pb.node)?, incarnation: number(pb.incarnation)? })
}

impl From<&Displaced> for DisplacedPb {
    fn from(displaced: &Displaced) -> Self {
        Self { node: displaced.node.0, incarnation: displaced.incarnation.0 }
    }
}

fn seen(pb: SeenPb) -> Result<SeenNode, CodecError> {
    Ok(SeenNode {
        node: number(pb.node)?,
        incarnation: number(pb.incarnation)?,
        versions: versions(required(pb.versions)?)?,
    })
}

fn create_collection(pb: CreateCollectionPb) -> Result<MetaCommand, CodecError> {
    let nodes = |nodes: &NodesPb| nodes.nodes.iter().map(|&node| number(node)).collect::<Result<Vec<NodeId>, _>>();
    Ok(MetaCommand::CreateCollection {
        name: pb.name,
        sharding: sharding(pb.sharding)?,
        buckets: u16::try_from(pb.buckets).map_err(|_| CodecError::Malformed)?,
        replicas: u8::try_from(pb.replicas).map_err(|_| CodecError::Malformed)?,
        initial_nodes: pb.initial_nodes.iter().map(nodes).collect::<Result<_, _>>()?,
        settings: collection_settings(pb.settings.unwrap_or_default())?,
    })
}

impl From<&NewNode> for NewNodePb {
    fn from(node: &NewNode) -> Self {
        Self {
            name: node.name.clone(),
            addresses: Some((&node.addresses).into()),
            locality: node.locality.0.clone(),
            key_digest: node.key_digest.to_vec(),
        }
    }
}

impl TryFrom<NewNodePb> for NewNode {
    type Error = CodecError;

    fn try_from(node: NewNodePb) -> Result<Self, CodecError> {
        Ok(Self {
            name: node.name,
            addresses: required(node.addresses)?.into(),
            locality: Locality(node.locality),
            key_digest: hash(&node.key_digest)?,
        })
    }
}
