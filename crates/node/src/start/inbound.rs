//! Dispatches traffic from other nodes to the services of this node.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flotilla_control::{Gossip, RpcServer, Topology};
use flotilla_replication::Handle;
use flotilla_transport::{BoxFuture, Class, Handler, PeerState};
use flotilla_types::NodeId;

use super::{ending::Ending, join::JoinAdmission};

/// The receivers of inbound traffic. The transport starts before them; until they are set, traffic is
/// dropped.
#[derive(Default)]
pub(crate) struct Inbound {
    services: OnceLock<Services>,
    topology: OnceLock<Arc<Topology>>,
    pub(crate) ending: Ending,
}

/// The services that receive traffic.
pub(crate) struct Services {
    pub(crate) host: Handle,
    pub(crate) rpc: RpcServer,
    pub(crate) gossip: Gossip,
    pub(crate) join_admission: Arc<JoinAdmission>,
}

impl Inbound {
    pub(crate) fn set_topology(&self, topology: Arc<Topology>) {
        let _ = self.topology.set(topology);
    }

    pub(crate) fn set_services(&self, services: Services) {
        let _ = self.services.set(services);
    }
}

/// The transport's handler. A wrapper, because a foreign trait cannot be implemented for `Arc<Inbound>`.
pub(crate) struct InboundHandler(pub(crate) Arc<Inbound>);

impl Handler for InboundHandler {
    fn on_frame(&self, from: NodeId, _class: Class, frame: Bytes) {
        if let Some(services) = self.0.services.get() {
            services.host.frame(from, frame);
        }
    }

    fn on_datagram(&self, from: NodeId, packet: Bytes) {
        if let Some(services) = self.0.services.get() {
            services.gossip.packet(from, packet);
        }
    }

    fn on_call(&self, from: NodeId, class: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        let Some(services) = self.0.services.get() else { return Box::pin(async { Bytes::new() }) };
        match class {
            Class::Objects => {
                let host = services.host.clone();
                Box::pin(async move { host.objects(from, request).await })
            }
            _ => {
                let rpc = services.rpc.clone();
                Box::pin(async move { rpc.answer(from, request).await })
            }
        }
    }

    fn on_join(&self, remote: SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes> {
        let Some(services) = self.0.services.get() else { return Box::pin(async { Bytes::new() }) };
        let join_admission = services.join_admission.clone();
        Box::pin(async move { join_admission.answer(remote, request).await })
    }

    fn on_peer(&self, peer: NodeId, state: PeerState) {
        if let Some(services) = self.0.services.get() {
            services.host.peer_changed(peer, state == PeerState::Connected);
        }
        if state == PeerState::Refused {
            self.0.ending.refused_by(peer);
        }
    }

    /// Refuses nodes that are lost or removed, always. A node above every id that this one knows of has
    /// just joined, as its certificate proves.
    fn admit(&self, peer: NodeId) -> bool {
        let meta = self.0.topology.get().map(|topology| topology.meta());
        meta.is_none_or(|meta| !meta.is_gone(peer))
    }
}
