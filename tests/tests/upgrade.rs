//! Rolling upgrades: nodes of the first cluster version are replaced by new ones, one by one and under load.
//!
//! The old binary is this one, limited to version 1 by [`VERSION_VARIABLE`]: it announces, writes and reads
//! nothing later. `FLOTILLA_OLD_BIN=path` makes the upgrade start from a real binary of an earlier release
//! instead. What a too old binary does after the upgrade is asked of the limited one only: binaries that know
//! of no versions give up their replicas then.

use std::{path::PathBuf, process::Command, time::Duration};

use flotilla_client::PutOptions;
use flotilla_failpoints::VERSION_VARIABLE;
use flotilla_local_cluster::{Cluster, ClusterOptions, WipeScope};

use flotilla_tests::support::{
    SMALL_LIMITS, Workload, binary, client, eventually, log, replicas_of, status, wait_caught_up, wait_checkpoints,
    wait_replicated,
};

/// The advice to a node that is too old for the cluster.
const ADVICE: &str = "install a binary that supports version";
/// How long a node that cannot run in the cluster may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// Exit code of a node that cannot continue.
const FATAL: Option<i32> = Some(70);

/// Which binary a node runs.
#[derive(Clone, Copy)]
enum Release {
    Old,
    New,
}

/// A real old binary, if one was given.
fn old_binary() -> Option<PathBuf> {
    std::env::var_os("FLOTILLA_OLD_BIN").map(PathBuf::from)
}

/// Chooses the binary of node `i`, from its next start on.
fn set_release(cluster: &mut Cluster, i: usize, release: Release) {
    let (old, limit) = match (release, old_binary()) {
        (Release::Old, None) => (None, "1"),
        (Release::Old, old) => (old, ""),
        (Release::New, _) => (None, ""),
    };
    cluster.set_binary(i, &old.unwrap_or_else(binary)).expect("a node of the cluster");
    cluster.set_variable(i, VERSION_VARIABLE, limit).expect("a node of the cluster");
}

/// A cluster of three old nodes, which checkpoint and truncate continuously: so they restart from the files
/// of the other release, and not only from its log.
async fn start_old() -> Cluster {
    let mut options = ClusterOptions::new(3, old_binary().unwrap_or_else(binary));
    options.arguments = SMALL_LIMITS.map(str::to_owned).to_vec();
    options.variables = vec![(VERSION_VARIABLE.to_owned(), "1".to_owned())];
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    cluster.clear_variables();
    for i in 1..=3 {
        set_release(&mut cluster, i, Release::Old);
    }
    cluster
}

/// Restarts a node with another binary while the load goes on.
async fn restart(cluster: &mut Cluster, load: &Workload, i: usize, release: Release) {
    let exited = cluster.stop(i).await.expect("a clean stop");
    assert_eq!(exited.code(), Some(0), "{exited}");
    load.wait_acknowledged(50).await;
    set_release(cluster, i, release);
    cluster.start_node(i).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(cluster, i, i % 3 + 1).await;
    wait_checkpoints(cluster, i).await;
    load.wait_acknowledged(100).await;
}

/// Runs `flotilla upgrade VERB` against node `i`; returns the exit code and what was printed.
fn upgrade(cluster: &Cluster, i: usize, verb: &str) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["upgrade", verb, "--addr", &cluster.http(i).expect("a node of the cluster")]);
    let output = command.output().expect("a process");
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

/// Waits until each of these nodes reports the version in force.
pub(crate) async fn wait_version(cluster: &Cluster, nodes: &[usize], version: u32) {
    eventually("the cluster version", async || {
        for i in nodes {
            let found = client(cluster, *i).status().await.map_err(|error| error.to_string())?.cluster_version;
            if found != version {
                return Err(format!("node {i} reports {found} instead of {version}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Raises the version through node `i` by one, to `next`, once it has seen every node.
pub(crate) async fn finish(cluster: &Cluster, i: usize, next: u32) {
    eventually("every node is seen to be ready", async || {
        let (code, printed) = upgrade(cluster, i, "status");
        let is_ready = code == Some(0) && printed.contains(&format!("Every node is ready for version {next}"));
        if is_ready { Ok(()) } else { Err(printed) }
    })
    .await;
    let (code, printed) = upgrade(cluster, i, "finish");
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains(&format!("Cluster version: {next}")), "{printed}");
}

/// Starts a stopped node as one that supports version 1 only, and waits until it has ended by itself. Returns
/// its exit code and what it logged.
async fn start_too_old(cluster: &mut Cluster, i: usize) -> (Option<i32>, String) {
    let before = log(cluster, i).len();
    cluster.set_variable(i, VERSION_VARIABLE, "1").expect("a node of the cluster");
    cluster.start_node(i).await.expect("a process");
    let exited = cluster.wait_exit(i, ENDS_WITHIN).await.expect("an old node ends by itself");
    let said = log(cluster, i).split_off(before);
    set_release(cluster, i, Release::New);
    (exited.code(), said)
}

#[tokio::test]
async fn a_rolling_upgrade_under_load_loses_no_write_and_shuts_out_old_binaries() {
    let mut cluster = start_old().await;
    let load = Workload::start_warm(&cluster).await;
    restart(&mut cluster, &load, 1, Release::New).await;
    restart(&mut cluster, &load, 2, Release::New).await;
    wait_version(&cluster, &[1, 2], 1).await;

    let third = status(&cluster, 3).await.node;
    let (code, printed) = upgrade(&cluster, 1, "finish");
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains(&format!("supports version 2 since their last start: {third};")), "{printed}");
    wait_version(&cluster, &[1, 2], 1).await;

    // Half of the upgrade can be taken back.
    restart(&mut cluster, &load, 1, Release::Old).await;
    restart(&mut cluster, &load, 1, Release::New).await;
    restart(&mut cluster, &load, 3, Release::New).await;
    for next in [2, 3, 4, 5] {
        finish(&cluster, 1, next).await;
        wait_version(&cluster, &[1, 2, 3], next).await;
    }
    for i in 1..=3 {
        wait_checkpoints(&cluster, i).await;
    }
    load.wait_acknowledged(300).await;

    // Its own files name the version by now.
    cluster.kill(3).expect("a running node");
    let (code, said) = start_too_old(&mut cluster, 3).await;
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains(&format!("{ADVICE} 5")), "{said}");
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        wait_caught_up(&cluster, i, i % 3 + 1).await;
        history.verify(&client(&cluster, i)).await;
    }

    // Nor can an old binary join.
    cluster.kill(3).expect("a running node");
    cluster.wipe(3, WipeScope::All).expect("a stopped node");
    let (code, said) = start_too_old(&mut cluster, 3).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the cluster is at version 5"), "{said}");
}

/// The node's own files say nothing of the new version: it meets it in its log.
#[tokio::test]
async fn an_old_node_that_missed_the_end_of_the_upgrade_ends_and_keeps_its_replicas() {
    let mut cluster = start_old().await;
    let load = Workload::start_warm(&cluster).await;
    for i in 1..=3 {
        restart(&mut cluster, &load, i, Release::New).await;
    }
    eventually("node 1 has seen all nodes", async || {
        let (_, printed) = upgrade(&cluster, 1, "status");
        if printed.contains("Every node is ready") { Ok(()) } else { Err(printed) }
    })
    .await;
    let third = status(&cluster, 3).await.node;
    let before = replicas_of(&cluster, 1, third).await;
    cluster.kill(3).expect("a running node");
    finish(&cluster, 1, 2).await;
    wait_version(&cluster, &[1, 2], 2).await;
    load.wait_acknowledged(100).await;

    for _ in 0..2 {
        let (code, said) = start_too_old(&mut cluster, 3).await;
        assert_eq!(code, FATAL, "{said}");
        assert!(said.contains(&format!("{ADVICE} 2")), "{said}");
    }
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    assert_eq!(replicas_of(&cluster, 1, third).await, before, "replicas were given up");
    client(&cluster, 3).put("default", b"after", "v".into(), &PutOptions::default()).await.expect("a put");
    wait_caught_up(&cluster, 3, 1).await;
    history.verify(&client(&cluster, 3)).await;
}
