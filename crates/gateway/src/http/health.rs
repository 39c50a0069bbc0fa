//! Health probes, drain and metrics.

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flotilla_api::{Check, NodeVerb, ProblemType, Readiness};
use serde_json::{Value, json};

use super::{App, deadline, problem::Refusal, raw::Query};
use crate::ChangeOptions;

/// Liveness probe: succeeds while the process runs.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// Probe for load balancers: fails while the node drains, so that no new clients are sent to it.
pub(super) async fn healthy(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    if app.admin.is_draining() {
        return Err(Refusal::new(ProblemType::Draining, "this node is draining; use another one"));
    }
    Ok(Json(json!({ "healthy": true })))
}

/// Readiness probe; with `?verbose`, it lists every check.
pub(super) async fn ready(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let verbose = Query::parse(request.uri().query(), &["verbose"])?.flag("verbose")?.unwrap_or(false);
    let checks = app.admin.readiness();
    let readiness = Readiness { ready: checks.iter().all(|check| check.ok), checks };
    if verbose {
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        return Ok((status, Json(readiness)).into_response());
    }
    if readiness.ready {
        return Ok(Json(json!({ "ready": true })).into_response());
    }
    Err(Refusal::new(ProblemType::NotReady, failing(&readiness.checks)))
}

fn failing(checks: &[Check]) -> String {
    let failing = checks.iter().filter(|check| !check.ok).map(|check| format!("{}: {}", check.name, check.detail));
    failing.collect::<Vec<_>>().join("; ")
}

/// Drains this node. Forced, because the caller asks for what can be done: whatever another node can lead.
pub(super) async fn drain(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let deadline = deadline(request.headers())?.into_std();
    let options = ChangeOptions { force: true, ..ChangeOptions::default() };
    app.admin.change_node(app.admin.status().node, NodeVerb::Drain, options, deadline).await?;
    Ok(Json(json!({ "draining": true })))
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let mut response = app.admin.metrics_text().into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_checks_are_named() {
        let check = |name: &str, ok| Check { name: name.to_owned(), ok, detail: "why".to_owned() };
        assert_eq!(failing(&[check("log", true), check("quorum", false)]), "quorum: why");
    }
}
