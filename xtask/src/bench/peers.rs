//! Other servers, started for comparison with the same promise: an acknowledged write is on the disk.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    etcd::{EtcdClient, Reads},
    load::{Client, Operation},
    resp::RespClient,
};

/// How long a peer may take to answer after its start.
const READY_WITHIN: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A redis-server of our own; ends when dropped.
pub(super) struct RedisServer {
    child: Child,
    addr: SocketAddr,
}

impl RedisServer {
    /// Starts one in `folder`, with every write fsynced before it is acknowledged.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let addr = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port"]).arg(addr.port().to_string()).arg("--dir").arg(folder);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.context("cannot run redis-server")?, addr };
        let start = Instant::now();
        while !server.answers() {
            ensure!(start.elapsed() < READY_WITHIN, "redis-server does not answer");
            thread::sleep(POLL_EVERY);
        }
        Ok(server)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn answers(&self) -> bool {
        let ask = || RespClient::connect(self.addr)?.batch(Operation::Get, &[0], &[], &mut |_| ());
        ask().is_ok()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// An etcd cluster of our own; its members end when dropped.
pub(super) struct EtcdCluster {
    members: Vec<Child>,
    clients: Vec<SocketAddr>,
}

impl EtcdCluster {
    /// Starts members in `folder`, with nothing changed from what etcd does by itself.
    pub(super) fn start(folder: &Path, members: usize) -> Result<Self> {
        let free = || -> Result<SocketAddr> { Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?) };
        let peers = (0..members).map(|_| free()).collect::<Result<Vec<_>>>()?;
        let clients = (0..members).map(|_| free()).collect::<Result<Vec<_>>>()?;
        let named: Vec<_> = peers.iter().enumerate().map(|(i, peer)| format!("e{i}=http://{peer}")).collect();
        let mut cluster = Self { members: Vec::new(), clients };
        for (i, peer) in peers.iter().enumerate() {
            let (client, peer) = (format!("http://{}", cluster.clients[i]), format!("http://{peer}"));
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("e{i}"), "--initial-cluster", &named.join(","), "--log-level", "error"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.arg("--data-dir").arg(folder.join(format!("e{i}")));
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            cluster.members.push(child.context("cannot run etcd")?);
        }
        let start = Instant::now();
        while !cluster.clients.iter().all(|member| answers(*member)) {
            ensure!(start.elapsed() < READY_WITHIN, "etcd does not answer");
            thread::sleep(POLL_EVERY);
        }
        Ok(cluster)
    }

    pub(super) fn clients(&self) -> &[SocketAddr] {
        &self.clients
    }
}

fn answers(member: SocketAddr) -> bool {
    let mut refused = None;
    let mut ask = || {
        EtcdClient::connect(member, Reads::Linearizable)?
            .batch(Operation::Get, &[0], &[], &mut |answer| refused = answer)
    };
    ask().is_ok() && refused.is_none()
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended by itself.
            if member.kill().is_ok() {
                let _ = member.wait();
            }
        }
    }
}
