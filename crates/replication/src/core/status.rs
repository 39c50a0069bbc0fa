//! The status of every replica, published by changes: most replicas of a node are at rest.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_consensus::{Group, Role};
use flotilla_persistent::Map;
use flotilla_types::{ReplicaId, ShardId};

use super::{Core, ReplicaStatus, replica::Replica};

/// The status of every replica of a node. A copy costs two pointers, and a reader may keep it: copies share what
/// they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replicas {
    replicas: Map<ReplicaId, Arc<ReplicaStatus>>,
    by_shard: Map<(ShardId, ReplicaId), ()>,
}

impl Replicas {
    /// Every replica, by id.
    pub fn iter(&self) -> impl Iterator<Item = &ReplicaStatus> {
        self.replicas.values().map(Arc::as_ref)
    }

    /// A replica.
    #[must_use]
    pub fn get(&self, replica: ReplicaId) -> Option<&ReplicaStatus> {
        self.replicas.get(&replica).map(Arc::as_ref)
    }

    /// The replicas of a shard: several if the node replaces one.
    pub fn of_shard(&self, shard: ShardId) -> impl Iterator<Item = &ReplicaStatus> {
        let from = self.by_shard.iter_from(move |(known, _)| *known < shard);
        from.take_while(move |((known, _), ())| *known == shard).filter_map(|((_, replica), ())| self.get(*replica))
    }

    /// What differs from another version: each replica as it was, and as it is. Costs what changed.
    pub fn changes<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (Option<&'a ReplicaStatus>, Option<&'a ReplicaStatus>)> {
        let changes = Map::changes(&before.replicas, &self.replicas);
        changes.map(|change| (change.before.map(Arc::as_ref), change.after.map(Arc::as_ref)))
    }

    /// Sets the status of a replica.
    pub fn set(&mut self, status: ReplicaStatus) {
        let (shard, replica) = (status.shard, status.replica);
        if self.replicas.insert(replica, Arc::new(status)).is_none() {
            self.by_shard.insert((shard, replica), ());
        }
    }

    fn remove(&mut self, replica: ReplicaId) {
        if let Some(status) = self.replicas.remove(&replica) {
            self.by_shard.remove(&(status.shard, replica));
        }
    }
}

impl FromIterator<ReplicaStatus> for Replicas {
    fn from_iter<I: IntoIterator<Item = ReplicaStatus>>(statuses: I) -> Self {
        let mut replicas = Self::default();
        statuses.into_iter().for_each(|status| replicas.set(status));
        replicas
    }
}

/// What changed in the status of replicas since it was last published.
#[derive(Debug, Default)]
pub struct StatusUpdates {
    /// Replicas that are new or have changed, ordered.
    changed: Vec<ReplicaStatus>,
    /// Replicas that are gone.
    gone: BTreeSet<ReplicaId>,
}

impl StatusUpdates {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }

    /// Brings what was published up to date. Costs what changed, also while readers hold the last version.
    pub fn apply(self, published: &mut Replicas) {
        self.gone.into_iter().for_each(|replica| published.remove(replica));
        self.changed.into_iter().for_each(|status| published.set(status));
    }
}

impl<T> Core<T> {
    /// The status of every replica, ordered.
    #[must_use]
    pub fn status(&self) -> Vec<ReplicaStatus> {
        self.replicas.iter().map(|(id, replica)| self.status_of(*id, replica)).collect()
    }

    /// What changed since the last call. `published` is what was published then; nothing before the first call.
    pub fn status_updates(&mut self, published: &Replicas) -> StatusUpdates {
        let mut candidates = self.raft.take_drained();
        candidates.append(&mut self.schedule.changed);
        self.schedule.visits += candidates.len() as u64;
        let mut updates = StatusUpdates::default();
        for id in candidates {
            let Some(replica) = self.replicas.get(&id) else {
                updates.gone.insert(id);
                self.schedule.transferable.remove(&id);
                continue;
            };
            let group = self.raft.group(id);
            if group.is_some_and(|group| group.role().0 == Role::Leader && group.conf().voters.len() > 1) {
                self.schedule.transferable.insert(id);
            } else {
                self.schedule.transferable.remove(&id);
            }
            let is_known = |known: &ReplicaStatus| {
                known.damaged == self.damaged.contains(&id) && self.has_status(replica, group, known)
            };
            if !published.get(id).is_some_and(is_known) {
                updates.changed.push(self.status_of(id, replica));
            }
        }
        updates
    }

    /// Shards with several voters that this node led when [`status_updates`](Self::status_updates) was last
    /// called.
    #[must_use]
    pub fn transferable_leaderships(&self) -> usize {
        self.schedule.transferable.len()
    }

    /// Replicas that ticks and published updates have visited since the start: it grows with what happens,
    /// not with the number of replicas.
    #[must_use]
    pub fn visits(&self) -> u64 {
        self.schedule.visits + self.raft.tick_visits()
    }

    fn status_of(&self, id: ReplicaId, replica: &Replica<T>) -> ReplicaStatus {
        ReplicaStatus {
            shard: replica.shard,
            replica: id,
            descriptor: (*replica.descriptor).clone(),
            group: self.raft.group(id).map(Group::status),
            applied: replica.applied,
            version: replica.version,
            checkpoint: replica.checkpoint,
            frozen: replica.frozen.as_ref().map(|frozen| frozen.position.descriptor.epoch),
            usage: replica.usage,
            damaged: self.damaged.contains(&id),
        }
    }

    /// Whether [`status_of`](Self::status_of) would return this, apart from damage.
    fn has_status(&self, replica: &Replica<T>, group: Option<&Group>, known: &ReplicaStatus) -> bool {
        let same_group = match (group, &known.group) {
            (Some(group), Some(known)) => group.has_status(known),
            (None, None) => true,
            _ => false,
        };
        same_group
            && (replica.applied, replica.checkpoint, replica.usage) == (known.applied, known.checkpoint, known.usage)
            && replica.version == known.version
            && *replica.descriptor == known.descriptor
    }
}
