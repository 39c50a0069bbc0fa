//! A node that lost its whole data folder.

use std::process::Child;

use flotilla_api::{Event, NodeState};
use flotilla_local_cluster::{Cluster, Node, Ports, Start, What, command};

use flotilla_tests::support::{
    Workload, binary, client, eventually, log, start, status, wait_caught_up, wait_exit, wait_whole,
};

/// Exit code of a start that failed.
const FAILED: i32 = 1;
/// How often one node may report the failure of a node that failed once, and whose ghost came by.
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
    let load = Workload::warm(&cluster.http_all()).await;
    let old = status(&cluster, victim).await.node;
    cluster.kill(victim).expect("a running node");
    cluster.backup(victim).expect("data");
    cluster.wipe(victim, What::All).expect("data");

    // Without a token it is nobody.
    let node = cluster.node(victim).expect("a node").clone();
    let child = command(&binary(), &node, Start::Resume).expect("a log").spawn().expect("a process");
    assert_eq!(wait_exit(child).await.code(), Some(FAILED));
    let said = log(&cluster, victim);
    assert!(said.contains("holds no identity") && said.contains("--join"), "{said}");
    cluster.wipe(victim, What::All).expect("what the vain start left");

    cluster.start_node(victim).await.expect("a start as a new node");
    cluster.wait_node(victim).await.expect("a ready node");
    let new = status(&cluster, victim).await.node;
    assert_ne!(new, old, "ids are never reused");
    wait_whole(&cluster, &[1, 2, 3]).await;
    load.more(100).await;

    // The old folder turns up again, at another address.
    let ghost = Ghost::start(&cluster, victim);
    eventually("the old identity is refused", async || {
        let said = std::fs::read_to_string(&ghost.node.log).map_err(|error| error.to_string())?;
        if said.contains("was removed from the cluster") { Ok(()) } else { Err("it says nothing of it".to_owned()) }
    })
    .await;
    load.more(100).await;
    for i in &others {
        let status = status(&cluster, *i).await;
        let record = status.nodes.iter().find(|found| found.id == old);
        assert!(record.is_none_or(|record| record.state == NodeState::Lost), "{record:?}");
        assert!(record.is_none_or(|record| record.replicas == 0 && record.leaders == 0), "{record:?}");
        // Gone means gone: members do not tell each other of it over and over.
        let events = client(&cluster, *i).recent_events().await.expect("events");
        let about = |event: &&Event| event.detail.get("node") == Some(&old.to_string()) && event.kind == "node_failed";
        let failed = events.iter().filter(about).count();
        assert!(failed <= FAILURES_MAX, "node {i} reports {failed} times that {old} has failed");
    }
    drop(ghost);

    let history = load.finish().await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    wait_caught_up(&cluster, victim, others[0]).await;
    history.verify(&client(&cluster, victim)).await;
}

/// A process on the old folder, with ports of its own.
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
