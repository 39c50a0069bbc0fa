//! Objects that rot while their node runs: the scrub finds them, and peers repair them.

use std::{fs, os::unix::fs::FileExt, path::PathBuf, process::Command};

use flotilla_api::{NodeState, ProblemType, ScrubReport, ScrubState, Verdict};
use flotilla_client::PutOptions;
use flotilla_local_cluster::Cluster;

use flotilla_tests::support::{
    SMALL_LIMITS, Workload, binary, checkpoints, client, eventually, metrics, start_with, status, wait_checkpoints,
    wait_replicated,
};

/// Bytes between two flipped ones: every object of some size is hit.
const FLIP_EVERY: usize = 256;
/// Before the first record of a segment ends its header.
const HEADERS_BYTES: usize = 200;

/// A cluster whose passes begin only when they are asked for.
async fn start_cluster(nodes: usize) -> Cluster {
    start_with(nodes, &[&SMALL_LIMITS[..], &["--scrub-pause", "0s"]].concat()).await
}

fn segments(cluster: &Cluster, i: usize) -> Vec<PathBuf> {
    let folder = cluster.node(i).expect("a node").data_dir.join("state/objects");
    fs::read_dir(folder).expect("objects").map(|file| file.expect("a file").path()).collect()
}

/// Flips bits in all segments of a running node.
fn rot(cluster: &Cluster, i: usize) {
    for path in segments(cluster, i) {
        // It may be collected meanwhile.
        let Ok(file) = fs::File::options().read(true).write(true).open(&path) else { continue };
        let len = file.metadata().expect("an open file").len() as usize;
        for at in (HEADERS_BYTES..len).step_by(FLIP_EVERY) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).expect("a byte");
            file.write_all_at(&[byte[0] ^ 0x10], at as u64).expect("a byte");
        }
    }
}

/// Runs `flotilla scrub` with these arguments against a node.
fn scrub(cluster: &Cluster, i: usize, arguments: &[&str]) -> ScrubReport {
    let mut command = Command::new(binary());
    command.args(["scrub", "-o", "json", "--addr", &cluster.http(i).expect("a node")]).args(arguments);
    let output = command.output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// The damaged objects that each node's scrub has found, in the order in which the nodes are numbered here.
async fn damaged_objects(cluster: &Cluster, report: &ScrubReport) -> Vec<u64> {
    let mut found = Vec::new();
    for i in 1..=cluster.len() {
        let id = status(cluster, i).await.node;
        found.extend(report.nodes.iter().find(|node| node.node == id).map(|node| node.objects_damaged));
    }
    found
}

async fn wait_whole(cluster: &Cluster) {
    eventually("every replica is whole", async || {
        let report = client(cluster, 1).scrub().await.map_err(|error| error.to_string())?;
        let whole = report.silent.is_empty() && report.nodes.iter().all(|node| node.damaged.is_empty());
        if whole { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
    wait_replicated(cluster, &[1, 2, 3]).await;
}

fn compare(cluster: &Cluster) {
    let addresses: Vec<_> = (1..=3).map(|i| cluster.http(i).expect("a node")).collect();
    let mut command = Command::new(binary());
    command.args(["digests", "--records", "-o", "json", "--wait", "60s", "--addr"]).arg(addresses.join(","));
    let output = command.output().expect("a process");
    let report: flotilla_api::DigestReport = serde_json::from_slice(&output.stdout).expect("a report");
    assert!(report.shards.iter().all(|shard| shard.verdict == Verdict::Equal), "{report:?}");
}

async fn events_of(cluster: &Cluster, i: usize, kind: &str) -> usize {
    let events = client(cluster, i).recent_events().await.expect("events");
    events.iter().filter(|event| event.kind == kind).count()
}

async fn fill(cluster: &Cluster) {
    for key in 0..200_u32 {
        let value = vec![b'v'; 1_000].into();
        client(cluster, 1)
            .put("default", format!("fill/{key}").as_bytes(), value, &PutOptions::default())
            .await
            .expect("a put");
    }
}

#[tokio::test]
async fn objects_that_rot_under_load_are_found_and_repaired_and_no_write_is_lost() {
    let cluster = start_cluster(3).await;
    let load = Workload::start_warm(&cluster).await;
    fill(&cluster).await;
    wait_checkpoints(&cluster, 2).await;
    rot(&cluster, 2);
    let report = scrub(&cluster, 1, &["--now", "--wait"]);
    assert_eq!(report.nodes.len(), 3);
    let found = damaged_objects(&cluster, &report).await;
    assert!(found[0] == 0 && found[1] > 0 && found[2] == 0, "{found:?}");
    assert!(report.nodes.iter().all(|node| node.passes == 1 && node.state == ScrubState::OnDemand), "{report:?}");
    load.wait_acknowledged(100).await;
    wait_whole(&cluster).await;
    let history = load.finish().await;
    compare(&cluster);
    history.verify(&client(&cluster, 2)).await;
    // What was damaged and is needed no more may be there still; what is needed is intact.
    let again = scrub(&cluster, 3, &["--now", "--wait"]);
    assert!(again.nodes.iter().all(|node| node.damaged.is_empty()), "{again:?}");
    let counted = metrics(&cluster, 2).await.expect("an answer");
    for name in ["flotilla_scrub_bytes_total", "flotilla_scrub_objects_damaged_total"] {
        let value = counted.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{name} is {value:?}");
    }
    assert!(counted.contains("flotilla_scrub_last_pass_timestamp_seconds"), "{counted}");
}

/// Two of three replicas of every shard are damaged at once: giving up both would cost the quorum.
#[tokio::test]
async fn rot_on_two_of_three_nodes_costs_no_quorum() {
    let cluster = start_cluster(3).await;
    let load = Workload::start_warm(&cluster).await;
    fill(&cluster).await;
    wait_checkpoints(&cluster, 1).await;
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in [2, 3] {
        rot(&cluster, i);
    }
    let report = scrub(&cluster, 1, &["--now", "--wait"]);
    let found = damaged_objects(&cluster, &report).await;
    assert!(found[0] == 0 && found[1] > 0 && found[2] > 0, "{found:?}");
    // Writes are taken all the time.
    let writer = client(&cluster, 1);
    let writes = async {
        for key in 0.. {
            let (key, options) = (format!("meanwhile/{key}"), PutOptions::default());
            writer.put("default", key.as_bytes(), "v".into(), &options).await.expect("a quorum");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = writes => unreachable!("writes go on"),
        () = wait_whole(&cluster) => {}
    }
    for i in [2, 3] {
        let (damaged, repaired) =
            (events_of(&cluster, i, "replica_damaged").await, events_of(&cluster, i, "replica_repaired").await);
        assert!(damaged > 0 && damaged == repaired, "{damaged} damaged, {repaired} repaired");
        assert_eq!(events_of(&cluster, i, "replica_failed").await, 0, "no replica was abandoned");
    }
    compare(&cluster);
    history.verify(&client(&cluster, 2)).await;
}

#[tokio::test]
async fn a_damaged_replica_without_a_peer_is_kept_and_the_status_says_so() {
    let cluster = start_cluster(1).await;
    fill(&cluster).await;
    eventually("checkpoints", async || {
        let reached = checkpoints(&status(&cluster, 1).await);
        if reached.values().all(|index| *index > 20) { Ok(()) } else { Err(format!("{reached:?}")) }
    })
    .await;
    assert_eq!(scrub(&cluster, 1, &[]).nodes[0].passes, 0, "none was asked for");
    rot(&cluster, 1);
    let report = scrub(&cluster, 1, &["--now", "--wait"]);
    assert!(damaged_objects(&cluster, &report).await[0] > 0);
    let problems = eventually("the status says so", async || {
        let health = status(&cluster, 1).await.health;
        let named = health.reasons.iter().any(|reason| reason.contains("there is no other replica"));
        if named { Ok(health.reasons) } else { Err(format!("{health:?}")) }
    })
    .await;
    // New writes are taken and read, what is damaged is an error, and nothing is given up.
    client(&cluster, 1).put("default", b"new", "value".into(), &PutOptions::default()).await.expect("a put");
    let found = client(&cluster, 1).get("default", b"new").await.expect("a read");
    assert_eq!(found.map(|found| found.value), Some("value".into()), "{problems:?}");
    let mut refusal = None;
    for key in 0..200_u32 {
        if let Err(error) = client(&cluster, 1).get("default", format!("fill/{key}").as_bytes()).await {
            refusal = error.problem().map(|problem| problem.kind);
            break;
        }
    }
    assert_eq!(refusal, Some(ProblemType::Damaged));
    let now = status(&cluster, 1).await;
    assert!(now.nodes.iter().all(|node| node.state == NodeState::Active) && now.available_shards == now.shards_total);
    assert_eq!(events_of(&cluster, 1, "replica_failed").await, 0);
    assert!(scrub(&cluster, 1, &[]).nodes[0].damaged.iter().all(|damaged| !damaged.repairable));
}
