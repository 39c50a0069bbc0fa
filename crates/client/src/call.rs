//! One call: which endpoint to try, and when it is harmless to try another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{Problem, ProblemType, TIMEOUT_MS_MAX, header};
use reqwest::{
    Method, StatusCode, header as names,
    header::{HeaderMap, HeaderValue},
};
use serde::de::DeserializeOwned;

use crate::{ClientError, ClientOptions, url};

/// How long connecting may take before the next endpoint is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an idle connection is kept. Shorter than the time after which a node closes it, so that a write
/// does not race with that close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the client waits beyond the node's deadline, so that the node's own answer arrives first.
const TIMEOUT_GRACE: Duration = Duration::from_secs(1);

/// An async client of a cluster. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    endpoints: Arc<[String]>,
    /// Index of the endpoint that answered last.
    preferred: Arc<AtomicUsize>,
    timeout: Duration,
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
    /// The body and its content type.
    pub(crate) body: Option<(Bytes, &'static str)>,
}

impl Call {
    pub(crate) fn read(method: Method, path: impl Into<String>) -> Self {
        Self { kind: Kind::Read, method, path: path.into(), body: None }
    }

    pub(crate) fn write(method: Method, path: impl Into<String>) -> Self {
        Self { kind: Kind::Write, method, path: path.into(), body: None }
    }

    pub(crate) fn bytes(self, bytes: Bytes) -> Self {
        Self { body: Some((bytes, "application/octet-stream")), ..self }
    }

    pub(crate) fn json(self, body: &impl serde::Serialize) -> Self {
        // Every body is plain data with text keys, so serialization cannot fail.
        let bytes = serde_json::to_vec(body).unwrap_or_default();
        Self { body: Some((bytes.into(), "application/json")), ..self }
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
        Ok(Self { http, endpoints, preferred: Arc::default(), timeout })
    }

    /// The endpoints, in the order in which the next call would try them.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (usize, &String)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.endpoints.len();
        (first..first + count).map(move |index| (index % count, &self.endpoints[index % count]))
    }

    /// Tries one endpoint after another, each at most once, as long as that is harmless.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let mut last = ClientError::NoEndpoint;
        for (index, endpoint) in self.endpoints() {
            match self.attempt(&call, endpoint).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if may_try_next(&error) => {
                    // A typed refusal says more than a later endpoint that does not respond.
                    if last.problem().is_none() || error.problem().is_some() {
                        last = error;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn attempt(&self, call: &Call, endpoint: &str) -> Result<Answer, ClientError> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(TIMEOUT_MS_MAX);
        let mut request = self
            .http
            .request(call.method.clone(), format!("{endpoint}{}", call.path))
            .timeout(self.timeout + TIMEOUT_GRACE)
            .header(header::TIMEOUT_MS, timeout_ms);
        if let Some((body, kind)) = &call.body {
            request = request.header(names::CONTENT_TYPE, *kind).body(body.clone());
        }
        let no_answer = |source: reqwest::Error| {
            let endpoint = endpoint.to_owned();
            let is_unsent = source.is_connect() || source.is_builder();
            match call.kind {
                Kind::Write if !is_unsent => ClientError::OutcomeUnknown { endpoint, source },
                Kind::Read | Kind::Write => ClientError::Unreachable { endpoint, source },
            }
        };
        let response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(no_answer)?;
        if status.is_success() {
            return Ok(Answer { endpoint: endpoint.to_owned(), headers, body });
        }
        Err(ClientError::Refused(Box::new(problem(call.kind, status, &body))))
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
    matches!(error, ClientError::Unreachable { .. }) || error.problem().is_some_and(is_local_refusal)
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
