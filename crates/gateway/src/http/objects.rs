//! Objects of large values: uploads of those that a node lacks, and the objects of a record.

use std::collections::BTreeSet;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header as names},
    response::{IntoResponse as _, Response},
};
use flotilla_api::{
    FetchReply, FetchRequest, FetchedObject, MissingReply, MissingRequest, NeedReply, NeedRequest, OBJECT_REFS_MAX,
    OBJECTS_FETCHED_MAX, ObjectName, ObjectNeed, ProblemType, PullReply, PullRequest, UPLOAD_BYTES_MAX, UploadId,
};
use flotilla_types::{ObjectId, ObjectRef};
use futures_util::stream;
use tokio::time::Instant;

use super::{
    App, body,
    client::ClientConnection,
    deadline, guard,
    problem::Refusal,
    raw::{Query, Target, invalid},
};
use crate::{
    Grant, Right,
    store::{Encoding, FramesError, HOLD_TIME, Lacking, UPLOAD_TIME},
};

/// Bytes of an id in a request for objects.
const ID_BYTES: usize = 32;

/// `POST /v1/uploads/{upload}/objects`.
pub(super) async fn upload(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["collection"])?;
    let collection = query.text("collection")?.ok_or_else(|| invalid("`collection` is missing"))?;
    guard::grant_of(&request)?.check_collection(Right::Write, &collection)?;
    let deadline = deadline(request.headers())?;
    let upload = request.uri().path().split('/').nth(3).and_then(|text| text.parse().ok());
    let UploadId(upload) = upload.ok_or_else(|| invalid("the id of an upload has 16 hexadecimal digits"))?;
    let encoding = match request.headers().get(names::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Encoding::Plain,
        Some(b"zstd") => Encoding::Zstd,
        Some(_) => return Err(invalid("`content-encoding` must be `zstd`, or absent")),
    };
    has_values(&app, &collection)?;
    let body = body::read(&app, request, UPLOAD_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    let stored = app.store.values().store_frames(upload, body.bytes, encoding).await?;
    Ok(Json(stored).into_response())
}

/// `POST /v1/kv-objects/{collection}/{key}`.
pub(super) async fn of_record(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let path = request.uri().path().strip_prefix("/v1/kv-objects/").unwrap_or_default();
    let Target { collection, key: Some(key) } = Target::parse(path)? else { return Err(invalid("the key is missing")) };
    guard::grant_of(&request)?.check_collection(Right::Read, &collection)?;
    Query::parse(request.uri().query(), &[])?;
    let deadline = deadline(request.headers())?;
    let client = ClientConnection::of(&request)?;
    let encoding = if accepts_zstd(request.headers()) { Encoding::Zstd } else { Encoding::Plain };
    let body = body::read(&app, request, ID_BYTES * OBJECT_REFS_MAX, ProblemType::BodyTooLarge, deadline).await?;
    let ids = ids(&body.bytes)?;
    let objects = app.store.objects_of(&collection, &key, &ids, encoding, deadline.into_std()).await?;
    let objects = objects.ok_or_else(|| Refusal::new(ProblemType::KeyNotFound, "there is no record under this key"))?;
    let frames = stream::try_unfold((objects, client), async |(mut objects, client)| {
        let next = objects.next().await?;
        client.account.works();
        client.account.waits_for_client();
        Ok::<_, crate::StoreError>(next.map(|bytes| (bytes, (objects, client))))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(names::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(names::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(names::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if encoding == Encoding::Zstd {
        headers.insert(names::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
    }
    Ok(response)
}

/// Ids one after another, each once.
fn ids(bytes: &[u8]) -> Result<Vec<ObjectId>, Refusal> {
    let (ids, []) = bytes.as_chunks::<ID_BYTES>() else { return Err(invalid("an id has 32 bytes")) };
    let ids: Vec<_> = ids.iter().map(|id| ObjectId(*id)).collect();
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        return Err(invalid("an id is named twice"));
    }
    Ok(ids)
}

fn accepts_zstd(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(names::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    fields.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_zstd = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
        let is_refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32)));
        is_zstd && !is_refused
    })
}

/// Refuses what a cluster of an earlier version does not have.
fn has_values(app: &App, collection: &str) -> Result<(), Refusal> {
    match app.store.value_rules(collection)? {
        Some(_) => Ok(()),
        None => Err(Refusal::new(ProblemType::Refused, "the cluster's version has no large values yet")),
    }
}

fn refs(needs: Vec<ObjectNeed>) -> Result<Vec<ObjectRef>, Refusal> {
    if needs.is_empty() || needs.len() > OBJECT_REFS_MAX {
        return Err(invalid(format!("`refs` must have 1 to {OBJECT_REFS_MAX} references")));
    }
    let refs: Vec<_> = needs.into_iter().map(ObjectRef::from).collect();
    if refs.iter().any(|reference| reference.height > ObjectRef::HEIGHT_MAX) {
        return Err(invalid("`height` must be 0, 1 or 2"));
    }
    Ok(refs)
}

fn names_of(ids: Vec<ObjectId>) -> Vec<ObjectName> {
    ids.into_iter().take(OBJECT_REFS_MAX).map(ObjectName).collect()
}

/// `objects.need`.
pub(super) async fn need(app: &App, grant: &Grant, request: NeedRequest) -> Result<NeedReply, Refusal> {
    grant.check_collection(Right::Write, &request.collection)?;
    has_values(app, &request.collection)?;
    let upload = request.upload.map(|UploadId(upload)| upload);
    let Lacking { upload, missing } = app.store.need(upload, &refs(request.refs)?).await?;
    let expires_in_ms = u64::try_from(HOLD_TIME.as_millis()).unwrap_or(u64::MAX);
    Ok(NeedReply { upload: UploadId(upload), expires_in_ms, missing: names_of(missing) })
}

/// `objects.missing`.
pub(super) async fn missing(app: &App, request: MissingRequest) -> Result<MissingReply, Refusal> {
    Ok(MissingReply { missing: names_of(app.store.lacks(&refs(request.refs)?).await?) })
}

/// `objects.fetch`.
pub(super) async fn fetch(app: &App, request: FetchRequest) -> Result<FetchReply, Refusal> {
    if request.ids.is_empty() || request.ids.len() > OBJECTS_FETCHED_MAX {
        return Err(invalid(format!("`ids` must have 1 to {OBJECTS_FETCHED_MAX} ids")));
    }
    let objects = app.store.objects(request.ids.into_iter().map(|id| id.0).collect()).await?;
    let encode = |bytes: bytes::Bytes| flotilla_api::Encoding::Base64.encode(&bytes);
    let object =
        |(id, bytes): (_, Option<_>)| Ok(FetchedObject { id: ObjectName(id), bytes: bytes.map(encode).transpose()? });
    Ok(FetchReply { objects: objects.into_iter().map(object).collect::<Result<_, Refusal>>()? })
}

/// `objects.pull`.
pub(super) async fn pull(app: &App, request: PullRequest, deadline: Instant) -> Result<PullReply, Refusal> {
    let refs = refs(request.refs)?.into_iter().collect();
    let Lacking { upload, missing } = app.store.pull(refs, request.from, deadline.into_std()).await?;
    let expires_in_ms = u64::try_from(UPLOAD_TIME.as_millis()).unwrap_or(u64::MAX);
    Ok(PullReply { upload: UploadId(upload), expires_in_ms, missing: names_of(missing) })
}

impl From<FramesError> for Refusal {
    fn from(error: FramesError) -> Self {
        let kind = match error {
            FramesError::Store(error) => return error.into(),
            FramesError::TooMuch => ProblemType::BodyTooLarge,
            _ => ProblemType::MalformedRequest,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_32_bytes_each_and_are_named_once() {
        assert_eq!(ids(&[7; 32]).ok(), Some(vec![ObjectId([7; 32])]));
        assert_eq!(ids(&[]).map(|ids| ids.len()).ok(), Some(0));
        for bad in [&[7; 31][..], &[7; 64]] {
            assert_eq!(ids(bad).map_err(|refusal| refusal.kind()), Err(ProblemType::InvalidArgument));
        }
    }

    #[test]
    fn zstd_is_used_only_for_clients_that_accept_it() {
        let accepts = |value: &'static str| {
            accepts_zstd(&HeaderMap::from_iter([(names::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(accepts("zstd") && accepts("gzip, ZSTD;q=0.5"));
        assert!(!accepts("gzip") && !accepts("zstd;q=0") && !accepts("") && !accepts_zstd(&HeaderMap::new()));
    }

    #[test]
    fn references_are_bounded_and_have_known_heights() {
        let need = ObjectNeed { id: ObjectName(ObjectId::of(b"x")), height: 2, bytes: 1 };
        assert_eq!(refs(vec![need; OBJECT_REFS_MAX]).map(|refs| refs.len()).ok(), Some(OBJECT_REFS_MAX));
        for bad in [Vec::new(), vec![need; OBJECT_REFS_MAX + 1], vec![ObjectNeed { height: 3, ..need }]] {
            assert_eq!(refs(bad).map_err(|refusal| refusal.kind()), Err(ProblemType::InvalidArgument));
        }
    }
}
