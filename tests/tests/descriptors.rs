//! A node whose clients open more connections than the process has file descriptors.

use flotilla_local_cluster::{Cluster, ClusterOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use flotilla_tests::support::{WITHIN, binary, checkpoints, eventually, log, status};

/// Files that the node may open.
const DESCRIPTORS: u64 = 512;
/// Idle connections that clients try to keep.
const IDLE: usize = 600;
/// Bytes of a value, and how many are written: several checkpoints of each shard.
const VALUE_BYTES: usize = 20 << 10;
const VALUES: usize = 600;

#[tokio::test]
async fn idle_clients_leave_the_node_the_descriptors_that_it_needs() {
    let mut options = ClusterOptions::new(1, binary());
    let limits = ["--memtable-bytes", "1048576", "--log-bytes", "2097152"];
    options.arguments = limits.map(str::to_owned).to_vec();
    options.descriptors_max = Some(DESCRIPTORS);
    let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("the node does not start: {error}"));
    let said = log(&cluster, 1);
    assert_eq!(said.matches("leaves room for fewer client connections").count(), 1, "{said}");
    let redis = cluster.redis(1).expect("a node of the cluster");
    let before = checkpoints(&status(&cluster, 1).await);

    let mut writer = TcpStream::connect(redis).await.expect("a connection");
    assert_eq!(call(&mut writer, b"PING\r\n").await, "+PONG\r\n");
    let (mut idle, mut refused) = (Vec::new(), 0);
    for _ in 0..IDLE {
        let mut stream = TcpStream::connect(redis).await.expect("the backlog takes a connection");
        match call(&mut stream, b"PING\r\n").await.as_str() {
            "+PONG\r\n" => idle.push(stream),
            answer => {
                assert!(answer.is_empty() || answer.starts_with("-ERR max number of clients"), "{answer}");
                refused += 1;
            }
        }
    }
    assert!(!idle.is_empty() && refused > 0, "{} connections stay open, {refused} are refused", idle.len());

    let value = "v".repeat(VALUE_BYTES);
    for i in 0..VALUES {
        let key = format!("k{i}");
        let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE_BYTES}\r\n{value}\r\n", key.len());
        assert_eq!(call(&mut writer, set.as_bytes()).await, "+OK\r\n");
    }
    eventually("the node writes checkpoints", async || {
        let now = checkpoints(&status(&cluster, 1).await);
        let moved = now.iter().filter(|(shard, index)| before.get(shard) < Some(index)).count();
        if moved >= 2 { Ok(()) } else { Err(format!("{moved} shards have a new checkpoint")) }
    })
    .await;
    drop(idle);
}

/// Sends a command and reads its short answer; empty when the node closes the connection.
async fn call(stream: &mut TcpStream, command: &[u8]) -> String {
    // A refused connection may be closed before everything is sent.
    let _ = stream.write_all(command).await;
    let mut answer = [0; 128];
    let read = timeout(WITHIN, stream.read(&mut answer)).await.expect("an answer or an end").unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}
