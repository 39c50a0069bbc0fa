//! The server: accepts connections and gives each a task of its own, until it is told to stop.

mod config;
mod connection;
mod session;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_gateway::Store;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

pub use config::{ServerConfig, ServerConfigError};

use crate::{
    Reply,
    clients::Clients,
    cursors::{CURSORS_MAX, Cursors},
    execute::{Facts, info_text, wants_keyspace},
};

/// The version of Redis that clients are told; its options and errors are what they find here.
pub(crate) const REDIS_VERSION: &str = "7.2.0";

/// Pause after a failed accept (out of file descriptors, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Silence after which a client's machine is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) config: ServerConfig,
    pub(crate) clients: Clients,
    pub(crate) cursors: Mutex<Cursors>,
    pub(crate) commands: AtomicU64,
    /// Bytes that all connections hold, as [`ServerConfig::buffered_bytes_total_max`] counts them.
    pub(crate) buffered_bytes: AtomicUsize,
    started: Instant,
    port: u16,
}

impl Shared {
    /// The reply to `INFO`.
    pub(crate) async fn info(&self, sections: &[Bytes], deadline: Instant) -> Reply {
        let keys = match wants_keyspace(sections) {
            true => self.store.count("default", deadline).await.ok(),
            false => None,
        };
        let facts = Facts {
            redis_version: REDIS_VERSION,
            port: self.port,
            process: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            clients: self.clients.count(),
            clients_max: self.config.connections_max,
            accepted: self.clients.accepted(),
            commands: self.commands.load(Ordering::Relaxed),
            keys,
        };
        Reply::Verbatim(info_text(sections, &facts))
    }
}

/// Serves until `shutdown` resolves, then lets open requests end within [`ServerConfig::stop_grace`].
///
/// `config` must be valid. The future must run on a Tokio runtime with time and network enabled.
pub async fn serve(listener: TcpListener, store: Store, config: ServerConfig, shutdown: impl Future<Output = ()>) {
    let stop_grace = config.stop_grace;
    let shared = Arc::new(Shared {
        store,
        config,
        clients: Clients::default(),
        cursors: Mutex::new(Cursors::new(CURSORS_MAX)),
        commands: AtomicU64::new(0),
        buffered_bytes: AtomicUsize::new(0),
        started: Instant::now(),
        port: listener.local_addr().map_or(0, |address| address.port()),
    });
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            // Takes the results of ended connections out of the set, which would otherwise only grow.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if shared.clients.count() >= shared.config.connections_max => refuse(&stream),
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, shared.clone(), stopping.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
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
    // The buffer of a new connection is empty; a client that has gone already misses nothing.
    let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
}

/// One connection, from its first byte to its last.
async fn connection(stream: TcpStream, shared: Arc<Shared>, stopping: watch::Receiver<bool>) {
    // Without it a small answer may wait for the client's delayed acknowledgement.
    let tuned = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE)));
    if let Err(error) = tuned {
        tracing::debug!(%error, "socket options");
    }
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let open = Open { client: shared.clients.open(peer, local, Instant::now()), shared };
    if let Err(error) =
        connection::Connection::new(stream, open.shared.clone(), open.client.clone()).run(stopping).await
    {
        // Vanished clients are the client's business.
        tracing::debug!(%error, "connection ended");
    }
}

/// Takes the client off the list, also when its task is aborted.
struct Open {
    client: Arc<crate::clients::Client>,
    shared: Arc<Shared>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.clients.close(self.client.id);
    }
}
