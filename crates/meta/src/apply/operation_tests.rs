//! Tests of the rules for operations.

use flotilla_placement::{PlanReplica, Sharding, plan};
use flotilla_types::{
    ClusterVersion, NodeId, OperationId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
};

use super::{
    OPERATIONS_ENDED_MAX,
    tests::{apply, cluster_of, refused},
};
use crate::{
    CollectionSettings, Liveness, MetaCommand, MetaRefusal, MetaReply, MetaState, OperationChange, OperationReason,
    OperationState, store,
};

const SHARD: ShardId = ShardId(1);
const FIRST: OperationId = OperationId(1);

/// Five nodes and a shard on the first three.
fn cluster() -> MetaState {
    let mut state = cluster_of(5);
    let create = MetaCommand::CreateCollection {
        name: "c".to_owned(),
        sharding: Sharding::Hash,
        buckets: 1,
        replicas: 3,
        initial_nodes: vec![vec![NodeId(1), NodeId(2), NodeId(3)]],
        settings: CollectionSettings::NONE,
    };
    assert!(matches!(apply(&mut state, &create), MetaReply::Collection { .. }));
    state
}

fn held(state: &MetaState, node: u64) -> ReplicaId {
    state.shard(SHARD).and_then(|shard| shard.desired_on(NodeId(node))).expect("a replica")
}

fn moves(state: &MetaState, from: u64, to: u64, reason: OperationReason) -> MetaCommand {
    let intent_version = state.shard(SHARD).expect("the shard").intent_version;
    MetaCommand::MoveReplica { shard: SHARD, replica: held(state, from), to: NodeId(to), intent_version, reason }
}

fn begin(state: &mut MetaState, from: u64, to: u64) -> OperationId {
    let command = moves(state, from, to, OperationReason::Operator);
    match apply(state, &command) {
        MetaReply::Operation(id) => id,
        reply => panic!("{reply:?}"),
    }
}

/// A change that is based on the newest state.
fn change(state: &MetaState, operation: OperationId, change: OperationChange) -> MetaCommand {
    let changes = state.operation(operation).map_or(0, |found| found.changes);
    MetaCommand::ChangeOperation { operation, changes, change }
}

fn changed(state: &mut MetaState, operation: OperationId, verb: OperationChange) -> MetaReply {
    let command = change(state, operation, verb);
    apply(state, &command)
}

#[track_caller]
fn change_refused(state: &mut MetaState, operation: OperationId, verb: OperationChange) -> MetaRefusal {
    let command = change(state, operation, verb);
    refused(state, &command)
}

fn stands(state: &MetaState, id: OperationId) -> OperationState {
    state.operation(id).expect("an operation").state
}

/// The shard reports these replicas as voters and those as learners.
fn report(state: &mut MetaState, voters: &[(u64, ReplicaId)], learners: &[(u64, ReplicaId)]) {
    let before = state.shard(SHARD).expect("the shard").descriptor.clone();
    let of = |role| {
        move |(node, replica): &(u64, ReplicaId)| ReplicaDescriptor { replica: *replica, node: NodeId(*node), role }
    };
    let replicas = voters.iter().map(of(ReplicaRole::Voter)).chain(learners.iter().map(of(ReplicaRole::Learner)));
    let mut descriptor = ShardDescriptor { replicas: replicas.collect(), ..before };
    descriptor.epoch.config += 1;
    assert_eq!(apply(state, &MetaCommand::ReportShard { descriptor }), MetaReply::Done);
}

/// The state as its records give it, which is the same.
pub(super) fn stored(state: &MetaState) -> MetaState {
    let decoded = MetaState::decode(&state.encode()).expect("a state");
    assert_eq!(decoded, *state);
    let mut writes = flotilla_storage::WriteSet::new();
    store::write_changes(&MetaState::default(), state, &mut writes);
    assert!(!writes.is_empty());
    decoded
}

#[test]
fn a_move_changes_the_intent_and_is_done_when_the_old_replica_is_gone() {
    let mut state = cluster();
    let [one, two, three] = [1, 2, 3].map(|node| held(&state, node));
    let id = begin(&mut state, 3, 4);
    let operation = state.operation(id).expect("an operation").clone();
    assert_eq!((id, operation.reason, operation.started_ms), (FIRST, OperationReason::Operator, 1_000));
    let (from, new) = operation.moved().expect("a move");
    assert_eq!(from, PlanReplica { replica: three, node: NodeId(3) });
    assert_eq!(new.node, NodeId(4));
    let intent = &state.shard(SHARD).expect("the shard").intent;
    assert!(intent.contains(&new) && !intent.contains(&from) && intent.len() == 3);
    state = stored(&state);
    report(&mut state, &[(1, one), (2, two), (3, three)], &[(4, new.replica)]);
    report(&mut state, &[(1, one), (2, two), (4, new.replica)], &[(3, three)]);
    assert_eq!(stands(&state, id), OperationState::Running, "the old replica is there");
    report(&mut state, &[(1, one), (2, two), (4, new.replica)], &[]);
    assert_eq!(stands(&state, id), OperationState::Done);
    assert_eq!(state.running_of(SHARD).count(), 0);
    stored(&state);
}

#[test]
fn an_operator_moves_only_what_is_settled_and_to_where_it_can_be() {
    let mut state = cluster();
    let stale = MetaCommand::MoveReplica {
        shard: SHARD,
        replica: held(&state, 1),
        to: NodeId(4),
        intent_version: 9,
        reason: OperationReason::Operator,
    };
    assert_eq!(refused(&mut state, &stale), MetaRefusal::IntentChanged { found: 1 });
    let to_itself = moves(&state, 1, 2, OperationReason::Operator);
    let two = held(&state, 2);
    assert_eq!(refused(&mut state, &to_itself), MetaRefusal::ReplicaExists(two));
    let nowhere = moves(&state, 1, 9, OperationReason::Operator);
    assert_eq!(refused(&mut state, &nowhere), MetaRefusal::UnknownNode(NodeId(9)));
    begin(&mut state, 1, 4);
    let second = moves(&state, 2, 5, OperationReason::Operator);
    assert_eq!(refused(&mut state, &second), MetaRefusal::ShardChanging(SHARD));
    let repair = moves(&state, 2, 5, OperationReason::NodeDead);
    assert_eq!(apply(&mut state, &repair), MetaReply::Operation(OperationId(2)), "a repair waits for nothing");
}

#[test]
fn a_move_is_paused_resumed_and_cancelled_until_its_replica_votes() {
    let mut state = cluster();
    let [one, two, three] = [1, 2, 3].map(|node| held(&state, node));
    let id = begin(&mut state, 3, 4);
    for (verb, expected) in [
        (OperationChange::Pause, OperationState::Paused),
        (OperationChange::Pause, OperationState::Paused),
        (OperationChange::Resume, OperationState::Running),
    ] {
        assert_eq!(changed(&mut state, id, verb), MetaReply::Done);
        assert_eq!(stands(&state, id), expected);
        assert_eq!(state.paused().count(), usize::from(expected == OperationState::Paused));
    }
    let mut cancelled = state.clone();
    assert_eq!(changed(&mut cancelled, id, OperationChange::Cancel), MetaReply::Done);
    assert_eq!(stands(&cancelled, id), OperationState::Cancelled);
    assert_eq!(held(&cancelled, 3), three, "the shard keeps what it had");
    assert_eq!(changed(&mut cancelled, id, OperationChange::Cancel), MetaReply::Done, "said again");
    for verb in [OperationChange::Pause, OperationChange::Resume] {
        assert_eq!(change_refused(&mut cancelled, id, verb), MetaRefusal::OperationEnded(id));
    }
    let new = held(&state, 4);
    report(&mut state, &[(1, one), (2, two), (4, new)], &[(3, three)]);
    assert_eq!(change_refused(&mut state, id, OperationChange::Cancel), MetaRefusal::OperationTooLate(id));
    let late = MetaCommand::ChangeOperation { operation: id, changes: 0, change: OperationChange::Pause };
    assert_eq!(refused(&mut state, &late), MetaRefusal::OperationChanged(id), "a copy of the first order");
    let unknown = OperationId(7);
    assert_eq!(change_refused(&mut state, unknown, OperationChange::Cancel), MetaRefusal::UnknownOperation(unknown));
}

#[test]
fn a_move_ends_when_another_decision_takes_its_place() {
    let moved = |command: &dyn Fn(&MetaState) -> MetaCommand| {
        let mut state = cluster();
        let id = begin(&mut state, 3, 4);
        let command = command(&state);
        assert!(!matches!(apply(&mut state, &command), MetaReply::Refused(_)), "{command:?}");
        assert_eq!(stored(&state).running_of(SHARD).filter(|operation| operation.id == id).count(), 0);
        stands(&state, id)
    };
    assert_eq!(moved(&|state| moves(state, 4, 5, OperationReason::NodeDead)), OperationState::Superseded);
    let unassign = |state: &MetaState| MetaCommand::UnassignReplica { shard: SHARD, replica: held(state, 4) };
    assert_eq!(moved(&unassign), OperationState::Superseded);
    let drop = |state: &MetaState| MetaCommand::DropCollection { collection: state.collection("c").expect("it").id };
    assert_eq!(moved(&drop), OperationState::Superseded);
}

#[test]
fn a_move_follows_its_replica_when_that_is_built_again() {
    let mut state = cluster();
    let [one, two, three] = [1, 2, 3].map(|node| held(&state, node));
    let id = begin(&mut state, 3, 4);
    let lost = held(&state, 4);
    let replace = MetaCommand::ReplaceReplica { shard: SHARD, replica: lost };
    let MetaReply::Replica(new) = apply(&mut state, &replace) else { panic!("it is replaced") };
    assert_eq!(
        (stands(&state, id), state.operation(id).and_then(|found| found.moved()).map(|(_, to)| to.replica)),
        (OperationState::Running, Some(new))
    );
    report(&mut state, &[(1, one), (2, two), (4, new)], &[]);
    assert_eq!(stands(&state, id), OperationState::Done);
    assert_ne!(three, new);
}

#[test]
fn only_the_latest_operations_that_have_ended_are_kept() {
    let mut state = cluster();
    let first = begin(&mut state, 3, 4);
    for _ in 0..=OPERATIONS_ENDED_MAX {
        let id = state.running_of(SHARD).next().expect("one").id;
        changed(&mut state, id, OperationChange::Cancel);
        begin(&mut state, 3, 4);
    }
    assert_eq!(state.operation(first), None);
    assert_eq!(state.operations().count(), OPERATIONS_ENDED_MAX + 1);
    assert_eq!(state.ended().count(), OPERATIONS_ENDED_MAX);
    assert_eq!(stored(&state).operations().count(), OPERATIONS_ENDED_MAX + 1);
}

#[test]
fn what_placement_replaces_is_a_move_with_its_reason_once_moves_are_recorded() {
    let mut state = cluster();
    let dead = |node| if node == NodeId(3) { Liveness::Dead } else { Liveness::Live };
    let planned = |state: &MetaState| {
        let commands = state.commands_for(&plan(&state.plan_input(dead)));
        commands.into_iter().find(|command| matches!(command, MetaCommand::Batch(parts) if parts.iter().any(of_shard)))
    };
    fn of_shard(command: &MetaCommand) -> bool {
        match command {
            MetaCommand::AssignReplica { shard, .. } | MetaCommand::MoveReplica { shard, .. } => *shard == SHARD,
            _ => false,
        }
    }
    let Some(MetaCommand::Batch(parts)) = planned(&state) else { panic!("a batch") };
    assert!(matches!(parts[..], [MetaCommand::AssignReplica { .. }, MetaCommand::UnassignReplica { .. }]), "{parts:?}");
    state.header.cluster_version = ClusterVersion::OPERATIONS;
    let command = planned(&state).expect("a batch");
    let MetaCommand::Batch(parts) = &command else { panic!("a batch") };
    assert!(matches!(parts[..], [MetaCommand::MoveReplica { reason: OperationReason::NodeDead, .. }]), "{parts:?}");
    assert!(matches!(apply(&mut state, &command), MetaReply::Batch(_)));
    let from: Vec<_> =
        state.running_of(SHARD).filter_map(|operation| operation.moved()).map(|(from, _)| from.node).collect();
    assert_eq!(from, [NodeId(3)]);
}
