//! Clusters that serve clients over TLS and with keys only.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use flotilla_api::{ClusterStatus, Event, KeyRequest};
use flotilla_client::{Client, PutOptions};
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::Role;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use flotilla_tests::support::{binary, client, connect_tls, eventually, log};

/// Renewals that the test of renewals waits for.
const RENEWALS: usize = 3;
/// How soon a revoked key must be refused everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);

async fn start_secure(nodes: usize, arguments: &[&str]) -> Cluster {
    let mut options = ClusterOptions::new(nodes, binary());
    options.secure = true;
    options.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Cluster::start(options).await.unwrap_or_else(|error| panic!("the cluster does not start: {error}"))
}

type Connection = BufReader<TlsStream<TcpStream>>;

async fn connect(cluster: &Cluster, at: SocketAddr) -> Connection {
    BufReader::new(connect_tls(cluster, at).await)
}

/// The status of one HTTP request.
async fn http_status(cluster: &Cluster, method: &str, path: &str, key: Option<&str>) -> u16 {
    let mut connection = connect(cluster, cluster.node(1).expect("node 1").http).await;
    let authorization = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n{authorization}\r\n");
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut line = String::new();
    connection.read_line(&mut line).await.expect("an answer");
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {line}"))
}

async fn redis(connection: &mut Connection, command: &str) -> String {
    connection.write_all(format!("{command}\r\n").as_bytes()).await.expect("sent");
    let mut line = String::new();
    connection.read_line(&mut line).await.expect("a reply");
    line.trim_end().to_owned()
}

async fn create_key(client: &Client, role: Role, collections: &[&str]) -> String {
    let collections = collections.iter().map(|name| (*name).to_owned()).collect();
    client.create_key(&KeyRequest { role, collections, ttl_ms: None }).await.expect("a key").key
}

/// The roles that may make this request; `None` when it needs no key. Written down independently of the node.
fn allowed(method: &str, path: &str) -> Option<Vec<Role>> {
    let reads = matches!(method, "get" | "head");
    let (admin, operators) = (vec![Role::Admin], vec![Role::Operator, Role::Admin]);
    Some(match path {
        "/health/live" | "/healthz" | "/readyz" => return None,
        "/v1/cluster/tokens"
        | "/v1/cluster/tokens/{id}"
        | "/v1/cluster/keys"
        | "/v1/cluster/keys/{id}"
        | "/v1/cluster/audit"
        | "/v1/cluster/authority/rotate" => admin,
        path if path.starts_with("/v1/kv/") && reads => vec![Role::Reader, Role::Writer, Role::Admin],
        path if path.starts_with("/v1/kv-objects/") => vec![Role::Reader, Role::Writer, Role::Admin],
        path if path.starts_with("/v1/kv/") || path == "/v1/batch" => vec![Role::Writer, Role::Admin],
        path if path.starts_with("/v1/uploads/") => vec![Role::Writer, Role::Admin],
        "/v1/rpc" => Role::ALL.to_vec(),
        _ if reads => Role::ALL.to_vec(),
        _ => operators,
    })
}

#[tokio::test]
async fn without_the_right_that_the_table_says_nothing_answers() {
    let cluster = start_secure(1, &[]).await;
    let admin = client(&cluster, 1);
    let mut keys: BTreeMap<Role, String> = BTreeMap::new();
    for role in Role::ALL {
        keys.insert(role, create_key(&admin, role, &[]).await);
    }
    // First: after some wrong keys the address must wait before it may try new ones.
    collections_are_closed(&cluster, &admin).await;
    let mut requests = 0;
    for (path, methods) in routes(&cluster, &keys[&Role::Admin]).await {
        for method in methods {
            // `99`: no such node; `nope`: no such collection, setting or shard.
            let concrete = path
                .replace("{upload}/objects", "00000000000000aa/objects?collection=default")
                .replace("{collection}", "default")
                .replace("{id}", "99")
                .replace("{name}", "nope")
                .replace("{verb}", "drain");
            let concrete = concrete.replace("{key}", "nope");
            let status = async |key: Option<&str>| http_status(&cluster, &method.to_uppercase(), &concrete, key).await;
            let Some(allowed) = allowed(&method, &path) else {
                assert_eq!(status(None).await, 200, "{path}");
                continue;
            };
            assert_eq!(status(None).await, 401, "{method} {path} without a key");
            assert!(matches!(status(Some("wrong")).await, 401 | 429), "{method} {path} with a wrong key");
            for (role, key) in &keys {
                let may = allowed.contains(role);
                // A drained node would not serve the rest.
                if may && path == "/health/drain" {
                    continue;
                }
                let found = status(Some(key)).await;
                assert_ne!(found, 401, "{method} {path} as {role}");
                assert_eq!(found != 403, may, "{method} {path} as {role}: {found}");
                requests += 1;
            }
        }
    }
    assert!(requests > 80, "only {requests} requests were made");
    redis_commands(&cluster, &keys).await;
    audit_log_tells_who(&cluster, &admin).await;
}

/// Every route that the node describes, with its methods.
async fn routes(cluster: &Cluster, key: &str) -> BTreeMap<String, Vec<String>> {
    let mut connection = connect(cluster, cluster.node(1).expect("node 1").http).await;
    let head = format!(
        "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.expect("an answer");
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    let description: Value = serde_json::from_str(body).expect("JSON");
    let paths = description["paths"].as_object().expect("paths");
    let methods = |methods: &Value| {
        let names = methods.as_object().expect("methods").keys().filter(|name| *name != "parameters");
        names.cloned().collect()
    };
    paths.iter().map(|(path, described)| (path.clone(), methods(described))).collect()
}

/// Commands are refused before their arguments are looked at, so a name alone will do.
async fn redis_commands(cluster: &Cluster, keys: &BTreeMap<Role, String>) {
    let at = cluster.redis(1).expect("node 1");
    let writes = ["set", "del", "incr", "append", "mset", "expire", "getdel"];
    let reads = ["get", "mget", "exists", "ttl", "scan", "dbsize", "strlen"];
    let mut anonymous = connect(cluster, at).await;
    for command in writes.iter().chain(&reads).chain(&["ping", "info", "client", "command", "config", "nosuch"]) {
        assert!(redis(&mut anonymous, command).await.starts_with("-NOAUTH"), "{command} without a key");
    }
    assert!(redis(&mut anonymous, "AUTH wrong").await.starts_with("-"));
    // Whoever has no key makes the node reserve no memory.
    for (announced, refusal) in [
        ("*2\r\n$4\r\nAUTH\r\n$67108864", "-ERR Protocol error: unauthenticated bulk length"),
        ("*1000000", "-ERR Protocol error: unauthenticated multibulk length"),
    ] {
        let mut anonymous = connect(cluster, at).await;
        assert_eq!(redis(&mut anonymous, announced).await, refusal);
        assert_eq!(anonymous.read(&mut [0]).await.expect("a closed connection"), 0);
    }
    for (role, key) in keys {
        let mut connection = connect(cluster, at).await;
        assert_eq!(redis(&mut connection, &format!("AUTH default {key}")).await, "+OK");
        assert_eq!(redis(&mut connection, "PING").await, "+PONG");
        let long = format!("*2\r\n$4\r\nECHO\r\n$20000\r\n{}", "x".repeat(20_000));
        assert_eq!(redis(&mut connection, &long).await, "$20000");
        assert_eq!(redis(&mut connection, "").await.len(), 20_000);
        let (may_read, may_write) = match role {
            Role::Reader => (true, false),
            Role::Writer | Role::Admin => (true, true),
            Role::Operator => (false, false),
        };
        for (commands, may) in [(&reads, may_read), (&writes, may_write)] {
            for command in commands {
                let refused = redis(&mut connection, command).await.starts_with("-NOPERM");
                assert_eq!(refused, !may, "{command} as {role}");
            }
        }
        assert_eq!(redis(&mut connection, "RESET").await, "+RESET");
        assert!(redis(&mut connection, "PING").await.starts_with("-NOAUTH"), "a reset forgets the key");
    }
}

/// The audit log has changes with the key that made them, and refused tries; over HTTP and in the data
/// folder.
async fn audit_log_tells_who(cluster: &Cluster, admin: &Client) {
    let entries = admin.recent_audit().await.expect("the log");
    let is = |entry: &Event, name: &str, value: &str| entry.detail.get(name).is_some_and(|found| found == value);
    let created = |entry: &&Event| is(entry, "action", "POST /v1/cluster/keys") && is(entry, "status", "200");
    assert!(entries.iter().filter(created).all(|entry| !is(entry, "key", "none")), "{entries:?}");
    assert!(entries.iter().filter(created).count() >= Role::ALL.len());
    for (status, with_key) in [("401", false), ("403", true)] {
        let refused = |entry: &Event| is(entry, "status", status) && is(entry, "key", "none") != with_key;
        assert!(entries.iter().any(refused), "no {status}: {entries:?}");
    }
    // Requests for records are not about the cluster.
    assert!(!entries.iter().any(|entry| is(entry, "status", "404") && is(entry, "action", "GET /v1/kv/default/nope")));
    let path = cluster.node(1).expect("node 1").data_dir.join("audit.log");
    eventually("the log is on disk", async || {
        let lines = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let found = lines.lines().any(|line| line.contains("POST /v1/cluster/keys") && line.contains("role reader"));
        if found { Ok(()) } else { Err(format!("{} lines", lines.lines().count())) }
    })
    .await;
}

/// A key for one collection opens no other, neither in the path nor in a batch.
async fn collections_are_closed(cluster: &Cluster, admin: &Client) {
    let key = create_key(admin, Role::Writer, &["other"]).await;
    for path in ["/v1/kv/default/k", "/v1/kv/default", "/v1/kv/%64efault/k"] {
        assert_eq!(http_status(cluster, "GET", path, Some(&key)).await, 403, "{path}");
    }
    assert_eq!(http_status(cluster, "GET", "/v1/kv/other/k", Some(&key)).await, 404);
    let mut connection = connect(cluster, cluster.redis(1).expect("node 1")).await;
    assert_eq!(redis(&mut connection, &format!("AUTH {key}")).await, "+OK");
    assert!(redis(&mut connection, "GET k").await.starts_with("-NOPERM"));
    databases_are_closed(cluster, admin).await;
}

/// The databases of Redis are collections, each of which a key opens or not, also inside a transaction.
async fn databases_are_closed(cluster: &Cluster, admin: &Client) {
    for (collection, opened, closed) in [("default", 0, 3), ("db3", 3, 0)] {
        let key = create_key(admin, Role::Writer, &[collection]).await;
        let mut connection = connect(cluster, cluster.redis(1).expect("node 1")).await;
        assert_eq!(redis(&mut connection, &format!("AUTH {key}")).await, "+OK");
        for (database, may) in [(closed, false), (opened, true), (closed, false)] {
            assert_eq!(redis(&mut connection, &format!("SELECT {database}")).await, "+OK");
            for command in ["STRLEN k", "SET k v", "EXISTS k", "DBSIZE", "WATCH k"] {
                let answer = redis(&mut connection, command).await;
                assert_eq!(!answer.starts_with("-NOPERM"), may, "{collection} in {database}: {command}: {answer}");
            }
            assert_eq!(redis(&mut connection, "UNWATCH").await, "+OK");
        }
        assert_eq!(redis(&mut connection, &format!("SELECT {opened}")).await, "+OK");
        for (line, answer) in [("MULTI", "+OK"), (&format!("SELECT {closed}"), "+QUEUED"), ("GET k", "-NOPERM")] {
            assert!(redis(&mut connection, line).await.starts_with(answer), "{line}");
        }
        assert!(redis(&mut connection, "EXEC").await.starts_with("-EXECABORT"));
        for command in ["FLUSHALL", "FLUSHDB"] {
            assert!(redis(&mut connection, command).await.starts_with("-NOPERM"), "{command}");
        }
    }
    let reader = create_key(admin, Role::Reader, &[]).await;
    let mut connection = connect(cluster, cluster.redis(1).expect("node 1")).await;
    assert_eq!(redis(&mut connection, &format!("AUTH {reader}")).await, "+OK");
    assert_eq!(redis(&mut connection, "SELECT 4").await, "+OK");
    assert!(redis(&mut connection, "SET k v").await.starts_with("-NOPERM"));
    assert_eq!(http_status(cluster, "GET", "/v1/kv/db4", Some(&reader)).await, 404, "a reader creates nothing");
}

#[tokio::test]
async fn refusals_of_large_requests_reach_the_client() {
    let cluster = start_secure(1, &[]).await;
    let (announced, sent) = (65 << 20, vec![b'v'; 5 << 20]);
    let (http, redis) = (cluster.node(1).expect("node 1").http, cluster.redis(1).expect("node 1"));
    let put = format!("PUT /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: {announced}\r\n\r\n");
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${announced}\r\n");
    for (at, head, refusal) in [(http, put, "HTTP/1.1 401"), (redis, set, "-ERR Protocol error: invalid bulk length")] {
        let mut connection = connect(&cluster, at).await;
        connection.write_all(head.as_bytes()).await.expect("sent");
        connection.write_all(&sent).await.expect("no reset while the client sends");
        connection.flush().await.expect("no reset while the client sends");
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.expect("an end, and no reset");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(refusal), "{answer}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_every_node_within_two_seconds() {
    let cluster = start_secure(3, &[]).await;
    let admin = client(&cluster, 1);
    let key =
        admin.create_key(&KeyRequest { role: Role::Writer, collections: vec![], ttl_ms: None }).await.expect("a key");
    let mut connections = Vec::new();
    for i in 1..=3 {
        let mut connection = connect(&cluster, cluster.redis(i).expect("a node")).await;
        eventually("the key is known", async || match redis(&mut connection, &format!("AUTH {}", key.key)).await {
            reply if reply == "+OK" => Ok(()),
            reply => Err(reply),
        })
        .await;
        connections.push(connection);
    }
    admin.revoke_key(key.info.id).await.expect("revoked");
    let refused = async {
        for connection in &mut connections {
            while !redis(connection, "GET k").await.starts_with("-NOAUTH") {}
        }
    };
    tokio::time::timeout(REVOKED_WITHIN, refused).await.expect("every node refuses the key");
    assert_eq!(http_status(&cluster, "GET", "/v1/kv/default/k", Some(&key.key)).await, 401);
}

#[tokio::test]
async fn certificates_are_renewed_under_load_without_an_error() {
    let cluster = start_secure(3, &["--certificate-ttl", "10s"]).await;
    let renewals = |i| log(&cluster, i).matches("renewed the certificate of client ports").count();
    let mut puts = 0;
    // The first one is no renewal.
    while (1..=3).any(|i| renewals(i) <= RENEWALS) {
        for i in 1..=3 {
            // A new client each time: a new handshake.
            let client = client(&cluster, i);
            let key = format!("k{}", puts % 100);
            client.put("default", key.as_bytes(), "v".into(), &PutOptions::default()).await.expect("a put");
            let _: ClusterStatus = client.status().await.expect("a status");
            puts += 1;
        }
    }
    assert!(puts > 30, "only {puts} puts");
}
