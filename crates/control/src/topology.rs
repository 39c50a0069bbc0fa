//! Shares what this node knows of the cluster ([`Known`]) between threads.
//!
//! Invariant: no lock is held for longer than a look or a change of memory; a shard map is built outside.

use std::sync::Arc;

use flotilla_membership::NodeState;
use flotilla_meta::MetaState;
use flotilla_placement::ShardMap;
use flotilla_types::{NodeId, ShardId, Term};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{Known, Members};

/// A view of the cluster that only moves forward. The metadata group's log is authoritative; hints are only hints.
pub struct Topology {
    node: NodeId,
    known: RwLock<Known>,
    /// Follows the metadata in `known`, so that others can wait for it.
    meta: watch::Sender<Arc<MetaState>>,
    /// Counts changes of hints, so that whoever waits for an old leader can look again.
    hints_moved: watch::Sender<u64>,
}

impl Topology {
    /// Starts from metadata that was cached, or from nothing.
    #[must_use]
    pub fn new(node: NodeId, meta: MetaState) -> Self {
        let known = Known::new(node, meta);
        Self {
            node,
            meta: watch::Sender::new(known.meta().clone()),
            known: RwLock::new(known),
            hints_moved: watch::Sender::new(0),
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
        self.known.read().meta().clone()
    }

    /// Follows the metadata.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.subscribe()
    }

    /// The newest shard map.
    #[must_use]
    pub fn map(&self) -> Arc<ShardMap> {
        self.known.read().map().clone()
    }

    /// Takes metadata that may be newer. Versions never go back.
    pub fn offer(&self, state: &Arc<MetaState>) {
        if !self.known.read().wants(state) {
            return;
        }
        let map = state.shard_map();
        if self.known.write().take(state, map) {
            self.meta.send_if_modified(|told| {
                // Somebody else may have been faster with something newer.
                let newer = state.version() > told.version();
                if newer {
                    *told = state.clone();
                }
                newer
            });
        }
    }

    /// The node that leads a shard, as far as is known.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.known.read().leader(shard)
    }

    /// Somebody leads a shard since this term.
    pub fn observe_leader(&self, shard: ShardId, term: Term, node: NodeId) {
        // Mostly it is no news, and others only read.
        if self.known.read().is_new_leader(shard, term, node) && self.known.write().observe_leader(shard, term, node) {
            self.hints_moved.send_modify(|moves| *moves += 1);
        }
    }

    /// Returns once a shard has another leader than `node`.
    pub async fn led_by_another(&self, shard: ShardId, node: NodeId) {
        let mut moved = self.hints_moved.subscribe();
        // The sender lives as long as `self`.
        let _ = moved.wait_for(|_| self.known.read().is_led_by_another(shard, node)).await;
    }

    /// A node is gone or silent: nobody should be sent to it as a leader.
    pub fn clear_leader(&self, node: NodeId) {
        self.known.write().clear_leader(node);
    }

    /// Whether a node is heard of, and since when (monotonic milliseconds). This node always is.
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> (NodeState, u64) {
        self.known.read().members().liveness(node)
    }

    /// Metadata and members as of one moment.
    pub(crate) fn snapshot(&self) -> (Arc<MetaState>, Arc<Members>) {
        let known = self.known.read();
        (known.meta().clone(), known.members().clone())
    }

    /// Decides something by what is known. Must be quick: the raft thread may wait for it.
    pub(crate) fn with<R>(&self, decide: impl FnOnce(&Known) -> R) -> R {
        decide(&self.known.read())
    }

    /// Returns whether it is news.
    pub(crate) fn member_changed(&self, node: NodeId, state: NodeState, now_ms: u64) -> bool {
        self.known.write().member_changed(node, state, now_ms)
    }
}
