//! Peers: etcd and Redis, started for comparison with the same guarantee, that acknowledged writes are on
//! disk.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    measure::{Family, System, fill},
    protocol::Wire,
    workload::Values,
};

/// How long a peer may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Members of an etcd cluster.
pub(super) const ETCD_MEMBERS: usize = 3;
/// Bytes that etcd may store before it refuses writes; it keeps every version of every key. Its default of 2
/// GiB is less than the largest runs write; the quota affects nothing else.
const ETCD_QUOTA_BYTES: u64 = 8 << 30;

/// A peer's processes, killed on drop.
pub(super) struct Peer {
    pub(super) system: System,
    children: Vec<Child>,
}

impl Peer {
    /// Starts a redis-server in `folder` that fsyncs every write before it acknowledges it.
    pub(super) fn redis(folder: &Path) -> Result<Self> {
        let addr = free()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port"]).arg(addr.port().to_string()).arg("--dir").arg(folder);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"]);
        let name = "redis-server, fsync always".to_owned();
        let mut peer =
            Self::new(System { family: Family::Redis, name, wire: Wire::Redis, servers: vec![addr], pids: Vec::new() });
        peer.start(command)?;
        peer.wait()?;
        Ok(peer)
    }

    /// Starts an etcd cluster in `folder` with default settings except for the quota.
    pub(super) fn etcd(folder: &Path) -> Result<Self> {
        let addresses = || (0..ETCD_MEMBERS).map(|_| free()).collect::<Result<Vec<_>>>();
        let (servers, peer_addrs) = (addresses()?, addresses()?);
        let named: Vec<_> = peer_addrs.iter().enumerate().map(|(i, peer)| format!("e{i}=http://{peer}")).collect();
        let name = format!("etcd ×{ETCD_MEMBERS}");
        let mut peer = Self::new(System { family: Family::Etcd, name, wire: Wire::Grpc, servers, pids: Vec::new() });
        for (i, peer_addr) in peer_addrs.iter().enumerate() {
            let (client, peer_url) = (format!("http://{}", peer.system.servers[i]), format!("http://{peer_addr}"));
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("e{i}"), "--initial-cluster", &named.join(","), "--log-level", "error"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
            command.arg("--quota-backend-bytes").arg(ETCD_QUOTA_BYTES.to_string());
            command.arg("--data-dir").arg(folder.join(format!("e{i}")));
            peer.start(command)?;
        }
        peer.wait()?;
        Ok(peer)
    }

    fn new(system: System) -> Self {
        Self { system, children: Vec::new() }
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot run {}", command.get_program().display()))?;
        self.system.pids.push(child.id());
        self.children.push(child);
        Ok(())
    }

    /// Waits until each server has accepted a write.
    fn wait(&self) -> Result<()> {
        let (start, values) = (Instant::now(), Values::new(1));
        for server in &self.system.servers {
            let only = System { servers: vec![*server], ..self.system.clone() };
            while let Err(error) = fill(&only, 1, &values) {
                ensure!(start.elapsed() < READY_WITHIN, "{} is not ready: {error:#}", self.system.name);
                thread::sleep(POLL_EVERY);
            }
        }
        Ok(())
    }

    /// Kills server `i`, as a crash does.
    pub(super) fn kill(&mut self, i: usize) -> Result<()> {
        let child = self.children.get_mut(i).context("no such server")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

impl Drop for Peer {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have exited by itself.
            if child.kill().is_ok() {
                let _ = child.wait();
            }
        }
    }
}
