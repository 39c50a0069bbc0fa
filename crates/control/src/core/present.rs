//! Tells the metadata group where this node is now, once after each start.

use flotilla_meta::MetaCommand;

use super::{Action, Reconciler, View};

/// Presents this node until the metadata says what it says of itself; then it is done for good.
#[derive(Debug, Default)]
pub struct Present {
    told: bool,
}

impl Reconciler for Present {
    fn every_ms(&self) -> u64 {
        200
    }

    fn look(&mut self, view: &View<'_>) -> Vec<Action> {
        let me = view.me;
        // A node that the metadata does not know yet has joined a moment ago.
        let Some(known) = view.meta.node(me.node).filter(|_| !self.told) else { return Vec::new() };
        self.told =
            known.incarnation == me.incarnation && known.addresses == me.addresses && known.locality == me.locality;
        if self.told {
            return Vec::new();
        }
        vec![Action::Propose(MetaCommand::UpdateNode {
            node: me.node,
            incarnation: me.incarnation,
            addresses: me.addresses.clone(),
            locality: me.locality.clone(),
        })]
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Incarnation;

    use super::*;
    use crate::core::testing::{Meta, World};

    #[test]
    fn a_node_presents_itself_until_it_is_known_and_never_again() {
        let mut world = World::new(2, Meta::of_nodes(1));
        let mut present = Present::default();
        assert_eq!(world.look(&mut present), [], "the metadata does not know this node yet");
        world.meta.join(2);
        let asked = world.look(&mut present);
        let [Action::Propose(update)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(world.look(&mut present), asked, "nobody answered");
        world.meta.apply(update);
        assert_eq!(world.look(&mut present), []);
        world.me.incarnation = Incarnation(99);
        assert_eq!(world.look(&mut present), []);
    }
}
