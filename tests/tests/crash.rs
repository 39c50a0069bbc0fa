//! `kill -9` of one node, and of all nodes.

use std::time::Instant;

use flotilla_local_cluster::Cluster;

use flotilla_tests::support::{
    SMALL_LIMITS, Workload, client, eventually, led_shards, start, start_with, status, wait_caught_up,
    wait_checkpoints, wait_replicated,
};

#[tokio::test]
async fn kill_of_any_node_loses_and_duplicates_no_write() {
    let mut cluster = start(3).await;
    let load = Workload::start_warm(&cluster).await;
    for victim in 1..=3 {
        kill_and_restart(&mut cluster, &load, victim).await;
    }
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for (i, of) in [(1, 2), (2, 3), (3, 1)] {
        wait_caught_up(&cluster, i, of).await;
    }
    history.verify(&client(&cluster, 2)).await;
}

/// Kills a node that leads shards, waits until these shards are served again, and restarts it.
async fn kill_and_restart(cluster: &mut Cluster, load: &Workload, victim: usize) {
    let id = status(cluster, victim).await.node;
    let other = victim % 3 + 1;
    let led = eventually("the victim leads shards", async || {
        if led_shards(&status(cluster, other).await, id) == 0 {
            return Err(format!("{id} leads none"));
        }
        let led = load.counters_led_by(&client(cluster, other), id).await;
        if led.is_empty() { Err("it leads no shard with a counter".to_owned()) } else { Ok(led) }
    })
    .await;
    let moment = Instant::now();
    cluster.kill(victim).expect("a running node");
    let (first, last) = load.served_after(moment, &led).await;
    eprintln!("killed {id}: of {} counters it led, the first is served after {first:?}, all after {last:?}", led.len());
    load.wait_acknowledged(100).await;
    cluster.start_node(victim).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(cluster, victim, other).await;
    load.wait_acknowledged(100).await;
}

#[tokio::test]
async fn kill_of_all_nodes_keeps_every_acknowledged_write() {
    kill_all(start(3).await, 2, async |_| ()).await;
}

/// Nodes checkpoint and truncate continuously, so kills hit all stages of it sooner or later.
#[tokio::test]
async fn kill_of_all_nodes_amid_checkpoints_keeps_every_acknowledged_write() {
    kill_all(start_with(3, &SMALL_LIMITS).await, 3, async |cluster| wait_checkpoints(cluster, 1).await).await;
}

async fn kill_all(mut cluster: Cluster, rounds: usize, before: impl AsyncFn(&Cluster)) {
    let load = Workload::start_warm(&cluster).await;
    for round in 1..=rounds {
        before(&cluster).await;
        for i in 1..=3 {
            cluster.kill(i).expect("a running node");
        }
        let started = Instant::now();
        for i in 1..=3 {
            cluster.start_node(i).await.expect("a start on its data");
        }
        cluster.wait_ready().await.expect("a ready cluster");
        eprintln!("round {round}: all three are ready {:?} after their start", started.elapsed());
        load.wait_acknowledged(300).await;
    }
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        history.verify(&client(&cluster, i)).await;
    }
}
