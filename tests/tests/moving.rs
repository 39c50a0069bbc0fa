//! A replica of a large shard moves to another node: while the receiver, a source and the leader are killed, and
//! at a rate that changes meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_api::{NodeVerb, OperationInfo};
use flotilla_client::PutOptions;
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::{NodeId, OperationKind, ShardId};
use tokio::time::sleep;

use flotilla_tests::support::{WITHIN, binary, client, eventually, metrics, status, wait_replicated};

/// Size of the shard in MiB, unless `FLOTILLA_MOVED_MIB` says otherwise.
const MIB: usize = 128;
/// The receiver's rate: a move of the default size takes half a minute.
const BYTES_PER_SECOND: usize = 4 << 20;
const VALUE_BYTES: usize = 256 << 10;
/// Puts in flight.
const PARALLEL: usize = 4;
/// Pieces that may be sent again for each kill.
const AGAIN_MAX: u64 = 2;
/// Fewer are not all objects of the shard: the manifests have not told of their pieces yet.
const OBJECTS_MIN: u64 = 20;
/// The receiver.
const NEW: usize = 4;

/// Bytes that nothing compresses or shares, different for each key.
fn value(number: usize) -> Bytes {
    let mut state = number as u64 + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(VALUE_BYTES / 8).flatten().collect()
}

fn key(number: usize) -> String {
    format!("large/{number:06}")
}

/// The counters of node `i`, and none while it does not answer.
async fn counters(cluster: &Cluster, i: usize) -> BTreeMap<String, u64> {
    let text = metrics(cluster, i).await.unwrap_or_default();
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
    };
    text.lines().filter_map(value).collect()
}

/// Objects that the receiver has fetched since its start, for all shards.
async fn pulled(cluster: &Cluster) -> u64 {
    counters(cluster, NEW).await.get("flotilla_objects_pulled_total").copied().unwrap_or_default()
}

/// How many objects of the large shard's snapshot the receiver has, and how many there are, once it knows them and
/// has so many.
async fn received(cluster: &Cluster, objects: u64) -> (u64, u64) {
    eventually("objects arrive", async || {
        let list = client(cluster, NEW).operations().await.map_err(|error| error.to_string())?;
        let receives = |found: &&OperationInfo| found.kind == OperationKind::ReceiveSnapshot;
        let large = list.operations.iter().filter(receives).find(|found| found.shard != ShardId::META);
        let progress = large.map(|found| (found.progress.objects, found.progress.objects_total));
        match progress {
            Some((Some(here), Some(total))) if total > OBJECTS_MIN && here >= objects => Ok((here, total)),
            progress => Err(format!("{progress:?}, of {objects}")),
        }
    })
    .await
}

/// The large shard, the member that leads it, and its other voters but the one that leaves.
async fn shard_of(cluster: &Cluster, through: usize, leaving: NodeId) -> (ShardId, NodeId, Vec<NodeId>) {
    eventually("the shard has a leader", async || {
        let shards = client(cluster, through).shards().await.map_err(|error| error.to_string())?;
        let shard = shards.iter().find(|shard| shard.id != ShardId::META).ok_or("no shard")?;
        let leader = shard.leader.ok_or("no leader")?;
        let others = shard.replicas.iter().map(|replica| replica.node).filter(|node| *node != leader);
        Ok((shard.id, leader, others.filter(|node| *node != leaving).collect()))
    })
    .await
}

/// Waits until the records of the copies were compared: the fold that is ordered for that rewrites the objects of the
/// shard, and a later snapshot has other ones.
async fn wait_folded(cluster: &Cluster) {
    eventually("the shard was folded", async || {
        let report = client(cluster, 1).consistency().await.map_err(|error| error.to_string())?;
        let is_folded = report.shards.iter().any(|shard| shard.shard != ShardId::META && shard.fold.is_some());
        if is_folded { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
}

async fn load(cluster: &Cluster, values: usize) {
    let mut puts = tokio::task::JoinSet::new();
    for task in 0..PARALLEL {
        let client = client(cluster, 1);
        puts.spawn(async move {
            for number in (task..values).step_by(PARALLEL) {
                let began = Instant::now();
                while let Err(error) =
                    client.put("default", key(number).as_bytes(), value(number), &PutOptions::default()).await
                {
                    assert!(began.elapsed() < WITHIN, "{} is not put: {error}", key(number));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    while let Some(put) = puts.join_next().await {
        put.expect("a put");
    }
}

#[tokio::test]
async fn a_move_sends_at_most_two_pieces_again_for_each_process_that_is_killed() {
    let mib = std::env::var("FLOTILLA_MOVED_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(MIB);
    let rate = BYTES_PER_SECOND * mib / MIB;
    let values = (mib << 20) / VALUE_BYTES;
    let mut options = ClusterOptions::new(1, binary());
    options.arguments = ["--shards", "1"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    load(&cluster, values).await;
    // Nodes that join get the same objects as the first one has.
    for i in [2, 3] {
        cluster.add_node().await.expect("another node");
        cluster.wait_node(i).await.expect("a node that serves");
    }
    wait_replicated(&cluster, &[1, 2, 3]).await;
    cluster.add_node().await.expect("a fourth node");
    cluster.wait_node(NEW).await.expect("a node that serves");
    cluster.kill(NEW).expect("a running node");
    cluster.set_variable(NEW, "FLOTILLA_TRANSFER_BYTES_PER_SECOND", &rate.to_string()).expect("a node");
    cluster.start_node(NEW).await.expect("a start on its data");
    cluster.wait_node(NEW).await.expect("a node that serves");
    let mut members = BTreeMap::new();
    for i in 1..=NEW {
        members.insert(status(&cluster, i).await.node, i);
    }

    wait_folded(&cluster).await;
    let leaving = status(&cluster, 3).await.node;
    client(&cluster, 2).change_node(leaving, NodeVerb::Decommission, false, false).await.expect("a decommission");

    // The receiver.
    let (_, objects) = received(&cluster, 1).await;
    let (before, _) = received(&cluster, objects / 5).await;
    cluster.kill(NEW).expect("a running node");
    cluster.start_node(NEW).await.expect("a start on its data");
    let (kept, _) = received(&cluster, 1).await;
    eprintln!("{objects} objects; the receiver was killed after {before} and has {kept} again");
    assert!(before <= kept + AGAIN_MAX, "{before} objects had arrived and {kept} are here after the kill");

    // A source.
    received(&cluster, objects * 2 / 5).await;
    let (_, _, others) = shard_of(&cluster, NEW, leaving).await;
    let source = members[others.first().expect("another voter")];
    cluster.kill(source).expect("a running node");
    received(&cluster, objects / 2).await;
    cluster.start_node(source).await.expect("a start on its data");
    cluster.wait_node(source).await.expect("a node that serves");

    // The leader.
    let (_, leader, _) = shard_of(&cluster, NEW, leaving).await;
    let leader = members[&leader];
    let (here, _) = received(&cluster, 1).await;
    assert!(here < objects, "the transfer is too quick for this test");
    cluster.kill(leader).expect("a running node");
    let through = if leader == 1 { 2 } else { 1 };
    eventually("the replica has moved", async || {
        let shards = client(&cluster, through).shards().await.map_err(|error| error.to_string())?;
        let shard = shards.iter().find(|shard| shard.id != ShardId::META).ok_or("no shard")?;
        let nodes: Vec<_> = shard.replicas.iter().map(|replica| replica.node).collect();
        let pulled = pulled(&cluster).await;
        let is_moved = !nodes.contains(&leaving) && pulled > 0;
        if is_moved { Ok(()) } else { Err(format!("{nodes:?}, {pulled} of {objects} objects fetched")) }
    })
    .await;
    let counters = counters(&cluster, NEW).await;
    let pulled = counters["flotilla_objects_pulled_total"];
    let by_source: Vec<_> = counters.iter().filter(|(name, _)| name.starts_with("flotilla_transfer_source")).collect();
    eprintln!("{pulled} objects were fetched after the first kill, {kept} of {objects} were here: {by_source:?}");
    // What arrived between the start of the receiver and the first look is in both.
    assert!(pulled <= objects - before + 3 * AGAIN_MAX, "{pulled} fetched, of {objects} less {before}");
    let sources = by_source.iter().filter(|(name, count)| name.contains("objects_total") && **count > 0).count();
    assert!(sources >= 2, "{by_source:?}");

    cluster.start_node(leader).await.expect("a start on its data");
    cluster.wait_node(leader).await.expect("a node that serves");
    wait_replicated(&cluster, &(1..=NEW).filter(|i| *i != 3).collect::<Vec<_>>()).await;
    for number in [0, values / 2, values - 1] {
        let found = client(&cluster, NEW).get("default", key(number).as_bytes()).await.expect("a read");
        assert_eq!(found.expect("a record").value, value(number), "{}", key(number));
    }
}

#[tokio::test]
async fn a_transfer_follows_the_rate_of_the_cluster_while_it_runs() {
    const MIB: usize = 64;
    // All would take two minutes.
    const RATE: u64 = 512 << 10;
    const KEY: &str = "transfer_bytes_per_second";
    let mut options = ClusterOptions::new(1, binary());
    options.arguments = ["--shards", "1"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    load(&cluster, (MIB << 20) / VALUE_BYTES).await;
    assert!(client(&cluster, 1).put_setting(KEY, 1).await.is_err(), "a rate at which no object arrives in time");
    client(&cluster, 1).put_setting(KEY, RATE).await.expect("a setting");

    cluster.add_node().await.expect("another node");
    cluster.wait_node(2).await.expect("a node that serves");
    let start = Instant::now();
    cluster.add_node().await.expect("another node");
    cluster.wait_node(3).await.expect("a node that serves");
    const BYTES: &str = "flotilla_objects_pulled_bytes_total";
    let bytes = eventually("a part has arrived", async || {
        let bytes = counters(&cluster, 3).await.get(BYTES).copied().unwrap_or_default();
        if bytes > 12 * RATE { Ok(bytes) } else { Err(format!("{bytes} bytes")) }
    })
    .await;
    // The first requests wait for nothing: an object or two.
    let possible = (start.elapsed().as_secs_f64() * RATE as f64) as u64 + 8 * RATE;
    assert!(bytes <= possible, "{bytes} bytes have arrived, of {possible} that the rate allows");

    client(&cluster, 2).put_setting(KEY, 0).await.expect("a setting");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    assert!(start.elapsed().as_secs() < (MIB << 20) as u64 / RATE, "it took as long as with the rate");
}
