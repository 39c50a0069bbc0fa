//! Asking a node which objects it lacks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_api::Problem;
use flotilla_types::{ObjectId, ObjectRef};
use reqwest::{Method, StatusCode, header::HeaderValue};
use serde::{Deserialize, Serialize};

use super::{Transfer, local::Cut, put::Ended};
use crate::{
    Client, ClientError,
    call::{Call, Payload},
};

/// References in one call: so many that its body stays below the 64 KiB that every node accepts.
const REFS_MAX: usize = 512;

#[derive(Serialize)]
struct Question<'a> {
    jsonrpc: &'static str,
    id: u8,
    method: &'static str,
    params: Parameters<'a>,
}

#[derive(Serialize)]
struct Parameters<'a> {
    collection: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<&'a str>,
    refs: Vec<Reference>,
}

#[derive(Serialize)]
struct Reference {
    id: String,
    height: u8,
    bytes: u64,
}

#[derive(Deserialize)]
struct Reply {
    result: Option<Missing>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    data: Option<Problem>,
}

#[derive(Deserialize)]
struct Missing {
    upload: String,
    missing: Vec<String>,
}

/// Finds out which objects of a value this node lacks, from the root down: what is below a list that is missing is
/// asked next, what is below one that is there the node looks up itself. Those that are there are held by the
/// upload, which begins with the first question. An unchanged value takes one question about its root.
pub(super) async fn missing(
    node: &Client,
    collection: &str,
    cut: &Cut,
    upload: &mut Option<String>,
    transfer: &mut Transfer,
) -> Result<BTreeSet<ObjectId>, Ended> {
    let mut missing = BTreeSet::new();
    let mut asked = BTreeSet::new();
    let mut level: Vec<ObjectRef> = cut.reference.refs().to_vec();
    while !level.is_empty() {
        let mut below = BTreeMap::new();
        for refs in level.chunks(REFS_MAX) {
            asked.extend(refs.iter().map(|reference| reference.id));
            for id in ask(node, collection, upload, refs, transfer).await? {
                let protocol = || ClientError::Protocol { endpoint: node.endpoint().to_owned() };
                let (_, list) = cut.object(id).ok_or_else(protocol)?;
                if missing.insert(id) {
                    let needs = list.into_iter().flat_map(|list| list.needs());
                    below.extend(needs.map(|need| (need.id, ObjectRef::from(need))));
                }
            }
        }
        level = below.into_values().filter(|reference| !asked.contains(&reference.id)).collect();
    }
    Ok(missing)
}

async fn ask(
    node: &Client,
    collection: &str,
    upload: &mut Option<String>,
    refs: &[ObjectRef],
    transfer: &mut Transfer,
) -> Result<Vec<ObjectId>, Ended> {
    let refs = refs
        .iter()
        .map(|ObjectRef { id, height, bytes }| Reference { id: id.to_string(), height: *height, bytes: *bytes })
        .collect();
    let params = Parameters { collection, upload: upload.as_deref(), refs };
    let question = Question { jsonrpc: "2.0", id: 1, method: "objects.need", params };
    // Plain data with text keys can be serialized.
    let body = Bytes::from(serde_json::to_vec(&question).unwrap_or_default());
    transfer.sent_bytes += body.len() as u64;
    // Holding objects changes no record, so the call can be repeated.
    let call = Call::read(Method::POST, "/v1/rpc");
    let answer = node.call(call.body(Payload::Bytes(body), HeaderValue::from_static("application/json"))).await;
    let answer = answer.map_err(|error| Ended::of_objects(error, upload))?;
    transfer.received_bytes += answer.body.len() as u64;
    let protocol = || ClientError::Protocol { endpoint: node.endpoint().to_owned() };
    let Missing { upload: held_by, missing } = match answer.json()? {
        Reply { result: Some(result), .. } => result,
        Reply { error: Some(Refusal { data: Some(problem) }), .. } => {
            return Err(Ended::of_objects(ClientError::Refused(Box::new(problem)), upload));
        }
        // There is no such method, or not with these parameters.
        Reply { error: Some(Refusal { data: None }), .. } => return Err(Ended::NotKnown),
        Reply { .. } => return Err(protocol().into()),
    };
    let fits = !held_by.is_empty() && held_by.len() <= 64 && held_by.bytes().all(|byte| byte.is_ascii_hexdigit());
    *upload = Some(Some(held_by).filter(|_| fits).ok_or_else(protocol)?);
    missing.iter().map(|id| id.parse().map_err(|_| protocol().into())).collect()
}

/// Whether a refusal says that the upload has ended.
pub(super) fn has_ended(problem: &Problem) -> bool {
    problem.status == StatusCode::GONE.as_u16()
}
