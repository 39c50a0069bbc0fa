//! Which replicas this node should create, destroy, or ask to have replaced.

use std::collections::BTreeSet;

use flotilla_meta::{MetaState, ReplicaStatus};
use flotilla_types::{NodeId, ReplicaId, ShardDescriptor, ShardId};

/// What this node should do about its replicas.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// To be created, with the descriptor to start from and whether it is a founder.
    pub create: Vec<(ReplicaId, ShardDescriptor, bool)>,
    /// To be destroyed.
    pub destroy: Vec<ReplicaId>,
    /// Still wanted here, and not to be used any more: the metadata group must want new ones.
    pub replace: Vec<(ShardId, ReplicaId)>,
}

/// Compares what is wanted on `node` with what is `here`. `lost` replicas may not be used (or created) any more.
#[must_use]
pub fn lifecycle(
    meta: &MetaState,
    node: NodeId,
    here: &BTreeSet<(ShardId, ReplicaId)>,
    lost: &BTreeSet<ReplicaId>,
) -> Lifecycle {
    let mut todo = Lifecycle::default();
    for (record, replica) in meta.wanted_on(node) {
        if lost.contains(&replica) {
            todo.replace.push((record.id, replica));
        } else if !here.contains(&(record.id, replica)) {
            let founding = record.is_initial(replica);
            let descriptor = if founding { &record.initial } else { &record.descriptor };
            todo.create.push((replica, descriptor.clone(), founding));
        }
    }
    let unwanted =
        |(shard, replica): &&(ShardId, ReplicaId)| meta.replica_status(*shard, *replica) == ReplicaStatus::Unwanted;
    todo.destroy = here.iter().filter(unwanted).map(|(_, replica)| *replica).collect();
    todo
}
