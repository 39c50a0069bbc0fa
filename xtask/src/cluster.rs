//! Shared code of the `cluster-*` commands: finding the cluster, starting processes that outlive the command,
//! waiting.
//!
//! The folder holds `cluster.json`, one data folder and one log per node, and `binary`, a file with the path
//! of the binary, so that nodes are restarted with the same one.

pub(crate) mod add;
pub(crate) mod down;
pub(crate) mod kill;
pub(crate) mod start;
pub(crate) mod status;
mod table;
pub(crate) mod up;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use flotilla_local_cluster::{
    Layout, Node, READY_WITHIN, Start, command, has_possible_replicas, is_ready, log_tail, token,
};

use crate::workspace;

/// Interval between polls.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Log lines printed when a node exits unexpectedly.
const TAIL_LINES: usize = 30;
const BINARY_FILE: &str = "binary";

/// The `--dir` option.
#[derive(clap::Args)]
pub(crate) struct Folder {
    /// The cluster's folder [default: target/cluster of the workspace]
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
}

impl Folder {
    /// The absolute path: nodes get it as an argument and are recognised by it.
    fn path(&self) -> Result<PathBuf> {
        let dir = self.dir.clone().unwrap_or_else(|| workspace::root().join("target/cluster"));
        Ok(std::path::absolute(dir)?)
    }

    /// The cluster's folder and layout.
    fn open(&self) -> Result<(PathBuf, Layout)> {
        let dir = self.path()?;
        let layout = Layout::load(&dir)?;
        let hint = || format!("no cluster in {}: start one with `cargo xtask cluster-up`", dir.display());
        Ok((dir.clone(), layout.with_context(hint)?))
    }
}

/// The cluster's processes, for the duration of one command.
struct Fleet {
    dir: PathBuf,
    binary: PathBuf,
    layout: Layout,
    /// Processes started by this command, with the node's index.
    started: Vec<(usize, Child)>,
}

impl Fleet {
    /// The cluster in `dir`, run with `binary` from now on.
    fn new(dir: PathBuf, layout: Layout, binary: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(BINARY_FILE), binary.as_os_str().as_encoded_bytes())?;
        layout.save(&dir)?;
        Ok(Self { dir, binary, layout, started: Vec::new() })
    }

    /// The cluster in `dir`, run with the same binary as before.
    fn open(dir: PathBuf, layout: Layout) -> Result<Self> {
        let binary =
            PathBuf::from(fs::read_to_string(dir.join(BINARY_FILE)).context("the path of the binary is not recorded")?);
        ensure!(binary.is_file(), "{} no longer exists: build it again", binary.display());
        Ok(Self { dir, binary, layout, started: Vec::new() })
    }

    /// Starts all stopped nodes, and waits until the cluster is ready. Nodes with data start first: without
    /// them there may be no cluster to join.
    fn start_all(&mut self) -> Result<()> {
        let is_down = |i: &usize| !self.layout.nodes[*i].is_running();
        let (old, new): (Vec<usize>, Vec<usize>) =
            (0..self.layout.nodes.len()).filter(is_down).partition(|i| has_data(&self.layout.nodes[*i].data_dir));
        for i in old.into_iter().chain(new) {
            self.start(i)?;
        }
        self.wait_ready()
    }

    /// Starts node `i`: on its data if it has any, else as the first node of a new cluster or as a joining
    /// node.
    fn start(&mut self, i: usize) -> Result<()> {
        let node = &self.layout.nodes[i];
        for addr in [node.http, node.redis] {
            ensure!(is_free(addr), "{addr} is in use by another program; choose ports with --base-port");
        }
        if has_data(&node.data_dir) {
            return self.spawn(i, Start::Resume);
        }
        if i == 0 && !self.layout.nodes.iter().any(|node| has_data(&node.data_dir)) {
            return self.spawn(i, Start::Bootstrap);
        }
        let credentials = self.layout.credentials();
        let running: Vec<Node> = self.layout.nodes.iter().filter(|node| node.is_running()).cloned().collect();
        self.wait("a node to join", async || {
            for node in &running {
                if is_ready(&node.http_url(), &credentials).await {
                    return true;
                }
            }
            false
        })?;
        let token = workspace::runtime()?.block_on(self.token())?;
        let peers: Vec<SocketAddr> = running.iter().map(|node| node.quic).collect();
        self.spawn(i, Start::Join { peers: &peers, token: &token })
    }

    /// A join token from the first running node that issues one.
    async fn token(&self) -> Result<String> {
        let mut last = None;
        for node in self.layout.nodes.iter().filter(|node| node.is_running()) {
            match token(&node.http_url(), &self.layout.credentials(), 1).await {
                Ok(token) => return Ok(token),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| anyhow::anyhow!("no node is running"), Into::into)).context("cannot get a join token")
    }

    fn spawn(&mut self, i: usize, start: Start<'_>) -> Result<()> {
        let node = &mut self.layout.nodes[i];
        let mut command = command(&self.binary, node, start)?;
        // Its own process group, so that Ctrl-C does not reach it.
        let child =
            command.process_group(0).spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        node.pid = child.id();
        println!("started {} (pid {})", node.name, node.pid);
        self.started.push((i, child));
        Ok(self.layout.save(&self.dir)?)
    }

    /// Waits until every running node is ready and every shard has the replicas that these nodes allow.
    fn wait_ready(&mut self) -> Result<()> {
        let running = self.layout.nodes.iter().filter(|node| node.is_running());
        let urls: Vec<String> = running.map(Node::http_url).collect();
        let credentials = self.layout.credentials();
        let start = Instant::now();
        self.wait("the cluster", async || {
            for url in &urls {
                if !has_possible_replicas(url, &credentials, urls.len()).await {
                    return false;
                }
            }
            true
        })?;
        println!("the cluster is ready after {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn wait(&mut self, what: &str, done: impl AsyncFn() -> bool) -> Result<()> {
        let start = Instant::now();
        let runtime = workspace::runtime()?;
        runtime.block_on(async {
            while !done().await {
                for (i, child) in &mut self.started {
                    if let Some(status) = child.try_wait()? {
                        let node = &self.layout.nodes[*i];
                        let (name, log) = (&node.name, node.log.display());
                        bail!("{name} exited ({status}). End of {log}:\n{}", log_tail(&node.log, TAIL_LINES));
                    }
                }
                if start.elapsed() > READY_WITHIN {
                    let seconds = READY_WITHIN.as_secs();
                    bail!(
                        "{what}: not ready after {seconds} s; see `cargo xtask cluster-status` and the logs in {}",
                        self.dir.display()
                    );
                }
                tokio::time::sleep(POLL_EVERY).await;
            }
            Ok(())
        })
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.layout.nodes.iter().position(|node| node.name == name).with_context(|| unknown(name, &self.layout))
    }
}

fn unknown(name: &str, layout: &Layout) -> String {
    let names: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
    format!("no node {name}; the nodes are {}", names.join(", "))
}

fn has_data(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

fn is_free(addr: SocketAddr) -> bool {
    TcpListener::bind(addr).is_ok()
}
