//! What a node knows of the cluster at the moment: metadata, shard map, leader hints, liveness.
//!
//! Invariants: metadata only moves forward, and the map is always the one of the metadata. The metadata group's log is
//! authoritative; hints are only hints, and so is liveness.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_membership::NodeState;
use flotilla_meta::MetaState;
use flotilla_placement::{LeaderHints, ShardMap};
use flotilla_types::{NodeId, ShardId, Term};

/// Which nodes are heard of.
#[derive(Debug, Clone)]
pub struct Members {
    me: NodeId,
    /// State and when it began, monotonic milliseconds.
    states: BTreeMap<NodeId, (NodeState, u64)>,
}

impl Members {
    /// Whether a node is heard of, and since when (monotonic milliseconds). This node always is.
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> (NodeState, u64) {
        if node == self.me {
            return (NodeState::Alive, 0);
        }
        self.states.get(&node).copied().unwrap_or((NodeState::Unknown, 0))
    }
}

/// What one node knows of the cluster. [`crate::Topology`] shares it between threads.
#[derive(Debug, Clone)]
pub struct Known {
    meta: Arc<MetaState>,
    map: Arc<ShardMap>,
    hints: LeaderHints,
    /// Shared, so that a view of many members costs a pointer.
    members: Arc<Members>,
}

impl Known {
    /// Starts from metadata that was kept, or from nothing.
    #[must_use]
    pub fn new(me: NodeId, meta: MetaState) -> Self {
        Self {
            map: Arc::new(meta.shard_map()),
            meta: Arc::new(meta),
            hints: LeaderHints::default(),
            members: Arc::new(Members { me, states: BTreeMap::new() }),
        }
    }

    /// The node that knows it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.members.me
    }

    /// The newest metadata.
    #[must_use]
    pub fn meta(&self) -> &Arc<MetaState> {
        &self.meta
    }

    /// The newest shard map.
    #[must_use]
    pub fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// Which nodes are heard of.
    #[must_use]
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// The node that leads a shard, as far as is known.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.hints.leader(shard)
    }

    /// Whether a shard is known to have another leader than `node`.
    #[must_use]
    pub fn is_led_by_another(&self, shard: ShardId, node: NodeId) -> bool {
        self.leader(shard).is_some_and(|leader| leader != node)
    }

    /// Whether so new a metadata would be taken.
    #[must_use]
    pub fn wants(&self, meta: &MetaState) -> bool {
        meta.version() > self.meta.version()
    }

    /// Takes metadata that may be newer. Returns whether it was.
    pub fn offer(&mut self, meta: &Arc<MetaState>) -> bool {
        self.wants(meta) && self.take(meta, meta.shard_map())
    }

    /// The same, with the map of the metadata built beforehand.
    pub(crate) fn take(&mut self, meta: &Arc<MetaState>, map: ShardMap) -> bool {
        let newer = self.wants(meta);
        if newer {
            self.meta = meta.clone();
            self.map = Arc::new(map);
            self.hints.retain_known(&self.map);
        }
        newer
    }

    /// Whether [`Known::observe_leader`] would change anything.
    #[must_use]
    pub fn is_new_leader(&self, shard: ShardId, term: Term, node: NodeId) -> bool {
        self.hints.get(shard) != Some((term, node))
    }

    /// Somebody leads a shard since this term. Returns whether that is news.
    pub fn observe_leader(&mut self, shard: ShardId, term: Term, node: NodeId) -> bool {
        self.hints.observe(shard, term, node)
    }

    /// A node is gone or silent: nobody should be sent to it as a leader.
    pub fn clear_leader(&mut self, node: NodeId) {
        self.hints.clear_node(node);
    }

    /// Membership sees a node in another state. Returns whether that is news: what others still say of a node that is gone
    /// for ever is none, and changes nothing.
    pub fn member_changed(&mut self, node: NodeId, state: NodeState, now_ms: u64) -> bool {
        if self.meta.node(node).is_some_and(|record| record.state.is_gone()) {
            return false;
        }
        Arc::make_mut(&mut self.members).states.insert(node, (state, now_ms));
        if state != NodeState::Alive {
            self.clear_leader(node);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Meta, node};

    #[test]
    fn metadata_never_goes_back() {
        let old = Meta::of_nodes(1).state();
        let new = Meta::of_nodes(3).state();
        let mut known = Known::new(node(1), MetaState::default());
        assert!(known.offer(&new));
        assert!(!known.offer(&old));
        assert!(!known.take(&old, old.shard_map()), "somebody else was faster with something newer");
        assert_eq!((known.meta().version(), known.map().version()), (new.version(), new.version()));
    }

    #[test]
    fn a_silent_node_is_no_leader_and_a_gone_node_is_no_news() {
        let mut meta = Meta::of_nodes(3);
        let mut known = Known::new(node(1), MetaState::clone(&meta.state()));
        known.observe_leader(ShardId::META, Term(2), node(2));
        assert!(known.is_led_by_another(ShardId::META, node(1)));
        assert!(known.member_changed(node(2), NodeState::Down, 7));
        assert_eq!((known.leader(ShardId::META), known.members().liveness(node(2))), (None, (NodeState::Down, 7)));

        meta.remove(3);
        known.offer(&meta.state());
        assert!(!known.member_changed(node(3), NodeState::Down, 8));
        assert_eq!(known.members().liveness(node(3)), (NodeState::Unknown, 0));
        assert_eq!(known.members().liveness(node(1)), (NodeState::Alive, 0), "this node always hears itself");
    }
}
