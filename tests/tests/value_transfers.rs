//! Transfers of large values whose receiver or source is killed on the way: what has arrived does not travel again.

use flotilla_local_cluster::Cluster;
use flotilla_types::NodeId;

use flotilla_tests::support::{
    SMALL_LIMITS, client, eventually, start_with, status,
    values::{assert_serves, content, counter, objects_bytes, put, put_with_retries},
    wait_caught_up,
};

const MIB: u64 = 1 << 20;
const VALUE_BYTES: u64 = 64 * MIB;
/// What node 3 receives per second, so that it can be killed in time.
const BYTES_PER_SECOND: u64 = 8 * MIB;
/// A log that keeps a value, so that it travels by entries.
const LONG_LOG: [&str; 2] = ["--log-bytes", "2147483648"];
/// What may be under way when a process is killed: four requests for 64 chunks, of 24 KiB on average at most.
const IN_FLIGHT_BYTES_MAX: u64 = 4 * 64 * (24 << 10);
/// What may have been stored, and is not used because its end is torn: two chunks.
const TORN_BYTES_MAX: u64 = 2 * (64 << 10);
/// When a process is killed, in percent of what is transferred.
const KILLED_AT_PERCENT: [u64; 3] = [1, 50, 99];
/// Bytes of everything else that a transfer brings: lists, manifests, small records.
const BESIDE_BYTES_MAX: u64 = 2 * MIB;

/// How the value comes to a node that was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Entries,
    Snapshot,
}

/// A cluster whose third node has missed the value, and is started. It receives slowly.
async fn start_lacking(by: By, value: &[u8]) -> Cluster {
    let limits = if by == By::Entries { &LONG_LOG[..] } else { &SMALL_LIMITS[..] };
    let mut cluster = start_with(3, limits).await;
    cluster.kill(3).expect("a running node");
    let rate = BYTES_PER_SECOND.to_string();
    cluster.set_variable(3, "FLOTILLA_TRANSFER_BYTES_PER_SECOND", &rate).expect("a node");
    put_with_retries(&client(&cluster, 1), "large", value).await;
    if by == By::Snapshot {
        fill(&cluster).await;
    }
    cluster.start_node(3).await.expect("a start on its data");
    cluster
}

/// Small writes to all shards: checkpoints follow, and the log lets go of what it named.
async fn fill(cluster: &Cluster) {
    for n in 0..100 {
        put(&client(cluster, 1), &format!("small {n}"), &[b'x'; 500]).await;
    }
}

/// Bytes of objects that node `i` has stored since its start; 0 while it starts.
async fn pulled(cluster: &Cluster, i: usize) -> u64 {
    counter(cluster, i, "flotilla_objects_pulled_bytes_total").await.unwrap_or(0)
}

/// Waits until node 3 has stored so many bytes in this life.
async fn wait_pulled(cluster: &Cluster, bytes: u64) -> u64 {
    eventually("objects arrive", async || {
        let pulled = pulled(cluster, 3).await;
        if pulled >= bytes { Ok(pulled) } else { Err(format!("{pulled} of {bytes} bytes")) }
    })
    .await
}

/// Bytes of objects that nodes have sent to others since their start.
async fn served(cluster: &Cluster, nodes: &[usize]) -> u64 {
    let mut sum = 0;
    for i in nodes {
        sum += counter(cluster, *i, "flotilla_objects_served_bytes_total").await.expect("an answer");
    }
    sum
}

/// Bytes of objects of values that node `i` has sent to another one, as its status and `cluster.replication_stats` say.
async fn sent_to(cluster: &Cluster, i: usize, to: NodeId) -> u64 {
    let values = status(cluster, i).await.values.expect("its traffic");
    values.links.iter().filter(|link| link.node == to).map(|link| link.sent_bytes).sum()
}

async fn assert_no_orphan_stays(cluster: &Cluster, i: usize) {
    // What a killed process left behind is collected now, and not minutes after the start.
    cluster.set_failpoints(i, "objects::grace=return(0)").expect("a folder");
    put(&client(cluster, 1), "large", b"small").await;
    eventually("what nobody needs is collected", async || {
        fill(cluster).await;
        let bytes = objects_bytes(cluster, i);
        if bytes < VALUE_BYTES / 4 { Ok(()) } else { Err(format!("{bytes} bytes")) }
    })
    .await;
}

async fn the_receiver_is_killed(by: By) {
    let value = content(1, VALUE_BYTES as usize);
    let mut cluster = start_lacking(by, &value).await;
    let third = status(&cluster, 1).await.nodes.iter().find(|node| node.name == "n3").expect("node 3").id;
    let before = served(&cluster, &[1, 2]).await;
    let sent_before = sent_to(&cluster, 1, third).await + sent_to(&cluster, 2, third).await;
    let mut stored = 0;
    for percent in KILLED_AT_PERCENT {
        let wanted = VALUE_BYTES * percent / 100;
        stored += wait_pulled(&cluster, wanted.saturating_sub(stored)).await;
        cluster.kill(3).expect("a running node");
        cluster.start_node(3).await.expect("a start on its data");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 3, 1).await;
    let all = served(&cluster, &[1, 2]).await - before;
    let again_max = KILLED_AT_PERCENT.len() as u64 * (IN_FLIGHT_BYTES_MAX + TORN_BYTES_MAX);
    eprintln!("{all} bytes were sent, {stored} stored before the last start");
    assert!(all >= VALUE_BYTES * 9 / 10, "{all} bytes: the test is void");
    assert!(all <= VALUE_BYTES + again_max + BESIDE_BYTES_MAX, "{all} bytes were sent");
    if by == By::Entries {
        let sent = sent_to(&cluster, 1, third).await + sent_to(&cluster, 2, third).await - sent_before;
        assert!(sent > VALUE_BYTES * 9 / 10 && sent <= all, "{sent} of {all} bytes");
    }
    // From its own objects: what it lacks would be counted.
    let lacked = pulled(&cluster, 3).await;
    assert_serves(&cluster, 3, "large", &value).await;
    assert_eq!(pulled(&cluster, 3).await, lacked);
    // A log that keeps the value keeps its objects.
    if by == By::Snapshot {
        assert_no_orphan_stays(&cluster, 3).await;
    }
}

#[tokio::test]
async fn a_receiver_that_is_killed_fetches_nothing_again_that_entries_refer_to() {
    the_receiver_is_killed(By::Entries).await;
}

#[tokio::test]
async fn a_receiver_that_is_killed_fetches_nothing_again_of_a_snapshot() {
    the_receiver_is_killed(By::Snapshot).await;
}

/// The other node with the objects goes on where the one that was killed ended.
async fn the_source_is_killed(by: By) {
    let value = content(2, VALUE_BYTES as usize);
    let mut cluster = start_lacking(by, &value).await;
    let received = async |cluster: &Cluster| {
        counter(cluster, 3, "flotilla_transport_bytes_received_total{class=\"objects\"}").await.unwrap_or(0)
    };
    for percent in KILLED_AT_PERCENT {
        wait_pulled(&cluster, VALUE_BYTES * percent / 100).await;
        let sent = [served(&cluster, &[1]).await, served(&cluster, &[2]).await];
        let source = if sent[0] > sent[1] { 1 } else { 2 };
        cluster.kill(source).expect("a running node");
        cluster.start_node(source).await.expect("a start on its data");
        cluster.wait_node(source).await.expect("a ready node");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 3, 1).await;
    wait_pulled(&cluster, VALUE_BYTES).await;
    let all = received(&cluster).await;
    let again_max = KILLED_AT_PERCENT.len() as u64 * (IN_FLIGHT_BYTES_MAX + TORN_BYTES_MAX);
    eprintln!("{all} bytes were received");
    assert!(all >= VALUE_BYTES, "{all} bytes: the test is void");
    assert!(all <= VALUE_BYTES + again_max + BESIDE_BYTES_MAX, "{all} bytes were received");
    assert_serves(&cluster, 3, "large", &value).await;
}

#[tokio::test]
async fn a_source_that_is_killed_is_replaced_for_what_entries_refer_to() {
    the_source_is_killed(By::Entries).await;
}

#[tokio::test]
async fn a_source_that_is_killed_is_replaced_for_the_values_of_a_snapshot() {
    the_source_is_killed(By::Snapshot).await;
}
