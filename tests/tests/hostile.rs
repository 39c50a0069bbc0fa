//! Malformed and oversized input on every port.

use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_api::{LARGE_VALUE_BYTES_MAX, ProblemType};
use flotilla_client::{ClientError, PutOptions};
use flotilla_local_cluster::Cluster;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket, tcp::ReadHalf},
    time::timeout,
};

use flotilla_tests::support::{WITHIN, client, log, start};

/// Attacks before memory is measured.
const WARM_UP_ROUNDS: usize = 2;
/// Attacks during which memory must not grow.
const ROUNDS: usize = 4;
/// Growth of a node's memory that is tolerated: allocators retain some freed memory.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Idle connections that have sent half a request.
const IDLE_CONNECTIONS: usize = 100;
/// Packets of each kind.
const PACKETS: usize = 500;

#[tokio::test]
async fn hostile_input_on_every_port_is_refused_and_leaks_no_memory() {
    let cluster = start(3).await;
    client(&cluster, 1).put("default", b"before", "x".into(), &PutOptions::default()).await.expect("a put");
    for _ in 0..WARM_UP_ROUNDS {
        attack(&cluster).await;
    }
    let before = resident_bytes(&cluster);
    for _ in 0..ROUNDS {
        attack(&cluster).await;
    }
    let after = resident_bytes(&cluster);
    eprintln!("resident: {} MiB, then {} MiB", before >> 20, after >> 20);
    assert!(after < before + GROWTH_BYTES_MAX, "the node grew from {before} to {after} bytes");

    let client = client(&cluster, 1);
    assert!(client.get("default", b"before").await.expect("a read").is_some());
    client.put("default", b"after", "x".into(), &PutOptions::default()).await.expect("a put");
    let log = log(&cluster, 1);
    assert!(!log.contains("panicked"), "{log}");
}

async fn attack(cluster: &Cluster) {
    let node = cluster.node(1).expect("a node");
    attack_http(node.http).await;
    attack_redis(node.redis).await;
    attack_quic(node.quic).await;
    assert!(node.is_running());
}

async fn attack_http(at: SocketAddr) {
    for bytes in [
        noise(4_096),
        vec![0; 100_000],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /v1/kv/default/k HTTP/1.1\r\nhost: localhost\r\nx: "
            .iter()
            .copied()
            .chain(vec![b'y'; 10 << 20])
            .collect(),
        b"POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
    ] {
        let answer = exchange(at, &bytes).await;
        let status = answer.split(|byte| *byte == b' ').nth(1);
        let refused = status.is_none_or(|status| status.starts_with(b"4") || status.starts_with(b"5"));
        assert!(refused, "{}", String::from_utf8_lossy(&answer));
    }
    for half in [
        "GE",
        "GET /v1/kv/default/k HTTP/1.1\r\nho",
        "PUT /v1/kv/default/half HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhal",
        "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n{",
    ] {
        send_and_shut_down(at, half.as_bytes()).await;
    }
    for (request, kind) in [
        ("PUT /v1/kv/default/%zz", "400"),
        ("DELETE /v1/kv/default", "405"),
        ("GET /v1/kv/default/k?consistency=psychic", "400"),
        ("GET /../../etc/passwd", "404"),
        ("PATCH /v1/batch", "405"),
    ] {
        let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let answer = exchange(at, head.as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {kind}")), "{request}: {answer}");
        assert!(answer.contains("application/problem+json"), "{request}: {answer}");
    }
    let mut idle = Vec::new();
    for _ in 0..IDLE_CONNECTIONS {
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        stream.write_all(b"GET /v1/").await.expect("half a request");
        idle.push(stream);
    }
    let answer = exchange(at, b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

async fn attack_redis(at: SocketAddr) {
    for bytes in [
        noise(4_096),
        b"*1000000000\r\n".to_vec(),
        b"*1\r\n$99999999999\r\n".to_vec(),
        b"*-5\r\n$-7\r\n".to_vec(),
        b"*2\r\n$3\r\nGET\r\n$4\r\nha".to_vec(),
        vec![b'a'; 2 << 20],
        b"*1\r\n".repeat(10_000),
    ] {
        send_and_shut_down(at, &bytes).await;
    }
    let answer = exchange(at, b"PING\r\nNONSENSE 1 2\r\nQUIT\r\n").await;
    assert!(answer.starts_with(b"+PONG\r\n-ERR"), "{}", String::from_utf8_lossy(&answer));
}

async fn attack_quic(at: SocketAddr) {
    let socket = UdpSocket::bind((at.ip(), 0)).await.expect("a socket");
    let long = |version: u32, bytes: usize| {
        let mut packet = vec![0xc3];
        packet.extend_from_slice(&version.to_be_bytes());
        packet.push(8);
        packet.extend(noise(bytes));
        packet
    };
    let short: Vec<u8> = std::iter::once(0x41).chain(noise(60)).collect();
    for packet in
        [Vec::new(), noise(1), noise(20), noise(1_200), short, long(1, 1_194), long(1, 30), long(0xbaba_baba, 1_194)]
    {
        for _ in 0..PACKETS {
            socket.send_to(&packet, at).await.expect("a packet");
        }
    }
}

/// Sends bytes, and returns the response up to the close by the other side, which must happen.
async fn exchange(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let (receive, mut send) = stream.split();
    // The other side may close before it has read everything.
    let write = async {
        let _ = send.write_all(bytes).await;
    };
    let ((), answer) = tokio::join!(write, read_to_close(receive));
    answer
}

/// Sends an incomplete request and shuts down the sending side; the other side must close the connection.
async fn send_and_shut_down(at: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let (receive, mut send) = stream.split();
    let write = async {
        let _ = send.write_all(bytes).await;
        let _ = send.shutdown().await;
    };
    tokio::join!(write, read_to_close(receive));
}

async fn read_to_close(mut receive: ReadHalf<'_>) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = async {
        // A reset also closes the connection.
        let _ = receive.read_to_end(&mut answer).await;
    };
    assert!(timeout(WITHIN, read).await.is_ok(), "the connection stays open");
    answer
}

/// Pseudo-random bytes, the same each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Resident memory of node 1.
fn resident_bytes(cluster: &Cluster) -> u64 {
    let pid = cluster.node(1).expect("a node").pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[tokio::test]
async fn requests_over_a_limit_get_a_typed_refusal() {
    let cluster = start(1).await;
    let client = client(&cluster, 1);
    let none = PutOptions::default();
    let kind =
        |answer: Result<(), ClientError>| answer.err().and_then(|error| error.problem().map(|problem| problem.kind));
    let put = async |key: Vec<u8>, bytes: usize, collection: &str| {
        let value = Bytes::from(vec![b'v'; bytes]);
        client.put(collection, &key, value, &none).await.map(drop)
    };
    assert_eq!(kind(put(Vec::new(), 1, "default").await), Some(ProblemType::KeySize));
    assert_eq!(kind(put(vec![b'k'; 5_000], 1, "default").await), Some(ProblemType::KeySize));
    assert_eq!(kind(put(vec![b'k'; 4_096], 1, "default").await), None, "the longest key");
    assert_eq!(kind(put(vec![0xff; 4_096], 1, "default").await), None, "the longest key, percent-encoded");
    assert_eq!(kind(put(b"k".to_vec(), LARGE_VALUE_BYTES_MAX + 1, "default").await), Some(ProblemType::ValueTooLarge));
    assert_eq!(kind(put(b"k".to_vec(), LARGE_VALUE_BYTES_MAX, "default").await), None, "the longest value");
    assert_eq!(kind(put(b"k".to_vec(), 1, "nowhere").await), Some(ProblemType::CollectionNotFound));
    assert_eq!(kind(client.get("nowhere", b"k").await.map(drop)), Some(ProblemType::CollectionNotFound));
    assert_eq!(kind(client.add("default", b"k", 1).await.map(drop)), Some(ProblemType::NotAnInteger));
    let found = client.get("default", b"k").await.expect("a read").expect("a record");
    assert_eq!(found.value.len(), LARGE_VALUE_BYTES_MAX);
}
