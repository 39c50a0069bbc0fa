//! Clean shutdown.

use std::time::{Duration, Instant};

use flotilla_api::Liveness;
use flotilla_local_cluster::{STOP_WITHIN, Signal};
use flotilla_types::ShardId;
use tokio::time::sleep;

use flotilla_tests::support::{
    Mode, POLL_EVERY, Workload, client, eventually, led_shards, start, start_in, status, wait_caught_up, wait_liveness,
    wait_replicated,
};

/// How long after a node has left another one may still report it as a leader: some ticks on a busy machine.
const HANDOVER_WITHIN: Duration = Duration::from_millis(500);

in_both_modes!(sigterm_hands_over_leadership_and_exits_cleanly);

async fn sigterm_hands_over_leadership_and_exits_cleanly(mode: Mode) {
    let mut cluster = start_in(mode, 3).await;
    let id = status(&cluster, 2).await.node;
    eventually("the node leads shards", async || {
        if led_shards(&status(&cluster, 2).await, id) > 0 { Ok(()) } else { Err(format!("{id} leads none")) }
    })
    .await;
    let load = Workload::start_warm(&cluster).await;
    let exited = cluster.stop(2).await.expect("a stop");
    assert_eq!(exited.code(), Some(0), "{exited}");
    for i in [1, 3] {
        wait_liveness(&cluster, i, id, Liveness::Left).await;
        // Leadership was transferred, so no election is needed. Status is published once per tick, and the
        // message of the new leader takes a moment to arrive.
        let start = Instant::now();
        loop {
            let shards = status(&cluster, i).await.shards;
            let leaderless: Vec<_> =
                shards.iter().filter(|shard| shard.leader.is_none_or(|leader| leader == id)).collect();
            if leaderless.is_empty() {
                break;
            }
            assert!(start.elapsed() < HANDOVER_WITHIN, "node {i}: {leaderless:?}");
            sleep(POLL_EVERY).await;
        }
        let events = client(&cluster, i).recent_events().await.expect("events");
        assert!(events.iter().any(|event| event.kind == "node_left"), "node {i} reports no `node_left` event");
    }
    load.wait_acknowledged(100).await;

    cluster.start_node(2).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_liveness(&cluster, 1, id, Liveness::Alive).await;
    load.wait_acknowledged(100).await;
    let history = load.finish().await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    wait_caught_up(&cluster, 2, 1).await;
    assert_eq!(history.unknown(), Vec::<String>::new(), "a clean stop leaves no outcome unknown");
    history.verify(&client(&cluster, 2)).await;
}

#[tokio::test]
async fn a_single_node_stops_and_starts_on_its_data() {
    let mut cluster = start(1).await;
    let load = Workload::start_warm(&cluster).await;
    let history = load.finish().await;
    // SIGHUP stops it as cleanly as SIGTERM does.
    cluster.signal(1, Signal::Hup).expect("a running node");
    let exited = cluster.wait_exit(1, STOP_WITHIN).await.expect("a stop");
    assert_eq!(exited.code(), Some(0), "{exited}");
    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready node");
    let status = status(&cluster, 1).await;
    assert!(status.quorum && status.shards.iter().any(|shard| shard.id == ShardId::META));
    history.verify(&client(&cluster, 1)).await;
}
