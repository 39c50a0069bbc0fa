//! A majority of nodes is down.

use std::time::Duration;

use flotilla_api::ProblemType;
use flotilla_client::{Client, ClientError, ClientOptions, PutOptions};

use flotilla_tests::support::{Workload, client, eventually, start, status, wait_replicated};

/// Deadline of calls that cannot succeed.
const DEADLINE: Duration = Duration::from_millis(1_000);
/// Calls of each kind.
const CALLS: usize = 3;

#[tokio::test]
async fn a_minority_returns_typed_errors_within_the_deadline_and_still_serves_status() {
    let mut cluster = start(3).await;
    let load = Workload::start_warm(&cluster).await;
    let history = load.finish().await;
    cluster.kill(2).expect("a running node");
    cluster.kill(3).expect("a running node");

    let mut options = ClientOptions::new([cluster.http(1).expect("a node")]);
    options.timeout = DEADLINE;
    let survivor = Client::new(options).expect("a client");
    for number in 0..CALLS {
        let key = format!("minority/{number}");
        let put = survivor.put("default", key.as_bytes(), "x".into(), &PutOptions::default()).await;
        assert_refused("a put", put, &[ProblemType::OutcomeUnknown]);
        assert_refused("an add", survivor.add("default", key.as_bytes(), 1).await, &[ProblemType::OutcomeUnknown]);
        assert_refused("a read", survivor.get("default", key.as_bytes()).await, &[]);
    }
    eventually("the surviving node reports that there is no quorum", async || {
        let status = survivor.status().await.expect("a status without a quorum");
        let serves = status.quorum || status.available_shards > 0 || status.failures_survivable > 0;
        if serves || status.health.ok { Err(format!("{:?}: {}", status.health, status.redundancy())) } else { Ok(()) }
    })
    .await;
    assert_eq!(status(&cluster, 1).await.nodes.len(), 3);

    cluster.start_node(2).await.expect("a start on its data");
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    history.verify(&client(&cluster, 1)).await;
    client(&cluster, 1).put("default", b"after", "x".into(), &PutOptions::default()).await.expect("a put");
}

/// Checks that the node itself refused, within its deadline: a client that gives up reports another error.
fn assert_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, ClientError>, also: &[ProblemType]) {
    let refusals = [ProblemType::Unavailable, ProblemType::DeadlineExceeded];
    let kind = answer.as_ref().err().and_then(ClientError::problem).map(|problem| problem.kind);
    let is_typed = kind.is_some_and(|kind| refusals.contains(&kind) || also.contains(&kind));
    assert!(is_typed, "{what} without a quorum: {answer:?}");
}
