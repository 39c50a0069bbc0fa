//! What arrives from other nodes, and who takes it.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flotilla_control::{Gossip, RpcServer, Topology};
use flotilla_replication::Handle;
use flotilla_transport::{BoxFuture, Class, Handler, PeerState};
use flotilla_types::NodeId;

use super::join::Doorkeeper;

/// Everything that takes what arrives. The transport starts before the rest of the node; until then arrivals are dropped.
#[derive(Default)]
pub(crate) struct Inbound {
    parts: OnceLock<Parts>,
    topology: OnceLock<Arc<Topology>>,
}

pub(crate) struct Parts {
    pub(crate) host: Handle,
    pub(crate) rpc: RpcServer,
    pub(crate) gossip: Gossip,
    pub(crate) door: Arc<Doorkeeper>,
}

impl Inbound {
    pub(crate) fn know(&self, topology: Arc<Topology>) {
        let _ = self.topology.set(topology);
    }

    pub(crate) fn open(&self, parts: Parts) {
        let _ = self.parts.set(parts);
    }
}

/// A seam between the transport and the node, so that `Arc<Inbound>` can be kept on both sides.
pub(crate) struct Door(pub(crate) Arc<Inbound>);

impl Handler for Door {
    fn on_frame(&self, from: NodeId, _class: Class, frame: Bytes) {
        if let Some(parts) = self.0.parts.get() {
            parts.host.frame(from, frame);
        }
    }

    fn on_datagram(&self, from: NodeId, packet: Bytes) {
        if let Some(parts) = self.0.parts.get() {
            parts.gossip.packet(from, packet);
        }
    }

    fn on_call(&self, from: NodeId, class: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        let Some(parts) = self.0.parts.get() else { return Box::pin(async { Bytes::new() }) };
        match class {
            Class::Objects => {
                let host = parts.host.clone();
                Box::pin(
                    async move { tokio::task::spawn_blocking(move || host.objects(request)).await.unwrap_or_default() },
                )
            }
            _ => {
                let rpc = parts.rpc.clone();
                Box::pin(async move { rpc.answer(from, request).await })
            }
        }
    }

    fn on_join(&self, remote: SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes> {
        let Some(parts) = self.0.parts.get() else { return Box::pin(async { Bytes::new() }) };
        let door = parts.door.clone();
        Box::pin(async move { door.answer(remote, request).await })
    }

    fn on_peer(&self, peer: NodeId, state: PeerState) {
        if let Some(parts) = self.0.parts.get() {
            parts.host.peer_changed(peer, state == PeerState::Connected);
        }
        if state == PeerState::Refused {
            tracing::error!(%peer, "a peer says that this node was removed from the cluster");
        }
    }

    /// Nodes that are gone stay out. A node that is not known yet has joined a moment ago: its certificate says so.
    fn admit(&self, peer: NodeId) -> bool {
        let meta = self.0.topology.get().map(|topology| topology.meta());
        meta.is_none_or(|meta| meta.node(peer).is_none_or(|record| !record.state.is_gone()))
    }
}
