//! A cluster owned by a test: dropping it kills its processes and deletes its temporary folder.

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
    folder::{self, WipeScope},
    http::{self, Credentials},
    launch::{Start, limited_command},
    layout::Node,
    memory::MemoryLimit,
    namespaces::Namespaces,
    ports::Ports,
    process::{Signal, log_tail},
    proxy::Proxy,
};

/// How long a cluster may take to become ready.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to stop cleanly.
pub const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Uses of the join token that the nodes of a new cluster share.
const TOKEN_USES: u32 = 100;
/// Interval between polls of an awaited condition.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Lines of each log printed when a test fails.
const TAIL_LINES: usize = 60;

/// How nodes reach each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Directly over the loopback interface.
    #[default]
    Loopback,
    /// Through a [`Proxy`] whose random decisions come from this seed.
    Proxied {
        /// The seed.
        seed: u64,
    },
    /// Each node in its own network namespace. Needs root.
    Namespaces,
}

/// Configuration of a cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes, at least 1.
    pub nodes: usize,
    /// The `flotilla` binary: [`crate::built_binary`].
    pub binary: PathBuf,
    /// Folder for data and logs, which is kept. `None`: a temporary folder, deleted with the cluster.
    pub dir: Option<PathBuf>,
    /// Additional arguments of each `flotilla start`.
    pub arguments: Vec<String>,
    /// Additional environment variables of each node.
    pub variables: Vec<(String, String)>,
    /// Whether clients need TLS and keys.
    pub secure: bool,
    /// How nodes reach each other.
    pub network: Network,
    /// Size in bytes of each node's own disk, which needs root. `None`: all nodes share the machine's disk.
    pub disk_bytes: Option<u64>,
    /// Files that each node may open: its soft and its hard limit. `None`: the limits of this process.
    pub descriptors_max: Option<u64>,
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
            secure: false,
            network: Network::Loopback,
            disk_bytes: None,
            descriptors_max: None,
        }
    }
}

/// A cluster of node processes, numbered from 1 like their names. Dropping it kills them all.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) options: ClusterOptions,
    dir: PathBuf,
    /// Deleted on drop, after the processes have ended.
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) child: Option<Child>,
    /// The binary of this node, if it is not the cluster's.
    pub(crate) binary: Option<PathBuf>,
    /// Environment variables of this node, in addition to the cluster's.
    pub(crate) variables: Vec<(String, String)>,
    disk: Option<Disk>,
    /// A bound on the memory of its process.
    pub(crate) memory: Option<MemoryLimit>,
    /// Peak memory in bytes over those of its processes that [`Cluster::kill`] ended.
    pub(crate) peak_bytes: u64,
}

impl Cluster {
    /// Starts a new cluster and waits until every shard is fully replicated.
    ///
    /// # Errors
    /// A node does not start or exits, or the cluster is not ready within [`READY_WITHIN`].
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let mut cluster = Self::start_bootstrap(options)?;
        cluster.wait_node(1).await?;
        if cluster.members.len() > 1 {
            let token = http::token(&cluster.http(1)?, &cluster.credentials(), TOKEN_USES).await?;
            let peers = [cluster.quic(1)?];
            for i in 2..=cluster.members.len() {
                cluster.launch(i, Start::Join { peers: &peers, token: &token })?;
            }
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts the first node of a new cluster without waiting for it to become ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_bootstrap(options: ClusterOptions) -> Result<Self, ClusterError> {
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

    /// Number of nodes, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Always false: a cluster has at least one node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How to authenticate at the nodes.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        let founder = self.members.first().filter(|_| self.options.secure);
        Credentials::new(founder.map(|member| member.node.data_dir.clone()))
    }

    /// HTTP base URL of node `i`: `http://…`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn http(&self, i: usize) -> Result<String, ClusterError> {
        Ok(self.node(i)?.http_url())
    }

    /// HTTP base URLs of all nodes, in order.
    #[must_use]
    pub fn http_all(&self) -> Vec<String> {
        self.members.iter().map(|member| member.node.http_url()).collect()
    }

    /// Address where node `i` serves the Redis protocol.
    ///
    /// # Errors
    /// There is no such node.
    pub fn redis(&self, i: usize) -> Result<SocketAddr, ClusterError> {
        Ok(self.node(i)?.redis)
    }

    /// Address at which peers reach node `i`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn quic(&self, i: usize) -> Result<SocketAddr, ClusterError> {
        Ok(self.node(i)?.peer_addr())
    }

    /// Name, addresses and files of node `i`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn node(&self, i: usize) -> Result<&Node, ClusterError> {
        i.checked_sub(1).and_then(|i| self.members.get(i)).map(|member| &member.node).ok_or(ClusterError::NoNode(i))
    }

    /// Log file of node `i`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn log(&self, i: usize) -> Result<&Path, ClusterError> {
        Ok(&self.node(i)?.log)
    }

    /// Kills node `i` with SIGKILL, as a crash does, and returns once the process has ended.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self, i: usize) -> Result<(), ClusterError> {
        let member = self.member(i)?;
        let mut child = member.child.take().ok_or(ClusterError::NoNode(i))?;
        member.peak_bytes = member.peak_bytes.max(faults::peak_memory_bytes(child.id()));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal to node `i` without waiting for its effect.
    ///
    /// # Errors
    /// It is not running.
    pub fn signal(&self, i: usize, signal: Signal) -> Result<(), ClusterError> {
        let child = i.checked_sub(1).and_then(|i| self.members.get(i)).and_then(|member| member.child.as_ref());
        Ok(signal.send(child.ok_or(ClusterError::NoNode(i))?.id())?)
    }

    /// Suspends node `i` with SIGSTOP.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&self, i: usize) -> Result<(), ClusterError> {
        self.signal(i, Signal::Stop)
    }

    /// Continues node `i` after [`Cluster::pause`].
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&self, i: usize) -> Result<(), ClusterError> {
        self.signal(i, Signal::Cont)
    }

    /// Stops node `i` cleanly with SIGTERM and waits until it has exited.
    ///
    /// # Errors
    /// It is not running, or has not exited within [`STOP_WITHIN`]; in that case it keeps running.
    pub async fn stop(&mut self, i: usize) -> Result<ExitStatus, ClusterError> {
        self.signal(i, Signal::Term)?;
        self.wait_exit(i, STOP_WITHIN).await
    }

    /// Starts node `i` again: on its data, or, if it has none, as a new node with a token from a running one.
    /// Does not wait for it to become ready.
    ///
    /// # Errors
    /// It is already running, or no running node issues a token.
    pub async fn start_node(&mut self, i: usize) -> Result<(), ClusterError> {
        if self.member(i)?.is_running() {
            return Err(ClusterError::Running(i));
        }
        if !folder::is_empty(&self.node(i)?.data_dir) {
            return self.launch(i, Start::Resume);
        }
        self.start_joining(i).await
    }

    /// Starts node `i` with a token from a running one, whatever its folder holds: for a node that crashed
    /// while joining.
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
        let credentials = self.credentials();
        let mut token = Err(ClusterError::NoNodeAnswers);
        for other in &others {
            if token.is_err() {
                token = http::token(&other.http_url(), &credentials, 1).await;
            }
        }
        let peers: Vec<SocketAddr> = others.iter().map(Node::peer_addr).collect();
        self.launch(i, Start::Join { peers: &peers, token: &token? })
    }

    /// Starts node `i` again on its data, with addresses at which other nodes may be.
    ///
    /// # Errors
    /// It is already running.
    pub fn start_among(&mut self, i: usize, peers: &[SocketAddr]) -> Result<(), ClusterError> {
        if self.member(i)?.is_running() {
            return Err(ClusterError::Running(i));
        }
        self.launch(i, Start::ResumeAmong { peers })
    }

    /// Gives the stopped node `i` other ports.
    ///
    /// # Errors
    /// It is running, or there are no free ports.
    pub fn move_node(&mut self, i: usize) -> Result<(), ClusterError> {
        self.data_of_stopped(i)?;
        for ports in Ports::free(1)? {
            let node = &mut self.member(i)?.node;
            (node.quic, node.http, node.redis) = (ports.quic, ports.http, ports.redis);
        }
        Ok(())
    }

    /// Adds a node and returns its number. Does not wait for it to become ready.
    ///
    /// # Errors
    /// No running node issues a token, or the new node does not start.
    pub async fn add_node(&mut self) -> Result<usize, ClusterError> {
        self.add_node_with(&[]).await
    }

    /// Adds a node that also has these environment variables.
    ///
    /// # Errors
    /// See [`Cluster::add_node`].
    pub async fn add_node_with(&mut self, variables: &[(&str, &str)]) -> Result<usize, ClusterError> {
        for ports in Ports::free(1)? {
            self.add_member(ports)?;
        }
        let i = self.members.len();
        for (name, value) in variables {
            self.set_variable(i, name, value)?;
        }
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
        node.secure = self.options.secure;
        node.advertise = self.proxy.as_ref().map(|proxy| proxy.add(node.quic)).transpose()?;
        let disk = self.options.disk_bytes.map(|bytes| Disk::mount(&node.data_dir, bytes)).transpose()?;
        self.members.push(Member {
            node,
            child: None,
            binary: None,
            variables: Vec::new(),
            disk,
            memory: None,
            peak_bytes: 0,
        });
        Ok(())
    }

    pub(crate) fn disk(&self, i: usize) -> Result<&Disk, ClusterError> {
        let member = i.checked_sub(1).and_then(|i| self.members.get(i));
        member.and_then(|member| member.disk.as_ref()).ok_or(ClusterError::NoDisk(i))
    }

    /// Deletes the view, or all data, of the stopped node `i`.
    ///
    /// # Errors
    /// It is running, or there is no view.
    pub fn wipe(&mut self, i: usize, what: WipeScope) -> Result<(), ClusterError> {
        folder::wipe(&self.data_of_stopped(i)?, what)
    }

    /// Copies the data of the stopped node `i` to a backup, replacing an earlier one.
    ///
    /// # Errors
    /// It is running, or copying fails.
    pub fn backup(&mut self, i: usize) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        Ok(folder::copy(&data, &data.with_extension("backup"))?)
    }

    /// Replaces the data of the stopped node `i` by its backup from [`Cluster::backup`].
    ///
    /// # Errors
    /// It is running, there is no backup, or copying fails.
    pub fn restore(&mut self, i: usize) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        let backup = data.with_extension("backup");
        if !backup.is_dir() {
            return Err(ClusterError::NoBackup(i));
        }
        Ok(folder::copy(&backup, &data)?)
    }

    /// Copies one folder of the stopped node `i` to its backup, in place of an earlier copy of it.
    ///
    /// # Errors
    /// It is running, or copying fails.
    pub fn backup_folder(&mut self, i: usize, within: &Path) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        Ok(folder::copy(&data.join(within), &data.with_extension("backup").join(within))?)
    }

    /// Replaces one folder of the stopped node `i` by its backup from [`Cluster::backup_folder`], and leaves the
    /// rest as it is.
    ///
    /// # Errors
    /// It is running, there is no backup, or copying fails.
    pub fn restore_folder(&mut self, i: usize, within: &Path) -> Result<(), ClusterError> {
        let data = self.data_of_stopped(i)?;
        let backup = data.with_extension("backup").join(within);
        if !backup.is_dir() {
            return Err(ClusterError::NoBackup(i));
        }
        Ok(folder::copy(&backup, &data.join(within))?)
    }

    /// Waits until every running node is ready and reports a leader and all replicas for every shard, as far
    /// as the number of running nodes allows.
    ///
    /// # Errors
    /// A node exited, or [`READY_WITHIN`] has passed.
    pub async fn wait_ready(&mut self) -> Result<(), ClusterError> {
        let start = Instant::now();
        while !self.has_possible_replicas().await? {
            if start.elapsed() > READY_WITHIN {
                return Err(ClusterError::TimedOut { what: "a ready cluster", within: READY_WITHIN });
            }
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Waits until node `i` reports that it is ready.
    ///
    /// # Errors
    /// It exited, or did not become ready within [`READY_WITHIN`].
    pub async fn wait_node(&mut self, i: usize) -> Result<(), ClusterError> {
        let start = Instant::now();
        while !http::is_ready(&self.http(i)?, &self.credentials()).await {
            self.member(i)?.check_running()?;
            if start.elapsed() > READY_WITHIN {
                return Err(ClusterError::TimedOut { what: "a ready node", within: READY_WITHIN });
            }
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    async fn has_possible_replicas(&mut self) -> Result<bool, ClusterError> {
        let mut urls = Vec::new();
        for member in &mut self.members {
            member.check_running()?;
            if member.child.is_some() {
                urls.push(member.node.http_url());
            }
        }
        for url in &urls {
            if !http::has_possible_replicas(url, &self.credentials(), urls.len()).await {
                return Ok(false);
            }
        }
        Ok(!urls.is_empty())
    }

    fn launch(&mut self, i: usize, start: Start<'_>) -> Result<(), ClusterError> {
        let binary = self.member(i)?.binary.clone().unwrap_or_else(|| self.options.binary.clone());
        let mut command = limited_command(&binary, self.node(i)?, start, self.options.descriptors_max)?;
        // Clusters of tests share one disk, which need not hold a ballast for each of their nodes.
        command
            .args(&self.options.arguments)
            .env("FLOTILLA_BALLAST_BYTES", "0")
            .envs(self.options.variables.iter().cloned());
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

    pub(crate) fn data_of_stopped(&mut self, i: usize) -> Result<PathBuf, ClusterError> {
        let member = self.member(i)?;
        if member.is_running() { Err(ClusterError::Running(i)) } else { Ok(member.node.data_dir.clone()) }
    }
}

impl Member {
    /// Whether its process is running. Notices a process that exited by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Fails if the process exited by itself.
    fn check_running(&mut self) -> Result<(), ClusterError> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let Some(status) = child.try_wait()? else { return Ok(()) };
        let tail = log_tail(&self.node.log, TAIL_LINES);
        Err(ClusterError::Exited { name: self.node.name.clone(), status, tail })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // If it exited by itself there is nothing to do.
                if child.kill().is_ok() {
                    let _ = child.wait();
                }
            }
        }
        // Disks must be unmounted before the folder is deleted.
        self.members.iter_mut().for_each(|member| drop(member.disk.take()));
        if thread::panicking() {
            for member in &self.members {
                let tail = log_tail(&member.node.log, TAIL_LINES);
                eprintln!("── end of the log of {} ──\n{tail}", member.node.name);
            }
        }
    }
}
