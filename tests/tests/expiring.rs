//! Records that expire: what becomes of many of them when nodes are killed, and when the cluster is upgraded from
//! a version whose shards found them by reading all records.

use flotilla_failpoints::VERSION_VARIABLE;
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::ShardId;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use flotilla_tests::support::{
    SMALL_LIMITS, binary, checkpoints, client, eventually, start_with, status, wait_caught_up, wait_replicated,
};

use crate::upgrade::{finish, wait_version};

/// Records that expire: each shard has more of them than it keeps in memory, and several checkpoints.
const RECORDS: usize = 6_000;
/// Commands of one pipeline.
const PIPELINE: usize = 500;
/// The last version whose shards keep all expiries in memory.
const BEFORE: &str = "3";

/// Sends commands to node `i`, and returns the first line of each answer.
async fn send(cluster: &Cluster, i: usize, commands: impl Iterator<Item = String>) -> Vec<String> {
    let at = cluster.redis(i).expect("a node of the cluster");
    let mut stream = BufReader::new(TcpStream::connect(at).await.expect("a connection"));
    let (commands, mut answers): (Vec<_>, _) = (commands.collect(), Vec::new());
    for part in commands.chunks(PIPELINE) {
        let encode = |command: &String| {
            let words: Vec<_> = command.split(' ').collect();
            let texts = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect::<String>();
            format!("*{}\r\n{texts}", words.len())
        };
        stream.get_mut().write_all(part.iter().map(encode).collect::<String>().as_bytes()).await.expect("a request");
        for _ in part {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("an answer");
            if let Some(length) = line.strip_prefix('$').and_then(|length| length.trim().parse::<usize>().ok()) {
                let mut text = vec![0; length + 2];
                stream.read_exact(&mut text).await.expect("a text");
                line = String::from_utf8(text).expect("text");
            }
            answers.push(line.trim().to_owned());
        }
    }
    answers
}

/// Sends a command for each record, until each was answered as expected.
async fn for_each(cluster: &Cluster, i: usize, command: impl Fn(usize) -> String, expected: &str) {
    let mut rest: Vec<_> = (0..RECORDS).collect();
    eventually("every record is written", async || {
        let answers = send(cluster, i, rest.iter().map(|n| command(*n))).await;
        let refused: Vec<_> = rest.iter().zip(&answers).filter(|(_, answer)| *answer != expected).collect();
        let missing = refused.first().map(|(n, answer)| format!("{n}: {answer}"));
        rest = refused.into_iter().map(|(n, _)| *n).collect();
        missing.map_or(Ok(()), Err)
    })
    .await;
}

/// Stores records that expire in an hour, and waits until each shard has written some into a checkpoint.
async fn store(cluster: &Cluster) {
    for_each(cluster, 1, |n| format!("SET k{n:05} value{n} EX 3600"), "+OK").await;
    for i in 1..=3 {
        eventually("checkpoints", async || {
            let found = checkpoints(&status(cluster, i).await);
            if found.values().all(|index| *index > 0) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}

/// Waits until node `i` counts so many records, all of which expire.
async fn wait_counted(cluster: &Cluster, i: usize, records: usize) {
    eventually("the count", async || {
        let answers = send(cluster, i, ["DBSIZE".to_owned(), "INFO keyspace".to_owned()].into_iter()).await;
        let expires = format!("expires={records},");
        let is_counted = answers[0] == format!(":{records}") && (records == 0 || answers[1].contains(&expires));
        if is_counted { Ok(()) } else { Err(format!("{answers:?}")) }
    })
    .await;
}

/// Lets all records expire in a moment, and waits until no replica stores one any more.
async fn expire_all(cluster: &Cluster, i: usize) {
    for_each(cluster, i, |n| format!("PEXPIRE k{n:05} 1500"), ":1").await;
    wait_counted(cluster, i, 0).await;
    for i in 1..=3 {
        eventually("due records are removed", async || {
            let digests = client(cluster, i).digests().await.map_err(|error| error.to_string())?;
            // The metadata has records of its own.
            let shards = digests.replicas.iter().filter(|replica| replica.shard != ShardId::META);
            let held = shards.map(|replica| replica.held.as_ref().map(|held| held.records));
            match held.sum::<Option<u64>>() {
                Some(0) => Ok(()),
                stored => Err(format!("{stored:?} on node {i}")),
            }
        })
        .await;
    }
}

/// Kills a node and starts it again.
async fn crash(cluster: &mut Cluster, i: usize) {
    cluster.kill(i).expect("a running node");
    cluster.start_node(i).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_caught_up(cluster, i, i % 3 + 1).await;
}

#[tokio::test]
async fn many_records_that_expire_outlive_crashes_and_disappear_in_time() {
    let mut cluster = start_with(3, &SMALL_LIMITS).await;
    store(&cluster).await;
    for i in 1..=3 {
        crash(&mut cluster, i).await;
        wait_counted(&cluster, i, RECORDS).await;
    }
    expire_all(&cluster, 2).await;
}

#[tokio::test]
async fn an_upgrade_turns_expiries_into_records_and_loses_none() {
    let mut options = ClusterOptions::new(3, binary());
    options.arguments = SMALL_LIMITS.map(str::to_owned).to_vec();
    options.variables = vec![(VERSION_VARIABLE.to_owned(), BEFORE.to_owned())];
    let mut cluster = Cluster::start(options).await.expect("a cluster");
    store(&cluster).await;
    cluster.clear_variables();
    for i in 1..=3 {
        cluster.set_variable(i, VERSION_VARIABLE, "").expect("a node of the cluster");
        crash(&mut cluster, i).await;
        wait_counted(&cluster, i, RECORDS).await;
    }
    wait_version(&cluster, &[1, 2, 3], 3).await;
    finish(&cluster, 1, 4).await;
    // It misses some of the steps by which shards write expiries down.
    cluster.kill(3).expect("a running node");
    wait_version(&cluster, &[1, 2], 4).await;
    wait_counted(&cluster, 1, RECORDS).await;
    cluster.start_node(3).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    wait_replicated(&cluster, &[1, 2, 3]).await;
    for i in 1..=3 {
        crash(&mut cluster, i).await;
        wait_counted(&cluster, i, RECORDS).await;
    }
    expire_all(&cluster, 3).await;
}
