//! What a reconciler has seen already, so that a pass costs what has changed since the last one.
//!
//! Invariant: a shard that differs in any way from the last look is named once. What waits for something else,
//! such as time or another node, its reconciler must look at again by itself.

use std::collections::BTreeSet;

use flotilla_meta::MetaState;
use flotilla_replication::{ReplicaStatus, Replicas};
use flotilla_types::ShardId;

use super::View;

/// The metadata and the replicas of the last look; nothing before the first one. Both share what has not
/// changed since.
#[derive(Debug, Default)]
pub(super) struct LastLook {
    meta: MetaState,
    replicas: Replicas,
}

impl LastLook {
    /// The shards that the metadata changed, and those of whose replicas here one has changed so that it
    /// `matters`. It gets a replica as it was and as it is.
    pub(super) fn changes(
        &mut self,
        view: &View<'_>,
        mut matters: impl FnMut(Option<&ReplicaStatus>, Option<&ReplicaStatus>) -> bool,
    ) -> BTreeSet<ShardId> {
        let mut shards: BTreeSet<_> = view.meta.shard_changes(&self.meta).map(|(shard, ..)| shard).collect();
        shards.extend(view.meta.unborn_changes(&self.meta));
        let changed = view.replicas.changes(&self.replicas).filter(|(before, after)| matters(*before, *after));
        shards.extend(changed.filter_map(|(before, after)| Some(after.or(before)?.shard)));
        self.meta = view.meta.clone();
        self.replicas = view.replicas.clone();
        shards
    }
}
