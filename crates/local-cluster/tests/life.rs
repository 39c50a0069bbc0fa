//! Starting, killing, wiping and restoring nodes, with a fake in place of the real binary.

use std::{fs, path::PathBuf};

use flotilla_local_cluster::{
    Cluster, ClusterError, ClusterOptions, Node, Ports, READY_WITHIN, Signal, Start, WipeScope, command, is_ready,
};

async fn cluster(nodes: usize) -> Cluster {
    Cluster::start(ClusterOptions::new(nodes, env!("CARGO_BIN_EXE_fake-node").into())).await.expect("a started cluster")
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_node_can_be_killed_started_wiped_and_restored() {
    current_thread().block_on(async {
        let mut cluster = cluster(3).await;
        assert!(is_ready(&cluster.http(2).expect("node 2"), &cluster.credentials()).await);
        assert!(matches!(cluster.wipe(2, WipeScope::All), Err(ClusterError::Running(2))));
        cluster.kill(2).expect("a running node");
        assert!(!is_ready(&cluster.http(2).expect("node 2"), &cluster.credentials()).await);
        assert!(matches!(cluster.kill(2), Err(ClusterError::NoNode(2))));
        // The fake refuses to start if the command line does not match the state of the data folder.
        cluster.backup(2).expect("data");
        cluster.wipe(2, WipeScope::View).expect("a view");
        cluster.start_node(2).await.expect("a start on its data");
        cluster.wait_ready().await.expect("a whole cluster");
        cluster.kill(2).expect("a running node");
        cluster.wipe(2, WipeScope::All).expect("data");
        cluster.start_node(2).await.expect("a start as a new node");
        cluster.wait_ready().await.expect("a whole cluster");
        cluster.stop(2).await.expect("a running node");
        cluster.restore(2).expect("a backup");
        cluster.start_node(2).await.expect("a start on the old data");
        assert_eq!(cluster.add_node().await.expect("one more node"), 4);
        cluster.wait_ready().await.expect("a whole cluster");
        assert!(matches!(cluster.start_node(4).await, Err(ClusterError::Running(4))));
    });
}

#[test]
fn a_paused_node_responds_again_after_it_is_resumed() {
    current_thread().block_on(async {
        let mut cluster = cluster(1).await;
        cluster.pause(1).expect("a running node");
        assert!(!is_ready(&cluster.http(1).expect("node 1"), &cluster.credentials()).await);
        cluster.resume(1).expect("a running node");
        cluster.wait_node(1).await.expect("a ready node");
        // Dropping the cluster kills a paused node as well.
        cluster.signal(1, Signal::Stop).expect("a running node");
    });
}

#[test]
fn dropping_a_cluster_kills_its_nodes_and_deletes_its_folder() {
    let (node, folder): (Node, PathBuf) = current_thread().block_on(async {
        let cluster = cluster(2).await;
        let node = cluster.node(2).expect("node 2").clone();
        assert!(node.is_running());
        let folder = node.data_dir.parent().expect("the cluster's folder").to_owned();
        (node, folder)
    });
    assert!(!node.is_running() && !folder.exists());
}

#[test]
fn waiting_for_a_node_that_exits_fails_with_its_log() {
    current_thread().block_on(async {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // The fake refuses to bootstrap because it finds data.
        fs::create_dir(dir.path().join("n1")).expect("a writable folder");
        let mut options = ClusterOptions::new(1, env!("CARGO_BIN_EXE_fake-node").into());
        options.dir = Some(dir.path().to_owned());
        match Cluster::start(options).await {
            Err(ClusterError::Exited { name, tail, .. }) => {
                assert_eq!((name.as_str(), tail.as_str()), ("n1", "new data: false, may be new: true"));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_process_is_recognised_by_its_data_folder() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ports = Ports::free(1).expect("free ports")[0];
    let mut node = Node::new(dir.path(), 1, ports);
    let binary = env!("CARGO_BIN_EXE_fake-node").as_ref();
    let mut child = command(binary, &node, Start::Bootstrap).expect("a log").spawn().expect("a process");
    node.pid = child.id();
    assert!(node.is_running(), "a process whose arguments are not set yet counts as running");
    let start = std::time::Instant::now();
    while !node.data_dir.exists() {
        assert!(start.elapsed() < READY_WITHIN, "the fake does not start");
        std::thread::yield_now();
    }
    assert!(node.is_running());
    let other = Node { data_dir: dir.path().join("n2"), ..node.clone() };
    assert!(!other.is_running());
    Signal::Kill.send(node.pid).expect("a running process");
    let start = std::time::Instant::now();
    while node.is_running() {
        assert!(start.elapsed() < READY_WITHIN, "a zombie counts as running");
        std::thread::yield_now();
    }
    child.wait().expect("an ended process");
    assert!(!node.is_running());
}
