//! A node that lost its data folder.

use std::process::Child;

use flotilla_api::{Event, NodeState};
use flotilla_local_cluster::{Cluster, Node, Ports, Start, WipeScope, command};

use flotilla_tests::support::{
    Workload, binary, client, eventually, log, start, status, wait_caught_up, wait_exit, wait_replicated,
};

/// Exit code of a start that failed.
const FAILED: i32 = 1;
/// How often a node may report a failure of the removed node, which failed once and whose old folder is
/// started once.
const FAILURES_MAX: usize = 3;

#[tokio::test]
async fn a_wiped_node_is_refused_under_its_old_identity_and_rejoins_with_a_token_as_a_new_node() {
    wipe_and_rejoin(3).await;
}

#[tokio::test]
async fn the_wiped_first_node_rejoins_with_a_token_as_a_new_node() {
    wipe_and_rejoin(1).await;
}

async fn wipe_and_rejoin(victim: usize) {
    let mut cluster = start(3).await;
    let others: Vec<usize> = (1..=3).filter(|i| *i != victim).collect();
    let load = Workload::start_warm(&cluster).await;
    let old = status(&cluster, victim).await.node;
    cluster.kill(victim).expect("a running node");
    cluster.backup(victim).expect("data");
    cluster.wipe(victim, WipeScope::All).expect("data");

    // Without data and without a token it cannot start.
    let node = cluster.node(victim).expect("a node").clone();
    let child = command(&binary(), &node, Start::Resume).expect("a log").spawn().expect("a process");
    assert_eq!(wait_exit(child).await.code(), Some(FAILED));
    let log = log(&cluster, victim);
    assert!(log.contains("holds no identity") && log.contains("--join"), "{log}");
    cluster.wipe(victim, WipeScope::All).expect("leftovers of the failed start");

    cluster.start_node(victim).await.expect("a start as a new node");
    cluster.wait_node(victim).await.expect("a ready node");
    let new = status(&cluster, victim).await.node;
    assert_ne!(new, old, "ids are never reused");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    load.wait_acknowledged(100).await;

    // A node starts on the old folder, at another address.
    let ghost = Ghost::start(&cluster, victim);
    eventually("the old identity is refused", async || {
        let log = std::fs::read_to_string(&ghost.node.log).map_err(|error| error.to_string())?;
        if log.contains("was removed from the cluster") { Ok(()) } else { Err("not in its log".to_owned()) }
    })
    .await;
    load.wait_acknowledged(100).await;
    for i in &others {
        let status = status(&cluster, *i).await;
        let record = status.nodes.iter().find(|found| found.id == old);
        assert!(record.is_none_or(|record| record.state == NodeState::Lost), "{record:?}");
        assert!(record.is_none_or(|record| record.replicas == 0 && record.leaders == 0), "{record:?}");
        // Removal is final: members do not keep gossiping about the removed node.
        let events = client(&cluster, *i).recent_events().await.expect("events");
        let is_failure =
            |event: &&Event| event.detail.get("node") == Some(&old.to_string()) && event.kind == "node_failed";
        let failures = events.iter().filter(is_failure).count();
        assert!(failures <= FAILURES_MAX, "node {i} reports {failures} times that {old} has failed");
    }
    drop(ghost);

    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    wait_caught_up(&cluster, victim, others[0]).await;
    history.verify(&client(&cluster, victim)).await;
}

/// A process on the old folder, with its own ports.
struct Ghost {
    node: Node,
    child: Child,
}

impl Ghost {
    fn start(cluster: &Cluster, victim: usize) -> Self {
        let old = cluster.node(victim).expect("a node").data_dir.with_extension("backup");
        let ports = Ports::free(1).expect("free ports");
        let mut node = Node::new(old.parent().expect("the cluster's folder"), 9, ports[0]);
        node.data_dir = old;
        // A node keeps its name for good.
        node.name.clone_from(&cluster.node(victim).expect("a node").name);
        let child = command(&binary(), &node, Start::Resume).expect("a log").spawn().expect("a process");
        Self { node, child }
    }
}

impl Drop for Ghost {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
