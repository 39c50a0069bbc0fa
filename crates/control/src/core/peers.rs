//! Whom to keep a connection to, whom to send beats, whom membership should greet or forget.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use flotilla_membership::NodeState;
use flotilla_types::NodeId;

use super::{Action, Reconciler, View};

/// Keeps connections, beats and greetings going to every node of the metadata. Looks also when the metadata changes.
#[derive(Debug, Default)]
pub struct Peers {
    /// The metadata that connections were last made by.
    version: Option<u64>,
    connected: BTreeMap<NodeId, SocketAddr>,
    greeted: BTreeSet<NodeId>,
}

impl Peers {
    fn connect(&mut self, view: &View<'_>, actions: &mut Vec<Action>) {
        let mut peers = BTreeMap::new();
        for record in view.meta.nodes().filter(|record| record.id != view.me.node && !record.state.is_gone()) {
            match record.addresses.quic.parse() {
                Ok(addr) => {
                    actions.push(Action::Connect { node: record.id, addr });
                    peers.insert(record.id, addr);
                }
                Err(_) => {
                    tracing::warn!(node = %record.id, addr = record.addresses.quic, "a node's address does not parse");
                }
            }
        }
        let gone = self.connected.keys().filter(|node| !peers.contains_key(node));
        actions.extend(gone.map(|node| Action::Disconnect { node: *node }));
        actions.push(Action::Beat { peers: peers.keys().copied().collect() });
        self.connected = peers;
    }

    /// Greets every node that membership does not know, again and again until it does: the first greeting may leave before
    /// there is a connection to carry it.
    fn greet(&mut self, view: &View<'_>, actions: &mut Vec<Action>) {
        for (node, addr) in &self.connected {
            if self.greeted.insert(*node) || view.members.liveness(*node).0 == NodeState::Unknown {
                actions.push(Action::Greet { node: *node, addr: *addr });
            }
        }
        // Once: others go on to mention it until they have forgotten it too.
        self.greeted.retain(|node| {
            let gone = view.meta.node(*node).is_some_and(|record| record.state.is_gone());
            if gone {
                actions.push(Action::Forget { node: *node });
            }
            !gone
        });
    }
}

impl Reconciler for Peers {
    fn every_ms(&self) -> u64 {
        500
    }

    fn look(&mut self, view: &View<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.version.replace(view.meta.version()) != Some(view.meta.version()) {
            self.connect(view, &mut actions);
        }
        self.greet(view, &mut actions);
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Meta, World, addr, node};

    #[test]
    fn every_node_is_connected_once_and_greeted_until_it_is_heard_of() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut peers = Peers::default();
        let connect = |id| Action::Connect { node: node(id), addr: addr(id) };
        let greet = |id| Action::Greet { node: node(id), addr: addr(id) };
        let beat = Action::Beat { peers: vec![node(2), node(3)] };
        assert_eq!(world.look(&mut peers), [connect(2), connect(3), beat, greet(2), greet(3)]);
        world.hears(2, NodeState::Alive);
        assert_eq!(world.look(&mut peers), [greet(3)]);
        world.hears(3, NodeState::Down);
        assert_eq!(world.look(&mut peers), [], "a node that is down is membership's business");
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_once() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut peers = Peers::default();
        world.look(&mut peers);
        world.hears(2, NodeState::Alive);
        world.meta.remove(3);
        let gone = [
            Action::Connect { node: node(2), addr: addr(2) },
            Action::Disconnect { node: node(3) },
            Action::Beat { peers: vec![node(2)] },
            Action::Forget { node: node(3) },
        ];
        assert_eq!(world.look(&mut peers), gone);
        assert_eq!(world.look(&mut peers), []);
    }
}
