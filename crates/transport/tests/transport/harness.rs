//! A node whose handler records what arrives, and a raw QUIC client that can violate the protocol.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey, peer_name};
use flotilla_transport::{
    BoxFuture, Breaker, Class, Config, Handler, PeerState, PeerStatus, Transport, TransportError,
};
use flotilla_types::{ClusterId, NodeId};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Far above anything on loopback; only a failing test takes this long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn authority() -> ClusterAuthority {
    ClusterAuthority::mint(CLUSTER).unwrap()
}

pub(crate) fn identity(authority: &ClusterAuthority, node: u64) -> NodeIdentity {
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(NodeId(node), &key.csr_der().unwrap(), u64::MAX).unwrap();
    NodeIdentity::new(authority.cluster(), NodeId(node), authority.cert_der().clone(), cert, key).unwrap()
}

pub(crate) fn config() -> Config {
    Config::new(([127, 0, 0, 1], 0).into())
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Frame(NodeId, Class, Bytes),
    Datagram(NodeId, Bytes),
    Call(NodeId, Bytes),
    Peer(NodeId, PeerState),
}

/// Records everything. The request `hold` waits for [`Node::release`], `big <n>` is answered with n bytes,
/// others are echoed.
pub(crate) struct Recorder {
    events: mpsc::UnboundedSender<Event>,
    held_calls: Arc<Semaphore>,
    admits: Arc<AtomicBool>,
}

impl Handler for Recorder {
    fn on_frame(&self, from: NodeId, class: Class, frame: Bytes) {
        let _ = self.events.send(Event::Frame(from, class, frame));
    }

    fn on_datagram(&self, from: NodeId, packet: Bytes) {
        let _ = self.events.send(Event::Datagram(from, packet));
    }

    fn on_call(&self, from: NodeId, _: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        let _ = self.events.send(Event::Call(from, request.clone()));
        let held_calls = self.held_calls.clone();
        Box::pin(async move {
            if request == "hold" {
                held_calls.acquire().await.unwrap().forget();
            }
            match std::str::from_utf8(&request).ok().and_then(|text| text.strip_prefix("big ")) {
                Some(bytes) => vec![7; bytes.parse().unwrap()].into(),
                None => request,
            }
        })
    }

    fn on_join(&self, _: SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move { [b"welcome ", &request[..]].concat().into() })
    }

    fn on_peer(&self, peer: NodeId, state: PeerState) {
        let _ = self.events.send(Event::Peer(peer, state));
    }

    fn admit(&self, _: NodeId) -> bool {
        self.admits.load(Ordering::Relaxed)
    }
}

pub(crate) struct Node {
    pub(crate) transport: Transport,
    events: mpsc::UnboundedReceiver<Event>,
    held_calls: Arc<Semaphore>,
    admits: Arc<AtomicBool>,
    id: NodeId,
}

impl Node {
    pub(crate) async fn start(identity: NodeIdentity, config: Config) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (held_calls, admits) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(true)));
        let recorder = Recorder { events: sender, held_calls: held_calls.clone(), admits: admits.clone() };
        let id = identity.node();
        let recorder = Arc::new(recorder);
        let start = async {
            loop {
                match Transport::start(config.clone(), identity.clone(), recorder.clone()).await {
                    Ok(transport) => break transport,
                    // The port of a closed transport becomes free a moment later.
                    Err(TransportError::Bind(error)) if error.kind() == ErrorKind::AddrInUse => {
                        tokio::task::yield_now().await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let transport = timeout(TIMEOUT, start).await.expect("the port becomes free");
        Self { transport, events, held_calls, admits, id }
    }

    /// Two connected nodes, 1 and 2; only 1 dials.
    pub(crate) async fn pair(config: Config) -> (Self, Self) {
        let authority = authority();
        let mut one = Self::start(identity(&authority, 1), config.clone()).await;
        let two = Self::start(identity(&authority, 2), config).await;
        one.connect(&two).await;
        (one, two)
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.transport.local_addr()
    }

    pub(crate) async fn connect(&mut self, to: &Self) {
        self.transport.set_peer(to.id, to.address());
        self.wait(Event::Peer(to.id, PeerState::Connected)).await;
    }

    pub(crate) async fn next(&mut self) -> Event {
        timeout(TIMEOUT, self.events.recv()).await.expect("an event within the timeout").unwrap()
    }

    /// Waits for this event, skipping others.
    pub(crate) async fn wait(&mut self, expected: Event) {
        while self.next().await != expected {}
    }

    /// Takes the events recorded so far.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    pub(crate) fn release(&self, holds: usize) {
        self.held_calls.add_permits(holds);
    }

    pub(crate) fn stop_admitting(&self) {
        self.admits.store(false, Ordering::Relaxed);
    }

    pub(crate) fn status(&self, of: NodeId) -> PeerStatus {
        self.transport.peers().into_iter().find(|peer| peer.node == of).unwrap()
    }

    /// Waits until the status of a peer matches.
    pub(crate) async fn wait_status(&self, of: NodeId, matches: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
        let poll = async {
            loop {
                let status = self.status(of);
                if matches(&status) {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(TIMEOUT, poll).await.unwrap_or_else(|_| panic!("status is {:?}", self.status(of)))
    }

    /// Waits until a dial has failed.
    pub(crate) async fn wait_open(&self, of: NodeId) -> PeerStatus {
        self.wait_status(of, |status| status.breaker == Breaker::Open).await
    }

    pub(crate) async fn call(&self, to: NodeId, request: &'static [u8]) -> Bytes {
        self.transport.call(to, Class::Rpc, Bytes::from_static(request), TIMEOUT).await.unwrap()
    }
}

/// A QUIC client that speaks `alpn`, trusts `authority`, and presents any certificate or none.
pub(crate) struct RawClient {
    _endpoint: quinn::Endpoint,
    pub(crate) connection: quinn::Connection,
}

impl RawClient {
    pub(crate) async fn dial(
        to: &Node,
        identity: Option<&NodeIdentity>,
        authority: &ClusterAuthority,
        alpn: &[u8],
    ) -> Result<Self, quinn::ConnectionError> {
        let mut tls = flotilla_identity::join_client_config(authority.fingerprint().into()).unwrap();
        if let Some(identity) = identity {
            let resolver = flotilla_identity::peer_client_config(identity).unwrap().client_auth_cert_resolver;
            tls.client_auth_cert_resolver = resolver;
        }
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let client = quinn::ClientConfig::new(Arc::new(tls));
        let connecting = endpoint.connect_with(client, to.address(), &peer_name(to.id, CLUSTER)).unwrap();
        let connection = timeout(TIMEOUT, connecting).await.expect("a handshake within the timeout")?;
        Ok(Self { _endpoint: endpoint, connection })
    }

    /// How the peer closed the connection: `Ok` with the transport's code, `Err` with QUIC's.
    pub(crate) async fn closed(&self) -> Result<u64, u64> {
        close_code(&timeout(TIMEOUT, self.connection.closed()).await.expect("a close within the timeout"))
    }

    /// Opens a one-way stream and writes these bytes to it.
    pub(crate) async fn write(&self, bytes: &[u8]) -> quinn::SendStream {
        let mut stream = self.connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

pub(crate) fn close_code(error: &quinn::ConnectionError) -> Result<u64, u64> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => Ok(close.error_code.into_inner()),
        quinn::ConnectionError::ConnectionClosed(close) => Err(close.error_code.into()),
        other => panic!("not closed by the other side: {other}"),
    }
}
