//! `cluster.json`: the nodes in a folder, their addresses and their processes.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{error::ClusterError, http::Credentials, ports::Ports, process};

/// File name in the cluster's folder.
pub const LAYOUT_FILE: &str = "cluster.json";

/// One node of a cluster on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `n1`, `n2`, …
    pub name: String,
    /// Process id of the last start; 0 before the first.
    pub pid: u32,
    /// Listen address for peers.
    pub quic: SocketAddr,
    /// Listen address for HTTP.
    pub http: SocketAddr,
    /// Listen address for the Redis protocol.
    pub redis: SocketAddr,
    /// Data folder.
    pub data_dir: PathBuf,
    /// File that receives stdout and stderr.
    pub log: PathBuf,
    /// Address at which peers reach it, if it differs from `quic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Network namespace it runs in, if not the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whether clients need TLS and keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secure: bool,
}

impl Node {
    /// Node `number` (from 1) of the cluster in `dir`, not started yet.
    #[must_use]
    pub fn new(dir: &Path, number: usize, ports: Ports) -> Self {
        let name = format!("n{number}");
        let Ports { quic, http, redis } = ports;
        let (data_dir, log) = (dir.join(&name), dir.join(format!("{name}.log")));
        Self { pid: 0, quic, http, redis, data_dir, log, name, advertise: None, namespace: None, secure: false }
    }

    /// Address at which peers reach it.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.quic)
    }

    /// `http://…` or `https://…`
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.http)
    }

    /// Whether its process is running. A pid that was reused by another program does not count.
    #[must_use]
    pub fn is_running(&self) -> bool {
        process::is_running_on(self.pid, &self.data_dir)
    }
}

/// All nodes of a cluster, as in [`LAYOUT_FILE`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// In the order of their numbers.
    pub nodes: Vec<Node>,
    /// The authority that signed the nodes' certificates, if clients need TLS and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The first admin key, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_key: Option<String>,
}

impl Layout {
    /// Reads the layout of the cluster in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn load(dir: &Path) -> Result<Option<Self>, ClusterError> {
        let path = dir.join(LAYOUT_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| ClusterError::Layout { path, source })
    }

    /// Writes the layout atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), ClusterError> {
        let path = dir.join(LAYOUT_FILE);
        let text =
            serde_json::to_string_pretty(self).map_err(|source| ClusterError::Layout { path: path.clone(), source })?;
        let new = dir.join(format!("{LAYOUT_FILE}.new"));
        // It may hold a key.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all((text + "\n").as_bytes())?;
        Ok(fs::rename(new, path)?)
    }

    /// How to authenticate at the nodes.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        let founder = self.nodes.first().filter(|node| node.secure);
        Credentials::new(founder.map(|node| node.data_dir.clone()))
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_layout_is_read_back_and_a_malformed_one_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Layout::load(dir.path()).expect("no file is no error"), None);
        let ports = Ports::fixed(7_100, 1).expect("ports below the last");
        let layout = Layout { nodes: vec![Node::new(dir.path(), 1, ports)], ..Layout::default() };
        layout.save(dir.path()).expect("a writable folder");
        assert_eq!(Layout::load(dir.path()).expect("the file just written"), Some(layout));
        fs::write(dir.path().join(LAYOUT_FILE), "{").expect("a writable folder");
        assert!(matches!(Layout::load(dir.path()), Err(ClusterError::Layout { .. })));
    }

    #[test]
    fn the_file_has_the_names_that_scripts_rely_on() {
        let node = Node::new(Path::new("/c"), 1, Ports::fixed(7_100, 1).expect("ports below the last"));
        let json = serde_json::to_value(Layout { nodes: vec![node], ..Layout::default() }).expect("plain data");
        let expected = serde_json::json!({"nodes": [{
            "name": "n1", "pid": 0, "quic": "127.0.0.1:7110", "http": "127.0.0.1:7111", "redis": "127.0.0.1:7112",
            "data_dir": "/c/n1", "log": "/c/n1.log",
        }]});
        assert_eq!(json, expected);
    }
}
