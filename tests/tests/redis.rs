//! Tables of Redis commands and their answers, over the Redis ports of a real cluster.
//!
//! The tables are text files beside this one. A line is `command -> answer`; `2> ` in front sends it over a
//! second connection, which is to another node. An answer is `+simple`, `-error`, `:number`, `"bulk"`, `nil`,
//! `[list]`; a `*` at its end stands for anything. `~>` instead of `->` marks an answer that differs from
//! Redis's, which the crate's README explains.
//!
//! Where a `redis-server` is found, the same tables are compared with it.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use flotilla_api::NodeVerb;
use flotilla_local_cluster::Cluster;
use flotilla_tests::support::{
    Connection, Mode, POLL_EVERY, WITHIN, client, connect, eventually, start, start_in, status,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

const TABLES: &[(&str, &str)] = &[
    ("strings", include_str!("redis/strings.txt")),
    ("expire", include_str!("redis/expire.txt")),
    ("bits", include_str!("redis/bits.txt")),
    ("keyspace", include_str!("redis/keyspace.txt")),
    ("databases", include_str!("redis/databases.txt")),
    ("multi", include_str!("redis/multi.txt")),
    ("script", include_str!("redis/script.txt")),
    ("protocol", include_str!("redis/protocol.txt")),
];

/// One line of a table.
struct Row<'a> {
    number: usize,
    /// 0 for the first connection, 1 for the second one.
    connection: usize,
    words: Vec<Vec<u8>>,
    expected: &'a str,
    /// Whether Redis answers the same.
    is_redis: bool,
}

fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    let lines = (1..).zip(table.lines()).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| {
        let (is_redis, parts) = match line.split_once(" ~> ") {
            Some(parts) => (false, Some(parts)),
            None => (true, line.split_once(" -> ")),
        };
        let (command, expected) = parts.unwrap_or_else(|| panic!("line {number} has no answer: {line}"));
        let (connection, command) = command.strip_prefix("2> ").map_or((0, command), |command| (1, command));
        Row { number, connection, words: words(command), expected, is_redis }
    })
}

/// Splits a command at blanks; `"…"` may contain blanks and `\xHH`.
fn words(command: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = command.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').expect("a closing quote"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(unescaped(word));
        rest = after.trim_start();
    }
    words
}

fn unescaped(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((before, escape)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(&escape[..2], 16).expect("two hexadecimal digits"));
        rest = &escape[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// A connection that renders answers as the tables write them.
struct Redis {
    stream: BufReader<Box<dyn Connection>>,
    /// What the server needs.
    key: Option<String>,
}

impl Redis {
    async fn connect(at: SocketAddr) -> Self {
        let stream: Box<dyn Connection> = Box::new(TcpStream::connect(at).await.expect("a connection"));
        Self { stream: BufReader::new(stream), key: None }
    }

    /// A connection to node `i`, with the first key of the cluster if it needs one.
    async fn of(cluster: &Cluster, i: usize) -> Self {
        let stream = BufReader::new(connect(cluster, cluster.redis(i).expect("a node")).await);
        let key = cluster.credentials().admin_key().expect("the files of a running cluster");
        let mut redis = Self { stream, key };
        redis.authenticate().await;
        redis
    }

    async fn authenticate(&mut self) {
        if let Some(key) = &self.key {
            let auth = words(&format!("AUTH {key}"));
            assert_eq!(self.call(&auth).await, "+OK");
        }
    }

    async fn send(&mut self, words: &[Vec<u8>]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).await.expect("a request is sent");
    }

    async fn call(&mut self, words: &[Vec<u8>]) -> String {
        self.send(words).await;
        self.answer().await
    }

    async fn line(&mut self, line: &str) -> String {
        self.call(&words(line)).await
    }

    async fn answer(&mut self) -> String {
        timeout(WITHIN, self.read()).await.expect("an answer in time")
    }

    async fn read(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("an answer");
        let line = line.trim_end_matches(['\r', '\n']);
        let number = || line[1..].parse::<i64>().expect("a length");
        match line.as_bytes().first() {
            Some(b'$') if number() < 0 => "nil".into(),
            Some(b'*') if number() < 0 => "nil-list".into(),
            Some(b'$') => {
                let mut bytes = vec![0; usize::try_from(number()).expect("a length") + 2];
                self.stream.read_exact(&mut bytes).await.expect("a bulk string");
                format!("\"{}\"", bytes[..bytes.len() - 2].escape_ascii())
            }
            Some(b'*') => {
                let mut items = Vec::new();
                for _ in 0..number() {
                    items.push(Box::pin(self.read()).await);
                }
                format!("[{}]", items.join(", "))
            }
            Some(_) => line.to_owned(),
            None => panic!("the connection was closed"),
        }
    }
}

fn matches(expected: &str, answer: &str) -> bool {
    match expected.strip_suffix('*') {
        Some(prefix) => answer.starts_with(prefix),
        None => answer == expected,
    }
}

/// Runs a table; returns what was not as expected.
async fn differences(name: &str, table: &str, mut connections: [Redis; 2], is_redis: bool) -> Vec<String> {
    let mut different = Vec::new();
    for row in rows(table) {
        let answer = connections[row.connection].call(&row.words).await;
        if row.words[0].eq_ignore_ascii_case(b"RESET") {
            connections[row.connection].authenticate().await;
        }
        if (row.is_redis || !is_redis) && !matches(row.expected, &answer) {
            different.push(format!("{name}.txt:{}: expected {}, got {answer}", row.number, row.expected));
        }
    }
    different
}

in_both_modes!(commands_answer_as_their_tables_say);

async fn commands_answer_as_their_tables_say(mode: Mode) {
    let cluster = start_in(mode, 3).await;
    let mut different = Vec::new();
    for (name, table) in TABLES {
        let connections = [Redis::of(&cluster, 1).await, Redis::of(&cluster, 2).await];
        different.extend(differences(name, table, connections, false).await);
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn redis_itself_answers_as_the_tables_say() {
    let Some(binary) = redis_server() else {
        eprintln!("skipped: no `redis-server` was found in PATH");
        return;
    };
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let port = free.port().to_string();
    let mut command = Command::new(binary);
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).stdout(Stdio::null());
    command.args(["--proto-max-bulk-len", "67108864"]);
    let _server = Server(command.spawn().expect("redis-server starts"));
    eventually("redis-server listens", async || {
        TcpStream::connect(free).await.map(|_| ()).map_err(|error| format!("{error}, asked every {POLL_EVERY:?}"))
    })
    .await;
    let mut different = Vec::new();
    for (name, table) in TABLES {
        let connections = [Redis::connect(free).await, Redis::connect(free).await];
        different.extend(differences(name, table, connections, true).await);
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn redis_server() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|binary| binary.is_file())
}

in_both_modes!(transactions_of_many_clients_lose_no_update);

/// Increments by `MULTI` with a read, over all nodes at once: each commits once or is refused, and none is
/// lost.
async fn transactions_of_many_clients_lose_no_update(mode: Mode) {
    const CLIENTS: usize = 12;
    const ROUNDS: usize = 20;
    let cluster = start_in(mode, 3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut redis = Redis::of(&cluster, client % 3 + 1).await;
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                for line in ["MULTI", "GET {t}n", "INCR {t}n"] {
                    redis.line(line).await;
                }
                let answer = redis.line("EXEC").await;
                let both = answer.trim_matches(['[', ']']).split_once(", ");
                let (before, after) = both.unwrap_or_else(|| panic!("not two replies: {answer}"));
                let before: i64 = before.trim_matches('"').parse().unwrap_or(0);
                assert_eq!(after, format!(":{}", before + 1), "torn: {answer}");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client");
    }
    let mut redis = Redis::of(&cluster, 1).await;
    assert_eq!(redis.line("GET {t}n").await, format!("\"{}\"", CLIENTS * ROUNDS));
}

#[tokio::test]
async fn info_says_whether_the_node_drains_and_how_long_keys_live() {
    let cluster = start(3).await;
    let mut redis = Redis::of(&cluster, 2).await;
    let admin = client(&cluster, 1);
    let drains = async |redis: &mut Redis, expected: &str| {
        eventually(&format!("flotilla_draining:{expected}"), async || {
            let info = redis.line("INFO server").await;
            let shown = info.split("\\r\\n").find_map(|line| line.strip_prefix("flotilla_draining:"));
            if shown == Some(expected) { Ok(()) } else { Err(info.clone()) }
        })
        .await;
    };
    let other = status(&cluster, 2).await.node;
    drains(&mut redis, "0").await;
    admin.change_node(other, NodeVerb::Drain, false, false).await.expect("a drain");
    drains(&mut redis, "1").await;
    let mut first = Redis::of(&cluster, 1).await;
    drains(&mut first, "0").await;
    assert!(first.line("INFO persistence").await.contains("loading:0"));
    admin.change_node(other, NodeVerb::Undrain, false, false).await.expect("an undrain");
    drains(&mut redis, "0").await;

    for (key, seconds) in [("a", 1_000), ("b", 2_000), ("c", 3_000)] {
        assert_eq!(redis.line(&format!("SET {key} v EX {seconds}")).await, "+OK");
    }
    assert_eq!(redis.line("SET d v").await, "+OK");
    let info = redis.line("INFO keyspace").await;
    let ttl = info.split_once("db0:keys=4,expires=3,avg_ttl=").and_then(|(_, rest)| rest.split_once('\\'));
    let ttl: u64 = ttl.and_then(|(ttl, _)| ttl.parse().ok()).unwrap_or_else(|| panic!("{info}"));
    // The mean of all three, over shards of unequal numbers of keys; the test may take a while.
    assert!((1_500_000..=2_000_000).contains(&ttl), "{ttl}");
}

/// A compare-and-set loop by `WATCH`, the way client libraries write it.
#[tokio::test]
async fn watched_keys_that_change_refuse_the_transaction() {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 10;
    let cluster = start(3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let at = cluster.redis(client % 3 + 1).expect("a node");
        tasks.spawn(async move {
            let mut redis = Redis::connect(at).await;
            let (mut done, mut refused) = (0, 0);
            while done < ROUNDS {
                assert_eq!(redis.line("WATCH {w}n").await, "+OK");
                let before: u64 = redis.line("GET {w}n").await.trim_matches('"').parse().unwrap_or(0);
                redis.line("MULTI").await;
                redis.line(&format!("SET {{w}}n {}", before + 1)).await;
                match redis.line("EXEC").await.as_str() {
                    "[+OK]" => done += 1,
                    "nil-list" => refused += 1,
                    other => panic!("{other}"),
                }
            }
            refused
        });
    }
    let mut refused = 0;
    while let Some(ended) = tasks.join_next().await {
        refused += ended.expect("a client");
    }
    let mut redis = Redis::connect(cluster.redis(1).expect("a node")).await;
    assert_eq!(redis.line("GET {w}n").await, format!("\"{}\"", CLIENTS * ROUNDS));
    assert!(refused > 0, "no transaction met another one");
}

/// A pipeline whose `MULTI` is refused: nothing of it happens, as with one whose command is refused.
#[tokio::test]
async fn a_pipeline_after_a_refused_multi_changes_nothing() {
    let cluster = start(1).await;
    let mut redis = Redis::connect(cluster.redis(1).expect("a node")).await;
    for (first, refused) in [("MULTI now", "MULTI"), ("MULTI", "NOPE")] {
        let pipeline = [first, "INCR {p}n", refused, "INCR {p}n", "EXEC", "GET {p}n"];
        for line in pipeline {
            redis.send(&words(line)).await;
        }
        let mut answers = Vec::new();
        for _ in pipeline {
            answers.push(redis.answer().await);
        }
        assert!(answers[4].starts_with("-EXECABORT"), "{answers:?}");
        assert_eq!(answers[5], "nil", "{answers:?}");
    }
}

#[tokio::test]
async fn clients_are_paused_silenced_and_ended() {
    let cluster = start(1).await;
    let at = cluster.redis(1).expect("a node");
    let (mut one, mut two) = (Redis::connect(at).await, Redis::connect(at).await);

    // Two answers arrive for four requests and the last `ON`.
    for line in
        ["CLIENT REPLY OFF", "SET silent 1", "CLIENT REPLY ON", "CLIENT REPLY SKIP", "SET silent 2", "GET silent"]
    {
        one.send(&words(line)).await;
    }
    assert_eq!((one.answer().await, one.answer().await), ("+OK".into(), "\"2\"".into()));

    assert_eq!(one.line("CLIENT PAUSE 60000 WRITE").await, "+OK");
    two.send(&words("SET paused 1")).await;
    assert_eq!(one.line("GET paused").await, "nil");
    assert_eq!(one.line("CLIENT UNPAUSE").await, "+OK");
    assert_eq!(two.answer().await, "+OK");

    let id = two.line("CLIENT ID").await;
    assert!(one.line(&format!("CLIENT LIST ID {}", &id[1..])).await.contains("cmd=client"));
    assert_eq!(one.line(&format!("CLIENT KILL ID {}", &id[1..])).await, ":1");
    let ended = timeout(WITHIN, two.stream.read(&mut [0])).await.expect("the connection ends");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn large_requests_are_served_or_refused_with_a_text() {
    const VALUE_BYTES_MAX: usize = 64 << 20;
    let cluster = start(1).await;
    let at = cluster.redis(1).expect("a node");
    let mut redis = Redis::connect(at).await;
    let set = |bytes: usize| vec![b"SET".to_vec(), b"large".to_vec(), vec![b'x'; bytes]];
    assert_eq!(redis.call(&set(VALUE_BYTES_MAX)).await, "+OK");
    let too_long = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    assert_eq!(redis.call(&set(VALUE_BYTES_MAX + 1)).await, too_long);
    let mut many = vec![b"EXISTS".to_vec()];
    many.resize(100_001, b"none".to_vec());
    assert_eq!(redis.call(&many).await, ":0");
    // Far above the limit the rest of the request cannot be recognised, but the client reads why.
    let begin = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${}\r\n", 2 * VALUE_BYTES_MAX).into_bytes();
    redis.stream.write_all(&[begin, vec![b'x'; 8 << 20]].concat()).await.expect("a request is sent");
    assert_eq!(redis.answer().await, "-ERR Protocol error: invalid bulk length");
    let ended = timeout(WITHIN, redis.stream.read(&mut [0])).await.expect("the connection ends");
    assert_eq!(ended.expect("no reset"), 0);
}

/// A pipeline is read before its transaction is executed: what follows belongs to the database that is
/// selected then, whether the transaction takes place or not.
#[tokio::test]
async fn what_follows_a_transaction_that_selects_waits_for_its_outcome() {
    let cluster = start(1).await;
    let at = cluster.redis(1).expect("a node");
    let (mut one, mut two) = (Redis::connect(at).await, Redis::connect(at).await);
    assert_eq!(one.line("SET {d}k zero").await, "+OK");
    for (changes, after_exec) in [(false, "\"four\""), (true, "\"changed\"")] {
        assert_eq!(one.line("SELECT 0").await, "+OK");
        assert_eq!(one.line("WATCH {d}other").await, "+OK");
        if changes {
            assert_eq!(two.line("MSET {d}other 1 {d}k changed").await, "+OK");
        }
        let pipeline = ["MULTI", "SELECT 4", "PING", "EXEC", "SETNX {d}k four", "GET {d}k"];
        for line in pipeline {
            one.send(&words(line)).await;
        }
        let mut answers = Vec::new();
        for _ in pipeline {
            answers.push(one.answer().await);
        }
        assert_eq!(answers[3] == "nil-list", changes, "{answers:?}");
        assert_eq!(answers[5], after_exec, "{answers:?}");
    }
}

/// Writes of one key that follow each other share a command, but not those of other databases.
#[tokio::test]
async fn a_pipeline_over_databases_writes_each_record_in_its_own() {
    let cluster = start(1).await;
    let mut redis = Redis::connect(cluster.redis(1).expect("a node")).await;
    for database in [1, 2] {
        // So that the writes below are not held up by the creation of the collections.
        assert_eq!(redis.line(&format!("SELECT {database}")).await, "+OK");
        assert_eq!(redis.line("SET other v").await, "+OK");
    }
    let pipeline = ["SELECT 0", "INCRBY k 1", "SELECT 1", "INCRBY k 10", "INCRBY k 10", "SELECT 2", "INCRBY k 300"];
    for line in pipeline {
        redis.send(&words(line)).await;
    }
    let mut answers = Vec::new();
    for _ in pipeline {
        answers.push(redis.answer().await);
    }
    assert_eq!(answers, ["+OK", ":1", "+OK", ":10", ":20", "+OK", ":300"]);
    for (database, value) in [(0, "\"1\""), (1, "\"20\""), (2, "\"300\"")] {
        redis.line(&format!("SELECT {database}")).await;
        assert_eq!(redis.line("GET k").await, value, "in {database}");
    }
}

/// A scan goes on on any node, and after its node was restarted.
#[tokio::test]
async fn a_scan_goes_on_on_another_node_and_after_a_restart() {
    const KEYS: usize = 600;
    let mut cluster = start(3).await;
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(Redis::connect(cluster.redis(node).expect("a node")).await);
    }
    for key in 0..KEYS {
        nodes[0].send(&words(&format!("SET key:{key} v"))).await;
    }
    for _ in 0..KEYS {
        assert_eq!(nodes[0].answer().await, "+OK");
    }
    let mut seen = BTreeSet::new();
    let (mut cursor, mut pages) = ("0".to_owned(), 0);
    loop {
        let page = nodes[pages % 3].line(&format!("SCAN {cursor} COUNT 100")).await;
        cursor = keys_of(&page, &mut seen);
        pages += 1;
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(seen.len(), KEYS, "a key is missing");
    assert!(pages >= 6, "only {pages} pages");

    let mut seen = BTreeSet::new();
    cursor = keys_of(&nodes[0].line("SCAN 0 COUNT 100").await, &mut seen);
    cluster.kill(1).expect("node 1 is killed");
    cluster.start_node(1).await.expect("node 1 starts");
    cluster.wait_ready().await.expect("the cluster is ready");
    let mut redis = Redis::connect(cluster.redis(1).expect("node 1")).await;
    while cursor != "0" {
        let page = redis.line(&format!("SCAN {cursor} COUNT 100")).await;
        cursor = keys_of(&page, &mut seen);
    }
    assert_eq!(seen.len(), KEYS, "a key is missing after the restart");
    assert!(redis.line("SCAN 12345").await.starts_with("-ERR invalid cursor"));
    assert_eq!(redis.line("DBSIZE").await, format!(":{KEYS}"), "positions are no keys of a database");
}

/// Adds the keys of a page, of which none was there before. Returns the cursor.
fn keys_of(page: &str, seen: &mut BTreeSet<String>) -> String {
    let (cursor, keys) = page.split_once(", [").unwrap_or_else(|| panic!("no page: {page}"));
    for key in keys.trim_end_matches(']').split(", ").filter(|key| !key.is_empty()) {
        assert!(seen.insert(key.to_owned()), "{key} again");
    }
    cursor.trim_matches(['[', '"']).to_owned()
}

/// What is acknowledged in a database that no node knew before is read on every node at once, also on one
/// that was paused meanwhile, so that its metadata lags behind.
#[tokio::test]
async fn the_first_write_of_a_database_is_seen_on_every_node() {
    let mut cluster = start(3).await;
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(Redis::connect(cluster.redis(node).expect("a node")).await);
    }
    for database in 1..=6_usize {
        for redis in &mut nodes {
            assert_eq!(redis.line(&format!("SELECT {database}")).await, "+OK");
        }
        assert_eq!(nodes[0].line("GET {f}k").await, "nil");
        cluster.pause(3).expect("node 3 is paused");
        assert_eq!(nodes[0].line("INCRBY {f}k 7").await, ":7", "database {database}");
        nodes[2].send(&words("GET {f}k")).await;
        cluster.resume(3).expect("node 3 goes on");
        assert_eq!(nodes[2].answer().await, "\"7\"", "database {database}");
        assert_eq!(nodes[1].line("GET {f}k").await, "\"7\"", "database {database}");
        cluster.wait_ready().await.expect("the cluster is ready");
    }
    assert_eq!(nodes[0].line("FLUSHALL").await, "+OK");
    assert_eq!(nodes[1].line("INFO keyspace").await, "\"# Keyspace\\r\\n\"");
}

/// Client libraries ask for `INFO` before anything else, and are not ready before it is answered.
#[tokio::test]
async fn without_a_quorum_info_is_answered_at_once() {
    let mut cluster = start(3).await;
    let at = cluster.redis(1).expect("a node");
    let mut redis = Redis::connect(at).await;
    assert_eq!(redis.line("SET k v").await, "+OK");
    for node in [2, 3] {
        cluster.kill(node).expect("a node is killed");
    }
    // Requests that need a quorum take until their deadline.
    let mut other = Redis::connect(at).await;
    other.send(&words("SET k w")).await;
    assert!(redis.line("INFO").await.contains("role:master"));
    assert!(redis.line("INFO keyspace").await.starts_with("\"# Keyspace"));
    assert_eq!(redis.line("SELECT 3").await, "+OK");
    assert_eq!(redis.line("PING").await, "+PONG");
    let still_waits = timeout(Duration::ZERO, other.stream.fill_buf()).await.is_err();
    assert!(still_waits, "the answers above came after {}", other.answer().await);
}

/// Letters of which no two long parts are alike.
fn letters(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'a' + ((state >> 33) % 26) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn large_values_are_strings_like_others_on_every_node() {
    let cluster = start(3).await;
    let mut one = Redis::of(&cluster, 1).await;
    let mut other = Redis::of(&cluster, 2).await;
    let text = |bytes: &[u8]| format!("\"{}\"", bytes.escape_ascii());
    let mut value = letters(5 << 20);
    let set = |key: &str, value: &[u8]| vec![b"SET".to_vec(), key.into(), value.to_vec()];
    assert_eq!(one.call(&set("{l}k", &value)).await, "+OK");
    assert!(other.line("GET {l}k").await == text(&value));
    assert_eq!(other.line("STRLEN {l}k").await, format!(":{}", value.len()));
    assert_eq!(other.line("GETRANGE {l}k 4000000 4000009").await, text(&value[4_000_000..4_000_010]));
    assert_eq!(other.line("GETRANGE {l}k -3 -1").await, text(&value[value.len() - 3..]));
    assert_eq!(one.line("APPEND {l}k xyz").await, format!(":{}", value.len() + 3));
    value.extend(b"xyz");
    assert_eq!(other.line("SETRANGE {l}k 3000000 hello").await, format!(":{}", value.len()));
    value[3_000_000..3_000_005].copy_from_slice(b"hello");
    assert!(one.line("GET {l}k").await == text(&value));
    assert_eq!(one.line("COPY {l}k {l}c").await, ":1");
    assert_eq!(other.line("RENAME {l}c {l}d").await, "+OK");
    assert_eq!(other.line("OBJECT ENCODING {l}d").await, "\"raw\"");
    assert!(one.line("MGET {l}d {l}none").await == format!("[{}, nil]", text(&value)));
    let eval = ["EVAL", "local v = redis.call('GET', KEYS[1]) redis.call('SET', KEYS[2], v:sub(1, 9)) return #v", "2"];
    let eval: Vec<Vec<u8>> = eval.iter().chain(&["{l}d", "{l}s"]).map(|word| word.as_bytes().to_vec()).collect();
    assert_eq!(one.call(&eval).await, format!(":{}", value.len()));
    assert_eq!(one.line("GET {l}s").await, text(&value[..9]));
    assert_eq!(one.line("MULTI").await, "+OK");
    for line in ["APPEND {l}d !", "STRLEN {l}d", "GETRANGE {l}d -1 -1"] {
        assert_eq!(one.line(line).await, "+QUEUED");
    }
    assert_eq!(one.line("EXEC").await, format!("[:{0}, :{0}, \"!\"]", value.len() + 1));
    assert_eq!(one.line("MULTI").await, "+OK");
    for line in ["COPY {l}k {l}e", "GETRANGE {l}e 0 2", "DEL {l}e"] {
        assert_eq!(one.line(line).await, "+QUEUED");
    }
    assert_eq!(one.line("EXEC").await, format!("[:1, {}, :1]", text(&value[..3])));
    assert!(other.line("GETSET {l}k short").await == text(&value));
    value.push(b'!');
    assert!(one.line("GETDEL {l}d").await == text(&value));
    assert_eq!(other.line("EXISTS {l}d").await, ":0");
    let too_long = vec![b'x'; (64 << 20) + 1];
    assert!(one.call(&set("{l}k", &too_long)).await.starts_with("-ERR string exceeds maximum allowed size"));
    assert_eq!(one.line("GET {l}k").await, "\"short\"");
    // The longest one.
    assert_eq!(one.call(&set("{l}k", &too_long[1..])).await, "+OK");
    assert!(other.line("GET {l}k").await == text(&too_long[1..]));
}
