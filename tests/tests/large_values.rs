//! Values that are longer than records, over real nodes of which some have no replica of their shard.

use bytes::Bytes;
use flotilla_client::{Client, PutOptions};
use flotilla_local_cluster::Cluster;

use flotilla_tests::support::{client, start};

/// Bytes that no two parts have in common.
fn content(bytes: usize) -> Bytes {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

async fn put(client: &Client, key: &str, value: &Bytes) {
    let stored = client.put("default", key.as_bytes(), value.clone(), &PutOptions::default()).await;
    stored.unwrap_or_else(|error| panic!("{key} is not stored: {error}"));
}

async fn read_everywhere(cluster: &Cluster, nodes: usize, values: &[(&str, Bytes)]) {
    for i in 1..=nodes {
        for (key, value) in values {
            let found = client(cluster, i).get("default", key.as_bytes()).await;
            let found = found.unwrap_or_else(|error| panic!("node {i} cannot read {key}: {error}"));
            assert!(found.is_some_and(|found| found.value == *value), "node {i} reads another value for {key}");
        }
    }
}

#[tokio::test]
async fn large_values_are_written_and_read_through_every_node_also_after_all_were_killed() {
    let nodes = 5;
    let mut cluster = start(nodes).await;
    let values: Vec<_> = [("a", 5_000), ("b", 300_000), ("c", 9 << 20), ("d", 1 << 20), ("e", 70_000)]
        .map(|(key, bytes)| (key, content(bytes)))
        .into();
    // Through each node: those without a replica of the shard hand the objects on.
    for (i, (key, value)) in (1..=nodes).zip(&values) {
        put(&client(&cluster, i), key, value).await;
    }
    read_everywhere(&cluster, nodes, &values).await;
    for i in 1..=nodes {
        cluster.kill(i).expect("a running node");
    }
    for i in 1..=nodes {
        cluster.start_node(i).await.expect("a start on its data");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    read_everywhere(&cluster, nodes, &values).await;
}
