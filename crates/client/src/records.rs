//! Reads and writes of records.

use bytes::Bytes;
use flotilla_api::{
    BatchOperation, BatchReply, BatchRequest, BatchVerb, DeleteReply, Encoding, Outcome, ProblemType, PutReply,
    ScanItem, ScanPage, header,
};
use flotilla_types::{NodeId, Timestamp};
use reqwest::{Method, header::HeaderValue};

use crate::{
    Client, ClientError, PutOptions, ScanOptions,
    call::{Answer, Call, Payload},
    url,
};

/// Longest media type of a value, bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// A record that was read by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its value.
    pub value: Bytes,
    /// Its version.
    pub version: Timestamp,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The node that served the read, if known.
    pub served_by: Option<NodeId>,
}

/// A record of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedRecord {
    /// Its key.
    pub key: Bytes,
    /// Its value; empty when values were not requested.
    pub value: Bytes,
    /// Its version.
    pub version: Timestamp,
    /// Length of its value.
    pub value_bytes: u64,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// A page of a scan, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScannedPage {
    /// The records.
    pub records: Vec<ScannedRecord>,
    /// For the next page; `None` on the last one.
    pub cursor: Option<String>,
}

impl Client {
    /// Reads a record; `None` when there is none under this key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, collection: &str, key: &[u8]) -> Result<Option<Record>, ClientError> {
        if url::is_dot_segment(key) {
            return self.get_by_scan(collection, key).await;
        }
        let answer = match self.call(Call::read(Method::GET, url::record(collection, key))).await {
            Err(error) if is_key_not_found(&error) => return Ok(None),
            answer => answer?,
        };
        let version = answer.number(header::VERSION).map(Timestamp);
        let expires_at_ms = answer.number(header::EXPIRES_AT_MS);
        let served_by = answer.number(header::SERVED_BY).map(NodeId);
        let Answer { endpoint, body: value, .. } = answer;
        let version = version.ok_or(ClientError::Protocol { endpoint })?;
        Ok(Some(Record { value, version, expires_at_ms, served_by }))
    }

    /// Stores a value.
    ///
    /// # Errors
    /// See [`ClientError`]; a condition that does not hold is a problem `condition_failed`.
    pub async fn put(
        &self,
        collection: &str,
        key: &[u8],
        value: Bytes,
        options: &PutOptions,
    ) -> Result<PutReply, ClientError> {
        if url::is_dot_segment(key) {
            let operation = BatchOperation {
                op: BatchVerb::Put,
                value: Some(base64(&value)),
                ttl_ms: ttl_ms(options),
                if_version: options.if_version,
                if_absent: options.if_absent,
                ..operation_on(key)
            };
            let BatchReply { version, timestamp, token, .. } = self.batch(&batch_of(collection, operation)).await?;
            return Ok(PutReply { version, timestamp, token });
        }
        let kind = media_type(options)?.unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let call = Call::write(Method::PUT, put_path(collection, key, options));
        self.call(call.body(Payload::Bytes(value), kind)).await?.json()
    }

    /// Removes a record; `None` when there was none. With a version: only if the record has it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(
        &self,
        collection: &str,
        key: &[u8],
        if_version: Option<Timestamp>,
    ) -> Result<Option<DeleteReply>, ClientError> {
        if url::is_dot_segment(key) {
            let operation = BatchOperation { op: BatchVerb::Delete, if_version, ..operation_on(key) };
            let reply = self.batch(&batch_of(collection, operation)).await?;
            let removed = reply.results.first().filter(|result| result.outcome == Outcome::Deleted);
            let version = removed.and_then(|result| result.version);
            let BatchReply { timestamp, token, .. } = reply;
            return Ok(version.map(|version| DeleteReply { version, timestamp, token }));
        }
        let query: Vec<_> = if_version.map(|version| format!("if_version={version}")).into_iter().collect();
        match self.call(Call::write(Method::DELETE, with_query(url::record(collection, key), &query))).await {
            Err(error) if is_key_not_found(&error) => Ok(None),
            answer => answer?.json().map(Some),
        }
    }

    /// Scans a page of records in key order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scan(&self, collection: &str, options: &ScanOptions) -> Result<ScannedPage, ClientError> {
        let mut query = vec!["encoding=base64".to_owned(), format!("limit={}", options.limit)];
        let bounds = [("prefix", &options.prefix), ("start", &options.start), ("end", &options.end)];
        query.extend(
            bounds.iter().filter(|(_, key)| !key.is_empty()).map(|(name, key)| format!("{name}={}", url::encode(key))),
        );
        query.extend(options.cursor.as_ref().map(|cursor| format!("cursor={}", url::encode(cursor.as_bytes()))));
        // Later pages have it in their cursor.
        query.extend((options.snapshot && options.cursor.is_none()).then(|| "snapshot=true".to_owned()));
        query.extend((!options.values).then(|| "values=false".to_owned()));
        let answer = self.call(Call::read(Method::GET, with_query(url::collection(collection), &query))).await?;
        let endpoint = answer.endpoint.clone();
        let page: ScanPage = answer.json()?;
        let records = page.items.into_iter().map(decode_item).collect::<Option<Vec<_>>>();
        Ok(ScannedPage { records: records.ok_or(ClientError::Protocol { endpoint })?, cursor: page.cursor })
    }

    /// Applies several writes within one shard atomically.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn batch(&self, request: &BatchRequest) -> Result<BatchReply, ClientError> {
        self.call(Call::write(Method::POST, "/v1/batch").json(request)).await?.json()
    }

    /// Adds to a counter (absent = 0) and returns the sum.
    ///
    /// # Errors
    /// See [`ClientError`]; a value that is not an integer is a problem `not_an_integer`.
    pub async fn add(&self, collection: &str, key: &[u8], delta: i64) -> Result<i64, ClientError> {
        let operation = BatchOperation { op: BatchVerb::Add, delta: Some(delta), ..operation_on(key) };
        let answer = self.call(Call::write(Method::POST, "/v1/batch").json(&batch_of(collection, operation))).await?;
        let endpoint = answer.endpoint.clone();
        let reply: BatchReply = answer.json()?;
        reply.results.first().and_then(|result| result.number).ok_or(ClientError::Protocol { endpoint })
    }

    async fn get_by_scan(&self, collection: &str, key: &[u8]) -> Result<Option<Record>, ClientError> {
        // The range from the key to its successor contains at most this record.
        let end: Bytes = key.iter().copied().chain([0]).collect();
        let start = Bytes::copy_from_slice(key);
        let page = self.scan(collection, &ScanOptions { start, end, limit: 1, ..ScanOptions::default() }).await?;
        Ok(page.records.into_iter().next().map(|found| Record {
            value: found.value,
            version: found.version,
            expires_at_ms: found.expires_at_ms,
            served_by: None,
        }))
    }
}

/// An operation on this key, with all other fields at their defaults.
fn operation_on(key: &[u8]) -> BatchOperation {
    BatchOperation { key: base64(key), encoding: Encoding::Base64, ..BatchOperation::default() }
}

fn batch_of(collection: &str, operation: BatchOperation) -> BatchRequest {
    BatchRequest { collection: collection.to_owned(), conditions: Vec::new(), operations: vec![operation] }
}

/// Path and query of a put with these conditions and this expiry.
pub(crate) fn put_path(collection: &str, key: &[u8], options: &PutOptions) -> String {
    let mut query = Vec::new();
    query.extend(options.if_version.map(|version| format!("if_version={version}")));
    query.extend(options.if_absent.then(|| "if_absent=true".to_owned()));
    query.extend(ttl_ms(options).map(|ttl_ms| format!("ttl_ms={ttl_ms}")));
    with_query(url::record(collection, key), &query)
}

fn ttl_ms(options: &PutOptions) -> Option<u64> {
    options.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// The media type as a header, if there is one.
pub(crate) fn media_type(options: &PutOptions) -> Result<Option<HeaderValue>, ClientError> {
    let header = |text: &String| {
        let fits = (1..=MEDIA_TYPE_BYTES_MAX).contains(&text.len()) && *text != flotilla_api::VALUE_REF_MEDIA_TYPE;
        HeaderValue::from_str(text).ok().filter(|_| fits).ok_or_else(|| ClientError::InvalidMediaType(text.clone()))
    };
    options.media_type.as_ref().map(header).transpose()
}

fn base64(bytes: &[u8]) -> String {
    // Base64 can encode all bytes.
    Encoding::Base64.encode(bytes).unwrap_or_default()
}

fn decode_item(item: ScanItem) -> Option<ScannedRecord> {
    let decode = |text: &str| Encoding::Base64.decode(text).ok().map(Bytes::from);
    Some(ScannedRecord {
        key: decode(&item.key)?,
        value: item.value.as_deref().map_or(Some(Bytes::new()), decode)?,
        version: item.version,
        value_bytes: item.value_bytes,
        expires_at_ms: item.expires_at_ms,
    })
}

pub(crate) fn is_key_not_found(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.kind == ProblemType::KeyNotFound)
}

fn with_query(path: String, query: &[String]) -> String {
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}
