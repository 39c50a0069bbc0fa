//! The transport as its users see it: one endpoint, many peers.

use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_identity::{JoinTrust, NodeIdentity};
use flotilla_types::{ClusterId, HostPort, NodeId};
use parking_lot::RwLock;
use quinn::{Endpoint, VarInt};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    CallError, Class, Config, Handler, NotSent, PeerError, PeerStatus, SendError, TransportError, endpoint,
    endpoint::{CloseCode, accepting_config, dialling_config, node_endpoint},
    inbound::{self, Inbound},
    join,
    link::Link,
    meter::Meter,
    peer::Peer,
};

/// Largest datagram, in bytes: fits into one packet on every path that carries QUIC at all.
pub const DATAGRAM_BYTES_MAX: usize = 1100;
/// How long closing may take for all peers together, including the flush.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the endpoint may take to send its last packets.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// A bound UDP socket, for a [`Transport`] that starts later.
#[derive(Debug)]
pub struct BoundSocket(std::net::UdpSocket);

impl BoundSocket {
    /// Binds the address.
    ///
    /// # Errors
    /// [`TransportError::Bind`].
    pub fn bind(listen: SocketAddr) -> Result<Self, TransportError> {
        endpoint::bind(listen).map(Self).map_err(TransportError::Bind)
    }
}

/// The network side of a node. Cheap to share in an `Arc`; all methods may be called from any thread.
///
/// Dropping it closes every connection at once; [`close`](Self::close) flushes queues first. A handler should
/// not own its transport: the two would keep each other alive.
pub struct Transport {
    shared: Arc<Shared>,
    local_address: SocketAddr,
    runtime: Handle,
}

/// State shared by the tasks of a transport.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) config: Config,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) meter: Meter,
    pub(crate) endpoint: Endpoint,
    /// For new connections; replaced when the identity is renewed.
    pub(crate) client: RwLock<quinn::ClientConfig>,
    /// For dialling an address whose node is not known; replaced likewise.
    identify: RwLock<quinn::ClientConfig>,
    pub(crate) inbound: Inbound,
    /// Turns true once, when the transport closes.
    pub(crate) closing: watch::Sender<bool>,
    peers: RwLock<HashMap<NodeId, Entry>>,
}

struct Entry {
    peer: Arc<Peer>,
    task: JoinHandle<()>,
}

impl Shared {
    /// The largest payload of a class.
    pub(crate) fn payload_bytes_max(&self, class: Class) -> usize {
        match class {
            Class::Urgent | Class::Bulk | Class::Rpc => self.config.frame_bytes_max,
            Class::Objects => self.config.object_frame_bytes_max,
        }
    }

    /// Called when a peer has connected to this node, from this address, or seems to be there: if this node's
    /// own connection to it is down, it dials now.
    pub(crate) fn learn_address(&self, node: NodeId, address: SocketAddr) {
        if let Some(entry) = self.peers.read().get(&node) {
            entry.peer.learn(address);
        }
    }

    /// The link to a peer. `None`: the peer is unknown. `Some(None)`: its connection is down.
    fn link(&self, node: NodeId) -> Option<Option<Arc<Link>>> {
        self.peers.read().get(&node).map(|entry| entry.peer.link())
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}

impl Transport {
    /// Binds the address and starts to accept connections. Must be called in a tokio runtime (of either
    /// flavor) with I/O and time enabled.
    ///
    /// # Errors
    /// [`TransportError::Config`], [`TransportError::Bind`], [`TransportError::Identity`].
    pub async fn start(
        config: Config,
        identity: NodeIdentity,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, TransportError> {
        let socket = BoundSocket::bind(config.listen)?;
        Self::start_on(socket, config, identity, handler).await
    }

    /// [`start`](Self::start) on a socket that was bound before.
    ///
    /// # Errors
    /// [`TransportError::Config`], [`TransportError::Bind`], [`TransportError::Identity`].
    pub async fn start_on(
        socket: BoundSocket,
        config: Config,
        identity: NodeIdentity,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, TransportError> {
        config.validate()?;
        let (endpoint, client) = node_endpoint(socket.0, &config, &identity)?;
        let identify = identify_config(&identity)?;
        let local_address = endpoint.local_addr().map_err(TransportError::Bind)?;
        let shared = Arc::new(Shared {
            node: identity.node(),
            cluster: identity.cluster(),
            inbound: Inbound::new(&config),
            config,
            handler,
            meter: Meter::new(),
            endpoint,
            client: RwLock::new(client),
            identify: RwLock::new(identify),
            closing: watch::Sender::new(false),
            peers: RwLock::default(),
        });
        tokio::spawn(inbound::accept(shared.clone()));
        Ok(Self { shared, local_address, runtime: Handle::current() })
    }

    /// The bound address, with the port that the system assigned if it was 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_address
    }

    /// Uses a renewed identity of this node for new connections, dialled and accepted. Those that exist go
    /// on.
    ///
    /// # Errors
    /// [`TransportError::Identity`]; the last identity stays in use.
    pub fn set_identity(&self, identity: &NodeIdentity) -> Result<(), TransportError> {
        let shared = &self.shared;
        let accepting = accepting_config(&shared.config, identity)?;
        let dialling = dialling_config(&shared.config, identity)?;
        *shared.identify.write() = identify_config(identity)?;
        *shared.client.write() = dialling;
        shared.endpoint.set_server_config(Some(accepting));
        Ok(())
    }

    /// Closes the connections that peers dialled and that the handler admits no longer.
    pub fn close_refused(&self) {
        let handler = &self.shared.handler;
        self.shared.inbound.disconnect_all(|node| !handler.admit(node));
    }

    /// Keeps a connection to this peer from now on. If the address changed, a connection to another one is
    /// flushed and closed, and the new address is dialled. A name is resolved for every dial. This node's own
    /// id is ignored.
    pub fn set_peer(&self, node: NodeId, address: impl Into<HostPort>) {
        let address = address.into();
        if node == self.shared.node {
            return;
        }
        let mut peers = self.shared.peers.write();
        if self.shared.is_closing() {
            return;
        }
        if let Some(entry) = peers.get(&node) {
            entry.peer.set_address(Some(address));
            return;
        }
        let peer = Peer::new(node, address);
        let task = self.runtime.spawn(peer.clone().run(self.shared.clone()));
        peers.insert(node, Entry { peer, task });
    }

    /// Adds an address at which a peer may be, besides that of [`set_peer`](Self::set_peer). Connections from
    /// a peer add theirs. The peer proves there who it is. Ignored if the peer was not set.
    pub fn learn_address(&self, node: NodeId, address: SocketAddr) {
        self.shared.learn_address(node, address);
    }

    /// Asks which node of this cluster is at an address, without becoming its peer. It may be this one.
    ///
    /// # Errors
    /// Nothing answers there, or not with a certificate of this cluster.
    pub async fn identify(&self, address: SocketAddr) -> Result<NodeId, PeerError> {
        let shared = &self.shared;
        let client = shared.identify.read().clone();
        let identified = join::identify(&shared.endpoint, client, address, shared.cluster);
        timeout(shared.config.connect_timeout, identified).await.unwrap_or(Err(PeerError::TimedOut))
    }

    /// Forgets a peer; flushes and closes the connection to it. If the handler no longer admits the peer, the
    /// connection that the peer dialled is closed too.
    pub fn remove_peer(&self, node: NodeId) {
        let entry = self.shared.peers.write().remove(&node);
        if let Some(entry) = entry {
            entry.peer.set_address(None);
        }
        if !self.shared.handler.admit(node) {
            self.shared.inbound.disconnect(node);
        }
    }

    /// Queues a one-way frame ([`Class::Urgent`] or [`Class::Bulk`]). Never waits. `Ok` means that the frame
    /// is queued, not that it will arrive; frames of one class on one connection arrive in order.
    ///
    /// # Errors
    /// [`SendError`]; the peer has not seen the frame.
    pub fn send(&self, to: NodeId, class: Class, frame: Bytes) -> Result<(), SendError> {
        let bytes_max = self.shared.payload_bytes_max(class);
        if frame.len() > bytes_max {
            return Err(SendError::TooLarge { bytes_max });
        }
        let link = self.shared.link(to).ok_or(SendError::UnknownPeer)?;
        let sent = link.ok_or(SendError::Down).and_then(|link| link.send(class, frame));
        if sent.is_err() {
            self.shared.meter.class(class).dropped();
        }
        sent
    }

    /// Sends a datagram of at most [`DATAGRAM_BYTES_MAX`]. Never waits. It may be lost in the network or
    /// dropped when a buffer is full.
    ///
    /// # Errors
    /// [`SendError`]; the peer has not seen the datagram.
    pub fn datagram(&self, to: NodeId, packet: Bytes) -> Result<(), SendError> {
        if packet.len() > DATAGRAM_BYTES_MAX {
            return Err(SendError::TooLarge { bytes_max: DATAGRAM_BYTES_MAX });
        }
        let link = self.shared.link(to).ok_or(SendError::UnknownPeer)?;
        let sent = link.ok_or(SendError::Down).and_then(|link| link.datagram(&packet));
        match sent {
            Ok(()) => self.shared.meter.datagrams_sent.increment(1),
            Err(_) => self.shared.meter.datagrams_dropped.increment(1),
        }
        sent
    }

    /// Sends a request ([`Class::Rpc`] or [`Class::Objects`]) and waits at most `deadline` for the answer.
    /// Many calls share one stream; answers come in any order. Dropping the future abandons the call; the
    /// peer still executes it.
    ///
    /// # Errors
    /// [`CallError::NotSent`]: certainly not executed. [`CallError::MaybeExecuted`]: the outcome is unknown.
    pub async fn call(&self, to: NodeId, class: Class, request: Bytes, deadline: Duration) -> Result<Bytes, CallError> {
        let outcome = match self.begin_call(to, class, request) {
            Ok(pending) => pending.wait(deadline).await,
            Err(error) => Err(error.into()),
        };
        self.shared.meter.call(class, &outcome);
        outcome
    }

    fn begin_call(&self, to: NodeId, class: Class, request: Bytes) -> Result<crate::pending::PendingCall, NotSent> {
        let bytes_max = self.shared.payload_bytes_max(class);
        if request.len() > bytes_max {
            return Err(NotSent::TooLarge { bytes_max });
        }
        let link = self.shared.link(to).ok_or(NotSent::UnknownPeer)?;
        link.ok_or(NotSent::Down)?.begin_call(class, request)
    }

    /// The status of every peer, ordered by id.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut peers: Vec<_> = self.shared.peers.read().values().filter_map(|entry| entry.peer.status()).collect();
        peers.sort_unstable_by_key(|peer| peer.node);
        peers
    }

    /// Sends what is queued, then closes every connection with a code that tells peers so. Takes less than
    /// two seconds. New sends and calls fail at once. The port becomes free soon after the transport is
    /// dropped.
    pub async fn close(&self) {
        let entries = {
            let mut peers = self.shared.peers.write();
            self.shared.closing.send_replace(true);
            std::mem::take(&mut *peers)
        };
        for entry in entries.values() {
            entry.peer.set_address(None);
        }
        let end = Instant::now() + CLOSE_TIMEOUT;
        for (_, mut entry) in entries {
            if timeout_at(end, &mut entry.task).await.is_err() {
                entry.task.abort();
            }
        }
        self.shared.endpoint.close(VarInt::from_u32(CloseCode::Normal as u32), b"");
        // Bounded: a peer that does not answer must not delay the shutdown.
        let _ = timeout(DRAIN_TIMEOUT, self.shared.endpoint.wait_idle()).await;
    }
}

/// The settings for identifying nodes: of every authority that this node trusts, as a node certified by the
/// one before may answer while the authority is rotated.
fn identify_config(identity: &NodeIdentity) -> Result<quinn::ClientConfig, TransportError> {
    join::trusting_client(JoinTrust::Known(identity.trusted()))
}

impl Drop for Transport {
    fn drop(&mut self) {
        let mut peers = self.shared.peers.write();
        self.shared.closing.send_replace(true);
        for (_, entry) in peers.drain() {
            entry.peer.set_address(None);
        }
        self.shared.endpoint.close(VarInt::from_u32(CloseCode::Normal as u32), b"");
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("node", &self.shared.node)
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}
