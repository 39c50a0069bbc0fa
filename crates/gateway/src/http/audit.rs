//! The audit log: who did what to the cluster, refused tries included.
//!
//! Audited are all requests that need [`Right::Operate`] or [`Right::Administer`] and change something, and
//! every request that is refused for its key. Requests for records are not: they are data, not the cluster.

use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};

use super::{App, events, guard::Remote, problem::Refusal};
use crate::{AuditEntry, Right};

/// Longest detail of an entry, in characters.
const DETAIL_CHARS_MAX: usize = 200;

/// What a handler adds to the audit entry of its request: what the path does not say.
#[derive(Debug, Clone)]
pub(super) struct Detail(String);

/// A response with a detail for its audit entry.
pub(super) fn with_detail(response: impl IntoResponse, detail: impl Into<String>) -> Response {
    let mut response = response.into_response();
    let detail: String = detail.into();
    response.extensions_mut().insert(Detail(detail.chars().take(DETAIL_CHARS_MAX).collect()));
    response
}

/// What is known of a request before it runs.
pub(super) struct Subject {
    pub(super) remote: Option<Remote>,
    pub(super) method: Method,
    pub(super) path: String,
}

impl Subject {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            remote: request.extensions().get().copied(),
            method: request.method().clone(),
            path: request.uri().path().chars().take(DETAIL_CHARS_MAX).collect(),
        }
    }
}

/// Records a request, if it is one that the log is about.
pub(super) fn record(app: &App, subject: Subject, right: Right, key: Option<u64>, response: &Response) {
    let reads = matches!(subject.method, Method::GET | Method::HEAD);
    let changes = !reads && matches!(right, Right::Operate | Right::Administer);
    let refused =
        matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    let detail = response.extensions().get::<Detail>();
    if !changes && !refused && detail.is_none() {
        return;
    }
    app.admin.audit(AuditEntry {
        key,
        address: subject.remote.map(|Remote(address)| address),
        action: format!("{} {}", subject.method, subject.path),
        detail: detail.map(|Detail(detail)| detail.clone()),
        status: response.status().as_u16(),
    });
}

/// `GET /v1/cluster/audit`: the entries of this node as a resumable stream, or with `?follow=false` the ones that
/// it remembers.
pub(super) async fn audit(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let source = events::Source { live: app.admin.subscribe_audit(), recent: app.admin.recent_audit() };
    events::serve(&app, request, source)
}
