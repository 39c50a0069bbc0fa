//! Replacement of a node that stays down.

use flotilla_api::Liveness;

use flotilla_tests::support::{Workload, client, start, status, wait_caught_up, wait_liveness, wait_replicated};

#[tokio::test]
async fn a_fourth_node_replaces_a_dead_one_after_the_grace_period() {
    let mut cluster = start(3).await;
    let load = Workload::start_warm(&cluster).await;
    let fourth = cluster.add_node().await.expect("one more node");
    cluster.wait_node(fourth).await.expect("a ready node");
    let dead = status(&cluster, 2).await.node;
    cluster.kill(2).expect("a running node");
    wait_liveness(&cluster, 1, dead, Liveness::Down).await;
    // The grace period is 30 s by default, less than the timeout of this wait.
    wait_replicated(&cluster, &[1, 3, fourth]).await;
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_caught_up(&cluster, fourth, 1).await;
    history.verify(&client(&cluster, fourth)).await;
}
