//! A fake `flotilla` for this crate's own tests: it parses the same command line and serves the HTTP calls
//! made while a cluster starts. It stores nothing.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
};

use flotilla_api::{ClusterStatus, Health, ReplicaInfo, ShardInfo, TokenId, TokenReply};
use flotilla_types::{ClusterId, Epoch, NodeId, ReplicaId, ReplicaRole, ShardId};

const TOKEN: &str = "flt1.fake";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let value = |name: &str| arguments.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
    let (Some(http), Some(data)) = (value("--http"), value("--data-dir")) else { return ExitCode::from(2) };
    let is_new = !Path::new(&data).exists();
    let may_be_new =
        arguments.iter().any(|argument| argument == "--bootstrap") || value("--token").as_deref() == Some(TOKEN);
    if is_new != may_be_new {
        eprintln!("new data: {is_new}, may be new: {may_be_new}");
        return ExitCode::from(3);
    }
    let listener = fs::create_dir_all(format!("{data}/state/view")).and_then(|()| TcpListener::bind(&http));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening on {http}");
    for stream in listener.incoming().flatten() {
        // A client that disconnects early does not matter.
        let _ = answer(stream);
    }
    ExitCode::SUCCESS
}

fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
    let (status, body) = match request.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/readyz"] => ("200 OK", String::new()),
        ["GET", "/v1/cluster/status"] => ("200 OK", serde_json::to_string(&status())?),
        ["POST", "/v1/cluster/tokens"] => ("200 OK", serde_json::to_string(&token())?),
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    write!(reader.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// A fully replicated cluster of one node. Built from the API types, so that it stays up to date with them.
fn status() -> ClusterStatus {
    let node = NodeId(1);
    let shard = ShardInfo {
        id: ShardId(1),
        collection: Some("default".to_owned()),
        range: String::new(),
        leader: Some(node),
        replicas: vec![ReplicaInfo { replica: ReplicaId(1), node, role: ReplicaRole::Voter }],
        epoch: Epoch::default(),
        desired_replicas: 1,
        healthy: true,
        available: true,
        fully_replicated: true,
        failures_survivable: 0,
        operations: Vec::new(),
        local: None,
    };
    ClusterStatus {
        cluster_id: ClusterId([0; 16]),
        node,
        version: String::new(),
        cluster_version: 0,
        started_ms: 0,
        draining: false,
        metadata_leader: Some(node),
        quorum: true,
        health: Health { ok: true, reasons: Vec::new() },
        available_shards: 1,
        replicated_shards: 1,
        shards_total: 1,
        failures_survivable: 0,
        nodes: Vec::new(),
        collections: Vec::new(),
        shards: vec![shard],
        peers: Vec::new(),
        notes: Vec::new(),
        values: None,
    }
}

fn token() -> TokenReply {
    TokenReply { id: TokenId(1), token: TOKEN.to_owned(), expires_at_ms: 0, uses: 1 }
}
