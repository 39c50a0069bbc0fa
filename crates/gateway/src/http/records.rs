//! `/v1/kv/{collection}/{key}`: reads and writes of one record. Writes carry their conditions in the query.

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method, header as names},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use flotilla_api::{DeleteReply, ProblemType, PutReply, VALUE_BYTES_MAX, header};
use flotilla_kv::{Action, Condition, Expiry, Operation, OperationResult, Otherwise};
use flotilla_types::{ShardId, Timestamp};

use super::{
    App, body,
    client::ClientConnection,
    deadline, guard,
    problem::Refusal,
    raw::{Query, Target, invalid},
    routes, scan, unix_ms,
};
use crate::{Found, Right, StoreError, Written};

/// The path before the collection.
const PREFIX: &str = "/v1/kv/";

/// Handles everything below [`PREFIX`]. Parses the raw path itself, because keys are arbitrary bytes.
pub(super) async fn dispatch(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let Target { collection, key } = Target::parse(request.uri().path().strip_prefix(PREFIX).unwrap_or_default())?;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    guard::grant_of(&request)?.check_collection(if reads { Right::Read } else { Right::Write }, &collection)?;
    match (request.method(), key) {
        (&Method::GET, None) => scan::page(app, collection, request).await,
        (&Method::GET, Some(key)) => get(app, collection, key, request, Include::Value).await,
        (&Method::HEAD, Some(key)) => get(app, collection, key, request, Include::HeadersOnly).await,
        (&Method::PUT, Some(key)) => put(app, collection, key, request).await,
        (&Method::DELETE, Some(key)) => delete(app, collection, key, request).await,
        (_, None) => Ok(routes::wrong_method("GET")),
        (_, Some(_)) => Ok(routes::wrong_method("GET, HEAD, PUT, DELETE")),
    }
}

/// What the answer to a read includes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Include {
    Value,
    HeadersOnly,
}

async fn get(
    app: App,
    collection: String,
    key: Bytes,
    request: Request,
    include: Include,
) -> Result<Response, Refusal> {
    // `token` is accepted and not needed: a strong read sees every acknowledged write.
    let mut query = Query::parse(request.uri().query(), &["consistency", "token"])?;
    let consistency = query.consistency()?;
    let deadline = deadline(request.headers())?;
    let client = ClientConnection::of(&request)?;
    // Room for the value, until its own bytes are counted.
    let _room = match include {
        Include::Value => Some(client.expect_answer(deadline).await?),
        Include::HeadersOnly => None,
    };
    let with_value = include == Include::Value;
    let found = app.store.get(&collection, vec![key], with_value, consistency, deadline.into_std()).await?;
    let found = found.into_iter().next().flatten().ok_or_else(key_not_found)?;
    client.answered(found.value.len());
    Ok(response(found, include))
}

async fn put(app: App, collection: String, key: Bytes, request: Request) -> Result<Response, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["if_version", "if_absent", "ttl_ms"])?;
    let condition = condition(query.number("if_version")?, query.flag("if_absent")?.unwrap_or(false))?;
    let expiry = query.number("ttl_ms")?.map_or(Ok(Expiry::Never), expires_in)?;
    let deadline = deadline(request.headers())?;
    let body = body::read(&app, request, VALUE_BYTES_MAX, ProblemType::ValueTooLarge, deadline).await?;
    let action = Action::Put { value: body.bytes.clone(), expiry, return_old: false };
    let operation = Operation { key, condition, otherwise: Otherwise::Refuse, action };
    let written = app.store.write(&collection, Vec::new(), vec![operation], deadline.into_std()).await?;
    let Written { timestamp, results, shard } = written;
    match results.first() {
        Some(&OperationResult::Written { version, .. }) => {
            Ok(Json(PutReply { version, timestamp, token: token(timestamp) }).into_response())
        }
        _ => Err(unexpected_result(shard)),
    }
}

async fn delete(app: App, collection: String, key: Bytes, request: Request) -> Result<Response, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["if_version"])?;
    let condition = condition(query.number("if_version")?, false)?;
    let deadline = deadline(request.headers())?.into_std();
    let action = Action::Delete { return_old: false };
    let operation = Operation { key, condition, otherwise: Otherwise::Refuse, action };
    let Written { timestamp, results, shard } =
        app.store.write(&collection, Vec::new(), vec![operation], deadline).await?;
    match results.first() {
        Some(&OperationResult::Deleted { version, .. }) => {
            Ok(Json(DeleteReply { version, timestamp, token: token(timestamp) }).into_response())
        }
        Some(OperationResult::Absent) => Err(key_not_found()),
        _ => Err(unexpected_result(shard)),
    }
}

/// The token of a state at this time: a format byte and the time. A replica whose clock has reached the time
/// has every write up to it, wherever the record has gone since. Strong reads need none.
pub(super) fn token(timestamp: Timestamp) -> String {
    const FORMAT: u8 = 1;
    let mut bytes = [FORMAT; 1 + size_of::<u64>()];
    bytes[1..].copy_from_slice(&timestamp.0.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The condition of a write; there is at most one.
pub(super) fn condition(version: Option<u64>, absent: bool) -> Result<Option<Condition>, Refusal> {
    match (version, absent) {
        (Some(_), true) => Err(invalid("`if_version` and `if_absent` exclude each other")),
        (Some(version), false) => Ok(Some(Condition::Version(Timestamp(version)))),
        (None, true) => Ok(Some(Condition::Absent)),
        (None, false) => Ok(None),
    }
}

/// The expiry of a record that lives for `ttl_ms` from now.
pub(super) fn expires_in(ttl_ms: u64) -> Result<Expiry, Refusal> {
    /// 100 years: later times do not fit a hybrid timestamp.
    const TTL_MS_MAX: u64 = 100 * 365 * 24 * 3_600 * 1_000;
    if !(1..=TTL_MS_MAX).contains(&ttl_ms) {
        return Err(invalid(format!("`ttl_ms` must be 1 to {TTL_MS_MAX}")));
    }
    Ok(Expiry::At(unix_ms() + ttl_ms))
}

/// The store's result does not match the operation: a bug. The write may have taken effect.
fn unexpected_result(shard: ShardId) -> Refusal {
    StoreError::OutcomeUnknown { shard }.into()
}

fn key_not_found() -> Refusal {
    Refusal::new(ProblemType::KeyNotFound, "there is no record under this key")
}

fn response(found: Found, include: Include) -> Response {
    let body = if include == Include::Value { Body::from(found.value) } else { Body::empty() };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    // A value is arbitrary data: a browser must not run it under this origin.
    headers.insert(names::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(names::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(names::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(names::CONTENT_LENGTH, HeaderValue::from(found.value_bytes));
    headers.insert(header::VERSION, HeaderValue::from(found.version.0));
    headers.insert(header::TIMESTAMP, HeaderValue::from(found.version.0));
    headers.insert(header::SERVED_BY, HeaderValue::from(found.served_by.0));
    if let Ok(token) = HeaderValue::from_str(&token(found.version)) {
        headers.insert(header::TOKEN, token);
    }
    if let Some(expires_at_ms) = found.expires_at_ms {
        headers.insert(header::EXPIRES_AT_MS, HeaderValue::from(expires_at_ms));
    }
    response
}

#[cfg(test)]
mod tests {
    use flotilla_types::NodeId;

    use super::*;

    #[test]
    fn a_write_has_at_most_one_condition() {
        assert_eq!(condition(Some(7), false).ok(), Some(Some(Condition::Version(Timestamp(7)))));
        assert_eq!(condition(None, true).ok(), Some(Some(Condition::Absent)));
        assert!(condition(Some(7), true).is_err());
    }

    #[test]
    fn a_time_to_live_of_zero_or_beyond_the_limit_is_refused() {
        assert!(expires_in(0).is_err());
        assert!(expires_in(u64::MAX).is_err());
        assert!(matches!(expires_in(1_000), Ok(Expiry::At(at)) if at > 1_000));
    }

    #[test]
    fn a_head_response_has_the_length_without_the_value() {
        let found = Found {
            key: Bytes::from_static(b"k"),
            value: Bytes::new(),
            version: Timestamp(9),
            expires_at_ms: None,
            value_bytes: 77,
            served_by: NodeId(3),
            shard: ShardId(1),
        };
        let response = response(found, Include::HeadersOnly);
        assert_eq!(response.headers()[names::CONTENT_LENGTH], "77");
        assert_eq!(response.headers()[header::VERSION], "9");
        assert_eq!(response.headers()[header::SERVED_BY], "3");
        assert_eq!(response.headers()[header::TOKEN], "AQAAAAAAAAAJ");
    }
}
