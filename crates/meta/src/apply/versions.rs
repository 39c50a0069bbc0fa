//! Rules for the cluster version.
//!
//! Invariants: the version in force rises one step at a time and never falls; every node that is not gone
//! supports it; nothing that a binary of the version before would not decode is stored before it is in force.

use flotilla_types::{ClusterVersion, NodeId, VersionRange};

use super::ApplyResult;
use crate::{MetaRefusal, MetaReply, MetaState, SeenNode};

impl MetaState {
    pub(super) fn set_cluster_version(&mut self, version: ClusterVersion, seen: &[SeenNode]) -> ApplyResult {
        let in_force = self.cluster_version();
        if version == in_force {
            return Ok(MetaReply::Done);
        }
        if version != in_force.next() {
            return Err(MetaRefusal::VersionNotNext { in_force });
        }
        if let Some(node) = self.nodes_without(version, seen).first() {
            return Err(MetaRefusal::VersionNotSeen { node: *node, version });
        }
        self.header.cluster_version = version;
        for SeenNode { node, versions, .. } in seen {
            if versions.supports(version) {
                self.change_node(*node, |record| record.versions = *versions);
            }
        }
        Ok(MetaReply::Done)
    }

    /// The nodes that keep `version` from being put in force: not gone, and not seen, at their recorded start
    /// or a later one, with a binary that supports it.
    #[must_use]
    pub fn nodes_without(&self, version: ClusterVersion, seen: &[SeenNode]) -> Vec<NodeId> {
        let supports = |node: NodeId, incarnation| {
            let mut starts = seen.iter().filter(|seen| seen.node == node && seen.incarnation >= incarnation);
            starts.any(|seen| seen.versions.supports(version))
        };
        let nodes = self.nodes().filter(|node| !node.state.is_gone());
        nodes.filter(|node| !supports(node.id, node.incarnation)).map(|node| node.id).collect()
    }

    /// Checks what a node announces of its binary. From [`ClusterVersion::NODE_VERSIONS`] on, an announcement
    /// without versions comes from a binary that does not know of them.
    pub(super) fn check_announced(&self, versions: Option<VersionRange>) -> Result<(), MetaRefusal> {
        let in_force = self.cluster_version();
        if versions.is_some() {
            self.check_in_force(ClusterVersion::NODE_VERSIONS)?;
        }
        let supported = versions.unwrap_or(VersionRange::FIRST_ONLY);
        if supported.supports(in_force) {
            Ok(())
        } else {
            Err(MetaRefusal::VersionNotSupported { in_force, supported })
        }
    }

    /// Checks that a command's version is in force. Leaders check it before they propose; this is the same
    /// check on every replica.
    pub(super) fn check_in_force(&self, needed: ClusterVersion) -> Result<(), MetaRefusal> {
        let in_force = self.cluster_version();
        if needed <= in_force { Ok(()) } else { Err(MetaRefusal::VersionNotInForce { needed, in_force }) }
    }
}
