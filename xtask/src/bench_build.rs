//! `bench`, as the ordinary xtask has it: builds the one with the load generator, optimised, and runs that.
//!
//! The load generator is a cargo feature, because most commands do not need it and every command waits for
//! its build.

use anyhow::Result;

use crate::workspace::{self, cargo};

/// What to pass on; the load generator's own `--help` describes it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Arguments of the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--release", "--package", "xtask", "--features", "bench", "--", "bench"]);
    workspace::run(run.args(&arguments.bench))
}
