//! Replicas here that need damaged objects.
//!
//! Such a replica is not abandoned. Its log is whole: it votes, and stores and applies entries, so that its
//! group loses no quorum, however many of its replicas are damaged at a time. It leads no longer than until
//! another one can, and stays until one without damage has taken its place, which the metadata group orders.

use std::collections::BTreeMap;

use flotilla_storage::DamagedReplica;
use flotilla_types::{ReplicaId, ShardId};

use super::{Core, Effects, Notice};

impl<T> Core<T> {
    /// These are the damaged replicas now.
    pub(super) fn on_damaged(&mut self, damaged: Vec<DamagedReplica>, effects: &mut Effects<T>) {
        let mut now: BTreeMap<ReplicaId, DamagedReplica> =
            damaged.into_iter().map(|damaged| (damaged.replica, damaged)).collect();
        now.retain(|id, _| self.replicas.get(id).is_some_and(|replica| !replica.abandoned));
        self.damage_reported = now.keys().copied().collect();
        let is_halted = |id: &ReplicaId| self.replicas.get(id).is_some_and(|replica| replica.halted);
        let is_healed = |id: &ReplicaId| !now.contains_key(id) && !is_halted(id);
        let healed: Vec<_> = self.damaged.iter().copied().filter(is_healed).collect();
        for id in healed {
            if let Some(shard) = self.replicas.get(&id).map(|replica| replica.shard) {
                self.end_damage(id, shard, effects);
            }
        }
        for (id, DamagedReplica { objects, .. }) in now {
            if let Some(replica) = self.replicas.get(&id)
                && self.damaged.insert(id)
            {
                tracing::error!(replica = %id, shard = %replica.shard, ?objects, "objects of a replica are damaged");
                effects.notices.push(Notice::Damaged { shard: replica.shard, replica: id, objects });
                self.schedule.changed.insert(id);
                self.schedule.checkpointing.remove(&id);
            }
        }
        self.start_due_checkpoints(effects);
    }

    /// A replica can go on only with a snapshot. It counts as damaged until it has installed one, also when its
    /// objects are here again: it has missed entries.
    pub(super) fn on_halted(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.halted = true;
        replica.loading = false;
        replica.installing = false;
        self.step_pending_snapshot(id, effects);
    }

    /// A replica has the records of a snapshot.
    pub(super) fn end_halt(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let shard = replica.shard;
        if std::mem::take(&mut replica.halted) && !self.damage_reported.contains(&id) {
            self.end_damage(id, shard, effects);
        }
    }

    /// A replica is whole again, or gone.
    pub(super) fn end_damage(&mut self, id: ReplicaId, shard: ShardId, effects: &mut Effects<T>) {
        if self.damaged.remove(&id) {
            tracing::info!(replica = %id, %shard, "the damage of a replica is repaired");
            effects.notices.push(Notice::Repaired { shard, replica: id });
            self.schedule.changed.insert(id);
        }
    }
}
