//! Shards are split once they have more bytes than their collection allows.

use std::process::{Command, Output};

use flotilla_api::{Collection, ShardInfo};
use flotilla_client::{Client, PutOptions, ScanOptions};
use flotilla_local_cluster::Cluster;

use flotilla_tests::support::{binary, client, eventually, start, status};

/// What the collections allow, in bytes.
const BOUND: u64 = 64 << 10;
/// Records, each of so many bytes: too few for an object.
const RECORDS: u64 = 200;
const RECORD_BYTES: usize = 3_000;

/// Runs the command line tool, which must succeed.
async fn flotilla(cluster: &Cluster, arguments: &[&str]) -> Vec<u8> {
    let at = cluster.http(1).expect("a node");
    let mut command = Command::new(binary());
    command.args(["--addr", &at, "-o", "json", "--timeout", "30s"]).args(arguments);
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output()).await.expect("a task").expect("the tool runs");
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    stdout
}

async fn shards_of(cluster: &Cluster, collection: &str) -> Vec<ShardInfo> {
    let status = status(cluster, 1).await;
    status.shards.into_iter().filter(|shard| shard.collection.as_deref() == Some(collection)).collect()
}

fn key(number: u64) -> Vec<u8> {
    format!("k{number:05}").into_bytes()
}

async fn fill(client: &Client, collection: &str) {
    for number in 0..RECORDS {
        let value = vec![b'v'; RECORD_BYTES];
        client.put(collection, &key(number), value.into(), &PutOptions::default()).await.expect("a put");
    }
}

async fn assert_complete(client: &Client, collection: &str) {
    let mut keys = Vec::new();
    let mut options = ScanOptions::default();
    loop {
        let page = client.scan(collection, &options).await.expect("a page");
        keys.extend(page.records.into_iter().map(|record| record.key.to_vec()));
        let Some(cursor) = page.cursor else { break };
        options.cursor = Some(cursor);
    }
    keys.sort_unstable();
    assert_eq!(keys.len() as u64, RECORDS);
    assert!((0..RECORDS).all(|number| keys[number as usize] == key(number)));
}

#[tokio::test]
async fn a_range_collection_is_split_by_size_as_it_grows() {
    let cluster = start(3).await;
    let bound = BOUND.to_string();
    flotilla(&cluster, &["collection", "create", "r", "--sharding", "range", "--split-bytes", &bound]).await;
    let first = client(&cluster, 1);
    fill(&first, "r").await;
    // All of it is some nine times the bound.
    eventually("the shard is split, and its parts are", async || {
        let shards = shards_of(&cluster, "r").await;
        if shards.len() >= 9 { Ok(()) } else { Err(format!("{} shards", shards.len())) }
    })
    .await;
    assert_complete(&first, "r").await;
    let shown = flotilla(&cluster, &["collection", "set", "r", "--split-bytes", "0"]).await;
    let shown: Collection = serde_json::from_slice(&shown).expect("a collection");
    assert_eq!(shown.split_bytes, Some(0));
}

#[tokio::test]
async fn a_hash_collection_is_split_by_size_between_its_buckets_only() {
    let cluster = start(3).await;
    let bound = BOUND.to_string();
    let create = ["collection", "create", "h", "--buckets", "4", "--shards", "1", "--split-bytes", &bound];
    flotilla(&cluster, &create).await;
    let first = client(&cluster, 1);
    fill(&first, "h").await;
    eventually("each bucket has a shard", async || {
        let shards = shards_of(&cluster, "h").await;
        if shards.len() == 4 { Ok(()) } else { Err(format!("{} shards", shards.len())) }
    })
    .await;
    assert_complete(&first, "h").await;
    assert_eq!(shards_of(&cluster, "h").await.len(), 4, "a bucket has more than the bound, and stays whole");
}
