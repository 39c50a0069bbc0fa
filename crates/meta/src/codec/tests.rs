//! Round trips of every command and every reply.

use flotilla_placement::{Collection, Sharding};
use flotilla_types::{
    Bucket, ClusterId, ClusterVersion, CollectionId, Epoch, Incarnation, KeyRange, NodeId, OperationId,
    ReplicaDescriptor, ReplicaId, ReplicaRole, Role, ShardDescriptor, ShardId, VersionRange,
};
use flotilla_values::Chunking;

use super::*;
use crate::{
    Addresses, CollectionSettings, Displaced, Field, JoinRequest, KeyId, Limit, MetaCommand, MetaRefusal, MetaReply,
    NewNode, NodeRole, NodeState, OperationReason, PreparedAuthority, SeenNode, TokenId,
};

fn raise() -> MetaCommand {
    let seen = SeenNode { node: NodeId(4), incarnation: Incarnation(5), versions: VersionRange::supported() };
    MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen: vec![seen] }
}

fn commands() -> Vec<MetaCommand> {
    let addresses = Addresses { quic: "a:1".to_owned(), http: "a:2".to_owned(), redis: "a:3".to_owned() };
    let locality = flotilla_types::Locality([("zone".to_owned(), "z".to_owned())].into());
    let node =
        NewNode { name: "n".to_owned(), addresses: addresses.clone(), locality: locality.clone(), key_digest: [4; 32] };
    let descriptor = ShardDescriptor {
        shard: ShardId(3),
        range: KeyRange::of_buckets(CollectionId(1), Bucket(0), Bucket(4)),
        epoch: Epoch { range: 2, config: 9 },
        replicas: vec![
            ReplicaDescriptor { replica: ReplicaId(5), node: NodeId(1), role: ReplicaRole::Voter },
            ReplicaDescriptor { replica: ReplicaId(6), node: NodeId(2), role: ReplicaRole::Learner },
        ],
    };
    let (shard, replica) = (ShardId(0), ReplicaId(2));
    let versions = Some(VersionRange { min: ClusterVersion(2), max: ClusterVersion(5) });
    let join = JoinRequest {
        token: TokenId(3),
        secret_hash: [2; 32],
        node: node.clone(),
        versions: None,
        displaced: Vec::new(),
        role: NodeRole::default(),
    };
    let displaced = [4, 5].map(|id| Displaced { node: NodeId(id), incarnation: Incarnation(id + 1) }).to_vec();
    let mut commands = vec![
        MetaCommand::Bootstrap { cluster: ClusterId([7; 16]), node },
        MetaCommand::CreateToken { id: TokenId(u64::MAX), hash: [1; 32], expires_at_ms: 5, uses: 2 },
        MetaCommand::RevokeToken { id: TokenId(0) },
        MetaCommand::CreateKey {
            id: KeyId(u64::MAX),
            hash: [3; 32],
            role: Role::Writer,
            collections: vec!["a".to_owned(), "b".to_owned()],
            expires_at_ms: 9,
        },
        MetaCommand::RevokeKey { id: KeyId(7) },
        MetaCommand::PrepareAuthority {
            current: Bytes::from_static(b"a"),
            next: PreparedAuthority { certificate: Bytes::from_static(b"b"), cross: Bytes::from_static(b"c") },
        },
        MetaCommand::BeginRotation { certificate: Bytes::from_static(b"b"), holders: vec![NodeId(1), NodeId(3)] },
        MetaCommand::NodeCertified { node: NodeId(3), serial: 1 },
        MetaCommand::Join(join.clone()),
        MetaCommand::Join(JoinRequest { versions, ..join.clone() }),
        MetaCommand::Join(JoinRequest { versions, displaced, ..join.clone() }),
        MetaCommand::Join(JoinRequest { role: NodeRole::Gateway, ..join.clone() }),
        MetaCommand::Join(JoinRequest { role: NodeRole::Storage { weight: 0 }, ..join }),
        MetaCommand::SetNodeRole { node: NodeId(1), incarnation: Incarnation(2), role: NodeRole::Gateway },
        MetaCommand::SetNodeRole { node: NodeId(1), incarnation: Incarnation(2), role: NodeRole::default() },
        MetaCommand::UpdateNode {
            node: NodeId(1),
            incarnation: Incarnation(2),
            addresses: addresses.clone(),
            locality: locality.clone(),
            versions,
        },
        MetaCommand::UpdateNode { node: NodeId(1), incarnation: Incarnation(2), addresses, locality, versions: None },
        MetaCommand::RemoveNode { node: NodeId(1) },
        MetaCommand::DropCollection { collection: CollectionId(1) },
        MetaCommand::AssignReplica { shard, node: NodeId(1), intent_version: 3 },
        MetaCommand::UnassignReplica { shard, replica },
        MetaCommand::ReplaceReplica { shard, replica },
        MetaCommand::ReportShard { descriptor },
        MetaCommand::PutSetting { key: "k".to_owned(), value: "v".to_owned() },
    ];
    commands.push(MetaCommand::CompleteLeave { node: NodeId(1) });
    commands.push(MetaCommand::ReportStart { node: NodeId(1), incarnation: Incarnation(2), build: "1.2".to_owned() });
    let replica = ReplicaId(4);
    for reason in operations::REASONS {
        commands.push(MetaCommand::MoveReplica { shard, replica, to: NodeId(3), intent_version: 2, reason });
    }
    let epoch = Epoch { range: 2, config: 9 };
    commands.push(MetaCommand::MergeShards {
        left: (shard, epoch),
        right: (ShardId(5), epoch),
        reason: OperationReason::Unused,
    });
    commands.push(MetaCommand::ReportFrozen { left: shard, right_epoch: epoch, replica });
    for reason in operations::REASONS {
        let at = Bytes::from_static(b"\0\0\0\x01\0\x02k");
        commands.push(MetaCommand::SplitShard { shard, at, epoch, reason });
    }
    for change in operations::CHANGES {
        commands.push(MetaCommand::ChangeOperation { operation: OperationId(9), changes: 3, change });
    }
    use NodeState::{Active, Decommissioning, Draining, Leaving, Lost, Removed};
    for state in [Active, Draining, Decommissioning, Leaving, Removed, Lost] {
        commands.push(MetaCommand::SetNodeState { node: NodeId(1), state });
    }
    for sharding in [Sharding::Hash, Sharding::Range] {
        let initial_nodes = vec![vec![NodeId(1), NodeId(2)], Vec::new()];
        commands.push(MetaCommand::CreateCollection {
            name: "c".to_owned(),
            sharding,
            buckets: 2,
            replicas: 3,
            initial_nodes,
            settings: CollectionSettings::NONE,
        });
    }
    for settings in collection_settings() {
        commands.push(MetaCommand::ChangeCollection { collection: CollectionId(3), settings });
        let (name, sharding, initial_nodes) = ("c".to_owned(), Sharding::Hash, vec![vec![NodeId(1)]]);
        commands.push(MetaCommand::CreateCollection {
            name,
            sharding,
            buckets: 2,
            replicas: 3,
            initial_nodes,
            settings,
        });
    }
    commands.push(MetaCommand::Batch(commands.clone()));
    commands.push(raise());
    commands
}

fn collection_settings() -> [CollectionSettings; 6] {
    let chunking = Some(Chunking::AVERAGE_64_KIB);
    let of_values = [(None, None), (Some(1 << 20), None), (None, chunking), (Some(1 << 10), chunking)];
    let of_values =
        of_values.map(|(objects_from, chunking)| CollectionSettings { objects_from, chunking, split_bytes: None });
    let [none, first, _, last] = of_values;
    let with_splits = [(none, 0), (last, 1 << 30)]
        .map(|(of_values, split_bytes)| CollectionSettings { split_bytes: Some(split_bytes), ..of_values });
    [none, first, of_values[2], last, with_splits[0], with_splits[1]]
}

#[test]
fn settings_of_collections_need_their_versions_and_nothing_else_does() {
    let version = |settings: CollectionSettings| {
        let (name, sharding, initial_nodes) = ("c".to_owned(), Sharding::Hash, vec![vec![NodeId(1)]]);
        let command =
            MetaCommand::CreateCollection { name, sharding, buckets: 2, replicas: 3, initial_nodes, settings };
        command.encode()[0]
    };
    let collection = |objects_from, chunking, split_bytes| {
        let (id, name, sharding) = (CollectionId(3), "c".to_owned(), Sharding::Hash);
        let collection =
            Collection { id, name, sharding, buckets: 2, replicas: 3, objects_from, chunking, split_bytes };
        let encoded = encode_collection(&collection);
        assert_eq!(decode_collection(&encoded), Ok(collection));
        encoded[0]
    };
    for (settings, needed) in collection_settings().into_iter().zip([1, 5, 5, 5, 9, 9]) {
        let CollectionSettings { objects_from, chunking, split_bytes } = settings;
        let split_bytes = split_bytes.unwrap_or(64 << 20);
        let stored = collection(objects_from.unwrap_or(4_096), chunking.unwrap_or_default(), split_bytes);
        assert_eq!((version(settings), stored), (needed, needed));
    }
    let change = |settings| MetaCommand::ChangeCollection { collection: CollectionId(3), settings };
    assert_eq!(change(collection_settings()[4]).encode()[0], 9);
    let mut bytes = change(CollectionSettings::NONE).encode().to_vec();
    assert_eq!(bytes[0], 5);
    // A binary of an earlier version refuses the kind, and so does this one.
    bytes[0] = 4;
    assert_eq!(MetaCommand::decode(&bytes), Err(CodecError::Malformed));
}

#[test]
fn commands_round_trip() {
    for command in commands() {
        assert_eq!(MetaCommand::decode(&command.encode()), Ok(command));
    }
}

#[test]
fn replies_round_trip() {
    let epoch = Epoch { range: 1, config: 2 };
    let mut refusals = vec![
        MetaRefusal::NotBootstrapped,
        MetaRefusal::OtherCluster(ClusterId([3; 16])),
        MetaRefusal::UnknownToken,
        MetaRefusal::TokenExpired,
        MetaRefusal::TokenUsedUp,
        MetaRefusal::WrongSecret,
        MetaRefusal::TokenExists,
        MetaRefusal::KeyRemoved(NodeId(1)),
        MetaRefusal::UnknownNode(NodeId(2)),
        MetaRefusal::NodeGone { node: NodeId(3), state: NodeState::Lost },
        MetaRefusal::NodeNotActive(NodeId(4)),
        MetaRefusal::StaleIncarnation { known: Incarnation(5) },
        MetaRefusal::LastNode,
        MetaRefusal::NodeNotLeaving(NodeId(4)),
        MetaRefusal::NodeHoldsReplicas(NodeId(5)),
        MetaRefusal::UnknownCollection(CollectionId(6)),
        MetaRefusal::CollectionExists(CollectionId(7)),
        MetaRefusal::BadPlacement,
        MetaRefusal::UnknownShard(ShardId(8)),
        MetaRefusal::UnknownReplica(ReplicaId(9)),
        MetaRefusal::ReplicaExists(ReplicaId(10)),
        MetaRefusal::LastReplica,
        MetaRefusal::IntentChanged { found: 11 },
        MetaRefusal::StaleEpoch { known: epoch },
        MetaRefusal::UnknownSetting,
        MetaRefusal::Malformed,
        MetaRefusal::VersionNotSupported { in_force: ClusterVersion(3), supported: VersionRange::supported() },
        MetaRefusal::VersionNotSeen { node: NodeId(12), version: ClusterVersion(4) },
        MetaRefusal::VersionNotNext { in_force: ClusterVersion(5) },
        MetaRefusal::NodeIsGateway(NodeId(3)),
        MetaRefusal::VersionNotInForce { needed: ClusterVersion(7), in_force: ClusterVersion(6) },
        MetaRefusal::UnknownKey,
        MetaRefusal::KeyExists,
        MetaRefusal::LastAdminKey,
        MetaRefusal::OtherAuthority,
        MetaRefusal::RotationInProgress,
        MetaRefusal::AuthorityNotHeld(NodeId(13)),
        MetaRefusal::AddressInUse(NodeId(13)),
        MetaRefusal::ShardChanging(ShardId(14)),
        MetaRefusal::UnknownOperation(OperationId(15)),
        MetaRefusal::OperationEnded(OperationId(16)),
        MetaRefusal::OperationTooLate(OperationId(17)),
        MetaRefusal::OperationChanged(OperationId(18)),
        MetaRefusal::SplitPlanned(OperationId(19)),
        MetaRefusal::NotSplittable(ShardId(20)),
        MetaRefusal::NotNeighbours { left: ShardId(21), right: ShardId(22) },
        MetaRefusal::ReplicasApart { shard: ShardId(23), node: NodeId(24) },
        MetaRefusal::MergePlanned(OperationId(25)),
        MetaRefusal::OperationNotPaused(OperationId(26)),
    ];
    refusals.extend((1..=19).filter_map(Field::from_number).map(MetaRefusal::Invalid));
    refusals.extend((1..=7).filter_map(Limit::from_number).map(MetaRefusal::LimitReached));
    assert_eq!(refusals.len(), 49 + 19 + 7);
    let nested = refusals
        .iter()
        .cloned()
        .zip(0..)
        .map(|(refusal, position)| MetaRefusal::InBatch { position, refusal: Box::new(refusal) });
    let mut replies = vec![
        MetaReply::Done,
        MetaReply::Node(NodeId(1)),
        MetaReply::Collection { collection: CollectionId(1), shards: vec![ShardId(1), ShardId(2)] },
        MetaReply::Replica(ReplicaId(3)),
        MetaReply::Operation(OperationId(4)),
    ];
    replies.extend(nested.map(MetaReply::Refused).collect::<Vec<_>>());
    replies.extend(refusals.into_iter().map(MetaReply::Refused));
    replies.push(MetaReply::Batch(replies.clone()));
    for reply in replies {
        assert_eq!(MetaReply::decode(&reply.encode()), Ok(reply));
    }
}

#[test]
fn oversized_and_nested_commands_are_malformed() {
    let long = MetaCommand::PutSetting { key: "k".to_owned(), value: "v".repeat(COMMAND_BYTES_MAX) };
    assert_eq!(MetaCommand::decode(&long.encode()), Err(CodecError::Malformed));
    let nested = MetaCommand::Batch(vec![MetaCommand::Batch(Vec::new())]);
    assert_eq!(MetaCommand::decode(&nested.encode()), Err(CodecError::Malformed));
    let huge = MetaCommand::RemoveNode { node: NodeId(u64::MAX) };
    assert_eq!(MetaCommand::decode(&huge.encode()), Err(CodecError::Malformed));
}

#[test]
fn format_versions_are_distinguished() {
    let mut bytes = MetaCommand::RevokeToken { id: TokenId(1) }.encode().to_vec();
    let ClusterVersion(known) = VersionRange::supported().max;
    bytes[0] = u8::try_from(known).expect("a small version") + 1;
    assert_eq!(MetaCommand::decode(&bytes), Err(CodecError::Version { found: known + 1, known }));
    bytes[0] = 0;
    assert_eq!(MetaCommand::decode(&bytes), Err(CodecError::Malformed));
}

#[test]
fn commands_name_the_version_that_they_need() {
    let need = |command: &MetaCommand| version_need(&command.encode());
    for command in commands() {
        let later = match &command {
            MetaCommand::SetClusterVersion { version, .. } => {
                assert_eq!(need(&command), VersionNeed::Raises(*version));
                continue;
            }
            MetaCommand::SetNodeRole { .. } => {
                assert_eq!(need(&command), VersionNeed::InForce(ClusterVersion::NODE_ROLES));
                continue;
            }
            MetaCommand::Join(JoinRequest { role, .. }) if *role != NodeRole::default() => {
                assert_eq!(need(&command), VersionNeed::InForce(ClusterVersion::NODE_ROLES));
                continue;
            }
            MetaCommand::Join(JoinRequest { versions, .. }) | MetaCommand::UpdateNode { versions, .. } => {
                versions.is_some()
            }
            MetaCommand::SetNodeState { state, .. } => matches!(state, NodeState::Draining | NodeState::Leaving),
            MetaCommand::CreateCollection { settings: CollectionSettings::NONE, .. } => false,
            MetaCommand::CreateCollection { settings, .. } | MetaCommand::ChangeCollection { settings, .. } => {
                let of_splits = settings.split_bytes.map(|_| ClusterVersion::SIZE_SPLITS);
                let version = ClusterVersion::VALUE_REFS.max(of_splits.unwrap_or(ClusterVersion::FIRST));
                assert_eq!(need(&command), VersionNeed::InForce(version));
                continue;
            }
            MetaCommand::SplitShard { reason, .. } => {
                let version = ClusterVersion::SPLITS.max(reason.since());
                assert_eq!(need(&command), VersionNeed::InForce(version));
                continue;
            }
            MetaCommand::MoveReplica { reason, .. } => {
                let version = ClusterVersion::OPERATIONS.max(reason.since());
                assert_eq!(need(&command), VersionNeed::InForce(version));
                continue;
            }
            // One of the batch needs it.
            MetaCommand::MergeShards { .. } | MetaCommand::ReportFrozen { .. } | MetaCommand::Batch(_) => {
                assert_eq!(need(&command), VersionNeed::InForce(ClusterVersion::MERGES));
                continue;
            }
            MetaCommand::ChangeOperation { .. } => {
                assert_eq!(need(&command), VersionNeed::InForce(ClusterVersion::OPERATIONS));
                continue;
            }
            MetaCommand::PrepareAuthority { .. }
            | MetaCommand::BeginRotation { .. }
            | MetaCommand::NodeCertified { .. }
            | MetaCommand::CreateKey { .. }
            | MetaCommand::RevokeKey { .. }
            | MetaCommand::CompleteLeave { .. }
            | MetaCommand::ReportStart { .. } => true,
            _ => false,
        };
        assert_eq!(need(&command), VersionNeed::InForce(ClusterVersion(if later { 2 } else { 1 })), "{command:?}");
    }
}

#[test]
fn a_command_is_read_as_binaries_of_its_version_read_it() {
    // They ignore fields that they do not know, and refuse commands that they do not know.
    for command in commands() {
        let mut bytes = command.encode().to_vec();
        bytes[0] = 1;
        let expected = match command {
            MetaCommand::SetClusterVersion { .. } => Err(CodecError::Malformed),
            command if command.kind_since() > ClusterVersion::FIRST => Err(CodecError::Malformed),
            command => Ok(command.known_to(ClusterVersion::FIRST)),
        };
        assert_eq!(MetaCommand::decode(&bytes), expected);
    }
    let mut bytes = raise().encode().to_vec();
    bytes[0] = 0x80 | 1;
    assert_eq!(MetaCommand::decode(&bytes), Err(CodecError::Malformed), "it raises to another version than it says");
}
