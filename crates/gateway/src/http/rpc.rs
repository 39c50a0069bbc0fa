//! `POST /v1/rpc`: JSON-RPC 2.0 for the same calls as the other routes.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use flotilla_api::{Encoding, MoveShard, NodeList, NodeVerb, ProblemType, RebalanceRequest, SplitShard, TokenRequest};
use flotilla_types::{NodeId, ShardId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    App, audit, body,
    client::ClientConnection,
    cluster::split_key,
    deadline,
    guard::{self, RequestSlot},
    objects,
    problem::Refusal,
};
use crate::{ChangeOptions, Grant, Right, StoreError};

/// Calls in one request.
const CALLS_MAX: usize = 64;
/// Longest body: 4,096 references of objects.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of memory that a byte of JSON takes once it is parsed, at most: lists of short numbers.
const DECODED_PER_BYTE: usize = 32;
/// Methods that are about objects, of which a request may have one: their answers are long.
const OBJECTS: &str = "objects.";
// Error codes of JSON-RPC.
const PARSE_ERROR: i32 = -32_700;
const INVALID_REQUEST: i32 = -32_600;
const METHOD_NOT_FOUND: i32 = -32_601;
const INVALID_PARAMS: i32 = -32_602;
/// Our code for everything the cluster refuses; `data` is the problem document.
const REFUSED: i32 = -32_000;

pub(super) async fn call(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let grant = guard::grant_of(&request)?;
    let (slot, client) = (request.extensions().get::<Arc<RequestSlot>>().cloned(), ClientConnection::of(&request)?);
    let body = body::read(&app, request, BODY_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    // The administration needs no room on a node whose clients hold too much.
    let _decoded = if body.bytes.len() > body::JSON_BYTES_MAX {
        let room = timeout_at(deadline, client.account.reserve(body.bytes.len() * DECODED_PER_BYTE)).await;
        client.account.works();
        Some(room.map_err(|_| Refusal::busy("the clients of this node hold too many bytes"))?)
    } else {
        None
    };
    let calls: Result<Value, _> = serde_json::from_slice(&body.bytes);
    let about_objects = calls.as_ref().map_or(0, count_about_objects);
    // They are requests for records, and take no place of the administration.
    let _place = match slot.filter(|_| about_objects > 0) {
        Some(slot) => Some(slot.among(&app.requests)?),
        None => None,
    };
    // The methods that the audit log is about.
    let mut audited = Vec::new();
    let answer = match calls {
        Ok(Value::Array(_)) if about_objects > 1 => {
            Some(error_response(Value::Null, &Failure::new(INVALID_REQUEST, "a batch may have one call about objects")))
        }
        Err(_) => Some(error_response(Value::Null, &Failure::new(PARSE_ERROR, "the body is not JSON"))),
        Ok(Value::Array(calls)) if calls.is_empty() || calls.len() > CALLS_MAX => {
            Some(error_response(Value::Null, &Failure::new(INVALID_REQUEST, "a batch must have 1 to 64 calls")))
        }
        Ok(Value::Array(calls)) => {
            let mut answers = Vec::with_capacity(calls.len());
            for call in calls {
                answers.extend(answer(&app, &grant, call, &mut audited, deadline).await);
            }
            if answers.is_empty() { None } else { Some(Value::Array(answers)) }
        }
        Ok(call) => answer(&app, &grant, call, &mut audited, deadline).await,
    };
    let response = match answer {
        Some(answer) => Json(answer).into_response(),
        // Only notifications, which get no answer.
        None => StatusCode::NO_CONTENT.into_response(),
    };
    Ok(if audited.is_empty() { response } else { audit::with_detail(response, audited.join(", ")) })
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    code: i32,
    message: String,
    data: Option<Value>,
}

impl Failure {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

impl From<Refusal> for Failure {
    fn from(Refusal(problem): Refusal) -> Self {
        Self { code: REFUSED, message: problem.detail.clone(), data: serde_json::to_value(problem).ok() }
    }
}

/// A well-formed call. `id` is `None` for a notification.
#[derive(Debug)]
pub(super) struct Call {
    id: Option<Value>,
    method: String,
    parameters: Value,
}

impl Call {
    pub(super) fn parse(value: Value) -> Result<Self, Failure> {
        let malformed = || Failure::new(INVALID_REQUEST, "this is not a JSON-RPC 2.0 call");
        let Value::Object(mut object) = value else { return Err(malformed()) };
        let id = object.remove("id");
        let id_fits = matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_)));
        let parameters = object.remove("params").unwrap_or_else(|| Value::Object(Map::new()));
        match (object.remove("jsonrpc"), object.remove("method")) {
            (Some(Value::String(version)), Some(Value::String(method))) if version == "2.0" && id_fits => {
                Ok(Self { id, method, parameters })
            }
            _ => Err(malformed()),
        }
    }
}

async fn answer(app: &App, grant: &Grant, value: Value, audited: &mut Vec<String>, deadline: Instant) -> Option<Value> {
    let call = match Call::parse(value) {
        Ok(call) => call,
        Err(failure) => return Some(error_response(Value::Null, &failure)),
    };
    let right = right_of(&call.method);
    if right != Right::Inspect {
        let is_long = call.method.starts_with(OBJECTS);
        audited.push(if is_long { call.method.clone() } else { format!("{} {}", call.method, call.parameters) });
    }
    let result = match grant.check(right) {
        Ok(()) => dispatch(app, grant, &call.method, call.parameters, deadline).await,
        Err(denied) => Err(Failure::from(Refusal::from(denied))),
    };
    let id = call.id?;
    Some(match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(failure) => error_response(id, &failure),
    })
}

fn error_response(id: Value, failure: &Failure) -> Value {
    let mut error = json!({ "code": failure.code, "message": failure.message });
    if let Some(data) = &failure.data {
        error["data"] = data.clone();
    }
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneNode {
    id: NodeId,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveReplica {
    shard: ShardId,
    from: NodeId,
    to: NodeId,
}

/// As the body of the request over HTTP, with the shard.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitOne {
    shard: ShardId,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    encoding: Encoding,
}

/// A shard that begins with a key of a collection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateShard {
    collection: String,
    at: String,
    #[serde(default)]
    encoding: Encoding,
}

/// As the body of the request over HTTP, with the left shard.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MergeTwo {
    shard: ShardId,
    right: ShardId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

/// How many calls are about objects.
fn count_about_objects(calls: &Value) -> usize {
    let is_one = |call: &&Value| call["method"].as_str().is_some_and(|method| method.starts_with(OBJECTS));
    match calls {
        Value::Array(calls) => calls.iter().filter(is_one).count(),
        call => usize::from(is_one(&call)),
    }
}

/// The right that a method needs. `objects.need` checks that to its collection by itself.
fn right_of(method: &str) -> Right {
    match method {
        "cluster.join_token.create" | "objects.missing" | "objects.fetch" | "objects.pull" => Right::Administer,
        "cluster.node.leave"
        | "cluster.node.remove"
        | "cluster.shard.create"
        | "cluster.shard.move"
        | "cluster.shard.split"
        | "cluster.shard.merge"
        | "cluster.shard.rebalance" => Right::Operate,
        _ => Right::Inspect,
    }
}

async fn dispatch(
    app: &App,
    grant: &Grant,
    method: &str,
    parameters: Value,
    deadline: Instant,
) -> Result<Value, Failure> {
    if method.starts_with(OBJECTS) {
        let answered = timeout_at(deadline, about_objects(app, grant, method, parameters, deadline)).await;
        return answered.unwrap_or_else(|_| Err(Refusal::from(StoreError::DeadlineExceeded { shard: None }).into()));
    }
    let deadline = deadline.into_std();
    match method {
        "cluster.status" => {
            let NoParameters {} = parse(parameters)?;
            encode(app.admin.status())
        }
        "cluster.nodes" => {
            let NoParameters {} = parse(parameters)?;
            encode(NodeList { nodes: app.admin.status().nodes })
        }
        "cluster.replication_stats" => {
            let NoParameters {} = parse(parameters)?;
            encode(app.admin.replication_stats(deadline).await.map_err(Refusal::from)?)
        }
        "cluster.shard.rebalance" => {
            let RebalanceRequest { dry_run } = parse(parameters)?;
            encode(app.admin.rebalance(dry_run, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.join_token.create" => {
            let request: TokenRequest = parse(parameters)?;
            encode(app.admin.create_token(request, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.shard.move" => {
            let MoveReplica { shard, from, to } = parse(parameters)?;
            let moved = app.admin.move_shard(shard, MoveShard { from, to }, deadline).await;
            encode(moved.map_err(Refusal::from)?)
        }
        "cluster.shard.split" => {
            let SplitOne { shard, at, encoding } = parse(parameters)?;
            let at = split_key(&SplitShard { at, encoding })?;
            encode(app.admin.split_shard(shard, at, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.shard.create" => {
            let CreateShard { collection, at, encoding } = parse(parameters)?;
            let at = split_key(&SplitShard { at: Some(at), encoding })?;
            let shard =
                app.store.shards_of(&collection, at.iter()).map_err(Refusal::from)?.into_iter().flatten().next();
            let shard = shard.ok_or(StoreError::Unavailable { shard: None, leader: None }).map_err(Refusal::from)?;
            encode(app.admin.split_shard(shard, at, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.node.leave" => {
            let OneNode { id, force } = parse(parameters)?;
            let options = ChangeOptions { force, ..ChangeOptions::default() };
            encode(app.admin.change_node(id, NodeVerb::Leave, options, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.shard.merge" => {
            let MergeTwo { shard, right } = parse(parameters)?;
            encode(app.admin.merge_shards(shard, right, deadline).await.map_err(Refusal::from)?)
        }
        "cluster.node.remove" => {
            let OneNode { id, force } = parse(parameters)?;
            let options = ChangeOptions { force, ..ChangeOptions::default() };
            app.admin.change_node(id, NodeVerb::Remove, options, deadline).await.map_err(Refusal::from)?;
            Ok(json!({ "removed": id }))
        }
        _ => Err(Failure::new(METHOD_NOT_FOUND, "there is no such method")),
    }
}

async fn about_objects(
    app: &App,
    grant: &Grant,
    method: &str,
    parameters: Value,
    deadline: Instant,
) -> Result<Value, Failure> {
    match method {
        "objects.need" => encode(objects::need(app, grant, parse(parameters)?).await?),
        "objects.missing" => encode(objects::missing(app, parse(parameters)?).await?),
        "objects.fetch" => encode(objects::fetch(app, parse(parameters)?).await?),
        "objects.pull" => encode(objects::pull(app, parse(parameters)?, deadline).await?),
        _ => Err(Failure::new(METHOD_NOT_FOUND, "there is no such method")),
    }
}

fn parse<T: DeserializeOwned>(parameters: Value) -> Result<T, Failure> {
    // JSON-RPC allows positional parameters; only an empty list is accepted here.
    let parameters = if parameters == json!([]) { json!({}) } else { parameters };
    serde_json::from_value(parameters).map_err(|error| Failure::new(INVALID_PARAMS, error.to_string()))
}

fn encode(value: impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(REFUSED, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_needs_a_version_a_method_and_a_scalar_id() {
        let good = json!({ "jsonrpc": "2.0", "method": "cluster.status", "id": 1 });
        assert_eq!(Call::parse(good).expect("a call").id, Some(json!(1)));
        let notification = json!({ "jsonrpc": "2.0", "method": "cluster.status" });
        assert_eq!(Call::parse(notification).expect("a notification").id, None);
        for bad in [
            json!({ "method": "cluster.status", "id": 1 }),
            json!({ "jsonrpc": "2.0", "id": 1 }),
            json!({ "jsonrpc": "2.0", "method": "m", "id": {} }),
            json!(7),
        ] {
            assert_eq!(Call::parse(bad).map_err(|failure| failure.code).err(), Some(INVALID_REQUEST));
        }
    }

    #[test]
    fn a_refusal_carries_its_problem_document() {
        let failure = Failure::from(Refusal::new(ProblemType::NodeNotFound, "no such node"));
        let answer = error_response(json!("a"), &failure);
        assert_eq!(answer["error"]["data"]["type"], "node_not_found");
        assert_eq!(answer["id"], "a");
    }

    #[test]
    fn unknown_parameters_are_refused() {
        assert!(parse::<NoParameters>(json!({ "x": 1 })).is_err());
        assert!(parse::<NoParameters>(json!([])).is_ok());
        assert_eq!(parse::<OneNode>(json!({ "id": 3 })).map(|remove| remove.force).ok(), Some(false));
    }
}
