//! Nodes that move, that are found by name, that show the address of another one, or that were removed.

use std::process::{Child, Command};

use flotilla_api::{Liveness, NodeState};
use flotilla_local_cluster::{Cluster, Node, Ports, STOP_WITHIN, Start, command, token};

use flotilla_tests::support::{
    Workload, binary, client, eventually, log, start, status, wait_exit, wait_liveness, wait_replicated,
};

/// Exit code of a node that was removed from the cluster.
const REMOVED: i32 = 77;
/// Exit code of a start with flags that do not fit.
const USAGE: i32 = 2;

#[tokio::test]
async fn a_cluster_whose_nodes_all_have_other_addresses_comes_back_from_one_hint() {
    let mut cluster = start(5).await;
    let load = Workload::start_warm(&cluster).await;
    let history = load.finish().await;
    for i in 1..=5 {
        cluster.kill(i).expect("a running node");
    }
    let before: Vec<_> = (1..=5).map(|i| cluster.quic(i).expect("a node")).collect();
    for i in 1..=5 {
        cluster.move_node(i).expect("free ports");
    }
    let after: Vec<_> = (1..=5).map(|i| cluster.quic(i).expect("a node")).collect();
    assert!(before.iter().all(|address| !after.contains(address)), "{before:?} {after:?}");
    // All know one, which need not be a voter of the metadata group.
    for i in 1..=5 {
        cluster.start_among(i, &after[4..]).expect("a start on its data");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    wait_replicated(&cluster, &[1, 2, 3, 4, 5]).await;
    history.verify(&client(&cluster, 2)).await;
    for i in 1..=5 {
        eventually("the new addresses are in the metadata", async || {
            let nodes = status(&cluster, i).await.nodes;
            let missing = after.iter().find(|at| !nodes.iter().any(|node| node.quic == at.to_string()));
            missing.map_or(Ok(()), |at| Err(format!("{at} is missing: {nodes:?}")))
        })
        .await;
    }
    // From now on they need no hint.
    cluster.kill(1).expect("a running node");
    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_node(1).await.expect("a ready node");
}

#[tokio::test]
async fn a_node_that_moved_alone_is_found_by_all_without_a_hint() {
    let mut cluster = start(3).await;
    let id = status(&cluster, 3).await.node;
    cluster.kill(3).expect("a running node");
    cluster.move_node(3).expect("free ports");
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_node(3).await.expect("a ready node");
    for i in [1, 2] {
        wait_liveness(&cluster, i, id, Liveness::Alive).await;
        let moved = cluster.quic(3).expect("a node").to_string();
        eventually("its new address is known", async || {
            let status = status(&cluster, i).await;
            let known = status.nodes.into_iter().find(|node| node.id == id).map(|node| node.quic);
            if known.as_ref() == Some(&moved) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
    }
    wait_replicated(&cluster, &[1, 2, 3]).await;
}

#[tokio::test]
async fn a_node_is_reached_by_its_name() {
    let cluster = start(1).await;
    let mut node = extra_node(&cluster);
    // Clusters of tests have loopback addresses of their own; this is the one that has a name.
    node.quic = ([127, 0, 0, 1], node.quic.port()).into();
    let token = token(&cluster.http(1).expect("a node"), &cluster.credentials(), 1).await.expect("a token");
    let name = format!("localhost:{}", node.quic.port());
    let peers = [cluster.quic(1).expect("a node")];
    let mut command = command(&binary(), &node, Start::Join { peers: &peers, token: &token }).expect("a log");
    command.args(["--advertise", &name]);
    let _guard = Running::start(&mut command);
    eventually("both reach each other", async || {
        let status = status(&cluster, 1).await;
        let found = status.nodes.iter().find(|node| node.quic == name);
        let found = found.ok_or_else(|| format!("no node is at {name}"))?;
        if found.liveness == Liveness::Alive { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_live_node_is_not_displaced_by_one_that_shows_its_address() {
    let cluster = start(3).await;
    let (id, taken) = (status(&cluster, 2).await.node, cluster.quic(2).expect("a node"));
    let node = Node { advertise: Some(taken), ..extra_node(&cluster) };
    let token = token(&cluster.http(1).expect("a node"), &cluster.credentials(), 1).await.expect("a token");
    let peers: Vec<_> = (1..=3).map(|i| cluster.quic(i).expect("a node")).collect();
    let mut command = command(&binary(), &node, Start::Join { peers: &peers, token: &token }).expect("a log");
    let _guard = Running::start(&mut command);
    eventually("the joining node is told why it has to wait", async || {
        let log = std::fs::read_to_string(&node.log).map_err(|error| error.to_string())?;
        let told = log.contains(&format!("{id} (n2) is at this address")) && log.contains("--advertise");
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    for i in 1..=3 {
        let nodes = status(&cluster, i).await.nodes;
        assert!(nodes.len() == 3 && nodes.iter().all(|node| node.state == NodeState::Active), "{nodes:?}");
    }
}

#[tokio::test]
async fn every_address_of_a_machine_is_not_announced() {
    let cluster = start(1).await;
    let node = extra_node(&cluster);
    let mut command = Command::new(binary());
    command.args(["start", "--listen", "0.0.0.0:0", "--data-dir"]).arg(&node.data_dir);
    let output = command.output().expect("a process");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.contains("--advertise")), (Some(USAGE), true), "{text}");
    assert!(!node.data_dir.exists(), "nothing was founded");
}

#[tokio::test]
async fn a_removed_node_says_so_and_ends_with_its_own_exit_code() {
    let mut cluster = start(3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let id = status(&cluster, 3).await.node;
    client(&cluster, 1).remove_node(id, true).await.expect("a removal");
    // While it runs, and again at each start on the same data.
    assert_eq!(cluster.wait_exit(3, STOP_WITHIN).await.expect("an exit").code(), Some(REMOVED));
    assert_eq!(log(&cluster, 3).matches("was removed from the cluster").count(), 1);
    cluster.start_node(3).await.expect("a process");
    assert_eq!(cluster.wait_exit(3, STOP_WITHIN).await.expect("an exit").code(), Some(REMOVED));
    let log = log(&cluster, 3);
    let told = log.lines().last().is_some_and(|_| log.contains(&format!("{id} (n3) was removed from the cluster")));
    assert!(told && log.contains("start it with --join and a new token"), "{log}");
}

#[tokio::test]
async fn a_node_keeps_its_name_and_a_taken_port_founds_no_cluster() {
    let mut cluster = start(1).await;
    let running = cluster.node(1).expect("a node").clone();
    let fresh = Node { http: running.http, ..extra_node(&cluster) };
    let mut command = command(&binary(), &fresh, Start::Bootstrap).expect("a log");
    assert_eq!(wait_exit(command.spawn().expect("a process")).await.code(), Some(1));
    assert!(!fresh.data_dir.join("identity.json").exists(), "its port is taken, so it founded nothing");

    cluster.kill(1).expect("a running node");
    let renamed = Node { name: "other".to_owned(), ..running };
    let mut command = flotilla_local_cluster::command(&binary(), &renamed, Start::Resume).expect("a log");
    assert_eq!(wait_exit(command.spawn().expect("a process")).await.code(), Some(USAGE));
    assert!(log(&cluster, 1).contains("n1 is named n1 since it joined, and --name other cannot change that"));
}

/// A node with ports of its own, in the folder of the cluster, which does not start it.
fn extra_node(cluster: &Cluster) -> Node {
    let first = cluster.node(1).expect("a node");
    let ports = Ports::free(1).expect("free ports");
    Node::new(first.data_dir.parent().expect("the cluster's folder"), 9, ports[0])
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("a process"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
