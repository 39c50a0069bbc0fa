//! A cluster that belongs to a test: its processes and its folder end with it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    disk::Disk,
    error::ClusterError,
    faults,
    folder::{self, What},
    http,
    launch::{Start, command},
    layout::Node,
    namespaces::Namespaces,
    ports::Ports,
    process::{Signal, log_tail},
    proxy::Proxy,
};

/// How long a cluster may take to become ready.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to stop cleanly.
pub const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How many nodes may join with the token that a new cluster's nodes share.
const TOKEN_USES: u32 = 100;
/// Time between two looks at something that is waited for.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Lines of each log that are shown when a test fails.
const TAIL_LINES: usize = 60;

/// How nodes reach each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Straight over the loopback interface.
    #[default]
    Loopback,
    /// Through a [`Proxy`] that draws its chances from this seed.
    Proxied {
        /// The seed.
        seed: u64,
    },
    /// Each in a network namespace of its own: needs root.
    Namespaces,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes, at least 1.
    pub nodes: usize,
    /// The `flotilla` binary: [`crate::built_binary`].
    pub binary: PathBuf,
    /// Where data and logs go, and stay. `None` is a temporary folder that ends with the cluster.
    pub dir: Option<PathBuf>,
    /// More arguments for each `flotilla start`.
    pub arguments: Vec<String>,
    /// More variables for each node.
    pub variables: Vec<(String, String)>,
    /// How nodes reach each other.
    pub network: Network,
    /// Bytes of the disk that each node gets for its own: needs root. `None` leaves all of them on the disk that is there.
    pub disk_bytes: Option<u64>,
}

impl ClusterOptions {
    /// `nodes` nodes of `binary` in a temporary folder.
    #[must_use]
    pub fn new(nodes: usize, binary: PathBuf) -> Self {
        Self {
            nodes,
            binary,
            dir: None,
            arguments: Vec::new(),
            variables: Vec::new(),
            network: Network::Loopback,
            disk_bytes: None,
        }
    }
}

/// Running nodes, numbered from 1 like their names. Dropping it kills them all.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) options: ClusterOptions,
    dir: PathBuf,
    /// Removed when dropped, after the processes.
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) child: Option<Child>,
    /// Its own, on top of the cluster's.
    pub(crate) variables: Vec<(String, String)>,
    disk: Option<Disk>,
    /// Of its lives that have ended.
    pub(crate) peak_bytes: u64,
}

impl Cluster {
    /// Starts a new cluster and waits until it is whole.
    ///
    /// # Errors
    /// A node does not start, ends, or the cluster is not ready within [`READY_WITHIN`].
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let mut cluster = Self::start_founding(options)?;
        cluster.wait_node(1).await?;
        if cluster.members.len() > 1 {
            let token = http::token(&cluster.http(1)?, TOKEN_USES).await?;
            let peers = [cluster.quic(1)?];
            for i in 2..=cluster.members.len() {
                cluster.launch(i, Start::Join { peers: &peers, token: &token })?;
            }
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts the first node of a new cluster, and waits for nothing.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_founding(options: ClusterOptions) -> Result<Self, ClusterError> {
        let temporary = if options.dir.is_none() { Some(tempfile::tempdir()?) } else { None };
        let dir = options.dir.as_deref().or(temporary.as_ref().map(TempDir::path)).unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let proxy = match options.network {
            Network::Proxied { seed } => Some(Proxy::start(seed)?),
            Network::Loopback | Network::Namespaces => None,
        };
        let namespaces = (options.network == Network::Namespaces).then(Namespaces::start).transpose()?;
        let mut cluster = Self { members: Vec::new(), proxy, namespaces, options, dir, _temporary: temporary };
        let ports = Ports::free(cluster.options.nodes)?;
        for ports in ports {
            cluster.add_member(ports)?;
        }
        cluster.launch(1, Start::Bootstrap)?;
        Ok(cluster)
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Where node `i` serves HTTP: `http://…`.
    ///
    /// # Errors
    /// There is no such node. So for the other addresses.
    pub fn http(&self, i: usize) -> Result<String, ClusterError> {
        Ok(self.node(i)?.http_url())
    }

    /// Where all nodes serve HTTP, in order.
    #[must_use]
    pub fn http_all(&self) -> Vec<String> {
        self.members.iter().map(|member| member.node.http_url()).collect()
    }

    /// Where node `i` serves the Redis protocol.
    ///
    /// # Errors
    /// There is no such node.
    pub fn redis(&self, i: usize) -> Result<SocketAddr, ClusterError> {
        Ok(self.node(i)?.redis)
    }

    /// Where peers reach node `i`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn quic(&self, i: usize) -> Result<SocketAddr, ClusterError> {
        Ok(self.node(i)?.reached_at())
    }

    /// Names, addresses and files of node `i`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn node(&self, i: usize) -> Result<&Node, ClusterError> {
        i.checked_sub(1).and_then(|i| self.members.get(i)).map(|member| &member.node).ok_or(ClusterError::NoNode(i))
    }

    /// The file with node `i`'s output.
    ///
    /// # Errors
    /// There is no such node.
    pub fn log(&self, i: usize) -> Result<&Path, ClusterError> {
        Ok(&self.node(i)?.log)
    }

    /// Ends node `i` at once, as a crash does, and returns when it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, i: usize) -> Result<(), ClusterError> {
        let member = self.member(i)?;
        let mut child = member.child.take().ok_or(ClusterError::NoNode(i))?;
        member.peak_bytes = member.peak_bytes.max(faults::peak_bytes(child.id()));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal to node `i`, and does not wait for what comes of it.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, i: usize, signal: Signal) -> Result<(), ClusterError> {
        let child = i.checked_sub(1).and_then(|i| self.members.get(i)).and_then(|member| member.child.as_ref());
        Ok(signal.send(child.ok_or(ClusterError::NoNode(i))?.id())?)
    }

    /// Stops node `i` in its tracks, as a long pause does.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, i: usize) -> Result<(), ClusterError> {
        self.signal(i, Signal::Stop)
    }

    /// Lets node `i` go on after [`Cluster::pause`].
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self, i: usize) -> Result<(), ClusterError> {
        self.signal(i, Signal::Cont)
    }

    /// Asks node `i` to leave cleanly, and waits until it has.
    ///
    /// # Errors
    /// It does not run, or is not gone within [`STOP_WITHIN`]; it runs on then.
    pub async fn stop(&mut self, i: usize) -> Result<ExitStatus, ClusterError> {
        self.signal(i, Signal::Term)?;
        let start = Instant::now();
        loop {
            let member = self.member(i)?;
            if let Some(status) = member.child.as_mut().ok_or(ClusterError::NoNode(i))?.try_wait()? {
                member.child = None;
                return Ok(status);
            }
            if start.elapsed() > STOP_WITHIN {
                return Err(ClusterError::TimedOut { what: "a clean stop", within: STOP_WITHIN });
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Starts node `i` again: on its data, or, when it has none, as a new node with a new token from a running one.
    /// Does not wait for it to become ready.
    ///
    /// # Errors
    /// It runs already, or nobody gives a token.
    pub async fn start_node(&mut self, i: usize) -> Result<(), ClusterError> {
        if self.member(i)?.is_running() {
            return Err(ClusterError::Running(i));
        }
        if !folder::is_empty(&self.node(i)?.data_dir) {
            return self.launch(i, Start::Resume);
        }
        self.start_joining(i).await
    }

    /// Starts node `i` with a new token from a running one, whatever its folder holds: for one that ended while it joined.
    ///
    /// # Errors
    /// See [`Cluster::start_node`].
    pub async fn start_joining(&mut self, i: usize) -> Result<(), ClusterError> {
        let mut others = Vec::new();
        for (other, member) in self.members.iter_mut().enumerate() {
            if other + 1 != i && member.is_running() {
                others.push(member.node.clone());
            }
        }
        let mut token = Err(ClusterError::NobodyAnswers);
        for other in &others {
            if token.is_err() {
                token = http::token(&other.http_url(), 1).await;
            }
        }
        let peers: Vec<SocketAddr> = others.iter().map(Node::reached_at).collect();
        self.launch(i, Start::Join { peers: &peers, token: &token? })
    }

    /// Adds one more node, and returns its number. Does not wait for it to become ready.
    ///
    /// # Errors
    /// Nobody gives a token, or the node does not start.
    pub async fn add_node(&mut self) -> Result<usize, ClusterError> {
        for ports in Ports::free(1)? {
            self.add_member(ports)?;
        }
        let i = self.members.len();
        self.start_node(i).await?;
        Ok(i)
    }

    fn add_member(&mut self, mut ports: Ports) -> Result<(), ClusterError> {
        let i = self.members.len() + 1;
        let mut namespace = None;
        if let Some(namespaces) = &mut self.namespaces {
            let (name, own) = namespaces.add()?;
            (ports, namespace) = (own, Some(name));
        }
        let mut node = Node::new(&self.dir, i, ports);
        node.namespace = namespace;
        node.advertise = self.proxy.as_ref().map(|proxy| proxy.add(node.quic)).transpose()?;
        let disk = self.options.disk_bytes.map(|bytes| Disk::mount(&node.data_dir, bytes)).transpose()?;
        self.members.push(Member { node, child: None, variables: Vec::new(), disk, peak_bytes: 0 });
        Ok(())
    }

    pub(crate) fn disk(&self, i: usize) -> Result<&Disk, ClusterError> {
        let member = i.checked_sub(1).and_then(|i| self.members.get(i));
        member.and_then(|member| member.disk.as_ref()).ok_or(ClusterError::NoDisk(i))
    }

    /// Deletes the view, or all data, of node `i` while it is down.
    ///
    /// # Errors
    /// It runs, or there is no view.
    pub fn wipe(&mut self, i: usize, what: What) -> Result<(), ClusterError> {
        folder::wipe(&self.data_of_stopped(i)?, what)
    }

    /// Copies the data of node `i` aside while it is down, in the place of an earlier copy.
    ///
    /// # Errors
    /// It runs, or the copy fails.
    pub fn backup(&mut self, i: usize) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        Ok(folder::copy(&data, &data.with_extension("backup"))?)
    }

    /// Puts the copy from [`Cluster::backup`] back, in the place of the data of node `i`.
    ///
    /// # Errors
    /// It runs, there is no copy, or copying fails.
    pub fn restore(&mut self, i: usize) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        let backup = data.with_extension("backup");
        if !backup.is_dir() {
            return Err(ClusterError::NoBackup(i));
        }
        Ok(folder::copy(&backup, &data)?)
    }

    /// Waits until every running node is ready and sees every shard led, and replicated as far as the running nodes
    /// allow.
    ///
    /// # Errors
    /// A node ended, or that did not happen within [`READY_WITHIN`].
    pub async fn wait_ready(&mut self) -> Result<(), ClusterError> {
        let start = Instant::now();
        while !self.is_whole().await? {
            if start.elapsed() > READY_WITHIN {
                return Err(ClusterError::TimedOut { what: "a ready cluster", within: READY_WITHIN });
            }
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Waits until node `i` says that it is ready.
    ///
    /// # Errors
    /// It ended, or did not become ready within [`READY_WITHIN`].
    pub async fn wait_node(&mut self, i: usize) -> Result<(), ClusterError> {
        let start = Instant::now();
        while !http::is_ready(&self.http(i)?).await {
            self.member(i)?.check()?;
            if start.elapsed() > READY_WITHIN {
                return Err(ClusterError::TimedOut { what: "a ready node", within: READY_WITHIN });
            }
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    async fn is_whole(&mut self) -> Result<bool, ClusterError> {
        let mut urls = Vec::new();
        for member in &mut self.members {
            member.check()?;
            if member.child.is_some() {
                urls.push(member.node.http_url());
            }
        }
        for url in &urls {
            if !http::is_whole(url, urls.len()).await {
                return Ok(false);
            }
        }
        Ok(!urls.is_empty())
    }

    fn launch(&mut self, i: usize, start: Start<'_>) -> Result<(), ClusterError> {
        let mut command = command(&self.options.binary, self.node(i)?, start)?;
        command.args(&self.options.arguments).envs(self.options.variables.iter().cloned());
        let member = self.member(i)?;
        command.envs(member.variables.iter().cloned());
        let child = command.spawn()?;
        member.node.pid = child.id();
        member.child = Some(child);
        Ok(())
    }

    pub(crate) fn member(&mut self, i: usize) -> Result<&mut Member, ClusterError> {
        i.checked_sub(1).and_then(|i| self.members.get_mut(i)).ok_or(ClusterError::NoNode(i))
    }

    fn data_of_stopped(&mut self, i: usize) -> Result<PathBuf, ClusterError> {
        let member = self.member(i)?;
        if member.is_running() { Err(ClusterError::Running(i)) } else { Ok(member.node.data_dir.clone()) }
    }
}

impl Member {
    /// Whether its process runs. One that ended by itself is noticed here.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// An error when the process ended by itself.
    fn check(&mut self) -> Result<(), ClusterError> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let Some(status) = child.try_wait()? else { return Ok(()) };
        let tail = log_tail(&self.node.log, TAIL_LINES);
        Err(ClusterError::Ended { name: self.node.name.clone(), status, tail })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // It may have ended by itself; then there is nothing to do.
                if child.kill().is_ok() {
                    let _ = child.wait();
                }
            }
        }
        // What is mounted must go before the folder does.
        self.members.iter_mut().for_each(|member| drop(member.disk.take()));
        if thread::panicking() {
            for member in &self.members {
                let tail = log_tail(&member.node.log, TAIL_LINES);
                eprintln!("── the end of {}'s log ──\n{tail}", member.node.name);
            }
        }
    }
}
