//! Support for faults that need root: checking for it, running system tools, and recognising leftovers of
//! killed tests.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

/// Why a fault that needs root and `tools` cannot be injected, for people; `None` if it can.
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

/// Runs a tool to completion and returns its stdout. If it fails, its stderr becomes the error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), stderr.trim())))
}

/// Whether the test process with this pid, taken from the name of something it created, no longer exists.
pub(crate) fn is_orphan(pid: &str) -> bool {
    pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
}
