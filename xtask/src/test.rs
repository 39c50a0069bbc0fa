//! `test`: the examples in documents, which nextest does not run, then every test by cargo-nextest.
//!
//! The workspace is compiled once, with failpoints: tests over real processes run that build of the node too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::workspace::{self, TEST_BUILD, cargo};

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
    let mut parts = Parts::default();
    let result = run_parts(arguments, &mut parts);
    parts.print();
    result
}

fn run_parts(arguments: &Arguments, parts: &mut Parts) -> Result<()> {
    parts.time("compile", workspace::build_tests)?;
    if arguments.nextest.is_empty() {
        // First: they take seconds.
        parts.time("examples", || workspace::run(cargo().args(["test", "--doc"]).args(TEST_BUILD)))?;
    }
    parts.time("tests", || {
        let mut nextest = cargo();
        nextest.args(["nextest", "run", "--cargo-profile", "dev"]).args(TEST_BUILD).args(&arguments.nextest);
        workspace::run(&mut nextest)
    })
}

/// How long each part took.
#[derive(Default)]
struct Parts(Vec<(&'static str, Duration)>);

impl Parts {
    fn time(&mut self, name: &'static str, part: impl FnOnce() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        let result = part();
        self.0.push((name, begin.elapsed()));
        result
    }

    fn print(&self) {
        println!();
        for (name, took) in &self.0 {
            println!("{name:<10}{:>6} s", took.as_secs());
        }
    }
}
