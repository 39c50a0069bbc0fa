//! Announces this node's addresses, incarnation, locality and supported versions to the metadata group, once
//! after each start; then its role and the start itself, with the version of the software.

use flotilla_meta::{MetaCommand, NodeRecord};
use flotilla_types::ClusterVersion;

use super::{Action, Reconciler, View};

/// The version of the software that this is built from.
const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Announces this node until the metadata shows its current description and start; then it never acts again.
#[derive(Debug, Default)]
pub struct AnnounceNode {
    announced: bool,
    reported: bool,
}

impl AnnounceNode {
    /// Reports role and start, which the metadata has places for from some versions on.
    fn report(&mut self, view: &View<'_>, record: &NodeRecord) -> Vec<Action> {
        let (node, incarnation, role) = (view.me.node, view.me.incarnation, view.me.role);
        // First, so that it is not the last thing that is reported: then nothing is looked at any more.
        if record.role != role && view.meta.cluster_version() >= ClusterVersion::NODE_ROLES {
            return vec![Action::Propose(MetaCommand::SetNodeRole { node, incarnation, role })];
        }
        let is_known = record.start.as_ref().is_some_and(|start| start.incarnation == incarnation);
        self.reported = is_known && record.role == role;
        if is_known || view.meta.cluster_version() < ClusterVersion::NODE_STARTS {
            return Vec::new();
        }
        vec![Action::Propose(MetaCommand::ReportStart { node, incarnation, build: BUILD.to_owned() })]
    }
}

impl Reconciler for AnnounceNode {
    fn interval_ms(&self) -> u64 {
        200
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let me = view.me;
        if self.reported {
            return Vec::new();
        }
        // The node has only just joined when the metadata has no record of it.
        let Some(record) = view.meta.node(me.node) else { return Vec::new() };
        if self.announced {
            return self.report(view, record);
        }
        let versions = view.meta.announced(me.versions);
        self.announced = record.incarnation == me.incarnation
            && record.addresses == me.addresses
            && record.locality == me.locality
            && versions.is_none_or(|versions| record.versions == versions);
        if self.announced {
            return self.report(view, record);
        }
        vec![Action::Propose(MetaCommand::UpdateNode {
            node: me.node,
            incarnation: me.incarnation,
            addresses: me.addresses.clone(),
            locality: me.locality.clone(),
            versions,
        })]
    }
}

#[cfg(test)]
mod tests {
    use flotilla_meta::NodeRole;
    use flotilla_types::{Incarnation, NodeId};

    use super::*;
    use crate::core::testing::{Meta, World};

    #[test]
    fn node_announces_itself_until_the_metadata_agrees_then_never_again() {
        let mut world = World::new(2, Meta::of_nodes(1));
        let mut announce = AnnounceNode::default();
        assert_eq!(world.reconcile(&mut announce), [], "the metadata has no record of this node yet");
        world.meta.join(2);
        let actions = world.reconcile(&mut announce);
        let [Action::Propose(update)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(world.reconcile(&mut announce), actions, "the proposal was not answered");
        world.meta.apply(update);
        assert_eq!(world.reconcile(&mut announce), []);
        world.meta.raise();
        let actions = world.reconcile(&mut announce);
        let [Action::Propose(report @ MetaCommand::ReportStart { .. })] = &actions[..] else { panic!("{actions:?}") };
        world.meta.apply(report);
        assert_eq!(world.reconcile(&mut announce), []);
        let start = world.meta.state().node(NodeId(2)).and_then(|node| node.start.clone()).expect("a start");
        assert_eq!((start.incarnation, &start.build[..]), (world.me.incarnation, BUILD));
        world.me.incarnation = Incarnation(99);
        assert_eq!(world.reconcile(&mut announce), []);
    }

    #[test]
    fn a_role_is_announced_once_there_is_a_place_for_it() {
        let mut world = World::new(2, Meta::of_nodes(2));
        world.meta.raise();
        world.me.role = NodeRole::Storage { weight: 3 };
        let mut announce = AnnounceNode::default();
        for _ in 0..2 {
            let actions = world.reconcile(&mut announce);
            let [Action::Propose(update)] = &actions[..] else { panic!("{actions:?}") };
            world.meta.apply(update);
        }
        assert_eq!(world.reconcile(&mut announce), [], "no binary knows of roles yet");
        (3..=ClusterVersion::NODE_ROLES.0).for_each(|version| world.meta.raise_to(ClusterVersion(version)));
        let actions = world.reconcile(&mut announce);
        let [Action::Propose(set @ MetaCommand::SetNodeRole { .. })] = &actions[..] else { panic!("{actions:?}") };
        world.meta.apply(set);
        assert_eq!(world.meta.state().node(NodeId(2)).map(|node| node.role), Some(world.me.role));
        assert_eq!(world.reconcile(&mut announce), []);
        world.me.role = NodeRole::default();
        assert_eq!(world.reconcile(&mut announce), [], "it never acts again");
    }
}
