//! Clients that hold connections, requests and answers without end, pages that pretend to be this node, forged
//! join tokens, and refusals that must reach the client.

use std::net::SocketAddr;

use flotilla_api::TokenRequest;
use flotilla_client::PutOptions;
use flotilla_identity::{JoinToken, TokenId};
use flotilla_local_cluster::{Cluster, ClusterOptions, Node, Ports, Start, command};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use flotilla_tests::support::{WITHIN, binary, client, eventually, start, start_with, status, wait_exit};

/// The least budget of a node for its clients.
const BUDGET: [&str; 2] = ["--client-bytes", "67108864"];
/// What a node may grow by when clients use up the budget: buffers are copied when they grow.
const GROWTH_BYTES_MAX: u64 = 192 << 20;
const MIB: usize = 1 << 20;

#[tokio::test]
async fn unfinished_requests_stay_within_the_budget() {
    let cluster = start_with(1, &BUDGET).await;
    let redis = cluster.redis(1).expect("a node");
    let before = peak_bytes(&cluster);
    // Each is an `MSET` of 8 MiB whose last argument never comes.
    let argument = [b"$1048576\r\n", &vec![b'v'; MIB][..], b"\r\n"].concat();
    let attackers = attack(redis, 60, b"*11\r\n$4\r\nMSET\r\n", &argument, 8);
    wait_closed(&attackers).await;
    client(&cluster, 1).put("default", b"k", "small".into(), &PutOptions::default()).await.expect("others are served");
    // A large request also gets its room in the end.
    let value = vec![b'v'; 3 * MIB];
    let set = [format!("*3\r\n$3\r\nSET\r\n$1\r\nl\r\n${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat();
    eventually("a large value is stored", async || {
        let mut large = TcpStream::connect(redis).await.expect("a connection");
        large.write_all(&set).await.expect("sent");
        let mut answer = vec![0; 200];
        let bytes = timeout(WITHIN, large.read(&mut answer)).await.expect("an answer").expect("an answer");
        match String::from_utf8_lossy(&answer[..bytes]).as_ref() {
            "+OK\r\n" => Ok(()),
            busy if busy.starts_with("-TRYAGAIN") => Err(busy.to_owned()),
            other => panic!("{other}"),
        }
    })
    .await;
    assert_some_refused(attackers).await;
    let growth = peak_bytes(&cluster) - before;
    assert!(growth < GROWTH_BYTES_MAX, "the node grew by {} MiB", growth >> 20);
}

#[tokio::test]
async fn queued_transactions_stay_within_the_budget() {
    let cluster = start_with(1, &BUDGET).await;
    let redis = cluster.redis(1).expect("a node");
    let before = peak_bytes(&cluster);
    // Each queues 6 MiB and never sends its `EXEC`.
    let set = [b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n", &vec![b'v'; MIB][..], b"\r\n"].concat();
    let attackers = attack(redis, 40, b"MULTI\r\n", &set, 6);
    wait_closed(&attackers).await;
    client(&cluster, 1).put("default", b"k", "small".into(), &PutOptions::default()).await.expect("others are served");
    assert_some_refused(attackers).await;
    let growth = peak_bytes(&cluster) - before;
    assert!(growth < GROWTH_BYTES_MAX, "the node grew by {} MiB", growth >> 20);
}

#[tokio::test]
async fn answers_that_nobody_reads_stay_within_the_budget() {
    let cluster = start_with(1, &BUDGET).await;
    let client = client(&cluster, 1);
    client.put("default", b"big", vec![b'v'; 4 * MIB].into(), &PutOptions::default()).await.expect("a put");
    client.put("default", b"small", "x".into(), &PutOptions::default()).await.expect("a put");
    let http = cluster.node(1).expect("a node").http;
    let before = peak_bytes(&cluster);
    let mut unread = Vec::new();
    for _ in 0..150 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
        let mut stream = socket.connect(http).await.expect("a connection");
        let _ = stream.write_all(b"GET /v1/kv/default/big HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        unread.push(stream);
    }
    eventually("others are served", async || match client.get("default", b"small").await {
        Ok(Some(_)) => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let growth = peak_bytes(&cluster) - before;
    assert!(growth < GROWTH_BYTES_MAX, "the node grew by {} MiB", growth >> 20);
}

#[tokio::test]
async fn probes_and_the_administration_work_while_idle_connections_take_every_slot() {
    let mut options = ClusterOptions::new(1, binary());
    // Leaves some 30 connections for HTTP.
    options.descriptors_max = Some(512);
    let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("the node does not start: {error}"));
    let http = cluster.node(1).expect("a node").http;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(http).await.expect("a connection"));
    }
    for path in ["/health/live", "/readyz", "/metrics", "/v1/cluster/status", "/v1/cluster/tokens"] {
        let get = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = request(http, &get).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let get = "GET /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    // A connection of the test's own client may have ended meanwhile, and left a slot.
    for _ in 0..20 {
        idle.push(TcpStream::connect(http).await.expect("a connection"));
        answer = request(http, get).await;
        if answer.contains("503") {
            break;
        }
    }
    assert!(answer.contains("503") && answer.contains("\"busy\"") && answer.contains("connection: close"), "{answer}");
    drop(idle);
    eventually("records are served again", async || {
        let answer =
            request(http, "GET /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        if answer.starts_with("HTTP/1.1 404") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn slow_bodies_hold_up_nobody() {
    let cluster = start(1).await;
    let http = cluster.node(1).expect("a node").http;
    let mut slow = Vec::new();
    // As many as requests may be in progress.
    for i in 0..512 {
        let mut stream = TcpStream::connect(http).await.expect("a connection");
        let head = format!(
            "PUT /v1/kv/default/slow{i} HTTP/1.1\r\nhost: localhost\r\nflotilla-timeout-ms: 60000\r\n\
             content-length: 1000\r\n\r\nx"
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    let client = client(&cluster, 1);
    client.put("default", b"k", "quick".into(), &PutOptions::default()).await.expect("a put");
    assert!(client.get("default", b"k").await.expect("a read").is_some());
    for stream in slow.iter_mut().take(3) {
        let mut answer = Vec::new();
        let _ = timeout(WITHIN, stream.read_to_end(&mut answer)).await.expect("an end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("408") && answer.contains("too slowly"), "{answer}");
    }
}

#[tokio::test]
async fn only_requests_that_no_web_page_can_send_change_anything() {
    let cluster = start_with(1, &["--host-names", "db.example"]).await;
    let http = cluster.node(1).expect("a node").http;
    let json = "content-type: application/json\r\n";
    let post = |host: &str, headers: &str| {
        let body = r#"{"uses":1}"#;
        let length = body.len();
        format!(
            "POST /v1/cluster/tokens HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    };
    let bare = |method_and_path: &str, host: &str| {
        format!("{method_and_path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
    };
    for (request_text, status) in [
        (post("evil.example:7111", &format!("origin: http://evil.example:7111\r\n{json}")), "421"),
        (post("evil.example:7111", json), "421"),
        (bare("GET /v1/kv/default/k", "evil.example"), "421"),
        (bare("GET /metrics", "evil.example"), "421"),
        (bare("GET /health/live", "evil.example"), "200"),
        (post("localhost", &format!("origin: http://evil.example\r\n{json}")), "403"),
        (post("localhost", ""), "415"),
        (post("localhost", "content-type: text/plain\r\n"), "415"),
        (post("localhost", "content-type: application/x-www-form-urlencoded\r\n"), "415"),
        (post("localhost", json), "200"),
        (post("db.example", json), "200"),
        (post("[::1]:7111", "content-type: text/plain\r\nflotilla-timeout-ms: 5000\r\n"), "200"),
        (post("127.0.0.1:7111", &format!("origin: http://127.0.0.1:7111\r\n{json}")), "200"),
        (bare("DELETE /v1/kv/default/k", "localhost"), "404"),
        ("PUT /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 1\r\nconnection: close\r\n\r\nv".to_owned(), "200"),
    ] {
        let answer = request(http, &request_text).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request_text}\n{answer}");
    }
    assert_eq!(client(&cluster, 1).tokens().await.expect("a list").len(), 4, "only what was answered with 200");
}

#[tokio::test]
async fn refusals_of_large_requests_reach_the_client() {
    let cluster = start(1).await;
    let node = cluster.node(1).expect("a node");
    let (announced, sent) = (65 * MIB, vec![b'v'; 5 * MIB]);
    let head = format!("PUT /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: {announced}\r\n\r\n");
    let mut stream = TcpStream::connect(node.http).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 4_096];
    let bytes = timeout(WITHIN, stream.read(&mut answer)).await.expect("an answer").expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..bytes]);
    assert!(answer.contains("value_too_large") && answer.contains("connection: close"), "before the body: {answer}");

    for _ in 0..5 {
        let mut stream = TcpStream::connect(node.redis).await.expect("a connection");
        let head = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${announced}\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&sent).await.expect("no reset while the client sends");
        let mut answer = Vec::new();
        timeout(WITHIN, stream.read_to_end(&mut answer)).await.expect("an end").expect("no reset");
        assert_eq!(String::from_utf8_lossy(&answer), "-ERR Protocol error: invalid bulk length\r\n");
    }
}

#[tokio::test]
async fn forged_join_tokens_are_refused_without_an_entry_in_the_log() {
    let cluster = start(1).await;
    let reply = client(&cluster, 1).create_token(&TokenRequest { ttl_ms: None, uses: Some(5) }).await.expect("a token");
    let genuine = JoinToken::parse(&reply.token).expect("a token");
    let forge = |id| JoinToken::mint(genuine.cluster(), genuine.fingerprint(), id, &mut rand::rng()).to_string();
    for (token, reason) in [(forge(genuine.id()), "secret"), (forge(TokenId(7)), "token")] {
        eventually("a join that is refused and proposes nothing", async || {
            let before = metadata_index(&cluster).await;
            let log = refused_join(&cluster, &token).await;
            assert!(log.contains("refused to admit this node") && log.contains(reason), "{log}");
            let after = metadata_index(&cluster).await;
            // Something else may have been proposed meanwhile.
            if after == before { Ok(()) } else { Err(format!("{} entries", after - before)) }
        })
        .await;
    }
    assert_eq!(status(&cluster, 1).await.nodes.len(), 1);
}

/// Connections that each send `first`, then `repeated` some times, and then nothing more; with what they are
/// answered until they are closed.
fn attack(at: SocketAddr, connections: usize, first: &[u8], repeated: &[u8], times: usize) -> Vec<JoinHandle<Vec<u8>>> {
    let request = |first: Vec<u8>, repeated: Vec<u8>| async move {
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        let (mut receive, mut send) = stream.split();
        let write = async {
            send.write_all(&first).await?;
            for _ in 0..times {
                send.write_all(&repeated).await?;
            }
            std::future::pending::<std::io::Result<()>>().await
        };
        let mut answer = Vec::new();
        tokio::select! {
            Err(_) = write => {}
            _ = receive.read_to_end(&mut answer) => {}
        }
        answer
    };
    (0..connections).map(|_| tokio::spawn(request(first.to_vec(), repeated.to_vec()))).collect()
}

/// Waits until the node has closed one of these connections.
async fn wait_closed(attackers: &[JoinHandle<Vec<u8>>]) {
    eventually("an attacker's connection is closed", async || {
        if attackers.iter().any(JoinHandle::is_finished) { Ok(()) } else { Err("none has ended".to_owned()) }
    })
    .await;
}

/// Ends the others; at least one must have read why it was closed.
async fn assert_some_refused(attackers: Vec<JoinHandle<Vec<u8>>>) {
    let mut answers = Vec::new();
    for attacker in attackers {
        if attacker.is_finished() {
            answers.push(String::from_utf8_lossy(&attacker.await.expect("no panic")).into_owned());
        } else {
            attacker.abort();
        }
    }
    assert!(answers.iter().any(|answer| answer.contains("-TRYAGAIN")), "no error was read: {answers:?}");
}

/// The index up to which the metadata group has applied its log.
async fn metadata_index(cluster: &Cluster) -> u64 {
    let shards = status(cluster, 1).await.shards;
    let metadata = shards.into_iter().find(|shard| shard.collection.is_none()).expect("the metadata group");
    metadata.local.expect("a replica").applied
}

/// The log of a node that tries to join with this token and is refused.
async fn refused_join(cluster: &Cluster, token: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::new(folder.path(), 9, Ports::free(1).expect("free ports")[0]);
    let start = Start::Join { peers: &[cluster.quic(1).expect("a node")], token };
    let child = command(&binary(), &node, start).expect("a log").spawn().expect("a process");
    assert_eq!(wait_exit(child).await.code(), Some(1));
    std::fs::read_to_string(&node.log).expect("a log")
}

/// Sends a request, and returns the answer up to the close by the other side.
async fn request(at: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(WITHIN, stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The most memory that node 1 has had.
fn peak_bytes(cluster: &Cluster) -> u64 {
    cluster.peak_memory_bytes(1).expect("a running node")
}
