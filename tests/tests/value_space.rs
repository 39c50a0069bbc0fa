//! Large values and the space of a disk: one that is full, and what comes back when values are overwritten.

use std::time::{Duration, Instant};

use flotilla_client::{Client, ClientOptions, PutOptions};
use flotilla_local_cluster::{Cluster, ClusterOptions, DISK_TOOLS, missing_privilege};

use flotilla_tests::support::{
    SMALL_LIMITS, binary, client, eventually, start_with,
    values::{assert_all_serve, assert_serves, content, objects_bytes, put},
    wait_caught_up, wait_replicated,
};

const MIB: usize = 1 << 20;
/// Bytes of each node's own disk.
const DISK_BYTES: u64 = 256 << 20;
/// Exit code of a node that cannot continue.
const FATAL_EXIT_CODE: i32 = 70;
/// Timeout of a call to a node whose disk is full.
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// A client of node `i` that does not wait long.
fn hasty(cluster: &Cluster, i: usize) -> Client {
    let mut options = ClientOptions::new([cluster.http(i).expect("a node")]);
    options.timeout = CALL_WITHIN;
    Client::new(options).expect("a client of one endpoint")
}

async fn try_put(client: &Client, key: &str, content: &[u8]) -> Result<(), String> {
    let put = client.put("default", key.as_bytes(), content.to_vec().into(), &PutOptions::default()).await;
    put.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_full_disk_costs_nothing_that_was_acknowledged_and_heals_with_space() {
    if let Some(missing) = missing_privilege(DISK_TOOLS) {
        eprintln!("skipped: {missing}");
        return;
    }
    let mut options = ClusterOptions::new(3, binary());
    options.arguments = SMALL_LIMITS.map(str::to_owned).to_vec();
    options.disk_bytes = Some(DISK_BYTES);
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    let keys: Vec<_> = (0..8).map(|n| format!("value {n}")).collect();
    let mut values: Vec<_> = keys.iter().zip(0..).map(|(key, n)| (&key[..], content(n, MIB))).collect();
    for (key, value) in &values {
        put(&client(&cluster, 1), key, value).await;
    }
    for i in [2, 3] {
        wait_caught_up(&cluster, i, 1).await;
    }

    cluster.fill_disk(2).expect("a disk");
    let full = Instant::now();
    for (n, (_, value)) in values.iter_mut().enumerate().filter(|(n, _)| n % 2 == 0) {
        *value = content(100 + n as u64, 2 * MIB);
    }
    // Through the others every write succeeds, and soon, whoever leads.
    for (n, (key, value)) in values.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        for i in [1, 3] {
            eventually("a write beside a full disk", async || try_put(&hasty(&cluster, i), key, value).await).await;
        }
        let through = try_put(&hasty(&cluster, 2), key, value).await;
        eprintln!(
            "after {} ms: value {n} through the node with the full disk: {through:?}",
            full.elapsed().as_millis()
        );
    }
    for (key, value) in &values {
        for i in [1, 3] {
            assert_serves(&cluster, i, key, value).await;
        }
        if let Ok(found) = hasty(&cluster, 2).get("default", key.as_bytes()).await {
            assert!(found.is_some_and(|found| found.value == *value), "{key} through the node with the full disk");
        }
    }

    cluster.free_disk(2).expect("a disk");
    if !cluster.is_running(2).expect("node 2") {
        let status = cluster.wait_exit(2, Duration::ZERO).await.expect("it has exited");
        assert_eq!(status.code(), Some(FATAL_EXIT_CODE));
        cluster.start_node(2).await.expect("a start on its data");
    }
    cluster.wait_ready().await.expect("a ready cluster");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    wait_caught_up(&cluster, 2, 1).await;
    assert_all_serve(&cluster, &values).await;
    put(&client(&cluster, 2), "after", &content(200, MIB)).await;
}

/// How often a value is overwritten, and its length.
const OVERWRITES: u64 = 100;
const OVERWRITTEN_BYTES: u64 = 8 << 20;
/// Length of a file with objects: what is garbage in the one that is written stays until it is full.
const SEGMENT_BYTES: u64 = 32 << 20;
/// How many times its length a value takes while it is overwritten, beside what the log refers to, two files, and what
/// is stored between two collections: three, and what was fetched for entries to come and is held for two seconds.
const SPACE_FACTOR: u64 = 3 + 4;

/// Overwrites a value again and again, and compares the space that it takes meanwhile with a bound. `log_bytes` are
/// those that the log may refer to.
async fn overwrite(arguments: &[&str], log_bytes: u64) {
    let cluster = start_with(3, arguments).await;
    let (mut last, mut most) = (Vec::new(), [0; 3]);
    for n in 0..OVERWRITES {
        last = content(1_000 + n, OVERWRITTEN_BYTES as usize);
        put(&client(&cluster, 1), "same", &last).await;
        for (i, most) in (1..).zip(&mut most) {
            *most = objects_bytes(&cluster, i).max(*most);
        }
    }
    eprintln!("{most:?} bytes at most");
    let bound = SPACE_FACTOR * OVERWRITTEN_BYTES + log_bytes + 3 * SEGMENT_BYTES;
    assert!(most.iter().all(|most| *most > SEGMENT_BYTES && *most <= bound), "{most:?} of {bound} bytes");
    for i in 1..=3 {
        assert_serves(&cluster, i, "same", &last).await;
    }
}

#[tokio::test]
async fn a_value_that_is_overwritten_again_and_again_takes_a_few_times_its_space_at_any_time() {
    overwrite(&SMALL_LIMITS, 0).await;
}

#[tokio::test]
async fn what_the_log_may_refer_to_bounds_the_space_of_overwritten_values() {
    overwrite(&[], 64 << 20).await;
}
