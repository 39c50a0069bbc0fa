//! Errors of operations on a local cluster.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// An operation on a local cluster failed. None of these errors is worth an unchanged retry.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such node, or the operation needs it running and it is not.
    #[error("no running node {0}")]
    NoNode(usize),
    /// The operation needs the node stopped, and it is running.
    #[error("node {0} is running")]
    Running(usize),
    /// The binary does not exist.
    #[error("{} does not exist: build it with `cargo build -p flotilla-node`", .0.display())]
    NoBinary(PathBuf),
    /// A node exited while the caller waited for it. Its log says why.
    #[error("{name} exited ({status}); end of its log:\n{tail}")]
    Exited {
        /// The node.
        name: String,
        /// Its exit status.
        status: ExitStatus,
        /// The last lines of its log.
        tail: String,
    },
    /// An awaited condition did not hold in time.
    #[error("{what} did not happen within {} s", .within.as_secs())]
    TimedOut {
        /// The condition.
        what: &'static str,
        /// The timeout.
        within: Duration,
    },
    /// No running node issued a token.
    #[error("no running node issued a token")]
    NoNodeAnswers,
    /// No view was found in the data folder.
    #[error("no `view` folder in {}", .0.display())]
    NoView(PathBuf),
    /// There is no backup of this node.
    #[error("no backup of node {0}")]
    NoBackup(usize),
    /// The cluster has no proxy between its nodes.
    #[error("no proxy between the nodes")]
    NoProxy,
    /// The nodes are not in namespaces.
    #[error("the nodes are not in network namespaces")]
    NoNamespaces,
    /// The node has no disk of its own.
    #[error("node {0} has no disk of its own")]
    NoDisk(usize),
    /// An HTTP request failed, or its response could not be decoded.
    #[error("request failed: {0}")]
    Client(#[from] flotilla_client::ClientError),
    /// A file or process operation failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The layout file could not be parsed or serialized.
    #[error("{}: {source}", .path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}
