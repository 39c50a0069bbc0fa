//! Tests of the rules for merges.

use flotilla_placement::Sharding;
use flotilla_types::{ClusterVersion, CollectionId, Epoch, NodeId, OperationId, ReplicaId, ShardDescriptor, ShardId};

use super::{
    operation_tests::stored,
    tests::{apply, cluster_of, refused},
};
use crate::{
    CollectionSettings, Field, MetaCommand, MetaRefusal, MetaReply, MetaState, OperationChange, OperationReason,
    OperationState, OperationWork, PlannedMerge, ReplicaStatus, ShardRecord,
};

const LEFT: ShardId = ShardId(1);
const RIGHT: ShardId = ShardId(2);
const NEXT: ShardId = ShardId(3);
const EPOCH: Epoch = Epoch { range: 1, config: 1 };

fn cluster_on(nodes: [[u64; 3]; 3]) -> MetaState {
    let mut state = cluster_of(5);
    state.header.cluster_version = ClusterVersion::MERGES;
    let create = MetaCommand::CreateCollection {
        name: "c".to_owned(),
        sharding: Sharding::Hash,
        buckets: 9,
        replicas: 3,
        initial_nodes: nodes.map(|nodes| nodes.map(NodeId).to_vec()).to_vec(),
        settings: CollectionSettings::NONE,
    };
    let shards = vec![LEFT, RIGHT, NEXT];
    assert_eq!(apply(&mut state, &create), MetaReply::Collection { collection: CollectionId(1), shards });
    state
}

fn cluster() -> MetaState {
    cluster_on([[1, 2, 3], [3, 1, 2], [1, 2, 3]])
}

fn merges(left: ShardId, right: ShardId) -> MetaCommand {
    MetaCommand::MergeShards { left: (left, EPOCH), right: (right, EPOCH), reason: OperationReason::Operator }
}

fn begin(state: &mut MetaState) -> OperationId {
    match apply(state, &merges(LEFT, RIGHT)) {
        MetaReply::Operation(id) => id,
        reply => panic!("{reply:?}"),
    }
}

fn record(state: &MetaState, shard: ShardId) -> &ShardRecord {
    state.shard(shard).expect("a shard")
}

fn plan(state: &MetaState) -> &PlannedMerge {
    record(state, LEFT).merge.as_ref().expect("a planned merge")
}

fn stands(state: &MetaState, id: OperationId) -> OperationState {
    state.operation(id).expect("an operation").state
}

fn report(state: &mut MetaState, shard: ShardId, change: impl FnOnce(&mut ShardDescriptor)) -> MetaReply {
    let mut descriptor = record(state, shard).descriptor.clone();
    change(&mut descriptor);
    apply(state, &MetaCommand::ReportShard { descriptor })
}

fn report_merged(state: &mut MetaState) -> MetaReply {
    let end = record(state, RIGHT).descriptor.range.end.clone();
    report(state, LEFT, |descriptor| {
        descriptor.range.end = end;
        descriptor.epoch.range = 3;
    })
}

#[test]
fn a_planned_merge_pairs_the_replicas_of_each_node_and_changes_no_range() {
    let mut state = cluster();
    let before = record(&state, LEFT).descriptor.clone();
    let id = begin(&mut state);
    let planned = plan(&state);
    let nodes_of = |(left, right): &(ReplicaId, ReplicaId)| {
        [(LEFT, left), (RIGHT, right)].map(|(shard, replica)| record(&state, shard).descriptor.node_of(*replica))
    };
    assert_eq!(planned.replicas.len(), 3);
    assert!(planned.replicas.iter().map(nodes_of).all(|[left, right]| left.is_some() && left == right));
    assert!(planned.replicas.is_sorted());
    assert_eq!((planned.epoch, planned.right_epoch, planned.is_ready()), (EPOCH, EPOCH, false));
    assert_eq!(record(&state, LEFT).descriptor, before);
    assert_eq!(
        state.operation(id).map(|operation| operation.work.clone()),
        Some(OperationWork::Merge { right: RIGHT })
    );
    for shard in [LEFT, RIGHT] {
        assert_eq!(state.merge_with(shard).map(|(left, _)| left), Some(LEFT));
    }
    assert_eq!((state.merge_with(NEXT), state.merges().count()), (None, 1));
    assert_eq!(stored(&state).merges().count(), 1);
}

#[test]
fn only_settled_neighbours_on_the_same_nodes_are_merged() {
    let mut state = cluster();
    let pairs = [(LEFT, NEXT), (RIGHT, LEFT), (LEFT, LEFT), (ShardId::META, LEFT), (NEXT, ShardId::META)];
    for (left, right) in pairs {
        assert_eq!(refused(&mut state, &merges(left, right)), MetaRefusal::NotNeighbours { left, right });
    }
    assert_eq!(refused(&mut state, &merges(LEFT, ShardId(9))), MetaRefusal::UnknownShard(ShardId(9)));
    let later = Epoch { range: 1, config: 2 };
    for (left, right) in [(EPOCH, later), (later, EPOCH)] {
        let stale =
            MetaCommand::MergeShards { left: (LEFT, left), right: (RIGHT, right), reason: OperationReason::Operator };
        assert_eq!(refused(&mut state, &stale), MetaRefusal::StaleEpoch { known: EPOCH });
    }
    let mut apart = cluster_on([[1, 2, 3], [1, 2, 4], [1, 2, 3]]);
    let lacks = MetaRefusal::ReplicasApart { shard: LEFT, node: NodeId(4) };
    assert_eq!(refused(&mut apart, &merges(LEFT, RIGHT)), lacks);
    let mut moving = state.clone();
    let replica = record(&state, RIGHT).intent[0].replica;
    let (intent_version, reason) = (1, OperationReason::Operator);
    let moves = |shard, replica| MetaCommand::MoveReplica { shard, replica, to: NodeId(4), intent_version, reason };
    assert!(matches!(apply(&mut moving, &moves(RIGHT, replica)), MetaReply::Operation(_)));
    assert_eq!(refused(&mut moving, &merges(LEFT, RIGHT)), MetaRefusal::ShardChanging(RIGHT));
    // A shard takes part in one change of a range at a time.
    let id = begin(&mut state);
    for (left, right) in [(LEFT, RIGHT), (RIGHT, NEXT)] {
        assert_eq!(refused(&mut state, &merges(left, right)), MetaRefusal::MergePlanned(id));
    }
    for shard in [LEFT, RIGHT] {
        let at = [&record(&state, shard).descriptor.range.start[..], b"k"].concat().into();
        let split = MetaCommand::SplitShard { shard, at, epoch: EPOCH, reason };
        assert_eq!(refused(&mut state, &split), MetaRefusal::MergePlanned(id));
        let replica = record(&state, shard).intent[0].replica;
        assert_eq!(refused(&mut state, &moves(shard, replica)), MetaRefusal::ShardChanging(shard));
    }
}

#[test]
fn the_report_of_a_merge_grows_one_shard_and_drops_the_other() {
    let mut state = cluster();
    let id = begin(&mut state);
    let replicas = plan(&state).replicas.clone();
    let end = record(&state, RIGHT).descriptor.range.end.clone();
    let elsewhere = record(&state, NEXT).descriptor.range.end.clone();
    for (end, range) in [(elsewhere, 3), (end.clone(), 1)] {
        let bad = report(&mut state, LEFT, |descriptor| {
            descriptor.range.end = end;
            descriptor.epoch = Epoch { range, config: 2 };
        });
        assert_eq!(bad, MetaReply::Refused(MetaRefusal::Invalid(Field::Descriptor)));
    }
    assert_eq!(report_merged(&mut state), MetaReply::Done);
    assert_eq!((state.shard(RIGHT), stands(&state, id)), (None, OperationState::Done));
    let left = record(&state, LEFT);
    assert_eq!((&left.descriptor.range.end, left.descriptor.epoch.range, &left.merge), (&end, 3, &None));
    assert_eq!(state.replica_status(RIGHT, replicas[0].1), ReplicaStatus::Obsolete);
    assert_eq!((state.merges().count(), state.running().count()), (0, 0));
    // It can be merged again.
    let again = MetaCommand::MergeShards {
        left: (LEFT, Epoch { range: 3, config: 1 }),
        right: (NEXT, EPOCH),
        reason: OperationReason::Operator,
    };
    assert!(matches!(apply(&mut state, &again), MetaReply::Operation(_)));
    stored(&state);
}

#[test]
fn a_merge_is_ready_once_each_replica_of_the_right_shard_is_known_to_be_frozen() {
    let mut state = cluster();
    begin(&mut state);
    let replicas = plan(&state).replicas.clone();
    let frozen = |right_epoch, replica| MetaCommand::ReportFrozen { left: LEFT, right_epoch, replica };
    let stranger = refused(&mut state, &frozen(EPOCH, replicas[0].0));
    assert_eq!(stranger, MetaRefusal::UnknownReplica(replicas[0].0));
    for (_, replica) in &replicas {
        let of_another = frozen(Epoch { range: 7, config: 1 }, *replica);
        assert_eq!(apply(&mut state, &of_another), MetaReply::Done);
        assert!(!plan(&state).frozen.contains(replica), "of a merge that is over");
        for _ in 0..2 {
            assert!(!plan(&state).is_ready() || plan(&state).frozen.contains(replica));
            assert_eq!(apply(&mut state, &frozen(EPOCH, *replica)), MetaReply::Done);
        }
    }
    assert!(plan(&state).is_ready() && plan(&state).frozen.len() == 3);
    stored(&state);
}

#[test]
fn a_merge_ends_only_when_neither_shard_can_be_changed_by_it() {
    for (first, second) in [(LEFT, RIGHT), (RIGHT, LEFT)] {
        let mut state = cluster();
        let id = begin(&mut state);
        let bump = |descriptor: &mut ShardDescriptor| descriptor.epoch.range += 1;
        assert_eq!(report(&mut state, first, bump), MetaReply::Done);
        assert_eq!(stands(&state, id), OperationState::Running);
        assert_eq!(report(&mut state, second, bump), MetaReply::Done);
        assert_eq!((stands(&state, id), state.merges().count()), (OperationState::Superseded, 0));
        assert!(state.shard(RIGHT).is_some());
        stored(&state);
    }
}

#[test]
fn a_merge_is_cancelled_until_it_is_decided_and_never_pauses() {
    let mut state = cluster();
    let id = begin(&mut state);
    let change = |change, changes| MetaCommand::ChangeOperation { operation: id, changes, change };
    let pause = refused(&mut state, &change(OperationChange::Pause, 0));
    assert_eq!(pause, MetaRefusal::OperationNotPaused(id));
    let mut decided = state.clone();
    assert_eq!(report(&mut decided, LEFT, |descriptor| descriptor.epoch.range += 1), MetaReply::Done);
    let late = refused(&mut decided, &change(OperationChange::Cancel, 0));
    assert_eq!(late, MetaRefusal::OperationTooLate(id));
    assert_eq!(apply(&mut state, &change(OperationChange::Cancel, 0)), MetaReply::Done);
    assert!(plan(&state).is_cancelled);
    assert_eq!(
        (stands(&state, id), state.operation(id).map(|found| found.changes)),
        (OperationState::Running, Some(1))
    );
    for shard in [LEFT, RIGHT] {
        report(&mut state, shard, |descriptor| descriptor.epoch.range += 1);
    }
    assert_eq!(stands(&state, id), OperationState::Cancelled);
}

#[test]
fn shards_that_are_dropped_are_not_merged() {
    let mut state = cluster();
    let id = begin(&mut state);
    assert_eq!(apply(&mut state, &MetaCommand::DropCollection { collection: CollectionId(1) }), MetaReply::Done);
    assert_eq!((stands(&state, id), state.merges().count()), (OperationState::Superseded, 0));
    assert_eq!(report_refused(&mut state), MetaRefusal::UnknownShard(LEFT));
    stored(&state);
}

fn report_refused(state: &mut MetaState) -> MetaRefusal {
    let descriptor = record(&cluster(), LEFT).descriptor.clone();
    refused(state, &MetaCommand::ReportShard { descriptor })
}
