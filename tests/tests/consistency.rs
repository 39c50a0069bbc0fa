//! Replicas whose states no log explains: their leader finds them, and they are given up and replaced.

use std::{fs, process::Command};

use flotilla_api::{ConsistencyReport, DigestReport, ShardConsistency, Verdict};
use flotilla_local_cluster::Cluster;
use flotilla_types::ShardId;

use flotilla_tests::support::{
    SMALL_LIMITS, Workload, binary, client, eventually, start_with, status, wait_replicated,
};

/// Runs `flotilla digests` against a node; returns its exit code and report.
fn digests(cluster: &Cluster, i: usize) -> (Option<i32>, ConsistencyReport) {
    let mut command = Command::new(binary());
    command.args(["digests", "-o", "json", "--addr"]).arg(cluster.http(i).expect("a node"));
    let output = command.output().expect("a process");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

/// Compares all records of three nodes.
fn compare_records(cluster: &Cluster) -> DigestReport {
    let addresses: Vec<_> = (1..=3).map(|i| cluster.http(i).expect("a node")).collect();
    let mut command = Command::new(binary());
    command.args(["digests", "--records", "-o", "json", "--wait", "60s", "--addr"]).arg(addresses.join(","));
    let output = command.output().expect("a process");
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// The files of evidence that a node has. `remove` removes them.
fn evidence(cluster: &Cluster, i: usize, remove: bool) -> Vec<String> {
    let mut command = Command::new(binary());
    command.args(["evidence", "-o", "json", "--data-dir"]).arg(&cluster.node(i).expect("a node").data_dir);
    command.args(if remove { &["--remove", "all"][..] } else { &[] });
    let output = command.output().expect("a process");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    let files = report["files"].as_array().cloned().unwrap_or_default();
    files.iter().filter_map(|file| fs::read_to_string(file["path"].as_str()?).ok()).collect()
}

async fn wait_equal(cluster: &Cluster) {
    eventually("all replicas are found to be equal", async || match digests(cluster, 1) {
        (Some(0), report) if report.verdict == Verdict::Equal => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Waits until the records of all shards of clients were compared as well. Replicas that joined are copies of the
/// first one: before that, nobody could tell which of two is right.
async fn wait_proven(cluster: &Cluster) {
    eventually("the records are found to be equal", async || {
        let (_, report) = digests(cluster, 1);
        let is_proven = |shard: &ShardConsistency| {
            shard.verdict == Verdict::Equal && (shard.fold.is_some() || shard.shard == ShardId::META)
        };
        let proven = report.shards.iter().filter(|shard| is_proven(shard)).count();
        if proven > 1 && proven == report.shards.len() { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
}

async fn events_of(cluster: &Cluster, i: usize, kind: &str) -> Vec<String> {
    let events = client(cluster, i).recent_events().await.expect("events");
    events.iter().filter(|event| event.kind == kind).map(|event| format!("{:?}", event.detail)).collect()
}

#[tokio::test]
async fn a_replica_that_writes_something_else_is_found_and_replaced_and_no_write_is_lost() {
    let mut cluster = start_with(3, &SMALL_LIMITS).await;
    let load = Workload::start_warm(&cluster).await;
    wait_proven(&cluster).await;
    cluster.set_failpoints(2, "apply::flaw=1*return(1)").expect("settings");
    // Its replica is the only one that is ever given up.
    let mut codes = Vec::new();
    let mut problems = Vec::new();
    eventually("the replica is seen to differ, and given up", async || {
        codes.push(digests(&cluster, 1).0);
        for i in 1..=3 {
            let reasons = status(&cluster, i).await.health.reasons;
            problems.extend(reasons.into_iter().filter(|reason| reason.contains("different states")));
        }
        let given_up = events_of(&cluster, 2, "replica_quarantined").await;
        // The verdict stays until the shard is compared again.
        let is_seen = codes.contains(&Some(1)) && !problems.is_empty();
        if is_seen && !given_up.is_empty() { Ok(()) } else { Err(format!("{codes:?} {problems:?} {given_up:?}")) }
    })
    .await;
    wait_equal(&cluster).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_equal(&cluster).await;
    let mut differences = Vec::new();
    for i in 1..=3 {
        differences.extend(events_of(&cluster, i, "replicas_differ").await);
        let expected = usize::from(i == 2);
        assert_eq!(events_of(&cluster, i, "replica_quarantined").await.len(), expected, "on node {i}");
    }
    assert!(!differences.is_empty());
    let report = compare_records(&cluster);
    assert_eq!(report.verdict, Verdict::Equal, "{:?}", report.reasons);
    history.verify(&client(&cluster, 2)).await;
    // What it had is kept for an operator.
    let kept = evidence(&cluster, 2, false);
    let flaw: String = b"\xff flaw".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(kept.len() == 1 && kept[0].contains(&flaw) && kept[0].contains("\nend after "), "{} files", kept.len());
    assert_eq!(evidence(&cluster, 1, false), [""; 0]);
    evidence(&cluster, 2, true);
    assert_eq!(evidence(&cluster, 2, false), [""; 0]);
    // Nobody can speak for a node that is down.
    cluster.kill(3).expect("a running node");
    let (code, report) = digests(&cluster, 1);
    assert_eq!((code, report.verdict), (Some(4), Verdict::Inconclusive), "{report:?}");
}
