//! Tests of the rules by example, one behaviour each.

use flotilla_placement::{Sharding, plan};
use flotilla_types::{
    Bucket, ClusterId, ClusterVersion, CollectionId, Epoch, Incarnation, KeyRange, Locality, NodeId, ReplicaDescriptor,
    ReplicaId, ReplicaRole, Role, ShardDescriptor, ShardId, Timestamp, VersionRange,
};
use flotilla_values::Chunking;

use super::*;
use crate::{
    Addresses, CollectionSettings, Displaced, Field, JoinRequest, KeyId, Liveness, NewNode, NodeState, OperationReason,
    ReplicaStatus, SeenNode, TokenId,
};

const CLUSTER: ClusterId = ClusterId([9; 16]);
const TOKEN: TokenId = TokenId(77);
const SECRET: [u8; 32] = [5; 32];

pub(super) fn new_node(number: u8) -> NewNode {
    NewNode {
        name: format!("n{number}"),
        addresses: Addresses { quic: format!("10.0.0.{number}:1"), http: String::new(), redis: String::new() },
        locality: Locality::default(),
        key_digest: [number; 32],
    }
}

fn at(state: &mut MetaState, now_ms: u64, command: &MetaCommand) -> MetaReply {
    let before = state.clone();
    let reply = state.apply(Timestamp::from_millis(now_ms), command);
    if let MetaReply::Refused(_) = reply {
        assert_eq!(*state, before, "a refused command changes nothing: {command:?}");
    }
    reply
}

pub(super) fn apply(state: &mut MetaState, command: &MetaCommand) -> MetaReply {
    at(state, 1_000, command)
}

#[track_caller]
pub(super) fn refused(state: &mut MetaState, command: &MetaCommand) -> MetaRefusal {
    match apply(state, command) {
        MetaReply::Refused(refusal) => refusal,
        reply => panic!("{command:?} was accepted: {reply:?}"),
    }
}

pub(super) fn joins(node: NewNode, versions: Option<VersionRange>) -> MetaCommand {
    MetaCommand::Join(JoinRequest {
        token: TOKEN,
        secret_hash: SECRET,
        node,
        versions,
        displaced: Vec::new(),
        role: NodeRole::default(),
    })
}

fn join(number: u8) -> MetaCommand {
    joins(new_node(number), None)
}

fn token(uses: u32) -> MetaCommand {
    MetaCommand::CreateToken { id: TOKEN, hash: SECRET, expires_at_ms: 5_000, uses }
}

fn bootstrapped() -> MetaState {
    let mut state = MetaState::default();
    let reply = apply(&mut state, &MetaCommand::Bootstrap { cluster: CLUSTER, node: new_node(1) });
    assert_eq!(reply, MetaReply::Node(NodeId(1)));
    state
}

pub(super) fn cluster_of(nodes: u8) -> MetaState {
    let mut state = bootstrapped();
    apply(&mut state, &token(100));
    for number in 2..=nodes {
        assert_eq!(apply(&mut state, &join(number)), MetaReply::Node(NodeId(number.into())));
    }
    state
}

fn collection(name: &str, buckets: u16, replicas: u8, nodes: &[u64]) -> MetaCommand {
    MetaCommand::CreateCollection {
        name: name.to_owned(),
        sharding: Sharding::Hash,
        buckets,
        replicas,
        initial_nodes: vec![nodes.iter().copied().map(NodeId).collect(); buckets.into()],
        settings: CollectionSettings::NONE,
    }
}

fn uses_left(state: &MetaState) -> u32 {
    state.token(TOKEN).expect("token").uses_left
}

fn node_state(state: &MetaState, node: u64) -> NodeState {
    state.node(NodeId(node)).expect("node").state
}

#[test]
fn a_gateway_gets_no_replica_and_a_node_with_one_becomes_none() {
    let mut state = cluster_of(3);
    let set = |node, role| MetaCommand::SetNodeRole { node: NodeId(node), incarnation: Incarnation(0), role };
    let joins_as = |role| {
        let MetaCommand::Join(request) = joins(new_node(4), Some(VersionRange::supported())) else { unreachable!() };
        MetaCommand::Join(JoinRequest { role, ..request })
    };
    let (needed, in_force) = (ClusterVersion::NODE_ROLES, ClusterVersion(2));
    state.header.cluster_version = in_force;
    for early in [set(3, NodeRole::Gateway), joins_as(NodeRole::Gateway), joins_as(NodeRole::Storage { weight: 2 })] {
        assert_eq!(refused(&mut state, &early), MetaRefusal::VersionNotInForce { needed, in_force });
    }
    state.header.cluster_version = needed;
    assert_eq!(apply(&mut state, &joins_as(NodeRole::Gateway)), MetaReply::Node(NodeId(4)));
    assert_eq!(state.node(NodeId(4)).map(|node| node.role), Some(NodeRole::Gateway));
    assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));

    // No command places a replica there, and no plan tries to.
    assert_eq!(refused(&mut state, &collection("c", 1, 3, &[2, 3, 4])), MetaRefusal::BadPlacement);
    apply(&mut state, &collection("c", 1, 3, &[1, 2, 3]));
    let shard = ShardId(1);
    let assign = MetaCommand::AssignReplica { shard, node: NodeId(4), intent_version: 1 };
    assert_eq!(refused(&mut state, &assign), MetaRefusal::NodeIsGateway(NodeId(4)));
    let replica = state.shard(shard).expect("a shard").intent[0].replica;
    let (to, reason) = (NodeId(4), OperationReason::Operator);
    let moves = MetaCommand::MoveReplica { shard, replica, to, intent_version: 1, reason };
    assert_eq!(refused(&mut state, &moves), MetaRefusal::NodeIsGateway(NodeId(4)));
    let liveness = |node| if node == NodeId(3) { Liveness::Dead } else { Liveness::Live };
    assert!(
        plan(&state.plan_input(liveness))
            .changes()
            .all(|change| !matches!(change, flotilla_placement::Change::Assign { node: NodeId(4), .. }))
    );

    assert_eq!(refused(&mut state, &set(2, NodeRole::Gateway)), MetaRefusal::NodeHoldsReplicas(NodeId(2)));
    let heavy = NodeRole::Storage { weight: NodeRole::WEIGHT_MAX + 1 };
    assert_eq!(refused(&mut state, &set(2, heavy)), MetaRefusal::Invalid(Field::Weight));
    let late = MetaCommand::SetNodeRole { node: NodeId(4), incarnation: Incarnation(9), role: NodeRole::default() };
    assert_eq!(refused(&mut state, &late), MetaRefusal::StaleIncarnation { known: Incarnation(0) });
    assert_eq!(apply(&mut state, &set(4, NodeRole::Storage { weight: 7 })), MetaReply::Done);
    assert_eq!(state.plan_nodes(liveness)[3].weight, 7);
    assert_eq!(apply(&mut state, &assign), MetaReply::Replica(ReplicaId(5)));
}

#[test]
fn a_gateway_is_no_node_that_may_stay_alone() {
    let mut state = cluster_of(2);
    state.header.cluster_version = ClusterVersion::NODE_ROLES;
    let gateway = MetaCommand::SetNodeRole { node: NodeId(2), incarnation: Incarnation(0), role: NodeRole::Gateway };
    assert_eq!(apply(&mut state, &gateway), MetaReply::Done);
    let drain = MetaCommand::SetNodeState { node: NodeId(1), state: NodeState::Draining };
    assert_eq!(refused(&mut state, &drain), MetaRefusal::LastNode);
}

#[test]
fn bootstrap_happens_once_and_creates_the_metadata_shard() {
    let mut state = MetaState::default();
    assert_eq!(refused(&mut state, &token(1)), MetaRefusal::NotBootstrapped);
    let mut state = bootstrapped();
    let again = state.clone();
    assert_eq!(
        apply(&mut state, &MetaCommand::Bootstrap { cluster: CLUSTER, node: new_node(1) }),
        MetaReply::Node(NodeId(1))
    );
    assert_eq!(state, again);
    for command in [
        MetaCommand::Bootstrap { cluster: ClusterId([8; 16]), node: new_node(1) },
        MetaCommand::Bootstrap { cluster: CLUSTER, node: new_node(2) },
    ] {
        assert_eq!(refused(&mut state, &command), MetaRefusal::OtherCluster(CLUSTER));
    }
    let meta = state.shard(ShardId::META).expect("metadata shard");
    assert_eq!((meta.desired_on(NodeId(1)), meta.collection), (Some(ReplicaId(1)), CollectionId::SYSTEM));
    assert!(meta.is_initial(ReplicaId(1)) && meta.descriptor == meta.initial);
}

#[test]
fn repeated_join_spends_one_use() {
    let mut state = bootstrapped();
    apply(&mut state, &token(1));
    assert_eq!(apply(&mut state, &join(2)), MetaReply::Node(NodeId(2)));
    assert_eq!(uses_left(&state), 0);
    // Also after the token is used up and expired: the answer to the first attempt may have been lost.
    assert_eq!(at(&mut state, 9_000, &join(2)), MetaReply::Node(NodeId(2)));
    assert_eq!(refused(&mut state, &join(3)), MetaRefusal::TokenUsedUp);
}

#[test]
fn invalid_token_admits_no_node() {
    let mut state = bootstrapped();
    assert_eq!(refused(&mut state, &join(2)), MetaRefusal::UnknownToken);
    apply(&mut state, &token(5));
    let wrong = MetaCommand::Join(JoinRequest {
        token: TOKEN,
        secret_hash: [6; 32],
        node: new_node(2),
        versions: None,
        displaced: Vec::new(),
        role: NodeRole::default(),
    });
    assert_eq!(refused(&mut state, &wrong), MetaRefusal::WrongSecret);
    assert_eq!(at(&mut state, 5_000, &join(2)), MetaReply::Refused(MetaRefusal::TokenExpired));
    assert_eq!(at(&mut state, 4_999, &join(2)), MetaReply::Node(NodeId(2)));
    assert_eq!(apply(&mut state, &MetaCommand::RevokeToken { id: TOKEN }), MetaReply::Done);
    assert_eq!(refused(&mut state, &join(3)), MetaRefusal::UnknownToken);
    assert_eq!(refused(&mut state, &MetaCommand::RevokeToken { id: TOKEN }), MetaRefusal::UnknownToken);
}

#[test]
fn token_id_cannot_be_overwritten_and_expired_tokens_are_pruned() {
    let mut state = bootstrapped();
    let create =
        |id: u64, expires_at_ms| MetaCommand::CreateToken { id: TokenId(id), hash: SECRET, expires_at_ms, uses: 1 };
    assert_eq!(apply(&mut state, &create(1, 5_000)), MetaReply::Done);
    assert_eq!(apply(&mut state, &create(1, 5_000)), MetaReply::Done);
    assert_eq!(refused(&mut state, &create(1, 6_000)), MetaRefusal::TokenExists);
    assert_eq!(refused(&mut state, &create(2, 1_000)), MetaRefusal::Invalid(Field::TokenExpiry));
    let free = MetaCommand::CreateToken { id: TokenId(3), hash: SECRET, expires_at_ms: 5_000, uses: 0 };
    assert_eq!(refused(&mut state, &free), MetaRefusal::Invalid(Field::TokenUses));
    for id in 2..=TOKENS_MAX as u64 {
        assert_eq!(apply(&mut state, &create(id, 5_000)), MetaReply::Done);
    }
    assert_eq!(refused(&mut state, &create(5_000, 9_000)), MetaRefusal::LimitReached(Limit::Tokens));
    assert_eq!(at(&mut state, 5_000, &create(5_000, 9_000)), MetaReply::Done);
    assert_eq!(state.tokens().count(), 1);
}

#[test]
fn joining_at_the_address_of_a_node_makes_that_node_lost() {
    let mut state = cluster_of(3);
    let mut fresh = new_node(4);
    fresh.addresses.quic = new_node(2).addresses.quic;
    assert_eq!(apply(&mut state, &joins(fresh, None)), MetaReply::Node(NodeId(4)));
    assert_eq!(node_state(&state, 2), NodeState::Lost);
    assert_eq!(node_state(&state, 3), NodeState::Active);
    // The old folder reappears.
    assert_eq!(refused(&mut state, &join(2)), MetaRefusal::KeyRemoved(NodeId(2)));
    let back = MetaCommand::UpdateNode {
        node: NodeId(2),
        incarnation: Incarnation(7),
        addresses: new_node(2).addresses,
        locality: Locality::default(),
        versions: None,
    };
    assert_eq!(refused(&mut state, &back), MetaRefusal::NodeGone { node: NodeId(2), state: NodeState::Lost });
}

#[test]
fn only_a_node_whose_last_start_is_named_is_displaced() {
    let mut state = at_version_2(3);
    let update = started(2, 5, Some(NEW));
    assert_eq!(apply(&mut state, &update), MetaReply::Done);
    let mut fresh = new_node(4);
    fresh.addresses.quic = state.node(NodeId(2)).expect("node").addresses.quic.clone();
    let MetaCommand::Join(mut request) = joins(fresh, Some(NEW)) else { panic!("another command") };
    // It may have started again since somebody looked.
    for named in [None, Some((2, 4)), Some((3, 5))] {
        let displaced = named.map(|(node, start)| Displaced { node: NodeId(node), incarnation: Incarnation(start) });
        request.displaced = displaced.into_iter().collect();
        let refused = refused(&mut state, &MetaCommand::Join(request.clone()));
        assert_eq!(refused, MetaRefusal::AddressInUse(NodeId(2)), "{named:?}");
        assert_eq!(node_state(&state, 2), NodeState::Active);
    }
    request.displaced = vec![Displaced { node: NodeId(2), incarnation: Incarnation(5) }];
    assert_eq!(apply(&mut state, &MetaCommand::Join(request)), MetaReply::Node(NodeId(4)));
    assert_eq!([2, 3].map(|node| node_state(&state, node)), [NodeState::Lost, NodeState::Active]);
}

#[test]
fn removed_node_cannot_return() {
    let mut state = cluster_of(3);
    assert_eq!(apply(&mut state, &MetaCommand::RemoveNode { node: NodeId(2) }), MetaReply::Done);
    assert_eq!(apply(&mut state, &MetaCommand::RemoveNode { node: NodeId(2) }), MetaReply::Done);
    assert_eq!(refused(&mut state, &join(2)), MetaRefusal::KeyRemoved(NodeId(2)));
    let revive = MetaCommand::SetNodeState { node: NodeId(2), state: NodeState::Active };
    assert_eq!(refused(&mut state, &revive), MetaRefusal::NodeGone { node: NodeId(2), state: NodeState::Removed });
    let assign = MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(2), intent_version: 1 };
    assert_eq!(refused(&mut state, &assign), MetaRefusal::NodeNotActive(NodeId(2)));
}

#[test]
fn last_active_node_cannot_be_removed() {
    let mut state = cluster_of(2);
    let drain = |node| MetaCommand::SetNodeState { node: NodeId(node), state: NodeState::Decommissioning };
    assert_eq!(apply(&mut state, &drain(1)), MetaReply::Done);
    assert_eq!(refused(&mut state, &drain(2)), MetaRefusal::LastNode);
    assert_eq!(refused(&mut state, &MetaCommand::RemoveNode { node: NodeId(2) }), MetaRefusal::LastNode);
    let undo = MetaCommand::SetNodeState { node: NodeId(1), state: NodeState::Active };
    assert_eq!(apply(&mut state, &undo), MetaReply::Done);
    assert_eq!(refused(&mut state, &drain(9)), MetaRefusal::UnknownNode(NodeId(9)));
}

#[test]
fn earlier_incarnation_is_refused() {
    let mut state = cluster_of(1);
    let start = |incarnation, port: u16| MetaCommand::UpdateNode {
        node: NodeId(1),
        incarnation: Incarnation(incarnation),
        addresses: Addresses { quic: format!("10.0.0.1:{port}"), ..Addresses::default() },
        locality: Locality::default(),
        versions: None,
    };
    assert_eq!(apply(&mut state, &start(3, 1)), MetaReply::Done);
    assert_eq!(apply(&mut state, &start(3, 1)), MetaReply::Done);
    assert_eq!(refused(&mut state, &start(2, 1)), MetaRefusal::StaleIncarnation { known: Incarnation(3) });
    assert_eq!(refused(&mut state, &start(3, 2)), MetaRefusal::StaleIncarnation { known: Incarnation(3) });
    assert_eq!(apply(&mut state, &start(4, 2)), MetaReply::Done);
    assert_eq!(state.node(NodeId(1)).expect("node").addresses.quic, "10.0.0.1:2");
}

#[test]
fn buckets_are_distributed_to_shards_evenly_in_order_and_without_gaps() {
    let mut state = cluster_of(1);
    for shards in 1..=16_u16 {
        let mut command = collection(&format!("c{shards}"), 16, 1, &[1]);
        let MetaCommand::CreateCollection { initial_nodes, .. } = &mut command else { panic!("not that") };
        initial_nodes.truncate(shards.into());
        let MetaReply::Collection { collection: id, shards: made } = apply(&mut state, &command) else {
            panic!("refused")
        };
        assert_eq!(made.len(), usize::from(shards));
        let map = state.shard_map();
        let homes: Vec<_> = (0..16)
            .map(|bucket| {
                let key = flotilla_types::RecordKey::new(id, flotilla_types::Bucket(bucket), b"k");
                map.shard_of(key.as_bytes()).expect("every bucket has a shard").descriptor.shard
            })
            .collect();
        assert!(homes.is_sorted());
        let sizes: Vec<_> = made.iter().map(|shard| homes.iter().filter(|home| *home == shard).count()).collect();
        let (least, most) = (sizes.iter().min().expect("a shard"), sizes.iter().max().expect("a shard"));
        assert!(*least >= 1 && most - least <= 1, "{sizes:?}");
    }
    let mut none = collection("none", 16, 1, &[1]);
    let MetaCommand::CreateCollection { initial_nodes, .. } = &mut none else { panic!("not that") };
    initial_nodes.clear();
    assert_eq!(refused(&mut state, &none), MetaRefusal::BadPlacement);
    let mut more = collection("more", 2, 1, &[1]);
    let MetaCommand::CreateCollection { initial_nodes, .. } = &mut more else { panic!("not that") };
    initial_nodes.push(vec![NodeId(1)]);
    assert_eq!(refused(&mut state, &more), MetaRefusal::BadPlacement);
}

#[test]
fn collection_may_have_one_shard_per_bucket() {
    let mut state = cluster_of(3);
    let MetaReply::Collection { collection: id, shards } = apply(&mut state, &collection("default", 16, 3, &[1, 2, 3]))
    else {
        panic!("refused")
    };
    assert_eq!((id, shards.len()), (CollectionId::DEFAULT, 16));
    let map = state.shard_map();
    let key = map.record_key("default", b"k").expect("collection");
    let shard = state.shard(map.shard_of(key.as_bytes()).expect("shard").descriptor.shard).expect("record");
    assert_eq!(shard.descriptor.epoch, Epoch { range: 1, config: 1 });
    assert_eq!(shard.descriptor.range, KeyRange::of_buckets(id, key.bucket(), key.bucket()));
    assert!(
        shard.descriptor.replicas.iter().all(|held| held.role == ReplicaRole::Voter && shard.is_initial(held.replica))
    );
    assert_eq!(refused(&mut state, &collection("default", 1, 1, &[1])), MetaRefusal::CollectionExists(id));

    let range = MetaCommand::CreateCollection {
        name: "r".to_owned(),
        sharding: Sharding::Range,
        buckets: 1,
        replicas: 3,
        initial_nodes: vec![vec![NodeId(2)]],
        settings: CollectionSettings::NONE,
    };
    assert!(matches!(apply(&mut state, &range), MetaReply::Collection { shards, .. } if shards.len() == 1));
}

#[test]
fn collection_limits_are_enforced() {
    let mut state = cluster_of(3);
    let long = "x".repeat(65);
    for (command, field) in [
        (collection("", 1, 1, &[1]), Field::CollectionName),
        (collection("Upper", 1, 1, &[1]), Field::CollectionName),
        (collection(&long, 1, 1, &[1]), Field::CollectionName),
        (collection("a", 0, 1, &[1]), Field::Buckets),
        (collection("a", 1_025, 1, &[1]), Field::Buckets),
        (collection("a", 1, 2, &[1]), Field::Replicas),
    ] {
        assert_eq!(refused(&mut state, &command), MetaRefusal::Invalid(field));
    }
    for nodes in [&[][..], &[1, 2], &[1, 1, 2], &[1, 2, 9]] {
        assert_eq!(refused(&mut state, &collection("a", 2, 3, nodes)), MetaRefusal::BadPlacement, "{nodes:?}");
    }
    assert_eq!(refused(&mut state, &collection("a", 2, 1, &[1, 2, 3])), MetaRefusal::BadPlacement);
    for i in 0..19 {
        assert!(matches!(
            apply(&mut state, &collection(&format!("c{i}"), 1_024, 1, &[1])),
            MetaReply::Collection { .. }
        ));
    }
    assert_eq!(refused(&mut state, &collection("more", 1_024, 1, &[1])), MetaRefusal::LimitReached(Limit::Shards));
}

#[test]
fn settings_of_values_are_changed_one_by_one_and_within_their_bounds() {
    let mut state = cluster_of(1);
    let MetaReply::Collection { collection: id, .. } = apply(&mut state, &collection("a", 1, 1, &[1])) else {
        panic!("refused")
    };
    let said = |state: &MetaState| {
        let found = state.collection("a").expect("it exists");
        (found.objects_from, found.chunking)
    };
    assert_eq!(said(&state), (4_096, Chunking::AVERAGE_16_KIB));
    let change = |collection, objects_from, chunking| MetaCommand::ChangeCollection {
        collection,
        settings: CollectionSettings { objects_from, chunking, split_bytes: None },
    };
    assert_eq!(apply(&mut state, &change(id, Some(1_024), None)), MetaReply::Done);
    assert_eq!(said(&state), (1_024, Chunking::AVERAGE_16_KIB));
    assert_eq!(apply(&mut state, &change(id, None, Some(Chunking::AVERAGE_64_KIB))), MetaReply::Done);
    assert_eq!(said(&state), (1_024, Chunking::AVERAGE_64_KIB));
    assert_eq!(MetaState::decode(&state.encode()), Ok(state.clone()));
    for bytes in [0, 1_023, (4 << 20) + 1, u32::MAX] {
        let refusal = refused(&mut state, &change(id, Some(bytes), None));
        assert_eq!(refusal, MetaRefusal::Invalid(Field::ObjectsFrom), "{bytes}");
    }
    let split = |split_bytes| MetaCommand::ChangeCollection {
        collection: id,
        settings: CollectionSettings { split_bytes: Some(split_bytes), ..CollectionSettings::NONE },
    };
    let split_bytes = |state: &MetaState| state.collection("a").expect("it exists").split_bytes;
    assert_eq!(split_bytes(&state), 64 << 20);
    for bytes in [1 << 10, 1 << 40, 0] {
        assert_eq!(apply(&mut state, &split(bytes)), MetaReply::Done);
        assert_eq!((said(&state), split_bytes(&state)), ((1_024, Chunking::AVERAGE_64_KIB), bytes));
        assert_eq!(MetaState::decode(&state.encode()), Ok(state.clone()));
    }
    for bytes in [1, (1 << 10) - 1, (1 << 40) + 1] {
        assert_eq!(refused(&mut state, &split(bytes)), MetaRefusal::Invalid(Field::SplitBytes), "{bytes}");
    }
    // Of such chunks no value of 64 MiB can consist.
    let short = Chunking::new(2 << 10, 8 << 10, 32 << 10).expect("valid lengths");
    assert_eq!(refused(&mut state, &change(id, None, Some(short))), MetaRefusal::Invalid(Field::Chunking));
    let unknown = CollectionId(id.0 + 1);
    assert_eq!(refused(&mut state, &change(unknown, None, None)), MetaRefusal::UnknownCollection(unknown));

    let mut other = collection("b", 1, 1, &[1]);
    let MetaCommand::CreateCollection { settings, .. } = &mut other else { panic!("not that") };
    *settings = CollectionSettings { objects_from: Some(1), ..CollectionSettings::NONE };
    assert_eq!(refused(&mut state, &other), MetaRefusal::Invalid(Field::ObjectsFrom));
    let MetaCommand::CreateCollection { settings, .. } = &mut other else { panic!("not that") };
    *settings = CollectionSettings {
        objects_from: Some(4 << 20),
        chunking: Some(Chunking::AVERAGE_256_KIB),
        split_bytes: Some(0),
    };
    assert!(matches!(apply(&mut state, &other), MetaReply::Collection { .. }));
    let found = state.collection("b").expect("it exists");
    assert_eq!((found.objects_from, found.chunking, found.split_bytes), (4 << 20, Chunking::AVERAGE_256_KIB, 0));
}

#[test]
fn dropped_shards_leave_obsolete_replicas_and_ids_are_not_reused() {
    let mut state = cluster_of(1);
    let create = collection("a", 2, 1, &[1]);
    let MetaReply::Collection { collection, shards } = apply(&mut state, &create) else { panic!("refused") };
    let (shard, replica) = (shards[0], state.shard(shards[0]).expect("shard").intent[0].replica);
    assert_eq!(state.replica_status(shard, replica), ReplicaStatus::InUse);
    assert_eq!(apply(&mut state, &MetaCommand::DropCollection { collection }), MetaReply::Done);
    assert_eq!(state.replica_status(shard, replica), ReplicaStatus::Obsolete);
    assert_eq!(
        refused(&mut state, &MetaCommand::DropCollection { collection }),
        MetaRefusal::UnknownCollection(collection)
    );
    let MetaReply::Collection { collection: second, shards: newer } = apply(&mut state, &create) else {
        panic!("refused")
    };
    assert!(second > collection && newer[0] > shards[1]);
    let newest = state.shard(newer[1]).expect("shard").intent[0].replica;
    assert_eq!(state.replica_status(newer[1], newest.next()), ReplicaStatus::Unknown);
}

#[test]
fn assignment_based_on_an_old_intent_is_refused() {
    let mut state = cluster_of(3);
    let assign =
        |node, intent_version| MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(node), intent_version };
    assert_eq!(apply(&mut state, &assign(2, 1)), MetaReply::Replica(ReplicaId(2)));
    assert_eq!(refused(&mut state, &assign(3, 1)), MetaRefusal::IntentChanged { found: 2 });
    assert_eq!(refused(&mut state, &assign(2, 2)), MetaRefusal::ReplicaExists(ReplicaId(2)));
    assert_eq!(apply(&mut state, &assign(3, 2)), MetaReply::Replica(ReplicaId(3)));
    let unassign = |replica| MetaCommand::UnassignReplica { shard: ShardId::META, replica: ReplicaId(replica) };
    assert_eq!(apply(&mut state, &unassign(2)), MetaReply::Done);
    assert_eq!(refused(&mut state, &unassign(2)), MetaRefusal::UnknownReplica(ReplicaId(2)));
    assert_eq!(apply(&mut state, &unassign(3)), MetaReply::Done);
    assert_eq!(refused(&mut state, &unassign(1)), MetaRefusal::LastReplica);
}

#[test]
fn replaced_replica_is_in_use_until_the_shard_removes_it() {
    let mut state = cluster_of(1);
    let replace = MetaCommand::ReplaceReplica { shard: ShardId::META, replica: ReplicaId(1) };
    assert_eq!(apply(&mut state, &replace), MetaReply::Replica(ReplicaId(2)));
    assert_eq!(refused(&mut state, &replace), MetaRefusal::UnknownReplica(ReplicaId(1)));
    let meta = state.shard(ShardId::META).expect("shard").clone();
    assert_eq!(meta.desired_on(NodeId(1)), Some(ReplicaId(2)));
    assert!(!meta.is_initial(ReplicaId(2)));
    assert_eq!(state.replica_status(ShardId::META, ReplicaId(1)), ReplicaStatus::InUse);

    let mut descriptor = meta.descriptor;
    descriptor.epoch.config += 1;
    descriptor.replicas[0].replica = ReplicaId(2);
    assert_eq!(apply(&mut state, &MetaCommand::ReportShard { descriptor }), MetaReply::Done);
    assert_eq!(state.replica_status(ShardId::META, ReplicaId(1)), ReplicaStatus::Obsolete);
    assert_eq!(state.replica_status(ShardId::META, ReplicaId(2)), ReplicaStatus::InUse);
}

#[test]
fn reported_epochs_never_go_backwards() {
    let mut state = cluster_of(2);
    let report = |epoch: (u64, u64), replicas: &[(u64, u64, ReplicaRole)]| MetaCommand::ReportShard {
        descriptor: ShardDescriptor {
            shard: ShardId::META,
            range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
            epoch: Epoch { range: epoch.0, config: epoch.1 },
            replicas: replicas
                .iter()
                .map(|&(replica, node, role)| ReplicaDescriptor {
                    replica: ReplicaId(replica),
                    node: NodeId(node),
                    role,
                })
                .collect(),
        },
    };
    let one = [(1, 1, ReplicaRole::Voter)];
    assert_eq!(
        apply(&mut state, &report((1, 1), &one)),
        MetaReply::Done,
        "a repeated report is accepted without effect"
    );
    assert_eq!(apply(&mut state, &report((1, 5), &one)), MetaReply::Done);
    let known = Epoch { range: 1, config: 5 };
    for epoch in [(1, 4), (0, 9), (2, 4)] {
        assert_eq!(refused(&mut state, &report(epoch, &one)), MetaRefusal::StaleEpoch { known }, "{epoch:?}");
    }
    apply(&mut state, &MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(2), intent_version: 1 });
    let other = [(2, 2, ReplicaRole::Learner), (1, 1, ReplicaRole::Voter)];
    assert_eq!(refused(&mut state, &report((1, 5), &other)), MetaRefusal::StaleEpoch { known });
    assert_eq!(apply(&mut state, &report((1, 6), &other)), MetaReply::Done);
    let stored = &state.shard(ShardId::META).expect("shard").descriptor.replicas;
    assert!(stored[0].replica < stored[1].replica, "ordered by replica");
    for bad in [
        &[][..],
        &[(1, 1, ReplicaRole::Learner)],
        &[(9, 1, ReplicaRole::Voter)],
        &[(1, 9, ReplicaRole::Voter)],
        &[(0, 1, ReplicaRole::Voter)],
        &[(1, 1, ReplicaRole::Voter), (1, 2, ReplicaRole::Voter)],
    ] {
        assert_eq!(refused(&mut state, &report((1, 7), bad)), MetaRefusal::Invalid(Field::Descriptor), "{bad:?}");
    }
}

#[test]
fn batch_is_all_or_nothing() {
    let mut state = cluster_of(3);
    let setting =
        |value: &str| MetaCommand::PutSetting { key: "dead_node_grace_ms".to_owned(), value: value.to_owned() };
    let assign =
        |node, intent_version| MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(node), intent_version };
    let bad = MetaCommand::Batch(vec![setting("60000"), assign(2, 1), assign(3, 1)]);
    let refusal = Box::new(MetaRefusal::IntentChanged { found: 2 });
    assert_eq!(refused(&mut state, &bad), MetaRefusal::InBatch { position: 2, refusal });
    assert_eq!(state.setting(Setting::DeadNodeGraceMs), 30_000);
    let good = MetaCommand::Batch(vec![setting("60000"), assign(2, 1), assign(3, 2)]);
    let replies = vec![MetaReply::Done, MetaReply::Replica(ReplicaId(2)), MetaReply::Replica(ReplicaId(3))];
    assert_eq!(apply(&mut state, &good), MetaReply::Batch(replies));
    assert_eq!(state.setting(Setting::DeadNodeGraceMs), 60_000);
    let nested = MetaCommand::Batch(vec![MetaCommand::Batch(Vec::new())]);
    assert!(matches!(refused(&mut state, &nested), MetaRefusal::InBatch { position: 0, .. }));
    let long = MetaCommand::Batch(vec![setting("60000"); BATCH_COMMANDS_MAX + 1]);
    assert_eq!(refused(&mut state, &long), MetaRefusal::LimitReached(Limit::Batch));
}

#[test]
fn node_fields_are_validated() {
    let mut state = cluster_of(1);
    let mut check = |change: &dyn Fn(&mut NewNode), field: Field| {
        let mut node = new_node(2);
        change(&mut node);
        let command = joins(node, None);
        assert_eq!(refused(&mut state, &command), MetaRefusal::Invalid(field));
    };
    check(&|node| node.name.clear(), Field::NodeName);
    check(&|node| node.name = "a\nb".to_owned(), Field::NodeName);
    check(&|node| node.addresses.quic.clear(), Field::Address);
    check(&|node| node.addresses.http = "a b".to_owned(), Field::Address);
    check(&|node| node.addresses.redis = "x".repeat(ADDRESS_BYTES_MAX + 1), Field::Address);
    check(&|node| node.locality.0 = [("zone".to_owned(), "z".repeat(NAME_BYTES_MAX + 1))].into(), Field::Locality);
}

#[test]
fn gone_nodes_are_kept_up_to_a_limit() {
    let mut state = cluster_of(1);
    apply(&mut state, &MetaCommand::CreateToken { id: TokenId(1), hash: SECRET, expires_at_ms: 5_000, uses: 10_000 });
    // Each node joins at the address of the previous one, which becomes lost.
    for i in 0..NODES_GONE_MAX as u32 + 5 {
        let mut node = new_node(2);
        node.key_digest[..4].copy_from_slice(&(i + 1_000_000).to_be_bytes());
        let request = JoinRequest {
            token: TokenId(1),
            secret_hash: SECRET,
            node,
            versions: None,
            displaced: Vec::new(),
            role: NodeRole::default(),
        };
        let reply = state.apply(Timestamp::from_millis(1_000), &MetaCommand::Join(request));
        assert_eq!(reply, MetaReply::Node(NodeId(u64::from(i) + 2)));
    }
    assert_eq!(state.nodes().filter(|node| node.state == NodeState::Lost).count(), NODES_GONE_MAX);
    let given = |id: &u64| (1..state.header.next_node.0).contains(id);
    let gone: Vec<u64> = (1..=2_000).filter(|id| state.is_gone(NodeId(*id))).collect();
    let here: Vec<u64> = state.nodes().filter(|node| !node.state.is_gone()).map(|node| node.id.0).collect();
    assert!(gone.len() > NODES_GONE_MAX, "ids without a record are gone too");
    assert!((1..=2_000).all(|id| gone.contains(&id) == (given(&id) && !here.contains(&id))), "{here:?}");
    assert!(state.node(NodeId(2)).is_none(), "the oldest is pruned");
}

#[test]
fn plans_become_batches_that_apply() {
    let mut state = cluster_of(1);
    let nodes = state.initial_nodes(4, 3, |_| Liveness::Live);
    assert_eq!(nodes, vec![vec![NodeId(1)]; 4]);
    apply(&mut state, &collection("default", 4, 3, &[1]));
    apply(&mut state, &token(10));
    apply(&mut state, &join(2));
    assert!(plan(&state.plan_input(|_| Liveness::Live)).is_empty(), "two voters are no better than one");
    apply(&mut state, &join(3));
    let commands = state.commands_for(&plan(&state.plan_input(|_| Liveness::Live)));
    assert_eq!(commands.len(), 5, "one batch for each shard");
    for command in &commands {
        assert!(matches!(apply(&mut state, command), MetaReply::Batch(replies) if replies.len() == 2));
    }
    assert!(state.shards().all(|shard| shard.intent.len() == 3));
    assert!(plan(&state.plan_input(|_| Liveness::Live)).is_empty());
    // A batch based on an older intent is refused whole.
    assert!(
        commands.iter().all(|command| matches!(refused(&mut state, command), MetaRefusal::InBatch { position: 0, .. }))
    );

    apply(&mut state, &join(4));
    let dead = |node| if node == NodeId(2) { Liveness::Dead } else { Liveness::Live };
    let commands = state.commands_for(&plan(&state.plan_input(dead)));
    for command in &commands {
        assert!(matches!(apply(&mut state, command), MetaReply::Batch(_)), "{command:?}");
    }
    assert_eq!(state.desired_on(NodeId(2)).count(), 0);
    assert_eq!(state.desired_on(NodeId(4)).count(), 5);
}

const OLD: VersionRange = VersionRange::FIRST_ONLY;
pub(super) const NEW: VersionRange = VersionRange { min: ClusterVersion(1), max: ClusterVersion(2) };

fn started(node: u64, incarnation: u64, versions: Option<VersionRange>) -> MetaCommand {
    MetaCommand::UpdateNode {
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
        addresses: new_node(u8::try_from(node).expect("few nodes")).addresses,
        locality: Locality::default(),
        versions,
    }
}

/// Raises the version by what was seen of nodes: id, start, and what the binary supports.
pub(super) fn raise(version: u32, seen: &[(u64, u64, VersionRange)]) -> MetaCommand {
    let seen = seen.iter().map(|(node, incarnation, versions)| SeenNode {
        node: NodeId(*node),
        incarnation: Incarnation(*incarnation),
        versions: *versions,
    });
    MetaCommand::SetClusterVersion { version: ClusterVersion(version), seen: seen.collect() }
}

/// A cluster of this many nodes at version 2. Node n has started once, as start n + 1.
fn at_version_2(nodes: u8) -> MetaState {
    let mut state = cluster_of(nodes);
    let starts: Vec<_> = (1..=u64::from(nodes)).map(|node| (node, node + 1, NEW)).collect();
    for (node, start, _) in &starts {
        assert_eq!(apply(&mut state, &started(*node, *start, None)), MetaReply::Done);
    }
    assert_eq!(apply(&mut state, &raise(2, &starts)), MetaReply::Done);
    state
}

#[test]
fn version_rises_one_step_when_the_last_start_of_every_node_supports_it() {
    let mut state = cluster_of(3);
    let in_force = ClusterVersion::FIRST;
    assert_eq!(state.cluster_version(), in_force);
    for (node, start) in [(1, 4), (2, 5), (3, 6)] {
        assert_eq!(apply(&mut state, &started(node, start, None)), MetaReply::Done);
    }
    let all = [(1, 4, NEW), (2, 5, NEW), (3, 7, NEW)];
    assert_eq!(refused(&mut state, &raise(3, &all)), MetaRefusal::VersionNotNext { in_force });
    let lacks = |node| MetaRefusal::VersionNotSeen { node: NodeId(node), version: ClusterVersion(2) };
    assert_eq!(refused(&mut state, &raise(2, &[])), lacks(1));
    assert_eq!(refused(&mut state, &raise(2, &[(1, 4, NEW), (2, 4, NEW), (3, 6, NEW)])), lacks(2), "it restarted");
    assert_eq!(refused(&mut state, &raise(2, &[(1, 4, NEW), (2, 5, NEW), (3, 6, OLD)])), lacks(3));
    // A node that joins between the check and the command is noticed.
    let mut joined = state.clone();
    apply(&mut joined, &join(4));
    assert_eq!(refused(&mut joined, &raise(2, &all)), lacks(4));
    // Removed and lost nodes never come back, so they displace no node.
    apply(&mut joined, &MetaCommand::RemoveNode { node: NodeId(4) });
    assert_eq!(apply(&mut joined, &raise(2, &all)), MetaReply::Done);

    assert_eq!(apply(&mut state, &raise(2, &all)), MetaReply::Done);
    let raised = state.clone();
    assert_eq!(apply(&mut state, &raise(2, &[])), MetaReply::Done, "the answer to the first may have been lost");
    assert_eq!(state, raised);
    let in_force = ClusterVersion(2);
    assert_eq!(refused(&mut state, &raise(1, &all)), MetaRefusal::VersionNotNext { in_force }, "it never falls");
    assert_eq!(state.node(NodeId(3)).expect("node").versions, NEW);
    assert_eq!(
        refused(&mut state, &MetaCommand::Batch(vec![raise(2, &all)])),
        MetaRefusal::InBatch { position: 0, refusal: Box::new(MetaRefusal::Malformed) }
    );
}

#[test]
fn names_and_localities_that_a_terminal_would_obey_are_refused_from_the_second_version_on() {
    let hostile = |name: &str, zone: &str| {
        let mut node = new_node(2);
        (node.name, node.locality.0) = (name.to_owned(), [("zone".to_owned(), zone.to_owned())].into());
        node
    };
    let mut state = cluster_of(1);
    let before = apply(&mut state.clone(), &joins(hostile("n\u{202e}2", "a\u{1b}[2J"), None));
    assert_eq!(before, MetaReply::Node(NodeId(2)), "replicas of the first version accept them");

    apply(&mut state, &started(1, 4, None));
    assert_eq!(apply(&mut state, &raise(2, &[(1, 4, NEW)])), MetaReply::Done);
    let invalid = |field| MetaRefusal::Invalid(field);
    let joining = |name, zone| joins(hostile(name, zone), Some(NEW));
    assert_eq!(refused(&mut state, &joining("n\u{202e}2", "a")), invalid(Field::NodeName));
    assert_eq!(refused(&mut state, &joining("n2", "a\u{1b}[2J")), invalid(Field::Locality));
    let MetaCommand::UpdateNode { node, incarnation, addresses, versions, .. } = started(1, 5, Some(NEW)) else {
        panic!("an update")
    };
    let locality = hostile("", "a\nb").locality;
    let update = MetaCommand::UpdateNode { node, incarnation, addresses, locality, versions };
    assert_eq!(refused(&mut state, &update), invalid(Field::Locality));
    assert_eq!(apply(&mut state, &joining("n2", "a")), MetaReply::Node(NodeId(2)));
}

#[test]
fn only_binaries_that_support_the_version_in_force_join_and_start() {
    let mut state = cluster_of(1);
    let early = MetaRefusal::VersionNotInForce { needed: ClusterVersion(2), in_force: ClusterVersion(1) };
    assert_eq!(refused(&mut state, &joins(new_node(2), Some(NEW))), early, "old replicas would not record it");
    assert_eq!(refused(&mut state, &started(1, 3, Some(NEW))), early);
    assert_eq!(apply(&mut state, &raise(2, &[(1, 0, NEW)])), MetaReply::Done);
    let in_force = ClusterVersion(2);
    let unsupported = MetaRefusal::VersionNotSupported { in_force, supported: OLD };
    for versions in [None, Some(OLD)] {
        assert_eq!(refused(&mut state, &joins(new_node(2), versions)), unsupported);
        assert_eq!(refused(&mut state, &started(1, 3, versions)), unsupported);
    }
    assert_eq!(apply(&mut state, &joins(new_node(2), Some(NEW))), MetaReply::Node(NodeId(2)));
    let later = VersionRange { min: in_force, max: ClusterVersion(3) };
    assert_eq!(apply(&mut state, &started(2, 3, Some(later))), MetaReply::Done);
    assert_eq!(state.node(NodeId(2)).expect("node").versions, later);
    // Another binary needs another start.
    assert_eq!(refused(&mut state, &started(2, 3, Some(NEW))), MetaRefusal::StaleIncarnation { known: Incarnation(3) });
}

fn key(id: u64, role: Role, expires_at_ms: u64) -> MetaCommand {
    MetaCommand::CreateKey { id: KeyId(id), hash: [8; 32], role, collections: Vec::new(), expires_at_ms }
}

#[test]
fn keys_are_created_once_listed_and_revoked_but_for_the_last_admin() {
    let mut state = bootstrapped();
    assert!(matches!(refused(&mut state, &key(1, Role::Admin, 0)), MetaRefusal::VersionNotInForce { .. }));
    assert_eq!(apply(&mut state, &raise(2, &[(1, 0, NEW)])), MetaReply::Done);
    assert_eq!(apply(&mut state, &key(1, Role::Admin, 0)), MetaReply::Done);
    assert_eq!(apply(&mut state, &key(1, Role::Admin, 0)), MetaReply::Done, "proposed again");
    assert_eq!(refused(&mut state, &key(1, Role::Reader, 0)), MetaRefusal::KeyExists);
    assert_eq!(refused(&mut state, &MetaCommand::RevokeKey { id: KeyId(1) }), MetaRefusal::LastAdminKey);
    assert_eq!(refused(&mut state, &MetaCommand::RevokeKey { id: KeyId(2) }), MetaRefusal::UnknownKey);
    assert_eq!(refused(&mut state, &key(2, Role::Admin, 1_000)), MetaRefusal::Invalid(Field::KeyExpiry));
    assert_eq!(apply(&mut state, &key(2, Role::Admin, 1_001)), MetaReply::Done);
    // The other admin key has expired by then.
    let revoke = MetaCommand::RevokeKey { id: KeyId(1) };
    assert_eq!(at(&mut state, 1_001, &revoke), MetaReply::Refused(MetaRefusal::LastAdminKey));
    assert_eq!(apply(&mut state, &revoke), MetaReply::Done);
    assert_eq!(state.keys().map(|key| key.id).collect::<Vec<_>>(), [KeyId(2)]);
}

#[test]
fn a_key_names_collections_only_where_it_sees_records() {
    let mut state = bootstrapped();
    assert_eq!(apply(&mut state, &raise(2, &[(1, 0, NEW)])), MetaReply::Done);
    let named = |id, role, names: &[&str]| MetaCommand::CreateKey {
        id: KeyId(id),
        hash: [8; 32],
        role,
        collections: names.iter().map(|name| (*name).to_owned()).collect(),
        expires_at_ms: 0,
    };
    let invalid = MetaRefusal::Invalid(Field::KeyCollections);
    assert_eq!(refused(&mut state, &named(1, Role::Operator, &["a"])), invalid);
    assert_eq!(refused(&mut state, &named(1, Role::Reader, &["A b"])), invalid);
    let many: Vec<String> = (0..=KEY_COLLECTIONS_MAX).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(refused(&mut state, &named(1, Role::Reader, &many)), invalid);
    assert_eq!(apply(&mut state, &named(1, Role::Reader, &["b", "a", "b"])), MetaReply::Done);
    assert_eq!(state.key(KeyId(1)).map(|key| &key.collections[..]), Some(&["a".to_owned(), "b".to_owned()][..]));
    assert!(MetaState::decode(&state.encode()).is_ok_and(|read| read == state));
}

fn set(node: u64, state: NodeState) -> MetaCommand {
    MetaCommand::SetNodeState { node: NodeId(node), state }
}

/// Of this many nodes, at the second version.
fn second_version(nodes: u8) -> MetaState {
    let mut state = cluster_of(nodes);
    let seen: Vec<_> = (1..=nodes.into()).map(|node| (node, 0, NEW)).collect();
    assert_eq!(apply(&mut state, &raise(2, &seen)), MetaReply::Done);
    state
}

#[test]
fn draining_waits_for_the_second_version_takes_nothing_new_and_can_be_taken_back() {
    let needed = MetaRefusal::VersionNotInForce { needed: ClusterVersion(2), in_force: ClusterVersion(1) };
    for state in [NodeState::Draining, NodeState::Leaving] {
        assert_eq!(refused(&mut cluster_of(3), &set(2, state)), needed);
    }
    let mut state = second_version(3);
    assert_eq!(apply(&mut state, &set(2, NodeState::Draining)), MetaReply::Done);
    assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));
    let assign = MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(2), intent_version: 1 };
    assert_eq!(refused(&mut state, &assign), MetaRefusal::NodeNotActive(NodeId(2)));
    assert_eq!(refused(&mut state, &collection("c", 4, 3, &[1, 2, 3])), MetaRefusal::BadPlacement);
    assert_eq!(apply(&mut state, &set(3, NodeState::Draining)), MetaReply::Done);
    assert_eq!(refused(&mut state, &set(1, NodeState::Draining)), MetaRefusal::LastNode);
    assert_eq!(apply(&mut state, &set(2, NodeState::Active)), MetaReply::Done);
    assert!(matches!(apply(&mut state, &assign), MetaReply::Replica(_)));
}

#[test]
fn only_a_node_that_leaves_and_holds_nothing_is_removed_by_its_departure() {
    let mut state = second_version(3);
    let complete = MetaCommand::CompleteLeave { node: NodeId(1) };
    assert_eq!(refused(&mut state, &complete), MetaRefusal::NodeNotLeaving(NodeId(1)));
    assert_eq!(apply(&mut state, &set(1, NodeState::Leaving)), MetaReply::Done);
    assert_eq!(refused(&mut state, &complete), MetaRefusal::NodeHoldsReplicas(NodeId(1)));
    // Intended on node 2 alone, but the shard has not reported it yet.
    let assign = MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(2), intent_version: 1 };
    let MetaReply::Replica(replica) = apply(&mut state, &assign) else { panic!("refused") };
    let unassign = MetaCommand::UnassignReplica { shard: ShardId::META, replica: ReplicaId(1) };
    assert_eq!(apply(&mut state, &unassign), MetaReply::Done);
    assert_eq!(refused(&mut state, &complete), MetaRefusal::NodeHoldsReplicas(NodeId(1)));
    let mut descriptor = state.shard(ShardId::META).expect("metadata").descriptor.clone();
    descriptor.epoch.config += 1;
    descriptor.replicas = vec![ReplicaDescriptor { replica, node: NodeId(2), role: ReplicaRole::Voter }];
    assert_eq!(apply(&mut state, &MetaCommand::ReportShard { descriptor }), MetaReply::Done);

    let mut taken_back = state.clone();
    assert_eq!(apply(&mut taken_back, &set(1, NodeState::Active)), MetaReply::Done);
    assert_eq!(refused(&mut taken_back, &complete), MetaRefusal::NodeNotLeaving(NodeId(1)), "a late proposal");
    assert_eq!(apply(&mut state, &complete), MetaReply::Done);
    assert_eq!(state.node(NodeId(1)).expect("a record").state, NodeState::Removed);
    assert_eq!(apply(&mut state, &complete), MetaReply::Done, "proposed again");
    assert_eq!(
        refused(&mut state, &MetaCommand::CompleteLeave { node: NodeId(9) }),
        MetaRefusal::UnknownNode(NodeId(9))
    );
}

#[test]
fn placement_replaces_what_a_leaving_node_holds_and_leaves_what_a_draining_one_holds() {
    let mut state = second_version(4);
    assert!(matches!(apply(&mut state, &collection("c", 1, 3, &[1, 2, 3])), MetaReply::Collection { .. }));
    let planned = |state: &MetaState| {
        let plan = plan(&state.plan_input(|_| Liveness::Live));
        plan.changes().filter(|change| change.shard() != ShardId::META).count()
    };
    assert_eq!(planned(&state), 0);
    assert_eq!(apply(&mut state, &set(3, NodeState::Draining)), MetaReply::Done);
    assert_eq!(planned(&state), 0);
    let placed = state.initial_nodes(8, 3, |_| Liveness::Live);
    assert!(placed.iter().all(|nodes| nodes.len() == 3 && !nodes.contains(&NodeId(3))), "{placed:?}");
    for leaving in [NodeState::Leaving, NodeState::Decommissioning] {
        assert_eq!(apply(&mut state, &set(3, leaving)), MetaReply::Done);
        assert_eq!(planned(&state), 2, "a replica on node 4 in place of the one on node 3");
    }
}

#[test]
fn a_start_is_recorded_once_with_its_build_from_the_second_version_on() {
    let report = |node, incarnation, build: &str| MetaCommand::ReportStart {
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
        build: build.to_owned(),
    };
    assert!(matches!(refused(&mut cluster_of(1), &report(1, 0, "1.0")), MetaRefusal::VersionNotInForce { .. }));
    let mut state = second_version(2);
    assert_eq!(apply(&mut state, &started(2, 5, Some(NEW))), MetaReply::Done);
    assert_eq!(refused(&mut state, &report(2, 4, "1.0")), MetaRefusal::StaleIncarnation { known: Incarnation(5) });
    assert_eq!(refused(&mut state, &report(2, 5, "\u{1b}[2J")), MetaRefusal::Invalid(Field::Build));
    assert_eq!(refused(&mut state, &report(2, 5, &"1".repeat(NAME_BYTES_MAX + 1))), MetaRefusal::Invalid(Field::Build));
    assert_eq!(at(&mut state, 2_000, &report(2, 5, "1.0")), MetaReply::Done);
    assert_eq!(at(&mut state, 3_000, &report(2, 5, "1.0")), MetaReply::Done);
    let start = state.node(NodeId(2)).and_then(|node| node.start.clone()).expect("a start");
    assert_eq!((&start.build[..], start.at_ms), ("1.0", 2_000), "a repetition changes nothing");
    assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));
}
