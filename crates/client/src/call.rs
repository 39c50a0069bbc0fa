//! One call: which endpoint to ask, and when it is harmless to ask another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{Problem, ProblemType, TIMEOUT_MS_MAX, header};
use reqwest::{Method, StatusCode, header as names, header::HeaderMap};
use serde::de::DeserializeOwned;

use crate::{ClientError, ClientOptions, url};

/// How long connecting may take before the next endpoint is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection is kept unused. Shorter than the time after which a node closes it, so that a write does not
/// meet a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How much longer than the node the client waits, so that the node's own answer comes first.
const GRACE: Duration = Duration::from_secs(1);

/// A client. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    endpoints: Arc<[String]>,
    /// Index of the endpoint that answered last.
    preferred: Arc<AtomicUsize>,
    timeout: Duration,
}

/// Whether a call may be repeated when it is not known whether the first attempt arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// What to send.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    /// With its query, starting with `/`.
    pub(crate) path: String,
    /// With its content type.
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
        // Every body of the interface is plain data with text keys, which JSON can always hold.
        let bytes = serde_json::to_vec(body).unwrap_or_default();
        Self { body: Some((bytes.into(), "application/json")), ..self }
    }
}

/// An answer that is no refusal.
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

    /// A header that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }
}

impl Client {
    /// A client of these endpoints. Connects to nothing yet.
    ///
    /// # Errors
    /// No endpoint, or one that is not plain HTTP.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let endpoints = options.endpoints.iter().map(|text| url::endpoint(text)).collect::<Result<Arc<[_]>, _>>()?;
        let first = endpoints.first().ok_or(ClientError::NoEndpoint)?.clone();
        let http = reqwest::Client::builder()
            .no_proxy()
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
        (first..first + count).map(move |at| (at % count, &self.endpoints[at % count]))
    }

    /// Asks one endpoint after the other, each at most once, as long as that is harmless.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, ClientError> {
        let mut last = ClientError::NoEndpoint;
        for (index, endpoint) in self.endpoints() {
            match self.attempt(&call, endpoint).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if elsewhere(&error) => {
                    // A typed refusal says more than the next node's silence.
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
        let ms = u64::try_from(self.timeout.as_millis()).unwrap_or(TIMEOUT_MS_MAX);
        let mut request = self
            .http
            .request(call.method.clone(), format!("{endpoint}{}", call.path))
            .timeout(self.timeout + GRACE)
            .header(header::TIMEOUT_MS, ms);
        if let Some((body, kind)) = &call.body {
            request = request.header(names::CONTENT_TYPE, *kind).body(body.clone());
        }
        let lost = |source: reqwest::Error| {
            let endpoint = endpoint.to_owned();
            let surely_unsent = source.is_connect() || source.is_builder();
            match call.kind {
                Kind::Write if !surely_unsent => ClientError::OutcomeUnknown { endpoint, source },
                Kind::Read | Kind::Write => ClientError::Unreachable { endpoint, source },
            }
        };
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(lost)?;
        if status.is_success() {
            return Ok(Answer { endpoint: endpoint.to_owned(), headers, body });
        }
        Err(ClientError::Refused(Box::new(problem(status, &body))))
    }
}

/// Whether another node may do better, and asking it is harmless.
fn elsewhere(error: &ClientError) -> bool {
    let refused_here = |problem: &Problem| {
        matches!(problem.kind, ProblemType::Draining | ProblemType::Unavailable | ProblemType::NotReady)
            && problem.retryable
    };
    matches!(error, ClientError::Unreachable { .. }) || error.problem().is_some_and(refused_here)
}

/// The problem document, or one made up from the status when there is none (answers to `HEAD` have no body).
pub(crate) fn problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = match status {
            StatusCode::NOT_FOUND => ProblemType::NotFound,
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

    /// A node that reads a request, sends this, and closes. Stops after one connection.
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

    /// An address that nobody listens on.
    async fn nobody() -> String {
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
        let client = client([&nobody().await, &second]);
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
    async fn a_write_that_may_have_arrived_is_not_sent_again() {
        let (first, _served) = node("").await;
        let (second, served) = node(STORED).await;
        let put = client([&first, &second]).put("default", b"k", Bytes::new(), &Default::default()).await;
        assert!(put.is_err_and(|error| error.is_outcome_unknown() && !error.is_retryable()));
        assert!(!served.is_finished(), "the second endpoint was asked");
        served.abort();
    }

    #[tokio::test]
    async fn a_read_that_got_no_answer_is_asked_elsewhere() {
        let (first, _served) = node("").await;
        let (second, _served) = node("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nflotilla-version: 9\r\n\r\nv").await;
        let got = client([&first, &second]).get("default", b"k").await.expect("an answer").expect("a record");
        assert_eq!((&got.value[..], got.version.0), (&b"v"[..], 9));
    }

    #[tokio::test]
    async fn a_refusal_says_more_than_the_silence_after_it() {
        let (first, _served) = node(DRAINING).await;
        let put = client([&first, &nobody().await]).put("default", b"k", Bytes::new(), &Default::default()).await;
        let error = put.expect_err("nobody took it");
        assert_eq!(error.problem().map(|problem| problem.kind), Some(ProblemType::Draining));
        assert!(error.is_retryable());
    }
}
