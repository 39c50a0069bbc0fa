//! A network namespace per node, whose link can be taken down: all packets are dropped silently, clients'
//! included.
//!
//! All namespaces are attached to one bridge, on which the test itself also has an address. They are removed
//! when their owner is dropped; the next test process removes those of a killed one. Needs root and `ip`.

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

/// System tools required for namespaces.
pub const NAMESPACE_TOOLS: &[&str] = &["ip"];
const PREFIX: &str = "flotilla";
/// Every node uses the same ports, because it is alone in its namespace.
const QUIC_PORT: u16 = 7110;
const HTTP_PORT: u16 = 7111;
const REDIS_PORT: u16 = 7112;

/// The namespaces of a cluster.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Part of the names of all links and namespaces: the owner's pid and a sequence number.
    tag: String,
    bridge: String,
    /// Within 198.18.0.0/15, which is reserved for network benchmarks (RFC 2544).
    subnet: [u8; 3],
    nodes: usize,
}

impl Namespaces {
    pub(crate) fn start() -> io::Result<Self> {
        static NETWORKS: AtomicUsize = AtomicUsize::new(1);
        remove_orphans();
        let tag = format!("{}-{}", process::id(), NETWORKS.fetch_add(1, Relaxed));
        let IpAddr::V4(random) = loopback() else { return Err(io::ErrorKind::Unsupported.into()) };
        let network = Self { bridge: format!("flt{tag}"), tag, subnet: [198, 18, random.octets()[3]], nodes: 0 };
        run("ip", &["link", "add", &network.bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", network.address(1)), "dev", &network.bridge])?;
        run("ip", &["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// Adds a namespace for the next node; returns its name and the node's listen addresses.
    pub(crate) fn add(&mut self) -> io::Result<(String, Ports)> {
        self.nodes += 1;
        let (namespace, link) = (self.namespace(self.nodes), self.link(self.nodes));
        let address = self.address(u8::try_from(self.nodes + 10).map_err(io::Error::other)?);
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run("ip", &["link", "set", &link, "master", &self.bridge, "up"])?;
        run("ip", &["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        let at = |port| SocketAddr::from((address, port));
        Ok((namespace, Ports { quic: at(QUIC_PORT), http: at(HTTP_PORT), redis: at(REDIS_PORT) }))
    }

    /// Takes the link of node `i` down.
    pub(crate) fn unplug(&self, i: usize) -> io::Result<()> {
        run("ip", &["link", "set", &self.link(i), "down"]).map(drop)
    }

    /// Brings the link of node `i` up again.
    pub(crate) fn plug(&self, i: usize) -> io::Result<()> {
        run("ip", &["link", "set", &self.link(i), "up"]).map(drop)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    fn namespace(&self, i: usize) -> String {
        format!("{PREFIX}-{}-{i}", self.tag)
    }

    /// Name of the bridge's end of the node's veth pair: at most 15 characters, the kernel's limit.
    fn link(&self, i: usize) -> String {
        format!("fv{}-{i}", self.tag)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The nodes' ends of the veth pairs are removed with their namespaces.
        for i in 1..=self.nodes {
            let _ = run("ip", &["link", "del", &self.link(i)]);
            let _ = run("ip", &["netns", "del", &self.namespace(i)]);
        }
        let _ = run("ip", &["link", "del", &self.bridge]);
    }
}

/// Removes namespaces and bridges of killed test processes. Failures are harmless: names are unique.
fn remove_orphans() {
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
