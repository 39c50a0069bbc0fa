//! What can go wrong with processes.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// Something could not be done to a cluster of processes. None of these is worth retrying unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such node, or it is not running (for what needs it running).
    #[error("there is no running node {0}")]
    NoNode(usize),
    /// The node runs, and must not for this.
    #[error("node {0} is running")]
    Running(usize),
    /// The binary is not there.
    #[error("{} is not there: build it with `cargo build -p flotilla-node`", .0.display())]
    NoBinary(PathBuf),
    /// A node ended while it was waited for. Its log says why.
    #[error("{name} ended ({status}); the end of its log:\n{tail}")]
    Ended {
        /// The node.
        name: String,
        /// How.
        status: ExitStatus,
        /// The last lines of its log.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s", .within.as_secs())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// No node gave a token.
    #[error("no running node answers")]
    NobodyAnswers,
    /// No view was found in the data folder.
    #[error("no folder `view` in {}", .0.display())]
    NoView(PathBuf),
    /// There is no backup of this node.
    #[error("there is no backup of node {0}")]
    NoBackup(usize),
    /// The cluster has no proxy between its nodes.
    #[error("there is no proxy between the nodes")]
    NoProxy,
    /// The nodes are not in namespaces.
    #[error("the nodes are not in network namespaces")]
    NoNamespaces,
    /// The node has no disk of its own.
    #[error("node {0} has no disk of its own")]
    NoDisk(usize),
    /// A request over HTTP failed, or its answer was not understood.
    #[error("request failed: {0}")]
    Http(#[from] reqwest::Error),
    /// A file or a process.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The layout file is no such thing.
    #[error("{}: {source}", .path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
