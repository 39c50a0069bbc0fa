//! A leader that stands still for a while, and then goes on as if nothing had happened.

use std::time::{Duration, Instant};

use flotilla_tests::support::{Workload, client, eventually, leads_of, start, status, wait_caught_up, wait_whole};

/// How long it stands still at least: several election timeouts.
const STILL: Duration = Duration::from_secs(3);

#[tokio::test]
async fn paused_leader_is_replaced_and_its_late_words_do_no_harm() {
    let cluster = &mut start(3).await;
    let load = Workload::warm(&cluster.http_all()).await;
    let id = status(cluster, 1).await.node;
    let led = eventually("the node leads shards", async || {
        let led = load.counters_led_by(&client(cluster, 2), id).await;
        if led.is_empty() { Err("no counter is among them".to_owned()) } else { Ok(led) }
    })
    .await;
    let moment = Instant::now();
    cluster.pause(1).expect("a running node");
    let (first, last) = load.served_after(moment, &led).await;
    eprintln!("paused {id}: of {} counters it led, the first is served after {first:?}, all after {last:?}", led.len());
    eventually("others lead everything, for a while", async || {
        load.more(20).await;
        let led = leads_of(&status(cluster, 2).await, id);
        if led == 0 && moment.elapsed() > STILL { Ok(()) } else { Err(format!("it leads {led}")) }
    })
    .await;
    cluster.resume(1).expect("a stopped node");
    // Its readers and writers, whose calls have waited all the time, are among those that go on.
    load.more(500).await;
    cluster.wait_ready().await.expect("a ready cluster");
    load.more(300).await;
    let history = load.finish().await;
    wait_whole(cluster, &[1, 2, 3]).await;
    wait_caught_up(cluster, 1, 2).await;
    history.verify(&client(cluster, 1)).await;
}
