//! A node that is told to stop.

use std::time::{Duration, Instant};

use flotilla_api::Liveness;
use flotilla_types::ShardId;
use tokio::time::sleep;

use flotilla_tests::support::{
    POLL_EVERY, Workload, client, eventually, leads_of, start, status, wait_alive, wait_caught_up, wait_whole,
};

/// How long after a goodbye another node may still take the one that left for a leader: some ticks of a busy machine.
const HANDED_OVER: Duration = Duration::from_millis(500);

#[tokio::test]
async fn sigterm_leaves_cleanly() {
    let mut cluster = start(3).await;
    let id = status(&cluster, 2).await.node;
    eventually("the node leads shards", async || {
        if leads_of(&status(&cluster, 2).await, id) > 0 { Ok(()) } else { Err(format!("{id} leads none")) }
    })
    .await;
    let load = Workload::warm(&cluster.http_all()).await;
    let ended = cluster.stop(2).await.expect("a stop");
    assert_eq!(ended.code(), Some(0), "{ended}");
    for i in [1, 3] {
        wait_alive(&cluster, i, id, Liveness::Left).await;
        // Handed over, not lost: nothing waits for an election. A node tells its state once a tick, and the word of the
        // new leader takes a moment to arrive.
        let begun = Instant::now();
        loop {
            let shards = status(&cluster, i).await.shards;
            let leaderless: Vec<_> =
                shards.iter().filter(|shard| shard.leader.is_none_or(|leader| leader == id)).collect();
            if leaderless.is_empty() {
                break;
            }
            assert!(begun.elapsed() < HANDED_OVER, "node {i}: {leaderless:?}");
            sleep(POLL_EVERY).await;
        }
        let events = client(&cluster, i).recent_events().await.expect("events");
        assert!(events.iter().any(|event| event.kind == "node_left"), "node {i} reports no event");
    }
    load.more(100).await;

    cluster.start_node(2).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_alive(&cluster, 1, id, Liveness::Alive).await;
    load.more(100).await;
    let history = load.finish().await;
    wait_whole(&cluster, &[1, 2, 3]).await;
    wait_caught_up(&cluster, 2, 1).await;
    assert_eq!(history.unknown(), Vec::<String>::new(), "a clean stop leaves nobody in doubt");
    history.verify(&client(&cluster, 2)).await;
}

#[tokio::test]
async fn a_single_node_stops_and_starts_on_its_data() {
    let mut cluster = start(1).await;
    let load = Workload::warm(&cluster.http_all()).await;
    let history = load.finish().await;
    assert_eq!(cluster.stop(1).await.expect("a stop").code(), Some(0));
    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready node");
    let status = status(&cluster, 1).await;
    assert!(status.quorum && status.shards.iter().any(|shard| shard.id == ShardId::META));
    history.verify(&client(&cluster, 1)).await;
}
