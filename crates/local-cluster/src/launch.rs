//! The command line that starts a node.

use std::{
    env,
    fs::OpenOptions,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{error::ClusterError, layout::Node};

/// Environment variable that overrides the path of the binary.
const BINARY_VARIABLE: &str = "FLOTILLA_BIN";

/// How a node starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// As the first node of a new cluster.
    Bootstrap,
    /// As a new node that joins the cluster of these peers.
    Join {
        /// Addresses of the peers.
        peers: &'a [SocketAddr],
        /// Join token from [`crate::token`].
        token: &'a str,
    },
    /// On its existing data.
    Resume,
}

/// The command that runs `node`, with its output appended to its log. It does not inherit `FLOTILLA_*`
/// variables from this process.
///
/// # Errors
/// The log cannot be opened.
pub fn command(binary: &Path, node: &Node, start: Start<'_>) -> io::Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(&node.log)?;
    let mut command = match &node.namespace {
        // `ip netns exec` replaces itself by the node, so the pid is the node's.
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(binary);
            command
        }
        None => Command::new(binary),
    };
    command.arg("start").arg("--data-dir").arg(&node.data_dir);
    command.arg("--listen").arg(node.quic.to_string());
    command.arg("--http").arg(node.http.to_string());
    command.arg("--redis").arg(node.redis.to_string());
    command.arg("--name").arg(&node.name);
    if let Some(advertise) = node.advertise {
        command.arg("--advertise").arg(advertise.to_string());
    }
    match start {
        Start::Bootstrap => {
            command.arg("--bootstrap");
        }
        Start::Join { peers, token } => {
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            command.arg("--join").arg(peers.join(",")).arg("--token").arg(token);
        }
        Start::Resume => {}
    }
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLOTILLA_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// The `flotilla` binary of this build: `$FLOTILLA_BIN`, or the one in the target folder of the running
/// program.
///
/// # Errors
/// It has not been built.
pub fn built_binary() -> Result<PathBuf, ClusterError> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(ClusterError::NoBinary(path)) };
    }
    let here = env::current_exe()?;
    let name = format!("flotilla{}", env::consts::EXE_SUFFIX);
    // Tests run from `deps`, one folder below the binaries.
    let found = here.ancestors().skip(1).take(2).map(|folder| folder.join(&name)).find(|path| path.is_file());
    found.ok_or_else(|| ClusterError::NoBinary(here.with_file_name(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Ports;

    fn arguments(start: Start<'_>) -> String {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut node = Node::new(dir.path(), 2, Ports::fixed(7_100, 2).expect("ports below the last"));
        node.data_dir = "data".into();
        let command = command(Path::new("flotilla"), &node, start).expect("a writable folder");
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        arguments.join(" ")
    }

    #[test]
    fn command_line_matches_the_documentation() {
        let common =
            "start --data-dir data --listen 127.0.0.1:7120 --http 127.0.0.1:7121 --redis 127.0.0.1:7122 --name n2";
        assert_eq!(arguments(Start::Resume), common);
        assert_eq!(arguments(Start::Bootstrap), format!("{common} --bootstrap"));
        let peers = [([127, 0, 0, 1], 7_110).into(), ([127, 0, 0, 1], 7_130).into()];
        let join = arguments(Start::Join { peers: &peers, token: "flt1.x" });
        assert_eq!(join, format!("{common} --join 127.0.0.1:7110,127.0.0.1:7130 --token flt1.x"));
    }
}
