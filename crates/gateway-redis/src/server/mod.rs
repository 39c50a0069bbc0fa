//! The server: accepts connections and runs each in a task of its own, until shutdown.

mod config;
mod connection;
mod deadlines;
mod multi;
mod pause;
mod session;

use std::{
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_gateway::{
    AcceptBackoff, Access, AddressLimit, AddressSlot, Admin, ClientBudget, ClientStream, Counted, Security, Store, Tls,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{timeout, timeout_at},
};

pub use config::{ServerConfig, ServerConfigError};
use pause::Pause;
use session::Context;

use crate::{
    Database, Reply,
    clients::Clients,
    clock,
    cursors::{CURSORS_MAX, Cursors},
    execute::{Facts, info_text, wants_keyspace},
    keyspace::{Caller, Keyspace},
    process,
    script::Scripts,
    stripes::Stripes,
};

/// The version of Redis that clients see; options and errors follow this version.
pub(crate) const REDIS_VERSION: &str = "7.2.0";

/// Idle time after which TCP probes whether the client's host is still reachable.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// How long `INFO` waits for the number of keys.
const KEYSPACE_WITHIN: Duration = Duration::from_millis(200);

/// Scripts that run at once.
const SCRIPTS_RUNNING_MAX: usize = 2;

/// State shared by all connections.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) admin: Arc<dyn Admin>,
    pub(crate) access: Arc<Access>,
    pub(crate) config: ServerConfig,
    pub(crate) clients: Clients,
    pub(crate) cursors: Mutex<Cursors>,
    pub(crate) stripes: Stripes,
    pub(crate) scripts: Scripts,
    pause: Pause,
    /// Each running script has a permit: scripts use a processor for long.
    pub(crate) script_permits: Semaphore,
    /// The last answer of `RANDOMKEY` in each database, after which the next one is searched.
    pub(crate) last_random_keys: Mutex<[Option<Bytes>; Database::COUNT]>,
    pub(crate) commands: AtomicU64,
    /// Bytes that all connections hold, as [`ServerConfig::buffered_bytes_total_max`] counts them.
    pub(crate) buffered_bytes: AtomicUsize,
    pub(crate) budget: ClientBudget,
    started: Instant,
    port: u16,
}

impl Shared {
    fn context(&self, now: Instant, now_ms: u64) -> Context<'_> {
        Context {
            clients: &self.clients,
            scripts: &self.scripts,
            pause: &self.pause,
            access: &self.access,
            now,
            now_ms,
        }
    }

    /// The records of a database, as a caller uses them.
    pub(crate) fn keyspace(&self, database: Database, caller: Caller) -> Keyspace {
        Keyspace::new(self.store.clone(), self.admin.clone(), database, caller)
    }

    /// What the databases that this node knows hold, as far as it is counted in a short time: without a
    /// quorum, clients that wait for `INFO` before anything else must not wait for that.
    async fn databases(&self, deadline: Instant) -> Vec<(Database, Counted)> {
        let deadline = deadline.min(Instant::now() + KEYSPACE_WITHIN);
        let known = Database::all().filter(|database| self.store.knows_collection(database.collection()));
        let counts = known.map(|database| async move {
            let counted = timeout_at(deadline.into(), self.store.count(database.collection(), deadline)).await;
            Some((database, counted.ok()?.ok()?))
        });
        join_all(counts).await.into_iter().flatten().collect()
    }

    /// The reply to `INFO`.
    pub(crate) async fn info(&self, sections: &[Bytes], deadline: Instant) -> Reply {
        let databases = if wants_keyspace(sections) { self.databases(deadline).await } else { Vec::new() };
        let facts = Facts {
            redis_version: REDIS_VERSION,
            port: self.port,
            process: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            clients: self.clients.count(),
            clients_max: self.config.connections_max,
            accepted: self.clients.accepted(),
            commands: self.commands.load(Ordering::Relaxed),
            draining: self.admin.is_draining(),
            now_ms: clock::wall_ms(),
            databases,
            memory: process::memory(),
            cpu_s: process::cpu_s(),
        };
        Reply::Verbatim(info_text(sections, &facts))
    }
}

/// Serves until `shutdown` resolves, then lets open requests finish within [`ServerConfig::stop_grace`].
///
/// `admin` creates the collections of databases when they are first written. What clients hold counts on
/// `budget`. `config` must be valid. The future must run on a Tokio runtime with
/// time and network enabled.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    admin: Arc<dyn Admin>,
    security: Security,
    budget: ClientBudget,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) {
    let addresses = AddressLimit::new(config.connections_per_address_max);
    let stop_grace = config.stop_grace;
    let shared = Arc::new(Shared {
        store,
        admin,
        access: security.access,
        config,
        clients: Clients::default(),
        cursors: Mutex::new(Cursors::new(CURSORS_MAX)),
        stripes: Stripes::default(),
        scripts: Scripts::default(),
        pause: Pause::default(),
        script_permits: Semaphore::new(SCRIPTS_RUNNING_MAX),
        last_random_keys: Mutex::default(),
        commands: AtomicU64::new(0),
        buffered_bytes: AtomicUsize::new(0),
        budget,
        started: Instant::now(),
        port: listener.local_addr().map_or(0, |address| address.port()),
    });
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut backoff = AcceptBackoff::default();
    let mut is_stopping = false;
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            backoff.wait().await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            () = &mut shutdown, if !is_stopping => is_stopping = true,
            // Also those that the system has accepted before the stop: their clients may have sent requests.
            accepted = accepted => match accepted {
                Ok((stream, peer)) => {
                    backoff.accepted();
                    while connections.try_join_next().is_some() {}
                    // Not the number of registered clients: a connection registers when its task first runs.
                    let has_slot = connections.len() < shared.config.connections_max;
                    match addresses.enter(peer.ip()).filter(|_| has_slot) {
                        Some(slot) => {
                            let (tls, shared) = (security.tls.clone(), shared.clone());
                            connections.spawn(connection(stream, slot, tls, shared, stopping.clone()));
                        }
                        None => refuse(&stream),
                    }
                }
                Err(error) => backoff.failed(&error, tokio::time::Instant::now()),
            },
            () = ready(()), if is_stopping => break,
            // Removes ended connections from the set, which would otherwise only grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(stop_grace, all_ended).await.is_err() {
        tracing::info!(connections = connections.len(), "closing connections that are still open");
        connections.shutdown().await;
    }
}

fn refuse(stream: &TcpStream) {
    metrics::counter!("flotilla_redis_connections_refused_total").increment(1);
    // The send buffer of a new connection is empty, so the write fails only if the client has disconnected.
    let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    _slot: AddressSlot,
    tls: Option<Tls>,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
) {
    let opened = Instant::now();
    // Without `TCP_NODELAY` a small answer may wait for the client's delayed acknowledgement.
    let tuned = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE)));
    if let Err(error) = tuned {
        tracing::debug!(%error, "cannot set socket options");
    }
    let stream: ClientStream = match tls {
        None => stream.into(),
        Some(tls) => match tls.accept(stream, shared.config.first_byte_timeout).await {
            Ok(stream) => stream.into(),
            Err(error) => {
                tracing::debug!(%error, "no TLS connection");
                return;
            }
        },
    };
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let registered = Registered { client: shared.clients.open(peer, local, Instant::now()), shared };
    let account = registered.shared.budget.open();
    let connection =
        connection::Connection::new(stream, opened, account, registered.shared.clone(), registered.client.clone());
    if let Err(error) = connection.run(stopping).await {
        // Clients that disconnect are no fault of the node.
        tracing::debug!(%error, "connection ended");
    }
}

/// A client on the list of clients. Dropping it removes the client, also when its task is aborted.
struct Registered {
    client: Arc<crate::clients::Client>,
    shared: Arc<Shared>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.clients.close(self.client.id);
    }
}
