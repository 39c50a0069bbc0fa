//! Join tokens: which nodes are admitted, and which are refused.

use std::time::{Duration, Instant};

use flotilla_api::TokenRequest;
use flotilla_local_cluster::{Cluster, Node, Ports, Start, command};

use flotilla_tests::support::{binary, client, eventually, start, status, wait_exit};

/// Exit code of a start that failed.
const FAILED: i32 = 1;
/// Lifetime of a token that expires soon, but not before it is returned.
const SHORT_TTL: Duration = Duration::from_secs(1);

/// The outcome of an attempt to join.
struct Attempt {
    code: Option<i32>,
    log: String,
}

/// Starts a node with this token, and waits until it exits.
async fn try_to_join(cluster: &Cluster, token: &str) -> Attempt {
    let folder = tempfile::tempdir().expect("a folder");
    let ports = Ports::free(1).expect("free ports");
    let node = Node::new(folder.path(), 9, ports[0]);
    let start = Start::Join { peers: &[cluster.quic(1).expect("a node")], token };
    let child = command(&binary(), &node, start).expect("a log").spawn().expect("a process");
    let code = wait_exit(child).await.code();
    Attempt { code, log: std::fs::read_to_string(&node.log).expect("a log") }
}

async fn token(cluster: &Cluster, ttl: Duration, uses: u32) -> String {
    let request = TokenRequest { ttl_ms: Some(ttl.as_millis() as u64), uses: Some(uses) };
    client(cluster, 1).create_token(&request).await.expect("a token").token
}

#[tokio::test]
async fn expired_used_up_and_malformed_tokens_are_refused() {
    let cluster = start(1).await;
    let minute = Duration::from_secs(60);
    let refused = async |token: &str, why: &str| {
        let attempt = try_to_join(&cluster, token).await;
        assert_eq!(attempt.code, Some(FAILED), "{}", attempt.log);
        assert!(attempt.log.contains(why), "`{why}` is not in:\n{}", attempt.log);
    };

    refused("flt1.nonsense", "join token is malformed").await;
    let good = token(&cluster, minute, 1).await;
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let typo = format!("{}{other}{}", &good[..middle], &good[middle + 1..]);
    refused(&typo, "join token is malformed").await;

    let short = token(&cluster, SHORT_TTL, 1).await;
    let created = Instant::now();
    eventually("the token expires", async || {
        if created.elapsed() > SHORT_TTL { Ok(()) } else { Err(format!("{:?} left", SHORT_TTL - created.elapsed())) }
    })
    .await;
    refused(&short, "expired").await;

    assert_eq!(status(&cluster, 1).await.nodes.len(), 1, "a refused node was admitted");
    // A node uses the token up.
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::new(folder.path(), 2, Ports::free(1).expect("free ports")[0]);
    let start = Start::Join { peers: &[cluster.quic(1).expect("a node")], token: &good };
    let mut child = command(&binary(), &node, start).expect("a log").spawn().expect("a process");
    eventually("the node is admitted", async || {
        let nodes = status(&cluster, 1).await.nodes.len();
        if nodes == 2 { Ok(()) } else { Err(format!("{nodes} nodes")) }
    })
    .await;
    child.kill().expect("a running process");
    child.wait().expect("an ended process");
    refused(&good, "used up").await;
    assert_eq!(status(&cluster, 1).await.nodes.len(), 2, "a refused node was admitted");
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    let (ours, theirs) = (start(1).await, start(1).await);
    let foreign = token(&theirs, Duration::from_secs(60), 1).await;
    let attempt = try_to_join(&ours, &foreign).await;
    assert_eq!(attempt.code, Some(FAILED), "{}", attempt.log);
    assert_eq!(status(&ours, 1).await.nodes.len(), 1);
}

#[tokio::test]
async fn joining_without_a_token_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::new(folder.path(), 9, Ports::free(1).expect("free ports")[0]);
    let mut command = command(&binary(), &node, Start::Resume).expect("a log");
    command.arg("--join").arg("127.0.0.1:1");
    let code = wait_exit(command.spawn().expect("a process")).await.code();
    let log = std::fs::read_to_string(&node.log).expect("a log");
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("--token"), "{log}");
}
