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
