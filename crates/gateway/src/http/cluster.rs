//! Collections, nodes, shards, tokens and settings.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use flotilla_api::{
    AuthorityStatus, ChangeCollection, ClusterStatus, Collection, CollectionList, ConsistencyReport, CreateCollection,
    DECISIONS_DEFAULT, DECISIONS_MAX, DIGEST_SHARDS_MAX, DecisionList, DigestList, InvalidKeyId, InvalidTokenId, KeyId,
    KeyList, KeyReply, KeyRequest, MergeShards, MoveShard, NodeChange, NodeList, NodeVerb, OperationInfo,
    OperationList, OperationVerb, ProblemType, RebalanceRequest, SHARD_TOP_DEFAULT, SHARD_TOP_MAX, ScrubReport,
    Setting, SettingList, SettingRequest, ShardExplanation, ShardInfo, ShardList, ShardOrder, ShardTop, SplitShard,
    TokenId, TokenList, TokenReply, TokenRequest, UnknownNodeVerb, UnknownOperationVerb, UnknownShardOrder,
    UpgradeStatus,
};
use flotilla_types::{NodeId, ShardId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    App, audit, body, deadline,
    problem::Refusal,
    raw::{Query, checked_key, invalid, segment},
};
use crate::{ChangeOptions, StoreError};

/// Nodes that may leave together with another one.
const WITH_NODES_MAX: usize = 64;

/// The last segment of the request's path, decoded.
fn last_segment(request: &Request) -> Result<String, Refusal> {
    segment(request.uri().path().rsplit('/').next().unwrap_or_default())
}

/// The last two segments of the request's path, decoded: `…/{id}/{verb}`.
fn id_and_verb(request: &Request) -> Result<(String, String), Refusal> {
    let mut segments = request.uri().path().rsplit('/');
    let mut next = || segment(segments.next().unwrap_or_default());
    let verb = next()?;
    Ok((next()?, verb))
}

pub(super) async fn status(State(app): State<App>) -> Json<ClusterStatus> {
    Json(app.admin.status())
}

pub(super) async fn nodes(State(app): State<App>) -> Json<NodeList> {
    Json(NodeList { nodes: app.admin.status().nodes })
}

/// With the operations that other nodes report.
pub(super) async fn shards(State(app): State<App>, request: Request) -> Result<Json<ShardList>, Refusal> {
    let operations = app.admin.operations(deadline(request.headers())?.into_std()).await?.operations;
    let mut shards = app.admin.status().shards;
    ShardInfo::attach_operations(&mut shards, operations);
    Ok(Json(ShardList { shards }))
}

pub(super) async fn operations(State(app): State<App>, request: Request) -> Result<Json<OperationList>, Refusal> {
    Ok(Json(app.admin.operations(deadline(request.headers())?.into_std()).await?))
}

/// `GET /v1/cluster/operations/{id}`.
pub(super) async fn operation(State(app): State<App>, request: Request) -> Result<Json<OperationInfo>, Refusal> {
    let id = last_segment(&request)?;
    let deadline = deadline(request.headers())?.into_std();
    if let Ok(id) = id.parse() {
        return Ok(Json(app.admin.operation(id, deadline).await?));
    }
    let list = app.admin.operations(deadline).await?;
    let found = list.operations.into_iter().find(|operation| operation.id == id);
    found.map(Json).ok_or_else(|| {
        Refusal::new(
            ProblemType::NotFound,
            "this operation is not under way; /v1/cluster/operations lists those that are",
        )
    })
}

/// `POST /v1/cluster/operations/{id}/{verb}`.
pub(super) async fn change_operation(State(app): State<App>, request: Request) -> Result<Json<OperationInfo>, Refusal> {
    let (id, verb) = id_and_verb(&request)?;
    let verb: OperationVerb = verb.parse().map_err(|error: UnknownOperationVerb| invalid(error.to_string()))?;
    let id = id
        .parse()
        .map_err(|_| invalid("only moves, splits and merges can be changed: their ids are `op` and a number"))?;
    Ok(Json(app.admin.change_operation(id, verb, deadline(request.headers())?.into_std()).await?))
}

/// `POST /v1/cluster/shards/{id}/move`.
pub(super) async fn move_shard(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let shard = shard_id(&id_and_verb(&request)?.0)?;
    let deadline = deadline(request.headers())?;
    let request: MoveShard = body::read_json(&app, request, deadline).await?;
    let operation: OperationInfo = app.admin.move_shard(shard, request, deadline.into_std()).await?;
    let detail = format!("{}: from {} to {}", operation.id, request.from, request.to);
    Ok(audit::with_detail(Json(operation), detail))
}

/// `POST /v1/cluster/shards/{id}/split`.
pub(super) async fn split_shard(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let shard = shard_id(&id_and_verb(&request)?.0)?;
    let deadline = deadline(request.headers())?;
    let body = body::read(&app, request, body::JSON_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    let bytes: &[u8] = if body.bytes.is_empty() { b"{}" } else { &body.bytes };
    let at = split_key(&body::parse_json(bytes)?)?;
    let operation: OperationInfo = app.admin.split_shard(shard, at, deadline.into_std()).await?;
    let detail = match operation.child {
        Some(child) => format!("{}: into {child}", operation.id),
        None => operation.id.clone(),
    };
    Ok(audit::with_detail(Json(operation), detail))
}

/// `POST /v1/cluster/shards/{id}/merge`.
pub(super) async fn merge_shards(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let left = shard_id(&id_and_verb(&request)?.0)?;
    let deadline = deadline(request.headers())?;
    let MergeShards { right } = body::read_json(&app, request, deadline).await?;
    let operation: OperationInfo = app.admin.merge_shards(left, right, deadline.into_std()).await?;
    let detail = format!("{}: {right} into {left}", operation.id);
    Ok(audit::with_detail(Json(operation), detail))
}

/// The key at which a shard is to be split, if the request names one.
pub(super) fn split_key(SplitShard { at, encoding }: &SplitShard) -> Result<Option<Bytes>, Refusal> {
    at.as_ref().map(|at| Ok(checked_key(encoding.decode(at)?)?)).transpose()
}

/// `GET /v1/cluster/shards/{id}/explain`.
pub(super) async fn explain(State(app): State<App>, request: Request) -> Result<Json<ShardExplanation>, Refusal> {
    let shard = shard_id(&id_and_verb(&request)?.0)?;
    Ok(Json(app.admin.explain(shard, deadline(request.headers())?.into_std()).await?))
}

/// `POST /v1/cluster/rebalance`.
pub(super) async fn rebalance(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let body = body::read(&app, request, body::JSON_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    let bytes: &[u8] = if body.bytes.is_empty() { b"{}" } else { &body.bytes };
    let RebalanceRequest { dry_run } = body::parse_json(bytes)?;
    let list = app.admin.rebalance(dry_run, deadline.into_std()).await?;
    Ok(audit::with_detail(Json(list), if dry_run { "dry run" } else { "now" }))
}

/// `GET /v1/cluster/decisions?limit=`.
pub(super) async fn decisions(State(app): State<App>, request: Request) -> Result<Json<DecisionList>, Refusal> {
    let limit = Query::parse(request.uri().query(), &["limit"])?.number("limit")?.unwrap_or(DECISIONS_DEFAULT);
    if !(1..=DECISIONS_MAX).contains(&limit) {
        return Err(invalid(format!("`limit` must be 1 to {DECISIONS_MAX}")));
    }
    Ok(Json(app.admin.decisions(limit, deadline(request.headers())?.into_std()).await?))
}

/// `GET /v1/cluster/shards/top?by=&limit=`.
pub(super) async fn shard_top(State(app): State<App>, request: Request) -> Result<Json<ShardTop>, Refusal> {
    let mut query = Query::parse(request.uri().query(), &["by", "limit"])?;
    let order = query.text("by")?.map(|text| text.parse()).transpose();
    let order: Option<ShardOrder> = order.map_err(|error: UnknownShardOrder| invalid(error.to_string()))?;
    let limit = query.number("limit")?.unwrap_or(SHARD_TOP_DEFAULT);
    if !(1..=SHARD_TOP_MAX).contains(&limit) {
        return Err(invalid(format!("`limit` must be 1 to {SHARD_TOP_MAX}")));
    }
    let deadline = deadline(request.headers())?.into_std();
    Ok(Json(app.admin.shard_top(order.unwrap_or_default(), limit, deadline).await?))
}

pub(super) async fn scrub(State(app): State<App>, request: Request) -> Result<Json<ScrubReport>, Refusal> {
    Ok(Json(app.admin.scrub(false, deadline(request.headers())?.into_std()).await?))
}

/// `POST /v1/cluster/scrub`: a pass begins on every node.
pub(super) async fn start_scrub(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let report = app.admin.scrub(true, deadline(request.headers())?.into_std()).await?;
    let detail = format!("on {} nodes, {} silent", report.nodes.len(), report.silent.len());
    Ok(audit::with_detail(Json(report), detail))
}

pub(super) async fn consistency(State(app): State<App>, request: Request) -> Result<Json<ConsistencyReport>, Refusal> {
    Ok(Json(app.admin.consistency(deadline(request.headers())?.into_std()).await?))
}

/// Subject to the limit on requests, because it reads every record of this node, or of `?shards=1,2`.
pub(super) async fn digests(State(app): State<App>, request: Request) -> Result<Json<DigestList>, Refusal> {
    let only = Query::parse(request.uri().query(), &["shards"])?.text("shards")?;
    let only = only.map(|text| shard_list(&text)).transpose()?;
    let deadline = deadline(request.headers())?;
    Ok(Json(app.admin.digests(only, deadline.into_std()).await?))
}

/// Parses a comma list of shards within its limit.
fn shard_list(text: &str) -> Result<BTreeSet<ShardId>, Refusal> {
    if text.split(',').count() > DIGEST_SHARDS_MAX {
        return Err(invalid(format!("`shards` may name {DIGEST_SHARDS_MAX} shards")));
    }
    let parse = |id: &str| id.parse().map_err(|_| invalid("`shards` must be a comma list of shard ids"));
    text.split(',').map(parse).collect()
}

pub(super) async fn list_collections(State(app): State<App>) -> Json<CollectionList> {
    Json(CollectionList { collections: app.admin.list_collections() })
}

pub(super) async fn create_collection(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let request: CreateCollection = body::read_json(&app, request, deadline).await?;
    let created: Collection = app.admin.create_collection(request, deadline.into_std()).await?;
    let detail = created.name.clone();
    Ok(audit::with_detail(Json(created), detail))
}

/// `GET /v1/collections/{name}`.
pub(super) async fn collection(State(app): State<App>, request: Request) -> Result<Json<Collection>, Refusal> {
    let name = last_segment(&request)?;
    let found = app.admin.list_collections().into_iter().find(|collection| collection.name == name);
    Ok(Json(found.ok_or(StoreError::CollectionNotFound(name))?))
}

/// `PATCH /v1/collections/{name}`.
pub(super) async fn change_collection(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (name, deadline) = (last_segment(&request)?, deadline(request.headers())?);
    let change: ChangeCollection = body::read_json(&app, request, deadline).await?;
    let detail = format!("{name}: {change:?}");
    let changed = app.admin.change_collection(name, change, deadline.into_std()).await?;
    Ok(audit::with_detail(Json(changed), detail))
}

/// `DELETE /v1/collections/{name}`.
pub(super) async fn drop_collection(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let name = last_segment(&request)?;
    drop_named(&app, name, deadline(request.headers())?).await
}

/// `DELETE /v1/collections?name=…`.
pub(super) async fn drop_collection_by_query(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let name = Query::parse(request.uri().query(), &["name"])?.text("name")?;
    drop_named(&app, name.ok_or_else(|| invalid("`name` is missing"))?, deadline(request.headers())?).await
}

async fn drop_named(app: &App, name: String, deadline: Instant) -> Result<Json<Value>, Refusal> {
    app.admin.drop_collection(name.clone(), deadline.into_std()).await?;
    Ok(Json(json!({ "dropped": name })))
}

pub(super) async fn create_token(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let body = body::read(&app, request, body::JSON_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    // Every field has a default, so an empty body is valid too.
    let bytes: &[u8] = if body.bytes.is_empty() { b"{}" } else { &body.bytes };
    let request: TokenRequest = body::parse_json(bytes)?;
    let reply: TokenReply = app.admin.create_token(request, deadline.into_std()).await?;
    let detail = format!("id {}, {} uses", reply.id, reply.uses);
    Ok(audit::with_detail(Json(reply), detail))
}

pub(super) async fn list_tokens(State(app): State<App>) -> Json<TokenList> {
    Json(TokenList { tokens: app.admin.list_tokens() })
}

/// `DELETE /v1/cluster/tokens/{id}`.
pub(super) async fn revoke_token(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let token: TokenId = last_segment(&request)?.parse().map_err(|error: InvalidTokenId| invalid(error.to_string()))?;
    app.admin.revoke_token(token, deadline(request.headers())?.into_std()).await?;
    Ok(Json(json!({ "revoked": token })))
}

pub(super) async fn create_key(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let request: KeyRequest = body::read_json(&app, request, deadline).await?;
    let reply: KeyReply = app.admin.create_key(request, deadline.into_std()).await?;
    let detail = format!("id {}, role {}, collections {:?}", reply.info.id, reply.info.role, reply.info.collections);
    Ok(audit::with_detail(Json(reply), detail))
}

pub(super) async fn list_keys(State(app): State<App>) -> Json<KeyList> {
    Json(KeyList { keys: app.admin.list_keys() })
}

/// `DELETE /v1/cluster/keys/{id}`.
pub(super) async fn revoke_key(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let key: KeyId = last_segment(&request)?.parse().map_err(|error: InvalidKeyId| invalid(error.to_string()))?;
    app.admin.revoke_key(key, deadline(request.headers())?.into_std()).await?;
    Ok(Json(json!({ "revoked": key })))
}

pub(super) async fn list_settings(State(app): State<App>) -> Json<SettingList> {
    Json(SettingList { settings: app.admin.list_settings() })
}

/// `PUT /v1/cluster/settings/{key}`.
pub(super) async fn put_setting(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let key = last_segment(&request)?;
    let deadline = deadline(request.headers())?;
    let SettingRequest { value } = body::read_json(&app, request, deadline).await?;
    let setting: Setting = app.admin.put_setting(key, value, deadline.into_std()).await?;
    Ok(audit::with_detail(Json(setting), format!("value {value}")))
}

pub(super) async fn upgrade_status(State(app): State<App>) -> Json<UpgradeStatus> {
    Json(app.admin.upgrade_status())
}

pub(super) async fn finish_upgrade(State(app): State<App>, request: Request) -> Result<Json<UpgradeStatus>, Refusal> {
    let deadline = deadline(request.headers())?;
    Ok(Json(app.admin.finish_upgrade(deadline.into_std()).await?))
}

pub(super) async fn authority_status(State(app): State<App>) -> Json<AuthorityStatus> {
    Json(app.admin.authority_status())
}

/// `POST /v1/cluster/authority/rotate`.
pub(super) async fn rotate_authority(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let deadline = deadline(request.headers())?;
    let status = app.admin.rotate_authority(deadline.into_std()).await?;
    let detail = format!("authority {}", status.fingerprint);
    Ok(audit::with_detail(Json(status), detail))
}

/// `DELETE /v1/cluster/nodes/{id}`: the same as the verb `remove`.
pub(super) async fn remove_node(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let node = node_id(&last_segment(&request)?)?;
    let force = Query::parse(request.uri().query(), &["force"])?.flag("force")?.unwrap_or(false);
    let deadline = deadline(request.headers())?.into_std();
    let options = ChangeOptions { force, ..ChangeOptions::default() };
    app.admin.change_node(node, NodeVerb::Remove, options, deadline).await?;
    Ok(Json(json!({ "removed": node })))
}

/// `POST /v1/cluster/nodes/{id}/{verb}`.
pub(super) async fn change_node(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (node, verb) = id_and_verb(&request)?;
    let verb: NodeVerb = verb.parse().map_err(|error: UnknownNodeVerb| invalid(error.to_string()))?;
    let node = node_id(&node)?;
    let mut query = Query::parse(request.uri().query(), &["force", "dry_run", "with"])?;
    let with = query.text("with")?.map(|list| node_list(&list)).transpose()?.unwrap_or_default();
    let mut flag = |name| query.flag(name).map(|flag| flag.unwrap_or(false));
    let options = ChangeOptions { force: flag("force")?, dry_run: flag("dry_run")?, with };
    let deadline = deadline(request.headers())?.into_std();
    let detail = match options {
        ChangeOptions { dry_run: true, .. } => Some("dry run"),
        ChangeOptions { force: true, .. } => Some("forced"),
        ChangeOptions { .. } => None,
    };
    let change: NodeChange = app.admin.change_node(node, verb, options, deadline).await?;
    Ok(match detail {
        Some(detail) => audit::with_detail(Json(change), detail),
        None => Json(change).into_response(),
    })
}

/// Parses a comma list of nodes within its limit.
fn node_list(text: &str) -> Result<BTreeSet<NodeId>, Refusal> {
    if text.split(',').count() > WITH_NODES_MAX {
        return Err(invalid(format!("`with` may name {WITH_NODES_MAX} nodes")));
    }
    text.split(',').map(node_id).collect()
}

fn shard_id(text: &str) -> Result<ShardId, Refusal> {
    text.parse().map_err(|_| invalid("the id of a shard must be `s` and a number, such as `s4`"))
}

fn node_id(text: &str) -> Result<NodeId, Refusal> {
    text.parse().map_err(|_| invalid("the id of a node must be `n` and a number, such as `n4`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_bounded_and_every_id_must_parse() {
        let ids: Vec<String> = (0..=WITH_NODES_MAX).map(|id| format!("n{id}")).collect();
        assert_eq!(node_list(&ids[1..].join(",")).map(|nodes| nodes.len()).ok(), Some(WITH_NODES_MAX));
        for bad in ["", "n4,", ",", "db-1", &ids.join(",")] {
            assert!(node_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_of_shards_is_bounded_and_every_id_must_parse() {
        let ids: Vec<String> = (0..=DIGEST_SHARDS_MAX).map(|id| id.to_string()).collect();
        assert_eq!(shard_list(&ids[1..].join(",")).map(|shards| shards.len()).ok(), Some(DIGEST_SHARDS_MAX));
        assert_eq!(shard_list("s4,4,0").ok(), Some([ShardId(0), ShardId(4)].into()));
        assert!(shard_list(&ids.join(",")).is_err(), "too many");
        for bad in ["", "4,", ",", "x", "-1", "99999999999999999999"] {
            assert!(shard_list(bad).is_err(), "{bad}");
        }
    }
}
