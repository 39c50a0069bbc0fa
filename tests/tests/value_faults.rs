//! Large values beside wrong bytes: of a peer, on the disk, and in a folder of objects that is an old copy.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use flotilla_api::{ObjectName, ObjectNeed, ScrubReport};
use flotilla_client::PutOptions;
use flotilla_local_cluster::Cluster;
use flotilla_types::{ObjectId, ObjectRef, ShardId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use flotilla_tests::support::{
    SMALL_LIMITS, binary, client, eventually, led_shards, replicas_of, start_with, status, try_connect,
    values::{assert_all_serve, assert_serves, content, counter, put, sum},
    wait_caught_up, wait_replicated,
};

const MIB: usize = 1 << 20;
/// Where a node keeps its objects, in its data folder.
const OBJECTS: &str = "state/objects";
/// Lengths of chunks, as collections cut values unless they say otherwise.
const CHUNK_BYTES_MIN: usize = 4 << 10;
const CHUNK_BYTES_MAX: usize = 64 << 10;
/// So many bytes of random content are nowhere else.
const PATTERN_BYTES: usize = 16;
/// Passes begin only when they are asked for.
const NO_SCRUB: [&str; 2] = ["--scrub-pause", "0s"];

/// Runs a pass of the scrub on all nodes.
fn scrub(cluster: &Cluster) -> ScrubReport {
    let mut command = Command::new(binary());
    command.args(["scrub", "-o", "json", "--now", "--wait", "--addr", &cluster.http(1).expect("a node")]);
    let output = command.output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// Damaged objects that the scrub of node `i` has found.
async fn damaged_objects(cluster: &Cluster, i: usize, report: &ScrubReport) -> u64 {
    let id = status(cluster, i).await.node;
    report.nodes.iter().find(|node| node.node == id).expect("its part").objects_damaged
}

async fn wait_whole(cluster: &Cluster) {
    eventually("every replica is whole", async || {
        let report = client(cluster, 1).scrub().await.map_err(|error| error.to_string())?;
        let whole = report.silent.is_empty() && report.nodes.iter().all(|node| node.damaged.is_empty());
        if whole { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
    wait_replicated(cluster, &[1, 2, 3]).await;
}

fn segments(cluster: &Cluster, i: usize) -> Vec<PathBuf> {
    let folder = cluster.node(i).expect("a node").data_dir.join(OBJECTS);
    fs::read_dir(folder).expect("objects").map(|file| file.expect("a file").path()).collect()
}

/// Overwrites bytes of these values in the segments of node `i`, running or not: at least one of every chunk, but for
/// the last ones of values. Returns how many.
fn damage(cluster: &Cluster, i: usize, values: &[&[u8]]) -> usize {
    let parts =
        values.iter().flat_map(|value| value.chunks(CHUNK_BYTES_MIN)).filter(|part| part.len() >= PATTERN_BYTES);
    let parts: Vec<_> = parts.map(|part| &part[..PATTERN_BYTES]).collect();
    let start = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut starting_with = vec![Vec::new(); 1 << 16];
    parts.iter().for_each(|part| starting_with[start(part)].push(*part));
    let mut found = 0;
    for path in segments(cluster, i) {
        let file = fs::File::options().read(true).write(true).open(&path).expect("a segment");
        let bytes = fs::read(&path).expect("a segment");
        for at in 0..bytes.len().saturating_sub(1) {
            if starting_with[start(&bytes[at..])].iter().any(|part| bytes[at..].starts_with(part)) {
                file.write_all_at(&[bytes[at] ^ 0x10], at as u64).expect("a byte");
                found += 1;
            }
        }
    }
    found
}

/// Small writes to all shards, so that checkpoints follow.
async fn fill(cluster: &Cluster, i: usize, round: usize) {
    for key in 0..100 {
        put(&client(cluster, i), &format!("fill {round}/{key}"), &[b'x'; 500]).await;
    }
}

/// Node 2 corrupts whatever it sends to its peers, after it was read and verified.
#[tokio::test]
async fn a_peer_that_sends_wrong_bytes_is_believed_nothing_and_costs_no_client_anything() {
    let mut cluster = start_with(3, &[&SMALL_LIMITS[..], &NO_SCRUB].concat()).await;
    let flawed = status(&cluster, 2).await.node;
    eventually("node 2 leads a shard", async || {
        let status = client(&cluster, 1).status().await.map_err(|error| error.to_string())?;
        if led_shards(&status, flawed) > 0 { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
    cluster.set_failpoints(2, "snapshot::flaw=return(7)").expect("a folder");
    let keys: Vec<_> = (0..16).map(|n| format!("value {n}")).collect();
    // Some are fetched from the gateway before they are proposed, some from the leader.
    let bytes = |n| if n % 4 < 2 { 400_000 } else { 200_000 };
    let values: Vec<_> = keys.iter().zip(0..).map(|(key, n)| (&key[..], content(n, bytes(n)))).collect();
    for ((key, value), i) in values.iter().zip([1, 3].into_iter().cycle()) {
        put(&client(&cluster, i), key, value).await;
    }
    for i in 1..=3 {
        for of in [1, 3] {
            wait_caught_up(&cluster, i, of).await;
        }
    }
    assert_all_serve(&cluster, &values).await;
    let failures = "flotilla_transfer_source_failures_total";
    let bad = sum(&cluster, &format!("{failures}{{source=\"{flawed}\",reason=\"bad_object\"}}")).await;
    assert!(bad > 0, "nobody has noticed: the test is void");

    // Now and then, as a bad memory does, in what follows after an absence, too: by entry or by snapshot.
    cluster.kill(3).expect("a running node");
    cluster.set_failpoints(2, "snapshot::flaw=10%return(7)").expect("a folder");
    let later: Vec<_> = keys.iter().zip(100..).map(|(key, n)| (&key[..], content(n, 300_000))).collect();
    for (round, (key, value)) in later.iter().enumerate() {
        put(&client(&cluster, 1), key, value).await;
        if round % 4 == 0 {
            fill(&cluster, 1, round).await;
        }
    }
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(&cluster, 3, 1).await;
    assert_all_serve(&cluster, &later).await;
    let report = scrub(&cluster);
    for i in 1..=3 {
        assert_eq!(damaged_objects(&cluster, i, &report).await, 0, "node {i}");
    }
    assert_eq!(cluster.unexpected_exits().expect("processes"), []);
}

/// The objects were verified when they were stored, so nobody looks at them again before they are read.
#[tokio::test]
async fn chunks_that_rot_while_their_node_runs_are_read_from_its_peers_and_repaired() {
    let cluster = start_with(3, &[&SMALL_LIMITS[..], &NO_SCRUB].concat()).await;
    let values = [("a", content(1, 3 * MIB)), ("b", content(2, 200_000)), ("c", content(3, MIB))];
    for (key, value) in &values {
        put(&client(&cluster, 1), key, value).await;
    }
    for i in [2, 3] {
        wait_caught_up(&cluster, i, 1).await;
    }
    assert_all_serve(&cluster, &values).await;
    // The last one is not read: the scrub finds its damage.
    let contents: Vec<_> = values.iter().map(|(_, value)| &value[..]).collect();
    assert!(damage(&cluster, 3, &contents) > 200, "the test is void");
    for (key, value) in &values[..2] {
        assert_serves(&cluster, 3, key, value).await;
    }
    let restored = counter(&cluster, 3, "flotilla_value_objects_restored_total").await.expect("an answer");
    assert!(restored > 0, "nothing that was read was damaged: the test is void");
    let report = scrub(&cluster);
    let found = damaged_objects(&cluster, 3, &report).await;
    assert!(found >= (values[2].1.len() / CHUNK_BYTES_MAX) as u64, "{found} objects");
    eventually("the damage is announced", async || {
        let events = client(&cluster, 3).recent_events().await.map_err(|error| error.to_string())?;
        let has = |kind| events.iter().any(|event| event.kind == kind);
        if has("replica_damaged") && has("replica_repaired") { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    wait_whole(&cluster).await;
    assert_all_serve(&cluster, &values).await;
    let again = scrub(&cluster);
    assert!(again.nodes.iter().all(|node| node.damaged.is_empty()), "{again:?}");
}

/// Asks a node which of these chunks it lacks.
async fn missing(cluster: &Cluster, i: usize, chunks: &[Vec<u8>]) -> Vec<ObjectId> {
    let at = cluster.node(i).expect("a node").http;
    let refs = chunks.iter().map(|chunk| ObjectRef { id: ObjectId::of(chunk), height: 0, bytes: chunk.len() as u64 });
    let refs: Vec<_> = refs.map(ObjectNeed::from).collect();
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "objects.missing", "params": { "refs": refs } });
    let body = call.to_string();
    let length = body.len();
    let request = format!(
        "POST /v1/rpc HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut connection = try_connect(cluster, at).await.expect("a connection");
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let mut answer: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let names: Vec<ObjectName> = serde_json::from_value(answer["result"]["missing"].take()).expect("names");
    names.into_iter().map(|name| name.0).collect()
}

fn sorted_ids(chunks: &[Vec<u8>]) -> Vec<ObjectId> {
    let mut ids: Vec<_> = chunks.iter().map(|chunk| ObjectId::of(chunk)).collect();
    ids.sort_unstable();
    ids
}

/// One node: nobody repairs what is damaged before it is asked for.
#[tokio::test]
async fn a_node_names_as_missing_what_is_damaged_until_it_is_written_again() {
    let mut cluster = start_with(1, &NO_SCRUB).await;
    // Each is a single chunk.
    let values: Vec<_> = (0..9).map(|n| content(n, CHUNK_BYTES_MIN + 1)).collect();
    let key = |n: usize| format!("value {n}");
    for (n, value) in values.iter().enumerate() {
        put(&client(&cluster, 1), &key(n), value).await;
    }
    assert_eq!(missing(&cluster, 1, &values).await, []);
    let damage_some = |cluster: &Cluster, some: &[Vec<u8>]| {
        let found = damage(cluster, 1, &some.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(found, some.len(), "the test is void");
    };
    // Found by the scrub.
    damage_some(&cluster, &values[..3]);
    scrub(&cluster);
    let mut absent = missing(&cluster, 1, &values).await;
    absent.sort_unstable();
    assert_eq!(absent, sorted_ids(&values[..3]));
    // Before anybody has read them since the start.
    cluster.kill(1).expect("a running node");
    damage_some(&cluster, &values[3..6]);
    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready node");
    let mut absent = missing(&cluster, 1, &values).await;
    absent.sort_unstable();
    assert_eq!(absent, sorted_ids(&values[..6]));
    for (n, value) in values.iter().enumerate() {
        let read = client(&cluster, 1).get("default", key(n).as_bytes()).await;
        match read {
            Ok(record) => assert!(n >= 6 && record.expect("a record").value == *value, "value {n}"),
            Err(error) => assert!(n < 6, "value {n}: {error}"),
        }
    }
    // Whoever writes the values again has what is missing.
    for (n, value) in values.iter().enumerate() {
        put(&client(&cluster, 1), &key(n), value).await;
    }
    assert_eq!(missing(&cluster, 1, &values).await, []);
    for (n, value) in values.iter().enumerate() {
        assert_serves(&cluster, 1, &key(n), value).await;
    }
}

/// Asserts that a node serves this value, if it serves the record now.
async fn reads_right(cluster: &Cluster, i: usize, key: &str, value: &[u8]) -> Result<(), String> {
    let record = client(cluster, i).get("default", key.as_bytes()).await.map_err(|error| error.to_string())?;
    let found = record.map(|record| record.value);
    assert!(found.as_deref() == Some(value), "{key} through node {i} is not what was written last");
    Ok(())
}

/// The folder of objects is put back as it was, beside a log that knows what was written since.
async fn objects_from_before(limits: &[&str]) {
    let mut cluster = start_with(3, &[limits, &NO_SCRUB].concat()).await;
    let keys: Vec<_> = (0..12).map(|n| format!("value {n}")).collect();
    for (key, n) in keys.iter().zip(0..) {
        put(&client(&cluster, 1), key, &content(n, 300_000)).await;
    }
    fill(&cluster, 1, 0).await;
    cluster.kill(2).expect("a running node");
    cluster.backup_folder(2, Path::new(OBJECTS)).expect("a copy");
    cluster.start_node(2).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");

    // Some are written anew, some stay, some are new.
    let mut expected: Vec<_> = keys.iter().zip(0..).map(|(key, n)| (key.clone(), content(n, 300_000))).collect();
    for (n, (key, value)) in expected.iter_mut().enumerate().filter(|(n, _)| n % 2 == 0) {
        *value = content(1_000 + n as u64, 400_000);
        put(&client(&cluster, 1 + n % 3), key, value).await;
    }
    for n in 0..6 {
        expected.push((format!("new {n}"), content(2_000 + n, 350_000)));
        let (key, value) = expected.last().expect("it was pushed");
        put(&client(&cluster, 3), key, value).await;
        fill(&cluster, 2, n as usize).await;
    }
    wait_caught_up(&cluster, 2, 1).await;
    let id = status(&cluster, 2).await.node;
    let before = replicas_of(&cluster, 1, id).await;
    cluster.kill(2).expect("a running node");
    cluster.restore_folder(2, Path::new(OBJECTS)).expect("a copy");
    cluster.start_node(2).await.expect("a start on the old objects");

    // Whoever answers meanwhile answers right; the other nodes do soon, whoever leads.
    let mut answers = 0;
    for (key, value) in &expected {
        answers += usize::from(reads_right(&cluster, 2, key, value).await.is_ok());
        for i in [1, 3] {
            eventually("an answer", async || reads_right(&cluster, i, key, value).await).await;
        }
    }
    eprintln!("{answers} of {} reads through node 2 were answered meanwhile", expected.len());
    cluster.wait_ready().await.expect("a ready cluster");
    eventually("replicas that lack objects are replaced or repaired", async || {
        let report = client(&cluster, 1).scrub().await.map_err(|error| error.to_string())?;
        let whole = report.silent.is_empty() && report.nodes.iter().all(|node| node.damaged.is_empty());
        if whole { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let after = replicas_of(&cluster, 1, id).await;
    let kept = before.intersection(&after).filter(|(shard, _)| *shard != ShardId::META).count();
    eprintln!("{kept} of {} replicas were kept", before.len());
    wait_caught_up(&cluster, 2, 1).await;
    // It has everything itself.
    let pulled = async || counter(&cluster, 2, "flotilla_objects_pulled_total").await.expect("an answer");
    let before = pulled().await;
    for (key, value) in &expected {
        assert_serves(&cluster, 2, key, value).await;
    }
    assert_eq!(pulled().await, before, "objects that it lacked");
    // Without a node that has repaired it, it is half of the majority.
    cluster.kill(1).expect("a running node");
    for (key, value) in &expected {
        for i in [2, 3] {
            eventually("a read without node 1", async || reads_right(&cluster, i, key, value).await).await;
        }
    }
    client(&cluster, 2).put("default", b"after", "it".into(), &PutOptions::default()).await.expect("a quorum");
}

#[tokio::test]
async fn an_old_copy_of_the_objects_beside_newer_checkpoints_loses_nothing() {
    objects_from_before(&SMALL_LIMITS).await;
}

#[tokio::test]
async fn an_old_copy_of_the_objects_beside_a_log_that_refers_to_newer_ones_loses_nothing() {
    objects_from_before(&[]).await;
}
