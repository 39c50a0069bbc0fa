//! The accept loop: bounded connections, bounded heads, a bounded end.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum::{body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tower::ServiceExt as _;

use super::{App, HttpConfig, routes};
use crate::{Admin, Store};

/// Pause after a failed accept (out of file descriptors, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then lets open requests end within [`HttpConfig::stop_grace`].
///
/// `config` must be valid. The future must run on a Tokio runtime with time and network enabled.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    admin: Arc<dyn Admin>,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) {
    let config = Arc::new(config);
    let (stop, stopping) = watch::channel(false);
    let router = routes::router(App::new(store, admin, config.clone(), stopping.clone()));
    let slots = Arc::new(Semaphore::new(config.connections_max));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            // Takes the results of ended connections out of the set, which would otherwise only grow.
            Some(_) = connections.join_next() => {}
            (slot, accepted) = accepted => match (slot, accepted) {
                (Ok(slot), Ok((stream, _))) => {
                    let connection = connection(stream, router.clone(), config.clone(), stopping.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(slot);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => break,
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(config.stop_grace, all_ended).await.is_err() {
        tracing::info!(connections = connections.len(), "closing connections that are still open");
        connections.shutdown().await;
    }
}

/// One connection, from its first byte to its last.
async fn connection(
    stream: TcpStream,
    router: axum::Router,
    config: Arc<HttpConfig>,
    mut stopping: watch::Receiver<bool>,
) {
    // Without it a small answer may wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_buf_size(config.header_bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = async { let _ = stopping.wait_for(|stopping| *stopping).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Broken requests and vanished clients are the client's business.
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(router: axum::Router, request: Request<Incoming>) -> axum::response::Response {
    match router.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
