//! `/v1/kv/{collection}/{key}`: reads and writes of one record. Writes carry their conditions in the query, or as
//! entity tags in headers.

use std::ops::Range;

use axum::{
    Json,
    body::{Body, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header as names},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use flotilla_api::{DeleteReply, ProblemType, PutReply, header};
use flotilla_kv::{Action, Condition, Content, Expiry, Operation, OperationResult, Otherwise, Value};
use flotilla_types::{ShardId, Timestamp};
use tokio::time::Instant;

use super::{
    App,
    client::ClientConnection,
    conditional::{EntityTag, Part, ReadConditions, WriteCondition},
    deadline, guard,
    problem::Refusal,
    raw::{Query, Target, invalid},
    routes, scan, unix_ms,
    values::{self, ArrivedValue},
};
use crate::{Found, Right, StoreError, Written, store::Opened};

/// How often a write with entity tags reads the record, if it changes meanwhile.
const TAG_READS_MAX: usize = 4;

/// How often a value is opened again because it was overwritten meanwhile.
const OBJECT_READS_MAX: usize = 4;

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
    let conditions = ReadConditions::of(request.headers())?;
    let wants_ref = values::wants_reference(request.headers());
    let client = ClientConnection::of(&request)?;
    // Room for the value, until its own bytes are counted. Its tag needs it also if it is not sent.
    let room = client.expect_answer(deadline).await?;
    let found = app.store.get(&collection, vec![key], true, consistency, deadline.into_std()).await?;
    let mut found = found.into_iter().next().flatten().ok_or_else(key_not_found)?;
    for _ in 0..OBJECT_READS_MAX {
        let tag = EntityTag::of(&found.value);
        if wants_ref && let Content::Large(value) = &found.value.content {
            return values::reference(value, &found, tag, &conditions, include == Include::HeadersOnly);
        }
        let part = match (conditions.part_of(tag, found.value_bytes), include) {
            // A range is for GET (RFC 9110, §14.2).
            (Part::Bytes(_) | Part::OutOfRange, Include::HeadersOnly) => Part::Whole,
            (part, _) => part,
        };
        let body = match (&found.value.content, sent(&part, &found, include)) {
            (_, None) => Body::empty(),
            // Values in records fit in memory.
            (Content::Inline(value), Some(bytes)) => Body::from(value.slice(bytes.start as usize..bytes.end as usize)),
            (Content::Large(value), Some(bytes)) => {
                let opened = app.store.open(&collection, &found, value, bytes, deadline.into_std()).await?;
                match opened {
                    Opened::Part(reader) => {
                        drop(room);
                        let body = values::stream(reader, value, &client, deadline).await?;
                        return response(&found, tag, part, body);
                    }
                    Opened::Changed(now) => {
                        found = now.ok_or_else(key_not_found)?;
                        continue;
                    }
                }
            }
        };
        let response = response(&found, tag, part, body)?;
        client.answered(response.body().size_hint().lower() as usize);
        return Ok(response);
    }
    Err(StoreError::ObjectsUnavailable.into())
}

/// The bytes of the value that an answer has; none without a body.
fn sent(part: &Part, found: &Found, include: Include) -> Option<Range<u64>> {
    let bytes = match part {
        Part::Whole => 0..found.value_bytes,
        Part::Bytes(bytes) => bytes.clone(),
        Part::NotModified | Part::Changed | Part::OutOfRange => return None,
    };
    (include == Include::Value && !bytes.is_empty()).then_some(bytes)
}

/// Writes with a condition: one of the query, or one of the headers, for which the record is read first. If it
/// changes before it is written, the condition is judged anew.
async fn write_if(
    app: &App,
    collection: &str,
    headers: &HeaderMap,
    client: &ClientConnection,
    operation: Operation,
    deadline: Instant,
) -> Result<Written, Refusal> {
    let Some(tags) = WriteCondition::of(headers)? else {
        return Ok(app.store.write(collection, Vec::new(), vec![operation], deadline.into_std()).await?);
    };
    if operation.condition.is_some() {
        return Err(invalid("`if_version` and `if_absent` exclude `If-Match` and `If-None-Match`"));
    }
    let mut reads = 0;
    loop {
        let room = client.expect_answer(deadline).await?;
        let found = app.store.get_one(collection, operation.key.clone(), deadline.into_std()).await?;
        let (version, tag) =
            (found.as_ref().map(|found| found.version), found.map(|found| EntityTag::of(&found.value)));
        drop(room);
        reads += 1;
        if !tags.holds(tag) {
            return Err(StoreError::ConditionFailed { operation: 0, found: version }.into());
        }
        let condition = Some(version.map_or(Condition::Absent, Condition::Version));
        let operation = Operation { condition, ..operation.clone() };
        match app.store.write(collection, Vec::new(), vec![operation], deadline.into_std()).await {
            Err(StoreError::ConditionFailed { .. }) if reads < TAG_READS_MAX => {}
            written => return Ok(written?),
        }
    }
}

async fn put(app: App, collection: String, key: Bytes, request: Request) -> Result<Response, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["if_version", "if_absent", "ttl_ms"])?;
    let condition = condition(query.number("if_version")?, query.flag("if_absent")?.unwrap_or(false))?;
    let expiry = query.number("ttl_ms")?.map_or(Ok(Expiry::Never), expires_in)?;
    let (headers, client) = (request.headers().clone(), ClientConnection::of(&request)?);
    let ArrivedValue { value, kept, deadline } = values::receive(&app, &collection, request).await?;
    let tag = EntityTag::of(&value);
    let action = Action::Put { value, expiry, return_old: false };
    let operation = Operation { key, condition, otherwise: Otherwise::Refuse, action };
    let written = write_if(&app, &collection, &headers, &client, operation, deadline).await;
    let Written { timestamp, results, shard } = kept.after(written)?;
    match results.first() {
        Some(&OperationResult::Written { version, .. }) => {
            let mut response = Json(PutReply { version, timestamp, token: token(timestamp) }).into_response();
            tag.put(response.headers_mut());
            Ok(response)
        }
        _ => Err(unexpected_result(shard)),
    }
}

async fn delete(app: App, collection: String, key: Bytes, request: Request) -> Result<Response, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["if_version"])?;
    let condition = condition(query.number("if_version")?, false)?;
    let deadline = deadline(request.headers())?;
    let client = ClientConnection::of(&request)?;
    let action = Action::Delete { return_old: false };
    let operation = Operation { key, condition, otherwise: Otherwise::Refuse, action };
    let Written { timestamp, results, shard } =
        write_if(&app, &collection, request.headers(), &client, operation, deadline).await?;
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

/// The answer to a read of a record.
fn response(found: &Found, tag: EntityTag, part: Part, body: Body) -> Result<Response, Refusal> {
    let (status, bytes) = match part {
        Part::Whole => (StatusCode::OK, 0..found.value_bytes),
        Part::Bytes(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Part::NotModified => (StatusCode::NOT_MODIFIED, 0..0),
        Part::Changed => return Err(StoreError::ConditionFailed { operation: 0, found: Some(found.version) }.into()),
        Part::OutOfRange => return Ok(out_of_range(found.value_bytes)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    tag.put(headers);
    headers.insert(names::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status != StatusCode::NOT_MODIFIED {
        headers.insert(names::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, found.value_bytes);
        if let Ok(range) = HeaderValue::from_str(&range) {
            headers.insert(names::CONTENT_RANGE, range);
        }
    }
    headers.insert(names::CONTENT_TYPE, media_type(&found.value));
    facts(found, headers);
    Ok(response)
}

/// What is said of a record in the headers of an answer.
pub(super) fn facts(found: &Found, headers: &mut HeaderMap) {
    // A value is arbitrary data: a browser must not run it under this origin, whatever its type says.
    headers.insert(names::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(names::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    // A cache of the client may keep it, and must ask each time whether it is current.
    headers.insert(names::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VERSION, HeaderValue::from(found.version.0));
    headers.insert(header::TIMESTAMP, HeaderValue::from(found.version.0));
    headers.insert(header::SERVED_BY, HeaderValue::from(found.served_by.0));
    if let Ok(token) = HeaderValue::from_str(&token(found.version)) {
        headers.insert(header::TOKEN, token);
    }
    if let Some(expires_at_ms) = found.expires_at_ms {
        headers.insert(header::EXPIRES_AT_MS, HeaderValue::from(expires_at_ms));
    }
}

/// The media type that the client gave, or that of any bytes.
fn media_type(value: &Value) -> HeaderValue {
    let given = Some(&value.media_type).filter(|given| !given.is_empty());
    given
        .and_then(|given| HeaderValue::from_bytes(given).ok())
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

fn out_of_range(value_bytes: u64) -> Response {
    let detail = format!("the value has {value_bytes} bytes, and none of them is in the range");
    let mut response = Refusal::new(ProblemType::RangeNotSatisfiable, detail).into_response();
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{value_bytes}")) {
        response.headers_mut().insert(names::CONTENT_RANGE, range);
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

    fn found() -> Found {
        Found {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"0123456789").into(),
            version: Timestamp(9),
            expires_at_ms: None,
            value_bytes: 10,
            served_by: NodeId(3),
            shard: ShardId(1),
        }
    }

    fn answer(part: Part, include: Include) -> Response {
        let body = sent(&part, &found(), include).map_or_else(Body::empty, |bytes| {
            Body::from(found().value.inline().expect("bytes").slice(bytes.start as usize..bytes.end as usize))
        });
        response(&found(), EntityTag::of(&found().value), part, body).expect("an answer")
    }

    #[test]
    fn a_head_response_has_the_length_without_the_value() {
        let response = answer(Part::Whole, Include::HeadersOnly);
        assert_eq!(response.headers()[names::CONTENT_LENGTH], "10");
        assert_eq!(response.headers()[header::VERSION], "9");
        assert_eq!(response.headers()[header::SERVED_BY], "3");
        assert_eq!(response.headers()[header::TOKEN], "AQAAAAAAAAAJ");
        assert!(response.headers().contains_key(names::ETAG) && response.body().is_end_stream());
    }

    #[test]
    fn a_part_says_which_bytes_it_is() {
        let response = answer(Part::Bytes(2..5), Include::Value);
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(response.headers()[names::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(response.headers()[names::CONTENT_LENGTH], "3");
        assert_eq!(response.body().size_hint().exact(), Some(3));
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let response = answer(Part::NotModified, Include::Value);
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert!(response.headers().contains_key(names::ETAG) && response.body().is_end_stream());
        assert!(!response.headers().contains_key(names::CONTENT_LENGTH));
    }

    #[test]
    fn a_changed_value_and_a_range_outside_of_it_are_refused() {
        let changed = response(&found(), EntityTag::of(&found().value), Part::Changed, Body::empty());
        assert_eq!(changed.err().map(|refusal| refusal.kind()), Some(ProblemType::ConditionFailed));
        let outside = answer(Part::OutOfRange, Include::Value);
        assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(outside.headers()[names::CONTENT_RANGE], "bytes */10");
    }
}
