//! Large values: content, writing and reading it, and what it takes on the disk and the network.

use std::{fs, path::Path};

use bytes::Bytes;
use flotilla_client::{Client, PutOptions};
use flotilla_local_cluster::Cluster;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::{client, eventually, metrics};

/// Content that has nothing in common with that of another seed.
pub fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    SmallRng::seed_from_u64(seed).fill(&mut content[..]);
    content
}

/// Writes a value.
pub async fn put(client: &Client, key: &str, content: &[u8]) {
    let value = Bytes::copy_from_slice(content);
    let put = client.put("default", key.as_bytes(), value, &PutOptions::default()).await;
    put.unwrap_or_else(|error| panic!("{key} is not written: {error}"));
}

/// Writes a value, as often as it takes: leaders may be changing.
pub async fn put_with_retries(client: &Client, key: &str, content: &[u8]) {
    eventually("a put", async || {
        let value = Bytes::copy_from_slice(content);
        let put = client.put("default", key.as_bytes(), value, &PutOptions::default()).await;
        put.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// Asserts that a node serves this value.
pub async fn assert_serves(cluster: &Cluster, i: usize, key: &str, content: &[u8]) {
    let record = client(cluster, i).get("default", key.as_bytes()).await;
    let record = record.unwrap_or_else(|error| panic!("{key} through node {i}: {error}")).expect("a record");
    assert!(record.value == content, "{key} through node {i}: {} bytes that differ", record.value.len());
}

/// Asserts that every node serves these values.
pub async fn assert_all_serve(cluster: &Cluster, values: &[(&str, Vec<u8>)]) {
    for i in 1..=cluster.len() {
        for (key, content) in values {
            assert_serves(cluster, i, key, content).await;
        }
    }
}

/// The sum of a counter of node `i`, over those of its labels that the text begins with; 0 before it counts.
///
/// # Errors
/// The node does not answer.
pub async fn counter(cluster: &Cluster, i: usize, name: &str) -> std::io::Result<u64> {
    let answer = metrics(cluster, i).await?;
    let values = answer.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// The same over all nodes.
pub async fn sum(cluster: &Cluster, name: &str) -> u64 {
    let mut sum = 0;
    for i in 1..=cluster.len() {
        sum += counter(cluster, i, name).await.expect("an answer");
    }
    sum
}

/// Bytes of the folder in which node `i` keeps objects.
pub fn objects_bytes(cluster: &Cluster, i: usize) -> u64 {
    bytes_below(&cluster.node(i).expect("a node").data_dir.join("state/objects"))
}

fn bytes_below(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}
