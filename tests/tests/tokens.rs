//! Who is let in, and who is not.

use std::time::{Duration, Instant};

use flotilla_api::TokenRequest;
use flotilla_local_cluster::{Cluster, Node, Ports, Start, command};

use flotilla_tests::support::{binary, client, eventually, start, status, wait_exit};

/// Exit code of a start that failed.
const FAILED: i32 = 1;
/// Longer than it takes to make a token.
const SHORT: Duration = Duration::from_secs(1);

/// What became of a node that tried to join.
struct Attempt {
    code: Option<i32>,
    said: String,
}

/// Starts a node with this token, and waits until it gives up.
async fn try_to_join(cluster: &Cluster, token: &str) -> Attempt {
    let folder = tempfile::tempdir().expect("a folder");
    let ports = Ports::free(1).expect("free ports");
    let node = Node::new(folder.path(), 9, ports[0]);
    let start = Start::Join { peers: &[cluster.quic(1).expect("a node")], token };
    let child = command(&binary(), &node, start).expect("a log").spawn().expect("a process");
    let code = wait_exit(child).await.code();
    Attempt { code, said: std::fs::read_to_string(&node.log).expect("a log") }
}

async fn token(cluster: &Cluster, ttl: Duration, uses: u32) -> String {
    let wanted = TokenRequest { ttl_ms: Some(ttl.as_millis() as u64), uses: Some(uses) };
    client(cluster, 1).create_token(&wanted).await.expect("a token").token
}

#[tokio::test]
async fn tokens_that_are_expired_used_up_foreign_or_malformed_are_refused() {
    let cluster = start(1).await;
    let minute = Duration::from_secs(60);
    let refused = async |token: &str, why: &str| {
        let attempt = try_to_join(&cluster, token).await;
        assert_eq!(attempt.code, Some(FAILED), "{}", attempt.said);
        assert!(attempt.said.contains(why), "`{why}` is not in:\n{}", attempt.said);
    };

    refused("flt1.nonsense", "join token is malformed").await;
    let good = token(&cluster, minute, 1).await;
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let typo = format!("{}{other}{}", &good[..middle], &good[middle + 1..]);
    refused(&typo, "join token is malformed").await;

    let short = token(&cluster, SHORT, 1).await;
    let made = Instant::now();
    eventually("the token's time is over", async || {
        if made.elapsed() > SHORT { Ok(()) } else { Err(format!("{:?} left", SHORT - made.elapsed())) }
    })
    .await;
    refused(&short, "expired").await;

    assert_eq!(status(&cluster, 1).await.nodes.len(), 1, "somebody was let in");
    // The last use goes to a real node.
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::new(folder.path(), 2, Ports::free(1).expect("free ports")[0]);
    let start = Start::Join { peers: &[cluster.quic(1).expect("a node")], token: &good };
    let mut child = command(&binary(), &node, start).expect("a log").spawn().expect("a process");
    eventually("the node is let in", async || {
        let known = status(&cluster, 1).await.nodes.len();
        if known == 2 { Ok(()) } else { Err(format!("{known} nodes")) }
    })
    .await;
    child.kill().expect("a running process");
    child.wait().expect("an ended process");
    refused(&good, "used up").await;
    assert_eq!(status(&cluster, 1).await.nodes.len(), 2, "somebody was let in");
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    let (ours, theirs) = (start(1).await, start(1).await);
    let foreign = token(&theirs, Duration::from_secs(60), 1).await;
    let attempt = try_to_join(&ours, &foreign).await;
    assert_eq!(attempt.code, Some(FAILED), "{}", attempt.said);
    assert_eq!(status(&ours, 1).await.nodes.len(), 1);
}

#[tokio::test]
async fn joining_without_a_token_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::new(folder.path(), 9, Ports::free(1).expect("free ports")[0]);
    let mut command = command(&binary(), &node, Start::Resume).expect("a log");
    command.arg("--join").arg("127.0.0.1:1");
    let code = wait_exit(command.spawn().expect("a process")).await.code();
    let said = std::fs::read_to_string(&node.log).expect("a log");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--token"), "{said}");
}
