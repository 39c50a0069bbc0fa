//! A node's cached view of the cluster: metadata, shard map, leader hints, liveness.
//!
//! Invariants: metadata only moves forward, and the map is never older than the metadata ([`Routing`]). The
//! logs of the metadata group and of the shards are authoritative; leader hints and liveness are only hints.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_membership::NodeState;
use flotilla_meta::{MetaState, SeenNode};
use flotilla_placement::{LeaderHints, ShardMap};
use flotilla_types::{Incarnation, NodeId, ReplicaRole, ShardDescriptor, ShardId, Term, VersionRange};

use super::Routing;

/// Liveness of the other nodes.
#[derive(Debug, Clone)]
pub struct Members {
    me: NodeId,
    /// Each node's state and when it began (monotonic milliseconds).
    states: BTreeMap<NodeId, (NodeState, u64)>,
}

impl Members {
    /// A node's state and when it began (monotonic milliseconds). This node is always alive.
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> (NodeState, u64) {
        if node == self.me {
            return (NodeState::Alive, 0);
        }
        self.states.get(&node).copied().unwrap_or((NodeState::Unknown, 0))
    }
}

/// One node's view of the cluster. [`crate::Topology`] shares it between threads.
#[derive(Debug, Clone)]
pub struct ClusterView {
    routing: Arc<Routing>,
    hints: LeaderHints,
    /// Shared, so that copying the view of many members costs a pointer.
    members: Arc<Members>,
    /// The last start of each node that was seen since this node started, and what its binary supports.
    starts: BTreeMap<NodeId, (Incarnation, VersionRange)>,
}

impl ClusterView {
    /// Starts from cached metadata, or from the default when there is none.
    #[must_use]
    pub fn new(me: NodeId, meta: MetaState) -> Self {
        Self {
            routing: Arc::new(Routing::new(Arc::new(meta))),
            hints: LeaderHints::default(),
            members: Arc::new(Members { me, states: BTreeMap::new() }),
            starts: BTreeMap::new(),
        }
    }

    /// The node whose view this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.members.me
    }

    /// The newest metadata.
    #[must_use]
    pub fn meta(&self) -> &Arc<MetaState> {
        self.routing.meta()
    }

    /// The newest shard map.
    #[must_use]
    pub fn map(&self) -> &Arc<ShardMap> {
        self.routing.map()
    }

    /// Liveness of the nodes.
    #[must_use]
    pub fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// The shard's leader, if a hint exists.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.hints.leader(shard)
    }

    /// The nodes with a replica of a shard: the leader first, as far as that is known, then voters.
    #[must_use]
    pub fn nodes_of(&self, shard: ShardId) -> Vec<NodeId> {
        let mut replicas = self.map().shard(shard).map(|shard| shard.descriptor.replicas.clone()).unwrap_or_default();
        let leader = self.leader(shard);
        replicas.sort_by_key(|replica| (Some(replica.node) != leader, replica.role != ReplicaRole::Voter));
        replicas.into_iter().map(|replica| replica.node).collect()
    }

    /// The hints about all shards.
    #[must_use]
    pub fn hints(&self) -> &LeaderHints {
        &self.hints
    }

    /// Whether the hinted leader is a node other than `node`.
    #[must_use]
    pub fn is_led_by_another(&self, shard: ShardId, node: NodeId) -> bool {
        self.leader(shard).is_some_and(|leader| leader != node)
    }

    /// Installs metadata if it is newer. Returns whether it was.
    pub fn offer(&mut self, meta: &Arc<MetaState>) -> bool {
        let base = self.routing.clone();
        base.offered(meta).is_some_and(|next| self.install(&base, next))
    }

    /// Takes the descriptors with which a shard refused a route. Returns whether they say anything new.
    pub fn learn(&mut self, refused_by: ShardId, now: &[ShardDescriptor]) -> bool {
        let base = self.routing.clone();
        base.learned(refused_by, now).is_some_and(|next| self.install(&base, next))
    }

    /// What is known of the shards, to derive the next version from it outside of any lock.
    pub(crate) fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// Installs the version that follows `base`. Returns whether it did: another one may have come first.
    pub(crate) fn install(&mut self, base: &Arc<Routing>, next: Routing) -> bool {
        let follows = Arc::ptr_eq(base, &self.routing);
        if follows {
            self.routing = Arc::new(next);
        }
        follows
    }

    /// Whether [`ClusterView::observe_leader`] would change anything.
    #[must_use]
    pub fn is_new_leader(&self, shard: ShardId, term: Term, node: NodeId) -> bool {
        self.hints.get(shard) != Some((term, node))
    }

    /// Records that `node` leads the shard in this term. Returns whether the hint changed.
    pub fn observe_leader(&mut self, shard: ShardId, term: Term, node: NodeId) -> bool {
        let changed = self.hints.observe(shard, term, node);
        self.hints.forget_dropped(self.routing.map());
        changed
    }

    /// Clears the leader hints that name a node which is gone or unreachable.
    pub fn clear_leader(&mut self, node: NodeId) {
        self.hints.clear_node(node);
    }

    /// Records a start of a node and which cluster versions its binary supports. An earlier start than the
    /// last one says nothing: its message is late.
    pub fn observe_versions(&mut self, node: NodeId, incarnation: Incarnation, versions: VersionRange) {
        let start = self.starts.entry(node).or_insert((incarnation, versions));
        if incarnation >= start.0 {
            *start = (incarnation, versions);
        }
    }

    /// Every node that was seen since this node started, with its last start.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenNode> {
        let seen = |(node, start): (&NodeId, &(Incarnation, VersionRange))| SeenNode {
            node: *node,
            incarnation: start.0,
            versions: start.1,
        };
        self.starts.iter().map(seen).collect()
    }

    /// Records a node's new membership state. Returns whether it was recorded: late gossip about a removed
    /// node is ignored.
    pub fn member_changed(&mut self, node: NodeId, state: NodeState, now_ms: u64) -> bool {
        if self.meta().node(node).is_some_and(|record| record.state.is_gone()) {
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
    fn metadata_never_goes_backwards() {
        let old = Meta::of_nodes(1).state();
        let new = Meta::of_nodes(3).state();
        let mut cluster = ClusterView::new(node(1), MetaState::default());
        assert!(cluster.offer(&new));
        assert!(!cluster.offer(&old));
        let base = cluster.routing().clone();
        let mut newest = Meta::of_nodes(3);
        newest.join(4);
        let late = base.offered(&newest.state()).expect("newer metadata");
        newest.join(5);
        assert!(cluster.offer(&newest.state()));
        assert!(!cluster.install(&base, late), "newer metadata was installed first");
        let new = newest.state();
        assert_eq!((cluster.meta().version(), cluster.map().version()), (new.version(), new.version()));
    }

    #[test]
    fn the_nodes_of_a_shard_begin_with_its_leader() {
        let mut meta = Meta::of_nodes(3);
        assert_eq!(meta.collection(&[&[1, 2, 3]]), [ShardId(1)]);
        let mut cluster = ClusterView::new(node(9), MetaState::clone(&meta.state()));
        assert_eq!(cluster.nodes_of(ShardId(1)), [node(1), node(2), node(3)]);
        cluster.observe_leader(ShardId(1), Term(2), node(2));
        assert_eq!(cluster.nodes_of(ShardId(1)), [node(2), node(1), node(3)]);
        assert_eq!(cluster.nodes_of(ShardId(7)), []);
    }

    #[test]
    fn down_node_loses_its_leader_hints_and_removed_node_is_ignored() {
        let mut meta = Meta::of_nodes(3);
        let mut cluster = ClusterView::new(node(1), MetaState::clone(&meta.state()));
        cluster.observe_leader(ShardId::META, Term(2), node(2));
        assert!(cluster.is_led_by_another(ShardId::META, node(1)));
        assert!(cluster.member_changed(node(2), NodeState::Down, 7));
        assert_eq!((cluster.leader(ShardId::META), cluster.members().liveness(node(2))), (None, (NodeState::Down, 7)));

        meta.remove(3);
        cluster.offer(&meta.state());
        assert!(!cluster.member_changed(node(3), NodeState::Down, 8));
        assert_eq!(cluster.members().liveness(node(3)), (NodeState::Unknown, 0));
        assert_eq!(cluster.members().liveness(node(1)), (NodeState::Alive, 0), "this node is always alive");
    }
}
