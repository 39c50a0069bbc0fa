//! Announces this node's addresses, incarnation, locality and supported versions to the metadata group, once
//! after each start.

use flotilla_meta::MetaCommand;

use super::{Action, Reconciler, View};

/// Announces this node until the metadata shows its current description; then it never acts again.
#[derive(Debug, Default)]
pub struct AnnounceNode {
    announced: bool,
}

impl Reconciler for AnnounceNode {
    fn interval_ms(&self) -> u64 {
        200
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let me = view.me;
        if self.announced {
            return Vec::new();
        }
        // The node has only just joined when the metadata has no record of it.
        let Some(record) = view.meta.node(me.node) else { return Vec::new() };
        let versions = view.meta.announced(me.versions);
        self.announced = record.incarnation == me.incarnation
            && record.addresses == me.addresses
            && record.locality == me.locality
            && versions.is_none_or(|versions| record.versions == versions);
        if self.announced {
            return Vec::new();
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
    use flotilla_types::Incarnation;

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
        world.me.incarnation = Incarnation(99);
        assert_eq!(world.reconcile(&mut announce), []);
    }
}
