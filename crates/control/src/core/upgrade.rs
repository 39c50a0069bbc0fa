//! Raising the cluster version, one step at a time, when every node runs a binary that supports the next one.
//!
//! What binaries support travels in node heartbeats, whose new fields old binaries ignore, and not through
//! the log: a command that old replicas do not know would stop them. So the first command of the new version
//! is proposed only when this node has seen that every node supports it. The metadata group checks the same
//! against its own record, for nodes that joined or restarted in the meantime.

use flotilla_meta::{MetaCommand, MetaState, SeenNode};
use flotilla_types::{ClusterVersion, NodeId, VersionRange};

/// Why the version cannot be raised. Nothing was proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// This node's binary supports no later version than the one in force: there is nothing to finish here.
    #[error("the cluster is at version {in_force}, and this binary supports no later one")]
    NothingLater {
        /// The version in force.
        in_force: ClusterVersion,
    },
    /// These nodes were not seen with a binary that supports the next version since their last start.
    #[error("not every node was seen with a binary that supports version {next}")]
    Missing {
        /// The next version.
        next: ClusterVersion,
        /// The nodes.
        nodes: Vec<NodeId>,
    },
}

/// The command that raises the version by one. `seen` are the nodes' last starts, this node's among them.
///
/// # Errors
/// See [`UpgradeError`].
pub fn next_version(
    meta: &MetaState,
    supported: VersionRange,
    seen: Vec<SeenNode>,
) -> Result<MetaCommand, UpgradeError> {
    let in_force = meta.cluster_version();
    let next = in_force.next();
    if !supported.supports(next) {
        return Err(UpgradeError::NothingLater { in_force });
    }
    let nodes = meta.nodes_without(next, &seen);
    if nodes.is_empty() {
        Ok(MetaCommand::SetClusterVersion { version: next, seen })
    } else {
        Err(UpgradeError::Missing { next, nodes })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Incarnation;

    use super::*;
    use crate::core::{
        ClusterView,
        testing::{Meta, node},
    };

    const OLD: VersionRange = VersionRange::FIRST_ONLY;
    const NEW: VersionRange = VersionRange { min: ClusterVersion(1), max: ClusterVersion(2) };

    #[test]
    fn version_rises_only_when_the_last_start_of_every_node_supports_the_next() {
        let mut meta = Meta::of_nodes(3);
        let mut cluster = ClusterView::new(node(1), MetaState::default());
        cluster.observe_versions(node(1), Incarnation(4), NEW);
        cluster.observe_versions(node(2), Incarnation(7), NEW);
        let next = ClusterVersion(2);
        let missing =
            |nodes: &[u64]| Err(UpgradeError::Missing { next, nodes: nodes.iter().copied().map(node).collect() });
        let try_next = |meta: &Meta, cluster: &ClusterView| next_version(&meta.state(), NEW, cluster.seen());
        assert_eq!(try_next(&meta, &cluster), missing(&[3]), "it was never seen");
        cluster.observe_versions(node(3), Incarnation(5), OLD);
        assert_eq!(try_next(&meta, &cluster), missing(&[3]));
        cluster.observe_versions(node(3), Incarnation(6), NEW);
        cluster.observe_versions(node(3), Incarnation(5), OLD);
        cluster.observe_versions(node(2), Incarnation(8), OLD);
        assert_eq!(try_next(&meta, &cluster), missing(&[2]), "it was started again with its old binary");
        meta.remove(2);
        let command = try_next(&meta, &cluster).expect("nothing is missing");
        meta.apply(&command);
        assert_eq!(meta.state().cluster_version(), next);
        assert_eq!(meta.state().node(node(3)).map(|record| record.versions), Some(NEW));
        assert_eq!(try_next(&meta, &cluster), Err(UpgradeError::NothingLater { in_force: next }));
    }
}
