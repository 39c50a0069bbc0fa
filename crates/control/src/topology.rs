//! Shares this node's [`ClusterView`] between threads.
//!
//! Invariant: a lock is held only to read or change memory; shard maps are built outside of it.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_membership::NodeState;
use flotilla_meta::{MetaState, SeenNode};
use flotilla_placement::{LeaderHints, ShardMap};
use flotilla_types::{Incarnation, NodeId, ShardDescriptor, ShardId, Term, VersionRange};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{ClusterView, Comparison, Comparisons, Members, Operations, core::Routing};

/// The shared view of the cluster. Its metadata only moves forward.
pub struct Topology {
    node: NodeId,
    cluster: RwLock<ClusterView>,
    /// Follows the metadata in `cluster`, so that tasks can wait for a new version.
    meta: watch::Sender<Arc<MetaState>>,
    /// Counts changes of leader hints, so that requests that wait for an old leader check again.
    hints_moved: watch::Sender<u64>,
    /// What changes the shards that are led here.
    operations: RwLock<Operations>,
    /// The last comparison of each shard that is led here.
    comparisons: RwLock<BTreeMap<ShardId, Comparison>>,
}

impl Topology {
    /// Starts from cached metadata, or from the default when there is none.
    #[must_use]
    pub fn new(node: NodeId, meta: MetaState) -> Self {
        let cluster = ClusterView::new(node, meta);
        Self {
            node,
            meta: watch::Sender::new(cluster.meta().clone()),
            cluster: RwLock::new(cluster),
            hints_moved: watch::Sender::new(0),
            operations: RwLock::default(),
            comparisons: RwLock::default(),
        }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The newest metadata.
    #[must_use]
    pub fn meta(&self) -> Arc<MetaState> {
        self.cluster.read().meta().clone()
    }

    /// Subscribes to new metadata.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<MetaState>> {
        self.meta.subscribe()
    }

    /// The newest shard map.
    #[must_use]
    pub fn map(&self) -> Arc<ShardMap> {
        self.cluster.read().map().clone()
    }

    /// Installs metadata if it is newer. Versions never go backwards.
    pub fn offer(&self, state: &Arc<MetaState>) {
        if self.advance(|routing| routing.offered(state)) {
            self.meta.send_if_modified(|sent| {
                // Another thread may have sent something newer first.
                let newer = state.version() > sent.version();
                if newer {
                    *sent = state.clone();
                }
                newer
            });
        }
    }

    /// Takes the descriptors with which a shard refused a route. Most refusals tell many requests the same.
    pub fn learn(&self, refused_by: ShardId, now: &[ShardDescriptor]) {
        self.advance(|routing| routing.learned(refused_by, now));
    }

    /// Installs what follows from the current routing, if anything does.
    fn advance(&self, step: impl Fn(&Routing) -> Option<Routing>) -> bool {
        loop {
            let base = self.cluster.read().routing().clone();
            let Some(next) = step(&base) else { return false };
            if self.cluster.write().install(&base, next) {
                return true;
            }
        }
    }

    /// The shard's leader, if a hint exists.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.cluster.read().leader(shard)
    }

    /// A copy of the hints about all shards: linear in them.
    #[must_use]
    pub fn hints(&self) -> LeaderHints {
        self.cluster.read().hints().clone()
    }

    /// Records that `node` leads the shard in this term.
    pub fn observe_leader(&self, shard: ShardId, term: Term, node: NodeId) {
        // Most observations change nothing, and need no write lock.
        if self.cluster.read().is_new_leader(shard, term, node)
            && self.cluster.write().observe_leader(shard, term, node)
        {
            self.hints_moved.send_modify(|moves| *moves += 1);
        }
    }

    /// Records a start of a node and which cluster versions its binary supports.
    pub fn observe_versions(&self, node: NodeId, incarnation: Incarnation, versions: VersionRange) {
        self.cluster.write().observe_versions(node, incarnation, versions);
    }

    /// Every node that was seen since this node started, with its last start.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenNode> {
        self.cluster.read().seen()
    }

    /// Returns once a shard has another leader than `node`.
    pub async fn led_by_another(&self, shard: ShardId, node: NodeId) {
        let mut moved = self.hints_moved.subscribe();
        // The sender lives as long as `self`.
        let _ = moved.wait_for(|_| self.cluster.read().is_led_by_another(shard, node)).await;
    }

    /// Returns once a shard is not known (any more).
    pub async fn gone(&self, shard: ShardId) {
        let mut updates = self.watch();
        // The sender lives as long as `self`.
        let _ = updates.wait_for(|_| self.cluster.read().map().shard(shard).is_none()).await;
    }

    /// Clears the leader hints that name a node which is gone or unreachable.
    pub fn clear_leader(&self, node: NodeId) {
        self.cluster.write().clear_leader(node);
    }

    /// A node's state and when it began (monotonic milliseconds). This node is always alive.
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> (NodeState, u64) {
        self.cluster.read().members().liveness(node)
    }

    /// What changes the shards that are led here, as of the last pass over them.
    #[must_use]
    pub fn operations(&self) -> Operations {
        self.operations.read().clone()
    }

    /// Shows what changes the shards that are led here.
    pub(crate) fn show_operations(&self, operations: &Operations) {
        if *self.operations.read() != *operations {
            *self.operations.write() = operations.clone();
        }
    }

    /// Verdicts on the shards that are led here. Visits all of them.
    #[must_use]
    pub fn comparisons(&self) -> Comparisons {
        Comparisons::of(&self.comparisons.read())
    }

    /// Shows comparisons that were made; `None` for a shard that is not led here any more.
    pub(crate) fn show_comparisons(&self, changes: Vec<(ShardId, Option<Comparison>)>) {
        if changes.is_empty() {
            return;
        }
        let mut comparisons = self.comparisons.write();
        for (shard, comparison) in changes {
            match comparison {
                Some(comparison) => comparisons.insert(shard, comparison),
                None => comparisons.remove(&shard),
            };
        }
    }

    /// Metadata and members as of one moment.
    pub(crate) fn snapshot(&self) -> (Arc<MetaState>, Arc<Members>) {
        let cluster = self.cluster.read();
        (cluster.meta().clone(), cluster.members().clone())
    }

    /// Reads the view under its lock. `decide` must be quick: the raft thread may wait for it.
    pub(crate) fn with<R>(&self, decide: impl FnOnce(&ClusterView) -> R) -> R {
        decide(&self.cluster.read())
    }

    /// Records a node's new membership state. Returns whether it was recorded.
    pub(crate) fn member_changed(&self, node: NodeId, state: NodeState, now_ms: u64) -> bool {
        self.cluster.write().member_changed(node, state, now_ms)
    }
}
