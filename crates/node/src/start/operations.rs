//! What changes shards, for operators: the reports of nodes with the reasons that the metadata gives.

use std::{collections::HashMap, time::Instant};

use flotilla_api::{Encoding, OperationInfo, OperationList, OperationProgress, OperationVerb};
use flotilla_control::{OPERATIONS_MAX, Operation, Operations};
use flotilla_gateway::AdminError;
use flotilla_meta::{
    MetaCommand, MetaState, NodeState, OperationChange, OperationRecord, OperationState, OperationWork, ShardRecord,
};
use flotilla_types::{NodeId, OperationId, OperationKind, ReplicaRole, ShardId};

use super::{admin::NodeAdmin, merges, moves, splits};

impl NodeAdmin {
    /// Pauses, resumes or cancels an operation that the metadata records.
    pub(super) async fn change_recorded(
        &self,
        id: OperationId,
        verb: OperationVerb,
        deadline: Instant,
    ) -> Result<OperationInfo, AdminError> {
        let known = self.topology.meta();
        let changes = known.operation(id).ok_or(AdminError::OperationNotFound(id))?.changes;
        let (change, state) = match verb {
            OperationVerb::Pause => (OperationChange::Pause, OperationState::Paused),
            OperationVerb::Resume => (OperationChange::Resume, OperationState::Running),
            OperationVerb::Cancel => (OperationChange::Cancel, OperationState::Cancelled),
        };
        self.propose(MetaCommand::ChangeOperation { operation: id, changes, change }, deadline).await?;
        let is_visible = |meta: &MetaState| {
            meta.operation(id).is_none_or(|operation| {
                // A merge that is cancelled goes on until the shards are as before.
                let is_changed = operation.changes > changes || operation.state == state;
                is_changed || operation.state.has_ended()
            })
        };
        self.wait_until(deadline, is_visible).await;
        self.show_operation(id, deadline).await
    }

    /// An operation that the metadata records, with what the nodes say of it.
    pub(super) async fn show_operation(&self, id: OperationId, deadline: Instant) -> Result<OperationInfo, AdminError> {
        let reported = self.reported_operations(deadline).await.operations;
        let meta = self.topology.meta();
        let operation = meta.operation(id).ok_or(AdminError::OperationNotFound(id))?;
        Ok(recorded(operation, &meta, self.topology.node(), &Parts::of(&reported)))
    }
}

/// An operation that the metadata records, as it is shown.
fn recorded(operation: &OperationRecord, meta: &MetaState, me: NodeId, parts: &Parts<'_>) -> OperationInfo {
    match &operation.work {
        OperationWork::Move { from, to } => {
            moves::describe(operation, (*from, *to), meta, me, parts.of_move(operation))
        }
        OperationWork::Split { at, child } => splits::describe(operation, at, *child, meta, me),
        OperationWork::Merge { right } => merges::describe(operation, *right, meta, me),
    }
}

/// Why an operator's change of a shard has to wait for another one, if it has.
pub(super) fn busy_with(meta: &MetaState, shard: ShardId) -> Option<String> {
    let of_merge = || meta.operation(meta.merge_with(shard)?.1.operation);
    let operation = meta.running_of(shard).next().or_else(of_merge)?;
    let id = operation.id;
    Some(match operation.work {
        OperationWork::Move { .. } => format!("{id} moves a replica of {shard} already; wait for it, or cancel it"),
        OperationWork::Split { .. } => format!("{id} splits {shard} already; wait for it"),
        OperationWork::Merge { .. } => format!("{id} merges {shard} already; wait for it, or cancel it"),
    })
}

/// Joins the reports of nodes, with the moves that they are parts of, the splits and the merges; a node without one is
/// listed as silent.
pub(super) fn list(
    reports: Vec<(NodeId, Option<Operations>)>,
    meta: &MetaState,
    me: NodeId,
    wall_ms: u64,
) -> OperationList {
    let mut list = OperationList::default();
    for (node, report) in reports {
        let Some(report) = report else {
            list.silent.push(node);
            continue;
        };
        list.more = list.more.saturating_add(report.more);
        list.operations.extend(report.operations.iter().map(|operation| describe(operation, node, meta, wall_ms)));
    }
    let parts = Parts::of(&list.operations);
    let mut running = meta.running();
    let shown = running.by_ref().take(OPERATIONS_MAX).map(|operation| recorded(operation, meta, me, &parts));
    let mut shown: Vec<_> = shown.collect();
    list.more = list.more.saturating_add(running.count() as u64);
    list.operations.append(&mut shown);
    list.operations
        .sort_by_key(|operation| (operation.shard, !operation.kind.is_recorded(), operation.kind, operation.replica));
    list
}

/// What nodes report, by the moves that it is a part of.
pub(super) struct Parts<'a>(HashMap<&'a str, Vec<&'a OperationInfo>>);

impl<'a> Parts<'a> {
    pub(super) fn of(reported: &'a [OperationInfo]) -> Self {
        let mut parts: HashMap<_, Vec<_>> = HashMap::new();
        for found in reported {
            if let Some(of) = &found.part_of {
                parts.entry(of.as_str()).or_default().push(found);
            }
        }
        Self(parts)
    }

    /// The parts of a move.
    pub(super) fn of_move(&self, operation: &OperationRecord) -> &[&'a OperationInfo] {
        self.0.get(operation.id.to_string().as_str()).map_or(&[], Vec::as_slice)
    }
}

fn describe(operation: &Operation, reported_by: NodeId, meta: &MetaState, wall_ms: u64) -> OperationInfo {
    OperationInfo {
        id: OperationInfo::id_of(operation.kind, operation.shard, operation.replica),
        kind: operation.kind,
        phase: operation.phase,
        reason: reason(operation, reported_by, meta),
        shard: operation.shard,
        replica: Some(operation.replica),
        node: Some(operation.node),
        from: None,
        child: None,
        right: None,
        at: None,
        encoding: Encoding::default(),
        bucket: None,
        part_of: move_of(operation, meta).map(|of| of.id.to_string()),
        reported_by,
        since_ms: operation.since_ms,
        progress: progress(operation, wall_ms),
        done: false,
        error: None,
    }
}

fn progress(operation: &Operation, wall_ms: u64) -> OperationProgress {
    let fetched = operation.fetched;
    let eta_ms = fetched.filter(|fetched| fetched.objects_fetched > 0).and_then(|fetched| {
        let missing = fetched.objects_total.saturating_sub(fetched.objects);
        wall_ms.saturating_sub(operation.since_ms).checked_mul(missing)?.checked_div(fetched.objects_fetched)
    });
    OperationProgress {
        objects: fetched.map(|fetched| fetched.objects),
        objects_total: fetched.map(|fetched| fetched.objects_total),
        bytes: fetched.map(|fetched| fetched.bytes),
        bytes_total: None,
        eta_ms,
        lag: operation.lag,
    }
}

/// Why an operation is done, as far as the metadata shows it.
fn reason(operation: &Operation, reported_by: NodeId, meta: &MetaState) -> String {
    let Some(record) = meta.shard(operation.shard) else { return "the shard is being dropped".to_owned() };
    let of = move_of(operation, meta).filter(|_| operation.kind != OperationKind::ReceiveSnapshot);
    if let Some((of, (from, _))) = of.and_then(|of| Some((of, of.moved()?))) {
        return moves::reason(of.reason, from.node, meta);
    }
    match operation.kind {
        OperationKind::AddReplica | OperationKind::MoveReplica => added(record, meta),
        // The metadata records these; no node reports one.
        OperationKind::SplitShard => "the shard is to be split".to_owned(),
        OperationKind::MergeShards => "the shards are to be merged".to_owned(),
        OperationKind::RemoveReplica => {
            departure(operation.node, meta).unwrap_or_else(|| "placement moves it to another node".to_owned())
        }
        OperationKind::TransferLeader => {
            departure(reported_by, meta).unwrap_or_else(|| "another node should lead the shard".to_owned())
        }
        OperationKind::ReceiveSnapshot => "the leader's log does not reach back to what the replica has".to_owned(),
    }
}

/// The move that an operation is a part of.
fn move_of<'a>(operation: &Operation, meta: &'a MetaState) -> Option<&'a OperationRecord> {
    let is_part = |of: &&OperationRecord| match (of.moved(), operation.kind) {
        (Some((_, to)), OperationKind::AddReplica | OperationKind::ReceiveSnapshot) => to.replica == operation.replica,
        (Some((from, _)), OperationKind::RemoveReplica) => from.replica == operation.replica,
        (
            Some(_),
            OperationKind::TransferLeader
            | OperationKind::MoveReplica
            | OperationKind::SplitShard
            | OperationKind::MergeShards,
        )
        | (None, _) => false,
    };
    meta.running_of(operation.shard).find(is_part)
}

fn added(record: &ShardRecord, meta: &MetaState) -> String {
    let is_wanted = |replica| record.intent.iter().any(|wanted| wanted.replica == replica);
    let mut unwanted = record.descriptor.replicas.iter().filter(|held| !is_wanted(held.replica));
    if let Some(reason) = unwanted.find_map(|held| departure(held.node, meta)) {
        return reason;
    }
    let voters = record.descriptor.replicas.iter().filter(|held| held.role == ReplicaRole::Voter).count();
    let desired = usize::from(meta.replicas_desired(record));
    if voters < desired {
        format!("the shard has {voters} of {desired} voters")
    } else {
        "placement moves a replica to this node".to_owned()
    }
}

/// How a node goes out of service, if it does.
pub(super) fn departure(node: NodeId, meta: &MetaState) -> Option<String> {
    match meta.node(node).map(|node| node.state) {
        Some(NodeState::Active) => None,
        Some(NodeState::Draining) => Some(format!("{node} drains")),
        Some(NodeState::Decommissioning) => Some(format!("{node} is decommissioned")),
        Some(NodeState::Leaving) => Some(format!("{node} leaves the cluster")),
        Some(NodeState::Lost) => Some(format!("{node} is lost")),
        Some(NodeState::Removed) | None => Some(format!("{node} was removed")),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_control::Fetched;
    use flotilla_types::{OperationPhase, ReplicaId, ShardId};

    use super::*;

    fn operation(kind: OperationKind, node: u64) -> Operation {
        Operation {
            shard: ShardId::META,
            kind,
            phase: OperationPhase::Waiting,
            replica: ReplicaId(1),
            node: NodeId(node),
            since_ms: 1_000,
            lag: Some(3),
            fetched: None,
        }
    }

    #[test]
    fn the_time_left_follows_from_what_was_fetched_and_not_from_what_was_there() {
        let mut snapshot = operation(OperationKind::ReceiveSnapshot, 2);
        let fetched = Fetched { objects: 80, objects_total: 100, objects_fetched: 10, bytes: 7 };
        snapshot.fetched = Some(fetched);
        let shown = progress(&snapshot, 2_000);
        assert_eq!((shown.objects, shown.objects_total, shown.bytes), (Some(80), Some(100), Some(7)));
        assert_eq!(shown.eta_ms, Some(2_000), "10 objects took 1 s, and 20 are missing");
        snapshot.fetched = Some(Fetched { objects_fetched: 0, ..fetched });
        assert_eq!(progress(&snapshot, 2_000).eta_ms, None);
        // What a peer reports may be anything.
        snapshot.fetched = Some(Fetched { objects_total: u64::MAX, ..fetched });
        assert_eq!(progress(&snapshot, u64::MAX).eta_ms, None);
        assert_eq!(progress(&operation(OperationKind::AddReplica, 2), 2_000).lag, Some(3));
    }

    #[test]
    fn reports_are_joined_and_nodes_without_one_are_named() {
        let report = Operations { operations: vec![operation(OperationKind::RemoveReplica, 9)], more: 2 };
        let other = Operations { operations: vec![operation(OperationKind::AddReplica, 2)], more: u64::MAX };
        let reports = vec![(NodeId(1), Some(report)), (NodeId(2), None), (NodeId(3), Some(other))];
        let list = list(reports, &MetaState::default(), NodeId(1), 5_000);
        assert_eq!((list.more, list.silent), (u64::MAX, vec![NodeId(2)]));
        let found: Vec<_> = list.operations.iter().map(|found| (found.id.as_str(), found.reported_by)).collect();
        assert_eq!(found, [("add_replica.s0.r1", NodeId(3)), ("remove_replica.s0.r1", NodeId(1))]);
    }
}
