//! What placement says, over HTTP: paths, parameters and refusals.

use flotilla_api::{Blocker, DecisionInfo, Encoding, KEY_BYTES_MAX, OperationProgress, PlacementAction};
use flotilla_gateway::AdminError;
use flotilla_types::{OperationKind, OperationPhase, ReplicaId};

use super::*;

const SHARD: ShardId = ShardId(4);

pub(super) fn explain(shard: ShardId) -> Result<ShardExplanation, AdminError> {
    if shard != SHARD {
        return Err(AdminError::ShardNotFound(shard));
    }
    let (replicas, additions, undecided) = (Vec::new(), Vec::new(), Vec::new());
    let (desired_replicas, too_few_nodes) = (3, false);
    Ok(ShardExplanation { shard, decided_by: ME, desired_replicas, too_few_nodes, replicas, additions, undecided })
}

/// As many entries as the limit says.
pub(super) fn list(dry_run: Option<bool>, limit: usize) -> DecisionList {
    let entry = DecisionInfo {
        at_ms: 1,
        last_ms: 2,
        count: 3,
        decided_by: ME,
        action: PlacementAction::None,
        shard: None,
        replica: None,
        from: None,
        to: None,
        reason: "off".to_owned(),
        detail: String::new(),
        shards: Vec::new(),
        shards_total: None,
        alternatives: Vec::new(),
    };
    DecisionList { dry_run, decisions: vec![entry; limit], silent: Vec::new() }
}

/// Refused unless forced; what blocks is on the other nodes.
pub(super) fn change(node: NodeId, verb: NodeVerb, options: &ChangeOptions) -> Result<NodeChange, AdminError> {
    if options.force {
        return Err(AdminError::NodeNotFound(node));
    }
    let blocker = |other: &NodeId| Blocker {
        shard: SHARD,
        replica: ReplicaId(7),
        node: *other,
        why: "no_node".to_owned(),
        detail: verb.to_string(),
    };
    Err(AdminError::Blocked { refusal: "because".to_owned(), blockers: options.with.iter().map(blocker).collect() })
}

/// Says at which bytes, in base64.
pub(super) fn split(shard: ShardId, at: Option<Bytes>) -> Result<OperationInfo, AdminError> {
    if shard != SHARD {
        return Err(AdminError::ShardNotFound(shard));
    }
    Ok(OperationInfo {
        id: "op7".to_owned(),
        kind: OperationKind::SplitShard,
        phase: OperationPhase::Splitting,
        reason: "because".to_owned(),
        shard,
        replica: None,
        node: None,
        from: None,
        child: Some(HEIR),
        right: None,
        at: at.map(|at| Encoding::Base64.encode(&at).expect("text")),
        encoding: Encoding::Base64,
        bucket: None,
        part_of: None,
        reported_by: ME,
        since_ms: 1,
        progress: OperationProgress::default(),
        done: false,
        error: None,
    })
}

/// Names the right shard.
pub(super) fn merge(left: ShardId, right: ShardId) -> Result<OperationInfo, AdminError> {
    let (kind, phase) = (OperationKind::MergeShards, OperationPhase::Merging);
    Ok(OperationInfo { kind, phase, child: None, right: Some(right), ..split(left, None)? })
}

#[tokio::test]
async fn a_merge_names_the_shard_that_goes() {
    let server = Server::start().await;
    let ask = async |id: &str, body: &str| {
        let line = format!("POST /v1/cluster/shards/{id}/merge");
        server.ask(&line, &[("content-type", "application/json")], body.as_bytes()).await
    };
    let answer = ask("s4", r#"{"right":"s5"}"#).await;
    assert_eq!(
        (answer.status, &answer.json()["right"], &answer.json()["kind"]),
        (200, &json!("s5"), &json!("merge_shards"))
    );
    for body in ["", "{}", r#"{"right":"x"}"#, r#"{"right":"s5","left":"s4"}"#] {
        assert_eq!(ask("s4", body).await.problem(), (400, "malformed_request".to_owned()), "{body}");
    }
    assert_eq!(ask("s6", r#"{"right":"s5"}"#).await.problem(), (404, "shard_not_found".to_owned()));
    let called = server.rpc("cluster.shard.merge", json!({ "shard": "s4", "right": "s5" })).await;
    assert_eq!(called["result"]["right"], json!("s5"));
    assert!(server.rpc("cluster.shard.merge", json!({ "shard": "s4" })).await["error"].is_object());
}

#[tokio::test]
async fn a_shard_is_split_at_a_key_of_any_bytes_or_in_the_middle() {
    let server = Server::start().await;
    let ask = async |id: &str, body: &str| {
        let line = format!("POST /v1/cluster/shards/{id}/split");
        server.ask(&line, &[("content-type", "application/json")], body.as_bytes()).await
    };
    let bodies = [
        ("", Value::Null),
        ("{}", Value::Null),
        (r#"{"at":"k"}"#, json!("aw==")),
        (r#"{"at":"/w==","encoding":"base64"}"#, json!("/w==")),
    ];
    for (body, at) in bodies {
        let answer = ask("s4", body).await;
        assert_eq!((answer.status, &answer.json()["at"], &answer.json()["child"]), (200, &at, &json!("s9")), "{body}");
    }
    let long = format!(r#"{{"at":"{}"}}"#, "k".repeat(KEY_BYTES_MAX + 1));
    for (body, problem) in [
        (r#"{"at":""}"#, "key_size"),
        (&long, "key_size"),
        (r#"{"at":"?","encoding":"base64"}"#, "malformed_request"),
        (r#"{"key":"k"}"#, "malformed_request"),
    ] {
        assert_eq!(ask("s4", body).await.problem(), (400, problem.to_owned()), "{body}");
    }
    assert_eq!(ask("s5", "").await.problem(), (404, "shard_not_found".to_owned()));
    assert_eq!(ask("x", "").await.problem(), (400, "invalid_argument".to_owned()));

    let called = server.rpc("cluster.shard.split", json!({ "shard": "s4", "at": "k" })).await;
    assert_eq!((&called["result"]["id"], &called["result"]["at"]), (&json!("op7"), &json!("aw==")));
    assert_eq!(server.rpc("cluster.shard.split", json!({ "shard": "s4" })).await["result"]["at"], Value::Null);
    for bad in [json!({}), json!({ "shard": "s4", "to": "n1" }), json!({ "shard": "s4", "at": "" })] {
        assert!(server.rpc("cluster.shard.split", bad.clone()).await["error"].is_object(), "{bad}");
    }
    // A shard that begins with a key comes out of the one that has it.
    let create = async |collection: &str| {
        server.rpc("cluster.shard.create", json!({ "collection": collection, "at": "k" })).await
    };
    assert_eq!(create("none").await["error"]["data"]["type"], "collection_not_found");
    assert_eq!(create("c").await["error"]["data"]["type"], "shard_not_found", "it is another one than s4");
    assert!(server.rpc("cluster.shard.create", json!({ "collection": "c" })).await["error"].is_object());
}

#[tokio::test]
async fn an_explanation_is_of_one_shard_that_exists() {
    let server = Server::start().await;
    for id in ["s4", "4"] {
        let found = server.get(&format!("/v1/cluster/shards/{id}/explain"), &[]).await;
        assert_eq!((found.status, &found.json()["shard"]), (200, &json!("s4")));
    }
    let missing = server.get("/v1/cluster/shards/s5/explain", &[]).await;
    assert_eq!(missing.problem(), (404, "shard_not_found".to_owned()));
    for id in ["x", "s-1", "s"] {
        let invalid = server.get(&format!("/v1/cluster/shards/{id}/explain"), &[]).await;
        assert_eq!(invalid.problem(), (400, "invalid_argument".to_owned()), "{id}");
    }
}

#[tokio::test]
async fn a_rebalancing_is_a_dry_run_only_if_it_says_so() {
    let server = Server::start().await;
    let ask = async |body: &str| {
        server.ask("POST /v1/cluster/rebalance", &[("content-type", "application/json")], body.as_bytes()).await
    };
    for (body, dry_run) in [("", false), ("{}", false), (r#"{"dry_run":true}"#, true)] {
        assert_eq!(ask(body).await.json()["dry_run"], json!(dry_run), "{body}");
    }
    // A mistyped dry run must do nothing.
    assert_eq!(ask(r#"{"dryrun":true}"#).await.status, 400);
    let called = server.rpc("cluster.shard.rebalance", json!({ "dry_run": true })).await;
    assert_eq!(called["result"]["dry_run"], json!(true));
    let refused = server.rpc("cluster.shard.rebalance", json!({ "dryrun": true })).await;
    assert!(refused["error"].is_object(), "{refused}");
}

#[tokio::test]
async fn decisions_are_listed_up_to_a_limit() {
    let server = Server::start().await;
    let count = async |query: &str| {
        let answer = server.get(&format!("/v1/cluster/decisions{query}"), &[]).await;
        answer.json()["decisions"].as_array().map(Vec::len)
    };
    assert_eq!(
        (count("").await, count("?limit=3").await, count("?limit=1000").await),
        (Some(100), Some(3), Some(1_000))
    );
    for query in ["?limit=0", "?limit=1001", "?limit=x", "?n=3"] {
        assert_eq!(count(query).await, None, "{query}");
    }
}

#[tokio::test]
async fn nodes_that_leave_together_are_named_and_a_refusal_has_what_blocks() {
    let server = Server::start().await;
    let ask = async |query: &str| {
        let line = format!("POST /v1/cluster/nodes/n3/decommission{query}");
        server.ask(&line, &[("content-type", "application/json")], b"").await
    };
    let refused = ask("?with=n1,n2").await;
    assert_eq!(refused.problem(), (409, "blocked".to_owned()));
    let problem = refused.json();
    assert_eq!((&problem["detail"], &problem["retryable"]), (&json!("because"), &json!(false)));
    let blocker = json!({
        "shard": "s4", "replica": "r7", "node": "n1", "why": "no_node", "detail": "decommission",
    });
    assert_eq!(problem["blockers"][0], blocker);
    assert_eq!(problem["blockers"].as_array().map(Vec::len), Some(2));
    assert_eq!(ask("?with=n1,").await.status, 400);
    assert_eq!(ask("?force=true").await.problem(), (404, "node_not_found".to_owned()));
}
