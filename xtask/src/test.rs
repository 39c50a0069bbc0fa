//! `test`: everything, by cargo-nextest, then the examples in documents, which nextest does not run.

use anyhow::{Context, Result};

use crate::workspace::{self, Failpoints, Profile, cargo};

/// What to pass on.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// More arguments for `cargo nextest run`, such as a filter; the examples in documents are left out then
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    nextest: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !workspace::is_installed("cargo", &["nextest", "--version"]) {
        println!("cargo-nextest is not installed: running `cargo install --locked cargo-nextest` (once, minutes)");
        workspace::run(cargo().args(["install", "--locked", "cargo-nextest"]))
            .context("cargo-nextest could not be installed")?;
    }
    // Tests over real processes run the binary, which nextest has no reason to build.
    workspace::build_node_with(Profile::Dev, Failpoints::On)?;
    let mut nextest = cargo();
    nextest.args(["nextest", "run", "--workspace", "--cargo-profile", "dev"]).args(&arguments.nextest);
    workspace::run(&mut nextest)?;
    if arguments.nextest.is_empty() {
        workspace::run(cargo().args(["test", "--workspace", "--doc"]))?;
        // What is compiled for no other test.
        workspace::run(cargo().args(["test", "--package", "flotilla-failpoints", "--features", "enabled", "--lib"]))?;
    }
    Ok(())
}
