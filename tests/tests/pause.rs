//! A leader that is paused for a while and then continues with stale state.

use std::time::{Duration, Instant};

use flotilla_tests::support::{
    Workload, client, eventually, led_shards, start, status, wait_caught_up, wait_replicated,
};

/// Shortest pause: several election timeouts.
const PAUSE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn paused_leader_is_replaced_and_its_stale_messages_are_ignored() {
    let cluster = &mut start(3).await;
    let load = Workload::start_warm(cluster).await;
    let id = status(cluster, 1).await.node;
    let led = eventually("the node leads shards", async || {
        let led = load.counters_led_by(&client(cluster, 2), id).await;
        if led.is_empty() { Err("it leads no shard with a counter".to_owned()) } else { Ok(led) }
    })
    .await;
    let moment = Instant::now();
    cluster.pause(1).expect("a running node");
    let (first, last) = load.served_after(moment, &led).await;
    eprintln!("paused {id}: of {} counters it led, the first is served after {first:?}, all after {last:?}", led.len());
    eventually("other nodes lead all shards for a while", async || {
        load.wait_acknowledged(20).await;
        let led = led_shards(&status(cluster, 2).await, id);
        if led == 0 && moment.elapsed() > PAUSE { Ok(()) } else { Err(format!("it leads {led}")) }
    })
    .await;
    cluster.resume(1).expect("a paused node");
    // The paused node's clients, whose calls were pending all the time, continue as well.
    load.wait_acknowledged(500).await;
    cluster.wait_ready().await.expect("a ready cluster");
    load.wait_acknowledged(300).await;
    let history = load.finish().await;
    wait_replicated(cluster, &[1, 2, 3]).await;
    wait_caught_up(cluster, 1, 2).await;
    history.verify(&client(cluster, 1)).await;
}
