//! A rolling restart under pipelined load: whatever a node has read, it answers before it closes the
//! connection.
//!
//! Each client increments a counter of its own, so that a request which ran without an answer shows in the
//! sum. The clients look whether the node has closed before they send, as pools of connections do; a
//! connection that is closed before its first answer was never accepted, and counts as refused.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use flotilla_tests::support::{client, eventually, start, wait_replicated};

/// Requests of one pipeline: more than a node works on at once for one connection, so that some are read and
/// wait.
const PIPELINE: usize = 400;
/// Clients of each protocol and node.
const CLIENTS: usize = 4;
/// Answers to each client before and between restarts.
const ANSWERS_MIN: u64 = 60;
/// Longer than any deadline of the node.
const HANG: Duration = Duration::from_secs(30);

/// What a client saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Increments that were acknowledged.
    acknowledged: AtomicU64,
    /// Refused: nothing was written.
    refused: AtomicU64,
    /// Answered that the outcome is not known.
    unknown: AtomicU64,
    /// Sent, and not answered before the end of a connection that had answered before.
    unanswered: AtomicU64,
    /// Connections that were not accepted.
    closed_at_once: AtomicU64,
}

impl Seen {
    fn answers(&self) -> u64 {
        [&self.acknowledged, &self.refused, &self.unknown].into_iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// A way to increment a counter many times in one write, and to read the answers.
trait Protocol: Clone + Send + Sync + 'static {
    /// Requests of one pipeline.
    const REQUESTS: usize;

    fn requests(&self) -> Vec<u8>;

    /// Reads one answer; false if no further one will come on this connection.
    fn answer(
        &self,
        from: &mut BufReader<TcpStream>,
        seen: &Seen,
    ) -> impl Future<Output = std::io::Result<bool>> + Send;
}

#[derive(Clone)]
struct Redis(String);

impl Protocol for Redis {
    const REQUESTS: usize = PIPELINE;

    fn requests(&self) -> Vec<u8> {
        format!("INCR {}\r\n", self.0).repeat(PIPELINE).into_bytes()
    }

    async fn answer(&self, from: &mut BufReader<TcpStream>, seen: &Seen) -> std::io::Result<bool> {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let count = match line.as_bytes() {
            [b':', ..] => &seen.acknowledged,
            [b'-', rest @ ..] if rest.starts_with(b"UNKNOWN") => &seen.unknown,
            [b'-', ..] => &seen.refused,
            _ => panic!("{line:?}"),
        };
        count.fetch_add(1, Relaxed);
        Ok(true)
    }
}

/// One request at a time: a client may not rely on answers behind `connection: close`.
#[derive(Clone)]
struct Http(String);

impl Protocol for Http {
    const REQUESTS: usize = 1;

    fn requests(&self) -> Vec<u8> {
        let body = format!(r#"{{"operations":[{{"op":"add","key":"{}","delta":1}}]}}"#, self.0);
        let length = body.len();
        let head = "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
    }

    async fn answer(&self, from: &mut BufReader<TcpStream>, seen: &Seen) -> std::io::Result<bool> {
        let (mut lines, mut length, mut goes_on) = (Vec::new(), 0, true);
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(found) = line.strip_prefix("content-length: ") {
                length = found.parse().expect("a length");
            }
            goes_on &= line != "connection: close";
            lines.push(line);
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).await?;
        let body = String::from_utf8_lossy(&body);
        let count = match lines[0].split(' ').nth(1) {
            Some("200") => &seen.acknowledged,
            _ if body.contains("outcome_unknown") => &seen.unknown,
            Some(status) if status.starts_with('5') || status == "429" => &seen.refused,
            _ => panic!("{lines:?} {body}"),
        };
        count.fetch_add(1, Relaxed);
        Ok(goes_on)
    }
}

/// Whether the node has closed the connection.
fn is_closed(stream: &BufReader<TcpStream>) -> bool {
    match stream.get_ref().try_read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => panic!("an answer to nothing"),
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// One connection, until it is closed or the client stops.
async fn converse(protocol: &impl Protocol, stream: TcpStream, seen: &Seen) {
    stream.set_nodelay(true).expect("an option");
    let mut stream = BufReader::new(stream);
    let mut answered = 0;
    while !seen.stop.load(Relaxed) && !is_closed(&stream) {
        let sent = stream.write_all(&protocol.requests()).await;
        for missing in (1..=requests_of(protocol)).rev() {
            let answer = match &sent {
                Ok(()) => timeout(HANG, protocol.answer(&mut stream, seen)).await.expect("an answer or an end"),
                Err(error) => Err(error.kind().into()),
            };
            match answer {
                Ok(true) => answered += 1,
                Ok(false) => return,
                Err(_) if answered == 0 => {
                    seen.closed_at_once.fetch_add(1, Relaxed);
                    return;
                }
                Err(error) => {
                    eprintln!("{missing} requests without an answer after {answered} answers: {error}");
                    seen.unanswered.fetch_add(missing as u64, Relaxed);
                    return;
                }
            }
        }
    }
}

fn requests_of<P: Protocol>(_: &P) -> usize {
    P::REQUESTS
}

async fn run(protocol: impl Protocol, addr: SocketAddr, seen: Arc<Seen>) {
    while !seen.stop.load(Relaxed) {
        match TcpStream::connect(addr).await {
            Ok(stream) => converse(&protocol, stream, &seen).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[tokio::test]
async fn a_rolling_restart_under_pipelined_load_leaves_no_request_without_an_answer() {
    let mut cluster = start(3).await;
    wait_replicated(&cluster, &[1, 2, 3]).await;
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for i in 1..=3 {
        let node = cluster.node(i).expect("a node");
        for number in 0..CLIENTS {
            let (redis, http) = (format!("redis/{i}/{number}"), format!("http/{i}/{number}"));
            let seen = [Arc::new(Seen::default()), Arc::new(Seen::default())];
            tasks.spawn(run(Redis(redis.clone()), node.redis, seen[0].clone()));
            tasks.spawn(run(Http(http.clone()), node.http, seen[1].clone()));
            clients.extend([redis, http].into_iter().zip(seen));
        }
    }
    wait_answers(&clients, 0).await;
    for i in 1..=3 {
        assert_eq!(cluster.stop(i).await.expect("a stop").code(), Some(0));
        cluster.start_node(i).await.expect("a start on its data");
        cluster.wait_node(i).await.expect("a ready node");
        wait_answers(&clients, i).await;
    }
    clients.iter().for_each(|(_, seen)| seen.stop.store(true, Relaxed));
    tasks.join_all().await;

    let sum = |count: fn(&Seen) -> &AtomicU64| clients.iter().map(|(_, seen)| count(seen).load(Relaxed)).sum::<u64>();
    let (acknowledged, unanswered) = (sum(|seen| &seen.acknowledged), sum(|seen| &seen.unanswered));
    eprintln!(
        "{acknowledged} acknowledged, {} refused, {} unknown, {unanswered} unanswered; {} connections not accepted",
        sum(|seen| &seen.refused),
        sum(|seen| &seen.unknown),
        sum(|seen| &seen.closed_at_once)
    );
    assert_eq!(unanswered, 0);
    for (key, seen) in &clients {
        let record = client(&cluster, 1).get("default", key.as_bytes()).await.expect("a read").expect("a counter");
        let counted: u64 = String::from_utf8_lossy(&record.value).parse().expect("a number");
        let (least, doubtful) = (seen.acknowledged.load(Relaxed), seen.unknown.load(Relaxed));
        assert!((least..=least + doubtful).contains(&counted), "{key}: {counted} of {least} and {doubtful} in doubt");
    }
}

/// Waits until each client has got many more answers.
async fn wait_answers(clients: &[(String, Arc<Seen>)], round: usize) {
    let before: Vec<_> = clients.iter().map(|(_, seen)| seen.answers()).collect();
    eventually(&format!("answers after restart {round}"), async || {
        let behind = clients.iter().zip(&before).find(|((_, seen), before)| seen.answers() < *before + ANSWERS_MIN);
        behind.map_or(Ok(()), |((key, seen), _)| Err(format!("{key}: {}", seen.answers())))
    })
    .await;
}
