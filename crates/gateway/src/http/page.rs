//! The admin page and the OpenAPI description, both embedded in the binary.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

/// The admin page. It loads nothing except `/v1/cluster/status`.
const PAGE: &str = include_str!("page.html");
/// The OpenAPI 3.1 description of the interface.
pub(super) const OPENAPI: &str = include_str!("openapi.json");
/// The page may run its own script and style and call its own node. It may not load anything else or be
/// framed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) async fn admin() -> Response {
    let mut response = PAGE.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) async fn openapi() -> Response {
    let mut response = OPENAPI.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
