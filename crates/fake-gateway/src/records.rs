//! The calls about records and collections.

use flotilla_api::{Encoding, header};
use flotilla_values::ValueRef;
use hyper::StatusCode;
use serde_json::json;

use crate::{Answer, Arrived, Content, Record, State};

/// Longer values are stored in objects.
pub(crate) const OBJECTS_FROM: usize = 4_096;
/// Longest value in a node of an earlier version.
const VALUE_BYTES_MAX: usize = 4 << 20;
const REFERENCE_TYPE: &str = "application/vnd.flotilla.value-ref";

impl State {
    pub(crate) fn collections(&self) -> Answer {
        let mut collection = json!({ "id": 1, "name": "default", "sharding": "hash", "buckets": 16, "replicas": 3 });
        if self.knows_objects {
            collection["objects_from"] = json!(OBJECTS_FROM);
            let chunk = self.chunk.map_or_else(|| self.chunking.to_string(), str::to_owned);
            collection["chunk"] = json!(chunk);
        }
        Answer::json(&json!({ "collections": [collection] }))
    }

    pub(crate) fn put_record(&mut self, collection: &str, request: &Arrived) -> Answer {
        let Some(key) = request.path.last() else { return Answer::malformed("no key") };
        let exists = self.records.contains_key(&(collection.to_owned(), key.clone()));
        if request.query.get("if_absent").is_some_and(|absent| absent == "true") && exists {
            return Answer::problem(StatusCode::PRECONDITION_FAILED, "condition_failed");
        }
        let kind = request.header("content-type");
        let version = if self.knows_objects && kind == REFERENCE_TYPE {
            let Ok(reference) = ValueRef::decode(&request.body) else { return Answer::malformed("no reference") };
            let upload = request.header("flotilla-upload");
            if let Err(refusal) = self.accept(&reference, upload) {
                return refusal;
            }
            self.uploads.remove(upload);
            self.version += 1;
            let media_type = request.header("flotilla-content-type").to_owned();
            let record = Record { content: Content::Large(reference), media_type, version: self.version };
            self.records.insert((collection.to_owned(), key.clone()), record);
            self.version
        } else if !self.knows_objects && request.body.len() > VALUE_BYTES_MAX {
            return Answer::problem(StatusCode::PAYLOAD_TOO_LARGE, "value_too_large");
        } else {
            self.put(collection, key, request.body.clone(), kind.to_owned())
        };
        Answer::json(&json!({ "version": version, "timestamp": version, "token": "t" }))
    }

    pub(crate) fn get_record(&self, collection: &str, request: &Arrived) -> Answer {
        let Some(key) = request.path.last() else { return Answer::malformed("no key") };
        let Some(record) = self.records.get(&(collection.to_owned(), key.clone())) else {
            return Answer::problem(StatusCode::NOT_FOUND, "key_not_found");
        };
        let answer = match &record.content {
            Content::Large(value) if request.header("accept").contains(REFERENCE_TYPE) => Answer::new(value.encode())
                .with("content-type", REFERENCE_TYPE)
                .with("flotilla-content-type", record.media_type.as_str()),
            content => match self.whole(content) {
                Some(value) => Answer::new(value).with("content-type", record.media_type.as_str()),
                None => return Answer::problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            },
        };
        answer.with(header::VERSION, record.version.to_string())
    }

    /// All records in one page. Large values are left out, as if values were not asked for.
    pub(crate) fn scan(&self, collection: &str, request: &Arrived) -> Answer {
        if request.query.get("encoding").is_none_or(|encoding| encoding != "base64") {
            return Answer::malformed("only base64 is known");
        }
        let with_values = request.query.get("values").is_none_or(|values| values != "false");
        let encode = |bytes: &[u8]| Encoding::Base64.encode(bytes).expect("base64 has all bytes");
        let items = self.records.iter().filter(|((of, _), _)| of == collection).map(|((_, key), record)| {
            let mut item = json!({ "key": encode(key), "version": record.version });
            match &record.content {
                Content::Inline(value) => {
                    item["value_bytes"] = json!(value.len());
                    if with_values {
                        item["value"] = json!(encode(value));
                    }
                }
                Content::Large(value) => item["value_bytes"] = json!(value.bytes()),
            }
            item
        });
        Answer::json(&json!({ "items": items.collect::<Vec<_>>() }))
    }
}
