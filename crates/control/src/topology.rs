//! What this node knows of the cluster at the moment, for everyone to read: metadata, shard map, leader hints, liveness.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use flotilla_membership::NodeState;
use flotilla_meta::MetaState;
use flotilla_placement::{LeaderHints, ShardMap};
use flotilla_types::{NodeId, ShardId, Term};
use parking_lot::RwLock;
use tokio::sync::watch;

/// A view of the cluster that only moves forward. The metadata group's log is authoritative; hints are only hints.
pub struct Topology {
    node: NodeId,
    meta: watch::Sender<Arc<MetaState>>,
    map: ArcSwap<ShardMap>,
    hints: RwLock<LeaderHints>,
    /// Counts changes of hints, so that whoever waits for an old leader can look again.
    hints_moved: watch::Sender<u64>,
    /// State and when it began, monotonic milliseconds.
    members: RwLock<BTreeMap<NodeId, (NodeState, u64)>>,
}

impl Topology {
    /// Starts from metadata that was cached, or from nothing.
    #[must_use]
    pub fn new(node: NodeId, meta: MetaState) -> Self {
        let map = meta.shard_map();
        Self {
            node,
            meta: watch::Sender::new(Arc::new(meta)),
            map: ArcSwap::from_pointee(map),
            hints: RwLock::default(),
            hints_moved: watch::Sender::new(0),
            members: RwLock::default(),
        }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The newest metadata known here.
    #[must_use]
    pub fn meta(&self) -> Arc<MetaState> {
        self.meta.borrow().clone()
    }

    /// Follows the metadata.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.subscribe()
    }

    /// The newest shard map.
    #[must_use]
    pub fn map(&self) -> Arc<ShardMap> {
        self.map.load_full()
    }

    /// Takes metadata that may be newer. Versions never go back.
    pub fn offer(&self, state: &Arc<MetaState>) {
        self.meta.send_if_modified(|known| {
            let newer = state.version() > known.version();
            if newer {
                *known = state.clone();
                self.map.store(Arc::new(state.shard_map()));
                self.hints.write().retain_known(&self.map.load());
            }
            newer
        });
    }

    /// The node that leads a shard, as far as is known.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.hints.read().leader(shard)
    }

    /// Somebody leads a shard since this term.
    pub fn observe_leader(&self, shard: ShardId, term: Term, node: NodeId) {
        if self.hints.read().get(shard) != Some((term, node)) && self.hints.write().observe(shard, term, node) {
            self.hints_moved.send_modify(|moves| *moves += 1);
        }
    }

    /// Returns once a shard has another leader than `node`.
    pub async fn led_by_another(&self, shard: ShardId, node: NodeId) {
        let mut moved = self.hints_moved.subscribe();
        // The sender lives as long as `self`.
        let _ = moved.wait_for(|_| self.leader(shard).is_some_and(|leader| leader != node)).await;
    }

    /// A node is gone or silent: nobody should be sent to it as a leader.
    pub fn clear_leader(&self, node: NodeId) {
        self.hints.write().clear_node(node);
    }

    /// Whether a node is heard of, and since when (monotonic milliseconds). This node always is.
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> (NodeState, u64) {
        if node == self.node {
            return (NodeState::Alive, 0);
        }
        self.members.read().get(&node).copied().unwrap_or((NodeState::Unknown, 0))
    }

    pub(crate) fn set_liveness(&self, node: NodeId, state: NodeState, now_ms: u64) {
        self.members.write().insert(node, (state, now_ms));
    }
}
