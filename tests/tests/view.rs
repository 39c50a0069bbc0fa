//! The view may be lost at any time.

use flotilla_local_cluster::What;

use flotilla_tests::support::{
    SMALL_WITH_SLED, Workload, client, eventually, leads_of, start_with, status, wait_caught_up, wait_checkpoints,
    wait_whole,
};

#[tokio::test]
async fn a_deleted_view_is_rebuilt() {
    let mut cluster = start_with(3, &SMALL_WITH_SLED).await;
    let load = Workload::warm(&cluster.http_all()).await;
    // So that there is something that only the view has ready.
    wait_checkpoints(&cluster, 2).await;
    let history = load.finish().await;
    let id = status(&cluster, 2).await.node;
    assert!(cluster.stop(2).await.expect("a clean stop").success());
    cluster.wipe(2, What::View).expect("a view");
    cluster.start_node(2).await.expect("a start without a view");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 2, 1).await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    eventually("the node leads shards again", async || {
        if leads_of(&status(&cluster, 2).await, id) > 0 { Ok(()) } else { Err(format!("{id} leads none")) }
    })
    .await;
    history.verify(&client(&cluster, 2)).await;
}

/// With every view gone, nothing but objects and logs can bring the records back.
#[tokio::test]
async fn all_views_deleted_after_a_crash_are_rebuilt() {
    let mut cluster = start_with(3, &SMALL_WITH_SLED).await;
    let load = Workload::warm(&cluster.http_all()).await;
    wait_checkpoints(&cluster, 1).await;
    for i in 1..=3 {
        cluster.kill(i).expect("a running node");
    }
    for i in 1..=3 {
        cluster.wipe(i, What::View).expect("a view");
        cluster.start_node(i).await.expect("a start without a view");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    load.more(100).await;
    let history = load.finish().await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        history.verify(&client(&cluster, i)).await;
    }
}
