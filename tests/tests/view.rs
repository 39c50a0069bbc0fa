//! Rebuilding a lost view.

use flotilla_local_cluster::WipeScope;

use flotilla_tests::support::{
    SMALL_LIMITS_SLED, Workload, client, eventually, led_shards, start_with, status, wait_caught_up, wait_checkpoints,
    wait_replicated,
};

#[tokio::test]
async fn a_deleted_view_is_rebuilt() {
    let mut cluster = start_with(3, &SMALL_LIMITS_SLED).await;
    let load = Workload::start_warm(&cluster).await;
    // So that the view holds records that are no longer in the log.
    wait_checkpoints(&cluster, 2).await;
    let history = load.finish().await;
    let id = status(&cluster, 2).await.node;
    assert!(cluster.stop(2).await.expect("a clean stop").success());
    cluster.wipe(2, WipeScope::View).expect("a view");
    cluster.start_node(2).await.expect("a start without a view");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 2, 1).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    eventually("the node leads shards again", async || {
        if led_shards(&status(&cluster, 2).await, id) > 0 { Ok(()) } else { Err(format!("{id} leads none")) }
    })
    .await;
    history.verify(&client(&cluster, 2)).await;
}

/// With every view deleted, the records must be rebuilt from objects and logs.
#[tokio::test]
async fn all_views_deleted_after_a_crash_are_rebuilt() {
    let mut cluster = start_with(3, &SMALL_LIMITS_SLED).await;
    let load = Workload::start_warm(&cluster).await;
    wait_checkpoints(&cluster, 1).await;
    for i in 1..=3 {
        cluster.kill(i).expect("a running node");
    }
    for i in 1..=3 {
        cluster.wipe(i, WipeScope::View).expect("a view");
        cluster.start_node(i).await.expect("a start without a view");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        history.verify(&client(&cluster, i)).await;
    }
}
