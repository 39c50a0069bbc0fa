//! A node as clients see it, for their tests: an HTTP server that keeps records and objects in memory.
//!
//! It is as strict as a node: an object is verified by its id, and a reference is accepted if its content, cut
//! again, has the same one. Deliberately absent: authentication, conditions other than `if_absent`, expiry, and
//! limits of bodies; a request that no client should send is answered with status 400.

mod objects;
mod records;
mod server;

pub use server::{FakeGateway, Traffic};

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_types::ObjectId;
use flotilla_values::{Chunking, ValueRef};
use hyper::{StatusCode, header::HeaderMap};

/// All that the server keeps.
#[derive(Debug)]
struct State {
    /// Whether it knows the calls about objects and references.
    knows_objects: bool,
    chunking: Chunking,
    /// What it says of `chunking`, if not how it is.
    chunk: Option<&'static str>,
    objects: BTreeMap<ObjectId, Bytes>,
    uploads: BTreeMap<String, BTreeSet<ObjectId>>,
    uploads_begun: u64,
    records: BTreeMap<(String, Vec<u8>), Record>,
    version: u64,
    /// Calls that fail before they are looked at: the beginning of the path, how many, and with which status.
    failures: Vec<(String, u32, StatusCode)>,
    /// Batches of objects after which every upload ends.
    batches_until_uploads_end: Option<u32>,
    traffic: Traffic,
}

#[derive(Debug, Clone)]
struct Record {
    content: Content,
    media_type: String,
    version: u64,
}

#[derive(Debug, Clone)]
enum Content {
    Inline(Bytes),
    Large(ValueRef),
}

/// A request that has arrived.
struct Arrived {
    method: hyper::Method,
    /// The path in parts, decoded.
    path: Vec<Vec<u8>>,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

/// An answer.
struct Answer {
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Answer {
    fn new(body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), body: body.into() }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self::new(value.to_string()).with("content-type", "application/json")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A problem document with this slug.
    fn problem(status: StatusCode, slug: &str) -> Self {
        let retryable = status.is_server_error();
        let number = status.as_u16();
        let document = serde_json::json!({
            "type": slug, "title": slug, "status": number, "detail": slug, "retryable": retryable
        });
        Self { status, ..Self::json(&document) }
    }

    fn malformed(what: &str) -> Self {
        Self::problem(StatusCode::BAD_REQUEST, &format!("malformed_request: {what}"))
    }
}

impl Arrived {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
