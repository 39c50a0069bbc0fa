//! What a cluster says about itself: availability, redundancy, and whether its replicas are equal.

use std::process::Command;

use flotilla_api::{ClusterStatus, DigestReport, Verdict};
use flotilla_client::PutOptions;
use flotilla_local_cluster::Cluster;

use flotilla_tests::support::{Workload, binary, client, eventually, start, status, wait_replicated};

/// Waits until node 1 reports what is expected while every shard is available.
async fn wait_redundancy(cluster: &Cluster, is_expected: impl Fn(&ClusterStatus) -> bool) {
    eventually("the expected redundancy", async || {
        let status = client(cluster, 1).status().await.map_err(|error| error.to_string())?;
        let is_available = status.shards_total > 0 && status.available_shards == status.shards_total;
        if is_available && is_expected(&status) { Ok(()) } else { Err(status.redundancy()) }
    })
    .await;
}

/// A shard has a voter on every node, so that none is complete without node 3.
fn has_no_redundancy(status: &ClusterStatus) -> bool {
    status.replicated_shards == 0 && status.failures_survivable == 0 && !status.health.ok
}

#[tokio::test]
async fn a_dead_node_costs_redundancy_and_not_availability() {
    let mut cluster = start(3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    cluster.kill(3).expect("a running node");
    wait_redundancy(&cluster, has_no_redundancy).await;
    cluster.wait_node(1).await.expect("a node that serves is ready");
    client(&cluster, 1).put("default", b"k", "v".into(), &PutOptions::default()).await.expect("a put");
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_node(3).await.expect("a ready node");
    wait_replicated(&cluster, &[1, 2, 3]).await;
}

#[tokio::test]
async fn a_node_removed_by_force_is_missed_until_another_one_replaces_it() {
    let mut cluster = start(3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let third = status(&cluster, 3).await.node;
    client(&cluster, 1).remove_node(third, true).await.expect("a removal");
    wait_redundancy(&cluster, has_no_redundancy).await;
    let reasons = status(&cluster, 1).await.health.reasons;
    assert!(reasons.iter().any(|reason| reason.contains(&format!("a voter on {third}"))), "{reasons:?}");
    cluster.kill(3).expect("a running node");
    let fourth = cluster.add_node().await.expect("one more node");
    cluster.wait_node(fourth).await.expect("a ready node");
    wait_replicated(&cluster, &[1, 2, fourth]).await;
}

/// What it survives and whether something is wrong are two facts.
#[tokio::test]
async fn a_cluster_that_is_too_small_for_redundancy_has_no_problem_until_a_node_is_down() {
    let is_small = |status: &ClusterStatus| status.replicated_shards == 0 && status.failures_survivable == 0;
    let mut cluster = start(1).await;
    wait_redundancy(&cluster, |status| is_small(status) && status.health.ok).await;
    let second = cluster.add_node().await.expect("one more node");
    cluster.wait_node(second).await.expect("a ready node");
    wait_redundancy(&cluster, |status| is_small(status) && status.health.ok && status.nodes.len() == 2).await;
    cluster.kill(second).expect("a running node");
    wait_redundancy(&cluster, |status| is_small(status) && !status.health.ok).await;
}

/// Runs `flotilla digests --records` against these nodes; returns its exit code and report.
fn digests(cluster: &Cluster, nodes: &[usize]) -> (Option<i32>, DigestReport) {
    let addresses: Vec<String> = nodes.iter().map(|i| cluster.http(*i).expect("a node")).collect();
    let mut command = Command::new(binary());
    command.args(["digests", "--records", "-o", "json", "--wait", "30s", "--addr"]).arg(addresses.join(","));
    let output = command.output().expect("a process");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

#[tokio::test]
async fn digests_pass_only_when_all_replicas_were_compared() {
    let mut cluster = start(3).await;
    Workload::start_warm(&cluster).await.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let (code, report) = digests(&cluster, &[1, 2, 3]);
    assert_eq!((code, report.verdict), (Some(0), Verdict::Equal), "{:?}", report.reasons);
    assert!(report.shards.iter().all(|shard| shard.verdict == Verdict::Equal && shard.applied.is_some()));
    let (code, report) = digests(&cluster, &[1]);
    assert_eq!((code, report.verdict), (Some(4), Verdict::Inconclusive), "one replica of each shard was read");
    cluster.kill(2).expect("a running node");
    let (code, report) = digests(&cluster, &[1, 2, 3]);
    assert_eq!((code, report.verdict), (Some(4), Verdict::Inconclusive), "a node did not answer");
    assert!(report.reasons.iter().any(|reason| reason.contains("did not answer")), "{:?}", report.reasons);
}
