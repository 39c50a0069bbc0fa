//! One reconnect loop per peer: dial, use the connection until it is lost, back off, dial again.
//!
//! The loop owns the state of the circuit breaker and reports its changes to the handler.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use flotilla_identity::peer_name;
use flotilla_types::{HostPort, NodeId};
use parking_lot::{Mutex, RwLock};
use quinn::Connection;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    Breaker, PeerError, PeerState, PeerStatus,
    endpoint::{CloseCode, classify, close},
    frame,
    link::Link,
    targets::{Targets, dial_first, resolve},
    transport::Shared,
};

/// A dial younger than this is not restarted when the peer turns out to be reachable.
const DIAL_GRACE: Duration = Duration::from_millis(200);
/// Largest welcome that is read. This version sends two bytes; later versions may send more.
const WELCOME_BYTES_MAX: usize = 64;

/// The shared state of a peer.
#[derive(Debug)]
pub(crate) struct Peer {
    node: NodeId,
    /// Where the peer is said to be; `None` ends the loop.
    address: watch::Sender<Option<HostPort>>,
    targets: Mutex<Targets>,
    link: RwLock<Option<Arc<Link>>>,
    status: Mutex<Status>,
    /// Notified when the peer turns out to be reachable.
    reachable: Notify,
}

#[derive(Debug)]
struct Status {
    breaker: Breaker,
    since: Instant,
    connected: Option<SocketAddr>,
    last_error: Option<PeerError>,
}

impl Peer {
    pub(crate) fn new(node: NodeId, address: HostPort) -> Arc<Self> {
        let status = Status { breaker: Breaker::HalfOpen, since: Instant::now(), connected: None, last_error: None };
        Arc::new(Self {
            node,
            address: watch::Sender::new(Some(address)),
            targets: Mutex::new(Targets::new()),
            link: RwLock::new(None),
            status: Mutex::new(status),
            reachable: Notify::new(),
        })
    }

    /// The sending side of the connection, while it is up.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.read().clone()
    }

    /// Sets the address to dial; a connection to another address is flushed and closed. `None` ends the loop.
    pub(crate) fn set_address(&self, address: Option<HostPort>) {
        self.address.send_if_modified(|current| {
            let changed = *current != address;
            *current = address;
            if changed {
                self.targets.lock().renamed();
            }
            changed
        });
    }

    /// Called when the peer seems to be reachable at this address: if its connection is down, it is dialled
    /// at once, here and where it is said to be.
    pub(crate) fn learn(&self, address: SocketAddr) {
        self.targets.lock().learn(address);
        if self.status.lock().breaker != Breaker::Closed {
            self.reachable.notify_one();
        }
    }

    /// The status for status pages; `None` once the peer is removed.
    pub(crate) fn status(&self) -> Option<PeerStatus> {
        let address = self.address.borrow().clone()?;
        let rtt = self.link().map(|link| link.connection().rtt());
        let status = self.status.lock();
        Some(PeerStatus {
            node: self.node,
            address,
            connected: status.connected,
            breaker: status.breaker,
            rtt,
            since: status.since,
            last_error: status.last_error,
        })
    }

    /// The reconnect loop. Ends when the address is set to `None`.
    pub(crate) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut address = self.address.subscribe();
        let mut delays = backoff(&shared);
        let mut refused = false;
        loop {
            let Some(target) = address.borrow_and_update().clone() else { break };
            self.set_breaker(Breaker::HalfOpen, None);
            let dialled = tokio::select! {
                dialled = self.dial_any(&shared, &target) => dialled,
                _ = address.changed() => continue,
                () = self.reachable_again() => continue,
            };
            let error = match dialled {
                Err(error) => error,
                Ok((at, connection)) => {
                    refused = false;
                    let connected_at = Instant::now();
                    let error = self.use_connection(&shared, at, connection, &mut address).await;
                    // A short-lived connection does not reset the backoff.
                    if connected_at.elapsed() > shared.config.backoff_max {
                        delays = backoff(&shared);
                    }
                    error
                }
            };
            tracing::debug!(peer = %self.node, %error, "not connected");
            if error == PeerError::Removed && !refused {
                refused = true;
                shared.handler.on_peer(self.node, PeerState::Refused);
            }
            if address.has_changed().unwrap_or(true) {
                continue;
            }
            // The loss was the change of the address, which was seen there.
            if error == PeerError::Local {
                continue;
            }
            self.set_breaker(Breaker::Open, Some(error));
            tokio::select! {
                () = sleep(delays.next().unwrap_or(shared.config.backoff_max)) => {}
                () = self.reachable.notified() => {}
                _ = address.changed() => {}
            }
        }
    }

    /// Dials every address at which the peer may be, until one answers.
    async fn dial_any(&self, shared: &Arc<Shared>, address: &HostPort) -> Result<(SocketAddr, Connection), PeerError> {
        let named = resolve(address, shared.config.connect_timeout).await;
        let targets = self.targets.lock().to_dial(&named);
        if targets.is_empty() {
            return Err(PeerError::Unresolved);
        }
        let node = self.node;
        dial_first(targets, |target| {
            let shared = shared.clone();
            async move { dial(&shared, node, target).await }
        })
        .await
    }

    /// Uses a connection until it is lost or the peer is said to be elsewhere; returns why it ended.
    async fn use_connection(
        &self,
        shared: &Shared,
        at: SocketAddr,
        connection: Connection,
        address: &mut watch::Receiver<Option<HostPort>>,
    ) -> PeerError {
        self.targets.lock().connected(at);
        self.status.lock().connected = Some(at);
        let (link, mut tasks) = Link::open(connection.clone(), &shared.config, &shared.meter);
        *self.link.write() = Some(link.clone());
        self.set_breaker(Breaker::Closed, None);
        shared.handler.on_peer(self.node, PeerState::Connected);

        let error = loop {
            tokio::select! {
                error = connection.closed() => break classify(&error),
                _ = address.changed() => {
                    let now = address.borrow_and_update().clone();
                    let Some(now) = now else { break PeerError::Local };
                    // Where the peer was found before anybody said so.
                    if !resolve(&now, shared.config.connect_timeout).await.contains(&at) {
                        break PeerError::Local;
                    }
                    self.targets.lock().connected(at);
                }
            }
        };
        *self.link.write() = None;
        if error == PeerError::Local {
            link.flush_and_close(&mut tasks).await;
        }
        link.fail_calls();
        self.status.lock().connected = None;
        self.set_breaker(Breaker::Open, Some(error));
        shared.handler.on_peer(self.node, PeerState::Disconnected);
        error
    }

    /// Resolves when the peer turns out to be reachable, but not before [`DIAL_GRACE`].
    async fn reachable_again(&self) {
        sleep(DIAL_GRACE).await;
        self.reachable.notified().await;
    }

    fn set_breaker(&self, breaker: Breaker, error: Option<PeerError>) {
        let mut status = self.status.lock();
        if (status.breaker == Breaker::Closed) != (breaker == Breaker::Closed) {
            status.since = Instant::now();
        }
        status.breaker = breaker;
        status.last_error = error.or(status.last_error);
    }
}

/// Connects and waits for the welcome, which shows that the peer has accepted this node's certificate and
/// admitted it.
async fn dial(shared: &Shared, node: NodeId, target: SocketAddr) -> Result<Connection, PeerError> {
    let name = peer_name(node, shared.cluster);
    let client = shared.client.read().clone();
    let connecting = shared.endpoint.connect_with(client, target, &name).map_err(|_| PeerError::Address)?;
    let welcomed = async {
        let connection = connecting.await.map_err(|error| classify(&error))?;
        let mut stream = connection.accept_uni().await.map_err(|error| classify(&error))?;
        match stream.read_to_end(WELCOME_BYTES_MAX).await {
            Ok(welcome) if welcome.starts_with(&[frame::VERSION, frame::WELCOME_TAG]) => Ok(connection),
            Ok(_) => {
                close(&connection, CloseCode::Protocol);
                Err(PeerError::Protocol)
            }
            Err(_) => Err(connection.close_reason().as_ref().map_or(PeerError::Protocol, classify)),
        }
    };
    timeout(shared.config.connect_timeout, welcomed).await.unwrap_or(Err(PeerError::TimedOut))
}

/// The delays between failed dials.
fn backoff(shared: &Shared) -> impl Iterator<Item = Duration> + use<> {
    ExponentialBuilder::default()
        .with_min_delay(shared.config.backoff_min)
        .with_max_delay(shared.config.backoff_max)
        .with_jitter()
        .without_max_times()
        .build()
}
