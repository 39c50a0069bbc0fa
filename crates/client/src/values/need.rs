//! Asking a node which objects it lacks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_api::{NeedReply, NeedRequest, OBJECT_REFS_MAX, ObjectName, ObjectNeed, Problem, UploadId};
use flotilla_types::{ObjectId, ObjectRef};
use reqwest::{Method, StatusCode, header::HeaderValue};
use serde::{Deserialize, Serialize};

use super::{Transfer, local::Cut, put::Ended};
use crate::{
    Client, ClientError,
    call::{Call, Payload},
};

/// References in one call. A body of 50 KB, so that many questions do not hold much at the node.
const REFS_MAX: usize = 512;
const _: () = assert!(REFS_MAX <= OBJECT_REFS_MAX);

#[derive(Serialize)]
struct Question<'a> {
    jsonrpc: &'static str,
    id: u8,
    method: &'static str,
    params: &'a NeedRequest,
}

#[derive(Deserialize)]
struct Reply {
    result: Option<NeedReply>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    data: Option<Problem>,
}

/// Finds out which objects of a value this node lacks, from the root down: what is below a list that is missing is
/// asked next, what is below one that is there the node looks up itself. Those that are there are held by the
/// upload, which begins with the first question. An unchanged value takes one question about its root.
pub(super) async fn missing(
    node: &Client,
    collection: &str,
    cut: &Cut,
    upload: &mut Option<UploadId>,
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
    upload: &mut Option<UploadId>,
    refs: &[ObjectRef],
    transfer: &mut Transfer,
) -> Result<Vec<ObjectId>, Ended> {
    let refs = refs.iter().map(|reference| ObjectNeed::from(*reference)).collect();
    let params = &NeedRequest { collection: collection.to_owned(), upload: *upload, refs };
    let question = Question { jsonrpc: "2.0", id: 1, method: "objects.need", params };
    // Plain data with text keys can be serialized.
    let body = Bytes::from(serde_json::to_vec(&question).unwrap_or_default());
    transfer.sent_bytes += body.len() as u64;
    // Holding objects changes no record, so the call can be repeated.
    let call = Call::read(Method::POST, "/v1/rpc");
    let answer = node.call(call.body(Payload::Bytes(body), HeaderValue::from_static("application/json"))).await;
    let answer = answer.map_err(|error| Ended::of_objects(error, upload))?;
    transfer.received_bytes += answer.body.len() as u64;
    let endpoint = answer.endpoint.clone();
    let NeedReply { upload: held_by, missing, .. } = match answer.json()? {
        Reply { result: Some(result), .. } => result,
        Reply { error: Some(Refusal { data: Some(problem) }), .. } => {
            return Err(Ended::of_objects(ClientError::Refused(Box::new(problem)), upload));
        }
        // There is no such method, or not with these parameters.
        Reply { error: Some(Refusal { data: None }), .. } => return Err(Ended::NotKnown),
        Reply { .. } => return Err(ClientError::Protocol { endpoint }.into()),
    };
    *upload = Some(held_by);
    Ok(missing.into_iter().map(|ObjectName(id)| id).collect())
}

/// Whether a refusal says that the upload has ended.
pub(super) fn has_ended(problem: &Problem) -> bool {
    problem.status == StatusCode::GONE.as_u16()
}
