//! A network namespace for each node, so that its cable can be pulled: everything is lost without a sign, clients' traffic included.
//!
//! Namespaces hang off one bridge, on which the test itself has an address, too. They end with their owner; those of a test process that
//! was killed are removed by the next one. Needs root and `ip`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    ports::{Ports, loopback},
    privileged::{is_orphan, run},
};

/// The tools that this needs.
pub const NAMESPACE_TOOLS: &[&str] = &["ip"];
const PREFIX: &str = "flotilla";
/// The ports of each node: they are alone in their namespaces.
const PORTS: (u16, u16, u16) = (7110, 7111, 7112);

/// The namespaces of a cluster.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Part of every name.
    tag: String,
    bridge: String,
    /// 198.18.0.0/15 is set aside for tests of networks (RFC 2544).
    subnet: [u8; 3],
    nodes: usize,
}

impl Namespaces {
    pub(crate) fn start() -> io::Result<Self> {
        static NETWORKS: AtomicUsize = AtomicUsize::new(1);
        sweep();
        let tag = format!("{}-{}", process::id(), NETWORKS.fetch_add(1, Relaxed));
        let IpAddr::V4(chance) = loopback() else { return Err(io::ErrorKind::Unsupported.into()) };
        let network = Self { bridge: format!("flt{tag}"), tag, subnet: [198, 18, chance.octets()[3]], nodes: 0 };
        run("ip", &["link", "add", &network.bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", network.address(1)), "dev", &network.bridge])?;
        run("ip", &["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// A namespace for the next node: its name, and where the node listens.
    pub(crate) fn add(&mut self) -> io::Result<(String, Ports)> {
        self.nodes += 1;
        let (namespace, cable) = (self.namespace(self.nodes), self.cable(self.nodes));
        let address = self.address(u8::try_from(self.nodes + 10).map_err(io::Error::other)?);
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run("ip", &["link", "set", &cable, "master", &self.bridge, "up"])?;
        run("ip", &["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        let at = |port| SocketAddr::from((address, port));
        Ok((namespace, Ports { quic: at(PORTS.0), http: at(PORTS.1), redis: at(PORTS.2) }))
    }

    /// Pulls the cable of node `i`.
    pub(crate) fn unplug(&self, i: usize) -> io::Result<()> {
        run("ip", &["link", "set", &self.cable(i), "down"]).map(drop)
    }

    /// Puts it back.
    pub(crate) fn plug(&self, i: usize) -> io::Result<()> {
        run("ip", &["link", "set", &self.cable(i), "up"]).map(drop)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    fn namespace(&self, i: usize) -> String {
        format!("{PREFIX}-{}-{i}", self.tag)
    }

    /// At most 15 characters, which is all that the kernel takes.
    fn cable(&self, i: usize) -> String {
        format!("fv{}-{i}", self.tag)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The nodes' ends of the cables go with the namespaces.
        for i in 1..=self.nodes {
            let _ = run("ip", &["link", "del", &self.cable(i)]);
            let _ = run("ip", &["netns", "del", &self.namespace(i)]);
        }
        let _ = run("ip", &["link", "del", &self.bridge]);
    }
}

/// Removes what a killed test process left. Whatever cannot be removed is in nobody's way.
fn sweep() {
    let namespaces = run("ip", &["netns", "list"]).unwrap_or_default();
    for name in namespaces.lines().filter_map(|line| line.split_whitespace().next()) {
        let mut parts = name.split('-');
        if parts.next() == Some(PREFIX) && parts.next().is_some_and(is_orphan) {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
    let bridges = run("ip", &["-o", "link", "show", "type", "bridge"]).unwrap_or_default();
    for name in bridges.lines().filter_map(|line| line.split(": ").nth(1)) {
        let pid = name.strip_prefix("flt").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(is_orphan) {
            let _ = run("ip", &["link", "del", name]);
        }
    }
}
