//! Storing a value: the objects that a node lacks, then the reference.

use std::time::Duration;

use bytes::Bytes;
use flotilla_api::{FRAME_HEADER_BYTES, PutReply, UploadId, VALUE_REF_MEDIA_TYPE, header as own, put_frame};
use futures_util::{StreamExt as _, stream};
use reqwest::{
    Method,
    header::{self, HeaderValue},
};

use super::{
    BATCH_BYTES_MAX, BATCH_OBJECTS_MAX, BATCH_TIMEOUT_MIN, BATCHES_IN_FLIGHT, LocalValue, Transfer, ValueSource,
    frames,
    local::{Cut, LocalObject, Progress},
    need::{self, has_ended},
    retry::Attempts,
    source::blocking,
};
use crate::{
    Client, ClientError, PutOptions,
    call::{Call, Payload},
    records::{media_type, put_path},
    url,
};

/// Bytes of a value per second that replicas are expected to fetch from each other at least.
const REPLICATED_PER_SECOND_MIN: u64 = 1 << 20;

/// A value that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    /// What the node answered.
    pub reply: PutReply,
    /// What it took.
    pub transfer: Transfer,
}

/// Why an attempt ended.
pub(super) enum Ended {
    /// The node does not know these calls, or the collection cuts otherwise: the value has to go as a whole.
    NotKnown,
    /// The upload has ended, or objects are gone.
    Again(ClientError),
    /// Anything else.
    Failed(ClientError),
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

impl Ended {
    /// What the end of a call about objects says. Forgets an upload that has ended.
    pub(super) fn of_objects(error: ClientError, upload: &mut Option<UploadId>) -> Self {
        match error.problem() {
            Some(problem) if has_ended(problem) => {
                *upload = None;
                Self::Again(error)
            }
            // A put of the whole value says whether it may be stored at all.
            Some(problem) if !problem.retryable => Self::NotKnown,
            _ => Self::Failed(error),
        }
    }

    /// What the end of a put of a reference says.
    fn of_reference(error: ClientError, upload: &mut Option<UploadId>) -> Self {
        match error.problem().map(|problem| problem.status) {
            Some(410) => Self::of_objects(error, upload),
            Some(409) => Self::Again(error),
            Some(400 | 405 | 413 | 415 | 422 | 501) => Self::NotKnown,
            _ => Self::Failed(error),
        }
    }
}

impl Client {
    /// Stores a value. Of one that was cut, only the objects travel that the node lacks; calls that fail are
    /// repeated until [`value_timeout`](crate::ClientOptions::value_timeout), and an upload that has ended is begun
    /// again.
    ///
    /// # Errors
    /// See [`ClientError`]; a condition that does not hold is a problem `condition_failed`.
    pub async fn put_value(
        &self,
        collection: &str,
        key: &[u8],
        value: &LocalValue,
        options: &PutOptions,
    ) -> Result<StoredValue, ClientError> {
        let mut transfer = Transfer { value_bytes: value.bytes(), ..Transfer::default() };
        let cut = value.cut.as_ref().filter(|_| !url::is_dot_segment(key));
        if let Some(cut) = cut {
            let LocalValue { source, progress, .. } = value;
            let put = Put { collection, key, cut, source, progress, options };
            if let Some(reply) = put.run(self, &mut transfer).await? {
                return Ok(StoredValue { reply, transfer });
            }
        }
        transfer.sent_bytes += value.bytes();
        let reply = self.put_whole(collection, key, &value.source, options).await?;
        if cut.is_some() {
            // It was not for another reason that the reference was refused. Spares the next values the question.
            self.collections.put(collection, None);
        }
        Ok(StoredValue { reply, transfer })
    }

    /// Stores the value of a file: [`prepare`](Self::prepare) and [`put_value`](Self::put_value) in one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_file(
        &self,
        collection: &str,
        key: &[u8],
        path: impl AsRef<std::path::Path>,
        options: &PutOptions,
    ) -> Result<StoredValue, ClientError> {
        let source = ValueSource::open(path).await;
        let source = source.map_err(|source| ClientError::Source { what: "the file", source })?;
        let value = self.prepare(collection, source).await?;
        self.put_value(collection, key, &value, options).await
    }

    async fn put_whole(
        &self,
        collection: &str,
        key: &[u8],
        source: &ValueSource,
        options: &PutOptions,
    ) -> Result<PutReply, ClientError> {
        let is_short = source.len() <= BATCH_BYTES_MAX as u64;
        if is_short || url::is_dot_segment(key) {
            let (reader, bytes) = (source.clone(), source.len() as usize);
            let read = blocking(move || reader.slice(0, bytes)).await;
            let value = read.map_err(|source| ClientError::Source { what: "the value", source })?;
            return self.put(collection, key, value, options).await;
        }
        let kind = media_type(options)?.unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let call = Call::write(Method::PUT, put_path(collection, key, options)).within(self.value_timeout);
        self.call(call.body(Payload::Value(source.clone()), kind)).await?.json()
    }
}

/// A value on its way.
struct Put<'a> {
    collection: &'a str,
    key: &'a [u8],
    cut: &'a Cut,
    source: &'a ValueSource,
    progress: &'a Progress,
    options: &'a PutOptions,
}

impl Put<'_> {
    /// `None` if the value has to go as a whole.
    async fn run(&self, client: &Client, transfer: &mut Transfer) -> Result<Option<PutReply>, ClientError> {
        let mut attempts = Attempts::within(client.value_timeout);
        // Only the node where an upload began knows it.
        let mut upload = None;
        let mut node = client.pinned();
        loop {
            let moved = transfer.objects_moved;
            let error = match self.attempt(&node, &mut upload, transfer).await {
                Ok(reply) => return Ok(Some(reply)),
                Err(Ended::NotKnown) => return Ok(None),
                Err(Ended::Again(error)) => error,
                Err(Ended::Failed(error)) if error.is_retryable() => {
                    client.prefer_next(node.endpoint());
                    error
                }
                Err(Ended::Failed(error)) => return Err(error),
            };
            if transfer.objects_moved > moved {
                attempts.progress();
            }
            if !attempts.again().await {
                return Err(error);
            }
            if client.endpoint() != node.endpoint() {
                node = client.pinned();
                upload = None;
            }
        }
    }

    async fn attempt(
        &self,
        node: &Client,
        upload: &mut Option<UploadId>,
        transfer: &mut Transfer,
    ) -> Result<PutReply, Ended> {
        let missing = need::missing(node, self.collection, self.cut, upload, transfer).await?;
        // Of what an earlier attempt sent, what is there by now counts as such.
        self.progress.set(self.cut.bytes_without(&missing));
        transfer.objects_here = (self.cut.len() - missing.len()) as u64;
        let (lists, chunks): (Vec<_>, Vec<_>) =
            self.cut.locate(missing.into_iter()).into_iter().partition(LocalObject::is_list);
        // A list only after what it lists.
        for objects in [chunks, lists] {
            self.send_objects(node, objects, upload, transfer).await?;
        }
        self.put_reference(node, upload, transfer).await
    }

    async fn send_objects(
        &self,
        node: &Client,
        objects: Vec<LocalObject>,
        upload: &mut Option<UploadId>,
        transfer: &mut Transfer,
    ) -> Result<(), Ended> {
        let Some(id) = *upload else { return Ok(()) };
        let path = format!("/v1/uploads/{id}/objects?collection={}", url::encode(self.collection.as_bytes()));
        let mut sent = stream::iter(batches(objects))
            .map(|batch| send_batch(node, &path, self.source.clone(), batch))
            .buffer_unordered(BATCHES_IN_FLIGHT);
        while let Some(batch) = sent.next().await {
            let Batch { objects, bytes, value_bytes } = batch.map_err(|error| Ended::of_objects(error, upload))?;
            transfer.objects_moved += objects;
            transfer.sent_bytes += bytes;
            self.progress.add(value_bytes);
        }
        Ok(())
    }

    async fn put_reference(
        &self,
        node: &Client,
        upload: &mut Option<UploadId>,
        transfer: &mut Transfer,
    ) -> Result<PutReply, Ended> {
        let reference = self.cut.reference.encode();
        transfer.sent_bytes += reference.len() as u64;
        // The replicas may have to fetch all of the value.
        let timeout = node.timeout + Duration::from_secs(self.cut.reference.bytes() / REPLICATED_PER_SECOND_MIN);
        let mut call = Call::write(Method::PUT, put_path(self.collection, self.key, self.options))
            .within(timeout)
            .body(Payload::Bytes(reference), HeaderValue::from_static(VALUE_REF_MEDIA_TYPE));
        if let Some(Ok(id)) = upload.map(|id| HeaderValue::from_str(&id.to_string())) {
            call = call.header(own::UPLOAD, id);
        }
        if let Some(kind) = media_type(self.options)? {
            call = call.header(own::CONTENT_TYPE, kind);
        }
        let answer = node.call(call).await.map_err(|error| Ended::of_reference(error, upload))?;
        Ok(answer.json()?)
    }
}

/// Objects that a node has taken.
struct Batch {
    objects: u64,
    /// The length of the body.
    bytes: u64,
    /// The length of the chunks.
    value_bytes: u64,
}

/// Groups of objects for one body each, in the same order.
fn batches(objects: Vec<LocalObject>) -> Vec<Vec<LocalObject>> {
    let mut batches: Vec<Vec<LocalObject>> = Vec::new();
    let mut room = 0;
    for object in objects {
        let bytes = FRAME_HEADER_BYTES + object.bytes;
        if bytes > room || batches.last().is_none_or(|batch| batch.len() == BATCH_OBJECTS_MAX) {
            batches.push(Vec::new());
            room = BATCH_BYTES_MAX;
        }
        room = room.saturating_sub(bytes);
        batches.last_mut().expect("one was just added").push(object);
    }
    batches
}

async fn send_batch(
    node: &Client,
    path: &str,
    source: ValueSource,
    batch: Vec<LocalObject>,
) -> Result<Batch, ClientError> {
    let objects = batch.len() as u64;
    let value_bytes = batch.iter().filter(|object| !object.is_list()).map(|object| object.bytes as u64).sum();
    let body = blocking(move || encode(&source, &batch)).await;
    let body = body.map_err(|source| ClientError::Source { what: "the value", source })?;
    let (body, is_compressed) = body.ok_or(ClientError::SourceChanged)?;
    let bytes = body.len() as u64;
    // Storing an object changes no record, so the call can be repeated.
    let mut call = Call::read(Method::POST, path).within(node.timeout.max(BATCH_TIMEOUT_MIN));
    if is_compressed {
        call = call.header(header::CONTENT_ENCODING.as_str(), HeaderValue::from_static("zstd"));
    }
    let call = call.body(Payload::Bytes(body), HeaderValue::from_static("application/octet-stream"));
    node.call(call).await?;
    Ok(Batch { objects, bytes, value_bytes })
}

/// The body with these objects, and whether it is compressed. `None` if the source has changed.
fn encode(source: &ValueSource, batch: &[LocalObject]) -> std::io::Result<Option<(Bytes, bool)>> {
    let mut body = Vec::with_capacity(batch.iter().map(|object| FRAME_HEADER_BYTES + object.bytes).sum());
    for object in batch {
        let Some(bytes) = object.read(source)? else { return Ok(None) };
        put_frame(&mut body, object.kind, &bytes);
    }
    Ok(Some(match frames::compress(&body) {
        Some(compressed) => (compressed, true),
        None => (body.into(), false),
    }))
}
