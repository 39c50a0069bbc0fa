//! Reads request bodies, bounded in bytes, in time and in memory over all requests.

use axum::{body::BodyDataStream, extract::Request, http::header};
use bytes::{Bytes, BytesMut};
use flotilla_api::ProblemType;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{App, problem::Refusal};

/// Bodies up to this size do not draw on the shared budget; the bound on requests bounds them.
const SMALL_BYTES: usize = 64 * 1024;
/// Longest JSON body except a batch.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1024;
/// Longest body of a batch. Its decoded bytes may be half of that, which leaves room for base64 and field
/// names.
pub(super) const BATCH_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How much of a body that is too long is read and discarded, so that a client that sends everything before
/// it reads still gets the refusal. After that the connection is closed.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A body in memory, with its share of the memory budget.
pub(super) struct BufferedBody {
    pub(super) bytes: Bytes,
    _budget: Option<OwnedSemaphorePermit>,
}

/// Reads a body of at most `bytes_max`, or refuses it as `too_large`.
pub(super) async fn read(
    app: &App,
    request: Request,
    bytes_max: usize,
    too_large: ProblemType,
    deadline: Instant,
) -> Result<BufferedBody, Refusal> {
    let headers = request.headers();
    let content_length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok())
        .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    // Such a client does not send a body that was refused.
    let expects_continue =
        headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let refusal = || Refusal::new(too_large, format!("the body may have at most {bytes_max} bytes"));
    let mut stream = request.into_body().into_data_stream();
    if content_length.is_some_and(|bytes| bytes > bytes_max) {
        if !expects_continue {
            discard(&mut stream, deadline).await;
        }
        return Err(refusal());
    }
    let budget = reserve(app, content_length.unwrap_or(bytes_max), deadline).await?;
    match timeout_at(deadline, collect(&mut stream, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(BufferedBody { bytes, _budget: budget }),
        Ok(Err(ReadError::TooLong)) => {
            drop(budget);
            discard(&mut stream, deadline).await;
            Err(refusal())
        }
        Ok(Err(ReadError::Broken)) => {
            Err(Refusal::new(ProblemType::MalformedRequest, "the body ended early or is malformed"))
        }
        Err(_) => Err(Refusal::new(ProblemType::RequestTimeout, "the body did not arrive before the deadline")),
    }
}

/// Reads a JSON body of at most [`JSON_BYTES_MAX`].
pub(super) async fn read_json<T: DeserializeOwned>(
    app: &App,
    request: Request,
    deadline: Instant,
) -> Result<T, Refusal> {
    let body = read(app, request, JSON_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    parse_json(&body.bytes)
}

/// Parses JSON; the refusal says where it is wrong.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(ProblemType::MalformedRequest, format!("JSON: {error}")))
}

async fn reserve(app: &App, bytes: usize, deadline: Instant) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
    if bytes <= SMALL_BYTES {
        return Ok(None);
    }
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    match timeout_at(deadline, app.body_kib.clone().acquire_many_owned(kib)).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        Ok(Err(_)) | Err(_) => Err(Refusal::busy("too many large bodies are in progress")),
    }
}

enum ReadError {
    TooLong,
    Broken,
}

async fn collect(stream: &mut BodyDataStream, bytes_max: usize) -> Result<Bytes, ReadError> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ReadError::Broken)?;
        if whole.len() + chunk.len() > bytes_max {
            return Err(ReadError::TooLong);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// Reads and discards the rest of a body, up to [`DISCARD_BYTES_MAX`] and the deadline.
async fn discard(stream: &mut BodyDataStream, deadline: Instant) {
    let drained = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            bytes += chunk.len();
            if bytes > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // At the deadline the connection is closed while the client still sends.
    let _ = timeout_at(deadline, drained).await;
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn a_body_is_refused_above_its_limit_and_not_at_it() {
        let stream = |bytes: usize| Body::from(vec![1; bytes]).into_data_stream();
        assert!(collect(&mut stream(10), 10).await.is_ok_and(|bytes| bytes.len() == 10));
        assert!(matches!(collect(&mut stream(11), 10).await, Err(ReadError::TooLong)));
    }
}
