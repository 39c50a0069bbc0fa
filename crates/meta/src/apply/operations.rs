//! Rules for operations.
//!
//! Invariants: a move that has not ended names, as its `to`, a replica of its shard's intent; a split or a merge that has
//! not ended is planned in its shard's record. An operation ends in the entry that makes it done, cancelled or superseded,
//! so that none outlives its purpose.

use std::sync::Arc;

use flotilla_placement::PlanReplica;
use flotilla_types::{NodeId, OperationId, ReplicaId, ReplicaRole, ShardId};

use super::{ApplyResult, OPERATIONS_ENDED_MAX};
use crate::{
    MetaRefusal, MetaReply, MetaState, OperationChange, OperationReason, OperationRecord, OperationState,
    OperationWork, ShardRecord,
};

impl MetaState {
    pub(super) fn move_replica(
        &mut self,
        now_ms: u64,
        shard: ShardId,
        replica: ReplicaId,
        to: NodeId,
        (intent_version, reason): (u64, OperationReason),
    ) -> ApplyResult {
        let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
        if record.intent_version != intent_version {
            return Err(MetaRefusal::IntentChanged { found: record.intent_version });
        }
        let from = record.intent.iter().find(|held| held.replica == replica).copied();
        let from = from.ok_or(MetaRefusal::UnknownReplica(replica))?;
        if let Some(held) = record.desired_on(to) {
            return Err(MetaRefusal::ReplicaExists(held));
        }
        let is_repair = match reason {
            OperationReason::NodeDead | OperationReason::NodeLeaving | OperationReason::NodeRemoved => true,
            OperationReason::Operator
            | OperationReason::Spread
            | OperationReason::Balance
            | OperationReason::Size
            | OperationReason::Unused => false,
        };
        let is_settled = reason != OperationReason::Operator || is_settled(record);
        let is_planned = record.split.is_some() || self.merge_with(shard).is_some();
        if !is_settled || is_planned && !is_repair {
            return Err(MetaRefusal::ShardChanging(shard));
        }
        self.check_active(to)?;
        let to = PlanReplica { replica: self.allocate_replica(), node: to };
        let id = self.begin_operation(now_ms, shard, OperationWork::Move { from, to }, reason);
        self.change_intent(now_ms, shard, |intent| {
            intent.retain(|held| held.replica != replica);
            intent.push(to);
        });
        Ok(MetaReply::Operation(id))
    }

    pub(super) fn change_operation(
        &mut self,
        now_ms: u64,
        id: OperationId,
        changes: u64,
        change: OperationChange,
    ) -> ApplyResult {
        let operation = self.operation(id).ok_or(MetaRefusal::UnknownOperation(id))?;
        let (state, shard, moved) = (operation.state, operation.shard, operation.moved());
        let is_merge = matches!(operation.work, OperationWork::Merge { .. });
        let next = match change {
            OperationChange::Pause => OperationState::Paused,
            OperationChange::Resume => OperationState::Running,
            OperationChange::Cancel => OperationState::Cancelled,
        };
        if state == next {
            return Ok(MetaReply::Done);
        }
        if state.has_ended() {
            return Err(MetaRefusal::OperationEnded(id));
        }
        if operation.changes != changes {
            return Err(MetaRefusal::OperationChanged(id));
        }
        if is_merge {
            return self.change_merge(id, shard, change);
        }
        let cancelled = match (change, moved) {
            (OperationChange::Pause | OperationChange::Resume, _) => None,
            (OperationChange::Cancel, None) => return Err(MetaRefusal::OperationTooLate(id)),
            (OperationChange::Cancel, Some(moved)) => Some(moved),
        };
        if let Some((from, to)) = cancelled {
            let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
            if votes(record, to.replica) || record.descriptor.node_of(from.replica).is_none() {
                return Err(MetaRefusal::OperationTooLate(id));
            }
        }
        if let Some(operation) = self.operations.get_mut(&id) {
            Arc::make_mut(operation).changes += 1;
        }
        self.set_operation_state(id, next, now_ms);
        if let Some((from, to)) = cancelled {
            self.change_intent(now_ms, shard, |intent| {
                intent.retain(|held| held.replica != to.replica);
                intent.push(from);
            });
        }
        Ok(MetaReply::Done)
    }

    /// A merge must not pause: nobody serves the keys of a shard that is frozen. One that is taken back ends once the
    /// shards' logs cannot bring it about any more.
    fn change_merge(&mut self, id: OperationId, left: ShardId, change: OperationChange) -> ApplyResult {
        if change != OperationChange::Cancel {
            return Err(MetaRefusal::OperationNotPaused(id));
        }
        let record = self.shard(left).ok_or(MetaRefusal::UnknownShard(left))?;
        let planned = record.merge.as_ref().filter(|merge| merge.epoch == record.descriptor.epoch);
        planned.ok_or(MetaRefusal::OperationTooLate(id))?;
        if let Some(operation) = self.operations.get_mut(&id) {
            Arc::make_mut(operation).changes += 1;
        }
        self.cancel_merge(left);
        Ok(MetaReply::Done)
    }

    /// Ends the operations of a shard that its metadata shows to be done or superseded.
    pub(super) fn end_operations_of(&mut self, shard: ShardId, now_ms: u64) {
        let running: Vec<_> = self.running_of(shard).map(|operation| (operation.id, operation.work.clone())).collect();
        for (id, work) in running {
            let state = match (self.shard(shard), work) {
                (None, _) => OperationState::Superseded,
                (Some(record), OperationWork::Move { to, .. }) if !record.intent.contains(&to) => {
                    OperationState::Superseded
                }
                (Some(record), OperationWork::Move { from, to })
                    if votes(record, to.replica) && record.descriptor.node_of(from.replica).is_none() =>
                {
                    OperationState::Done
                }
                (Some(record), OperationWork::Split { .. }) if record.split.is_none() => OperationState::Done,
                (Some(_), _) => continue,
            };
            self.set_operation_state(id, state, now_ms);
        }
    }

    /// Ends the operations of shards that do not exist any more.
    pub(super) fn end_operations_of_dropped(&mut self, now_ms: u64) {
        let dropped: Vec<_> = self
            .running_by_shard
            .keys()
            .map(|(shard, _)| *shard)
            .filter(|shard| self.shard(*shard).is_none())
            .collect();
        dropped.into_iter().for_each(|shard| self.end_operations_of(shard, now_ms));
    }

    /// A replica of an intent has another id: it is built again on the same node.
    pub(super) fn follow_replacement(&mut self, shard: ShardId, replica: ReplicaId, new: ReplicaId) {
        let follows = |operation: &&OperationRecord| operation.moved().is_some_and(|(_, to)| to.replica == replica);
        let followed: Vec<_> = self.running_of(shard).filter(follows).map(|found| found.id).collect();
        for id in followed {
            if let Some(operation) = self.operations.get_mut(&id)
                && let OperationWork::Move { to, .. } = &mut Arc::make_mut(operation).work
            {
                to.replica = new;
            }
        }
    }

    /// Allocates and records an operation that begins now.
    pub(super) fn begin_operation(
        &mut self,
        now_ms: u64,
        shard: ShardId,
        work: OperationWork,
        reason: OperationReason,
    ) -> OperationId {
        let id = self.header.next_operation;
        self.header.next_operation = id.next();
        let state = OperationState::Running;
        let (changes, started_ms, since_ms) = (0, now_ms, now_ms);
        self.record_operation(OperationRecord { id, shard, work, reason, state, changes, started_ms, since_ms });
        id
    }

    /// Adds an operation, as decided or as stored.
    pub(crate) fn record_operation(&mut self, operation: OperationRecord) {
        if operation.state.has_ended() {
            self.ended.insert(operation.id, ());
        } else {
            self.running_by_shard.insert((operation.shard, operation.id), ());
        }
        self.operations.insert(operation.id, Arc::new(operation));
    }

    pub(super) fn set_operation_state(&mut self, id: OperationId, state: OperationState, now_ms: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let operation = Arc::make_mut(operation);
        (operation.state, operation.since_ms) = (state, now_ms);
        if !state.has_ended() {
            return;
        }
        self.running_by_shard.remove(&(operation.shard, id));
        self.ended.insert(id, ());
        while self.ended.len() > OPERATIONS_ENDED_MAX {
            let Some(oldest) = self.ended.keys().next().copied() else { break };
            self.ended.remove(&oldest);
            self.operations.remove(&oldest);
        }
    }
}

/// Whether the shard has exactly the replicas that it should have, all of them voters.
pub(super) fn is_settled(record: &ShardRecord) -> bool {
    record.intent.len() == record.descriptor.replicas.len()
        && record.intent.iter().all(|wanted| votes(record, wanted.replica))
}

fn votes(record: &ShardRecord, replica: ReplicaId) -> bool {
    record.descriptor.replicas.iter().any(|held| held.replica == replica && held.role == ReplicaRole::Voter)
}
