//! Values in requests and answers: bodies that become values, values by their reference, and values as streams.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header as names},
    response::Response,
};
use bytes::Bytes;
use flotilla_api::{ProblemType, UploadId, VALUE_BYTES_MAX, VALUE_REF_MEDIA_TYPE, header};
use flotilla_kv::{Content, MEDIA_TYPE_BYTES_MAX, Value};
use flotilla_values::ValueRef;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout_at};

use super::{
    App, body,
    client::ClientConnection,
    conditional::{EntityTag, Part, ReadConditions},
    deadline, incoming,
    problem::Refusal,
    raw::invalid,
    records,
};
use crate::{
    Charge, Found, StoreError, Written,
    store::{Hold, ValueReader, ValueRules},
};

/// A value that is to be written.
pub(super) struct ArrivedValue {
    pub(super) value: Value,
    pub(super) kept: Kept,
    /// When the answer is due.
    pub(super) deadline: Instant,
}

/// What a value needs until it is written.
pub(super) struct Kept {
    hold: Option<Hold>,
    /// Whether the hold is an upload that the client has begun.
    is_of_client: bool,
    _charge: Charge,
}

impl Kept {
    /// The write has ended like this.
    pub(super) fn after(self, written: Result<Written, Refusal>) -> Result<Written, Refusal> {
        let Some(hold) = self.hold else { return written };
        match &written {
            Err(refusal) if refusal.0.kind == ProblemType::OutcomeUnknown => hold.leave(),
            // The client has sent the whole value, and can only send it again.
            Err(refusal) if refusal.0.kind == ProblemType::ObjectsMissing && !self.is_of_client => {
                return Err(StoreError::ObjectsUnavailable.into());
            }
            Ok(_) if self.is_of_client => hold.end(),
            _ => {}
        }
        written
    }
}

/// Receives the value of a request: its body, or a reference to objects that are here.
pub(super) async fn receive(app: &App, collection: &str, request: Request) -> Result<ArrivedValue, Refusal> {
    let deadline = deadline(request.headers())?;
    let is_reference = is_reference(request.headers().get(names::CONTENT_TYPE));
    let Some(rules) = app.store.value_rules(collection)? else {
        if is_reference {
            return Err(invalid("the cluster's version has no large values yet; send the value itself"));
        }
        // Records of this version have no media types.
        let body = body::read(app, request, VALUE_BYTES_MAX, ProblemType::ValueTooLarge, deadline).await?;
        let kept = Kept { hold: None, is_of_client: false, _charge: body.charge };
        return Ok(ArrivedValue { value: body.bytes.into(), kept, deadline });
    };
    if is_reference {
        return by_reference(app, rules, request, deadline).await;
    }
    let media_type = media_type(request.headers().get(names::CONTENT_TYPE))?;
    if body::announced(request.headers()).is_some_and(|bytes| bytes <= rules.objects_from) {
        let body = body::read(app, request, VALUE_BYTES_MAX, ProblemType::ValueTooLarge, deadline).await?;
        let kept = Kept { hold: None, is_of_client: false, _charge: body.charge };
        return Ok(ArrivedValue { value: Value { content: Content::Inline(body.bytes), media_type }, kept, deadline });
    }
    let time = deadline.saturating_duration_since(Instant::now());
    let incoming::Arrived { content, hold, charge } = incoming::receive(app, rules, request).await?;
    let kept = Kept { hold, is_of_client: false, _charge: charge };
    Ok(ArrivedValue { value: Value { content, media_type }, kept, deadline: Instant::now() + time })
}

async fn by_reference(
    app: &App,
    rules: ValueRules,
    request: Request,
    deadline: Instant,
) -> Result<ArrivedValue, Refusal> {
    let media_type = media_type(request.headers().get(header::CONTENT_TYPE))?;
    let upload: Option<UploadId> =
        request.headers().get(header::UPLOAD).and_then(|value| value.to_str().ok()?.parse().ok());
    let upload = upload.ok_or_else(|| {
        invalid(format!("`{}` must name the upload that holds the objects: 16 hexadecimal digits", header::UPLOAD))
    })?;
    let body = body::read(app, request, ValueRef::ENCODED_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    let value = ValueRef::decode(&body.bytes)
        .map_err(|error| Refusal::new(ProblemType::MalformedRequest, format!("the reference: {error}")))?;
    let bytes = value.bytes();
    let accepted = timeout_at(deadline, app.store.accept(rules, value, upload.0)).await;
    let (content, hold) = accepted.map_err(|_| StoreError::DeadlineExceeded { shard: None })??;
    metrics::counter!("flotilla_value_reference_bytes_total").increment(bytes);
    let kept = Kept { hold: Some(hold), is_of_client: true, _charge: body.charge };
    Ok(ArrivedValue { value: Value { content, media_type }, kept, deadline })
}

/// The media type that a client gives.
fn media_type(value: Option<&HeaderValue>) -> Result<Bytes, Refusal> {
    let Some(value) = value else { return Ok(Bytes::new()) };
    if value.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(invalid(format!("`content-type` may have at most {MEDIA_TYPE_BYTES_MAX} bytes")));
    }
    Ok(Bytes::copy_from_slice(value.as_bytes()))
}

fn is_reference(media_type: Option<&HeaderValue>) -> bool {
    media_type.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(VALUE_REF_MEDIA_TYPE.as_bytes()))
}

/// Whether the client asks for references of large values.
pub(super) fn wants_reference(headers: &HeaderMap) -> bool {
    headers.get_all(names::ACCEPT).iter().any(|value| is_reference(Some(value)))
}

/// The answer to such a request.
pub(super) fn reference(
    value: &ValueRef,
    found: &Found,
    tag: EntityTag,
    conditions: &ReadConditions,
    is_head: bool,
) -> Result<Response, Refusal> {
    let mut response = Response::new(Body::empty());
    let encoded = value.encode();
    match conditions.part_of(tag, found.value_bytes) {
        Part::Changed => return Err(StoreError::ConditionFailed { operation: 0, found: Some(found.version) }.into()),
        Part::NotModified => *response.status_mut() = StatusCode::NOT_MODIFIED,
        Part::Whole | Part::Bytes(_) | Part::OutOfRange => {
            response.headers_mut().insert(names::CONTENT_LENGTH, HeaderValue::from(encoded.len()));
            if !is_head {
                *response.body_mut() = Body::from(encoded);
            }
        }
    }
    let headers = response.headers_mut();
    tag.put(headers);
    headers.insert(names::CONTENT_TYPE, HeaderValue::from_static(VALUE_REF_MEDIA_TYPE));
    if let Ok(given) = HeaderValue::from_bytes(&found.value.media_type)
        && !given.is_empty()
    {
        headers.insert(header::CONTENT_TYPE, given);
    }
    records::facts(found, headers);
    Ok(response)
}

/// A body that is read from objects as the client takes it.
pub(super) async fn stream(
    reader: ValueReader,
    value: &ValueRef,
    client: &Arc<ClientConnection>,
    deadline: Instant,
) -> Result<Body, Refusal> {
    let room = timeout_at(deadline, client.account.reserve(ValueReader::bytes_held_max(value))).await;
    client.account.works();
    let charge = room.map_err(|_| Refusal::busy("the clients of this node hold too many bytes"))?;
    let bytes = reader.into_stream().inspect_err(|error| tracing::warn!(%error, "an answer ends early"));
    // The charge lives as long as the stream.
    let client = client.clone();
    Ok(Body::from_stream(bytes.map(move |bytes| {
        let _ = &charge;
        // It has taken what was before.
        client.account.works();
        client.account.waits_for_client();
        bytes
    })))
}
