//! The command line that starts a node.

use std::{
    env,
    ffi::OsString,
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
    /// On its existing data, with addresses at which other nodes may be.
    ResumeAmong {
        /// The addresses.
        peers: &'a [SocketAddr],
    },
}

/// The command that runs `node`, with its output appended to its log. It does not inherit `FLOTILLA_*`
/// variables from this process.
///
/// # Errors
/// The log cannot be opened.
pub fn command(binary: &Path, node: &Node, start: Start<'_>) -> io::Result<Command> {
    limited_command(binary, node, start, None)
}

/// [`command`], for a process that may open no more than `descriptors_max` files.
pub(crate) fn limited_command(
    binary: &Path,
    node: &Node,
    start: Start<'_>,
    descriptors_max: Option<u64>,
) -> io::Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(&node.log)?;
    // Each of these programs replaces itself by the next, so the pid is the node's.
    let mut words: Vec<OsString> = Vec::new();
    if let Some(descriptors_max) = descriptors_max {
        // Set before the node runs: a limit that is set from outside may come after it has read another one.
        words.extend(["sh", "-c", "ulimit -n \"$0\" && exec \"$@\""].map(OsString::from));
        words.push(descriptors_max.to_string().into());
    }
    if let Some(namespace) = &node.namespace {
        words.extend(["ip", "netns", "exec", namespace].map(OsString::from));
    }
    words.push(binary.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.arg("start").arg("--data-dir").arg(&node.data_dir);
    command.arg("--listen").arg(node.quic.to_string());
    command.arg("--http").arg(node.http.to_string());
    command.arg("--redis").arg(node.redis.to_string());
    command.arg("--name").arg(&node.name);
    if let Some(advertise) = node.advertise {
        command.arg("--advertise").arg(advertise.to_string());
    }
    if node.secure {
        command.arg("--secure");
    } else if !node.http.ip().is_loopback() {
        // The network namespaces of tests are their own loopback.
        command.arg("--insecure");
    }
    match start {
        Start::Bootstrap => {
            command.arg("--bootstrap");
        }
        Start::Join { peers, token } => {
            command.arg("--join").arg(list(peers)).arg("--token").arg(token);
        }
        Start::ResumeAmong { peers } => {
            command.arg("--join").arg(list(peers));
        }
        Start::Resume => {}
    }
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLOTILLA_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

fn list(peers: &[SocketAddr]) -> String {
    peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
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
    fn a_limit_of_descriptors_is_in_force_when_the_program_begins() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let node = Node::new(dir.path(), 1, Ports::fixed(7_100, 1).expect("ports below the last"));
        let program = dir.path().join("program");
        std::fs::write(&program, "#!/bin/sh\nulimit -Sn; ulimit -Hn; echo $1\n").expect("a writable folder");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&program, mode).expect("a file of this process");
        let mut command = limited_command(&program, &node, Start::Resume, Some(99)).expect("a writable folder");
        assert!(command.status().expect("a shell").success());
        assert_eq!(std::fs::read_to_string(&node.log).expect("a log"), "99\n99\nstart\n");
    }

    #[test]
    fn command_line_matches_the_documentation() {
        let common =
            "start --data-dir data --listen 127.0.0.1:7120 --http 127.0.0.1:7121 --redis 127.0.0.1:7122 --name n2";
        assert_eq!(arguments(Start::Resume), common);
        assert_eq!(arguments(Start::Bootstrap), format!("{common} --bootstrap"));
        let peers = [([127, 0, 0, 1], 7_110).into(), ([127, 0, 0, 1], 7_130).into()];
        let join = arguments(Start::Join { peers: &peers, token: "flt1.x" });
        let among = arguments(Start::ResumeAmong { peers: &peers });
        assert_eq!(among, format!("{common} --join 127.0.0.1:7110,127.0.0.1:7130"));
        assert_eq!(join, format!("{common} --join 127.0.0.1:7110,127.0.0.1:7130 --token flt1.x"));
    }
}
