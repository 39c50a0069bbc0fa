//! The accept loop, with bounds on connections, on request heads and on the time that stopping takes.

use std::{
    convert::Infallible,
    future::{Future, pending, ready},
    sync::Arc,
};

use axum::{
    http::{HeaderValue, Method, Request, header::CONNECTION},
    response::IntoResponse as _,
};
use flotilla_api::ProblemType;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Duration, Instant, sleep, timeout},
};

use super::{
    App, HttpConfig,
    client::{ClientConnection, Phase},
    exchange::exchange,
    guard::Remote,
    problem::Refusal,
    routes,
    slots::Slots,
    stream::ClientStream,
};
use crate::{AcceptBackoff, Admin, ClientBudget, Security, Store, Tls};

/// How long after the stop idle connections stay open, while answers say `connection: close`. A client whose
/// request crosses the close on the wire cannot know whether it ran; a client that got the header does not
/// send another.
const CLOSE_NOTICE: Duration = Duration::from_millis(200);
/// How long the answers to requests that were given up may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// The answer to a connection for which there is no slot at all.
const NO_SLOT: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Serves until `shutdown` resolves, then lets open requests finish within [`HttpConfig::stop_grace`].
///
/// What clients hold counts on `budget`. `config` must be valid. The future must run on a Tokio runtime with
/// time and network enabled.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    admin: Arc<dyn Admin>,
    security: Security,
    budget: ClientBudget,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) {
    let config = Arc::new(config);
    let (stop, stopping) = watch::channel(false);
    let router = routes::router(App::new(store, admin, security.access, config.clone(), stopping));
    accept(listener, router, security.tls, budget, config, stop, shutdown).await;
}

/// Accepts connections until `shutdown`, then signals `stop` and lets open connections finish.
async fn accept(
    listener: TcpListener,
    router: axum::Router,
    tls: Option<Tls>,
    budget: ClientBudget,
    config: Arc<HttpConfig>,
    stop: watch::Sender<bool>,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Slots::new(&config);
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
                    // Without this option a small answer may wait for the client's delayed acknowledgement.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    match slots.admit(&budget, peer.ip()) {
                        Some(client) => {
                            let (router, tls, config) = (router.clone(), tls.clone(), config.clone());
                            connections.spawn(connection(stream, client, router, tls, config, stop.subscribe()));
                        }
                        None => refuse(&stream),
                    }
                }
                Err(error) => backoff.failed(&error, Instant::now()),
            },
            () = ready(()), if is_stopping => break,
            // Removes ended connections from the set, which would otherwise only grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(config.stop_grace + LAST_ANSWERS, all_ended).await.is_err() {
        tracing::info!(connections = connections.len(), "closing connections that are still open");
        connections.shutdown().await;
    }
}

fn refuse(stream: &TcpStream) {
    metrics::counter!("flotilla_http_connections_refused_total").increment(1);
    // The send buffer of a new connection is empty, so the write fails only if the client has disconnected.
    let _ = stream.try_write(NO_SLOT);
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    client: Arc<ClientConnection>,
    router: axum::Router,
    tls: Option<Tls>,
    config: Arc<HttpConfig>,
    stopping: watch::Receiver<bool>,
) {
    let opened = Instant::now();
    let Some(tls) = tls else { return requests(stream, opened, client, router, config, stopping).await };
    let accepted = tokio::select! {
        accepted = tls.accept(stream, config.first_byte_timeout) => accepted,
        () = client.account.closing() => return,
    };
    match accepted {
        Ok(stream) => requests(stream, opened, client, router, config, stopping).await,
        Err(error) => tracing::debug!(%error, "no TLS connection"),
    }
}

/// Serves the requests of one connection, which was accepted at `opened`.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    opened: Instant,
    client: Arc<ClientConnection>,
    router: axum::Router,
    config: Arc<HttpConfig>,
    stopping: watch::Receiver<bool>,
) {
    let is_stopping = stopping.clone();
    let (of_service, grace) = (client.clone(), config.stop_grace);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Remote(of_service.address()));
        let (router, client, is_stopping) = (router.clone(), of_service.clone(), is_stopping.clone());
        async move {
            let reads = matches!(*request.method(), Method::GET | Method::HEAD);
            let mut response = tokio::select! {
                response = exchange(router, request, client.clone()) => response,
                () = after_stop(is_stopping.clone(), grace) => given_up(reads).into_response(),
            };
            if *is_stopping.borrow() {
                // A client may have sent further requests behind this one.
                client.linger();
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.idle_timeout)
        .max_buf_size(config.header_bytes_max)
        .serve_connection(TokioIo::new(ClientStream::new(stream, opened, client.clone(), &config)), service);
    tokio::pin!(connection);
    let close_idle = after_stop(stopping, CLOSE_NOTICE);
    tokio::pin!(close_idle);
    let mut is_ending = false;
    let served = loop {
        tokio::select! {
            served = &mut connection => break served,
            () = &mut close_idle, if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = client.account.closing() => {
                // A client that is still sending its request gets the reason; others would not read it.
                if client.is(Phase::Body) {
                    let _ = timeout(CLOSE_NOTICE, &mut connection).await;
                }
                return;
            }
        }
    };
    if let Err(error) = served {
        // Malformed requests and clients that disconnect are no fault of the node.
        tracing::debug!(%error, "connection ended");
    }
}

/// Returns some time after the server began to stop.
async fn after_stop(mut stopping: watch::Receiver<bool>, time: Duration) {
    if stopping.wait_for(|stopping| *stopping).await.is_err() {
        pending::<()>().await;
    }
    sleep(time).await;
}

/// The answer to a request that did not end in time before the stop.
fn given_up(reads: bool) -> Refusal {
    if reads {
        Refusal::new(ProblemType::Draining, "this node is about to end; use another one")
    } else {
        let detail = "this node ends before the outcome is known: the request may or may not have taken effect";
        Refusal::new(ProblemType::OutcomeUnknown, detail)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::{any, get, post};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;
    use crate::{CLIENT_BYTES_MIN, Pace};

    /// Bytes of an answer that no socket buffer takes whole.
    const BIG_BYTES: usize = 16 << 20;
    /// Long enough that only a hang exceeds it.
    const HANG: Duration = Duration::from_secs(30);

    struct Server {
        addr: SocketAddr,
        budget: ClientBudget,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    }

    async fn server(config: HttpConfig) -> Server {
        server_with(None, config).await
    }

    async fn server_with(tls: Option<Tls>, config: HttpConfig) -> Server {
        let router = axum::Router::new()
            .route("/", get("hello"))
            .route("/never", any(std::future::pending::<()>))
            .route("/big", get(async || vec![b'b'; BIG_BYTES]))
            .route("/refuse", post("no"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let (sender, _) = watch::channel(false);
        let budget = ClientBudget::new(CLIENT_BYTES_MIN);
        let ended = tokio::spawn(accept(listener, router, tls, budget.clone(), Arc::new(config), sender, shutdown));
        Server { addr, budget, stop, ended }
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

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

    /// Polls until `holds`.
    async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let poll = async {
            while !holds().await {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(HANG, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Whether the server closes the connection.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut rest = Vec::new();
        timeout(HANG, stream.read_to_end(&mut rest)).await.is_ok()
    }

    #[tokio::test]
    async fn requests_are_answered_while_idle_clients_take_every_slot() {
        let config = HttpConfig { connections_max: 2, reserved_connections_max: 2, ..HttpConfig::default() };
        let server = server(config).await;
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(TcpStream::connect(server.addr).await.expect("a connection"));
        }
        let mut first = idle.swap_remove(0);
        first.write_all(GET).await.expect("sent");
        let answer = exchange(&server, GET).await;
        assert!(answer.contains("connection: close") && answer.ends_with("hello"), "one request each: {answer}");
        let mut byte = [0; 1];
        timeout(HANG, first.read_exact(&mut byte)).await.expect("an answer").expect("a general connection stays");
    }

    #[tokio::test]
    async fn the_connections_of_one_address_leave_the_others_to_other_addresses() {
        let config = HttpConfig { connections_per_address_max: 1, ..HttpConfig::default() };
        let server = server(config).await;
        let mut first = TcpStream::connect(server.addr).await.expect("a connection");
        first.write_all(GET).await.expect("sent");
        first.read_exact(&mut [0; 1]).await.expect("an answer");
        assert!(exchange(&server, GET).await.contains("connection: close"), "a reserved connection");
        drop(first);
        let close = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        eventually("the slot is free again", async || {
            let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
            stream.write_all(GET).await.expect("sent");
            let mut answer = vec![0; 512];
            let bytes = timeout(HANG, stream.read(&mut answer)).await.expect("an answer").expect("an answer");
            !String::from_utf8_lossy(&answer[..bytes]).contains("connection: close")
        })
        .await;
        assert!(exchange(&server, close).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_connection_without_a_first_byte_or_with_half_a_head_is_closed() {
        let quick = Duration::from_millis(100);
        let first_byte = server(HttpConfig { first_byte_timeout: quick, ..HttpConfig::default() }).await;
        assert!(is_closed(&mut TcpStream::connect(first_byte.addr).await.expect("a connection")).await);

        let head = server(HttpConfig { head_timeout: quick, ..HttpConfig::default() }).await;
        let mut first = TcpStream::connect(head.addr).await.expect("a connection");
        first.write_all(b"GET / HT").await.expect("sent");
        assert!(is_closed(&mut first).await, "half of the first head");
        let mut second = TcpStream::connect(head.addr).await.expect("a connection");
        second.write_all(GET).await.expect("sent");
        second.read_exact(&mut [0; 20]).await.expect("an answer");
        second.write_all(b"GET / HT").await.expect("sent");
        assert!(is_closed(&mut second).await, "half of the second head");
    }

    #[tokio::test]
    async fn a_handshake_has_the_deadline_of_the_first_byte_and_makes_room_for_newer_connections() {
        // Without a certificate a handshake only ends at a deadline, of which its own is 5 s.
        let (_sender, certificate) = watch::channel(None);
        let soon = Duration::from_secs(3);
        let config = HttpConfig { first_byte_timeout: Duration::from_millis(100), ..HttpConfig::default() };
        let server = server_with(Some(Tls::new(certificate.clone())), config).await;
        let mut slow = TcpStream::connect(server.addr).await.expect("a connection");
        assert!(timeout(soon, is_closed(&mut slow)).await.is_ok(), "the deadline");

        let config = HttpConfig { connections_max: 1, reserved_connections_max: 1, ..HttpConfig::default() };
        let server = server_with(Some(Tls::new(certificate)), config).await;
        let _general = TcpStream::connect(server.addr).await.expect("a connection");
        let mut reserved = TcpStream::connect(server.addr).await.expect("a connection");
        let _newer = TcpStream::connect(server.addr).await.expect("a connection");
        assert!(timeout(soon, is_closed(&mut reserved)).await.is_ok(), "it makes room");
    }

    /// A client with a small receive buffer asks for a large answer and does not read it.
    async fn ask_without_reading(server: &Server) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
        let mut stream = socket.connect(server.addr).await.expect("a connection");
        stream.write_all(b"GET /big HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        stream
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_stay_within_the_budget() {
        let server = server(HttpConfig::default()).await;
        let mut unread = Vec::new();
        for _ in 0..12 {
            unread.push(ask_without_reading(&server).await);
            let held = server.budget.held();
            assert!(held <= CLIENT_BYTES_MIN + BIG_BYTES, "{held} bytes are held");
            assert!(
                exchange(&server, b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.ends_with("hello")
            );
        }
        eventually("the worst are closed", async || {
            let held = server.budget.held();
            assert!(held <= CLIENT_BYTES_MIN + BIG_BYTES, "{held} bytes are held");
            held > 0 && held <= CLIENT_BYTES_MIN
        })
        .await;
        drop(unread);
        eventually("nothing is held for clients that are gone", async || server.budget.held() == 0).await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_left() {
        let pace = Pace { grace: Duration::from_millis(100), bytes_per_second_min: 1 << 30 };
        let server = server(HttpConfig { answer_pace: pace, ..HttpConfig::default() }).await;
        let _unread = ask_without_reading(&server).await;
        eventually("the answer is held", async || server.budget.held() > 0).await;
        eventually("the answer is given up", async || server.budget.held() == 0).await;
    }

    #[tokio::test]
    async fn a_small_body_that_was_not_read_does_not_end_the_connection() {
        let server = server(HttpConfig::default()).await;
        let body = vec![b'v'; 60_000];
        let head = format!("POST /refuse HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
        let close = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let answer = exchange(&server, &[head.as_bytes(), &body, close].concat()).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
        assert_eq!(answer.matches("connection: close").count(), 1, "{answer}");
    }

    #[tokio::test]
    async fn a_large_body_that_was_not_read_ends_the_connection_after_the_answer() {
        let server = server(HttpConfig::default()).await;
        let body = vec![b'v'; 5 << 20];
        for framing in
            [format!("content-length: {}", body.len()), "expect: 100-continue\r\ncontent-length: 10".to_owned()]
        {
            let head = format!("POST /refuse HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n");
            let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
            stream.write_all(head.as_bytes()).await.expect("sent");
            // The answer does not wait for the body.
            let mut answer = vec![0; 512];
            let bytes = timeout(HANG, stream.read(&mut answer)).await.expect("an answer").expect("an answer");
            assert!(String::from_utf8_lossy(&answer[..bytes]).contains("connection: close"));
            stream.write_all(&body).await.expect("no reset while the client sends");
        }
        let head = format!("POST /refuse HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = exchange(&server, &[head.as_bytes(), &body].concat()).await;
        assert!(answer.ends_with("no"), "a client that reads after it has sent everything: {answer}");
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
    async fn a_request_that_does_not_end_before_the_stop_is_answered_all_the_same() {
        for (method, status, kind) in [("GET", "503", "draining"), ("POST", "503", "outcome_unknown")] {
            let server = server(HttpConfig { stop_grace: Duration::from_millis(50), ..HttpConfig::default() }).await;
            let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
            let head = format!("{method} /never HTTP/1.1\r\nhost: h\r\n\r\n");
            // The second one is behind the answer that says `connection: close`, and must not reset the
            // connection.
            stream.write_all(&[head.as_bytes(), GET].concat()).await.expect("sent");
            server.stop.send(()).expect("the server runs");
            let mut answer = String::new();
            timeout(HANG, stream.read_to_string(&mut answer)).await.expect("an end").expect("no reset");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(kind), "{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
            drop(stream);
            timeout(HANG, server.ended).await.expect("the server ends").expect("no panic");
        }
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
