//! Merges of shards: how an operator's request becomes a command, and how merges are shown.

use std::time::Instant;

use flotilla_api::{Encoding, OperationInfo, OperationProgress};
use flotilla_gateway::{AdminError, StoreError};
use flotilla_meta::{MetaCommand, MetaReply, MetaState, OperationReason, OperationRecord, OperationState, Setting};
use flotilla_types::{ClusterVersion, Epoch, NodeId, OperationKind, OperationPhase, ShardId};

use super::{admin::NodeAdmin, node_change::version_missing, operations::busy_with};

impl NodeAdmin {
    /// Begins to merge a shard's right neighbour into it.
    pub(super) async fn begin_merge(
        &self,
        left: ShardId,
        right: ShardId,
        deadline: Instant,
    ) -> Result<OperationInfo, AdminError> {
        let command = merge_command(&self.topology.meta(), left, right)?;
        let MetaReply::Operation(id) = self.propose(command, deadline).await? else {
            return Err(StoreError::OutcomeUnknown { shard: ShardId::META }.into());
        };
        self.wait_until(deadline, |meta| meta.operation(id).is_some()).await;
        self.show_operation(id, deadline).await
    }
}

/// The command that merges two shards, unless something that can be seen here speaks against it. The metadata group
/// looks at the rest.
fn merge_command(meta: &MetaState, left: ShardId, right: ShardId) -> Result<MetaCommand, AdminError> {
    let refused = |reason: String| AdminError::from(StoreError::Refused(reason));
    if let Some(missing) = version_missing(meta, ClusterVersion::MERGES) {
        return Err(refused(missing));
    }
    if meta.setting(Setting::ShardMerges) == 0 {
        return Err(refused("merges are turned off: `flotilla setting set shard_merges 1` turns them on".to_owned()));
    }
    let of = |shard| -> Result<(ShardId, Epoch), AdminError> {
        let record = meta.shard(shard).ok_or(AdminError::ShardNotFound(shard))?;
        match busy_with(meta, shard) {
            Some(reason) => Err(refused(reason)),
            None => Ok((shard, record.descriptor.epoch)),
        }
    };
    Ok(MetaCommand::MergeShards { left: of(left)?, right: of(right)?, reason: OperationReason::Operator })
}

/// Why shards are merged.
fn reason(reason: OperationReason) -> &'static str {
    if reason == OperationReason::Unused {
        "both are small, and nobody has used them for a while (`shard_merge_after_s`)"
    } else {
        "an operator asked for it"
    }
}

/// A merge as it is shown.
pub(super) fn describe(operation: &OperationRecord, right: ShardId, meta: &MetaState, me: NodeId) -> OperationInfo {
    let planned = || meta.shard(operation.shard).and_then(|record| Some((record, record.merge.as_ref()?)));
    let is_aborted =
        planned().is_some_and(|(record, merge)| merge.is_cancelled || record.descriptor.epoch != merge.epoch);
    let phase = match operation.state {
        OperationState::Running if is_aborted => OperationPhase::Aborting,
        OperationState::Running => OperationPhase::Merging,
        OperationState::Paused => OperationPhase::Paused,
        OperationState::Done => OperationPhase::Done,
        OperationState::Cancelled => OperationPhase::Cancelled,
        OperationState::Superseded => OperationPhase::Superseded,
    };
    let error = (operation.state == OperationState::Superseded).then(|| {
        "the shards could not be merged in time, have changed meanwhile, or were dropped; try again".to_owned()
    });
    OperationInfo {
        id: operation.id.to_string(),
        kind: OperationKind::MergeShards,
        phase,
        reason: reason(operation.reason).to_owned(),
        shard: operation.shard,
        replica: None,
        node: None,
        from: None,
        child: None,
        at: None,
        encoding: Encoding::default(),
        right: Some(right),
        bucket: None,
        part_of: None,
        reported_by: me,
        since_ms: operation.since_ms,
        progress: OperationProgress::default(),
        done: operation.state.has_ended(),
        error,
    }
}
