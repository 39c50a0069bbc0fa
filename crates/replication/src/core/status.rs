//! The status of every replica, published by changes: most replicas of a node are at rest.

use std::collections::BTreeSet;

use flotilla_consensus::{Group, Role};
use flotilla_types::ReplicaId;

use super::{Core, ReplicaStatus, replica::Replica};

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

    /// Brings a published list, ordered by replica, up to date.
    pub fn apply(self, published: &mut Vec<ReplicaStatus>) {
        if !self.gone.is_empty() {
            published.retain(|status| !self.gone.contains(&status.replica));
        }
        let mut new = Vec::new();
        for status in self.changed {
            match published.binary_search_by_key(&status.replica, |known| known.replica) {
                Ok(at) => published[at] = status,
                Err(_) => new.push(status),
            }
        }
        if !new.is_empty() {
            published.append(&mut new);
            published.sort_by_key(|status| status.replica);
        }
    }
}

impl<T> Core<T> {
    /// The status of every replica, ordered.
    #[must_use]
    pub fn status(&self) -> Vec<ReplicaStatus> {
        self.replicas.iter().map(|(id, replica)| self.status_of(*id, replica)).collect()
    }

    /// What changed since the last call. `published` is the list as of then; empty before the first call.
    pub fn status_updates(&mut self, published: &[ReplicaStatus]) -> StatusUpdates {
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
            let known = published.binary_search_by_key(&id, |status| status.replica).ok().map(|at| &published[at]);
            let is_known = |known: &ReplicaStatus| {
                known.damaged == self.damaged.contains(&id) && self.has_status(replica, group, known)
            };
            if !known.is_some_and(is_known) {
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
            descriptor: replica.descriptor.clone(),
            group: self.raft.group(id).map(Group::status),
            applied: replica.applied,
            version: replica.version,
            checkpoint: replica.checkpoint,
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
            && replica.descriptor == known.descriptor
    }
}
