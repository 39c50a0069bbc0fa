//! Reading a value: from the cache as far as it has the objects, else from the nodes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::Pin,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{FRAME_HEADER_BYTES, FrameKind, FrameReader, VALUE_REF_MEDIA_TYPE, header};
use flotilla_types::{NodeId, ObjectId, Timestamp};
use flotilla_values::{Chunking, Kind, ListNode, Need, Plan, Reader, Step, ValueRef};
use futures_util::{Stream, StreamExt as _, stream};
use reqwest::{
    Method,
    header::{self as names, HeaderMap, HeaderValue},
};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::{
    BATCH_BYTES_MAX, BATCH_OBJECTS_MAX, BATCH_TIMEOUT_MIN, BATCHES_IN_FLIGHT, LocalValue, Transfer, ValueCache,
    ValueSource, frames,
    local::Cut,
    retry::Attempts,
    source::{Spool, blocking},
};
use crate::{
    Client, ClientError, Record,
    call::{Call, Opened, Payload},
    records::is_key_not_found,
    url,
};

/// A value that is read while it arrives.
#[derive(Debug)]
pub struct ValueReader {
    /// The record's version.
    pub version: Timestamp,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The node that served the read, if known.
    pub served_by: Option<NodeId>,
    /// The media type of the value, if the node says one.
    pub media_type: Option<String>,
    /// Length of the value, if known before its end.
    pub bytes: Option<u64>,
    body: Body,
    transfer: Transfer,
    /// Length of what was returned.
    read_bytes: u64,
}

/// Where the content comes from.
enum Body {
    /// A node sends the whole value.
    Whole(Opened),
    /// It is here.
    Here(Option<Bytes>),
    /// Objects, from the cache or from nodes.
    Objects { batches: Batches, ready: VecDeque<Bytes> },
}

/// The chunks of a value, in order, with what it took to get them.
type Batches = Pin<Box<dyn Stream<Item = Result<(Vec<Bytes>, Transfer), ClientError>> + Send>>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Here(_) => "Here",
            Self::Objects { .. } => "Objects",
        })
    }
}

impl ValueReader {
    /// The next bytes of the value; none at its end.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::RecordChanged`] the rest cannot be had: read the record again.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let chunk = match &mut self.body {
            Body::Here(bytes) => bytes.take(),
            Body::Whole(answer) => {
                let chunk = answer.chunk().await?;
                self.transfer.received_bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                chunk
            }
            Body::Objects { batches, ready } => loop {
                if let Some(chunk) = ready.pop_front() {
                    break Some(chunk);
                }
                match batches.next().await {
                    Some(batch) => {
                        let (chunks, transfer) = batch?;
                        self.transfer += transfer;
                        ready.extend(chunks);
                    }
                    None => break None,
                }
            },
        };
        self.read_bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok(chunk)
    }

    /// Writes the rest of the value.
    ///
    /// # Errors
    /// As for [`chunk`](Self::chunk), and if `writer` fails.
    pub async fn copy_to(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), ClientError> {
        let failed = |source| ClientError::Sink { source };
        while let Some(chunk) = self.chunk().await? {
            writer.write_all(&chunk).await.map_err(failed)?;
        }
        writer.flush().await.map_err(failed)
    }

    /// Reads the rest of the value. More than 1 MiB is kept in a temporary file.
    ///
    /// # Errors
    /// As for [`chunk`](Self::chunk), and if the temporary file cannot be written.
    pub async fn read(&mut self) -> Result<ValueSource, ClientError> {
        let mut spool = Spool::default();
        while let Some(chunk) = self.chunk().await? {
            spool = blocking(move || spool.push(&chunk)).await.map_err(|source| ClientError::Sink { source })?;
        }
        Ok(spool.finish())
    }

    /// What it took so far.
    #[must_use]
    pub fn transfer(&self) -> Transfer {
        Transfer { value_bytes: self.read_bytes, ..self.transfer }
    }
}

impl Client {
    /// Reads a value while it arrives; `None` if there is no record. With a cache, only those objects are fetched
    /// that it does not have.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_value(
        &self,
        collection: &str,
        key: &[u8],
        cache: Option<&ValueCache>,
    ) -> Result<Option<ValueReader>, ClientError> {
        if url::is_dot_segment(key) {
            return Ok(self.get(collection, key).await?.map(ValueReader::of_record));
        }
        let Some(cache) = cache else {
            let answer = self.open_value(collection, key, None).await?;
            return answer.map(|answer| ValueReader::new(&answer.headers().clone(), Body::Whole(answer))).transpose();
        };
        let mut attempts = Attempts::within(self.value_timeout);
        loop {
            let Some(answer) = self.open_value(collection, key, Some(VALUE_REF_MEDIA_TYPE)).await? else {
                return Ok(None);
            };
            match self.read_objects(collection, key, answer, cache).await {
                Err(error) if error.is_retryable() && attempts.again().await => {}
                read => return read.map(Some),
            }
        }
    }

    /// Whether exactly this value is stored under the key. Of a large value, only its reference travels.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn has_value(&self, collection: &str, key: &[u8], value: &LocalValue) -> Result<bool, ClientError> {
        if url::is_dot_segment(key) {
            return match self.get(collection, key).await? {
                Some(record) => same(&value.source, 0, &record.value, record.value.len() as u64).await,
                None => Ok(false),
            };
        }
        let Some(mut answer) = self.open_value(collection, key, Some(VALUE_REF_MEDIA_TYPE)).await? else {
            return Ok(false);
        };
        if is_reference(answer.headers()) {
            let stored = decode(answer).await?;
            return Ok(stored.bytes() == value.bytes() && stored.etag() == etag(value).await?);
        }
        let length = content_length(answer.headers());
        if length.is_some_and(|bytes| bytes != value.bytes()) {
            return Ok(false);
        }
        let mut offset = 0;
        while let Some(chunk) = answer.chunk().await? {
            if !same(&value.source, offset, &chunk, value.bytes()).await? {
                return Ok(false);
            }
            offset += chunk.len() as u64;
        }
        Ok(offset == value.bytes())
    }

    async fn open_value(
        &self,
        collection: &str,
        key: &[u8],
        accept: Option<&'static str>,
    ) -> Result<Option<Opened>, ClientError> {
        let mut call = Call::read(Method::GET, url::record(collection, key)).in_total(self.value_timeout);
        if let Some(accept) = accept {
            call = call.header(names::ACCEPT.as_str(), HeaderValue::from_static(accept));
        }
        match self.open(call).await {
            Err(error) if is_key_not_found(&error) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// The value that an answer contains or refers to.
    async fn read_objects(
        &self,
        collection: &str,
        key: &[u8],
        answer: Opened,
        cache: &ValueCache,
    ) -> Result<ValueReader, ClientError> {
        let headers = answer.headers().clone();
        if !is_reference(&headers) {
            return ValueReader::new(&headers, Body::Whole(answer));
        }
        let value = decode(answer).await?;
        let path = format!("/v1/kv-objects/{}/{}", url::encode(collection.as_bytes()), url::encode(key));
        let fetch = Arc::new(Fetch { client: self.clone(), path, cache: cache.clone() });
        let mut transfer = Transfer { received_bytes: value.encode().len() as u64, ..Transfer::default() };
        let chunks = fetch.chunks_of(&value, &mut transfer).await?;
        let batches = stream::iter(batches(chunks))
            .map(move |needs| {
                let fetch = Arc::clone(&fetch);
                async move { fetch.get(&needs).await }
            })
            .buffered(BATCHES_IN_FLIGHT);
        let body = Body::Objects { batches: Box::pin(batches), ready: VecDeque::new() };
        let reader = ValueReader::new(&headers, body)?;
        let media_type = text(&headers, header::CONTENT_TYPE);
        Ok(ValueReader { media_type, bytes: Some(value.bytes()), transfer, ..reader })
    }
}

impl ValueReader {
    fn new(headers: &HeaderMap, body: Body) -> Result<Self, ClientError> {
        let number = |name: &str| text(headers, name)?.parse().ok();
        let Some(version) = number(header::VERSION) else {
            let endpoint = if let Body::Whole(answer) = body { answer.endpoint } else { String::new() };
            return Err(ClientError::Protocol { endpoint });
        };
        Ok(Self {
            version: Timestamp(version),
            expires_at_ms: number(header::EXPIRES_AT_MS),
            served_by: number(header::SERVED_BY).map(NodeId),
            media_type: text(headers, names::CONTENT_TYPE.as_str()),
            bytes: content_length(headers),
            body,
            transfer: Transfer::default(),
            read_bytes: 0,
        })
    }

    fn of_record(record: Record) -> Self {
        let Record { value, version, expires_at_ms, served_by } = record;
        let bytes = value.len() as u64;
        Self {
            version,
            expires_at_ms,
            served_by,
            media_type: None,
            bytes: Some(bytes),
            body: Body::Here(Some(value).filter(|value| !value.is_empty())),
            transfer: Transfer { received_bytes: bytes, ..Transfer::default() },
            read_bytes: 0,
        }
    }
}

/// The objects of one record.
struct Fetch {
    client: Client,
    path: String,
    cache: ValueCache,
}

impl Fetch {
    /// All chunks of a value, in order, from its lists.
    async fn chunks_of(&self, value: &ValueRef, transfer: &mut Transfer) -> Result<Vec<Need>, ClientError> {
        // A list that is not what its parent says makes the value damaged: no other node helps.
        let damaged = |_| ClientError::Protocol { endpoint: self.client.endpoint().to_owned() };
        let mut plan = Plan::new(value);
        let mut lists = BTreeMap::new();
        loop {
            let level: Vec<Need> = plan.level().iter().filter(|need| need.kind != Kind::Chunk).copied().collect();
            for needs in batches(level) {
                let (objects, moved) = self.get(&needs).await?;
                *transfer += moved;
                for (need, object) in needs.iter().zip(objects) {
                    plan.supply(need, &object).map_err(damaged)?;
                    lists.insert(need.id, object);
                }
            }
            if !plan.descend().is_ok_and(|descended| descended) {
                break;
            }
        }
        let mut chunks = Vec::new();
        let mut reader = Reader::new(value, 0..value.bytes()).expect("all of the value is within it");
        while let Some(step) = reader.step() {
            match step {
                Step::Chunk(slice) => chunks.push(slice.need),
                Step::List(need) => reader.supply(lists.get(&need.id).map_or(&[][..], |list| list)).map_err(damaged)?,
            }
        }
        Ok(chunks)
    }

    /// These objects, from the cache or from a node.
    async fn get(&self, needs: &[Need]) -> Result<(Vec<Bytes>, Transfer), ClientError> {
        let (cache, wanted) = (self.cache.clone(), needs.to_vec());
        let cached = |source| ClientError::Source { what: "the cache", source };
        let read = move || {
            let found = wanted
                .iter()
                .map(|need| Some((need.id, cache.read(need.id).filter(|bytes| need.verify(bytes).is_ok())?)));
            Ok(found.flatten().collect::<BTreeMap<_, _>>())
        };
        let mut objects = blocking(read).await.map_err(cached)?;
        let missing: BTreeMap<ObjectId, Need> =
            needs.iter().filter(|need| !objects.contains_key(&need.id)).map(|need| (need.id, *need)).collect();
        let mut transfer = Transfer { objects_here: objects.len() as u64, ..Transfer::default() };
        if !missing.is_empty() {
            let missing: Vec<_> = missing.into_values().collect();
            let fetched = self.fetch(&missing, &mut transfer).await?;
            transfer.objects_moved += fetched.len() as u64;
            let (cache, new) = (self.cache.clone(), fetched.clone());
            // A cache that cannot be written costs another fetch, but not this value.
            let _ = blocking(move || new.iter().try_for_each(|(id, bytes)| cache.write(*id, bytes))).await;
            objects.extend(fetched);
        }
        Ok((needs.iter().filter_map(|need| objects.get(&need.id).cloned()).collect(), transfer))
    }

    /// These objects from a node, each once. Repeats the call, which only reads.
    async fn fetch(&self, needs: &[Need], transfer: &mut Transfer) -> Result<Vec<(ObjectId, Bytes)>, ClientError> {
        let mut attempts = Attempts::within(self.client.value_timeout);
        loop {
            match self.try_fetch(needs, transfer).await {
                // The record has to be read again.
                Err(error @ ClientError::RecordChanged) => return Err(error),
                Err(error) if error.is_retryable() && attempts.again().await => {}
                fetched => return fetched,
            }
        }
    }

    async fn try_fetch(&self, needs: &[Need], transfer: &mut Transfer) -> Result<Vec<(ObjectId, Bytes)>, ClientError> {
        let mut ids = BytesMut::with_capacity(needs.len() * 32);
        needs.iter().for_each(|need| ids.extend_from_slice(need.id.as_bytes()));
        transfer.sent_bytes += ids.len() as u64;
        let timeout = self.client.timeout.max(BATCH_TIMEOUT_MIN);
        let call = Call::read(Method::POST, self.path.as_str())
            .within(timeout)
            .header(names::ACCEPT_ENCODING.as_str(), HeaderValue::from_static("zstd"))
            .body(Payload::Bytes(ids.freeze()), HeaderValue::from_static("application/octet-stream"));
        let answer = match self.client.open(call).await {
            Err(error) if is_key_not_found(&error) => return Err(ClientError::RecordChanged),
            answer => answer?,
        };
        let bytes_max = needs.iter().map(|need| FRAME_HEADER_BYTES + object_bytes_max(need)).sum();
        let is_compressed = answer.headers().get(names::CONTENT_ENCODING).is_some_and(|coding| coding == "zstd");
        let endpoint = answer.endpoint.clone();
        let protocol = || ClientError::Protocol { endpoint: endpoint.clone() };
        let mut body = answer.bytes(frames::compressed_bytes_max(bytes_max)).await?;
        transfer.received_bytes += body.len() as u64;
        if is_compressed {
            body = frames::decompress(&body, bytes_max).ok_or_else(protocol)?;
        }
        let mut objects = Vec::with_capacity(needs.len());
        let (mut frames, mut rest) = (FrameReader::default(), &body[..]);
        for need in needs {
            let (kind, bytes) = frames.next(&mut rest).map_err(|_| protocol())?.ok_or_else(protocol)?;
            if kind == FrameKind::Absent {
                return Err(ClientError::RecordChanged);
            }
            if kind != frames::kind(need.kind) || need.verify(&bytes).is_err() {
                return Err(protocol());
            }
            objects.push((need.id, bytes.into()));
        }
        if rest.is_empty() { Ok(objects) } else { Err(protocol()) }
    }
}

/// Groups of objects for one answer each, in the same order.
fn batches(needs: Vec<Need>) -> Vec<Vec<Need>> {
    let mut batches: Vec<Vec<Need>> = Vec::new();
    let mut room = 0;
    for need in needs {
        let bytes = FRAME_HEADER_BYTES + object_bytes_max(&need);
        if bytes > room || batches.last().is_none_or(|batch| batch.len() == BATCH_OBJECTS_MAX) {
            batches.push(Vec::new());
            room = BATCH_BYTES_MAX;
        }
        room = room.saturating_sub(bytes);
        batches.last_mut().expect("one was just added").push(need);
    }
    batches
}

fn object_bytes_max(need: &Need) -> usize {
    match need.kind {
        // A chunk has 1 MiB at most.
        Kind::Chunk => need.bytes as usize,
        Kind::List(_) => ListNode::ENCODED_BYTES_MAX,
    }
}

fn is_reference(headers: &HeaderMap) -> bool {
    headers.get(names::CONTENT_TYPE).is_some_and(|kind| kind == VALUE_REF_MEDIA_TYPE)
}

async fn decode(answer: Opened) -> Result<ValueRef, ClientError> {
    let endpoint = answer.endpoint.clone();
    let body = answer.bytes(ValueRef::ENCODED_BYTES_MAX).await?;
    ValueRef::decode(&body).map_err(|_| ClientError::Protocol { endpoint })
}

/// The hash of a value, which does not depend on how it is cut.
async fn etag(value: &LocalValue) -> Result<ObjectId, ClientError> {
    if let Some(cut) = &value.cut {
        return Ok(cut.reference.etag());
    }
    let source = value.source.clone();
    let cut = blocking(move || Cut::new(&source, Chunking::default())).await;
    Ok(cut.map_err(|source| ClientError::Source { what: "the value", source })?.reference.etag())
}

/// Whether these bytes are a part of a source that has so many bytes.
async fn same(source: &ValueSource, offset: u64, bytes: &Bytes, length: u64) -> Result<bool, ClientError> {
    if source.len() != length || offset + bytes.len() as u64 > length {
        return Ok(false);
    }
    let (source, bytes) = (source.clone(), bytes.clone());
    let same = blocking(move || Ok(source.slice(offset, bytes.len())? == bytes)).await;
    same.map_err(|source| ClientError::Source { what: "the value", source })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, names::CONTENT_LENGTH.as_str())?.parse().ok()
}
