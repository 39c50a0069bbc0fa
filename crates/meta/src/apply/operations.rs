//! Rules for operations.
//!
//! Invariants: an operation that has not ended names, as its `to`, a replica of its shard's intent; it ends in the
//! entry that makes it done, cancelled or superseded, so that no operation outlives its purpose.

use std::sync::Arc;

use flotilla_placement::PlanReplica;
use flotilla_types::{NodeId, OperationId, ReplicaId, ReplicaRole, ShardId};

use super::{ApplyResult, OPERATIONS_ENDED_MAX};
use crate::{
    MetaRefusal, MetaReply, MetaState, OperationChange, OperationReason, OperationRecord, OperationState, ShardRecord,
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
        if reason == OperationReason::Operator && !is_settled(record) {
            return Err(MetaRefusal::ShardChanging(shard));
        }
        self.check_active(to)?;
        let to = PlanReplica { replica: self.allocate_replica(), node: to };
        let id = self.header.next_operation;
        self.header.next_operation = id.next();
        let state = OperationState::Running;
        self.record_operation(OperationRecord {
            id,
            shard,
            from,
            to,
            reason,
            state,
            changes: 0,
            started_ms: now_ms,
            since_ms: now_ms,
        });
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
        let (state, shard, from, to) = (operation.state, operation.shard, operation.from, operation.to);
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
        if change == OperationChange::Cancel {
            let record = self.shard(shard).ok_or(MetaRefusal::UnknownShard(shard))?;
            if votes(record, to.replica) || record.descriptor.node_of(from.replica).is_none() {
                return Err(MetaRefusal::OperationTooLate(id));
            }
        }
        if let Some(operation) = self.operations.get_mut(&id) {
            Arc::make_mut(operation).changes += 1;
        }
        self.set_operation_state(id, next, now_ms);
        if change == OperationChange::Cancel {
            self.change_intent(now_ms, shard, |intent| {
                intent.retain(|held| held.replica != to.replica);
                intent.push(from);
            });
        }
        Ok(MetaReply::Done)
    }

    /// Ends the operations of a shard that its metadata shows to be done or superseded.
    pub(super) fn end_operations_of(&mut self, shard: ShardId, now_ms: u64) {
        let running: Vec<_> =
            self.running_of(shard).map(|operation| (operation.id, operation.to, operation.from)).collect();
        for (id, to, from) in running {
            let state = match self.shard(shard) {
                None => OperationState::Superseded,
                Some(record) if !record.intent.contains(&to) => OperationState::Superseded,
                Some(record) if votes(record, to.replica) && record.descriptor.node_of(from.replica).is_none() => {
                    OperationState::Done
                }
                Some(_) => continue,
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
        let followed: Vec<_> =
            self.running_of(shard).filter(|operation| operation.to.replica == replica).map(|found| found.id).collect();
        for id in followed {
            if let Some(operation) = self.operations.get_mut(&id) {
                Arc::make_mut(operation).to.replica = new;
            }
        }
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

    fn set_operation_state(&mut self, id: OperationId, state: OperationState, now_ms: u64) {
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
fn is_settled(record: &ShardRecord) -> bool {
    record.intent.len() == record.descriptor.replicas.len()
        && record.intent.iter().all(|wanted| votes(record, wanted.replica))
}

fn votes(record: &ShardRecord, replica: ReplicaId) -> bool {
    record.descriptor.replicas.iter().any(|held| held.replica == replica && held.role == ReplicaRole::Voter)
}
