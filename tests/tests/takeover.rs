//! A node that stays away.

use flotilla_api::Liveness;

use flotilla_tests::support::{Workload, client, start, status, wait_alive, wait_caught_up, wait_whole};

#[tokio::test]
async fn a_fourth_node_takes_over_for_a_dead_one_after_the_grace() {
    let mut cluster = start(3).await;
    let load = Workload::warm(&cluster.http_all()).await;
    let fourth = cluster.add_node().await.expect("one more node");
    cluster.wait_node(fourth).await.expect("a ready node");
    let dead = status(&cluster, 2).await.node;
    cluster.kill(2).expect("a running node");
    wait_alive(&cluster, 1, dead, Liveness::Down).await;
    // The grace is 30 s unless set otherwise; the wait covers it.
    wait_whole(&cluster, &[1, 3, fourth]).await;
    load.more(100).await;
    let history = load.finish().await;
    wait_caught_up(&cluster, fourth, 1).await;
    history.verify(&client(&cluster, fourth)).await;
}
