//! An operator merges two neighbouring shards with `flotilla shard merge`, and is told why others cannot be. What splits
//! have left is merged once nobody uses it.

use std::process::{Command, Output};

use flotilla_api::{OperationInfo, ShardInfo};
use flotilla_client::{Client, PutOptions, ScanOptions};
use flotilla_local_cluster::Cluster;
use flotilla_types::{OperationPhase, ShardId};

use flotilla_tests::support::{binary, client, eventually, start, status};

const RECORDS: u64 = 300;

/// Runs the command line tool.
async fn flotilla(cluster: &Cluster, arguments: &[&str]) -> Output {
    let at = cluster.http(1).expect("a node");
    let mut command = Command::new(binary());
    command.args(["--addr", &at, "-o", "json", "--timeout", "30s"]).args(arguments);
    tokio::task::spawn_blocking(move || command.output()).await.expect("a task").expect("the tool runs")
}

async fn shards(cluster: &Cluster) -> Vec<ShardInfo> {
    let status = status(cluster, 1).await;
    status.shards.into_iter().filter(|shard| shard.collection.as_deref() == Some("c")).collect()
}

fn key(number: u64) -> Vec<u8> {
    format!("k{number:05}").into_bytes()
}

async fn put(client: &Client, number: u64) {
    let value = number.to_string().into_bytes();
    client.put("c", &key(number), value.into(), &PutOptions::default()).await.expect("a put");
}

#[tokio::test]
async fn two_neighbours_are_merged_and_others_are_not() {
    let cluster = start(3).await;
    let created = flotilla(&cluster, &["collection", "create", "c", "--buckets", "6", "--shards", "3"]).await;
    assert!(created.status.success(), "{created:?}");
    let first = client(&cluster, 1);
    for number in 0..RECORDS {
        put(&first, number).await;
    }
    first.put_setting("shard_merges", 0).await.expect("a setting");
    let refused = flotilla(&cluster, &["shard", "merge", "s4", "s5"]).await;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && why.contains("shard_merges"), "{why}");
    first.put_setting("shard_merges", 1).await.expect("a setting");
    let names: Vec<_> = shards(&cluster).await.iter().map(|shard| shard.id.to_string()).collect();
    let [left, middle, right] = &names[..] else { panic!("{names:?}") };
    for (a, b) in [(left, right), (middle, left), (left, left)] {
        let refused = flotilla(&cluster, &["shard", "merge", a, b]).await;
        assert_eq!(refused.status.code(), Some(1), "{a} and {b}: {refused:?}");
    }
    let merged = flotilla(&cluster, &["shard", "merge", left, middle, "--wait"]).await;
    assert!(merged.status.success(), "{merged:?}");
    let merged: OperationInfo = serde_json::from_slice(&merged.stdout).expect("an operation");
    assert_eq!((merged.phase, merged.shard.to_string()), (OperationPhase::Done, left.clone()));
    assert_eq!(merged.right.map(|shard: ShardId| shard.to_string()).as_ref(), Some(middle));
    eventually("the right one is gone", async || {
        let left: Vec<_> = shards(&cluster).await.iter().map(|shard| shard.id.to_string()).collect();
        if left.len() == 2 { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for i in 1..=3 {
        let reader = client(&cluster, i);
        for number in 0..RECORDS {
            let found = reader.get("c", &key(number)).await.expect("a get").expect("a record");
            assert_eq!(found.value, number.to_string().into_bytes());
        }
    }
    for number in RECORDS..2 * RECORDS {
        put(&first, number).await;
    }
    let mut options = ScanOptions::default();
    let mut found = 0;
    loop {
        let page = first.scan("c", &options).await.expect("a page");
        found += page.records.len() as u64;
        let Some(cursor) = page.cursor else { break };
        options.cursor = Some(cursor);
    }
    assert_eq!(found, 2 * RECORDS);
    let merged = flotilla(&cluster, &["shard", "merge", left, right, "--wait"]).await;
    assert!(merged.status.success(), "{merged:?}");
}

#[tokio::test]
async fn what_was_split_is_merged_again_once_nobody_uses_it() {
    let cluster = start(3).await;
    let created = flotilla(&cluster, &["collection", "create", "c", "--buckets", "4", "--shards", "2"]).await;
    assert!(created.status.success(), "{created:?}");
    let first = client(&cluster, 1);
    for number in 0..RECORDS {
        put(&first, number).await;
    }
    let founded: Vec<_> = shards(&cluster).await.iter().map(|shard| shard.id).collect();
    for shard in &founded {
        let split = flotilla(&cluster, &["shard", "split", &shard.to_string(), "--wait"]).await;
        assert!(split.status.success(), "{split:?}");
    }
    eventually("both are split", async || {
        let found = shards(&cluster).await.len();
        if found == 4 { Ok(()) } else { Err(format!("{found} shards")) }
    })
    .await;
    first.put_setting("shard_merge_after_s", 1).await.expect("a setting");
    eventually("the shards that the collection was created with are left", async || {
        let left: Vec<_> = shards(&cluster).await.iter().map(|shard| shard.id).collect();
        if left == founded { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for number in 0..RECORDS {
        let found = first.get("c", &key(number)).await.expect("a get").expect("a record");
        assert_eq!(found.value, number.to_string().into_bytes());
    }
}
