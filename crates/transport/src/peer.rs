//! One reconnect loop for each peer: dial, keep, wait, dial again. It owns the circuit's state and tells of its changes.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use flotilla_identity::peer_name;
use flotilla_types::NodeId;
use parking_lot::{Mutex, RwLock};
use quinn::Connection;
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    Breaker, PeerError, PeerState, PeerStatus,
    endpoint::{CloseCode, classify, close},
    frame,
    link::Link,
    meter::PeerMeter,
    transport::Shared,
};

/// How often the round-trip time is shown in metrics.
const RTT_INTERVAL: Duration = Duration::from_secs(5);
/// A dial younger than this is not begun anew when the peer shows that it is there.
const DIAL_GRACE: Duration = Duration::from_millis(200);
/// The welcome has two bytes; later versions may say more.
const WELCOME_BYTES_MAX: usize = 64;

/// What others may see and do of a peer.
#[derive(Debug)]
pub(crate) struct Peer {
    node: NodeId,
    /// Where to dial; `None` ends the loop.
    address: watch::Sender<Option<SocketAddr>>,
    link: RwLock<Option<Arc<Link>>>,
    status: Mutex<Status>,
    /// The peer was seen alive.
    seen: Notify,
}

#[derive(Debug)]
struct Status {
    breaker: Breaker,
    since: Instant,
    last_error: Option<PeerError>,
}

impl Peer {
    pub(crate) fn new(node: NodeId, address: SocketAddr) -> Arc<Self> {
        let status = Status { breaker: Breaker::HalfOpen, since: Instant::now(), last_error: None };
        Arc::new(Self {
            node,
            address: watch::Sender::new(Some(address)),
            link: RwLock::new(None),
            status: Mutex::new(status),
            seen: Notify::new(),
        })
    }

    /// The connection's sending side, while there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.read().clone()
    }

    /// Dials there from now on; a connection to another address is closed in good order. `None` ends the loop.
    pub(crate) fn set_address(&self, address: Option<SocketAddr>) {
        self.address.send_if_modified(|current| {
            let changed = *current != address;
            *current = address;
            changed
        });
    }

    /// The peer was seen alive: while it is down, dial at once.
    pub(crate) fn saw_alive(&self) {
        if self.status.lock().breaker != Breaker::Closed {
            self.seen.notify_one();
        }
    }

    /// For status pages; `None` once removed.
    pub(crate) fn status(&self) -> Option<PeerStatus> {
        let address = (*self.address.borrow())?;
        let rtt = self.link().map(|link| link.connection().rtt());
        let status = self.status.lock();
        Some(PeerStatus {
            node: self.node,
            address,
            breaker: status.breaker,
            rtt,
            since: status.since,
            last_error: status.last_error,
        })
    }

    /// The loop. Ends when the address is taken away.
    pub(crate) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let meter = PeerMeter::new(self.node);
        let mut address = self.address.subscribe();
        let mut pauses = pauses(&shared);
        let mut refused = false;
        loop {
            let Some(target) = *address.borrow_and_update() else { break };
            self.enter(Breaker::HalfOpen, None);
            let dialled = tokio::select! {
                dialled = dial(&shared, self.node, target) => dialled,
                _ = address.changed() => continue,
                () = self.alive_again() => continue,
            };
            let error = match dialled {
                Err(error) => error,
                Ok(connection) => {
                    refused = false;
                    let began = Instant::now();
                    let error = self.keep(&shared, connection, &mut address, &meter).await;
                    // A connection that does not last is no reason to dial faster.
                    if began.elapsed() > shared.config.backoff_max {
                        pauses = self::pauses(&shared);
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
            self.enter(Breaker::Open, Some(error));
            tokio::select! {
                () = sleep(pauses.next().unwrap_or(shared.config.backoff_max)) => {}
                () = self.seen.notified() => {}
                _ = address.changed() => {}
            }
        }
    }

    /// Uses a connection until it is lost or the address changes; says why it ended.
    async fn keep(
        &self,
        shared: &Shared,
        connection: Connection,
        address: &mut watch::Receiver<Option<SocketAddr>>,
        meter: &PeerMeter,
    ) -> PeerError {
        let (link, mut tasks) = Link::open(connection.clone(), &shared.config, &shared.meter);
        *self.link.write() = Some(link.clone());
        self.enter(Breaker::Closed, None);
        meter.up.set(1.0);
        shared.handler.on_peer(self.node, PeerState::Connected);

        let mut rtt = interval(RTT_INTERVAL);
        rtt.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let error = loop {
            tokio::select! {
                error = connection.closed() => break classify(&error),
                _ = address.changed() => break PeerError::Local,
                _ = rtt.tick() => meter.rtt_seconds.set(connection.rtt().as_secs_f64()),
            }
        };
        *self.link.write() = None;
        if error == PeerError::Local {
            link.finish(&mut tasks).await;
        }
        link.abandon();
        meter.up.set(0.0);
        self.enter(Breaker::Open, Some(error));
        shared.handler.on_peer(self.node, PeerState::Disconnected);
        error
    }

    /// Resolves when the peer shows that it is there, but not for a dial that has only begun.
    async fn alive_again(&self) {
        sleep(DIAL_GRACE).await;
        self.seen.notified().await;
    }

    fn enter(&self, breaker: Breaker, error: Option<PeerError>) {
        let mut status = self.status.lock();
        if (status.breaker == Breaker::Closed) != (breaker == Breaker::Closed) {
            status.since = Instant::now();
        }
        status.breaker = breaker;
        status.last_error = error.or(status.last_error);
    }
}

/// Connects and waits for the welcome: only then has the peer accepted our certificate and admitted us.
async fn dial(shared: &Shared, node: NodeId, target: SocketAddr) -> Result<Connection, PeerError> {
    let name = peer_name(node, shared.cluster);
    let connecting =
        shared.endpoint.connect_with(shared.client.clone(), target, &name).map_err(|_| PeerError::Address)?;
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

fn pauses(shared: &Shared) -> impl Iterator<Item = Duration> + use<> {
    ExponentialBuilder::default()
        .with_min_delay(shared.config.backoff_min)
        .with_max_delay(shared.config.backoff_max)
        .with_jitter()
        .without_max_times()
        .build()
}
