//! The accept loop, with bounds on connections, on request heads and on the time that stopping takes.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderValue, Request, header::CONNECTION},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Duration, Instant, sleep, timeout},
};
use tower::ServiceExt as _;

use super::{App, HttpConfig, guard::Remote, routes};
use crate::{AcceptBackoff, Admin, Security, Store, Tls};

/// How long after the stop idle connections stay open, while answers say `connection: close`. A client whose
/// request crosses the close on the wire cannot know whether it ran; a client that got the header does not
/// send another.
const CLOSE_NOTICE: Duration = Duration::from_millis(200);

/// Serves until `shutdown` resolves, then lets open requests finish within [`HttpConfig::stop_grace`].
///
/// `config` must be valid. The future must run on a Tokio runtime with time and network enabled.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    admin: Arc<dyn Admin>,
    security: Security,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) {
    let config = Arc::new(config);
    let (stop, stopping) = watch::channel(false);
    let router = routes::router(App::new(store, admin, security.access, config.clone(), stopping));
    accept(listener, router, security.tls, config, stop, shutdown).await;
}

/// Accepts connections until `shutdown`, then signals `stop` and lets open connections finish.
async fn accept(
    listener: TcpListener,
    router: axum::Router,
    tls: Option<Tls>,
    config: Arc<HttpConfig>,
    stop: watch::Sender<bool>,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(config.connections_max));
    let mut connections = JoinSet::new();
    let mut backoff = AcceptBackoff::default();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            backoff.wait().await;
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            // Removes ended connections from the set, which would otherwise only grow.
            Some(_) = connections.join_next() => {}
            (slot, accepted) = accepted => match (slot, accepted) {
                (Ok(slot), Ok((stream, remote))) => {
                    backoff.accepted();
                    let connection = connection(stream, remote, router.clone(), tls.clone(), config.clone(), stop.subscribe());
                    connections.spawn(async move {
                        connection.await;
                        drop(slot);
                    });
                }
                (_, Err(error)) => backoff.failed(&error, Instant::now()),
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

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    router: axum::Router,
    tls: Option<Tls>,
    config: Arc<HttpConfig>,
    stopping: watch::Receiver<bool>,
) {
    // Without this option a small answer may wait for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    match tls {
        None => requests(stream, remote, router, config, stopping).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => requests(stream, remote, router, config, stopping).await,
            Err(error) => tracing::debug!(%error, "no TLS connection"),
        },
    }
}

/// Serves the requests of one connection.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    remote: SocketAddr,
    router: axum::Router,
    config: Arc<HttpConfig>,
    mut stopping: watch::Receiver<bool>,
) {
    let is_stopping = stopping.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Remote(remote.ip()));
        let (router, is_stopping) = (router.clone(), is_stopping.clone());
        async move {
            let mut response = answer(router, request).await;
            if *is_stopping.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_buf_size(config.header_bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let close_idle = async {
        let _ = stopping.wait_for(|stopping| *stopping).await;
        sleep(CLOSE_NOTICE).await;
    };
    let served = tokio::select! {
        served = &mut connection => served,
        () = close_idle => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Malformed requests and clients that disconnect are no fault of the node.
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(router: axum::Router, request: Request<Incoming>) -> axum::response::Response {
    match router.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;

    /// Long enough that only a hang exceeds it.
    const HANG: Duration = Duration::from_secs(30);

    struct Server {
        addr: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    }

    async fn server(config: HttpConfig) -> Server {
        let router = axum::Router::new().route("/", get("hello")).route("/never", get(std::future::pending::<()>));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let (sender, _) = watch::channel(false);
        let ended = tokio::spawn(accept(listener, router, None, Arc::new(config), sender, shutdown));
        Server { addr, stop, ended }
    }

    /// Sends `bytes` and reads until the server closes.
    async fn exchange(server: &Server, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
        // The server may refuse and close before everything is sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = timeout(HANG, stream.read_to_end(&mut answer)).await.expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn garbage_is_answered_once_and_closed() {
        let server = server(HttpConfig::default()).await;
        for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"*1\r\n$4\r\nPING\r\n", b"GET\r\n\r\n"] {
            let answer = exchange(&server, garbage).await;
            assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
        }
        assert!(exchange(&server, b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_head_over_the_limit_is_refused_before_it_is_complete() {
        let server = server(HttpConfig { header_bytes_max: 8 << 10, ..HttpConfig::default() }).await;
        let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
        let head = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'y'; 9 << 10]].concat();
        stream.write_all(&head).await.expect("sent");
        let mut answer = [0; 12];
        timeout(HANG, stream.read_exact(&mut answer)).await.expect("an answer").expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 431");
    }

    #[tokio::test]
    async fn requests_in_one_packet_are_answered_in_order() {
        let server = server(HttpConfig::default()).await;
        let one = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let last = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let answer = exchange(&server, &[&one[..], one, last].concat()).await;
        assert_eq!(answer.matches("hello").count(), 3);
    }

    #[tokio::test]
    async fn connections_above_the_limit_wait_for_one_to_close() {
        let server = server(HttpConfig { connections_max: 1, ..HttpConfig::default() }).await;
        let mut first = TcpStream::connect(server.addr).await.expect("a connection");
        first.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let mut byte = [0; 1];
        first.read_exact(&mut byte).await.expect("an answer");
        let close = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let second = exchange(&server, close);
        tokio::pin!(second);
        // After this many yields the second connection would have been served if it could be.
        for _ in 0..100 {
            tokio::select! {
                biased;
                answer = &mut second => panic!("served while the first was open: {answer}"),
                () = tokio::task::yield_now() => {}
            }
        }
        drop(first);
        assert!(second.await.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_request_after_the_stop_is_answered_with_connection_close() {
        let server = server(HttpConfig::default()).await;
        let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
        let request = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        let mut answer = [0; 512];
        let read = timeout(HANG, stream.read(&mut answer)).await.expect("an answer").expect("an answer");
        assert!(answer[..read].ends_with(b"hello"));
        server.stop.send(()).expect("the server runs");
        // Lets the server notice the stop before the next request.
        tokio::time::sleep(CLOSE_NOTICE / 4).await;
        stream.write_all(request).await.expect("sent");
        let mut last = Vec::new();
        timeout(HANG, stream.read_to_end(&mut last)).await.expect("an end").expect("no reset");
        let last = String::from_utf8_lossy(&last);
        assert!(last.contains("connection: close") && last.ends_with("hello"), "{last}");
        timeout(HANG, server.ended).await.expect("the server ends").expect("no panic");
    }

    #[tokio::test]
    async fn stopping_closes_idle_connections_partial_requests_and_hanging_requests() {
        let server = server(HttpConfig { stop_grace: Duration::from_millis(50), ..HttpConfig::default() }).await;
        let mut streams = Vec::new();
        for bytes in [&b""[..], b"GET / HT", b"GET /never HTTP/1.1\r\nhost: h\r\n\r\n"] {
            let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
            stream.write_all(bytes).await.expect("sent");
            streams.push(stream);
        }
        server.stop.send(()).expect("the server runs");
        timeout(HANG, server.ended).await.expect("the server ends").expect("no panic");
    }
}
