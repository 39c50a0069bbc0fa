//! Which nodes to connect to, which get heartbeats, and which membership adds or forgets; and which cluster
//! version is in force, which the host must know as soon as the metadata does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

use flotilla_membership::NodeState;
use flotilla_types::{ClusterVersion, HostPort, NodeId};

use super::{Action, Reconciler, View};

/// Keeps a connection and heartbeats going to every node of the metadata, and membership informed of it. An
/// extra pass runs when the metadata changes.
#[derive(Debug, Default)]
pub struct Peers {
    /// The metadata version by which connections were last made.
    version: Option<u64>,
    connected: BTreeMap<NodeId, HostPort>,
    added: BTreeSet<NodeId>,
}

impl Peers {
    fn connect(&mut self, view: &View<'_>, actions: &mut Vec<Action>) {
        let mut peers = BTreeMap::new();
        for record in view.meta.nodes().filter(|record| record.id != view.me.node && !record.state.is_gone()) {
            match record.addresses.quic.parse::<HostPort>() {
                Ok(addr) => {
                    actions.push(Action::Connect { node: record.id, addr: addr.clone() });
                    peers.insert(record.id, addr);
                }
                Err(_) => {
                    tracing::warn!(node = %record.id, addr = record.addresses.quic, "a node's address does not parse");
                }
            }
        }
        let gone = self.connected.keys().filter(|node| !peers.contains_key(node));
        actions.extend(gone.map(|node| Action::Disconnect { node: *node }));
        if view.meta.cluster_version() > ClusterVersion::FIRST {
            actions.push(Action::SetClusterVersion(view.meta.cluster_version()));
        }
        actions.push(Action::SetHeartbeatPeers { peers: peers.keys().copied().collect() });
        self.connected = peers;
    }

    /// Adds every node to membership, again in each pass until membership hears from it: the first
    /// announcement may be sent before there is a connection to carry it.
    fn update_membership(&mut self, view: &View<'_>, actions: &mut Vec<Action>) {
        for (node, addr) in &self.connected {
            if self.added.insert(*node) || view.members.liveness(*node).0 == NodeState::Unknown {
                let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()));
                actions.push(Action::AddMember { node: *node, addr: addr.address().unwrap_or(unspecified) });
            }
        }
        // Only once: other nodes keep gossiping about a removed node until they have forgotten it too.
        self.added.retain(|node| {
            let gone = view.meta.is_gone(*node);
            if gone {
                actions.push(Action::ForgetMember { node: *node });
            }
            !gone
        });
    }
}

impl Reconciler for Peers {
    fn interval_ms(&self) -> u64 {
        500
    }

    fn reconcile(&mut self, view: &View<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.version.replace(view.meta.version()) != Some(view.meta.version()) {
            self.connect(view, &mut actions);
        }
        self.update_membership(view, &mut actions);
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Meta, World, addr, node};

    #[test]
    fn every_node_is_connected_once_and_added_until_membership_hears_from_it() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut peers = Peers::default();
        let connect = |id| Action::Connect { node: node(id), addr: addr(id).into() };
        let add = |id| Action::AddMember { node: node(id), addr: addr(id) };
        let heartbeats = Action::SetHeartbeatPeers { peers: vec![node(2), node(3)] };
        assert_eq!(world.reconcile(&mut peers), [connect(2), connect(3), heartbeats, add(2), add(3)]);
        world.hears(2, NodeState::Alive);
        assert_eq!(world.reconcile(&mut peers), [add(3)]);
        world.hears(3, NodeState::Down);
        assert_eq!(world.reconcile(&mut peers), [], "membership itself probes a node that is down");
    }

    #[test]
    fn removed_node_is_forgotten_once() {
        let mut world = World::new(1, Meta::of_nodes(3));
        let mut peers = Peers::default();
        world.reconcile(&mut peers);
        world.hears(2, NodeState::Alive);
        world.meta.remove(3);
        let gone = [
            Action::Connect { node: node(2), addr: addr(2).into() },
            Action::Disconnect { node: node(3) },
            Action::SetHeartbeatPeers { peers: vec![node(2)] },
            Action::ForgetMember { node: node(3) },
        ];
        assert_eq!(world.reconcile(&mut peers), gone);
        assert_eq!(world.reconcile(&mut peers), []);
    }
}
