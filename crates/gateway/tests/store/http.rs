//! Large values over HTTP, against a server in this process.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    AuthorityStatus, ChangeCollection, Check, ClusterStatus, ConsistencyReport, CreateCollection, DecisionList,
    DigestList, Event, FrameKind, FrameReader, KeyId, KeyInfo, KeyReply, KeyRequest, MoveShard, NodeChange, NodeVerb,
    ObjectNeed, OperationInfo, OperationList, OperationVerb, ScrubReport, Setting, ShardExplanation, TokenId,
    TokenInfo, TokenReply, TokenRequest, UpgradeStatus, VALUE_REF_MEDIA_TYPE, put_frame,
};
use flotilla_gateway::{
    Access, Admin, AdminFuture, AuditEntry, CLIENT_BYTES_MIN, ChangeOptions, ClientBudget, HttpConfig, KeyFacts, Keys,
    Pace, Security, serve,
};
use flotilla_types::{ObjectId, OperationId, Role};
use flotilla_values::{Chunking, Finished, ListNode, Object, ObjectKind, ValueRef};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};

mod placement;

use super::{values::content, *};

/// The administration, of which these tests need nothing.
struct NoAdmin;

macro_rules! not_asked {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $(_: $argument),*) -> $result { panic!("nobody asks for {}", stringify!($name)) })*
    };
}

impl Admin for NoAdmin {
    fn is_draining(&self) -> bool {
        false
    }

    fn audit(&self, _: AuditEntry) {}

    fn rotate_authority(&self, _: Instant) -> AdminFuture<'_, AuthorityStatus> {
        panic!("nobody asks for this")
    }

    not_asked! {
        status() -> ClusterStatus;
        list_collections() -> Vec<flotilla_api::Collection>;
        list_settings() -> Vec<Setting>;
        list_tokens() -> Vec<TokenInfo>;
        list_keys() -> Vec<KeyInfo>;
        upgrade_status() -> UpgradeStatus;
        authority_status() -> AuthorityStatus;
        readiness() -> Vec<Check>;
        metrics_text() -> String;
        subscribe() -> broadcast::Receiver<Event>;
        recent() -> Vec<Event>;
        subscribe_audit() -> broadcast::Receiver<Event>;
        recent_audit() -> Vec<Event>;
        operations(Instant) -> AdminFuture<'_, OperationList>;
        operation(OperationId, Instant) -> AdminFuture<'_, OperationInfo>;
        move_shard(ShardId, MoveShard, Instant) -> AdminFuture<'_, OperationInfo>;
        change_operation(OperationId, OperationVerb, Instant) -> AdminFuture<'_, OperationInfo>;
        scrub(bool, Instant) -> AdminFuture<'_, ScrubReport>;
        shard_top(flotilla_api::ShardOrder, usize, Instant) -> AdminFuture<'_, flotilla_api::ShardTop>;
        replication_stats(Instant) -> AdminFuture<'_, flotilla_api::ReplicationStats>;
        consistency(Instant) -> AdminFuture<'_, ConsistencyReport>;
        digests(Option<BTreeSet<ShardId>>, Instant) -> AdminFuture<'_, DigestList>;
        create_collection(CreateCollection, Instant) -> AdminFuture<'_, flotilla_api::Collection>;
        change_collection(String, ChangeCollection, Instant) -> AdminFuture<'_, flotilla_api::Collection>;
        drop_collection(String, Instant) -> AdminFuture<'_, ()>;
        create_token(TokenRequest, Instant) -> AdminFuture<'_, TokenReply>;
        revoke_token(TokenId, Instant) -> AdminFuture<'_, ()>;
        create_key(KeyRequest, Instant) -> AdminFuture<'_, KeyReply>;
        revoke_key(KeyId, Instant) -> AdminFuture<'_, ()>;
        put_setting(String, u64, Instant) -> AdminFuture<'_, Setting>;
        finish_upgrade(Instant) -> AdminFuture<'_, UpgradeStatus>;
    }

    fn split_shard(&self, shard: ShardId, at: Option<Bytes>, _: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(async move { placement::split(shard, at) })
    }

    fn merge_shards(&self, left: ShardId, right: ShardId, _: Instant) -> AdminFuture<'_, OperationInfo> {
        Box::pin(async move { placement::merge(left, right) })
    }

    fn explain(&self, shard: ShardId, _: Instant) -> AdminFuture<'_, ShardExplanation> {
        Box::pin(async move { placement::explain(shard) })
    }

    fn rebalance(&self, dry_run: bool, _: Instant) -> AdminFuture<'_, DecisionList> {
        Box::pin(async move { Ok(placement::list(Some(dry_run), 1)) })
    }

    fn decisions(&self, limit: usize, _: Instant) -> AdminFuture<'_, DecisionList> {
        Box::pin(async move { Ok(placement::list(None, limit)) })
    }

    fn change_node(
        &self,
        node: NodeId,
        verb: NodeVerb,
        options: ChangeOptions,
        _: Instant,
    ) -> AdminFuture<'_, NodeChange> {
        Box::pin(async move { placement::change(node, verb, &options) })
    }
}

struct Server {
    address: SocketAddr,
    _node: Node,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn problem(&self) -> (u16, String) {
        (self.status, self.json()["type"].as_str().expect("a type").to_owned())
    }
}

impl Server {
    async fn start() -> Self {
        let (node, gateway) = values::node().await;
        Self::over(node, gateway, Access::open(), HttpConfig::default()).await
    }

    async fn over(node: Node, gateway: Gateway, access: Access, config: HttpConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (store, security) = (gateway.store, Security { access: Arc::new(access), tls: None });
        let budget = ClientBudget::new(CLIENT_BYTES_MIN);
        tokio::spawn(serve(listener, store, Arc::new(NoAdmin), security, budget, config, std::future::pending()));
        Self { address, _node: node }
    }

    /// One request on a connection of its own. HTTP/1.0, so that the end of the connection ends the body.
    async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        let mut head = format!("{line} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("sent");
        // It may be refused before it is sent completely.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..end].to_vec()).expect("text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Answer { status, headers: lines.filter_map(field).collect(), body: answer[end + 4..].to_vec() }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(&format!("GET {path}"), headers, b"").await
    }

    async fn rpc(&self, method: &str, parameters: Value) -> Value {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters });
        self.ask("POST /v1/rpc", &[("content-type", "application/json")], call.to_string().as_bytes()).await.json()
    }

    async fn need(&self, upload: Option<&str>, refs: Value) -> Value {
        let mut parameters = json!({ "collection": "c", "refs": refs });
        if let Some(upload) = upload {
            parameters["upload"] = json!(upload);
        }
        self.rpc("objects.need", parameters).await
    }

    async fn upload(&self, upload: &str, objects: &[&Object]) -> Answer {
        let line = format!("POST /v1/uploads/{upload}/objects?collection=c");
        self.ask(&line, &[("content-type", "application/octet-stream")], &frames(objects)).await
    }

    async fn put_ref(&self, key: &str, upload: &str, value: &ValueRef) -> Answer {
        let headers =
            [("content-type", VALUE_REF_MEDIA_TYPE), ("flotilla-upload", upload), ("flotilla-content-type", "a/b")];
        self.ask(&format!("PUT /v1/kv/c/{key}"), &headers, &value.encode()).await
    }
}

fn frames(objects: &[&Object]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for object in objects {
        let kind = match &object.kind {
            ObjectKind::Chunk { .. } => FrameKind::Chunk,
            ObjectKind::List(list) if list.level() == flotilla_values::Level::Root => FrameKind::Root,
            ObjectKind::List(_) => FrameKind::List,
        };
        put_frame(&mut bytes, kind, &object.bytes);
    }
    bytes
}

fn cut(content: &[u8], chunking: Chunking) -> (ValueRef, Vec<Object>) {
    let Finished { value, objects } = flotilla_values::cut(content, chunking).expect("not too long");
    (value, objects)
}

fn refs(value: &ValueRef) -> Value {
    json!(value.refs().iter().map(|reference| ObjectNeed::from(*reference)).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_large_value_is_put_and_read_in_whole_and_in_parts_with_its_type_and_tag() {
    let server = Server::start().await;
    let value = content(9 << 20);
    let put = server.ask("PUT /v1/kv/c/k", &[("content-type", "text/html")], &value).await;
    let tag = format!("\"{}\"", ObjectId::of(&value));
    assert_eq!((put.status, &put.headers["etag"]), (200, &tag));
    let got = server.get("/v1/kv/c/k", &[]).await;
    assert_eq!((got.status, &got.headers["etag"], &got.headers["content-type"][..]), (200, &tag, "text/html"));
    assert_eq!(got.headers["content-length"], value.len().to_string());
    assert!(got.headers["content-security-policy"].contains("sandbox"), "no page of ours runs it");
    assert!(got.body == value);
    let part = server.get("/v1/kv/c/k", &[("range", "bytes=5000000-5000009")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &value[5_000_000..5_000_010]));
    assert_eq!(part.headers["content-range"], format!("bytes 5000000-5000009/{}", value.len()));
    let last = server.get("/v1/kv/c/k", &[("range", "bytes=-3000000")]).await;
    assert!(last.status == 206 && last.body == value[value.len() - 3_000_000..]);
    let head = server.ask("HEAD /v1/kv/c/k", &[], b"").await;
    assert_eq!((head.status, &head.headers["content-length"][..], head.body.len()), (200, "9437184", 0));
    assert_eq!(server.get("/v1/kv/c/k", &[("if-none-match", &tag)]).await.status, 304);
    assert_eq!(server.get("/v1/kv/c/k", &[("if-match", "\"x\"")]).await.problem(), (412, "condition_failed".into()));
}

#[tokio::test]
async fn conditions_on_tags_hold_for_large_values() {
    let server = Server::start().await;
    let (one, two) = (content(1 << 20), vec![7; 1 << 20]);
    let tag = format!("\"{}\"", ObjectId::of(&one));
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[("if-none-match", "*")], &one).await.status, 200);
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[("if-none-match", "*")], &two).await.status, 412);
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[("if-match", &tag)], &two).await.status, 200);
    assert_eq!(server.ask("DELETE /v1/kv/c/k", &[("if-match", &tag)], b"").await.status, 412);
    let tag = format!("\"{}\"", ObjectId::of(&two));
    assert_eq!(server.ask("DELETE /v1/kv/c/k", &[("if-match", &tag)], b"").await.status, 200);
}

#[tokio::test]
async fn a_value_above_the_limit_is_refused_whether_its_length_is_announced_or_not() {
    let server = Server::start().await;
    let long = vec![1; (64 << 20) + 1];
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[], &long).await.problem(), (413, "value_too_large".into()));
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    stream
        .write_all(b"PUT /v1/kv/c/k HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .expect("sent");
    let piece = [&b"100000\r\n"[..], &vec![1; 1 << 20], b"\r\n"].concat();
    for _ in 0..65 {
        if stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 413");
    assert_eq!(server.get("/v1/kv/c/k", &[]).await.status, 404);
}

#[tokio::test]
async fn a_long_body_that_does_not_keep_its_pace_is_refused_and_writes_nothing() {
    let (node, gateway) = values::node().await;
    let pace = Pace { grace: Duration::from_millis(200), bytes_per_second_min: 1 << 30 };
    let config = HttpConfig { body_pace: pace, ..HttpConfig::default() };
    let server = Server::over(node, gateway, Access::open(), config).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    let head = b"PUT /v1/kv/c/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(&[&head[..], &vec![1; 300_000]].concat()).await.expect("sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 408");
    assert_eq!(server.get("/v1/kv/c/k", &[]).await.status, 404);
}

#[tokio::test]
async fn a_value_by_reference_needs_only_what_is_missing() {
    let server = Server::start().await;
    let first = content(4 << 20);
    let mut second = first.clone();
    second[2 << 20] ^= 1;
    assert_eq!(server.ask("PUT /v1/kv/c/a", &[], &first).await.status, 200);
    let (value, objects) = cut(&second, Chunking::default());
    let mut answer = server.need(None, refs(&value)).await["result"].clone();
    let upload = answer["upload"].as_str().expect("an upload").to_owned();
    let missing_of = |answer: &Value| -> BTreeSet<String> {
        answer["missing"].as_array().expect("ids").iter().map(|id| id.as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(missing_of(&answer).len(), 1, "the root");
    let refused = server.put_ref("b", &upload, &value).await;
    assert_eq!(refused.problem(), (409, "objects_missing".into()));
    assert_eq!(refused.json()["missing"], answer["missing"]);
    let mut sent = 0;
    while !missing_of(&answer).is_empty() {
        let missing = missing_of(&answer);
        let these: Vec<_> = objects.iter().filter(|object| missing.contains(&object.id.to_string())).collect();
        assert_eq!(these.len(), missing.len(), "nothing else is asked for");
        let stored = server.upload(&upload, &these).await;
        assert_eq!((stored.status, stored.json()["stored"].as_u64()), (200, Some(these.len() as u64)));
        sent += these.iter().map(|object| object.bytes.len()).sum::<usize>();
        answer = server.need(Some(&upload), refs(&value)).await["result"].clone();
    }
    assert!(sent < 200_000, "{sent} bytes for one that changed");
    assert_eq!(server.put_ref("b", &upload, &value).await.status, 200);
    let got = server.get("/v1/kv/c/b", &[]).await;
    assert!(got.body == second && got.headers["content-type"] == "a/b");
    let reference = server.get("/v1/kv/c/b", &[("accept", VALUE_REF_MEDIA_TYPE)]).await;
    assert_eq!(
        (&reference.body[..], &reference.headers["content-type"][..]),
        (&value.encode()[..], VALUE_REF_MEDIA_TYPE)
    );
    assert_eq!(reference.headers["flotilla-content-type"], "a/b");
    assert_eq!(server.put_ref("b", &upload, &value).await.problem(), (410, "upload_ended".into()), "it was written");
}

#[tokio::test]
async fn a_reference_that_is_not_that_of_its_content_is_refused() {
    let server = Server::start().await;
    let long = content(300_000);
    let (value, objects) = cut(&long, Chunking::AVERAGE_64_KIB);
    let answer = server.need(None, refs(&value)).await["result"].clone();
    let upload = answer["upload"].as_str().expect("an upload").to_owned();
    let chunks: Vec<_> = objects.iter().collect();
    assert_eq!(server.upload(&upload, &chunks).await.status, 200);
    let refused = server.put_ref("k", &upload, &value).await;
    assert_eq!(refused.problem(), (400, "wrong_reference".into()), "it is cut in another way");
    let mut forged = value.encode().to_vec();
    forged[10] ^= 1;
    let forged = ValueRef::decode(&forged).expect("a reference");
    assert_eq!(server.put_ref("k", &upload, &forged).await.problem(), (400, "wrong_reference".into()), "another tag");
    let headers = [("content-type", VALUE_REF_MEDIA_TYPE), ("flotilla-upload", &upload[..])];
    for bad in [&b"x"[..], b"", &[1; 2_346]] {
        let refused = server.ask("PUT /v1/kv/c/k", &headers, bad).await;
        assert_eq!(refused.problem(), (400, "malformed_request".into()));
    }
    let headers = [("content-type", VALUE_REF_MEDIA_TYPE)];
    let refused = server.ask("PUT /v1/kv/c/k", &headers, &value.encode()).await;
    assert_eq!(refused.problem(), (400, "invalid_argument".into()), "without an upload");
    // A short value is in the record, however it came.
    let (short, objects) = cut(b"short", Chunking::default());
    assert_eq!(server.upload(&upload, &objects.iter().collect::<Vec<_>>()).await.status, 200);
    assert_eq!(server.put_ref("s", &upload, &short).await.status, 200);
    assert_eq!(server.get("/v1/kv/c/s", &[("accept", VALUE_REF_MEDIA_TYPE)]).await.body, b"short");
}

#[tokio::test]
async fn objects_of_a_record_are_sent_and_no_others() {
    let server = Server::start().await;
    let long = content(4 << 20);
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[], &long).await.status, 200);
    assert_eq!(server.ask("PUT /v1/kv/c/other", &[], &vec![9; 100_000]).await.status, 200);
    let (_, objects) = cut(&long, Chunking::default());
    let (_, others) = cut(&vec![9; 100_000], Chunking::default());
    let asked: Vec<ObjectId> = objects.iter().rev().map(|object| object.id).chain([others[0].id]).collect();
    let body: Vec<u8> = asked.iter().flat_map(|id| id.0).collect();
    let octets = ("content-type", "application/octet-stream");
    for (headers, compressed) in [(&[octets][..], false), (&[octets, ("accept-encoding", "zstd")], true)] {
        let answer = server.ask("POST /v1/kv-objects/c/k", headers, &body).await;
        assert_eq!((answer.status, answer.headers.contains_key("content-encoding")), (200, compressed));
        let bytes = if compressed { zstd::stream::decode_all(&answer.body[..]).expect("zstd") } else { answer.body };
        let (mut reader, mut rest, mut sent) = (FrameReader::default(), &bytes[..], Vec::new());
        while let Some(frame) = reader.next(&mut rest).expect("frames") {
            sent.push(frame);
        }
        assert_eq!(sent.len(), asked.len());
        assert_eq!(sent.pop(), Some((FrameKind::Absent, Vec::new())), "of another record");
        for ((kind, bytes), object) in sent.iter().zip(objects.iter().rev()) {
            assert!(object.bytes == bytes[..]);
            assert_eq!(*kind == FrameKind::Chunk, ListNode::decode(bytes).is_err());
        }
    }
    for bad in [&body[..31], &[&body[..32], &body[..32]].concat()] {
        let refused = server.ask("POST /v1/kv-objects/c/k", &[octets], bad).await;
        assert_eq!(refused.problem(), (400, "invalid_argument".into()));
    }
    assert_eq!(server.ask("POST /v1/kv-objects/c/none", &[octets], &body).await.status, 404);
}

#[tokio::test]
async fn uploads_that_are_unknown_hostile_or_too_long_are_refused() {
    let server = Server::start().await;
    let (_, objects) = cut(b"x", Chunking::default());
    let objects: Vec<_> = objects.iter().collect();
    assert_eq!(server.upload("00000000000000aa", &objects).await.problem(), (410, "upload_ended".into()));
    assert_eq!(server.upload("nonsense", &objects).await.problem(), (400, "invalid_argument".into()));
    let answer = server.need(None, json!([{ "id": ObjectId::of(b"x").to_string(), "height": 0, "bytes": 1 }])).await;
    let upload = answer["result"]["upload"].as_str().expect("an upload").to_owned();
    let line = format!("POST /v1/uploads/{upload}/objects?collection=c");
    let octets = ("content-type", "application/octet-stream");
    let ask = async |headers: &[(&str, &str)], body: &[u8]| server.ask(&line, headers, body).await.problem();
    assert_eq!(ask(&[octets], &[9, 1, 0, 0, 0, 1]).await, (400, "malformed_request".into()));
    assert_eq!(ask(&[octets], &vec![0; (4 << 20) + 1]).await, (413, "body_too_large".into()));
    assert_eq!(ask(&[octets, ("content-encoding", "zstd")], b"x").await, (400, "malformed_request".into()));
    assert_eq!(ask(&[octets, ("content-encoding", "gzip")], b"x").await, (400, "invalid_argument".into()));
    assert_eq!(ask(&[("content-type", "text/plain")], b"x").await, (415, "unsupported_media_type".into()));
    let elsewhere = format!("POST /v1/uploads/{upload}/objects?collection=none");
    assert_eq!(server.ask(&elsewhere, &[octets], b"").await.problem(), (404, "collection_not_found".into()));
}

#[tokio::test]
async fn calls_about_objects_are_bounded_and_say_what_is_here() {
    let server = Server::start().await;
    let long = content(300_000);
    assert_eq!(server.ask("PUT /v1/kv/c/k", &[], &long).await.status, 200);
    let (value, objects) = cut(&long, Chunking::default());
    let missing = server.rpc("objects.missing", json!({ "refs": refs(&value) })).await;
    assert_eq!(missing["result"]["missing"], json!([]));
    let absent = json!([{ "id": ObjectId::of(b"absent").to_string(), "height": 0, "bytes": 6 }]);
    let missing = server.rpc("objects.missing", json!({ "refs": absent })).await;
    assert_eq!(missing["result"]["missing"][0], ObjectId::of(b"absent").to_string());
    let ids = [objects[0].id, ObjectId::of(b"absent")].map(|id| id.to_string());
    let fetched = server.rpc("objects.fetch", json!({ "ids": ids })).await["result"]["objects"].clone();
    let text = flotilla_api::Encoding::Base64.encode(&objects[0].bytes).expect("text");
    assert_eq!((fetched[0]["bytes"].as_str(), fetched[1]["bytes"].as_str()), (Some(&text[..]), None));
    let pulled = server.rpc("objects.pull", json!({ "refs": absent })).await;
    assert_eq!(pulled["result"]["missing"][0], ObjectId::of(b"absent").to_string());
    for (method, parameters) in [
        ("objects.need", json!({ "collection": "c", "refs": [] })),
        ("objects.fetch", json!({ "ids": vec![&ids[0]; 65] })),
        ("objects.missing", json!({ "refs": vec![&absent[0]; 4_097] })),
    ] {
        assert_eq!(server.rpc(method, parameters).await["error"]["data"]["type"], "invalid_argument", "{method}");
    }
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "objects.missing", "params": { "refs": absent } });
    let json_type = [("content-type", "application/json")];
    let batch = server.ask("POST /v1/rpc", &json_type, json!([call, call]).to_string().as_bytes()).await;
    assert_eq!(batch.json()["error"]["code"], -32_600);
}

/// The keys of a cluster.
struct Book(Vec<(u64, KeyFacts)>);

impl Keys for Book {
    fn key(&self, id: u64) -> Option<KeyFacts> {
        self.0.iter().find(|(known, _)| *known == id).map(|(_, facts)| facts.clone())
    }
}

#[tokio::test]
async fn only_writers_of_the_collection_upload_and_only_its_readers_read_objects() {
    use rand::SeedableRng as _;
    let roles =
        [(Role::Reader, "c"), (Role::Writer, "c"), (Role::Writer, "other"), (Role::Operator, ""), (Role::Admin, "")];
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let keys = roles.map(|_| flotilla_identity::ClientKey::mint(&mut random));
    let facts = keys.iter().zip(roles).map(|(key, (role, collection))| {
        let collections = if collection.is_empty() { Vec::new() } else { vec![collection.to_owned()] };
        (key.id(), KeyFacts { hash: key.hash().0, role, collections, expires_at_ms: 0 })
    });
    let access = Access::by_keys(Arc::new(Book(facts.collect())));
    let (node, gateway) = values::node().await;
    let server = Server::over(node, gateway, access, HttpConfig::default()).await;
    let bearers = keys.map(|key| format!("Bearer {key}"));
    let id = ObjectId::of(b"x");
    let refs = json!([{ "id": id.to_string(), "height": 0, "bytes": 1 }]);
    let call = |method: &str, parameters: Value| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters }).to_string()
    };
    let need = call("objects.need", json!({ "collection": "c", "refs": refs }));
    let missing = call("objects.missing", json!({ "refs": refs }));
    let mut allowed = Vec::new();
    for bearer in &bearers {
        let headers = [("authorization", &bearer[..]), ("content-type", "application/json")];
        let is_allowed = async |body: &str| {
            let answer = server.ask("POST /v1/rpc", &headers, body.as_bytes()).await.json();
            answer["error"]["data"]["type"] != "forbidden"
        };
        let headers = [("authorization", &bearer[..]), ("content-type", "application/octet-stream")];
        let upload = server.ask("POST /v1/uploads/00000000000000aa/objects?collection=c", &headers, b"").await.status;
        let read = server.ask("POST /v1/kv-objects/c/k", &headers, &id.0).await.status;
        allowed.push([is_allowed(&need).await, upload != 403, read != 403, is_allowed(&missing).await]);
    }
    let [reader, writer, elsewhere, operator, admin] = allowed[..] else { panic!("{allowed:?}") };
    assert_eq!(reader, [false, false, true, false]);
    assert_eq!(writer, [true, true, true, false]);
    assert_eq!(elsewhere, [false; 4]);
    assert_eq!(operator, [false; 4]);
    assert_eq!(admin, [true; 4]);
}

#[tokio::test]
async fn a_page_has_large_values_up_to_its_bytes_and_the_tags_of_others() {
    let server = Server::start().await;
    for (key, bytes) in [("a", 3 << 20), ("b", 2 << 20), ("c", 6 << 20), ("d", 10)] {
        assert_eq!(server.ask(&format!("PUT /v1/kv/c/{key}"), &[], &vec![b'x'; bytes]).await.status, 200);
    }
    let (mut cursor, mut pages) = (String::new(), Vec::new());
    loop {
        let page = server.get(&format!("/v1/kv/c?cursor={cursor}"), &[]).await.json();
        let item = |item: &Value| {
            let key = item["key"].as_str().expect("a key").to_owned();
            (key, item["value"].as_str().map(str::len), item["etag"].is_string())
        };
        pages.push(page["items"].as_array().expect("items").iter().map(item).collect::<Vec<_>>());
        match page["cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    let whole = |key: &str, bytes: usize| (key.to_owned(), Some(bytes), false);
    let second = vec![whole("b", 2 << 20)];
    assert_eq!(pages, [vec![whole("a", 3 << 20)], second, vec![("c".to_owned(), None, true), whole("d", 10)]]);
    let keys = server.get("/v1/kv/c?values=false", &[]).await.json();
    assert_eq!(keys["items"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn a_batch_takes_long_values_as_well() {
    let server = Server::start().await;
    let value = "x".repeat(1 << 20);
    let batch = json!({ "collection": "c", "operations": [
        { "op": "put", "key": "k", "value": value }, { "op": "put", "key": "s", "value": "short" },
    ] });
    let answer =
        server.ask("POST /v1/batch", &[("content-type", "application/json")], batch.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.get("/v1/kv/c/k", &[]).await.body, value.as_bytes());
    let append = json!({ "collection": "c", "operations": [{ "op": "append", "key": "k", "value": "y" }] });
    let answer =
        server.ask("POST /v1/batch", &[("content-type", "application/json")], append.to_string().as_bytes()).await;
    assert_eq!(answer.json()["results"][0]["number"], (1 << 20) + 1);
}
