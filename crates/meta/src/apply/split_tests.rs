//! Tests of the rules for splits.

use bytes::Bytes;
use flotilla_placement::Sharding;
use flotilla_types::{
    Bucket, ClusterVersion, CollectionId, Epoch, KeyRange, NodeId, OperationId, RecordKey, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
};

use super::{
    SHARDS_MAX, SPLIT_KEY_BYTES_MAX,
    operation_tests::stored,
    tests::{apply, cluster_of, refused},
};
use crate::{
    CollectionSettings, Field, Limit, MetaCommand, MetaRefusal, MetaReply, MetaState, OperationChange, OperationReason,
    OperationState, OperationWork, PlannedSplit, ReplicaStatus, ShardRecord,
    codec::{decode_operation, decode_shard, encode_operation, encode_shard},
};

/// Four buckets on nodes 1 to 3.
const SHARD: ShardId = ShardId(1);
/// One more shard of the collection, behind it.
const SECOND: ShardId = ShardId(2);
const CHILD: ShardId = ShardId(3);
const COLLECTION: CollectionId = CollectionId(1);
const EPOCH: Epoch = Epoch { range: 1, config: 1 };

fn cluster() -> MetaState {
    let mut state = cluster_of(5);
    state.header.cluster_version = ClusterVersion::SPLITS;
    let create = MetaCommand::CreateCollection {
        name: "c".to_owned(),
        sharding: Sharding::Hash,
        buckets: 8,
        replicas: 3,
        initial_nodes: vec![vec![NodeId(1), NodeId(2), NodeId(3)]; 2],
        settings: CollectionSettings::NONE,
    };
    let shards = vec![SHARD, SECOND];
    assert_eq!(apply(&mut state, &create), MetaReply::Collection { collection: COLLECTION, shards });
    state
}

fn key(bucket: u16, key: &[u8]) -> Bytes {
    RecordKey::new(COLLECTION, Bucket(bucket), key).into_bytes()
}

fn splits(at: Bytes) -> MetaCommand {
    MetaCommand::SplitShard { shard: SHARD, at, epoch: EPOCH, reason: OperationReason::Operator }
}

/// The middle of the shard.
fn middle() -> Bytes {
    key(2, b"")
}

fn begin(state: &mut MetaState) -> OperationId {
    match apply(state, &splits(middle())) {
        MetaReply::Operation(id) => id,
        reply => panic!("{reply:?}"),
    }
}

fn record(state: &MetaState, shard: ShardId) -> &ShardRecord {
    state.shard(shard).expect("a shard")
}

fn plan(state: &MetaState) -> &PlannedSplit {
    record(state, SHARD).split.as_ref().expect("a planned split")
}

fn stands(state: &MetaState, id: OperationId) -> OperationState {
    state.operation(id).expect("an operation").state
}

/// The shard as its log has it after the split.
fn kept(state: &MetaState) -> ShardDescriptor {
    let mut descriptor = record(state, SHARD).descriptor.clone();
    descriptor.range.end = middle();
    descriptor.epoch.range += 1;
    descriptor
}

fn report(descriptor: ShardDescriptor) -> MetaCommand {
    MetaCommand::ReportShard { descriptor }
}

/// The shard as it is, with these voters and learners and the next configuration.
fn reconfigured(state: &MetaState, voters: &[(u64, ReplicaId)], learners: &[(u64, ReplicaId)]) -> ShardDescriptor {
    let of = |role| {
        move |(node, replica): &(u64, ReplicaId)| ReplicaDescriptor { replica: *replica, node: NodeId(*node), role }
    };
    let replicas = voters.iter().map(of(ReplicaRole::Voter)).chain(learners.iter().map(of(ReplicaRole::Learner)));
    let mut descriptor = record(state, SHARD).descriptor.clone();
    descriptor.replicas = replicas.collect();
    descriptor.epoch.config += 1;
    descriptor
}

fn held(state: &MetaState) -> [ReplicaId; 3] {
    [1, 2, 3].map(|node| record(state, SHARD).desired_on(NodeId(node)).expect("a replica"))
}

#[test]
fn a_planned_split_has_its_ids_and_changes_no_range() {
    let mut state = cluster();
    let next = state.header.next_replica.0;
    let before = record(&state, SHARD).clone();
    let id = begin(&mut state);
    let replicas: Vec<_> = held(&state).into_iter().zip((next..).map(ReplicaId)).collect();
    let split = PlannedSplit { at: middle(), child: CHILD, replicas, operation: id };
    assert_eq!(*record(&state, SHARD), ShardRecord { split: Some(split), ..before });
    assert_eq!((state.shard(CHILD), state.header.next_shard), (None, CHILD.next()));
    let operation = state.operation(id).expect("an operation");
    assert_eq!(operation.work, OperationWork::Split { at: middle(), child: CHILD });
    assert_eq!((operation.state, operation.reason), (OperationState::Running, OperationReason::Operator));
    assert_eq!(state.splitting().map(|(shard, split)| (shard, split.child)).collect::<Vec<_>>(), [(SHARD, CHILD)]);
    stored(&state);
}

#[test]
fn replicas_of_a_shard_without_a_record_are_in_use_while_its_split_is_planned() {
    let mut state = cluster();
    begin(&mut state);
    let planned = plan(&state).replicas.clone();
    for state in [&state, &stored(&state)] {
        for (node, (parent, child)) in (1..).zip(&planned) {
            assert_eq!(state.replica_status(CHILD, *child), ReplicaStatus::InUse);
            assert_eq!(state.replica_status(CHILD, *parent), ReplicaStatus::Obsolete, "of the other shard");
            assert_eq!(state.planned_children_on(NodeId(node)), [(CHILD, *child)]);
        }
        assert_eq!(state.planned_children_on(NodeId(4)), []);
        assert_eq!(state.replica_status(CHILD, state.header.next_replica), ReplicaStatus::Unknown);
    }
    let before = state.clone();
    assert_eq!(apply(&mut state, &MetaCommand::DropCollection { collection: COLLECTION }), MetaReply::Done);
    assert_eq!(state.replica_status(CHILD, planned[0].1), ReplicaStatus::Obsolete);
    assert_eq!(state.planned_children_on(NodeId(1)), []);
    assert_eq!(state.unborn_changes(&before).collect::<Vec<_>>(), [CHILD]);
}

#[test]
fn only_a_settled_shard_of_a_collection_is_split_and_between_its_keys() {
    let mut state = cluster();
    let of = |shard| MetaCommand::SplitShard { shard, at: middle(), epoch: EPOCH, reason: OperationReason::Operator };
    assert_eq!(refused(&mut state, &of(CHILD)), MetaRefusal::UnknownShard(CHILD));
    assert_eq!(refused(&mut state, &of(ShardId::META)), MetaRefusal::NotSplittable(ShardId::META));
    let stale = MetaCommand::SplitShard {
        shard: SHARD,
        at: middle(),
        epoch: Epoch { range: 1, config: 2 },
        reason: OperationReason::Operator,
    };
    assert_eq!(refused(&mut state, &stale), MetaRefusal::StaleEpoch { known: EPOCH });
    let outside = [
        key(0, b""),
        key(4, b""),
        key(5, b"k"),
        RecordKey::new(CollectionId(2), Bucket(0), b"").into_bytes(),
        key(2, b"").slice(..RecordKey::PREFIX_BYTES - 1),
        key(2, &vec![0; SPLIT_KEY_BYTES_MAX - RecordKey::PREFIX_BYTES + 1]),
        Bytes::new(),
    ];
    for at in outside {
        assert_eq!(refused(&mut state, &splits(at)), MetaRefusal::Invalid(Field::SplitKey));
    }
    for at in [key(0, b"\0"), key(3, &[u8::MAX; SPLIT_KEY_BYTES_MAX - RecordKey::PREFIX_BYTES])] {
        assert!(matches!(apply(&mut state.clone(), &splits(at)), MetaReply::Operation(_)));
    }
    let mut moving = state.clone();
    let (replica, intent_version, reason) = (held(&state)[0], 1, OperationReason::Operator);
    let moves = MetaCommand::MoveReplica { shard: SHARD, replica, to: NodeId(4), intent_version, reason };
    assert!(matches!(apply(&mut moving, &moves), MetaReply::Operation(_)));
    assert_eq!(refused(&mut moving, &splits(middle())), MetaRefusal::ShardChanging(SHARD));
    let mut learning = state.clone();
    let [one, two, three] = held(&state);
    let learner = reconfigured(&state, &[(1, one), (2, two)], &[(3, three)]);
    assert_eq!(apply(&mut learning, &report(learner)), MetaReply::Done);
    let epoch = Epoch { range: 1, config: 2 };
    let split = MetaCommand::SplitShard { shard: SHARD, at: middle(), epoch, reason: OperationReason::Operator };
    assert_eq!(refused(&mut learning, &split), MetaRefusal::ShardChanging(SHARD));
    let id = begin(&mut state);
    for at in [middle(), key(1, b"")] {
        assert_eq!(refused(&mut state, &splits(at)), MetaRefusal::SplitPlanned(id));
    }
}

#[test]
fn shards_that_are_to_be_split_off_count_for_the_limit() {
    let mut state = cluster();
    let filler = record(&state, SECOND).clone();
    for id in 100.. {
        if state.shards.len() + 1 == SHARDS_MAX {
            break;
        }
        state.record_shard(ShardRecord { id: ShardId(id), ..filler.clone() });
    }
    let mut full = state.clone();
    full.record_shard(ShardRecord { id: ShardId(50), ..filler });
    assert_eq!(refused(&mut full, &splits(middle())), MetaRefusal::LimitReached(Limit::Shards));
    begin(&mut state);
    let create = MetaCommand::CreateCollection {
        name: "d".to_owned(),
        sharding: Sharding::Range,
        buckets: 1,
        replicas: 1,
        initial_nodes: vec![vec![NodeId(1)]],
        settings: CollectionSettings::NONE,
    };
    assert_eq!(refused(&mut state, &create), MetaRefusal::LimitReached(Limit::Shards));
}

#[test]
fn the_report_of_a_split_records_both_shards_or_neither() {
    let mut state = cluster();
    let id = begin(&mut state);
    let planned = plan(&state).replicas.clone();
    let end = record(&state, SHARD).descriptor.range.end.clone();
    let good = kept(&state);
    let with = |change: &dyn Fn(&mut ShardDescriptor)| {
        let mut descriptor = good.clone();
        change(&mut descriptor);
        report(descriptor)
    };
    let elsewhere = with(&|descriptor| descriptor.range.end = key(1, b""));
    let larger = with(&|descriptor| descriptor.range.end = key(5, b""));
    let other_start = with(&|descriptor| descriptor.range.start = key(1, b""));
    let other_half = with(&|descriptor| descriptor.range = KeyRange { start: middle(), end: end.clone() });
    let same_epoch = with(&|descriptor| descriptor.epoch = Epoch { range: 1, config: 2 });
    for bad in [elsewhere, larger, other_start, other_half, same_epoch] {
        assert_eq!(refused(&mut state, &bad), MetaRefusal::Invalid(Field::Descriptor), "{bad:?}");
    }
    assert_eq!(apply(&mut state, &report(good.clone())), MetaReply::Done);
    let parent = record(&state, SHARD);
    assert_eq!((&parent.descriptor, &parent.split, parent.parent), (&good, &None, None));
    let child = record(&state, CHILD);
    let range = KeyRange { start: middle(), end };
    let epoch = Epoch { range: 2, config: 1 };
    let replicas = planned.iter().zip(1..).map(|((_, replica), node)| ReplicaDescriptor {
        replica: *replica,
        node: NodeId(node),
        role: ReplicaRole::Voter,
    });
    let descriptor = ShardDescriptor { shard: CHILD, range, epoch, replicas: replicas.collect() };
    assert_eq!(child.descriptor, descriptor);
    assert_eq!(child.initial, ShardDescriptor { replicas: Vec::new(), ..descriptor });
    assert!(planned.iter().all(|(_, replica)| !child.is_initial(*replica)), "none is founded empty");
    assert_eq!((child.parent, child.collection, child.replicas_desired), (Some(SHARD), COLLECTION, 3));
    assert_eq!((child.intent_version, child.intent.len()), (1, 3));
    for ((_, replica), node) in planned.iter().zip(1..) {
        assert_eq!(child.desired_on(NodeId(node)), Some(*replica));
        assert_eq!(state.replica_status(CHILD, *replica), ReplicaStatus::InUse);
    }
    assert_eq!(state.planned_children_on(NodeId(1)), []);
    assert_eq!((stands(&state, id), state.splitting().count()), (OperationState::Done, 0));
    let state = &mut stored(&state);
    let before = state.clone();
    assert_eq!(apply(state, &report(good)), MetaReply::Done, "said again");
    assert_eq!(*state, before);
    // Both are shards like any other.
    let split = MetaCommand::SplitShard { shard: CHILD, at: key(3, b""), epoch, reason: OperationReason::Operator };
    assert!(matches!(apply(state, &split), MetaReply::Operation(_)));
    stored(state);
}

#[test]
fn a_range_does_not_change_without_a_plan_once_splits_are_known() {
    let mut state = cluster();
    let shrunk = report(kept(&state));
    assert_eq!(refused(&mut state, &shrunk), MetaRefusal::Invalid(Field::Descriptor));
    let mut bumped = record(&state, SHARD).descriptor.clone();
    bumped.epoch.range += 1;
    assert_eq!(apply(&mut state.clone(), &report(bumped.clone())), MetaReply::Done);
    // A plan is not carried out by a report of the range that was there.
    let id = begin(&mut state);
    assert_eq!(apply(&mut state, &report(bumped)), MetaReply::Done);
    assert_eq!((stands(&state, id), state.shard(CHILD)), (OperationState::Running, None));
    let mut older = cluster();
    older.header.cluster_version = ClusterVersion::OPERATIONS;
    assert_eq!(apply(&mut older, &shrunk), MetaReply::Done, "as binaries do that know no splits");
}

#[test]
fn a_plan_follows_the_voters_of_its_shard() {
    let mut state = cluster();
    let id = begin(&mut state);
    let [one, two, three] = held(&state);
    let before = plan(&state).replicas.clone();
    let replace = MetaCommand::ReplaceReplica { shard: SHARD, replica: three };
    let MetaReply::Replica(new) = apply(&mut state, &replace) else { panic!("it is replaced") };
    assert_eq!(plan(&state).replicas, before, "the shard has not reported it");
    let learns = report(reconfigured(&state, &[(1, one), (2, two)], &[(3, new)]));
    assert_eq!(apply(&mut state, &learns), MetaReply::Done);
    assert_eq!(plan(&state).replicas, before[..2]);
    assert_eq!(state.replica_status(CHILD, before[2].1), ReplicaStatus::Obsolete);
    let next = state.header.next_replica;
    let votes = report(reconfigured(&state, &[(1, one), (2, two), (3, new)], &[]));
    assert_eq!(apply(&mut state, &votes), MetaReply::Done);
    assert_eq!(plan(&state).replicas, [before[0], before[1], (new, next)]);
    assert_eq!(state.planned_children_on(NodeId(3)), [(CHILD, next)]);
    // The configuration changes behind the split: what was split is what the plan says.
    let mut state = stored(&state);
    let mut left = reconfigured(&state, &[(1, one), (2, two)], &[]);
    (left.range, left.epoch.range) = (kept(&state).range, 2);
    assert_eq!(apply(&mut state, &report(left)), MetaReply::Done);
    assert_eq!(record(&state, CHILD).desired_on(NodeId(3)), Some(next));
    assert_eq!((record(&state, CHILD).intent.len(), stands(&state, id)), (3, OperationState::Done));
}

#[test]
fn only_repairs_move_replicas_of_a_shard_that_is_to_be_split() {
    let mut state = cluster();
    begin(&mut state);
    let replica = held(&state)[2];
    let moves = |reason| MetaCommand::MoveReplica { shard: SHARD, replica, to: NodeId(4), intent_version: 1, reason };
    for reason in [OperationReason::Operator, OperationReason::Spread, OperationReason::Balance] {
        assert_eq!(refused(&mut state, &moves(reason)), MetaRefusal::ShardChanging(SHARD));
    }
    for reason in [OperationReason::NodeDead, OperationReason::NodeLeaving, OperationReason::NodeRemoved] {
        assert!(matches!(apply(&mut state.clone(), &moves(reason)), MetaReply::Operation(_)), "{reason:?}");
    }
}

#[test]
fn a_split_is_paused_and_resumed_and_not_cancelled() {
    let mut state = cluster();
    let operation = begin(&mut state);
    let verbs = [(OperationChange::Pause, OperationState::Paused), (OperationChange::Resume, OperationState::Running)];
    for ((change, expected), changes) in verbs.into_iter().zip(0..) {
        let cancel = MetaCommand::ChangeOperation { operation, changes, change: OperationChange::Cancel };
        assert_eq!(refused(&mut state, &cancel), MetaRefusal::OperationTooLate(operation));
        let command = MetaCommand::ChangeOperation { operation, changes, change };
        assert_eq!(apply(&mut state, &command), MetaReply::Done);
        assert_eq!(stands(&stored(&state), operation), expected);
    }
    let mut dropped = state.clone();
    assert_eq!(apply(&mut dropped, &MetaCommand::DropCollection { collection: COLLECTION }), MetaReply::Done);
    assert_eq!(stands(&dropped, operation), OperationState::Superseded);
    assert_eq!(dropped.running().count(), 0);
    stored(&dropped);
}

#[test]
fn records_need_the_version_of_splits_only_for_what_a_split_adds() {
    let version = |record: &ShardRecord| {
        let encoded = encode_shard(record);
        assert_eq!(decode_shard(&encoded).as_ref(), Ok(record));
        encoded[0]
    };
    let mut state = cluster();
    assert_eq!(version(record(&state, SHARD)), 1);
    let id = begin(&mut state);
    assert_eq!(version(record(&state, SHARD)), 7);
    let operation = state.operation(id).expect("an operation");
    let encoded = encode_operation(operation);
    assert_eq!((encoded[0], decode_operation(&encoded).as_ref()), (7, Ok(operation)));
    let done = report(kept(&state));
    assert_eq!(apply(&mut state, &done), MetaReply::Done);
    assert_eq!((version(record(&state, SHARD)), version(record(&state, CHILD))), (1, 7));
}

#[test]
fn records_of_clusters_without_splits_are_read_as_ever() {
    // As the binaries of version 6 write them: a shard, and the move of replica 4 from node 3 to replica 5 on node 4.
    const SHARD_6: &[u8] = b"\x01\x08\x01\x10\x01\x18\x03\x22\x04\x08\x02\x10\x01\x28\x01\
        \x32\x1c\x08\x01\x12\x06\0\0\0\x01\0\0\x1a\x06\0\0\0\x01\0\x04\x20\x01\x28\x01\x32\x04\x08\x02\x10\x01\
        \x3a\x1c\x08\x01\x12\x06\0\0\0\x01\0\0\x1a\x06\0\0\0\x01\0\x04\x20\x01\x28\x01\x32\x04\x08\x02\x10\x01";
    const MOVE_6: &[u8] =
        b"\x06\x08\x01\x10\x01\x18\x01\x20\x05\x28\x05\x32\x0a\x08\x01\x10\x04\x18\x03\x20\x05\x28\x04";
    let shard = decode_shard(SHARD_6).expect("a shard");
    assert_eq!((shard.parent, &shard.split, shard.intent.len()), (None, &None, 1));
    assert_eq!(encode_shard(&shard), SHARD_6);
    let operation = decode_operation(MOVE_6).expect("an operation");
    let (from, to) = operation.moved().expect("a move");
    assert_eq!((from.replica, from.node, to.replica, to.node), (ReplicaId(4), NodeId(3), ReplicaId(5), NodeId(4)));
    assert_eq!(encode_operation(&operation), MOVE_6);
}
