//! Checks that a transfer sends no object twice: only after a failure, or after a restart of the receiver.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_replication::work::PullRequest;
use flotilla_storage::StateEngine as _;
use flotilla_types::{Holder, ObjectId};

use super::Node;

/// What a node has requested in this life, for each holder that receives objects.
#[derive(Debug, Default)]
pub(super) struct Fetches(BTreeMap<Holder, Fetched>);

#[derive(Debug, Default)]
struct Fetched {
    in_flight: BTreeSet<ObjectId>,
    stored: BTreeSet<ObjectId>,
}

impl Fetches {
    /// A request leaves.
    pub(super) fn requested(&mut self, node: &Node, holder: Holder, request: &PullRequest) {
        for object in request.fetches() {
            let is_here = !node.disk.missing(&[*object]).contains(object);
            if !is_here {
                // It was damaged or given back, and every pull that noticed may ask for it.
                self.0.values_mut().for_each(|fetched| _ = fetched.stored.remove(object));
            }
            let fetched = self.0.entry(holder).or_default();
            assert!(fetched.in_flight.insert(*object), "{} requests {object} for {holder:?} twice at a time", node.id);
            let is_twice = is_here && fetched.stored.contains(object);
            assert!(!is_twice, "{} requests {object} for {holder:?} again, which it has stored", node.id);
        }
    }

    /// A request was answered with so many of its objects, or failed.
    pub(super) fn answered(&mut self, holder: Holder, request: &PullRequest, stored: usize) {
        let fetched = self.0.entry(holder).or_default();
        for (at, object) in request.fetches().iter().enumerate() {
            fetched.in_flight.remove(object);
            if at < stored {
                fetched.stored.insert(*object);
            }
        }
    }

    /// Another pull replaces the one of this holder: what was in flight is lost.
    pub(super) fn interrupted(&mut self, node: &Node, holder: Holder) {
        if let Some(fetched) = self.0.get_mut(&holder) {
            fetched.in_flight.clear();
            // What is gone may be fetched again, also when another pull brings it meanwhile.
            fetched.stored.retain(|object| !node.disk.missing(&[*object]).contains(object));
        }
    }
}
