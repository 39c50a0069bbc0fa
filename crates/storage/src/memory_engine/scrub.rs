//! Objects that rot, and the scrub that finds them.
//!
//! As in a real store, nobody knows of the damage before something reads the object, which counts as missing
//! from then on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use super::{MemoryEngine, store::Store};
use crate::{DAMAGED_NAMED_MAX, DamagedReplica, EngineError, Scrubbed};

/// What an object's bytes are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Intact,
    /// Its bytes have changed, and nobody has read them since.
    Rotten,
    /// It was found to be rotten, and is missing.
    Missing,
}

/// A pass over the objects that there were when it began, in the order of their ids.
#[derive(Debug)]
pub(super) struct Pass {
    objects: VecDeque<ObjectId>,
    visited_bytes: u64,
    total_bytes: u64,
}

impl MemoryEngine {
    /// Changes the bytes of an object, as a bad disk does.
    pub fn rot(&self, object: ObjectId) {
        if let Some(object) = self.store.lock().objects.get_mut(&object)
            && object.health == Health::Intact
        {
            object.health = Health::Rotten;
        }
    }

    /// The objects that a checkpoint needs, those that its tables consist of included.
    #[must_use]
    pub fn needed(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        self.store.lock().reachable(checkpoint.objects()).into_iter().collect()
    }

    /// The objects that a checkpoint needs and that are not what they were, whether or not somebody has noticed:
    /// for checks from outside, that find nothing on the way.
    #[must_use]
    pub fn rotten_in(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        let store = self.store.lock();
        let is_rotten = |id: &ObjectId| store.objects.get(id).is_some_and(|object| object.health != Health::Intact);
        store.reachable(checkpoint.objects()).into_iter().filter(is_rotten).collect()
    }

    /// Those of these objects, and of all below them, that are not here or would not survive a crash: for checks from
    /// outside. Damage that nobody has noticed does not count.
    #[must_use]
    pub fn not_durable(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let store = self.store.lock();
        let is_durable = |id: &ObjectId| store.has(*id) && store.objects.get(id).is_some_and(|object| object.synced);
        store.reachable(objects.iter().copied()).into_iter().filter(|id| !is_durable(id)).collect()
    }

    /// All objects that are here.
    #[must_use]
    pub fn all_objects(&self) -> Vec<ObjectId> {
        let mut all: Vec<_> = self.store.lock().objects.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// The objects that a checkpoint needs and that were never stored here, or are deleted.
    #[must_use]
    pub fn absent(&self, checkpoint: &Checkpoint) -> Vec<ObjectId> {
        let store = self.store.lock();
        store.reachable(checkpoint.objects()).into_iter().filter(|object| !store.objects.contains_key(object)).collect()
    }
}

impl Store {
    pub(super) fn has(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|object| object.health != Health::Missing)
    }

    pub(super) fn get(&mut self, id: ObjectId) -> Result<Bytes, EngineError> {
        let object = self.objects.get_mut(&id).ok_or(EngineError::Object(id))?;
        if object.health == Health::Rotten {
            object.health = Health::Missing;
        }
        object.verified |= object.health == Health::Intact;
        if object.health == Health::Missing { Err(EngineError::Object(id)) } else { Ok(object.bytes.clone()) }
    }

    pub(super) fn scrub(&mut self, bytes_max: u64) -> Scrubbed {
        let mut pass = self.pass.take().unwrap_or_else(|| {
            let mut objects: Vec<_> = self.objects.keys().copied().filter(|object| self.has(*object)).collect();
            objects.sort_unstable();
            let total_bytes = objects.iter().map(|id| self.own_bytes(*id)).sum();
            Pass { objects: objects.into(), visited_bytes: 0, total_bytes }
        });
        let mut done = Scrubbed::default();
        while done.bytes < bytes_max.max(1) {
            let Some(id) = pass.objects.pop_front() else {
                done.ended = true;
                break;
            };
            if !self.has(id) {
                continue;
            }
            let bytes = self.own_bytes(id);
            done.objects += 1;
            done.bytes += bytes.max(1);
            pass.visited_bytes += bytes;
            if self.get(id).is_err() {
                done.damaged.push(id);
            }
        }
        done.progress_bytes = (if done.ended { pass.total_bytes } else { pass.visited_bytes }, pass.total_bytes);
        self.pass = Some(pass).filter(|_| !done.ended);
        done
    }

    fn own_bytes(&self, id: ObjectId) -> u64 {
        self.objects.get(&id).map_or(0, |object| object.bytes.len() as u64)
    }

    pub(super) fn damaged(&self) -> Vec<DamagedReplica> {
        let is_missing = |object: &ObjectId| {
            let found = self.objects.get(object).is_some_and(|object| object.health == Health::Missing);
            found || self.lost.contains(object)
        };
        if self.lost.is_empty() && self.objects.values().all(|object| object.health != Health::Missing) {
            return Vec::new();
        }
        let mut damaged: BTreeMap<ReplicaId, BTreeSet<ObjectId>> = BTreeMap::new();
        for (holder, held) in &self.held {
            if let Some(replica) = holder.damages() {
                let needed = self.reachable(held.iter().copied());
                damaged.entry(replica).or_default().extend(needed.into_iter().filter(is_missing));
            }
        }
        damaged.retain(|_, objects| !objects.is_empty());
        let of = |(replica, objects): (_, BTreeSet<_>)| DamagedReplica {
            replica,
            objects: objects.into_iter().take(DAMAGED_NAMED_MAX).collect(),
        };
        damaged.into_iter().map(of).collect()
    }
}
