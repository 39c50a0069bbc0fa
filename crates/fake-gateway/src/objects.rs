//! The calls about objects: what is missing, storing, sending.

use std::collections::BTreeSet;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_types::{ObjectId, ObjectRef};
use flotilla_values::{Kind, Level, Plan, ValueRef, list_refs};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::{Answer, Arrived, Content, State, server::cut};

/// Objects in one call at most.
const OBJECTS_MAX: usize = 4_096;
/// A body with objects at most, before compression: frames of 1 MiB, or one longest chunk.
const BODY_BYTES_MAX: usize = (1 << 20) + 5;

impl State {
    pub(crate) fn rpc(&mut self, request: &Arrived) -> Answer {
        let Ok(call) = serde_json::from_slice::<Value>(&request.body) else {
            return Answer::malformed("no JSON");
        };
        let error = |error: Value| Answer::json(&json!({ "jsonrpc": "2.0", "id": call["id"], "error": error }));
        if !self.knows_objects || call["method"] != "objects.need" {
            return error(json!({ "code": -32601, "message": "there is no such method" }));
        }
        if request.body.len() > 64 << 10 {
            return Answer::problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
        }
        let Some(refs) = call["params"]["refs"].as_array().filter(|refs| refs.len() <= OBJECTS_MAX) else {
            return error(json!({ "code": -32602, "message": "no references, or too many" }));
        };
        let refs: Option<Vec<_>> = refs.iter().map(reference).collect();
        let Some(refs) = refs else {
            return error(json!({ "code": -32602, "message": "not a reference" }));
        };
        let upload = match call["params"]["upload"].as_str() {
            Some(upload) if !self.uploads.contains_key(upload) => {
                let problem = json!({
                    "type": "upload_ended", "title": "t", "status": 410, "detail": "d", "retryable": false
                });
                return error(json!({ "code": -32000, "message": "d", "data": problem }));
            }
            Some(upload) => upload.to_owned(),
            None => {
                self.uploads_begun += 1;
                let upload = format!("{:016x}", self.uploads_begun);
                self.uploads.insert(upload.clone(), BTreeSet::new());
                upload
            }
        };
        let missing: Vec<String> = self.missing(refs, &upload).iter().map(ObjectId::to_string).collect();
        let result = json!({ "upload": upload, "expires_in_ms": 600_000, "missing": missing });
        Answer::json(&json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }))
    }

    /// Which of these objects, and of those below the ones that are here, are missing. The upload holds the others.
    fn missing(&mut self, mut refs: Vec<ObjectRef>, upload: &str) -> BTreeSet<ObjectId> {
        let mut missing = BTreeSet::new();
        let held = self.uploads.get_mut(upload).expect("an upload that was just looked up");
        while let Some(reference) = refs.pop() {
            match self.objects.get(&reference.id) {
                None => drop(missing.insert(reference.id)),
                Some(object) => {
                    held.insert(reference.id);
                    if reference.height > 0 {
                        refs.extend(list_refs(&reference, object).expect("a list that was verified"));
                    }
                }
            }
        }
        missing
    }

    pub(crate) fn store(&mut self, upload: &str, request: &Arrived) -> Answer {
        if !request.query.contains_key("collection") {
            return Answer::malformed("no collection");
        }
        if self.batches_until_uploads_end == Some(0) {
            self.batches_until_uploads_end = None;
            self.uploads.clear();
        }
        self.batches_until_uploads_end = self.batches_until_uploads_end.map(|batches| batches - 1);
        let Some(held) = self.uploads.get_mut(upload) else {
            return Answer::problem(StatusCode::GONE, "upload_ended");
        };
        let mut body = request.body.clone();
        if request.header("content-encoding") == "zstd" {
            self.traffic.compressed += 1;
            match zstd::bulk::decompress(&body, BODY_BYTES_MAX) {
                Ok(whole) => body = whole.into(),
                Err(_) => return Answer::malformed("no zstd, or too long"),
            }
        }
        if body.len() > BODY_BYTES_MAX {
            return Answer::problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
        }
        let (mut stored, mut bytes) = (0, 0);
        while !body.is_empty() {
            let (Ok(kind), Ok(length)) = (body.try_get_u8(), body.try_get_u32_le()) else {
                return Answer::malformed("half a frame");
            };
            if length as usize > body.len() || kind > 2 {
                return Answer::malformed("a frame that is too long, or of no kind");
            }
            let object = Bytes::copy_from_slice(&body.split_to(length as usize));
            if kind > 0 && flotilla_values::ListNode::decode(&object).map(|list| level(list.level())) != Ok(kind) {
                return Answer::malformed("no list of this level");
            }
            let id = ObjectId::of(&object);
            held.insert(id);
            self.objects.insert(id, object);
            stored += 1;
            bytes += length;
        }
        self.traffic.batches += 1;
        Answer::json(&json!({ "stored": stored, "bytes": bytes }))
    }

    /// The content of a reference that a client made: it must be here, held by the upload, and be cut like this.
    pub(crate) fn accept(&self, reference: &ValueRef, upload: &str) -> Result<(), Answer> {
        let Some(held) = self.uploads.get(upload) else {
            return Err(Answer::problem(StatusCode::GONE, "upload_ended"));
        };
        let whole = self.whole(&Content::Large(reference.clone()));
        let whole = whole.ok_or_else(|| Answer::problem(StatusCode::CONFLICT, "objects_missing"))?;
        let (again, objects) = cut(self.chunking, &whole);
        if again != *reference {
            return Err(Answer::problem(StatusCode::BAD_REQUEST, "invalid_argument"));
        }
        match objects.iter().find(|(id, _)| !held.contains(id)) {
            Some(_) => Err(Answer::problem(StatusCode::CONFLICT, "objects_missing")),
            None => Ok(()),
        }
    }

    /// A whole value, if all its objects are here.
    pub(crate) fn whole(&self, content: &Content) -> Option<Bytes> {
        let value = match content {
            Content::Inline(bytes) => return Some(bytes.clone()),
            Content::Large(value) => value,
        };
        let mut whole = BytesMut::new();
        let mut reader = flotilla_values::Reader::new(value, 0..value.bytes()).ok()?;
        while let Some(step) = reader.step() {
            match step {
                flotilla_values::Step::List(need) => reader.supply(self.objects.get(&need.id)?).ok()?,
                flotilla_values::Step::Chunk(slice) => {
                    whole.extend_from_slice(&slice.of(self.objects.get(&slice.need.id)?).ok()?);
                }
            }
        }
        Some(whole.freeze())
    }

    pub(crate) fn send_objects(&mut self, collection: &str, request: &Arrived) -> Answer {
        let Some(key) = request.path.last() else { return Answer::malformed("no key") };
        let Some(record) = self.records.get(&(collection.to_owned(), key.clone())) else {
            return Answer::problem(StatusCode::NOT_FOUND, "key_not_found");
        };
        let (ids, []) = request.body.as_chunks::<32>() else { return Answer::malformed("half an id") };
        if ids.is_empty() || ids.len() > OBJECTS_MAX {
            return Answer::malformed("no ids, or too many");
        }
        let kinds = self.kinds(&record.content);
        let mut body = BytesMut::new();
        for id in ids.iter().map(|id| ObjectId(*id)) {
            let found = kinds.iter().find(|(of, _)| *of == id).zip(self.objects.get(&id));
            let (kind, object) = found.map_or((255, &[][..]), |((_, kind), object)| (*kind, &object[..]));
            body.put_u8(kind);
            body.put_u32_le(object.len() as u32);
            body.put_slice(object);
        }
        if request.header("accept-encoding").contains("zstd") {
            self.traffic.compressed += 1;
            let compressed = zstd::bulk::compress(&body, 1).expect("bytes can be compressed");
            return Answer::new(compressed).with("content-encoding", "zstd");
        }
        Answer::new(body.freeze())
    }

    /// The objects of a value that are here, with their kinds in frames.
    fn kinds(&self, content: &Content) -> Vec<(ObjectId, u8)> {
        let Content::Large(value) = content else { return Vec::new() };
        let mut plan = Plan::new(value);
        let mut kinds = Vec::new();
        loop {
            for need in plan.level().to_vec() {
                kinds.push((need.id, if let Kind::List(of) = need.kind { level(of) } else { 0 }));
                if let Some(object) = self.objects.get(&need.id) {
                    // A chunk is no list of this level.
                    let _ = plan.supply(&need, object);
                }
            }
            if !plan.descend().is_ok_and(|descended| descended) {
                return kinds;
            }
        }
    }
}

fn level(level: Level) -> u8 {
    match level {
        Level::Leaf => 1,
        Level::Root => 2,
    }
}

fn reference(value: &Value) -> Option<ObjectRef> {
    Some(ObjectRef {
        id: value["id"].as_str()?.parse().ok()?,
        height: u8::try_from(value["height"].as_u64()?).ok().filter(|height| *height <= ObjectRef::HEIGHT_MAX)?,
        bytes: value["bytes"].as_u64()?,
    })
}
