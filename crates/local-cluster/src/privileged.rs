//! What only root can do: run system tools, and tidy up after test processes that were killed.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

/// Why something that needs root is left out, in words; `None` when it can be done.
#[must_use]
pub fn missing_privilege(tools: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this needs root".to_owned());
    }
    let absent = |tool: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
    };
    tools.iter().find(absent).map(|tool| format!("`{tool}` is not installed"))
}

/// Runs a tool and waits for it. What it says on stderr becomes the error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}

/// Whether the test process that made something is gone. Its pid is part of the names that it gave.
pub(crate) fn is_orphan(pid: &str) -> bool {
    pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
}
