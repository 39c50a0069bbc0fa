//! Test support: starting clusters, reading their status, polling with a timeout, and load whose outcome is
//! checked.

mod connection;
mod shape;
pub mod values;
mod verify;
mod workload;

use std::{
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use flotilla_api::ClusterStatus;
use flotilla_client::Client;
use flotilla_local_cluster::{Cluster, ClusterOptions, built_binary};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

pub use connection::{Connection, connect, connect_tls, try_connect};
pub use shape::{
    applied, checkpoints, led_shards, replicas_of, wait_caught_up, wait_checkpoints, wait_liveness, wait_replicated,
};
pub use verify::History;
pub use workload::{Workload, WriteOutcome, write_outcome};

/// Timeout of anything that must happen.
pub const WITHIN: Duration = Duration::from_secs(90);
/// Arguments that make nodes checkpoint and truncate after a few KiB.
pub const SMALL_LIMITS: [&str; 6] = ["--memtable-bytes", "16384", "--log-bytes", "16384", "--log-tail-entries", "8"];
/// [`SMALL_LIMITS`], with sled as the view.
pub const SMALL_LIMITS_SLED: [&str; 8] =
    ["--memtable-bytes", "16384", "--log-bytes", "16384", "--log-tail-entries", "8", "--view", "sled"];
/// Interval between polls.
pub const POLL_EVERY: Duration = Duration::from_millis(50);

/// The binary under test.
pub fn binary() -> PathBuf {
    built_binary().unwrap_or_else(|error| panic!("{error}; `cargo xtask test` builds it"))
}

/// How a cluster serves its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Without TLS and keys.
    Open,
    /// Over TLS, and only with a key.
    Secure,
}

/// Starts a cluster of `nodes` nodes with these arguments.
pub async fn start_with(nodes: usize, arguments: &[&str]) -> Cluster {
    start_as(Mode::Open, nodes, arguments).await
}

/// Starts a cluster of `nodes` nodes with default settings.
pub async fn start_in(mode: Mode, nodes: usize) -> Cluster {
    start_as(mode, nodes, &[]).await
}

async fn start_as(mode: Mode, nodes: usize, arguments: &[&str]) -> Cluster {
    let mut options = ClusterOptions::new(nodes, binary());
    options.secure = mode == Mode::Secure;
    options.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    if let Some(kept) = std::env::var_os("FLOTILLA_TEST_DIR") {
        let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
        static CLUSTERS: AtomicUsize = AtomicUsize::new(1);
        let (process, number) = (std::process::id(), CLUSTERS.fetch_add(1, Relaxed));
        options.dir = Some(PathBuf::from(kept).join(format!("{test}-{process}-{number}")));
    }
    let began = Instant::now();
    let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("the cluster does not start: {error}"));
    eprintln!("{nodes} nodes ready after {} ms", began.elapsed().as_millis());
    cluster
}

/// Starts a cluster of `nodes` nodes with default settings.
pub async fn start(nodes: usize) -> Cluster {
    start_with(nodes, &[]).await
}

/// A client of node `i` alone.
pub fn client(cluster: &Cluster, i: usize) -> Client {
    let http = cluster.http(i).expect("a node of the cluster");
    let options = cluster.credentials().client_options(&http).expect("the files of a running cluster");
    Client::new(options).expect("a client of one endpoint")
}

/// The cluster's status as node `i` reports it.
pub async fn status(cluster: &Cluster, i: usize) -> ClusterStatus {
    client(cluster, i).status().await.unwrap_or_else(|error| panic!("no status from node {i}: {error}"))
}

/// The whole log of node `i`.
pub fn log(cluster: &Cluster, i: usize) -> String {
    let bytes = std::fs::read(cluster.log(i).expect("a node of the cluster")).expect("a log");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The metrics of node `i`, as the admin sees them.
///
/// # Errors
/// The node does not answer.
pub async fn metrics(cluster: &Cluster, i: usize) -> std::io::Result<String> {
    let at = cluster.node(i).expect("a node of the cluster").http;
    let key = cluster.credentials().admin_key()?;
    let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let mut connection = try_connect(cluster, at).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {at}\r\n{key}connection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Polls until `check` succeeds, for at most [`WITHIN`]. Its error says what is missing.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match check().await {
            Ok(found) => return found,
            Err(missing) if began.elapsed() > WITHIN => panic!("not within {} s: {what}: {missing}", WITHIN.as_secs()),
            Err(_) => sleep(POLL_EVERY).await,
        }
    }
}

/// Waits until a process exits by itself.
pub async fn wait_exit(mut child: Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child process") {
            return status;
        }
        if began.elapsed() > WITHIN {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process did not exit within {} s", WITHIN.as_secs());
        }
        sleep(POLL_EVERY).await;
    }
}
