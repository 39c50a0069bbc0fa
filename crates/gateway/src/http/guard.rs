//! Middleware around every request: checks of host, origin and content type, keys, admission limits, metrics.

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flotilla_api::ProblemType;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    App,
    audit::{self, Subject},
    client::ClientConnection,
    problem::Refusal,
    routes::Rights,
    slots::is_reserved_route,
    unix_ms,
};
use crate::{Denied, Grant, Right};

/// Probes: they say nothing about the cluster, so they answer under any `Host`.
const PROBES: &[&str] = &["/health/live", "/healthz", "/readyz"];
/// Routes exempt from the limit on requests, so that an operator can inspect an overloaded node. Their
/// handlers never wait. Event streams have a limit of their own.
const UNLIMITED_ROUTES: &[&str] = &[
    "/health/live",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/cluster/status",
    "/v1/cluster/nodes",
    "/v1/cluster/shards",
    "/v1/cluster/events",
    "/v1/cluster/audit",
    "/openapi.json",
    "/",
];
/// Routes for records. All other routes that are limited are of the administration.
const RECORD_ROUTES: &[&str] =
    &["/v1/kv/{*rest}", "/v1/kv-objects/{*rest}", "/v1/uploads/{upload}/objects", "/v1/batch"];
/// Methods that pages of allowed origins may use.
const CORS_METHODS: &str = "GET, HEAD, PUT, POST, DELETE";
/// Request headers that they may send, beyond those that CORS always allows.
const CORS_REQUEST_HEADERS: &str = "authorization, content-type, flotilla-timeout-ms, flotilla-upload, \
                                    flotilla-content-type, last-event-id, if-match, if-none-match, if-range, range";
/// Response headers that they may read, likewise.
const CORS_REPLY_HEADERS: &str = "flotilla-version, flotilla-timestamp, flotilla-served-by, flotilla-expires-at-ms, flotilla-token, \
     flotilla-content-type, etag, content-range, accept-ranges";

pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let host_is_trusted = app.hosts.trust(request.headers());
    let origin = Origin::of(request.headers(), &app.config.cors_origins, host_is_trusted);
    let allowed = origin.allowed();
    let client = ClientConnection::of(&request).ok();
    let mut response = if host_is_trusted || PROBES.contains(&route.as_str()) {
        admit(&app, &route, &origin, request, next).await
    } else {
        unknown_host().into_response()
    };
    if let Some(allowed) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(CORS_REPLY_HEADERS));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    if app.admin.is_draining() {
        // So that clients which keep their connections leave this node too. They may have sent further
        // requests.
        client.iter().for_each(|client| client.linger());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16().to_string();
    metrics::counter!("flotilla_http_requests_total", "route" => route.clone(), "method" => method, "status" => status)
        .increment(1);
    metrics::histogram!("flotilla_http_request_seconds", "route" => route, "method" => method)
        .record(started.elapsed().as_secs_f64());
    response
}

async fn admit(app: &App, route: &str, origin: &Origin, mut request: Request, next: Next) -> Response {
    if *request.method() == Method::OPTIONS && matches!(origin, Origin::Allowed(_)) {
        return preflight();
    }
    let is_read_only = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if matches!(origin, Origin::Foreign) && !is_read_only {
        // Browsers send simple cross-origin posts without a preflight, so the request itself must be refused.
        let detail = "pages of other origins may not change anything here; see the setting `cors_origins`";
        return Refusal::new(ProblemType::ForbiddenOrigin, detail).into_response();
    }
    if *request.method() == Method::POST && may_be_a_form(request.headers()) {
        let detail = "send this as `content-type: application/json` (`curl --json`); forms of web pages cannot";
        return Refusal::new(ProblemType::UnsupportedMediaType, detail).into_response();
    }
    let (subject, right) = (Subject::of(&request), right_of(app, route, request.method()));
    let grant = match authorize(app, right, &request) {
        Ok(grant) => grant,
        Err((key, denied)) => {
            let response = refuse(denied);
            audit::record(app, subject, right, key, &response);
            return response;
        }
    };
    request.extensions_mut().insert(grant.clone());
    let response = run(app, route, request, next).await;
    audit::record(app, subject, right, grant.and_then(|grant| grant.key()), &response);
    response
}

async fn run(app: &App, route: &str, mut request: Request, next: Next) -> Response {
    let beyond_the_limits = match ClientConnection::of(&request) {
        Ok(client) => !is_reserved_route(route) && !client.takes_general_slot(),
        Err(refusal) => return refusal.into_response(),
    };
    if beyond_the_limits {
        return Refusal::busy("too many connections are open, in total or from this address").into_response();
    }
    if UNLIMITED_ROUTES.contains(&route) {
        return next.run(request).await;
    }
    let limit = if RECORD_ROUTES.contains(&route) { &app.requests } else { &app.admin_requests };
    match RequestSlot::take(limit.clone()) {
        Some(slot) => {
            let slot = Arc::new(slot);
            request.extensions_mut().insert(slot.clone());
            let response = next.run(request).await;
            drop(slot);
            response
        }
        None => too_many_requests().into_response(),
    }
}

/// The place of a request among those in progress. It is given up while the body arrives, which takes as long
/// as the client likes.
pub(super) struct RequestSlot {
    limit: Arc<Semaphore>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl RequestSlot {
    fn take(limit: Arc<Semaphore>) -> Option<Self> {
        let permit = limit.clone().try_acquire_owned().ok()?;
        Some(Self { limit, permit: Mutex::new(Some(permit)) })
    }

    /// Gives the place up for a while.
    pub(super) fn leave(&self) {
        *self.permit.lock() = None;
    }

    /// Gives the place up for one among others, until that is dropped.
    pub(super) fn among(&self, others: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = others.clone().try_acquire_owned().map_err(|_| too_many_requests())?;
        self.leave();
        Ok(place)
    }

    /// Takes a place again.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn return_to(&self) -> Result<(), Refusal> {
        *self.permit.lock() = Some(self.limit.clone().try_acquire_owned().map_err(|_| too_many_requests())?);
        Ok(())
    }
}

fn too_many_requests() -> Refusal {
    Refusal::busy("too many requests are in progress on this node")
}

fn unknown_host() -> Refusal {
    let detail = "the name in `Host` is none of this node's; use an address, or name it in the setting `host_names`";
    Refusal::new(ProblemType::UnknownHost, detail)
}

/// Whether a form of a web page could have sent a request with these headers. Forms have three content types,
/// and scripts without a preflight no others and no headers of their own. Without a body there is nothing to
/// say, and browsers state the origin of every post.
fn may_be_a_form(headers: &HeaderMap) -> bool {
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    // Neither JSON nor arbitrary bytes are among the types of forms.
    let is_none_of_forms = |kind: &str| {
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_known = matches!(&kind[..], "application/json" | "application/octet-stream");
        is_known || (kind.starts_with("application/") && kind.ends_with("+json"))
    };
    let kind = headers.get(header::CONTENT_TYPE);
    // Browsers add passwords that they know to requests of any page, but never a bearer token.
    let is_bearer = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b' ').next().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
    };
    let own_header = || {
        headers.keys().any(|name| name.as_str().starts_with("flotilla-"))
            || headers.get(header::AUTHORIZATION).is_some_and(is_bearer)
    };
    match kind {
        Some(kind) if kind.to_str().is_ok_and(is_none_of_forms) => false,
        Some(_) => !own_header(),
        None => has_body && !own_header(),
    }
}

/// The address that a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote(pub(super) IpAddr);

/// The right that a route needs for a method.
fn right_of(app: &App, route: &str, method: &Method) -> Right {
    let rights = app.rights.get(route).copied().unwrap_or(Rights::INSPECT);
    if matches!(*method, Method::GET | Method::HEAD) { rights.reads } else { rights.changes }
}

/// What the sender of a request may do, once its key has the right that the route needs. `None` for probes,
/// which need no key. A refusal comes with the id of the key, if there is a valid one.
fn authorize(app: &App, right: Right, request: &Request) -> Result<Option<Grant>, (Option<u64>, Denied)> {
    if right == Right::Probe {
        return Ok(None);
    }
    let remote: Option<Remote> = request.extensions().get().copied();
    let grant = match (key_of(request.headers()), remote) {
        (Some(key), Some(Remote(address))) => app.access.authenticate(&key, address, unix_ms()),
        _ => app.access.anonymous(),
    };
    let grant = grant.map_err(|denied| (None, denied))?;
    match grant.check(right) {
        Ok(()) => Ok(Some(grant)),
        Err(denied) => Err((grant.key(), denied)),
    }
}

/// The key in `Authorization`: as a bearer token, or as the password of basic authentication, which browsers
/// and many tools offer. Another scheme is a key that is not valid.
fn key_of(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ').unwrap_or(value.len()));
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    let decoded = scheme.eq_ignore_ascii_case(b"basic").then(|| STANDARD.decode(rest).ok()).flatten();
    let password = decoded.and_then(|pair| {
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some(pair[colon + 1..].to_vec())
    });
    Some(password.unwrap_or_default())
}

fn refuse(denied: Denied) -> Response {
    let asks_for_key = matches!(denied, Denied::NoKey | Denied::BadKey);
    let mut response = Refusal::from(denied).into_response();
    if asks_for_key {
        let schemes = HeaderValue::from_static("Bearer realm=\"flotilla\", Basic realm=\"flotilla\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, schemes);
    }
    response
}

/// What the sender of an authorized request may do.
pub(super) fn grant_of(request: &Request) -> Result<Grant, Denied> {
    request.extensions().get::<Option<Grant>>().cloned().flatten().ok_or(Denied::NoKey)
}

/// The origin of a request, as stated by a browser.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// Not from a browser, or from the node's own page.
    Own,
    /// One of the configured origins.
    Allowed(HeaderValue),
    /// Any other.
    Foreign,
}

impl Origin {
    /// The node's own page is known by its host, which must be trusted itself.
    fn of(headers: &HeaderMap, configured: &[String], host_is_trusted: bool) -> Self {
        let Some(origin) = headers.get(header::ORIGIN) else { return Self::Own };
        if configured.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Self::Allowed(origin.clone());
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, host)| host);
        if host_is_trusted && own.is_some() && own == host { Self::Own } else { Self::Foreign }
    }

    fn allowed(&self) -> Option<HeaderValue> {
        match self {
            Self::Allowed(origin) => Some(origin.clone()),
            Self::Own | Self::Foreign => None,
        }
    }
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let mut set = |name: HeaderName, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS);
    set(header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_REQUEST_HEADERS);
    set(header::ACCESS_CONTROL_MAX_AGE, "600");
    response
}

/// The metrics label of a method. Unknown methods share one, so that clients cannot create new time series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_and_configured_origins_are_trusted() {
        let of_host = |origin: Option<&'static str>, host_is_trusted| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:7111"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            Origin::of(&headers, &["https://ops.example".to_owned()], host_is_trusted)
        };
        let of = |origin| of_host(origin, true);
        assert_eq!(of(None), Origin::Own);
        assert_eq!(of(Some("http://127.0.0.1:7111")), Origin::Own);
        assert_eq!(of(Some("https://ops.example")), Origin::Allowed(HeaderValue::from_static("https://ops.example")));
        for foreign in ["http://127.0.0.1:7112", "https://ops.example.evil", "null"] {
            assert_eq!(of(Some(foreign)), Origin::Foreign, "{foreign}");
        }
        assert_eq!(of_host(Some("http://127.0.0.1:7111"), false), Origin::Foreign, "the host is not trusted");
    }

    #[test]
    fn only_what_forms_cannot_send_is_no_form() {
        let may_be = |pairs: &[(&'static str, &'static str)]| {
            let pairs =
                pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            may_be_a_form(&pairs.collect())
        };
        let body = ("content-length", "5");
        for form in ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/json"]
        {
            assert!(may_be(&[body, ("content-type", form)]) && may_be(&[("content-type", form)]), "{form}");
        }
        assert!(may_be(&[body]) && may_be(&[("transfer-encoding", "chunked")]), "a script's blob without a type");
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(!may_be(&[body, ("content-type", json)]), "{json}");
        }
        assert!(!may_be(&[body, ("content-type", "text/plain"), ("flotilla-timeout-ms", "100")]));
        assert!(!may_be(&[body, ("content-type", "text/plain"), ("authorization", "Bearer flk1.x")]));
        assert!(may_be(&[body, ("content-type", "text/plain"), ("authorization", "Basic eDp5")]), "browsers add it");
        assert!(!may_be(&[("content-length", "0")]) && !may_be(&[]), "no body and no type");
    }

    #[test]
    fn unknown_methods_share_one_label() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").expect("a method")), "other");
    }

    #[test]
    fn a_key_is_a_bearer_token_or_a_password() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
            key_of(&headers).map(|key| String::from_utf8_lossy(&key).into_owned())
        };
        assert_eq!(key_of(&HeaderMap::new()), None);
        assert_eq!(of("Bearer flk1.x").as_deref(), Some("flk1.x"));
        assert_eq!(of("bearer  flk1.x ").as_deref(), Some("flk1.x"));
        assert_eq!(of(&format!("Basic {}", STANDARD.encode("me:flk1.x"))).as_deref(), Some("flk1.x"));
        for bad in ["Basic !", "Digest x", "", "Bearer", &format!("Basic {}", STANDARD.encode("nocolon"))] {
            assert_eq!(of(bad).as_deref(), Some(""), "{bad}");
        }
    }
}
