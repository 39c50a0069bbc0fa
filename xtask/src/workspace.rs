//! Where the workspace is, and how its cargo is run.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Which build of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Optimised.
    Release,
    /// Quick to build.
    Dev,
}

/// What `cargo metadata --no-deps` says, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
}

/// One crate of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line in a crate's manifest.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for ordinary ones, else `build` or `dev`.
    pub(crate) kind: Option<String>,
}

/// The folder with the workspace's manifest.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// What `cargo run` tells a program about its own crate.
const OWN_CRATE: &[&str] =
    &["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];

/// The cargo that runs this, in the workspace's root, as if called from a shell.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Some build scripts (ring's) run again when these change: a build from here and one from a shell would
    // each undo the other's work, minutes at a time.
    let own = |name: &str| OWN_CRATE.iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        command.env_remove(name);
    }
    command.current_dir(root());
    command
}

/// Runs a command with its output on this terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// Whether a program can be run. `argument` should make it say its version.
pub(crate) fn is_installed(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Reads the manifests of the workspace, without looking at the network.
pub(crate) fn metadata() -> Result<Metadata> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Builds the node as users run it, showing cargo's output, and returns the path of the binary.
pub(crate) fn build_node(profile: Profile) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--package", "flotilla-node", "--bin", "flotilla"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    run(&mut build)?;
    binary(profile, "flotilla")
}

/// What selects the build that tests run: all crates, with failpoints. Every command that compiles tests
/// passes exactly this, because cargo compiles a library once for each set of features that it is asked for.
pub(crate) const TEST_BUILD: [&str; 3] = ["--workspace", "--features", "flotilla-node/failpoints,xtask/bench"];

/// Builds all binaries and tests with failpoints.
pub(crate) fn build_tests() -> Result<()> {
    run(cargo().arg("build").args(TEST_BUILD).args(["--bins", "--tests"]))
}

/// The path of a binary that was built.
pub(crate) fn binary(profile: Profile, name: &str) -> Result<PathBuf> {
    let folder = match profile {
        Profile::Release => "release",
        Profile::Dev => "debug",
    };
    let binary = metadata()?.target_directory.join(folder).join(format!("{name}{}", env::consts::EXE_SUFFIX));
    ensure!(binary.is_file(), "cargo did not leave {}: is a build target set?", binary.display());
    Ok(binary)
}

/// A runtime for the few things that wait for nodes.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
