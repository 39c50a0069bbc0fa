//! Moves of replicas: how an operator's request becomes a command, and how moves are shown.

use std::time::Instant;

use flotilla_api::{Encoding, MoveShard, OperationInfo, OperationProgress};
use flotilla_gateway::{AdminError, StoreError};
use flotilla_meta::{Liveness, MetaCommand, MetaReply, MetaState, OperationReason, OperationRecord, OperationState};
use flotilla_placement::{PlanReplica, brings_closer};
use flotilla_types::{ClusterVersion, NodeId, OperationKind, OperationPhase, ShardId};

use super::{
    admin::NodeAdmin,
    node_change::version_missing,
    operations::{busy_with, departure},
};

impl NodeAdmin {
    /// Begins to move a replica.
    pub(super) async fn begin_move(
        &self,
        shard: ShardId,
        request: MoveShard,
        deadline: Instant,
    ) -> Result<OperationInfo, AdminError> {
        let command = move_command(&self.topology.meta(), shard, request, |node| self.liveness(node))?;
        let MetaReply::Operation(id) = self.propose(command, deadline).await? else {
            return Err(StoreError::OutcomeUnknown { shard: ShardId::META }.into());
        };
        self.wait_until(deadline, |meta| meta.operation(id).is_some()).await;
        self.show_operation(id, deadline).await
    }
}

/// The command that moves a replica, unless something that can be seen here speaks against it.
fn move_command(
    meta: &MetaState,
    shard: ShardId,
    request: MoveShard,
    liveness: impl Fn(NodeId) -> Liveness,
) -> Result<MetaCommand, AdminError> {
    let refused = |reason: String| AdminError::from(StoreError::Refused(reason));
    let MoveShard { from, to } = request;
    let record = meta.shard(shard).ok_or(AdminError::ShardNotFound(shard))?;
    if let Some(missing) = version_missing(meta, ClusterVersion::OPERATIONS) {
        return Err(refused(missing));
    }
    let Some(replica) = record.desired_on(from) else {
        let nodes: Vec<_> = record.intent.iter().map(|held| held.node.to_string()).collect();
        return Err(refused(format!("{from} has no replica of {shard}; these nodes have one: {}", nodes.join(", "))));
    };
    if let Some(reason) = busy_with(meta, shard) {
        return Err(refused(reason));
    }
    meta.node(to).ok_or(AdminError::NodeNotFound(to))?;
    if let Some(held) = record.desired_on(to) {
        return Err(refused(format!("{to} has a replica of {shard} already: {held}")));
    }
    if liveness(to) != Liveness::Live {
        return Err(refused(format!("{to} does not answer; choose a node that does")));
    }
    if brings_closer(&meta.plan_nodes(liveness), &meta.plan_shard(record), replica, to) {
        return Err(refused(format!(
            "the replicas of {shard} would share more of their locality on {to} than on {from}, so that placement would \
             move one away again; choose a node elsewhere"
        )));
    }
    let (intent_version, reason) = (record.intent_version, OperationReason::Operator);
    Ok(MetaCommand::MoveReplica { shard, replica, to, intent_version, reason })
}

/// A move as it is shown; `parts` is what nodes say of it.
pub(super) fn describe(
    operation: &OperationRecord,
    (from, to): (PlanReplica, PlanReplica),
    meta: &MetaState,
    me: NodeId,
    parts: &[&OperationInfo],
) -> OperationInfo {
    let of = |kind| parts.iter().find(|found| found.kind == kind);
    let (added, removed) = (of(OperationKind::AddReplica), of(OperationKind::RemoveReplica));
    let snapshot = of(OperationKind::ReceiveSnapshot);
    let under_way = || added.or(removed).map_or(OperationPhase::Waiting, |found| found.phase);
    let phase = match operation.state {
        OperationState::Running => under_way(),
        OperationState::Paused => OperationPhase::Paused,
        OperationState::Done => OperationPhase::Done,
        OperationState::Cancelled => OperationPhase::Cancelled,
        OperationState::Superseded => OperationPhase::Superseded,
    };
    let progress = snapshot.map_or_else(OperationProgress::default, |snapshot| snapshot.progress);
    let lag = added.and_then(|added| added.progress.lag);
    let error = match operation.state {
        OperationState::Superseded => Some("a later decision has taken its place, or the shard was dropped".to_owned()),
        OperationState::Cancelled => Some("it was cancelled".to_owned()),
        OperationState::Running | OperationState::Paused | OperationState::Done => None,
    };
    OperationInfo {
        id: operation.id.to_string(),
        kind: OperationKind::MoveReplica,
        phase,
        reason: reason(operation.reason, from.node, meta),
        shard: operation.shard,
        replica: Some(to.replica),
        node: Some(to.node),
        from: Some(from.node),
        child: None,
        right: None,
        at: None,
        encoding: Encoding::default(),
        bucket: None,
        part_of: None,
        reported_by: added.or(removed).map_or(me, |found| found.reported_by),
        since_ms: added.filter(|_| phase == under_way()).map_or(operation.since_ms, |found| found.since_ms),
        progress: OperationProgress { lag, ..progress },
        done: operation.state.has_ended(),
        error,
    }
}

/// Why a move away from a node was decided, in words.
pub(super) fn reason(reason: OperationReason, from: NodeId, meta: &MetaState) -> String {
    match reason {
        OperationReason::Operator => "an operator asked for it".to_owned(),
        OperationReason::NodeDead => format!("{from} is dead"),
        OperationReason::NodeLeaving => {
            departure(from, meta).unwrap_or_else(|| format!("{from} was to give up its replicas"))
        }
        OperationReason::NodeRemoved => format!("{from} was removed"),
        OperationReason::Spread => "replicas of the shard shared more of their locality than necessary".to_owned(),
        OperationReason::Balance => format!("{from} held more than its share of the replicas"),
        OperationReason::Size => "the shard had grown".to_owned(),
        OperationReason::Unused => "nobody used the shard".to_owned(),
    }
}
