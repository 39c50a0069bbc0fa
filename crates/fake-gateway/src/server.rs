//! Connections and routes, and what tests do to the server.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use flotilla_types::ObjectId;
use flotilla_values::{Chunking, ValueRef};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{Answer, Arrived, Content, Record, State};

/// What came and went, with all heads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of requests.
    pub received: u64,
    /// Bytes of answers.
    pub sent: u64,
    /// Requests.
    pub calls: u64,
    /// Bodies with objects that were stored.
    pub batches: u64,
    /// Of them, those that were compressed.
    pub compressed: u64,
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct FakeGateway {
    endpoint: String,
    state: Arc<Mutex<State>>,
    bytes: Arc<Counts>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

impl FakeGateway {
    /// Starts a server on a free port, with the default chunks.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State {
            knows_objects: true,
            chunking: Chunking::default(),
            chunk: None,
            objects: Default::default(),
            uploads: Default::default(),
            uploads_begun: 0,
            records: Default::default(),
            version: 0,
            failures: Vec::new(),
            batches_until_uploads_end: None,
            traffic: Traffic::default(),
        }));
        let bytes = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state), Arc::clone(&bytes)));
        Self { endpoint, state, bytes, accepting }
    }

    /// Its origin.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What came and went since the last call of this.
    pub fn take_traffic(&self) -> Traffic {
        let traffic = std::mem::take(&mut self.state.lock().traffic);
        let [received, sent] = [&self.bytes.received, &self.bytes.sent].map(|bytes| bytes.swap(0, Ordering::Relaxed));
        Traffic { received, sent, ..traffic }
    }

    /// Makes it a node of an earlier version.
    pub fn forget_the_calls_about_objects(&self) {
        self.state.lock().knows_objects = false;
    }

    /// Cuts values in this way from now on. `chunk` is what it says of that to clients, if
    /// not how it is.
    pub fn set_chunking(&self, chunking: Chunking, chunk: Option<&'static str>) {
        let mut state = self.state.lock();
        (state.chunking, state.chunk) = (chunking, chunk);
    }

    /// Lets the next `times` calls fail whose path begins so.
    pub fn fail(&self, path: &str, times: u32, status: u16) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.state.lock().failures.push((path.to_owned(), times, status));
    }

    /// Ends all uploads after so many batches of objects, once.
    pub fn end_uploads_after(&self, batches: u32) {
        self.state.lock().batches_until_uploads_end = Some(batches);
    }

    /// Loses every object for which this holds.
    pub fn lose_objects(&self, lost: impl Fn(ObjectId) -> bool) {
        self.state.lock().objects.retain(|id, _| !lost(*id));
    }

    /// Damages the object that is first in the order of ids, so that it does not match its id any more.
    pub fn damage_an_object(&self) {
        if let Some(bytes) = self.state.lock().objects.values_mut().next() {
            *bytes = bytes.iter().map(|byte| !byte).collect();
        }
    }

    /// How many objects it has.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.state.lock().objects.len()
    }

    /// Stores a value as if another client had done it.
    ///
    /// # Panics
    /// The value is longer than any can be.
    pub fn put(&self, collection: &str, key: &[u8], value: &[u8]) {
        self.state.lock().put(collection, key, Bytes::copy_from_slice(value), "application/octet-stream".to_owned());
    }

    /// The value and the media type of a record.
    #[must_use]
    pub fn get(&self, collection: &str, key: &[u8]) -> Option<(Bytes, String)> {
        let state = self.state.lock();
        let record = state.records.get(&(collection.to_owned(), key.to_vec()))?;
        Some((state.whole(&record.content)?, record.media_type.clone()))
    }

    /// The keys of a collection.
    #[must_use]
    pub fn keys(&self, collection: &str) -> Vec<Vec<u8>> {
        let state = self.state.lock();
        state.records.keys().filter(|(of, _)| of == collection).map(|(_, key)| key.clone()).collect()
    }

    /// The reference of a record with a large value.
    #[must_use]
    pub fn reference(&self, collection: &str, key: &[u8]) -> Option<ValueRef> {
        match &self.state.lock().records.get(&(collection.to_owned(), key.to_vec()))?.content {
            Content::Large(value) => Some(value.clone()),
            Content::Inline(_) => None,
        }
    }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    /// Cuts a value and stores it.
    pub(crate) fn put(&mut self, collection: &str, key: &[u8], value: Bytes, media_type: String) -> u64 {
        let content = if self.knows_objects && value.len() > crate::records::OBJECTS_FROM {
            let (reference, objects) = cut(self.chunking, &value);
            self.objects.extend(objects);
            Content::Large(reference)
        } else {
            Content::Inline(value)
        };
        self.version += 1;
        let record = Record { content, media_type, version: self.version };
        self.records.insert((collection.to_owned(), key.to_vec()), record);
        self.version
    }

    fn route(&mut self, request: &Arrived) -> Answer {
        self.traffic.calls += 1;
        let path: Vec<_> = request.path.iter().map(|part| String::from_utf8_lossy(part)).collect();
        let full = format!("/{}", path.join("/"));
        for (prefix, times, status) in &mut self.failures {
            if *times > 0 && full.starts_with(prefix.as_str()) {
                *times -= 1;
                return Answer::problem(*status, "failed");
            }
        }
        let path: Vec<&str> = path.iter().map(|part| &**part).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET", ["v1", "collections"]) => self.collections(),
            ("POST", ["v1", "rpc"]) => self.rpc(request),
            ("POST", ["v1", "uploads", upload, "objects"]) if self.knows_objects => self.store(upload, request),
            ("POST", ["v1", "kv-objects", collection, _]) if self.knows_objects => {
                self.send_objects(collection, request)
            }
            ("GET", ["v1", "kv", collection]) => self.scan(collection, request),
            ("PUT", ["v1", "kv", collection, _]) => self.put_record(collection, request),
            ("GET", ["v1", "kv", collection, _]) => self.get_record(collection, request),
            _ => Answer::problem(StatusCode::NOT_FOUND, "not_found"),
        }
    }
}

/// A value in objects.
pub(crate) fn cut(chunking: Chunking, value: &[u8]) -> (ValueRef, Vec<(ObjectId, Bytes)>) {
    let finished = flotilla_values::cut(value, chunking).expect("a value that is not too long");
    let objects = finished.objects.into_iter().map(|object| (object.id, object.bytes));
    (finished.value, objects.collect())
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, bytes: Arc<Counts>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, bytes) = (Arc::clone(&state), Arc::clone(&bytes));
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            // A connection that breaks is the client's concern.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(Counted { stream, bytes }), service).await;
        });
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let answer = match body.collect().await {
        Err(_) => Answer::malformed("the body ended early"),
        Ok(body) => {
            let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
            let text = |text: &str| String::from_utf8_lossy(&decode(text)).into_owned();
            let query = head.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
            let request = Arrived {
                method: head.method,
                path: head.uri.path().split('/').skip(1).map(decode).collect(),
                query: query
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                    .map(|(k, v)| (text(k), text(v)))
                    .collect(),
                headers: head.headers,
                body: body.to_bytes(),
            };
            state.lock().route(&request)
        }
    };
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    Ok(response.body(Full::new(answer.body)).expect("a well-formed answer"))
}

/// A connection whose bytes are counted.
struct Counted {
    stream: TcpStream,
    bytes: Arc<Counts>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        poll
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &poll {
            self.bytes.sent.fetch_add(*written as u64, Ordering::Relaxed);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
