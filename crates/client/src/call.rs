//! One call: which endpoint to try, and when it is harmless to try another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{Problem, ProblemType, TIMEOUT_MS_MAX, header};
use reqwest::{
    Method, Response, StatusCode, header as names,
    header::{HeaderMap, HeaderValue},
};
use serde::de::DeserializeOwned;

use crate::{
    ClientError, ClientOptions, url,
    values::{CollectionCache, ValueSource},
};

/// How long connecting may take before the next endpoint is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an idle connection is kept. Shorter than the time after which a node closes it, so that a write
/// does not race with that close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the client waits beyond the node's deadline, so that the node's own answer arrives first.
const TIMEOUT_GRACE: Duration = Duration::from_secs(1);
/// How long a node may send nothing while an answer arrives.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// An async client of a cluster. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    endpoints: Arc<[String]>,
    /// Index of the endpoint that answered last.
    preferred: Arc<AtomicUsize>,
    pub(crate) timeout: Duration,
    pub(crate) value_timeout: Duration,
    /// What is known of the collections' large values.
    pub(crate) collections: Arc<CollectionCache>,
}

/// Whether a call may be repeated when the first attempt may have arrived: only a read may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// A request to send to some endpoint.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    /// Path and query, starting with `/`.
    pub(crate) path: String,
    /// Headers besides those that every call has.
    pub(crate) headers: Vec<(&'static str, HeaderValue)>,
    /// The body and its content type.
    pub(crate) body: Option<(Payload, HeaderValue)>,
    /// How long the node may take, with the body of the request; if none, the client's timeout.
    pub(crate) timeout: Option<Duration>,
    /// How long all may take, with the body of the answer; if none, not longer than the node may.
    pub(crate) total: Option<Duration>,
}

/// A body.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Bytes(Bytes),
    /// A value that is read while it is sent.
    Value(ValueSource),
}

impl Call {
    pub(crate) fn read(method: Method, path: impl Into<String>) -> Self {
        let path = path.into();
        Self { kind: Kind::Read, method, path, headers: Vec::new(), body: None, timeout: None, total: None }
    }

    pub(crate) fn write(method: Method, path: impl Into<String>) -> Self {
        Self { kind: Kind::Write, ..Self::read(method, path) }
    }

    pub(crate) fn body(self, body: Payload, kind: HeaderValue) -> Self {
        Self { body: Some((body, kind)), ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn within(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub(crate) fn in_total(self, total: Duration) -> Self {
        Self { total: Some(total), ..self }
    }

    pub(crate) fn json(self, body: &impl serde::Serialize) -> Self {
        // Every body is plain data with text keys, so serialization cannot fail.
        let bytes = serde_json::to_vec(body).unwrap_or_default();
        self.body(Payload::Bytes(bytes.into()), HeaderValue::from_static("application/json"))
    }
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) endpoint: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let Self { endpoint, body, .. } = self;
        serde_json::from_slice(&body).map_err(|_| ClientError::Protocol { endpoint })
    }

    /// The value of a numeric header.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }
}

impl Client {
    /// Creates a client of these endpoints without connecting yet.
    ///
    /// # Errors
    /// There is no endpoint, or one is not an origin of HTTP.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let endpoints = options
            .endpoints
            .iter()
            .map(|text| url::endpoint(text, options.authority.is_some()))
            .collect::<Result<Arc<[_]>, _>>()?;
        let first = endpoints.first().ok_or(ClientError::NoEndpoint)?.clone();
        let mut builder = reqwest::Client::builder();
        if let Some(authority) = &options.authority {
            // Two while the cluster replaces its authority.
            let authorities = reqwest::Certificate::from_pem_bundle(authority);
            let authorities = authorities.ok().filter(|authorities| !authorities.is_empty());
            builder = builder.tls_certs_only(authorities.ok_or(ClientError::MalformedAuthority)?);
        }
        // Fails if the process has one, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = builder
            .no_proxy()
            .default_headers(authorization(options.key.as_deref())?)
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|source| ClientError::Unreachable { endpoint: first, source })?;
        let timeout = options.timeout.clamp(Duration::from_millis(1), Duration::from_millis(TIMEOUT_MS_MAX));
        let value_timeout = options.value_timeout;
        Ok(Self { http, endpoints, preferred: Arc::default(), timeout, value_timeout, collections: Arc::default() })
    }

    /// A client of the preferred endpoint only, for calls that depend on what one node remembers.
    pub(crate) fn pinned(&self) -> Self {
        let preferred = self.preferred.load(Ordering::Relaxed) % self.endpoints.len();
        let endpoints = Arc::from([self.endpoints[preferred].clone()]);
        Self { endpoints, preferred: Arc::default(), ..self.clone() }
    }

    /// Prefers the endpoint after this one, which did not do what it should.
    pub(crate) fn prefer_next(&self, endpoint: &str) {
        if let Some(index) = self.endpoints.iter().position(|other| other == endpoint) {
            let next = (index + 1) % self.endpoints.len();
            // Another call may have found a better one already.
            let _ = self.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The endpoint that the next call tries first.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoints[self.preferred.load(Ordering::Relaxed) % self.endpoints.len()]
    }

    /// The endpoints, in the order in which the next call would try them.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (usize, &String)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.endpoints.len();
        (first..first + count).map(move |index| (index % count, &self.endpoints[index % count]))
    }

    /// Tries one endpoint after another, each at most once, as long as that is harmless.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let mut refusals = Refusals::default();
        for (index, endpoint) in self.endpoints() {
            match self.attempt(&call, endpoint).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => refusals.add(error)?,
            }
        }
        Err(refusals.last())
    }

    /// As [`call`](Self::call), for a read whose answer is taken while it arrives.
    pub(crate) async fn open(&self, call: Call) -> Result<Opened, ClientError> {
        let mut refusals = Refusals::default();
        for (index, endpoint) in self.endpoints() {
            match self.head(&call, endpoint).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => refusals.add(error)?,
            }
        }
        Err(refusals.last())
    }

    async fn attempt(&self, call: &Call, endpoint: &str) -> Result<Answer, ClientError> {
        let response = self.send(call, endpoint).await?;
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(|source| no_answer(call.kind, endpoint, source))?;
        Ok(Answer { endpoint: endpoint.to_owned(), headers, body })
    }

    async fn head(&self, call: &Call, endpoint: &str) -> Result<Opened, ClientError> {
        let timeout = call.timeout.unwrap_or(self.timeout) + TIMEOUT_GRACE;
        let stalled = |_| ClientError::Stalled { endpoint: endpoint.to_owned() };
        let response = tokio::time::timeout(timeout, self.send(call, endpoint)).await.map_err(stalled)??;
        Ok(Opened { endpoint: endpoint.to_owned(), response })
    }

    /// Sends the call to one endpoint. Returns the head of an answer that reports success.
    async fn send(&self, call: &Call, endpoint: &str) -> Result<Response, ClientError> {
        let timeout = call.timeout.unwrap_or(self.timeout);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(TIMEOUT_MS_MAX).min(TIMEOUT_MS_MAX);
        let mut request = self
            .http
            .request(call.method.clone(), format!("{endpoint}{}", call.path))
            .timeout(call.total.unwrap_or(timeout + TIMEOUT_GRACE))
            .header(header::TIMEOUT_MS, timeout_ms);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some((body, kind)) = &call.body {
            request = request.header(names::CONTENT_TYPE, kind);
            request = match body {
                Payload::Bytes(bytes) => request.body(bytes.clone()),
                // With a length, so that a node refuses at once what is too long for it.
                Payload::Value(value) => {
                    request.header(names::CONTENT_LENGTH, value.len()).body(reqwest::Body::wrap_stream(value.stream()))
                }
            };
        }
        let response = request.send().await.map_err(|source| no_answer(call.kind, endpoint, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|source| no_answer(call.kind, endpoint, source))?;
        Err(ClientError::Refused(Box::new(problem(call.kind, status, &body))))
    }
}

/// Why endpoints did not do what a call asks.
#[derive(Debug, Default)]
struct Refusals(Option<ClientError>);

impl Refusals {
    /// Fails if no other endpoint may be tried.
    fn add(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !may_try_next(&error) {
            return Err(error);
        }
        // A typed refusal says more than a later endpoint that does not respond.
        if self.0.as_ref().is_none_or(|last| last.problem().is_none()) || error.problem().is_some() {
            self.0 = Some(error);
        }
        Ok(())
    }

    fn last(self) -> ClientError {
        self.0.unwrap_or(ClientError::NoEndpoint)
    }
}

/// An answer that reports success, and whose body has not been read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) endpoint: String,
    response: Response,
}

impl Opened {
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes of the body; none at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let stalled = |_| ClientError::Stalled { endpoint: self.endpoint.clone() };
        let chunk = tokio::time::timeout(STALLED_MAX, self.response.chunk()).await.map_err(stalled)?;
        chunk.map_err(|source| no_answer(Kind::Read, &self.endpoint, source))
    }

    /// The whole body, if it has at most `bytes_max` bytes.
    pub(crate) async fn bytes(mut self, bytes_max: usize) -> Result<Bytes, ClientError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > bytes_max {
                return Err(ClientError::Protocol { endpoint: self.endpoint });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

/// No answer came, or only a part of it.
fn no_answer(kind: Kind, endpoint: &str, source: reqwest::Error) -> ClientError {
    let endpoint = endpoint.to_owned();
    let is_unsent = source.is_connect() || source.is_builder();
    match kind {
        Kind::Write if !is_unsent => ClientError::OutcomeUnknown { endpoint, source },
        Kind::Read | Kind::Write => ClientError::Unreachable { endpoint, source },
    }
}

/// The header that carries the key.
fn authorization(key: Option<&str>) -> Result<HeaderMap, ClientError> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", key.trim())).map_err(|_| ClientError::MalformedKey)?;
        value.set_sensitive(true);
        headers.insert(names::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Whether another node may succeed, and trying it is harmless.
fn may_try_next(error: &ClientError) -> bool {
    let is_local_refusal = |problem: &Problem| {
        matches!(problem.kind, ProblemType::Draining | ProblemType::Unavailable | ProblemType::NotReady)
            && problem.retryable
    };
    matches!(error, ClientError::Unreachable { .. } | ClientError::Stalled { .. })
        || error.problem().is_some_and(is_local_refusal)
}

/// The problem document, or one derived from the status when there is none (answers to `HEAD` have no body).
/// A node always sends one, but a proxy before it may not, after the node received the request.
pub(crate) fn problem(kind: Kind, status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = match status {
            StatusCode::NOT_FOUND => ProblemType::NotFound,
            _ if kind == Kind::Write && status.is_server_error() => ProblemType::OutcomeUnknown,
            _ => ProblemType::Unknown,
        };
        let mut problem = Problem::new(kind, format!("the node answered {status}"));
        problem.status = status.as_u16();
        problem
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A fake node that reads one request, sends `answer` and closes.
    async fn node(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 16 * 1024];
            let bytes = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8_lossy(&request[..bytes]).into_owned()
        });
        (endpoint, served)
    }

    /// An address that no process listens on.
    async fn unused_address() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").to_string()
    }

    fn client(endpoints: [&str; 2]) -> Client {
        Client::new(ClientOptions::new(endpoints)).expect("a client")
    }

    const STORED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\n{\"version\":7,\"timestamp\":7}";
    const DRAINING: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 80\r\n\r\n\
        {\"type\":\"draining\",\"title\":\"t\",\"status\":503,\"detail\":\"drains\",\"retryable\":true}\n";

    #[tokio::test]
    async fn a_write_goes_to_the_next_endpoint_when_nothing_was_sent() {
        let (second, served) = node(STORED).await;
        let client = client([&unused_address().await, &second]);
        let reply = client.put("default", b"a/b", Bytes::from_static(b"v"), &Default::default()).await.expect("stored");
        assert_eq!(reply.version.0, 7);
        let request = served.await.expect("a request");
        assert!(request.starts_with("PUT /v1/kv/default/a%2Fb HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("flotilla-timeout-ms: 5000\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_write_goes_to_the_next_endpoint_when_the_node_says_that_nothing_was_written() {
        let (first, _served) = node(DRAINING).await;
        let (second, _served) = node(STORED).await;
        let put = client([&first, &second]).put("default", b"k", Bytes::new(), &Default::default()).await;
        assert_eq!(put.expect("stored").version.0, 7);
    }

    #[tokio::test]
    async fn a_write_that_may_have_arrived_is_not_resent() {
        let (first, _served) = node("").await;
        let (second, served) = node(STORED).await;
        let put = client([&first, &second]).put("default", b"k", Bytes::new(), &Default::default()).await;
        assert!(put.is_err_and(|error| error.is_outcome_unknown() && !error.is_retryable()));
        assert!(!served.is_finished(), "the second endpoint was tried");
        served.abort();
    }

    #[tokio::test]
    async fn an_error_without_a_problem_document_leaves_a_write_unknown() {
        const BAD_GATEWAY: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\nproxy";
        let (first, _served) = node(BAD_GATEWAY).await;
        let (second, served) = node(STORED).await;
        let put = client([&first, &second]).put("default", b"k", Bytes::new(), &Default::default()).await;
        assert!(put.is_err_and(|error| error.is_outcome_unknown() && !error.is_retryable()));
        assert!(!served.is_finished(), "the second endpoint was tried");
        served.abort();
        assert_eq!(problem(Kind::Read, StatusCode::BAD_GATEWAY, b"").kind, ProblemType::Unknown);
        assert_eq!(problem(Kind::Write, StatusCode::PAYLOAD_TOO_LARGE, b"").kind, ProblemType::Unknown);
    }

    #[tokio::test]
    async fn a_read_without_an_answer_goes_to_the_next_endpoint() {
        let (first, _served) = node("").await;
        let (second, _served) = node("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nflotilla-version: 9\r\n\r\nv").await;
        let got = client([&first, &second]).get("default", b"k").await.expect("an answer").expect("a record");
        assert_eq!((&got.value[..], got.version.0), (&b"v"[..], 9));
    }

    #[tokio::test]
    async fn a_refusal_takes_precedence_over_an_unreachable_endpoint() {
        let (first, _served) = node(DRAINING).await;
        let put =
            client([&first, &unused_address().await]).put("default", b"k", Bytes::new(), &Default::default()).await;
        let error = put.expect_err("no endpoint accepts it");
        assert_eq!(error.problem().map(|problem| problem.kind), Some(ProblemType::Draining));
        assert!(error.is_retryable());
    }
}
