//! Checks that a transfer sends no object twice: only after a failure, or after a restart of the receiver.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_replication::work::PullRequest;
use flotilla_storage::StateEngine as _;
use flotilla_types::{ObjectId, ReplicaId};

use super::Node;

/// What a node has requested in this life, for each replica that receives a snapshot.
#[derive(Debug, Default)]
pub(super) struct Fetches(BTreeMap<ReplicaId, Fetched>);

#[derive(Debug, Default)]
struct Fetched {
    in_flight: BTreeSet<ObjectId>,
    stored: BTreeSet<ObjectId>,
}

impl Fetches {
    /// A request leaves.
    pub(super) fn requested(&mut self, node: &Node, replica: ReplicaId, request: &PullRequest) {
        let fetched = self.0.entry(replica).or_default();
        for object in request.fetches() {
            assert!(fetched.in_flight.insert(*object), "{} requests {object} for {replica} twice at a time", node.id);
            let is_here = !node.disk.missing(&[*object]).contains(object);
            let is_twice = is_here && fetched.stored.contains(object);
            assert!(!is_twice, "{} requests {object} for {replica} again, which it has stored", node.id);
        }
    }

    /// A request was answered with so many of its objects, or failed.
    pub(super) fn answered(&mut self, replica: ReplicaId, request: &PullRequest, stored: usize) {
        let fetched = self.0.entry(replica).or_default();
        for (at, object) in request.fetches().iter().enumerate() {
            fetched.in_flight.remove(object);
            if at < stored {
                fetched.stored.insert(*object);
            }
        }
    }

    /// Another pull replaces the one of this replica: what was in flight is lost.
    pub(super) fn interrupted(&mut self, replica: ReplicaId) {
        if let Some(fetched) = self.0.get_mut(&replica) {
            fetched.in_flight.clear();
        }
    }
}
