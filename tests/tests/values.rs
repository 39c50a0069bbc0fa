//! Large values: their objects travel once, every replica has them, crashes lose none, and their space comes back.

use std::time::{Duration, Instant};

use flotilla_api::{CreateCollection, Sharding};
use flotilla_client::{Client, PutOptions};

use flotilla_tests::support::{
    Mode, SMALL_LIMITS, client, eventually, start, start_in, start_with,
    values::{assert_all_serve, assert_serves, content, objects_bytes, put, sum},
    wait_caught_up, wait_replicated,
};

const MIB: usize = 1 << 20;

/// A collection of one shard.
fn one_shard(name: &str) -> CreateCollection {
    CreateCollection {
        name: name.to_owned(),
        sharding: Sharding::Hash,
        buckets: Some(1),
        shards: Some(1),
        replicas: Some(3),
        objects_from: None,
        chunk: None,
        split_bytes: None,
    }
}

async fn a_value_travels_once(mode: Mode) {
    let cluster = start_in(mode, 3).await;
    let sent = async || sum(&cluster, "flotilla_transport_bytes_sent_total{class=\"objects\"}").await;
    let first = content(1, 6 * MIB);
    put(&client(&cluster, 1), "first", &first).await;
    // The put waits for one of them.
    let mut last = 0;
    let whole = eventually("two other nodes have it", async || {
        let before = std::mem::replace(&mut last, sent().await);
        if last == before && last > 2 * first.len() as u64 { Ok(last) } else { Err(format!("{last} bytes")) }
    })
    .await;

    // Through another node, under another key.
    put(&client(&cluster, 2), "second", &first).await;
    let again = sent().await - whole;
    assert!(again <= first.len() as u64 / 500, "{again} bytes for a value that all nodes have");

    let mut changed = first.clone();
    changed.splice(3 * MIB..3 * MIB, content(2, 100));
    put(&client(&cluster, 3), "changed", &changed).await;
    // A chunk or two, and a list of chunks, to two nodes.
    let changes = sent().await - whole - again;
    assert!(changes <= 2 * 4 * (64 << 10), "{changes} bytes for 100 that were inserted");
    for i in 1..=3 {
        assert_serves(&cluster, i, "second", &first).await;
        assert_serves(&cluster, i, "changed", &changed).await;
    }
}
in_both_modes!(a_value_travels_once);

/// The nodes receive, and send, 2 MiB per second. A write to the same shard is acknowledged in its order, but waits
/// for no bytes.
#[tokio::test]
async fn small_writes_do_not_wait_for_the_bytes_of_a_large_value() {
    let cluster = start(3).await;
    let http = cluster.http(1).expect("a node");
    let mut options = cluster.credentials().client_options(&http).expect("the files of a running cluster");
    options.timeout = Duration::from_secs(60);
    let upload = Client::new(options).expect("a client");
    upload.create_collection(&one_shard("one")).await.expect("a collection");
    upload.put_setting("transfer_bytes_per_second", 2 * MIB as u64).await.expect("a setting");
    let large = tokio::spawn(async move {
        let (value, options) = (content(11, 6 * MIB), PutOptions::default());
        upload.put("one", b"large", value.into(), &options).await
    });
    let other = client(&cluster, 2);
    let (mut small, mut slowest) = (0, Duration::ZERO);
    while !large.is_finished() {
        let begin = Instant::now();
        let key = format!("small{small}");
        other.put("one", key.as_bytes(), "x".into(), &PutOptions::default()).await.expect("a put");
        (small, slowest) = (small + 1, slowest.max(begin.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    large.await.expect("a task").expect("a put");
    // The large one takes some seconds.
    assert!(small > 20 && slowest < Duration::from_secs(3), "{small} small writes, one of them in {slowest:?}");
}

/// Writers go on while each node in turn is killed: the one that they write through, those that fetch, and the leaders.
#[tokio::test]
async fn no_acknowledged_value_is_lost_whoever_crashes() {
    let mut cluster = start_with(3, &SMALL_LIMITS).await;
    let common = content(7, MIB);
    let mut acknowledged = Vec::new();
    for round in 1..=6_u64 {
        let victim = (round % 3 + 1) as usize;
        let writers: Vec<_> = (1..=3)
            .map(|i| {
                let (client, common) = (client(&cluster, i), common.clone());
                tokio::spawn(async move {
                    let (options, mut written) = (PutOptions::default(), Vec::new());
                    for n in 0..4_u64 {
                        let seed = round * 100 + i as u64 * 10 + n;
                        let key = format!("{round}/{i}/{n}");
                        let value = [&content(seed, 300_000)[..], &common].concat();
                        let put = client.put("default", key.as_bytes(), value.into(), &options);
                        if put.await.is_ok() {
                            written.push((key, seed));
                        }
                    }
                    written
                })
            })
            .collect();
        let objects = sum(&cluster, "flotilla_objects_pulled_total").await;
        eventually("values on their way", async || {
            let pulled = sum(&cluster, "flotilla_objects_pulled_total").await;
            if pulled > objects { Ok(()) } else { Err(format!("{pulled} objects were pulled")) }
        })
        .await;
        cluster.kill(victim).expect("a node");
        cluster.start_node(victim).await.expect("a start on its data");
        for writer in writers {
            acknowledged.extend(writer.await.expect("a writer"));
        }
    }
    assert!(acknowledged.len() > 20, "{} writes were acknowledged: the test is void", acknowledged.len());
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        wait_caught_up(&cluster, 1, i).await;
        for (key, seed) in &acknowledged {
            assert_serves(&cluster, i, key, &[&content(*seed, 300_000)[..], &common].concat()).await;
        }
    }
    assert_eq!(cluster.unexpected_exits().expect("processes"), []);
}

#[tokio::test]
async fn the_space_of_values_that_were_overwritten_comes_back() {
    let cluster = start_with(3, &SMALL_LIMITS).await;
    let bytes = 4 * MIB;
    let mut last = Vec::new();
    for n in 0..40 {
        last = content(1_000 + n, bytes);
        put(&client(&cluster, 1), "same", &last).await;
    }
    // Small writes: the log lets go of what it named.
    eventually("the space comes back", async || {
        for n in 0..50 {
            put(&client(&cluster, 1), &format!("small {n}"), &[b'x'; 500]).await;
        }
        let used: Vec<_> = (1..=3).map(|i| objects_bytes(&cluster, i)).collect();
        assert!(used.iter().all(|used| *used > bytes as u64), "the value is somewhere: {used:?} bytes");
        // The value, what is not collected yet, and a segment that is being written.
        if used.iter().all(|used| *used < 10 * bytes as u64) { Ok(()) } else { Err(format!("{used:?} bytes")) }
    })
    .await;
    for i in 1..=3 {
        assert_serves(&cluster, i, "same", &last).await;
    }
}

#[tokio::test]
async fn large_values_are_written_and_read_through_every_node_also_after_all_were_killed() {
    let nodes = 5;
    let mut cluster = start(nodes).await;
    let values = [("a", 5_000), ("b", 300_000), ("c", 9 * MIB), ("d", MIB), ("e", 70_000)];
    let values = values.map(|(key, bytes)| (key, content(1, bytes)));
    // Through each node: those without a replica of the shard hand the objects on.
    for (i, (key, value)) in (1..=nodes).zip(&values) {
        put(&client(&cluster, i), key, value).await;
    }
    assert_all_serve(&cluster, &values).await;
    for i in 1..=nodes {
        cluster.kill(i).expect("a running node");
    }
    for i in 1..=nodes {
        cluster.start_node(i).await.expect("a start on its data");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    assert_all_serve(&cluster, &values).await;
}
